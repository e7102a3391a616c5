"""The command `bench`: how long a fit, its bootstrap and the imports take on this machine."""

from __future__ import annotations

import argparse
import sys

from analysis.commandline import Commands
from analysis.commands.options import whole_number

SUMMARY = "Time a fit of 240 points from all starts, 4,000 bootstrap refits, and imports."
DESCRIPTION = """
Seconds of processor time, the median over interleaved repeats; imports less an empty interpreter.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("bench", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("--repeats", type=_repeats, default=7, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=run)


def _repeats(word: str) -> int:
    return whole_number(word, 1, 1000)


def run(args: argparse.Namespace) -> None:
    """Time, and print."""
    from analysis.bench import bench
    from analysis.progress import Progress
    from analysis.tables import markdown_table

    with Progress("repeats", args.repeats) as progress:
        timings, _ = bench(args.repeats, progress.update)
    rows = [[t.what, f"{t.seconds:.2f}", f"{t.low:.2f} to {t.high:.2f}"] for t in timings]
    sys.stdout.write(markdown_table(("what", "seconds", "range"), rows) + "\n")
