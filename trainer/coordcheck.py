"""The coordinate check: does the size of activations depend on width, at the start and after a few steps?

Networks of several widths, equal in depth and head width, take a few training steps on one batch at one rate.
Where a parametrization transfers over widths, the root mean square (RMS) of every tensor stays
flat in width (Yang et al. 2203.03466, appendix D.1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import RunConfig
from trainer.distributed import ALONE
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.models.transformer import Block, Transformer
from trainer.presets import resolve
from trainer.rng import philox
from trainer.step import TrainStep

TENSORS = ("embedding", "attention", "ffn_up", "ffn", "residual", "logits", "logits_change")
"""What is measured: the last block's outputs, the logits, and how far these are from those of the start."""
FLAT = 0.25
"""Called flat: an RMS that changes less than width to this power.  The exponents of a wrong scaling are
multiples of one half; this is half way to the first."""


@dataclass(frozen=True)
class Check:
    """What a coordinate check varies."""

    structures: tuple[str, ...]
    """Names of structures."""
    parametrizations: tuple[str, ...] = ("paper", "mup")
    """Which to compare."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """d_model of each network; the first is mup's base."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of weights and batch."""
    steps: int = 5
    """Training steps."""
    peak_lr: float = 5e-3
    """Learning rate of every step, at the first width."""
    n_layers: int = 2
    """Blocks."""
    head_dim: int = 32
    """Width of a head, the same for all networks."""

    def __post_init__(self) -> None:
        """Raise ConfigError where a width is no whole number of heads."""
        if odd := [width for width in self.widths if width % self.head_dim]:
            raise ConfigError(
                f"coordcheck: d_model = {odd[0]} is no multiple of the head width {self.head_dim}, which is "
                f"the same for all networks; take {odd[0] // self.head_dim * self.head_dim + self.head_dim}"
            )

    def config(self, structure: str, parametrization: str, width: int, seed: int) -> RunConfig:
        """The run behind one measurement; ConfigError where the shape cannot be."""
        mup = {"base_d_model": self.widths[0], "base_head_dim": self.head_dim}
        batch, length = 8, 32
        return resolve(
            {
                "model": {
                    "d_model": width,
                    "n_layers": self.n_layers,
                    "n_heads": width // self.head_dim,
                    "seq_len": length,
                    "vocab_size": 256,
                    "dense_first_ffn": False,
                    "parametrization": parametrization,
                    **(mup if parametrization == "mup" else {}),
                },
                "structure": structure,
                "optim": {
                    "peak_lr": self.peak_lr, "batch_tokens": batch * length, "weight_decay": 0.0,
                    "schedule": "wsd", "warmup_fraction": 0.0, "decay_fraction": 0.0,
                    "final_lr_fraction": 1.0,
                },
                "tokens": batch * length * max(1, self.steps),
                "seed": seed,
            },
            f"coordcheck: {structure}, d_model = {width}",
        )  # fmt: skip


Row = dict[str, Any]


def coordinate_check(check: Check, threads: int | None, tick: Callable[[str], None]) -> list[Row]:
    """Measure every network: a row for each width, structure, parametrization, seed, step and tensor.

    `tick` is told what is next.

    Raises:
        ConfigError: before anything is measured, one of the shapes cannot be; or a network diverged, so that
            its later steps would say nothing.
    """
    cases = list(product(check.structures, check.parametrizations, check.widths, check.seeds))
    configs = [check.config(*case) for case in cases]
    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    for (structure, parametrization, width, seed), config in zip(cases, configs, strict=True):
        tick(f"{structure} {parametrization} d_model {width}")
        name = f"coordcheck: {structure}, {parametrization}, d_model = {width}"
        for step, sizes in enumerate(_sizes(config, check.steps, name)):
            for tensor, rms in sizes.items():
                rows.append(
                    {
                        "width": width, "structure": structure, "parametrization": parametrization,
                        "seed": seed, "step": step, "tensor": tensor, "rms": rms,
                    }
                )  # fmt: skip
    return rows


