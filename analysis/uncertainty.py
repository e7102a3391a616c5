"""How well parameters, and what is computed from them, are known: delta method, profile, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.arrays import Array
from analysis.engine.solve import Optimum, descend, huber_moments, noise_sd
from analysis.engine.sums import Bound

CONFIDENCE = 0.95
FEW = 30
"""Below so many points intervals are by the delta method with t, from there on by the bootstrap."""
RESAMPLES = 1000
LEAST_CLUSTERS = 8
SINGULAR = 1e-12
STEP = 1e-5
ROUGH = 1e-6
"""When a resample's descent stops: far below the spread between resamples."""

Function = Callable[[Array], Array]
"""From parameters phi, shape (..., p), to a quantity, shape (...) or (..., m)."""


@dataclass(frozen=True)
class Spread:
    """What is known of the error of phi.

    covariance: of phi by the delta method, shape (p, p).
    dof: degrees of freedom of the noise.
    noise: s of the covariance s^2 (J'J)^-1: the standard deviation of log loss about the law, over the
        efficiency of the objective.
    draws: bootstrap draws of phi, shape (b, p); None where intervals are by the delta method.
    method: how intervals are computed, in words.
    failed: resamples whose fit did not converge; they are left out of `draws`.
    """

    covariance: Array
    dof: int
    noise: float
    draws: Array | None
    method: str
    failed: int = 0

    def standard_error(self, function: Function, phi: Array) -> Array:
        """Standard error of a quantity at phi: that of its draws, or by the delta method."""
        if self.draws is not None:
            return np.asarray(np.std(function(self.draws), axis=0, ddof=1))
        slope = gradient(function, phi)
        return np.asarray(
            np.sqrt(np.maximum(np.einsum("...p,pq,...q->...", slope, self.covariance, slope), 0.0))
        )

    def interval(self, function: Function, phi: Array, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
        """Interval of a quantity at phi: percentiles of its draws, or +- t standard errors."""
        if self.draws is not None:
            tail = bootstrap_tail(self.dof, phi.size, confidence)
            low, high = np.quantile(function(self.draws), [tail, 1 - tail], axis=0)
            return np.asarray(low), np.asarray(high)
        value = function(phi)
        half = t_quantile(self.dof, confidence) * self.standard_error(function, phi)
        return value - half, value + half


def t_quantile(dof: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t."""
    return float(stdtrit(dof, 0.5 + confidence / 2))


def bootstrap_tail(dof: int, parameters: int, confidence: float = CONFIDENCE) -> float:
    """Share of the draws to leave out on either side.

    Resampled residuals are smaller than the noise by sqrt(dof / n); the percentiles are moved outwards by
    that (the expanded percentile interval of Hesterberg 2015, with normal quantiles).
    """
    normal = float(stdtrit(1e9, 0.5 + confidence / 2))
    return float(ndtr(-normal * math.sqrt((dof + parameters) / dof)))


def gradient(function: Function, phi: Array) -> Array:
    """Derivatives of a quantity by central differences, shape (..., p); NaN where it is infinite."""
    steps = STEP * np.maximum(1.0, np.abs(phi))
    with np.errstate(invalid="ignore"):
        columns = [
            (function(phi + e) - function(phi - e)) / (2 * step)
            for e, step in zip(np.diag(steps), steps, strict=True)
        ]
    return np.stack(columns, axis=-1)


def condition_number(bound: Bound, phi: Array) -> float:
    """Of the Jacobian of log loss with columns of length 1: how nearly the parameters do the same."""
    jacobian = bound.jacobian(phi)
    scale = np.linalg.norm(jacobian, axis=0)
    if not bool(np.all(scale > 0)):
        return math.inf
    singular = np.linalg.svd(jacobian / scale, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf


def noise_of(bound: Bound, phi: Array) -> float:
    """Standard deviation of log loss about the law."""
    return noise_sd(bound.log_value(phi) - bound.log_loss, phi.size)


def covariance(bound: Bound, phi: Array, delta: float) -> tuple[Array, float] | None:
    """Covariance of phi as an M-estimate, and the standard deviation of the noise.

    s^2 (J'J)^-1 with Huber's s^2 = K^2 [sum psi^2 / (n - p)] / [mean psi']^2 (Huber 1981, eq. 7.6.11), or
    with the moments of normal noise where delta is below it; with an infinite delta, that of least squares.
    None without degrees of freedom, or where J is singular.
    """
    n, p = bound.n, phi.size
    if n <= p:
        return None
    jacobian = bound.jacobian(phi)
    scale = np.linalg.norm(jacobian, axis=0)
    if not bool(np.all(scale > 0)):
        return None
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    if singular[-1] <= SINGULAR * singular[0]:
        return None
    inside, squares = huber_moments(bound.log_value(phi) - bound.log_loss, p, delta)
    correction = 1 + p / n * (1 - inside) / inside if delta >= noise_of(bound, phi) else 1.0
    variance = correction**2 * squares / inside**2
    inverse = (right.T / singular**2) @ right
    return np.asarray(variance * inverse / np.outer(scale, scale)), math.sqrt(variance)


def spread_of(
    optimum: Optimum,
    method: str = "auto",
    clusters: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Spread | None:
    """Errors of an optimum's parameters; None where the data give none.

    Args:
        optimum: the fit.
        method: `delta` (or `profile`, which starts from it), `bootstrap`, or `auto`: the bootstrap from 30
            points on.
        clusters: the run of each point, where several points come from one; whole runs are left out in turn
            then, or resampled from 30 runs on.
        resamples: bootstrap refits.
        seed: of the resampling.
    """
    bound, phi = optimum.bound, optimum.phi
    found = covariance(bound, phi, optimum.delta)
    if found is None:
        return None
    matrix, noise = found
    dof = bound.n - phi.size
    runs = len(set(clusters)) if clusters is not None else bound.n
    clustered = runs < bound.n
    if clustered and runs < max(LEAST_CLUSTERS, phi.size + 1):
        return None
    if not clustered and (method in ("delta", "profile") or (method == "auto" and bound.n < FEW)):
        return Spread(matrix, dof, noise, None, "delta method, t")
    if clustered and clusters is not None and runs < FEW and method != "bootstrap":
        return Spread(jackknife(optimum, clusters), runs - 1, noise, None, f"jackknife over {runs} runs, t")
    weights = resampling_weights(bound.n, resamples, seed, clusters if clustered else None)
    draws, failed = refits(optimum, weights)
    name = f"bootstrap of {runs} runs" if clustered else "bootstrap of points"
    spare = runs - phi.size if clustered else dof
    return Spread(matrix, spare, noise, draws, f"{name}, {resamples} resamples, percentiles", failed)


def jackknife(optimum: Optimum, clusters: Sequence[str]) -> Array:
    """Covariance of phi from fits without one run each, shape (p, p); points of a run go together.

    With fewer than 30 runs, resamples of whole runs leave parameters nearly open and are too wide.
    """
    names = list(dict.fromkeys(clusters))
    weights = np.array([[float(cluster != name) for cluster in clusters] for name in names])
    starts = np.tile(optimum.phi, (len(names), 1))
    found = descend(optimum.bound, starts, weights, optimum.delta, tolerance=ROUGH)
    apart = found.phi - optimum.phi
    return np.asarray((len(names) - 1) / len(names) * apart.T @ apart)


def resampling_weights(n: int, resamples: int, seed: int, clusters: Sequence[str] | None = None) -> Array:
    """How often each point is in each resample, shape (resamples, n); points of one cluster together."""
    dice = np.random.default_rng(seed)
    if clusters is None:
        return dice.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)
    names = list(dict.fromkeys(clusters))
    index = np.array([names.index(name) for name in clusters])
    counts = dice.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    return np.asarray(counts[:, index], np.float64)


def refits(optimum: Optimum, weights: Array) -> tuple[Array, int]:
    """Fits of all resamples at once, from the optimum and its rivals; the best of each.

    Args:
        optimum: the fit, whose delta is kept.
        weights: shape (b, n).

    Returns phi of those that converged, shape (at most b, p), and how many did not.
    """
    bound = optimum.bound
    starts = [optimum.phi]
    if not optimum.vanished and not optimum.fixed:
        starts += list(optimum.minima[1:4])
    cost = np.full(len(weights), np.inf)
    phi = np.zeros((len(weights), optimum.phi.size))
    good = np.zeros(len(weights), bool)
    for start in starts:
        found = descend(bound, np.tile(start, (len(weights), 1)), weights, optimum.delta, tolerance=ROUGH)
        better = found.cost < cost
        phi[better], cost[better] = found.phi[better], found.cost[better]
        # What is rough for a point fit is far below the spread between resamples.
        good[better] = (found.gradient[better] < 100 * ROUGH) | found.converged[better]
    return phi[good], int(np.sum(~good))


def profile_interval(
    optimum: Optimum, spread: Spread, place: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Values of one phi at which the others, fitted anew, cost more by no more than t^2 allows.

    Unlike the delta method it follows a valley that bends; a side without end is infinite.

    Args:
        optimum: the fit.
        spread: its noise and degrees of freedom.
        place: which parameter.
        confidence: of the interval.
    """
    bound, phi = optimum.bound, optimum.phi
    inside, _ = huber_moments(bound.log_value(phi) - bound.log_loss, phi.size, optimum.delta)
    allowed = 0.5 * t_quantile(spread.dof, confidence) ** 2 * spread.noise**2 * inside
    held = np.zeros(phi.size, bool)
    held[place] = True
    width = math.sqrt(spread.covariance[place, place])

    def excess(value: float, start: Array) -> tuple[float, Array]:
        begin = start.copy()
        begin[place] = value
        found = descend(bound, begin[None], None, optimum.delta, held=held)
        return float(found.cost[0]) - optimum.cost - allowed, found.phi[0]

    return _crossing(excess, phi, place, -width), _crossing(excess, phi, place, width)


def _crossing(
    excess: Callable[[float, Array], tuple[float, Array]], phi: Array, place: int, step: float
) -> float:
    """Where the excess becomes positive in the direction of `step`: doubling, then regula falsi."""
    near, far, start = float(phi[place]), float(phi[place]) + step, phi
    below, (above, start) = -1.0, excess(far, start)
    for _ in range(12):
        if above > 0:
            break
        near, below, far = far, above, far + 2 * (far - near)
        above, start = excess(far, start)
    else:
        return math.copysign(math.inf, step)
    below = excess(near, phi)[0] if near == phi[place] else below
    for i in range(40):
        middle = 0.5 * (near + far) if i % 3 == 2 else near + (far - near) * below / (below - above)
        value, start = excess(middle, start)
        if value > 0:
            far, above = middle, value
        else:
            near, below = middle, value
        if abs(far - near) < 1e-7 * abs(step):
            break
    return 0.5 * (near + far)
