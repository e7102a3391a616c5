"""A study's runs on Slurm: trials are queued as jobs, which go on whatever becomes of the owner."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeps.errors import SweepError
from sweeps.layout import Layout
from sweeps.lease import read_lease
from sweeps.ledger import MAX_ATTEMPTS, Ledger, RunState
from sweeps.overview import OTHER_RESULTS, Overview
from sweeps.plan import OPEN_ACTIONS, Plan, make_plan
from sweeps.price import Prices
from sweeps.prune import ask_to_prune
from sweeps.queued import Queued, QueuedJob, look_up
from sweeps.search.owner import Owner
from sweeps.search.studyfile import Study
from sweeps.search.view import StudyView
from sweeps.session import stop_mark
from sweeps.slurm import Limits
from sweeps.source import Source, current_source
from sweeps.submit import Cluster, Known, limits_of, release_held, submit
from trainer.config import RunConfig

LOOK_SECONDS = 2.0
"""How often the run folders are looked at."""
REST_SECONDS = 0.2
QUEUE_SECONDS = 30.0
"""How often Slurm is asked whether jobs were lost, beside the moments at which something is queued."""
GATHER_SECONDS = 10.0
"""So long a trial waits for others that fill its job's slots."""
SHORTEST_MINUTES = 1e-3


