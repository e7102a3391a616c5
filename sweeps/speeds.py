"""How fast a run will be, from the speeds of finished runs of the same or another shape.

Time per token is taken as a sum of non-negative parts (arithmetic, vocabulary, and what each step costs
however few tokens it has), fitted to the shapes that were measured; what the nearest of them differ from it
is added.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from statistics import median
from typing import Any

LEAST_SECONDS = 2.0
"""Shorter runs measure the first steps, not the speed."""
REACH = math.log(2)
"""How far, in log FLOPs per token, a measurement speaks for its neighbours."""
CROWDED = 1.25
"""Threads at work over those there is room for, above which a run was slowed by others."""
LEAST_SHAPES = 6
"""Fewer do not determine the parts."""
CROWDED_AWAY, CLOSEST, STEEPNESS, FITTED_SHAPES = 0.1, 0.05, 3.0, 1.0
"""Weight of a measurement: 1 / (distance + CLOSEST)^STEEPNESS, beside FITTED_SHAPES of the fit itself."""


@dataclass(frozen=True)
class Shape:
    """What of a run its speed is taken to depend on, on one machine and at one precision."""

    kind: str
    """Structure family."""
    flops: float
    """FLOPs per token of the model, without guidance."""
    batch: float
    """Tokens of one step."""
    params: float
    """All parameters."""
    layers: float
    """Layers."""
    vocabulary: float
    """Embedding parameters for each d_model."""

    def distance(self, other: Shape) -> float:
        """Between 0, for runs that should be equally fast, and some units; a factor e in FLOPs is one."""
        logs = (
            abs(math.log(self.flops / other.flops)),
            abs(math.log(self.batch / other.batch)),
            abs(math.log(self.params / other.params)) / 2,
            abs(math.log(self.layers / other.layers)) / 2,
        )
        return sum(logs) + (self.kind != other.kind)

    def parts(self, flops: float) -> tuple[float, ...]:
        """What a token takes time for: arithmetic, vocabulary, and the operations and update of a step."""
        return (flops, self.vocabulary, self.layers / self.batch, self.params / self.batch)


@dataclass(frozen=True)
class Measured:
    """One finished run."""

    shape: Shape
    """Its shape."""
    flops: float
    """FLOPs per token with guidance."""
    rate: float
    """FLOP/s."""
    calm: bool
    """Whether no more ran beside it than the machine has room for."""


@dataclass(frozen=True)
class _Group:
    """The runs of one shape."""

    shape: Shape
    flops: float
    log_rate: float
    calm: bool


class Speeds:
    """Speeds of one machine at one precision.

    Args:
        runs: finished runs.
        guess: FLOP/s from FLOPs per token, where too few shapes are known.
    """

    def __init__(self, runs: Iterable[Measured], guess: Callable[[float], float]) -> None:
        shapes: dict[Shape, list[Measured]] = defaultdict(list)
        for run in runs:
            shapes[run.shape].append(run)
        self._groups = [_group(shape, found) for shape, found in shapes.items()]
        self._guess = guess
        calm = [group for group in self._groups if group.calm]
        fitted = calm if len(calm) >= LEAST_SHAPES else self._groups
        self._costs = _fit(fitted) if len(fitted) >= LEAST_SHAPES else None

    def at(self, shape: Shape) -> tuple[float, bool]:
        """FLOP/s of an unguided run, and whether its FLOPs are near enough to measured ones to call it so."""
        same = [group for group in self._groups if group.shape.kind == shape.kind] or self._groups
        if not same:
            return self._guess(shape.flops), False
        logs = [math.log(group.shape.flops) for group in same]
        near = min(logs) - REACH <= math.log(shape.flops) <= max(logs) + REACH
        weights, sums = (FITTED_SHAPES if self._costs is not None else 0.0), 0.0
        for group in self._groups:
            if group.calm and group.shape == shape:
                return math.exp(group.log_rate), near
            away = shape.distance(group.shape) + (0.0 if group.calm else CROWDED_AWAY)
            weight = (away + CLOSEST) ** -STEEPNESS
            weights += weight
            sums += weight * (group.log_rate - math.log(self._base(group.shape, group.flops)))
        return self._base(shape, shape.flops) * math.exp(sums / weights), near

    def _base(self, shape: Shape, flops: float) -> float:
        if self._costs is None:
            return self._guess(shape.flops)
        seconds = sum(cost * part for cost, part in zip(self._costs, shape.parts(flops), strict=True))
        return flops / seconds if seconds > 0 else self._guess(shape.flops)


def measured(results: Iterable[Mapping[str, Any]], room: int | None) -> list[tuple[Any, str, Measured]]:
    """Threads, precision and speed of each finished run that tells one, of those of one machine.

    Args:
        results: result.json of finished runs.
        room: CPU threads that may work at a time; None where runs are not known to have shared a machine.
    """
    kept = list(results)
    beside = _beside(kept) if room is not None else [0.0] * len(kept)
    found = []
    for result, others in zip(kept, beside, strict=True):
        try:
            if float(result["seconds"]) < LEAST_SECONDS:
                continue
            # A guided run does more for a token than its model alone.
            flops = float(result["train_flops"]) / float(result["tokens"])
            rate = flops * float(result["tokens_per_second"])
            numbers = {
                "flops": float(result["flops_per_token"]),
                "batch": float(result["batch_tokens"]),
                "params": float(result["params"]),
                "layers": float(result["n_layers"]),
                "vocabulary": float(result["params_embedding"]) / float(result["d_model"]),
            }
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        if all(math.isfinite(value) and value > 0 for value in (rate, flops, *numbers.values())):
            shape = Shape(str(result.get("structure_kind")), **numbers)
            calm = room is None or _threads(result) + others <= CROWDED * room
            found.append(
                (result.get("threads"), str(result.get("precision")), Measured(shape, flops, rate, calm))
            )
    return found


def _beside(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Threads of other runs at work, on average over each run; 0 where it is not known when a run was."""
    spans = [_span(result) for result in results]
    changes = sorted(
        change
        for span, result in zip(spans, results, strict=True)
        if span is not None
        for change in ((span[0], _threads(result)), (span[1], -_threads(result)))
    )
    times = [time for time, _ in changes]
    at_work = list(accumulate(change for _, change in changes))
    steps = [n * (end - begin) for n, begin, end in zip(at_work, times, times[1:], strict=False)]
    done = list(accumulate(steps, initial=0.0))

    def until(time: float) -> float:
        place = bisect_right(times, time) - 1
        return done[place] + at_work[place] * (time - times[place])

    return [
        0.0 if span is None else (until(span[1]) - until(span[0])) / (span[1] - span[0]) - _threads(result)
        for span, result in zip(spans, results, strict=True)
    ]


