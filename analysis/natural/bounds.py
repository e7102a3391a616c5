"""Gamma from beta alone: what PAC learning bounds would allow, reconstructed from the published numbers.

Kausik, arXiv 2402.14746, gives gamma from 0.44 to 0.72; how it is derived was not to be had. This project's
reconstruction, which gives every published number: the excess loss falls as epsilon ~ D^-beta, and a class of
dimension N needs D ~ N / epsilon examples where some member fits the data (realizable), D ~ N / epsilon^2
where none need (agnostic). So N ~ D epsilon = D^(1 - beta), or N ~ D epsilon^2 = D^(1 - 2 beta): with
Chinchilla's beta = 0.28 these are 0.72 and 0.44. It is a hypothesis about the paper, not its theorem.
"""

from __future__ import annotations

from analysis.fit import Fit, Refusal
from analysis.natural.estimate import Estimate, ends
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
    """
    reason = why_not(fit)
    if reason or isinstance(fit, Refusal) or fit.intervals is None:
        return Estimate(kind, None, reason=f"beta is not identified: {reason}")
    value, low, high = ends(*(gamma_of(b, kind) for b in (fit.value("beta"), *fit.intervals["beta"])))
    return Estimate(kind, value, low, high, f"from beta; {fit.interval_method}")
