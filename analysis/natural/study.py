"""All estimates of gamma for each curve of one or several tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.allocation import SIX, cost_of
from analysis.analyse import floor_column, known_floor
from analysis.arrays import Array
from analysis.errors import AnalysisError
from analysis.fit import Fit, Settings, distinct
from analysis.isoflop.budgets import group_budgets
from analysis.natural import bounds, optimum
from analysis.natural.estimate import BOUNDS, LIMIT, REFERENCES, Estimate, Floor, Group, Natural
from analysis.natural.law import (
    beside_known,
    cautions,
    fitted_floor,
    free_law,
    held_law,
    lack_of_fit,
    why_not,
)
from analysis.natural.measured import RESAMPLES, Measured, sensitivity
from analysis.natural.reach import SAME_TOKENS
from analysis.runs.loading import run_labels
from analysis.runs.table import FLOORS, ONE_CURVE, Runs, structures_of

WITHIN = 0.5
"""The size may add half as much again to the excess loss that the data leave.

Under L = E + A N^-alpha + B D^-beta a compute-optimal N has the share beta / alpha, 0.82 for Hoffmann et al.,
and a share s asks for (0.82 / s)^(1 / alpha) times its size: 4 times at 0.5, 33 times at 0.25, which grids
around the optimum seldom hold, and where noise decides: the error of log N is that of log excess times
(1 + s) / (alpha s).
"""
SHARES = (0.1, 0.25, 0.5, 1.0)
LEAST, LEAST_RUNS = 3, 5


@dataclass(frozen=True)
class Curve:
    """The runs of one structure or study.

    label: what reports call it.
    table: one row a point: params, tokens, val_loss; perhaps train_flops, val_entropy and entropy_rate.
    clusters: the run of each point where several are of one, else None.
    """

    label: str
    table: pd.DataFrame
    clusters: Sequence[str] | None = None


@dataclass(frozen=True)
class Options:
    """How to estimate.

    within: share of the least excess loss by which the wanted one may exceed it.
    reference: what the least excess is, key of `REFERENCES`.
    irreducible: known irreducible loss, nats per token; None for that of the table, or a fitted one.
    settings: of the law's fit.
    resamples: simulated tables of the measured estimate.
    """

    within: float = WITHIN
    reference: str = LIMIT
    irreducible: float | None = None
    settings: Settings = field(default_factory=Settings)
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            AnalysisError: a share that is not above zero, or an unknown reference.
        """
        if not 0 < self.within < math.inf:
            raise AnalysisError(f"--within {self.within:g}: must be above zero; give a share such as 0.25")
        if self.reference not in REFERENCES:
            raise AnalysisError(f"--reference {self.reference}: use one of {', '.join(REFERENCES)}")


def curves_of(
    runs: Runs, name: str, several: bool = False, cluster: str | None = None, quiet: bool = False
) -> list[Curve]:
    """The curves of a table, one a structure.

    Args:
        runs: the table.
        name: what reports call it.
        several: whether other tables stand beside, so that labels name theirs.
        cluster: column that names the run of each point.
        quiet: whether to say nothing of a column of runs that was found.

    Raises:
        AnalysisError: no finished run, or params or tokens of some are not known.
    """
    if runs.table.empty:
        raise AnalysisError(f"{name}: no finished run ({runs.coverage()}); run or resume the sweep first")
    for column in ("params", "tokens", "val_loss"):
        if column not in runs.table or bool(runs.table[column].isna().any()):
            raise AnalysisError(
                f"{name}: natural needs {column} of every run; map a column with --map THEIRS={column}"
            )
    labels = run_labels(runs, cluster, quiet)
    found = []
    for structure in structures_of(runs.table):
        mine = (runs.table["structure"] == structure).to_numpy(bool)
        alone = structure == ONE_CURVE
        called = name if alone else f"{name}, {structure}" if several else structure
        own = None if labels is None else [one for one, yes in zip(labels, mine, strict=True) if yes]
        if own is not None and len(set(own)) == len(own):
            own = None
        found.append(Curve(called, runs.table[mine].reset_index(drop=True), own))
    return found


def why_no_law(table: pd.DataFrame) -> str:
    """Why sizes and tokens of these runs can give no gamma whatever their losses; empty where they may."""
    if len(table) < LEAST_RUNS:
        return f"{len(table)} runs; it needs {LEAST_RUNS}"
    for column, what in (("params", "sizes"), ("tokens", "token budgets")):
        count = distinct(table[column].to_numpy(np.float64))
        if count < LEAST:
            return f"{count} distinct {what if count != 1 else what[:-1]}; it needs {LEAST}"
    return ""


