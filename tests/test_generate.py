"""Draws and choices of tokens; the commands generate and bench decode, on runs that were really trained."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer import crossover
from trainer.__main__ import main
from trainer.bench.table import read_rows
from trainer.checkpoint import load_weights
from trainer.corpora import fingerprint, prepare
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.generate import find_run
from trainer.loop import train
from trainer.models.transformer import Transformer
from trainer.presets import resolve
from trainer.rundir import write_status
from trainer.sampling import Sampling, choose, draws


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products here are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_without_a_prompt_as_many_windows_as_there_are_will_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The least held-out part that a run can be measured on: two windows, where three prompts are usual."""
    ids = np.random.default_rng(1).integers(0, 32, size=4000, dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    ids[:65].tofile(tmp_path / "heldout.bin")
    corpus = {
        "kind": "tokens", "paths": [str(tmp_path / "train.bin")],
        "validation": [str(tmp_path / "heldout.bin")], "vocab_size": 32,
    }  # fmt: skip
    run = trained(tmp_path, {"corpus": corpus}, steps=3)
    options = ("--results", str(tmp_path), "--threads", "1", "--tokens", "2", "--premerge", "never", "--json")
    assert command(monkeypatch, "generate", run, *options) == 0, capsys.readouterr().err
    prompts = sorted(row["prompt_ids"] for row in json.loads(capsys.readouterr().out)["rows"])
    assert prompts == sorted([ids[:16].tolist(), ids[32:48].tolist()])
    # A corpus that lost them, as another user's may have: no window to begin from.
    found = find_run(run, tmp_path)
    found.corpus.n_heldout_tokens = 32
    with pytest.raises(ConfigError, match="no held-out window of 32 tokens to begin from; give --prompt"):
        found.heldout_prompts(3)


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
        assert row["tokens_per_second_min"] == pytest.approx(1e3 * row["batch"] / row["ms_max"])
        assert row["tokens_per_second_max"] == pytest.approx(1e3 * row["batch"] / row["ms_min"])
    assert len(read_rows(tmp_path / "tables" / "bench" / "decode.csv")) == 8
    for wrong, message in (
        (("--premerge", "often"), "known are never, always and auto"),
        (("--batches", "0"), "--batches 0"),
        (("--structures", "lowrnk-32"), "did you mean"),
    ):
        assert command(monkeypatch, "bench", "decode", *wrong, "--results", str(tmp_path)) == 2
        assert message in capsys.readouterr().err
