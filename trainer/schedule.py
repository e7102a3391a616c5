"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from trainer.config import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Learning rate of update `step` (0-based) in a run of `steps`.

    Linear warm-up to the peak, then cosine to final_lr_fraction of it, or constant with a linear decay
    over the last decay_fraction of the steps (`wsd`).  The last update has exactly the final rate.
    """
    warmup = round(optim.warmup_fraction * steps)
    if step < warmup:
        return optim.peak_lr * (step + 1) / warmup
    final = optim.final_lr_fraction
    if optim.schedule == "cosine":
        progress = (step + 1 - warmup) / max(1, steps - warmup)
        return optim.peak_lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    decay = max(1, round(optim.decay_fraction * steps))
    remaining = min(1.0, (steps - 1 - step) / decay)
    return optim.peak_lr * (final + (1 - final) * remaining)
