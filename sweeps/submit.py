"""`run --executor slurm`: price, prepare, snapshot, pack, queue; returns as soon as everything is queued."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sweeps import slurm
from sweeps.background import mirror_of
from sweeps.cluster import Batch, array_batch, then_batch
from sweeps.clusterfile import SlurmSettings, slurm_settings
from sweeps.errors import SweepError
from sweeps.launch import EXIT_DONE, Ending, prepare_corpora
from sweeps.layout import Layout, plan_layout
from sweeps.ledger import MAX_ATTEMPTS, Ledger
from sweeps.overview import Overview
from sweeps.packing import Array, PackedRun, pack
from sweeps.plan import OPEN_ACTIONS, Plan, PlannedRun
from sweeps.price import Setting, run_bytes
from sweeps.queued import Queued, look_up
from sweeps.session import Session, new_session, stop_mark, write_record
from sweeps.source import Source, current_source, keep_source
from sweeps.submission import Record, Submission, new_submission, write_submission
from sweeps.submission import write_record as note
from sweeps.sweepfile import Sweep, SweepExecution
from sweeps.text import plural
from trainer.commandline import duration
from trainer.config import RunConfig
from trainer.execution import processor_name
from trainer.hints import hint

KNOWN_RESULTS = 200
SUBMIT_LIMIT = "job submit limit"
"""Words of Slurm's refusal of too many jobs."""
LAUNCH_FAILED = "launch failed requeued held"
"""Slurm's reason for a job that it could not start, and does not try again by itself."""


