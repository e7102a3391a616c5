"""Finds the global optimum of the law with an irreducible loss, and how many rivals it has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from analysis.laws import Array

# Sums of squared log-loss residuals below n times this are zero to the rounding of float64 losses.
ROUNDING = 1e-28
GRID_ALPHA, GRID_FLOOR = 72, 48
SPREAD_STARTS = 6
COMPETING = 1.05
COARSE, EXACT = 1e-8, 1e-15


@dataclass(frozen=True)
class Optimum:
    """The best (E, k, alpha), what sits at a bound, the polished starts, and all optima within 5 % of it."""

    theta: Array
    bounds: tuple[str, ...]
    starts: int
    rivals: tuple[Array, ...]


def line(x: Array, y: Array) -> tuple[float, float]:
    """Intercept at x = 0 and slope of the least-squares line."""
    dx = x - x.mean()
    slope = float(dx @ (y - y.mean()) / (dx @ dx))
    return float(y.mean() - slope * x.mean()), slope


def best_optimum(x: Array, y: Array) -> Optimum:
    """Minimise the squared residuals of log L over 0 <= E <= min(L), k > 0, alpha >= 0.

    Args:
        x: log(C / C0), shape (n,).
        y: log loss, shape (n,), falling with x.
    """
    lowest, alpha_max = float(np.exp(y.min())), 80.0 / float(np.ptp(x))
    intercept, slope = line(x, y)
    starts = _profile_starts(x, y)
    # E = 0 is the law without E, known in closed form; it stands for every optimum on that bound.
    optima = [np.array([0.0, intercept, -slope])]
    optima += [_polish(start, x, y, (lowest, alpha_max), COARSE) for start in starts]
    leader = min(range(len(optima)), key=lambda i: _cost(optima[i], x, y))
    best = optima[leader] if leader == 0 else _polish(optima[leader], x, y, (lowest, alpha_max), EXACT)
    slack = y.size * ROUNDING
    # The bound is kept unless an interior point is better by more than rounding.
    if _cost(optima[0], x, y) <= _cost(best, x, y) * (1 + 1e-9) + slack:
        best = optima[0]
    rivals = [best]
    limit = COMPETING * _cost(best, x, y) + slack
    for other in optima:
        if _cost(other, x, y) > limit or _same(other, rivals, lowest):
            continue
        # What looks like another optimum may only have stopped early in a flat valley.
        exact = _polish(other, x, y, (lowest, alpha_max), EXACT)
        if not _same(exact, rivals, lowest):
            rivals.append(exact)
    natural = [np.array([p[0], math.exp(p[1]), p[2]]) for p in rivals]
    return Optimum(natural[0], _at_bounds(best, lowest, alpha_max), len(optima), tuple(natural))


def _profile_starts(x: Array, y: Array) -> list[Array]:
    """Global starts (E, log k, alpha) for the law with E, by variable projection.

    With r = E / k the law is log L = log k + log(r + exp(-alpha x)): for fixed (alpha, r) the best log k is a
    mean, so the objective is mapped over the whole (alpha, r) plane at once. r is spaced by the share of the
    loss that is irreducible at the largest budget, from 0 to .998. Returned are all local minima of the map,
    and a coarse lattice beside them, so that a basin narrower than the map's mesh is still met.
    """
    span = float(x.max() - x.min())
    alphas = np.geomspace(0.02, 40.0, GRID_ALPHA) / span
    shares = np.sin(np.linspace(0.0, 0.5 * np.pi * 0.97, GRID_FLOOR)) ** 2
    ratio = (shares / (1 - shares))[None, :] * np.exp(-alphas * x.max())[:, None]
    decay = np.exp(-alphas[:, None, None] * x)
    z = y - np.log(ratio[:, :, None] + decay)
    log_k = z.mean(axis=2)
    cost = ((z - log_k[:, :, None]) ** 2).sum(axis=2)
    padded = np.pad(cost, 1, constant_values=np.inf)
    rows, cols = cost.shape
    lowest = np.ones_like(cost, dtype=bool)
    for i, j in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        lowest &= cost <= padded[i : i + rows, j : j + cols]
    cells = [(int(i), int(j)) for i, j in np.argwhere(lowest)]
    cells.sort(key=lambda cell: float(cost[cell]))
    lattice = np.linspace(0, rows - 1, SPREAD_STARTS).astype(int)
    cells = cells[:SPREAD_STARTS] + [(int(i), int((7 * i) % cols)) for i in lattice]
    return [np.array([ratio[c] * math.exp(log_k[c]), log_k[c], alphas[c[0]]]) for c in dict.fromkeys(cells)]


def _polish(start: Array, x: Array, y: Array, upper: tuple[float, float], tolerance: float) -> Array:
    """Descend from `start` = (E, log k, alpha) to a local optimum, 0 <= (E, alpha) <= `upper`."""
    lowest, alpha_max = upper

    def residuals(p: Array) -> Array:
        return np.asarray(np.log(p[0] + np.exp(p[1] - p[2] * x)) - y)

    def jacobian(p: Array) -> Array:
        u = np.exp(p[1] - p[2] * x)
        return np.asarray(np.stack([np.ones_like(u), u, -x * u], axis=1) / (p[0] + u)[:, None])

    low, high = np.array([0.0, -np.inf, 0.0]), np.array([lowest, np.inf, alpha_max])
    inside = np.clip(start, [1e-9 * lowest, -np.inf, 1e-9], [lowest * (1 - 1e-9), np.inf, alpha_max * 0.999])
    found = least_squares(
        residuals, inside, jac=jacobian, bounds=(low, high), x_scale="jac",
        xtol=tolerance, ftol=tolerance, gtol=tolerance, max_nfev=400,
    )  # fmt: skip
    return np.asarray(found.x, np.float64)


def _cost(p: Array, x: Array, y: Array) -> float:
    return float(((np.log(p[0] + np.exp(p[1] - p[2] * x)) - y) ** 2).sum())


def _same(p: Array, others: list[Array], lowest: float) -> bool:
    """Whether E and alpha agree with one of `others` to 1 %, E on the scale of the loss."""
    return any(
        abs(p[0] - other[0]) <= 0.01 * lowest and abs(p[2] - other[2]) <= 0.01 * abs(other[2])
        for other in others
    )


def _at_bounds(p: Array, lowest: float, alpha_max: float) -> tuple[str, ...]:
    floor, alpha = float(p[0]), float(p[2])
    reasons = []
    if floor <= 1e-6 * lowest:
        reasons.append("E is at its bound 0: the points show no bend towards a floor")
    if floor >= lowest * (1 - 1e-6):
        reasons.append("E is at its bound, the lowest loss: the curve is flat at the end")
    if alpha >= 0.99 * alpha_max:
        reasons.append("alpha is at its bound: the loss drops in one step")
    return tuple(reasons)
