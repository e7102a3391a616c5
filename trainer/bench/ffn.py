"""Speed of whole FFNs (up, nonlinearity, down) against the dense one, in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trainer.bench.progress import BenchProgress
from trainer.bench.table import machine
from trainer.bench.timing import (
    Timing,
    allow_many_compilations,
    interleaved,
    once,
    out_of_memory,
    quotients,
)
from trainer.bench.weights import fill
from trainer.flops import ffn_shapes
from trainer.messages import validation_line
from trainer.models.config import ModelConfig
from trainer.models.transformer import FeedForward, StructuredLinear

KEY = ("width", "tokens", "structure", "precision", "compiled", "direction", "device", "threads")
"""Columns that tell one row of the table from another."""

DIRECTIONS = {"forward": 1, "forward+backward": 3}
"""What is timed, and its FLOPs in forward passes."""


@dataclass(frozen=True)
class Group:
    """FFNs that are measured in turn: they differ in their structure only."""

    width: int
    tokens: int
    precision: str
    compiled: bool

    @property
    def name(self) -> str:
        """What the group is called while it is measured."""
        mode = "compiled" if self.compiled else "eager"
        return f"width {self.width}, {self.tokens} tokens, {self.precision} {mode}"

    def dense_flops(self) -> int:
        """FLOPs of the dense FFN's forward pass: 2 x 8 d^2 a token."""
        return 16 * self.width**2 * self.tokens


@dataclass
class _Contestant:
    ffn: nn.Module
    flops: int
    """Of a forward pass."""
    x: Tensor
    grad: Tensor
    precision: str

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.x.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def forward(self) -> None:
        with torch.no_grad(), self._autocast():
            self.ffn(self.x)

    def train(self) -> None:
        """Forward and backward, to the input as well as in a network, gradients made anew."""
        with self._autocast():
            out = self.ffn(self.x)
        out.backward(self.grad.to(out.dtype))
        self.x.grad = None
        for parameter in self.ffn.parameters():
            parameter.grad = None


def contestant(group: Group, structure: str, device: torch.device) -> _Contestant:
    """Build one FFN with random input; ValueError with one line where the shape cannot be had."""
    fields = {"d_model": group.width, "n_layers": 2, "n_heads": 1, "vocab_size": 1, "seq_len": group.tokens}
    try:
        model = ModelConfig.model_validate({**fields, "structure": structure})
    except ValidationError as error:
        raise ValueError(validation_line(error, ModelConfig, "ffn")) from None
    draws = torch.Generator().manual_seed(0)
    ffn = FeedForward(model, model.structure)
    for part in ffn.modules():
        if isinstance(part, StructuredLinear):
            fill(part, draws)
    x, grad = torch.randn(2, 1, group.tokens, group.width, generator=draws)
    flops = sum(
        group.tokens * model.structure.flops_per_token(*shape) + model.structure.flops_per_pass(*shape)
        for shape in ffn_shapes(model)
    )
    ffn.to(device)
    module = torch.compile(ffn) if group.compiled else ffn
    x = x.to(device).requires_grad_()
    return _Contestant(module, flops, x, grad.to(device), group.precision)  # type: ignore[arg-type]


def product_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a square product, measured in a moment, to predict how long all will take."""
    size = 768 if device.type == "cpu" else 4096
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    once(lambda: a @ a, device)
    return 2 * size**3 / min(once(lambda: a @ a, device) for _ in range(3))


def predicted_seconds(group: Group, shares: list[float], repeats: int, rate: float) -> float:
    """Seconds that the group takes at `rate` FLOP/s; `shares` of the dense FLOPs, one a structure."""
    passes = sum(DIRECTIONS.values()) * (repeats + 1)
    return sum(shares) * group.dense_flops() * passes / rate


def bench_ffn(
    groups: list[tuple[Group, float]],
    structures: list[str],
    device: torch.device,
    repeats: int,
    progress: BenchProgress,
    on_rows: Callable[[list[dict[str, Any]]], object],
) -> None:
    """Measure the groups, each with the seconds that it may take, and hand over the rows of each.

    A structure that does not fit the memory, or the width, gives one row with `error` set.
    """
    if any(group.compiled for group, _ in groups):
        allow_many_compilations()
    for group, seconds in groups:
        progress.phase(group.name)
        on_rows(list(_measure(group, structures, device, repeats, seconds, progress)))


def _measure(
    group: Group,
    structures: list[str],
    device: torch.device,
    repeats: int,
    seconds: float,
    progress: BenchProgress,
) -> Iterator[dict[str, Any]]:
    running: dict[str, _Contestant] = {}
    refused: list[dict[str, Any]] = []
    for name in dict.fromkeys(("dense", *structures)):
        try:
            made = contestant(group, name, device)
            made.train()
            made.forward()
            running[name] = made
        except ValueError as error:
            refused.append({**_labels(group, name), "error": str(error)})
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            refused.append({**_labels(group, name), "error": "out of memory"})
        progress.call()
    actions = {}
    for name, made in running.items():
        actions[f"{name} forward"] = made.forward
        actions[f"{name} forward+backward"] = made.train
    least = 0.5 if actions else 0.0
    # The compiler's time, spent above, is not the group's.
    deadline = time.perf_counter() + seconds
    try:
        timings = interleaved(actions, device, repeats, least, deadline, 0, progress.call)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        yield {**_labels(group, "all"), "error": "out of memory with all structures side by side"}
        yield from refused
        return
    for name, made in running.items():
        for direction, passes in DIRECTIONS.items():
            timing = timings[f"{name} {direction}"]
            dense = timings.get(f"dense {direction}")
            row = _row(timing, dense, passes * made.flops)
            row["flops_limit"] = group.dense_flops() / made.flops
            yield {**_labels(group, name), "direction": direction, **row, **machine(device)}
    yield from refused


def _labels(group: Group, structure: str) -> dict[str, Any]:
    return {
        "width": group.width,
        "tokens": group.tokens,
        "structure": structure,
        "precision": group.precision,
        "compiled": group.compiled,
    }


def _row(timing: Timing, dense: Timing | None, flops: int) -> dict[str, Any]:
    return {
        "ms": 1e3 * timing.median,
        "ms_min": 1e3 * timing.fastest,
        "ms_max": 1e3 * timing.slowest,
        "repeats": len(timing.seconds),
        "flops_per_second": flops / timing.median,
        **quotients("speedup", dense.seconds if dense else (), timing.seconds),
    }
