"""The smallest size that reaches a wanted loss at each token budget, read off the measured curves over sizes.

R: tables of losses at once (the measured one, simulated ones), n: runs, J: token budgets, S: sizes of one.

A fixed excess over the irreducible loss would trace an iso-loss curve, along which N falls with D. The
natural law asks for the N that uses the data well: whose excess is within a share of the least one at that D.
Under L = E + A N^-alpha + B D^-beta the least excess is B D^-beta, and N ~ D^(beta / alpha) for every share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from analysis.arrays import Array, Mask, Places
from analysis.isoflop.budgets import group_budgets
from analysis.natural.estimate import LARGEST

LEAST_SIZES, LEAST_BUDGETS = 3, 3
SAME_TOKENS = 0.05
"""Runs within this share of each other's tokens are of one budget."""
EXPONENTS, LOW, HIGH = 240, 0.02, 12.0
"""Exponents of size that are tried, by which power of e the term falls over the sizes."""
BISECTIONS = 50
REACHED, BELOW, ABOVE, NONE = 0, -1, 1, 2
"""A crossing between measured sizes; the smallest reaches it; none does; no reference, or no excess."""


@dataclass(frozen=True)
class Budget:
    """Runs on (nearly) equal tokens, of three sizes or more.

    places: of its runs among all.
    tokens: geometric mean.
    log_sizes: logarithms of its sizes in order, shape (S,).
    counts: runs of each size, shape (S,).
    cell: which size each run is of, shape (len(places),).
    """

    places: Places
    tokens: float
    log_sizes: Array
    counts: Array
    cell: Places


@dataclass(frozen=True)
class Curves:
    """L = c(D) + A N^-alpha with a limit c of its own for every budget.

    alpha: shape (R,); NaN where the curves show no bend, so that N without limit is anywhere.
    limits: c(D), the loss of N without limit, shape (R, J); NaN without alpha.
    fitted: losses of the runs by the first table's curves, shape (n,); runs of no budget have NaN.
    """

    alpha: Array
    limits: Array
    fitted: Array


def budgets_of(params: Array, tokens: Array) -> list[Budget]:
    """The token budgets on which three sizes or more were trained, in order; arrays of shape (n,)."""
    found = []
    for places in group_budgets(tokens, SAME_TOKENS):
        logs = np.asarray(np.round(np.log(params[places]), 6), np.float64)
        sizes, cell, counts = np.unique(logs, return_inverse=True, return_counts=True)
        if sizes.size >= LEAST_SIZES:
            middle = float(np.exp(np.log(tokens[places]).mean()))
            found.append(Budget(places, middle, sizes, counts.astype(np.float64), cell))
    return found


def curves(budgets: list[Budget], params: Array, losses: Array) -> Curves:
    """Fit the curves over sizes of all budgets, which share A and alpha, to every table of losses at once.

    Least squares of relative residuals. For a given alpha the rest is linear, so alpha is sought on a grid
    and refined by a parabola.

    Args:
        budgets: of `budgets_of`.
        params: N, shape (n,).
        losses: shape (R, n).
    """
    order = np.concatenate([budget.places for budget in budgets])
    group = np.concatenate([np.full(budget.places.size, j) for j, budget in enumerate(budgets)])
    x, y = np.log(params[order]), losses[:, order]
    x = x - x.min()
    weight = 1 / y[0] ** 2
    share = np.zeros((len(budgets), order.size))
    share[group, np.arange(order.size)] = weight
    share /= share.sum(axis=1, keepdims=True)

    def within(rows: Array) -> Array:
        return np.asarray((rows - (rows @ share.T)[:, group]) * np.sqrt(weight))

    exponents = np.geomspace(LOW, HIGH, EXPONENTS) / max(float(np.ptp(x)), 1e-9)
    terms = within(np.exp(-exponents[:, None] * x))
    target = within(y)
    along = terms @ target.T
    square = np.sum(terms**2, axis=1)[:, None]
    # A term that rises with N is none: the curve is flat then.
    gain = np.where(along > 0, along**2 / square, 0.0)
    best = np.argmax(gain, axis=0)
    inner = np.clip(best, 1, EXPONENTS - 2)
    rows = np.arange(len(y))
    left, middle, right = (gain[inner + k, rows] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend < 0, np.clip(0.5 * (left - right) / bend, -1, 1), 0.0)
    step = np.log(exponents[1] / exponents[0])
    alpha = exponents[inner] * np.exp(shift * step)
    powers = np.exp(-alpha[:, None] * x)
    inside = within(powers)
    amplitude = np.einsum("rn,rn->r", inside, target) / np.einsum("rn,rn->r", inside, inside)
    limits = (y - amplitude[:, None] * powers) @ share.T
    fitted = np.full(losses.shape[1], np.nan)
    fitted[order] = limits[0][group] + amplitude[0] * powers[0]
    open_ = (best != inner) | (amplitude <= 0)
    return Curves(np.where(open_, np.nan, alpha), np.where(open_[:, None], np.nan, limits), fitted)


