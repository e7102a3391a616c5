"""The curriculum: a run goes through sequence lengths, each until it is learned.  Loads no torch.

A stage trains on sequences of one length.  Every so many steps the held-out loss at that length is measured;
once it is below a threshold the next length begins (arXiv 2402.14746 doubles the noise of its copy tasks so).
The number of sequences in a batch stays, so a step of a short stage costs less; tokens and FLOPs of a run are
those that it spent, a pure function of its configuration and of the steps at which its stages ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from trainer.models.config import Frozen, Positive

if TYPE_CHECKING:
    from trainer.config import RunConfig


class CurriculumConfig(Frozen):
    """Stages by sequence length."""

    lengths: tuple[Positive, ...] = Field(min_length=1)
    """Tokens in a sequence of each stage, rising; the last is model.seq_len."""
    below: float = Field(gt=0)
    """Held-out loss (nats per scored token) at its own length that ends a stage."""
    every: Positive = 50
    """Steps between two measurements."""
    sequences: Positive = 64
    """Held-out sequences of a measurement."""
    length_decay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the learning rate that is lost at full length, in proportion to the length."""
    settle: bool = False
    """At full length the rate is also multiplied by 1 - exp(-held-out loss), of the last measurement."""
    finish_below: float | None = Field(default=None, gt=0)
    """Held-out loss at full length that ends the run; by default it trains all its steps."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if any(b <= a for a, b in zip(self.lengths, self.lengths[1:], strict=False)):
            raise ValueError(f"lengths = {list(self.lengths)} do not rise; give each stage a longer sequence")
        return self

    def rate(self, length: int, last: bool, loss: float | None) -> float:
        """What multiplies the learning rate of a step.

        Args:
            length: tokens in a sequence.
            last: whether this is the last stage.
            loss: the last held-out measurement, where there is one.
        """
        factor = 1 - self.length_decay * length / self.lengths[-1]
        return factor * (1 - math.exp(-loss)) if self.settle and last and loss is not None else factor


@dataclass
class StageState:
    """Where a run is in its curriculum; in every checkpoint."""

    ends: list[int] = field(default_factory=list)
    """Steps at which stages ended, in order."""
    seconds: list[float] = field(default_factory=list)
    """Training time at these steps."""
    losses: list[float] = field(default_factory=list)
    """Held-out loss measured there."""
    measured: int = 0
    """Step of the last measurement."""
    loss: float | None = None
    """Held-out loss of the last measurement of the present stage."""
    accuracy: float | None = None
    """Share of right answers in it, for tasks."""
    finished: bool = False
    """Whether finish_below ended the run."""


def parts(config: RunConfig, steps: int, ends: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """(length, steps) of each stretch of the first `steps` steps of a run whose stages ended at `ends`.

    Without a curriculum one stretch of seq_len.  A plan knows no ends: it counts every step at full length,
    the most that the run can cost.
    """
    if config.curriculum is None or not steps:
        yield config.model.seq_len, steps
        return
    first = 0
    for length, end in zip(config.curriculum.lengths, [*ends, steps], strict=False):
        if min(end, steps) > first:
            yield length, min(end, steps) - first
        first = min(end, steps)


def tokens_of_steps(config: RunConfig, steps: int, ends: Sequence[int] | None = None) -> int:
    """Training tokens of the first `steps` steps; with `ends` None, every step counts at full length."""
    if ends is None:
        return steps * config.optim.batch_tokens
    return sum(length * n * config.batch_sequences for length, n in parts(config, steps, ends))


class Curriculum:
    """The curriculum of one run, moved on by what is measured."""

    def __init__(self, config: RunConfig, state: StageState) -> None:
        assert config.curriculum is not None
        self.config, self.plan, self.state = config, config.curriculum, state

    @property
    def stage(self) -> int:
        """The present stage, from 0."""
        return len(self.state.ends)

    @property
    def last(self) -> bool:
        """Whether it is the last one."""
        return self.stage == len(self.plan.lengths) - 1

    @property
    def length(self) -> int:
        """Tokens in a sequence of the present stage."""
        return self.plan.lengths[self.stage]

    @property
    def rate(self) -> float:
        """What multiplies the learning rate of the next step."""
        return self.plan.rate(self.length, self.last, self.state.loss)

    def due(self, step: int) -> bool:
        """Whether a measurement is to be made behind `step` steps."""
        return step > self.state.measured and step % self.plan.every == 0

    def record(self, step: int, loss: float, accuracy: float | None, seconds: float) -> None:
        """Take a measurement at the present length; the next stage begins where it is good enough."""
        state = self.state
        state.measured, state.loss, state.accuracy = step, loss, accuracy
        if self.last:
            state.finished = self.plan.finish_below is not None and loss < self.plan.finish_below
        elif loss < self.plan.below:
            state.ends.append(step)
            state.seconds.append(seconds)
            state.losses.append(loss)
            # A loss at another length says nothing of this one.
            state.loss = state.accuracy = None


def shortfall(result: Mapping[str, Any]) -> str:
    """What to say of a result whose run did not come to the last length; empty where it did."""
    stages, full = result.get("stages"), result.get("full_length")
    if not stages or full is None or stages[-1]["seq_len"] == full:
        return ""
    return f"came to length {stages[-1]['seq_len']} of {full} only"


def stages_of(config: RunConfig, state: StageState, steps: int, seconds: float) -> list[dict[str, Any]]:
    """What each stage took: length, steps, tokens, seconds and the loss that ended it, for the result."""
    if config.curriculum is None:
        return []
    ends, times = [*state.ends, steps], [*state.seconds, seconds]
    losses: list[float | None] = [*state.losses, state.loss]
    rows, before, since = [], 0, 0.0
    solved = [True] * len(state.ends) + [state.finished]
    for length, end, time, loss, done in zip(
        config.curriculum.lengths, ends, times, losses, solved, strict=False
    ):
        n = end - before
        if n:
            rows.append(
                {
                    "seq_len": length, "steps": n, "tokens": n * length * config.batch_sequences,
                    "seconds": round(time - since, 3), "val_loss": loss, "solved": done,
                }
            )  # fmt: skip
        before, since = end, time
    return rows
