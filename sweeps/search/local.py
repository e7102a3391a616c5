"""A study's runs on this machine: the owner works between the ticks of the local queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.background import BackgroundMirror
from sweeps.layout import Layout
from sweeps.lease import read_lease
from sweeps.ledger import MAX_ATTEMPTS, Ledger, RunState
from sweeps.local import WORKER, LocalQueue
from sweeps.prune import ask_to_prune
from sweeps.search.owner import Owner
from sweeps.search.view import StudyView
from sweeps.session import new_session
from trainer.config import RunConfig


class LocalFlight:
    """Trains the runs of trials in the slots of this machine.

    Args:
        study: name of the study.
        results: results folder.
        layout: the slots.
        view: what people see.
        prunes: whether runs may be pruned.
        worker: how to start one.
        mirror: told of events, if the study is mirrored.
        rounds: called at every tick, to write what is known now and then.
    """

    def __init__(
        self,
        study: str,
        results: Path,
        layout: Layout,
        view: StudyView,
        prunes: bool,
        worker: Sequence[str] = WORKER,
        mirror: BackgroundMirror | None = None,
        rounds: Callable[[], None] = lambda: None,
    ) -> None:
        self.rounds = rounds
        self.view, self.ledger, self.mirror = view, Ledger(results), mirror
        execution = layout.execution.model_dump(mode="json")
        session = new_session(study, results, execution, [], MAX_ATTEMPTS, fed=True, prunes=prunes)
        self.session = session.session
        self.queue = LocalQueue(session, layout, self, worker)
        self._owner: Owner | None = None
        self._hurry = False

    def run(self, owner: Owner) -> str:
        """Work until the study is over, or someone asks to stop; how it ended, as LocalQueue.run says it."""
        self._owner = owner
        if owner.over:
            return "finished"
        return self.queue.run()

    def add(self, run_id: str, config: RunConfig) -> None:
        """Have a run trained."""
        self.queue.add(run_id, config)

    def given_up(self, run_id: str, state: RunState) -> bool:
        """Whether a failed run will not be tried again."""
        return self.ledger.gives_up(run_id, self.session, MAX_ATTEMPTS)

    def prune(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Ask that a run be stopped early, if one of our workers trains it."""
        folder = self.ledger.run_dir(run_id)
        lease = read_lease(folder)
        if lease and lease.get("session") == self.session:
            ask_to_prune(folder, str(lease["owner"]), facts)

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        """A worker reported something of a run."""
        self.view.event(run_id, event)
        self._hurry = self._hurry or event["event"] == "end"

    def waiting(self, owners: dict[str, str]) -> None:
        """Nothing is left but runs that others train."""
        self.view.waiting(owners)

    def say(self, line: str) -> None:
        """A line for people."""
        self.view.say(line)

    def tick(self) -> None:
        """Time for the owner's work."""
        assert self._owner is not None
        ending = self.queue.asked or self.queue.aborted is not None
        if not ending:
            self._owner.step(self._hurry)
            self._hurry = False
            if self._owner.over:
                self.queue.close_feed()
        self.view.tick()
        self.rounds()
        if self.mirror is not None:
            self.mirror.poll()
