"""What a job decides about itself: budgets, blame, requeue; what its batch script and its settings say."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps import slurm
from sweeps.cluster import array_batch, then_batch
from sweeps.clusterfile import SlurmSettings, slurm_settings
from sweeps.errors import SweepError
from sweeps.job import NOTICE, Share, after, blame, out_of_budget
from sweeps.packing import Array
from sweeps.session import Session, read_session
from sweeps.submission import (
    EXIT_REQUEUE,
    SESSION,
    Diary,
    Submission,
    new_submission,
    read_diary,
    write_diary,
    write_submission,
)

RUNNING = "JobId=7 ArrayJobId=7 ArrayTaskId=0 JobState=RUNNING Reason=None EndTime=Unknown"


@pytest.fixture
def made(tmp_path: Path) -> Submission:
    """One job with two runs, of which nothing has been trained."""
    return submission(tmp_path, SlurmSettings(restarts=2, idle_restarts=2))


def submission(results: Path, settings: SlurmSettings) -> Submission:
    session = Session("x", "small", str(results), {}, 2, None, [("r1", "{}"), ("r2", "{}")], {})
    made = new_submission(
        session, "small", settings, {}, {}, {"path": "/a snapshot"}, [Array(10, 1, (("r1", "r2"),))]
    )
    write_submission(made, session)
    return made


@pytest.mark.parametrize(
    ("start", "idle", "words"),
    [
        (1, 0, None), (3, 0, None), (4, 0, "requeued 2 times"),
        (2, 1, None), (2, 2, "no step gained in 2 starts"),
    ],
)  # fmt: skip
def test_two_restarts_are_three_starts(made: Submission, start: int, idle: int, words: str | None) -> None:
    found = out_of_budget(Share(made, 0, 0), start, idle)
    assert found is None if words is None else words in str(found)


def test_a_job_that_may_not_restart_has_its_first_start(tmp_path: Path) -> None:
    assert out_of_budget(Share(submission(tmp_path, SlurmSettings(restarts=0)), 0, 0), 1, 0) is None


def decided(made: Submission, diary: Diary, shown: str = RUNNING) -> tuple[int, str]:
    write_diary(made.diary(0, 0), replace(diary, restart=0))
    code = after(Share(made, 0, 0), 0, shown)
    return code, str(read_diary(made.diary(0, 0)).message)


def test_the_script_is_told_to_requeue(made: Submission, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where Python lives in a container there are no programs of Slurm.
    monkeypatch.setenv("PATH", "/nonexistent")
    gained = Diary(1, progress=-1, outcome="interrupted", message=NOTICE)
    assert decided(made, gained) == (EXIT_REQUEUE, "requeue: told to stop")
    # Told by no notice, and ended by Slurm: cancelled.  Unless it is for the time limit.
    cancelled = Diary(1, progress=-1)
    assert decided(made, cancelled, RUNNING.replace("RUNNING", "COMPLETING"))[0] == 0
    timed_out = RUNNING.replace("RUNNING", "COMPLETING").replace("Reason=None", "Reason=TimeLimit")
    assert decided(made, cancelled, timed_out) == (EXIT_REQUEUE, "requeue: died without a word")
    # The last start gained nothing, and the one before neither.
    idle = Diary(2, idle=1, outcome="interrupted", message=NOTICE)
    assert decided(made, idle) == (1, "give up: no step gained in 2 starts (slurm.idle_restarts = 2)")
    often = Diary(3, progress=-1, outcome="interrupted", message=NOTICE)
    assert decided(made, often) == (1, "give up: requeued 2 times (slurm.restarts = 2)")
    assert decided(made, Diary(1, progress=-1, outcome="broken", message="no GPU"))[0] == EXIT_REQUEUE


def test_steps_that_die_before_they_begin_are_counted(
    made: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, codes = Share(made, 0, 0), []
    for restart in range(2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        codes.append(after(share, 127, RUNNING))
    assert codes == [EXIT_REQUEUE, 1]
    assert "no step gained in 2 starts" in str(read_diary(share.diary).message)


def test_a_run_that_kills_its_processes_is_given_up(made: Submission, tmp_path: Path) -> None:
    share = Share(made, 0, 0)
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "running", "attempt": 1}')
    session = read_session(made.path / SESSION).session
    (folder / "lease.json").write_text(json.dumps({"session": f"{session}.0-1.1", "heartbeat": 0.0}))
    blame(share, Diary(2, idle=1))
    # It was another job's.
    assert share.ledger.state("r1").failures == 0
    lease = {"session": f"{session}.0-0.1", "host": "n1", "heartbeat": time.time() - 1e6}
    (folder / "lease.json").write_text(json.dumps(lease))
    blame(share, Diary(2, idle=1))
    assert share.open_runs() == ["r1", "r2"]
    blame(share, Diary(3, idle=2))
    assert share.ledger.state("r1").state == "failed"
    assert share.open_runs() == ["r2"]


@pytest.mark.parametrize(
    ("table", "count"),
    [
        ({}, 0), ({"gpus": 4}, 4), ({"gres": "gpu"}, 1), ({"gres": "gpu:2"}, 2), ({"gres": "gpu:h100:4"}, 4),
        ({"gres": "gpu:h100"}, 1), ({"gres": "gpu:a100:2(S:0-1),tmp:10"}, 2), ({"gres": "tmp:10"}, 0),
    ],
)  # fmt: skip
def test_gpus_of_a_job_are_counted(table: dict[str, object], count: int) -> None:
    settings = slurm_settings(table, None, "mine.toml")
    assert (settings.gpu_count, settings.has_gpu) == (count, count > 0)


def test_processes_that_train_together_have_a_gpu_each() -> None:
    for table in ({"tasks": 4, "gpus": 1}, {"nodes": 2, "gres": "gpu:h100:4"}):
        with pytest.raises(SweepError, match="need a GPU each; set tasks = "):
            slurm_settings(table, None, "mine.toml")
    assert slurm_settings({"nodes": 2, "tasks": 4, "gpus": 4}, None, "mine.toml").processes == 8


def test_accounts_that_lag_behind_hold_no_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was preempted and cancelled is REQUEUED there for ever; or RUNNING, where a line was lost."""
    from sweeps.queued import lines, look_up
    from sweeps.submission import Record, write_record

    made = submission(tmp_path, SlurmSettings())
    write_record(made, Record("submitted", ("7",)))
    write_diary(made.diary(0, 0), Diary(1))
    monkeypatch.setattr(slurm, "queue", lambda prefix: [])
    monkeypatch.setattr(slurm, "history", lambda numbers: {"7_0": slurm.Job("7_0", made.name, "PENDING")})
    found = look_up(tmp_path, "small")
    assert found.covered == set()
    assert "not in the queue any more; PENDING says accounting" in "\n".join(lines(found))


