"""Compute-optimal size and tokens from IsoFLOP curves: approach 2 of Hoffmann et al., and its refusals.

At each budget of training FLOPs a parabola of log loss in log N has its vertex at N*; the vertices' line over
the budgets is N* ~ C^a.  The parabola is an approximation: where the loss rises more steeply on one side, as
in L = E + A N^-alpha + B D^-beta with alpha != beta or with wide or lopsided sampling, the vertex is off by
more than its error says.  Akima's minimum stands beside it for that reason, and `agreement` compares with
approach 3.  Approach 1 is in `envelope`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Array, Mask
from analysis.errors import AnalysisError
from analysis.findings import Finding
from analysis.isoflop.budgets import checked, group_budgets, rounded_budgets, six_nd_gap
from analysis.isoflop.envelope import Envelope, envelope
from analysis.isoflop.frontier import (
    LEAST_BUDGETS,
    Agreement,
    Exponent,
    NoExponent,
    agreement,
    frontier,
    plain,
    suspicion,
)
from analysis.isoflop.parabola import LEAST_SIZES, Axis, Quadratic, fit_axis

__all__ = [
    "Agreement", "Budget", "Curve", "Envelope", "Exponent", "Finding", "IsoFlop", "NoExponent", "agreement",
    "envelope", "group_budgets", "isoflop", "rounded_budgets", "six_nd_gap",
]  # fmt: skip

CODES = {"few": "SL016", "inverted": "SL014", "edge": "SL015", "flat": "SL016"}
"""Verdicts that refuse a vertex, and the code that a diagnosis lists them under."""
RISE = 0.05
"""Of the loss above the lowest of a budget, up to which points count for the parabola."""


@dataclass(frozen=True)
class Curve:
    """A parabola of log loss at one budget, in log N or log D, and whether it has a usable vertex."""

    axis: str
    """`params` or `tokens`."""
    verdict: str
    """`usable`, or why not: `few`, `inverted`, `flat`, `edge`."""
    code: str
    """Code of the refusal; empty where usable."""
    reason: str
    """The refusal in words; empty where usable."""
    fitted: int
    """Points at the bottom of the curve that the parabola is fitted to."""
    optimum: float | None
    """Vertex, in parameters or tokens; None where refused."""
    log_se: float | None
    """Standard error of its logarithm (delta method)."""
    low: float | None
    """Fieller's interval of the vertex; it may reach beyond the sampled sizes."""
    high: float | None
    loss: float | None
    """Loss at the vertex, in the unit of the data."""
    loss_se: float | None
    curvature: float | None
    """Half the second derivative of log loss in log N or log D; None where there are too few sizes."""
    curvature_se: float | None
    residual_sd: float | None
    """Of this budget's own log residuals; None without degrees of freedom."""
    akima: float | None
    """Minimum of Akima's interpolant, where it has one between the ends: a parabola is only one choice."""


@dataclass(frozen=True)
class Budget:
    """Points of (nearly) equal training FLOPs."""

    flops: float
    """Geometric mean of the realised FLOPs."""
    spread: float
    """Largest relative distance of a point's FLOPs from `flops`."""
    points: int
    sizes: int
    """Distinct N."""
    smallest: float
    """Least and greatest N."""
    largest: float
    kappa: float
    """C / (N D) at the vertex (at the middle size where there is none)."""
    params: Curve
    """Over log N."""
    tokens: Curve
    """Over log D."""
    optimal_tokens: float | None
    """D* = C / (kappa N*), from the vertex over log N; None where that is refused."""
    optimal_tokens_log_se: float | None
    optimal_tokens_low: float | None
    """Image of the interval of N*."""
    optimal_tokens_high: float | None


@dataclass(frozen=True)
class IsoFlop:
    """Approach 2 on one structure."""

    budgets: tuple[Budget, ...]
    """In the order of FLOPs, refused ones included."""
    a: Exponent | NoExponent
    """N* ~ C^a."""
    b: Exponent | NoExponent
    """D* ~ C^b, D* through kappa."""
    b_direct: Exponent | NoExponent
    """D* ~ C^b, D* from parabolas in log D."""
    a_akima: float | None
    """Unweighted slope through Akima's minima, without an interval; None for fewer than three."""
    sigma: float | None
    """Standard deviation of log loss about the parabolas, all budgets pooled."""
    dof: int
    """Its degrees of freedom."""
    moved: bool
    """Whether points were moved to their budget's FLOPs along the frontier."""
    findings: tuple[Finding, ...]
    """Rounded budget labels, an implausibly narrow interval of a, and refused budgets."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values, float64 at full precision; unbounded interval ends are None."""
        return dict(plain(self))


