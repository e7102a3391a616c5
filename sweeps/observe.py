"""Runs as others train them: where each stands, read again only where its folder has changed.

Everything in a run folder but metrics.jsonl is replaced by renaming, which changes the folder's own time: a
run that nobody trains costs one `stat` a look.  Whatever is torn, gone or senseless costs one value.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.index import WORTHWHILE
from sweeps.lease import STALE_SECONDS, machine_id, read_lease
from sweeps.ledger import MAX_ATTEMPTS, Ledger, RunState
from sweeps.report import last_lines
from trainer.commandline import duration
from trainer.errors import RunDirError
from trainer.rundir import ERROR, METRICS

STALE = "stale"
"""A run whose worker has gone without a word, and which nobody has taken over."""
_TAIL_BYTES = 4096
MISREAD = (OSError, RunDirError, ValueError, TypeError, KeyError, OverflowError)
"""What a file raises that vanishes while it is read, or that holds anything but what was written."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One run at one moment."""

    state: str = "new"
    """One of sweeps.ledger.STATES, or STALE."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of a running one: phase, step, total, loss, speed, eta, as far as known."""
    step: int = 0
    """Steps that will not be repeated (of a running one: steps done)."""
    owner: str | None = None
    """host:pid of its worker."""
    started: float | None = None
    """When the attempt began (epoch), by the worker's clock."""
    message: str | None = None
    """One line: why it failed, diverged, was pruned, is corrupt or stale; what is odd about a running one."""
    result: dict[str, Any] | None = None
    """The verified result."""
    retries: bool = False
    """Failed, but a launcher under way may try it again."""


