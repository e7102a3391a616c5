"""The command `trend`: whether gaps to dense change with size."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import (
    add_filter,
    add_json,
    add_latex,
    add_maps,
    add_out,
    add_results,
    put_json,
    put_latex,
)
from analysis.terminal import say, show

if TYPE_CHECKING:
    from analysis.arms.trend import Trends
    from analysis.runs.table import Runs

SUMMARY = "Does the gap of each structure to dense, at equal size, tokens and seed, change with size?"
DESCRIPTION = """
Regresses log loss less that of the dense run on the log of that run's training FLOPs; no law is fitted.
Writes tables/NAME_trend.md, .tex, .json and .csv and figures/NAME_trend.*; several tables are taken together
under their joined name, with the runs of all in tables/NAME_runs.csv. With --filter or --flops, which look at
the table another way, files are written only where --out is given.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("trend", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("tables", nargs="+", metavar="SWEEP|CSV", help="sweeps or CSVs, taken together")
    add_maps(parser)
    add_filter(parser)
    parser.add_argument("--flops", metavar="CONVENTION", help="count FLOPs by another convention, e.g. 6N")
    add_results(parser)
    add_out(parser)
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Regress, write figure and tables, and print the report."""
    from analysis.arms.trend import trend
    from analysis.arms.trend_report import latex, markdown, to_json
    from analysis.output import write_if_changed
    from analysis.products.arms import trend_made
    from analysis.products.draw import write
    from analysis.runs.table import to_csv

    folder = args.out or args.results
    name, table = _runs(args, folder)
    found = trend(table, name)
    paths: list[Path] = []
    if args.out is not None or not _another_view(args):
        paths = write(f"{name}_trend", trend_made(found), folder)
        if len(args.tables) > 1:
            path = folder / "tables" / f"{name}_runs.csv"
            write_if_changed(path, to_csv(table))
            paths.append(path)
    put_latex(args.latex, lambda: latex(found))
    if args.json is not None and put_json(args.json, to_json(found)):
        return
    if sys.stdout.isatty():
        _show(found, paths)
    else:
        sys.stdout.write(markdown(found))


def _another_view(args: argparse.Namespace) -> bool:
    return args.condition is not None or args.flops is not None


def _runs(args: argparse.Namespace, folder: Path) -> tuple[str, Runs]:
    """The runs of all tables, and the name they go by."""
    from analysis.runs.loading import larger, load, together
    from analysis.runs.table import use_flops

    loaded = [load(table, args.results, args.maps, condition=args.condition) for table in args.tables]
    name = "-".join(dict.fromkeys(name for name, _ in loaded))
    if _another_view(args):
        runs = [one if args.flops is None else use_flops(one, args.flops) for _, one in loaded]
    else:
        runs = [
            larger(one, folder / "tables" / f"{of}_runs.csv", table)
            for table, (of, one) in zip(args.tables, loaded, strict=True)
        ]
    return name, runs[0] if len(runs) == 1 else together(runs)


def _show(found: Trends, paths: list[Path]) -> None:
    """The report on a terminal."""
    from analysis.arms.trend_report import (
        METHOD,
        SIZE_HEADER,
        SLOPE_HEADER,
        remarks,
        sentence,
        size_rows,
        slope_rows,
    )

    for arm in found.arms:
        say(sentence(arm))
    show(f"{found.name}: gaps to dense over size", SLOPE_HEADER, slope_rows(found))
    show("Gaps at each size", SIZE_HEADER, size_rows(found))
    for text in [*METHOD, f"Data: {found.coverage}.", *remarks(found), *map(str, paths)]:
        say(text)
