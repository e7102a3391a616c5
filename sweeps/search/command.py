"""`python -m sweeps search`: price a study, take it up where it stands, have it trained, and sum up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sweeps.background import BackgroundMirror, mirror_of
from sweeps.errors import SweepError
from sweeps.launch import EXIT_DONE, EXIT_INTERRUPTED, EXIT_UNFINISHED, Ending, prepare_corpora
from sweeps.layout import Layout, layout_or_guess, plan_layout, with_options
from sweeps.ledger import Ledger
from sweeps.local import WORKER
from sweeps.search.asktell import Keeper
from sweeps.search.cells import cells_of
from sweeps.search.cluster import SlurmFlight
from sweeps.search.local import LocalFlight
from sweeps.search.outcome import write_outcome
from sweeps.search.owner import Owner, Second
from sweeps.search.pricing import CellPrice, price_cells, price_table, seconds_of, totals_said
from sweeps.search.searched import Searched, unfinished
from sweeps.search.space import Space
from sweeps.search.studyfile import Second as SecondObjective
from sweeps.search.studyfile import Study, load_study
from sweeps.search.summary import summary
from sweeps.search.triallog import SeenLog, TrialLog, folder_of
from sweeps.search.view import StudyView
from sweeps.search.warm import learn_from_ledger, recover
from sweeps.session import read_record, refuse_other_file, write_record
from sweeps.submit import Cluster, cluster_for
from sweeps.text import flops, plural
from trainer.commandline import duration
from trainer.corpora import fingerprint
from trainer.hints import hint
from trainer.rundir import io_errors

LOCK = "owner.lock"
ROUND_SECONDS = 15.0
"""How often the tables and the record are written while a study goes on."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the study."""

    results: Path
    """Results folder."""
    executor: str = "local"
    """local or slurm."""
    cluster: str | None = None
    """Slurm settings."""
    slots: int | None = None
    """Runs at a time."""
    threads: int | None = None
    """CPU threads of one run."""
    device: str | None = None
    """auto, cpu, cuda or cuda:N."""
    trials: int | None = None
    """Trials in each cell."""
    max_flops: float | None = None
    """Refuse a study that may cost more."""
    max_hours: float | None = None
    """Refuse a study that is to take longer."""
    yes: bool = False
    """Do not ask."""
    mirror: bool = True
    """Whether MLflow is told."""
    dry_run: bool = False
    """Train nothing."""
    export: Path | None = None
    """Sweep file for the winners."""


def search(written: str, options: Options, worker: Sequence[str] = WORKER) -> Ending:
    """Do, or go on with, a study.

    Args:
        written: its name or file.
        options: the command line's.
        worker: how to start a worker.

    Raises SweepError or TrainerError, in one line, where the user has to mend something first.
    """
    study = _with_trials(load_study(written), options.trials)
    if options.export is not None and (options.export.suffix != ".toml" or options.export.is_dir()):
        raise SweepError(f"--export-sweep {options.export}: give a file whose name ends in .toml")
    execution = with_options(study.execution, options.slots, options.threads, options.device, study.source)
    cluster = cluster_for(study, execution, options.cluster) if options.executor == "slurm" else None
    if cluster is not None and study.kind == "pareto":
        raise SweepError(
            f"{study.source}: speed is measured on the machine of the search; take --executor local "
            f"on the one "
            f"that counts"
        )
    spaces = [Space(cell) for cell in cells_of(study)]
    ledger = Ledger(options.results)
    if cluster is not None:
        cluster = cluster.fitting([space.largest for space in spaces])
    if cluster is not None:
        layout = cluster.layout(ledger)
    else:
        # What another machine is to do can be priced here.
        layout = layout_or_guess(execution) if options.dry_run else plan_layout(execution)
    prices = price_cells(spaces, ledger, layout)
    most = study.search.in_flight or layout.slots
    seconds = seconds_of(prices, min(most, layout.slots))
    print(price_table(prices))
    jobs = f", in up to {plural(cluster.settings.jobs, 'job')} of Slurm" if cluster is not None else ""
    flight = f"{plural(most, 'trial')} in flight; {layout.said()}{jobs}"
    print(f"{totals_said(prices, seconds)}, {flight}", flush=True)
    _refuse_past_caps(prices, seconds, options)
    refuse_other_file(options.results, study.name, study.path)
    with _owned(options.results, study, take=not options.dry_run) as folder:
        work = _Work(study, options, folder, spaces, ledger)
        if options.dry_run:
            return work.dry_end()
        if seconds > 3600 and not options.yes and sys.stdin.isatty() and work.left:
            typer.confirm("Start?", default=True, abort=True)
        return work.run(layout, cluster, most, worker)


