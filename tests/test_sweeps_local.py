"""The local queue and its workers, with a pretended trainer: crashes, exceptions, stops, other launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps import local
from sweeps.launch import launch
from sweeps.layout import Layout
from sweeps.lease import LEASE, Lease
from sweeps.ledger import Ledger, RunState
from sweeps.local import LocalQueue
from sweeps.overview import Overview, look
from sweeps.price import Setting
from sweeps.session import ask_to_stop, new_session, read_session, write_session
from sweeps.sweepfile import read_sweep
from trainer.execution import Execution

TESTS = Path(__file__).parent

TRAINER = '''
"""A worker whose trainer does what its run's seed says."""
import json, os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from sweeps.worker import main
from conftest import finish_run
from trainer.errors import CorpusError, RunDirError
from trainer.rundir import write_status

class Progress:
    def __init__(self, step, total, note=None):
        self.phase, self.step, self.total, self.note = "train", step, total, note
        self.train_loss, self.tokens_per_second, self.eta_seconds = 2.5, 100.0, 1.0

def train(config, corpus, run_dir, run_id, execution, should_stop, on_progress):
    with open(run_dir.parent / "trained.txt", "a") as file:
        file.write(run_id + "\\n")
    attempt = json.loads((run_dir / "status.json").read_text()).get("attempt", 0) + 1 if (
        run_dir / "status.json").exists() else 1
    write_status(run_dir, {{"state": "running", "attempt": attempt, "started": time.time()}})
    on_progress(Progress(0, config.steps, note="a note"))
    on_progress(Progress(1, config.steps))
    match config.seed:
        case 2: raise ValueError("seed two\\nis bad")
        case 3: os._exit(7)
        case 4: os.kill(os.getpid(), 9)
        case 5:
            if attempt == 1: os._exit(7)
        case 6: raise CorpusError("corpus too small; take more")
        case 7: raise RunDirError("disk: No space left on device; free some space")
        case 8:
            while not should_stop(): time.sleep(0.02)
            write_status(run_dir, {{"state": "preempted", "attempt": attempt}})
            return "preempted"
        case 9:
            while True: time.sleep(1)
        case 10: time.sleep(1.0)
    finish_run(run_dir.parent.parent, config, run_id, state="diverged" if config.seed == 11 else "done",
               attempts=attempt)
    return "diverged" if config.seed == 11 else "done"

