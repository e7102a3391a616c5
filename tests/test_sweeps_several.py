"""Several sweeps in one command: all checked first, sums, one after another, mistakes, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, finish_run
from test_sweeps_local import Lab

from sweeps import launch as launching
from sweeps import local, running
from sweeps.errors import SweepError
from sweeps.launch import launch
from sweeps.ledger import RunState
from sweeps.overview import look
from sweeps.plan import sum_of
from sweeps.running import Options
from sweeps.sweepfile import read_sweep


@pytest.fixture
def files(write_sweep: Callable[..., Path]) -> list[str]:
    """Two sweeps that share two runs: seeds 1 and 2, and seeds 2 and 3."""
    return [
        str(write_sweep(TINY, "one")),
        str(write_sweep(TINY.replace("[1, 2]", "[2, 3]"), "two")),
    ]


def plans(cli: Cli, *args: str) -> Any:
    return json.loads(cli("plan", *args, "--json", "--slots", "2", "--threads", "1").stdout)


def test_the_sum_counts_shared_runs_once(cli: Cli, files: list[str]) -> None:
    one, two = (plans(cli, file) for file in files)
    both = plans(cli, *files)
    assert [part["sweep"] for part in both["sweeps"]] == ["one", "two"]
    assert both["sweeps"][0]["runs"] == one["runs"] and both["sweeps"][1]["runs"] == two["runs"]
    distinct = {run["id"]: run for run in one["runs"] + two["runs"]}
    totals = both["totals"]
    assert totals["runs"] == len(distinct) == 6
    assert totals["flops"] == totals["new_flops"] == sum(run["flops"] for run in distinct.values())
    assert totals["bytes"] == sum(run["bytes"] for run in distinct.values())
    # The second waits for the first, of which it has half of its runs.
    rest = plans(cli, files[1], "--where", "seed=3")["totals"]["seconds"]
    assert totals["seconds"] == pytest.approx(one["totals"]["seconds"] + rest, abs=0.2)
    text = cli("plan", *files).stdout
    assert "==> one (1 of 2)" in text and "all 2 sweeps: 6 runs (6 new)" in text


def test_a_sum_over_nothing_to_do(cli: Cli, files: list[str], results: Path) -> None:
    overview = look(read_sweep(Path(files[0])), results)
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    assert plans(cli, *files)["totals"]["actions"] == {"done": 4, "new": 2}
    assert sum_of([]).runs == 0


def test_everything_is_read_and_checked_before_anything_runs(
    cli: Cli, files: list[str], write_sweep: Callable[..., Path], results: Path, tmp_path: Path
) -> None:
    broken = str(write_sweep(TINY.replace("synthetic", "synthetc"), "broken"))
    corpus = '{ kind = "synthetic", vocab_size = 32, order = 1 }'
    absent = str(write_sweep(TINY.replace(corpus, '"text:no/such/folder"'), "absent"))
    (tmp_path / "text").mkdir()
    for n in range(60):
        (tmp_path / "text" / f"{n}.txt").write_text(f"document {n} has a few words in it\n" * 40)
    small = f'"text:{tmp_path / "text"}"\ntokenizer = "bytes"\nheldout_fraction = 0.2'
    many = TINY.replace("tokens = 2560", "tokens = 100_000_000").replace("tokens = 1024", "tokens = 64")
    greedy = str(write_sweep(many.replace(corpus, small), "greedy"))
    (tmp_path / "other").mkdir()
    namesake = tmp_path / "other" / "one.toml"
    namesake.write_text(TINY)
    for second, words in (
        ("lowrnk", "did you mean 'lowrank'"),
        (broken, "did you mean 'synthetic'"),
        (absent, "no/such/folder"),
        (greedy, "max_epochs"),
        (files[0], "'one' is given twice"),
        (str(namesake), "'one' is given twice"),
        ("tune-lr", "python -m sweeps search"),
    ):
        assert words in cli.mistake("run", files[0], second, "--no-mirror"), second
        assert not (results / "runs").exists(), second
    cli("plan", str(namesake), "--write")
    assert "is taken" in cli.mistake("run", files[1], files[0], "--no-mirror")
    assert not (results / "runs").exists()


def test_caps_are_for_the_sum(cli: Cli, files: list[str]) -> None:
    cost = [plans(cli, file)["totals"]["new_flops"] for file in files]
    cap = str(max(cost) * 1.2)
    for file in files:
        cli("run", file, "--dry-run", "--max-flops", cap)
    said = cli.mistake("run", *files, "--dry-run", "--max-flops", cap)
    assert "the sum of 2 sweeps needs" in said and "more than --max-flops" in said
    cli("run", *files, "--dry-run", "--max-flops", str(sum(cost)))


def test_a_sweep_without_a_chosen_run_is_passed_over(cli: Cli, files: list[str]) -> None:
    done = cli("run", *files, "--dry-run", "--where", "seed=3")
    assert "one: none of its 4 runs is chosen" in done.stderr
    assert "2 runs (2 new)" in done.stdout and "(1 of" not in done.stdout


def test_options_of_the_other_executor_are_refused(cli: Cli, files: list[str]) -> None:
    for option, words in (
        ("--export", "--export: is for --executor local"),
        ("--no-export", "--no-export: is for --executor local"),
        ("--frozen", "--frozen: is for --executor local"),
    ):
        assert words in cli.mistake("run", files[0], "--executor", "slurm", option)


class Pair:
    """Two sweeps of pretended runs in one results folder."""

    def __init__(self, folder: Path, results: Path, first: list[int], second: list[int]) -> None:
        for name in ("a", "b"):
            (folder / name).mkdir()
        self.one = Lab(folder / "a", results, first, slots=1)
        text = self.one.file.read_text().replace(f"seed = {first}", f"seed = {second}")
        (folder / "b" / "later.toml").write_text(text)
        self.later = folder / "b" / "later.toml"
        overview = look(read_sweep(self.later), results)
        self.second = dict(zip(second, overview.ids, strict=True))
        self.ledger = overview.ledger

    def run(self, monkeypatch: pytest.MonkeyPatch) -> int:
        def begin(*args: Any, **options: Any) -> launching.Ending:
            return launch(*args, worker=self.one.command, **options)

        monkeypatch.setattr(running, "launch", begin)
        return running.run([str(self.one.file), str(self.later)], Options(self.one.results, mirror=False))

    def later_state(self, seed: int) -> RunState:
        return self.ledger.state(self.second[seed])


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SCAN_SECONDS", 0.2)


def test_sweeps_run_in_the_order_given_and_no_run_twice(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair(tmp_path, results, [12, 13], [13, 14])
    assert pair.run(monkeypatch) == 0
    order = (results / "runs" / "trained.txt").read_text().split()
    assert set(order[:2]) == {pair.one.ids[12], pair.one.ids[13]} and order[2:] == [pair.second[14]]
    said = capsys.readouterr().out
    assert said.index("==> lab (1 of 2)") < said.index("all 2 sweeps") < said.index("2 runs: 2 done")
    assert said.count("2 runs: 2 done") == 2
    assert {path.stem for path in (results / "sweeps").glob("*.json")} == {"lab", "later"}


@pytest.mark.parametrize(("first", "second", "code"), [([11], [12], 1), ([12], [11], 1), ([7], [12], 2)])
def test_the_exit_code_is_the_worst_and_one_does_not_hinder_the_other(
    first: list[int], second: list[int], code: int,
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Seed 11 diverges; 7 tells of a full disk, which ends its sweep."""
    pair = Pair(tmp_path, results, first, second)
    assert pair.run(monkeypatch) == code
    assert pair.later_state(second[0]).state == ("diverged" if second == [11] else "done")
    if code == 2:
        assert "error: lab: " in capsys.readouterr().err


