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
from trainer.commandline import HELP, run_app
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from analysis.analyse import Analysis
    from analysis.table import Runs

app = typer.Typer(
    help="Scaling laws from a sweep's runs or from any CSV.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
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
            metavar="[SWEEP|CSV]", help="a sweep or CSV; without, every tracked table tables/*_runs.csv"
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
    force: Annotated[
        bool, typer.Option("--force", help="replace a table even by one with fewer finished runs")
    ] = False,
) -> None:
    """Draw the scaling figure (SVG, PDF, PNG) and write its tables; unchanged files are left untouched.

    Without a name, only the tracked tables are read, never run folders. An incomplete sweep does not replace
    a table that has more finished runs: it is drawn from that table, unless --force is given.
    """
    tables = [table] if table is not None else [str(path) for path in _tracked(results)]
    for name in tables:
        for path in draw(name, results, out or results, maps, published, force):
            typer.echo(str(path))


def draw(
    table: str, results: Path, out: Path, maps: list[str] | None, published: bool, force: bool = False
) -> list[Path]:
    """Write figure and tables of one sweep or CSV below `out`; returns the paths."""
    from analysis.analyse import analyse
    from analysis.figures.published import SOURCE, find_published, published_runs, shared_structures
    from analysis.figures.scaling import scaling_figure
    from analysis.figures.style import save
    from analysis.output import write_if_changed
    from analysis.report import markdown, to_json
    from analysis.table import to_csv

    name, runs = load(table, results, maps)
    kept = out / "tables" / f"{name}_runs.csv"
    if not force:
        runs = _larger(runs, kept, table)
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


def _larger(runs: Runs, kept: Path, table: str) -> Runs:
    """The runs to draw where they would replace the table `kept`: its own where it has more of them.

    A sweep that is complete, with fewer runs than before, replaces its table all the same.

    Raises:
        AnalysisError: a CSV, which is not the table itself, would replace a table with more finished runs.
    """
    from analysis.table import read_csv

    if not kept.is_file():
        return runs
    done, expected = len(runs.table), runs.expected
    try:
        before = read_csv(kept)
    except AnalysisError:
        if done == expected:
            return runs
        raise
    had = len(before.table)
    if had <= done:
        return runs
    if _is_csv(table):
        raise AnalysisError(
            f"{table}: has {done} finished runs, and {kept} that it would replace has {had}; "
            "choose another --out, or replace it with --force"
        )
    if done == expected:
        _note(f"{table}: {done} of {expected} runs finished; {kept} had {had}: replaced")
        return runs
    _note(
        f"{table}: {done} of {expected} runs finished, and {kept} has {had}: drawn from it; "
        "--force replaces it"
    )
    return before


def load(table: str, results: Path, maps: list[str] | None) -> tuple[str, Runs]:
    """Find a sweep or CSV and read it; returns the name that its figures and tables get, and the runs.

    A sweep is read from its run folders. Where there is no record of it here, or none of its runs (a fresh
    clone), the tracked table of its finished runs stands in, and a line on stderr says so.
    """
    from analysis.table import parse_map, read_csv, runs_table

    mapping = parse_map(maps or [])
    path = Path(table)
    if _is_csv(table):
        name = re.sub(r"[^\w.-]+", "-", path.stem.removesuffix("_runs")).strip("-.") or "table"
        return name, read_csv(path, mapping)
    if mapping:
        raise AnalysisError(f"--map: '{table}' is a sweep, whose columns are known; leave --map out")
    if not re.fullmatch(r"[\w.-]+", table):
        raise AnalysisError(f"'{table}': is neither a file nor the name of a sweep; mend the name")
    _check_folder(results)
    tracked = results / "tables" / f"{table}_runs.csv"
    record = results / "sweeps" / f"{table}.json"
    runs = None if tracked.is_file() and not record.is_file() else runs_table(results, table)
    if tracked.is_file() and (runs is None or runs.table.empty):
        _note(f"{table}: no finished runs in {results / 'runs'}; read from the tracked table {tracked}")
        runs = read_csv(tracked)
    assert runs is not None
    return table, runs


def _is_csv(table: str) -> bool:
    path = Path(table)
    return path.suffix.lower() in (".csv", ".tsv") or path.is_file()


def _check_folder(results: Path) -> None:
    if results.exists() and not results.is_dir():
        raise AnalysisError(
            f"--results {results}: is no folder; name the folder that holds runs/ and tables/"
        )


def _tracked(results: Path) -> list[Path]:
    _check_folder(results)
    paths = sorted((results / "tables").glob("*_runs.csv"))
    if not paths:
        raise AnalysisError(
            f"{results / 'tables'}: no table *_runs.csv to draw; name a sweep or CSV, or run a sweep"
        )
    return paths


def _note(text: str) -> None:
    """Say on stderr what was read or kept other than asked for."""
    Console(stderr=True).print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


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
    run_app(app, "analysis", (AnalysisError, TrainerError))


if __name__ == "__main__":
    main()