def isoflop(
    params: Array,
    tokens: Array,
    train_flops: Array,
    loss: Array,
    tolerance: float = 0.05,
    rise: float = RISE,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> IsoFlop:
    """Find the optima of every budget and the exponents of N* and D* in C.

    The residual variance is pooled over budgets, since a few points tell little of their own, and weights
    made from it would follow the noise.

    Args:
        params: N, shape (n,).
        tokens: D, shape (n,).
        train_flops: realised C, not a printed label, shape (n,).
        loss: held-out loss, above zero, shape (n,).
        tolerance: largest relative distance of a point's FLOPs from its budget's geometric mean.
        rise: points count for a budget's parabola up to this much above its lowest loss, relative, the five
            lowest sizes in any case; inf: all points.  A curve is a parabola near its bottom only.
        level: confidence of the intervals, and of the test that a curve is not flat.
        resamples: of the bootstrap: Gaussian noise about the parabolas, the same refusals; 0 for none.
        seed: of the bootstrap.

    Raises:
        AnalysisError: lengths differ, values have no logarithm, or tolerance or rise make no sense.

    Source: Hoffmann et al., arXiv 2203.15556, section 3.2 and figure 3.
    """
    n, d, c, y = checked(params, tokens, train_flops, loss)
    if not 0 <= tolerance <= 0.5:
        raise AnalysisError(f"tolerance {tolerance}: budgets would run together; choose 0 to 0.5")
    if not rise > 0:
        raise AnalysisError(f"rise {rise}: no loss lies below the lowest; choose a share above zero, or inf")
    members = group_budgets(train_flops, tolerance)
    centres = np.array([c[place].mean() for place in members])
    over_n, over_d = (fit_axis(x, n, c, y, members, centres, level, rise) for x in (n, d))
    budgets = []
    for j, place in enumerate(members):
        curves = (_curve("params", over_n, j, level), _curve("tokens", over_d, j, level))
        budgets.append(_budget(n[place], d[place], c[place], *curves))
    usable = [j for j, budget in enumerate(budgets) if budget.params.optimum is not None]
    direct = [j for j, budget in enumerate(budgets) if budget.tokens.optimum is not None]
    drawn, of_d = (_resampled(o, p, resamples, seed) for o, p in ((over_n, usable), (over_d, direct)))
    through = None
    if drawn is not None:
        # D* is a linear function of log N*, so a resample of one is a resample of the other.
        slope, at_zero = np.array([_kappa(n[members[j]], d[members[j]], c[members[j]]) for j in usable]).T
        through = (centres[usable] - at_zero - (1 + slope) * drawn[0], drawn[1])
    a = _exponent(centres, budgets, "params", usable, level, drawn)
    b = _exponent(centres, budgets, "kappa", usable, level, through)
    b_direct = _exponent(centres, budgets, "tokens", direct, level, of_d)
    akima = _akima_slope(centres, over_n.akima, usable)
    found = _findings(budgets, a, rounded_budgets(train_flops, params, tokens))
    noise = (over_n.sigma if over_n.dof else None, over_n.dof)
    return IsoFlop(tuple(budgets), a, b, b_direct, akima, *noise, over_n.moved, found)


def _findings(
    budgets: list[Budget], exponent: Exponent | NoExponent, rounded: Finding | None
) -> tuple[Finding, ...]:
    refused = [
        Finding(curve.code, f"budget {budget.flops:.3g} FLOPs: {curve.reason}")
        for budget in budgets
        if (curve := budget.params).code
    ]
    narrow = suspicion(exponent) if isinstance(exponent, Exponent) else None
    return (*filter(None, (rounded, narrow)), *refused)


def _akima_slope(centres: Array, minima: tuple[float | None, ...], usable: list[int]) -> float | None:
    pairs = [(centres[j], place) for j in usable if (place := minima[j]) is not None]
    if len(pairs) < LEAST_BUDGETS:
        return None
    x, y = np.array(pairs, np.float64).T
    return float(np.polyfit(x - x.mean(), y, 1)[0])


def _curve(axis: str, over: Axis, j: int, level: float) -> Curve:
    fit, verdict = over.fits[j], over.verdicts[j]
    usable = fit is not None and verdict == "usable"
    low = high = None
    if fit is not None and usable:
        # Nearly flat curves have ends whose exponentials no float64 holds.
        low, high = (math.exp(min(max(e, -700.0), 700.0)) for e in fit.interval(over.sigma, over.dof, level))
    akima = over.akima[j]
    return Curve(
        axis=axis,
        verdict=verdict,
        code=CODES.get(verdict, ""),
        reason=_reason(axis, fit, verdict, over.sigma),
        fitted=fit.dof + 3 if fit else 0,
        optimum=math.exp(fit.vertex) if fit and usable else None,
        log_se=fit.vertex_se(over.sigma) if fit and usable else None,
        low=low,
        high=high,
        loss=math.exp(fit.height) if fit and usable else None,
        loss_se=math.exp(fit.height) * fit.height_se(over.sigma) if fit and usable else None,
        curvature=fit.curvature if fit else None,
        curvature_se=fit.curvature_se(over.sigma) if fit else None,
        residual_sd=math.sqrt(fit.rss / fit.dof) if fit and fit.dof else None,
        akima=math.exp(akima) if akima is not None else None,
    )


def _reason(axis: str, fit: Quadratic | None, verdict: str, sigma: float) -> str:
    """Why a vertex is refused, in words."""
    what = "N" if axis == "params" else "D"
    if fit is None:
        return f"too few: a parabola and its error need {LEAST_SIZES} distinct sizes; train more"
    curvature = f"curvature {fit.curvature:.2g} ± {fit.curvature_se(sigma):.1g}"
    if verdict == "inverted":
        return f"inverted: the parabola has a maximum ({curvature}); widen the range of sizes"
    side = "below" if fit.vertex < fit.low else "above"
    outside = f"{what}* lies {side} the fitted {math.exp(fit.low):.3g} to {math.exp(fit.high):.3g}"
    if verdict == "flat":
        beyond = "" if fit.low <= fit.vertex <= fit.high else f", and {outside}"
        return (
            f"flat: {curvature} does not differ from zero{beyond}; widen the range of sizes or repeat "
            "them with further seeds"
        )
    if verdict == "edge":
        larger = "smaller" if (side == "below") == (axis == "params") else "larger"
        return f"edge: {outside}; train {larger} models at this budget"
    return ""


def _kappa(n: Array, d: Array, c: Array) -> tuple[float, float]:
    """Line of log kappa = log C / (N D) over log N within a budget: slope, and value at log N = 0.

    Attention and embeddings make C / (N D) depend on the size, smoothly.
    """
    logs, mean = c - n - d, float(n.mean())
    square = float(np.sum((n - mean) ** 2))
    slope = float(np.sum((n - mean) * logs)) / square if square > 0 else 0.0
    return slope, float(logs.mean()) - slope * mean


def _budget(n: Array, d: Array, c: Array, params: Curve, tokens: Curve) -> Budget:
    """One budget, its tokens' optimum from that of the parameters; n, d, c are logarithms."""
    slope, at_zero = _kappa(n, d, c)
    centre = float(c.mean())

    def optimal(place: float) -> float:
        """D* at an N*."""
        return math.exp(min(centre - at_zero - (1 + slope) * math.log(place), 700.0))

    ends: tuple[float | None, float | None] = (None, None)
    if params.low is not None and params.high is not None:
        low, high = optimal(params.low), optimal(params.high)
        ends = min(low, high), max(low, high)
    middle = float(n.mean()) if params.optimum is None else math.log(params.optimum)
    return Budget(
        flops=math.exp(centre),
        spread=math.expm1(float(np.max(np.abs(c - centre)))),
        points=n.size,
        sizes=np.unique(n).size,
        smallest=math.exp(n.min()),
        largest=math.exp(n.max()),
        kappa=math.exp(at_zero + slope * middle),
        params=params,
        tokens=tokens,
        optimal_tokens=optimal(params.optimum) if params.optimum else None,
        optimal_tokens_log_se=abs(1 + slope) * params.log_se if params.log_se is not None else None,
        optimal_tokens_low=ends[0],
        optimal_tokens_high=ends[1],
    )


def _resampled(over: Axis, places: list[int], count: int, seed: int) -> tuple[Array, Mask] | None:
    """Vertices of parametric resamples, and which of them the method would have used; each (count, k)."""
    if not count or not places:
        return None
    random = np.random.default_rng(seed)
    fits = [fit for j in places if (fit := over.fits[j]) is not None]
    drawn = [fit.draws(over.sigma, random.standard_normal((count, 3))) for fit in fits]
    return np.stack([vertex for vertex, _ in drawn], axis=1), np.stack([good for _, good in drawn], axis=1)


def _exponent(
    centres: Array,
    budgets: list[Budget],
    which: str,
    places: list[int],
    level: float,
    drawn: tuple[Array, Mask] | None,
) -> Exponent | NoExponent:
    """Exponent through the usable budgets, or why there is none."""
    if len(places) < LEAST_BUDGETS:
        curves = [budget.tokens if which == "tokens" else budget.params for budget in budgets]
        why = Counter(curve.verdict for curve in curves if curve.code)
        told = ", ".join(f"{count} {verdict}" for verdict, count in why.most_common())
        code = CODES[why.most_common(1)[0][0]] if why else ""
        reason = f"{len(places)} of {len(budgets)} budgets usable{f' ({told})' if told else ''}"
        return NoExponent(f"{reason}; a line with an error needs {LEAST_BUDGETS}", code)
    if which == "kappa":
        pairs = [(budgets[j].optimal_tokens, budgets[j].optimal_tokens_log_se) for j in places]
    else:
        pairs = [(curve.optimum, curve.log_se) for j in places if (curve := getattr(budgets[j], which))]
    optimum, se = np.array(pairs, np.float64).T
    return frontier(centres[places], np.log(optimum), se, level, drawn)
