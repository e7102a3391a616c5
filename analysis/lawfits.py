"""One law fitted to every structure of a table, or jointly to all: fits, optimal allocation, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.allocation import Allocation, allocation, cost_of
from analysis.arrays import Array, Mask
from analysis.engine.sums import DERIVED, SumLaw
from analysis.errors import AnalysisError
from analysis.fit import Fit, Refusal, Settings, fit_law
from analysis.isoflop.budgets import mixed_ratios
from analysis.report import plain
from analysis.runs.table import ONE_CURVE, Runs, structures_of

BUDGETS = 3
BEYOND = 10.0
"""Optima are given over the runs' budgets, and at so many times the largest."""


@dataclass(frozen=True)
class LawFits:
    """A law on a table: one fit for each structure, or one joint fit.

    name: of the table.
    grouped: whether the user asked for one fit a structure.
    """

    name: str
    law: SumLaw
    runs: Runs
    fits: tuple[Fit | Refusal, ...]
    allocations: tuple[Allocation | None, ...]
    grouped: bool

    def to_json(self) -> str:
        """A list of fits where one for each structure was asked for, else the only one."""
        bodies = []
        for fit, optimal in zip(self.fits, self.allocations, strict=True):
            body = fit.to_dict()
            if optimal is not None:
                body["allocation"] = optimal.to_dict()
            bodies.append(body)
        whole: Any = bodies if self.grouped else bodies[0]
        return json.dumps(plain(whole), indent=1, allow_nan=False) + "\n"


def law_columns(law: SumLaw) -> tuple[str, ...]:
    """Columns of the table that a law needs, its loss included."""
    named = [part for name in law.variables for part in (DERIVED[name][0] if name in DERIVED else (name,))]
    return (*dict.fromkeys(named), "val_loss")


def variables(runs: Runs, law: SumLaw) -> dict[str, Array]:
    """The law's columns as arrays of shape (n,).

    Raises:
        AnalysisError: one is missing, or has cells without a number.
    """
    found = {}
    for name in law_columns(law):
        if name not in runs.table or runs.table[name].isna().any():
            raise AnalysisError(
                f"{law.name} ({law.formula}) needs {name} of every run; map a column with --map THEIRS={name}"
            )
        found[name] = runs.table[name].to_numpy(np.float64)
    return found


def fit_table(
    runs: Runs,
    name: str,
    law: SumLaw,
    *,
    grouped: bool,
    share: Sequence[str] | None = None,
    settings: Settings | None = None,
    clusters: Sequence[str] | None = None,
    watch: Callable[[int], None] | None = None,
) -> LawFits:
    """Fit a law to a table.

    Args:
        runs: the table.
        name: what reports call it.
        law: the law.
        grouped: one fit for each structure; else the table must hold one structure only.
        share: parameters that all structures have in common, in one joint fit; None for separate fits.
        settings: how to fit.
        clusters: the run of each point.
        watch: told the number of structures done so far.

    Raises:
        AnalysisError: no runs, a missing column, several structures without a grouping, or no fit at all.
    """
    if runs.table.empty:
        raise AnalysisError(
            f"{name}: no finished run to fit ({runs.coverage()}); run or resume the sweep first"
        )
    data = variables(runs, law)
    loss = data.pop("val_loss")
    structures = structures_of(runs.table)
    labels = runs.table["structure"].to_numpy(str)
    if share is not None:
        fits = [_joint(law, data, loss, list(labels), share, settings, clusters)]
        return LawFits(name, law, runs, tuple(_checked(fits, name)), (None,), False)
    if not grouped and len(structures) > 1:
        raise AnalysisError(
            f"{name}: holds {len(structures)} structures ({', '.join(structures[:4])}); fit each with "
            "--group structure, jointly with --share E, or one with --filter \"structure == '...'\""
        )
    fits, optima = [], []
    for structure in structures:
        mine = labels == structure
        part = {key: value[mine] for key, value in data.items()}
        runs_of = None if clusters is None else [run for run, yes in zip(clusters, mine, strict=True) if yes]
        group = structure if grouped or structure != ONE_CURVE else ONE_CURVE
        fit = _with_ratios(
            fit_law(law, part, loss[mine], group, settings=settings, clusters=runs_of), runs, mine
        )
        fits.append(fit)
        optima.append(_allocation(fit, part, runs, mine))
        if watch is not None:
            watch(len(fits))
    return LawFits(name, law, runs, tuple(_checked(fits, name)), tuple(optima), grouped)


def _with_ratios(fit: Fit | Refusal, runs: Runs, mine: Mask) -> Fit | Refusal:
    """The fit, with a finding where it is of FLOPs alone and its runs differ in tokens per parameter."""
    n, d = (runs.table[name].to_numpy(np.float64)[mine] for name in ("params", "tokens"))
    if (
        isinstance(fit, Refusal)
        or fit.optimum.bound.law.variables != ("train_flops",)
        or np.isnan(n + d).any()
    ):
        return fit
    mixed = mixed_ratios(n, d)
    return fit if mixed is None else replace(fit, findings=(*fit.findings, mixed))


def _joint(
    law: SumLaw,
    data: dict[str, Array],
    loss: Array,
    labels: Sequence[str],
    share: Sequence[str],
    settings: Settings | None,
    clusters: Sequence[str] | None,
) -> Fit | Refusal:
    unknown = [name for name in share if name not in law.parameters]
    if unknown:
        raise AnalysisError(
            f"--share {unknown[0]}: {law.name} has no such parameter; it has {', '.join(law.parameters)}"
        )
    free = [name for name in law.parameters if name not in share]
    return fit_law(law, data, loss, "joint", groups=labels, free=free, settings=settings, clusters=clusters)


def _checked(fits: Sequence[Fit | Refusal], name: str) -> Sequence[Fit | Refusal]:
    refused = [fit for fit in fits if isinstance(fit, Refusal)]
    if len(refused) == len(fits):
        first = refused[0]
        raise AnalysisError(f"{name}, {first.group}: {first.reason}; add runs, or fit another --law")
    return fits


def _allocation(fit: Fit | Refusal, data: dict[str, Array], runs: Runs, mine: Array) -> Allocation | None:
    if isinstance(fit, Refusal) or "params" not in data or "tokens" not in data:
        return None
    counted = runs.table["train_flops"].to_numpy(np.float64)[np.asarray(mine, bool)]
    known = counted if bool(np.isfinite(counted).all()) else None
    cost = cost_of(data["params"], data["tokens"], known)
    spent = known if known is not None else cost.kappa * data["params"] * data["tokens"]
    low, high = float(spent.min()), float(spent.max())
    budgets = [*np.geomspace(low, high, BUDGETS).tolist(), high * BEYOND]
    return allocation(fit, cost, budgets, (low, high))
