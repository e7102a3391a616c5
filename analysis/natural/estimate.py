"""What an estimate of gamma in N ~ D^gamma is: its value and interval, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from analysis.digits import estimate
from analysis.fit import Fit, Refusal
from analysis.runs.table import FLOORS

BAND = (0.44, 0.72)
"""Published range of gamma: Kausik, arXiv 2402.14746, v4 to v6 (abstract)."""
CHINCHILLA = 1.0
"""Parameters in proportion to tokens: Hoffmann et al., arXiv 2203.15556."""
KINDS = {
    "agnostic": "reconstructed bound, 1 - 2 beta (agnostic)",
    "realizable": "reconstructed bound, 1 - beta (realizable)",
    "measured": "measured N(D)",
    "law": "compute-optimal N*(D), fitted law",
    "isoflop": "compute-optimal N*(D), IsoFLOP parabolas",
}
"""The estimates in the order of reports. The first two are this project's reconstruction of the paper's bound
from its published numbers, not its theorem."""
EXACT = 1e-7
"""Intervals narrower than this are rounding."""
BOUNDS, DATA = ("agnostic", "realizable"), ("measured", "law", "isoflop")
LIMIT, LARGEST = "limit", "largest"
REFERENCES = {LIMIT: "N without limit", LARGEST: "the largest size"}
"""What the least excess loss at a budget is taken to be: that of endless N, or of the largest size there."""


@dataclass(frozen=True)
class Estimate:
    """One estimate of gamma.

    kind: key of `KINDS`.
    value: None where there is none.
    low, high: 95 % interval; None without one. An end may be infinite.
    method: how value and interval come about.
    reason: why there is no value, or no interval; empty where there are both.
    doubt: what contradicts the law that it rests on, as words that follow its name; empty without.
    meaningless: whether there is no value since it would mean nothing, not since the runs leave it open.
    """

    kind: str
    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    reason: str = ""
    doubt: str = ""
    meaningless: bool = False

    @property
    def known(self) -> bool:
        """Whether there is a value with its interval."""
        return self.value is not None and self.low is not None and self.high is not None

    @property
    def decides(self) -> bool:
        """Whether its interval says anything of the band and of 1.0: it is known and not contradicted."""
        return self.known and not self.doubt

    def interval(self) -> tuple[float, float]:
        """The interval of an estimate that has one."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        low, high = self.interval()
        return low <= value <= high

    def against_band(self) -> str:
        """`inside` or `outside` the published band, or `undecided` where an end of it is in the interval."""
        low, high = self.interval()
        if BAND[0] <= low and high <= BAND[1]:
            return "inside"
        return "outside" if high < BAND[0] or low > BAND[1] else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Floor:
    """The irreducible loss of one curve, nats per token.

    source: `given`, `val_entropy`, `entropy_rate` (known exactly) or `fitted`; empty where none is known.
    low, high: 95 % interval of a fitted one.
    reason: why none is known.
    """

    value: float | None
    source: str = ""
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether it is known and not fitted."""
        return self.source in ("given", *FLOORS)


@dataclass(frozen=True)
class Reach:
    """The smallest size that reaches the wanted loss on one token budget.

    tokens: mean of the budget's runs.
    smallest, largest: sizes trained on it.
    params: where the curve over sizes crosses the wanted excess; None where it does not.
    low, high: its 95 % interval, None without one.
    censored: `below` where the smallest size reaches it already, `above` where no size does, else empty.
    wanted: excess loss that must be reached, nats per token; None where there is no reference.
    reason: why there is no size, in words; empty where there is one.
    """

    tokens: float
    smallest: float
    largest: float
    params: float | None
    low: float | None = None
    high: float | None = None
    censored: str = ""
    wanted: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """The measured gamma under one choice of what is wanted.

    within: share by which the excess loss may exceed the least one.
    reference: key of `REFERENCES`.
    """

    within: float
    reference: str
    estimate: Estimate
    reached: tuple[Reach, ...]

    @property
    def used(self) -> int:
        """Budgets that are neither censored nor without a reference."""
        return sum(one.params is not None for one in self.reached)


@dataclass(frozen=True)
class Group:
    """One curve: the runs of one structure of one table, or of one study.

    label: what reports call it.
    fit: of L = E + A N^-alpha + B D^-beta, with E held where it is known.
    estimates: by the keys of `KINDS`.
    choices: measured gamma under each choice; that of `estimates` among them.
    optimum: N*(D) of the fitted law: (tokens, params) at two points of its line.
    vertices: N*, D* of IsoFLOP parabolas, shape (k, 2) as (tokens, params).
    tokens, params: least and greatest of the runs.
    against: what contradicts the law, a clause each; the estimates that rest on it carry a `doubt`.
    """

    label: str
    runs: int
    sizes: int
    budgets: int
    floor: Floor
    fit: Fit | Refusal
    estimates: dict[str, Estimate]
    choices: tuple[Choice, ...]
    tokens: tuple[float, float]
    params: tuple[float, float]
    optimum: tuple[tuple[float, float], ...] = ()
    vertices: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()
    against: tuple[str, ...] = ()

    @property
    def anything(self) -> bool:
        """Whether any estimate has a value with an interval."""
        return any(one.known for one in self.estimates.values())

    def chosen(self, within: float, reference: str) -> Choice | None:
        """What was found under one choice."""
        return next((c for c in self.choices if c.within == within and c.reference == reference), None)


@dataclass(frozen=True)
class Natural:
    """The natural law of several curves.

    name: of the table, or of all joined.
    within, reference: the choice that the measured estimates were made under.
    coverage: how complete the tables are, in words.
    """

    name: str
    groups: tuple[Group, ...]
    within: float
    reference: str
    coverage: str
    notes: tuple[str, ...] = field(default=())


def share_words(within: float) -> str:
    """A share as percent: `25 %`."""
    return f"{100 * within:g} %"


def ends(value: float, low: float, high: float) -> tuple[float, float, float]:
    """The three numbers as floats, an interval's ends in order."""
    return float(value), float(min(low, high)), float(max(low, high))


def digits_of(value: float, low: float, high: float) -> tuple[str, str]:
    """A value and its interval with the digits that the interval supports; six where it is but rounding."""
    if high - low < EXACT * max(1.0, abs(value)):
        return f"{value:.6g}", f"[{low:.6g}, {high:.6g}]"
    return estimate(value, low, high)
