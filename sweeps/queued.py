"""A sweep's jobs in Slurm: what the queue, accounting and the jobs' own diaries say, brought together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeps import slurm
from sweeps.errors import SweepError
from sweeps.session import read_session
from sweeps.submission import (
    LOGS,
    SESSION,
    THEN,
    Diary,
    Submission,
    prefix,
    read_diary,
    read_record,
    submissions,
)
from sweeps.text import plural

ENDED = "ended"
GONE = "gone"
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class QueuedJob:
    """One job of a submission."""

    submission: Submission
    array: int
    index: int
    job_id: str | None
    """Slurm's id; None where it was never queued."""
    state: str
    """Slurm's state; "ended" or "gone" where it has forgotten the job (after a last word, or without); "not
    known" where Slurm could not be asked."""
    reason: str
    """Why it waits, where it runs, or how it ended."""

    @property
    def live(self) -> bool:
        """Whether it runs or will run."""
        return self.state in slurm.LIVE

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs that it may train."""
        return self.submission.arrays[self.array].jobs[self.index]

    @property
    def log(self) -> Path | None:
        """What it printed."""
        if self.job_id is None:
            return None
        path = self.submission.path / LOGS / f"{self.job_id}_0_log.out"
        return path if path.is_file() else None


@dataclass(frozen=True)
class Queued:
    """All jobs of a sweep, and what could not be asked."""

    jobs: list[QueuedJob]
    """Of every submission, oldest first."""
    others: list[slurm.Job]
    """Live jobs of the sweep that train nothing: those that fit and draw afterwards."""
    problem: str | None
    """Why the queue could not be asked."""

    @property
    def live(self) -> list[QueuedJob]:
        """Jobs that run or will run."""
        return [job for job in self.jobs if job.live]

    @property
    def covered(self) -> set[str]:
        """Runs that some live job will train: one that was told to stop only ends what it is at."""
        live = {job.submission.name: job.submission for job in self.live}
        stopped = {name for name, one in live.items() if read_session(one.path / SESSION).stop_asked}
        return {run_id for job in self.live if job.submission.name not in stopped for run_id in job.run_ids}


def look_up(results: Path, sweep: str) -> Queued:
    """The jobs of a sweep; where there is no Slurm, or it does not answer, as their diaries say."""
    found = submissions(results, sweep)
    if not found:
        return Queued([], [], None)
    problem, queue = None, []
    try:
        queue = slurm.queue(prefix(results, sweep))
    except SweepError as error:
        problem = str(error)
    by_id = {job.id: job for job in queue}
    jobs = [job for one in found for job in _jobs(one, queue, by_id)]
    silent = [job for job in jobs if job.state == GONE and job.job_id is not None]
    if problem is not None:
        jobs = [replace(job, state=NOT_KNOWN, reason="") if job.state == GONE else job for job in jobs]
    elif silent:
        past = slurm.history(job.job_id.partition("_")[0] for job in silent if job.job_id is not None)
        jobs = [_with_history(job, past) for job in jobs]
    # By their whole names: sweeps of other results folders may be called the same.
    after = {f"{one.name}{THEN}" for one in found}
    return Queued(jobs, [job for job in queue if job.live and job.name in after], problem)


def _jobs(
    submission: Submission, queue: Sequence[slurm.Job], by_id: dict[str, slurm.Job]
) -> Iterator[QueuedJob]:
    numbers = _numbers(submission, queue)
    for place, array in enumerate(submission.arrays):
        number = numbers[place] if place < len(numbers) else None
        for index in range(len(array.jobs)):
            # A single job is an array of one as well.
            job_id = f"{number}_{index}" if number is not None else None
            seen = by_id.get(job_id) if job_id is not None else None
            diary = read_diary(submission.diary(place, index))
            if seen is not None and (seen.live or diary.outcome is None):
                yield QueuedJob(submission, place, index, job_id, seen.state, seen.reason)
            else:
                yield _from_diary(submission, place, index, job_id, diary)


def _numbers(submission: Submission, queue: Sequence[slurm.Job]) -> list[str]:
    """Slurm's number of each array: as noted, else (its launcher died in between) as found by name."""
    noted = list(read_record(submission).job_ids)
    named = {job.id.partition("_")[0] for job in queue if job.name == submission.name}
    # Numbers grow with time, and arrays are submitted in order.
    return noted + sorted(named - set(noted), key=int)


