"""Held-out loss on a fixed set of sequences: nats per scored target with its standard error, and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.batches import heldout_windows
from trainer.config import RunConfig
from trainer.corpora import Corpus
from trainer.corpora.corpus import IGNORE
from trainer.device import autocast
from trainer.distributed import ALONE, World
from trainer.models.transformer import Transformer


@dataclass(frozen=True)
class Evaluation:
    """A held-out measurement."""

    loss: float
    """Mean cross-entropy, nats per scored target (per token of a text)."""
    loss_se: float
    """Standard error of the mean over sequences (a sequence's tokens are not independent of each other)."""
    bits_per_byte: float | None
    """Total bits over the bytes of the predicted tokens; None where tokens stand for no bytes."""
    tokens: int
    """Scored targets."""
    entropy: float | None = None
    """Loss of a perfect model on the same targets, nats; None where the source is not known."""
    accuracy: float | None = None
    """Share of the scored targets that are the most likely token; None for text."""
    exact_match: float | None = None
    """Share of the sequences of which every scored target is the most likely token; None for text."""


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
    seq_len: int | None = None,
    tokens: int | None = None,
) -> Evaluation:
    """Measure the network on the first held-out sequences, `batch` of them at a time.

    They are of the run's own length and eval.tokens tokens in all, unless `seq_len` or `tokens` says
    otherwise; of longer ones fewer are taken at a time.  Several processes share them.  `tick(done, total)`
    is told the sequences done; where it returns True, Interrupted is raised.
    """
    length = seq_len or config.model.seq_len
    batch = max(1, batch * config.model.seq_len // length) if length > config.model.seq_len else batch
    total, scored = heldout_windows(config, length, tokens), corpus.scored
    means = torch.zeros(total, dtype=torch.float64, device=device)
    hits = torch.zeros(total, dtype=torch.float64, device=device) if scored is not None else None
    byte_count = torch.zeros((), dtype=torch.float64, device=device)
    network.eval()
    for first in range(0, total, batch * world.size):
        if tick(first, total):
            raise Interrupted
        start = min(total, first + world.rank * batch)
        stop = min(total, start + batch)
        if start == stop:
            continue
        inputs, targets = corpus.heldout_examples(start, stop, length)
        given, wanted = (torch.from_numpy(ids).to(device) for ids in (inputs, targets))
        with autocast(config, device):
            out = network(given, wanted) if scored is None else network.logits(given)
        if scored is None or hits is None:
            means[start:stop] = out.double().mean(dim=1)
        else:
            means[start:stop], hits[start:stop] = _score(out, wanted, scored)
        if scored is None and corpus.token_bytes is not None:
            byte_count += int(corpus.token_bytes[targets].sum())
    network.train()
    means, byte_count = world.sum(means).cpu(), world.sum(byte_count).cpu()
    right = world.sum(hits).cpu() if hits is not None else None
    loss, counted = float(means.mean()), total * (length if scored is None else scored)
    return Evaluation(
        loss=loss,
        loss_se=float(means.std()) / math.sqrt(total),
        bits_per_byte=loss * counted / (float(byte_count) * math.log(2)) if byte_count > 0 else None,
        tokens=counted,
        entropy=corpus.heldout_entropy(total, length),
        accuracy=float(right.sum()) / counted if right is not None else None,
        exact_match=float(torch.eq(right, scored or 0).sum()) / total if right is not None else None,
    )


def _score(logits: Tensor, targets: Tensor, scored: int) -> tuple[Tensor, Tensor]:
    """Mean loss and number of hits of each sequence, float64 (B,); logits (B, T, V), targets (B, T)."""
    counts = targets != IGNORE
    chosen, wanted = logits[counts].float(), targets[counts]
    losses = F.cross_entropy(chosen, wanted, reduction="none").double().view(-1, scored)
    right = (chosen.argmax(dim=-1) == wanted).double().view(-1, scored)
    return losses.mean(dim=1), right.sum(dim=1)
