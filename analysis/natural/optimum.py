"""Gamma of compute-optimal sizes: N* over D*, by the fitted law and by the vertices of IsoFLOP parabolas."""

from __future__ import annotations

import math

import numpy as np

from analysis.allocation import Cost, allocation
from analysis.arrays import Array
from analysis.fit import Fit, Refusal
from analysis.isoflop.budgets import group_budgets
from analysis.isoflop.optima import Exponent, isoflop
from analysis.isoflop.parabola import LEAST_SIZES
from analysis.natural.estimate import Estimate
from analysis.natural.law import why_not

LEAST_BUDGETS = 3

Line = tuple[tuple[float, float], ...]
"""Points (tokens, params)."""


def ratio(a: float, cost: Cost) -> float:
    """Gamma = a / b of N* ~ C^a and D* ~ C^b, where C = kappa N^u D^v leaves b = (1 - u a) / v.

    It rises with a, so that the ends of an interval of a are those of gamma; infinite where b is not above 0.
    """
    rest = 1 - cost.u * a
    return cost.v * a / rest if rest > 0 else math.inf


def by_law(fit: Fit | Refusal, cost: Cost, seen: tuple[float, float]) -> tuple[Estimate, Line]:
    """Gamma of the optimum that the fitted law has at given FLOPs, and two points of its line N*(D).

    Args:
        fit: of L = E + A N^-alpha + B D^-beta.
        cost: FLOPs of size and tokens.
        seen: least and greatest FLOPs of the runs.
    """
    reason = why_not(fit)
    if reason or isinstance(fit, Refusal):
        return Estimate("law", None, reason=f"the law is not identified: {reason}"), ()
    found = allocation(fit, cost, list(seen), seen)
    if found is None or fit.spread is None:
        return Estimate("law", None, reason="the law has no optimum"), ()
    value, low, high = (ratio(a, cost) for a in (found.a.value, found.a.low, found.a.high))
    if not math.isfinite(value):
        return Estimate("law", None, reason=f"a = {found.a.value:.3g} leaves no tokens to grow"), ()
    line = tuple((one.tokens.value, one.params.value) for one in found.optima)
    return Estimate("law", value, low, high, f"a / b with {cost.formula}; {fit.spread.method}"), line


def by_parabolas(
    params: Array, tokens: Array, flops: Array, loss: Array, cost: Cost, clustered: bool
) -> tuple[Estimate, Line]:
    """Gamma of the vertices of parabolas at equal FLOPs, and the vertices; all arrays of shape (n,).

    D* = C / (kappa N*), so that a line of log N* over log D* has the slope a / b of N* ~ C^a.
    """
    if clustered:
        return Estimate("isoflop", None, reason="several points are of one run"), ()
    groups = group_budgets(flops)
    curves = sum(np.unique(params[places]).size >= LEAST_SIZES for places in groups)
    if curves < LEAST_BUDGETS:
        reason = f"{curves} budgets of equal FLOPs with {LEAST_SIZES} sizes; it needs {LEAST_BUDGETS}"
        return Estimate("isoflop", None, reason=reason), ()
    found = isoflop(params, tokens, flops, loss, resamples=0)
    vertices = tuple(
        (budget.optimal_tokens, budget.params.optimum)
        for budget in found.budgets
        if budget.optimal_tokens is not None and budget.params.optimum is not None
    )
    if not isinstance(found.a, Exponent):
        return Estimate("isoflop", None, reason=found.a.reason), vertices
    value, low, high = (ratio(a, cost) for a in (found.a.value, found.a.low, found.a.high))
    if not math.isfinite(value):
        return Estimate("isoflop", None, reason=f"a = {found.a.value:.3g} leaves no tokens to grow"), vertices
    method = f"a / b through {found.a.budgets} vertices with {cost.formula}; Knapp and Hartung, t"
    return Estimate("isoflop", value, low, high, method), vertices
