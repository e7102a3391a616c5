"""Global fits: starts from a map of the whole plane of exponents, polished by Newton, with a certificate.

For given exponents the law is linear in its coefficients (variable projection), so the objective is mapped
over a grid of exponents by small linear systems.  All starts are then polished together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from analysis.arrays import Array, Mask, Places
from analysis.engine.broken import BrokenBound, map_of_starts
from analysis.engine.broken_newton import minimise_broken
from analysis.engine.newton import EXACT, Minima, minimise
from analysis.engine.sums import Bound, Column

STARTS = 64
GRID = {1: 96, 2: 24, 3: 9}
"""Exponents on each axis, by the number of axes."""
LOW, HIGH = 0.02, 6.0
"""Range of exponents: the term falls by this power of e over the data."""
EFFICIENT = 1.345
"""Huber's delta in standard deviations: 95 % efficient under Gaussian noise (Huber 1964)."""
LEAST_DELTA = 1e-12
CUT, CUT_SQUARES, SCALE_STEPS = 2.5, 0.9775, 50
"""Where residuals are cut for the scale, in standard deviations, and E min(z^2, cut^2) of a normal z."""
COARSE_DELTA = 0.03
PERTURBED, KEPT, FIRST_STEPS = 32, 8, 25
"""Fits under random weights, whose optima are starts too; steps after which only the lowest places go on."""
ROUGH, APART = 1e-5, 1e-3
"""When the starts stop at first, and how far apart they then are where they count as two."""
COMPETING, SAME = 1.05, 0.01
SLACK = 1e-28
"""Sums of squared log residuals that are rounding, for each point."""
VANISHED = 1e-6


@dataclass(frozen=True)
class Optimum:
    """The best fit of a bound law, and the evidence that it is.

    bound: the law and data, without the terms that have vanished.
    phi: centred and logarithmic parameters, shape (p,).
    cost: sum of Huber losses of the log residuals (half squares inside delta).
    delta: Huber's delta; inf for least squares.
    sigma: robust standard deviation of the log residuals, corrected for the parameters.
    gradient: see newton.Minima.
    converged: whether the gradient is negligible.
    starts: how many starts were polished.
    moved: whether the optimum is away from its start; False is a sign of an optimiser that never left it.
    minima: distinct optima whose cost is within 5 % of the best, the best first, in the parameters of the
        whole law; shape (m, p).
    vanished: labels of coefficients whose terms add nothing to any point; they are left out of `bound`.
    fixed: other parameters that are at a limit and are held there, with their values; no column of `bound`.
    """

    bound: Bound
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
    fixed: Mapping[str, float] = field(default_factory=dict)


def descend(
    bound: Bound,
    starts: Array,
    weights: Array | None = None,
    delta: float | Array = np.inf,
    *,
    held: Mask | None = None,
    tolerance: float = EXACT,
) -> Minima:
    """Descend from every start under whichever law; arguments as those of `newton.minimise`."""
    if isinstance(bound, BrokenBound):
        return minimise_broken(bound, starts, weights, delta, held=held, tolerance=tolerance)
    return minimise(bound, starts, weights, delta, held=held, tolerance=tolerance)


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
    rough = descend(bound, starts, weights, wide, tolerance=ROUGH)
    found = descend(bound, _distinct(rough), weights, np.inf if delta is None else delta)
    sigma = _sigma(bound, found.phi[found.best()])
    if delta is None:
        # Delta and the residuals depend on each other; three rounds are enough to the third digit.
        for _ in range(3):
            delta = max(EFFICIENT * sigma, LEAST_DELTA)
            found = descend(bound, found.phi, weights, delta)
            sigma = _sigma(bound, found.phi[found.best()])
    assert delta is not None
    if math.isfinite(delta):
        found = _again(bound, starts, found, delta, weights)
        sigma = _sigma(bound, found.phi[found.best()])
    best = found.best()
    return _reduced(bound, starts, found, best, delta, sigma, weights)


def _again(bound: Bound, starts: Array, found: Minima, delta: float, weights: Array | None) -> Minima:
    """All starts once more, now at the final delta, and optima under random weights of the points.

    With outliers, or a delta below the noise, the objective has basins that least squares does not see.
    """
    dice = np.random.default_rng(0)
    drawn = dice.exponential(size=(PERTURBED, bound.n)) * (1.0 if weights is None else weights)
    best = np.tile(found.phi[found.best()], (PERTURBED, 1))
    nearby = descend(bound, best, drawn, max(delta, COARSE_DELTA), tolerance=ROUGH)
    all_starts = np.concatenate([found.phi, starts, nearby.phi])
    if isinstance(bound, BrokenBound):
        rough = descend(bound, all_starts, weights, delta, tolerance=ROUGH)
    else:
        rough = minimise(bound, all_starts, weights, delta, tolerance=ROUGH, most_steps=FIRST_STEPS)
    return descend(bound, _distinct(rough, KEPT), weights, delta)


