"""Standard errors that a plan promised beside those that the finished fits have, and what sets them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaincinv

from analysis.analyse import points
from analysis.arrays import Array
from analysis.compare.slopes import NoTest, SlopeTest, detectable_difference, joint, slope_test
from analysis.compare.slopes import usable as comparable
from analysis.design.planned import grid_of
from analysis.design.precision import (
    Grid,
    Impossible,
    Predicted,
    contrast,
    freed,
    inverse_information,
    predict,
)
from analysis.design.promise import LAWS, Promise
from analysis.engine.sums import ALL, Bound
from analysis.errors import AnalysisError
from analysis.fitcheck import lack_of_fit
from analysis.runs.table import Runs, structures_of
from analysis.uncertainty import CONFIDENCE

VIEWS = {"none": ("power", False), "shared": ("irreducible", True), "separate": ("irreducible", False)}
"""View of the irreducible loss, as in compare.HYPOTHESES -> law, and whether all structures share E."""
SAME_FLOPS = 1e-6


@dataclass(frozen=True)
class Entry:
    """The standard error of an exponent, or of a difference of two, at four stages.

    what: `alpha[dense]`, or `dense - lowrank-32`.
    value: as fitted.
    promised: planned runs, assumed law, assumed noise.
    with_runs: the finished runs in place of the planned ones.
    with_law: the fitted law besides.
    obtained: the residual noise of the fit besides, which is the fit's own standard error.
    detectable_promised, detectable: of a difference, what 80 of 100 such studies find; None of an exponent.

    None where the runs do not allow it; what the fitted law makes of it also where its E is at the bound 0
    (`detectable` also where E is hardly identified), since the fit's own error then holds for that E only.
    """

    what: str
    value: float
    promised: float | None
    with_runs: float | None
    with_law: float | None
    obtained: float | None
    detectable_promised: float | None = None
    detectable: float | None = None

    @property
    def ratio(self) -> float | None:
        """Obtained over promised."""
        return _over(self.obtained, self.promised)

    @property
    def of_two(self) -> bool:
        """Whether this is a difference of two exponents."""
        return not self.what.startswith("alpha[")

    @property
    def factors(self) -> tuple[float | None, float | None, float | None]:
        """What the runs, the law and the noise make of it; their product is `ratio`."""
        return (
            _over(self.with_runs, self.promised),
            _over(self.with_law, self.with_runs),
            _over(self.obtained, self.with_law),
        )


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


@dataclass(frozen=True)
class View:
    """One view of the irreducible loss.

    refused: why there is no fit, or None.
    not_promised: why there was no promise, or None.
    assumed, fitted: parameters by name, alpha and E of each structure where it has its own.
    residual_sd: of log loss about the fit; None without one.
    lack: F, degrees of freedom and p of the law against the spread of seeds; None without replicates.
    caution: why the fit's errors are to be read with care, or None.
    """

    hypothesis: str
    entries: tuple[Entry, ...]
    refused: str | None
    not_promised: str | None
    assumed: dict[str, float]
    fitted: dict[str, float]
    residual_sd: float | None
    lack: tuple[float, tuple[int, int], float] | None
    caution: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        entries = [
            {
                **vars(one),
                "ratio": one.ratio,
                "factors": dict(zip(("runs", "law", "noise"), one.factors, strict=True)),
            }
            for one in self.entries
        ]
        return {**vars(self), "entries": entries}


@dataclass(frozen=True)
class Spread:
    """Standard deviation of log loss between seeds, pooled, with its 95 % interval."""

    sd: float
    dof: int
    low: float
    high: float


@dataclass(frozen=True)
class Promised:
    """A plan beside what came of it.

    planned, finished: planned runs, and how many of them have finished.
    renamed: those that finished under another run id than planned, by a setting that costs no FLOPs.
    unplanned: finished runs that are not in the plan, of structures that are.
    replicates: None without.
    """

    name: str
    date: str
    noise: float
    planned: int
    finished: int
    renamed: int
    unplanned: int
    views: tuple[View, ...]
    replicates: Spread | None
    coverage: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        replicates = None if self.replicates is None else dict(vars(self.replicates))
        return {**vars(self), "views": [one.to_dict() for one in self.views], "replicates": replicates}


def hold_to_it(promise: Promise, runs: Runs, name: str) -> Promised:
    """Hold a plan's standard errors against those of its finished runs.

    Args:
        promise: the plan.
        runs: the finished runs.
        name: what the report calls them.

    Raises:
        AnalysisError: no run of a planned structure has finished.
    """
    table = runs.table[runs.table["structure"].isin(promise.grid.structures)].reset_index(drop=True)
    if table.empty:
        raise AnalysisError(
            f"{name}: no finished run of a planned structure ({', '.join(promise.grid.structures)}); "
            "plan under the labels that the fits have"
        )
    notes = []
    if other := [one for one in structures_of(runs.table) if one not in promise.grid.structures]:
        notes.append(f"Not planned, and left out: {', '.join(other)}.")
    finished, renamed = _met(promise.table, table)
    return Promised(
        name=name,
        date=promise.date,
        noise=promise.noise,
        planned=len(promise.table),
        finished=finished,
        renamed=renamed,
        unplanned=len(table) - finished,
        views=tuple(_view(one, promise, table) for one in VIEWS),
        replicates=_replicates(table),
        coverage=runs.coverage(),
        notes=tuple(notes),
    )


def _met(planned: pd.DataFrame, table: pd.DataFrame) -> tuple[int, int]:
    """How many planned runs have finished, and how many of these under another id."""
    ids = set(table["run_id"]) if "run_id" in table else set()
    left = {same_run(row): 0 for row in table.to_dict("records")}
    for row in table.to_dict("records"):
        left[same_run(row)] += 1
    finished = renamed = 0
    for row in planned.to_dict("records"):
        key = same_run(row)
        if left.get(key, 0) > 0:
            left[key] -= 1
            finished += 1
            renamed += row.get("run_id", "") not in ids
    return finished, renamed


def same_run(row: Mapping[Any, Any]) -> tuple[str, int, int]:
    """What a planned run and a finished one have in common: structure, seed and training FLOPs."""
    return str(row["structure"]), int(row["seed"]), round(math.log(row["train_flops"]) / SAME_FLOPS)


def _replicates(table: pd.DataFrame) -> Spread | None:
    squares, dof = 0.0, 0
    for structure in structures_of(table):
        flops, loss = points(table, structure)
        cells = np.round(np.log(flops), 9)
        for cell in np.unique(cells):
            mine = np.log(loss[cells == cell])
            squares += float(np.sum((mine - mine.mean()) ** 2))
            dof += mine.size - 1
    if dof < 1 or squares == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = (math.sqrt(squares / (2 * float(gammaincinv(dof / 2, q)))) for q in (1 - tail, tail))
    return Spread(math.sqrt(squares / dof), dof, low, high)


def _view(hypothesis: str, promise: Promise, table: pd.DataFrame) -> View:
    law_name, share = VIEWS[hypothesis]
    law = LAWS[law_name]
    free = freed(law, share)
    groups = comparable({one: points(table, one) for one in structures_of(table)})
    assumed = promise.assumed.get(law_name)
    before: Predicted | Impossible | None = None
    then: Predicted | Impossible | None = None
    if assumed is not None and groups:
        before = predict(assumed, promise.grid.of(*groups), free)
        then = predict(assumed, _ordered(table, list(groups)), free)
    refused_before = "the plan did not ask for this law" if assumed is None else _reason(before)
    said = {} if assumed is None else dict(assumed.values)
    test = slope_test(groups, hypothesis)
    if isinstance(test, NoTest):
        return View(hypothesis, (), test.reason, refused_before, said, {}, None, None, None)
    fit = joint(law, groups, free)
    bound, phi = fit.optimum.bound, fit.optimum.phi
    inverse = inverse_information(bound, phi)
    if inverse is None:
        reason = "the parameters cannot be told apart"
        return View(hypothesis, (), reason, refused_before, said, {}, None, None, None)
    stages = (
        before,
        then,
        _at(bound, phi, promise.noise, inverse),
        _at(bound, phi, test.residual_sd, inverse),
    )
    first, *others = groups
    entries = [_entry(stages, label, None, test) for label in groups]
    entries += [_entry(stages, first, other, test) for other in others]
    fitted = {"alpha" if not group else f"alpha[{group}]": value for group, value in test.exponents.items()}
    if law.name == "irreducible":
        fitted |= {f"E[{group}]" if group else "E": value for group, value in test.irreducible.items()}
    residual = bound.log_value(phi) - bound.log_loss
    lack = lack_of_fit(bound.terms, residual, fit.parameters)
    return View(
        hypothesis, tuple(entries), None, refused_before, said, fitted, test.residual_sd, lack, test.caution
    )


def _ordered(table: pd.DataFrame, structures: Sequence[str]) -> Grid:
    return grid_of(table).of(*structures)


def _reason(found: Predicted | Impossible | None) -> str | None:
    return f"{found.group or 'all'}: {found.reason}" if isinstance(found, Impossible) else None


def _at(bound: Bound, phi: Array, noise: float, inverse: Array) -> Predicted:
    return Predicted(ALL, bound, phi, noise**2 * inverse, math.nan)


def _entry(
    stages: Sequence[Predicted | Impossible | None], label: str, other: str | None, test: SlopeTest
) -> Entry:
    errors = [
        one.error(contrast(one.bound, "alpha", label, other)) if isinstance(one, Predicted) else None
        for one in stages
    ]
    promised, with_runs, with_law, obtained = errors
    if any(test.error(name) is None for name in (label, other) if name is not None):
        with_law = obtained = None
    value = test.exponents[label]
    if other is None:
        return Entry(f"alpha[{label}]", value, promised, with_runs, with_law, obtained)
    before = stages[0]
    limit = found = None
    if promised is not None and isinstance(before, Predicted):
        limit = detectable_difference(promised, before.dof)
    if obtained is not None and not test.open:
        found = detectable_difference(obtained, test.test.dof)
    apart = value - test.exponents[other]
    return Entry(f"{label} - {other}", apart, promised, with_runs, with_law, obtained, limit, found)
