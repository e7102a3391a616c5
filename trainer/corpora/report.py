"""Shows how a preparation gets on: a bar on stderr with MB/s and time left, if it takes its time."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_MOMENT_SECONDS = 1.0


class Report:
    """A context in which progress is shown, or nothing where `shown` is False.

    Args:
        label: what is being prepared.
        shown: False for silence.
    """

    def __init__(self, label: str, shown: bool) -> None:
        self._label, self._shown = label, shown
        self._begun = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total: int | None = None
        self._first = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Say in one line what is being done before the reading starts."""
        if self._shown:
            print(f"{self._label}: {text} ...", file=sys.stderr, flush=True)

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Begin to count: `total_bytes` on disk (0 if unknown), `done_bytes` of them earlier."""
        self._total, self._first = total_bytes or None, done_bytes
        self._begun = time.monotonic()
        if done_bytes and self._shown:
            print(f"{self._label}: going on after {done_bytes / 1e6:.0f} MB", file=sys.stderr, flush=True)

    def advance(self, done_bytes: int) -> None:
        """Show that `done_bytes` of text are encoded; compressed files hold more text than their size."""
        if not self._shown:
            return
        if self._bar is None and time.monotonic() - self._begun > _MOMENT_SECONDS:
            self._open()
        if self._bar is not None and self._task is not None:
            total = self._total if self._total and done_bytes <= self._total else None
            self._bar.update(self._task, completed=done_bytes, total=total)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=self._total, completed=self._first)
