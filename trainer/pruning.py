"""Gradual pruning: how many weights of a network are gone at each step.  Loads neither torch nor numpy.

While a run trains, its smallest weights are removed, some every few steps, until a share of them is gone
(Zhu and Gupta 1710.01878).  Counts are whole numbers and a pure function of the step, so that the parameters
that a run had on average (Jin et al. 2501.12486) are known before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.models.config import Frozen, Positive


class PruneConfig(Frozen):
    """Magnitude pruning while a run trains.

    Of the matrices of attention and FFNs, or of their factors; embeddings, biases and gains stay whole.
    """

    sparsity: float = Field(ge=0, lt=1)
    """Share of these weights that is gone at the end; 0 is a run without pruning."""
    start: float = Field(default=0.25, ge=0, le=1)
    """Share of the steps before the first weight goes."""
    stop: float = Field(default=0.75, ge=0, le=1)
    """Share of the steps behind which all have gone that are to go."""
    every: Positive = 10
    """Steps between two prunings, the last of which is at `stop`."""
    schedule: Literal["linear", "cubic"] = "linear"
    """How the share rises: evenly, so that a run's average is the mean of its first and its last size, or as
    1 - (1 - x)^3, fast at first."""
    scope: Literal["global", "layer"] = "global"
    """Magnitudes are ranked over all matrices together, or the same share goes from each matrix."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"start = {self.start:g} is not before stop = {self.stop:g}; give a later stop")
        return self

    @property
    def label(self) -> str:
        """As tables call it: `pruned 75%`."""
        return f"pruned {float(100 * exact(self.sparsity)):.15g}%"


def exact(share: float) -> Fraction:
    """A share as it is written, in decimals: 0.29 of 100 is 29, which its nearest double is not."""
    return Fraction(repr(share))


def first_and_last(prune: PruneConfig, steps: int) -> tuple[int, int]:
    """Updates done when the schedule leaves zero, and when it has come to its end, of a run of `steps`."""
    return int(exact(prune.start) * steps), int(exact(prune.stop) * steps)


def last_pruning(prune: PruneConfig, steps: int, done: int) -> int:
    """Updates done at the newest pruning, `done` updates into a run; up to the start, that of the start."""
    first, last = first_and_last(prune, steps)
    if done >= last:
        return last
    return first + max(0, done - first) // prune.every * prune.every


def prunes_at(prune: PruneConfig, steps: int, done: int) -> bool:
    """Whether weights are removed once `done` updates are done."""
    first, _ = first_and_last(prune, steps)
    return done > first and last_pruning(prune, steps, done) == done


def removed(prune: PruneConfig, steps: int, weights: int, done: int) -> int:
    """How many of `weights` are gone during the update that follows `done` updates (0 to `steps`).

    floor(total x), or floor(total (1 - (1 - x)^3)), with total = floor(sparsity weights) and x rising from 0
    to 1 between start and stop.
    """
    first, last = first_and_last(prune, steps)
    total, span = int(exact(prune.sparsity) * weights), last - first
    left = last - last_pruning(prune, steps, done)
    if prune.schedule == "linear":
        return total * (span - left) // span
    return total * (span**3 - left**3) // span**3


def stretches(prune: PruneConfig, steps: int, until: int) -> Iterator[tuple[int, int]]:
    """(updates done, updates) of each stretch of the first `until` updates between two prunings."""
    first, last = first_and_last(prune, steps)
    starts = [0, *range(first + prune.every, last, prune.every), last]
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        if min(end, until) > start:
            yield start, min(end, until) - start
