"""F tests of what a law may do without: its constant, and its break."""

from __future__ import annotations

import numpy as np
from scipy.special import fdtrc

from analysis.digits import probability
from analysis.engine.broken import BrokenBound, BrokenLaw
from analysis.engine.solve import Optimum, huber_moments, solve
from analysis.engine.sums import bind
from analysis.uncertainty import CONFIDENCE

NO_NOISE = 1e-24
"""Sums of squared log residuals below n times this are the rounding of the losses."""

NO_BREAK = "the points show no break inside their range"


def floor_test(optimum: Optimum) -> str | None:
    """Why the constant of a law may as well be 0, or None.

    Whether it fits as well is asked of the objectives (F test): the constant enters the law so far from
    linearly that its standard error is too small for this where points are few.
    """
    bound, phi = optimum.bound, optimum.phi
    constants = [term.coefficient for term in bound.law.terms if not term.powers]
    mine = [column for column in bound.columns if column.name in constants]
    dof = bound.n - phi.size
    if not mine or dof < 1 or optimum.cost <= bound.n * NO_NOISE:
        return None
    without = solve(bound.without(mine), optimum.delta)
    statistic = f_statistic(optimum, without.cost - optimum.cost, len(mine), dof)
    p_value = float(fdtrc(len(mine), dof, statistic))
    if p_value < 1 - CONFIDENCE:
        return None
    name = " and ".join(column.label for column in mine)
    return f"{name} = 0 is not rejected (F({len(mine)}, {dof}) = {statistic:.2f}, p {probability(p_value)})"


def break_test(optimum: Optimum) -> str | None:
    """Why a broken law may as well have no break, or None; None for laws without one.

    The F test against the law without c1, d and f.  Where c1 is 0, d and f are no parameters, so that F is
    not exact (Davies 1987): at 5 % it rejected 3 % of 400 curves of 40 points without a break.
    """
    bound = optimum.bound
    if not isinstance(bound, BrokenBound) or not isinstance(bound.law, BrokenLaw):
        return None
    law, variable = bound.law.unbroken, bound.law.variables[0]
    whole = len(bound.law.parameters)
    constraints, dof = whole - len(law.parameters), bound.n - whole
    data = {variable: np.exp(bound.x + bound.centres[variable])}
    without = solve(bind(law, data, np.exp(bound.log_loss)), optimum.delta)
    words = f"{NO_BREAK}: {law.formula}"
    if without.cost <= bound.n * NO_NOISE:
        return f"{words} fits to rounding"
    if dof < 1 or optimum.cost <= bound.n * NO_NOISE:
        return None
    statistic = f_statistic(optimum, without.cost - optimum.cost, constraints, dof)
    p_value = float(fdtrc(constraints, dof, statistic))
    if p_value < 1 - CONFIDENCE:
        return None
    return f"{words} is not rejected (F({constraints}, {dof}) = {statistic:.2f}, p {probability(p_value)})"


def f_statistic(optimum: Optimum, more: float, constraints: int, dof: int) -> float:
    """F of nested fits whose objectives differ by `more`, at the delta of the larger one.

    With least squares the usual one; else the rho test of Schrader and Hettmansperger 1980.
    """
    bound = optimum.bound
    residual = bound.log_value(optimum.phi) - bound.log_loss
    inside, variance = huber_moments(residual, bound.n - dof, optimum.delta)
    return max(0.0, 2 * more * inside / (constraints * variance))
