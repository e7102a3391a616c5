"""The lab is a real cluster: jobs, accidents and repairs happen as on a large one, and it leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm import lab as lab_module
from slurm.conftest import remove_orphans
from slurm.lab import Lab, LabError, why_not

LAB_PY = Path(__file__).with_name("lab.py")


def until(ready: Callable[[], Any], timeout: float = 40) -> Any:
    """Return the first true answer; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.05)
    return answer


def submit(lab: Lab, folder: Path, script: str, *options: str) -> str:
    """Submit a shell script that runs in `folder`; returns the job's number."""
    path = folder / "job.sh"
    path.write_text("#!/bin/bash\n" + script)
    out = ("--parsable", f"--chdir={folder}", "--output=out-%A_%a.txt")
    return lab.run("sbatch", *out, *options, str(path)).strip()


def restarts(lab: Lab, job: str) -> int:
    words = lab.run("scontrol", "-o", "show", "job", job).split()
    return int(next(word for word in words if word.startswith("Restarts=")).partition("=")[2])


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short name of a folder that is not there; whatever a failed test left in it is taken down."""
    parent = Path(tempfile.mkdtemp(prefix="lt", dir="/tmp"))
    yield parent / "lab"
    Lab(parent / "lab").down()
    shutil.rmtree(parent)


@pytest.mark.usefixtures("slurm")
def test_a_step_runs_on_all_nodes_and_their_names_resolve() -> None:
    command = ["srun", "-N4", "-n8", "sh", "-c", "echo $(hostname) $(getent hosts n1 n2 n3 n4 | wc -l)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert sorted(done.stdout.splitlines()) == [f"n{k} 4" for k in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_an_array_runs_no_more_tasks_at_once_than_its_throttle(slurm: Lab, tmp_path: Path) -> None:
    script = "echo $(date +%s.%N) 1 >>times; sleep 0.7; echo $(date +%s.%N) -1 >>times"
    submit(slurm, tmp_path, script, "--array=0-5%2")
    slurm.wait_idle(40)
    events = sorted(line.split() for line in lines(tmp_path / "times"))
    counts = [sum(int(step) for _, step in events[: i + 1]) for i in range(len(events))]
    assert len(events) == 12
    assert max(counts) == 2


def test_a_requeued_job_starts_again_and_knows_it(slurm: Lab, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, 'echo "${SLURM_RESTART_COUNT:-0}" >>starts; sleep 60')
    until(lambda: lines(tmp_path / "starts") == ["0"])
    slurm.run("scontrol", "requeue", job)
    until(lambda: lines(tmp_path / "starts") == ["0", "1"])
    assert slurm.jobs() == {job: "RUNNING"}


def test_a_job_comes_back_after_its_node_failed(slurm: Lab, tmp_path: Path) -> None:
    script = 'echo "${SLURM_RESTART_COUNT:-0} $$" >>starts; sleep 60'
    job = submit(slurm, tmp_path, script, "--nodelist=n3")
    (_, pid) = until(lambda: lines(tmp_path / "starts"))[0].split()
    assert running(pid)
    slurm.node_fail(3)
    assert not running(pid)
    assert slurm.jobs() == {job: "PENDING"}
    assert slurm.node_states()["n3"].startswith("down")
    slurm.node_start(3)
    until(lambda: len(lines(tmp_path / "starts")) == 2)
    assert lines(tmp_path / "starts")[1].startswith("1 ")
    assert slurm.jobs() == {job: "RUNNING"}


def test_a_silent_node_is_found_out_and_its_job_moves(slurm: Lab, tmp_path: Path) -> None:
    script = 'echo "${SLURM_RESTART_COUNT:-0} $(hostname)" >>starts; sleep 200'
    job = submit(slurm, tmp_path, script)
    until(lambda: lines(tmp_path / "starts") == ["0 n1"])
    slurm.node_kill(1)
    assert slurm.jobs() == {job: "RUNNING"}
    until(lambda: lines(tmp_path / "starts")[1:], 90)
    assert lines(tmp_path / "starts")[1] == "1 n2"
    slurm.node_start(1)
    assert slurm.node_states()["n1"] == "idle"


def test_a_job_outlives_the_daemon_of_its_node(slurm: Lab, tmp_path: Path) -> None:
    script = "echo $$ >>starts; until [ -e stop ]; do sleep 0.1; done; echo end >>starts"
    job = submit(slurm, tmp_path, script, "--nodelist=n2")
    pid = until(lambda: lines(tmp_path / "starts"))[0]
    slurm.slurmd_kill(2)
    assert running(pid)
    slurm.node_start(2)
    (tmp_path / "stop").touch()
    slurm.wait_idle(40)
    assert lines(tmp_path / "starts") == [pid, "end"]
    assert slurm.jobs(every=True)[job] == "COMPLETED"


def test_a_job_outlives_the_controller(slurm: Lab, tmp_path: Path) -> None:
    script = "echo $$ >>starts; until [ -e stop ]; do sleep 0.1; done; echo end >>starts"
    job = submit(slurm, tmp_path, script)
    pid = until(lambda: lines(tmp_path / "starts"))[0]
    slurm.wait_noted()
    slurm.controller_kill()
    with pytest.raises(LabError, match="sinfo"):
        slurm.run("sinfo", timeout=5)
    assert running(pid)
    slurm.controller_start()
    assert slurm.jobs() == {job: "RUNNING"}
    (tmp_path / "stop").touch()
    slurm.wait_idle(40)
    assert lines(tmp_path / "starts") == [pid, "end"]
    assert restarts(slurm, job) == 0


def test_a_preempted_job_is_told_by_its_signal_and_runs_again(slurm: Lab, tmp_path: Path) -> None:
    script = """
