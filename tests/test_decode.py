"""Decoding: the cache against whole passes, merged weights against factors, crossovers, batches."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import crossover
from trainer.crossover import Crossover, Setting, crossovers, prefers, read_crossovers, token_counts
from trainer.errors import ConfigError
from trainer.generate import Generator
from trainer.models.decode import KVCache, advance, cast_weights
from trainer.models.parametrize import initialise
from trainer.models.premerge import (
    MapShape,
    PremergedLinear,
    PremergeMode,
    decoding_memory,
    prepare_for_decoding,
)
from trainer.models.structures import Structure, structure_from
from trainer.models.transformer import Transformer
from trainer.presets import resolve
from trainer.sampling import Sampling

CPU = torch.device("cpu")
VOCAB = 20
BASE: dict[str, Any] = {"d_model": 32, "n_layers": 3, "n_heads": 4, "seq_len": 12, "vocab_size": VOCAB}
MUP = {"parametrization": "mup", "base_d_model": 16, "base_head_dim": 4}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 2, "attn_dim": 16},
    {"n_kv_heads": 1, "qk_norm": True},
    {"activation": "swiglu", "norm": "rmsnorm", "bias": False},
    MUP,
]
FAMILIES = [f"{kind}-63" if kind != "dense" else kind for kind in Structure.registry]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products here are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(
    structure: str = "blockdense-63", dtype: torch.dtype = torch.float64, **variant: Any
) -> Transformer:
    config = resolve(
        {
            "model": {**BASE, **variant},
            "structure": structure,
            "tokens": 12,
            "optim": {"peak_lr": 1e-3, "batch_tokens": 12},
        },
        "t",
    )
    net = Transformer(config.model)
    initialise(net, 1)
    # The papers' small initialisation would hide a wrong position behind near-zero activations, and
    # biases of zero and gains of one would hide that they are not applied.
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4)
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=draws), alpha=0.3)
    return net.eval() if dtype == torch.float32 else cast_weights(net, dtype).eval()


def tokens_of(rows: int, length: int = 12) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def in_parts(net: Transformer, tokens: Tensor, cuts: Sequence[int]) -> Tensor:
    """Logits after every token, the sequence put in part after part."""
    cache = KVCache(net.model, len(tokens), dtype=net.embedding.weight.dtype)
    return torch.cat([advance(net, cache, tokens[:, a:b], every=True) for a, b in pairwise(cuts)], dim=1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("cuts", [range(13), (0, 12), (0, 5, *range(6, 13)), (0, 4, 8, 9, 12)], ids=str)
def test_cached_logits_equal_those_of_a_whole_pass(variant: dict[str, Any], cuts: Sequence[int]) -> None:
    net, tokens = network(**variant), tokens_of(3)
    with torch.no_grad():
        want = net.logits(tokens)
    assert want.abs().max() > 0.5
    torch.testing.assert_close(in_parts(net, tokens, cuts), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("structure", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=["fp32", "bf16"]
)
def test_families_in_working_precision(structure: str, dtype: torch.dtype, tolerance: float) -> None:
    tokens = tokens_of(2)
    with torch.no_grad():
        want = network(structure).logits(tokens)
    got = in_parts(network(structure, dtype), tokens, range(13)).double()
    assert float((got - want).abs().max() / want.abs().max()) < tolerance


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_rows_of_different_lengths_are_as_if_alone(variant: dict[str, Any]) -> None:
    net, tokens, counts = network(**variant), tokens_of(4), [3, 1, 7, 5]
    padded = tokens[:, :7].clone()
    for row, count in enumerate(counts):
        padded[row, count:] = 19 - row  # What stands behind a short prompt must not matter.
    cache = KVCache(net.model, 4, 12, torch.float64)
    steps = [advance(net, cache, padded, counts)]
    for step in range(5):
        steps.append(
            advance(net, cache, torch.stack([tokens[r, c + step] for r, c in enumerate(counts)])[:, None])
        )
    with torch.no_grad():
        for row, count in enumerate(counts):
            want = net.logits(tokens[[row], : count + 5])[0, count - 1 :]
            torch.testing.assert_close(torch.stack([s[row] for s in steps]), want, rtol=1e-6, atol=1e-6)


def test_several_tokens_go_behind_rows_of_different_lengths() -> None:
    net, tokens, counts = network(n_kv_heads=2), tokens_of(2), [2, 5]
    cache = KVCache(net.model, 2, dtype=torch.float64)
    advance(net, cache, tokens[:, :5], counts)
    more = torch.stack([tokens[r, c : c + 4] for r, c in enumerate(counts)])
    got = advance(net, cache, more, every=True)
    with torch.no_grad():
        for row, count in enumerate(counts):
            want = net.logits(tokens[[row], : count + 4])[0, count:]
            torch.testing.assert_close(got[row], want, rtol=1e-6, atol=1e-6)


def test_the_cache_holds_shared_heads_only_and_ends_at_seq_len() -> None:
    net = network(n_kv_heads=2)
    cache = KVCache(net.model, 3, dtype=torch.float64)
    assert cache.nbytes == 2 * 3 * 3 * 2 * 12 * 8 * 8
    advance(net, cache, tokens_of(3))
    with pytest.raises(ConfigError, match=r"13 tokens do not fit the 12 of the cache \(seq_len = 12\)"):
        advance(net, cache, tokens_of(3, 1))
    with pytest.raises(ConfigError, match="seq_len = 12"):
        KVCache(net.model, 1, 13)


def reference_logits(net: Transformer, tokens: Tensor) -> Tensor:
    """The network once more, from its weights, without any of its code; dense, learned norms, GELU."""
    model, heads = net.model, net.model.n_heads
    w = net.state_dict()
    length = tokens.shape[1]
    x = w["embedding.weight"][tokens]
    angle = torch.arange(length)[:, None] * model.rope_base ** (-torch.arange(0, 8, 2).double() / 8)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (model.d_model,), w[f"{name}.weight"], w[f"{name}.bias"], model.norm_eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.factors.weight"].T + w[f"{name}.bias"]

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 4, 2))
        return torch.view_as_real(pairs * turn).flatten(-2)

    for i in range(model.n_layers):
        parts = linear(norm(x, f"blocks.{i}.norm_attention"), f"blocks.{i}.attention.qkv")
        q, k, v = (p.view(*tokens.shape, heads, 8) for p in parts.chunk(3, dim=-1))
        scores = torch.einsum("bihe,bjhe->bhij", rotated(q), rotated(k)) / 8**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v).flatten(-2)
        x = x + linear(mixed, f"blocks.{i}.attention.out")
        inner = F.gelu(linear(norm(x, f"blocks.{i}.norm_ffn"), f"blocks.{i}.ffn.up"))
        x = x + linear(inner, f"blocks.{i}.ffn.down")
    return norm(x, "norm_head") @ w["embedding.weight"].T


def test_training_and_cached_passes_equal_an_independent_network() -> None:
    net, tokens = network("dense"), tokens_of(2)
    want = reference_logits(net, tokens)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(tokens), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_parts(net, tokens, range(13)), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("structure", FAMILIES)
@pytest.mark.parametrize("variant", [{}, {"activation": "swiglu", "d_ff": 128, "bias": False}], ids=str)
def test_merged_weights_give_the_same_logits(structure: str, variant: dict[str, Any]) -> None:
    tokens = tokens_of(2)
    with torch.no_grad():
        want = network(structure, **variant).logits(tokens)
    for mode in ("never", "always", "auto"):
        # In turns: factors for whole prompts, merged weights for single tokens.
        net = prepare_for_decoding(
            network(structure, **variant), mode, lambda shape: lambda tokens: tokens < 5
        )
        torch.testing.assert_close(in_parts(net, tokens, (0, 6, *range(7, 13))), want, rtol=1e-6, atol=1e-6)


def test_each_call_uses_the_form_that_is_cheaper_for_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    net = prepare_for_decoding(network("lowrank-63"), "auto", lambda shape: lambda tokens: tokens >= 6)
    layer = next(m for m in net.modules() if isinstance(m, PremergedLinear))
    used: list[int] = []
    original = type(layer.structure).forward
    monkeypatch.setattr(
        type(layer.structure), "forward",
        lambda self, x, *rest: used.append(x.numel() // x.shape[-1]) or original(self, x, *rest),
    )  # fmt: skip
    for shape in ((1, 5), (2, 3), (1, 6), (5,), (7,), (1, 1, 1)):
        layer(torch.randn(*shape, layer.d_in, dtype=torch.float64))
    assert used == [5, 5, 1]


@pytest.mark.parametrize("mode", ["never", "always"])
def test_a_moved_network_uses_its_moved_weights(mode: PremergeMode) -> None:
    net = prepare_for_decoding(network("sltrain-63"), mode, lambda shape: None)
    want = in_parts(net, tokens_of(1), (0, 12))
    got = in_parts(net.to(torch.float32), tokens_of(1), (0, 12))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("structure", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_that_of_the_tensors(structure: str, dtype: torch.dtype) -> None:
    plain = network(structure, dtype)
    weights = sum(tensor.nbytes for tensor in plain.state_dict().values())
    maps = [m for block in plain.blocks for m in (block.ffn.up, block.ffn.down)]  # type: ignore[union-attr]
    dense = sum(m.d_in * m.d_out * dtype.itemsize for m in maps if m.structure.kind != "dense")  # type: ignore[union-attr,operator]
    cache = KVCache(plain.model, 2, 10, dtype)
    assert decoding_memory(plain) == (weights, 0, 0)
    for mode, merged in (("never", 0), ("always", dense)):
        made = prepare_for_decoding(network(structure, dtype), mode, lambda shape: None)
        assert decoding_memory(made, cache) == (weights, merged, cache.keys.nbytes + cache.values.nbytes)
    unmerged = prepare_for_decoding(network(structure, dtype), "auto", lambda shape: None)
    assert decoding_memory(unmerged).merged == 0


def test_the_nearest_measured_count_decides() -> None:
    table = Crossover([1, 2, 4, 8], [1.0, 1.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0])
    # 2 * 4 = 8: 2.9 tokens would be as near to 2 as to 4.
    assert [table.prefers_merged(n) for n in (1, 2, 3, 4, 5, 6, 8, 10**6)] == [
        False, False, True, True, True, False, False, False,
    ]  # fmt: skip
    assert token_counts(1) == [1]
    assert token_counts(5) == [1, 2, 4, 8]
    assert token_counts(10**6)[-1] == 4096
    assert prefers(table, 2) is None
    assert prefers(table, 4) is not None


SHAPE = MapShape(structure_from("lowrank-63", 32), 32, 128)
SETTING = Setting(CPU, torch.float32, 10**5)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Counts that were measured, with times that tell merged from factors; nothing really runs."""
    calls: list[list[int]] = []

    def measure(shape: MapShape, setting: Setting, counts: list[int], on_count: Any) -> Crossover:
        calls.append(counts)
        return Crossover(counts, [1.0] * len(counts), [0.5] * len(counts))

    monkeypatch.setattr(crossover, "measure", measure)
    return calls


