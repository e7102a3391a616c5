"""Gradual pruning of a network: which weights are gone, and that they stay so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import RunConfig
from trainer.models.transformer import StructuredLinear
from trainer.pruning import PruneConfig, prunes_at, removed

GONE = "gone"
"""Name of a weight's mask in the optimizer's state."""


class Pruning:
    """The masks of a network over a run: bool, of a weight's shape, True where it is gone.

    They stand beside Adam's moments in the optimizer's state, so that checkpoints hold and restore them with
    these; the removed weights themselves are zeros among the network's.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, prune: PruneConfig, config: RunConfig
    ) -> None:
        self.optimizer, self.prune, self.steps = optimizer, prune, config.steps
        self.weights = prunable_weights(network)

    def mask_gradients(self) -> None:
        """Take the removed weights out of the gradients, and so out of their norm."""
        for weight in self.weights:
            mask = self.optimizer.state.get(weight, {}).get(GONE)
            if mask is not None and weight.grad is not None:
                weight.grad.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def prune_after(self, done: int) -> None:
        """Remove the weights that are to go once `done` updates are done."""
        if not prunes_at(self.prune, self.steps, done):
            return
        together = [self.weights] if self.prune.scope == "global" else [[weight] for weight in self.weights]
        for weights in together:
            count = removed(self.prune, self.steps, sum(weight.numel() for weight in weights), done)
            masks = [self.optimizer.state[weight].get(GONE) for weight in weights]
            for weight, mask in zip(weights, smallest(weights, masks, count), strict=True):
                # Without a gradient, zero weights with zero moments stay where they are: decay, momentum and
                # Adam's quotient are all multiples of them.
                state = self.optimizer.state[weight]
                for part in (weight, state["exp_avg"], state["exp_avg_sq"]):
                    part.masked_fill_(mask, 0.0)
                state[GONE] = mask


def prunable_weights(network: nn.Module) -> list[nn.Parameter]:
    """The factors of all linear maps, in the order of the network."""
    maps = (module for module in network.modules() if isinstance(module, StructuredLinear))
    return [factor for module in maps for factor in module.factors.values()]


def smallest(weights: list[nn.Parameter], gone: list[Tensor | None], count: int) -> list[Tensor]:
    """Masks of the `count` weights of least magnitude, those that are gone already before all others.

    Args:
        weights: of any shapes; among equal magnitudes the first in their order goes first.
        gone: the mask of each so far, or None.
        count: at least the number of those that are gone.
    """
    sizes = [weight.numel() for weight in weights]
    # A weight that happens to be zero must not be taken in place of one that is gone.
    magnitudes = [
        weight.detach().abs() if mask is None else weight.detach().abs().masked_fill_(mask, -1.0)
        for weight, mask in zip(weights, gone, strict=True)
    ]
    flat = torch.cat([part.flatten() for part in magnitudes])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(stable=True)[:count]] = True
    parts = zip(torch.split(chosen, sizes), weights, strict=True)
    return [part.reshape(weight.shape).clone() for part, weight in parts]
