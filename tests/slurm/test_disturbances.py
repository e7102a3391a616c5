"""Whatever happens to jobs, nodes and the controller: every run ends once, with undisturbed losses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.lab import Lab
from slurm.sweep import SmallSweep, processes, undisturbed, wait_until


def scontrol(*args: str) -> str:
    return subprocess.run(["scontrol", *args], capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.fixture
def sweep(tmp_path: Path) -> SmallSweep:
    """Two runs of seven seconds or more, a job each: time for a disturbance on a fast machine, too."""
    return SmallSweep(tmp_path, steps=3000)


def started(sweep: SmallSweep, steps: int = 100) -> None:
    """Wait until every run has a checkpoint behind it."""

    def both() -> bool:
        return len(sweep.runs) == 2 and all(
            list((run / "checkpoints").glob("step-*.json")) and (run / "metrics.jsonl").is_file()
            for run in sweep.runs
        ) and sweep.steps_done() > steps  # fmt: skip

    wait_until(both, 60, sweep.logs)


def ends_as_if_nothing_had_been(sweep: SmallSweep, timeout: float = 150) -> None:
    sweep.wait_done(timeout)
    assert sweep.losses() == undisturbed(sweep)
    assert sweep.counts() == {"done": 2}
    for run in sweep.runs:
        assert not (run / "lease.json").exists()
        assert sweep.logs().count(f"{run.name} done") == 1


def live_jobs(sweep: SmallSweep) -> list[str]:
    return [job["job_id"] for job in sweep.jobs() if job["live"]]


def notice(lab: Lab, job: str) -> None:
    """What Slurm does some time before the limit."""
    subprocess.run(["scancel", "--signal=USR2", job], check=True, timeout=30)


def requeue(lab: Lab, job: str) -> None:
    scontrol("requeue", job)


def kill_step(lab: Lab, job: str) -> None:
    """The job's own process dies without a word; its batch script lives."""
    number, _, index = job.partition("_")
    marks = [f"SLURM_ARRAY_JOB_ID={number}\0".encode(), f"SLURM_ARRAY_TASK_ID={index}\0".encode()]
    for pid in processes(["sweeps.job", "work"]):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if all(mark in environment for mark in marks) and is_python(pid):
                os.kill(pid, signal.SIGKILL)


def is_python(pid: int) -> bool:
    """Not srun, whose command line holds the program's."""
    return "python" in Path(f"/proc/{pid}/comm").read_text()


@pytest.mark.parametrize("trouble", [notice, requeue, kill_step])
def test_a_job_is_told_or_killed(slurm: Lab, sweep: SmallSweep, trouble: Callable[[Lab, str], None]) -> None:
    sweep.submit()
    started(sweep)
    for job in live_jobs(sweep):
        trouble(slurm, job)
    ends_as_if_nothing_had_been(sweep)
    assert max(sweep.attempts().values()) == 2


def test_a_worker_that_is_deaf_to_the_notice(slurm: Lab, tmp_path: Path) -> None:
    """It is killed before Slurm kills the job, so that the job can still be requeued."""
    sweep = SmallSweep(tmp_path, steps=3000, slurm={"notice": 10})
    sweep.submit()
    started(sweep)
    deaf = [pid for pid in processes(["sweeps.worker", str(sweep.results)]) if is_python(pid)]
    for pid in deaf:
        os.kill(pid, signal.SIGSTOP)
    for job in live_jobs(sweep):
        notice(slurm, job)
    ends_as_if_nothing_had_been(sweep)
    assert sweep.logs().count("workers did not stop within 8 s") == len(deaf) == 2
    assert " failed" not in sweep.logs()


