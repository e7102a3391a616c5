"""Time per token over sequence length: a recurrent network beside a dense one, in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.bench.progress import BenchProgress
from trainer.bench.table import machine
from trainer.bench.timing import Timing, interleaved, once, out_of_memory, quotients
from trainer.flops import at_length, flops_per_step, model_counts
from trainer.models.build import build_network
from trainer.models.config import ModelConfig
from trainer.models.parametrize import initialise

KEY = (
    "kind", "n_layers", "block", "mix", "d_model", "n_heads", "vocab_size", "seq_len", "step", "direction",
    "precision", "compiled", "device", "threads",
)  # fmt: skip
"""Columns that tell one row of the table from another."""

DIRECTIONS = {"forward": 1, "forward+backward": 3}
"""What is timed, and its FLOPs in forward passes."""

RECURRENT, DENSE = "recurrent", "dense"
MICRO = 1e6
"""Microseconds of a second."""


@dataclass(frozen=True)
class Ladder:
    """The networks and the lengths at which each of them is timed.

    models: by kind, recurrent first; their seq_len means nothing.
    lengths: tokens in a sequence, rising.
    tokens: of a step at every length; None where its `sequences` are given instead.
    """

    models: Mapping[str, ModelConfig]
    lengths: tuple[int, ...]
    tokens: int | None
    sequences: int | None
    precision: str

    def batch(self, length: int) -> int:
        """Sequences of a step."""
        return self.sequences or (self.tokens or length) // length

    def flops(self, kind: str, length: int, sequences: int, convention: str = "paper") -> int:
        """FLOPs of forward and backward."""
        return flops_per_step(at_length(self.models[kind], length), sequences * length, convention)

    def flops_over_dense(self, kind: str, length: int, convention: str) -> float:
        """FLOPs of a kind over those of the dense network at a length."""
        return self.flops(kind, length, 1, convention) / self.flops(DENSE, length, 1, convention)

    @property
    def step(self) -> str:
        """What the steps of all lengths have in common, in words."""
        if self.sequences is None:
            return f"{self.tokens} tokens"
        return f"{self.sequences} sequence{'' if self.sequences == 1 else 's'}"


class _Contestant:
    """One network on random sequences of one length, without an optimizer: that has the same work at all."""

    def __init__(
        self, model: ModelConfig, length: int, sequences: int, precision: str, device: torch.device
    ) -> None:
        self.length, self.sequences, self.precision, self.device = length, sequences, precision, device
        # The kernel that training takes in fp32 and on a GPU.
        self.network = build_network(at_length(model, length), "sdpa")
        initialise(self.network, 0)
        self.network.to(device)
        draws = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.vocab_size, (sequences, length + 1), generator=draws).to(device)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def losses(self) -> Tensor:
        """The losses (sequences, length)."""
        with self._autocast():
            losses: Tensor = self.network(self.inputs, self.targets)
        return losses

    def forward(self) -> None:
        """Losses without what a backward pass needs."""
        with torch.no_grad():
            self.losses()

    def train(self) -> None:
        """Losses and the gradients of all weights, made anew."""
        self.losses().mean().backward()  # type: ignore[no-untyped-call]
        self.network.zero_grad(set_to_none=True)


Running = dict[tuple[str, int], _Contestant]
Times = dict[tuple[str, int, str], list[float]]


def predicted_seconds(ladder: Ladder, device: torch.device, repeats: int, rate: float) -> float:
    """About how long the measurement takes, from one sequence of the shortest length of each kind.

    A sequence costs what that one did, in proportion to its FLOPs; further ones of a batch no more than their
    FLOPs at half of `rate`, FLOP/s of a large product.
    """
    shortest, total = ladder.lengths[0], 0.0
    for kind, model in ladder.models.items():
        made = _Contestant(model, shortest, 1, ladder.precision, device)
        made.train()
        first = once(made.train, device)
        unit = ladder.flops(kind, shortest, 1)
        for length in ladder.lengths:
            flops, others = ladder.flops(kind, length, 1), ladder.batch(length) - 1
            total += first * flops / unit + others * min(first * flops / unit, 2 * flops / rate)
    passes = sum(DIRECTIONS.values()) / DIRECTIONS["forward+backward"]
    return total * passes * (repeats + 1)


def bench_length(
    ladder: Ladder, device: torch.device, repeats: int, max_seconds: float, progress: BenchProgress
) -> list[dict[str, Any]]:
    """Time every network at every length, forward and with backward, in turn; `repeats` rounds, or fewer.

    Returns a row each: median, least and most microseconds per token over the rounds; quotients, round by
    round, over the same network at its shortest length and, for the recurrent one, over the dense one at that
    length; the latter also over the quotient of their FLOPs.  A network that does not fit the memory gives
    a row with `error` set; where all side by side do not fit, one row says it.
    """
    deadline = time.perf_counter() + max_seconds
    running: Running = {}
    refused: list[dict[str, Any]] = []
    for length in ladder.lengths:
        for kind, model in ladder.models.items():
            progress.phase(f"{kind}, {length} tokens, warming up")
            try:
                made = _Contestant(model, length, ladder.batch(length), ladder.precision, device)
                made.train()
                made.forward()
                running[kind, length] = made
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                refused.append({**_labels(ladder, kind, length), "error": "out of memory"})
            progress.call()
    progress.phase(f"{len(running)} networks in turn, up to {repeats} rounds")
    actions = {}
    for (kind, length), made in running.items():
        actions[f"{kind} {length} forward"] = made.forward
        actions[f"{kind} {length} forward+backward"] = made.train
    try:
        timings = interleaved(actions, device, repeats, 0.0, deadline, 0, progress.call)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return [{"kind": "all", "error": "out of memory with all networks side by side"}, *refused]
    times = {
        (kind, length, direction): [
            seconds / (made.sequences * length) for seconds in timings[f"{kind} {length} {direction}"].seconds
        ]
        for (kind, length), made in running.items()
        for direction in DIRECTIONS
    }
    common = machine(device)
    return [{**_row(ladder, times, *which), **common} for which in times] + refused


def _labels(ladder: Ladder, kind: str, length: int) -> dict[str, Any]:
    model = at_length(ladder.models[kind], length)
    return {
        "kind": kind,
        "n_layers": model.n_layers,
        "block": model.recurrence.block if model.recurrence else None,
        "mix": model.recurrence.mix if model.recurrence else None,
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "vocab_size": model.vocab_size,
        "params_total": model_counts(model).params_total,
        "seq_len": length,
        "sequences": ladder.batch(length),
        "step": ladder.step,
        "precision": ladder.precision,
        "compiled": False,
    }


def _row(ladder: Ladder, times: Times, kind: str, length: int, direction: str) -> dict[str, Any]:
    mine = times[kind, length, direction]
    timing = Timing([MICRO * seconds for seconds in mine])
    shortest = min(other for k, other, d in times if (k, d) == (kind, direction))
    dense = times.get((DENSE, length, direction), []) if kind == RECURRENT else []
    over_dense = quotients("us_over_dense", mine, dense)
    flops = ladder.flops(kind, length, 1)
    # Where there is no dense network, there is nothing to hold the FLOPs against either.
    ratios = {
        part: ladder.flops_over_dense(kind, length, convention) if dense else None
        for part, convention in (("flops", "paper"), ("causal_flops", "causal"))
    }
    share = DIRECTIONS[direction] / DIRECTIONS["forward+backward"]
    return {
        **_labels(ladder, kind, length),
        "direction": direction,
        "us_per_token": timing.median,
        "us_per_token_min": timing.fastest,
        "us_per_token_max": timing.slowest,
        "shortest": shortest,
        **quotients("us_over_shortest", mine, times[kind, shortest, direction]),
        **over_dense,
        **{f"{part}_over_dense": ratio for part, ratio in ratios.items()},
        **{
            name.replace("us_over_dense", f"cost_over_{part}"): value / ratio if value and ratio else None
            for part, ratio in ratios.items()
            for name, value in over_dense.items()
        },
        "flops_per_second": MICRO * share * flops / length / timing.median,
        "repeats": len(mine),
    }
