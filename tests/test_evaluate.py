"""Held-out loss: mean, standard error, bits per byte and accuracy against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainer.corpora import open_corpus
from trainer.corpora.corpus import IGNORE
from trainer.device import autocast
from trainer.distributed import ALONE, World
from trainer.evaluate import Interrupted, evaluate
from trainer.models.build import build_network
from trainer.models.parametrize import initialise
from trainer.presets import resolve


class Fixed(torch.nn.Module):
    """Charges each target its own id as loss."""

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return targets.float()


def setting(windows: list[list[int]]) -> tuple[Any, Any]:
    length = len(windows[0]) - 1
    ids = np.array(windows)
    corpus = SimpleNamespace(
        heldout_examples=lambda start, stop, seq_len: (ids[start:stop, :-1], ids[start:stop, 1:]),
        heldout_entropy=lambda n, seq_len: 0.25 * n,
        scored=None,
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
    assert got.entropy == 0.75
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


def task_setting(kind: str, length: int, windows: int, **fields: Any) -> tuple[Any, Any]:
    data = {"corpus": {"kind": kind, **fields}}
    config = resolve(
        {
            "model": {"d_model": 8, "n_layers": 1, "n_heads": 1, "seq_len": length},
            "data": data,
            "optim": {"peak_lr": 1, "batch_tokens": length},
            "tokens": 10 * length,
            "eval": {"tokens": length * windows},
        },
        "t",
    )
    return open_corpus(config.data, Path("/nowhere")), config


class Oracle(torch.nn.Module):
    """Reads the content of a copy task and is sure of it; every `lapse`-th row's last answer is wrong."""

    def __init__(self, alphabet: int, lapse: int = 0) -> None:
        super().__init__()
        self.alphabet, self.lapse, self.rows = alphabet, lapse, 0

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*tokens.shape, self.alphabet + 2)
        for row, ids in enumerate(tokens):
            content = ids[ids < self.alphabet]
            places = torch.arange(len(ids) - len(content), len(ids))
            self.rows += 1
            if self.lapse and self.rows % self.lapse == 0:
                content = content.clone()
                content[-1] = (content[-1] + 1) % self.alphabet
            out[row, places, content] = 50.0
        return out


class Constant(torch.nn.Module):
    """Believes every token equally likely, the first a little more."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*tokens.shape, self.vocab_size)
        out[..., 0] = 1e-6
        return out


@pytest.mark.parametrize("kind", ["copy", "selective-copy"])
def test_an_oracle_is_right_and_a_constant_by_chance(kind: str) -> None:
    corpus, config = task_setting(kind, 20, 300, n_tokens=5, alphabet=4)
    right = evaluate(Oracle(4), corpus, config, 7, torch.device("cpu"))  # type: ignore[arg-type]
    assert (right.accuracy, right.exact_match, right.bits_per_byte) == (1.0, 1.0, None)
    assert right.loss == pytest.approx(0, abs=1e-12) and right.tokens == 1500
    lapse = evaluate(Oracle(4, 3), corpus, config, 300, torch.device("cpu"))  # type: ignore[arg-type]
    assert lapse.accuracy == pytest.approx(1 - 1 / 15) and lapse.exact_match == pytest.approx(2 / 3)
    assert lapse.loss == pytest.approx(50 / 15, rel=1e-4)
    assert lapse.loss_se == pytest.approx(np.std([0, 0, 10] * 100, ddof=1) / math.sqrt(300), rel=1e-4)
    chance = evaluate(Constant(6), corpus, config, 32, torch.device("cpu"))  # type: ignore[arg-type]
    assert chance.accuracy == pytest.approx(1 / 4, abs=0.05) and chance.exact_match < 0.02  # type: ignore[operator]
    assert chance.loss == pytest.approx(math.log(6), rel=1e-5)


def test_other_lengths_and_amounts_of_a_task() -> None:
    corpus, config = task_setting("copy", 40, 10, n_tokens=5, alphabet=4)
    for seq_len, tokens, sequences in ((None, None, 10), (20, None, 20), (80, 800, 10), (400, 1, 2)):
        got = evaluate(
            Oracle(4),
            corpus,
            config,
            4,
            torch.device("cpu"),
            seq_len=seq_len,
            tokens=tokens,  # type: ignore[arg-type]
        )
        assert got.tokens == 5 * sequences and got.exact_match == 1
    seen = []

    class Watching(Oracle):
        def logits(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(tokens.shape))
            return super().logits(tokens)

    evaluate(Watching(4), corpus, config, 4, torch.device("cpu"), seq_len=80)  # type: ignore[arg-type]
    assert seen == [(2, 80), (2, 80), (1, 80)], "memory stays what it was in training"


def test_processes_share_the_sequences_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, config = task_setting("selective-copy", 20, 7, n_tokens=5, alphabet=4)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(World, "sum", lambda self, value: seen.append(value.clone()) or value)
    for world in (World(0, 2), World(1, 2), ALONE):
        evaluate(Oracle(4), corpus, config, 2, torch.device("cpu"), world)  # type: ignore[arg-type]
    assert len(seen) == 9
    for first, second, whole in zip(seen[:3], seen[3:6], seen[6:], strict=True):
        assert torch.equal(first + second, whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_text_is_measured_as_ever_bit_for_bit(precision: str) -> None:
    """The windows, the losses and their means, computed step by step as evaluation always did."""
    corpus, config = task_setting("synthetic", 16, 11, vocab_size=8, order=1)
    config = config.model_copy(update={"precision": precision})
    torch.manual_seed(0)
    network = build_network(config.model)
    initialise(network, 1)
    got = evaluate(network, corpus, config, 4, torch.device("cpu"))
    means = torch.zeros(11, dtype=torch.float64)
    network.eval()
    with torch.no_grad():
        for start in (0, 4, 8):
            stop = min(11, start + 4)
            tokens = torch.from_numpy(corpus.heldout_sequences(start, stop, 16))
            with autocast(config, torch.device("cpu")):
                losses = network(tokens[:, :-1], tokens[:, 1:])
            means[start:stop] = losses.double().mean(dim=1)
    assert got.loss == float(means.mean()) and got.loss_se == float(means.std()) / math.sqrt(11)
    assert (got.tokens, got.accuracy, got.exact_match) == (176, None, None)


@pytest.mark.parametrize("kind", ["copy", "images"])
def test_a_task_is_scored_as_the_network_s_own_loss(kind: str) -> None:
    """One pass for loss and answers gives what two would: forward's losses, which ignore the rest."""
    fields = {"side": 16, "levels": 8} if kind == "images" else {}
    corpus, config = task_setting(kind, 256, 5, **fields)
    network = build_network(config.model)
    initialise(network, 1)
    got = evaluate(network, corpus, config, 2, torch.device("cpu"))
    inputs, targets = (torch.from_numpy(ids) for ids in corpus.heldout_examples(0, 5, 256))
    network.eval()
    with torch.no_grad():
        losses = network(inputs, targets).double().sum(dim=1) / corpus.scored
        chosen = network.logits(inputs).argmax(-1)
    assert got.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    hits = (chosen == targets) & (targets != IGNORE)
    assert got.accuracy == pytest.approx(float(hits.sum()) / (5 * corpus.scored))
