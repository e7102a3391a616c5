"""Held-out loss on a fixed set of windows: nats per token with its standard error, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.batches import heldout_windows
from trainer.config import RunConfig
from trainer.corpora import Corpus
from trainer.device import autocast
from trainer.distributed import ALONE, World
from trainer.models.transformer import Transformer


@dataclass(frozen=True)
class Evaluation:
    """A held-out measurement."""

    loss: float
    """Mean cross-entropy, nats per token."""
    loss_se: float
    """Standard error of the mean over windows (a window's tokens are not independent of each other)."""
    bits_per_byte: float | None
    """Total bits over the bytes of the predicted tokens; None where tokens stand for no bytes."""
    tokens: int
    """Predicted tokens."""


class Interrupted(Exception):
    """The evaluation was asked to stop."""


@torch.no_grad()
def evaluate(
    network: Transformer,
    corpus: Corpus,
    config: RunConfig,
    batch: int,
    device: torch.device,
    world: World = ALONE,
    tick: Callable[[int, int], bool] = lambda done, total: False,
) -> Evaluation:
    """Measure the network on the first eval.tokens held-out tokens, `batch` sequences at a time.

    Several processes share the windows.  `tick(done, total)` is told the sequences done; where it returns
    True, Interrupted is raised.
    """
    length, total = config.model.seq_len, heldout_windows(config)
    means = torch.zeros(total, dtype=torch.float64, device=device)
    byte_count = torch.zeros((), dtype=torch.float64, device=device)
    network.eval()
    for first in range(0, total, batch * world.size):
        if tick(first, total):
            raise Interrupted
        start = min(total, first + world.rank * batch)
        stop = min(total, start + batch)
        if start == stop:
            continue
        part = corpus.heldout_sequences(start, stop, length)
        tokens = torch.from_numpy(part).to(device)
        with autocast(config, device):
            losses = network(tokens[:, :-1], tokens[:, 1:])
        means[start:stop] = losses.double().mean(dim=1)
        if corpus.token_bytes is not None:
            byte_count += int(corpus.token_bytes[part[:, 1:]].sum())
    network.train()
    means, byte_count = world.sum(means).cpu(), world.sum(byte_count).cpu()
    loss, tokens_seen = float(means.mean()), total * length
    return Evaluation(
        loss=loss,
        loss_se=float(means.std()) / math.sqrt(total),
        bits_per_byte=loss * tokens_seen / (float(byte_count) * math.log(2)) if byte_count > 0 else None,
        tokens=tokens_seen,
    )
