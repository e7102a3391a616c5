"""What every executor must do, as its user sees it: the same tests for this machine and for a Slurm.

A test module derives a class from `Conformance` and gives it the fixture `executor`.
"""

from __future__ import annotations

import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from slurm.sweep import ROOT, SmallSweep, wait_until

STEPS = 120
"""Of most runs: less than a second of training."""
SECONDS = 120.0
"""Longer than any of these small sweeps takes on a busy machine."""

TAMPER = '''
"""Python starts this in every process that has its folder on the path: it makes runs fail, or slow."""
import json, os, signal, sys, time
from pathlib import Path

def tamper(event, args):
    if event != "open" or not str(args[0]).endswith("/metrics.jsonl"):
        return
    match json.loads(Path(__file__).with_name("tamper.json").read_text()).get(Path(args[0]).parent.name):
        case "raise": raise ValueError("a planted fault")
        case "kill": os.kill(os.getpid(), signal.SIGKILL)
        case "slow": time.sleep(0.2)
        case "refuse":
            from trainer.errors import ConfigError
            raise ConfigError("a planted mistake; take it out")

if {"sweeps.worker", "sweeps.job"} & set(sys.orig_argv):
    sys.addaudithook(tamper)
'''


@dataclass(frozen=True)
class Mistake:
    """A setting that cannot be, and words of the line that says so."""

    words: str
    args: tuple[str, ...] = ()
    """Options of `run`."""
    change: tuple[str, str] = ("", "")
    """What in the sweep file is replaced by what."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables."""


class Executor(ABC):
    """What a test has to know of an executor.  Its command is `python -m sweeps run --executor NAME`."""

    name: str
    detached: bool
    """Whether `run` returns as soon as everything is queued."""
    mistakes: tuple[Mistake, ...]

    @abstractmethod
    def settings(self, at_once: int) -> dict[str, Any]:
        """[slurm] of a sweep that trains so many runs at a time."""

    @abstractmethod
    def options(self, at_once: int) -> list[str]:
        """Options of `run` to the same end."""

    @abstractmethod
    def jobs(self) -> dict[str, str]:
        """Jobs that wait or run, and their states."""


