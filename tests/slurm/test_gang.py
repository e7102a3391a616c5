"""One run trained by two processes on two nodes (DDP over gloo) is the run that one process trains."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance import TAMPER

from slurm.lab import Lab
from slurm.sweep import SmallSweep, processes, undisturbed, wait_until
from sweeps.overview import look
from sweeps.sweepfile import read_sweep

TWO_NODES = {"nodes": 2, "tasks": 1, "cpus": 1, "jobs": 1, "job_minutes": 30, "notice": 10}
STEPS = 400


def ranks(sweep: SmallSweep) -> dict[int, int]:
    """The processes that train the sweep, by their number among them."""
    found = {}
    for pid in processes(["sweeps.job", "work", str(sweep.results)]):
        try:
            # srun's command line holds the program's.
            if "python" in Path(f"/proc/{pid}/comm").read_text():
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                number = next(one for one in variables if one.startswith(b"SLURM_PROCID="))
                found[int(number.partition(b"=")[2])] = pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def in_the_middle(sweep: SmallSweep) -> dict[int, int]:
    """Wait until the first run has a checkpoint and steps behind it; its processes."""

    def trains() -> bool:
        return any(list((run / "checkpoints").glob("step-*.json")) for run in sweep.runs) and (
            sweep.steps_done() > 20
        )

    wait_until(trains, 90, sweep.logs, every=0.1)
    found = ranks(sweep)
    assert sorted(found) == [0, 1], sweep.logs()
    return found


def nothing_stays(sweep: SmallSweep) -> None:
    wait_until(lambda: not processes([str(sweep.results)]), 20)
    for run in sweep.runs:
        assert not (run / "lease.json").exists()
        assert not list(run.rglob("*.tmp"))


@pytest.fixture(scope="module")
def calm(slurm_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> SmallSweep:
    """Two runs that two processes on two nodes have trained undisturbed, one after the other in one job."""
    sweep = SmallSweep(tmp_path_factory.mktemp("calm"), steps=STEPS, slurm=TWO_NODES)
    with pytest.MonkeyPatch.context() as patch:
        slurm_lab.restore()
        for name, value in slurm_lab.environment().items():
            patch.setenv(name, value)
        sweep.submit()
        sweep.wait_done(150)
        nothing_stays(sweep)
    return sweep


def test_two_processes_train_what_one_does(calm: SmallSweep) -> None:
    assert set(calm.attempts().values()) == {1}
    logs = calm.logs()
    assert logs.count("start 1: small") == 1
    for run in calm.runs:
        assert logs.count(f"{run.name} begun, {STEPS} steps") == logs.count(f"{run.name} done") == 1
    alone, together = undisturbed(calm), calm.losses()
    assert together.keys() == alone.keys()
    for run_id, (train, val, curve) in together.items():
        assert (train, val) == pytest.approx(alone[run_id][:2], rel=1e-5)
        assert [step for step, _ in curve] == [step for step, _ in alone[run_id][2]]
        assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in alone[run_id][2]], rel=1e-5)
    # It was really two: the sum over the batch is rounded otherwise.
    assert together != alone


def notice(slurm: Lab, job: str, pids: dict[int, int]) -> None:
    """What Slurm does some time before the limit."""
    slurm.run("scancel", "--signal=USR2", job)


def kill_first(slurm: Lab, job: str, pids: dict[int, int]) -> None:
    os.kill(pids[0], signal.SIGKILL)


def kill_second(slurm: Lab, job: str, pids: dict[int, int]) -> None:
    os.kill(pids[1], signal.SIGKILL)


def nodes_of(slurm: Lab, job: str) -> list[int]:
    names = slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    hosts = slurm.run("scontrol", "show", "hostnames", names).split()
    return [int(host.removeprefix("n")) for host in hosts]


def first_node(slurm: Lab, job: str, pids: dict[int, int]) -> None:
    node = nodes_of(slurm, job)[0]
    slurm.node_fail(node)
    slurm.node_start(node)


def second_node(slurm: Lab, job: str, pids: dict[int, int]) -> None:
    node = nodes_of(slurm, job)[1]
    slurm.node_fail(node)
    slurm.node_start(node)


def one_hangs(slurm: Lab, job: str, pids: dict[int, int]) -> None:
    """The other waits for it without an end, and hears no signal; until the notice."""
    os.kill(pids[1], signal.SIGSTOP)
    time.sleep(1)
    notice(slurm, job, pids)


@pytest.mark.parametrize(
    "trouble", [notice, kill_first, kill_second, first_node, second_node, one_hangs], ids=lambda f: f.__name__
)
def test_whatever_happens_to_one_the_losses_are_the_undisturbed_ones(
    slurm: Lab, tmp_path: Path, calm: SmallSweep, trouble: Callable[[Lab, str, dict[int, int]], None]
) -> None:
    sweep = SmallSweep(tmp_path, steps=STEPS, slurm=TWO_NODES)
    sweep.submit()
    pids = in_the_middle(sweep)
    (job,) = [job["job_id"] for job in sweep.jobs() if job["live"]]
    trouble(slurm, str(job), pids)
    sweep.wait_done(120)
    assert sweep.losses() == calm.losses()
    assert sorted(sweep.attempts().values()) == [1, 2]
    nothing_stays(sweep)
    assert sweep.logs().count("start 2: small") == 1
    # None of it was the run's own failure.
    assert " failed" not in sweep.logs()


def test_a_run_that_fails_is_tried_twice_and_holds_up_no_other(
    slurm: Lab, tmp_path: Path, calm: SmallSweep
) -> None:
    """Both its processes find no good checkpoint, once they have joined for it."""
    sweep = SmallSweep(tmp_path, steps=STEPS, slurm=TWO_NODES)
    bad, good = look(read_sweep(sweep.file), sweep.results).ids
    checkpoints = sweep.results / "runs" / bad / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step-000000100.safetensors").write_bytes(b"torn")
    (checkpoints / "step-000000100.json").write_text('{"step": 100, "sha256": "other"}')
    sweep.submit()
    wait_until(lambda: not any(job["live"] for job in sweep.jobs()), 120, sweep.logs)
    assert sweep.counts() == {"done": 1, "failed": 1}
    assert json.loads((sweep.results / "runs" / bad / "failures.json").read_text())["failures"] == 2
    assert "checkpoints are damaged" in sweep("logs", bad)
    logs = sweep.logs()
    assert logs.count(f"{bad} failed") == 2, logs
    assert logs.count(f"{good} done") == 1
    result = json.loads((sweep.results / "runs" / good / "result.json").read_text())
    assert result["val_loss"] == calm.losses()[good][1]


def test_a_run_that_kills_its_processes_holds_up_no_other(
    slurm: Lab, tmp_path: Path, calm: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left to say why; the next starts find out by whose lease was left behind."""
    sweep = SmallSweep(tmp_path, steps=STEPS, slurm=TWO_NODES)
    bad, good = look(read_sweep(sweep.file), sweep.results).ids
    (tmp_path / "sitecustomize.py").write_text(TAMPER)
    (tmp_path / "tamper.json").write_text(json.dumps({bad: "kill"}))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sweep.submit()
    wait_until(lambda: not any(job["live"] for job in sweep.jobs()), 180, sweep.logs)
    assert sweep.counts() == {"done": 1, "failed": 1}, sweep.logs()
    assert sweep.logs().count("its processes were killed") == 2
    result = json.loads((sweep.results / "runs" / good / "result.json").read_text())
    assert result["val_loss"] == calm.losses()[good][1]


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_queued(
    slurm: Lab, tmp_path: Path
) -> None:
    sweep = SmallSweep(tmp_path, steps=100, slurm={**TWO_NODES, "nodes": 3})
    for more in ((), ("--dry-run",)):
        said = sweep("run", str(sweep.file), "--executor", "slurm", *more, code=2)
        (line,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert "8 sequences" in line
        assert "3 processes" in line
        assert "optim.batch_tokens = 256" in line
    assert not slurm.jobs()
    assert not (sweep.results / "sweeps" / "submissions").exists()
