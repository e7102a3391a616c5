"""The loop on tiny runs: kill and resume bit for bit, divergence, damaged checkpoints, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import list_checkpoints, load_weights
from trainer.config import RunConfig
from trainer.corpora import fingerprint, prepare
from trainer.errors import CheckpointError, ConfigError, CorpusError, RunDirError
from trainer.execution import Execution
from trainer.loop import Progress, train
from trainer.models.transformer import Transformer
from trainer.presets import merge, resolve
from trainer.rundir import only_writer, read_metrics, read_result, read_status

TINY: dict[str, Any] = {
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "seq_len": 16, "dense_first_ffn": False},
    "structure": "blockshuffle-63",
    "data": {"corpus": {"kind": "synthetic", "vocab_size": 32, "order": 1}, "tokenizer": None},
    "optim": {"peak_lr": 1e-2, "batch_tokens": 64},
    "eval": {"tokens": 256},
    "tokens": 64 * 30,
}
EVERY_STEP = Execution(device="cpu", threads=1, checkpoint_seconds=0, heartbeat_seconds=1e-9)


class Killed(BaseException):
    """Stands for a process that ends between two instructions."""


def run(
    folder: Path,
    execution: Execution = EVERY_STEP,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda p: None,
    **change: Any,
) -> str:
    config = resolve(merge(TINY, change), "test")
    corpus = prepare(config.data, folder.parent, progress=False)
    return train(
        config, corpus, folder, config.run_id(fingerprint(config.data)), execution, should_stop, on_progress
    )


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["train_loss"], line["grad_norm"]) for line in read_metrics(folder)]


def stop_at(call: int, error: type[BaseException] | None = None) -> Callable[[], bool]:
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        if asked == call and error is not None:
            raise error
        return asked >= call

    return ask


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == "done"
    return folder


def assert_same_outcome(folder: Path, reference: Path) -> None:
    assert losses(folder) == losses(reference)
    result, expected = read_result(folder), read_result(reference)
    assert result is not None
    assert expected is not None
    for key in ("val_loss", "val_loss_se", "train_loss", "run_id", "tokens", "train_flops"):
        assert result[key] == expected[key], key
    states = []
    for path in (folder, reference):
        network = Transformer(resolve(TINY, "t").model)
        load_weights(path, network)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_run_learns_and_leaves_a_complete_folder(undisturbed: Path) -> None:
    lines = read_metrics(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    result = read_result(undisturbed)
    assert result is not None
    assert result["state"] == "done"
    assert result["structure"] == "blockshuffle-63"
    assert result["val_tokens"] == 256
    assert result["val_loss"] > result["entropy_rate"]
    assert len(list_checkpoints(undisturbed)) == 2
    assert read_status(undisturbed)["state"] == "done"
    assert not list(undisturbed.rglob("*.tmp"))
    assert RunConfig.model_validate_json((undisturbed / "config.json").read_text()) == resolve(TINY, "t")


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert run(undisturbed) == "done"
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}


@pytest.mark.parametrize("step", [1, 2, 7, 29, 30])
def test_stopped_and_resumed_is_bit_identical(tmp_path: Path, undisturbed: Path, step: int) -> None:
    folder = tmp_path / "run"
    first = run(folder, should_stop=stop_at(step))
    assert first == "preempted"
    assert read_status(folder)["state"] == "preempted"
    assert run(folder) == "done"
    assert_same_outcome(folder, undisturbed)


@pytest.mark.parametrize("step", [1, 5, 17, 30])
@pytest.mark.parametrize("every", [1, 4])
def test_killed_between_checkpoints_and_resumed_is_bit_identical(
    tmp_path: Path, undisturbed: Path, step: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is replaced, so that a checkpoint falls on every fourth step and the kill loses some."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("trainer.loop.time.monotonic", lambda: float(next(ticks)))
    folder = tmp_path / "run"
    execution = Execution(device="cpu", threads=1, checkpoint_seconds=every, heartbeat_seconds=1e9)
    with pytest.raises(Killed):
        run(folder, execution, should_stop=stop_at(step, Killed))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "trai')
    assert run(folder, execution) == "done"
    assert_same_outcome(folder, undisturbed)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    run(folder, should_stop=stop_at(9))
    newest, older = list_checkpoints(folder)
    newest.write_bytes(newest.read_bytes()[:-100])
    notes: list[str] = []
    assert run(folder, on_progress=lambda p: notes.append(p.note) if p.note else None) == "done"
    assert any(newest.name in note and "falling back" in note for note in notes)
    assert any(f"resumed at step {int(older.stem.split('-')[1])} " in note for note in notes)
    assert_same_outcome(folder, undisturbed)


def test_all_checkpoints_damaged_is_told_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, should_stop=stop_at(9))
    for path in list_checkpoints(folder):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        run(folder)
    assert len(list_checkpoints(folder)) == 2


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    run(folder, should_stop=stop_at(5))
    with pytest.raises(RunDirError, match=r"holds another run \(optim.peak_lr is 0.01 there and 0.02 here\)"):
        run(folder, optim={"peak_lr": 2e-2})
    with pytest.raises(RunDirError, match="holds another run"):
        run(folder, model={"d_model": 32})
    assert run(folder) == "done"
    with pytest.raises(RunDirError, match="holds another run"):
        run(folder, seed=2)
    (folder / "config.json").unlink()
    with pytest.raises(RunDirError, match="holds the result of run"):
        run(folder, seed=2)
    assert_same_outcome(folder, undisturbed)


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_writer(folder), pytest.raises(RunDirError, match="another process is training"):
        run(folder)
    assert run(folder) == "done"


def test_what_a_kill_in_a_save_leaves_is_removed(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    run(folder, should_stop=stop_at(5))
    leftovers = [folder / "checkpoints" / name for name in (".step-9.abc.tmp", "step-000000009.safetensors")]
    for path in leftovers:
        path.write_bytes(b"half")
    assert run(folder) == "done"
    assert not any(path.exists() for path in leftovers)
    assert_same_outcome(folder, undisturbed)


def test_spoilt_metrics_lines_do_not_stop_a_resume(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    run(folder, should_stop=stop_at(9))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*lines[:3], "\0" * 40 + "\n", *lines[4:]]))
    assert run(folder) == "done"
    assert losses(folder) == [line for line in losses(undisturbed) if line[0] != 4]


def test_each_attempt_leaves_its_environment(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, should_stop=stop_at(2))
    run(folder, should_stop=stop_at(2))
    run(folder)
    environment = json.loads((folder / "env.json").read_text())
    assert len(environment["earlier_attempts"]) == 2
    assert environment["packages"]["torch"].startswith("2.13")


def test_what_the_corpus_cannot_give_is_told_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 8 is less than the 32 ids"):
        run(tmp_path / "run", model={"vocab_size": 8})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_changed_result_is_refused(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    text = (undisturbed / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"val_loss": ', '"val_loss": 1'))
    with pytest.raises(RunDirError, match=r"result.json: corrupted"):
        run(folder)
    (folder / "result.json").write_text(text[:50])
    with pytest.raises(RunDirError, match=r"not JSON"):
        run(folder)


def test_a_run_that_explodes_is_diverged_before_the_update(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, optim={"peak_lr": 9.0, "clip": 1e9, "warmup_fraction": 0.0}) == "diverged"
    result = read_result(folder)
    assert result is not None
    assert result["state"] == "diverged"
    assert result["val_loss"] is None
    assert 0 < result["diverged_step"] < result["steps"] <= 30
    assert result["tokens"] == result["steps"] * 64
    assert read_status(folder)["state"] == "diverged"
    assert run(folder, optim={"peak_lr": 9.0, "clip": 1e9, "warmup_fraction": 0.0}) == "diverged"
    network = Transformer(resolve(TINY, "t").model)
    assert load_weights(folder, network) == result["diverged_step"]
    assert all(torch.isfinite(p).all() for p in network.parameters())


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_micro_batch_changes_only_rounding(tmp_path: Path, undisturbed: Path, micro: int) -> None:
    folder = tmp_path / "run"
    run(folder, Execution(device="cpu", threads=1, micro_batch=micro))
    for (_, a, _), (_, b, _) in zip(losses(folder), losses(undisturbed), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiling_changes_only_rounding(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    run(folder, Execution(device="cpu", threads=1, compile=True))
    for (_, a, _), (_, b, _) in zip(losses(folder), losses(undisturbed), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_accumulation_over_uneven_wishes_uses_a_divisor(tmp_path: Path) -> None:
    assert run(tmp_path / "run", Execution(device="cpu", threads=1, micro_batch=3)) == "done"


def test_structures_see_the_same_batches(tmp_path: Path) -> None:
    from trainer.batches import Batches

    batches = []
    for structure in ("dense", "lowrank-32"):
        config = resolve({**TINY, "structure": structure}, "t")
        corpus = prepare(config.data, tmp_path, progress=False)
        batches.append(Batches(corpus, 1, 16, config.batch_sequences, 1).batch(5)[0])
    assert (batches[0] == batches[1]).all()


def test_networks_share_all_weights_but_the_ffn() -> None:
    from trainer.models.parametrize import initialise

    networks = [Transformer(resolve({**TINY, "structure": s}, "t").model) for s in ("dense", "lowrank-32")]
    for network in networks:
        initialise(network, seed=3)
    dense, low = (dict(n.named_parameters()) for n in networks)
    shared = [name for name in dense if "ffn" not in name]
    assert shared
    assert all(torch.equal(dense[name], low[name]) for name in shared)


def test_bf16_and_the_two_attention_kernels_agree(tmp_path: Path, undisturbed: Path) -> None:
    for kernel, precision in (("matmul", "fp32"), ("sdpa", "bf16"), ("matmul", "bf16")):
        folder = tmp_path / f"{kernel}-{precision}"
        run(folder, Execution(device="cpu", threads=1, attention=kernel), precision=precision)
        tolerance = 1e-5 if precision == "fp32" else 3e-2
        for (_, a, _), (_, b, _) in zip(losses(folder), losses(undisturbed), strict=True):
            assert a == pytest.approx(b, rel=tolerance)


def test_too_many_tokens_for_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"some words {number} " * 40)
    data = {
        "corpus": {"kind": "text", "paths": [str(tmp_path / "text")]},
        "tokenizer": "bytes",
        "heldout_fraction": 0.5,
    }
    with pytest.raises(CorpusError, match=r"640,?000.*max_epochs"):
        run(tmp_path / "run", data=data, tokens=64 * 10_000)


def test_a_full_disk_is_one_line_and_resumable(tmp_path: Path, undisturbed: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=768k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(RunDirError, match="free some"):
            (disk / "ballast").write_bytes(b"0" * 600_000)
            run(disk / "run")
        (disk / "ballast").unlink()
        assert run(disk / "run") == "done"
        assert_same_outcome(disk / "run", undisturbed)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def write_config(path: Path, partial: dict[str, Any] = TINY) -> None:
    config = resolve(partial, "t").model_dump(mode="json")

    def table(prefix: str, value: dict[str, Any]) -> str:
        plain = [
            f"{k} = {json.dumps(v)}" for k, v in value.items() if not isinstance(v, dict) and v is not None
        ]
        nested = [table(f"{prefix}.{k}" if prefix else k, v) for k, v in value.items() if isinstance(v, dict)]
        return "\n".join(([f"[{prefix}]"] if prefix else []) + plain + nested)

    path.write_text(table("", config))


def start_cli(folder: Path, results: Path, config: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer", "train", "--config", str(config), "--out", str(folder)]
    command += ["--results", str(results), "--threads", "1", "--device", "cpu", *options]
    return subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_sigkill_at_random_instants_through_the_command_line(tmp_path: Path, undisturbed: Path) -> None:
    config, folder = tmp_path / "run.toml", tmp_path / "run"
    write_config(config)
    for attempt in range(3):
        process = start_cli(folder, tmp_path, config, "--checkpoint-seconds", "0")
        wanted = 5 * (attempt + 1)
        deadline = time.monotonic() + 60
        while len(read_metrics(folder)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    process = start_cli(folder, tmp_path, config)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "held-out loss" in out
    assert_same_outcome(folder, undisturbed)


@pytest.mark.slow
def test_two_processes_train_the_same_run(tmp_path: Path, undisturbed: Path) -> None:
    config, folder = tmp_path / "run.toml", tmp_path / "run"
    write_config(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [start_cli(folder, tmp_path, config, **env, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    for (_, a, _), (_, b, _) in zip(losses(folder), losses(undisturbed), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_an_uneven_number_of_processes_is_refused(tmp_path: Path) -> None:
    from trainer.device import micro_batch

    with pytest.raises(ConfigError, match="does not divide over 3 processes"):
        micro_batch(resolve(TINY, "t"), Execution(), torch.device("cpu"), 3)
