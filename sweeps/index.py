"""Verified results remembered, so that listing a large ledger does not read and hash every result.json again.

A result counts as known while its file's time (ns), size and inode are those it was verified with.  The index
is only a cache: it can be deleted at any time, and workers never trust it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainer.errors import RunDirError
from trainer.rundir import RESULT, read_result, write_atomic

INDEX = ".index.json"
WORTHWHILE = 200
"""Runs below which reading the results is as quick as reading the index."""


class ResultIndex:
    """Reads results through the index of a runs folder."""

    def __init__(self, runs: Path, wanted: int) -> None:
        self.runs = runs
        self._path = runs / INDEX
        self._used = wanted >= WORTHWHILE
        self._known: dict[str, Any] = self._load() if self._used else {}
        self._new = 0

    def result(self, run_id: str) -> dict[str, Any] | None:
        """The verified result of a run, None without one; RunDirError where it is corrupted."""
        if not self._used:
            return read_result(self.runs / run_id)
        try:
            stat = os.stat(f"{self.runs}/{run_id}/{RESULT}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        mark = [stat.st_mtime_ns, stat.st_size, stat.st_ino]
        entry = self._known.get(run_id)
        if entry is not None and entry[0] == mark:
            known: dict[str, Any] = entry[1]
            return known
        result = read_result(self.runs / run_id)
        if result is not None:
            self._known[run_id] = [mark, result]
            self._new += 1
        return result

    def save(self) -> None:
        """Write the index back where enough of it is new."""
        if self._new < WORTHWHILE // 2:
            return
        try:
            write_atomic(self._path, json.dumps({"format": 1, "results": self._known}))
        except (OSError, RunDirError):
            # A read-only or full ledger can still be listed; the next listing is merely slower.
            return

    def _load(self) -> dict[str, Any]:
        # pydantic's parser reads the megabytes of a large index in half the time of json.
        from pydantic_core import from_json

        try:
            content = from_json(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        usable = isinstance(content, dict) and content.get("format") == 1
        return dict(content["results"]) if usable else {}