class _Work:
    """A study that is taken up."""

    def __init__(
        self, study: Study, options: Options, folder: Path, spaces: Sequence[Space], ledger: Ledger
    ) -> None:
        self.study, self.options, self.ledger, self.folder = study, options, ledger, folder
        self.results = options.results
        self.record = read_record(self.results, study.name) or {}
        if not options.dry_run:
            # Those with the most and the longest data, so that a corpus that is too small is noticed now.
            prepare_corpora([space.largest for space in spaces], self.results)
        self.log = SeenLog(folder) if options.dry_run else TrialLog(folder)
        self.recovered = recover(spaces, self.log, ledger, map(str, self.record.get("run_ids", ())))
        keeper = None if options.dry_run else Keeper(study.search.storage, folder)
        self.searched = [
            Searched(
                space.cell,
                space,
                study.search.seed + number,
                self.log,
                keeper,
                fingerprint(space.largest.data),
            )
            for number, space in enumerate(spaces)
        ]
        self._written = 0.0

    @property
    def left(self) -> int:
        """Trials that are not over."""
        return unfinished(self.searched)

    def dry_end(self) -> Ending:
        """What is known, without training anything."""
        Owner(self.searched, self.ledger, _Nothing(), _Nothing(), 0, self._rungs).take_up()
        known = sum(trial.outcome is not None for one in self.searched for trial in one.trials)
        lines = [summary(self.searched)] if known else []
        self._export(lines)
        return Ending(
            EXIT_DONE, "\n".join([*lines, f"{plural(self.left, 'trial')} to go; nothing was started"])
        )

    def run(self, layout: Layout, cluster: Cluster | None, most: int, worker: Sequence[str]) -> Ending:
        """Have it done."""
        began = time.monotonic()
        background = BackgroundMirror(mirror_of(self.study), self.results, _say) if self._mirrors else None
        view = StudyView(self.searched, most, self.results)
        flight: LocalFlight | SlurmFlight
        if cluster is not None:

            def rounds() -> None:
                self.write_now_and_then()
                if background is not None:
                    background.poll()

            flight = SlurmFlight(self.study, self.results, cluster, view, self._about, rounds)
        else:
            flight = LocalFlight(
                self.study.name, self.results, layout, view, bool(self._rungs), worker, background,
                self.write_now_and_then,
            )  # fmt: skip
        owner = Owner(self.searched, self.ledger, flight, view, most, self._rungs, self._second(layout))
        flying = owner.take_up()
        self._learn()
        self.write()
        over = sum(trial.outcome is not None for one in self.searched for trial in one.trials)
        said = [f"{plural(over, 'trial')} known"]
        said += [f"{flying} under way"] if flying else []
        _say(f"{', '.join(said)}, {self.left} to go; storage {self.searched[0].storage}")
        outcome, aborted = "finished", None
        if background is not None and not owner.over:
            background.start()
        try:
            with view:
                if background is not None:
                    background.say = view.say
                outcome = flight.run(owner)
            aborted = flight.queue.aborted if isinstance(flight, LocalFlight) else None
        except KeyboardInterrupt:
            outcome = "interrupted"
        finally:
            self.write(importance=True)
            self.log.close()
            if background is not None:
                background.say = _say
                background.finish(interrupted=outcome != "finished" or sys.exc_info()[0] is not None)
        if aborted is not None:
            raise SweepError(aborted)
        return self._ending(outcome, time.monotonic() - began, cluster is not None)

    def write_now_and_then(self) -> None:
        """The tables and the record, if it is time for them."""
        if time.monotonic() - self._written >= ROUND_SECONDS:
            self.write()

    def write(self, importance: bool = False) -> None:
        """The tables and the record."""
        ids = dict.fromkeys(trial.asked.run for one in self.searched for trial in one.trials if trial.counts)
        # One of another sweep, if nothing of the study's own is better.
        ids |= dict.fromkeys(one.best.asked.run for one in self.searched if one.best is not None)
        study = self.study
        write_record(self.results, study.name, study.description, study.path, list(ids), self._about)
        write_outcome(study, self.searched, self.results, importance)
        self._written = time.monotonic()

    @property
    def _about(self) -> dict[str, Any]:
        settings = self.study.search.model_dump(mode="json", exclude={"storage"})
        return {"kind": self.study.kind, "description": self.study.description, **settings}

    @property
    def _mirrors(self) -> bool:
        return self.options.mirror

    @property
    def _rungs(self) -> tuple[float, ...]:
        return self.study.search.rungs if self.study.search.pruner != "none" else ()

    def _second(self, layout: Layout) -> Second | None:
        if self.study.kind != "pareto":
            return None
        from sweeps.search.speed import Speeds

        second = self.study.second or SecondObjective()
        reference = self.searched[0].space.sample(1)[0]
        return Speeds(second, reference, self.folder, layout).measure

    def _learn(self) -> None:
        """Runs that are done and no trial asked for."""
        if self.recovered:
            _say(f"{plural(self.recovered, 'trial')} of this study that no log has: taken from the ledger")
        others = learn_from_ledger(self.searched, self.ledger) if self.study.search.warm_start else 0
        if others:
            _say(f"{plural(others, 'finished run')} of other sweeps: they teach the sampler")

    def _export(self, lines: list[str]) -> None:
        if self.options.export is None:
            return
        from sweeps.search.exported import export_sweep

        many = export_sweep(self.study, self.searched, self.options.export)
        lines.append(
            f"{plural(many, 'winner')} in {self.options.export}: "
            f"{hint(['plan', str(self.options.export)], self.results)}"
        )

    def _ending(self, outcome: str, seconds: float, slurm: bool) -> Ending:
        lines = [summary(self.searched)]
        states: dict[str, int] = {}
        for one in self.searched:
            for trial in one.trials:
                if trial.counts and trial.outcome is not None:
                    states[trial.outcome.state] = states.get(trial.outcome.state, 0) + 1
        counted = ", ".join(f"{many} {state}" for state, many in states.items()) or "none over"
        repeats = sum(trial.asked.repeat for one in self.searched for trial in one.trials)
        line = f"{plural(sum(states.values()), 'trial')}: {counted}"
        line += f" ({plural(repeats, 'proposal')} repeated at no cost)" if repeats else ""
        line += f"; {duration(seconds)}"
        if outcome != "finished":
            cancel = hint(["cancel", self.study.argument], self.results)
            jobs = f"; its jobs go on ('{cancel}' stops them)"
            jobs = jobs if slurm and outcome == "interrupted" else ""
            return Ending(
                EXIT_INTERRUPTED, f"{outcome}: {line}; {self.left} to go{jobs}; the same command goes on"
            )
        self._export(lines)
        export = hint(["export", self.study.name], self.results, "analysis")
        lines.append(f"tables: {self.folder}; {export} draws on them")
        whole = all(one.best is not None for one in self.searched) and "failed" not in states
        return Ending(EXIT_DONE if whole else EXIT_UNFINISHED, "\n".join([*lines, line]))