@dataclass
class Bench:
    """A small sweep, an executor, and the means to make runs fail."""

    executor: Executor
    folder: Path
    seeds: list[int] = field(default_factory=lambda: [1])
    steps: int = STEPS
    at_once: int = 2
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.executor.settings(self.at_once)
        self.sweep = SmallSweep(self.folder, self.seeds, self.steps, 0.2, settings)
        self.file, self.results = str(self.sweep.file), self.sweep.results
        (self.folder / "tamper").mkdir()
        (self.folder / "tamper" / "sitecustomize.py").write_text(TAMPER)
        self.tamper()

    def tamper(self, **how: str) -> None:
        """From now on: what becomes of runs, by their ids."""
        path = self.folder / "tamper" / "tamper.json"
        path.with_suffix(".tmp").write_text(json.dumps(how))
        path.with_suffix(".tmp").replace(path)

    @property
    def ids(self) -> list[str]:
        """All runs in the order of the grid."""
        return [run["id"] for run in self.sweep.status()["runs"]]

    def command(self, *args: str) -> list[str]:
        where = ["--executor", self.executor.name, *self.executor.options(self.at_once)]
        return self.sweep.command("run", self.file, "--no-mirror", *where, *args)

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """A command under way, as in another terminal."""
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.started.append(process)
        return process

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `run`, and go on while it works."""
        return self.popen(*self.command(*args))

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """What `run` said, once no run of it is left; `code` is that of one that waits for its runs."""
        said = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == (0 if self.executor.detached else code), said
        wait_until(lambda: not self.executor.jobs(), SECONDS, self.sweep.logs)
        return said

    def run(self, *args: str, code: int = 0) -> str:
        return self.finish(self.start(*args), code)

    def mistake(self, command: list[str], env: dict[str, str]) -> str:
        """The one line that a wrong command says."""
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        return lines[0]

    def wait_steps(self, steps: int) -> None:
        """Wait until the runs have gone so far, and something of it is safe."""

        def far() -> bool:
            kept = [path for run in self.sweep.runs for path in (run / "checkpoints").glob("step-*.json")]
            return bool(kept) and self.sweep.steps_done() >= steps

        wait_until(far, SECONDS, self.sweep.logs, every=0.05)

    def states(self) -> list[str]:
        """State of each run, in the order of the grid."""
        return [run["state"] for run in self.sweep.status()["runs"]]

    def check_losses(self, reference: dict[str, Any]) -> None:
        """Every run has its result, and exactly the losses of the reference."""
        losses = self.sweep.losses()
        assert len(losses) == 2 * len(self.seeds)
        assert losses == {run_id: reference[run_id] for run_id in losses}

    def begun(self) -> dict[str, int]:
        """How often a worker has begun each run."""
        logs = {run.name: (run / "worker.log").read_text().splitlines() for run in self.sweep.runs}
        return {name: sum(line.startswith("--- ") for line in lines) for name, lines in logs.items()}

    def tree(self, part: str = ".") -> dict[str, int]:
        """Every file of the results folder, or of a part of it, and when it was written."""
        found = sorted((self.results / part).rglob("*"))
        return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


def undisturbed(folder: Path, seeds: list[int], steps: int) -> dict[str, Any]:
    """Losses of the same runs, trained on this machine one after the other, with nothing in the way."""
    sweep = SmallSweep(folder, seeds, steps, 1000.0)
    command = sweep.command("run", str(sweep.file), "--no-mirror", "--slots", "1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return sweep.losses()


class Conformance:
    """The tests; the fixture `executor` is the subclass's."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """The losses that runs of `STEPS` steps must have, to the last bit."""
        return undisturbed(tmp_path_factory.mktemp("undisturbed"), [1, 2], STEPS)

    @pytest.fixture
    def bench(
        self, executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[..., Bench]]:
        made: list[Bench] = []

        def make(**what: Any) -> Bench:
            made.append(Bench(executor, tmp_path / "bench", **what))
            path = [str(made[-1].folder / "tamper"), *filter(None, [os.environ.get("PYTHONPATH")])]
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
            return made[-1]

        yield make
        for process in (process for one in made for process in one.started):
            if process.poll() is None:
                process.kill()
            process.wait()

    def test_a_sweep_ends_with_the_losses_of_any_other_executor(
        self, bench: Callable[..., Bench], reference: dict[str, Any]
    ) -> None:
        one = bench(seeds=[1, 2])
        one.run()
        one.check_losses(reference)
        assert "4 runs: 4 done" in one.sweep("status", one.file, "--check")
        runs = one.sweep.status()["runs"]
        assert {run["id"]: (run["state"], run["attempts"], run["step"], run["val_loss"]) for run in runs} == {
            run_id: ("done", 1, STEPS, losses[1]) for run_id, losses in reference.items()
        }
        for run in one.sweep.runs:
            assert json.loads((run / "env.json").read_text())["threads"] == 1
            assert not (run / "lease.json").exists()
        before, everything = one.tree("runs"), one.tree()
        assert "4 runs (4 done)" in one.run()
        assert one.tree("runs") == before
        assert one.tree().keys() == everything.keys()
        assert "4 done" in one.sweep("status")

    def test_a_dry_run_starts_nothing(self, bench: Callable[..., Bench]) -> None:
        one = bench()
        said = one.run("--dry-run")
        assert "2 runs (2 new)" in said
        assert ("#SBATCH" in said and "nothing was queued" in said) == one.executor.detached
        assert all(run_id in said for run_id in one.ids)
        assert one.tree() == {}

    def test_failing_runs_leave_the_others_alone_and_can_be_tried_again(
        self, bench: Callable[..., Bench], reference: dict[str, Any]
    ) -> None:
        one = bench(seeds=[1, 2])
        ids = one.ids
        one.tamper(**dict(zip(ids, ("raise", "kill", "refuse"), strict=False)))
        one.run(code=1)
        assert one.states() == ["failed", "failed", "failed", "done"]
        good = one.results / "runs" / ids[3] / "result.json"
        before = good.stat()
        table = one.sweep("status", one.file, "--check", code=1)
        assert "4 runs: 3 failed, 1 done" in table or "4 runs: 1 done, 3 failed" in table
        whys = ("ValueError: a planted fault", "killed by SIGKILL", "a planted mistake; take it out")
        for run_id, why in zip(ids, whys, strict=False):
            assert why[:40] in next(line for line in table.splitlines() if line.startswith(run_id))
            assert why in one.sweep("logs", run_id)
        # A mistake that only people can mend is not made twice.
        assert one.begun() == dict(zip(ids, (2, 2, 1, 1), strict=True))
        one.tamper()
        assert "3 runs will be tried again" in one.sweep("retry", one.file)
        one.run()
        one.sweep("status", one.file, "--check")
        one.check_losses(reference)
        assert good.stat() == before
        assert one.begun() == dict(zip(ids, (3, 3, 2, 1), strict=True))

    def test_cancel_leaves_runs_resumable_and_the_same_command_goes_on(
        self, bench: Callable[..., Bench], reference: dict[str, Any]
    ) -> None:
        one = bench(at_once=1)
        one.tamper(**dict.fromkeys(one.ids, "slow"))
        first = one.start()
        one.wait_steps(10)
        follower = one.popen(*one.sweep.command("logs", "-f", one.file))
        text = one.sweep("status", one.file, "--check", code=1)
        assert "2 runs: 1 new, 1 running" in text
        assert ("1 RUNNING (n" in text and "1 PENDING (" in text) == one.executor.detached
        running = next(run for run in one.sweep.status()["runs"] if run["state"] == "running")
        assert running["owner"] in next(line for line in text.splitlines() if running["id"] in line)
        said = one.sweep("cancel", one.file)
        assert "asked 1 run" in said
        assert ("dropped 1 waiting job" in said) == one.executor.detached
        one.finish(first, code=130)
        followed = follower.communicate(timeout=30)[0]
        assert follower.returncode == 0, followed
        assert sorted(one.states()) == ["new", "preempted"]
        assert not (one.sweep.runs[0] / "lease.json").exists()
        kept = one.sweep.steps_done()
        second = one.start()
        one.wait_steps(kept + 10)
        one.sweep("cancel", one.file)
        # While the cancelled run is still about to checkpoint.
        third = one.start()
        before = sum(one.begun().values())
        wait_until(lambda: sum(one.begun().values()) > before, SECONDS, one.sweep.logs)
        one.tamper()
        one.finish(second, code=130)
        one.finish(third)
        assert one.states() == ["done", "done"]
        one.check_losses(reference)
        assert sum(one.begun().values()) == 4

    @pytest.mark.parametrize("how", ["later", "together"])
    def test_a_second_run_trains_nothing_twice(
        self, bench: Callable[..., Bench], reference: dict[str, Any], how: str
    ) -> None:
        one = bench(at_once=1 if how == "later" else 2)
        if how == "later":
            one.tamper(**dict.fromkeys(one.ids, "slow"))
        first = one.start()
        if how == "later":
            one.wait_steps(10)
        second = one.start()
        if how == "later" and one.executor.detached:
            assert "nothing to queue" in second.communicate(timeout=SECONDS)[0]
            assert len(one.executor.jobs()) == 2
        one.tamper()
        for process in (first, second):
            one.finish(process)
        assert one.states() == ["done", "done"]
        assert one.begun() == one.sweep.attempts() == dict.fromkeys(one.ids, 1)
        one.check_losses(reference)

    def test_logs_are_followed_until_the_runs_end(self, bench: Callable[..., Bench]) -> None:
        one = bench()
        process = one.start()
        wait_until((one.results / "sweeps" / "small.json").exists, SECONDS, every=0.05)
        follower = one.popen(*one.sweep.command("logs", "-f", one.file))
        one.finish(process)
        said = follower.communicate(timeout=30)[0]
        assert follower.returncode == 0, said
        for run_id in one.ids:
            assert said.count(f'{run_id} {{"step": {STEPS},') == 1, said

    def test_a_mistake_is_one_line_and_loses_nothing(self, bench: Callable[..., Bench]) -> None:
        one = bench(steps=10)
        one.run()
        text = one.sweep.file.read_text()
        one.sweep.file.write_text(more := text.replace("seed = [1]", "seed = [1, 2]"))
        before = one.tree()
        for mistake in one.executor.mistakes:
            assert mistake.change[0] in more
            one.sweep.file.write_text(more.replace(*mistake.change) if any(mistake.change) else more)
            assert mistake.words in one.mistake(one.command(*mistake.args), mistake.env), mistake
        assert one.tree() == before
        assert not one.executor.jobs()
        one.sweep.file.write_text(text)
        one.sweep("status", one.file, "--check")
