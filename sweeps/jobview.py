"""What a Slurm job tells: lines of its log, and the mirror of the runs that it trains."""

from __future__ import annotations

import os
import time
from typing import Any, TextIO

from sweeps.background import BackgroundMirror, Mirrored
from sweeps.mirrored import default_uri
from sweeps.submission import Submission

PROGRESS_SECONDS = 60.0


class JobView:
    """A job's log: what begins, what ends, and now and then how far everything is."""

    def __init__(self) -> None:
        self.mirror: BackgroundMirror | None = None
        # Of its own: whoever trains in this very process sends its output to the run's log meanwhile.
        self._log = os.fdopen(os.dup(1), "w", buffering=1)
        self._said: dict[str, float] = {}

    def start_mirror(self, submission: Submission) -> None:
        """Mirror the runs that this job trains, where the store takes many writers; else `sync` fills it."""
        if not submission.mirror:
            return
        mirrored = Mirrored(**submission.mirror)
        uri = mirrored.uri or default_uri(submission.results)
        if uri.startswith(("http://", "https://")):
            self.mirror = BackgroundMirror(mirrored, submission.results, self.say, own=True)
            self.mirror.start()

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        """A worker reported something of a run."""
        kind = event["event"]
        if kind == "start":
            if self.mirror is not None:
                self.mirror.add(run_id)
            self.say(f"{run_id} begun, {event['total']} steps")
        elif kind == "end":
            why = f": {event['message']}" if event.get("message") else ""
            self.say(f"{run_id} {event['state']}{why}")
        elif time.monotonic() - self._said.get(run_id, 0.0) > PROGRESS_SECONDS:
            self._said[run_id] = time.monotonic()
            loss = f", loss {event['loss']:.4f}" if event.get("loss") is not None else ""
            self.say(f"{run_id} {event['phase']} {event['step']} of {event['total']}{loss}")

    def waiting(self, owners: dict[str, str]) -> None:
        """Nothing is left but runs that others train."""
        if time.monotonic() - self._said.get("", -1e9) > PROGRESS_SECONDS:
            self._said[""] = time.monotonic()
            self.say(f"waiting for {len(owners)} runs that other jobs have")

    def say(self, line: str) -> None:
        """A line for people."""
        say(line, self._log)

    def tick(self) -> None:
        """Some time has passed."""
        if self.mirror is not None:
            self.mirror.poll()

    def close(self, interrupted: bool, seconds: float) -> None:
        """Mirror what is left, within some seconds; at once where the job was interrupted."""
        if self.mirror is not None:
            self.mirror.finish(interrupted, seconds)


def say(line: str, log: TextIO | None = None) -> None:
    """A line of a job's log, with the time; by default to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=log, flush=True)
