"""Peak learning rates: the curve of each structure over them, and where a parabola has its lowest loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.isoflop.optima import RISE
from analysis.isoflop.parabola import LEAST_SIZES, Quadratic, fit_axis
from analysis.runs.labels import base_and_variant, structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import guidance, structure_label

LEVEL = 0.95
LEAST_RATES = 3
Key = tuple[str, str, str, float]
"""Size, structure, treatment and tokens."""
RATE = "peak_lr"


@dataclass(frozen=True)
class Curve:
    """One structure and treatment at one size and budget, over peak learning rates.

    losses: finished runs by rate, nats per token. diverged: runs by rate that have no loss.
    reason: why there is no optimum from a parabola; empty where there is one.
    optimum, low, high: vertex of the parabola and Fieller's 95 % interval. fit: over log rate, nats.
    """

    size: str
    structure: str
    treatment: str
    tokens: float
    losses: Mapping[float, tuple[float, ...]]
    diverged: Mapping[float, int]
    reason: str = ""
    optimum: float = math.nan
    low: float = math.nan
    high: float = math.nan
    fit: Quadratic | None = None

    @property
    def name(self) -> str:
        """Structure and treatment."""
        return f"{self.structure}, {self.treatment}" if self.treatment else self.structure

    @property
    def rates(self) -> list[float]:
        """Every rate tried, ascending."""
        return sorted({*self.losses, *self.diverged})

    @property
    def whole(self) -> list[float]:
        """The rates at which no run diverged: where some did, the others' mean is too good."""
        return sorted(rate for rate in self.losses if not self.diverged.get(rate))

    def mean(self, rate: float) -> float:
        """Mean loss at a rate."""
        return float(np.mean(self.losses[rate]))

    @property
    def best(self) -> float:
        """The rate of the lowest mean loss; of those at which runs diverged only where there is no other."""
        return min(self.whole or sorted(self.losses), key=self.mean)


def enough_rates(runs: Runs) -> bool:
    """Whether a table has a structure with at least three rates at one size, and a loss for one of them."""
    rates: dict[Key, set[float]] = defaultdict(set)
    done = runs.table.to_dict("records")
    finished = [key for row in done if (key := _key(row)) is not None]
    rows: list[Mapping[Any, Any]] = [*done, *runs.lost]
    for row in rows:
        if (key := _key(row)) is not None:
            rates[key].add(_rate(row))
    return any(len(rates[key]) >= LEAST_RATES for key in finished)


