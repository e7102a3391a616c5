"""The command `known`: fitted irreducible losses against the one that is known of the text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import add_json, add_latex, add_out, add_table, put_json, put_latex
from analysis.terminal import say, show

if TYPE_CHECKING:
    from analysis.known.judged import Known

SUMMARY = "Where the irreducible loss is known: how often a fitted one holds it, and what it does to alpha."
DESCRIPTION = """
TABLE is a ladder of budgets on text whose entropy is known: a column val_entropy (of the held-out text) or
entropy_rate (of its source), or --irreducible. Every structure and seed, every structure, and all with one E
are fitted with E free and with E at the known value.

Writes tables/NAME_known.md, .tex, .json and .csv and figures/NAME_known.*.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("known", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    add_table(parser)
    parser.add_argument(
        "--irreducible", type=float, metavar="LOSS", help="known irreducible loss of all runs, nats/token"
    )
    add_out(parser)
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fit, write figure and tables, and print the report."""
    from analysis.known.judged import judge
    from analysis.known.report import latex, markdown, to_json
    from analysis.products.draw import write
    from analysis.products.known import known_made
    from analysis.runs.loading import load, with_flops

    name, runs = load(args.table, args.results, args.maps, ("val_loss",), args.group, args.condition)
    found = judge(with_flops(runs), name, args.irreducible)
    paths = write(f"{name}_known", known_made(found), args.out or args.results)
    put_latex(args.latex, lambda: latex(found))
    if args.json is not None and put_json(args.json, to_json(found)):
        return
    if sys.stdout.isatty():
        _show(found, paths)
    else:
        sys.stdout.write(markdown(found))


def _show(found: Known, paths: list[Path]) -> None:
    """The report on a terminal."""
    from analysis.known import report

    for (_, table), heading in zip(
        report.tables(found), (f"{found.name}: known irreducible loss", "Local exponents"), strict=True
    ):
        show(heading, table.header, table.rows)
        for text in table.notes:
            say(text)
    sentences = [text.replace("**", "") for text in report.summary(found)]
    for text in [report.opening(found), *sentences, *report.remarks(found), *map(str, paths)]:
        say(text)
