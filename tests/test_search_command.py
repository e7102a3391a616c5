"""`python -m sweeps search`: real runs of a few steps, kills and races, and what other commands say of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli

from sweeps.ledger import Ledger

MINI = """
kind = "width"
description = "a small study"
[base]
preset = "cpu-2xs"
model.seq_len = 32
model.dense_first_ffn = false
data.corpus = {{ kind = "synthetic", vocab_size = 17 }}
optim.batch_tokens = 128
optim.peak_lr = 3e-3
eval.tokens = 2048
[axes]
structure = {structures}
[budget]
train_flops = {flops}
[space]
d_model = [12, 24, 36]
n_layers = [1, 2]
[search]
trials = {trials}
{search}
"""
QUICK = {"structures": '["dense", "lowrank-32"]', "flops": "1e9", "trials": "4", "search": ""}
LONG = {**QUICK, "structures": '["dense"]', "flops": "6e9", "trials": "3"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def mini(tmp_path: Path) -> Callable[..., str]:
    def write(name: str = "mini", **parts: str) -> str:
        path = tmp_path / f"{name}.toml"
        path.write_text(MINI.format(**{**QUICK, **parts}))
        return str(path)

    return write


@pytest.fixture
def start(results: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    begun: list[subprocess.Popen[str]] = []

    def begin(study: str, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps", "search", study, "--no-mirror", *args]
        begun.append(
            subprocess.Popen(
                [*command, "--results", str(results)],
                cwd=ROOT,
                env=ENVIRONMENT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def trials(results: Path, name: str = "mini") -> list[dict[str, str]]:
    with open(results / "searches" / name / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def states(results: Path) -> list[str]:
    ledger = Ledger(results)
    return sorted(state.state for state in ledger.scan(ledger.ids()).values())


def wait_until(true: Callable[[], Any], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def training(results: Path) -> list[Path]:
    """Status files of runs that have logged a step."""
    return list(results.glob("runs/*/metrics.jsonl"))


def running_trials(results: Path, name: str = "mini") -> int:
    import optuna

    storage = f"sqlite:///{results}/searches/{name}/optuna.db"
    found = optuna.get_all_study_summaries(storage)
    loaded = [optuna.load_study(study_name=one.study_name, storage=storage) for one in found]
    return sum(trial.state.name == "RUNNING" for one in loaded for trial in one.trials)


def test_a_dry_run_prices_a_study_and_leaves_nothing(cli: Cli, mini: Callable[..., str]) -> None:
    done = cli("search", mini(), "--dry-run")
    assert "structure=lowrank-32" in done.stdout and "8 trials" in done.stdout
    assert "nothing was started" in done.stdout
    assert not list(cli.results.iterdir())


def test_mistakes_of_the_command_line_are_one_line_before_anything_is_trained(
    cli: Cli, mini: Callable[..., str], tmp_path: Path
) -> None:
    assert "ends in .toml" in cli.mistake("search", mini(), "--export-sweep", str(tmp_path / "out.txt"))
    assert "no run is lost" in cli.mistake("search", mini(search='storage = "nonsense"'), "--no-mirror")
    assert not (cli.results / "runs").exists()


@pytest.mark.slow
def test_a_study_is_searched_repeated_exported_and_planned(
    cli: Cli, mini: Callable[..., str], tmp_path: Path
) -> None:
    study, winners = mini(), tmp_path / "winners.toml"
    first = cli("search", study)
    assert "8 trials: 8 done" in first.stdout
    assert states(cli.results) == ["done"] * 8
    rows = trials(cli.results)
    counted = [row for row in rows if row["repeat"] == "0"]
    assert len(counted) == 8 and all(row["from_ledger"] == "0" for row in counted)
    record = json.loads((cli.results / "sweeps" / "mini.json").read_text())
    assert sorted(record["run_ids"]) == sorted({row["run_id"] for row in rows})
    assert record["study"]["kind"] == "width" and record["study"]["description"] == "a small study"
    stamps = {path: path.stat().st_mtime_ns for path in cli.results.glob("runs/*/result.json")}

    again = cli("search", study, "--export-sweep", str(winners))
    assert "0 to go" in again.stderr and "8 trials: 8 done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in cli.results.glob("runs/*/result.json")} == stamps
    assert trials(cli.results) == rows
    best = json.loads((cli.results / "searches" / "mini" / "best.json").read_text())
    plan = json.loads(cli("plan", str(winners), "--json").stdout)
    assert {run["id"] for run in plan["runs"]} == {one["run_id"] for one in best.values()}
    assert all(run["action"] == "done" for run in plan["runs"])
    for one in best.values():
        cell = next(row for row in counted if row["run_id"] == one["run_id"])["cell"]
        assert one["val_loss"] == min(float(row["val_loss"]) for row in counted if row["cell"] == cell)
    winners.write_text("# mine\n")
    assert "says something else" in cli.mistake("search", study, "--export-sweep", str(winners))
    assert winners.read_text() == "# mine\n"
    dry = cli("search", study, "--dry-run")
    assert "0 trials to go" in dry.stdout

    status = json.loads(cli("status", study, "--json").stdout)
    assert status["counts"] == {"done": 8}
    assert "step" in cli("logs", study).stdout
    cli("sync", study)
    assert "8 runs" in cli("sync", study).stdout or (cli.results / "mlflow.db").exists()


@pytest.mark.slow
def test_an_owner_that_is_killed_leaves_what_the_same_command_goes_on_with(
    cli: Cli, mini: Callable[..., str], start: Callable[..., Any]
) -> None:
    study = mini(**LONG)
    owner = start(study)
    wait_until(lambda: len(training(cli.results)) >= 2)
    owner.kill()
    owner.communicate()
    done = cli("search", study, "--no-mirror")
    assert "3 trials: 3 done" in done.stdout
    assert states(cli.results) == ["done"] * 3
    assert running_trials(cli.results) == 0
    attempts = [json.loads(path.read_text())["attempts"] for path in cli.results.glob("runs/*/result.json")]
    assert sum(attempts) <= 6


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    cli: Cli, mini: Callable[..., str], start: Callable[..., Any]
) -> None:
    owner = start(mini(**LONG))
    wait_until(lambda: training(cli.results))
    wait_until(lambda: list(cli.results.glob("runs/*/lease.json")))
    lease = json.loads(next(iter(cli.results.glob("runs/*/lease.json"))).read_text())
    os.kill(lease["pid"], signal.SIGKILL)
    out, err = owner.communicate(timeout=120)
    assert owner.returncode == 0, out + err
    assert "3 trials: 3 done" in out and states(cli.results) == ["done"] * 3


@pytest.mark.slow
def test_a_second_owner_is_refused_and_a_study_can_be_followed_and_cancelled(
    cli: Cli, mini: Callable[..., str], start: Callable[..., Any]
) -> None:
    study = mini(**{**LONG, "flops": "3e10"})
    owner = start(study)
    wait_until(lambda: training(cli.results))
    assert "another process searches in" in cli.mistake("search", study, "--no-mirror")
    status = json.loads(cli("status", study, "--json").stdout)
    assert status["counts"].get("running", 0) >= 1
    cli("cancel", study)
    out, err = owner.communicate(timeout=60)
    assert owner.returncode == 130 or "cancelled" in out, out + err
    assert "to go" in out and "Traceback" not in err
    assert set(states(cli.results)) <= {"done", "preempted", "new"}
    assert not list((cli.results / "sweeps" / "sessions").iterdir())


@pytest.mark.slow
def test_eight_owners_at_once_share_an_empty_database(
    cli: Cli, mini: Callable[..., str], start: Callable[..., Any], tmp_path: Path
) -> None:
    url = f'storage = "sqlite:///{tmp_path}/shared.db"\nwarm_start = false'
    parts = {**QUICK, "structures": '["dense"]', "trials": "2", "search": url}
    owners = [start(mini(f"mini{n}", **parts), "--slots", "1") for n in range(8)]
    for owner in owners:
        out, err = owner.communicate(timeout=200)
        assert owner.returncode == 0, out + err
        assert "lock" not in err and "2 trials: 2 done" in out
    import optuna

    found = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/shared.db")
    assert len(found) == 8 and all(one.n_trials == 2 for one in found)
