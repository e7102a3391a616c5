"""Command line: `fit` prints laws and verdict, `gaps` and `dynamics` compare arms, `figures` draws all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from analysis import commands
from analysis.commands import Maps, Out, Results, show
from analysis.errors import AnalysisError
from trainer.commandline import HELP, run_app
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from analysis.analyse import Analysis

app = typer.Typer(
    help="Scaling laws, gaps and training dynamics from a sweep's runs, or from any CSV.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)

Irreducible = Annotated[
    float | None,
    typer.Option("--irreducible", help="also test under this known irreducible loss, nats/token"),
]


@app.command()
def fit(
    table: Annotated[str, typer.Argument(metavar="SWEEP_OR_CSV", help="name of a sweep, or a CSV file")],
    maps: Maps = None,
    results: Results = Path("results"),
    flops: Annotated[str | None, typer.Option(help="count FLOPs by another convention, e.g. 6N")] = None,
    irreducible: Irreducible = None,
    as_json: Annotated[bool, typer.Option("--json", help="full precision, for scripts")] = False,
) -> None:
    """Fit the scaling laws of every structure and say whether their exponents differ."""
    from analysis.analyse import analyse
    from analysis.loading import load
    from analysis.report import markdown, to_json
    from analysis.table import use_flops

    name, runs = load(table, results, maps)
    if flops is not None:
        runs = use_flops(runs, flops)
    analysis = analyse(runs, name, irreducible)
    if as_json:
        typer.echo(to_json(analysis), nl=False)
    elif sys.stdout.isatty():
        _show(analysis)
    else:
        typer.echo(markdown(analysis), nl=False)


@app.command()
def figures(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP|CSV]", help="a sweep or CSV; without, every tracked table below tables/"
        ),
    ] = None,
    maps: Maps = None,
    results: Results = Path("results"),
    out: Out = None,
    published: Annotated[
        bool, typer.Option(help="second panel: published points of the structures that the table shares")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="replace a table even by one with fewer finished runs")
    ] = False,
) -> None:
    """Draw figures (SVG, PDF, PNG) and write their tables; unchanged files are left untouched.

    Every table of runs gets its scaling figure, one with treatments also its gaps to dense, one over learning
    rates its training dynamics. Without a name, only the tracked tables are read, never run folders, and the
    benches are drawn too. An incomplete sweep does not replace a table that has more finished runs: it is
    drawn from that table, unless --force is given.
    """
    from analysis.drawing import draw, draw_benches
    from analysis.loading import check_folder

    if table is not None:
        for path in draw(table, results, out or results, maps, published, force):
            typer.echo(str(path))
        return
    check_folder(results)
    tracked = sorted((results / "tables").glob("*_runs.csv"))
    drawn = [
        path for name in tracked for path in draw(str(name), results, out or results, maps, published, force)
    ]
    drawn += draw_benches(results, out or results)
    if not drawn:
        raise AnalysisError(
            f"{results / 'tables'}: no table *_runs.csv to draw; name a sweep or CSV, or run a sweep"
        )
    for path in drawn:
        typer.echo(str(path))


app.command()(commands.gaps)
app.command()(commands.dynamics)


def _show(analysis: Analysis) -> None:
    """The report on a terminal."""
    from analysis.report import FIT_HEADER, METHOD, RUN_HEADER, fit_rows, run_rows

    console = Console()
    rows, notes = fit_rows(analysis)
    show("runs", RUN_HEADER, run_rows(analysis.runs.table))
    show(f"{analysis.name}: held-out loss over training FLOPs", FIT_HEADER, rows)
    for i, note in enumerate(notes, 1):
        console.print(f"[{i}] {note}", markup=False, highlight=False)
    console.print(METHOD, style="dim", markup=False, highlight=False)
    console.print(f"Data: {analysis.runs.coverage()}.", markup=False, highlight=False)
    console.print(f"Verdict. {analysis.comparison.verdict}", style="bold", markup=False, highlight=False)


def main() -> None:
    """Run the command line; a user's mistake is one red line on stderr and exit code 2."""
    run_app(app, "analysis", (AnalysisError, TrainerError))


if __name__ == "__main__":
    main()