def test_python_that_cannot_see_slurm(slurm: Lab, tmp_path: Path) -> None:
    """As in a container: the batch script has the job requeued by itself."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPATH=/nonexistent exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    sweep = SmallSweep(tmp_path / "sweep", steps=3000, slurm={"python": str(wrapper)})
    sweep.submit()
    started(sweep)
    for job in live_jobs(sweep):
        notice(slurm, job)
    ends_as_if_nothing_had_been(sweep)
    assert max(sweep.attempts().values()) == 2


def test_the_time_limit_twice_in_one_run(slurm: Lab, tmp_path: Path) -> None:
    """Real limits: Slurm gives the notice itself, up to a minute early; limits have whole minutes."""
    probe = SmallSweep(tmp_path / "probe", steps=400)
    undisturbed(probe)
    results = [json.loads(path.read_text()) for path in probe.folder.rglob("result.json")]
    speed = min(result["steps"] / result["seconds"] for result in results)
    sweep = SmallSweep(tmp_path, steps=int(75 * speed), slurm={"time": 2, "notice": 80})
    sweep.submit()
    ends_as_if_nothing_had_been(sweep, 500)
    assert max(sweep.attempts().values()) >= 3
    assert "interrupted: SIGUSR2" in sweep.logs()


def test_a_cancelled_job_stays_cancelled_and_the_command_goes_on(slurm: Lab, sweep: SmallSweep) -> None:
    sweep.submit()
    started(sweep)
    subprocess.run(["scancel", *live_jobs(sweep)], check=True, timeout=30)
    wait_until(lambda: not live_jobs(sweep), 60, sweep.logs)
    assert sweep.counts() == {"preempted": 2}
    sweep.submit()
    ends_as_if_nothing_had_been(sweep)


def test_a_partition_of_more_weight_takes_the_nodes(slurm: Lab, tmp_path: Path) -> None:
    sweep = SmallSweep(tmp_path, steps=3000, slurm={"partition": "low", "options": {"exclusive": True}})
    sweep.submit()
    started(sweep)
    wide = ["sbatch", "-p", "high", "-N4", "--exclusive", "--wrap", "sleep 3", "-o", "/dev/null"]
    subprocess.run(wide, check=True, timeout=30, capture_output=True)
    wait_until(lambda: "interrupted" in sweep.logs(), 60, sweep.logs)
    ends_as_if_nothing_had_been(sweep)


def test_a_node_dies_with_everything_on_it(slurm: Lab, sweep: SmallSweep) -> None:
    sweep.submit()
    started(sweep)
    nodes = {job["reason"] for job in sweep.jobs() if job["live"]}
    for node in nodes:
        slurm.node_fail(int(node.removeprefix("n")))
    for node in nodes:
        slurm.node_start(int(node.removeprefix("n")))
    ends_as_if_nothing_had_been(sweep)


@pytest.fixture
def long_sweep(tmp_path: Path) -> SmallSweep:
    """Runs that are still under way when the controller has noted their start, five seconds later."""
    return SmallSweep(tmp_path, steps=6000)


def test_the_controller_is_restarted_in_the_middle(slurm: Lab, long_sweep: SmallSweep) -> None:
    sweep = long_sweep
    sweep.submit()
    started(sweep)
    slurm.wait_noted()
    slurm.controller_kill()
    slurm.controller_start()
    ends_as_if_nothing_had_been(sweep)


def test_the_controller_is_away_when_a_job_wants_to_be_requeued(slurm: Lab, long_sweep: SmallSweep) -> None:
    sweep = long_sweep
    sweep.submit()
    started(sweep)
    slurm.wait_noted()
    for job in live_jobs(sweep):
        notice(slurm, job)
    slurm.controller_kill()
    wait_until(lambda: sweep.logs().count("interrupted") == 2, 60, sweep.logs)
    slurm.controller_start()
    ends_as_if_nothing_had_been(sweep)


def test_status_without_a_controller_says_so_and_goes_on(slurm: Lab, long_sweep: SmallSweep) -> None:
    sweep = long_sweep
    sweep.submit()
    started(sweep)
    slurm.wait_noted()
    slurm.controller_kill()
    try:
        said = sweep("status", str(sweep.file))
        assert "Slurm could not be asked" in said
        assert "2 running" in said
        assert "scontrol" in sweep("run", str(sweep.file), "--executor", "slurm", code=2)
    finally:
        slurm.controller_start()
    ends_as_if_nothing_had_been(sweep)


def test_budgets_stop_a_job_that_cannot_even_begin(slurm: Lab, tmp_path: Path) -> None:
    """Its step is killed by its own setup each time before the program has written a word."""
    sweep = SmallSweep(tmp_path, slurm={"idle_restarts": 2, "srun": ["--ntasks=0"]})
    sweep.submit()
    wait_until(lambda: sweep.logs().count("give up: no step gained in 2 starts") == 2, 120, sweep.logs)
    assert not live_jobs(sweep)
    assert sweep.counts() == {"new": 2}


def test_budgets_stop_a_job_that_gains_nothing(slurm: Lab, tmp_path: Path) -> None:
    """A job whose process is killed before its first checkpoint, again and again."""
    sweep = SmallSweep(
        tmp_path, steps=100_000, checkpoint_seconds=1000, slurm={"idle_restarts": 1, "jobs": 1}
    )
    sweep.submit()

    def killed_to_the_end() -> bool:
        for run in sweep.runs:
            if (run / "metrics.jsonl").is_file():
                for job in live_jobs(sweep):
                    kill_step(slurm, job)
        return "give up: no step gained in 1 starts" in sweep.logs()

    wait_until(killed_to_the_end, 120, sweep.logs, every=1.0)
    assert "give up" in sweep("status", str(sweep.file))
    sweep("cancel", str(sweep.file))
