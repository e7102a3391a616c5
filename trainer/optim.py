"""AdamW with the papers' options, and the guard that stops an update which would spoil the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.models.parametrize import learning_rate_scales


def build_optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW; with decay = "matrices" only parameters of two or more axes and structures' factors decay.

    A group for each pair of decay and learning-rate scale; the scale stands in the group as `lr_scale`.
    """
    scales = learning_rate_scales(network)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        # A factor is a weight whatever its shape: sltrain keeps its sparse entries in a row.
        decays = optim.decay == "all" or parameter.ndim >= 2 or ".factors." in f".{name}"
        groups.setdefault((decays, scales.get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            # AdamW multiplies the decay by the learning rate.  What a factor loses in a step is to depend on
            # the schedule, not on its width, so the scale is taken out again (Wang and Aitchison 2405.13698).
            {
                "params": group,
                "weight_decay": optim.weight_decay / scale if decays else 0.0,
                "lr_scale": scale,
            }
            for (decays, scale), group in groups.items()
        ],
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
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
