"""The tracked table while a sweep runs: when it is written, that it hurts nobody, whose is left alone."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import finish_run
from test_sweeps_local import Lab

from sweeps import launch as launching
from sweeps import tracked
from sweeps.launch import launch
from sweeps.overview import Overview
from sweeps.tracked import BackgroundExport

WRITES = """
import os, sys, time
from pathlib import Path
time.sleep(0.3)
with open(Path(sys.argv[-1]) / "exports.txt", "a") as file:
    print(os.getcwd(), os.getpriority(os.PRIO_PROCESS, 0), *sys.argv[1:], file=file)
"""
FAILS = "import sys; print('noise', file=sys.stderr); sys.exit('error: the disk is full; free some')"
HANGS = "import time; time.sleep(60)"


@pytest.fixture
def lab(tmp_path: Path, results: Path) -> Lab:
    return Lab(tmp_path, results, [1, 12], slots=2)


class Tracker:
    """An export whose command is a line of Python."""

    def __init__(self, results: Path, program: str, every: float = 0.0) -> None:
        (results / "runs").mkdir(exist_ok=True)
        self.said: list[str] = []
        command = (sys.executable, "-c", program)
        self.export = BackgroundExport("lab", results, self.said.append, every=every, command=command)
        self.log = results / "exports.txt"

    @property
    def exports(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def poll_until(self, exports: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.exports) < exports:
            assert time.monotonic() < deadline
            self.export.poll()
            time.sleep(0.02)


def done_in(results: Path) -> set[str]:
    with open(results / "tables" / "lab_runs.csv", newline="") as file:
        return {row["run_id"] for row in csv.DictReader(file) if row["state"] == "done"}


def train(lab: Lab, export: bool | None = True) -> tuple[int, Overview]:
    overview = lab.look()
    plan = overview.plan(lab.layout)
    ending = launch(overview, plan, lab.layout, mirror=False, worker=lab.command, export=export)
    return ending.code, overview


def test_an_export_begins_when_a_run_has_ended_and_time_has_passed(results: Path) -> None:
    one = Tracker(results, WRITES, every=0.4)
    one.export.poll()
    one.export.ended()
    began = time.monotonic()
    one.export.poll()
    assert one.export._process is None
    one.poll_until(1)
    assert time.monotonic() - began > 0.35
    time.sleep(0.5)
    for _ in range(3):
        one.export.poll()
    assert len(one.exports) == 1
    one.export.ended()
    one.poll_until(2)
    where, niceness, *words = one.exports[0].split()
    assert words == ["export", "lab", "--results", str(results)]
    assert Path(where) == results / "runs"
    assert int(niceness) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + tracked.NICENESS)


def test_polling_never_waits(results: Path) -> None:
    one = Tracker(results, HANGS)
    one.export.ended()
    began = time.monotonic()
    for _ in range(20):
        one.export.poll()
    assert time.monotonic() - began < 5
    process = one.export._process
    assert process is not None and process.poll() is None
    one.export.finish(["a"], seconds=0.3)
    assert process.returncode == -signal.SIGKILL
    export = f"python -m analysis export lab --results {results}"
    assert one.said == [f"table of runs: not written in time; '{export}' writes it"]


def test_an_export_that_hangs_is_ended_while_the_sweep_goes_on(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "LONGEST_SECONDS", 0.2)
    one = Tracker(results, HANGS, every=60.0)
    one.export._began = -1e6
    one.export.ended()
    one.export.poll()
    process = one.export._process
    time.sleep(0.3)
    one.export.poll()
    assert process is not None and process.returncode == -signal.SIGKILL
    assert len(one.said) == 1 and "not written in time" in one.said[0]


def test_a_failure_is_one_line_however_often_it_happens(results: Path) -> None:
    one = Tracker(results, FAILS)
    for _ in range(3):
        one.export.ended()
        one.export.finish(["a"])
    export = f"python -m analysis export lab --results {results}"
    assert one.said == [f"table of runs: not written (the disk is full; free some); '{export}' writes it"]
    absent = BackgroundExport("lab", results, one.said.append, command=("/no/such/program",))
    absent.finish(["a"])
    assert "No such file" in one.said[1]


def test_ctrl_c_leaves_it_for_later(results: Path) -> None:
    one = Tracker(results, HANGS)
    one.export.ended()
    one.export.poll()
    process = one.export._process
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    one.export.finish(["a"])
    assert process is not None and process.returncode == -signal.SIGKILL
    assert len(one.said) == 1 and "left for later" in one.said[0]


def test_without_a_finished_run_nothing_is_exported(results: Path) -> None:
    one = Tracker(results, WRITES)
    one.export.finish([])
    assert (one.exports, one.said) == ([], [])


def test_a_sweep_leaves_its_table(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real analysis; a file of the sweep's name in the current folder is no table of its runs."""
    monkeypatch.chdir(lab.file.parent)
    Path("lab").write_text("structure,params\n")
    code, overview = train(lab)
    assert code == 0
    assert done_in(lab.results) == set(overview.ids)
    table = lab.results / "tables" / "lab_runs.csv"
    before = table.stat().st_mtime_ns
    began = time.monotonic()
    assert train(lab)[0] == 0
    # Nothing was trained, so that nothing needs pandas.
    assert table.stat().st_mtime_ns == before and time.monotonic() - began < 2
    table.unlink()
    train(lab)
    assert done_in(lab.results) == set(overview.ids)


def test_an_interrupted_sweep_leaves_its_table(tmp_path: Path, results: Path) -> None:
    one = Lab(tmp_path, results, [1, 8], slots=2)

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while (one.state(1).state, one.state(8).state) != ("done", "running"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    code, _ = train(one)
    assert code == 130
    assert done_in(results) == {one.ids[1]}


def test_tables_are_written_while_other_runs_train(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Tracker(results, WRITES)
    monkeypatch.setattr(launching, "_export_of", lambda overview, root: one.export)
    code, _ = train(Lab(tmp_path, results, [1, 10, 11], slots=1))
    # After seed 1, while seed 10 takes its second; and at the end.
    assert code == 1 and len(one.exports) >= 2


def test_a_failing_analysis_fails_no_sweep(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.results / "tables").write_text("a file where a folder belongs")
    assert train(lab)[0] == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("table of runs:")]
    assert len(lines) == 1 and "cannot be written" in lines[0]


def test_a_file_by_its_path_writes_no_table_unless_asked_and_a_sweep_of_the_program_does(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(lab, export=None)
    assert not (lab.results / "tables").exists()
    monkeypatch.setattr(launching, "CONFIGS", lab.file.parent)
    train(lab, export=False)
    assert not (lab.results / "tables").exists()
    train(lab, export=None)
    assert len(done_in(lab.results)) == 2


def test_a_file_by_its_path_leaves_the_table_of_another_sweep_of_its_name_alone(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    overview = lab.look()
    finish_run(lab.results, overview.configs[0], overview.ids[0])
    table = lab.results / "tables" / "lab_runs.csv"
    table.parent.mkdir()
    table.write_text("run_id,state\n0123456789ab,done\n")
    assert train(lab)[0] == 0
    assert table.read_text() == "run_id,state\n0123456789ab,done\n"
    assert capsys.readouterr().err.count("left alone") == 1
