"""The command `figures`: draws every figure of one table, or of all tracked ones, and writes their tables."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import add_maps, add_out, add_results
from analysis.errors import AnalysisError
from analysis.terminal import error_line

if TYPE_CHECKING:
    from analysis.products.product import Product
    from analysis.products.tracked import Tracked

SUMMARY = "Draw figures (SVG, PDF, PNG) and write their tables; unchanged files are left untouched."
DESCRIPTION = """
Without a name, everything is drawn from the tracked tables alone (sweeps, published numbers, benches), never
from run folders. manifest.json records for every figure the hashes of its tables, the runs, code, versions
and command. A table that cannot be read is named, and all other figures come out.

With the name of a sweep, its runs are written to tables/NAME_runs.csv first, as 'export' does; with that of a
study, its trials to tables/NAME_trials.csv. An incomplete sweep does not replace a table with more finished
runs: it is drawn from that table, unless --force is given.
"""
STALE = 1
"""Exit code of --check where something is stale; mistakes are 2."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("figures", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    parser.add_argument(
        "table",
        nargs="?",
        metavar="SWEEP|STUDY|CSV",
        help="a sweep, study or CSV; without, every tracked table below tables/",
    )
    add_maps(parser)
    add_results(parser)
    add_out(parser)
    parser.add_argument(
        "--published",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="beside a sweep's points the published ones of the structures that it shares",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a table even by one with fewer finished runs"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="FIGURE",
        help="only this one of the tracked figures, or all that match, as 'lowrank_*'; may repeat",
    )
    parser.add_argument("--list", action="store_true", help="name all figures and their tables; draw nothing")
    parser.add_argument(
        "--check",
        action="store_true",
        help="name the figures whose tables or files have changed since they were drawn; draw nothing "
        f"(exit code {STALE} if there are any)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw, and print the paths of what was drawn."""
    from analysis.products.draw import draw_products, draw_table
    from analysis.runs.loading import check_folder

    results = args.results
    check_folder(results)
    if args.table is None:
        _refuse_options(args)
        if args.check:
            _check(results, results if args.published else None, args.only)
            return
        published = results if args.published else None
        products, tracked = _products(results, published, args.only)
        if args.list:
            _list(products, results)
            return
        own = any(path.is_relative_to(tracked.tables) for one in products for path in one.inputs)
        if not own and not tracked.problems and args.only is None:
            raise AnalysisError(
                f"{results / 'tables'}: no table *_runs.csv or *_trials.csv to draw; name a sweep or CSV, or "
                "run a sweep"
            )
        outcome = draw_products(products, tracked, published)
    else:
        if args.only or args.check or args.list:
            raise AnalysisError(
                "--only, --check and --list are of the tracked figures of all tables; name no sweep or CSV"
            )
        out = args.out or results
        outcome = draw_table(args.table, results, out, args.maps, args.published, args.force)
    for path in outcome.paths:
        print(path)
    _complain(outcome.problems)


def _refuse_options(args: argparse.Namespace) -> None:
    """Options that only a single table has would be ignored in silence."""
    for option, given in (("--map", args.maps), ("--force", args.force), ("--out", args.out)):
        if given:
            raise AnalysisError(
                f"{option}: is for one sweep or CSV; name it (python -m analysis figures NAME {option} ...)"
            )


def _products(
    results: Path, published: Path | None, only: list[str] | None = None
) -> tuple[list[Product], Tracked]:
    from analysis.products.catalogue import catalogue
    from analysis.products.tracked import Tracked

    tracked = Tracked(results, published)
    products = catalogue(tracked)
    if only is None:
        return products, tracked
    names = [product.name for product in products]
    wanted: set[str] = set()
    for name in only:
        # A name that is there is meant itself, whatever signs it has.
        found = {name} & set(names) or set(fnmatch.filter(names, name))
        wanted |= found
        if not found:
            _complain(tracked.problems, leave=False)
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise AnalysisError(f"--only {name}: there is no such figure{hint} (all: figures --list)")
    return [product for product in products if product.name in wanted], tracked


def _list(products: list[Product], results: Path) -> None:
    from analysis.products.manifest import key

    width = max(len(product.name) for product in products)
    for product in products:
        print(f"{product.name:{width}}  {', '.join(key(path, results) for path in product.inputs)}")


def _check(results: Path, published: Path | None, only: list[str] | None) -> None:
    from analysis.products.manifest import check

    products, tracked = _products(results, published)
    # In a results folder of its own the published figures of the source tree are no duty.
    here = [one.name for one in products if all(path.is_relative_to(results) for path in one.inputs)]
    stale = check(results, here)
    if only is not None:
        stale = [one for one in stale if any(fnmatch.fnmatch(one.name, name) for name in only)]
    for one in stale:
        print(f"{one.name}: {'; '.join(one.reasons)}")
    _complain(tracked.problems)
    if stale:
        gone = any(
            "tables/" in reason and reason.endswith("is gone") for one in stale for reason in one.reasons
        )
        rest = "; of tables that are gone: restore them, or delete the files of their figures" if gone else ""
        print(f"{len(stale)} stale; 'python -m analysis figures' draws them{rest}", file=sys.stderr)
        sys.exit(STALE)
    print(f"all {len(products)} figures and tables follow from the tracked tables")


def _complain(problems: tuple[str, ...] | list[str], leave: bool = True) -> None:
    """A line for each table or figure that failed; exit code 2 at the end if there is any."""
    sys.stdout.flush()
    for problem in problems:
        error_line(problem)
    if problems and leave:
        sys.exit(2)