def _span(result: Mapping[str, Any]) -> tuple[float, float] | None:
    try:
        end = datetime.fromisoformat(str(result["finished"])).timestamp()
        seconds = float(result["seconds"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (end - seconds, end) if seconds > 0 and math.isfinite(seconds) else None


def _threads(result: Mapping[str, Any]) -> int:
    threads = result.get("threads")
    return threads if isinstance(threads, int) and threads > 0 else 1


def _group(shape: Shape, runs: Sequence[Measured]) -> _Group:
    calm = [run for run in runs if run.calm]
    counted = calm or runs
    rate = median(math.log(run.rate) for run in counted)
    return _Group(shape, median(run.flops for run in counted), rate, bool(calm))


def _fit(groups: Sequence[_Group]) -> tuple[float, ...]:
    """Seconds of each part for a token: least squares of relative errors, none negative."""
    rows = []
    for group in groups:
        seconds = group.flops / math.exp(group.log_rate)
        rows.append([part / seconds for part in group.shape.parts(group.flops)])
    n = len(rows[0])
    products = [[sum(row[i] * row[j] for row in rows) for j in range(n)] for i in range(n)]
    ones = [sum(row[i] for row in rows) for i in range(n)]
    costs = [0.0] * n
    for _ in range(300):
        for i in range(n):
            rest = sum(products[i][j] * costs[j] for j in range(n) if j != i)
            costs[i] = max(0.0, (ones[i] - rest) / products[i][i])
    return tuple(costs)
