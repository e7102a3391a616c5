"""What the tests of equal exponents amount to in words, under every view of the irreducible loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import fdtrc

from analysis.compare.nested import LEVEL
from analysis.compare.slopes import Groups, NoTest, SlopeTest, slope_test, usable
from analysis.digits import number, probability

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
class Comparison:
    """All tests of a table, and what they amount to in words."""

    tests: tuple[SlopeTest | NoTest, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"tests": [test.to_dict() for test in self.tests], "verdict": self.verdict}


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


def _limits(done: Sequence[SlopeTest], design: str) -> str:
    """What differences the design can find, and the largest found, under each view."""
    known = [test for test in done if not test.open]
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
    open_views = [SHORT[test.hypothesis] for test in done if test.open]
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
    if test.test.wild_p is not None:
        numbers += f", with unequal noise p {probability(test.test.wild_p)}"
    text = f"{opening}, equality of slopes is {outcome}{test.doubt} ({numbers})"
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
