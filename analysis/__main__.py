"""Command line: laws, comparisons, optima, the natural law, diagnosis, design, gaps, trends, reports."""

from __future__ import annotations

import os
import sys

from analysis.commandline import Parser, run
from analysis.commands import (
    bench,
    compare,
    coverage,
    design,
    diagnose,
    document,
    dynamics,
    export,
    figures,
    fit,
    gaps,
    isoflop,
    known,
    natural,
    report,
    reproduce,
    trend,
)
from analysis.errors import AnalysisError
from trainer.errors import TrainerError

COMMANDS = (
    fit, compare, diagnose, isoflop, natural, known, design, gaps, trend, dynamics, export, figures, document,
    report, reproduce, coverage, bench,
)  # fmt: skip
"""Modules, each with `add(commands)`; the help lists them in this order."""


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole, and those of its commands by name."""
    parser = Parser(
        prog="python -m analysis",
        description="Scaling laws, gaps and training dynamics from a sweep's runs, or from any CSV.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser, dict(commands.choices)


def main() -> None:
    """Run the command line; a user's mistake is one red line on stderr and exit code 2."""
    # Before numpy is loaded: the matrices are small, and threads would wait for several times the work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run(*parsers(), sys.argv[1:], (AnalysisError, TrainerError))


if __name__ == "__main__":
    main()
