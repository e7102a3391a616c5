"""Tests whether structures differ in their exponents, with and without an irreducible loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import gammaincinv, ndtr

from analysis.arrays import Array
from analysis.compare.nested import LEVEL, JointFit, NestedTest, joint_fit, nested_test
from analysis.digits import number, with_error
from analysis.engine.sums import SumLaw
from analysis.errors import AnalysisError
from analysis.fit import distinct
from analysis.laws import IRREDUCIBLE, POWER
from analysis.uncertainty import covariance, t_quantile

POWER_WANTED = 0.80
UNCONFIRMED = "not confirmed where noise may be unequal"
"""Of what a test finds that takes noise to be equal, and one that does not take it so does not find."""
OPEN = 0.2
"""E counts as hardly identified where its standard error is above this share of it (docs/coverage.md)."""

Groups = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class SlopeTest:
    """The test of one exponent for all structures against one for each, by nested least squares on log loss.

    hypothesis: `none` (no irreducible loss), `given` (E subtracted), `shared` (one E, fitted) or `separate`
        (an E for each structure).
    exponents, standard_errors: by structure, under separate exponents; an error holds for E = 0 only where E
        is at that bound (see `error`).
    irreducible, irreducible_se: E in nats per token by structure (one entry, "", where it is shared); its
        error only where it is fitted inside its bounds.
    test: F, likelihood-ratio and permutation test, and the wild bootstrap for unequal noise.
    detectable: the smallest difference between two structures' exponents that would be found with 80 %
        probability at the 5 % level, for the pair of structures where it is largest (see `reach`).
    caution: why the test is to be read with care, or None.
    """

    hypothesis: str
    exponents: dict[str, float]
    standard_errors: dict[str, float]
    common: float
    irreducible: dict[str, float]
    irreducible_se: dict[str, float]
    test: NestedTest
    residual_sd: float
    detectable: float
    caution: str | None

    @property
    def statistic(self) -> float:
        """F."""
        return self.test.statistic

    @property
    def dof(self) -> tuple[int, int]:
        """Degrees of freedom of F."""
        return self.test.constraints, self.test.dof

    @property
    def p_value(self) -> float:
        """Of the F test."""
        return self.test.f_p

    @property
    def rejected(self) -> bool:
        """Whether equality is rejected at the 5 % level."""
        return self.p_value < LEVEL

    @property
    def doubt(self) -> str:
        """What the wild bootstrap says of `rejected` where it decides otherwise, after a comma; or nothing.

        Only of straight lines, for which its level is known (docs/coverage.md).
        """
        wild = self.test.wild_p
        if wild is None or self.hypothesis not in ("none", "given") or (wild < LEVEL) == self.rejected:
            return ""
        if self.rejected:
            return f", {UNCONFIRMED}"
        return ", but is where noise may be unequal"

    @property
    def open(self) -> bool:
        """Whether what is detectable is not known, since a fitted E is at its bound or hardly identified."""
        return self.caution is not None and self.hypothesis in ("shared", "separate")

    @property
    def reach(self) -> float | None:
        """The detectable difference; None where it is not known."""
        return None if self.open else self.detectable

    def error(self, structure: str) -> float | None:
        """Standard error of an exponent; None where it is not known, the structure's E being at its bound."""
        if self.hypothesis in ("shared", "separate") and self.floor(structure) == 0:
            return None
        return self.standard_errors[structure]

    def words(self, structure: str) -> str:
        """An exponent, with its error where that is known, to the digits that the fit supports."""
        value, own = self.exponents[structure], self.standard_errors[structure]
        return number(value, own) if self.error(structure) is None else with_error(value, own)

    def floor(self, structure: str) -> float:
        """The irreducible loss of a structure, nats per token."""
        return self.irreducible.get(structure, self.irreducible.get("", 0.0))

    def to_dict(self) -> dict[str, Any]:
        """JSON form, float64 at full precision."""
        at_bound = [name for name in self.exponents if self.error(name) is None]
        return {
            **vars(self),
            "test": self.test.to_dict(),
            "rejected": self.rejected,
            "errors_for_zero_irreducible_loss_only": at_bound,
            "detectable_is_known": not self.open,
        }


@dataclass(frozen=True)
class NoTest:
    """A test that the data do not allow, and why."""

    hypothesis: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"hypothesis": self.hypothesis, "refused": self.reason}


def usable(groups: Groups) -> dict[str, tuple[Array, Array]]:
    """The structures with enough points for an exponent."""
    return {
        name: (np.asarray(flops, np.float64), np.asarray(loss, np.float64))
        for name, (flops, loss) in groups.items()
        if len(loss) >= 3 and distinct(np.asarray(flops, np.float64)) >= 3
    }


def slope_test(
    groups: Groups, hypothesis: str, irreducible: float = 0.0, permutations: int = 0
) -> SlopeTest | NoTest:
    """Test that all structures share one exponent.

    Under `none` and `given` the law is a line in log(L - E) against log C for each structure; under `shared`
    and `separate` it is E + k C^-alpha in log loss, E being optimised anew under each hypothesis.

    Args:
        groups: structure -> (training FLOPs, losses).
        hypothesis: `none`, `given`, `shared` or `separate`.
        irreducible: the given E.
        permutations: samples of the permutation test.

    Raises:
        AnalysisError: the given E is negative or not below every loss.
    """
    if len(groups) < 2:
        return NoTest(hypothesis, f"{len(groups)} structure with enough points: nothing to compare")
    lowest = min(float(np.min(loss)) for _, loss in groups.values())
    if not 0 <= irreducible < lowest:
        raise AnalysisError(
            f"irreducible loss {irreducible:g}: must lie from 0 to below the lowest loss {lowest:g}; mend it"
        )
    n = sum(len(loss) for _, loss in groups.values())
    law = POWER if hypothesis in ("none", "given") else IRREDUCIBLE
    own = ("E",) if hypothesis == "separate" else ()
    p = 2 * len(groups) + {"none": 0, "given": 0, "shared": 1, "separate": len(groups)}[hypothesis]
    if n <= p:
        return NoTest(hypothesis, f"{n} points leave no degree of freedom beside {p} parameters")
    null = joint(law, groups, (*own, "k"), irreducible)
    full = joint(law, groups, (*own, "k", "alpha"), irreducible)
    test = nested_test(null, full, permutations)
    if test is None:
        return NoTest(hypothesis, "the curves pass through every point: there is no noise to test against")
    return _slope_test(hypothesis, list(groups), irreducible, null, full, test)


