"""The log of a study: one line for each trial that was asked for, appended before its run is begun.

With the run folders it is all that a search rests on: whatever else was lost (Optuna's storage, the owner) is
made again from the two.  A last line that its writer did not live to end is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from sweeps.errors import SweepError
from trainer.config import RunConfig
from trainer.rundir import io_errors

LOG = "trials.jsonl"


def folder_of(results: Path, study: str) -> Path:
    """Where a study keeps its log, its storage and its tables."""
    return results / "searches" / study


@dataclass(frozen=True)
class Asked:
    """One trial."""

    search: str
    """Name of the cell's search (sweeps.search.cells.Cell.name)."""
    number: int
    """In that search, from 0."""
    run: str
    """Run id."""
    point: Mapping[str, float]
    """What is tried: key of the space -> value."""
    config: str
    """Canonical RunConfig as JSON."""
    repeat: bool
    """Whether the same run had been proposed in this search before."""
    warm: bool
    """Whether the run was done already and nobody proposed it: it teaches the sampler."""
    known: bool
    """Whether its result was there when it was proposed."""
    time: float
    """When (epoch)."""

    @property
    def run_config(self) -> RunConfig:
        """Its configuration; SweepError where this version of the program has no such run."""
        try:
            return RunConfig.model_validate_json(self.config)
        except ValidationError:
            raise SweepError(
                f"{LOG}: trial {self.number} of {self.search} is a run that this version of the program does "
                f"not know; move the file aside, and the search goes on from the runs that are done"
            ) from None


class TrialLog:
    """The log of one study, for its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        with io_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)
            self._file.seek(0)
            content = self._file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                self._file.truncate(end)
        self.lines = [_parsed(line, self.path, n) for n, line in enumerate(content[:end].splitlines(), 1)]

    def add(self, asked: Asked) -> None:
        """Append a trial."""
        self.lines.append(asked)
        rest = memoryview(json.dumps(asdict(asked)).encode() + b"\n")
        with io_errors(self.path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Make sure that it is on the disk."""
        with io_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()


class SeenLog(TrialLog):
    """A log for those who only look: nothing is written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.lines = read_log(folder)

    def add(self, asked: Asked) -> None:
        """Only remember a trial."""
        self.lines.append(asked)

    def close(self) -> None:
        """Nothing."""


def read_log(folder: Path) -> list[Asked]:
    """The trials of a study, for those who only read; a line that is being written is not there yet."""
    try:
        content = (folder / LOG).read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    return [_parsed(line, folder / LOG, n) for n, line in enumerate(whole.splitlines(), 1)]


def _parsed(line: bytes, path: Path, n: int) -> Asked:
    try:
        asked = Asked(**json.loads(line))
        good = all(isinstance(text, str) for text in (asked.search, asked.run, asked.config))
        if not good or not isinstance(asked.point, dict) or not isinstance(asked.number, int):
            raise ValueError
        return asked
    except (ValueError, TypeError):
        raise SweepError(
            f"{path}, line {n}: no line of a study's log; move the file aside, and the search goes on "
            f"from the "
            f"runs that are done"
        ) from None
