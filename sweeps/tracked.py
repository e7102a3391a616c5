"""Keeps the tracked table of a sweep up to date while it runs: now and then a process exports it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO

from sweeps.machine import step_back
from sweeps.slot import PACKAGE_ROOT, program
from trainer.hints import hint

EVERY_SECONDS = 60.0
FINAL_SECONDS = 120.0
LONGEST_SECONDS = 600.0
"""An export that has not ended by then does not."""
TELL_SECONDS = 3.0
NICENESS = 10
ANALYSIS = (sys.executable, "-m", "analysis")


class BackgroundExport:
    """Writes tables/NAME_runs.csv whenever runs have ended, without ever holding the launcher up.

    A table that has more finished runs than the folders is kept, as `python -m analysis export` does.

    Args:
        sweep: name of the sweep, which is recorded already.
        results: results folder.
        say: prints a line.
        own: run ids of a sweep whose name may be another's as well (a file given by path): a table with
            finished runs of others is then left alone.
        every: least seconds between two exports.
        command: how to start the analysis.
        root: folder of the program that it runs.
    """

    def __init__(
        self,
        sweep: str,
        results: Path,
        say: Callable[[str], None],
        own: Collection[str] | None = None,
        every: float = EVERY_SECONDS,
        command: Sequence[str] = ANALYSIS,
        root: Path = PACKAGE_ROOT,
    ) -> None:
        self.sweep, self.given, self.say, self.every = sweep, results, say, every
        self.results = results.resolve()
        self.table = self.results / "tables" / f"{sweep}_runs.csv"
        self.interrupted = False
        """Whether Ctrl-C ended it before it was done."""
        self._own, self._command, self._root = own, command, root
        self._news, self._told = False, ""
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._began = time.monotonic()

    def ended(self) -> None:
        """A run has its result."""
        self._news = True

    def poll(self) -> None:
        """Notice the end of an export, and begin one if it is time."""
        if self._process is not None:
            if self._process.poll() is None and time.monotonic() - self._began < LONGEST_SECONDS:
                return
            self._close()
        if self._news and time.monotonic() - self._began >= self.every:
            self._start()

    def finish(self, done: Collection[str], seconds: float = FINAL_SECONDS) -> None:
        """Export what is not in the table yet, within some seconds; never raises.

        Args:
            done: ids of the runs that are done.
            seconds: an export that takes longer is ended, with a line.
        """
        limit = time.monotonic() + seconds
        try:
            self._wait(limit)
            held = self._finished_in_table()
            if done and (self._news or held is None or len(held) < len(done)):
                self._start()
                self._wait(limit)
        except KeyboardInterrupt:
            self.interrupted = True
            self._kill("left for later")

    def _start(self) -> None:
        self._news, self._began = False, time.monotonic()
        if self._own is not None and not (self._finished_in_table() or set()) <= set(self._own):
            self._tell(f"{self.table} holds finished runs of another sweep, and is left alone")
            return
        words = [*self._command, "export", self.sweep, "--results", str(self.results)]
        try:
            self._errors = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                words,
                # A file of the sweep's name in the current folder would be taken for a table.
                cwd=self.results / "runs",
                env={**os.environ, **program(self._root)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            self._tell(f"not written ({error.strerror})")
            return
        step_back(self._process.pid, NICENESS)

    def _wait(self, limit: float) -> None:
        told = time.monotonic() + TELL_SECONDS
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > limit:
                self._kill("not written in time")
                return
            if time.monotonic() > told:
                self.say(f"writing {self.table} (the runs are safe; Ctrl-C leaves it for later)")
                told = limit
            time.sleep(0.05)
        self._close()

    def _kill(self, why: str) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        self._tell(why)

    def _close(self) -> None:
        """Hear how an export ended, or end it where it hangs."""
        if self._process is None:
            return
        code = self._process.poll()
        if code is None:
            self._kill("not written in time")
            return
        self._process = None
        assert self._errors is not None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        self._errors.close()
        if code:
            last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
            self._tell(f"not written ({last.removeprefix('error: ')})")

    def _tell(self, problem: str) -> None:
        """Say a problem, once as long as it stays the same."""
        if problem != self._told:
            export = hint(["export", self.sweep], self.given, "analysis")
            self.say(f"table of runs: {problem}; '{export}' writes it")
        self._told = problem

    def _finished_in_table(self) -> set[str] | None:
        """Ids of the finished runs that the table has; None without one that can be read."""
        try:
            with open(self.table, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error):
            return None
        return {str(row.get("run_id")) for row in rows if row.get("state", "done") == "done"}
