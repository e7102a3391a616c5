"""The command `gaps`: every arm against the dense runs of its size."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import add_json, add_maps, add_out, add_results, put_json
from analysis.terminal import say, show

if TYPE_CHECKING:
    from analysis.arms.gaps import Gaps

SUMMARY = "Every structure and treatment against the dense runs of its size, paired by seed, with intervals."
DESCRIPTION = """
Writes tables/NAME_gaps.md, .json and .csv and figures/NAME_gaps.*; several tables are taken together under
their joined name, with the runs of all in tables/NAME_runs.csv.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("gaps", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("tables", nargs="+", metavar="SWEEP|CSV", help="sweeps or CSVs, taken together")
    add_maps(parser)
    add_results(parser)
    add_out(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare, write figure and tables, and print the report."""
    from analysis.arms.gaps import gaps
    from analysis.arms.gaps_report import markdown, to_json
    from analysis.output import write_if_changed
    from analysis.products.draw import write
    from analysis.products.sweeps import gaps_made
    from analysis.runs.loading import larger, load, together
    from analysis.runs.table import to_csv

    folder = args.out or args.results
    loaded = [load(table, args.results, args.maps) for table in args.tables]
    runs = [
        larger(r, folder / "tables" / f"{n}_runs.csv", t)
        for t, (n, r) in zip(args.tables, loaded, strict=True)
    ]
    name = "-".join(dict.fromkeys(name for name, _ in loaded))
    table = runs[0] if len(runs) == 1 else together(runs)
    found = gaps(table, name)
    paths = write(f"{name}_gaps", gaps_made(found), folder)
    if len(runs) > 1:
        path = folder / "tables" / f"{name}_runs.csv"
        write_if_changed(path, to_csv(table))
        paths.append(path)
    if args.json is not None and put_json(args.json, to_json(found)):
        return
    if sys.stdout.isatty():
        _show(found, paths)
    else:
        sys.stdout.write(markdown(found))


def _show(found: Gaps, paths: list[Path]) -> None:
    """The report on a terminal."""
    from analysis.arms.gaps_report import CONTRAST_HEADER, ROW_HEADER, contrast_rows, gap_rows, method

    show(f"{found.name}: gaps to dense", ROW_HEADER, gap_rows(found))
    if found.contrasts:
        show("Within a structure", CONTRAST_HEADER, contrast_rows(found))
    for text in [method(found), f"Data: {found.coverage}.", *found.notes, *map(str, paths)]:
        say(text)