def test_a_crossover_is_measured_once_and_extended(tmp_path: Path, measured: list[list[int]]) -> None:
    crossovers([SHAPE], SETTING, 4, tmp_path)
    crossovers([SHAPE], SETTING, 3, tmp_path)
    tables = crossovers([SHAPE], SETTING, 16, tmp_path)
    assert measured == [[1, 2, 4], [8, 16]]
    assert tables[SHAPE].tokens == [1, 2, 4, 8, 16]
    crossovers([SHAPE], Setting(CPU, torch.bfloat16, 10**5), 1, tmp_path)
    crossovers([SHAPE], Setting(CPU, torch.float32, 10**12), 1, tmp_path)
    crossovers([SHAPE._replace(d_out=64)], SETTING, 1, tmp_path)
    assert len(measured) == 5
    keys = [json.loads(key) for key in read_crossovers(tmp_path / crossover.FILE)]
    assert len(keys) == 4
    assert {key["torch"] for key in keys} == {torch.__version__}
    assert {key["threads"] for key in keys} == {torch.get_num_threads()}
    assert sum(key["weights"] == "memory" for key in keys) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: text.replace("0.5", "-1.0"),
        lambda text: text.replace("0.5", "NaN"),
        lambda text: text.replace('"merged"', '"molten"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_told_and_measured_anew(
    tmp_path: Path, measured: list[list[int]], spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    crossovers([SHAPE], SETTING, 1, tmp_path)
    path = tmp_path / crossover.FILE
    good = path.read_text()
    path.write_text(spoil(good))
    assert crossovers([SHAPE], SETTING, 1, tmp_path)[SHAPE].merged == [0.5]
    assert len(measured) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "crossover.json: damaged" in error
    assert path.read_text() == good


@pytest.mark.parametrize("blocked", ["folder", "file"])
def test_a_file_that_cannot_be_written_costs_no_more_than_a_warning(
    tmp_path: Path, measured: list[list[int]], blocked: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if blocked == "folder":
        (tmp_path / "cache").write_text("in the way")
    else:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
    shapes = [SHAPE, SHAPE._replace(d_out=64)]
    tables = crossovers(shapes, SETTING, 1, tmp_path)
    assert [tables[shape].merged for shape in shapes] == [[0.5], [0.5]]
    assert measured == [[1], [1]]
    lines = capsys.readouterr().err.splitlines()
    reason = "File exists" if blocked == "folder" else "No space left on device"
    assert lines == [f"warning: {tmp_path / crossover.FILE}: {reason}; the crossovers are not kept"]
    assert not (tmp_path / crossover.FILE).exists()


@pytest.mark.parametrize("network_bytes", [1, 10**12])
def test_both_forms_are_really_timed(network_bytes: int) -> None:
    shape = MapShape(structure_from("lowrank-32", 256), 256, 1024)
    table = crossover.measure(shape, Setting(CPU, torch.float32, network_bytes), [1, 512])
    assert table.tokens == [1, 512]
    assert table.factors[1] > table.factors[0] > 0
    assert table.merged[1] > table.factors[1]  # 3.2 times the arithmetic


def generate(
    net: Transformer, prompts: list[list[int]], batch: int, stop: int | None = None
) -> list[list[int]]:
    made = Generator(net, CPU, "fp32", "never", Path("unused"), 1)
    return made(prompts, 5, Sampling(top_k=10), batch, stop).rows


def test_a_rows_text_depends_on_no_other_row() -> None:
    prompts = [tokens_of(1, n)[0].tolist() for n in (3, 7, 1, 5, 2)]
    together = generate(network("lowrank-63"), prompts, 5)
    assert generate(network("lowrank-63"), prompts, 1) == together
    assert generate(network("lowrank-63"), prompts, 2) == together
    assert len({tuple(row) for row in together}) == 5
    stop = together[0][2]
    ended = generate(network("lowrank-63"), prompts, 5, stop)
    assert ended[0] == together[0][: together[0].index(stop) + 1]
    assert all(short == long[: len(short)] for short, long in zip(ended, together, strict=True))


def test_generation_reaches_seq_len_and_not_beyond() -> None:
    made = Generator(network("lowrank-63"), CPU, "fp32", "never", Path("unused"), 1)
    prompt = tokens_of(1, 4)[0].tolist()
    found = made([prompt], 8, Sampling(temperature=0), 1)
    assert len(found.rows[0]) == 8
    # Each is the most likely token after all before it.
    whole = torch.tensor([prompt + found.rows[0]])
    with torch.no_grad():
        likely = network("lowrank-63", torch.float32).logits(whole).argmax(-1)[0]
    assert likely[3:-1].tolist() == found.rows[0]
    with pytest.raises(ConfigError, match=r"seq_len = 12\); ask for at most --tokens 8"):
        made([prompt], 9, Sampling(), 1)
    with pytest.raises(ConfigError, match="at most 11 tokens of prompt"):
        made([tokens_of(1)[0].tolist()], 1, Sampling(), 1)


def test_weights_that_are_not_finite_are_told() -> None:
    net = network("dense")
    with torch.no_grad():
        net.embedding.weight[3] = torch.nan
    with pytest.raises(ConfigError, match="not finite"):
        generate(net, [[3]], 1)
