"""One cell while it is searched: its trials, what they came to, and the next proposal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.ledger import RunState
from sweeps.search.asktell import Keeper, Optimizer, Outcome
from sweeps.search.cells import Cell
from sweeps.search.space import Space
from sweeps.search.triallog import Asked, TrialLog
from trainer.config import RunConfig

REPEATS = 8
"""So many proposals in a row that are known already, and an untried point is drawn instead."""
DEFAULT_TRIALS = 20


@dataclass
class Trial:
    """One trial."""

    asked: Asked
    """What the log has of it."""
    config: RunConfig
    """Its run."""
    outcome: Outcome | None = None
    """What it came to; None while it is not over."""
    state: RunState | None = None
    """The run's state when it was over."""
    second: float | None = None
    """The second objective of a pareto study."""
    rung: float = 0.0
    """The last share of it at which it was held against the others."""
    doomed: dict[str, Any] | None = None
    """Why it is to be pruned, from the moment at which that is decided."""

    @property
    def counts(self) -> bool:
        """Whether it is one that the study asks for: no repeat, nor knowledge from elsewhere."""
        return not (self.asked.repeat or self.asked.warm)

    @property
    def loss(self) -> float | None:
        """Held-out loss, nats per token, of a run that was trained to its end."""
        if self.state is None or self.state.state != "done" or self.state.result is None:
            return None
        return float(self.state.result["val_loss"])


