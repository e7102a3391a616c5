"""What a person sees while a sweep runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.ledger import Ledger
from sweeps.plan import PlannedRun, wall_seconds
from sweeps.text import count, plural
from sweeps.varied import said
from trainer.commandline import duration
from trainer.curriculum import shortfall
from trainer.errors import RunDirError
from trainer.hints import hint

LINE_SECONDS = 15.0
COLOURS = {
    "done": "green", "failed": "red", "diverged": "yellow", "preempted": "cyan", "lost": "cyan",
    "pruned": "blue",
}  # fmt: skip
"""Of states, wherever a person sees them."""


@dataclass
class _Running:
    """A run that a worker has."""

    run: PlannedRun
    started: float
    facts: dict[str, Any]

    def seconds_left(self, pace: float) -> float:
        """Time left by its own measure, else by the plan's."""
        return seconds_left(self.facts, self.run.seconds, time.monotonic() - self.started, pace)


class TerminalView:
    """Follows a sweep's runs.

    Args:
        runs: those that will be trained.
        others: how many of the sweep need no training, and of all.
        slots: runs at a time.
        ledger: where results are looked up.
    """

    def __init__(self, runs: Sequence[PlannedRun], others: int, slots: int, ledger: Ledger) -> None:
        self.planned = {run.id: run for run in runs}
        self.total, self.finished = others + len(runs), others
        self.slots, self.ledger = slots, ledger
        self.console = Console(stderr=True)
        self.running: dict[str, _Running] = {}
        self.waited_for: dict[str, str] = {}
        self._pending = dict(self.planned)
        self._paces: list[float] = []
        self._last_line = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        """A worker started, advanced or ended a run."""
        run = self.planned.get(run_id)
        if run is None:
            return
        if event["event"] == "start":
            self._pending.pop(run_id, None)
            self.running[run_id] = _Running(run, time.monotonic(), {"total": event["total"]})
        elif event["event"] == "progress" and run_id in self.running:
            self.running[run_id].facts.update(event)
        elif event["event"] == "end":
            self._ended(run, event)

    def waiting(self, owners: Mapping[str, str]) -> None:
        """Only runs of other launchers are left."""
        if owners.keys() != self.waited_for.keys():
            holders = ", ".join(sorted(set(owners.values())))
            self.say(f"waiting for {plural(len(owners), 'run')} that others train ({holders})")
        self.waited_for = dict(owners)

    def say(self, line: str) -> None:
        """A line that stays on the screen."""
        if self._live is not None:
            self.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def tick(self) -> None:
        """Print a line where there is no live table and it is time for one."""
        now = time.monotonic()
        if self._live is None and self.running and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            for running in self.running.values():
                self.say("  " + "  ".join(filter(None, (_name(running.run), *_facts(running, self._pace())))))
            self.say(self._overall())

    def seconds_left(self) -> float:
        """Time until all is trained, from the plan's prices corrected by what runs have really taken."""
        pace = self._pace()
        left = [running.seconds_left(pace) for running in self.running.values()]
        left += [run.seconds * pace for run in self._pending.values()]
        return wall_seconds(left, self.slots)

    def _pace(self) -> float:
        """Real over predicted seconds of the finished runs, or of those under way while none is finished."""
        now = time.monotonic()
        running = self.running.values()
        return pace_of(
            self._paces,
            ((now - one.started, one.facts.get("eta"), one.run.seconds) for one in running),
        )

    def _ended(self, run: PlannedRun, event: dict[str, Any]) -> None:
        running = self.running.pop(run.id, None)
        state = event["state"]
        if state in ("done", "diverged", "pruned"):
            self.finished += 1
            self._pending.pop(run.id, None)
        else:
            self._pending[run.id] = run
        seconds = time.monotonic() - running.started if running is not None else 0.0
        if state == "done" and running is not None and run.seconds > 0:
            self._paces.append(seconds / run.seconds)
        words = [
            f"[{self.finished}/{self.total}] {state:9} {_name(run)}",
            self._outcome(run, state),
            event.get("message"),
        ]
        if seconds:
            words.append(duration(seconds))
        if state == "failed":
            words.append(f"see: {hint(['logs', run.id], self.ledger.results)}")
        if state == "done" and self._live is None:
            words.append(f"{duration(self.seconds_left())} left")
        line = "  ".join(word for word in words if word)
        if self._live is not None:
            self.console.print(Text(line, style=COLOURS.get(state, "")))
        else:
            self.say(line)
            self._last_line = time.monotonic()

    def _outcome(self, run: PlannedRun, state: str) -> str | None:
        if state != "done":
            return None
        try:
            result = self.ledger.state(run.id).result or {}
        except RunDirError:
            return None
        loss, error = result.get("val_loss"), result.get("val_loss_se")
        if loss is None or error is None:
            return None
        missed = shortfall(result)
        return f"loss {loss:.4f} ± {error:.4f}{f' ({missed})' if missed else ''}"

    def _overall(self) -> str:
        left = duration(self.seconds_left())
        return f"{self.finished} of {plural(self.total, 'run')} finished, about {left} left"

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        pace = self._pace()
        for running in self.running.values():
            done, total = running.facts.get("step", 0), running.facts.get("total") or 1
            table.add_row(
                _name(running.run), ProgressBar(total=total, completed=done, width=24), *_facts(running, pace)
            )
        return Group(table, Text(self._overall(), style="bold"))


def _name(run: PlannedRun) -> str:
    return run_name(run.size, run.structure, " ".join(filter(None, (run.guide, said(run.varied)))), run.seed)


def _facts(running: _Running, pace: float) -> tuple[str, str, str, str]:
    return progress_texts(running.facts, running.seconds_left(pace))


def run_name(size: str, structure: str, guide: str, seed: int) -> str:
    """What people call a run."""
    return f"{size} {structure}{f' {guide}' if guide else ''} seed {seed}"


def progress_texts(facts: Mapping[str, Any], left: float) -> tuple[str, str, str, str]:
    """Where a run stands, as steps, loss, speed and time left.

    Args:
        facts: phase, step and total; loss (nats per token) and speed (tokens per second) where known.
        left: seconds.
    """
    if "step" not in facts:
        return "starting", "", "", f"{duration(left)} left"
    steps = f"{facts.get('phase', 'train')} {facts['step']}/{facts['total']}"
    loss = f"loss {facts['loss']:.4f}" if facts.get("loss") is not None else ""
    speed = f"{count(facts['speed'])} tok/s" if facts.get("speed") else ""
    return steps, loss, speed, f"{duration(left)} left"


def seconds_left(facts: Mapping[str, Any], predicted: float, elapsed: float, pace: float) -> float:
    """Seconds that a run still takes, by its own measure (`eta`), else by the plan's at a pace."""
    eta = facts.get("eta")
    if eta is not None:
        return float(eta)
    if facts.get("phase") == "evaluate":
        return 0.0
    return max(0.0, predicted * pace - elapsed)


def pace_of(finished: Sequence[float], running: Iterable[tuple[float, float | None, float]]) -> float:
    """Real over predicted seconds: of finished runs, or of those under way while none is finished.

    Args:
        finished: that ratio of each run that was seen to end.
        running: of each run under way: seconds so far, seconds left by its own measure, predicted seconds.
    """
    if finished:
        return median(finished)
    early = [
        (so_far + eta) / predicted for so_far, eta, predicted in running if eta is not None and predicted > 0
    ]
    return median(early) if early else 1.0