class Observer:
    """Looks at runs again and again."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._seen: dict[str, Seen] = {}
        self._marks: dict[str, tuple[int, int] | None] = {}
        self._unsettled: set[str] = set()
        self._beats: dict[str, tuple[Any, float]] = {}

    def look(self, run_ids: Iterable[str]) -> dict[str, Seen]:
        """Where these runs stand now; what cannot be read stays as it was last seen."""
        wanted = list(run_ids)
        for run_id, state in self._states([run_id for run_id in wanted if self._may_differ(run_id)]).items():
            try:
                self._seen[run_id] = self._interpreted(run_id, state)
            except MISREAD:
                self._seen.setdefault(run_id, Seen())
        return {run_id: self._seen.get(run_id) or Seen() for run_id in wanted}

    def _may_differ(self, run_id: str) -> bool:
        try:
            stat = os.stat(f"{self.ledger.runs}/{run_id}")
            mark = (stat.st_mtime_ns, stat.st_ino)
        except OSError:
            mark = None
        known, changed = self._seen.get(run_id), mark != self._marks.get(run_id, ())
        self._marks[run_id] = mark
        # Within one tick of its clock a folder changes unnoticed, so what may do so is read once more.
        again = run_id in self._unsettled
        self._unsettled.discard(run_id)
        if changed and mark is not None:
            self._unsettled.add(run_id)
        if known is None or changed or (again and known.result is None):
            return True
        # A lease goes stale, and its owner is silent for longer, without any change.
        return known.state in ("running", STALE)

    def _states(self, run_ids: list[str]) -> dict[str, RunState]:
        if len(run_ids) >= WORTHWHILE:
            try:
                return self.ledger.scan(run_ids)
            except MISREAD:
                # One of them; the others are read by themselves.
                pass
        states = {}
        for run_id in run_ids:
            try:
                states[run_id] = self.ledger.state(run_id)
            except MISREAD:
                continue
        return states

    def _interpreted(self, run_id: str, raw: RunState) -> Seen:
        folder, result, status = self.ledger.run_dir(run_id), raw.result, raw.status or {}
        step, state = raw.step, raw.state
        if state == "running":
            return self._running(run_id, raw, None)
        if state in ("new", "preempted", "pruned"):
            lease = read_lease(folder)
            if lease is not None and self._beats_on(run_id, lease):
                return self._running(run_id, raw, lease)
            if state == "pruned":
                # Whoever pruned it said so before it went; nobody is waited for.
                return Seen(state, step=raw.checkpoint or 0, message=raw.message)
            state, step = STALE if lease is not None else state, raw.checkpoint or 0
            return Seen(state, step=step, message=_stale_line(lease) if lease is not None else None)
        message = raw.message
        if state == "diverged" and result is not None:
            message = f"loss not finite or far too high at step {result.get('diverged_step')}"
        elif state == "corrupt":
            message = f"result.json: {str(message).partition(': ')[2].partition(';')[0]}"
        elif state == "failed":
            message = message or _last_line(folder) or str(status.get("state", "no reason left"))
            step = raw.checkpoint or 0
        return Seen(
            state, step=step, message=message, result=result,
            retries=state == "failed" and 0 < raw.failures < MAX_ATTEMPTS,
        )  # fmt: skip

    def _running(self, run_id: str, raw: RunState, lease: Mapping[str, Any] | None) -> Seen:
        """A run with a worker; `lease` where it looks stale by our clock alone."""
        before = self._seen.get(run_id)
        if raw.status is None and before is not None and before.state == "running":
            # Caught half-written.
            return before
        status, message = raw.status or {}, None
        if lease is not None:
            behind = duration(abs(time.time() - float(lease["heartbeat"])))
            message = f"the clock of {lease.get('host')} is {behind} behind: others may take the run over"
        facts = _facts(status, self.ledger.run_dir(run_id))
        owner = raw.owner or (f"{lease.get('host')}:{lease.get('pid')}" if lease is not None else None)
        step = facts.get("step", raw.step)
        return Seen("running", facts, step, owner, _number(status.get("started")), message)

    def _beats_on(self, run_id: str, lease: Mapping[str, Any]) -> bool:
        """Whether a heartbeat that is too old by our clock was renewed while we looked."""
        beat, now = lease.get("heartbeat"), time.monotonic()
        known = self._beats.get(run_id)
        if lease.get("machine") == machine_id() or not isinstance(beat, int | float):
            return False
        if known is None or known[0] != beat:
            known = self._beats[run_id] = (beat, now if known is not None else -math.inf)
        return now - known[1] <= STALE_SECONDS


def _facts(status: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What status.json and the last line of metrics.jsonl say of a run under way, the newer of the two."""
    if status.get("state") != "running":
        # The last word of an attempt before this one.
        return {}
    line = _last_metrics(folder)
    step, total = _number(status.get("step")), _number(status.get("total_steps"))
    if step is None or not total:
        return {}
    newer = (_number(line.get("step")) or 0) > step
    loss = _number(line.get("train_loss")) if newer else None
    facts = {
        "phase": "evaluate" if step >= total and status.get("eta_seconds") is not None else "train",
        "step": int(line["step"] if newer else step),
        "total": int(total),
        "loss": loss if loss is not None else _number(status.get("train_loss")),
        "speed": _number(status.get("tokens_per_second")) or _number(line.get("tokens_per_second")),
        "eta": _number(status.get("eta_seconds")),
    }
    return facts


def _last_metrics(folder: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; empty where there is none."""
    try:
        text = last_lines(folder / METRICS, _TAIL_BYTES)
    except OSError:
        return {}
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "step" in value:
            return value
    return {}


def _last_line(folder: Path) -> str | None:
    """What error.txt ends with: of a traceback, the exception."""
    try:
        lines = last_lines(folder / ERROR, _TAIL_BYTES).split("\n")
    except OSError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _stale_line(lease: Mapping[str, Any]) -> str:
    owner = f"{lease.get('host', 'unknown')}:{lease.get('pid', '?')}"
    beat = _number(lease.get("heartbeat"))
    since = f", silent for {duration(max(0.0, time.time() - beat))}" if beat is not None else ""
    return f"its worker {owner} is gone{since}; the next launch goes on"


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None  # type: ignore[return-value]
