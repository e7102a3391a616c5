"""From priced runs to jobs: many short runs share a job, a long one has its own.  A pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.clusterfile import SlurmSettings
from sweeps.errors import SweepError
from sweeps.slurm import Limits

MARGIN_MEASURED, MARGIN_GUESSED = 1.3, 3.0
"""How much longer than predicted a job may take before it is requeued."""
START_SECONDS = 120.0
"""A node that wakes up, a cold file system, the first import of torch."""
GRAIN_MINUTES = (10, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1440, 2880, 4320, 7200, 10080)
"""Time requests are rounded up to these, so that long runs share few arrays."""


@dataclass(frozen=True)
class PackedRun:
    """What packing knows of a run."""

    id: str
    """Run id."""
    seconds: float
    """Predicted time."""
    measured: bool = True
    """Whether the prediction rests on measurements."""


@dataclass(frozen=True)
class Array:
    """Jobs that are submitted with one call."""

    minutes: int
    """Time limit of each."""
    at_once: int
    """How many of them may run at the same time."""
    jobs: tuple[tuple[str, ...], ...]
    """Run ids that each job may claim, in this order; jobs with the same ids share them."""


def pack(runs: Sequence[PackedRun], slots: int, settings: SlurmSettings, limits: Limits) -> list[Array]:
    """Pack runs into jobs.

    Args:
        runs: what is to be trained, the longest first.
        slots: runs at a time in one job.
        settings: what the user asks for.
        limits: what the site allows.

    Raises SweepError where the time that is asked for is more than the partition allows.
    """
    if limits.max_minutes is not None and settings.time > limits.max_minutes:
        raise SweepError(
            f"slurm.time = {settings.time} min is more than the partition allows "
            f"({limits.max_minutes} min); lower it: runs go on after the limit by themselves"
        )
    if not runs:
        return []
    longest = settings.job_minutes * 60
    short = [run for run in runs if _with_margin(run) <= longest]
    alone = [run for run in runs if _with_margin(run) > longest]
    room = min(limits.max_jobs, limits.max_submit if limits.max_submit is not None else limits.max_jobs)
    if room < 1:
        raise SweepError("Slurm takes no job from this user (MaxSubmitJobs is 0)")
    shared = _shared(short, slots, settings, min(settings.jobs, max(1, room - len(alone))))
    own = _own(alone, slots, settings, max(1, room - sum(len(array.jobs) for array in shared)))
    return _divided([*own, *shared], settings, limits)


def _with_margin(run: PackedRun) -> float:
    return run.seconds * (MARGIN_MEASURED if run.measured else MARGIN_GUESSED)


def _shared(runs: Sequence[PackedRun], slots: int, settings: SlurmSettings, most: int) -> list[Array]:
    """Jobs that all work on the same list until nothing of it is left."""
    if not runs:
        return []
    work = sum(run.seconds for run in runs) / slots
    count = min(most, math.ceil(len(runs) / slots), max(1, math.ceil(work / (settings.job_minutes * 60))))
    # Whoever comes last waits for the longest run, and jobs may start one after the other.
    longest = max(_with_margin(run) for run in runs)
    needed = sum(_with_margin(run) for run in runs) / slots / count + longest
    ids = tuple(run.id for run in runs)
    return [Array(_minutes(needed, settings), count, (ids,) * count)]


def _own(runs: Sequence[PackedRun], slots: int, settings: SlurmSettings, most: int) -> list[Array]:
    """A job for as many runs as it has slots, in arrays of equal time.

    Runs of one job take about the same time, so that no slot idles for long.  Where the site takes fewer
    jobs, some train several such groups one after the other.
    """
    together = [runs[first : first + slots] for first in range(0, len(runs), slots)]
    bundles = [together[first::most] for first in range(min(most, len(together)))]
    groups: dict[int, list[tuple[str, ...]]] = {}
    for bundle in bundles:
        seconds = sum(max(_with_margin(run) for run in group) for group in bundle)
        ids = tuple(run.id for group in bundle for run in group)
        groups.setdefault(_minutes(seconds, settings), []).append(ids)
    return [Array(minutes, len(jobs), tuple(jobs)) for minutes, jobs in sorted(groups.items(), reverse=True)]


def _minutes(seconds: float, settings: SlurmSettings) -> int:
    wanted = (seconds + START_SECONDS + settings.notice) / 60
    rounded = next((grain for grain in GRAIN_MINUTES if grain >= wanted), settings.time)
    return min(rounded, settings.time)


def _divided(arrays: Sequence[Array], settings: SlurmSettings, limits: Limits) -> list[Array]:
    """Arrays no longer than the site's, each counted from 0, with the jobs at once divided among them."""
    size = max(1, limits.max_array_size)
    pieces = [
        Array(array.minutes, 0, array.jobs[start : start + size])
        for array in arrays
        for start in range(0, len(array.jobs), size)
    ]
    at_once = shares([len(piece.jobs) for piece in pieces], settings.jobs)
    return [Array(piece.minutes, n, piece.jobs) for piece, n in zip(pieces, at_once, strict=True)]


def shares(lengths: Sequence[int], jobs: int) -> list[int]:
    """How many jobs of each array may run at once, so that together they are `jobs`, and at least one each.

    Args:
        lengths: jobs of each array; 0 where none is left.
        jobs: jobs at once, over all arrays.
    """
    total = sum(lengths)
    if total <= jobs:
        return list(lengths)
    found = [min(1, length) for length in lengths]
    while sum(found) < jobs:
        # Whoever is furthest below its fair part.
        place = max(range(len(found)), key=lambda index: lengths[index] * jobs / total - found[index])
        found[place] += 1
    return found
