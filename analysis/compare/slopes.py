"""Tests whether structures differ in their exponents, with and without an irreducible loss, and says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import fdtrc, gammaincinv, ndtr

from analysis.arrays import Array
from analysis.compare.nested import JointFit, NestedTest, joint_fit, nested_test
from analysis.digits import number, probability
from analysis.engine.sums import SumLaw
from analysis.errors import AnalysisError
from analysis.fit import distinct
from analysis.laws import IRREDUCIBLE, POWER
from analysis.uncertainty import covariance, t_quantile

LEVEL, POWER_WANTED = 0.05, 0.80
OPEN = 0.2
"""E counts as hardly identified where its standard error is above this share of it (docs/coverage.md)."""

Groups = Mapping[str, tuple[Array, Array]]
SHORT = {
    "none": "without E",
    "given": "with E given",
    "shared": "with one E",
    "separate": "with E for each",
}
HYPOTHESES = {
    "none": "Without an irreducible loss",
    "given": "With a given irreducible loss",
    "shared": "With one fitted irreducible loss shared by all structures",
    "separate": "With an irreducible loss of its own for each structure",
}


@dataclass(frozen=True)
class SlopeTest:
    """The test of one exponent for all structures against one for each, by nested least squares on log loss.

    hypothesis: `none` (no irreducible loss), `given` (E subtracted), `shared` (one E, fitted) or `separate`
        (an E for each structure).
    exponents, standard_errors: by structure, under separate exponents.
    irreducible, irreducible_se: E in nats per token by structure (one entry, "", where it is shared); its
        error only where it is fitted inside its bounds.
    test: F, likelihood-ratio and permutation test.
    detectable: the smallest difference between two structures' exponents that would be found with 80 %
        probability at the 5 % level, for the pair of structures where it is largest.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON form, float64 at full precision."""
        return {**vars(self), "test": self.test.to_dict(), "rejected": self.rejected}


@dataclass(frozen=True)
class NoTest:
    """A test that the data do not allow, and why."""

    hypothesis: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"hypothesis": self.hypothesis, "refused": self.reason}


@dataclass(frozen=True)
class Comparison:
    """All tests of a table, and what they amount to in words."""

    tests: tuple[SlopeTest | NoTest, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"tests": [test.to_dict() for test in self.tests], "verdict": self.verdict}


def usable(groups: Groups) -> dict[str, tuple[Array, Array]]:
    """The structures with enough points for an exponent."""
    return {
        name: (np.asarray(flops, np.float64), np.asarray(loss, np.float64))
        for name, (flops, loss) in groups.items()
        if len(loss) >= 3 and distinct(np.asarray(flops, np.float64)) >= 3
    }


def compare_slopes(
    groups: Groups, design: str | None = None, irreducible: float | None = None, permutations: int = 0
) -> Comparison:
    """Test equality of exponents without E, under a given E if there is one, one shared E, and separate E.

    Args:
        groups: structure -> (training FLOPs, losses), arrays of shape (n,).
        design: the design in words, such as `4 sizes x 1 seed`; the number of runs by default.
        irreducible: a known E in nats per token, such as the entropy rate of a synthetic source.
        permutations: samples of the permutation tests; 0 for none.

    Raises:
        AnalysisError: the given E is negative or not below every loss.
    """
    enough = usable(groups)
    wanted: list[tuple[str, float]] = [("none", 0.0)]
    if irreducible is not None:
        wanted.append(("given", irreducible))
    wanted += [("shared", 0.0), ("separate", 0.0)]
    tests = [slope_test(enough, name, floor, permutations) for name, floor in wanted]
    words = design or f"{sum(len(loss) for _, loss in groups.values())} runs"
    left_out = [
        f"{name} ({len(loss)} run{'s' if len(loss) != 1 else ''}, 3 budgets are needed)"
        for name, (_, loss) in groups.items()
        if name not in enough
    ]
    return Comparison(tuple(tests), verdict(tests, words, left_out))


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


def verdict(tests: list[SlopeTest | NoTest], design: str, left_out: Sequence[str] = ()) -> str:
    """Say in plain words what the tests can and cannot tell.

    Args:
        tests: under each view of the irreducible loss.
        design: in words.
        left_out: structures that could not be compared, each with the reason.
    """
    done = [test for test in tests if isinstance(test, SlopeTest)]
    gone = [f"Left out: {', '.join(left_out)}."] if left_out else []
    if not done:
        return " ".join([f"No test of the exponents: {_reason(tests)}.", *gone])
    sentences = [_sentence(test) for test in tests]
    misfit, holds = _misfit(done), telling(done)
    if misfit is not None:
        sentences.append(misfit)
    if len({test.rejected for test in holds}) > 1:
        sentences.append("The answer depends on the irreducible loss, so the data do not settle it.")
    elif not holds[0].rejected and _steepest(holds[0]) != _steepest(holds[-1]):
        sentences.append(
            f"Which structure is steepest depends on the irreducible loss: {_steepest(holds[0])} "
            f"{SHORT[holds[0].hypothesis]}, {_steepest(holds[-1])} {SHORT[holds[-1].hypothesis]}."
        )
    sentences += [_limits(done, design), *gone]
    if not any(test.rejected for test in holds):
        sentences.append("That equality is not rejected does not show that the slopes are equal.")
    return " ".join(sentences)


def telling(tests: Sequence[SlopeTest | NoTest]) -> list[SlopeTest]:
    """The tests that count: without the one that has no irreducible loss where the curves bend."""
    done = [test for test in tests if isinstance(test, SlopeTest)]
    misfit = _misfit(done)
    return [test for test in done if misfit is None or test.hypothesis != "none"]


def conditional(test: SlopeTest) -> bool:
    """Whether errors, and what is detectable, are not known, since a fitted E is at its bound or open."""
    return test.caution is not None and test.hypothesis in ("shared", "separate")


def _limits(done: Sequence[SlopeTest], design: str) -> str:
    """What differences the design can find, and the largest found, under each view."""
    known = [test for test in done if not conditional(test)]
    parts = [f"{number(test.detectable, test.detectable)} {SHORT[test.hypothesis]}" for test in known]
    found = []
    for test in done:
        values = list(test.exponents.values())
        found.append(number(max(values) - min(values), test.detectable))
    reach = (
        f"{design} can only detect slope differences above {', '.join(parts)} between two structures "
        "(80 % power at the 5 % level); "
        if known
        else f"{design}: "
    )
    open_views = [SHORT[test.hypothesis] for test in done if conditional(test)]
    unknown = f"{' and '.join(open_views)} that is not known; " if open_views else ""
    if open_views and not known:
        unknown = f"what they could detect {' and '.join(open_views)} is not known; "
    return f"{reach}{unknown}the largest found: {', '.join(found)}."


def _misfit(done: Sequence[SlopeTest]) -> str | None:
    """Whether the curves bend so that a law without an irreducible loss does not fit, in words."""
    by_name = {test.hypothesis: test for test in done}
    plain, bent = by_name.get("none"), by_name.get("shared")
    if plain is None or bent is None or not bent.irreducible_se:
        return None
    squares = bent.residual_sd**2 * bent.test.dof
    statistic = (plain.residual_sd**2 * plain.test.dof - squares) / bent.residual_sd**2
    p_value = float(fdtrc(1, bent.test.dof, max(0.0, statistic)))
    if p_value >= LEVEL:
        return None
    return (
        f"The curves bend: without an irreducible loss they do not fit (F(1, {bent.test.dof}) = "
        f"{statistic:.1f}, p {probability(p_value)}), so the first answer counts for little."
    )


def _reason(tests: list[SlopeTest | NoTest]) -> str:
    return next((test.reason for test in tests if isinstance(test, NoTest)), "no runs")


def _steepest(test: SlopeTest) -> str:
    return max(test.exponents, key=lambda name: test.exponents[name])


def _sentence(test: SlopeTest | NoTest) -> str:
    opening = HYPOTHESES[test.hypothesis]
    if isinstance(test, NoTest):
        return f"{opening} there is no test: {test.reason}."
    if test.hypothesis != "none":
        opening += f" ({_floor_words(test)})"
    a, b = test.dof
    outcome = "rejected" if test.rejected else "not rejected"
    numbers = f"F({a}, {b}) = {test.statistic:.2f}, p {probability(test.p_value)}"
    if test.test.permutation_p is not None:
        numbers += f", permutation p {probability(test.test.permutation_p)}"
    text = f"{opening}, equality of slopes is {outcome} ({numbers})"
    if test.rejected:
        text += f"; steepest is {_steepest(test)}"
        text += ", unless the structures differ in E itself" if test.hypothesis in ("given", "shared") else ""
    return f"{text}; {test.caution}." if test.caution else f"{text}."


def _floor_words(test: SlopeTest) -> str:
    parts = []
    for group, value in test.irreducible.items():
        error = test.irreducible_se.get(group)
        words = number(value, error, 3) + (f" ± {number(error, error)}" if error else "")
        parts.append(f"{group} {words}" if group else f"E = {words}")
    return ("" if "" in test.irreducible else "E: ") + ", ".join(parts)
