"""The line through compute optima: N* or D* as a power of training FLOPs, with vertex errors and lack of fit.

Both count: a line that weighs vertices as if exact is too sure of itself, and so is one that takes their
errors for all there is.  Weights are 1 / (se^2 + tau^2), tau^2 being the scatter beyond the vertex errors.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2
from scipy.stats import t as student

from analysis.arrays import Array, Mask
from analysis.digits import probability
from analysis.findings import Finding

DISAGREES = "SL017"
NARROW = "SL013"
UNLIKELY = 0.025
LEAST_SE = 1e-10
"""Vertex errors below this are rounding, and would make weights that are rounding too."""
LEAST_BUDGETS = 3
"""Two optima always lie on a line."""


def plain(value: Any) -> Any:
    """Dataclasses, tuples and NumPy numbers as what JSON holds; numbers that are not finite become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class NoExponent:
    """Why there is no exponent."""

    reason: str
    code: str = ""
    """Code of what most of the refused budgets suffer from; empty where none was refused."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return dict(plain(self))


@dataclass(frozen=True)
class Exponent:
    """Exponent of X* = at_reference (C / reference)^value, C in FLOPs, by weighted log-log regression."""

    value: float
    se: float
    """Standard error: Knapp and Hartung's, which scales the weighted residuals to their own size."""
    low: float
    """Interval by Student's t on `dof`."""
    high: float
    dof: int
    """Budgets less two."""
    level: float
    """Confidence of all intervals."""
    tau: float
    """Standard deviation of log X* beyond the vertex errors (Paule and Mandel)."""
    design_se: float
    """What the vertex errors and tau imply for `se`; an `se` far below it is luck, not precision."""
    reference: float
    """FLOPs: geometric mean of the budgets."""
    at_reference: float
    """X* at `reference`, in parameters or tokens."""
    log_se_at_reference: float
    """Standard error of its logarithm."""
    ols: float
    """Unweighted least squares, with its own standard error and interval."""
    ols_se: float
    ols_low: float
    ols_high: float
    bootstrap_low: float | None
    """Bootstrap-t over parametric resamples of the points within budgets; None where not asked for."""
    bootstrap_high: float | None
    resamples: int
    """Resamples that had three usable budgets."""
    budgets: int
    """Usable budgets, one point of the line each."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return dict(plain(self))


def suspicion(exponent: Exponent) -> Finding | None:
    """A finding where the optima lie closer to their line than their own errors allow (SL013).

    Its interval is then narrow by luck, or the vertex errors are too large, as where parabolas fit badly.
    """
    ratio = exponent.se / exponent.design_se
    if exponent.design_se < LEAST_SE * 100 or chi2.cdf(ratio**2 * exponent.dof, exponent.dof) >= UNLIKELY:
        return None
    return Finding(
        NARROW,
        f"the standard error {exponent.se:.2g} is {1 / ratio:.1f} times smaller than the errors of the "
        f"{exponent.budgets} vertices imply ({exponent.design_se:.2g})",
    )


def paule_mandel(x: Array, y: Array, se: Array) -> float:
    """Variance of y about a line beyond the squared errors `se`: what makes the weighted residuals n - 2.

    Zero where the residuals are no larger than the errors imply.

    Args:
        x: abscissae, shape (n,), n > 2.
        y: ordinates, shape (n,).
        se: standard errors of y, shape (n,).

    Source: Paule and Mandel (1982), J. Res. NBS 87; for regression, DerSimonian and Kacker (2007), eq. 8.
    """

    def excess(tau2: float) -> float:
        weights = 1 / (se**2 + tau2)
        slope, intercept = weighted_line(x, y, weights)[:2]
        return float(weights @ (y - intercept - slope * x) ** 2) - (x.size - 2)

    if excess(0.0) <= 0:
        return 0.0
    high = float(np.max(se**2) + np.ptp(y) ** 2)
    while excess(high) > 0:
        high *= 4
    root: float = brentq(excess, 0.0, high, xtol=1e-300, rtol=1e-12)
    return root


def weighted_line(x: Array, y: Array, weights: Array) -> tuple[float, float, float, float]:
    """Slope, intercept at x = 0, and the weighted mean and sum of squares of x; x centred beforehand."""
    mean = float(weights @ x / weights.sum())
    square = float(weights @ (x - mean) ** 2)
    slope = float(weights @ ((x - mean) * y) / square)
    return slope, float(weights @ y / weights.sum()) - slope * mean, mean, square


def frontier(
    log_flops: Array,
    log_optimum: Array,
    se: Array,
    level: float = 0.95,
    drawn: tuple[Array, Mask] | None = None,
) -> Exponent:
    """Fit log X* = const + exponent log C through the optima of at least three budgets.

    Args:
        log_flops: log C, shape (k,).
        log_optimum: log X*, shape (k,).
        se: standard errors of log X*, shape (k,).
        level: confidence.
        drawn: resampled log X* (r, k), and where they are usable (r, k); None for no bootstrap.

    Source: Knapp and Hartung (2003), Stat. Med. 22, eq. 6 (their unmodified scale, whose t-interval is exact
    where the weights are right up to a factor); approach 2 of Hoffmann et al., arXiv 2203.15556, sec. 3.2.
    """
    k = log_flops.size
    assert k >= LEAST_BUDGETS, "callers refuse fewer"
    centre = float(log_flops.mean())
    x, t = log_flops - centre, float(student.ppf((1 + level) / 2, k - 2))
    se = np.maximum(se, LEAST_SE)
    tau2 = paule_mandel(x, log_optimum, se)
    weights = 1 / (se**2 + tau2)
    slope, intercept, mean, square = weighted_line(x, log_optimum, weights)
    scale = math.sqrt(float(weights @ (log_optimum - intercept - slope * x) ** 2) / (k - 2))
    error = scale / math.sqrt(square)
    ones = np.ones(k)
    ols, level_, _, ols_square = weighted_line(x, log_optimum, ones)
    ols_se = math.sqrt(float(np.sum((log_optimum - level_ - ols * x) ** 2)) / (k - 2) / ols_square)
    tails, count = np.full(2, np.nan), 0
    if drawn is not None:
        line = intercept + slope * x
        tails, count = _bootstrap(x, line, weights, tau2, drawn[0] - log_optimum, drawn[1], level)
    known = bool(np.all(np.isfinite(tails)))
    return Exponent(
        value=slope,
        se=error,
        low=slope - t * error,
        high=slope + t * error,
        dof=k - 2,
        level=level,
        tau=math.sqrt(tau2),
        design_se=1 / math.sqrt(square),
        reference=math.exp(centre),
        at_reference=math.exp(intercept),
        log_se_at_reference=scale * math.sqrt(1 / float(weights.sum()) + mean**2 / square),
        ols=ols,
        ols_se=ols_se,
        ols_low=ols - t * ols_se,
        ols_high=ols + t * ols_se,
        bootstrap_low=slope - float(tails[1]) * error if known else None,
        bootstrap_high=slope - float(tails[0]) * error if known else None,
        resamples=count,
        budgets=k,
    )


def _bootstrap(
    x: Array, line: Array, weights: Array, tau2: float, away: Array, good: Mask, level: float
) -> tuple[Array, int]:
    """Quantiles of the slope's t statistic over resamples about the fitted line; and how many there were.

    Percentiles of the slope itself would know nothing of how uncertain tau is: with five budgets and much
    lack of fit they covered 82 % where 95 % were asked for.

    Args:
        x: centred log C, shape (k,).
        line: fitted log X*, shape (k,).
        weights: of the budgets, shape (k,).
        tau2: squared lack of fit.
        away: resampled vertices less the fitted ones, shape (r, k).
        good: which of them are usable, shape (r, k).
        level: confidence.
    """
    # A fixed seed, since the same table must give the same bytes.
    y = line + away + math.sqrt(tau2) * np.random.default_rng(1).standard_normal(away.shape)
    enough = good.sum(axis=1) >= LEAST_BUDGETS
    count = int(enough.sum())
    if count < good.shape[0] / 2:
        return np.full(2, np.nan), count
    w, y = (weights * good)[enough], y[enough]
    total = w.sum(axis=1, keepdims=True)
    u = x - (w @ x)[:, None] / total
    v = y - np.sum(w * y, axis=1, keepdims=True) / total
    square = np.sum(w * u**2, axis=1)
    slope = np.sum(w * u * v, axis=1) / square
    residual = np.sum(w * (v - slope[:, None] * u) ** 2, axis=1) / (good[enough].sum(axis=1) - 2)
    planted = (line[-1] - line[0]) / (x[-1] - x[0])
    statistic = (slope - planted) / np.sqrt(np.maximum(residual / square, 1e-300))
    return np.quantile(statistic, [(1 - level) / 2, (1 + level) / 2]), count


@dataclass(frozen=True)
class Agreement:
    """An exponent of approach 1 or 2 against that of approach 3."""

    difference: float
    """This approach's exponent less that of approach 3."""
    se: float
    dof: float
    """Degrees of freedom of `se` (Welch and Satterthwaite)."""
    low: float
    """Joint interval of the difference."""
    high: float
    level: float
    p: float
    """Of no difference, two-sided."""
    disagrees: bool
    """Whether the interval leaves out zero."""
    sentence: str
    finding: Finding | None
    """Where they disagree."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return dict(plain(self))


def agreement(
    exponent: Exponent, other: float, other_se: float, other_dof: float = math.inf, level: float = 0.95
) -> Agreement:
    """Say whether an exponent differs from approach 3's by more than their joint interval.

    Both rest on the same runs, so their errors are not independent.  Errors that go together make the true
    interval of the difference narrower than this one: it finds too few disagreements rather than too many.

    Args:
        exponent: a or b of approach 2.
        other: the same exponent from L(N, D): beta / (alpha + beta) for a.
        other_se: its standard error.
        other_dof: degrees of freedom of `other_se`.
        level: confidence.

    Source: Welch (1947), Biometrika 34; a = beta / (alpha + beta): Hoffmann et al., arXiv 2203.15556, eq. 4.
    """
    difference = exponent.value - other
    se = math.hypot(exponent.se, other_se)
    parts = ((exponent.se, exponent.dof), (other_se, other_dof))
    below = sum((part / se) ** 4 / dof for part, dof in parts) if se else 0.0
    dof = 1 / below if below else math.inf
    reach = float(student.ppf((1 + level) / 2, dof)) * se
    p = 2 * float(student.sf(abs(difference) / se, dof)) if se else float(difference == 0)
    disagrees = abs(difference) > reach
    sentence = (
        f"Approach 2 gives {exponent.value:.3f} and approach 3 {other:.3f}: they "
        f"{'differ' if disagrees else 'do not differ'} by more than their joint {100 * level:g} % interval "
        f"(difference {difference:+.3f}, [{difference - reach:+.3f}, {difference + reach:+.3f}], "
        f"p {probability(p)})."
    )
    return Agreement(
        difference=difference,
        se=se,
        dof=dof,
        low=difference - reach,
        high=difference + reach,
        level=level,
        p=p,
        disagrees=disagrees,
        sentence=sentence,
        finding=Finding(DISAGREES, sentence) if disagrees else None,
    )
