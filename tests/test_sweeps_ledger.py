"""Claims and states: who owns a run, when a lease is stale, and what the folders say."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import fake_result, finish_run

from sweeps import lease as lease_module
from sweeps.errors import SweepError
from sweeps.index import INDEX
from sweeps.lease import LEASE, Lease, LeaseLost, is_stale, machine_id, process_start
from sweeps.ledger import Ledger, RunState
from trainer.config import RunConfig
from trainer.presets import resolve
from trainer.rundir import write_json, write_status


@pytest.fixture
def config() -> RunConfig:
    return resolve({"preset": "cpu-xs", "tokens": 40_960}, "x")


def dead_process() -> tuple[int, str]:
    """The id and start time of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(process.pid)
    assert start is not None
    process.communicate(b"\n")
    return process.pid, start


def edit_lease(folder: Path, **changes: Any) -> None:
    path = folder / LEASE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def race(folder: Path, rounds: int, barrier: Any, won: Any) -> None:
    for number in range(rounds):
        lease = Lease(folder / str(number))
        barrier.wait()
        won.put((number, lease.claim()))
    # The lease of a process that has ended is stale, so nobody leaves before all have tried.
    barrier.wait()


def test_of_two_processes_that_race_exactly_one_gets_each_claim(tmp_path: Path) -> None:
    rounds, racers = 80, 3
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path, rounds, barrier, won)) for _ in range(racers)]
    for process in processes:
        process.start()
    got = [won.get(timeout=60) for _ in range(rounds * racers)]
    for process in processes:
        process.join()
    assert [sum(claimed for n, claimed in got if n == number) for number in range(rounds)] == [1] * rounds


def test_of_racers_for_a_stale_lease_exactly_one_takes_it_over(tmp_path: Path) -> None:
    rounds, racers = 40, 3
    pid, start = dead_process()
    for number in range(rounds):
        assert Lease(tmp_path / str(number)).claim()
        edit_lease(tmp_path / str(number), pid=pid, process_start=start)
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path, rounds, barrier, won)) for _ in range(racers)]
    for process in processes:
        process.start()
    got = [won.get(timeout=60) for _ in range(rounds * racers)]
    for process in processes:
        process.join()
    assert [sum(claimed for n, claimed in got if n == number) for number in range(rounds)] == [1] * rounds


def test_a_lease_of_a_dead_process_is_stale_at_once(tmp_path: Path) -> None:
    assert Lease(tmp_path).claim()
    assert not Lease(tmp_path).claim()
    pid, start = dead_process()
    edit_lease(tmp_path, pid=pid, process_start=start)
    assert Lease(tmp_path).claim()


def test_what_a_sibling_left_when_it_died_is_its_launchers_to_judge(tmp_path: Path) -> None:
    assert Lease(tmp_path, session="s").claim()
    pid, start = dead_process()
    edit_lease(tmp_path, pid=pid, process_start=start)
    assert not Lease(tmp_path, session="s").claim()
    assert Lease(tmp_path, session="another").claim()


def test_a_run_that_keeps_killing_workers_fails_even_if_nobody_could_say_so(results: Path) -> None:
    ledger = Ledger(results)
    ledger.run_dir("r").mkdir(parents=True)
    write_status(ledger.run_dir("r"), {"state": "running"})
    ledger.count_failure("r", "killed", session="s")
    assert ledger.state("r").state == "preempted"
    ledger.count_failure("r", "killed", session="t")
    assert (ledger.state("r").state, ledger.state("r").message) == ("failed", "killed")


def test_a_reused_process_id_does_not_keep_a_lease_alive(tmp_path: Path) -> None:
    assert Lease(tmp_path).claim()
    edit_lease(tmp_path, pid=os.getpid(), process_start="another time")
    assert Lease(tmp_path).claim()


def test_on_another_machine_only_the_heartbeat_counts(tmp_path: Path) -> None:
    pid, start = dead_process()
    now = time.time()
    lease = {"owner": "x", "machine": "elsewhere", "pid": pid, "process_start": start, "heartbeat": now - 50}
    assert not is_stale(lease, now)
    assert is_stale(lease, now + 11)
    assert is_stale({**lease, "machine": machine_id()}, now)
    assert is_stale({}, now)


def test_an_owner_that_was_away_too_long_learns_that_it_lost(tmp_path: Path) -> None:
    first, second = Lease(tmp_path, timeout=0.2), Lease(tmp_path, timeout=0.2)
    assert first.claim()
    first.check()
    time.sleep(0.3)
    assert second.claim()
    with pytest.raises(LeaseLost):
        first.check()
    assert not first.renew()
    first.release()
    second.check()
    assert json.loads((tmp_path / LEASE).read_text())["owner"] == second.owner


def test_a_heartbeat_keeps_a_lease_and_its_end_releases_it(tmp_path: Path) -> None:
    lease = Lease(tmp_path, heartbeat=0.05, timeout=0.4)
    assert lease.claim()
    with lease:
        for _ in range(4):
            time.sleep(0.2)
            assert not Lease(tmp_path, timeout=0.4).claim()
    assert not (tmp_path / LEASE).exists()
    assert Lease(tmp_path).claim()


def test_a_lost_lease_is_noticed_by_the_heartbeat(tmp_path: Path) -> None:
    lease = Lease(tmp_path, heartbeat=0.05)
    assert lease.claim()
    with lease:
        edit_lease(tmp_path, owner="somebody else")
        deadline = time.monotonic() + 5
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(LeaseLost):
            lease.check()
    assert (tmp_path / LEASE).exists()


