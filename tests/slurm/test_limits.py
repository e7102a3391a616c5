"""What a site allows: array sizes, jobs in the queue; and sites that keep accounts."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.conftest import PREFIX
from slurm.lab import FOREIGN, Lab, why_not
from slurm.sweep import SmallSweep, undisturbed, wait_until


def opened(lab: Lab, patch: pytest.MonkeyPatch) -> Lab:
    """A lab of one test alone, which clients find by SLURM_CONF."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        patch.delenv(name)
    for name, value in lab.environment().items():
        patch.setenv(name, value)
    return lab


def folder() -> str:
    return tempfile.mkdtemp(prefix=PREFIX.format(pid=os.getpid()), dir="/tmp")


def test_25_jobs_where_an_array_ends_at_11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(folder(), max_array_size=11) as lab:
        opened(lab, monkeypatch)
        many = {"seeds": list(range(25)), "structures": ["dense"], "steps": 100}
        sweep = SmallSweep(tmp_path, **many, slurm={"jobs": 6})
        said = sweep.submit()
        assert re.search(r"queued 25 runs in 25 jobs \(3 arrays: \d+, \d+, \d+\)", said)
        assert len(lab.jobs()) == 25
        # The throttles of the three are together what was asked for.
        shown = re.findall(
            r"ArrayJobId=(\d+).*?ArrayTaskThrottle=(\d+)", lab.run("scontrol", "show", "job", "-o")
        )
        assert sum(int(throttle) for throttle in dict(shown).values()) == 6
        sweep.wait_done(300)
        assert sweep.losses() == undisturbed(sweep)
        assert set(sweep.attempts().values()) == {1}


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab with accounting, whose queue forgets what has ended after some seconds."""
    if reason := why_not(accounting=True):
        pytest.skip(f"real Slurm tests with accounting skipped: {reason}")
    enforced = {"AccountingStorageEnforce": "limits", "MinJobAge": 2}
    with Lab(folder(), accounting=True, max_array_size=3, **enforced) as lab:
        lab.run("sacctmgr", "-i", "add", "account", "lab")
        lab.run("sacctmgr", "-i", "add", "user", "root", "account=lab")
        lab.run("sacctmgr", "-i", "modify", "user", "root", "set", "DefaultAccount=lab")
        yield opened(lab, monkeypatch)


def test_a_user_may_have_four_jobs(accounts: Lab, tmp_path: Path) -> None:
    accounts.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=4")
    sweep = SmallSweep(tmp_path, seeds=[1, 2, 3, 4], steps=100)
    blocker = ("sbatch", "-o", "/dev/null", "--exclusive", "-N4", "--wrap", "sleep 600")
    job = accounts.run(*blocker).split()[-1]
    # Four, less the one that is there, less the one that fits afterwards.
    assert "queued 8 runs in 2 jobs" in sweep.submit("--then", "fit")
    other = SmallSweep(tmp_path / "other", steps=100)
    refused = other("run", str(other.file), "--executor", "slurm", code=2)
    assert "Slurm takes 4 jobs from this user (MaxSubmitJobs) and has 4" in refused
    assert not (other.results / "sweeps").exists()
    accounts.run("scancel", job)
    sweep.wait_done(150)
    wait_until(lambda: not accounts.jobs(), 90, sweep.logs)
    other.submit()
    other.wait_done(150)
    assert sweep.losses() == undisturbed(sweep)
    assert other.losses() == undisturbed(other)


def test_a_refusal_that_could_not_be_foreseen_loses_nothing(accounts: Lab, tmp_path: Path) -> None:
    """The limit is of the whole account, which no user is told of before."""
    sweep = SmallSweep(tmp_path, seeds=[1, 2, 3], steps=100)

    def refused(limit: int) -> str:
        accounts.run("sacctmgr", "-i", "modify", "account", "lab", "set", f"GrpSubmitJobs={limit}")
        said = sweep("run", str(sweep.file), "--executor", "slurm", code=2)
        (line,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert "job submit limit" in line
        return line

    # No job at all, and nothing is written.
    refused(0)
    assert not accounts.jobs()
    assert not (sweep.results / "sweeps").exists()
    # Arrays of three jobs here: the first is taken.
    assert "3 of 6 jobs are queued" in (line := refused(4))
    assert "the same command queues the rest later" in line
    sweep.wait_done(150, total=3)
    assert sweep.counts() == {"done": 3, "new": 3}
    assert "queued 3 runs in 3 jobs" in sweep.submit()
    sweep.wait_done(150)
    assert sweep.losses() == undisturbed(sweep)
    assert set(sweep.attempts().values()) == {1}


def test_fewer_jobs_where_a_group_may_have_only_two(accounts: Lab, tmp_path: Path) -> None:
    accounts.run("sacctmgr", "-i", "modify", "account", "lab", "set", "GrpSubmitJobs=2")
    sweep = SmallSweep(tmp_path, seeds=[1, 2], steps=100)
    assert "queued 4 runs in 2 jobs" in sweep.submit()
    sweep.wait_done(150)
    assert sweep.losses() == undisturbed(sweep)


def test_a_quality_of_service_may_limit_its_users(accounts: Lab, tmp_path: Path) -> None:
    accounts.run("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=3")
    sweep = SmallSweep(tmp_path, seeds=[1, 2], steps=100)
    said = sweep("run", str(sweep.file), "--executor", "slurm", "--dry-run")
    assert said.count("#SBATCH --array=0-2%") == 1


def test_what_the_queue_has_forgotten_is_read_from_the_accounts(accounts: Lab, tmp_path: Path) -> None:
    sweep = SmallSweep(tmp_path, steps=3000)
    sweep.submit()
    wait_until(lambda: len(sweep.runs) == 2 and sweep.steps_done() > 200, 60, sweep.logs)
    first, second = [job["job_id"] for job in sweep.jobs()]
    accounts.run("scancel", first)
    accounts.run("scontrol", "requeue", second)
    wait_until(lambda: sweep.counts().get("done", 0) >= 1, 150, sweep.logs)
    wait_until(lambda: not accounts.jobs(), 60)
    # Nothing is in the controller's memory any more.
    wait_until(lambda: not accounts.run("squeue", "-h", "--states=all").strip(), 120)
    assert {job["job_id"]: job["live"] for job in sweep.jobs()} == {first: False, second: False}
    assert sweep.counts() == {"done": 1, "preempted": 1}
    sweep.submit()
    sweep.wait_done(150)
    assert sweep.losses() == undisturbed(sweep)
