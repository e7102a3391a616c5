"""Feeds: lines that arrive in pieces, workers that wait for runs; kills, stops and aborts meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sweeps_local import TESTS, Lab, Recorder

from sweeps.errors import SweepError
from sweeps.feed import FeedReader, FeedWriter
from sweeps.lease import LEASE
from sweeps.local import LocalQueue
from sweeps.session import new_session, read_session, write_session
from trainer.config import RunConfig
from trainer.presets import resolve

CONFIG = resolve(
    {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "seq_len": 32, "dense_first_ffn": False},
        "structure": "dense",
        "data": {"corpus": {"kind": "synthetic", "vocab_size": 32, "order": 1}, "tokenizer": None},
        "optim": {"peak_lr": 1e-2, "batch_tokens": 256},
        "tokens": 2560,
    },
    "test",
)


class FedLab(Lab):
    """A lab whose runs come by a feed."""

    def fed(self, **settings: Any) -> LocalQueue:
        execution = self.layout.execution.model_dump(mode="json")
        session = new_session("lab", self.results, execution, [], 2, fed=True, **settings)
        return LocalQueue(session, self.layout, self.view, self.command)

    def config(self, seed: int) -> RunConfig:
        overview = self.look()
        return dict(zip(overview.ids, overview.configs, strict=True))[self.ids[seed]]

    def states(self) -> dict[int, str]:
        return {seed: self.state(seed).state for seed in self.ids}

    def processes(self) -> set[str]:
        """The worker processes that trained anything."""
        logs = (self.results / "runs" / run_id / "worker.log" for run_id in self.ids.values())
        lines = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
        return {line.rpartition(" ")[2] for line in lines if line.startswith("---")}


@pytest.fixture
def lab(tmp_path: Path, results: Path) -> Iterator[Callable[..., FedLab]]:
    made: list[FedLab] = []

    def make(seeds: list[int], slots: int = 2) -> FedLab:
        made.append(FedLab(tmp_path, results, seeds, slots))
        return made[-1]

    yield make
    for one in made:
        assert not list((one.results / "runs").glob(f"*/{LEASE}")), "a lease was left behind"


def no_files_left(one: FedLab) -> bool:
    return not list((one.results / "sweeps" / "sessions").iterdir())


@given(cuts=st.lists(st.integers(0, 2000), max_size=8), closes=st.booleans())
def test_a_feed_reads_the_same_however_its_bytes_arrive(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], closes: bool
) -> None:
    folder = tmp_path_factory.mktemp("feed")
    whole = folder / "whole"
    writer = FeedWriter(whole)
    for name in ("r1", "r2", "r3"):
        writer.add(name, CONFIG)
    if closes:
        writer.close()
    writer.drop()
    content, reader, found = whole.read_bytes(), FeedReader(folder / "part"), []
    (folder / "part").touch()
    for end in [*sorted(cuts), len(content)]:
        (folder / "part").write_bytes(content[:end])
        found += reader.read()
        assert not reader.closed or (closes and end >= len(content))
    assert [(name, RunConfig.model_validate_json(text)) for name, text in found] == [
        (name, CONFIG) for name in ("r1", "r2", "r3")
    ]
    assert reader.closed == closes
    assert reader.read() == []


@pytest.mark.parametrize("line", ["", "no JSON", "[]", '{"run": "r1"}', '{"run": 1, "config": "{}"}'])
def test_a_line_that_is_none_of_a_feed_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "feed").write_text(line + "\n")
    with pytest.raises(SweepError, match=r"no line of a feed: .*; start the search again"):
        FeedReader(tmp_path / "feed").read()


def test_a_feed_that_is_gone_is_closed(tmp_path: Path) -> None:
    reader = FeedReader(tmp_path / "feed")
    assert (reader.read(), reader.closed) == ([], True)


def test_a_session_knows_thousands_of_fed_runs_at_once(tmp_path: Path) -> None:
    session = new_session("lab", tmp_path, {}, [("first", CONFIG)], 2, fed=True)
    assert session.feed is not None
    writer = FeedWriter(Path(session.feed))
    again = read_session(write_session(session))
    assert again == session
    for n in range(2000):
        writer.add(f"r{n}", CONFIG)
    assert again.look()
    assert list(again.known)[:3] == ["first", "r0", "r1"]
    began = time.monotonic()
    for _ in range(1000):
        assert again.look()
    assert again.config("r1999") == CONFIG
    assert time.monotonic() - began < 1.0
    writer.close()
    assert not again.look()
    # One that comes to a session that has not looked yet.
    assert read_session(write_session(session)).config("r7") == CONFIG


def test_two_workers_train_each_run_of_a_feed_once_and_are_not_started_again(
    lab: Callable[..., FedLab],
) -> None:
    one = lab([1, *range(20, 30)])
    queue, waiting = one.fed(), list(one.ids)

    def tick() -> None:
        # Never more than two are known that are not over: the workers have to wait for the rest.
        while waiting and len(queue.left) < 2:
            seed = waiting.pop(0)
            queue.add(one.ids[seed], one.config(seed))
            queue.add(one.ids[seed], one.config(seed))
        if not waiting:
            queue.close_feed()
            queue.close_feed()

    one.view.on_tick = tick
    assert queue.run() == "finished"
    assert set(one.states().values()) == {"done"}
    assert {one.trained(seed) for seed in one.ids} == {1}
    assert len(one.processes()) <= 2
    assert no_files_left(one)


def test_a_run_is_begun_soon_after_it_is_added(lab: Callable[..., FedLab]) -> None:
    one = lab([1, 20, 21, 22], slots=1)
    queue, added, begun = one.fed(), {}, {}
    order = list(one.ids)

    def add(seed: int) -> None:
        added[one.ids[seed]] = time.monotonic()
        queue.add(one.ids[seed], one.config(seed))

    def event(run_id: str, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            begun[run_id] = time.monotonic()
            assert event["owner"]
        if event["event"] == "end":
            assert run_id not in queue.left
            order.pop(0)
            add(order[0]) if order else queue.close_feed()

    one.view.event = event  # type: ignore[method-assign]
    add(order[0])
    assert queue.run() == "finished"
    # The first waits for its worker's start; twice the time that it should take, on a busy machine.
    assert max(begun[one.ids[seed]] - added[one.ids[seed]] for seed in (20, 21, 22)) < 0.6


def test_runs_that_crash_are_retried_or_given_up_while_the_feed_is_open(lab: Callable[..., FedLab]) -> None:
    one = lab([5, 4, 1, 2], slots=2)
    queue, over = one.fed(), []
    for seed in one.ids:
        queue.add(one.ids[seed], one.config(seed))

    def event(run_id: str, event: dict[str, Any]) -> None:
        if event["event"] == "end" and run_id not in queue.left:
            over.append(run_id)
        if len(over) == len(one.ids):
            queue.close_feed()

    one.view.event = event  # type: ignore[method-assign]
    assert queue.run() == "finished"
    assert sorted(over) == sorted(one.ids.values())
    assert one.states() == {5: "done", 4: "failed", 1: "done", 2: "failed"}
    assert {seed: one.trained(seed) for seed in one.ids} == {5: 2, 4: 2, 1: 1, 2: 2}


def test_a_stop_ends_workers_that_wait(lab: Callable[..., FedLab]) -> None:
    one = lab([1], slots=1)
    queue = one.fed()
    queue.add(one.ids[1], one.config(1))

    def tick() -> None:
        if not queue.left:
            queue.asked = 1

    one.view.on_tick = tick
    began = time.monotonic()
    assert queue.run() == "interrupted"
    assert time.monotonic() - began < 20
    # Too late for this launch, and not an error: proposals may be under way.
    queue.add("another", one.config(1))
    assert queue.left == {"another"}
    assert no_files_left(one)


def test_a_full_disk_ends_a_queue_whose_feed_is_open(lab: Callable[..., FedLab]) -> None:
    one = lab([7, 1], slots=2)
    queue = one.fed()
    queue.add(one.ids[7], one.config(7))
    queue.add(one.ids[1], one.config(1))
    queue.run()
    assert queue.aborted == "disk: No space left on device; free some space"
    assert no_files_left(one)


def test_workers_of_a_feed_stop_and_checkpoint_when_their_launcher_is_killed(
    lab: Callable[..., FedLab],
) -> None:
    one = lab([1, 8], slots=2)
    program = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]
        from pathlib import Path
        from test_sweeps_feed import FedLab
        one = FedLab(Path({str(one.file.parent)!r}), Path({str(one.results)!r}), [1, 8])
        queue = one.fed()
        for seed in (1, 8):
            queue.add(one.ids[seed], one.config(seed))
        queue.run()
        """
    )
    launcher = subprocess.Popen([sys.executable, "-c", program])
    until = time.monotonic() + 40
    while one.states() != {1: "done", 8: "running"} and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    pids = [int(pid) for pid in one.processes()]
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    assert one.states() == {1: "done", 8: "preempted"}


def alive(pid: int) -> bool:
    try:
        # Whoever has adopted it may leave it a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_is_added_after_the_end(lab: Callable[..., FedLab]) -> None:
    one = lab([1])
    queue = one.fed()
    queue.close_feed()
    with pytest.raises(AssertionError):
        queue.add(one.ids[1], one.config(1))
    assert queue.run() == "finished"
    assert isinstance(one.view, Recorder)
    assert one.states() == {1: "new"}
