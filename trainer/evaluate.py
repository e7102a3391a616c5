"""Held-out loss on a fixed set of windows: nats per token with its standard error, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.config import RunConfig
from trainer.corpora import Corpus
from trainer.device import autocast
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
    tick: Callable[[int, int], bool] = lambda done, total: False,
) -> Evaluation:
    """Measure the network on the first eval.tokens held-out tokens, `batch` sequences at a time.

    `tick(done, total)` is told the sequences done; where it returns True, Interrupted is raised.
    """
    length = config.model.seq_len
    windows = corpus.heldout_sequences(max(2, config.eval.tokens // length), length)
    byte_count = 0
    means = []
    network.eval()
    for start in range(0, len(windows), batch):
        if tick(start, len(windows)):
            raise Interrupted
        part = windows[start : start + batch]
        tokens = torch.from_numpy(part).to(device)
        with autocast(config, device):
            losses = network(tokens[:, :-1], tokens[:, 1:])
        means.append(losses.double().mean(dim=1).cpu())
        if corpus.token_bytes is not None:
            byte_count += int(corpus.token_bytes[part[:, 1:]].sum())
    network.train()
    mean = torch.cat(means)
    loss = float(mean.mean())
    count = len(windows) * length
    return Evaluation(
        loss=loss,
        loss_se=float(mean.std()) / math.sqrt(len(mean)),
        bits_per_byte=loss * count / (byte_count * math.log(2)) if byte_count else None,
        tokens=count,
    )
