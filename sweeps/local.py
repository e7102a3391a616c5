"""The local executor: a bounded number of workers on this machine, kept busy until nothing is left to train.

Workers claim runs by themselves; the launcher starts and restarts them, tells what they do, passes on a
request to stop, and notices when a run took its worker down.  Where the session has a feed, runs may be added
while workers train, and nothing ends before the feed is closed.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from sweeps.feed import FeedWriter
from sweeps.layout import Layout
from sweeps.lease import Lease
from sweeps.ledger import LOG, Ledger
from sweeps.session import Session, write_session
from sweeps.slot import PACKAGE_ROOT, Slot, wait_for_news
from trainer.config import RunConfig
from trainer.errors import RunDirError
from trainer.rundir import io_errors

TICK_SECONDS = 0.25
SCAN_SECONDS = 2.0
FED_SCAN_SECONDS = 0.5
"""The same while a feed is open, when only the few runs under way are looked at."""
MAX_IDLE_CRASHES = 3
LOG_TAIL_BYTES = 2000
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
WORKER = (sys.executable, "-m", "sweeps.worker")


class View(Protocol):
    """Shows a sweep under way."""

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        """A worker reported something of a run."""

    def waiting(self, owners: dict[str, str]) -> None:
        """Nothing is left but runs (id -> host:pid) that others train."""

    def say(self, line: str) -> None:
        """A line for people."""

    def tick(self) -> None:
        """Some time has passed."""


class LocalQueue:
    """Works a session off on this machine.

    Args:
        session: the runs.
        layout: the slots.
        view: whom to show it.
        command: how to start a worker; it is given the session file and options.
        logs: folder of the workers' own output; default results/logs.
        patience: seconds to wait for runs that others hold, once nothing else is left; default without end.
        grace: seconds after a request to stop in which workers have to end, before they are killed.
        root: folder of the program that workers run.
    """

    def __init__(
        self,
        session: Session,
        layout: Layout,
        view: View,
        command: Sequence[str] = WORKER,
        logs: Path | None = None,
        patience: float = math.inf,
        grace: float = math.inf,
        root: Path = PACKAGE_ROOT,
    ) -> None:
        self.session, self.layout, self.view = session, layout, view
        self.command, self.patience, self.grace, self.root = command, patience, grace, root
        self.logs = logs or Path(session.results) / "logs"
        self.ledger = Ledger(Path(session.results))
        assert session.feed is None or session.deadline is None, "a feed has no deadline"
        self.left = {run_id for run_id, _ in session.runs}
        """Runs that are not over; up to date when `view` hears of a run's end."""
        self.asked = 0
        self.signal: str | None = None
        self.aborted: str | None = None
        self.no_device = False
        self._passed_on = 0
        self._told = 0.0
        self._scanned = 0.0
        self._slots: list[Slot] = []
        self._owners: dict[str, str] = {}
        self._late = False
        self._waiting_since: float | None = None
        self._added = set(self.left)
        self._feed: FeedWriter | None = None
        self._closed = session.feed is None

    def add(self, run_id: str, config: RunConfig) -> None:
        """Add a run to a session with a feed: before `run`, or from a view that `run` calls.

        A waiting worker begins it at once.  A run whose `result.json` is there, or that another launcher
        finishes, leaves `left` without an event.  One that is known changes nothing, and one that comes while
        the queue is ending (a stop, an abort) is not begun any more and stays in `left`.
        """
        ending = self.asked or self.aborted is not None
        assert not self._closed or ending, "a run after the end of its feed"
        if run_id in self._added:
            return
        self._added.add(run_id)
        self.left.add(run_id)
        if not self._closed:
            self._writer().add(run_id, config)
            self._scanned = 0.0

    def close_feed(self) -> None:
        """Say that no run follows: `run` returns once all that were added are over.  Again: nothing."""
        if not self._closed:
            self._writer().close()
            self._closed = True
            self._scanned = 0.0

    def _writer(self) -> FeedWriter:
        assert self.session.feed is not None
        self._feed = self._feed or FeedWriter(Path(self.session.feed))
        return self._feed

    def run(self) -> str:
        """Train until nothing is left and the feed, if there is one, is closed; how it ended.

        `aborted` holds the line of what no run survives.
        `no_device` is set where that is a GPU which workers cannot see.

        Returns: "finished"; "interrupted" by a signal; "cancelled"; "late", where the deadline forbids to
        begin what is left; "elsewhere", where others hold it and patience has ended.
        """
        path = write_session(self.session)
        if not self._closed:
            self._writer()
        with io_errors(self.logs):
            self.logs.mkdir(parents=True, exist_ok=True)
        for number, environment in enumerate(self.layout.environments):
            command = [*self.command, str(path), "--launcher", str(os.getpid())]
            log = self.logs / f"{self.session.sweep}-{number}.log"
            self._slots.append(Slot(command, environment, log, self.root))
        before = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        try:
            while not self._over():
                self._tick()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for slot in self._slots:
                slot.kill()
            self._remove_files(path)
        return self._outcome()

    def _remove_files(self, session: Path) -> None:
        session.unlink(missing_ok=True)
        self._remove_feed()

    def _remove_feed(self) -> None:
        """Have workers that wait for more end, even where the disk takes no word to them."""
        self._closed = True
        if self._feed is not None:
            self._feed.drop()
            self._feed.path.unlink(missing_ok=True)

    def _outcome(self) -> str:
        if self.asked:
            return "cancelled" if self.session.stop_asked else "interrupted"
        if not self.left:
            return "finished"
        return "late" if self._late else "elsewhere"

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
        # People press Ctrl-C twice; Slurm sends USR2 and then TERM, and means the same by both.
        self.asked = self.asked + 1 if number == signal.SIGINT else max(self.asked, 1)

    def _tick(self) -> None:
        if not self.asked and self.session.stop_asked:
            self.view.say("cancelled")
            self.asked = 1
        if self.asked == 1 and self._passed_on and time.monotonic() - self._told > self.grace:
            self.view.say(f"workers did not stop within {self.grace:.0f} s")
            self.asked = 2
        self._pass_on()
        wait_for_news(self._slots, TICK_SECONDS)
        for slot in self._slots:
            for event in slot.events():
                self._event(slot, event)
            if (code := slot.ended()) is not None:
                self._ended(slot, code)
        if self.aborted is not None:
            self._remove_feed()
        self._start_workers()
        self.view.tick()

    def _over(self) -> bool:
        if any(slot.running for slot in self._slots):
            return False
        if self.asked or self.aborted is not None or self._late:
            return True
        if not self._closed:
            return False
        if not self.left:
            return True
        return self._waiting_since is not None and time.monotonic() - self._waiting_since > self.patience

    def _pass_on(self) -> None:
        """Pass a request to stop on to the workers, which do not get the terminal's Ctrl-C."""
        if self._passed_on >= min(self.asked, 2):
            return
        self._passed_on = min(self.asked, 2)
        if self._passed_on == 1:
            self._told = time.monotonic()
            hint = " (Ctrl-C again to kill them)" if self.signal == "SIGINT" else ""
            self.view.say(f"stopping: the runs checkpoint and stay resumable{hint}")
            for slot in self._slots:
                slot.terminate()
        else:
            self.view.say("killed: the runs resume from their last checkpoints")
            for slot in self._slots:
                slot.kill()

    def _start_workers(self) -> None:
        """Start workers in idle slots while runs are free; learn which runs others hold."""
        idle = [slot for slot in self._slots if not slot.running and slot.idle_crashes < MAX_IDLE_CRASHES]
        if self.asked or self.aborted is not None:
            return
        if not idle and not any(slot.running for slot in self._slots):
            log = self._slots[0].log
            self.aborted = f"workers end before they train anything; their output is in {log}"
        if not idle and self._closed:
            return
        pause = SCAN_SECONDS if self._closed else min(SCAN_SECONDS, FED_SCAN_SECONDS)
        if time.monotonic() - self._scanned < pause:
            return
        self._scanned = time.monotonic()
        free = self._free()
        # Workers that are starting, or between two runs, take what is free before new ones could.
        unbusy = sum(slot.running and slot.run is None for slot in self._slots)
        for slot, _ in zip(idle, free[unbusy:], strict=False):
            slot.start()
        if not any(slot.running for slot in self._slots) and self._owners:
            self.view.waiting(self._owners)
            self._waiting_since = self._waiting_since or time.monotonic()
        else:
            self._waiting_since = None

    def _free(self) -> list[str]:
        """Runs that a worker could claim now; forgets those that are over."""
        session = self.session
        mine = {slot.run for slot in self._slots if slot.running}
        free, self._owners = [], {}
        for run_id, state in self.ledger.scan(self.left).items():
            if state.state in ("done", "diverged", "corrupt"):
                self.left.discard(run_id)
            elif state.state == "pruned" and session.prunes:
                self.left.discard(run_id)
            elif state.state == "running":
                if run_id not in mine and state.owner is not None:
                    self._owners[run_id] = state.owner
            elif state.state == "failed" and self._given_up(run_id):
                self.left.discard(run_id)
            elif run_id not in mine:
                free.append(run_id)
        fitting = [run_id for run_id in free if session.fits(run_id)]
        self._late = bool(free) and not fitting
        return fitting

    def _given_up(self, run_id: str) -> bool:
        return self.ledger.gives_up(run_id, self.session.session, self.session.max_attempts)

    def _event(self, slot: Slot, event: dict[str, Any]) -> None:
        kind, run_id = event["event"], event.get("run")
        if kind == "abort":
            self.aborted = event["message"]
            self.no_device = bool(event.get("no_device"))
            slot.run = None
            return
        if kind == "start":
            slot.run, slot.idle_crashes = run_id, 0
        elif kind == "end":
            slot.run = None
            over = event["state"] in ("done", "diverged", "pruned")
            if over or (event["state"] == "failed" and self._given_up(str(run_id))):
                self.left.discard(run_id)
        self.view.event(str(run_id), event)

    def _ended(self, slot: Slot, code: int) -> None:
        """A worker ended: by itself with code 0, told by `abort`, or taken down by the run it trained."""
        run_id, slot.run = slot.run, None
        if self._passed_on == 2 or code == 0 or (run_id is None and self.aborted is not None):
            return
        if run_id is None:
            slot.idle_crashes += 1
            return
        if self._passed_on and code == -signal.SIGTERM:
            # The stop came before the worker listened.
            return
        line = _cause(code)
        try:
            self._record_crash(run_id, line)
        except RunDirError as error:
            self.aborted = str(error)
        if self._given_up(run_id):
            self.left.discard(run_id)
        self.view.event(run_id, {"event": "end", "run": run_id, "state": "failed", "message": line})
        self._scanned = 0.0

    def _record_crash(self, run_id: str, line: str) -> None:
        log, session = self.ledger.run_dir(run_id) / LOG, self.session.session
        lease = Lease(self.ledger.run_dir(run_id))
        if not lease.claim():
            # Another launcher's worker was quicker; if the run takes that one down as well, this one counts.
            self.ledger.count_failure(run_id, line, session)
            return
        try:
            self.ledger.record_failure(run_id, line, f"{line}\nThe end of {log}:\n{_tail(log)}", session)
        finally:
            lease.release()


def _cause(code: int) -> str:
    if code >= 0:
        return f"the worker process ended with exit code {code} in the middle of the run"
    name = signal.Signals(-code).name
    hint = " (out of memory? take fewer slots or a smaller micro_batch)" if name == "SIGKILL" else ""
    return f"the worker process was killed by {name}{hint}"


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return "(no output)"
