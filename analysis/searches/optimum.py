"""How the best width grows with the budget: an exponent a structure, and whether it differs from dense.

d* = k C^a through the vertices of the valleys. From three budgets on a weighted log-log line with its lack of
fit; between two the slope, whose interval comes of the vertices' own. Shapes are minima over what was tried
and parabolas are approximations: these intervals hold the scatter about the parabolas only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from analysis.arrays import Array
from analysis.isoflop.frontier import LEAST_BUDGETS, LEAST_SE, frontier
from analysis.isoflop.minima import LEVEL
from analysis.isoflop.widths import Valley, distinct_budgets
from analysis.runs.labels import FAMILIES, base_and_variant, family_and_budget

Ends = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """The fitted line at three budgets or more, with what its band needs; log k at `centre` = log C."""

    centre: float
    height: float
    slope: float
    mean: float
    inverse_weight: float
    inverse_square: float
    scale: float
    dof: int

    def at(self, budgets: Array) -> tuple[Array, Array, Array]:
        """The line and its 95 % band at budgets C (n,), in the unit of the width."""
        x = np.log(budgets) - self.centre
        middle = self.height + self.slope * x
        reach = float(student.ppf((1 + LEVEL) / 2, self.dof)) * self.scale
        half = reach * np.sqrt(self.inverse_weight + (x - self.mean) ** 2 * self.inverse_square)
        return np.exp(middle), np.exp(middle - half), np.exp(middle + half)


@dataclass(frozen=True)
class Growth:
    """How one structure's best width grows: exponent a, 95 % interval, from so many of its budgets.

    reason: why there is no exponent; empty where there is one. line: at three budgets or more.
    """

    structure: str
    usable: int
    budgets: int
    reason: str = ""
    exponent: float = math.nan
    low: float = math.nan
    high: float = math.nan
    line: Line | None = None


@dataclass(frozen=True)
class Contrast:
    """A structure's exponent less that of dense, with its 95 % interval; a reason where there is none."""

    structure: str
    reference: str
    reason: str = ""
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def verdict(self) -> str:
        """What can be said."""
        if self.reason:
            return f"not identified: {self.reason}"
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "grows faster" if self.difference > 0 else "grows more slowly"


def difference(a: float, interval_a: Ends, b: float, interval_b: Ends) -> Ends:
    """Interval of a - b from the intervals of both, which may be lopsided and are taken for independent.

    Source: Zou and Donner (2008), Stat. Med. 27, eq. 6 (method of variance estimates recovery).
    """
    low = a - b - math.hypot(a - interval_a[0], interval_b[1] - b)
    return low, a - b + math.hypot(interval_a[1] - a, b - interval_b[0])


def growth(found: Sequence[Valley]) -> list[Growth]:
    """The exponents of the structures in the order of their valleys."""
    return [
        _growth(name, [valley for valley in found if valley.structure == name])
        for name in dict.fromkeys(valley.structure for valley in found)
    ]


def _growth(structure: str, mine: Sequence[Valley]) -> Growth:
    known = sorted((v for v in mine if not v.reason), key=lambda v: v.budget)
    distinct, every = distinct_budgets(known), distinct_budgets(mine)
    if distinct < 2:
        why = [f"{v.budget:.2g}: {v.reason}" for v in mine if v.reason]
        told = f"{distinct} of {every} budgets ha{'s' if distinct == 1 else 've'} a minimum"
        if every == 1:
            told = "one budget" if known else "one budget, without a minimum"
        return Growth(structure, distinct, every, "; ".join([told, *why]))
    if distinct < min(len(known), LEAST_BUDGETS):
        return Growth(structure, distinct, every, f"{len(known)} valleys at {distinct} budgets")
    x = np.log([v.budget for v in known])
    y = np.log([v.optimum for v in known])
    if len(known) < LEAST_BUDGETS:
        span = float(x[1] - x[0])
        ends = [(math.log(v.low), math.log(v.high)) for v in known]
        low, high = difference(float(y[1]), ends[1], float(y[0]), ends[0])
        slope = float(y[1] - y[0]) / span
        return Growth(structure, distinct, every, "", slope, low / span, high / span)
    se = np.maximum([v.log_se for v in known], LEAST_SE)
    fit = frontier(x, y, se)
    weights = 1 / (se**2 + fit.tau**2)
    line = Line(
        centre=math.log(fit.reference), height=math.log(fit.at_reference), slope=fit.value,
        mean=float(weights @ (x - math.log(fit.reference)) / weights.sum()),
        inverse_weight=1 / float(weights.sum()), inverse_square=fit.design_se**2,
        scale=fit.se / fit.design_se, dof=fit.dof,
    )  # fmt: skip
    return Growth(structure, distinct, every, "", fit.value, fit.low, fit.high, line)


def contrasts(found: Sequence[Growth]) -> list[Contrast]:
    """Every structure's exponent against that of dense; none where there is no dense one or no other.

    Of several dense series the one of the same further settings is meant; the dense ones themselves are held
    against the first.
    """
    dense = {
        base_and_variant(g.structure)[1]: g for g in found if family_and_budget(g.structure)[0] == FAMILIES[0]
    }
    first = next(iter(dense.values()), None)
    pairs = []
    for one in found:
        same = dense.get(base_and_variant(one.structure)[1], first if len(dense) == 1 else None)
        reference = first if one is same else same
        if reference is not None and reference is not one:
            pairs.append(_contrast(one, reference))
    return pairs


def _contrast(one: Growth, dense: Growth) -> Contrast:
    for growth_ in (dense, one):
        if growth_.reason:
            return Contrast(one.structure, dense.structure, f"{growth_.structure}: {growth_.reason}")
    ends = difference(one.exponent, (one.low, one.high), dense.exponent, (dense.low, dense.high))
    return Contrast(one.structure, dense.structure, "", one.exponent - dense.exponent, *ends)