def test_a_full_disk_does_not_lose_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(tmp_path, heartbeat=0.02, timeout=0.1)
    assert lease.claim()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with lease:
        monkeypatch.setattr(lease_module.os, "replace", full)
        time.sleep(0.2)
        lease.check()
        monkeypatch.undo()


def test_states_by_precedence(results: Path, config: RunConfig) -> None:
    ledger = Ledger(results)
    folder = ledger.run_dir("r")
    assert ledger.state("r") == RunState()
    folder.mkdir(parents=True)
    assert ledger.state("r").state == "new"
    write_status(folder, {"state": "running", "step": 5, "attempt": 1})
    assert (ledger.state("r").state, ledger.state("r").checkpoint) == ("preempted", None)
    lease = Lease(folder)
    assert lease.claim()
    assert ledger.state("r").state == "running"
    assert str(os.getpid()) in str(ledger.state("r").owner)
    lease.release()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000000003.safetensors").touch()
    assert ledger.state("r").checkpoint is None
    (folder / "checkpoints" / "step-000000003.json").touch()
    assert (ledger.state("r").state, ledger.state("r").checkpoint) == ("preempted", 3)
    write_status(folder, {"state": "failed", "message": "why"})
    assert (ledger.state("r").state, ledger.state("r").message) == ("failed", "why")
    assert lease.claim()
    finish_run(results, config, "r")
    assert ledger.state("r").state == "done"


@pytest.mark.parametrize("damage", ["truncate", "edit", "empty"])
def test_a_corrupted_result_is_a_state_and_retry_moves_it_aside(
    results: Path, config: RunConfig, damage: str
) -> None:
    ledger = Ledger(results)
    path = finish_run(results, config, "r") / "result.json"
    text = path.read_text()
    path.write_text({"truncate": text[:100], "edit": text.replace("2.6", "1.6"), "empty": ""}[damage])
    state = ledger.state("r")
    assert state.state == "corrupt"
    assert "result.json" in str(state.message)
    assert "retry r" in str(state.message)
    damaged = path.read_text()
    assert ledger.reset("r") is not None
    assert (path.parent / "result.json.corrupt-1").read_text() == damaged
    assert ledger.state("r").state in ("preempted", "new")
    assert ledger.reset("r") is None


def test_failures_are_counted_until_they_are_forgotten(results: Path) -> None:
    ledger = Ledger(results)
    ledger.run_dir("r").mkdir(parents=True)
    ledger.record_failure("r", "one line", "many\nlines", session="s", permanent=True)
    state = ledger.state("r")
    assert (state.state, state.failures, state.message) == ("failed", 1, "one line")
    assert (ledger.run_dir("r") / "error.txt").read_text() == "many\nlines\n"
    assert ledger.gives_up("r", "s", 2)
    assert not ledger.gives_up("r", "another session", 2)
    ledger.record_failure("r", "again", "again", session="t")
    assert ledger.gives_up("r", "another session", 2)
    ledger.reset("r")
    assert (ledger.state("r").state, ledger.state("r").failures) == ("new", 0)


def test_a_torn_status_loses_nothing(results: Path) -> None:
    ledger = Ledger(results)
    ledger.run_dir("r").mkdir(parents=True)
    (ledger.run_dir("r") / "status.json").write_text('{"state": "run')
    (ledger.run_dir("r") / LEASE).write_text("{")
    assert ledger.state("r").state == "new"
    assert Lease(ledger.run_dir("r")).claim()


def test_run_ids_may_be_abbreviated(results: Path) -> None:
    ledger = Ledger(results)
    for name in ("abc123", "abd456"):
        ledger.run_dir(name).mkdir(parents=True)
    assert ledger.find("abc") == "abc123"
    with pytest.raises(SweepError, match="begins 2 run ids"):
        ledger.find("ab")
    with pytest.raises(SweepError, match=r"no run 'abc124'.*did you mean 'abc123'"):
        ledger.find("abc124")


def test_the_index_serves_only_unchanged_results(results: Path, config: RunConfig) -> None:
    ledger = Ledger(results)
    names = [f"{n:04x}" for n in range(250)]
    for name in names:
        finish_run(results, config, name, n_lines=0)
    first = ledger.scan(names)
    assert (ledger.runs / INDEX).exists()
    assert ledger.scan(names) == first
    path = ledger.run_dir("0007") / "result.json"
    path.write_text(path.read_text().replace("2.6", "1.6"))
    (ledger.run_dir("0008") / "result.json").unlink()
    again = ledger.scan(names)
    assert (again["0007"].state, again["0008"].state) == ("corrupt", "preempted")
    assert sum(state.state == "done" for state in again.values()) == 248
    (ledger.runs / INDEX).write_text("{")
    assert ledger.scan(names) == again
    assert ledger.ids() and INDEX not in ledger.ids()


def test_results_of_other_sweeps_teach_speeds(results: Path, config: RunConfig) -> None:
    ledger = Ledger(results)
    finish_run(results, config, "mine")
    finish_run(results, config, "other")
    broken = finish_run(results, config, "broken") / "result.json"
    write_json(broken, fake_result(config, "broken"))
    assert [result["run_id"] for result in ledger.other_results(["mine"], 10)] == ["other"]