class SlurmFlight:
    """Trains the runs of trials in jobs of Slurm.

    No more jobs are at work than `slurm.jobs`, over all rounds of the study, and each has as many trials as
    it has slots: what is in flight is meant to be trained now, so nothing is packed behind something else.

    Args:
        study: the study.
        results: results folder.
        cluster: what jobs ask for.
        view: what people see.
        record: what the sweep record says of the study.
        rounds: called now and then, to write what is known.
    """

    def __init__(
        self,
        study: Study,
        results: Path,
        cluster: Cluster,
        view: StudyView,
        record: Mapping[str, Any],
        rounds: Callable[[], None],
    ) -> None:
        spread = cluster.settings.model_copy(update={"job_minutes": SHORTEST_MINUTES})
        self.study, self.ledger, self.cluster = study, Ledger(results), replace(cluster, settings=spread)
        self.view, self.record, self.rounds = view, record, rounds
        self._waiting: dict[str, float] = {}
        """Runs that no job has, and since when."""
        self._jobs: list[tuple[str, ...]] = []
        """Runs of each live job, as of the last look."""
        self._marks: dict[str, int] = {}
        """Checkpoint of each run when this owner queued it."""
        self._lost: dict[str, int] = {}
        """Jobs that ended before they began a run."""
        self._looked = self._failed = -math.inf
        self._trouble: str | None = None
        self._works = False
        self._interrupts = 0
        self._stop_mark = stop_mark(results, study.name)

    def run(self, owner: Owner) -> str:
        """Work until the study is over ("finished"), or is "cancelled", or the owner "interrupted".

        Raises SweepError where Slurm takes no job at first, and where jobs end before they train anything.
        """
        with self._signals():
            while True:
                owner.step(hurry=True)
                if owner.over:
                    return "finished"
                if stop_mark(self.ledger.results, self.study.name) != self._stop_mark:
                    return "cancelled"
                if self._interrupts:
                    return "interrupted"
                if self._is_due(owner):
                    self._look(owner)
                self._tell_progress(owner)
                self.rounds()
                self._rest()

    def add(self, run_id: str, config: RunConfig) -> None:
        """Have a run trained: queued with the others of its round."""
        self._waiting[run_id] = time.monotonic()

    def given_up(self, run_id: str, state: RunState) -> bool:
        """Whether a failed run will not be tried again."""
        return state.failures >= MAX_ATTEMPTS

    def prune(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Ask that a run be stopped early, if one of the study's jobs trains it."""
        folder = self.ledger.run_dir(run_id)
        lease = read_lease(folder)
        # A start of a job is SUBMISSION.JOB.START, and a submission is STUDY.TIME (sweeps.job, .submission).
        if lease and str(lease.get("session")).rsplit(".", 3)[0] == self.study.name:
            ask_to_prune(folder, str(lease["owner"]), facts)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let what is at hand be ended first: a job that is being queued, a trial that is being told."""

        def note(number: int, frame: Any) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

        before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _rest(self) -> None:
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until and not self._interrupts:
            time.sleep(REST_SECONDS)

    @cached_property
    def _limits(self) -> Limits:
        return limits_of(self.cluster.settings)

    @cached_property
    def _source(self) -> Source:
        return current_source(self.ledger.results)

    @cached_property
    def _layout(self) -> Layout:
        return self.cluster.layout(self.ledger)

    @cached_property
    def _others(self) -> list[dict[str, Any]]:
        """Results of others, which say how fast runs are until the study has its own."""
        return list(self.ledger.other_results((), OTHER_RESULTS))

    def _room(self, owner: Owner) -> int:
        """Jobs that may be queued: one whose runs are all over is about to end."""
        return self.cluster.settings.jobs - sum(any(r in owner.flying for r in ids) for ids in self._jobs)

    def _is_due(self, owner: Owner) -> bool:
        """Whether it is time to ask Slurm."""
        now = time.monotonic()
        if now - self._failed < QUEUE_SECONDS:
            return False
        if now - self._looked >= QUEUE_SECONDS:
            return True
        if not self._waiting or self._room(owner) <= 0:
            return False
        whole = len(self._waiting) >= min(self.cluster.slots, len(owner.flying))
        return whole or now - min(self._waiting.values()) >= GATHER_SECONDS

    def _look(self, owner: Owner) -> None:
        """Queue what no live job covers; where Slurm does not answer, say so and try again later."""
        self._looked = time.monotonic()
        uncovered: dict[str, RunState] = {}
        try:
            queued = look_up(self.ledger.results, self.study.name)
            if queued.problem is not None:
                raise SweepError(f"the queue cannot be read: {queued.problem}")
            uncovered = self._uncovered(owner, queued)
            lost = self._count_lost(queued, uncovered)
            if lost is None:
                self._queue(owner, queued, uncovered)
            self._works, self._trouble = True, None
        except SweepError as error:
            if not (self._works or self._interrupts):
                raise
            self._failed, lost = time.monotonic(), None
            if str(error) != self._trouble:
                self._trouble = str(error)
                self.view.say(f"{error}; jobs that are queued go on, and this is tried again")
        if lost is not None:
            raise SweepError(lost)

    def _uncovered(self, owner: Owner, queued: Queued) -> dict[str, RunState]:
        """The states of runs under way that no live job has and nobody else trains."""
        if (line := release_held(queued)) is not None:
            self.view.say(line)
        self._jobs = [job.run_ids for job in queued.live]
        covered = queued.covered
        states = {run_id: self.ledger.state(run_id) for run_id in owner.flying if run_id not in covered}
        # Whoever has its lease may be a job that was told to stop, or another launcher: that is seen later.
        over = ("running", "done", "diverged", "corrupt", *(("pruned",) if owner.rungs else ()))
        states = {run_id: state for run_id, state in states.items() if state.state not in over}
        now = time.monotonic()
        self._waiting = {run_id: self._waiting.get(run_id, now) for run_id in states}
        return states

    def _count_lost(self, queued: Queued, uncovered: Mapping[str, RunState]) -> str | None:
        """Count what jobs that died cost their runs, or else they were queued for ever.

        Returns why the search cannot go on: jobs end before they begin anything, which no other trial mends.
        """
        ended = {run_id: job for job in queued.jobs if not job.live for run_id in job.run_ids}
        for run_id, state in uncovered.items():
            before, job = self._marks.pop(run_id, None), ended.get(run_id)
            if before is None or job is None or _is_harmless(job) or (state.checkpoint or 0) > before:
                continue
            line = f"job {job.job_id} ended ({job.state}, {job.reason}) and no step was gained"
            if state.state != "new":
                self.ledger.count_failure(run_id, line, job.submission.name)
                self.view.say(f"{run_id}: {line}")
                continue
            self._lost[run_id] = self._lost.get(run_id, 0) + 1
            if self._lost[run_id] >= MAX_ATTEMPTS:
                log = job.log or job.submission.path
                return f"{run_id}: {line}, {self._lost[run_id]} times; see {log}, mend it and search again"
        return None

    def _queue(self, owner: Owner, queued: Queued, uncovered: Mapping[str, RunState]) -> None:
        states = dict(list(uncovered.items())[: max(0, self._room(owner)) * self.cluster.slots])
        trials = [trial for one in owner.searched for trial in one.trials if trial.counts]
        configs = {trial.asked.run: trial.config for trial in trials}
        results = [t.state.result for t in trials if t.state is not None and t.state.result is not None]
        prices = Prices([*results, *self._others], self._layout.setting)
        plan = make_plan(
            [configs[run_id] for run_id in states], list(states), states, prices, self._layout.slots
        )
        todo = [run.id for run in plan.runs if run.action in OPEN_ACTIONS]
        if not todo:
            return
        self._submit(owner, queued, plan, configs, {**states})
        for run_id in todo:
            self._waiting.pop(run_id, None)
            self._marks[run_id] = states[run_id].checkpoint or 0
        slots = self.cluster.slots
        self._jobs += [tuple(todo[first : first + slots]) for first in range(0, len(todo), slots)]

    def _submit(
        self,
        owner: Owner,
        queued: Queued,
        plan: Plan,
        configs: Mapping[str, RunConfig],
        states: dict[str, RunState],
    ) -> None:
        prunes = bool(owner.rungs)
        known = Known(queued, self._limits, self._source, self._stop_mark, self.record, prunes)
        overview = Overview(self.study, list(configs.values()), list(configs), [], self.ledger, states)
        # The owner mirrors the study, its trials and how they belong together: no second writer.
        ending = submit(overview, plan, self.cluster, mirror=False, known=known)
        self.view.say(ending.line.partition("\n")[0])

    def _tell_progress(self, owner: Owner) -> None:
        for run_id in owner.flying:
            status = self.ledger.state(run_id).status or {}
            if status.get("state") == "running" and status.get("total_steps"):
                facts = {"step": status.get("step", 0), "total": status["total_steps"],
                         "loss": status.get("train_loss"), "speed": status.get("tokens_per_second"),
                         "eta": status.get("eta_seconds")}  # fmt: skip
                self.view.event(run_id, {"event": "start", "total": status["total_steps"]})
                self.view.event(run_id, {"event": "progress", "phase": "train", **facts})
        self.view.tick()


def _is_harmless(job: QueuedJob) -> bool:
    """Whether a job ended as it should, or because somebody took it out of the queue."""
    return job.reason.startswith("end: ") or job.reason == "never begun" or job.state == "CANCELLED"
