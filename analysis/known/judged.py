"""All refits of a table whose irreducible loss is known, and how often their intervals hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from analysis.analyse import floor_column, known_floor, points
from analysis.arrays import Array
from analysis.compare.slopes import usable
from analysis.design.precision import Grid, scattered
from analysis.errors import AnalysisError
from analysis.fit import distinct
from analysis.known.refits import Interval, Refit, refit
from analysis.laws import POWER
from analysis.runs.table import FLOORS, Runs, structures_of
from analysis.uncertainty import CONFIDENCE

LEAST_BUDGETS = 4
"""Training budgets of a structure: with three, E + k C^-alpha passes through every one of them."""
WANTED = 0.9
"""Share of the intervals below which the reason is asked for."""
CELL_DIGITS = 9
GIVEN = "given"


@dataclass(frozen=True)
class Step:
    """The local exponent of L - E between two neighbouring budgets of a structure.

    flops: of the two.
    exponent: log of the ratio of mean L - E over log of the ratio of FLOPs.
    error: its standard error by the pooled spread of seeds; None without replicates.
    """

    structure: str
    flops: tuple[float, float]
    exponent: float
    error: float | None


@dataclass(frozen=True)
class Share:
    """How many intervals hold the known value: `held` of `of`; `without` further refits have none.

    interval: of the share, 95 %, Clopper and Pearson 1934; None where there is no interval at all.
    """

    kind: str
    held: int
    of: int
    without: int
    interval: Interval | None


@dataclass(frozen=True)
class Known:
    """A table judged against its known irreducible loss.

    known: nats per token.
    source: `val_entropy`, `entropy_rate`, or `given`.
    refits: of single seeds, of all seeds, and with one E for all, structures in order.
    steps: local exponents of L - E, by structure, from small to large.
    evaluation: median standard error of the losses over the held-out text, nats; None where unknown.
    notes: what could not be done.
    """

    name: str
    known: float
    source: str
    refits: tuple[Refit, ...]
    steps: tuple[Step, ...]
    runs: Runs
    evaluation: float | None
    notes: tuple[str, ...]

    @property
    def structures(self) -> list[str]:
        """Those of the table, in order."""
        return structures_of(self.runs.table)

    def of(self, kind: str) -> list[Refit]:
        """The refits of one kind."""
        return [one for one in self.refits if one.kind == kind]

    def shares(self) -> list[Share]:
        """How often the intervals hold the known value: by kind."""
        kinds = [kind for kind in ("seed", "all", "shared") if self.of(kind)]
        return [share(kind, self.of(kind)) for kind in kinds]

    def middle_steps(self) -> list[float]:
        """Local exponents from the smallest to the largest budget, means over structures of as many steps."""
        rows = [[s.exponent for s in self.steps if s.structure == name] for name in self.structures]
        most = max((len(row) for row in rows), default=0)
        whole = [row for row in rows if len(row) == most]
        return [float(np.mean(column)) for column in zip(*whole, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "known": self.known,
            "source": self.source,
            "coverage": self.runs.coverage(),
            "evaluation_se": self.evaluation,
            "shares": [dict(vars(one)) for one in self.shares()],
            "refits": [one.to_dict() for one in self.refits],
            "local_exponents": [dict(vars(one)) for one in self.steps],
            "notes": list(self.notes),
        }


def share(kind: str, refits: Sequence[Refit]) -> Share:
    """Count the intervals that hold the known value."""
    judged = [one for one in refits if one.holds is not None]
    held, of = sum(bool(one.holds) for one in judged), len(judged)
    return Share(kind, held, of, len(refits) - of, binomial(held, of))


def binomial(held: int, of: int) -> Interval | None:
    """95 % interval of a share, Clopper and Pearson (1934); None of nothing."""
    if of == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(held, of - held + 1, tail)) if held else 0.0
    high = float(betaincinv(held + 1, of - held, 1 - tail)) if held < of else 1.0
    return low, high


def why_not(runs: Runs, irreducible: float | None = None) -> str | None:
    """Why a table has no fits to judge against a known irreducible loss, in words; None where it has.

    Args:
        runs: the table.
        irreducible: a given one; None for that of the table's columns.
    """
    table = runs.table
    if table.empty:
        return f"no finished run ({runs.coverage()})"
    if irreducible is None and floor_column(table) is None:
        return _no_floor(table)
    if irreducible is not None and irreducible <= 0:
        return "an irreducible loss of 0 is the law without E; give one above 0"
    if bool(table["train_flops"].isna().any()):
        return "training FLOPs are not known of all runs"
    for name in structures_of(table):
        if _grid(table[table["structure"] == name]):
            return (
                f"the runs of {name} are a grid in parameters and tokens; a law in FLOPs alone needs one "
                "ladder, a token budget for each size (--filter keeps one, 'natural' takes the grid)"
            )
    budgets = [distinct(points(table, name)[0]) for name in structures_of(table)]
    if max(budgets) < LEAST_BUDGETS:
        return f"no structure has {LEAST_BUDGETS} training budgets; the most are {max(budgets)}"
    return None


def _no_floor(table: pd.DataFrame) -> str:
    there = [name for name in FLOORS if name in table and not table[name].isna().all()]
    remedy = "give it with --irreducible"
    if not there:
        return f"no known irreducible loss (column {' or '.join(FLOORS)}); {remedy}"
    values, lowest = table[there[0]], float(table["val_loss"].min())
    if bool(values.isna().any()) or values.nunique() > 1:
        return f"{there[0]} is not one value for all runs; keep those of one text with --filter"
    if float(values.iloc[0]) <= 0:
        return f"{there[0]} is 0: what is asked for is certain, and a fitted E above 0 has nothing to meet"
    return (
        f"{there[0]} = {float(values.iloc[0]):g} is not below the lowest loss {lowest:g}, so it is no "
        f"irreducible loss of these runs; {remedy}"
    )


def _grid(rows: pd.DataFrame) -> bool:
    """Whether the runs of a structure spend FLOPs in several ways: several token budgets of a size."""
    sizes, tokens, flops = (rows[name].to_numpy(np.float64) for name in ("params", "tokens", "train_flops"))
    if bool(np.isnan(sizes).any()):
        return False
    known = not bool(np.isnan(tokens).any())
    if known and any(distinct(tokens[sizes == size]) > 1 for size in np.unique(sizes)):
        return True
    return scattered(POWER, Grid({"params": sizes, "train_flops": flops}, ("",) * sizes.size))


def judge(runs: Runs, name: str, irreducible: float | None = None) -> Known:
    """Fit every structure and seed, every structure, and all with one E, and hold E against the known one.

    Args:
        runs: the table, one ladder of budgets a structure.
        name: what the report calls it.
        irreducible: known irreducible loss in nats per token; None for that of the table's columns.

    Raises:
        AnalysisError: there is none, or the table is no ladder, as `why_not` says.
    """
    table = runs.table
    known = None if table.empty else known_floor(table, irreducible)
    if reason := why_not(runs, irreducible):
        raise AnalysisError(f"{name}: {reason}")
    assert known is not None
    source = GIVEN if irreducible is not None else str(floor_column(table))
    names = structures_of(table)
    several = table["seed"].nunique() > 1
    refits = []
    for structure in names if several else ():
        for seed in sorted(set(table.loc[table["structure"] == structure, "seed"])):
            flops, loss = points(table[table["seed"] == seed], structure)
            refits.append(refit("seed", structure, int(seed), flops, loss, [structure] * loss.size, known))
    for structure in names:
        flops, loss = points(table, structure)
        refits.append(refit("all", structure, None, flops, loss, [structure] * loss.size, known))
    notes = []
    groups = usable({structure: points(table, structure) for structure in names})
    if len(groups) > 1:
        flops, loss = (np.concatenate([pair[i] for pair in groups.values()]) for i in (0, 1))
        labels = [label for label, (_, losses) in groups.items() for _ in losses]
        refits.append(refit("shared", "", None, flops, loss, labels, known))
        if gone := [structure for structure in names if structure not in groups]:
            notes.append(f"Not in the fit with one E, for want of three budgets: {', '.join(gone)}.")
    else:
        notes.append("No fit with one E for all: fewer than two structures have three budgets.")
    if not several:
        notes.append("One seed: each structure's only ladder stands under all seeds.")
    return Known(
        name, known, source, tuple(refits), tuple(_steps(table, names, known)), runs, _evaluation(table),
        tuple(notes),
    )  # fmt: skip


def _evaluation(table: pd.DataFrame) -> float | None:
    if "val_loss_se" not in table or bool(table["val_loss_se"].isna().all()):
        return None
    return float(table["val_loss_se"].median())


def _steps(table: pd.DataFrame, names: Sequence[str], known: float) -> list[Step]:
    """Local exponents of mean L - E, with errors by the spread of log loss between seeds, pooled."""
    cells = {name: _cells(*points(table, name)) for name in names}
    spare = [loss.size - 1 for mine in cells.values() for _, loss in mine]
    squares = [float(np.sum((np.log(x) - np.log(x).mean()) ** 2)) for m in cells.values() for _, x in m]
    noise = math.sqrt(sum(squares) / sum(spare)) if sum(spare) else None
    steps = []
    for name, mine in cells.items():
        left = [(flops, float(loss.mean()) - known, loss) for flops, loss in mine]
        for (c0, e0, l0), (c1, e1, l1) in pairwise(left):
            width = math.log(c1 / c0)
            error = None
            if noise is not None:
                parts = [noise * float(x.mean()) / e / math.sqrt(x.size) for e, x in ((e0, l0), (e1, l1))]
                error = math.hypot(*parts) / width
            steps.append(Step(name, (c0, c1), math.log(e0 / e1) / width, error))
    return steps


def _cells(flops: Array, loss: Array) -> list[tuple[float, Array]]:
    """The losses at each training budget, from small to large."""
    keys = np.round(np.log(flops), CELL_DIGITS)
    return [(float(flops[keys == key].mean()), loss[keys == key]) for key in np.unique(keys)]
