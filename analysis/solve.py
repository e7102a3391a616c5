"""Global fits: starts from a map of the whole plane of exponents, polished by Newton, with a certificate.

For given exponents the law is linear in its coefficients (variable projection), so the objective is mapped
over a grid of exponents by small linear systems.  All starts are then polished together.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.laws import Array
from analysis.newton import Minima, minimise
from analysis.sums import Bound

STARTS = 64
GRID = {1: 96, 2: 24, 3: 9}
"""Exponents on each axis, by the number of axes."""
LOW, HIGH = 0.02, 6.0
"""Range of exponents: the term falls by this power of e over the data."""
EFFICIENT = 1.345
"""Huber's delta in standard deviations: 95 % efficient under Gaussian noise (Huber 1964)."""
LEAST_DELTA = 1e-12
COARSE_DELTA = 0.03
ROUGH, APART = 1e-5, 1e-3
"""When the starts stop at first, and how far apart they then are where they count as two."""
COMPETING, SAME = 1.05, 0.01
SLACK = 1e-28
"""Sums of squared log residuals that are rounding, for each point."""
VANISHED = 1e-6


@dataclass(frozen=True)
class Optimum:
    """The best fit of a bound law, and the evidence that it is.

    phi: centred and logarithmic parameters, shape (p,).
    cost: sum of Huber losses of the log residuals (half squares inside delta).
    delta: Huber's delta; inf for least squares.
    sigma: robust standard deviation of the log residuals, corrected for the parameters.
    gradient: see newton.Minima.
    converged: whether the gradient is negligible.
    starts: how many starts were polished.
    moved: whether the optimum is away from its start; False is a sign of an optimiser that never left it.
    minima: distinct optima whose cost is within 5 % of the best, the best first; shape (m, p).
    vanished: labels of coefficients whose terms add nothing to any point; the data do not identify them.
    """

    phi: Array
    cost: float
    delta: float
    sigma: float
    gradient: float
    converged: bool
    starts: int
    moved: bool
    minima: Array
    vanished: tuple[str, ...]


def solve(bound: Bound, delta: float | None = None, weights: Array | None = None) -> Optimum:
    """Find the global optimum.

    Args:
        bound: law and data.
        delta: Huber's delta in log loss; None for 1.345 robust standard deviations of the residuals, inf for
            least squares.
        weights: of the points, shape (n,); None for ones.
    """
    starts = starting_points(bound, weights)
    wide = np.inf if delta is None or delta > COARSE_DELTA else COARSE_DELTA
    # Far below the noise the objective is nearly flat between its kinks, so it is entered from a wide delta.
    rough = minimise(bound.terms, bound.log_loss, starts, weights, wide, ROUGH)
    found = minimise(
        bound.terms, bound.log_loss, _distinct(rough), weights, np.inf if delta is None else delta
    )
    sigma = robust_sd(bound, found.phi[found.best()])
    if delta is None:
        # Delta and the residuals depend on each other; twice is enough to the third digit.
        for _ in range(2):
            delta = max(EFFICIENT * sigma, LEAST_DELTA)
            found = minimise(bound.terms, bound.log_loss, found.phi, weights, delta)
            sigma = robust_sd(bound, found.phi[found.best()])
    assert delta is not None
    return _optimum(bound, starts, found, delta, sigma)


def _distinct(found: Minima) -> Array:
    """Where the members have come to, each place once, shape (m, p)."""
    kept: list[Array] = []
    for member in np.argsort(found.cost):
        phi = found.phi[member]
        if all(np.max(np.abs(phi - other)) > APART for other in kept):
            kept.append(phi)
    return np.array(kept)


def _optimum(bound: Bound, starts: Array, found: Minima, delta: float, sigma: float) -> Optimum:
    best = found.best()
    phi, cost = found.phi[best], float(found.cost[best])
    limit = COMPETING * cost + bound.n * SLACK
    minima = [phi]
    for member in np.argsort(found.cost):
        other = found.phi[member]
        if found.cost[member] > limit or not found.converged[member]:
            continue
        if all(np.max(np.abs(other - known)) > SAME * max(1.0, np.max(np.abs(known))) for known in minima):
            minima.append(other)
    return Optimum(
        phi=phi,
        cost=cost,
        delta=delta,
        sigma=sigma,
        gradient=float(found.gradient[best]),
        converged=bool(found.converged[best]),
        starts=starts.shape[0],
        moved=bool(np.max(np.abs(phi - starts), axis=1).min() > 1e-9),
        minima=np.array(minima),
        vanished=_vanished(bound, phi),
    )


def _vanished(bound: Bound, phi: Array) -> tuple[str, ...]:
    """Coefficients whose terms are less than a millionth of the loss at every point."""
    share = np.exp(bound.terms @ phi - bound.log_loss[:, None])
    gone = []
    for place, column in enumerate(bound.columns):
        if column.name in bound.law.coefficients:
            reads = bound.terms[:, :, place] == 1.0
            if float(np.max(share[reads], initial=0.0)) < VANISHED:
                gone.append(column.label)
    return tuple(gone)