sys.exit(main(train=train))
'''


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SCAN_SECONDS", 0.2)


class Recorder:
    """A view that remembers."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.waited: dict[str, str] = {}
        self.on_tick: Callable[[], None] = lambda: None

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        self.events.append(event)

    def waiting(self, owners: dict[str, str]) -> None:
        self.waited = dict(owners)

    def say(self, line: str) -> None:
        self.said.append(line)

    def tick(self) -> None:
        self.on_tick()

    def started(self) -> set[str]:
        return {event["run"] for event in self.events if event["event"] == "progress"}


class Lab:
    """A sweep over given seeds, and ways to run it."""

    def __init__(self, folder: Path, results: Path, seeds: list[int], slots: int = 2) -> None:
        self.results = results
        self.file = folder / "lab.toml"
        from conftest import TINY

        text = TINY.replace('["dense", "lowrank-63"]', '["dense"]').replace("[1, 2]", str(seeds))
        if not self.file.exists():
            self.file.write_text(text)
        self.script = folder / "worker.py"
        if not self.script.exists():
            self.script.write_text(TRAINER.format(root=str(TESTS.parent), tests=str(TESTS)))
        self.command = [sys.executable, str(self.script)]
        self.layout = Layout(({},) * slots, Execution(device="cpu", threads=1), Setting("a processor", 1))
        self.view = Recorder()
        self.ids = dict(zip(seeds, self.look().ids, strict=True))

    def look(self) -> Overview:
        return look(read_sweep(self.file), self.results)

    def queue(self, view: Recorder | None = None, max_attempts: int = 2) -> LocalQueue:
        overview = self.look()
        pairs = list(zip(overview.ids, overview.configs, strict=True))
        execution = self.layout.execution.model_dump(mode="json")
        session = new_session("lab", self.results, execution, pairs, max_attempts)
        return LocalQueue(session, self.layout, view or self.view, self.command)

    def state(self, seed: int) -> RunState:
        return Ledger(self.results).state(self.ids[seed])

    def trained(self, seed: int) -> int:
        lines = (self.results / "runs" / "trained.txt").read_text().splitlines()
        return lines.count(self.ids[seed])

    def wait_for_start(self, *seeds: int) -> None:
        deadline = time.monotonic() + 30
        while not {self.ids[seed] for seed in seeds} <= self.view.started():
            assert time.monotonic() < deadline, self.view.events
            time.sleep(0.02)


@pytest.fixture
def lab(tmp_path: Path, results: Path) -> Iterator[Callable[..., Lab]]:
    labs: list[Lab] = []

    def make(seeds: list[int], slots: int = 2) -> Lab:
        labs.append(Lab(tmp_path, results, seeds, slots))
        return labs[-1]

    yield make
    for one in labs:
        for seed in one.ids:
            path = one.results / "runs" / one.ids[seed] / LEASE
            assert not path.exists(), f"the lease of seed {seed} was left behind"


def test_every_run_is_trained_once_in_the_order_given(lab: Callable[..., Lab]) -> None:
    one = lab([1, 12, 13, 14, 15], slots=1)
    assert one.queue().run() == "finished"
    starts = [event["run"] for event in one.view.events if event["event"] == "start"]
    assert starts == list(one.ids.values())
    assert all(one.state(seed).state == "done" for seed in one.ids)
    log = one.results / "runs" / one.ids[1] / "worker.log"
    assert "a note" in log.read_text()


def test_one_failing_run_does_not_touch_the_others(lab: Callable[..., Lab]) -> None:
    one = lab([2, 1, 3, 4, 12, 11])
    assert one.queue().run() == "finished"
    states = {seed: one.state(seed) for seed in one.ids}
    assert {seed: state.state for seed, state in states.items()} == {
        2: "failed", 1: "done", 3: "failed", 4: "failed", 12: "done", 11: "diverged",
    }  # fmt: skip
    assert states[2].message == "ValueError: seed two"
    assert "Traceback" in (one.results / "runs" / one.ids[2] / "error.txt").read_text()
    assert "exit code 7" in str(states[3].message)
    assert "SIGKILL" in str(states[4].message)
    assert "out of memory" in str(states[4].message)
    assert {seed: one.trained(seed) for seed in one.ids} == {2: 2, 1: 1, 3: 2, 4: 2, 12: 1, 11: 1}


def test_a_crash_is_retried_and_forgotten_once_it_succeeds(lab: Callable[..., Lab]) -> None:
    one = lab([5, 1], slots=1)
    assert one.queue().run() == "finished"
    state = one.state(5)
    assert (state.state, state.failures, one.trained(5)) == ("done", 0, 2)


def test_what_only_the_user_can_mend_is_not_tried_twice_in_one_launch(lab: Callable[..., Lab]) -> None:
    one = lab([6])
    one.queue().run()
    assert (one.trained(6), one.state(6).message) == (1, "corpus too small; take more")
    one.queue().run()
    assert one.trained(6) == 2
    one.queue().run()
    assert one.trained(6) == 2


def test_a_full_disk_stops_the_workers_instead_of_burning_the_runs(lab: Callable[..., Lab]) -> None:
    one = lab([7, 1, 12], slots=1)
    queue = one.queue()
    queue.run()
    assert queue.aborted == "disk: No space left on device; free some space"
    assert [one.state(seed).state for seed in (1, 12)] == ["new", "new"]
    assert one.state(7).failures == 0


def test_a_stop_leaves_runs_resumable(lab: Callable[..., Lab]) -> None:
    one = lab([8, 1], slots=2)
    queue = one.queue()
    one.view.on_tick = lambda: (
        setattr(queue, "asked", max(queue.asked, 1)) if one.ids[8] in one.view.started() else None
    )
    assert queue.run() == "interrupted"
    assert one.state(8).state == "preempted"
    assert "resumable" in one.view.said[0]
    assert not list((one.results / "sweeps" / "sessions").iterdir())


def test_a_second_stop_kills(lab: Callable[..., Lab]) -> None:
    one = lab([9], slots=1)
    queue = one.queue()

    def press() -> None:
        if one.view.started():
            queue.asked = queue.asked + 1

    one.view.on_tick = press
    began = time.monotonic()
    assert queue.run() == "interrupted"
    assert time.monotonic() - began < 20
    state = one.state(9)
    assert (state.state, state.failures) == ("preempted", 0)
    (one.results / "runs" / one.ids[9] / LEASE).unlink()


def test_workers_that_are_deaf_are_killed_once_their_grace_is_over(lab: Callable[..., Lab]) -> None:
    one = lab([9], slots=1)
    queue = one.queue()
    queue.grace = 0.5

    def press() -> None:
        if one.view.started():
            queue.asked = max(queue.asked, 1)

    one.view.on_tick = press
    began = time.monotonic()
    assert queue.run() == "interrupted"
    assert time.monotonic() - began < 20
    assert "workers did not stop within 0 s" in one.view.said
    assert (one.state(9).state, one.state(9).failures) == ("preempted", 0)
    (one.results / "runs" / one.ids[9] / LEASE).unlink()


def test_workers_without_the_gpu_that_is_asked_for_fail_no_run(lab: Callable[..., Lab]) -> None:
    one = lab([1, 2], slots=1)
    queue = one.queue()
    queue.command = (sys.executable, "-m", "sweeps.worker")
    queue.session.execution["device"] = "cuda"
    queue.run()
    assert queue.no_device
    assert "no CUDA device is visible" in str(queue.aborted)
    assert [(one.state(seed).state, one.state(seed).failures) for seed in (1, 2)] == [("new", 0)] * 2


def test_cancel_from_elsewhere_stops_a_sweep_and_does_not_haunt_the_next(lab: Callable[..., Lab]) -> None:
    one = lab([8], slots=1)
    queue = one.queue()
    threading.Thread(target=lambda: (one.wait_for_start(8), ask_to_stop(one.results, "lab"))).start()
    assert queue.run() == "cancelled"
    assert one.state(8).state == "preempted"
    assert not one.queue().session.stop_asked


def test_runs_of_another_launcher_are_waited_for_and_taken_over_when_stale(lab: Callable[..., Lab]) -> None:
    one = lab([1, 12], slots=1)
    other = Lease(one.results / "runs" / one.ids[12])
    assert other.claim()
    path = other.run_dir / LEASE

    def age() -> None:
        if one.view.waited and path.exists():
            lease = json.loads(path.read_text())
            if lease["owner"] == other.owner:
                path.write_text(json.dumps({**lease, "heartbeat": time.time() - 100}))

    one.view.on_tick = age
    assert one.queue().run() == "finished"
    assert list(one.view.waited) == [one.ids[12]]
    assert [one.state(seed).state for seed in (1, 12)] == ["done", "done"]


def test_two_launchers_at_once_train_every_run_once(lab: Callable[..., Lab]) -> None:
    one = lab([1, 10, 12, 13, 14, 15], slots=2)
    program = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]
        from pathlib import Path
        from test_sweeps_local import Lab
        print(Lab(Path({str(one.file.parent)!r}), Path({str(one.results)!r}), {list(one.ids)}).queue().run())
        """
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["finished"] * 2
    assert {seed: one.trained(seed) for seed in one.ids} == dict.fromkeys(one.ids, 1)
    assert all(one.state(seed).state == "done" for seed in one.ids)


def test_workers_stop_when_their_launcher_dies(lab: Callable[..., Lab]) -> None:
    one = lab([8], slots=1)
    path = write_session(one.queue().session)
    program = (
        "import subprocess, sys, os, time\n"
        f"p = subprocess.Popen([*{one.command!r}, {str(path)!r}, '--launcher', str(os.getpid())],"
        " start_new_session=True)\n"
        "print(p.pid, flush=True)\ntime.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    launcher.stdout.readline()
    deadline = time.monotonic() + 30
    while one.state(8).state != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    while one.state(8).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert one.state(8).state == "preempted"
    assert json.loads((one.results / "runs" / one.ids[8] / "status.json").read_text())["state"] == "preempted"


def test_a_worker_stops_on_term_and_on_usr2(lab: Callable[..., Lab]) -> None:
    one = lab([8], slots=1)
    path = write_session(one.queue().session)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        process = subprocess.Popen([*one.command, str(path)], start_new_session=True)
        deadline = time.monotonic() + 30
        while one.state(8).state != "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)
        os.kill(process.pid, number)
        assert process.wait(timeout=20) == 0
        assert one.state(8).state == "preempted"


@pytest.mark.slow
def test_a_worker_that_lost_its_lease_writes_nothing_more(lab: Callable[..., Lab]) -> None:
    one = lab([8], slots=1)
    path = write_session(one.queue().session)
    process = subprocess.Popen([*one.command, str(path)], start_new_session=True)
    lease = one.results / "runs" / one.ids[8] / LEASE
    deadline = time.monotonic() + 30
    while one.state(8).state != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "owner": "somebody else"}))
    before = (one.results / "runs" / one.ids[8] / "status.json").read_text()
    time.sleep(0.2)
    process.wait(timeout=20)
    assert (one.results / "runs" / one.ids[8] / "status.json").read_text() == before
    lease.unlink()


def test_a_session_survives_its_file(lab: Callable[..., Lab]) -> None:
    one = lab([1, 2])
    session = one.queue().session
    again = read_session(write_session(session))
    assert again == session
    overview = one.look()
    assert [again.config(run_id) for run_id in overview.ids] == overview.configs


def test_a_run_whose_meaning_changed_is_refused(lab: Callable[..., Lab]) -> None:
    one = lab([1], slots=1)
    queue = one.queue()
    queue.session.runs[0] = ("0123456789ab", queue.session.runs[0][1])
    queue.left = {"0123456789ab"}
    queue.run()
    assert "not what was planned" in str(Ledger(one.results).state("0123456789ab").message)


def test_launch_says_how_it_ended(lab: Callable[..., Lab]) -> None:
    one = lab([1, 12])
    overview = one.look()
    ending = launch(overview, overview.plan(one.layout), one.layout, mirror=False, worker=one.command)
    assert (ending.code, ending.line.split(";")[0]) == (0, "2 runs: 2 done")
    record = json.loads((one.results / "sweeps" / "lab.json").read_text())
    assert record["run_ids"] == overview.ids
    overview = one.look()
    ending = launch(overview, overview.plan(one.layout), one.layout, mirror=False, worker=["/bin/false"])
    assert ending.code == 0


def test_workers_that_cannot_start_end_the_launch(lab: Callable[..., Lab]) -> None:
    one = lab([1], slots=1)
    one.command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    queue = one.queue()
    queue.run()
    assert "workers end before they train anything" in str(queue.aborted)
    assert "no such thing" in (one.results / "logs" / "lab-0.log").read_text()