def natural(
    curves: Sequence[Curve],
    name: str,
    options: Options | None = None,
    coverage: str = "",
    watch: Callable[[int], None] | None = None,
) -> Natural:
    """Estimate gamma of every curve.

    Args:
        curves: at least one.
        name: of the table, or of several joined.
        options: how to estimate.
        coverage: how complete the tables are, in words.
        watch: told the number of curves done so far.

    Raises:
        AnalysisError: no curve has the runs that any estimate needs.
    """
    options = options or Options()
    groups, left = [], []
    for done, curve in enumerate(curves, 1):
        reason = why_no_law(curve.table)
        if reason:
            left.append(f"{curve.label}: {reason}")
        else:
            groups.append(_group(curve, options))
        if watch is not None:
            watch(done)
    if not groups:
        more = f" (and {len(left) - 1} more curves)" if len(left) > 1 else ""
        raise AnalysisError(
            f"{left[0]}{more}: the natural law needs sizes and token budgets that vary by themselves; "
            "train a grid of both"
        )
    notes = tuple(f"Left out: {one}." for one in left)
    return Natural(name, tuple(groups), options.within, options.reference, coverage, notes)


def _group(curve: Curve, options: Options) -> Group:
    """All estimates of one curve."""
    table = curve.table
    n, d, y = (table[column].to_numpy(np.float64) for column in ("params", "tokens", "val_loss"))
    c = _flops(table, n, d)
    settings = options.settings
    free = free_law(n, d, y, curve.label, settings, curve.clusters)
    floor, notes = _floor(table, options.irreducible)
    fit = free
    if floor.value is None:
        floor = fitted_floor(free)
    else:
        fit = held_law(n, d, y, curve.label, floor.value, settings, curve.clusters)
        notes.append(f"{curve.label}: {beside_known(free, floor.value)}.")
    notes += [f"{curve.label}: {finding}." for finding in cautions(fit)]
    cost = cost_of(n, d, c)
    by_law, line = optimum.by_law(fit, cost, (float(c.min()), float(c.max())))
    by_parabolas, vertices = optimum.by_parabolas(n, d, c, y, cost, curve.clusters is not None)
    own = fit if isinstance(fit, Fit) and not why_not(fit) else None
    measured = Measured(n, d, y, floor, own, curve.clusters, options.resamples, options.settings.seed)
    choices = tuple(measured.choice(*one) for one in sensitivity(options.within, SHARES))
    chosen = next(x for x in choices if (x.within, x.reference) == (options.within, options.reference))
    estimates = [
        bounds.bound(fit, "agnostic"), bounds.bound(fit, "realizable"), chosen.estimate, by_law, by_parabolas,
    ]  # fmt: skip
    estimates, against = contradicted(estimates, lack_of_fit(fit), measured)
    return Group(
        label=curve.label,
        runs=len(table) if curve.clusters is None else len(set(curve.clusters)),
        sizes=distinct(n),
        budgets=len(group_budgets(d, SAME_TOKENS)),
        floor=floor,
        fit=fit,
        estimates={one.kind: one for one in estimates},
        choices=choices,
        tokens=(float(d.min()), float(d.max())),
        params=(float(n.min()), float(n.max())),
        optimum=line,
        vertices=vertices,
        notes=tuple(notes),
        against=against,
    )


def contradicted(
    estimates: Sequence[Estimate], rejected: str, measured: Measured
) -> tuple[list[Estimate], tuple[str, ...]]:
    """The estimates with what contradicts the law that each rests on, and a clause on each contradiction.

    Args:
        estimates: of one curve.
        rejected: a clause on replicates that reject the law; empty without.
        measured: its N(D), whose limits may lie below a known E.
    """
    below, sure = measured.limits_below()
    doubt, against = "", [rejected] if rejected else []
    if below:
        told = "with their whole interval" if sure == below else f"at {sure} with their whole interval"
        says = f", {told}, which contradicts the law" if sure else ", as noise may have it"
        limits = "the limits that the curves over sizes tend to lie below the known E"
        against.append(f"{limits} at {below} of {len(measured.budgets)} token budgets{says}")
    by = [
        words
        for words, yes in (("the replicates reject", rejected), ("the known E contradicts", sure))
        if yes
    ]
    doubt = f"by a law that {' and '.join(by)}" if by else ""
    doubts = dict.fromkeys((*BOUNDS, "law"), doubt)
    if sure:
        doubts["measured"] = "against limits that the known E contradicts"
    elif rejected and measured.by_law:
        doubts["measured"] = f"with the help of {doubt.removeprefix('by ')}"
    marked = [replace(one, doubt=doubts.get(one.kind, "")) if one.known else one for one in estimates]
    return marked, tuple(against)


def _flops(table: pd.DataFrame, params: Array, tokens: Array) -> Array:
    """Counted FLOPs where all are known, else 6 N D."""
    if "train_flops" in table and not bool(table["train_flops"].isna().any()):
        return table["train_flops"].to_numpy(np.float64)
    return SIX * params * tokens


def _floor(table: pd.DataFrame, irreducible: float | None) -> tuple[Floor, list[str]]:
    """The irreducible loss where it is known, and why a column of it is not used."""
    known = known_floor(table, irreducible)
    if known is not None:
        return Floor(known, "given" if irreducible is not None else floor_column(table) or ""), []
    for name in FLOORS:
        if name in table and bool(table[name].notna().any()):
            raise AnalysisError(
                f"{name} is not one number below every loss; mend or drop the column, or give --irreducible"
            )
    return Floor(None), []
