"""Generation: the cache against whole passes, merged weights against factors, draws, crossovers, commands."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import crossover
from trainer.__main__ import main
from trainer.bench.table import read_rows
from trainer.checkpoint import load_weights
from trainer.corpora import fingerprint, prepare
from trainer.crossover import Crossover, Setting, crossovers, prefers, read_crossovers, token_counts
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.generate import Generator, find_run
from trainer.loop import train
from trainer.models.decode import KVCache, advance, cast_weights
from trainer.models.parametrize import initialise
from trainer.models.premerge import (
    MapShape,
    PremergedLinear,
    decoding_memory,
    prepare_for_decoding,
)
from trainer.models.structures import Structure, structure_from
from trainer.models.transformer import Transformer
from trainer.presets import resolve
from trainer.rundir import write_status
from trainer.sampling import Sampling, choose, draws

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
    # The papers' small initialisation would hide a wrong position behind near-zero activations.
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4)
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


def test_a_moved_network_still_uses_its_own_factors() -> None:
    net = prepare_for_decoding(network("lowrank-63"), "never", lambda shape: None)
    moved = net.to(torch.float32)
    assert in_parts(moved, tokens_of(1), (0, 12)).dtype == torch.float32


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


@pytest.mark.parametrize("network_bytes", [1, 10**12])
def test_both_forms_are_really_timed(network_bytes: int) -> None:
    shape = MapShape(structure_from("lowrank-32", 256), 256, 1024)
    table = crossover.measure(shape, Setting(CPU, torch.float32, network_bytes), [1, 512])
    assert table.tokens == [1, 512]
    assert table.factors[1] > table.factors[0] > 0
    assert table.merged[1] > table.factors[1]  # 3.2 times the arithmetic


def test_draws_depend_on_seed_row_and_position_only() -> None:
    whole = draws(1, range(4), 10)
    np.testing.assert_array_equal(draws(1, range(2, 4), 6), whole[2:, :6])
    assert len(np.unique(whole)) == 40
    assert not np.isin(draws(2, range(4), 10), whole).any()


def picks(logits: list[float], n: int = 2000, **how: Any) -> list[float]:
    """Share of each token among many choices."""
    chosen = choose(
        torch.tensor([logits]).expand(n, -1), Sampling(**how), torch.linspace(0, 1 - 1e-9, n).double()
    )
    return [float((chosen == i).double().mean()) for i in range(len(logits))]


def test_choices_follow_the_probabilities() -> None:
    logits = [1.0, 3.0, 2.0, 0.0]
    for how in ({}, {"top_k": 4}, {"top_k": 99}, {"top_p": 1.0}):
        assert picks(logits, **how) == pytest.approx(torch.tensor(logits).softmax(-1).tolist(), abs=2e-3)
    assert picks(logits, temperature=2.0) == pytest.approx(
        (torch.tensor(logits) / 2).softmax(-1).tolist(), abs=2e-3
    )
    two = torch.tensor([3.0, 2.0]).softmax(-1).tolist()
    assert picks(logits, top_k=2) == pytest.approx([0, two[0], two[1], 0], abs=2e-3)
    # 3 has probability 0.644, with 2 0.881: two tokens are needed for 0.7, one for 0.6.
    assert picks(logits, top_p=0.7) == pytest.approx([0, two[0], two[1], 0], abs=2e-3)
    for how in ({"top_p": 0.6}, {"top_p": 1e-12}, {"top_k": 1}, {"temperature": 0}, {"temperature": 1e-300}):
        assert picks(logits, **how) == [0, 1, 0, 0]


def test_no_choice_falls_on_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for uniform in (0.0, 1 - 2**-53):
        chosen = choose(logits, Sampling(), torch.tensor([uniform]).double())
        assert int(chosen) in (1, 2)


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


# The commands, on runs that were really trained.


def trained(results: Path, data: Any, steps: int = 30, stop: int | None = None) -> str:
    config = resolve(
        {
            "model": {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "seq_len": 32},
            "structure": "lowrank-63",
            "data": data,
            "optim": {"peak_lr": 1e-2, "batch_tokens": 256},
            "eval": {"tokens": 64},
            "tokens": 256 * steps,
        },
        "t",
    )
    corpus = prepare(config.data, results, progress=False)
    run_id = config.run_id(fingerprint(config.data))
    asked = iter(range(10**6))
    execution = Execution(device="cpu", threads=1)
    folder = results / "runs" / run_id
    state = train(config, corpus, folder, run_id, execution, lambda: next(asked) == stop, lambda p: None)
    assert state == ("done" if stop is None else "preempted")
    return run_id


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, str]:
    """A results folder and its runs: of a text, of ids, and of an unfinished one."""
    root = tmp_path_factory.mktemp("generate")
    text = root / "text"
    text.mkdir()
    for number in range(60):
        lines = (f"the quick brown fox {number} jumps over {k} lazy dogs\n" for k in range(20))
        (text / f"{number}.txt").write_text("".join(lines))
    synthetic = {"corpus": {"kind": "synthetic", "vocab_size": 32, "order": 1}}
    results = root / "results"
    return (
        results,
        trained(results, {"corpus": f"text:{text}", "tokenizer": "bytes", "heldout_fraction": 0.1}, 120),
        trained(results, synthetic),
        trained(results, synthetic, 50, stop=9),
    )


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_text_goes_on_from_prompts(
    home: tuple[Path, str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    results, run, *_ = home
    (tmp_path / "prompt.txt").write_text("the quick br")
    options = (
        "--results", str(results), "--threads", "1", "--tokens", "15", "--temperature", "0", "--json",
        "--prompt", "jumps over 1", "--prompt", "", "--prompt-file", str(tmp_path / "prompt.txt"),
    )  # fmt: skip
    assert command(monkeypatch, "generate", run, *options) == 0
    facts = json.loads(capsys.readouterr().out)
    first, empty, third = facts["rows"]
    assert (first["prompt"], first["prompt_ids"]) == ("jumps over 1", list(b"jumps over 1"))
    assert empty["prompt_ids"] == [256]
    assert third["text"].startswith("own fox ")
    assert [len(row["ids"]) for row in facts["rows"]] == [15] * 3
    assert bytes(third["ids"]).decode() == third["text"]
    assert facts["step"] == 120
    assert facts["note"] == ""
    network = Transformer(find_run(run, results).config.model)
    load_weights(results / "runs" / run, network)
    assert facts["bytes"]["weights"] == sum(p.nbytes for p in network.parameters())
    assert facts["bytes"]["cache"] == 2 * 2 * 3 * 2 * (12 + 15) * 8 * 4
    assert (results / crossover.FILE).is_file()
    # From the folder, one prompt at a time, by the other forms: the same text.
    for mode in ("always", "never"):
        again = ("generate", str(results / "runs" / run), *options[2:], "--batch", "1", "--premerge", mode)
        assert command(monkeypatch, *again) == 0
        other = json.loads(capsys.readouterr().out)
        assert [row["text"] for row in other["rows"]] == [row["text"] for row in facts["rows"]]
    assert other["bytes"]["merged"] == 0


def test_default_prompts_and_plain_output(
    home: tuple[Path, str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, run, *_ = home
    assert command(monkeypatch, "generate", run[:6], "--results", str(results), "--through-end") == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("---")] == ["--- 1", "--- 2", "--- 3"]
    assert "48 tokens in" in err
    assert "tokens/s" in err
    assert "merged" in err


def test_ids_without_text_and_unfinished_runs(
    home: tuple[Path, str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, _, done, stopped = home
    options = ("--results", str(results), "--prompt", "3 17, 5", "--tokens", "4", "--temperature", "0")
    assert command(monkeypatch, "generate", done, *options, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"][0]["text"] == "".join(f" {i}" for i in facts["rows"][0]["ids"])
    assert command(monkeypatch, "generate", stopped, *options) == 0
    out, err = capsys.readouterr()
    assert "the run is preempted; these are its weights after step 10 of 50" in err
    assert out.startswith("--- 1\n3 17 5 ")


def test_mistakes_are_one_line(
    home: tuple[Path, str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    results, run, ids, _ = home
    (tmp_path / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.json").write_text((results / "runs" / ids / "config.json").read_text())
    write_status(new, {"state": "diverged"})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model": {}}')
    for arguments, message in (
        (("nothing",), "no such folder, and no such id in"),
        (("",), "the run is empty"),
        ((str(tmp_path),), "no config.json in this folder"),
        ((str(new),), "no good checkpoint; train the run first"),
        ((str(broken),), "config.json: "),
        ((ids, "--prompt", "the"), "give ids from 0 to 31"),
        ((ids, "--prompt", "3 32"), "give ids from 0 to 31"),
        ((run, "--prompt", "\udce9"), "--prompt 1: not UTF-8"),
        ((run, "--prompt-file", str(tmp_path / "latin1.txt")), "not UTF-8 (byte 3)"),
        ((run, "--prompt-file", str(tmp_path / "none.txt")), "No such file"),
        ((run, "--prompt", "a" * 20, "--tokens", "20"), "seq_len = 32); ask for at most --tokens 12"),
        ((run, "--prompt", "a" * 40), "give at most 31 tokens of prompt"),
        ((run, "--premerge", "maybe"), "known are auto, always, never"),
        ((run, "--precision", "fp8"), "known are fp32, bf16"),
        ((run, "--temperature", "-1"), "temperature = -1.0"),
        ((run, "--top-p", "0"), "top_p"),
        ((run, "--top-k", "0"), "top_k"),
        ((run, "--device", "tpu"), "device"),
    ):
        assert command(monkeypatch, "generate", *arguments, "--results", str(results)) == 2, arguments
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert message in lines[0], lines[0]


def test_a_corpus_that_is_gone_is_told_with_its_command(
    home: tuple[Path, str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    results, run, *_ = home
    folder = tmp_path / "elsewhere"
    folder.symlink_to(results / "runs" / run)
    (tmp_path / "results").mkdir()
    moved = tmp_path / "results" / "a"
    moved.mkdir()
    for name in ("config.json", "checkpoints"):
        (moved / name).symlink_to(folder / name)
    assert command(monkeypatch, "generate", str(moved), "--results", str(tmp_path / "results")) == 2
    assert "python -m trainer data" in capsys.readouterr().err
    options = (
        "--prompt",
        "the",
        "--tokens",
        "3",
        "--premerge",
        "never",
        "--results",
        str(tmp_path / "results"),
    )
    # Bytes are their own tokenizer: with a prompt the corpus is not asked for.
    assert command(monkeypatch, "generate", str(moved), *options) == 0


def test_bench_decode_writes_a_row_a_network_mode_and_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = textwrap.dedent("""\
        --d-model 32 --n-layers 2 --n-heads 2 --n-kv-heads 1 --structures lowrank-32 --batches 1,3
        --length 16 --repeats 2 --threads 1 --device cpu --json""").split()
    assert command(monkeypatch, "bench", "decode", *options, "--results", str(tmp_path)) == 0
    rows = json.loads(capsys.readouterr().out)
    names = ["dense", *(f"lowrank-32, premerge={mode}" for mode in ("never", "always", "auto"))]
    assert [(row["structure"], row["batch"]) for row in rows] == [(n, b) for b in (1, 3) for n in names]
    by_name = {(row["structure"], row["batch"]): row for row in rows}
    assert by_name["dense", 3]["ms_over_dense"] == 1
    assert by_name[names[1], 1]["merged_bytes"] == 0
    assert by_name[names[2], 1]["merged_bytes"] == 2 * 32 * 128 * 4
    assert (
        by_name["dense", 3]["cache_bytes"]
        == 3 * by_name["dense", 1]["cache_bytes"]
        == 3 * 2 * 2 * 16 * 16 * 4
    )
    assert by_name["dense", 1]["weight_bytes"] > by_name[names[1], 1]["weight_bytes"]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["ms"])
        assert row["ms_min"] <= row["ms"] <= row["ms_max"]
    assert len(read_rows(tmp_path / "tables" / "bench" / "decode.csv")) == 8
    for wrong, message in (
        (("--premerge", "often"), "known are never, always and auto"),
        (("--batches", "0"), "--batches 0"),
        (("--structures", "lowrnk-32"), "did you mean"),
    ):
        assert command(monkeypatch, "bench", "decode", *wrong, "--results", str(tmp_path)) == 2
        assert message in capsys.readouterr().err