def curves(runs: Runs) -> list[Curve]:
    """The curves of a table that have at least three rates, with optima where a parabola has one.

    Parabolas of loss in log rate go through the rates about the lowest loss without a gap: those within 5 %
    of it, the five lowest in any case and never fewer than four. The variance about them is pooled over the
    table's curves.
    """
    losses: dict[Key, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in runs.table.to_dict("records"):
        if (key := _key(row)) is not None:
            losses[key][_rate(row)].append(float(row["val_loss"]))
    diverged: dict[Key, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for lost in runs.lost:
        if (key := _key(lost)) is not None:
            diverged[key][_rate(lost)] += 1
    found = [
        Curve(
            *key, {r: tuple(v) for r, v in sorted(losses[key].items())}, dict(sorted(diverged[key].items()))
        )
        for key in sorted({*losses, *diverged}, key=_order)
        if losses[key]
    ]
    kept = [curve for curve in found if len(curve.rates) >= LEAST_RATES]
    return _fitted(sorted(kept, key=lambda c: c.tokens))


def _rate(row: Mapping[Any, Any]) -> float:
    try:
        return float(row.get(RATE) or math.nan)
    except ValueError:
        return math.nan


def _key(row: Mapping[Any, Any]) -> Key | None:
    if not _rate(row) > 0:
        return None
    base, variant = base_and_variant(structure_label(str(row["structure"])))
    parts = [part for part in variant.split(", ") if part and part.partition("=")[0] != RATE]
    tokens = float(row.get("tokens") or math.nan)
    return str(row.get("size") or ""), ", ".join([base, *parts]), guidance(row), tokens


def _order(key: Key) -> tuple[Any, ...]:
    return key[0], structure_order(key[1]), key[2], str(key[3])


def _fitted(found: Sequence[Curve]) -> list[Curve]:
    """Optima of all curves that a parabola can have one of; the others say why not."""
    windows = [_window(curve) for curve in found]
    usable = {i: window for i, window in enumerate(windows) if not isinstance(window, str)}
    if not usable:
        return [replace(c, reason=str(window)) for c, window in zip(found, windows, strict=True)]
    x: list[float] = []
    y: list[float] = []
    members = []
    for i, rates in usable.items():
        points = [(math.log(rate), loss) for rate in rates for loss in found[i].losses[rate]]
        members.append(np.arange(len(x), len(x) + len(points)))
        x += [place for place, _ in points]
        y += [loss for _, loss in points]
    across, up = np.array(x), np.array(y)
    # One budget each, and no move between budgets: a rate costs no FLOPs.
    axis = fit_axis(across, across, np.zeros_like(up), up, members, np.zeros(len(members)), LEVEL, math.inf)
    results = {i: (axis.fits[j], axis.verdicts[j]) for j, i in enumerate(usable)}
    return [
        _with(curve, *results[i], axis.sigma, axis.dof)
        if i in results
        else replace(curve, reason=str(windows[i]))
        for i, curve in enumerate(found)
    ]


def _with(curve: Curve, fit: Quadratic | None, verdict: str, sigma: float, dof: int) -> Curve:
    if fit is None or verdict != "usable":
        words = {"inverted": "no minimum", "flat": "curvature within noise", "edge": "vertex outside"}
        return replace(curve, reason=words.get(verdict, "too few rates"), fit=fit)
    low, high = (math.exp(min(max(end, -700.0), 700.0)) for end in fit.interval(sigma, dof, LEVEL))
    return replace(curve, optimum=math.exp(fit.vertex), low=low, high=high, fit=fit)


def _window(curve: Curve) -> list[float] | str:
    """The rates that the parabola goes through, or why there is none."""
    if not curve.whole:
        return "runs diverged at every rate"
    if curve.best == curve.rates[0]:
        return f"edge: at or below {curve.best:g}"
    if curve.best == curve.rates[-1]:
        return f"edge: at or above {curve.best:g}"
    at = curve.rates.index(curve.best)
    first = last = at
    good = set(curve.whole)
    limit = curve.mean(curve.best) * (1 + RISE)
    while True:
        ends = [(i, j) for i, j in ((first - 1, first), (last + 1, last)) if 0 <= i < len(curve.rates)]
        free = [(curve.mean(curve.rates[i]), i) for i, _ in ends if curve.rates[i] in good]
        near = [(mean, i) for mean, i in free if mean <= limit or last - first < LEAST_SIZES]
        if not near:
            break
        _, i = min(near)
        first, last = min(first, i), max(last, i)
    if last == at:
        return f"edge: runs diverge above {curve.best:g}"
    if first == at:
        return f"edge: runs diverge below {curve.best:g}"
    if last - first + 1 < LEAST_SIZES:
        return f"lowest at {curve.best:g}; too few rates about it"
    return curve.rates[first : last + 1]


def shared(found: Sequence[Curve]) -> str:
    """Whether, at each size, one rate lies in the intervals of all structures that have one; in words."""
    parts = []
    for size in dict.fromkeys(curve.size for curve in found):
        mine = [c for c in found if c.size == size]
        known = [c for c in mine if not c.reason]
        if len(known) < 2:
            continue
        low, high = max(c.low for c in known), min(c.high for c in known)
        which = "all" if len(known) == len(mine) else f"the {len(known)} known"
        told = f"{low:.2g} to {high:.2g} lies" if low <= high else "no rate lies"
        parts.append(f"{size}: {told} in {which} intervals".removeprefix(": "))
    return "; ".join(parts) or "no two intervals to compare"
