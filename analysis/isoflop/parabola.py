"""Parabolas of log loss at each budget: the vertex, its honest interval, and when there is none.

y = c0 + c1 u + c2 u^2 with u = (x - centre) / scale, x the logarithm of parameters or tokens and y that of
the loss; centring and scaling keep the normal equations well conditioned whatever the unit of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import t as student

from analysis.arrays import Array, Mask, Places

LEAST_SIZES = 4
"""Three points always lie on a parabola, and say nothing of how well."""
ROUNDS, SETTLED = 60, 1e-13
"""Of the search for the slopes along which points are moved."""


@dataclass(frozen=True)
class Quadratic:
    """Least-squares parabola of the points of one budget, in u = (x - centre) / scale."""

    centre: float
    """Mean of x."""
    scale: float
    """Half the range of x."""
    coefficients: Array
    """c0, c1, c2; shape (3,)."""
    inverse: Array
    """(X'X)^-1: the covariance of the coefficients at unit variance of y; shape (3, 3)."""
    rss: float
    """Residual sum of squares of y."""
    dof: int
    """Points less three."""
    low: float
    """Smallest sampled x."""
    high: float
    """Largest sampled x."""

    @property
    def vertex(self) -> float:
        """Place x of the minimum (or maximum); not finite for a straight line."""
        _, c1, c2 = self.coefficients
        return self.centre - self.scale * c1 / (2 * c2) if c2 else math.nan

    @property
    def height(self) -> float:
        """Value y at the vertex."""
        c0, c1, c2 = self.coefficients
        return float(c0 - c1 * c1 / (4 * c2)) if c2 else math.nan

    @property
    def curvature(self) -> float:
        """Half the second derivative of y in x."""
        return float(self.coefficients[2] / self.scale**2)

    def curvature_se(self, sigma: float) -> float:
        """Standard error of `curvature` where `sigma` is the standard deviation of y."""
        return float(sigma * math.sqrt(self.inverse[2, 2]) / self.scale**2)

    def vertex_se(self, sigma: float) -> float:
        """Standard error of the vertex by the delta method, in units of x."""
        _, c1, c2 = self.coefficients
        gradient = np.array([0.0, -1 / (2 * c2), c1 / (2 * c2 * c2)])
        return float(self.scale * sigma * math.sqrt(max(gradient @ self.inverse @ gradient, 0.0)))

    def height_se(self, sigma: float) -> float:
        """Standard error of y at the vertex; the slope there is zero, so its place adds nothing."""
        u = (self.vertex - self.centre) / self.scale
        row = np.array([1.0, u, u * u])
        return float(sigma * math.sqrt(max(row @ self.inverse @ row, 0.0)))

    def interval(self, sigma: float, dof: int, level: float = 0.95) -> tuple[float, float]:
        """Fieller's interval of the vertex: all x at which the slope of the parabola may be zero.

        Where the curvature does not differ from zero by a two-sided test of the same level, every x beyond
        some point is such a place, and the interval is (-inf, inf).

        Args:
            sigma: standard deviation of y.
            dof: degrees of freedom of sigma.
            level: confidence.

        Source: Fieller (1954), J. R. Stat. Soc. B 16, for the ratio -c1 / (2 c2).
        """
        _, c1, c2 = self.coefficients
        t2 = student.ppf((1 + level) / 2, dof) ** 2
        v11, v12, v22 = sigma**2 * self.inverse[[1, 1, 2], [1, 2, 2]]
        square = c2 * c2 - t2 * v22
        if not square > 0:
            return -math.inf, math.inf
        # Written out, since the difference of the squares would cancel where the noise is small.
        inside = c1 * c1 * v22 + c2 * c2 * v11 - 2 * c1 * c2 * v12 - t2 * (v11 * v22 - v12 * v12)
        middle, half = -(c1 * c2 - t2 * v12), math.sqrt(t2 * max(inside, 0.0))
        ends = [self.centre + self.scale * (middle + sign * half) / (2 * square) for sign in (-1, 1)]
        return float(ends[0]), float(ends[1])

    def draws(self, sigma: float, normal: Array) -> tuple[Array, Mask]:
        """Vertices of parabolas refitted to the fitted values plus Gaussian noise.

        Args:
            sigma: standard deviation of the noise in y.
            normal: standard normal numbers, shape (r, 3).

        Returns:
            Vertices (r,), and whether each is a minimum within the sampled x (r,).
        """
        drawn = self.coefficients + sigma * normal @ np.linalg.cholesky(self.inverse).T
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = self.centre - self.scale * drawn[:, 1] / (2 * drawn[:, 2])
        good = (drawn[:, 2] > 0) & (vertex >= self.low) & (vertex <= self.high)
        return np.where(good, vertex, 0.0), good


def fit_quadratic(x: Array, y: Array) -> Quadratic:
    """Fit y = c0 + c1 u + c2 u^2 by least squares; x has at least three distinct values, shapes (n,)."""
    centre = float(x.mean())
    scale = float(np.ptp(x)) / 2
    u = (x - centre) / scale
    design = np.stack([np.ones_like(u), u, u * u], axis=1)
    q, r = np.linalg.qr(design)
    coefficients = np.linalg.solve(r, q.T @ y)
    root = np.linalg.inv(r)
    residual = y - design @ coefficients
    return Quadratic(
        centre=centre,
        scale=scale,
        coefficients=coefficients,
        inverse=root @ root.T,
        rss=float(residual @ residual),
        dof=x.size - 3,
        low=float(x.min()),
        high=float(x.max()),
    )


def bottom(y: Array, sizes: Array, rise: float) -> Mask:
    """Which points a parabola is fitted to: sizes whose mean y is at most log(1 + rise) above the lowest.

    At least the five lowest sizes are kept, so that there is a residual to judge the parabola by.

    Args:
        y: log loss, shape (n,).
        sizes: of the points, equal for replicates, shape (n,).
        rise: relative to the lowest loss; inf keeps all.
    """
    _, group = np.unique(sizes, return_inverse=True)
    means = np.bincount(group, y) / np.bincount(group)
    limit = max(np.min(means) + math.log1p(rise), np.sort(means)[: LEAST_SIZES + 1][-1])
    return np.asarray(means <= limit)[group]


def akima_minimum(x: Array, y: Array, same: Array) -> float | None:
    """Place of the minimum of Akima's interpolant, or None where it is the first or last x.

    Args:
        x: abscissae, shape (n,).
        y: ordinates, shape (n,).
        same: points with equal values here are replicates and are averaged, shape (n,).

    Source: Akima (1970), J. ACM 17; used for IsoFLOP curves by Porian et al., arXiv 2406.19146.
    """
    _, group = np.unique(same, return_inverse=True)
    count = np.bincount(group)
    across, up = np.bincount(group, x) / count, np.bincount(group, y) / count
    order = np.argsort(across)
    across, up = across[order], up[order]
    if across.size < LEAST_SIZES or np.min(np.diff(across)) <= 0:
        return None
    curve = Akima1DInterpolator(across, up)
    turns = np.asarray(curve.derivative().roots(extrapolate=False), np.float64)
    turns = turns[np.isfinite(turns) & (turns > across[0]) & (turns < across[-1])]
    if turns.size == 0:
        return None
    heights = np.asarray(curve(turns))
    lowest = int(np.argmin(heights))
    return float(turns[lowest]) if heights[lowest] < min(up[0], up[-1]) else None


@dataclass(frozen=True)
class Axis:
    """Parabolas over one variable, one a budget."""

    fits: tuple[Quadratic | None, ...]
    """None where there are fewer than four sizes."""
    verdicts: tuple[str, ...]
    """`usable`, `few`, `inverted`, `flat` or `edge`."""
    akima: tuple[float | None, ...]
    """Minima of Akima's interpolants, x."""
    sigma: float
    """Standard deviation of y about the parabolas, all pooled; NaN without degrees of freedom."""
    dof: int
    moved: bool
    """Whether points were moved to their budget's FLOPs."""


def fit_axis(
    x: Array,
    sizes: Array,
    c: Array,
    y: Array,
    members: list[Places],
    centres: Array,
    level: float,
    rise: float,
) -> Axis:
    """Fit the parabolas of y over x at every budget, points moved along the frontier to their budget's FLOPs.

    A point at a distance h in log C is moved by s h in x and g h in y, s being the slope of the vertices'
    places over log C and g the local one of their heights, both found by iteration.  To change the loss alone
    would be right at the vertex only, since more tokens are worth more to a model too large for its budget
    than to one too small.

    Args:
        x: log N or log D, shape (n,).
        sizes: log N, which tells what is a replicate, shape (n,).
        c: log C, shape (n,).
        y: log loss, shape (n,).
        members: places of the points of each of k budgets.
        centres: mean log C of each, shape (k,).
        level: confidence of the test that a curve is not flat.
        rise: see `bottom`.
    """
    slope, gains = 0.0, np.asarray(np.zeros(len(members)), np.float64)
    away = [c[place] - centre for place, centre in zip(members, centres, strict=True)]
    scattered = max(float(np.max(np.abs(part))) for part in away) > 1e-12
    for _ in range(ROUNDS):
        at = [x[place] - slope * part for place, part in zip(members, away, strict=True)]
        up = [y[place] - g * part for place, part, g in zip(members, away, gains, strict=True)]
        fits = [_fit(u, v, sizes[place], rise) for u, v, place in zip(at, up, members, strict=True)]
        dof = sum(fit.dof for fit in fits if fit)
        sigma = math.sqrt(sum(fit.rss for fit in fits if fit) / dof) if dof else math.nan
        verdicts = [_verdict(fit, sigma, dof, level) for fit in fits]
        good = [(j, fit) for j, fit in enumerate(fits) if fit and verdicts[j] == "usable"]
        if not scattered or len(good) < 2:
            break
        where = centres[[j for j, _ in good]]
        found = float(np.polyfit(where - where.mean(), [fit.vertex for _, fit in good], 1)[0])
        heights = np.array([fit.height for _, fit in good])
        steep = np.gradient(heights, where, edge_order=2 if len(good) > 2 else 1)
        local = np.interp(centres, where, np.asarray(steep, np.float64))
        settled = abs(found - slope) + float(np.max(np.abs(local - gains))) < SETTLED
        slope, gains = found, local
        if settled:
            break
    akima = [akima_minimum(u, v, sizes[place]) for u, v, place in zip(at, up, members, strict=True)]
    return Axis(tuple(fits), tuple(verdicts), tuple(akima), sigma, dof, scattered and len(good) >= 2)


def _fit(x: Array, y: Array, sizes: Array, rise: float) -> Quadratic | None:
    """Parabola through the bottom of one curve; None where it has too few sizes."""
    near = bottom(y, sizes, rise)
    # Tokens may coincide where sizes do not, and leave no parabola.
    distinct = min(np.unique(sizes[near]).size, np.unique(x[near]).size)
    return fit_quadratic(x[near], y[near]) if distinct >= LEAST_SIZES else None


def _verdict(fit: Quadratic | None, sigma: float, dof: int, level: float) -> str:
    """Whether a parabola has a usable vertex; a straight line is flat wherever its vertex would be."""
    if fit is None:
        return "few"
    if not fit.curvature > 0:
        return "inverted"
    if not all(map(math.isfinite, fit.interval(sigma, dof, level))):
        return "flat"
    return "usable" if fit.low <= fit.vertex <= fit.high else "edge"