def joint(law: SumLaw, groups: Groups, free: tuple[str, ...], floor: float = 0.0) -> JointFit:
    """Fit a law in training FLOPs jointly to structures, `floor` subtracted from their losses."""
    flops = np.concatenate([np.asarray(flops, np.float64) for flops, _ in groups.values()])
    loss = np.concatenate([np.asarray(loss, np.float64) for _, loss in groups.values()])
    names = [name for name, (_, losses) in groups.items() for _ in losses]
    return joint_fit(law, {"train_flops": flops}, loss - floor, names, free)


def _slope_test(
    hypothesis: str, labels: list[str], given: float, null: JointFit, full: JointFit, test: NestedTest
) -> SlopeTest | NoTest:
    bound, phi = full.optimum.bound, full.optimum.phi
    try:
        places = [bound.place("alpha", label) for label in labels]
        common = float(null.optimum.phi[null.optimum.bound.place("alpha")])
    except KeyError:
        return NoTest(hypothesis, "the loss of a structure does not fall: it has no exponent")
    known = covariance(bound, phi, math.inf)
    if known is None:
        return NoTest(hypothesis, "the parameters cannot be told apart")
    matrix = known[0][np.ix_(places, places)]
    errors = np.sqrt(np.diag(matrix))
    g = len(labels)
    pairs = [
        math.sqrt(max(0.0, matrix[i, i] + matrix[j, j] - 2 * matrix[i, j]))
        for i in range(g)
        for j in range(i)
    ]
    floors, floor_errors = _floors(full, known[0])
    return SlopeTest(
        hypothesis=hypothesis,
        exponents={label: float(phi[place]) for label, place in zip(labels, places, strict=True)},
        standard_errors=dict(zip(labels, map(float, errors), strict=True)),
        common=common,
        irreducible=floors or {"": given},
        irreducible_se=floor_errors,
        test=test,
        residual_sd=math.sqrt(full.squares / full.dof),
        detectable=detectable_difference(max(pairs), full.dof),
        caution=_caution(full, null) or _open_floor(floors, floor_errors),
    )


def _floors(full: JointFit, matrix: Array) -> tuple[dict[str, float], dict[str, float]]:
    """E and its standard error, by structure; one that has vanished is 0 and has none."""
    bound, phi = full.optimum.bound, full.optimum.phi
    values, errors = {}, {}
    for column in full.whole.columns:
        if column.name != "E":
            continue
        values[column.group] = 0.0
        if column in bound.columns:
            place = bound.columns.index(column)
            values[column.group] = float(np.exp(phi[place]))
            errors[column.group] = values[column.group] * math.sqrt(matrix[place, place])
    return values, errors


def _open_floor(floors: Mapping[str, float], errors: Mapping[str, float]) -> str | None:
    """A constant inside its bound that may be nearly anything takes up what exponents differ by."""
    loose = [group for group, error in errors.items() if error > OPEN * floors[group]]
    if not loose:
        return None
    which = "E is" if loose == [""] else f"E of {', '.join(loose)} is"
    return f"{which} hardly identified, which makes the test reject too seldom"


def _caution(full: JointFit, null: JointFit) -> str | None:
    def gone(fit: JointFit) -> list[str]:
        return [label for label in fit.optimum.vanished if label.startswith("E")]

    names = gone(full)
    if names == ["E"]:
        return "the shared E is at its bound 0, so the points do not identify it"
    if names:
        which = "it" if len(names) == 1 else "them"
        return f"{', '.join(names)} at the bound 0, so the points do not identify {which}"
    return "E is at a bound where the exponents are shared" if gone(null) else None


def detectable_difference(
    standard_error: float, dof: int, level: float = LEVEL, power: float = POWER_WANTED
) -> float:
    """Return the difference that a two-sided t test at `level` finds with probability `power`.

    The noncentral t distribution is used, not the normal one: with few degrees of freedom they differ much.
    """
    return standard_error * _detectable_in_errors(dof, level, power)


@cache
def _detectable_in_errors(dof: int, level: float, power: float) -> float:
    # Here, since its import takes longer than all others together.
    from scipy.optimize import brentq

    critical = t_quantile(dof, 1 - level)
    # The noncentral t as a mean over quantiles of the noise estimate: scipy's own is NaN for large shifts.
    quantiles = (np.arange(10_000) + 0.5) / 10_000
    noise = np.sqrt(2 * gammaincinv(dof / 2, quantiles) / dof)

    def shortfall(shift: float) -> float:
        found = ndtr(shift - critical * noise) + ndtr(-shift - critical * noise)
        return float(found.mean()) - power

    high = critical + 2.0
    while shortfall(high) < 0:
        high *= 1.5
    return float(brentq(shortfall, 0.0, high, xtol=1e-12))
