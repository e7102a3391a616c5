"""What a person sees while a study goes on: each trial that ends, and on a terminal what is under way."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.display import COLOURS, LINE_SECONDS, progress_texts
from sweeps.search.searched import Searched, Trial
from sweeps.search.shapes import said
from sweeps.text import plural
from trainer.commandline import duration
from trainer.hints import hint


class StudyView:
    """Follows a study.

    Args:
        searched: its cells.
        slots: trials in flight at a time.
        results: results folder.
    """

    def __init__(self, searched: Sequence[Searched], slots: int, results: Path) -> None:
        self.searched, self.slots, self.results = searched, slots, results
        self.console = Console(stderr=True)
        self._flying: dict[str, tuple[Searched, Trial]] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._waited_for: set[str] = set()
        self._began = time.monotonic()
        self._before = self.finished
        self._last_line = self._began
        self._live: Live | None = None

    @property
    def total(self) -> int:
        """Trials that there will be, as far as is known."""
        return sum(one.total for one in self.searched)

    @property
    def finished(self) -> int:
        """Trials that are over, of those that the study asks for."""
        return sum(trial.counts and trial.outcome is not None for s in self.searched for trial in s.trials)

    def __enter__(self) -> Self:
        self._before = self.finished
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def asked(self, searched: Searched, trial: Trial) -> None:
        """A trial's run is to be trained."""
        self._flying[trial.asked.run] = searched, trial

    def told(self, searched: Searched, trial: Trial) -> None:
        """A trial is over."""
        self._flying.pop(trial.asked.run, None)
        self._facts.pop(trial.asked.run, None)
        if trial.asked.repeat or trial.outcome is None:
            return
        state = trial.outcome.state
        words = [f"[{self.finished}/{self.total}] {state:8}", searched.cell.label, said(trial.asked.point)]
        result = trial.state.result if trial.state is not None else None
        if trial.loss is not None and result is not None:
            words.append(f"loss {trial.loss:.4f} ± {result['val_loss_se']:.4f}")
            best = searched.best
            words.append("(best so far)" if best is trial else f"(best {best.loss:.4f})" if best else "")
        if trial.second is not None:
            words.append(f"{trial.second:.4g} ms")
        if trial.state is not None and trial.state.message:
            words.append(trial.state.message)
        words.append("from the ledger" if trial.asked.known else self._left())
        line = "  ".join(word for word in words if word)
        if self._live is not None:
            self.console.print(Text(line, style=COLOURS.get(state, "")))
        else:
            self.say(line)
            self._last_line = time.monotonic()

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        """A worker started, advanced or ended a run."""
        if event["event"] == "start":
            self._facts.setdefault(run_id, {"total": event["total"]})
        elif event["event"] == "progress":
            self._facts.setdefault(run_id, {}).update(event)
        elif event["event"] == "end":
            self._facts.pop(run_id, None)
            if event["state"] == "failed":
                message = event.get("message", "")
                self.say(f"failed    {run_id}  {message}  see: {hint(['logs', run_id], self.results)}")

    def waiting(self, owners: Mapping[str, str]) -> None:
        """Only runs of other launchers are left."""
        if set(owners) != self._waited_for:
            holders = ", ".join(sorted(set(owners.values())))
            self.say(f"waiting for {plural(len(owners), 'run')} that others train ({holders})")
        self._waited_for = set(owners)

    def say(self, line: str) -> None:
        """A line that stays on the screen."""
        if self._live is not None:
            self.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def tick(self) -> None:
        """Print a line where there is no live table and it is time for one."""
        now = time.monotonic()
        if self._live is None and self._flying and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            for name, facts in self._rows():
                self.say("  " + "  ".join(filter(None, (name, *facts))))
            if waiting := len(self._flying) - len(self._rows()):
                self.say(f"  {plural(waiting, 'trial')} waiting to be begun")

    def _rows(self) -> list[tuple[str, tuple[str, str, str, str]]]:
        return [
            (f"{searched.cell.label} {said(trial.asked.point)}", self._texts(run_id))
            for run_id, (searched, trial) in self._flying.items()
            if run_id in self._facts
        ]

    def _texts(self, run_id: str) -> tuple[str, str, str, str]:
        facts = self._facts.get(run_id)
        if facts is None:
            return "waiting", "", "", ""
        return progress_texts(facts, float(facts.get("eta") or 0.0))

    def _left(self) -> str:
        """Time left, by the pace so far."""
        done = self.finished - self._before
        if not done:
            return ""
        each = (time.monotonic() - self._began) / done
        return f"about {duration(each * (self.total - self.finished))} left"

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for run_id, (searched, trial) in self._flying.items():
            facts = self._facts.get(run_id, {})
            bar = ProgressBar(total=facts.get("total") or 1, completed=facts.get("step", 0), width=20)
            table.add_row(f"{searched.cell.label} {said(trial.asked.point)}", bar, *self._texts(run_id))
        line = f"{self.finished} of {plural(self.total, 'trial')} over, {self._left() or 'no pace known yet'}"
        return Group(table, Text(line, style="bold"))
