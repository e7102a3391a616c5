"""Structures compared in L(N, D): nested joint fits, tests of the exponents, and effective multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Array
from analysis.compare.multipliers import Multiplier
from analysis.compare.nested import LEVEL, JointFit, NestedTest, joint_fit, nested_test
from analysis.digits import probability
from analysis.engine.sums import SumLaw
from analysis.findings import Finding
from analysis.fit import LEAST_SQUARES, Refusal, fit_law
from analysis.uncertainty import Spread, spread_of

LADDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("one surface for all", ()),
    ("shared E and exponents", ("A", "B")),
    ("own exponents, shared E", ("A", "B", "alpha", "beta")),
    ("own E, shared exponents", ("E", "A", "B")),
    ("all separate", ("E", "A", "B", "alpha", "beta")),
)
"""Joint fits from the one with fewest parameters on: name, what each structure has of its own."""
STEPS = {(0, 1): "", (1, 2): "shared", (3, 4): "separate", (2, 4): ""}
"""Which are tested against which, and under which view of E this is the test of the exponents."""
VIEWS = {"shared": "With one E for all", "separate": "With an E of its own for each"}

Surfaces = Mapping[str, tuple[Array, Array, Array]]
"""Structure -> (params, tokens, losses)."""


@dataclass(frozen=True)
class SurfaceComparison:
    """Nested fits of L(N, D) to several structures.

    models: title and fit.
    steps: titles of the smaller and the larger model, and the test between them.
    effective: how many times the parameters and tokens of a structure the baseline needs, under shared E and
        exponents: (A_0 / A)^(1 / alpha) and (B_0 / B)^(1 / beta), by "params" and "tokens".
    verdict: in words; or why there is no comparison.
    """

    models: tuple[tuple[str, JointFit], ...]
    steps: tuple[tuple[str, str, NestedTest | None], ...]
    effective: dict[str, tuple[Multiplier, ...]]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "models": {title: fit.to_dict() for title, fit in self.models},
            "steps": [
                {"smaller": small, "larger": large, "test": None if test is None else test.to_dict()}
                for small, large, test in self.steps
            ],
            "effective": {name: [m.to_dict() for m in found] for name, found in self.effective.items()},
            "verdict": self.verdict,
        }


def compare_surfaces(law: SumLaw, surfaces: Surfaces, baseline: str, permutations: int) -> SurfaceComparison:
    """Test whether structures share the exponents of L(N, D), under one E and under an E for each.

    Args:
        law: with parameters E, A, B, alpha and beta.
        surfaces: structure -> (params, tokens, losses).
        baseline: structure that the others are held against.
        permutations: samples of the permutation tests; 0 for none.
    """
    if reason := _unfit(law, surfaces):
        return SurfaceComparison((), (), {}, f"In N and D there is no comparison: {reason}.")
    data = {
        "params": np.concatenate([np.asarray(n, np.float64) for n, _, _ in surfaces.values()]),
        "tokens": np.concatenate([np.asarray(d, np.float64) for _, d, _ in surfaces.values()]),
    }
    loss = np.concatenate([np.asarray(y, np.float64) for _, _, y in surfaces.values()])
    names = [name for name, (_, _, y) in surfaces.items() for _ in y]
    models = [(title, joint_fit(law, data, loss, names, free)) for title, free in LADDER]
    steps = []
    for i, j in STEPS:
        wanted = permutations if STEPS[i, j] else 0
        steps.append((models[i][0], models[j][0], nested_test(models[i][1], models[j][1], wanted)))
    views = {view: test for (_, _, test), view in zip(steps, STEPS.values(), strict=True) if view}
    effective = _effective(models[1][1], list(surfaces), baseline)
    return SurfaceComparison(tuple(models), tuple(steps), effective, _verdict(views))


def _unfit(law: SumLaw, surfaces: Surfaces) -> str | None:
    """Why the runs of a structure do not identify the law, or None."""
    for name, (n, d, loss) in surfaces.items():
        fit = fit_law(law, {"params": n, "tokens": d}, loss, name, settings=LEAST_SQUARES)
        if isinstance(fit, Refusal):
            return f"{name}: {fit.reason}"
        design = [finding for finding in fit.findings if _of_design(finding)]
        if design:
            return f"{name}: {design[0].sentence}"
    return None


def _of_design(finding: Finding) -> bool:
    return finding.code == "SL006"


def _effective(fit: JointFit, names: list[str], baseline: str) -> dict[str, tuple[Multiplier, ...]]:
    spread = spread_of(fit.optimum)
    if spread is None or fit.at_bound:
        return {}
    return {
        what: tuple(
            _ratio(fit, spread, name, baseline, coefficient, exponent) for name in names if name != baseline
        )
        for what, coefficient, exponent in (("params", "A", "alpha"), ("tokens", "B", "beta"))
    }


def _ratio(
    fit: JointFit, spread: Spread, name: str, baseline: str, coefficient: str, exponent: str
) -> Multiplier:
    bound, phi = fit.optimum.bound, fit.optimum.phi
    own, other, power = (
        bound.place(coefficient, name),
        bound.place(coefficient, baseline),
        bound.place(exponent),
    )

    def logarithm(at: Array) -> Array:
        return np.asarray((at[..., other] - at[..., own]) / at[..., power])

    edges = spread.interval(logarithm, phi)
    value, low, high = (float(np.exp(v)) for v in (logarithm(phi), *edges))
    return Multiplier(name, baseline, float("nan"), value, low, high)


def _verdict(views: Mapping[str, NestedTest | None]) -> str:
    sentences, rejected = [], set()
    for view, test in views.items():
        if test is None:
            sentences.append(f"{VIEWS[view]} there is no test: no residuals to test with.")
            continue
        rejected.add(test.f_p < LEVEL)
        outcome = "rejected" if test.f_p < LEVEL else "not rejected"
        numbers = f"F({test.constraints}, {test.dof}) = {test.statistic:.2f}, p {probability(test.f_p)}"
        if test.permutation_p is not None:
            numbers += f", permutation p {probability(test.permutation_p)}"
        sentences.append(f"{VIEWS[view]}, equality of alpha and of beta is {outcome} ({numbers}).")
    if len(rejected) > 1:
        sentences.append("The answer depends on the irreducible loss, so the data do not settle it.")
    elif rejected == {False}:
        sentences.append("That equality is not rejected does not show that the exponents are equal.")
    return "In N and D: " + " ".join(sentences)
