"""`run --frozen`: workers, mirror and export run a copy of the program, which no edit reaches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Cli, finish_run

from sweeps import local
from sweeps.errors import SweepError
from sweeps.launch import launch
from sweeps.layout import Layout
from sweeps.ledger import Ledger
from sweeps.overview import look
from sweeps.price import Setting
from sweeps.sweepfile import read_sweep
from trainer.execution import Execution

TELLS = """
import os, sys
from pathlib import Path
with open(os.environ["TOLD"], "a") as file:
    print(Path(__file__).resolve(), file=file)
sys.stdin.read()
sys.exit(1)
"""


def test_workers_mirror_and_export_run_the_program_at_root(
    tmp_path: Path, results: Path, write_sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SCAN_SECONDS", 0.05)
    root, told = tmp_path / "copy", tmp_path / "told.txt"
    monkeypatch.setenv("TOLD", str(told))
    for name in ("sweeps/worker.py", "sweeps/mirror.py", "analysis/__main__.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(TELLS)
    overview = look(read_sweep(write_sweep()), results)
    finish_run(results, overview.configs[0], overview.ids[0])
    layout = Layout(({},), Execution(device="cpu", threads=1), Setting("a processor", 1))
    overview = overview.again()
    with pytest.raises(SweepError, match="workers end before they train"):
        launch(overview, overview.plan(layout), layout, export=True, root=root)
    assert set(told.read_text().split()) == {
        str(root / name) for name in ("sweeps/worker.py", "sweeps/mirror.py", "analysis/__main__.py")
    }


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", *names, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_edits_of_the_checkout_reach_no_worker_of_a_frozen_launch(
    tmp_path: Path, write_sweep: Callable[..., Path]
) -> None:
    """A worker that is killed is started again while the checkout is broken; its run says the commit."""
    checkout, results = tmp_path / "checkout", tmp_path / "results"
    for room in ("analysis", "sweeps", "trainer"):
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "x")
    head = git(checkout, "rev-parse", "HEAD")
    path = write_sweep()
    path.write_text(
        path.read_text().replace("tokens = 2560", "tokens = 128000").replace("[1, 2]", "[1]")
        + "[execution]\nslots = 1\nthreads = 1\ncheckpoint_seconds = 0.5\nheartbeat_seconds = 0.1\n"
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(path), "--frozen", "--no-mirror", "--export",
         "--results", str(results)],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    overview = look(read_sweep(path), results)
    deadline, owner = time.monotonic() + 90, None
    while owner is None:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        states = Ledger(results).scan(overview.ids).values()
        owner = next((state.owner for state in states if state.state == "running" and state.step), None)
        time.sleep(0.02)
    for room in ("trainer", "sweeps", "analysis"):
        for module in (checkout / room).rglob("*.py"):
            module.write_text("raise SystemExit('edited')\n")
    os.kill(int(owner.split(":")[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert f"the runs train with commit {head[:12]}, source " in out
    assert "Traceback" not in err and "not written" not in err
    attempts = []
    for run_id in overview.ids:
        env = json.loads((results / "runs" / run_id / "env.json").read_text())
        assert (env["git_sha"], env["git_diff"]) == (head, None)
        attempts.append(Ledger(results).state(run_id).attempt)
    assert max(attempts) == 2
    assert (results / "tables" / "tiny_runs.csv").exists()


def test_a_dry_run_copies_nothing(cli: Cli, write_sweep: Callable[..., Path], results: Path) -> None:
    cli("run", str(write_sweep()), "--frozen", "--dry-run")
    assert not (results / "sweeps").exists()
