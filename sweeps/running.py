"""`plan` and `run`: price one sweep or several, then train them one after another or queue them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from sweeps.asked import Asked, Found, Shape, find, say_sum
from sweeps.errors import SweepError
from sweeps.launch import EXIT_INTERRUPTED, Ending, launch, prepare_corpora
from sweeps.layout import layout_or_guess, plan_layout
from sweeps.overview import Overview
from sweeps.plan import OPEN_ACTIONS, refuse_past_caps, sum_of
from sweeps.report import plan_table
from sweeps.session import refuse_other_file, write_record
from sweeps.slot import PACKAGE_ROOT
from sweeps.sweepfile import Sweep, SweepExecution
from trainer.errors import TrainerError
from trainer.messages import nearest

EXIT_MISTAKE = 2
ASK_SECONDS = 3600
ANY_SHAPE = Shape()


@dataclass(frozen=True)
class Options:
    """What `run` was told."""

    results: Path
    """Results folder."""
    executor: str = "local"
    """local or slurm."""
    cluster: str | None = None
    """Slurm settings."""
    then: str | None = None
    """slurm: "fit" queues it behind the runs."""
    shape: Shape = ANY_SHAPE
    """How runs share the machine."""
    where: Sequence[str] = ()
    """Conditions of the runs that are wanted."""
    max_flops: float | None = None
    """Most FLOPs to be spent."""
    max_hours: float | None = None
    """Most hours to be taken."""
    yes: bool = False
    """Ask nothing."""
    mirror: bool = True
    """Whether MLflow is told."""
    export: bool | None = None
    """local: whether the tracked table is kept up to date."""
    frozen: bool = False
    """local: run a copy of the program."""
    dry_run: bool = False
    """Start nothing."""


def show_plan(
    sweeps: Sequence[str],
    results: Path,
    shape: Shape,
    where: Sequence[str],
    write: bool = False,
    as_json: bool = False,
) -> list[Overview]:
    """Print the plan of each sweep, and the sum of several; SweepError, after that, where runs are corrupt.

    Args:
        sweeps: names or files.
        results: results folder.
        shape: of the command line.
        where: conditions of the runs that are wanted.
        write: also write the record of each, which is of all its runs.
        as_json: print one JSON object.
    """
    found = find(sweeps, results, shape, where)
    asked = [one.planned(layout_or_guess(one.execution)) for one in found]
    if write:
        _refuse_what_cannot_run(asked)
        for one in asked:
            file = one.overview.sweep
            write_record(results, file.name, file.description, file.path, one.overview.ids)
    if as_json:
        plans = [{"sweep": one.name, "left_out": one.left_out, **one.plan.as_json()} for one in asked]
        totals = asdict(sum_of([one.plan for one in asked]))
        print(json.dumps(plans[0] if len(sweeps) == 1 else {"sweeps": plans, "totals": totals}))
    else:
        for number, one in enumerate(asked, 1):
            _head(one, number, asked)
            print(plan_table(one.plan))
            one.say_totals()
        if len(asked) > 1:
            say_sum(asked)
    if corrupt := [line for one in asked for line in one.corrupt]:
        more = f" (and {len(corrupt) - 1} more)" if len(corrupt) > 1 else ""
        raise SweepError(f"{corrupt[0]}{more}")
    return [one.overview for one in asked]


def run(sweeps: Sequence[str], options: Options) -> int:
    """Train or queue what is missing of the chosen runs, sweep after sweep; the worst exit code of them."""
    check_executor(options.executor, options.cluster, options.then)
    _check_for_slurm(options)
    asked = _asked(sweeps, options)
    for number, one in enumerate(asked, 1):
        _head(one, number, asked)
        if options.dry_run:
            print(plan_table(one.plan))
        one.say_totals()
    totals, what = sum_of([one.plan for one in asked]), "the sweep"
    if len(asked) > 1:
        say_sum(asked)
        what = f"the sum of {len(asked)} sweeps"
    refuse_past_caps(totals, options.max_flops, options.max_hours, what)
    for line in (line for one in asked for line in one.corrupt):
        typer.secho(line, fg="yellow", err=True)
    on_slurm = options.executor == "slurm"
    if options.dry_run and not on_slurm:
        return 0
    if totals.seconds > ASK_SECONDS and not (options.yes or options.dry_run) and sys.stdin.isatty():
        typer.confirm("Start?", default=True, abort=True)
    _refuse_what_cannot_run(asked)
    if on_slurm:
        return _one_after_another(asked, lambda one: _queued(one, options))
    root = _frozen(options.results) if options.frozen else PACKAGE_ROOT
    try:
        if len(asked) > 1:
            _prepare_all(asked, options.results)
    except KeyboardInterrupt:
        print("interrupted before any sweep was begun; the same command goes on")
        return EXIT_INTERRUPTED
    return _one_after_another(
        asked,
        lambda one: launch(
            one.overview, one.plan, one.layout, mirror=options.mirror, export=options.export, root=root
        ),
    )


def check_executor(name: str, cluster: str | None, then: str | None) -> None:
    """SweepError where there is no such executor, or where it is not the one that an option is for."""
    if name not in ("local", "slurm"):
        raise SweepError(f"unknown executor '{name}'{nearest(name, ['local', 'slurm'])}")
    if name == "local" and (cluster is not None or then is not None):
        raise SweepError(f"{'--cluster' if cluster is not None else '--then'} needs --executor slurm")
    if then not in (None, "fit"):
        raise SweepError(f"--then {then}: only 'fit' (which draws figures and report as well) can follow")


def _check_for_slurm(options: Options) -> None:
    if options.executor != "slurm":
        return
    if options.export is not None:
        said = "--export" if options.export else "--no-export"
        raise SweepError(f"{said}: is for --executor local; behind jobs, --then fit writes the tables")
    if options.frozen:
        raise SweepError("--frozen: is for --executor local; jobs always run a copy of the program")


def _asked(sweeps: Sequence[str], options: Options) -> list[Asked]:
    if options.executor == "local":
        found = find(sweeps, options.results, options.shape, options.where)
        return [one.planned(plan_layout(one.execution)) for one in found]
    from sweeps.submit import cluster_for

    clusters = {}

    def check(sweep: Sweep, execution: SweepExecution) -> None:
        clusters[sweep.name] = cluster_for(sweep, execution, options.cluster)

    def planned(one: Found) -> Asked:
        overview = one.overview
        cluster = clusters[overview.sweep.name].fitting([overview.configs[place] for place in one.places])
        return one.planned(cluster.layout(overview.ledger), cluster)

    return [planned(one) for one in find(sweeps, options.results, options.shape, options.where, check)]


def _refuse_what_cannot_run(asked: Sequence[Asked]) -> None:
    """SweepError where a later launch of several would be refused, before the first."""
    for one in asked:
        if one.overview.problems:
            raise SweepError(one.overview.problems[0])
        refuse_other_file(one.overview.ledger.results, one.name, one.overview.sweep.path)


def _prepare_all(asked: Sequence[Asked], results: Path) -> None:
    wanted = []
    for one in asked:
        for place, run in zip(one.places, one.plan.runs, strict=True):
            if run.action in (*OPEN_ACTIONS, "running"):
                wanted.append(one.overview.configs[place])
    prepare_corpora(wanted, results)


def _frozen(results: Path) -> Path:
    """Copy the program and say which state of it that is."""
    # The launcher as well must find nothing that was edited when it shows the first run.
    import sweeps.display
    from sweeps.source import current_source, keep_source

    assert sweeps.display
    source = current_source(results)
    keep_source(source)
    print(f"the runs train with {source.label}; edits from now on do not reach them", flush=True)
    return Path(source.path)


def _queued(one: Asked, options: Options) -> Ending:
    from sweeps.submit import submit

    assert one.cluster is not None
    then = options.then is not None
    return submit(one.overview, one.plan, one.cluster, options.mirror, then, options.dry_run)


def _one_after_another(asked: Sequence[Asked], begin: Callable[[Asked], Ending]) -> int:
    """Begin sweep after sweep until one is interrupted; a mistake in one of several ends only that one."""
    worst = 0
    for number, one in enumerate(asked, 1):
        _head(one, number, asked)
        try:
            ending = begin(one.again() if number > 1 else one)
        except (SweepError, TrainerError) as error:
            if len(asked) == 1:
                raise
            typer.secho(f"error: {one.name}: {' '.join(str(error).split())}", fg="red", err=True)
            worst = max(worst, EXIT_MISTAKE)
            continue
        except KeyboardInterrupt:
            ending = Ending(EXIT_INTERRUPTED, "interrupted; the same command goes on", interrupted=True)
        print(ending.line, flush=True)
        worst = max(worst, ending.code)
        if ending.interrupted:
            later = [other.name for other in asked[number:]]
            if later:
                print(f"not begun: {', '.join(later)}")
            return EXIT_INTERRUPTED if later else worst
    return worst


def _head(one: Asked, number: int, asked: Sequence[Asked]) -> None:
    if len(asked) > 1:
        print(f"==> {one.name} ({number} of {len(asked)})", flush=True)
