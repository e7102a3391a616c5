"""Self-guided training: dense matrices beside the structured maps, mixed in at first and then taken away.

Source: arXiv 2406.16450 sec. 3.2 (equations for o and its stochastic form).  Shapes: N = d_in, M = d_out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import RunConfig
from trainer.flops import guided_maps, guided_passes
from trainer.guidance import guide_weight
from trainer.models.transformer import StructuredLinear
from trainer.rng import philox


class Guide(nn.Module):
    """The dense branch of one map: W (M, N), which starts as the matrix that the factors stand for."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.mix = 1.0
        self.runs = True

    # The mixing weight and the draw change from step to step; compiled in, each change would compile anew.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, structured: Tensor) -> Tensor:
        """Mix: a W x + (1 - a) structured, or `structured` (..., M) where the branch was not drawn."""
        if not self.runs:
            return structured
        return torch.lerp(structured, F.linear(x, self.weight).type_as(structured), self.mix)


class Guidance:
    """The guides of a network over the guided steps of a run.

    Made once the network's weights are drawn: every structured map gets a guide with its merged weight.
    """

    def __init__(self, network: nn.Module, config: RunConfig) -> None:
        self.config = config
        self.maps = [
            module
            for module in network.modules()
            if isinstance(module, StructuredLinear) and module.structure.kind != "dense"
        ]
        for module in self.maps:
            module.guide = Guide(module.merged_weight().detach().clone())

    @property
    def guides(self) -> list[Guide]:
        """The guides, in the order of their maps in the network."""
        return [module.guide for module in self.maps if isinstance(module.guide, Guide)]

    def set(self, step: int) -> None:
        """Give every guide its mixing weight at `step`, and say which of them run."""
        seed, guided_steps = self.config.seed, self.config.guided_steps
        mix = guide_weight(step, guided_steps)
        runs = [True] * len(self.maps)
        if self.config.guide.stochastic:
            runs = [bool(run) for run in branch_runs(seed, step, len(self.maps), guided_steps)]
        for guide, run in zip(self.guides, runs, strict=True):
            guide.mix, guide.runs = mix, run

    def release(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the guides out of the network and out of the optimizer."""
        gone = {id(guide.weight) for guide in self.guides}
        for module in self.maps:
            module.guide = None
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in gone:
                    optimizer.state.pop(parameter, None)
            group["params"] = [p for p in group["params"] if id(p) not in gone]


def branch_runs(seed: int, step: int, n_maps: int, guided_steps: int) -> NDArray[np.bool_]:
    """Which of the guided maps run their dense branch at a step of stochastic guidance: bool (n_maps,).

    Each does so with probability a.  A pure function of (seed, step), the same on every process.
    """
    draws = philox(seed, "guide", step).random(n_maps)
    runs: NDArray[np.bool_] = draws < guide_weight(step, guided_steps)
    return runs


def drawn_passes(seed: int, steps: int, n_maps: int, guided_steps: int, stochastic: bool) -> list[int]:
    """How often each map ran its dense branch in the first `steps` steps of a run."""
    steps = min(steps, guided_steps)
    if not stochastic:
        return [steps] * n_maps
    counts = np.zeros(n_maps, dtype=np.int64)
    for step in range(steps):
        counts += branch_runs(seed, step, n_maps, guided_steps)
    return [int(count) for count in counts]


def drawn_guide_flops(config: RunConfig, steps: int) -> int:
    """FLOPs that the dense branches really took in the first `steps` steps, as they were drawn."""
    if config.guide.mode == "none":
        return 0
    maps = guided_maps(config.model)
    drawn = drawn_passes(config.seed, steps, len(maps), config.guided_steps, config.guide.stochastic)
    times = guided_passes(config.model)
    work = sum(6 * d_in * d_out * n * t for (d_in, d_out), n, t in zip(maps, drawn, times, strict=True))
    return config.optim.batch_tokens * work
