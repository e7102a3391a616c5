"""The answer of a report in one sentence: does it scale steeper, under which view of the irreducible loss."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.compare.slopes import Comparison, NoTest, SlopeTest, telling
from analysis.digits import number, probability, with_error
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
    "Exponents are those of held-out loss in training FLOPs. A detectable difference is found with 80 % "
    "probability at the 5 % level."
)


@dataclass(frozen=True)
class Answer:
    """`kind` as in Page.answer, and the sentence."""

    kind: str
    headline: str


def answer(comparison: Comparison, baseline: str) -> Answer:
    """Sum up the tests of equal exponents.

    Args:
        comparison: the tests.
        baseline: the structure that others are held against, usually dense.
    """
    tests = telling(comparison.tests)
    if not tests:
        return Answer("none", NO_SIZES)
    rejected = [test for test in tests if test.rejected]
    steepest = list(dict.fromkeys(_steepest(test) for test in rejected))
    if len(rejected) == len(tests) and len(steepest) == 1:
        every = "under every assumption about the irreducible loss" if len(tests) > 1 else _view(tests[0])
        if steepest[0] == baseline:
            return Answer("no", f"No: {baseline} scales steepest here, {every}.")
        return Answer("yes", f"{steepest[0]} scales steeper than {_others(tests, steepest[0])}, {every}.")
    if rejected:
        found = "; ".join(f"{_view(test)} {_steepest(test)} is steepest" for test in rejected)
        rest = [_view(test) for test in tests if not test.rejected]
        against = f"; {' and '.join(rest)} equal slopes are not rejected" if rest else ""
        return Answer("mixed", f"It hangs on the irreducible loss: {found}{against}.")
    return Answer("open", "Not shown: these runs do not tell the exponents of the structures apart.")


def _view(test: SlopeTest) -> str:
    return VIEWS[test.hypothesis]


def _steepest(test: SlopeTest) -> str:
    return max(test.exponents, key=lambda name: test.exponents[name])


def _others(tests: list[SlopeTest], steepest: str) -> str:
    others = [name for name in tests[0].exponents if name != steepest]
    # Equality of all is rejected, which of more than two others it differs from is not tested.
    return others[0] if len(others) == 1 else f"the flattest of {', '.join(others)}"


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
    return "\n".join(
        f"{name} {with_error(value, test.standard_errors[name])}" for name, value in test.exponents.items()
    )


def _numbers(test: SlopeTest) -> list[str]:
    largest = max(test.exponents.values()) - min(test.exponents.values())
    outcome = f"rejected; steepest: {_steepest(test)}" if test.rejected else "not rejected"
    limit = number(test.detectable, test.detectable)
    return [number(largest, test.detectable), limit, probability(test.p_value).removeprefix("= "), outcome]
