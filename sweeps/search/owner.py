"""The owner of a study: asks for trials, has them trained, prunes what lags behind, tells the outcomes.

One process at a time, whatever trains the runs.  It keeps nothing that is not in the log or in the run
folders: killed at any moment and started again, it takes up every trial where it stands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sweeps.errors import SweepError
from sweeps.lease import Lease
from sweeps.ledger import Ledger, RunState
from sweeps.search.asktell import Outcome
from sweeps.search.searched import Searched, Trial
from trainer.config import RunConfig
from trainer.errors import RunDirError
from trainer.rundir import read_metrics

LOOK_SECONDS = 0.2
PRUNE_SECONDS = 1.0
SMOOTHING = 0.05
"""Share of a run over which its training loss is averaged for the pruner."""


class Flight(Protocol):
    """Whatever trains the runs of trials."""

    def add(self, run_id: str, config: RunConfig) -> None:
        """Have a run trained."""

    def given_up(self, run_id: str, state: RunState) -> bool:
        """Whether a failed run will not be tried again."""

    def prune(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Ask that a run be stopped early, if one of ours trains it."""


class Watcher(Protocol):
    """Whom the owner tells."""

    def asked(self, searched: Searched, trial: Trial) -> None:
        """A trial's run is to be trained."""

    def told(self, searched: Searched, trial: Trial) -> None:
        """A trial is over."""


Second = Callable[[str, RunConfig], float]
"""Measures the second objective of a pareto study: of a run id and its configuration."""