echo "start ${SLURM_RESTART_COUNT:-0}" >>told
trap 'echo USR2 >>told; scontrol requeue $SLURM_JOB_ID' USR2
while :; do sleep 0.1; done
"""
    job = submit(slurm, tmp_path, script, "--partition=low", "--nodes=4", "--exclusive", "--signal=B:USR2@30")
    until(lambda: lines(tmp_path / "told") == ["start 0"])
    name = slurm.run("srun", "--partition=high", "--exclusive", "--nodelist=n2", "hostname", timeout=60)
    assert name == "n2\n"
    assert lines(tmp_path / "told")[:2] == ["start 0", "USR2"]
    until(lambda: lines(tmp_path / "told")[-1] == "start 1")
    assert slurm.jobs() == {job: "RUNNING"}


def test_restore_repairs_whatever_a_test_has_broken(slurm: Lab, tmp_path: Path) -> None:
    submit(slurm, tmp_path, "trap '' TERM; echo $$ >>pids; while :; do sleep 1; done", "--array=0-2")
    pids = until(lambda: len(lines(tmp_path / "pids")) == 3 and lines(tmp_path / "pids"))
    slurm.node_fail(4)
    slurm.controller_kill()
    slurm.restore()
    assert slurm.jobs() == {}
    assert slurm.node_states() == {f"n{k}": "idle" for k in (1, 2, 3, 4)}
    assert not any(running(pid) for pid in pids)
    submit(slurm, tmp_path, "(setsid sh -c 'echo $$ >runaway; exec sleep 300' &)")
    pid = until(lambda: lines(tmp_path / "runaway"))[0]
    slurm.wait_idle()
    slurm.restore()
    assert not running(pid)


def test_down_leaves_no_process_no_file_and_no_port(folder: Path, tmp_path: Path) -> None:
    places = [Path(place) for place in ("/tmp", "/run", "/dev/shm", "/var/run", "/var/log", "/var/spool")]
    before = [set(place.glob("*")) for place in places]
    with Lab(folder, nodes=2) as lab:
        base, owned = lab.settings.base_port, lab_module.processes.owned(lab.settings.mark)
        submit(lab, tmp_path, "(setsid sh -c 'echo $$ >runaway; exec sleep 300' &); echo $$ >job; sleep 300")
        pids = [until(lambda name=name: lines(tmp_path / name))[0] for name in ("runaway", "job")]
        assert all(running(pid) for pid in pids)
        assert {lab_module.processes.program(pid) for pid in owned} >= {"slurmctld", "slurmd", "munged"}
    assert not folder.exists()
    assert not any(running(pid) for pid in pids)
    assert not any(running(str(pid)) for pid in owned)
    # Other programs may write there meanwhile; what carries a name of Slurm's is ours.
    after = [set(place.glob("*")) - old for place, old in zip(places, before, strict=True)]
    assert not [path for new in after for path in new if any(w in path.name for w in ("slurm", "munge"))]
    with Lab(folder, nodes=1, base_port=base) as lab:
        assert lab.settings.base_port == base


def test_a_lab_whose_owner_was_killed_is_taken_down(folder: Path) -> None:
    code = (
        "import sys; from slurm.lab import Lab; Lab(sys.argv[1], nodes=1).up(); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(LAB_PY.parents[1])}
    owner = subprocess.Popen(
        [*command, str(folder)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None and owner.stdout.readline() == "1\n"
    owner.send_signal(signal.SIGKILL)
    owner.communicate(timeout=10)
    left = Lab(folder)
    assert left.exists() and left.node_states() == {"n1": "idle"}
    named = folder.parent / f"sl-{owner.pid}-x"
    alive = folder.parent / f"sl-{os.getpid()}-x"
    shutil.copytree(folder / "etc", alive)
    shutil.copy(folder / "lab.json", alive)
    folder.rename(named)
    mark = left.settings.mark
    remove_orphans(folder.parent)
    assert not named.exists()
    assert alive.exists()
    assert not lab_module.processes.owned(mark)


def test_shape_and_configuration_are_what_was_asked_for(folder: Path) -> None:
    with Lab(folder, nodes=1, cpus=3, gpus=2, mem_mb=1500, max_array_size=77, KillWait=9) as lab:
        shown = lab.run("scontrol", "show", "config") + lab.run("scontrol", "show", "node", "n1")
        for words in (r"KillWait = 9 sec", "MaxArraySize = 77", "CPUTot=3", "RealMemory=1500", "Gres=gpu:2"):
            assert words in " ".join(shown.split()), words
        step = ("srun", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
        assert lab.run(*step) == "0,1\n"


@pytest.mark.parametrize(
    ("daemon", "line", "value"),
    [("slurmctld", "SchedulerType", "sched/none-such"), ("n1", "SlurmdSpoolDir", "/proc/none-such")],
)
def test_a_daemon_that_does_not_start_shows_its_log_and_leaves_nothing(
    folder: Path, daemon: str, line: str, value: str
) -> None:
    lab = Lab(folder, nodes=1, **{line: value})
    with pytest.raises(LabError, match=f"(?s){daemon}: ended with code 1; the end of its log.*{value}"):
        lab.up()
    assert not folder.exists()
    assert not lab_module.processes.owned(lab.settings.mark)


def test_mistakes_are_told_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(LabError, match="is not empty"):
        Lab(folder).up()
    Lab(folder).down()
    assert (folder / "mine").exists()
    with pytest.raises(LabError, match="too long for unix sockets"):
        Lab(folder.parent / ("x" * 60)).up()
    with monkeypatch.context() as patch:
        patch.setattr(lab_module.shutil, "which", lambda name, path: None if name == "slurmctld" else name)
        assert why_not() == "slurmctld is not installed; as root run tests/slurm/install.sh"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "root is needed for the nodes' namespaces; run the tests as root"


def test_the_command_line_starts_shows_and_stops_a_lab(folder: Path) -> None:
    def call(action: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(LAB_PY), action, f"--folder={folder}", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    wrong = call("status")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "no lab in" in wrong.stderr
    assert (
        call("up", "--nodes=2").stdout == call("env").stdout == f"export SLURM_CONF={folder}/etc/slurm.conf\n"
    )
    assert "holds a lab already" in call("up").stderr
    assert "n2" in call("status").stdout
    assert call("down").returncode == 0
    assert not folder.exists()


def test_accounting_knows_a_job_that_is_over(folder: Path, tmp_path: Path) -> None:
    if reason := why_not(accounting=True):
        pytest.skip(f"real Slurm tests with accounting skipped: {reason}")
    with Lab(folder, nodes=1, accounting=True) as lab:
        job = submit(lab, tmp_path, "exit 3")
        sacct = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "state,exitcode")
        until(lambda: lab.run(*sacct).strip() == "FAILED|3:0")