def robust_sd(bound: Bound, phi: Array) -> float:
    """Standard deviation of the log residuals from their median absolute value, scaled up to n - p points."""
    z = bound.terms @ phi
    top = z.max(axis=1)
    residual = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - bound.log_loss
    spare = max(1, bound.n - phi.size)
    return float(np.median(np.abs(residual)) / 0.6744897501960817 * math.sqrt(bound.n / spare))


def starting_points(bound: Bound, weights: Array | None = None, count: int = STARTS) -> Array:
    """Starts for `minimise`, shape (count, p): the lowest cells of the map, and a lattice over all of it.

    Exponents of several structures start equal; coefficients are the best non-negative ones for them.
    """
    names = bound.law.exponents
    axes = [_axis(bound, name) for name in names]
    cells = np.array(list(itertools.product(*axes)))
    coefficients, cost = _project(bound, cells, weights)
    order = np.argsort(cost)
    near, spread = order[: count // 2], np.linspace(0, len(cells) - 1, count - count // 2).astype(int)
    chosen = np.array(list(dict.fromkeys([*_apart(cells, order, near.size), *spread])))
    starts = np.zeros((chosen.size, len(bound.columns)))
    for place, column in enumerate(bound.columns):
        if column.name in names:
            starts[:, place] = cells[chosen, names.index(column.name)]
        else:
            starts[:, place] = np.log(coefficients[chosen, place])
    return starts


def _apart(cells: Array, order: npt.NDArray[np.intp], count: int) -> list[int]:
    """Good cells no two of which touch: every basin of the map, before the rest of the best one."""
    steps = [np.unique(cells[:, axis]) for axis in range(cells.shape[1])]
    where = np.stack([np.searchsorted(step, cells[:, axis]) for axis, step in enumerate(steps)], axis=1)
    chosen: list[int] = []
    for cell in order:
        if all(np.max(np.abs(where[cell] - where[other])) > 1 for other in chosen):
            chosen.append(int(cell))
            if len(chosen) == count:
                break
    return chosen


def _axis(bound: Bound, exponent: str) -> Array:
    """Values of an exponent, from terms that hardly fall over the data to those that vanish at once."""
    places = [place for place, column in enumerate(bound.columns) if column.name == exponent]
    span = max(float(np.ptp(bound.terms[:, :, place].min(axis=1))) for place in places)
    span = max(span, max(float(np.ptp(bound.terms[:, :, place].max(axis=1))) for place in places), 1e-6)
    return np.geomspace(LOW, HIGH, GRID.get(len(bound.law.exponents), 5)) / span


def _project(bound: Bound, cells: Array, weights: Array | None) -> tuple[Array, Array]:
    """Best coefficients (c, p) and squared relative residuals (c,) for each cell of exponents (c, e).

    Residuals of L divided by L are those of log L to first order.  A coefficient that comes out negative is
    held at a small share of the loss, and the others are solved again.
    """
    names, loss = bound.law.exponents, np.exp(bound.log_loss)
    fixed = np.zeros((len(cells), len(bound.columns)))
    own = [place for place, column in enumerate(bound.columns) if column.name not in names]
    for place, column in enumerate(bound.columns):
        if column.name in names:
            fixed[:, place] = cells[:, names.index(column.name)]
    exponents = [place for place in range(len(bound.columns)) if place not in own]
    powers = np.exp(np.einsum("nkp,cp->cnk", bound.terms[:, :, exponents], fixed[:, exponents]))
    reads = bound.terms[:, :, own]
    matrix = np.einsum("cnk,nkp->cnp", powers, reads) / loss[None, :, None]
    root = np.ones(bound.n) if weights is None else np.sqrt(np.asarray(weights, np.float64))
    matrix, target = matrix * root[None, :, None], root
    scale = np.maximum(np.linalg.norm(matrix, axis=1), 1e-300)
    matrix /= scale[:, None, :]
    gram, right = np.einsum("cnp,cnq->cpq", matrix, matrix), np.einsum("cnp,n->cp", matrix, target)
    ridge = 1e-12 * np.eye(len(own))
    floor = 1e-3 * math.sqrt(bound.n)
    solution = np.linalg.solve(gram + ridge, right[:, :, None])[:, :, 0]
    for _ in range(len(own)):
        held = solution < floor
        free = (~held).astype(np.float64)
        masked = gram * free[:, :, None] * free[:, None, :] + (1 - free)[:, :, None] * np.eye(len(own))
        rest = (right - np.einsum("cpq,cq->cp", gram, floor * held)) * free + floor * held
        solution = np.linalg.solve(masked + ridge, rest[:, :, None])[:, :, 0]
    solution = np.maximum(solution, floor)
    residual = np.einsum("cnp,cp->cn", matrix, solution) - target
    out = np.ones((len(cells), len(bound.columns)))
    out[:, own] = solution / scale
    return out, np.einsum("cn,cn->c", residual, residual)