class Searched:
    """The search of one cell.

    Args:
        cell: which.
        space: its points.
        seed: of the sampler.
        log: the study's.
        keeper: Optuna's storage.
        fingerprint: of the corpus.
    """

    def __init__(
        self, cell: Cell, space: Space, seed: int, log: TrialLog, keeper: Keeper | None, fingerprint: str
    ) -> None:
        settings = cell.study.search
        self.cell, self.space, self.log, self.fingerprint = cell, space, log, fingerprint
        self.target = target_of(cell, space)
        self.trials: list[Trial] = []
        self.by_run: dict[str, Trial] = {}
        """The first trial of each run, knowledge from elsewhere included."""
        self.proposed: set[str] = set()
        """Runs that this search has asked for."""
        self._taken: set[tuple[float, ...]] = set()
        self.exhausted = False
        # Where every point will be tried in the end, no sampler is asked in which order.
        self._grid = settings.sampler == "grid" or self.target == space.size
        self._seed = seed
        self.name = cell.search(fingerprint)
        """What the log and the storage call it."""
        mine = [line for line in log.lines if line.search == self.name]
        # A search that goes on must not draw again what it drew at first.
        draw = (seed * 1_000_003 + len(mine) * 7919) % 2**32
        self.optimizer = Optimizer(
            self.name, cell.dimensions, settings, startup_of(cell, self.target), draw, self.objectives, keeper
        )

    @property
    def objectives(self) -> int:
        """How many numbers a trial is told as."""
        return 2 if self.cell.study.kind == "pareto" else 1

    @property
    def storage(self) -> str:
        """Where Optuna keeps the trials."""
        keeper = self.optimizer.keeper
        return keeper.shown if keeper is not None else "none"

    @property
    def counted(self) -> int:
        """Trials of those that the study asks for, over or not."""
        return sum(trial.counts for trial in self.trials)

    @property
    def wanted(self) -> int:
        """Trials still to be proposed."""
        if self.exhausted or self.counted < self.target:
            return 0 if self.exhausted else self.target - self.counted
        return len(self.missing)

    @property
    def total(self) -> int:
        """Trials that there will be, as far as is known."""
        return self.counted + self.wanted if self.counted >= self.target else self.target

    @property
    def missing(self) -> list[dict[str, float]]:
        """Points on the line through the best one that were not tried; known once the search is over."""
        name, best = self.cell.study.search.valley, self.best
        if not name or best is None:
            return []
        line = [dict(best.asked.point), *self.space.along(best.asked.point, name)]
        # What is under way beside the line may yet be the best, and then the line is another.
        if any(trial.outcome is None and trial.asked.point not in line for trial in self.trials):
            return []
        return [p for p in line if tuple(p[d.name] for d in self.cell.dimensions) not in self._taken]

    @property
    def best(self) -> Trial | None:
        """The trial of the lowest loss."""
        done = [trial for trial in self.by_run.values() if trial.loss is not None]
        return min(done, key=lambda trial: trial.loss or math.inf, default=None)

    def run_id(self, config: RunConfig) -> str:
        """The id of a run of this cell."""
        return config.run_id(self.fingerprint)

    def take_up(self, asked: Asked, outcome: Outcome | None, state: RunState) -> Trial:
        """A trial that the log has: over (`outcome`), or still to be trained."""
        number = (
            self.optimizer.resume(asked.point)
            if outcome is None
            else self.optimizer.restore(asked.point, outcome, keep=not asked.repeat)
        )
        assert number == asked.number, (number, asked)
        return self._added(Trial(asked, asked.run_config, outcome, state if outcome else None))

    def learn(
        self, point: Mapping[str, float], config: RunConfig, outcome: Outcome, state: RunState
    ) -> Trial:
        """Add a run that is done already: knowledge from elsewhere."""
        number = self.optimizer.restore(point, outcome)
        asked = self._asked(number, point, config, repeat=False, warm=True, known=True)
        return self._added(Trial(asked, config, outcome, state))

    def propose(self, known: Any) -> tuple[Trial, bool] | None:
        """The next trial, and whether its run is asked for the first time (else it is one of `by_run`).

        Args:
            known: of a run id, whether its result is there already.

        Returns None where every point was tried; repeats come back one by one, for the caller to tell.
        """
        in_a_row = 0
        for trial in reversed(self.trials):
            if not trial.asked.repeat:
                break
            in_a_row += 1
        fixed = None
        if self.counted < self.target and (self._grid or in_a_row >= REPEATS or self._tried_all()):
            fixed = self.space.untried(self._taken, self._seed + len(self.trials))
            if fixed is None:
                self.exhausted = True
                return None
        if self.counted >= self.target:
            fixed = self.missing[0]
        number, raw = self.optimizer.ask(fixed)
        # The same run again teaches nothing: the nearest that was not asked for does.
        point = self.space.snap(raw, self._taken)
        if point != raw:
            self.optimizer.settle(number, point)
        config = self.space.config(point)
        run_id = self.run_id(config)
        repeat = run_id in self.proposed
        asked = self._asked(number, point, config, repeat=repeat, warm=False, known=repeat or known(run_id))
        return self._added(Trial(asked, config)), not repeat

    def tell(self, trial: Trial, outcome: Outcome, state: RunState) -> None:
        """Say what a trial came to."""
        trial.outcome, trial.state = outcome, state
        self.optimizer.tell(trial.asked.number, outcome, keep=not trial.asked.repeat)

    def importance(self) -> dict[str, float]:
        """How much each dimension matters, from the runs that are done."""
        done = [t for t in self.by_run.values() if t.loss is not None]
        return self.optimizer.importance([(t.asked.point, t.loss or 0.0) for t in done])

    def _tried_all(self) -> bool:
        size = self.space.size
        return size is not None and len(self.proposed) >= size

    def _added(self, trial: Trial) -> Trial:
        self.trials.append(trial)
        self.by_run.setdefault(trial.asked.run, trial)
        if not trial.asked.warm:
            self.proposed.add(trial.asked.run)
            self._taken.add(tuple(trial.asked.point[d.name] for d in self.cell.dimensions))
        return trial

    def _asked(
        self,
        number: int,
        point: Mapping[str, float],
        config: RunConfig,
        repeat: bool,
        warm: bool,
        known: bool,
    ) -> Asked:
        asked = Asked(
            self.name, number, self.run_id(config), dict(point), config.canonical_json(), repeat, warm,
            known, round(time.time(), 3),
        )  # fmt: skip
        self.log.add(asked)
        return asked


def target_of(cell: Cell, space: Space) -> int:
    """Runs that the study asks for in a cell: what it says, and no more than there are points."""
    settings, size = cell.study.search, space.size
    if settings.trials is None and settings.sampler == "grid" and size is not None:
        return size
    wanted = settings.trials or DEFAULT_TRIALS
    return min(wanted, size) if size is not None else wanted


def startup_of(cell: Cell, target: int) -> int:
    """Random trials before a sampler begins to learn."""
    return cell.study.search.startup or min(10, max(4, math.ceil(target / 4)))


def unfinished(searched: Sequence[Searched]) -> int:
    """Trials still to be proposed or to end, over all cells."""
    return sum(s.wanted + sum(t.outcome is None and t.counts for t in s.trials) for s in searched)
