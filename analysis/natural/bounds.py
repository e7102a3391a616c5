"""Gamma from beta alone: what PAC learning bounds would allow, reconstructed from the published numbers.

Kausik, arXiv 2402.14746, gives gamma from 0.44 to 0.72; how it is derived was not to be had. This project's
reconstruction, which gives every published number: the excess loss falls as epsilon ~ D^-beta, and a class of
dimension N needs D ~ N / epsilon examples where some member fits the data (realizable), D ~ N / epsilon^2
where none need (agnostic). So N ~ D epsilon = D^(1 - beta), or N ~ D epsilon^2 = D^(1 - 2 beta): with
Chinchilla's beta = 0.28 these are 0.72 and 0.44. It is a hypothesis about the paper, not its theorem. Where
beta is so large that the exponent is not above 0 it means nothing: no class shrinks with more data.
"""

from __future__ import annotations

from analysis.fit import Fit, Refusal
from analysis.natural.estimate import Estimate, digits_of, ends
from analysis.natural.law import why_not

FACTORS = {"agnostic": 2.0, "realizable": 1.0}
"""gamma = 1 - factor x beta."""


def gamma_of(beta: float, kind: str) -> float:
    """Gamma that the reconstruction gives for an exponent of data, `agnostic` or `realizable`."""
    return 1 - FACTORS[kind] * beta


def bound(fit: Fit | Refusal, kind: str) -> Estimate:
    """One end of the reconstructed range, with the interval of beta carried over.

    Args:
        fit: of L = E + A N^-alpha + B D^-beta.
        kind: `agnostic` or `realizable`.

    Returns:
        no value where it is not above 0; an interval is cut at 0.
    """
    reason = why_not(fit)
    if reason or isinstance(fit, Refusal) or fit.intervals is None:
        return Estimate(kind, None, reason=f"beta is not identified: {reason}")
    beta = (fit.value("beta"), *fit.intervals["beta"])
    value, low, high = ends(*(gamma_of(b, kind) for b in beta))
    if value <= 0:
        told = " ".join(digits_of(*beta))
        reason = f"not above 0 (beta = {told}), where the reconstruction means nothing"
        return Estimate(kind, None, reason=reason, meaningless=True)
    cut = ", cut at 0, below which it means nothing" if low < 0 else ""
    return Estimate(kind, value, max(low, 0.0), high, f"from beta; {fit.interval_method}{cut}")
