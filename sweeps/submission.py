"""One submission to Slurm, as a folder: what its jobs may train and how, and what became of each job.

    sweeps/submissions/NAME/
      session.json    sweeps.session.Session: all its runs; never changed
      arrays.json     settings, arrays of jobs and their run ids; never changed
      record.json     what was queued under which job ids
      jobs/A-I.json   diary of job I of array A: starts, progress, how it ended
      logs/           what jobs and workers print

NAME is the jobs' name in Slurm as well: it is written before the first job is submitted, so that a job is
found by it even where a launcher died before it could note the job's id.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sweeps.clusterfile import SlurmSettings
from sweeps.errors import SweepError
from sweeps.packing import Array
from sweeps.session import Session, write_session
from trainer.errors import RunDirError
from trainer.rundir import io_errors, read_json, write_atomic, write_json

SESSION, ARRAYS, RECORD, JOBS, LOGS = "session.json", "arrays.json", "record.json", "jobs", "logs"
EXIT_REQUEUE = 75
"""Tells the batch script to have its job requeued: it can, also where Python lives in a container."""
THEN = ".then"
"""Ends the name of the job that fits and draws afterwards."""


@dataclass(frozen=True)
class Submission:
    """What was written before anything was queued."""

    path: Path
    """Its folder."""
    sweep: str
    """Name of the sweep."""
    argument: str
    """How commands take the sweep."""
    settings: SlurmSettings
    """What Slurm is asked for."""
    execution: dict[str, Any]
    """sweeps.sweepfile.SweepExecution of each job."""
    mirror: dict[str, Any]
    """sweeps.background.Mirrored of the sweep; empty: no mirror."""
    source: dict[str, Any]
    """sweeps.source.Source that the jobs run."""
    arrays: tuple[Array, ...]
    """Jobs and their runs."""

    @property
    def name(self) -> str:
        """Name of the folder and of its jobs."""
        return self.path.name

    @property
    def results(self) -> Path:
        """Results folder."""
        return self.path.parent.parent.parent

    @property
    def run_ids(self) -> list[str]:
        """All runs, once each."""
        return list(dict.fromkeys(run for array in self.arrays for job in array.jobs for run in job))

    def diary(self, array: int, index: int) -> Path:
        """The diary of one job."""
        return self.path / JOBS / f"{array}-{index}.json"


@dataclass(frozen=True)
class Record:
    """What is known of a submission once it was attempted."""

    state: str = "submitting"
    """submitting, submitted, or refused (then some arrays may be queued)."""
    job_ids: tuple[str, ...] = ()
    """Number of each array that was queued, in order."""
    then: str | None = None
    """Number of the job that fits and draws afterwards."""
    message: str | None = None
    """Why it was refused."""
    time: float = 0.0
    """When (epoch)."""


def folder(results: Path) -> Path:
    """Where submissions lie."""
    return results.resolve() / "sweeps" / "submissions"


def prefix(results: Path, sweep: str) -> str:
    """What the names of a sweep's jobs begin with."""
    return f"{sweep}."


def new_submission(
    session: Session,
    argument: str,
    settings: SlurmSettings,
    execution: dict[str, Any],
    mirror: dict[str, Any],
    source: dict[str, Any],
    arrays: Sequence[Array],
) -> Submission:
    """A new submission, not yet written."""
    results = Path(session.results).resolve()
    stamp = time.strftime("%y%m%d-%H%M%S")
    path = folder(results) / f"{prefix(results, session.sweep)}{stamp}-{uuid.uuid4().hex[:4]}"
    return Submission(path, session.sweep, argument, settings, execution, mirror, source, tuple(arrays))


def write_submission(submission: Submission, session: Session) -> None:
    """Write all that jobs read.  RunDirError where the results folder cannot be written."""
    with io_errors(submission.path):
        for name in (JOBS, LOGS):
            (submission.path / name).mkdir(parents=True)
    write_session(replace(session, session=submission.name), submission.path / SESSION)
    facts = {
        "sweep": submission.sweep, "argument": submission.argument,
        "settings": submission.settings.model_dump(mode="json"), "execution": submission.execution,
        "mirror": submission.mirror, "source": submission.source,
        "arrays": [asdict(array) for array in submission.arrays],
    }  # fmt: skip
    write_atomic(submission.path / ARRAYS, json.dumps(facts) + "\n")
    write_record(submission, Record(time=time.time()))


def read_submission(path: Path) -> Submission:
    """Read a submission; SweepError where it is no folder of this version."""
    try:
        facts = json.loads((path / ARRAYS).read_bytes())
        facts["settings"] = SlurmSettings.model_validate(facts["settings"])
        facts["arrays"] = tuple(
            Array(array["minutes"], array["at_once"], tuple(tuple(job) for job in array["jobs"]))
            for array in facts["arrays"]
        )
        return Submission(path=path, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{path}: not a submission of this version ({error})") from None


def write_record(submission: Submission, record: Record) -> None:
    """Note what was queued."""
    write_json(submission.path / RECORD, asdict(record))


def read_record(submission: Submission) -> Record:
    """What was queued; an unreadable note counts as an attempt under way."""
    try:
        facts = read_json(submission.path / RECORD) or {}
        return Record(**{**facts, "job_ids": tuple(facts.get("job_ids", ()))})
    except (RunDirError, TypeError):
        return Record()


def submissions(results: Path, sweep: str) -> list[Submission]:
    """The submissions of a sweep, oldest first; folders that cannot be read are left out."""
    found = []
    for path in sorted(folder(results).glob(f"{prefix(results, sweep)}*")):
        try:
            found.append(read_submission(path))
        except SweepError:
            # Written by another version, or cut off before anything was queued.
            continue
    return [one for one in found if one.sweep == sweep]


@dataclass(frozen=True)
class Diary:
    """What one job did, over all its starts."""

    starts: int = 0
    """Times that it was started."""
    idle: int = 0
    """Starts in a row, the last ones, before which no step had been gained since the start before."""
    progress: int = 0
    """Steps of its runs at the last start."""
    restart: int = -1
    """Slurm's count of restarts at the last start."""
    job: str | None = None
    """Slurm's id."""
    host: str | None = None
    """Where it last ran."""
    outcome: str | None = None
    """How the last start ended (see sweeps.job); None: it runs, or it died without a word."""
    message: str | None = None
    """Why, for people."""
    started: float = 0.0
    """When the last start began (epoch)."""
    updated: float = 0.0
    """When this was written (epoch)."""


def read_diary(path: Path) -> Diary:
    """A job's diary; an empty one where there is none."""
    try:
        facts: Mapping[str, Any] = read_json(path) or {}
        return Diary(**facts)
    except (RunDirError, TypeError):
        return Diary()


def write_diary(path: Path, diary: Diary) -> None:
    """Replace a job's diary."""
    write_json(path, asdict(replace(diary, updated=time.time())))
