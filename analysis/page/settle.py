"""What would settle the question: seeds or runs to add until the difference found is detectable; the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.compare.slopes import SlopeTest
from analysis.compare.verdict import Comparison, telling
from analysis.design.additions import Additions, Goal, cheapest
from analysis.design.planned import assume, grid_of
from analysis.design.precision import Assumed, Grid, Impossible, design, usable
from analysis.digits import number, quantity
from analysis.laws import IRREDUCIBLE, POWER
from analysis.page.answer import VIEWS
from analysis.page.content import Cell, PageTable, Settle
from analysis.runs.table import Runs

MOST_SEEDS, MOST_RUNS = 64, 20
HEADER = ("Irreducible loss", "Way", "Runs to add", "FLOPs to add", "Time to add", "Detectable then")
UNEQUAL = (
    "Without an irreducible loss the exponents differ if noise is equal for all runs; more seeds at every "
    "size would tell whether it is, and confirm the difference or not."
)
EQUAL = "If the exponents are equal, no number of runs shows it: more only lower the bound on the difference."


@dataclass(frozen=True)
class Way:
    """One way to make a difference detectable.

    runs, flops: to add; None where no number of at most `MOST_SEEDS` seeds, or `MOST_RUNS` runs, suffices.
    then: detectable difference with them.
    """

    hypothesis: str
    words: str
    runs: int | None
    flops: float | None
    then: float | None


def settle(kind: str, comparison: Comparison, runs: Runs) -> Settle:
    """Say what it would take to find a difference as large as the one that these runs show.

    Args:
        kind: of the answer, as in Page.answer.
        comparison: the tests.
        runs: the table.
    """
    tests = telling(comparison.tests)
    if not tests:
        return Settle(
            (
                "Three or more training budgets for each of two structures or more: 'python -m sweeps plan "
                "SWEEP --power' says beforehand what a sweep will be able to tell.",
            )
        )
    flops = runs.table["train_flops"].to_numpy(np.float64)
    reach = f"from {quantity(float(flops.min()))} to {quantity(float(flops.max()))} training FLOPs"
    if kind in ("yes", "no"):
        return Settle(
            (
                f"Settled at the 5 % level for networks like these, {reach}. Whether it goes on beyond is "
                "extrapolation, which no test here covers: larger sizes would show it.",
            )
        )
    ways = [way for test in tests for way in _ways(test, runs)]
    words = [_first(test) for test in tests if not test.rejected]
    if any(test.rejected and test.doubt for test in tests):
        words.append(UNEQUAL)
    if not ways and any(not test.rejected for test in tests):
        words.append("No way of spending more could be worked out: the runs do not identify the laws.")
    return Settle((*words, EQUAL), _options(ways, runs) if ways else None)


def _first(test: SlopeTest) -> str:
    found, limit = _difference(test), test.detectable
    if test.open:
        view = VIEWS[test.hypothesis].capitalize()
        return f"{view}: {test.caution}; so what these runs could detect is not known."
    below = "below" if found < limit else "above"
    return (
        f"{VIEWS[test.hypothesis].capitalize()}, the largest difference found is "
        f"{number(found, limit)}, {below} the {number(limit, limit)} that these runs detect reliably."
    )


def _difference(test: SlopeTest) -> float:
    return max(test.exponents.values()) - min(test.exponents.values())


def _ways(test: SlopeTest, runs: Runs) -> list[Way]:
    """More seeds of the same runs, and the cheapest runs to add, for one view; none where it is rejected."""
    if test.rejected:
        return []
    if test.open:
        # A price would rest on an E from the literature in place of these runs.
        return [Way(test.hypothesis, "no price: these runs do not identify E", None, None, None)]
    law = POWER if test.hypothesis in ("none", "given") else IRREDUCIBLE
    table = runs.table[runs.table["structure"].isin(list(test.exponents))]
    whole = grid_of(table)
    able = usable(law, whole)
    if len(able) < 2:
        return []
    grid = whole.of(*able)
    losses = table["val_loss"].to_numpy(np.float64)[np.isin(np.array(whole.groups), able)]
    # The noise about the joint fit: that of this view's own test.
    assumed = assume(law, grid, losses, {}, (test.residual_sd, "residuals of the test"))
    ways = [_seeds(test, assumed, grid)]
    if test.hypothesis != "separate":
        found = cheapest(assumed, grid, Goal("alpha", _difference(test), True), MOST_RUNS)
        ways.append(_added(test, found))
    return ways


def _seeds(test: SlopeTest, assumed: Assumed, grid: Grid) -> Way:
    """The fewest seeds of every run that make the difference detectable."""
    view = "none" if test.hypothesis == "given" else test.hypothesis
    wanted = _difference(test)

    def detectable(seeds: int) -> float:
        many = grid
        for _ in range(seeds - 1):
            many = many.plus(grid)
        found = design(assumed, many).differences[view]
        return math.inf if isinstance(found, Impossible) else max(one.detectable for one in found)

    low, high = 1, 2
    while high <= MOST_SEEDS and detectable(high) > wanted:
        low, high = high, 2 * high
    if high > MOST_SEEDS:
        return Way(test.hypothesis, f"more than {MOST_SEEDS} seeds of every run", None, None, None)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if detectable(middle) > wanted else (low, middle)
    flops = (high - 1) * float(np.sum(grid.data["train_flops"]))
    return Way(test.hypothesis, f"{high} seeds of every run", (high - 1) * grid.n, flops, detectable(high))


def _added(test: SlopeTest, found: Additions | Impossible) -> Way:
    if isinstance(found, Impossible):
        return Way(test.hypothesis, f"chosen runs: {found.reason}", None, None, None)
    kinds = [f"{pick.kind} ({pick.group})" for pick in found.picks]
    counted = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    if not found.reached:
        return Way(test.hypothesis, f"more than {MOST_RUNS} chosen runs", None, None, None)
    words = f"cheapest runs to add: {', '.join(counted)}"
    return Way(test.hypothesis, words, len(found.picks), found.spent, found.after)


def _options(ways: list[Way], runs: Runs) -> PageTable:
    rate = flops_per_second(runs)
    rows = []
    for way in ways:
        seconds = None if way.flops is None or rate is None else way.flops / rate
        rows.append(
            (
                Cell(VIEWS[way.hypothesis].removeprefix("with ")),
                Cell(way.words),
                Cell("-" if way.runs is None else str(way.runs), way.runs),
                Cell("-" if way.flops is None else quantity(way.flops), way.flops),
                Cell("-" if seconds is None else duration(seconds), seconds),
                Cell("-" if way.then is None else number(way.then, way.then), way.then),
            )
        )
    notes = [
        "If the difference found is real, these make its detection 80 % probable at the 5 % level. It is "
        "uncertain itself, and sizes outside those of the runs are taken to follow the same law: this is a "
        "guide and no promise."
    ]
    if rate is not None:
        notes.append("Time: one run after the other, at the speed of this sweep's own runs.")
    return PageTable("Ways to find a difference as large as the one seen", HEADER, tuple(rows), tuple(notes))


def flops_per_second(runs: Runs) -> float | None:
    """Median speed of the runs, training FLOPs a second; None where their seconds are not recorded."""
    if "seconds" not in runs.table:
        return None
    seconds = runs.table["seconds"].to_numpy(np.float64)
    known = np.isfinite(seconds) & (seconds > 0)
    if not known.any():
        return None
    return float(np.median(runs.table["train_flops"].to_numpy(np.float64)[known] / seconds[known]))


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 min`, `3.4 h`, `5.1 days`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