class _Nothing:
    """Trains nothing and is told nothing."""

    def add(self, run_id: str, config: Any) -> None:
        """Nothing."""

    def given_up(self, run_id: str, state: Any) -> bool:
        """Never."""
        return False

    def prune(self, run_id: str, facts: Any) -> None:
        """Nothing."""

    def asked(self, searched: Any, trial: Any) -> None:
        """Nothing."""

    def told(self, searched: Any, trial: Any) -> None:
        """Nothing."""


@contextmanager
def _owned(results: Path, study: Study, take: bool) -> Iterator[Path]:
    """The study's folder, which no other process has meanwhile; SweepError where one has."""
    from filelock import FileLock, Timeout

    folder = folder_of(results, study.name)
    if not take:
        yield folder
        return
    with io_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SweepError(
            f"{study.name}: another process searches in {folder}; follow it with "
            f"'{hint(['status', '--watch', study.argument], results)}'"
        ) from None
    except OSError:
        with io_errors(folder / LOCK):
            raise
    try:
        yield folder
    finally:
        lock.release()


def _with_trials(study: Study, trials: int | None) -> Study:
    if trials is None:
        return study
    changed = study.model_copy(update={"search": study.search.model_copy(update={"trials": trials})})
    changed._name, changed._path = study.name, study.path
    return changed


def _refuse_past_caps(prices: Sequence[CellPrice], seconds: float, options: Options) -> None:
    total = sum(one.total for one in prices)
    if options.max_flops is not None and total > options.max_flops:
        raise SweepError(
            f"the study may need {flops(total)} FLOPs, {flops(total - options.max_flops)} more than "
            f"--max-flops "
            f"{options.max_flops:g}; raise it or ask for fewer --trials"
        )
    if options.max_hours is not None and seconds > options.max_hours * 3600:
        raise SweepError(
            f"the study may take {duration(seconds)}, more than --max-hours {options.max_hours:g}; "
            f"raise it or ask "
            f"for fewer --trials"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