def test_a_mistake_in_a_single_sweep_is_raised_as_ever(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Lab(tmp_path, results, [7], slots=1)
    monkeypatch.setattr(running, "launch", lambda *args, **more: launch(*args, worker=one.command, **more))
    with pytest.raises(SweepError):
        running.run([str(one.file)], Options(results, mirror=False))


def test_ctrl_c_ends_all(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair(tmp_path, results, [8], [12])

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not (results / "runs" / "trained.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert pair.run(monkeypatch) == 130
    thread.join()
    assert (pair.one.state(8).state, pair.later_state(12).state) == ("preempted", "new")
    assert "not begun: later" in capsys.readouterr().out
    assert not (results / "sweeps" / "later.json").exists()


def test_ctrl_c_after_the_last_run_of_a_sweep_begins_no_other(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its table is written: the runs are done, and the next sweep is not begun behind one's back."""
    from sweeps import tracked

    pair = Pair(tmp_path, results, [12], [13])

    def begin(*args: Any, **options: Any) -> launching.Ending:
        return launch(*args, worker=pair.one.command, **{**options, "export": True})

    class Hangs(tracked.BackgroundExport):
        def _wait(self, limit: float) -> None:
            if self._process is not None:
                raise KeyboardInterrupt

    monkeypatch.setattr(launching, "BackgroundExport", Hangs)
    monkeypatch.setattr(running, "launch", begin)
    code = running.run([str(pair.one.file), str(pair.later)], Options(results, mirror=False))
    assert code == 130
    assert (pair.one.state(12).state, pair.later_state(13).state) == ("done", "new")


@pytest.mark.slow
def test_two_real_sweeps_are_one_command(cli: Cli, files: list[str]) -> None:
    command = [sys.executable, "-m", "sweeps", "run", *files, "--results", str(cli.results), "--no-mirror"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 runs: 4 done") == 2
    assert plans(cli, *files)["totals"]["actions"] == {"done": 6}


def test_on_slurm_each_sweep_is_queued_with_its_chosen_runs(
    files: list[str], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps import submit

    cluster = tmp_path / "mine.toml"
    cluster.write_text("cpus = 2\nmem_gb = 4\n")
    queued: list[tuple[str, list[int], bool]] = []

    def pretend(overview: Any, plan: Any, cluster: Any, mirror: bool, then: bool, dry_run: bool) -> Any:
        queued.append((overview.sweep.name, [run.seed for run in plan.runs], then))
        if overview.sweep.name == "one":
            raise SweepError("Slurm refuses")
        return launching.Ending(0, "queued")

    monkeypatch.setattr(submit, "submit", pretend)
    options = Options(results, "slurm", str(cluster), "fit", where=["seed=2,3"])
    assert running.run(files, options) == 2
    assert queued == [("one", [2, 2], True), ("two", [2, 3, 2, 3], True)]
