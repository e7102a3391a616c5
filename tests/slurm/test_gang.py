"""One run trained by two processes on two nodes (DDP over gloo) is the run that one process trains."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from slurm.lab import Lab
from slurm.sweep import SmallSweep, processes, undisturbed, wait_until

TWO_NODES = {"nodes": 2, "tasks": 1, "cpus": 1, "jobs": 1, "job_minutes": 30}


def close_to_one_process(sweep: SmallSweep) -> None:
    alone = undisturbed(sweep)
    together = sweep.losses()
    assert together.keys() == alone.keys()
    for run, (train, val, curve) in together.items():
        assert train == pytest.approx(alone[run][0], rel=1e-5)
        assert val == pytest.approx(alone[run][1], rel=1e-5)
        assert [step for step, _ in curve] == [step for step, _ in alone[run][2]]
        assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in alone[run][2]], rel=1e-5)


def test_two_runs_one_after_the_other_on_two_nodes(slurm: Lab, tmp_path: Path) -> None:
    sweep = SmallSweep(tmp_path, steps=100, slurm=TWO_NODES)
    sweep.submit()
    sweep.wait_done(120)
    assert set(sweep.attempts().values()) == {1}
    close_to_one_process(sweep)


def test_a_notice_in_the_middle_is_a_checkpoint_and_a_restart(slurm: Lab, tmp_path: Path) -> None:
    sweep = SmallSweep(tmp_path / "a", steps=600, slurm=TWO_NODES)
    sweep.submit()
    wait_until(lambda: len(sweep.runs) > 0 and sweep.steps_done() > 50, 90, sweep.logs)
    for job in sweep.jobs():
        subprocess.run(["scancel", "--signal=USR2", str(job["job_id"])], check=True, timeout=30)
    sweep.wait_done(200)
    assert sorted(sweep.attempts().values()) == [1, 2]
    calm = SmallSweep(tmp_path / "b", steps=600, slurm=TWO_NODES)
    calm.submit()
    calm.wait_done(200)
    assert sweep.losses() == calm.losses()


def test_a_process_that_is_killed_does_not_leave_the_others_waiting(slurm: Lab, tmp_path: Path) -> None:
    sweep = SmallSweep(tmp_path, steps=400, slurm=TWO_NODES)
    sweep.submit()
    wait_until(lambda: len(sweep.runs) > 0 and sweep.steps_done() > 50, 90, sweep.logs)
    victims = [pid for pid in processes(["sweeps.job", "work", str(sweep.results)]) if _rank(pid) == 1]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    sweep.wait_done(200)
    close_to_one_process(sweep)


def _rank(pid: int) -> int | None:
    if "python" not in Path(f"/proc/{pid}/comm").read_text():
        return None
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"SLURM_PROCID="):
            return int(entry.partition(b"=")[2])
    return None


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_queued(
    slurm: Lab, tmp_path: Path
) -> None:
    sweep = SmallSweep(tmp_path, steps=100, slurm={**TWO_NODES, "nodes": 3})
    said = sweep("run", str(sweep.file), "--executor", "slurm", code=2)
    assert "8 sequences" in said
    assert "3 processes" in said
    assert not slurm.jobs()
