"""How peak learning rates go from the searched sizes to others: one exponent of the width, a rate each.

log L = a[s, d] + k x^2 + g[s] x + h x log d, x the log rate; so the best rate of structure s at width d is
exp(-g[s] / 2k) d^(-h / 2k). One curvature k and one exponent for all structures and sizes are assumed, which
makes the fit linear and every rate well determined; a test says whether own optima fit better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as fisher
from scipy.stats import t as student

from analysis.arrays import Array
from analysis.isoflop.optima import RISE
from analysis.isoflop.parabola import bottom
from analysis.searches.curves import rate_curves
from analysis.searches.trials import Study

LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """The rule's rate of one structure at the reference width, its interval, and the best rates tried.

    tried: width -> rate of the lowest mean loss there.
    """

    structure: str
    rate: float
    low: float
    high: float
    tried: dict[int, float]


@dataclass(frozen=True)
class Transfer:
    """The rule of a study: peak_lr = rate[structure] * (d_model / width)^exponent.

    width: geometric middle of the searched widths, rounded; there the rates are best known. exponent: with
    its standard error `exponent_se`. p_own: of the F test that optima of their own for each structure and
    size fit no better; NaN without degrees of freedom. sd: about the fit, of log loss. dof: its degrees of
    freedom. reason: why there is no rule; empty where there is one.
    """

    rates: tuple[Rate, ...] = ()
    width: int = 0
    exponent: float = math.nan
    exponent_se: float = math.nan
    p_own: float = math.nan
    sd: float = math.nan
    dof: int = 0
    reason: str = ""

    def at(self, rate: float, width: float) -> float:
        """A structure's rate at another width."""
        return float(rate * (width / self.width) ** self.exponent)


@dataclass(frozen=True)
class _Curve:
    """One structure at one width: log rates and log losses about the lowest."""

    structure: str
    width: int
    x: Array
    y: Array
    best: float


def widths_searched(study: Study) -> int:
    """At how many widths learning rates were searched."""
    return len({trial.numbers["d_model"] for trial in study.trials if trial.numbers["d_model"] > 0})


def transfer(study: Study) -> Transfer:
    """The rule of a study of learning rates at two widths or more."""
    curves = _curves(study)
    structures = list(dict.fromkeys(curve.structure for curve in curves))
    widths = sorted({curve.width for curve in curves})
    if len(widths) < 2:
        return Transfer(reason="learning rates were searched at one width only")
    short = [s for s in structures if len({c.width for c in curves if c.structure == s}) < len(widths)]
    if short:
        return Transfer(reason=f"{', '.join(short)}: not enough rates with a loss at every width")
    # Where log d is 0, the coefficient of a structure is its best rate; in the middle it is best known.
    middle = round(math.exp(float(np.mean(np.log(widths)))))
    shared = _solve(_design(curves, structures, middle), curves)
    own = _solve(_design(curves, [f"{c.structure} {c.width}" for c in curves], None), curves)
    if shared is None:
        return Transfer(reason="fewer losses than the rule has unknowns")
    beta, inverse, rss, dof = shared
    sigma = math.sqrt(rss / dof)
    k, at_k = beta[0], 0
    if not k > student.ppf((1 + LEVEL) / 2, dof) * sigma * math.sqrt(inverse[at_k, at_k]):
        return Transfer(sd=sigma, dof=dof, reason="the losses show no valley over the rates")
    rates = []
    for i, structure in enumerate(structures):
        value, se = _ratio(beta, inverse, 2 + i, sigma)
        half = float(student.ppf((1 + LEVEL) / 2, dof)) * se
        tried = {c.width: c.best for c in curves if c.structure == structure}
        ends = (math.exp(value - half), math.exp(value + half))
        rates.append(Rate(structure, math.exp(value), *ends, tried))
    exponent, error = _ratio(beta, inverse, 1, sigma)
    p_own = math.nan
    if own is not None and own[3] < dof:
        gain = max(rss - own[2], 0.0) / (dof - own[3])
        p_own = float(fisher.sf(gain / (own[2] / own[3]), dof - own[3], own[3]))
    return Transfer(tuple(rates), middle, exponent, error, p_own, sigma, dof)


def _curves(study: Study) -> list[_Curve]:
    """The curves of a study with three rates at least about their lowest loss."""
    widths: dict[str, int] = {}
    for trial in study.trials:
        widths[trial.run_id] = int(trial.numbers["d_model"])
    found = []
    for curve in rate_curves(study):
        runs = [run for shape in curve.shapes.values() for run in shape.runs]
        values = curve.whole
        if len(values) < 3:
            continue
        x = np.log(np.array(values))
        y = np.log(np.array([curve.mean(value) for value in values]))
        near = bottom(y, x, RISE)
        structure = curve.structure.split(", ")[0]
        found.append(_Curve(structure, widths[runs[0]], x[near], y[near], curve.best))
    return found


def _design(curves: Sequence[_Curve], slopes: Sequence[str], middle: int | None) -> Array:
    """Columns: x^2, x log(d / middle), x of each of `slopes`, a level for each curve."""
    rows = []
    for i, curve in enumerate(curves):
        name = curve.structure if middle is not None else f"{curve.structure} {curve.width}"
        wide = math.log(curve.width / middle) if middle is not None else 0.0
        for x in curve.x:
            own = [float(x) if name == slope else 0.0 for slope in slopes]
            levels = [float(i == j) for j in range(len(curves))]
            rows.append([float(x * x), float(x) * wide, *own, *levels])
    design = np.array(rows)
    return design if middle is not None else np.delete(design, 1, axis=1)


def _solve(design: Array, curves: Sequence[_Curve]) -> tuple[Array, Array, float, int] | None:
    """Least squares: coefficients, (X'X)^-1, residual sum of squares, degrees of freedom; None without."""
    y = np.concatenate([curve.y for curve in curves])
    dof = y.size - design.shape[1]
    if dof < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    q, r = np.linalg.qr(design)
    root = np.linalg.inv(r)
    beta = np.asarray(root @ (q.T @ y), np.float64)
    residual = y - design @ beta
    return beta, np.asarray(root @ root.T, np.float64), float(residual @ residual), int(dof)


def _ratio(beta: Array, inverse: Array, at: int, sigma: float) -> tuple[float, float]:
    """-beta[at] / (2 beta[0]) and its standard error by the delta method."""
    k, g = float(beta[0]), float(beta[at])
    gradient = np.array([g / (2 * k * k), -1 / (2 * k)])
    block = inverse[np.ix_([0, at], [0, at])]
    return -g / (2 * k), sigma * math.sqrt(float(gradient @ block @ gradient))
