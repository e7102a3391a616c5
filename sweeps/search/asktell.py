"""Optuna: asks its samplers for points, tells them what these came to, and keeps the trials in its storage.

The sampler works on trials in memory; a trial goes into the storage (SQLite, any database, a journal) in one
piece once it is over.  So nobody who is killed leaves a trial RUNNING there, a storage that was lost is
written again from the log and the ledger, and a database's latency is paid once a trial.  The only module
that imports optuna.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweeps.errors import SweepError
from sweeps.search.dimension import Dimension
from sweeps.search.studyfile import Search

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

RESOURCE = 1000
"""Steps of a pruner over a whole run: a share of it is a whole number of thousandths."""
LEAST_IMPORTANCE = 4
"""Fewer different trials say nothing of importance."""
SQLITE_SECONDS = 60.0
"""How long a writer waits for another one, of another search in the same file."""
ATTEMPTS = 6
ABOUT, RUN = "run", "run_id"
JOURNAL = "journal"
Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Outcome:
    """What a trial came to."""

    state: str
    """done, diverged (values are a penalty), pruned or failed (no values)."""
    values: tuple[float, ...] = ()
    """Loss, and the second objective of a pareto study."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What Optuna shows beside it."""
    curve: Mapping[float, float] = field(default_factory=dict)
    """Training loss by share of the run, where a pruner looks at it."""


