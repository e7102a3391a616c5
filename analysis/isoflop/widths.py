"""Width searches: loss over d_model at fixed training FLOPs, and the width at which it is lowest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.isoflop.budgets import group_budgets
from analysis.isoflop.optima import RISE
from analysis.isoflop.parabola import Quadratic, fit_axis
from analysis.runs.labels import base_and_variant, structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import SHAPE_FIELDS, guidance, structure_label

LEVEL = 0.95
LEAST_WIDTHS = 3
TOLERANCE = 0.05
"""Relative distance of a run's FLOPs from its budget's mean."""
WORDS = {
    "few": "fewer than four widths",
    "inverted": "no minimum",
    "flat": "flat: curvature within noise",
    "edge": "lowest outside the widths tried",
}


@dataclass(frozen=True)
class Valley:
    """One structure at one budget, over width.

    flops: geometric mean of the runs. losses: finished runs by width, nats per token. diverged: runs by
    width that have no loss. reason: why there is no optimum; empty where there is one. optimum, low, high:
    vertex of the parabola of log loss in log width and Fieller's 95 % interval. fit: that parabola, where it
    has points enough.
    """

    structure: str
    flops: float
    losses: Mapping[int, tuple[float, ...]]
    diverged: Mapping[int, int]
    reason: str
    optimum: float = math.nan
    low: float = math.nan
    high: float = math.nan
    fit: Quadratic | None = None

    @property
    def best(self) -> int:
        """The width of the lowest mean loss; of those at which runs diverged only where there is no other."""
        return min([w for w in self.losses if w not in self.diverged] or self.losses, key=self.mean)

    def mean(self, width: int) -> float:
        """Mean loss at a width."""
        return float(np.mean(self.losses[width]))


def has_valley(runs: Runs) -> bool:
    """Whether a structure of the table has at least three widths at one budget."""
    rows = _rows(runs)
    for structure in dict.fromkeys(label for label, *_ in rows):
        mine = [row for row in rows if row[0] == structure]
        for place in group_budgets(np.array([flops for _, _, flops, _ in mine]), TOLERANCE):
            if len({mine[i][1] for i in place}) >= LEAST_WIDTHS:
                return True
    return False


def valleys(runs: Runs) -> list[Valley]:
    """Every structure's valleys with at least three widths, in order of structures and budgets.

    The parabolas of one structure share the variance about them, and their points are moved to the budget's
    FLOPs along the line of their vertices, as in `analysis.isoflop.parabola.fit_axis`.
    """
    rows = _rows(runs)
    found = []
    for structure in sorted({label for label, *_ in rows}, key=structure_order):
        mine = [row for row in rows if row[0] == structure]
        flops = np.array([row[2] for row in mine])
        groups = group_budgets(flops, TOLERANCE)
        kept = [place for place in groups if len({mine[i][1] for i in place}) >= LEAST_WIDTHS]
        if kept:
            lost = _lost(runs, structure, [float(np.exp(np.log(flops[p]).mean())) for p in kept])
            found += _fitted(structure, mine, kept, lost)
    return found


def _rows(runs: Runs) -> list[tuple[str, int, float, float]]:
    """Structure, width, training FLOPs and loss of every finished run that has a width."""
    rows = []
    for row in runs.table.to_dict("records"):
        width = _width(row)
        if width is not None:
            rows.append((_label(row), width, float(row["train_flops"]), float(row["val_loss"])))
    return rows


def _width(row: Mapping[Any, Any]) -> int | None:
    try:
        width = float(row.get("d_model") or math.nan)
    except ValueError:
        return None
    return round(width) if width >= 1 else None


def _label(row: Mapping[Any, Any]) -> str:
    """The structure without the shape of the network, and with how it was guided."""
    base, variant = base_and_variant(structure_label(str(row["structure"])))
    parts = [part for part in variant.split(", ") if part and part.partition("=")[0] not in SHAPE_FIELDS]
    guided = guidance(row)
    return ", ".join([base, *parts, *([guided] if guided else [])])


def _lost(runs: Runs, structure: str, budgets: Sequence[float]) -> list[dict[int, int]]:
    """Diverged runs by width of each budget, for those whose tokens and FLOPs per token tell their budget."""
    counts: list[dict[int, int]] = [defaultdict(int) for _ in budgets]
    for row in runs.lost:
        width = _width(row)
        if width is None or _label(row) != structure:
            continue
        try:
            planned = float(row.get("tokens") or math.nan) * float(row.get("flops_per_token") or math.nan)
        except ValueError:
            continue
        for count, budget in zip(counts, budgets, strict=True):
            if abs(planned / budget - 1) <= TOLERANCE:
                count[width] += 1
                break
    return counts


def _fitted(
    structure: str,
    rows: Sequence[tuple[str, int, float, float]],
    groups: Sequence[Any],
    lost: Sequence[Mapping[int, int]],
) -> list[Valley]:
    x = np.log([width for _, width, _, _ in rows])
    c = np.log([flops for _, _, flops, _ in rows])
    y = np.log([loss for *_, loss in rows])
    centres = np.array([c[place].mean() for place in groups])
    # Where a run of a width diverged the mean of the others is too good, so they say nothing of the valley.
    whole = [_whole(place, rows, gone) for place, gone in zip(groups, lost, strict=True)]
    axis = fit_axis(x, x, c, y, whole, centres, LEVEL, RISE)
    found = []
    for j, place in enumerate(groups):
        losses: dict[int, list[float]] = defaultdict(list)
        for i in place:
            losses[rows[i][1]].append(rows[i][3])
        by_width = {width: tuple(values) for width, values in sorted(losses.items())}
        fit, verdict = axis.fits[j], axis.verdicts[j]
        # An end of the sampled widths is no minimum, whatever a parabola makes of its curvature.
        kept = {rows[i][1] for i in whole[j]}
        means = {width: float(np.mean(values)) for width, values in by_width.items() if width in kept}
        best = min(means, key=lambda width: means[width])
        reason = "" if verdict == "usable" else WORDS[verdict]
        if best in (min(means), max(means)):
            end = "below" if best == min(means) else "above"
            reason = f"edge: at or {end} {best}"
        ends = math.nan, math.nan, math.nan
        if fit is not None and not reason:
            low, high = fit.interval(axis.sigma, axis.dof, LEVEL)
            ends = math.exp(fit.vertex), math.exp(max(low, -700.0)), math.exp(min(high, 700.0))
        flops = math.exp(float(centres[j]))
        found.append(Valley(structure, flops, by_width, dict(sorted(lost[j].items())), reason, *ends, fit))
    return found


def _whole(place: Any, rows: Sequence[tuple[str, int, float, float]], gone: Mapping[int, int]) -> Any:
    """The places of a budget's runs of widths at which none diverged; all of them where no width is left."""
    kept = [i for i in place if rows[i][1] not in gone]
    return np.array(kept) if kept else place