def test_a_job_that_could_not_be_requeued_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.queued import lines, look_up
    from sweeps.submission import Record, write_record

    made = submission(tmp_path, SlurmSettings())
    write_record(made, Record("submitted", ("7",)))
    write_diary(made.diary(0, 0), Diary(1, outcome="interrupted", message="requeue: told to stop"))
    monkeypatch.setattr(slurm, "queue", lambda prefix: [])
    assert "job 7_0: requeue: told to stop" in "\n".join(lines(look_up(tmp_path, "small")))


def test_the_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(0o755)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    settings = SlurmSettings(
        setup=("export PYTHONPATH=/mine",), notice=45, python="apptainer exec a.sif python"
    )
    made = submission(tmp_path, settings)
    lines = array_batch(made, 0, made.arrays[0]).text.splitlines()
    assert "#SBATCH --signal=USR2@45" in lines
    assert not any("USR1" in line for line in lines)
    # What the user's own lines put on the path comes behind the snapshot.
    ours = next(line for line in lines if line.startswith("export PYTHONPATH='/a snapshot'"))
    assert lines.index("export PYTHONPATH=/mine") < lines.index(ours)
    assert sum("apptainer exec a.sif python -u -m sweeps.job" in line for line in lines) == 2
    assert any("scontrol requeue" in line and "apptainer" not in line for line in lines)
    assert "#SBATCH --time=60" in then_batch(made, "fit", ["7"]).text.splitlines()
    assert "#SBATCH --time=20" in then_batch(made, "fit", ["7"], 20).text.splitlines()
