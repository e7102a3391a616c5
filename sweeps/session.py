"""What a launcher hands to its workers: one file with the ordered runs and how to execute them.

It holds nothing that changes while workers run, so that a worker can be started again from it at any time
and place (another slot, another node).  Runs that are added meanwhile come by a file beside it, the feed.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeps.errors import SweepError
from sweeps.feed import FeedReader
from trainer.config import RunConfig
from trainer.rundir import io_errors, write_atomic

FAIR_SECONDS = 300.0
"""So much time is worth beginning a run for, even one that will be interrupted and resumed."""


@dataclass(frozen=True)
class Session:
    """One launch of a sweep."""

    session: str
    """Unique name of the launch."""
    sweep: str
    """Name of the sweep."""
    results: str
    """Results folder, absolute."""
    execution: dict[str, Any]
    """trainer.execution.Execution of each run."""
    max_attempts: int
    """Failed attempts after which a run is left alone."""
    stop_mark: int | None
    """State of the stop request when the session began; another one means: stop."""
    runs: list[tuple[str, str]]
    """(run id, canonical RunConfig as JSON), in the order in which they are claimed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Predicted seconds of runs, where a deadline needs them."""
    deadline: float | None = None
    """Time (epoch) after which no run is begun that would not end before it; None: no such time."""

    fair_seconds: float = FAIR_SECONDS
    """So much time before the deadline is worth beginning any run for."""
    feed: str | None = None
    """Absolute path of the file by which more runs come (sweeps.feed); None: no more come."""
    prunes: bool = False
    """Whether runs may be stopped early and are then over, as in a study; elsewhere they are resumed."""

    def fits(self, run_id: str) -> bool:
        """Whether a run may be begun now: it ends before the deadline, or has a fair part of its time."""
        if self.deadline is None:
            return True
        left = self.deadline - time.time()
        return left > min(self.seconds.get(run_id, 0.0), self.fair_seconds)

    def config(self, run_id: str) -> RunConfig:
        """The configuration of a run, which may have come by the feed."""
        if run_id not in self._configs:
            self.look()
        return RunConfig.model_validate_json(self._configs[run_id])

    def look(self) -> bool:
        """Read what has come by the feed; whether more may come after it."""
        reader = self._reader
        if reader is None:
            return False
        for run_id, config in reader.read():
            self._configs.setdefault(run_id, config)
        return not reader.closed

    @property
    def known(self) -> Mapping[str, str]:
        """Canonical RunConfigs by run id, in the order in which they are claimed, as of the last `look`."""
        return self._configs

    @property
    def resumable(self) -> tuple[str, ...]:
        """States of runs that a worker takes although they have not failed."""
        return ("new", "preempted") if self.prunes else ("new", "preempted", "pruned")

    @cached_property
    def _configs(self) -> dict[str, str]:
        return dict(self.runs)

    @cached_property
    def _reader(self) -> FeedReader | None:
        return FeedReader(Path(self.feed)) if self.feed is not None else None

    @property
    def stop_asked(self) -> bool:
        """Whether a stop was requested since the session began."""
        return stop_mark(Path(self.results), self.sweep) != self.stop_mark


def new_session(
    sweep: str,
    results: Path,
    execution: dict[str, Any],
    runs: Sequence[tuple[str, RunConfig]],
    max_attempts: int,
    seconds: Mapping[str, float] | None = None,
    fed: bool = False,
    prunes: bool = False,
) -> Session:
    """A session over runs in the given order.

    Args:
        sweep: name of the sweep.
        results: results folder.
        execution: trainer.execution.Execution of each run.
        runs: (run id, configuration), in the order in which they are claimed.
        max_attempts: failed attempts after which a run is left alone.
        seconds: predicted seconds of runs, where a deadline needs them.
        fed: whether runs are added while workers train (LocalQueue.add).
        prunes: whether runs may be pruned, and are then over.
    """
    name = uuid.uuid4().hex[:12]
    feed = _sessions(results.resolve()) / f"{sweep}-{name}.feed.jsonl" if fed else None
    return Session(
        session=name,
        sweep=sweep,
        results=str(results.resolve()),
        execution=execution,
        max_attempts=max_attempts,
        stop_mark=stop_mark(results, sweep),
        runs=[(run_id, config.canonical_json()) for run_id, config in runs],
        seconds=dict(seconds or {}),
        feed=str(feed) if feed is not None else None,
        prunes=prunes,
    )


def _sessions(results: Path) -> Path:
    return results / "sweeps" / "sessions"


def write_session(session: Session, path: Path | None = None) -> Path:
    """Write the session where its workers find it, by default below the results folder."""
    path = path or _sessions(Path(session.results)) / f"{session.sweep}-{session.session}.json"
    with io_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(session)))
    return path


def read_session(path: Path) -> Session:
    """Read a session; SweepError where it is gone or was written by another version."""
    try:
        content = json.loads(path.read_bytes())
        content["runs"] = [(run_id, config) for run_id, config in content["runs"]]
        return Session(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{path}: not a session of this version ({error}); start the sweep again") from None


OURS = (("sweeps", "configs"), ("sweeps", "configs", "search"))
"""The last folders of the files that come with the program."""


def write_record(
    results: Path,
    sweep: str,
    description: str,
    file: Path,
    run_ids: Sequence[str],
    study: Mapping[str, Any] | None = None,
) -> Path:
    """Record which runs a sweep is made of, in grid order, for everything downstream.

    `study` says what a study is, as JSON values: `kind`, `description` and whatever else describes it.
    Raises SweepError where another sweep file of the same name is recorded there.
    """
    path = results / "sweeps" / f"{sweep}.json"
    refuse_other_file(results, sweep, file)
    with io_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "sweep": sweep, "description": description, "file": str(file), "run_ids": list(run_ids),
    }  # fmt: skip
    if study is not None:
        record["study"] = dict(study)
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    return path


def refuse_other_file(results: Path, sweep: str, file: Path) -> None:
    """SweepError where another file of the same name is recorded there."""
    other = (read_record(results, sweep) or {}).get("file", "")
    if other and Path(other).is_file() and not os.path.samefile(other, file) and not _both_ours(file, other):
        raise SweepError(
            f"{file}: the name '{sweep}' is taken in {results} by {other}; rename this file, or choose "
            f"another folder with --results"
        )


def _both_ours(file: Path, other: str) -> bool:
    """Whether both are one sweep of the program, in two checkouts: `.../sweeps/configs/lowrank.toml`."""
    here, there = (Path(os.path.abspath(path)).parts for path in (file, other))
    return any(here[-n:] == there[-n:] and here[-n:-1] in OURS for n in (3, 4))


def read_record(results: Path, sweep: str) -> dict[str, Any] | None:
    """The record of a sweep that was run, or None; that of a study has the key `study`."""
    path = results / "sweeps" / f"{sweep}.json"
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record.get("study", {}), dict):
            raise TypeError("study")
        return {
            "description": "",
            "file": "",
            **record,
            "run_ids": [str(run_id) for run_id in record["run_ids"]],
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SweepError(f"{path}: not a sweep record; delete it, 'run' writes it again") from None


def recorded_sweeps(results: Path) -> list[str]:
    """Names of the sweeps that were run in this results folder."""
    return sorted(path.stem for path in (results / "sweeps").glob("*.json"))


def ask_to_stop(results: Path, sweep: str) -> None:
    """Ask all launchers and workers of a sweep, on any host, to stop gracefully."""
    path = _stop_file(results, sweep)
    with io_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, uuid.uuid4().hex + "\n")


def stop_mark(results: Path, sweep: str) -> int | None:
    """Identifies the last stop request; None where there was none."""
    try:
        return _stop_file(results, sweep).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _stop_file(results: Path, sweep: str) -> Path:
    return results / "sweeps" / f"{sweep}.stop"
