"""What one structure saves against another: compute and token multipliers, and losses at equal compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.arrays import Array
from analysis.compare.nested import JointFit, joint_fit
from analysis.engine.sums import SumLaw, Term
from analysis.uncertainty import Spread, spread_of

POINTS = 5

Curves = Mapping[str, tuple[Array, Array]]
"""Structure -> (training FLOPs, tokens or seconds, losses)."""


@dataclass(frozen=True)
class Multiplier:
    """How much more of a resource the baseline needs than a structure, to reach a loss.

    at: the loss in nats per token, or for a gap the resource.
    value: baseline's need over the structure's (above 1 the structure saves), or the structure's loss less
        the baseline's in nats per token.
    low, high: 95 % interval.
    """

    structure: str
    baseline: str
    at: float
    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Multipliers:
    """Multipliers over the losses that both curves reach, and gaps over the budgets that both have.

    variable: `train_flops`, `tokens` or `seconds`.
    law: formula that the curves follow, with one E where it has one.
    note: why there are none, or None.
    """

    variable: str
    law: str
    ratios: tuple[Multiplier, ...]
    gaps: tuple[Multiplier, ...]
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "variable": self.variable,
            "law": self.law,
            "multipliers": [ratio.to_dict() for ratio in self.ratios],
            "gaps": [gap.to_dict() for gap in self.gaps],
            "note": self.note,
        }


def law_in(law: SumLaw, variable: str) -> SumLaw:
    """A law in training FLOPs as one in another variable."""
    terms = tuple(
        Term(term.coefficient, dict.fromkeys([variable], *term.powers.values()) if term.powers else {})
        for term in law.terms
    )
    letter = {"tokens": "D", "params": "N", "seconds": "t"}.get(variable, "C")
    return replace(law, terms=terms, formula=law.formula.replace("C^", f"{letter}^"))


def multipliers(curves: Curves, law: SumLaw, variable: str, baseline: str) -> Multipliers:
    """Hold every structure against a baseline, inside the range of losses and budgets that both have.

    The curves are fitted jointly with one E; intervals are by the delta method with t, or by the bootstrap
    from 30 points on, and carry the joint covariance.

    Args:
        curves: structure -> (values of `variable`, losses).
        law: in training FLOPs, with or without E.
        variable: `train_flops`, `tokens` or `seconds`.
        baseline: one of the structures.
    """
    form = law_in(law, variable)
    others = [name for name in curves if name != baseline]
    values = np.concatenate([np.asarray(x, np.float64) for x, _ in curves.values()])
    loss = np.concatenate([np.asarray(y, np.float64) for _, y in curves.values()])
    names = [name for name, (_, y) in curves.items() for _ in y]
    if not bool(np.all(np.isfinite(values))):
        return Multipliers(variable, form.formula, (), (), f"the table does not give {variable} of every run")
    fit = joint_fit(form, {variable: values}, loss, names, ("k", "alpha"))
    if any(label.startswith("E") for label in fit.optimum.vanished):
        return Multipliers(variable, form.formula, (), (), "E is at its bound 0: the same as without E")
    spread = spread_of(fit.optimum, "auto")
    if spread is None or any(label.startswith("k") for label in fit.optimum.vanished):
        return Multipliers(variable, form.formula, (), (), "the curves leave no error to give intervals by")
    lines = _Lines(fit, spread)
    ratios, gaps, without = [], [], []
    for name in others:
        losses = _overlap(curves[name][1], curves[baseline][1])
        budgets = _overlap(curves[name][0], curves[baseline][0])
        if losses is None:
            without.append(name)
        ratios += [lines.ratio(name, baseline, at) for at in ([] if losses is None else losses)]
        gaps += [lines.gap(name, baseline, variable, at) for at in ([] if budgets is None else budgets)]
    note = f"{', '.join(without)}: reaches no loss that {baseline} reaches" if without else None
    return Multipliers(variable, form.formula, tuple(ratios), tuple(gaps), note)


def _overlap(one: Array, other: Array) -> Array | None:
    low, high = max(float(np.min(one)), float(np.min(other))), min(float(np.max(one)), float(np.max(other)))
    return np.geomspace(low, high, POINTS) if low < high else None


@dataclass(frozen=True)
class _Lines:
    """The joint fit of all curves, and what follows from it."""

    fit: JointFit
    spread: Spread

    def _need(self, phi: Array, group: str, loss: float) -> Array:
        """Log of what a structure needs to reach a loss: (log k - log(L - E)) / alpha, up to the centre."""
        bound = self.fit.optimum.bound
        k, alpha = phi[..., bound.place("k", group)], phi[..., bound.place("alpha", group)]
        floor = np.exp(phi[..., bound.place("E")]) if self._floored else 0.0
        with np.errstate(invalid="ignore"):
            return np.asarray((k - np.log(loss - floor)) / alpha)

    @property
    def _floored(self) -> bool:
        return any(column.name == "E" for column in self.fit.optimum.bound.columns)

    def ratio(self, structure: str, baseline: str, loss: float) -> Multiplier:
        """The multiplier at a loss."""

        def logarithm(phi: Array) -> Array:
            return self._need(phi, baseline, loss) - self._need(phi, structure, loss)

        phi = self.fit.optimum.phi
        low, high = self.spread.interval(logarithm, phi)
        value = float(np.exp(logarithm(phi)))
        return Multiplier(structure, baseline, loss, value, _exp(float(low)), _exp(float(high)))

    def gap(self, structure: str, baseline: str, variable: str, at: float) -> Multiplier:
        """The difference of losses where both have spent the same."""
        optimum = self.fit.optimum
        pair = optimum.bound.at({variable: np.array([at, at])}, [structure, baseline])

        def difference(phi: Array) -> Array:
            z = np.einsum("nkp,...p->...nk", pair.terms, phi) + pair.offset
            loss = np.exp(z).sum(axis=-1)
            return np.asarray(loss[..., 0] - loss[..., 1])

        low, high = self.spread.interval(difference, optimum.phi)
        return Multiplier(structure, baseline, at, float(difference(optimum.phi)), float(low), float(high))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if math.isfinite(value) else value
