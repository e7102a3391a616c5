from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.clusterfile import SlurmSettings
from sweeps.errors import SweepError
from sweeps.packing import Array, PackedRun, pack, shares
from sweeps.slurm import Limits

ROOMY = Limits(1001, 10_000, None, None, False)


def runs(*seconds: float) -> list[PackedRun]:
    return [PackedRun(f"r{number}", one) for number, one in enumerate(seconds)]


def ids(arrays: list[Array]) -> set[str]:
    return {run for array in arrays for job in array.jobs for run in job}


def test_two_hundred_short_runs_share_eight_jobs() -> None:
    settings = SlurmSettings(jobs=8, job_minutes=1.0)
    (array,) = pack(runs(*[5.0] * 200), 2, settings, ROOMY)
    assert (len(array.jobs), array.at_once) == (8, 8)
    assert all(job == tuple(f"r{n}" for n in range(200)) for job in array.jobs)


def test_a_long_run_has_a_job_of_its_own_with_its_own_time() -> None:
    settings = SlurmSettings(jobs=4, job_minutes=30, time=600)
    long, shorter, shared = pack(runs(4 * 3600, 3500, 10, 10), 1, settings, ROOMY)
    assert (long.minutes, long.jobs) == (360, (("r0",),))
    assert (shorter.minutes, shorter.jobs) == (90, (("r1",),))
    assert shared.jobs == (("r2", "r3"),)


def test_long_runs_share_a_job_that_has_room_for_several_at_a_time() -> None:
    settings = SlurmSettings(jobs=4, job_minutes=1, time=600)
    arrays = pack(runs(4 * 3600, 4 * 3500, 3600, 3500, 3400), 2, settings, ROOMY)
    assert [(array.minutes, array.jobs) for array in arrays] == [
        (360, (("r0", "r1"),)), (90, (("r2", "r3"), ("r4",))),
    ]  # fmt: skip


def test_a_guess_asks_for_more_time_than_a_measurement() -> None:
    settings = SlurmSettings(time=6000)
    guessed, measured = (pack([PackedRun("r", 7200, known)], 1, settings, ROOMY) for known in (False, True))
    assert (guessed[0].minutes, measured[0].minutes) == (480, 180)


def test_no_job_asks_for_more_than_the_limit_since_runs_go_on_in_the_next() -> None:
    (array,) = pack(runs(1e6), 1, SlurmSettings(time=240), ROOMY)
    assert array.minutes == 240


def test_an_array_of_25_where_indices_end_at_11() -> None:
    settings = SlurmSettings(jobs=6, job_minutes=1)
    arrays = pack(runs(*[1000.0] * 25), 1, settings, Limits(11, 10_000, None, None, False))
    assert [len(array.jobs) for array in arrays] == [11, 11, 3]
    assert sum(array.at_once for array in arrays) == 6
    assert len(ids(arrays)) == 25


def test_fewer_jobs_than_long_runs_where_the_site_takes_no_more() -> None:
    settings = SlurmSettings(job_minutes=1, time=1000)
    arrays = pack(runs(*[1000.0] * 7), 1, settings, Limits(1001, 10_000, 3, None, False))
    assert [job for array in arrays for job in array.jobs] == [("r0", "r3", "r6"), ("r1", "r4"), ("r2", "r5")]


def test_a_time_that_the_partition_does_not_allow_is_refused() -> None:
    with pytest.raises(SweepError, match=r"slurm.time = 240 min is more than the partition allows"):
        pack(runs(1), 1, SlurmSettings(), Limits(1001, 10_000, None, 60, False))


def test_a_user_without_any_job_is_told() -> None:
    with pytest.raises(SweepError, match="MaxSubmitJobs is 0"):
        pack(runs(1), 1, SlurmSettings(), Limits(1001, 10_000, 0, None, False))


@given(
    st.lists(st.floats(0.1, 1e5), min_size=1, max_size=60),
    st.integers(1, 8), st.integers(1, 12), st.integers(1, 20), st.integers(1, 30), st.floats(0.5, 100),
)  # fmt: skip
def test_every_run_is_packed_within_all_limits(
    seconds: list[float], slots: int, jobs: int, array_size: int, most: int, job_minutes: float
) -> None:
    settings = SlurmSettings(jobs=jobs, job_minutes=job_minutes)
    arrays = pack(runs(*seconds), slots, settings, Limits(array_size, 10_000, most, None, False))
    assert ids(arrays) == {f"r{number}" for number in range(len(seconds))}
    # A shared job beside jobs of long runs: never more than one above what is left of the site's room.
    assert sum(len(array.jobs) for array in arrays) <= most + 1
    for array in arrays:
        assert 1 <= array.at_once <= len(array.jobs) <= array_size
        assert 0 < array.minutes <= settings.time
    assert sum(array.at_once for array in arrays) <= max(jobs, len(arrays))
    alone = [job for array in arrays for job in array.jobs if array.jobs.count(job) == 1]
    assert len({run for job in alone for run in job}) == sum(len(job) for job in alone)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 30))
def test_jobs_at_once_are_shared_out_whole(lengths: list[int], jobs: int) -> None:
    found = shares(lengths, jobs)
    assert all((0 < n <= length) or n == length == 0 for n, length in zip(found, lengths, strict=True))
    assert sum(found) == min(sum(lengths), max(jobs, sum(length > 0 for length in lengths)))
