"""A real `mlflow server` on SQLite or on a private Postgres, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 90.0
"""An empty store takes some of them for its tables, on a busy machine."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Postgres:
    """A database server of our own, in a folder of its own.  Postgres refuses to run as root."""

    def __init__(self) -> None:
        self._home = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
        if self._home is None or os.geteuid() != 0:
            pytest.skip("no Postgres to start here; as root: tests/slurm/install.sh postgres")
        # Not among pytest's folders, which only one user may enter.
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), free_port()

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        shutil.chown(self.folder, "postgres")
        self._command("initdb", "-D", str(self.folder / "data"), "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(self.folder / "log")
        self._command("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._command("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, name: str, *args: str) -> None:
        assert self._home is not None
        done = subprocess.run(
            [str(self._home / name), *args], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, timeout=60, check=False, user="postgres",
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stderr}"


class TrackingServer:
    """`mlflow server` over a store.

    Args:
        folder: where it keeps what it keeps.
        store: URI of the store; SQLite in the folder if None.
    """

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder / 'server.db'}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store, "--workers", "1",
            "--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self.port),
        ]  # fmt: skip
        silent = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **silent}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < until, self.log()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def log(self) -> str:
        return (self.folder / "log").read_text()[-3000:]

    def kill(self) -> None:
        """All its processes at once, without a word."""
        if self._process is not None:
            # Its workers are in a session of their own with it.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def read_back(uri: str, experiment: str) -> dict[str, dict[str, Any]]:
    """Everything that a store says about each run of the ledger, but its own ids; a report is none."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    said: dict[str, dict[str, Any]] = {}
    for run in client.search_runs([found.experiment_id]):
        if run.data.tags.get("kind") == "sweep":
            continue
        name = run.data.tags["run_id"]
        assert name not in said, f"{name} is there twice"
        said[name] = {
            "params": run.data.params,
            "tags": dict(run.data.tags),
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "metrics": {
                key: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
        }
    return said
