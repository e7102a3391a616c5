"""Held-out loss: its mean, standard error and bits per byte against values computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainer.distributed import ALONE, World
from trainer.evaluate import Interrupted, evaluate
from trainer.presets import resolve


class Fixed(torch.nn.Module):
    """Charges each target its own id as loss."""

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return targets.float()


def setting(windows: list[list[int]]) -> tuple[Any, Any]:
    length = len(windows[0]) - 1
    corpus = SimpleNamespace(
        heldout_sequences=lambda start, stop, seq_len: np.array(windows)[start:stop],
        token_bytes=np.array([0, 1, 2, 3]),
    )
    data = {"corpus": {"kind": "synthetic", "vocab_size": 4, "order": 1}, "tokenizer": None}
    config = resolve(
        {
            "model": {"d_model": 4, "n_layers": 1, "n_heads": 1, "seq_len": length},
            "data": data,
            "optim": {"peak_lr": 1, "batch_tokens": length},
            "tokens": 100,
            "eval": {"tokens": length * len(windows)},
        },
        "t",
    )
    return corpus, config


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_mean_standard_error_and_bits_per_byte(batch: int) -> None:
    corpus, config = setting([[0, 1, 3], [0, 2, 2], [0, 3, 3]])
    got = evaluate(Fixed(), corpus, config, batch, torch.device("cpu"))  # type: ignore[arg-type]
    assert got.tokens == 6
    assert got.loss == pytest.approx(14 / 6)
    assert got.loss_se == pytest.approx(np.std([2, 2, 3], ddof=1) / math.sqrt(3))
    assert got.bits_per_byte == pytest.approx(14 / math.log(2) / (1 + 3 + 2 + 2 + 3 + 3))


def test_several_processes_share_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes fills in its own windows; added up they are the measurement of one."""
    corpus, config = setting([[0, i % 4, 3 - i % 4] for i in range(7)])
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(World, "sum", lambda self, value: seen.append(value.clone()) or value)
    for rank in range(2):
        evaluate(Fixed(), corpus, config, 2, torch.device("cpu"), World(rank, 2))  # type: ignore[arg-type]
    whole = evaluate(Fixed(), corpus, config, 2, torch.device("cpu"))  # type: ignore[arg-type]
    means, byte_counts = seen[0] + seen[2], seen[1] + seen[3]
    assert float(means.mean()) == pytest.approx(whole.loss)
    assert torch.equal(means, seen[4])
    assert torch.equal(byte_counts, seen[5])


def test_stops_when_asked() -> None:
    corpus, config = setting([[0, 1, 3], [0, 2, 2]])
    with pytest.raises(Interrupted):
        evaluate(Fixed(), corpus, config, 1, torch.device("cpu"), ALONE, lambda done, total: done > 0)  # type: ignore[arg-type]
