"""The command `document`: writes the parts of Markdown files anew that are quoted from tracked tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.commandline import Commands
from analysis.commands.options import add_results
from analysis.errors import AnalysisError

SUMMARY = "Write anew what Markdown files quote from tables; the prose between is kept."
DESCRIPTION = """
A quoted part stands between the marks '<!-- tables/NAME.md: table 1 -->' (or the beginning of a paragraph in
place of 'table 1') and '<!-- end -->'; files are named from the results folder.
"""
STALE = 1


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("document", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Markdown files")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"name the files that have changed since, write nothing (exit code {STALE} if there are any)",
    )
    add_results(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write, and print the paths of what changed."""
    from analysis.document import quoted, refreshed
    from analysis.output import write_if_changed

    stale = []
    for path in args.files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "is no text"
            raise AnalysisError(f"{path}: {said}; name a Markdown file") from None
        new = refreshed(text, args.results, str(path))
        if args.check and new != text:
            stale.append(path)
            print(f"{path}: what it quotes from {', '.join(quoted(text))} has changed")
        elif not args.check:
            changed = write_if_changed(path, new)
            print(f"{path}: {'written' if changed else 'unchanged'}")
    if stale:
        print(f"{len(stale)} stale; run the same without --check", file=sys.stderr)
        sys.exit(STALE)