def _sizes(config: RunConfig, steps: int, name: str) -> Iterator[dict[str, float]]:
    """RMS of every tensor before the first step and after each; ConfigError with `name` at a bad loss."""
    training = TrainStep(config, Execution(device="cpu"), torch.device("cpu"), ALONE)
    shape = (config.batch_sequences, config.model.seq_len + 1)
    tokens: NDArray[np.int64] = philox(config.seed, "coordcheck").integers(
        config.model.vocab_size, size=shape
    )
    inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    first: Tensor | None = None
    for step in range(steps + 1):
        with torch.no_grad(), _recorded(training.network) as seen:
            logits = training.network.logits(torch.from_numpy(inputs))
            loss = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        # A training step judges the weights that it finds; those that the last one leaves are judged here.
        training.guard.check(step, loss, torch.zeros(()))
        if (bad := training.guard.diverged_at()) is not None:
            raise ConfigError(
                f"{name}: diverged at step {bad} (a loss or gradient that is not finite, or a loss above "
                f"{training.guard.limit:.3g}), and would not have learnt from there on; lower --peak-lr"
            )
        sizes = {**seen, "logits": _rms(logits)}
        if first is None:
            first = logits
        else:
            sizes["logits_change"] = _rms(logits - first)
        yield sizes
        if step < steps:
            training(step, inputs, targets)


@contextmanager
def _recorded(network: Transformer) -> Iterator[dict[str, float]]:
    """Collect the RMS of what the embedding and the parts of the last block put out."""
    block = network.blocks[-1]
    assert isinstance(block, Block)
    parts: dict[str, nn.Module] = {
        "embedding": network.embedding, "attention": block.attention, "ffn_up": block.ffn.up,
        "ffn": block.ffn, "residual": block,
    }  # fmt: skip
    seen: dict[str, float] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, out: seen.__setitem__(name, _rms(out))

    hooks = [part.register_forward_hook(record(name)) for name, part in parts.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


@dataclass(frozen=True)
class Slope:
    """How the size of one tensor depends on width."""

    structure: str
    """Name of the structure."""
    parametrization: str
    """paper or mup."""
    tensor: str
    """One of TENSORS."""
    step: int
    """Training steps before it was measured."""
    slope: float
    """d log RMS / d log width."""
    se: float
    """Its standard error over seeds and widths."""

    @property
    def flat(self) -> bool:
        """Whether the size is nearly the same at every width."""
        return abs(self.slope) < FLAT

    @property
    def by_design(self) -> bool:
        """Whether it is what mup wants: first logits that shrink as 1 / sqrt(width) (Yang et al. 2203.03466).

        The tied head's weights keep the embedding's size, and its multiplier falls as 1 / width.
        """
        first = self.step == 0 and self.parametrization == "mup" and self.tensor == "logits"
        return first and abs(self.slope + 0.5) < FLAT


def slopes(rows: Sequence[Row]) -> list[Slope]:
    """Straight lines through log RMS over log width, for every structure and tensor.

    At both ends: before the first step, and after the last.
    """
    ends = {min(row["step"] for row in rows), max(row["step"] for row in rows)}
    groups: dict[tuple[str, str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["step"] in ends and row["rms"] > 0:
            key = (row["structure"], row["parametrization"], row["tensor"], row["step"])
            groups[key].append((math.log(row["width"]), math.log(row["rms"])))
    return [Slope(*key, *_line(points)) for key, points in groups.items()]


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares slope and its standard error."""
    x, y = np.array(points).T
    x = x - x.mean()
    slope = float(x @ (y - y.mean()) / (x @ x))
    residual = y - y.mean() - slope * x
    freedom = len(points) - 2
    return slope, math.sqrt(float(residual @ residual) / freedom / float(x @ x)) if freedom > 0 else math.nan
