"""What a person sees while something is measured: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 10.0


class BenchProgress:
    """Counts calls, on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"),
            TimeElapsedColumn(), console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("warming up", total=None)
        self.what, self.calls, self.last_line = "warming up", 0, time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self.bar.stop()

    def phase(self, what: str) -> None:
        """Say what is measured from now on."""
        self.what = what
        self.bar.update(self.task, description=what)

    def call(self) -> None:
        """Count one call."""
        self.calls += 1
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.calls)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            print(f"{self.what}  {self.calls} calls", file=sys.stderr, flush=True)
