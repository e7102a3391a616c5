"""The answer of a report in one sentence: does it scale steeper, under which view of the irreducible loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtrit

from analysis.compare.nested import LEVEL
from analysis.compare.slopes import NoTest, SlopeTest
from analysis.compare.verdict import Comparison, telling
from analysis.digits import number, p_cell
from analysis.page.content import Cell, PageTable

VIEWS = {
    "none": "without an irreducible loss",
    "given": "with the known irreducible loss",
    "shared": "with one irreducible loss for all",
    "separate": "with an irreducible loss for each structure",
}
NO_SIZES = (
    "Nothing can be said about exponents: a law needs three training budgets of at least two structures."
)
HEADER = (
    "Irreducible loss", "Exponents", "Largest difference", "Detectable", "p of equality", "Equality",
)  # fmt: skip
NOTE = (
    "Exponents are those of held-out loss in training FLOPs, ± standard error of the joint fit, whose noise "
    "is pooled over structures. A detectable difference is found with 80 % probability at the 5 % level. "
    "Where E is at its bound 0, neither errors nor what is detectable are known. p takes noise to be equal "
    "for all runs; where a wild bootstrap, which does not, decides otherwise, that is said."
)


@dataclass(frozen=True)
class Answer:
    """`kind` as in Page.answer, and the sentence."""

    kind: str
    headline: str


def answer(comparison: Comparison, baseline: str) -> Answer:
    """Sum up the tests: which structures differ from the baseline, and under which views.

    A structure counts as steeper, or flatter, where equality of all is rejected and its own difference to the
    baseline is larger than chance allows at the 5 % level, Bonferroni's correction for several structures
    included: that equality of all is rejected does not say which of them differs. Under a view in which the
    errors are not known, E being at its bound 0, none of several counts. What rests on noise being equal is
    said to.

    Args:
        comparison: the tests.
        baseline: the structure that others are held against, usually dense.
    """
    tests = telling(comparison.tests)
    if not tests:
        reasons = [test.reason for test in comparison.tests if isinstance(test, NoTest)]
        few = not reasons or "enough points" in reasons[0]
        return Answer("none", NO_SIZES if few else f"Nothing can be said about exponents: {reasons[0]}.")
    views = [VIEWS[test.hypothesis] for test in tests]
    every = "under every assumption about the irreducible loss" if len(tests) > 1 else views[0]
    steeper = [_apart(test, baseline, +1) for test in tests]
    flatter = [_apart(test, baseline, -1) for test in tests]
    if always := _in_all(steeper):
        return _noted(Answer("yes", f"{_names(always)} steeper than {baseline}, {every}."), tests)
    if any(steeper):
        found = [f"{_names(who)} steeper {view}" for view, who in zip(views, steeper, strict=True) if who]
        silent = [view for view, test in zip(views, tests, strict=True) if _silent(test)]
        others = zip(views, steeper, strict=True)
        rest = [view for view, who in others if not who and view not in silent]
        but = f"; not {' nor '.join(rest)}" if rest else ""
        but += f"; {' and '.join(silent)} not known, for E is at its bound 0" if silent else ""
        return _noted(Answer("mixed", f"It hangs on the irreducible loss: {'; '.join(found)}{but}."), tests)
    if always := _in_all(flatter):
        return _noted(Answer("no", f"No: {_names(always)} flatter than {baseline}, {every}."), tests)
    return Answer("open", f"Not shown: these runs do not tell the exponents apart. {_sign(tests, baseline)}")


def _noted(found: Answer, tests: list[SlopeTest]) -> Answer:
    """The answer, hung on equal noise where a rejection is not confirmed without it."""
    if not any(test.rejected and test.doubt for test in tests):
        return found
    words = " This takes noise to be equal for all runs; a test that does not take it so does not confirm it."
    return Answer("mixed", f"{found.headline}{words}")


def _silent(test: SlopeTest) -> bool:
    """Whether a view rejects equality, but cannot say of whom, since no errors are known."""
    return test.rejected and len(test.exponents) > 2 and all(test.error(x) is None for x in test.exponents)


def _apart(test: SlopeTest, baseline: str, sign: int) -> list[str]:
    """The structures that are steeper (sign +1) or flatter (-1) than the baseline, beyond chance."""
    if not test.rejected or baseline not in test.exponents:
        return []
    others = [name for name in test.exponents if name != baseline]
    if len(others) == 1:
        # Of two the test of equality says it all, whether errors are known or not.
        return [name for name in others if sign * (test.exponents[name] - test.exponents[baseline]) > 0]
    quantile = float(stdtrit(test.test.dof, 1 - LEVEL / (2 * len(others))))
    base, error = test.exponents[baseline], test.error(baseline)
    if error is None:
        return []
    # With one E for all the errors go together, and their sum of squares is too large rather than too small.
    return [
        name
        for name in others
        if (own := test.error(name)) is not None
        and sign * (test.exponents[name] - base) > quantile * math.hypot(error, own)
    ]


def _in_all(found: list[list[str]]) -> list[str]:
    return [name for name in found[0] if all(name in names for names in found)]


def _names(names: list[str]) -> str:
    return f"{' and '.join(names)} {'scales' if len(names) == 1 else 'scale'}"


def _sign(tests: list[SlopeTest], baseline: str) -> str:
    """Where the estimates point, so that no reader takes them for the opposite."""
    steepest = list(dict.fromkeys(_steepest(test) for test in tests))
    if steepest == [baseline]:
        return f"As estimated, {baseline} is the steepest."
    return (
        f"As estimated, the steepest is {' or '.join(steepest)}{'' if len(steepest) == 1 else ', by view'}."
    )


def _steepest(test: SlopeTest) -> str:
    return max(test.exponents, key=lambda name: test.exponents[name])


def hypotheses(comparison: Comparison) -> PageTable | None:
    """The tests as a table; None where there is none."""
    if not telling(comparison.tests):
        return None
    rows = []
    for test in comparison.tests:
        view = VIEWS[test.hypothesis].removeprefix("with ").removeprefix("an ")
        if isinstance(test, NoTest):
            cells = [view, f"no test: {test.reason}", "-", "-", "-", "-"]
        else:
            cells = [view, _exponents(test), *_numbers(test)]
        rows.append(tuple(Cell(text) for text in cells))
    return PageTable("Equality of exponents under each view", HEADER, tuple(rows), (NOTE,))


def _exponents(test: SlopeTest) -> str:
    return "\n".join(f"{name} {test.words(name)}" for name in test.exponents)


def _numbers(test: SlopeTest) -> list[str]:
    largest = max(test.exponents.values()) - min(test.exponents.values())
    outcome = f"{'rejected' if test.rejected else 'not rejected'}{test.doubt}"
    outcome += f"; steepest: {_steepest(test)}" if test.rejected else ""
    limit = "-" if test.reach is None else number(test.reach, test.reach)
    return [number(largest, test.detectable), limit, p_cell(test.p_value), outcome]