class Optimizer:
    """The search of one cell.

    Args:
        name: what it is called in the storage.
        dimensions: what is searched.
        settings: sampler and pruner.
        startup: trials that are drawn at random first.
        seed: of the sampler.
        objectives: 1, or 2 for a pareto study.
        keeper: the storage; None to keep nothing.
    """

    def __init__(
        self,
        name: str,
        dimensions: Sequence[Dimension],
        settings: Search,
        startup: int,
        seed: int,
        objectives: int,
        keeper: Keeper | None,
    ) -> None:
        import optuna

        _quiet()
        self.name, self.dimensions, self.keeper = name, dimensions, keeper
        self._directions: list[Direction] = ["minimize"] * objectives
        self._memory = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._memory, study_name=name, directions=self._directions,
            sampler=_sampler(settings.sampler, startup, seed), pruner=_pruner(settings, startup),
        )  # fmt: skip
        self._spread = {_name(one): _distribution(one) for one in dimensions}
        self._id = self._memory.get_study_id_from_name(name)
        self._kept = keeper.study(name, self._directions) if keeper is not None else None
        self._known = _by_run(self._kept.get_trials()) if self._kept is not None else {}

    def ask(self, fixed: Mapping[str, float] | None = None) -> tuple[int, dict[str, float]]:
        """The next proposal, or one that is given: its number, and the value of each dimension."""
        if fixed is not None:
            self._study.enqueue_trial(self._params(fixed))
        trial = self._study.ask(self._spread)
        return trial.number, {one.name: _value(one, trial.params[_name(one)]) for one in self.dimensions}

    def settle(self, number: int, point: Mapping[str, float]) -> None:
        """Replace what was proposed by what will be tried: the sampler is to learn of what was."""
        trial = self._trial_id(number)
        for name, value in self._params(point).items():
            spread = self._spread[name]
            self._memory.set_trial_param(trial, name, spread.to_internal_repr(value), spread)

    def resume(self, point: Mapping[str, float]) -> int:
        """Take up a trial that was asked for before and is not over; its number."""
        from optuna.trial import TrialState, create_trial

        frozen = create_trial(
            state=TrialState.RUNNING, params=self._params(point), distributions=dict(self._spread)
        )
        trial = self._memory.create_new_trial(self._id, template_trial=frozen)
        return self._memory.get_trial_number_from_id(trial)

    def restore(self, point: Mapping[str, float], outcome: Outcome, keep: bool = True) -> int:
        """Add a trial that is over; its number.

        The ledger says what it came to, whatever the storage was told once: a run may have been tried again.
        """
        from optuna.trial import create_trial

        number = len(self._memory.get_all_trials(self._id, deepcopy=False))
        kept = self._known.get(str(outcome.facts.get(RUN)))
        frozen = create_trial(
            state=_state(outcome.state), params=self._params(point), distributions=dict(self._spread),
            values=list(outcome.values) or None, user_attrs=_about(number, outcome),
            # What samplers and pruners have noted is nowhere else.
            system_attrs=dict(kept.system_attrs) if kept is not None else None,
            intermediate_values={round(s * RESOURCE): loss for s, loss in outcome.curve.items()},
        )  # fmt: skip
        if keep and kept is None:
            self._keep(frozen)
        self._memory.create_new_trial(self._id, template_trial=frozen)
        return number

    def tell(self, number: int, outcome: Outcome, keep: bool = True) -> None:
        """Say what a trial came to, and keep it: a repeated proposal need not be, the log has it."""
        trial = self._trial_id(number)
        for share, loss in outcome.curve.items():
            # A run that ended between two looks was never reported, and others are held against it.
            self._memory.set_trial_intermediate_value(trial, round(share * RESOURCE), loss)
        for key, value in _about(number, outcome).items():
            self._memory.set_trial_user_attr(trial, key, value)
        values = list(outcome.values) if outcome.state in ("done", "diverged") else None
        self._study.tell(number, values, state=_state(outcome.state))
        if keep and str(outcome.facts.get(RUN)) not in self._known:
            self._keep(self._memory.get_trial(trial))

    def report(self, number: int, share: float, loss: float) -> bool:
        """Whether a trial should be given up, by its training loss (nats per token) after a share of it."""
        from optuna.trial import Trial

        trial = Trial(self._study, self._trial_id(number))
        trial.report(loss, round(share * RESOURCE))
        return bool(trial.should_prune())

    def importance(self, points: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
        """How much of the loss's variance each dimension explains (functional ANOVA, Hutter et al. 2014).

        Args:
            points: different points and their losses.

        Returns: by dimension, summing to 1; empty where there are too few points, or all losses are equal.
        """
        import optuna
        from optuna.trial import create_trial

        if len(points) < LEAST_IMPORTANCE or len({loss for _, loss in points}) < 2:
            return {}
        study = optuna.create_study()
        study.add_trials(
            create_trial(params=self._params(point), distributions=dict(self._spread), value=loss)
            for point, loss in points
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        named = {_name(one): one.name for one in self.dimensions}
        return {named[name]: float(value) for name, value in found.items()}

    def _keep(self, trial: FrozenTrial) -> None:
        if self._kept is not None:
            assert self.keeper is not None
            self.keeper.add(self._kept, trial)

    def _trial_id(self, number: int) -> int:
        return self._memory.get_trial_id_from_study_id_trial_number(self._id, number)

    def _params(self, point: Mapping[str, float]) -> dict[str, float]:
        return {_name(one): _param(one, point[one.name]) for one in self.dimensions}


class Keeper:
    """The storage of a study.

    Args:
        written: what the study file says: "", "journal" or the URL of a database.
        folder: where the files lie.
    """

    def __init__(self, written: str, folder: Path) -> None:
        _quiet()
        self.shown = _shown(written) if written else str(folder / "optuna.db")
        try:
            self._storage = _storage(written, folder)
        except Exception as error:
            raise self._refused(error) from None

    def study(self, name: str, directions: Sequence[Direction]) -> OptunaStudy:
        """A search, made where it is not there."""
        import optuna

        try:
            return optuna.create_study(
                storage=self._storage, study_name=name, directions=list(directions), load_if_exists=True
            )
        except Exception as error:
            raise self._refused(error) from None

    def add(self, study: OptunaStudy, trial: FrozenTrial) -> None:
        """Write a trial that is over."""
        try:
            study.add_trial(trial)
        except Exception as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> SweepError:
        # Drivers, SQLAlchemy, alembic and Optuna have no common base; all they raise concerns the storage.
        line = " ".join(str(error).split()).partition(" [SQL:")[0] or type(error).__name__
        return SweepError(
            f"Optuna's storage {self.shown}: {line[:200]}; no run is lost: mend it, or move it aside, "
            f"and start the search again"
        )


def _storage(written: str, folder: Path) -> BaseStorage:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    folder.mkdir(parents=True, exist_ok=True)
    if written != JOURNAL:
        return _database(written or f"sqlite:///{folder / 'optuna.db'}")
    path = folder / "optuna.journal"
    _mend(path)
    lock = JournalFileOpenLock(str(path))
    # Whoever was killed while he wrote left it; the search has one owner, so nobody else holds it now.
    Path(f"{path}.lock").unlink(missing_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))


def _database(url: str) -> BaseStorage:
    """A database; where many searches find it empty at once, one makes its tables and the others wait."""
    import optuna
    from tenacity import Retrying, stop_after_attempt, wait_random_exponential

    patient = {"connect_args": {"timeout": SQLITE_SECONDS}} if url.startswith("sqlite") else {}
    for attempt in Retrying(
        stop=stop_after_attempt(ATTEMPTS), wait=wait_random_exponential(0.2, 3), reraise=True
    ):
        with attempt:
            return optuna.storages.RDBStorage(url, engine_kwargs=patient)
    raise AssertionError


def _mend(journal: Path) -> None:
    """Cut a last line that its writer did not live to end: the next one would be glued to it."""
    try:
        with open(journal, "r+b") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                file.truncate(end)
                os.fsync(file.fileno())
    except FileNotFoundError:
        return


def _shown(url: str) -> str:
    """A URL without user and password."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at else url


def _quiet() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _sampler(name: str, startup: int, seed: int) -> BaseSampler:
    from optuna import samplers

    if name == "tpe":
        # The constant liar keeps trials in flight from being proposed again and again.
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    # A grid is gone through by hand, in random order: only its points that can be had.
    return samplers.RandomSampler(seed=seed)


def _pruner(settings: Search, startup: int) -> BasePruner:
    from optuna import pruners

    first = round(min(settings.rungs) * RESOURCE)
    if settings.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=0)
    if settings.pruner == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=first, max_resource=RESOURCE, reduction_factor=2)
    return pruners.NopPruner()


def _name(one: Dimension) -> str:
    """What Optuna calls a dimension: evenly spaced whole numbers as they are, other grids by their rank."""
    return one.name if one.values is None or one.step is not None else f"{one.name}.rank"


def _distribution(one: Dimension) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if one.values is None:
        return FloatDistribution(one.low, one.high, log=one.log)
    if one.step is not None:
        return IntDistribution(int(one.low), int(one.high), step=one.step)
    return IntDistribution(0, len(one.values) - 1)


def _param(one: Dimension, value: float) -> float:
    if one.values is None:
        return min(max(float(value), one.low), one.high)
    return int(value) if one.step is not None else one.values.index(value)


def _value(one: Dimension, param: float) -> float:
    return one.values[int(param)] if one.values is not None and one.step is None else param


def _state(word: str) -> Any:
    from optuna.trial import TrialState

    return {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}.get(word, TrialState.COMPLETE)


def _by_run(trials: Sequence[FrozenTrial]) -> dict[str, FrozenTrial]:
    return {str(t.user_attrs[ABOUT].get(RUN)): t for t in trials if ABOUT in t.user_attrs}


def _about(number: int, outcome: Outcome) -> dict[str, Any]:
    """What Optuna keeps beside the numbers, in one attribute: a database takes milliseconds for each."""
    return {ABOUT: {"trial": number, **outcome.facts}}
