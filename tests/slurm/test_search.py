"""A study on a real Slurm: whatever becomes of its owner or its jobs, it has the trials that it asks for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.lab import Lab
from slurm.sweep import ROOT, SmallSweep, processes, toml, wait_until

STUDY = """
kind = "lr"
description = "small runs of some seconds"
[base]
model = {{ d_model = 16, n_layers = 2, n_heads = 2, seq_len = 32, dense_first_ffn = false }}
optim = {{ batch_tokens = 256 }}
eval = {{ tokens = 1024 }}
[base.data]
corpus = {{ kind = "synthetic", vocab_size = 32, order = 1 }}
[axes]
structure = {structures}
[budget]
tokens = {tokens}
[space]
peak_lr = {rates}
[search]
{search}
[execution]
checkpoint_seconds = 0.3
heartbeat_seconds = 0.5
threads = 1
[slurm]
{slurm}
"""


@dataclass
class SmallStudy(SmallSweep):
    """A study file in a folder of its own, and its results folder."""

    search: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=lambda: [1e-3, 2e-3, 4e-3, 8e-3])

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tables = {
            "search": {"sampler": "grid", **self.search},
            "slurm": {"time": 10, "notice": 60, "cpus": 1, "jobs": 8, **self.slurm},
        }
        text = {
            name: "\n".join(f"{key} = {toml(value)}" for key, value in table.items())
            for name, table in tables.items()
        }
        self.file.write_text(
            STUDY.format(
                structures=json.dumps(self.structures), tokens=self.steps * 256, rates=self.rates, **text
            )
        )

    def owner(self) -> subprocess.Popen[str]:
        """Search in a process of its own."""
        command = self.command("search", str(self.file), "--executor", "slurm", "--no-mirror")
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def asked(self) -> list[dict[str, Any]]:
        """The trials that the log has, repeated proposals left out."""
        path = self.results / "searches" / "small" / "trials.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line for line in map(json.loads, lines) if not line["repeat"]]

    def done(self) -> int:
        """Runs that have a result."""
        return sum((run / "result.json").is_file() for run in self.runs)

    def given_to_jobs(self) -> list[str]:
        """Run ids of all jobs that were ever queued."""
        found = []
        for path in (self.results / "sweeps" / "submissions").glob("*/arrays.json"):
            for array in json.loads(path.read_text())["arrays"]:
                found += [run for job in array["jobs"] for run in job]
        return found

    def check_trials(self, total: int) -> None:
        """So many trials, a run each, in the log, in the ledger and in the record."""
        runs = [line["run"] for line in self.asked()]
        record = json.loads((self.results / "sweeps" / "small.json").read_text())
        assert len(runs) == len(set(runs)) == total
        assert sorted(runs) == sorted(record["run_ids"]) == [run.name for run in self.runs]


def end_of(owner: subprocess.Popen[str], timeout: float = 110, code: int = 0) -> str:
    try:
        said = owner.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        owner.kill()
        raise AssertionError(owner.communicate()[0]) from None
    assert owner.returncode == code, said
    return said


def begun(study: SmallStudy, runs: int = 1) -> None:
    """Wait until so many runs have a checkpoint."""
    wait_until(
        lambda: sum(bool(list((run / "checkpoints").glob("step-*.json"))) for run in study.runs) >= runs,
        60, study.logs,
    )  # fmt: skip


def test_eight_in_flight(slurm: Lab, tmp_path: Path) -> None:
    """All at once, in one array; and no more jobs than asked for when there are more trials than jobs."""
    study = SmallStudy(tmp_path, steps=100, rates=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], slurm={"cpus": 2})
    said = end_of(study.owner())
    assert "10 trials: 10 done" in said
    assert "16 trials in flight; 16 at a time" in said
    assert "queued 10 runs in 5 jobs (1 array:" in said
    study.check_trials(10)
    assert sorted(study.given_to_jobs()) == sorted(run.name for run in study.runs)
    again = end_of(study.owner())
    assert "10 trials known, 0 to go" in again and "queued" not in again


def test_few_jobs_are_never_exceeded(slurm: Lab, tmp_path: Path) -> None:
    study = SmallStudy(tmp_path, steps=100, structures=["dense"], search={"in_flight": 3}, slurm={"jobs": 2})
    owner, most = study.owner(), 0
    while owner.poll() is None:
        # Not jobs: one whose runs are over may still be on its way out.
        most = max(most, sum((run / "lease.json").exists() for run in study.runs))
        time.sleep(0.1)
    assert "4 trials: 4 done" in end_of(owner)
    assert 1 <= most <= 2
    study.check_trials(4)


def test_owner_killed_and_continued(slurm: Lab, tmp_path: Path) -> None:
    """Its jobs go on; the next owner queues nothing again that a job has, and ends as asked."""
    study = SmallStudy(tmp_path, steps=3000, structures=["dense"], search={"in_flight": 2})
    owner = study.owner()
    begun(study, 2)
    owner.kill()
    owner.communicate()
    before = study.steps_done()
    wait_until(lambda: study.steps_done() > before + 200, 60, study.logs)
    assert any(job["live"] for job in study.jobs())
    said = end_of(study.owner())
    assert "2 under way" in said and "4 trials: 4 done" in said
    study.check_trials(4)
    assert sorted(study.given_to_jobs()) == sorted(run.name for run in study.runs)
    assert set(study.attempts().values()) == {1}


def test_job_cancelled_and_workers_killed(slurm: Lab, tmp_path: Path) -> None:
    """A trial whose job somebody cancels is queued again and goes on from its checkpoint."""
    study = SmallStudy(tmp_path, steps=3000, structures=["dense"], rates=[1e-3, 2e-3])
    owner = study.owner()
    begun(study, 2)
    first, second = [job["job_id"] for job in study.jobs() if job["live"]]
    subprocess.run(["scancel", first], check=True, timeout=30)
    for pid in processes(["sweeps.worker", str(study.results)])[:1]:
        os.kill(pid, signal.SIGKILL)
    assert "2 trials: 2 done" in end_of(owner)
    assert len(study.given_to_jobs()) == 3
    study.check_trials(2)
    assert max(study.attempts().values()) == 2
    assert second in {job["job_id"] for job in study.jobs()}


def test_a_lagging_trial_is_pruned(slurm: Lab, tmp_path: Path) -> None:
    """Its job ends with it, its slot is given on, and it is no data point."""
    rates = [1e-7, 2e-7, 4e-3, 5e-3]
    # With this seed the bad ones come last.
    search = {"in_flight": 2, "pruner": "median", "startup": 1, "rungs": [0.1, 0.2, 0.4], "seed": 5}
    study = SmallStudy(tmp_path, steps=1500, structures=["dense"], rates=rates, search=search)
    said = end_of(study.owner())
    counts = {"pruned": 0, **study.counts()}
    assert counts["pruned"] >= 1, said
    assert counts["done"] + counts["pruned"] == 4, said
    assert "pruned (study small, rung" in study.logs()
    study.check_trials(4)
    assert len(study.given_to_jobs()) == 4
    for run in study.runs:
        pruned = json.loads((run / "status.json").read_text())["state"] == "pruned"
        assert pruned != (run / "result.json").is_file()
        assert not (run / "lease.json").exists()
    wait_until(lambda: not any(job["live"] for job in study.jobs()), 30, study.logs)


def test_interrupted_and_cancelled(slurm: Lab, tmp_path: Path) -> None:
    """Ctrl-C ends the owner alone; `cancel` ends owner and jobs, and leaves runs that can be resumed."""
    study = SmallStudy(tmp_path, steps=20000, structures=["dense"], search={"in_flight": 2})
    owner = study.owner()
    begun(study, 2)
    owner.send_signal(signal.SIGINT)
    said = end_of(owner, 20, code=130)
    assert (
        "interrupted: 0 trials" in said and f"its jobs go on ('python -m sweeps cancel {study.file}" in said
    )
    assert sum(job["live"] for job in study.jobs()) == 2
    owner = study.owner()
    assert owner.stdout is not None
    wait_until(lambda: "2 under way" in owner.stdout.readline(), 30)
    study("cancel", str(study.file))
    said = end_of(owner, 30, code=130)
    assert "cancelled: 0 trials" in said and "jobs go on" not in said
    wait_until(lambda: not any(job["live"] for job in study.jobs()), 60, study.logs)
    assert study.counts() == {"preempted": 2}
    assert len(study.given_to_jobs()) == 2


def test_jobs_that_never_begin(slurm: Lab, tmp_path: Path) -> None:
    """What is wrong with the site's setup ends the search with one line, not with jobs without end."""
    study = SmallStudy(
        tmp_path, steps=100, structures=["dense"], rates=[1e-3, 2e-3], slurm={"setup": ["exit 3"]}
    )
    said = end_of(study.owner(), code=2)
    assert "no step was gained, 2 times; see" in said.splitlines()[-1]
    assert len(study.given_to_jobs()) == 4


def test_a_controller_that_is_away(slurm: Lab, tmp_path: Path) -> None:
    """The owner says so and waits: what is queued goes on, and the next trial is queued later."""
    study = SmallStudy(
        tmp_path, steps=4000, structures=["dense"], rates=[1e-3, 2e-3], search={"in_flight": 1}
    )
    owner = study.owner()
    begun(study)
    slurm.wait_noted()
    slurm.controller_kill()
    assert owner.stdout is not None
    told = iter(owner.stdout.readline, "")
    line = next(line for line in told if "the queue cannot be read" in line)
    assert "jobs that are queued go on, and this is tried again" in line
    wait_until(lambda: study.done() == 1 and len(study.asked()) == 2, 60, study.logs)
    slurm.controller_start()
    said = end_of(owner)
    assert "2 trials: 2 done" in said
    assert len(study.given_to_jobs()) == 2
    study.check_trials(2)
