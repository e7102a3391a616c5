"""AdamW with the papers' options, and the guard that stops an update which would spoil the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig


def build_optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW; with decay = "matrices" only parameters of two or more axes decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    decaying = [p for p in parameters if optim.decay == "all" or p.ndim >= 2]
    others = [p for p in parameters if optim.decay != "all" and p.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay, "lr_scale": 1.0}
        for group, decay in ((decaying, optim.weight_decay), (others, 0.0))
        if group
    ]
    return torch.optim.AdamW(
        groups, lr=optim.peak_lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True
    )


class DivergenceGuard:
    """Refuses every update from the first bad loss on, without asking the device each step.

    A loss is bad where it, or the gradient norm, is not finite, or where the loss passes `limit`.  The flag
    lives on the device and is handed to the fused optimizer as `found_inf`, which then skips the update; the
    host reads it when it logs, so a GPU never waits and the weights are still those before the bad step.
    """

    def __init__(self, limit: float, device: torch.device) -> None:
        self.limit = limit
        self.bad = torch.zeros((), device=device)
        self.bad_step = torch.full((), -1.0, dtype=torch.float64, device=device)

    def check(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Look at one step's loss and gradient norm."""
        good = torch.isfinite(loss) & torch.isfinite(grad_norm) & (loss <= self.limit)
        newly = (self.bad == 0) & ~good
        self.bad_step = torch.where(newly, float(step), self.bad_step)
        self.bad = torch.where(good, self.bad, 1.0)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights unless a bad step has been seen."""
        optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()

    def diverged_at(self) -> int | None:
        """The step (0-based) of the first bad loss, or None; waits for the device."""
        step = int(self.bad_step.item())
        return step if step >= 0 else None
