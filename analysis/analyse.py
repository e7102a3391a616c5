"""From a runs table to its fits and verdict: the one computation behind report, figures and command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Array
from analysis.compare.multipliers import Curves
from analysis.compare.surfaces import Surfaces
from analysis.compare.verdict import Comparison, compare_slopes
from analysis.errors import AnalysisError
from analysis.fit import LEAST_SQUARES, Fit, Refusal, distinct, fit_law
from analysis.laws import IRREDUCIBLE, POWER
from analysis.runs.table import FLOORS, Runs, structures_of


@dataclass(frozen=True)
class Analysis:
    """A table with its fits by structure, in the order of figures and reports."""

    name: str
    runs: Runs
    power: dict[str, Fit | Refusal]
    irreducible: dict[str, Fit | Refusal]
    comparison: Comparison

    @property
    def structures(self) -> list[str]:
        """Structure labels in order."""
        return list(self.power)

    def to_dict(self) -> dict[str, Any]:
        """JSON form of fits and verdict, float64 at full precision."""
        fits = {
            name: {"power": self.power[name].to_dict(), "irreducible": self.irreducible[name].to_dict()}
            for name in self.power
        }
        return {
            "name": self.name,
            "laws": {law.name: law.formula for law in (POWER, IRREDUCIBLE)},
            "fits": fits,
            "comparison": self.comparison.to_dict(),
        }


def points(table: pd.DataFrame, structure: str) -> tuple[Array, Array]:
    """Training FLOPs and losses of one structure, each of shape (n,)."""
    rows = table[table["structure"] == structure]
    return rows["train_flops"].to_numpy(np.float64), rows["val_loss"].to_numpy(np.float64)


def compared(runs: Runs) -> tuple[Curves, Surfaces | None, Curves | None]:
    """What `compare_report` holds against each other: losses over FLOPs, over N and D, over wall seconds.

    The last two are None where the table does not give them for every run.
    """
    table = runs.table
    curves = {structure: points(table, structure) for structure in structures_of(table)}
    rows = {structure: (table["structure"] == structure).to_numpy(bool) for structure in curves}

    def column(name: str) -> Array:
        return table[name].to_numpy(np.float64)

    surfaces = seconds = None
    timed = over_seconds(runs)
    if not bool(table[["params", "tokens"]].isna().any(axis=None)):
        n, d = column("params"), column("tokens")
        surfaces = {s: (n[mine], d[mine], curves[s][1]) for s, mine in rows.items()}
    if timed is not None:
        seconds = {s: points(timed.table, s) for s in curves}
    return curves, surfaces, seconds


def analyse(runs: Runs, name: str, irreducible: float | None = None) -> Analysis:
    """Fit both laws to every structure and compare the exponents.

    Args:
        runs: the table.
        name: what the report calls it.
        irreducible: a known irreducible loss in nats per token; where None, that of the held-out text, else
            the entropy rate of the corpus, is used if the table holds one and the same for all runs.

    Raises:
        AnalysisError: no finished run, or an impossible irreducible loss.
    """
    if runs.table.empty:
        raise AnalysisError(
            f"{name}: no finished run to fit ({runs.coverage()}); run or resume the sweep first"
        )
    known = known_floor(runs.table, irreducible)
    groups = {structure: points(runs.table, structure) for structure in structures_of(runs.table)}
    return Analysis(
        name=name,
        runs=runs,
        power={s: _curve(POWER.name, *xy, s) for s, xy in groups.items()},
        irreducible={s: _curve(IRREDUCIBLE.name, *xy, s) for s, xy in groups.items()},
        comparison=compare_slopes(groups, design_words(runs.table), known),
    )


def _curve(law: str, flops: Array, loss: Array, structure: str) -> Fit | Refusal:
    return fit_law(law, {"train_flops": flops}, loss, structure, settings=LEAST_SQUARES)


def over_seconds(runs: Runs) -> Runs | None:
    """The runs with wall seconds of training in place of FLOPs; None where not every run has them.

    Nor where they trained on several kinds of device: their seconds are no common measure.
    """
    table = runs.table
    if "seconds" not in table or not bool((table["seconds"].to_numpy(np.float64) > 0).all()):
        return None
    if "device" in table and table["device"].nunique() > 1:
        return None
    return replace(runs, table=table.assign(train_flops=table["seconds"].to_numpy(np.float64)))


def known_floor(table: pd.DataFrame, irreducible: float | None) -> float | None:
    """The irreducible loss that the user gives, or that of the table's corpus, or None.

    Raises:
        AnalysisError: it is given and not below every loss.
    """
    if irreducible is None:
        return next((found for name in FLOORS if (found := _floor(table, name)) is not None), None)
    lowest = float(table["val_loss"].min())
    if not 0 <= irreducible < lowest:
        raise AnalysisError(
            f"--irreducible {irreducible:g}: must lie from 0 to below the lowest loss {lowest:g}; mend it"
        )
    return irreducible


def floor_column(table: pd.DataFrame) -> str | None:
    """The column that gives the irreducible loss of all runs; None where there is none."""
    return next((name for name in FLOORS if _floor(table, name) is not None), None)


def _floor(table: pd.DataFrame, name: str) -> float | None:
    """The value of a column of irreducible losses where every run has the same one and lies above it."""
    if name not in table:
        return None
    rates = table[name].to_numpy(np.float64)
    same = bool(np.all(np.isfinite(rates)) and np.ptp(rates) == 0)
    return float(rates[0]) if same and 0 < rates[0] < table["val_loss"].min() else None


def design_words(table: pd.DataFrame) -> str:
    """The design as the verdict names it: `4 sizes x 1 seed` where it is a full grid, else the run count."""
    shapes = set()
    for structure in structures_of(table):
        flops, _ = points(table, structure)
        budgets = distinct(flops)
        if flops.size % budgets or len(np.unique(np.round(np.log(flops), 6))) != budgets:
            return f"{len(table)} runs"
        shapes.add((budgets, flops.size // budgets))
    if len(shapes) != 1:
        return f"{len(table)} runs"
    budgets, seeds = shapes.pop()
    sizes = table["size"].nunique() if "size" in table else 0
    what = "sizes" if sizes == budgets else "training budgets"
    return f"{budgets} {what} x {seeds} seed{'s' if seeds > 1 else ''}"
