"""The command `dynamics`: loss spikes of a sweep over learning rates."""

from __future__ import annotations

import argparse
import sys

from analysis.commandline import Commands
from analysis.commands.options import add_out, add_results
from analysis.errors import AnalysisError
from analysis.progress import Progress
from analysis.terminal import say, show

SUMMARY = "Loss spikes over learning rates: where unguided training spikes and self-guided training does not."
DESCRIPTION = """
Reads the metrics of the sweep's runs (their thinned curves from tables/NAME_curves.csv where the runs are not
here) and writes tables/NAME_dynamics.md, NAME_dynamics.csv, NAME_curves.csv, figures/NAME_dynamics.*.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("dynamics", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("sweep", metavar="SWEEP", help="name of a sweep over learning rates")
    add_results(parser)
    add_out(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read the metrics, write figures and tables, and print the report."""
    from analysis.arms.dynamics import conclusions
    from analysis.arms.dynamics_tables import ARM_HEADER, arm_rows, markdown
    from analysis.products.draw import write
    from analysis.products.sweeps import dynamics_made
    from analysis.runs.export import find_dynamics, write_dynamics
    from analysis.runs.loading import is_file, larger, load

    if is_file(args.sweep):
        raise AnalysisError(f"{args.sweep}: a CSV of runs holds no training losses; name a sweep")
    results, folder = args.results, args.out or args.results
    name, runs = load(args.sweep, results, None)
    runs = larger(runs, folder / "tables" / f"{name}_runs.csv", args.sweep)
    with Progress("reading metrics", len(runs.table) + len(runs.lost)) as progress:
        found = find_dynamics(runs, name, results, results / "tables", progress.update)
    assert found is not None, "without tracked tables, missing metrics are refused"
    paths = write_dynamics(found, folder)
    for made_name, made in dynamics_made(found):
        paths += write(made_name, made, folder)
    if not sys.stdout.isatty():
        sys.stdout.write(markdown(found))
        return
    show(f"{name}: training dynamics", ARM_HEADER, arm_rows(found))
    for text in [f"Data: {found.coverage}.", *conclusions(found), *map(str, paths)]:
        say(text)