class Owner:
    """Directs a study.

    Args:
        searched: its cells.
        ledger: the runs.
        flight: what trains them.
        watcher: whom to tell.
        most: trials in flight at a time.
        rungs: shares of a run at which it may be pruned; none without a pruner.
        second: measures what a pareto study weighs against the loss; such a study proposes in rounds, since
            nothing may be trained while a speed is measured.
    """

    def __init__(
        self,
        searched: Sequence[Searched],
        ledger: Ledger,
        flight: Flight,
        watcher: Watcher,
        most: int,
        rungs: Sequence[float] = (),
        second: Second | None = None,
    ) -> None:
        self.searched, self.ledger, self.flight, self.watcher = searched, ledger, flight, watcher
        self.most, self.rungs, self.second = most, sorted(rungs), second
        self.flying: dict[str, list[tuple[Searched, Trial]]] = {}
        # Where nothing is pruned, what another study has given up is trained to its end.
        self._ends = ("done", "diverged", "corrupt", *(("pruned",) if rungs else ()))
        self._looked = self._pruned = 0.0
        self._landed: dict[str, RunState] = {}

    @property
    def over(self) -> bool:
        """Whether every trial of the study is over."""
        return not self.flying and not any(one.wanted for one in self.searched)

    def take_up(self) -> int:
        """Begin, or go on with, what the log has; how many trials are still to be trained."""
        for searched in self.searched:
            mine = [line for line in searched.log.lines if line.search == searched.name]
            states = self.ledger.scan(dict.fromkeys(line.run for line in mine))
            for line in mine:
                state = states[line.run]
                final = self._final(line.run, state) and self.second is None
                outcome = self._outcome(line.run, line.run_config, state) if final else None
                trial = searched.take_up(line, outcome, state)
                if outcome is None:
                    self._fly(searched, trial)
        return len(self.flying)

    def step(self, hurry: bool = False) -> None:
        """Look at what is under way, tell what is over, and propose; often, and cheap.

        Args:
            hurry: something is known to have happened.
        """
        now = time.monotonic()
        if hurry or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._collect()
        if self.rungs and now - self._pruned >= PRUNE_SECONDS:
            self._pruned = now
            self._prune()
        if self.second is None or not self.flying:
            self._propose()

    def _collect(self) -> None:
        for run_id in list(self.flying):
            if run_id not in self._landed and self._final(run_id, state := self.ledger.state(run_id)):
                self._landed[run_id] = state
        if self.second is None or len(self._landed) == len(self.flying):
            # Of a pareto study all have landed: nothing is trained now, so that speeds can be measured.
            for run_id, state in self._landed.items():
                for searched, trial in self.flying.pop(run_id):
                    self._tell(searched, trial, state)
            self._landed.clear()

    def _final(self, run_id: str, state: RunState) -> bool:
        return state.state in self._ends or (state.state == "failed" and self.flight.given_up(run_id, state))

    def _tell(self, searched: Searched, trial: Trial, state: RunState) -> None:
        if self.second is not None and state.state in ("done", "diverged"):
            try:
                trial.second = self.second(trial.asked.run, trial.config)
            except SweepError as error:
                # Its loss alone is no trial of two objectives; the other shapes can still be measured.
                state = replace(state, state="failed", message=str(error))
        outcome = self._outcome(trial.asked.run, trial.config, state, trial.second)
        searched.tell(trial, outcome, state)
        self.watcher.told(searched, trial)

    def _outcome(
        self, run_id: str, config: RunConfig, state: RunState, second: float | None = None
    ) -> Outcome:
        """What an ended run means to the sampler."""
        facts: dict[str, Any] = {"run_id": run_id}
        curve = dict(self._passed(run_id, config, 0.0)) if self.rungs else {}
        if state.state in ("pruned", "failed", "corrupt"):
            if state.message:
                facts["message"] = state.message[:300]
            return Outcome("pruned" if state.state == "pruned" else "failed", (), facts, curve)
        more = (second,) if second is not None else ()
        if state.state == "diverged":
            # The loss above which a run counts as diverged: finite, and none that ended is behind it.
            facts["diverged"] = True
            penalty = config.optim.diverge_ratio * math.log(config.model.vocab_size)
            return Outcome("diverged", (penalty, *more), facts, curve)
        assert state.result is not None
        return Outcome("done", (float(state.result["val_loss"]), *more), facts, curve)

    def _propose(self) -> None:
        while len(self.flying) < self.most:
            # Cells advance together: what is stopped early then says as much of each.
            open_cells = [one for one in self.searched if one.wanted]
            if not open_cells:
                return
            searched = min(open_cells, key=lambda one: one.counted / one.target)
            proposed = searched.propose(self._is_known)
            if proposed is not None:
                self._begin(searched, *proposed)
            if self.second is not None and len(self.flying) >= self.most:
                return

    def _begin(self, searched: Searched, trial: Trial, new: bool) -> None:
        run_id = trial.asked.run
        first = searched.by_run[run_id]
        if not new and first.outcome is not None:
            assert first.state is not None
            trial.second = first.second
            searched.tell(trial, first.outcome, first.state)
            self.watcher.told(searched, trial)
        elif new and self.second is None and trial.asked.known:
            self._tell(searched, trial, self.ledger.state(run_id))
        else:
            self._fly(searched, trial)

    def _is_known(self, run_id: str) -> bool:
        return self.ledger.state(run_id).state in ("done", "diverged")

    def _fly(self, searched: Searched, trial: Trial) -> None:
        self._wake(searched, trial.asked.run)
        there = self.flying.setdefault(trial.asked.run, [])
        there.append((searched, trial))
        if len(there) == 1:
            self.flight.add(trial.asked.run, trial.config)
            self.watcher.asked(searched, trial)

    def _wake(self, searched: Searched, run_id: str) -> None:
        """Have a run that another study pruned resumed: it was not held against the trials of this one."""
        state = self.ledger.state(run_id)
        if state.state != "pruned" or f"study {searched.cell.study.name}," in (state.message or ""):
            return
        lease = Lease(self.ledger.run_dir(run_id))
        if lease.claim():
            try:
                self.ledger.set_state(run_id, "preempted")
            finally:
                lease.release()

    def _prune(self) -> None:
        """Hold each run under way against the others at the rungs that it has passed."""
        for run_id, there in self.flying.items():
            searched, trial = there[0]
            for share, loss in self._passed(run_id, trial.config, trial.rung):
                trial.rung = share
                if searched.optimizer.report(trial.asked.number, share, loss):
                    reason = f"training loss {loss:.4f} after {share:.0%} of its tokens lags behind"
                    trial.doomed = {"study": searched.cell.study.name, "rung": share, "reason": reason}
                    break
            if trial.doomed is not None:
                # Again and again: a worker that ends before it looks has not seen it.
                self.flight.prune(run_id, trial.doomed)

    def _passed(self, run_id: str, config: RunConfig, since: float) -> list[tuple[float, float]]:
        """(share of the run, training loss just before it) of the rungs that it has passed since a share."""
        rungs = [share for share in self.rungs if share > since]
        if not rungs:
            return []
        try:
            lines = read_metrics(self.ledger.run_dir(run_id))
        except (OSError, RunDirError):
            return []
        found = []
        for share in rungs:
            if not lines or lines[-1]["step"] < share * config.steps:
                break
            before = [one for one in lines if one["step"] / config.steps <= share]
            if not before:
                continue
            # A single line of a short run is the loss of a single batch; of a run with few lines it is all.
            near = [one for one in before if share - SMOOTHING < one["step"] / config.steps] or before[-1:]
            loss = sum(float(one["train_loss"]) for one in near) / len(near)
            if not math.isfinite(loss):
                break
            found.append((share, loss))
        return found
