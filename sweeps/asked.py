"""What `plan` and `run` are asked for: sweeps that were read and checked, the chosen runs, a plan of each."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sweeps.errors import SweepError
from sweeps.layout import Layout, with_options
from sweeps.overview import Overview, look
from sweeps.plan import Plan, sum_of
from sweeps.report import totals_text
from sweeps.sweepfile import Sweep, SweepExecution, load_sweep
from sweeps.text import plural
from sweeps.where import chosen

if TYPE_CHECKING:
    from sweeps.submit import Cluster


@dataclass(frozen=True)
class Shape:
    """How the command line has runs share the machine; None for what the sweep file says."""

    slots: int | None = None
    """Runs at a time."""
    threads: int | None = None
    """CPU threads of one run."""
    device: str | None = None
    """auto, cpu, cuda or cuda:N."""

    def of(self, sweep: Sweep) -> SweepExecution:
        """The settings of a sweep under this shape."""
        return with_options(sweep.execution, self.slots, self.threads, self.device, sweep.source)


@dataclass(frozen=True)
class Asked:
    """One sweep, and what of it is wanted."""

    overview: Overview
    """The whole sweep."""
    places: list[int]
    """Places of the chosen runs in its grid."""
    layout: Layout
    """Slots."""
    plan: Plan
    """Of the chosen runs."""
    cluster: Cluster | None = None
    """Slurm settings; None on this machine."""

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.overview.sweep.name

    @property
    def left_out(self) -> int:
        """How many of its runs were not chosen."""
        return len(self.overview.ids) - len(self.places)

    @property
    def corrupt(self) -> list[str]:
        """One line for each chosen run that is corrupt."""
        states = [self.overview.states.get(run.id) for run in self.plan.runs]
        return [state.message for state in states if state and state.state == "corrupt" and state.message]

    def again(self) -> Asked:
        """The same with the states of this moment, and the speeds learnt meanwhile."""
        overview = self.overview.again()
        return replace(self, overview=overview, plan=overview.plan(self.layout).only(self.places))

    def say_totals(self) -> None:
        """Print what the chosen runs cost and how many are left out; warnings go to stderr."""
        print(totals_text(self.plan.totals, self.layout.said()))
        if self.left_out:
            print(f"left out: {self.left_out:,} of the sweep's {plural(len(self.overview.ids), 'run')}")
        for line in self.plan.warnings:
            typer.secho(f"warning: {line}", fg="yellow", err=True)
        for line in self.plan.notes:
            typer.echo(f"note: {line}", err=True)


@dataclass(frozen=True)
class Found:
    """A sweep before it is planned."""

    overview: Overview
    """The whole sweep."""
    places: list[int]
    """Places of the chosen runs in its grid."""
    execution: SweepExecution
    """How its runs are executed."""

    def planned(self, layout: Layout, cluster: Cluster | None = None) -> Asked:
        """The plan of the chosen runs on a layout."""
        plan = self.overview.plan(layout)
        return Asked(self.overview, self.places, layout, plan.only(self.places), cluster)


def find(
    written: Sequence[str],
    results: Path,
    shape: Shape,
    conditions: Sequence[str],
    before: Callable[[Sweep, SweepExecution], None] | None = None,
) -> list[Found]:
    """Read all sweeps and choose their runs, with a line for a sweep of which none is chosen.

    Args:
        written: names or files.
        results: results folder.
        shape: of the command line.
        conditions: of --where.
        before: a check that needs no more than the files.

    Raises:
        SweepError: a file or an option makes no sense, two sweeps have one name, one is a study.
    """
    files = [load_sweep(one) for one in written]
    for file in files:
        refuse_study(file)
        if sum(file.name == other.name for other in files) > 1:
            raise SweepError(f"'{file.name}' is given twice; name each sweep once")
    executions = [shape.of(file) for file in files]
    for file, execution in zip(files, executions, strict=True):
        if before is not None:
            before(file, execution)
    overviews = [look(file, results) for file in files]
    places = chosen(conditions, [overview.configs for overview in overviews])
    found = []
    for overview, some, execution in zip(overviews, places, executions, strict=True):
        if some:
            found.append(Found(overview, some, execution))
        else:
            n_runs = plural(len(overview.ids), "run")
            typer.echo(f"{overview.sweep.name}: none of its {n_runs} is chosen", err=True)
    return found


def refuse_study(file: Sweep) -> None:
    """SweepError where a study is given for a sweep."""
    if type(file) is not Sweep:
        command = f"python -m sweeps search {shlex.quote(file.argument)}"
        raise SweepError(f"{file.source}: is a study; take '{command}' (--dry-run prices it)")


def say_sum(asked: Sequence[Asked]) -> None:
    """Print the totals over several sweeps, a run of more than one counted once."""
    totals = sum_of([one.plan for one in asked])
    print(f"all {len(asked)} sweeps: {totals_text(totals, 'one sweep after another')}")
