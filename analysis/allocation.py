"""Compute-optimal size and tokens of a fitted L(N, D), with their exponents and intervals ("approach 3")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Array
from analysis.fit import Fit

SIX = 6.0
"""FLOPs per parameter and token where the table does not count them."""


@dataclass(frozen=True)
class Known:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Optimum:
    """The best size and tokens of one budget.

    extrapolated: whether the budget is outside those of the runs.
    """

    train_flops: float
    params: Known
    tokens: Known
    loss: Known
    extrapolated: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "train_flops": self.train_flops,
            "params": self.params.to_dict(),
            "tokens": self.tokens.to_dict(),
            "loss": self.loss.to_dict(),
            "extrapolated": self.extrapolated,
        }


@dataclass(frozen=True)
class Cost:
    """Training FLOPs as a function of size and tokens, C = kappa N^u D^v.

    u and v are 1 where FLOPs are 6 N D; attention and embeddings, counted, make u another number.
    """

    kappa: float
    u: float
    v: float

    @property
    def formula(self) -> str:
        """In words."""
        if abs(self.u - 1) < 5e-3 and abs(self.v - 1) < 5e-3:
            return f"C = {self.kappa:.3g} N D"
        return f"C = {self.kappa:.3g} N^{self.u:.3f} D^{self.v:.3f}"


def cost_of(params: Array, tokens: Array, train_flops: Array | None) -> Cost:
    """The cost that a table's counted FLOPs follow, by least squares in logarithms; 6 N D without counts.

    Where N and D vary together their powers cannot be told apart; the smallest departure from 1 is taken.
    """
    if train_flops is None or not bool(np.all(np.isfinite(train_flops))):
        return Cost(SIX, 1.0, 1.0)
    n, d = np.log(params), np.log(tokens)
    excess = np.log(train_flops) - n - d
    slopes, *_ = np.linalg.lstsq(
        np.stack([n - n.mean(), d - d.mean()], axis=1), excess - excess.mean(), rcond=1e-6
    )
    u, v = (float(slope) if abs(slope) > 1e-9 else 0.0 for slope in slopes)
    return Cost(float(np.exp(excess.mean() - u * n.mean() - v * d.mean())), 1 + u, 1 + v)


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal N* ~ C^a and D* ~ C^b (Hoffmann et al., arXiv 2203.15556, eq. 4).

    With C = kappa N^u D^v the optimum has alpha A N^-alpha / u = beta B D^-beta / v, so that
    a = beta / (alpha v + beta u); with u = v = 1 it is theirs.

    a, b: exponents of N* and D*; `fixed` where the law sets them and not the data.
    """

    a: Known
    b: Known
    cost: Cost
    optima: tuple[Optimum, ...]
    fixed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "cost": dict(vars(self.cost)),
            "fixed_by_law": self.fixed,
            "optima": [optimum.to_dict() for optimum in self.optima],
        }


def allocation(
    fit: Fit, cost: Cost, budgets: Sequence[float], seen: tuple[float, float]
) -> Allocation | None:
    """Compute-optimal sizes and tokens of a fit, or None where it says nothing of them.

    Args:
        fit: of a law with one term in a size and one in tokens, to one structure.
        cost: FLOPs of a size and tokens.
        budgets: training FLOPs to give optima for.
        seen: lowest and highest budget of the runs.
    """
    places = _places(fit)
    if places is None or fit.spread is None or not fit.identified:
        return None
    spread, phi, bound = fit.spread, fit.optimum.phi, fit.optimum.bound
    size, data, alpha, beta = places
    variables = [next(iter(bound.law.terms[k].powers)) for k in (1, 2)]
    centres = [bound.centres[name] for name in variables]

    def split(at: Array) -> tuple[Array, Array, Array, Array]:
        a, b = at[..., alpha], at[..., beta]
        return at[..., size] + a * centres[0], at[..., data] + b * centres[1], a, b

    def share(at: Array) -> Array:
        _, _, a, b = split(at)
        return np.asarray(b / (a * cost.v + b * cost.u))

    def log_size(at: Array, budget: float) -> Array:
        log_a, log_b, a, b = split(at)
        left = np.log(budget / cost.kappa)
        with np.errstate(invalid="ignore", divide="ignore"):
            lean = np.log(a * cost.v / (b * cost.u)) + log_a - log_b
            return np.asarray((lean + b * left / cost.v) / (a + b * cost.u / cost.v))

    def log_tokens(at: Array, budget: float) -> Array:
        return np.asarray((np.log(budget / cost.kappa) - cost.u * log_size(at, budget)) / cost.v)

    def log_loss(at: Array, budget: float) -> Array:
        log_a, log_b, a, b = split(at)
        log_n = log_size(at, budget)
        log_d = log_tokens(at, budget)
        floor = np.exp(at[..., bound.place("E")]) if _has_floor(fit) else 0.0
        return np.asarray(np.log(floor + np.exp(log_a - a * log_n) + np.exp(log_b - b * log_d)))

    def known(function: Any) -> Known:
        value = float(function(phi))
        low, high = spread.interval(function, phi)
        return Known(value, float(low), float(high))

    def exp(found: Known) -> Known:
        return Known(*(float(np.exp(v)) for v in (found.value, found.low, found.high)))

    optima = tuple(
        Optimum(
            budget,
            exp(known(lambda at, c=budget: log_size(at, c))),
            exp(known(lambda at, c=budget: log_tokens(at, c))),
            exp(known(lambda at, c=budget: log_loss(at, c))),
            not seen[0] * 0.99 <= budget <= seen[1] * 1.01,
        )
        for budget in budgets
    )
    return Allocation(
        known(share),
        known(lambda at: (1 - cost.u * share(at)) / cost.v),
        cost,
        optima,
        fixed=alpha == beta,
    )


def _has_floor(fit: Fit) -> bool:
    return any(column.name == "E" for column in fit.optimum.bound.columns)


def _places(fit: Fit) -> tuple[int, int, int, int] | None:
    """Columns of the two coefficients and exponents; None for laws of another shape."""
    bound = fit.optimum.bound
    terms = bound.law.terms
    if len(terms) != 3 or [list(term.powers) for term in terms[1:]] not in (
        [["params"], ["tokens"]],
        [["params_avg"], ["tokens"]],
    ):
        return None
    if any(column.group for column in bound.columns):
        return None
    try:
        size, data = (bound.place(term.coefficient) for term in terms[1:])
        alpha, beta = (bound.place(next(iter(term.powers.values()))) for term in terms[1:])
    except KeyError:
        return None
    return size, data, alpha, beta