@dataclass(frozen=True)
class Crossings:
    """Where the curve of one budget reaches what is wanted; all shapes (R,).

    log_params: NaN where `state` is not REACHED.
    state: REACHED, BELOW, ABOVE or NONE.
    wanted: excess loss that must be reached; NaN where there is none.
    """

    log_params: Array
    state: Places
    wanted: Array


class Excess:
    """The measured excess loss of one budget over its sizes, monotone, in every table of losses.

    Means over runs of one size; where a larger size is worse, neighbours are pooled (isotonic regression), so
    that the curve never rises; between sizes log excess is interpolated over log N by a monotone cubic
    (Fritsch and Carlson 1980), and not beyond them.
    """

    def __init__(self, budget: Budget, losses: Array, floor: Array) -> None:
        """Args: the budget, losses of all runs (R, n), and the irreducible loss of each table (R,)."""
        cells = np.zeros((budget.log_sizes.size, losses.shape[1]))
        cells[budget.cell, budget.places] = 1 / budget.counts[budget.cell]
        excess = falling(losses @ cells.T - floor[:, None], budget.counts)
        self.x = budget.log_sizes
        self.usable: Mask = np.isfinite(excess).all(axis=1) & (excess[:, -1] > 0)
        self.log = np.log(np.where(self.usable[:, None], excess, 1.0))
        curve = PchipInterpolator(self.x, self.log.T, axis=0)
        self.pieces = np.asarray(curve.c, np.float64)

    def crossing(self, within: float, reference: str, limit: Array) -> Crossings:
        """Where the excess comes to within a share of the least one.

        Args:
            within: the share.
            reference: `limit` for the excess of N without limit, `largest` for that of the largest size.
            limit: excess of N without limit, shape (R,).
        """
        least = np.exp(self.log[:, -1]) if reference == LARGEST else limit
        usable = self.usable & (least > 0)
        wanted = np.where(usable, (1 + within) * least, np.nan)
        target = np.log(np.where(usable, wanted, 1.0))
        over = np.sum(self.log > target[:, None], axis=1)
        state = np.where(over == 0, BELOW, np.where(over == self.x.size, ABOVE, REACHED))
        state = np.where(usable, state, NONE)
        piece = np.clip(over - 1, 0, self.x.size - 2)
        c3, c2, c1, c0 = self.pieces[:, piece, np.arange(target.size)]
        low, high = np.zeros(target.size), np.diff(self.x)[piece]
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            above = ((c3 * middle + c2) * middle + c1) * middle + c0 > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        place = self.x[piece] + 0.5 * (low + high)
        return Crossings(np.where(state == REACHED, place, np.nan), state, wanted)


def falling(values: Array, counts: Array) -> Array:
    """The nearest sequences that never rise, by least squares with the counts as weights; shape (R, S).

    Min-max formula of isotonic regression: min over starts at or before a place of the max over ends at or
    after it of the mean between.
    """
    size = counts.size
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values * counts, axis=1)], axis=1)
    total = np.concatenate([[0.0], np.cumsum(counts)])
    out = np.full(values.shape, np.inf)
    for start in range(size):
        means = (sums[:, start + 1 :] - sums[:, [start]]) / (total[start + 1 :] - total[start])
        highest = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        out[:, start:] = np.minimum(out[:, start:], highest)
    return out


def slope(log_tokens: Array, log_params: Array) -> Array:
    """Slope of log N on log D by least squares in every table, shape (R,); NaN below three budgets.

    Args:
        log_tokens: shape (J,).
        log_params: shape (R, J); NaN where there is no size.
    """
    there = np.isfinite(log_params)
    count = np.maximum(there.sum(axis=1), 1)
    x = np.where(there, log_tokens, 0.0)
    y = np.where(there, log_params, 0.0)
    away = np.where(there, x - (x.sum(axis=1) / count)[:, None], 0.0)
    square = np.sum(away**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sum(away * y, axis=1) / square
    return np.where((count >= LEAST_BUDGETS) & (square > 0), found, np.nan)