def _reduced(
    bound: Bound, starts: Array, found: Minima, best: int, delta: float, sigma: float, weights: Array | None
) -> Optimum:
    """Leave terms out that have vanished, so that the optimum lies exactly on its bound, and sum it up."""
    gone = vanished(bound, found.phi[best])
    moved = bool(np.max(np.abs(found.phi[best] - starts), axis=1).min() > 1e-9)
    minima = _competing(bound, found)
    smaller = bound.without(gone)
    final, place = found, best
    if gone:
        kept = [bound.columns.index(column) for column in smaller.columns]
        final = descend(smaller, found.phi[best][None, kept], weights, delta)
        place, sigma = 0, _sigma(smaller, final.phi[0])
    if isinstance(smaller, BrokenBound):
        inner = smaller.hold(final.phi[place])
        kept = [smaller.columns.index(column) for column in inner.columns]
        if inner is not smaller:
            final = descend(inner, final.phi[place][None, kept], weights, delta)
            smaller, place, sigma = inner, 0, _sigma(inner, final.phi[0])
    return Optimum(
        bound=smaller,
        phi=final.phi[place],
        cost=float(final.cost[place]),
        delta=delta,
        sigma=sigma,
        gradient=float(final.gradient[place]),
        converged=bool(final.converged[place]),
        starts=starts.shape[0],
        moved=moved,
        minima=minima,
        vanished=tuple(column.label for column in gone),
        fixed=smaller.fixed() if isinstance(smaller, BrokenBound) else {},
    )


def _sigma(bound: Bound, phi: Array) -> float:
    return noise_sd(bound.log_value(phi) - bound.log_loss, phi.size)


def _distinct(found: Minima, most: int = STARTS) -> Array:
    """Where the members have come to, each place once, the lowest first, shape (at most `most`, p)."""
    kept: list[Array] = []
    for member in np.argsort(found.cost):
        phi = found.phi[member]
        if all(np.max(np.abs(phi - other)) > APART for other in kept):
            kept.append(phi)
            if len(kept) == most:
                break
    return np.array(kept)


def _competing(bound: Bound, found: Minima) -> Array:
    """Distinct optima within 5 % of the best cost, the best first, shape (m, p)."""
    order = np.argsort(found.cost)
    limit = COMPETING * float(found.cost[order[0]]) + bound.n * SLACK
    minima = [found.phi[order[0]]]
    for member in order[1:]:
        other = found.phi[member]
        if found.cost[member] > limit or not found.converged[member]:
            continue
        if all(_differ(bound, other, known) for known in minima):
            minima.append(other)
    return np.array(minima)


def _differ(bound: Bound, phi: Array, other: Array) -> bool:
    """Whether exponents of terms that count differ; those of vanished ones may be anything.

    Optima that predict the same may differ: where N and D vary together, their terms can change places.
    """
    apart = np.abs(phi - other) > SAME * np.maximum(np.abs(phi), np.abs(other))
    counts = np.zeros(phi.size, bool)
    for at in (phi, other):
        share = np.exp(bound.terms @ at + bound.offset - bound.log_loss[:, None])
        seen = (bound.terms != 0) & (share > VANISHED)[:, :, None]
        counts |= seen.any(axis=(0, 1))
    return bool((apart & counts & ~bound.enters_by_logarithm).any())


def vanished(bound: Bound, phi: Array) -> tuple[Column, ...]:
    """Coefficients whose terms are less than a millionth of the loss at every point."""
    share = np.exp(bound.terms @ phi + bound.offset - bound.log_loss[:, None])
    # Of a broken law the constant only: `terms` know nothing of the break, which the power term needs.
    broken, gone = isinstance(bound, BrokenBound), []
    for place, column in enumerate(bound.columns):
        if column.name == "E" if broken else column.name in bound.law.coefficients:
            reads = bound.terms[:, :, place] == 1.0
            if float(np.max(share[reads], initial=0.0)) < VANISHED:
                gone.append(column)
    return tuple(gone)