def _from_diary(
    submission: Submission, array: int, index: int, job_id: str | None, diary: Diary
) -> QueuedJob:
    if job_id is None:
        return QueuedJob(submission, array, index, None, ENDED, "never queued")
    if diary.outcome is None:
        gone = QueuedJob(submission, array, index, job_id, GONE, "ended without a word")
        # Taken out of the queue before it began: Slurm forgets such tasks at once.
        return (
            gone if diary.starts or gone.log is not None else replace(gone, state=ENDED, reason="never begun")
        )
    return QueuedJob(submission, array, index, job_id, ENDED, diary.message or diary.outcome)


def _with_history(job: QueuedJob, past: dict[str, slurm.Job]) -> QueuedJob:
    known = past.get(job.job_id or "")
    if job.state != GONE or known is None:
        return job
    if known.state in slurm.LIVE:
        # The queue knows better: accounts lag behind, and some jobs never get a last line in them.
        return replace(job, reason=f"not in the queue any more; {known.state} says accounting")
    return QueuedJob(job.submission, job.array, job.index, job.job_id, known.state, "says accounting")


def lines(queued: Queued) -> list[str]:
    """What `status` says: a line a submission for those with live jobs, and for the newest."""
    said = [f"Slurm could not be asked: {queued.problem}"] if queued.problem else []
    groups: dict[str, list[QueuedJob]] = {}
    for job in queued.jobs:
        groups.setdefault(job.submission.name, []).append(job)
    for name, jobs in groups.items():
        last = name == next(reversed(groups))
        if not last and not any(job.live for job in jobs):
            continue
        said.append(f"slurm {name}, {plural(len(jobs), 'job')}: {_counted(jobs)}")
        said += [
            f"  job {job.job_id}: {job.reason}" + (f"; see {job.log}" if job.log is not None else "")
            for job in jobs
            if job.state not in slurm.LIVE and _is_trouble(job)
        ][:5]
        record = read_record(jobs[0].submission)
        if record.message:
            said.append(f"  {record.message}")
        said += _follow_up(jobs[0].submission, record.then, queued.others)
    said += [f"slurm {job.name}, job {job.id}: {job.state} ({job.reason})" for job in queued.others]
    return said


def _follow_up(submission: Submission, job: str | None, others: Sequence[slurm.Job]) -> list[str]:
    """Where the job that has fitted and drawn left its output."""
    if job is None or any(one.id.partition("_")[0] == job for one in others):
        return []
    log = submission.path / LOGS / f"{job}_0_log.out"
    return [f"  fit and figures, job {job}: over; see {log}"] if log.is_file() else []


def _is_trouble(job: QueuedJob) -> bool:
    # "requeue" was its last word, and yet it is not in the queue.
    return job.state == GONE or job.reason.startswith(("give up", "requeue")) or job.state in TROUBLE


TROUBLE = frozenset("FAILED OUT_OF_MEMORY TIMEOUT NODE_FAIL BOOT_FAIL DEADLINE".split())


def _counted(jobs: Sequence[QueuedJob]) -> str:
    counts: dict[str, list[str]] = {}
    for job in jobs:
        counts.setdefault(job.state, []).append(job.reason)
    parts = []
    for state, reasons in counts.items():
        short = list(dict.fromkeys(reason for reason in reasons if reason))
        shown = f" ({', '.join(short[:3])}{', ...' if len(short) > 3 else ''})" if short else ""
        parts.append(f"{len(reasons)} {state}{shown if state != ENDED else ''}")
    return ", ".join(parts)


def as_json(queued: Queued) -> dict[str, Any]:
    """The jobs as plain values."""
    return {
        "problem": queued.problem,
        "jobs": [
            {
                "submission": job.submission.name, "job_id": job.job_id, "state": job.state,
                "reason": job.reason, "live": job.live, "runs": len(job.run_ids),
                "log": str(job.log) if job.log is not None else None,
            }
            for job in queued.jobs
        ],
    }  # fmt: skip
