"""The command `report`: one HTML page of a sweep, for a group meeting."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import add_maps, add_out, add_results
from analysis.errors import AnalysisError
from analysis.terminal import error_line

if TYPE_CHECKING:
    from analysis.products.tracked import Tracked

SUMMARY = "Write one HTML page of a sweep: verdict, figures, runs, diagnostics, methods, cost, provenance."
DESCRIPTION = """
Writes reports/NAME.html: one file that needs no network, with figures that can be zoomed and tell values, and
a table of runs that can be sorted. Without a name, every tracked table gets its page. With the name of a
sweep, its runs are written to tables/NAME_runs.csv first, as 'export' does.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("report", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument(
        "tables", nargs="*", metavar="SWEEP|CSV", help="sweeps or CSVs; without, every tracked table"
    )
    add_maps(parser)
    add_results(parser)
    add_out(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the pages, and print their paths."""
    from analysis.products.tracked import Tracked
    from analysis.runs.export import export
    from analysis.runs.loading import check_folder, is_study
    from analysis.searches.trials import no_sweep

    results, out = args.results, args.out or args.results
    check_folder(results)
    if args.tables:
        commands = {}
        for table in args.tables:
            if is_study(table, results):
                raise AnalysisError(no_sweep(table))
            maps = "".join(f" --map {one}" for one in args.maps or [])
            name = export(table, results, out, args.maps)[0]
            commands[name] = f"python -m analysis report {table}{maps}"
        names = list(commands)
        # Others' tables stay read: figures over several sweeps are drawn of them too.
        tracked = Tracked(out, results)
    else:
        if args.out is not None or args.maps:
            raise AnalysisError("--out and --map: are for named sweeps or CSVs; name one")
        tracked = Tracked(results, results)
        names, commands = list(tracked.names), {}
        if not names and not tracked.problems:
            raise AnalysisError(f"{results / 'tables'}: no table *_runs.csv; name a sweep or CSV")
    problems = [] if args.tables else list(tracked.problems)
    for name in dict.fromkeys(names):
        try:
            path, said = _write(tracked, name, results, out, commands.get(name, ""))
        except AnalysisError as error:
            problems.append(str(error))
            continue
        print(path, flush=True)
        problems += [f"{name}: not drawn: {line}" for line in said]
    for problem in problems:
        error_line(problem)
    if problems:
        sys.exit(2)


def _write(tracked: Tracked, name: str, results: Path, out: Path, command: str) -> tuple[Path, list[str]]:
    from analysis.output import write_if_changed
    from analysis.page.gather import gather, page_products
    from analysis.page.parts import read_record
    from analysis.page.render import render
    from analysis.progress import Progress

    path = out / "reports" / f"{name}.html"
    record = replace(read_record(results, name), command=command)
    with Progress(f"report of {name}", len(page_products(tracked, name))) as progress:
        page, problems = gather(tracked, name, record, path, progress.update)
    write_if_changed(path, render(page))
    return path, problems