def huber_moments(residual: Array, parameters: int, delta: float) -> tuple[float, float]:
    """E psi' and E psi^2 of Huber's psi at residuals of a fit of so many parameters.

    From the residuals themselves where delta is above the noise.  Below it they would say little: a fit close
    to a median regression passes through as many points as it has parameters.  There they are those of normal
    noise of the standard deviation that `noise_sd` finds.
    """
    sigma = noise_sd(residual, parameters)
    spare = max(1, residual.size - parameters)
    if delta >= sigma:
        clipped = np.clip(residual, -delta, delta)
        inside = max(float(np.mean(np.abs(residual) <= delta)), 1 / residual.size)
        return inside, float(clipped @ clipped) / spare
    cut = delta / sigma
    within = math.erf(cut / math.sqrt(2))
    density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
    return within, sigma**2 * (within - 2 * cut * density + cut * cut * (1 - within))


def noise_sd(residual: Array, parameters: int) -> float:
    """Standard deviation of the noise, from residuals of a fit of so many parameters.

    Huber's proposal 2 (Huber 1964) with its cut at 2.5 standard deviations: where there are no outliers it is
    the usual sqrt(sum of squares / (n - p)), and one outlier, however far, counts as 2.5.
    """
    spare = max(1, residual.size - parameters)
    sd = math.sqrt(float(residual @ residual) / spare)
    for _ in range(SCALE_STEPS):
        clipped = np.clip(residual, -CUT * sd, CUT * sd)
        sd = math.sqrt(float(clipped @ clipped) / (spare * CUT_SQUARES))
    return sd


def starting_points(bound: Bound, weights: Array | None = None, count: int = STARTS) -> Array:
    """Starts for `minimise`, shape (count, p): the lowest cells of the map, and a lattice over all of it.

    Exponents of several structures start equal; coefficients are the best non-negative ones for them.
    """
    if isinstance(bound, BrokenBound):
        cells, points, cost = map_of_starts(bound, weights)
        return points[_chosen(cells, cost, count)]
    names = _exponents(bound)
    if not names:
        return np.array([np.log(_project(bound, np.zeros((1, 0)), weights)[0][0])])
    axes = [_axis(bound, name, len(names)) for name in names]
    cells = np.array(list(itertools.product(*axes)))
    coefficients, cost = _project(bound, cells, weights)
    chosen = _chosen(cells, cost, count)
    starts = np.zeros((chosen.size, len(bound.columns)))
    for place, column in enumerate(bound.columns):
        if column.name in names:
            starts[:, place] = cells[chosen, names.index(column.name)]
        else:
            starts[:, place] = np.log(coefficients[chosen, place])
    return starts


def _chosen(cells: Array, cost: Array, count: int) -> Places:
    """Which cells to start from: the lowest that are apart, and a lattice over all of the map."""
    order = np.argsort(cost)
    spread = np.linspace(0, len(cells) - 1, count - count // 2).astype(int)
    # What the two choices have in common is made up for by the next best cells.
    return np.array(list(dict.fromkeys([*_apart(cells, order, count // 2), *spread, *order]))[:count])


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


def _exponents(bound: Bound) -> list[str]:
    """Names of the exponents that the terms left in the law have."""
    return [name for name in bound.law.exponents if any(name == column.name for column in bound.columns)]


def _axis(bound: Bound, exponent: str, axes: int) -> Array:
    """Values of an exponent, from terms that hardly fall over the data to those that vanish at once."""
    places = [place for place, column in enumerate(bound.columns) if column.name == exponent]
    span = max(float(np.ptp(bound.terms[:, :, place].min(axis=1))) for place in places)
    span = max(span, max(float(np.ptp(bound.terms[:, :, place].max(axis=1))) for place in places), 1e-6)
    return np.geomspace(LOW, HIGH, GRID.get(axes, 5)) / span


def _project(bound: Bound, cells: Array, weights: Array | None) -> tuple[Array, Array]:
    """Best coefficients (c, p) and squared relative residuals (c,) for each cell of exponents (c, e).

    Residuals of L divided by L are those of log L to first order.  A coefficient that comes out negative is
    held at a small share of the loss, and the others are solved again.
    """
    names, loss = _exponents(bound), np.exp(bound.log_loss)
    fixed = np.zeros((len(cells), len(bound.columns)))
    own = [place for place, column in enumerate(bound.columns) if column.name not in names]
    for place, column in enumerate(bound.columns):
        if column.name in names:
            fixed[:, place] = cells[:, names.index(column.name)]
    exponents = [place for place in range(len(bound.columns)) if place not in own]
    log_powers = np.einsum("nkp,cp->cnk", bound.terms[:, :, exponents], fixed[:, exponents])
    powers = np.exp(log_powers + bound.offset)
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
