"""The command `export`: writes the runs of a sweep as a tracked table."""

from __future__ import annotations

import argparse

from analysis.commandline import Commands
from analysis.commands.options import add_maps, add_out, add_results

SUMMARY = (
    "Write the runs of a sweep or study as a CSV in tables/, from which all figures and reports are made."
)
DESCRIPTION = """
Writes tables/NAME_runs.csv, and of a sweep over learning rates the training curves besides
(NAME_curves.csv, NAME_dynamics.csv). Of a study of shapes ('python -m sweeps search') its trials are written
in place of that: NAME_trials.csv, and NAME_importance.csv. Runs that failed, diverged or are missing stand
in the table with their state. A table that holds more finished runs is not replaced by one with fewer, unless
--force is given.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("export", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument(
        "sweeps", nargs="+", metavar="SWEEP|CSV", help="sweeps, studies, or CSVs of other origin"
    )
    add_maps(parser)
    add_results(parser)
    add_out(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace a table even by one with fewer finished runs"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, and say for each sweep how complete it is."""
    from analysis.runs.export import export

    for sweep in args.sweeps:
        name, runs, paths = export(sweep, args.results, args.out or args.results, args.maps, args.force)
        print(f"{name}: {runs.coverage()}")
        for path in paths:
            print(path)
