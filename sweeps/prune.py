"""Pruning: whoever directs a study asks that a run be stopped early, since others are better.

    prune.json   owner (of the lease that the request is for), and why: study, step, rung, reason ...

The worker heeds a request for its own lease and no other: one that came too late for an attempt must not stop
the next, which may be of another sweep.  A pruned run has its checkpoints and no result: no data point.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.rundir import io_errors, write_atomic

PRUNE = "prune.json"
CHECK_SECONDS = 1.0
"""A worker looks for a request this often."""


def ask_to_prune(run_dir: Path, owner: str, facts: Mapping[str, Any]) -> None:
    """Ask the worker that holds the run's lease to stop it early.

    Asking again does no harm; a request is lost where its worker ends before it looks.

    Args:
        run_dir: the run's folder.
        owner: `owner` of the lease, as the worker's event "start" and sweeps.lease.read_lease tell it.
        facts: why, as JSON values; `reason` is one line for people.
    """
    write_atomic(run_dir / PRUNE, json.dumps({**facts, "owner": owner}) + "\n")


def prune_asked(run_dir: Path, owner: str) -> dict[str, Any] | None:
    """The request to prune a run that `owner` trains; None without one, or where it is for another."""
    try:
        request = json.loads((run_dir / PRUNE).read_bytes())
    except (FileNotFoundError, ValueError):
        # Requests are replaced atomically, so that one that is torn is nobody's.
        return None
    return request if isinstance(request, dict) and request.get("owner") == owner else None


def forget_prune(run_dir: Path) -> None:
    """Remove whatever request is there."""
    with io_errors(run_dir / PRUNE):
        (run_dir / PRUNE).unlink(missing_ok=True)


def prune_line(request: Mapping[str, Any]) -> str:
    """Why a run was pruned, in one line."""
    told = [f"{key} {request[key]}" for key in ("study", "step", "rung") if request.get(key) is not None]
    where = f" ({', '.join(told)})" if told else ""
    return " ".join(f"pruned{where}: {request.get('reason') or 'others are better'}".split())


class PruneWatch:
    """Whether one attempt at a run has been asked to end early; looks at most once in CHECK_SECONDS.

    Args:
        run_dir: the run's folder, whose lease is held.
        owner: owner of that lease.
        heeds: whether requests are heeded at all; one that is there from before is removed anyway.
    """

    def __init__(self, run_dir: Path, owner: str, heeds: bool) -> None:
        self.run_dir, self.owner, self.heeds = run_dir, owner, heeds
        self.request: dict[str, Any] | None = None
        self._looked = 0.0
        if prune_asked(run_dir, owner) is None:
            forget_prune(run_dir)

    def __call__(self) -> bool:
        """Whether to stop now; cheap enough to be asked after every step."""
        now = time.monotonic()
        if self.heeds and self.request is None and now - self._looked >= CHECK_SECONDS:
            self._looked = now
            self.request = prune_asked(self.run_dir, self.owner)
        return self.request is not None
