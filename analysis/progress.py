"""How far long work is, on stderr: a line that is rewritten on a terminal, now and then a line in a log."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import timedelta
from types import TracebackType

ON_TERMINAL, IN_LOG = 0.2, 10.0
"""Seconds between two updates."""


class Progress:
    """Counts work done, as in `with Progress("reading metrics", total) as progress: progress.update(done)`.

    On a terminal the line goes away at the end; in a log, work of less than ten seconds leaves none.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        # A terminal shows the first update, a log only work that takes long.
        self._said = self._started - ON_TERMINAL if self._terminal else self._started
        self._shown = 0

    def __enter__(self) -> Progress:
        return self

    def update(self, done: int) -> None:
        """Say that `done` of the total are done, unless the last update is too recent."""
        now = time.monotonic()
        if now - self._said < (ON_TERMINAL if self._terminal else IN_LOG):
            return
        if done == self.total and not self._terminal:
            # What follows says that the work is done.
            return
        self._said = now
        line = self._line(done, now - self._started)
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        print("\r" + line.ljust(self._shown), end="", file=sys.stderr, flush=True)
        self._shown = len(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="", file=sys.stderr, flush=True)

    def _line(self, done: int, seconds: float) -> str:
        share = done / self.total if self.total else 1.0
        line = f"{self.name}: {done} of {self.total} ({share:.0%})"
        if 0 < done < self.total:
            line += f", {timedelta(seconds=round(seconds / share - seconds))} left"
        return line
