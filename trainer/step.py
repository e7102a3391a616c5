"""One update: batch in, weights changed; shared by the loop and the benchmark, so that they cannot differ."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import RunConfig
from trainer.device import attention_kernel, autocast, micro_batch
from trainer.distributed import World
from trainer.execution import Execution
from trainer.models.build import build_network
from trainer.models.guide import Guidance
from trainer.models.parametrize import initialise
from trainer.models.prune import Pruning
from trainer.models.recurrent import RecurrentTransformer
from trainer.optim import DivergenceGuard, build_optimizer
from trainer.schedule import learning_rate


class TrainStep:
    """The network with its optimizer, and the update of one step.

    With `draw_weights` false they are left for a checkpoint to fill in.  `scored`: targets of a sequence that
    count, as the corpus says; None for all.

    Raises ConfigError where the global batch does not divide over the processes.
    """

    def __init__(
        self,
        config: RunConfig,
        execution: Execution,
        device: torch.device,
        world: World,
        draw_weights: bool = True,
        scored: int | None = None,
    ) -> None:
        self.config, self.device, self.world, self.scored = config, device, world, scored
        self.micro = micro_batch(config, execution, device, world.size)
        self.network = build_network(config.model, attention_kernel(config, execution, device))
        if draw_weights:
            initialise(self.network, config.seed)
        self.guidance = Guidance(self.network, config) if config.guided_steps else None
        self.network.to(device)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.pruning = Pruning(self.network, self.optimizer, config.prune, config) if config.prune else None
        self.guard = DivergenceGuard(config.optim.diverge_ratio * math.log(config.model.vocab_size), device)
        self.compile = execution.compile
        self.rate = 0.0
        self.forward = self._wrapped()

    def _wrapped(self) -> nn.Module:
        """The network as it is called in training: compiled, and shared over the processes."""
        forward: nn.Module = self.network
        if self.compile:
            forward = torch.compile(forward)  # type: ignore[assignment]
        if self.world.size > 1:
            forward = nn.parallel.DistributedDataParallel(
                forward,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                # A guide that was not drawn has no gradient, on any process.
                find_unused_parameters=self.guidance is not None and self.config.guide.stochastic,
            )
        return forward

    def skip_to(self, step: int) -> None:
        """Make the network what it is before update `step`: behind the guided steps it has no guides."""
        if self.guidance is not None and step >= self.config.guided_steps:
            self.guidance.release(self.optimizer)
            self.guidance = None
            self.forward = self._wrapped()

    def __call__(
        self, step: int, inputs: NDArray[np.int64], targets: NDArray[np.int64], rate: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Do update `step` (0-based) on this process's rows of the global batch, each (rows, T).

        `rate` multiplies the schedule's learning rate, as a curriculum wants it.  Returns the mean loss over
        the global batch (nats per token) and the gradient norm before clipping, both on the device, so that
        nothing waits for it.
        """
        self.rate = rate * learning_rate(step, self.config.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["lr_scale"]
        if self.guidance is not None:
            self.guidance.set(step)
        if isinstance(self.network, RecurrentTransformer):
            self.network.draw_block(self.config.seed, step)
        loss = self._accumulate_gradients(inputs, targets)
        if self.pruning is not None:
            self.pruning.mask_gradients()
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optim.clip)
        self.guard.check(step, loss, grad_norm)
        self.guard.step(self.optimizer)
        if isinstance(self.network, RecurrentTransformer):
            self.network.hold_alphas()
        self.optimizer.zero_grad(set_to_none=True)
        if self.pruning is not None:
            self.pruning.prune_after(step + 1)
        self.skip_to(step + 1)
        return loss, grad_norm

    def _accumulate_gradients(self, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> Tensor:
        rows, length = targets.shape
        micro = self._micro(rows, length)
        scored = length if self.scored is None else self.scored
        total = torch.zeros((), device=self.device)
        for start in range(0, rows, micro):
            part = slice(start, start + micro)
            last = start + micro >= rows
            # Gradients travel between processes once a step, with the last micro-batch.
            hold = nullcontext() if last or self.world.size == 1 else self.forward.no_sync()  # type: ignore[operator]
            with hold:
                with autocast(self.config, self.device):
                    losses = self.forward(self._to_device(inputs[part]), self._to_device(targets[part]))
                # Every sequence has as many scored targets; those that are not scored have no loss.
                loss = losses.mean() * (micro / rows * (length / scored))
                loss.backward()
            total += loss.detach()
        return self.world.mean(total)

    def _micro(self, rows: int, length: int) -> int:
        """Sequences in one pass: of shorter ones than the run's as many more as make as many tokens."""
        most = min(rows, self.micro * (self.config.model.seq_len // length))
        return next(size for size in range(most, 0, -1) if rows % size == 0)

    def _to_device(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
