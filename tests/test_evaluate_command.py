"""`python -m trainer evaluate` on runs that were really trained: text and a task, other lengths, mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.__main__ import main
from trainer.checkpoint import list_checkpoints
from trainer.corpora import fingerprint, prepare
from trainer.execution import Execution
from trainer.loop import train
from trainer.presets import resolve
from trainer.rundir import read_result

TEXT = "The quick brown fox jumps over the lazy dog, again and again; {} times in all.\n"


def trained(results: Path, data: Any, stop: int | None = None, **model: Any) -> str:
    config = resolve(
        {
            "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "seq_len": 32, **model},
            "data": data,
            "optim": {"peak_lr": 1e-3, "batch_tokens": 128},
            "tokens": 128 * 12,
            "eval": {"tokens": 1024},
        },
        "t",
    )
    corpus = prepare(config.data, results, progress=False)
    run_id = config.run_id(fingerprint(config.data))
    steps = iter(range(10**9))
    should_stop = (lambda: next(steps) >= stop) if stop is not None else (lambda: False)
    train(
        config,
        corpus,
        results / "runs" / run_id,
        run_id,
        Execution(device="cpu", threads=1, checkpoint_seconds=0),
        should_stop=should_stop,
    )
    return run_id


def text_data(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": TEXT.format(i)}) + "\n" for i in range(300))
    (folder / "a.jsonl").write_text(lines)
    return {"corpus": f"text:{folder}", "tokenizer": "chars", "heldout_fraction": 0.2}


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", "evaluate", *map(str, words), "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_text_run_gives_its_own_loss_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = trained(tmp_path, text_data(tmp_path / "texts"))
    result = read_result(tmp_path / "runs" / run_id)
    assert result is not None
    assert command(monkeypatch, run_id, "--results", tmp_path, "--json", "--threads", 1) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["loss"] == result["val_loss"] and facts["loss_se"] == result["val_loss_se"]
    assert facts["bits_per_byte"] == result["val_bits_per_byte"] and facts["note"] == ""
    assert (facts["accuracy"], facts["exact_match"]) == (None, None)
    assert (facts["sequences"], facts["scored"], facts["step"]) == (32, 1024, 12)
    assert command(monkeypatch, tmp_path / "runs" / run_id, "--seq-len", 8, "--tokens", 400) == 0
    shown = capsys.readouterr()
    assert "bits per byte" in shown.out and "50 sequences of 8 tokens" in shown.err


def test_a_task_at_other_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = {"kind": "copy", "n_tokens": 4, "alphabet": 4}
    run_id = trained(tmp_path, {"corpus": corpus}, kind="recurrent", recurrence={"block": 8})
    for length, sequences in ((16, 64), (32, 32), (80, 12)):
        assert command(monkeypatch, run_id, "--results", tmp_path, "--seq-len", length, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["sequences"], facts["scored"]) == (sequences, 4 * sequences)
        assert 0 <= facts["exact_match"] <= facts["accuracy"] <= 1 and facts["entropy_rate"] == 0
    assert command(monkeypatch, run_id, "--results", tmp_path) == 0
    assert "accuracy" in capsys.readouterr().out
    assert command(monkeypatch, run_id, "--results", tmp_path, "--seq-len", 7) == 2
    assert "no room for 4 tokens" in capsys.readouterr().err


def test_mistakes_and_unfinished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = trained(tmp_path, text_data(tmp_path / "texts"), stop=4)
    where = (run_id, "--results", tmp_path)
    assert command(monkeypatch, *where) == 0
    assert "weights after step" in capsys.readouterr().err
    for words, message in (
        (("--seq-len", 33), "the network has positions for 32 tokens"),
        (("--tokens", 10**9), "are there; ask for at most --tokens"),
        (("--seq-len", 0), "--seq-len"),
    ):
        assert command(monkeypatch, *where, *words) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1
    assert command(monkeypatch, "nothing", "--results", tmp_path) == 2
    assert "no such folder" in capsys.readouterr().err
    for path in list_checkpoints(tmp_path / "runs" / run_id):
        path.unlink()
    assert command(monkeypatch, *where) == 2
    assert "no good checkpoint" in capsys.readouterr().err


def test_a_changed_corpus_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = text_data(tmp_path / "texts")
    run_id = trained(tmp_path, data)
    with open(tmp_path / "texts" / "a.jsonl", "a") as file:
        file.write('{"text": "one more document"}\n')
    assert command(monkeypatch, run_id, "--results", tmp_path) == 2
    assert "not prepared" in capsys.readouterr().err
    prepare(resolve_data(data), tmp_path, progress=False)
    assert command(monkeypatch, run_id, "--results", tmp_path) == 0
    assert "the corpus has changed" in capsys.readouterr().err


def resolve_data(data: dict[str, Any]) -> Any:
    from trainer.corpora import DataConfig

    return DataConfig.model_validate(data)


def test_generation_from_a_run_on_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = trained(tmp_path, text_data(tmp_path / "texts"))
    words = ["generate", run_id, "--prompt", "The 🙂 fox", "--tokens", "5", "--json", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["trainer", *words, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["prompt"] == "The \ufffd fox" and len(row["prompt_ids"]) == 9 and row["prompt_ids"][4] == 1
    assert torch.tensor(row["ids"]).max() < 128


def test_evaluating_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(tmp_path, {"corpus": {"kind": "copy", "n_tokens": 4, "alphabet": 4}})
    folder = tmp_path / "runs" / run_id
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert command(monkeypatch, folder) == 0
    assert before == {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
