"""`status --watch`: what it says of fake and real ledgers, on terminals of any size, in pipes, to its end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Cli, finish_run, write_metrics
from rich.console import Console

from sweeps.lease import LEASE
from sweeps.ledger import Ledger
from sweeps.observe import Observer
from sweeps.overview import Overview, look
from sweeps.session import write_record
from sweeps.sweepfile import read_sweep
from sweeps.watch import View, Watch
from sweeps.watchview import block, screen
from trainer.flops import train_flops
from trainer.rundir import write_status

HEAVY = ("torch", "mlflow", "scipy", "pandas", "matplotlib", "numpy")
SEEDS = TINY.replace("seed = [1, 2]", "seed = [1, 2, 3, 4, 5, 6, 7]")


def lease_of(folder: Path, **changes: Any) -> None:
    """A lease of another machine, as its worker renews it."""
    lease = {
        "owner": "x", "session": "s", "host": "node7", "machine": "elsewhere", "pid": 42,
        "process_start": "1", "heartbeat": time.time(),
    }  # fmt: skip
    (folder / LEASE).write_text(json.dumps({**lease, **changes}))


class Lab:
    """A recorded sweep, and ways to put its runs into states."""

    def __init__(self, path: Path, results: Path) -> None:
        self.path, self.results = path, results
        self.overview: Overview = look(read_sweep(path), results)
        write_record(results, "tiny", "", path, self.overview.ids)
        self.ids = self.overview.ids

    def folder(self, n: int) -> Path:
        folder = self.results / "runs" / self.ids[n]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.overview.configs[n].canonical_json())
        return folder

    def done(self, n: int, **changes: Any) -> Path:
        return finish_run(self.results, self.overview.configs[n], self.ids[n], **changes)

    def running(self, n: int, step: int = 4, **changes: Any) -> Path:
        folder = self.folder(n)
        lease_of(folder)
        status = {
            "state": "running", "attempt": 1, "step": step, "total_steps": 10, "train_loss": 2.5,
            "tokens_per_second": 12345.6, "eta_seconds": 60.0, "started": time.time() - 40,
            "heartbeat": time.time(),
        }  # fmt: skip
        write_status(folder, {**status, **changes})
        return folder

    def failed(self, n: int, line: str = "ValueError: bad\nseed", times: int = 2) -> None:
        self.folder(n)
        for _ in range(times):
            Ledger(self.results).record_failure(self.ids[n], line, f"Traceback\n{line}", session="s")

    def diverged(self, n: int) -> None:
        self.done(n, state="diverged", val_loss=None, val_loss_se=None, diverged_step=3)

    def stale(self, n: int) -> None:
        lease_of(self.running(n), heartbeat=time.time() - 3600)

    def corrupt(self, n: int) -> None:
        path = self.done(n) / "result.json"
        path.write_text(path.read_text()[:40])

    def preempted(self, n: int) -> None:
        folder = self.folder(n)
        write_status(folder, {"state": "preempted", "attempt": 1, "step": 5})
        (folder / "checkpoints").mkdir()
        for suffix in ("safetensors", "json"):
            (folder / "checkpoints" / f"step-000000005.{suffix}").touch()

    def every_state(self) -> None:
        """One run of each, in the order of the grid; what remains is new."""
        self.done(0)
        self.running(1)
        self.running(2, 8)
        for n, make in enumerate((self.failed, self.diverged, self.stale, self.corrupt, self.preempted), 3):
            make(n)

    def watch(self) -> Watch:
        return Watch(self.results, [str(self.path)])


@pytest.fixture
def lab(results: Path, write_sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Lab:
    # Commands that are shown name no folder then.
    monkeypatch.setenv("SCALING_RESULTS", str(results))
    return Lab(write_sweep(SEEDS), results)


def drawn(view: View, width: int, height: int) -> list[str]:
    """The lines of a terminal of that size."""
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, width=width, height=height, record=True, force_terminal=True)
        console.print(screen(view, width, height))
    return console.export_text().rstrip("\n").split("\n")


def test_every_state_is_counted_and_trouble_is_on_top(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCALING_RESULTS")
    lab.every_state()
    view = lab.watch().look()
    assert view.sweeps[0].counts == {
        "done": 1, "running": 2, "new": 6, "preempted": 1, "stale": 1, "failed": 1, "diverged": 1,
        "corrupt": 1,
    }  # fmt: skip
    lines = drawn(view, 300, 30)
    assert [line.split()[0] for line in lines[1:5]] == ["failed", "corrupt", "diverged", "stale"]
    assert "ValueError: bad seed" in lines[1]
    assert lines[1].endswith(f"see: python -m sweeps logs {lab.ids[3]} --results {lab.results}")
    assert "result.json: corrupted (not JSON)" in lines[2]
    assert "at step 3" in lines[3]
    assert "worker node7:42 is gone, silent for 1 h 00 min" in lines[4]
    assert lines[5].split() == ["run", "step", "loss", "tok/s", "left", "id", "worker"]
    assert lines[6].split()[-7:] == ["12.3k", "1", "min", "00", "s", lab.ids[2], "node7:42"]
    assert "4/10" in lines[7]
    assert [line for line in lines if line.startswith("and ")] == ["and 3 more waiting"]
    assert lines[-2].endswith(
        "1 done, 2 running, 1 failed, 1 diverged, 1 corrupt, 1 stale, 6 waiting, 1 to resume"
    )
    assert lines[-1].startswith("about 1 min 0")


def test_progress_is_of_the_flops(lab: Lab) -> None:
    for n in range(7):
        lab.done(n)
    lab.running(7, step=5)
    (part,) = lab.watch().look().sweeps
    dense, other = (train_flops(lab.overview.configs[n]) for n in (0, 7))
    assert part.flops == 7 * (dense + other)
    assert part.share == pytest.approx((7 * dense + other / 2) / part.flops)


@pytest.mark.parametrize("width", [12, 24, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [2, 3, 5, 8, 15, 40])
def test_any_terminal_is_enough(lab: Lab, width: int, height: int) -> None:
    lab.every_state()
    for n in (8, 9):
        lab.failed(n, "RuntimeError: " + "very long " * 30)
    for n in (10, 11, 12):
        lab.running(n)
    view = lab.watch().look()
    lines = drawn(view, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1][:5] == "about"
    if height >= 5:
        assert lines[0].split()[-1:] != [] and any("failed" in line for line in lines[:3])
        assert any(line.startswith(("cpu", "d16")) or "more running" in line for line in lines)
    if width >= 80:
        assert all("…" not in line for line in lines if "see: python" in line)


def test_many_runs_fit_and_the_rest_is_counted(
    results: Path, write_sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_RESULTS", str(results))
    lab = Lab(write_sweep(TINY.replace("[1, 2]", str(list(range(30))))), results)
    for n in range(20):
        lab.running(n)
    for n in range(20, 35):
        lab.failed(n)
    lines = drawn(lab.watch().look(), 100, 20)
    assert len(lines) == 20
    assert lines[1].startswith("failed")
    assert sum("more failed" in line for line in lines) == 1
    (more,) = (line for line in lines if "more running" in line)
    rows = [line for line in lines if "4/10" in line]
    assert len(rows) + int(more.split()[1]) == 20
    assert "15 failed, 25 waiting" in lines[-2]


def test_what_is_torn_odd_or_gone_is_no_error(lab: Lab) -> None:
    folder = lab.running(0)
    lab.running(1)
    watch = lab.watch()
    assert len(watch.look().running) == 2
    write_metrics(folder, lab.overview.configs[0], 6)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train_lo')
    (one,) = (run for run in watch.look().running if run.id == lab.ids[0])
    assert (one.facts["step"], one.facts["loss"]) == (6, 2.94)
    for torn in (
        "",
        '{"state": "runn',
        "[]",
        "\x00\x00",
        '{"state": "running", "step": null, "total_steps": "x"}',
    ):
        (folder / "status.json").write_text(torn)
        assert len(watch.look().running) == 2, torn
    (folder / LEASE).write_text('{"heartbeat": "soon"}')
    drawn(watch.look(), 80, 24)
    shutil.rmtree(folder)
    assert [run.id for run in watch.look().running] == [lab.ids[1]]
    lab.folder(1).joinpath("config.json").write_bytes(b"\xff\xfe")
    write_status(
        lab.folder(1), {"state": "running", "step": 3, "total_steps": 10, "train_loss": float("nan")}
    )
    block(watch.look())
    shutil.rmtree(lab.results / "runs")
    assert watch.look().said.startswith("nothing runs now")


def test_a_clock_that_is_off_is_said_and_not_taken_for_a_dead_worker(lab: Lab) -> None:
    folder, watch = lab.running(0), lab.watch()
    lease_of(folder, heartbeat=time.time() - 600)
    assert watch.look().sweeps[0].counts["stale"] == 1
    lease_of(folder, heartbeat=time.time() - 595)
    view = watch.look()
    assert [run.id for run in view.running] == [lab.ids[0]]
    assert "clock of node7" in view.trouble[0].message
    assert any(line.startswith("odd") for line in drawn(view, 80, 24))
    lease_of(folder, heartbeat=time.time() + 600)
    assert (len(watch.look().running), watch.look().trouble) == (1, [])


def test_only_what_changed_is_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.every_state()
    observer, reads = Observer(Ledger(lab.results)), []
    whole = Ledger.state
    monkeypatch.setattr(Ledger, "state", lambda self, run_id: reads.append(run_id) or whole(self, run_id))
    observer.look(lab.ids)
    assert sorted(reads) == sorted(lab.ids)
    observer.look(lab.ids)
    reads.clear()
    observer.look(lab.ids)
    assert sorted(reads) == sorted([lab.ids[1], lab.ids[2], lab.ids[5]])
    lab.done(1)
    reads.clear()
    assert observer.look(lab.ids)[lab.ids[1]].state == "done"
    observer.look(lab.ids)
    reads.clear()
    observer.look(lab.ids)
    assert lab.ids[1] not in reads


def test_a_sweep_is_over_when_none_of_its_runs_is_ahead(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, write_sweep: Callable[..., Path]
) -> None:
    every = Watch(lab.results, [])
    view = every.look()
    assert (view.over, view.said) == (False, "nothing runs yet; waiting")
    abandoned = look(read_sweep(write_sweep(TINY.replace("2560", "5120"), "old")), lab.results)
    write_record(lab.results, "old", "", abandoned.sweep.path, abandoned.ids)
    lab.running(0)
    assert {part.name for part in every.look().sweeps} == {"tiny", "old"}
    for n in range(len(lab.ids) - 1):
        lab.done(n)
        (lab.results / "runs" / lab.ids[n] / LEASE).unlink(missing_ok=True)
    view = every.look()
    assert not view.over and "python -m sweeps run" in view.said and str(lab.path) in view.said
    lab.failed(len(lab.ids) - 1, times=1)
    # Whoever launched it may be about to try once more.
    assert not every.look().over
    every._quiet_since = time.monotonic() - 60
    view = every.look()
    assert view.over and not view.done
    assert view.said == "nothing is left to do: 13 done, 1 failed"


def test_runs_of_no_sweep_are_shown_while_they_train(lab: Lab) -> None:
    folder = lab.running(0)
    shutil.copytree(folder, folder.with_name("0123456789ab"))
    view = Watch(lab.results, []).look()
    assert {run.id for run in view.running} == {lab.ids[0], "0123456789ab"}
    assert [run.id for run in lab.watch().look().running] == [lab.ids[0]]


def test_runs_of_the_same_name_are_told_apart(results: Path, write_sweep: Callable[..., Path]) -> None:
    lab = Lab(write_sweep(TINY.replace("[axes]", '[axes]\n"optim.peak_lr" = [1e-3, 2e-3]')), results)
    names = lab.watch().look().waiting
    assert len(set(names)) == 8
    assert any(" peak_lr=2e-3 " in name for name in names)


def test_mistakes_and_lines_for_scripts(cli: Cli, lab: Lab) -> None:
    assert "unknown sweep 'tiney'; did you mean 'tiny'" in cli.mistake("status", "--watch", "tiney")
    assert "needs --watch" in cli.mistake("status", "--interval", "3")
    assert "ask for one" in cli.mistake("status", "lowrank", "stability")
    for n in range(len(lab.ids)):
        lab.done(n)
    said = cli("status", "--watch").stdout.splitlines()
    assert said[0].endswith("nothing is left to do: 14 done")
    facts = [json.loads(line) for line in cli("status", "tiny", "--watch", "--json").stdout.splitlines()]
    assert [(one["over"], one["sweeps"][0]["counts"]) for one in facts] == [(True, {"done": 14})]
    lab.failed(0)
    (lab.folder(0) / "result.json").unlink()
    assert f"logs {lab.ids[0]}" in cli("status", "tiny", "--watch", "--check", code=1).stdout


def test_watching_loads_nothing_heavy(lab: Lab) -> None:
    for n in range(len(lab.ids)):
        lab.done(n)
    program = (
        "import sys, runpy\n"
        "sys.argv = ['sweeps', 'status', '--watch']\n"
        "try:\n    runpy.run_module('sweeps', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "SCALING_RESULTS": str(lab.results)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "LOADED"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *args: str, width: int = 100, height: int = 20) -> None:
        self.said = b""
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ["TERM"] = "xterm"
            # The size is set before the program asks for it.
            time.sleep(0.2)
            os.execv(sys.executable, [sys.executable, "-m", "sweeps", *args])
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def read(self, until: str = "", seconds: float = 60.0) -> str:
        """What it wrote until some words came, or until its end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until and until in self.said.decode(errors="replace")):
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    chunk = os.read(self._end, 1 << 16)
                except OSError:
                    chunk = b""
                if not chunk:
                    break
                self.said += chunk
        text = self.said.decode(errors="replace")
        assert until in text, text
        assert "Traceback" not in text
        return text

    def type(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def code(self) -> int:
        self.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._end)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str, **size: int) -> Terminal:
        opened.append(Terminal(*args, **size))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


