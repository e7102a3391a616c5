"""Choosing the next token: temperature, top-k and top-p, with draws that do not depend on the batch.

Shapes: B = rows, V = vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trainer.rng import philox


class Sampling(BaseModel):
    """How the next token is chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = Field(default=None, gt=0)
    """Choose among the k most likely tokens only."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Choose among the fewest most likely tokens whose probabilities reach p together (Holtzman et al.
    1904.09751)."""
    seed: int = Field(default=1, ge=0)
    """Of the draws."""


def draws(seed: int, rows: range, length: int) -> NDArray[np.float64]:
    """Uniform numbers (len(rows), length) in [0, 1): one for each row and position of its new tokens.

    Each is a pure function of (seed, row, position): whatever else is generated beside a row, and however
    much is asked of it, its draws are the same.
    """
    # One generator a row, read in the order of the positions: number i is the same for every `length`.
    return np.array([philox(seed, "generate", row).random(length) for row in rows])


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Choose a token for each row: logits (B, V), uniform numbers (B,) float64; returns ids (B,) int64.

    The draw goes through the inverse of the cumulative distribution, of the tokens ordered by falling
    probability where only some of them are eligible.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    vocab_size = logits.shape[-1]
    scaled = logits.double()
    # The largest logit goes first, or a small temperature would overflow.
    scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / sampling.temperature
    top_k, top_p = sampling.top_k or vocab_size, sampling.top_p or 1.0
    if top_k >= vocab_size and top_p >= 1:
        return _inverse(torch.softmax(scaled, dim=-1), uniform)
    scaled, order = torch.topk(scaled, min(top_k, vocab_size), dim=-1)
    weights = torch.softmax(scaled, dim=-1)
    if top_p < 1:
        before = weights.cumsum(dim=-1) - weights
        weights = weights * (before < top_p)
    return order.gather(-1, _inverse(weights, uniform)[:, None])[:, 0]


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index at which the running sum of weights (B, n) exceeds uniform (B,) times their sum."""
    sums = weights.cumsum(dim=-1)
    target = uniform[:, None] * sums[:, -1:]
    # Rounding can bring the product up to the sum itself; the last token with any weight is meant then.
    last = (weights > 0).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(torch.searchsorted(sums, target, right=True)[:, 0], last)
