"""A feed: runs that a launcher adds to a session while its workers train.

    {"run": run id, "config": "canonical RunConfig as JSON"}    one line a run, in the order of its adding
    {"closed": true}                                            the last line: no run follows

The launcher appends, any number of workers read; a line counts once its end is there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sweeps.errors import SweepError
from trainer.config import RunConfig
from trainer.rundir import io_errors


class FeedWriter:
    """Appends to a feed, which it makes where there is none.  RunDirError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        with io_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, run_id: str, config: RunConfig) -> None:
        """Add a run, which a waiting worker may begin at once."""
        assert not self.closed, "a run after the end of its feed"
        self._write({"run": run_id, "config": config.canonical_json()})

    def close(self) -> None:
        """Tell the workers that no run follows; they end once none is left."""
        if not self.closed:
            self._write({"closed": True})
            self.drop()

    def drop(self) -> None:
        """Let go of the file without a word to the workers, who were told otherwise to end."""
        if not self.closed:
            self.closed = True
            os.close(self._file)

    def _write(self, line: dict[str, object]) -> None:
        rest = memoryview(json.dumps(line).encode() + b"\n")
        with io_errors(self.path):
            while rest:
                rest = rest[os.write(self._file, rest) :]


class FeedReader:
    """Reads a feed as it grows.  One that is gone is closed: its launcher has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        self._offset = 0
        self._torn = b""

    def read(self) -> list[tuple[str, str]]:
        """What was added since the last time: (run id, canonical RunConfig as JSON).

        Raises SweepError where a line is not one of a feed.
        """
        if self.closed:
            return []
        try:
            if os.stat(self.path).st_size <= self._offset:
                return []
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            self.closed = True
            return []
        self._offset += len(chunk)
        *lines, self._torn = (self._torn + chunk).split(b"\n")
        return [pair for line in lines if (pair := self._parsed(line)) is not None]

    def _parsed(self, line: bytes) -> tuple[str, str] | None:
        try:
            value = json.loads(line)
            if value.get("closed") is True:
                self.closed = True
                return None
            run_id, config = value["run"], value["config"]
            if isinstance(run_id, str) and isinstance(config, str):
                return run_id, config
        except (ValueError, KeyError, AttributeError):
            pass
        shown = line[:60].decode(errors="replace")
        raise SweepError(f"{self.path}: no line of a feed: {shown!r}; start the search again")