LEFT_SCREEN = "\x1b[?1049l"


def test_ctrl_c_leaves_the_last_state_and_code_0(lab: Lab, terminal: Callable[..., Terminal]) -> None:
    lab.every_state()
    one = terminal("status", "tiny", "--watch", "--results", str(lab.results), "--interval", "0.2")
    one.read("left at 2 slots")
    one.resize(44, 9)
    time.sleep(0.6)
    one.type(b"\x03")
    assert one.code() == 0
    last = one.read().rpartition(LEFT_SCREEN)[2]
    assert last.index("failed") < last.index("8/10") < last.index("left at 2 slots")
    assert last.rstrip().endswith("left; the runs go on")
    assert "\x1b[?25h" in one.read()


@pytest.mark.slow
def test_a_real_sweep_is_watched_from_before_its_launch_to_its_end(
    cli: Cli, write_sweep: Callable[..., Path], terminal: Callable[..., Terminal]
) -> None:
    path = write_sweep(TINY.replace("tokens = 2560", "tokens = 128000"))
    path.write_text(path.read_text() + "[execution]\nheartbeat_seconds = 0.1\n")
    args = ("--results", str(cli.results), "--interval", "0.2")
    one = terminal("status", str(path), "--watch", *args)
    one.read("nothing runs yet; waiting")
    command = [sys.executable, "-m", "sweeps", "run", str(path), "--no-mirror", "--results", str(cli.results)]
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        one.read("/500")
        piped = cli("status", "--watch", "--interval", "0.3")
        said, _ = sweep.communicate(timeout=120)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, said
    assert one.code() == 0
    last = one.read().rpartition(LEFT_SCREEN)[2]
    assert "nothing is left to do: 4 done" in last
    assert "100 %" in last
    blocks = piped.stdout.splitlines()
    assert blocks[-2].endswith("nothing is left to do: 4 done")
    assert any("tok/s" in line for line in blocks)
    assert "\x1b" not in piped.stdout


def test_a_reader_that_has_enough_is_no_error(lab: Lab) -> None:
    lab.running(0)
    command = [sys.executable, "-m", "sweeps", "status", "--watch", "--interval", "0.1"]
    process = subprocess.Popen(
        [*command, "--results", str(lab.results)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
