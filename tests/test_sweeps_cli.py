"""The command line: what it prints, what it loads, how it answers mistakes; real runs are marked slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli, finish_run

from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.overview import Overview, look
from sweeps.sweepfile import read_sweep
from trainer.rundir import read_metrics, write_status

HEAVY = ("torch", "mlflow", "scipy", "pandas", "matplotlib", "numpy")


@pytest.fixture
def file(write_sweep: Callable[..., Path]) -> str:
    return str(write_sweep())


@pytest.fixture
def overview(file: str, results: Path) -> Overview:
    return look(read_sweep(Path(file)), results)


@pytest.mark.parametrize(
    "command", [["plan", "lowrank"], ["status", "lowrank"], ["status"], ["list"], ["--help"]]
)
def test_looking_loads_nothing_heavy(command: list[str], results: Path) -> None:
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['sweeps', *{command!r}]\n"
        "try:\n    runpy.run_module('sweeps', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    env = {**os.environ, "SCALING_RESULTS": str(results)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_plan_json_has_every_run_and_the_totals(cli: Cli, file: str) -> None:
    said = json.loads(cli("plan", file, "--json").stdout)
    assert [run["structure"] for run in said["runs"]] == ["dense", "dense", "lowrank-63", "lowrank-63"]
    assert said["totals"]["runs"] == 4
    assert said["totals"]["new_flops"] == sum(run["flops"] for run in said["runs"])
    assert set(said["runs"][0]) >= {
        "id", "size", "structure", "params", "tokens", "flops", "batch_tokens", "peak_lr", "seconds", "state",
    }  # fmt: skip


def test_plan_prices_what_cannot_be_run_and_run_refuses(cli: Cli, write_sweep: Callable[..., Path]) -> None:
    path = write_sweep('[base]\npreset = "cpu-xs"\n[base.data]\ncorpus = "text:no/such/folder"\n')
    done = cli("plan", str(path))
    assert "\n-   cpu-xs" in done.stdout
    assert "no/such/folder" in done.stderr
    assert "no/such/folder" in cli.mistake("run", str(path))


def test_mistakes_are_one_line_with_code_2(cli: Cli, file: str, write_sweep: Callable[..., Path]) -> None:
    for args, words in (
        (["plan", "lowrnk"], "did you mean 'lowrank'"),
        (["plan"], "Missing argument"),
        (["plan", file, "--slotz", "3"], "--slots"),
        (["run", file, "--slots", "0"], "--slots"),
        (["run", file, "--executor", "slrm"], "unknown executor 'slrm'; did you mean 'slurm'"),
        (["run", file, "--then", "fit"], "--then needs --executor slurm"),
        (["run", file, "--device", "tpu"], "device = 'tpu'"),
        (["run", file, "--max-flops", "1e3"], "more than --max-flops"),
        (["run", file, "--max-hours", "0"], "more than --max-hours"),
        (["plan", str(write_sweep("[axes\n", "broken"))], "broken.toml: not TOML"),
        (["show", "abc"], "no run 'abc'"),
        (["logs", file], "nothing to show"),
        (["retry", "nosuch"], "unknown sweep 'nosuch'"),
    ):
        assert words in cli.mistake(*args), args
    devices = write_sweep('[base]\npreset = "cpu-xs"\n[execution]\ndevices = [0]\n', "devices")
    assert "contradicts execution.devices" in cli.mistake("plan", str(devices), "--device", "cpu")


def test_a_results_folder_that_cannot_be_written_is_one_line(file: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file, not a folder")
    assert "plain" in Cli(tmp_path / "plain").mistake("run", file, "--no-mirror")
    if os.access("/sys", os.F_OK) and not os.access("/sys", os.W_OK):
        assert "--results" in Cli(Path("/sys/results")).mistake("run", file, "--no-mirror")


def test_status_counts_and_checks(cli: Cli, file: str, overview: Overview, results: Path) -> None:
    assert "nothing was run" in cli("status").stdout
    cli("plan", file, "--write")
    cli("status", file, "--check", code=1)
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    done = cli("status", file, "--check")
    assert done.stdout.splitlines()[-1] == "4 runs: 4 done"
    assert "2.6000" in done.stdout
    rows = json.loads(cli("status", file, "--json").stdout)
    assert [row["id"] for row in rows["runs"]] == overview.ids
    assert rows["counts"] == {"done": 4}
    assert json.loads(cli("status", "--json").stdout) == [{"sweep": "tiny", "runs": 4, "counts": {"done": 4}}]


def test_a_corrupted_result_is_shown_and_mended(
    cli: Cli, file: str, overview: Overview, results: Path
) -> None:
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    bad = overview.ids[1]
    path = results / "runs" / bad / "result.json"
    path.write_text(path.read_text()[:50])
    before = path.read_text()
    for command in ("plan", "status"):
        done = cli(command, file, code=2)
        assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == overview.ids
        assert "1 corrupt" in done.stdout
        assert "result.json" in done.stderr
        assert f"sweeps retry {bad}" in done.stderr
    assert f"sweeps retry {bad}" in cli.mistake("run", file, "--no-mirror")
    assert path.read_text() == before
    assert "corrupt-1" in cli("retry", bad[:6]).stdout
    assert "1 retry" in cli("plan", file).stdout


def test_show_logs_and_retry_of_a_failed_run(cli: Cli, file: str, overview: Overview, results: Path) -> None:
    run_id = overview.ids[0]
    folder = finish_run(results, overview.configs[0], run_id)
    (folder / "result.json").unlink()
    write_status(folder, {"state": "running", "attempt": 1})
    Ledger(results).record_failure(run_id, "why", "Traceback: why", session="x")
    Ledger(results).record_failure(run_id, "why", "Traceback: why", session="x")
    shown = json.loads(cli("show", run_id[:5], "--json").stdout)
    assert (shown["state"], shown["message"], shown["failures"]) == ("failed", "why", 2)
    assert "Traceback: why" in cli("logs", run_id).stdout
    assert '"step": 10' in cli("logs", file, "-n", "3").stdout
    assert "1 failed" in cli("plan", file).stdout
    assert "1 run will be tried again" in cli("retry", file).stdout
    assert "4 new" in cli("plan", file).stdout
    lease = Lease(folder)
    assert lease.claim()
    assert "1 run under way left alone" in cli("retry", run_id).stdout


def test_cancel_names_what_it_asks(cli: Cli, file: str, overview: Overview, results: Path) -> None:
    assert "no run of tiny" in cli("cancel", file).stdout
    cli("plan", file, "--write")
    lease = Lease(results / "runs" / overview.ids[0])
    assert lease.claim()
    said = cli("cancel", file).stdout
    assert f"asked 1 run ({os.uname().nodename}:{os.getpid()})" in said


def test_a_dry_run_starts_nothing(cli: Cli, file: str, results: Path) -> None:
    done = cli("run", file, "--dry-run")
    assert "4 runs (4 new)" in done.stdout
    assert list(results.iterdir()) == []


def test_a_budget_larger_than_the_corpus_is_refused_before_anything_runs(
    cli: Cli, write_sweep: Callable[..., Path], tmp_path: Path, results: Path
) -> None:
    (tmp_path / "text").mkdir()
    for n in range(60):
        (tmp_path / "text" / f"{n}.txt").write_text(f"document {n} has a few words in it\n" * 40)
    path = write_sweep(
        f"""
        [base]
        model = {{ d_model = 16, n_layers = 2, n_heads = 2, seq_len = 32 }}
        optim = {{ peak_lr = 5e-3, batch_tokens = 256 }}
        eval = {{ tokens = 64 }}
        tokens = 100_000_000
        [base.data]
        corpus = "text:{tmp_path / "text"}"
        tokenizer = "bytes"
        heldout_fraction = 0.2
        """,
        "greedy",
    )
    assert "max_epochs" in cli.mistake("run", str(path), "--no-mirror")
    assert not (results / "runs").exists()
    path.write_text(
        path.read_text().replace("100_000_000", "2560").replace("tokens = 64", "tokens = 10_000_000")
    )
    assert "held-out" in cli.mistake("run", str(path), "--no-mirror")


@pytest.mark.slow
def test_a_real_sweep_trains_mirrors_and_then_trains_nothing(cli: Cli, file: str, overview: Overview) -> None:
    done = cli("run", file, "--slots", "2", "--threads", "1")
    assert done.stdout.splitlines()[-1].startswith("4 runs: 4 done")
    assert done.stderr.count("] done") == 4
    before = {path: path.stat().st_mtime_ns for path in overview.ledger.runs.rglob("*") if path.is_file()}
    began = time.monotonic()
    again = cli("run", file)
    assert again.stdout.splitlines()[-1].startswith("4 runs: 4 done")
    assert time.monotonic() - began < 3
    after = {path: path.stat().st_mtime_ns for path in overview.ledger.runs.rglob("*") if path.is_file()}
    assert after == before
    assert cli("sync", file).stdout == "0 created, 0 updated, 4 unchanged\n"
    plan = json.loads(cli("plan", file, "--json", "--slots", "2", "--threads", "1").stdout)
    assert plan["totals"]["actions"] == {"done": 4}


def losses(results: Path) -> dict[str, list[Any]]:
    return {
        path.name: [(line["step"], line["train_loss"]) for line in read_metrics(path)]
        for path in (results / "runs").iterdir()
        if path.is_dir()
    }


LONGER = "tokens = 128000"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_sweep_interrupted_in_the_middle_ends_as_if_it_never_was(
    how: str, tmp_path: Path, write_sweep: Callable[..., Path]
) -> None:
    """Ctrl-C, or SIGKILL of launcher and workers: finished runs untouched, the others resumed bit for bit."""
    path = write_sweep()
    text = path.read_text().replace("tokens = 2560", LONGER)
    path.write_text(
        text + "[execution]\nslots = 2\nthreads = 1\ncheckpoint_seconds = 0.2\nheartbeat_seconds = 0.1\n"
    )
    quiet, disturbed = Cli(tmp_path / "quiet"), Cli(tmp_path / "disturbed")
    quiet("run", str(path), "--no-mirror")
    command = [
        sys.executable,
        "-m",
        "sweeps",
        "run",
        str(path),
        "--no-mirror",
        "--results",
        str(disturbed.results),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ledger, deadline = Ledger(disturbed.results), time.monotonic() + 60
    overview = look(read_sweep(path), disturbed.results)
    while time.monotonic() < deadline:
        states = ledger.scan(overview.ids).values()
        if any(s.state == "running" and s.step > 100 for s in states) and any(
            s.state == "done" for s in states
        ):
            break
        time.sleep(0.02)
    if how == "SIGINT":
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "resumable" in said
    else:
        owners = [s.owner for s in ledger.scan(overview.ids).values() if s.owner]
        for pid in [process.pid, *(int(owner.split(":")[1]) for owner in owners)]:
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
    # A worker that was between two runs was not among the owners; without its launcher it stops by itself.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        states = ledger.scan(overview.ids)
        if all(state.state != "running" for state in states.values()):
            break
        time.sleep(0.1)
    assert "preempted" in {state.state for state in states.values()}
    finished = {
        run_id: (disturbed.results / "runs" / run_id / "result.json").read_text()
        for run_id, state in states.items()
        if state.state == "done"
    }
    assert finished
    disturbed("run", str(path), "--no-mirror")
    for run_id, text in finished.items():
        assert (disturbed.results / "runs" / run_id / "result.json").read_text() == text
    assert losses(disturbed.results) == losses(quiet.results)
    attempts = [state.attempt for state in ledger.scan(overview.ids).values()]
    assert max(attempts) == 2


@pytest.mark.slow
def test_two_real_launchers_at_once_train_every_run_once(cli: Cli, file: str, overview: Overview) -> None:
    command = [sys.executable, "-m", "sweeps", "run", file, "--results", str(cli.results), "--threads", "1"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    logs = [
        (overview.ledger.run_dir(run_id) / "worker.log").read_text().count("--- ") for run_id in overview.ids
    ]
    assert logs == [1, 1, 1, 1]
