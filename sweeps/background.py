"""The launcher's side of the mirror: a low-priority process of its own, so that no outage reaches a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.ledger import Ledger
from sweeps.mirrored import default_uri, is_mirrored
from sweeps.slot import PACKAGE_ROOT, program
from sweeps.sweepfile import Sweep
from trainer.hints import hint

EVERY_SECONDS = 30.0
FINAL_SECONDS = 120.0
INTERRUPTED_SECONDS = 5.0
TELL_SECONDS = 3.0


@dataclass(frozen=True)
class Mirrored:
    """What of a sweep its mirror has to know."""

    sweep: str
    """Name of the sweep."""
    argument: str
    """How commands take it."""
    experiment: str
    """MLflow experiment."""
    uri: str | None
    """Tracking URI; None for the default."""


def mirror_of(sweep: Sweep) -> Mirrored:
    """The mirror settings of a sweep."""
    return Mirrored(sweep.name, sweep.argument, sweep.mlflow.experiment or sweep.name, sweep.mlflow.uri)


class BackgroundMirror:
    """Mirrors a sweep while it runs.

    Args:
        sweep: what to mirror where; the sweep is recorded already.
        results: results folder.
        say: prints a line.
        every: seconds between two syncs.
        own: mirror only runs that `add` names, not the whole sweep.
        root: folder of the program that the process runs.
    """

    def __init__(
        self,
        sweep: Mirrored,
        results: Path,
        say: Callable[[str], None],
        every: float = EVERY_SECONDS,
        own: bool = False,
        root: Path = PACKAGE_ROOT,
    ) -> None:
        self.sweep, self.results, self.say, self.every, self.own = sweep, results, say, every, own
        self.root = root
        self.interrupted = False
        """Whether Ctrl-C ended it before it was done."""
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._told: str | None = None

    def up_to_date(self, run_ids: Sequence[str]) -> bool:
        """Whether all runs are finished and mirrored already."""
        uri = self.sweep.uri or default_uri(self.results)
        return is_mirrored(Ledger(self.results), run_ids, self.sweep.sweep, self.sweep.experiment, uri)

    def start(self) -> None:
        """Start the process; it loads MLflow at its first sync."""
        command = [
            sys.executable, "-m", "sweeps.mirror", self.sweep.sweep, "--results", str(self.results.resolve()),
            "--experiment", self.sweep.experiment, "--every", str(self.every),
            *(["--uri", self.sweep.uri] if self.sweep.uri else []), *(["--own"] if self.own else []),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **program(self.root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def add(self, run_id: str) -> None:
        """Mirror this run as well."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{run_id}\n".encode())
            self._process.stdin.flush()
        except OSError:
            # The mirror's process ended; `finish` says so, and `sync` sends everything later.
            return

    def poll(self) -> None:
        """Tell a problem, once, when it comes up."""
        for line in self._lines():
            problem = line.get("problem")
            if problem is not None and problem != self._told:
                self._later(problem)
            self._told = problem

    def finish(self, interrupted: bool, seconds: float = FINAL_SECONDS) -> None:
        """Mirror what is left, within some seconds; within few where the launch was interrupted."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        limit = INTERRUPTED_SECONDS if interrupted else min(FINAL_SECONDS, max(INTERRUPTED_SECONDS, seconds))
        try:
            self._await_end(self._process, limit)
        except KeyboardInterrupt:
            limit, self.interrupted = 0.0, True
        self.poll()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            problem: str | None = f"not finished after {limit:.0f} s" if limit else "left for later"
        else:
            problem = f"ended with exit code {self._process.returncode}" if self._process.returncode else None
        if problem is not None:
            self._later(problem)

    def _later(self, problem: str) -> None:
        sync = hint(["sync", self.sweep.argument], self.results)
        self.say(f"MLflow mirror: {problem}; run '{sync}' later")

    def _await_end(self, process: subprocess.Popen[bytes], limit: float) -> None:
        began, told = time.monotonic(), False
        while process.poll() is None and time.monotonic() < began + limit:
            time.sleep(0.05)
            if not told and time.monotonic() > began + TELL_SECONDS:
                self.say("mirroring the runs to MLflow (they are safe; Ctrl-C leaves it for later)")
                told = True

    def _lines(self) -> list[dict[str, str | None]]:
        if self._process is None or self._process.stdout is None:
            return []
        try:
            while chunk := os.read(self._process.stdout.fileno(), 1 << 16):
                self._buffer += chunk
        except BlockingIOError:
            pass
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]
