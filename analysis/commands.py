"""The commands `gaps` and `dynamics`, and the options that all commands share."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.table import Runs

Results = Annotated[
    Path, typer.Option("--results", envvar="SCALING_RESULTS", help="results folder, with runs/ and tables/")
]
Out = Annotated[Path | None, typer.Option(help="folder for figures/ and tables/; the results folder without")]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="THEIRS=OURS", help="rename a column of a CSV; may be given several times"),
]
LEFT = ("run", "size", "structure", "treatment", "contrast", "verdict")


def gaps(
    tables: Annotated[
        list[str], typer.Argument(metavar="SWEEP|CSV...", help="sweeps or CSVs, taken together")
    ],
    maps: Maps = None,
    results: Results = Path("results"),
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="full precision, for scripts")] = False,
) -> None:
    """Every structure and treatment against the dense runs of its size, paired by seed, with intervals.

    Writes tables/NAME_gaps.md, .json and .csv and figures/NAME_gaps.*; several tables are taken together
    under their joined name, with the runs of all in tables/NAME_runs.csv.
    """
    from analysis.drawing import draw_gaps
    from analysis.gaps import gaps as find_gaps
    from analysis.gaps_report import (
        CONTRAST_HEADER,
        ROW_HEADER,
        contrast_rows,
        gap_rows,
        markdown,
        method,
        to_json,
    )
    from analysis.loading import larger, load
    from analysis.output import write_if_changed
    from analysis.table import to_csv

    folder = out or results
    loaded = [load(table, results, maps) for table in tables]
    runs = [
        larger(r, folder / "tables" / f"{n}_runs.csv", t) for t, (n, r) in zip(tables, loaded, strict=True)
    ]
    name = "-".join(dict.fromkeys(name for name, _ in loaded))
    table = runs[0] if len(runs) == 1 else together(runs)
    found = find_gaps(table, name)
    paths = draw_gaps(found, folder)
    if len(runs) > 1:
        path = folder / "tables" / f"{name}_runs.csv"
        write_if_changed(path, to_csv(table))
        paths.append(path)
    if as_json:
        typer.echo(to_json(found), nl=False)
        return
    if not sys.stdout.isatty():
        typer.echo(markdown(found), nl=False)
        return
    show(f"{name}: gaps to dense", ROW_HEADER, gap_rows(found))
    if found.contrasts:
        show("within a structure", CONTRAST_HEADER, contrast_rows(found))
    console = Console()
    console.print(method(found), style="dim", markup=False, highlight=False)
    for line in [f"Data: {found.coverage}.", *found.notes, *map(str, paths)]:
        console.print(line, markup=False, highlight=False)


def together(tables: Sequence[Runs]) -> Runs:
    """The runs of several tables as one; a run that several of them hold counts once.

    Raises:
        AnalysisError: a run id stands for different losses.
    """
    import pandas as pd

    frames = [runs.table for runs in tables]
    joined = pd.concat(frames, ignore_index=True)
    if "run_id" in joined:
        known = joined["run_id"].fillna("") != ""
        losses = joined[known].groupby("run_id")["val_loss"].nunique()
        if (losses > 1).any():
            raise AnalysisError(
                f"run {losses.index[losses > 1][0]}: the tables give it different losses; draw the older "
                "table anew with 'python -m analysis figures'"
            )
        joined = joined[~(known & joined.duplicated("run_id"))].reset_index(drop=True)
    states = ("missing", "diverged", "failed", "corrupted")
    ids = {state: tuple(dict.fromkeys(i for r in tables for i in getattr(r, state))) for state in states}
    lost = {row.get("run_id", ""): row for runs in tables for row in runs.lost}
    return replace(tables[0], table=joined, lost=tuple(lost.values()), **ids)


def dynamics(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="name of a sweep over learning rates")],
    results: Results = Path("results"),
    out: Out = None,
) -> None:
    """Loss spikes over learning rates: where unguided training spikes and self-guided training does not.

    Reads the metrics of the sweep's runs (their thinned curves from tables/NAME_curves.csv where the runs are
    not here) and writes tables/NAME_dynamics.md, NAME_dynamics.csv, NAME_curves.csv, figures/NAME_dynamics.*.
    """
    from rich.progress import Progress

    from analysis.drawing import draw_dynamics, find_dynamics
    from analysis.dynamics import conclusions
    from analysis.dynamics_tables import ARM_HEADER, arm_rows, markdown
    from analysis.loading import is_csv, larger, load

    if is_csv(sweep):
        raise AnalysisError(f"{sweep}: a CSV of runs holds no training losses; name a sweep")
    folder = out or results
    name, runs = load(sweep, results, None)
    runs = larger(runs, folder / "tables" / f"{name}_runs.csv", sweep)
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading metrics", total=len(runs.table) + len(runs.lost))
        found = find_dynamics(
            runs, name, results, results / "tables", lambda count: progress.update(task, completed=count)
        )
    assert found is not None, "without tracked tables, missing metrics are refused"
    paths = draw_dynamics(found, folder)
    if not sys.stdout.isatty():
        typer.echo(markdown(found), nl=False)
        return
    show(f"{name}: training dynamics", ARM_HEADER, arm_rows(found))
    console = Console()
    for line in [f"Data: {found.coverage}.", *conclusions(found), *map(str, paths)]:
        console.print(line, markup=False, highlight=False)


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for column in header:
        grid.add_column(column, justify="left" if column in LEFT else "right")
    for cells in rows:
        # Text, since rich's markup would take the numbers of notes for styles.
        grid.add_row(*map(Text, cells))
    Console().print(grid)
