"""The command `figures`: draws every figure of one table, or of all tracked ones, and writes their tables."""

from __future__ import annotations

import argparse

from analysis.commandline import Commands
from analysis.commands.options import add_maps, add_out, add_results
from analysis.errors import AnalysisError

SUMMARY = "Draw figures (SVG, PDF, PNG) and write their tables; unchanged files are left untouched."
DESCRIPTION = """
Every table of runs gets its scaling figure, one with treatments also its gaps to dense, one over learning
rates its training dynamics. Without a name, only the tracked tables are read, never run folders, and the
benches are drawn too. An incomplete sweep does not replace a table that has more finished runs: it is drawn
from that table, unless --force is given.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("figures", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument(
        "table",
        nargs="?",
        metavar="SWEEP|CSV",
        help="a sweep or CSV; without, every tracked table below tables/",
    )
    add_maps(parser)
    add_results(parser)
    add_out(parser)
    parser.add_argument(
        "--published",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="second panel: published points of the structures that the table shares",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a table even by one with fewer finished runs"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw, and print the paths of what was drawn."""
    from analysis.drawing import draw, draw_benches
    from analysis.runs.loading import check_folder

    results = args.results
    out = args.out or results
    check_folder(results)
    tracked = sorted((results / "tables").glob("*_runs.csv"))
    tables = [str(path) for path in tracked] if args.table is None else [args.table]
    drawn = [path for t in tables for path in draw(t, results, out, args.maps, args.published, args.force)]
    if args.table is None:
        drawn += draw_benches(results, out)
    if not drawn:
        raise AnalysisError(
            f"{results / 'tables'}: no table *_runs.csv to draw; name a sweep or CSV, or run a sweep"
        )
    for path in drawn:
        print(path)
