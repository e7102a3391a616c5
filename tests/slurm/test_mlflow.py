"""Jobs that mirror their own runs to a real MLflow server, which starts empty, dies, or never was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, finish_run
from tracking import Postgres, TrackingServer, read_back

from slurm.lab import Lab
from slurm.sweep import ROOT, SmallSweep, undisturbed, wait_until
from sweeps.ledger import Ledger
from sweeps.overview import look
from sweeps.session import write_record
from sweeps.snapshot import snapshot
from sweeps.sweepfile import read_sweep

WORKERS = 16


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TrackingServer]:
    """An MLflow server whose store is empty."""
    postgres = Postgres() if request.param == "postgres" else None
    try:
        if postgres is not None:
            postgres.start()
        server = TrackingServer(tmp_path / "server", postgres.uri if postgres is not None else None)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        if postgres is not None:
            postgres.stop()


def of_folders(results: Path, run_ids: list[str], sweep: str) -> dict[str, dict[str, Any]]:
    """What a complete mirror has to say of each run: status, parameters, all points of its loss."""
    ledger, said = Ledger(results), {}
    for run_id in run_ids:
        shot = snapshot(ledger, run_id, ledger.state(run_id), sweep)
        assert shot is not None
        points = [point for line in [*shot.lines, shot.final] for point in line]
        metrics: dict[str, list[tuple[int, float, int]]] = {}
        for point in points:
            metrics.setdefault(point.key, []).append((point.step, point.value, point.time_ms))
        said[run_id] = {"status": shot.status, "params": shot.params, "metrics": metrics}
    return said


def check_mirror(uri: str, experiment: str, results: Path, run_ids: list[str]) -> None:
    """The store has every run once, and of it everything that its folder has."""
    there = read_back(uri, experiment)
    kept = {name: {key: run[key] for key in ("status", "params", "metrics")} for name, run in there.items()}
    assert kept == of_folders(results, run_ids, experiment)


def test_sixteen_workers_start_at_once_on_an_empty_server(
    server: TrackingServer, results: Path, write_sweep: Callable[..., Path]
) -> None:
    """Each mirrors a run of its own; the first thing they all want is the experiment, which is not there."""
    sweep = read_sweep(write_sweep(TINY.replace("seed = [1, 2]", f"seed = {list(range(WORKERS // 2))}")))
    overview = look(sweep, results)
    write_record(results, sweep.name, "", sweep.path, overview.ids)
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    command = [
        sys.executable, "-m", "sweeps.mirror", sweep.name, "--results", str(results), "--experiment", "tiny",
        "--uri", server.uri, "--every", "600", "--own",
    ]  # fmt: skip
    workers = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(WORKERS)
    ]
    try:
        # They wait for their names; all get them in the same moment.
        for worker, run_id in zip(workers, overview.ids, strict=True):
            assert worker.stdin is not None
            worker.stdin.write(f"{run_id}\n")
            worker.stdin.close()
            worker.stdin = None
        said = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    assert all('{"problem": null' in out and errors == "" for out, errors in said), said
    check_mirror(server.uri, "tiny", results, overview.ids)


def with_server(folder: Path, uri: str, steps: int) -> SmallSweep:
    """A small sweep that mirrors to a server."""
    sweep = SmallSweep(folder, steps=steps)
    sweep.file.write_text(sweep.file.read_text() + f'[mlflow]\nuri = "{uri}"\n')
    return sweep


def test_jobs_mirror_their_own_runs(slurm: Lab, server: TrackingServer, tmp_path: Path) -> None:
    sweep = with_server(tmp_path / "sweep", server.uri, steps=300)
    sweep.submit()
    sweep.wait_done(150)
    assert "MLflow mirror" not in sweep.logs()
    check_mirror(server.uri, "small", sweep.results, [run.name for run in sweep.runs])
    assert "0 created, 0 updated, 2 unchanged" in sweep("sync", str(sweep.file))


def test_a_server_that_is_killed_and_started_again(
    slurm: Lab, server: TrackingServer, tmp_path: Path
) -> None:
    sweep = with_server(tmp_path / "sweep", server.uri, steps=3000)
    sweep.submit()
    wait_until(lambda: sweep.runs and sweep.steps_done() > 400, 60, sweep.logs)
    server.kill()
    # Both may end between two looks.
    wait_until(lambda: any((run / "result.json").is_file() for run in sweep.runs), 120, sweep.logs)
    server.start()
    sweep.wait_done(240)
    assert sweep.losses() == undisturbed(sweep)
    assert set(sweep.attempts().values()) == {1}
    # The first job ended while nobody was there.
    assert "does not answer" in sweep.logs()
    sweep("sync", str(sweep.file))
    check_mirror(server.uri, "small", sweep.results, [run.name for run in sweep.runs])


def test_a_server_that_never_was(slurm: Lab, tmp_path: Path) -> None:
    """Training goes on as if there were none; the log says what to do, and `sync` does it once it is up."""
    server = TrackingServer(tmp_path / "server")
    sweep = with_server(tmp_path / "sweep", server.uri, steps=300)
    said = sweep.submit()
    assert "queued 2 runs" in said
    sweep.wait_done(150)
    assert sweep.losses() == undisturbed(sweep)
    logs = sweep.logs()
    assert logs.count(f"MLflow at {server.uri} does not answer") == 2
    assert logs.count(f"run 'python -m sweeps sync {sweep.file}") == 2
    assert "does not answer" in sweep("sync", str(sweep.file), code=2)
    try:
        server.start()
        assert "2 created, 0 updated, 0 unchanged" in sweep("sync", str(sweep.file))
        check_mirror(server.uri, "small", sweep.results, [run.name for run in sweep.runs])
    finally:
        server.kill()


def test_without_a_server_jobs_leave_the_mirror_to_sync(slurm: Lab, tmp_path: Path) -> None:
    """SQLite has one writer, and network file systems lock badly: only the login node writes such a store."""
    sweep = SmallSweep(tmp_path, steps=100)
    sweep.submit("--then", "fit")
    sweep.wait_done(150)
    wait_until(lambda: not slurm.jobs(), 90, sweep.logs)
    check_mirror(
        f"sqlite:///{sweep.results / 'mlflow.db'}", "small", sweep.results, [r.name for r in sweep.runs]
    )
