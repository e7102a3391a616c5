"""Fair timing of alternatives: warmed up, then measured in turn, so that all meet the same disturbances."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

Action = Callable[[], object]


@dataclass
class Timing:
    """What was measured of one alternative."""

    seconds: list[float] = field(default_factory=list)
    """One value a repeat."""

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Fewest seconds."""
        return min(self.seconds)

    @property
    def slowest(self) -> float:
        """Most seconds."""
        return max(self.seconds)


class Seconds(NamedTuple):
    """A moment, or the time between two, by both clocks."""

    wall: float
    processor: float
    """What all threads of this process have computed; time in which others had the cores is not in it."""

    @classmethod
    def now(cls) -> Seconds:
        """The present moment."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Seconds) -> Seconds:
        """The time from `start` to this moment."""
        return Seconds(self.wall - start.wall, self.processor - start.processor)


def wait_for(device: torch.device) -> None:
    """Return when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(action: Action, device: torch.device) -> float:
    """Seconds that one call takes, until the device has finished."""
    wait_for(device)
    start = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - start


def interleaved(
    actions: Mapping[str, Action],
    device: torch.device,
    repeats: int,
    least_seconds: float = 0.0,
    deadline: float | None = None,
    warmup: int = 1,
    on_call: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every action in turn: a round calls each once, so a slow minute of the machine hits all of them.

    Args:
        actions: what to time, by name.
        device: where they run; waited for before and after each call.
        repeats: rounds that are counted.
        least_seconds: more rounds are run until the counted ones took this long (short calls are noisy).
        deadline: time.perf_counter() after which no further round starts, but for the first.
        warmup: rounds before, not counted.
        on_call: told after each call, for a progress display.
    """
    for _ in range(warmup):
        for action in actions.values():
            once(action, device)
            on_call()
    timings = {name: Timing() for name in actions}
    start = time.perf_counter()
    done = 0
    while done < repeats or time.perf_counter() - start < least_seconds:
        if done and deadline is not None and time.perf_counter() > deadline:
            break
        for name, action in actions.items():
            timings[name].seconds.append(once(action, device))
            on_call()
        done += 1
    return timings


def quotients(name: str, upper: Sequence[float], lower: Sequence[float]) -> dict[str, float | None]:
    """Columns NAME, NAME_min and NAME_max: median, least and largest of upper / lower, round by round.

    Round by round: a disturbance that both met drops out.  None each where there is nothing to divide.
    """
    ratios = sorted(divided(upper, lower))
    values = (statistics.median(ratios), ratios[0], ratios[-1]) if ratios else (None, None, None)
    return dict(zip((name, f"{name}_min", f"{name}_max"), values, strict=True))


def divided(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """The quotients upper / lower, round by round; empty where one of them is."""
    return [a / b for a, b in zip(upper, lower, strict=True)] if upper and lower else []


def median_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the median of what `values` are drawn from; none below six values.

    Between two order statistics, so that nothing is assumed of the distribution but independent draws
    (Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2).
    """
    ordered, n = sorted(values), len(values)
    rank, below = 0, 0.5**n
    while below <= 0.025:
        rank += 1
        below += math.comb(n, rank) * 0.5**n
    return (ordered[rank - 1], ordered[n - rank]) if rank else (None, None)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def allow_many_compilations() -> None:
    """Let torch.compile make one program for each structure; by default it gives up after a few, silently."""
    torch._dynamo.config.recompile_limit = 256
