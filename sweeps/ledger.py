"""The ledger: the state of every run, read from the run folders, which are the only truth.

Precedence: a verified result.json, then a live lease, then status.json.  Who says "running" without a live
lease is dead, and its run is resumable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.errors import SweepError
from sweeps.index import ResultIndex
from sweeps.lease import LEASE, is_stale
from trainer.errors import RunDirError
from trainer.messages import nearest
from trainer.rundir import (
    CHECKPOINTS,
    ERROR,
    RESULT,
    STATUS,
    io_errors,
    read_result,
    write_atomic,
    write_json,
)

FAILURES = "failures.json"
LOG = "worker.log"
MAX_ATTEMPTS = 2
"""A run that failed so often is left alone until `retry`."""

STATES = ("new", "running", "preempted", "pruned", "done", "diverged", "failed", "corrupt")


@dataclass(slots=True)
class RunState:
    """What the ledger knows about one run."""

    state: str = "new"
    """One of STATES."""
    failures: int = 0
    """Failed attempts since the last success or `retry`."""
    attempt: int = 0
    """Attempts of any outcome."""
    step: int = 0
    """Steps done, as last reported."""
    checkpoint: int | None = None
    """Step of the newest checkpoint; None without one."""
    status: dict[str, Any] | None = None
    """The last status.json of an unfinished run."""
    result: dict[str, Any] | None = None
    """The verified result of a finished run."""
    owner: str | None = None
    """host:pid of the live lease's holder."""
    message: str | None = None
    """Why it failed or was pruned, or what is corrupt and how to mend it."""


