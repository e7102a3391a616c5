"""Slurm does what every executor must, and what only a queue can: follow after, and run yesterday's code."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import SECONDS, Bench, Conformance, Executor, Mistake

from slurm.lab import Lab
from slurm.sweep import ROOT, wait_until
from trainer.provenance import ROOMS, source_sha256


class Slurm(Executor):
    """Jobs on the nodes of a lab; `run` queues them."""

    name, detached = "slurm", True
    mistakes = (
        Mistake("did you mean 'slurm'", args=("--executor", "slrm")),
        Mistake("did you mean 'cpus'", change=("cpus =", "cpu =")),
        Mistake(
            "slurm.partition = 'nosuch': there are high, low, main",
            change=("jobs", 'partition = "nosuch"\njobs'),
        ),
        Mistake("than the partition allows (5 min)", change=("jobs", 'partition = "short"\njobs')),
        Mistake("gpus and gres both", change=("jobs", 'gpus = 1\ngres = "gpu:1"\njobs')),
        Mistake("jobs ask for no GPU", args=("--device", "cuda")),
        Mistake("did you mean 'example'", args=("--cluster", "exampel")),
        Mistake("Invalid node name", change=("jobs", 'options = { nodelist = "n99" }\njobs')),
        Mistake("there is no Slurm here", env={"PATH": "/nonexistent"}),
    )

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def settings(self, at_once: int) -> dict[str, Any]:
        # One job that has two slots, or a job for each run, one of which waits for the other.
        return {"cpus": 2, "job_minutes": 30} if at_once == 2 else {"jobs": at_once}

    def options(self, at_once: int) -> list[str]:
        return []

    def jobs(self) -> dict[str, str]:
        return self.lab.jobs()


class TestSlurm(Conformance):
    @pytest.fixture
    def executor(self, slurm: Lab) -> Iterator[Slurm]:
        slurm.run("scontrol", "create", "partitionname=short", "nodes=ALL", "maxtime=5")
        yield Slurm(slurm)
        for job in slurm.jobs():
            slurm.run("scancel", job)
        wait_until(lambda: not slurm.jobs(), 60)
        slurm.run("scontrol", "delete", "partitionname=short")

    @pytest.fixture
    def full(self, slurm: Lab) -> Iterator[Callable[[], None]]:
        """A cluster without a free processor, until this is called."""
        wide = ("sbatch", "--parsable", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600")
        job = slurm.run(*wide).strip()
        wait_until(lambda: slurm.jobs().get(job) == "RUNNING", 30)
        yield lambda: slurm.run("scancel", job) and None

    def test_queued_jobs_run_the_code_that_they_were_submitted_with(
        self, executor: Slurm, full: Callable[[], None], tmp_path: Path, reference: dict[str, Any]
    ) -> None:
        project = tmp_path / "project"
        for room in ROOMS:
            shutil.copytree(ROOT / room, project / room, ignore=shutil.ignore_patterns("__pycache__"))
        submitted = source_sha256(project)
        one = Bench(executor, tmp_path / "bench")
        # A user's own path must not bring the changed code in, either.
        env = {**os.environ, "PYTHONPATH": str(project)}
        done = subprocess.run(
            one.command(), cwd=project, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"source {submitted[:12]}" in done.stdout
        assert not one.sweep.runs
        for name in ("trainer/loop.py", "sweeps/worker.py", "sweeps/job.py"):
            (project / name).write_text("raise SystemExit('half an edit')\n")
        assert source_sha256(project) != submitted
        full()
        wait_until(lambda: not executor.jobs(), SECONDS, one.sweep.logs)
        one.check_losses(reference)
        for run in one.sweep.runs:
            assert json.loads((run / "env.json").read_text())["source_sha256"] == submitted

    def test_fit_and_figures_follow_whether_or_not_a_run_has_failed(
        self, bench: Callable[..., Bench]
    ) -> None:
        one = bench()
        bad, good = one.ids
        one.tamper(**{bad: "raise"})
        said = one.run("--then", "fit")
        job = said.partition("then: fit and figures in job ")[2].split()[0]
        assert "1 of 2 runs of the sweep are done, 1 missing" in follow_up(one, job)
        assert f"1 of 2 runs; failed: {bad}" in (one.results / "tables" / "small.md").read_text()
        assert table(one) == {bad: "failed", good: "done"}
        assert (one.results / "figures" / "small_scaling.svg").is_file()
        one.tamper()
        one.sweep("retry", one.file)
        one.run()
        # With nothing left to train, the fit alone.
        (one.results / "tables" / "small_runs.csv").unlink()
        said = one.run("--then", "fit")
        assert "nothing to queue: 2 done" in said
        assert "then: fit and figures in job" in said
        assert table(one) == {bad: "done", good: "done"}

    def test_the_fit_waits_for_what_was_submitted_before(
        self, executor: Slurm, full: Callable[[], None], tmp_path: Path
    ) -> None:
        one = Bench(executor, tmp_path / "bench", seeds=[1])
        one.start().communicate(timeout=60)
        text = one.sweep.file.read_text()
        one.sweep.file.write_text(text.replace("seed = [1]", "seed = [1, 2]"))
        said = one.start("--then", "fit").communicate(timeout=60)[0]
        assert "queued 2 runs" in said
        # Once more: the fit is queued already.
        assert "nothing to queue" in one.start("--then", "fit").communicate(timeout=60)[0]
        full()
        wait_until(lambda: not executor.jobs(), SECONDS, one.sweep.logs)
        job = said.partition("then: fit and figures in job ")[2].split()[0]
        assert "4 of 4 runs of the sweep are done, 0 missing" in follow_up(one, job)

    def test_sweeps_of_one_name_in_two_folders_leave_each_other_alone(
        self, executor: Slurm, full: Callable[[], None], tmp_path: Path
    ) -> None:
        one, other = (Bench(executor, tmp_path / name, at_once=1) for name in ("one", "other"))
        for bench in (one, other):
            said = bench.start("--then", "fit").communicate(timeout=60)[0]
            assert "queued 2 runs in 2 jobs" in said
        assert "2 PENDING" in one.sweep("status", one.file)
        assert len(executor.jobs()) == 7
        assert "dropped 3 waiting jobs" in other.sweep("cancel", other.file)
        assert [job["state"] for job in one.sweep.jobs()] == ["PENDING", "PENDING"]
        assert len(executor.jobs()) == 4
        assert "dropped 3 waiting jobs" in one.sweep("cancel", one.file)
        assert len(executor.jobs()) == 1


def follow_up(bench: Bench, job: str) -> str:
    """What the job printed that fits and draws."""
    return next((bench.results / "sweeps" / "submissions").glob(f"*/logs/{job}_*log.out")).read_text()


def table(bench: Bench) -> dict[str, str]:
    """Runs and their states in the table that was written with the figure."""
    with open(bench.results / "tables" / "small_runs.csv", newline="") as file:
        return {row["run_id"]: row["state"] for row in csv.DictReader(file)}
