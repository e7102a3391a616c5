"""The command `reproduce`: published scaling studies fitted again, published value against ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.commandline import Commands
from analysis.commands.options import add_json, add_results, put_json

SUMMARY = "Fit published scaling studies again and compare: value, difference, verdict."
DESCRIPTION = """
Reads the tables of published facts in results/published. Prints a Markdown table for each study; exit code 1
where a number differs that should not.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("reproduce", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="names of studies; all without")
    add_results(parser)
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="folder to write reproduce.md to; without, only print"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fit, print, and leave with exit code 1 where a number differs that should not."""
    from analysis.output import write_if_changed
    from analysis.progress import Progress
    from analysis.reproduce.report import latex, markdown, to_json
    from analysis.reproduce.studies import STUDIES, chosen, published_folder

    names, folder = chosen(args.studies), published_folder(args.results)
    found = {}
    with Progress("studies fitted again", len(names)) as progress:
        for done, name in enumerate(names):
            progress.name = f"fitting {name} again"
            progress.update(done)
            found[name] = STUDIES[name](folder)
    text = markdown(found)
    if args.out is not None:
        part = "" if len(names) == len(STUDIES) else f"_{'_'.join(names)}"
        write_if_changed(args.out / f"reproduce{part}.md", text)
        write_if_changed(args.out / f"reproduce{part}.tex", latex(found))
    if args.json is None or not put_json(args.json, to_json(found)):
        sys.stdout.write(text)
    if not all(row.holds for rows in found.values() for row in rows):
        sys.exit(1)
