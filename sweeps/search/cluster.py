"""A study's runs on Slurm: trials are queued as jobs, which go on whatever becomes of the owner."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sweeps.lease import read_lease
from sweeps.ledger import MAX_ATTEMPTS, Ledger, RunState
from sweeps.overview import Overview
from sweeps.prune import ask_to_prune
from sweeps.queued import look_up
from sweeps.search.owner import Owner
from sweeps.search.studyfile import Study
from sweeps.search.view import StudyView
from sweeps.session import read_session, stop_mark
from sweeps.submission import SESSION, submissions
from sweeps.submit import Cluster, submit
from trainer.config import RunConfig

LOOK_SECONDS = 2.0
QUEUE_SECONDS = 20.0
"""How often the queue is asked whether jobs were lost; new trials are queued at once."""


class SlurmFlight:
    """Trains the runs of trials in jobs of Slurm.

    Args:
        study: the study.
        results: results folder.
        cluster: what jobs ask for.
        view: what people see.
        record: what the sweep record says of the study.
        mirror: whether jobs mirror their runs where the store is a server.
        rounds: called now and then, to write what is known.
    """

    def __init__(
        self,
        study: Study,
        results: Path,
        cluster: Cluster,
        view: StudyView,
        record: Mapping[str, Any],
        mirror: bool,
        rounds: Callable[[], None],
    ) -> None:
        self.study, self.ledger, self.cluster, self.view = study, Ledger(results), cluster, view
        self.record, self.mirror, self.rounds = record, mirror, rounds
        self.configs: dict[str, RunConfig] = {}
        """Every run of the study so far, for its record."""
        self._sessions: dict[Path, str] = {}
        self._fresh = False
        self._queued = 0.0
        self._stop_mark = stop_mark(results, study.name)

    def run(self, owner: Owner) -> str:
        """Work until the study is over, or it is cancelled; KeyboardInterrupt passes, and the jobs go on."""
        while True:
            owner.step(hurry=True)
            if owner.over:
                return "finished"
            if stop_mark(self.ledger.results, self.study.name) != self._stop_mark:
                return "cancelled"
            if self._fresh or time.monotonic() - self._queued > QUEUE_SECONDS:
                self._queue(owner)
            self._tell_progress(owner)
            self.rounds()
            time.sleep(LOOK_SECONDS)

    def add(self, run_id: str, config: RunConfig) -> None:
        """Have a run trained: queued with the others of its round."""
        self.configs[run_id] = config
        self._fresh = True

    def given_up(self, run_id: str, state: RunState) -> bool:
        """Whether a failed run will not be tried again."""
        return state.failures >= MAX_ATTEMPTS

    def prune(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Ask that a run be stopped early, if one of the study's jobs trains it."""
        folder = self.ledger.run_dir(run_id)
        lease = read_lease(folder)
        if lease and lease.get("session") in self._of_study():
            ask_to_prune(folder, str(lease["owner"]), facts)

    def _of_study(self) -> set[str]:
        """Sessions of the study's submissions."""
        for one in submissions(self.ledger.results, self.study.name):
            if one.path not in self._sessions:
                self._sessions[one.path] = read_session(one.path / SESSION).session
        return set(self._sessions.values())

    def _queue(self, owner: Owner) -> None:
        """Queue the runs under way that no live job covers; jobs that died are queued again."""
        self._fresh, self._queued = False, time.monotonic()
        flying = list(owner.flying)
        states = self.ledger.scan(flying)
        ids, configs = list(self.configs), list(self.configs.values())
        overview = Overview(self.study, configs, ids, [], self.ledger, states)
        part = Overview(
            self.study, [self.configs[one] for one in flying], flying, [], self.ledger, states
        ).plan(self.cluster.layout(self.ledger))
        covered = look_up(self.ledger.results, self.study.name).covered
        if all(run.id in covered or run.action not in ("new", "resume", "retry") for run in part.runs):
            return
        ending = submit(
            overview, part, self.cluster, self.mirror, study=self.record, prunes=bool(owner.rungs)
        )
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
