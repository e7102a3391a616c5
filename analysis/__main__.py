"""Command line: `python -m analysis fit` prints laws and verdict, `figures` draws and writes the tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.errors import AnalysisError
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from analysis.analyse import Analysis
    from analysis.table import Runs

app = typer.Typer(
    help="Scaling laws from a sweep's runs or from any CSV.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Results = Annotated[
    Path, typer.Option("--results", envvar="SCALING_RESULTS", help="results folder, with runs/ and tables/")
]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="THEIRS=OURS", help="rename a column of a CSV; may be given several times"),
]
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
            metavar="[SWEEP|CSV]", help="a sweep or CSV; every sweep with a tracked table without"
        ),
    ] = None,
    maps: Maps = None,
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="folder for figures/ and tables/; the results folder without")
    ] = None,
    published: Annotated[
        bool, typer.Option(help="second panel: published points of the structures that the table shares")
    ] = True,
) -> None:
    """Draw the scaling figure (SVG, PDF, PNG) and write its tables; unchanged files are left untouched."""
    names = [table] if table is not None else _tracked(results)
    for path in [path for name in names for path in draw(name, results, out or results, maps, published)]:
        typer.echo(str(path))


def draw(table: str, results: Path, out: Path, maps: list[str] | None, published: bool) -> list[Path]:
    """Write figure and tables of one sweep or CSV below `out`; returns the paths."""
    from analysis.analyse import analyse
    from analysis.figures.published import SOURCE, find_published, published_runs, shared_structures
    from analysis.figures.scaling import scaling_figure
    from analysis.figures.style import save
    from analysis.output import write_if_changed
    from analysis.report import markdown, to_json
    from analysis.table import to_csv

    name, runs = load(table, results, maps)
    analysis = analyse(runs, name)
    shared = None
    if published and (path := find_published(results)) is not None:
        shared = shared_structures(published_runs(path), analysis.structures)
    panel = analyse(shared, "Published") if shared is not None else None
    paths = save(scaling_figure(analysis, panel, SOURCE), out / "figures" / f"{name}_scaling")
    texts = {".md": markdown(analysis), ".json": to_json(analysis), "_runs.csv": to_csv(runs)}
    for ending, text in texts.items():
        path = out / "tables" / f"{name}{ending}"
        write_if_changed(path, text)
        paths.append(path)
    return paths


def load(table: str, results: Path, maps: list[str] | None) -> tuple[str, Runs]:
    """Find a sweep or CSV and read it; returns the name that its figures and tables get, and the runs.

    A sweep is read from its run folders. Where there is no record of it here, or none of its runs (a fresh
    clone), the tracked table of its finished runs stands in.
    """
    from analysis.table import parse_map, read_csv, runs_table

    mapping = parse_map(maps or [])
    path = Path(table)
    if path.suffix.lower() in (".csv", ".tsv") or path.is_file():
        name = re.sub(r"[^\w.-]+", "-", path.stem.removesuffix("_runs")).strip("-.") or "table"
        return name, read_csv(path, mapping)
    if mapping:
        raise AnalysisError(f"--map: '{table}' is a sweep, whose columns are known; leave --map out")
    if not re.fullmatch(r"[\w.-]+", table):
        raise AnalysisError(f"'{table}': is neither a file nor the name of a sweep; mend the name")
    tracked = results / "tables" / f"{table}_runs.csv"
    record = results / "sweeps" / f"{table}.json"
    if tracked.is_file() and not record.is_file():
        return table, read_csv(tracked)
    runs = runs_table(results, table)
    if runs.table.empty and tracked.is_file():
        return table, read_csv(tracked)
    return table, runs


def _tracked(results: Path) -> list[str]:
    names = sorted(path.name.removesuffix("_runs.csv") for path in (results / "tables").glob("*_runs.csv"))
    if not names:
        raise AnalysisError(
            f"{results / 'tables'}: no table *_runs.csv to draw; name a sweep or CSV, or run a sweep"
        )
    return names


def _show(analysis: Analysis) -> None:
    """The report on a terminal."""
    from analysis.report import FIT_HEADER, METHOD, RUN_HEADER, fit_rows, run_rows

    console = Console()
    rows, notes = fit_rows(analysis)
    for title, header, body in (
        ("runs", RUN_HEADER, run_rows(analysis.runs.table)),
        (f"{analysis.name}: held-out loss over training FLOPs", FIT_HEADER, rows),
    ):
        grid = Table(title=title, title_justify="left", title_style="bold")
        for column in header:
            grid.add_column(column, justify="left" if column in ("run", "size", "structure") else "right")
        for cells in body:
            # Text, since rich's markup would take the numbers of notes for styles.
            grid.add_row(*map(Text, cells))
        console.print(grid)
    for i, note in enumerate(notes, 1):
        console.print(f"[{i}] {note}", markup=False, highlight=False)
    console.print(METHOD, style="dim", markup=False, highlight=False)
    console.print(f"Data: {analysis.runs.coverage()}.", markup=False, highlight=False)
    console.print(f"Verdict. {analysis.comparison.verdict}", style="bold", markup=False, highlight=False)


def main() -> None:
    """Run the command line; a user's mistake is one red line on stderr and exit code 2."""
    try:
        app()
    except (AnalysisError, TrainerError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
