"""One searched dimension: the values it can have, as a grid or as a range of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sweeps.errors import SweepError
from sweeps.search.studyfile import LONGEST_GRID, Range, significant

WHOLE = frozenset({"d_model", "n_layers", "d_ff", "rank", "n_blocks", "batch_tokens"})
"""Short keys whose values are whole numbers."""
CONTINUOUS = frozenset({"peak_lr", "tokens_per_param"})
"""Short keys that may be ranges without a step."""


@dataclass(frozen=True)
class Dimension:
    """A key of a space and its values."""

    name: str
    """The key."""
    values: tuple[float, ...] | None
    """Ascending, of a grid; None for a range of numbers."""
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether a range is sampled in its logarithm, and nearness is one of ratios."""

    @property
    def step(self) -> int | None:
        """Distance of neighbours of a grid of evenly spaced whole numbers; None of any other dimension."""
        if self.values is None or not all(float(value).is_integer() for value in self.values):
            return None
        steps = {round(b - a) for a, b in pairwise(self.values)}
        return steps.pop() if len(steps) == 1 else None

    def nearest(self, value: float) -> float:
        """The value that can be had next to one that was asked for."""
        if self.values is None:
            return min(max(significant(value), self.low), self.high)
        return min(self.values, key=lambda one: abs(self.place(one) - self.place(value)))

    def place(self, value: float) -> float:
        """Where a value stands between the ends, 0 to 1: by rank on a grid, else by number or logarithm."""
        if self.values is not None:
            return _rank(self.values, value) / max(1, len(self.values) - 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _rank(values: Sequence[float], value: float) -> float:
    """The rank of a value among ascending ones; between two of them, or beyond the ends, in proportion."""
    if value <= values[0] or len(values) == 1:
        return 0.0 if value >= values[0] else -(values[0] - value) / max(abs(values[0]), 1e-12)
    for i, (a, b) in enumerate(pairwise(values)):
        if value <= b:
            return i + (value - a) / (b - a)
    return len(values) - 1 + (value - values[-1]) / max(abs(values[-1]), 1e-12)


def dimension(name: str, given: tuple[float, ...] | Range, source: str) -> Dimension:
    """The dimension of an entry of a space; SweepError where it has no values."""
    whole = name in WHOLE
    place = f"{source}: space.{name}"
    if isinstance(given, Range):
        found = _of_range(name, given, whole, place)
    else:
        values = tuple(int(v) if whole and float(v).is_integer() else v for v in given)
        found = Dimension(name, values, values[0], values[-1])
    if found.low <= 0 and (name in WHOLE or name in CONTINUOUS or name.endswith("_ratio")):
        raise SweepError(f"{place}: {found.low:g} is not positive")
    if whole and found.values is not None and not all(float(v).is_integer() for v in found.values):
        raise SweepError(f"{place}: whole numbers are wanted")
    return found


def _of_range(name: str, given: Range, whole: bool, place: str) -> Dimension:
    low, high, step = given.low, given.high, given.step
    if whole and not all(float(one).is_integer() for one in (low, high, step or 1.0)):
        raise SweepError(f"{place}: whole numbers are wanted")
    if whole and given.count is None and step is None and not given.log:
        step = 1.0
    if step is None and given.count is None:
        if whole or (name not in CONTINUOUS and "." not in name):
            raise SweepError(f"{place}: a range of whole numbers or of ratios needs step or count")
        return Dimension(name, None, low, high, given.log)
    if step is not None:
        many = math.floor((high - low) / step + 1e-9) + 1
        values = [low + i * step for i in range(min(many, LONGEST_GRID + 1))]
    else:
        assert given.count is not None
        shares = [i / (given.count - 1) for i in range(given.count)]
        values = [low * (high / low) ** s if given.log else low + s * (high - low) for s in shares]
    if len(values) > LONGEST_GRID:
        raise SweepError(f"{place}: more than {LONGEST_GRID} values; take a larger step")
    kept = sorted({round(v) if whole else significant(v) for v in values})
    if len(kept) < 2:
        raise SweepError(f"{place}: nothing to search; only {kept[0]:g} lies in the range")
    return Dimension(name, tuple(kept), kept[0], kept[-1], given.log)