class Ledger:
    """The run folders below a results folder."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.runs = results / "runs"

    def run_dir(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.runs / run_id

    def ids(self) -> list[str]:
        """All runs that have a folder, in no order."""
        try:
            with os.scandir(self.runs) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise SweepError(f"{self.runs}: is not a folder; choose another with --results") from None
        except PermissionError:
            raise SweepError(f"{self.runs}: cannot be read; choose another folder with --results") from None

    def scan(self, run_ids: Iterable[str]) -> dict[str, RunState]:
        """The states of many runs: one listing, then one to three opens for each run that has a folder."""
        wanted, there = list(run_ids), set(self.ids())
        index = ResultIndex(self.runs, len(wanted))
        states = {
            run_id: self._state(run_id, index.result) if run_id in there else RunState() for run_id in wanted
        }
        index.save()
        return states

    def state(self, run_id: str) -> RunState:
        """The state of one run."""
        return self._state(run_id, lambda name: read_result(self.run_dir(name)))

    def _state(self, run_id: str, read: Callable[[str], dict[str, Any] | None]) -> RunState:
        try:
            result = read(run_id)
        except RunDirError as error:
            return RunState("corrupt", message=str(error))
        if result is not None:
            return RunState(
                str(result["state"]), attempt=int(result.get("attempts") or 1), step=int(result["steps"]),
                result=result,
            )  # fmt: skip
        return self._unfinished(self.run_dir(run_id))

    def _unfinished(self, folder: Path) -> RunState:
        lease, status, failures = (_read(folder / name) for name in (LEASE, STATUS, FAILURES))
        said = str(status.get("state", "new"))
        state = RunState(
            said if said in STATES else "preempted",
            failures=int(failures.get("failures", 0)),
            attempt=int(status.get("attempt", 0)),
            step=int(status.get("step", 0)),
            status=status or None,
        )
        if lease and not is_stale(lease, time.time()):
            state.state, state.owner = "running", f"{lease.get('host')}:{lease.get('pid')}"
            return state
        state.checkpoint = newest_checkpoint(folder)
        if said in ("running", "done", "diverged"):
            # Its worker died, or its result was moved aside to be made again.
            state.state = "preempted"
        if state.state == "preempted" and state.failures >= MAX_ATTEMPTS:
            # It crashed, and each time another worker took it over before its launcher could say so.
            state.state = "failed"
        if state.state in ("failed", "pruned"):
            told = failures.get("message") if state.state == "failed" else None
            state.message = str(status.get("message") or told or "") or None
        return state

    def other_results(self, known: Iterable[str], limit: int) -> Iterator[dict[str, Any]]:
        """Up to `limit` results of runs outside `known`, to learn speeds from."""
        for run_id in sorted(set(self.ids()) - set(known))[:limit]:
            try:
                result = read_result(self.run_dir(run_id))
            except (RunDirError, OSError):
                # Its own sweep reports it; here it is only one measurement less.
                continue
            if result is not None:
                yield result

    def find(self, written: str) -> str:
        """The run whose id is, or begins with, what was written."""
        ids = self.ids()
        matching = [run_id for run_id in ids if run_id.startswith(written)]
        if written in ids:
            return written
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise SweepError(
                f"'{written}' begins {len(matching)} run ids ({', '.join(sorted(matching)[:4])} ...)"
            )
        hint = nearest(written, ids) if len(ids) <= 1000 else ""
        raise SweepError(f"no run '{written}' in {self.runs}{hint if 'did you' in hint else ''}")

    def record_failure(
        self,
        run_id: str,
        line: str,
        report: str,
        session: str,
        permanent: bool = False,
        counts: bool = True,
    ) -> None:
        """Mark a run failed: one line in its status, the whole report in error.txt.

        Args:
            run_id: the run, whose lease the caller holds.
            line: why, in one line.
            report: why, at length.
            session: the launch it failed in.
            permanent: the same session does not try it again (a mistake that only the user can mend).
            counts: it is the run's own failure, one of the few that it may have.
        """
        write_atomic(self.run_dir(run_id) / ERROR, report.rstrip("\n") + "\n")
        self.count_failure(run_id, line, session, permanent, counts)
        self.set_state(run_id, "failed", line)

    def count_failure(
        self, run_id: str, line: str, session: str, permanent: bool = False, counts: bool = True
    ) -> None:
        """Count a failed attempt, without a say in the run's state: another launcher may have it already."""
        path = self.run_dir(run_id) / FAILURES
        failures = int(_read(path).get("failures", 0)) + counts
        write_json(path, {"failures": failures, "message": line, "session": session, "permanent": permanent})

    def forget_failures(self, run_id: str) -> None:
        """Drop the count of failed attempts, once a run has succeeded or a user asks to try again."""
        path = self.run_dir(run_id) / FAILURES
        with io_errors(path):
            path.unlink(missing_ok=True)

    def set_state(self, run_id: str, state: str, message: str | None = None) -> None:
        """Change the state in status.json and keep the rest of it."""
        folder = self.run_dir(run_id)
        now = time.time()
        status = {**_read(folder / STATUS), "state": state, "message": message, "updated": now}
        status.setdefault("started", now)
        write_json(folder / STATUS, status)

    def died_in(self, run_id: str) -> tuple[str | None, str | None]:
        """What a run's status says by itself, and the session of whoever holds its lease, dead or alive."""
        folder = self.run_dir(run_id)
        return _read(folder / STATUS).get("state"), _read(folder / LEASE).get("session")

    def gives_up(self, run_id: str, session: str, max_attempts: int) -> bool:
        """Whether a failed run is left alone by this session."""
        failures = _read(self.run_dir(run_id) / FAILURES)
        if failures.get("session") == session and failures.get("permanent"):
            return True
        return int(failures.get("failures", 0)) >= max_attempts

    def reset(self, run_id: str) -> str | None:
        """Make a failed, diverged or corrupt run eligible again; says what was done, None if nothing was.

        A result that is moved aside is never deleted.  The caller holds the run's lease.
        """
        folder = self.run_dir(run_id)
        state = self.state(run_id)
        if state.state in ("corrupt", "diverged"):
            word = state.state
            number = 1
            while (moved := folder / f"{RESULT}.{word}-{number}").exists():
                number += 1
            with io_errors(folder):
                os.rename(folder / RESULT, moved)
            self.forget_failures(run_id)
            self.set_state(run_id, "preempted")
            return f"{run_id}: {word} result moved to {moved.name}"
        if state.state == "failed" or (state.failures and state.state != "pruned"):
            self.forget_failures(run_id)
            self.set_state(run_id, "preempted" if newest_checkpoint(folder) is not None else "new")
            return f"{run_id}: {state.failures} failed attempts forgotten"
        return None


def newest_checkpoint(run_dir: Path) -> int | None:
    """Step of the newest checkpoint that has its sidecar; None without one."""
    try:
        names = set(os.listdir(run_dir / CHECKPOINTS))
    except (FileNotFoundError, NotADirectoryError):
        return None
    steps = [
        int(name[5:-12])
        for name in names
        if name.startswith("step-") and name.endswith(".safetensors") and f"{name[:-12]}.json" in names
    ]
    return max(steps, default=None)


def problems(states: Sequence[RunState]) -> list[str]:
    """One line for each corrupt run."""
    return [state.message for state in states if state.state == "corrupt" and state.message]


def _read(path: Path) -> dict[str, Any]:
    """A small JSON object; one that is missing or torn counts as empty, since the folder outranks it."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
