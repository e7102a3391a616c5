"""The command `coverage`: simulations of how often intervals hold the truth, and tests reject it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.commandline import Commands
from analysis.commands.options import add_json, add_latex, put_json, put_latex

SUMMARY = "Simulate whether intervals hold the truth as often as they say, and tests reject as seldom."
DESCRIPTION = """
Fits simulated tables of known laws as any table is fitted, with default settings. Prints three Markdown
tables: coverage of the 95 % intervals, and rejections of equal exponents where they are equal, with equal and
with unequal noise. The same --simulations and --seed give the same tables.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("coverage", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument(
        "--simulations",
        type=int,
        default=400,
        metavar="N",
        help="tables of each study with a bootstrap; five times as many of the others (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="folder to write coverage.md to; without, only print"
    )
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Simulate, and print the report."""
    from analysis.coverage.report import latex, markdown, simulate, to_json
    from analysis.output import write_if_changed

    found = simulate(args.simulations, args.seed)
    text = markdown(found)
    if args.out is not None:
        write_if_changed(args.out / "coverage.md", text)
    put_latex(args.latex, lambda: latex(found))
    if args.json is None or not put_json(args.json, to_json(found)):
        sys.stdout.write(text)
