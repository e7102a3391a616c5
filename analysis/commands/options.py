"""The words that commands share: TABLE, --map, --group, --filter, --cluster, --results, --out and --json."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from analysis.commandline import Parser

STDOUT = "-"


def add_results(parser: Parser) -> None:
    """Declare --results, whose default the environment variable SCALING_RESULTS gives."""
    parser.add_argument(
        "--results",
        type=Path,
        metavar="PATH",
        default=Path(os.environ.get("SCALING_RESULTS") or "results"),
        help="results folder, with runs/ and tables/ (environment: SCALING_RESULTS; default: %(default)s)",
    )


def add_maps(parser: Parser) -> None:
    """Declare --map; it may be given several times."""
    parser.add_argument(
        "--map",
        dest="maps",
        action="append",
        metavar="THEIRS=OURS",
        help="rename columns of a file, several joined by commas, such as params=N,tokens=D (either order)",
    )


def add_table(parser: Parser, optional: bool = False) -> None:
    """Declare TABLE and how to read it: --group, --map, --filter and --results."""
    parser.add_argument(
        "table",
        metavar="TABLE",
        nargs="?" if optional else None,
        help="name of a sweep, or a CSV, JSONL or parquet file",
    )
    add_group(parser)
    add_maps(parser)
    add_filter(parser)
    add_results(parser)


def add_group(parser: Parser) -> None:
    """Declare --group."""
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="column that tells the curves apart, such as structure: one curve for each of its values",
    )


def add_filter(parser: Parser) -> None:
    """Declare --filter."""
    parser.add_argument(
        "--filter",
        dest="condition",
        metavar="CONDITION",
        help="only runs that meet a condition over the columns, such as 'val_loss < 5 and params > 1e6'",
    )


def add_cluster(parser: Parser) -> None:
    """Declare --cluster."""
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="column that names the run of each point, where checkpoints of one run are points; errors are "
        "then of whole runs (default: a column run, run_name, run_id or wandb_id that repeats)",
    )


def add_out(parser: Parser) -> None:
    """Declare --out."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="folder for figures/ and tables/; the results folder without",
    )


def add_json(parser: Parser) -> None:
    """Declare --json, alone for stdout or with the file to write."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=_json_target,
        metavar="PATH",
        help="full precision, for scripts: alone or as - instead of the text, with the PATH of a file "
        "NAME.json besides it",
    )


def _json_target(word: str) -> str:
    # Also so that `--json NAME` takes no sweep or CSV for the file to write.
    if word != STDOUT and not word.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"the file to write must be named .json, and '{word}' is not; put --json last to print instead"
        )
    if word != STDOUT:
        _in_a_folder(word)
    return word


def add_latex(parser: Parser) -> None:
    """Declare --latex."""
    parser.add_argument(
        "--latex",
        type=_latex_target,
        metavar="PATH",
        help="write all tables as LaTeX (booktabs) to this file, named .tex, for \\input",
    )


def _latex_target(word: str) -> Path:
    if not word.endswith(".tex"):
        raise argparse.ArgumentTypeError(f"the file of tables must be named .tex, and '{word}' is not")
    _in_a_folder(word)
    return Path(word)


def put_latex(target: Path | None, make: Callable[[], str]) -> None:
    """Write LaTeX where --latex says, if it was given.

    Raises:
        AnalysisError: the file cannot be written.
    """
    from analysis.output import write_if_changed

    if target is not None:
        write_if_changed(target, make())


def card_target(word: str) -> Path:
    """The file of a methods card; its ending and folder are looked at before anything is computed."""
    if not word.endswith((".md", ".json", ".tex")):
        raise argparse.ArgumentTypeError(f"the card must be named .md, .json or .tex, and '{word}' is not")
    _in_a_folder(word)
    return Path(word)


def _in_a_folder(word: str) -> None:
    folder = Path(word).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{word}: there is no folder '{folder}' to write to; make it first")


def put_json(target: str | None, text: str) -> bool:
    """Write JSON where --json says, if it was given; returns whether it went to stdout.

    Raises:
        AnalysisError: the file cannot be written.
    """
    from analysis.output import write_if_changed

    if target == STDOUT:
        sys.stdout.write(text)
        return True
    if target is not None:
        write_if_changed(Path(target), text)
    return False


def number_of(word: str) -> float:
    """A number given as an option's value."""
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{word}' is no number") from None


def whole_number(word: str, low: int, high: int) -> int:
    """A whole number in a range, given as an option's value."""
    try:
        value = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{word}' is no whole number") from None
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{word} must lie from {low} to {high}")
    return value
