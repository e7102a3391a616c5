"""Brings the losses of one token budget, whose runs' tokens differ a little, to one D by the fitted law.

Under equal FLOPs D falls as N rises: within a budget of nearly equal tokens the larger sizes have seen the
fewer, and what that costs would be read as an effect of size. L' = L - B (D_i^-beta - Dbar^-beta) takes it
out, with Dbar the geometric mean of the budget. B and beta are those of the law fitted to the whole table, or
to each simulated one: of the law this uses the slope in D over a few percent of D alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.arrays import Array, Mask
from analysis.engine.newton import minimise
from analysis.engine.sums import Bound
from analysis.fit import Fit
from analysis.natural.reach import Budget

EQUAL = 1e-9
"""Logarithms of tokens that differ by less are the same."""
MOST_APART = 0.005
"""By how much the logarithms of a budget's tokens may differ where no law brings them together."""
ROUGH = 1e-6


def apart(budgets: Sequence[Budget], tokens: Array) -> float:
    """The most that log tokens differ within a budget; tokens of all runs, shape (n,)."""
    return max((float(np.ptp(np.log(tokens[budget.places]))) for budget in budgets), default=0.0)


def refitted(fit: Fit, losses: Array) -> tuple[Array, Mask]:
    """The law fitted to other losses of its runs, shape (R, n): phi (R, p), and where the fit is good (R,).

    It starts from the optimum of the measured table, with its delta.
    """
    bound, phi = fit.optimum.bound, fit.optimum.phi
    starts = np.tile(phi, (len(losses), 1))
    found = minimise(bound, starts, None, fit.optimum.delta, log_loss=np.log(losses), tolerance=ROUGH)
    return found.phi, np.asarray((found.gradient < 100 * ROUGH) | found.converged)


def beyond(bound: Bound, phi: Array, budgets: Sequence[Budget], tokens: Array) -> Array:
    """B (D_i^-beta - Dbar^-beta) of every run, nats per token, shape (R, n); 0 for runs of no budget.

    Args:
        bound: L = E + A N^-alpha + B D^-beta bound to the runs.
        phi: its parameters in each table, shape (R, p).
        budgets: of `budgets_of`.
        tokens: D of all runs, shape (n,).
    """
    natural = bound.natural(phi)
    b, beta = (natural[:, [bound.place(name)]] for name in ("B", "beta"))
    middle = np.array(tokens, np.float64)
    for budget in budgets:
        middle[budget.places] = budget.tokens
    inside = np.isin(np.arange(tokens.size), np.concatenate([budget.places for budget in budgets]))
    return np.asarray(np.where(inside, b * (tokens**-beta - middle**-beta), 0.0))