@dataclass(frozen=True)
class Cluster:
    """What jobs ask for, and how runs share one of them."""

    settings: SlurmSettings
    """What Slurm is asked for."""
    execution: SweepExecution
    """How the runs of one job share it."""
    slots: int
    """Runs at a time in one job."""
    threads: int
    """CPU threads of one run."""

    def fitting(self, configs: Sequence[RunConfig]) -> Cluster:
        """The same with as many runs at a time in one job as are predicted to fit its memory.

        What `slots` or `per_device` say counts, if they say anything.
        """
        settings, execution = self.settings, self.execution
        for config in configs:
            if config.batch_sequences % settings.processes:
                raise SweepError(
                    f"optim.batch_tokens = {config.optim.batch_tokens}: a batch of {config.batch_sequences} "
                    f"sequences does not divide over {settings.processes} processes (slurm.nodes x "
                    f"slurm.tasks); change one of them"
                )
        gpu = settings.has_gpu
        memory = settings.gpu_mem_gb if gpu else settings.mem_gb
        if (
            memory is None
            or execution.slots is not None
            or execution.per_device > 1
            or settings.processes > 1
        ):
            return self
        most = max((run_bytes(config, gpu, execution.micro_batch) for config in configs), default=1)
        room = max(1, int(0.9 * memory * 1e9 / most))
        slots = settings.gpu_count * room if gpu else room
        slots = min(slots, settings.cpus if gpu else self.slots)
        slots = max(slots, settings.gpu_count) if gpu else slots
        per_device = -(-slots // settings.gpu_count) if gpu else 1
        shared = execution.model_copy(update={"slots": slots, "per_device": per_device})
        # On a CPU threads can change the last digits, so that memory must not decide about them.
        threads = (execution.threads or max(1, settings.cpus // slots)) if gpu else self.threads
        return replace(
            self, execution=shared.model_copy(update={"threads": threads}), slots=slots, threads=threads
        )

    def layout(self, ledger: Ledger) -> Layout:
        """All jobs at once, for pricing."""
        gpu = self.settings.has_gpu
        device = self.settings.device or _known_device(ledger, gpu)
        setting = Setting(device, self.threads, gpu=gpu, per_device=self.execution.per_device)
        one = self.execution.of_one_run(self.threads, "cuda" if gpu else "cpu")
        return Layout(({},) * (self.slots * self.settings.jobs), one, setting)


def cluster_for(sweep: Sweep, execution: SweepExecution, name: str | None) -> Cluster:
    """Settings of a sweep on a cluster; SweepError where they contradict each other."""
    settings = slurm_settings(sweep.slurm, name or sweep.cluster, sweep.source)
    gpu = settings.has_gpu
    if execution.device.startswith("cuda") and not gpu:
        raise SweepError(
            f"{sweep.source}: execution.device = '{execution.device}', but jobs ask for no GPU; "
            f"set slurm.gpus, or drop it"
        )
    if execution.devices is not None:
        raise SweepError(f"{sweep.source}: execution.devices chooses among this machine's GPUs; drop it")
    chosen = execution.model_copy(update={"device": "cuda" if gpu else "cpu"})
    if settings.processes > 1:
        if (execution.slots or 1) > 1 or execution.per_device > 1:
            raise SweepError(
                f"{sweep.source}: slots and per_device are for runs of one process; a run here has "
                f"{settings.processes} (slurm.nodes x slurm.tasks)"
            )
        return Cluster(settings, chosen, 1, execution.threads or settings.cpus)
    if gpu:
        slots = execution.slots or settings.gpu_count * execution.per_device
        return Cluster(settings, chosen, slots, execution.threads or max(1, settings.cpus // slots))
    layout = plan_layout(chosen, settings.cpus)
    return Cluster(settings, chosen, layout.slots, layout.setting.threads)


@dataclass(frozen=True)
class Known:
    """What has to be known before anything is queued; a study asks for part of it once."""

    queued: Queued
    """The sweep's jobs."""
    limits: slurm.Limits
    """Of the site."""
    source: Source
    """The code that jobs run.  All trials of a study run the same, since they are compared."""
    stop_mark: int | None
    """State of the stop request: a later one concerns these jobs as well."""
    study: Mapping[str, Any] | None = None
    """What the record says of a study, of which the runs are trials."""
    prunes: bool = False
    """Whether runs may be pruned, and are then over."""

    @classmethod
    def now(cls, results: Path, sweep: str, settings: SlurmSettings) -> Known:
        """All of it for a sweep; SweepError where its partition takes no jobs."""
        mark, limits = stop_mark(results, sweep), limits_of(settings)
        return cls(look_up(results, sweep), limits, current_source(results), mark)


def _known_device(ledger: Ledger, gpu: bool) -> str:
    """The device of most results: jobs run where earlier ones did, which need not be like this machine."""
    found: Counter[str] = Counter()
    for result in ledger.other_results((), KNOWN_RESULTS):
        device = str(result.get("device"))
        if ("nvidia" in device.lower()) == gpu:
            found[device] += 1
    if found:
        return found.most_common(1)[0][0]
    return "a GPU (no result from one yet)" if gpu else processor_name()


def submit(
    overview: Overview,
    plan: Plan,
    cluster: Cluster,
    mirror: bool = True,
    then: bool = False,
    dry_run: bool = False,
    known: Known | None = None,
) -> Ending:
    """Queue the runs of a plan that no live job covers.

    Args:
        overview: the sweep and its ledger.
        plan: priced.
        cluster: what jobs ask for.
        mirror: whether jobs mirror their runs where the store is a server.
        then: whether a fit and figures are queued behind them.
        dry_run: print the scripts and queue nothing.
        known: what was asked of Slurm already.

    Raises SweepError or TrainerError where the user has to mend something first.
    """
    if overview.problems:
        raise SweepError(overview.problems[0])
    began = time.monotonic()
    sweep, results = overview.sweep, overview.ledger.results
    settings = cluster.settings
    known = known or Known.now(results, sweep.name, settings)
    queued = known.queued
    if queued.problem is not None:
        raise SweepError(f"the queue cannot be read, and nothing is queued twice: {queued.problem}")
    covered = queued.covered
    if not dry_run and (released := release_held(queued)) is not None:
        print(released)
    # What runs outside a job that goes on is about to be given up: it was cancelled, or its node died.
    wanted = [run for run in plan.runs if run.action in (*OPEN_ACTIONS, "running")]
    todo = sorted((run for run in wanted if run.id not in covered), key=lambda run: -run.seconds)
    # Where a fit is queued already, it waits for everything that was queued with it or before.
    then = then and (bool(todo) or not queued.others)
    if not (todo or then):
        return Ending(EXIT_DONE, _nothing(plan, queued))
    session = _session(overview, todo, known)

    def prepared(arrays: Sequence[Array]) -> Submission:
        return new_submission(
            session, sweep.argument, settings, cluster.execution.model_dump(mode="json"),
            asdict(mirror_of(sweep)) if mirror else {}, asdict(known.source), arrays,
        )  # fmt: skip

    packed = [PackedRun(run.id, run.seconds, run.measured) for run in todo]
    submission, batches = _packed(packed, cluster, _left(known.limits, then), prepared)
    follow = _Follow(_steps(mirror), _live_numbers(queued), known.limits.max_minutes) if then else None
    if dry_run:
        texts = [batch.text for batch in batches]
        texts += [follow.batch(submission, ["ARRAYS"] if batches else []).text] if follow else []
        return Ending(EXIT_DONE, "\n".join([*texts, "nothing was queued"]))
    if follow is not None:
        follow.batch(submission, []).test()
    write_record(results, sweep.name, sweep.description, sweep.path, overview.ids, known.study)
    prepare_corpora([session.config(run.id) for run in todo], results)
    keep_source(known.source)
    write_submission(submission, session)
    record = _queue(submission, batches, follow)
    if record.state == "refused":
        raise SweepError(_refused(record, submission.arrays))
    if not todo:
        return Ending(EXIT_DONE, f"{_nothing(plan, queued)}\nthen: fit and figures in job {record.then}")
    seconds = time.monotonic() - began
    return Ending(EXIT_DONE, _said(submission, record, len(todo), known.source, seconds, results))


def _session(overview: Overview, runs: Sequence[PlannedRun], known: Known) -> Session:
    config_of = dict(zip(overview.ids, overview.configs, strict=True))
    pairs = [(run.id, config_of[run.id]) for run in runs]
    seconds = {run.id: run.seconds for run in runs}
    name, results = overview.sweep.name, overview.ledger.results
    session = new_session(name, results, {}, pairs, MAX_ATTEMPTS, seconds, prunes=known.prunes)
    return replace(session, stop_mark=known.stop_mark)


def _packed(
    runs: Sequence[PackedRun],
    cluster: Cluster,
    limits: slurm.Limits,
    prepared: Callable[[Sequence[Array]], Submission],
) -> tuple[Submission, list[Batch]]:
    """A submission of jobs that Slurm would take, and their scripts: fewer jobs where it refuses many."""
    while True:
        arrays = pack(runs, cluster.slots, cluster.settings, limits)
        submission = prepared(arrays)
        batches = [array_batch(submission, number, array) for number, array in enumerate(arrays)]
        if not batches:
            return submission, batches
        try:
            batches[0].test()
            return submission, batches
        except SweepError as error:
            # Limits of accounts and of groups of users are nowhere to be read.
            jobs = sum(len(array.jobs) for array in arrays)
            if SUBMIT_LIMIT not in str(error) or jobs == 1:
                raise
            limits = replace(limits, max_submit=jobs // 2)


@dataclass(frozen=True)
class _Follow:
    """The job behind the runs."""

    steps: str
    """What it does."""
    others: tuple[str, ...]
    """Jobs of earlier submissions that it waits for as well."""
    minutes: int | None
    """Longest job that the partition takes."""

    def batch(self, submission: Submission, after: Sequence[str]) -> Batch:
        """Its script."""
        return then_batch(submission, self.steps, [*self.others, *after], self.minutes)


def _live_numbers(queued: Queued) -> tuple[str, ...]:
    """Slurm's numbers of the arrays of which something runs or will run."""
    numbers = {job.job_id.partition("_")[0] for job in queued.live if job.job_id is not None}
    return tuple(sorted(numbers, key=int))


def _left(limits: slurm.Limits, then: bool) -> slurm.Limits:
    """The limits, less the jobs that this user has queued already and the one behind the arrays."""
    if limits.max_submit is None:
        return limits
    queued = slurm.queued_jobs()
    left = limits.max_submit - queued - then
    if left < 1:
        raise SweepError(
            f"Slurm takes {plural(limits.max_submit, 'job')} from this user (MaxSubmitJobs) and has "
            f"{queued}; run the same command again once some have ended"
        )
    return replace(limits, max_submit=left)


def _queue(submission: Submission, batches: Sequence[Batch], follow: _Follow | None) -> Record:
    """Submit array after array, noting each at once; the first refusal ends it."""
    record = Record(time=time.time())
    try:
        for batch in batches:
            record = replace(record, job_ids=(*record.job_ids, batch.submit()))
            note(submission, record)
        record = replace(record, state="submitted")
        if follow is not None:
            record = replace(record, then=follow.batch(submission, record.job_ids).submit())
    except SweepError as error:
        record = replace(record, state="refused", message=str(error))
    note(submission, record)
    return record


def _refused(record: Record, arrays: Sequence[Array]) -> str:
    if not record.job_ids:
        return f"{record.message}; nothing was queued"
    jobs = sum(len(array.jobs) for array in arrays[: len(record.job_ids)])
    if len(record.job_ids) == len(arrays):
        return (
            f"{record.message}; all {plural(jobs, 'job')} are queued, only the fit behind them is not; "
            f"the same command queues it later"
        )
    total = sum(len(array.jobs) for array in arrays)
    return (
        f"{record.message}; {jobs} of {total} jobs are queued ({', '.join(record.job_ids)}) and go on; "
        f"the same command queues the rest later"
    )


def _said(
    submission: Submission, record: Record, runs: int, source: Source, seconds: float, results: Path
) -> str:
    jobs = sum(len(array.jobs) for array in submission.arrays)
    argument = submission.argument
    lines = [
        f"queued {plural(runs, 'run')} in {plural(jobs, 'job')} "
        f"({plural(len(submission.arrays), 'array')}: {', '.join(record.job_ids)}) in {duration(seconds)}",
        f"the jobs run {source.label}",
        *([f"then: fit and figures in job {record.then}"] if record.then else []),
        f"follow: {hint(['status', argument], results)}   {hint(['logs', '-f', argument], results)}",
        f"stop:   {hint(['cancel', argument], results)}   (the same command as now goes on)",
    ]
    return "\n".join(lines)


def limits_of(settings: SlurmSettings) -> slurm.Limits:
    """What the site allows in the partition that is asked for; SweepError where it is unknown or down."""
    return slurm.read_limits(settings.partition, settings.account, settings.qos)


def release_held(queued: Queued) -> str | None:
    """Free jobs that Slurm holds because a node could not start them, and say so; None without any.

    Those that people hold stay held.
    """
    held = [job.job_id for job in queued.live if job.job_id is not None and LAUNCH_FAILED in job.reason]
    if not held:
        return None
    slurm.release(held)
    return f"released {plural(len(held), 'job')} that Slurm held after a node failed to start them"


def _nothing(plan: Plan, queued: Queued) -> str:
    actions = ", ".join(f"{n} {action}" for action, n in plan.totals.actions.items())
    jobs = f"; {plural(len(queued.live), 'job')} in the queue already" if queued.live else ""
    return f"nothing to queue: {actions}{jobs}"


def _steps(mirror: bool) -> str:
    # The mirror last, since it takes the report along.
    return "fit figures report sync" if mirror else "fit figures report"
