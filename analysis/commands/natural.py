"""The command `natural`: how many parameters so many tokens want, N ~ D^gamma, by three estimates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import (
    add_cluster,
    add_filter,
    add_group,
    add_json,
    add_maps,
    add_out,
    add_results,
    put_json,
    whole_number,
)
from analysis.terminal import say, show

if TYPE_CHECKING:
    from analysis.natural.estimate import Natural

SUMMARY = "Estimate gamma of N ~ D^gamma: measured N(D), compute-optimal N*(D), and a bound from beta."
DESCRIPTION = """
The tables need params, tokens and val_loss of a grid of sizes and token budgets; a column entropy_rate gives
the irreducible loss, else it is fitted. What the runs do not identify is refused with the reason.

The bound from beta is this project's reconstruction of that of arXiv 2402.14746, not its theorem. Writes
tables/NAME_natural.md, .tex, .json and .csv and figures/NAME_natural.*; several tables are curves of one
answer.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("natural", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="sweeps, or CSV, JSONL or parquet files")
    add_group(parser)
    add_maps(parser)
    add_filter(parser)
    parser.add_argument(
        "--within",
        type=float,
        metavar="SHARE",
        help="measured: N whose excess loss is within this share of the least one at its D (default: 0.5)",
    )
    parser.add_argument(
        "--reference",
        choices=("limit", "largest"),
        default="limit",
        help="the least excess: of N without limit, fitted at every budget, or of the largest size there, "
        "which draws gamma towards 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--irreducible", type=float, metavar="LOSS", help="known irreducible loss of all runs, nats/token"
    )
    parser.add_argument(
        "--resamples",
        type=_count,
        default=1000,
        metavar="N",
        help="of the bootstrap, and simulated tables (default: %(default)s)",
    )
    add_cluster(parser)
    add_results(parser)
    add_out(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def _count(word: str) -> int:
    return whole_number(word, 20, 1_000_000)


def run(args: argparse.Namespace) -> None:
    """Estimate, write figure and tables, and print the report."""
    from analysis.fit import Settings
    from analysis.natural.report import markdown, to_json
    from analysis.natural.study import WITHIN, Options, curves_of, natural
    from analysis.products.draw import write
    from analysis.products.natural import natural_made
    from analysis.progress import Progress
    from analysis.runs.loading import load, with_flops

    options = Options(
        WITHIN if args.within is None else args.within,
        args.reference,
        args.irreducible,
        Settings(resamples=args.resamples),
        args.resamples,
    )
    curves, coverage = [], []
    several = len(args.tables) > 1
    names = []
    for table in args.tables:
        name, runs = load(
            table, args.results, args.maps, ("params", "tokens", "val_loss"), args.group, args.condition
        )
        runs = with_flops(runs)
        curves += curves_of(runs, name, several, args.cluster)
        coverage.append(f"{name}: {runs.coverage()}" if several else runs.coverage())
        names.append(name)
    with Progress("curves estimated", len(curves)) as progress:
        found = natural(curves, "-".join(dict.fromkeys(names)), options, "; ".join(coverage), progress.update)
    paths = write(f"{found.name}_natural", natural_made(found), args.out or args.results)
    if args.json is not None and put_json(args.json, to_json(found)):
        return
    if sys.stdout.isatty():
        _show(found, paths)
    else:
        sys.stdout.write(markdown(found))


def _show(found: Natural, paths: list[Path]) -> None:
    """The report on a terminal."""
    from analysis.natural import report

    for key, table in report.tables(found):
        heading = report.HEADINGS.get(key, f"{found.name}: natural scaling law")
        show(heading, table.header, table.rows)
    texts = [report.RECONSTRUCTION, report.method(found), report.SAME_RATIO]
    data = [f"Data: {found.coverage}."] if found.coverage else []
    for text in [*texts, *data, *report.remarks(found), *report.verdicts(found), *map(str, paths)]:
        say(text)
