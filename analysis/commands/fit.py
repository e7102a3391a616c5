"""The command `fit`: one law with intervals, or without --law the report on the curves over FLOPs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from analysis.commandline import Commands, Parser
from analysis.commands.options import (
    add_cluster,
    add_json,
    add_latex,
    add_table,
    card_target,
    number_of,
    put_json,
    put_latex,
    whole_number,
)
from analysis.terminal import say, show

if TYPE_CHECKING:
    from analysis.analyse import Analysis
    from analysis.fit import Settings

SUMMARY = "Fit a scaling law; without --law, the curves over FLOPs and whether their exponents differ."
DESCRIPTION = """
TABLE is the name of a sweep, or a CSV, JSONL or parquet file with one row a run. Its columns are params,
tokens, train_flops, val_loss (nats/token), structure and seed; --map renames others, and N, D, C and loss are
understood as they are.

With --law one fit for the whole table, or with --group one for each structure, or with --share one joint fit.
The JSON is one object, and with --group a list of them. Prints Markdown.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("fit", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    add_table(parser)
    parser.add_argument(
        "--law",
        metavar="NAME",
        help="power, irreducible (in FLOPs), broken (in FLOPs, with a break), chinchilla, tied (in N and D), "
        "overtrain (in C and D/N) or average (in average N and D)",
    )
    parser.add_argument(
        "--share",
        metavar="NAMES",
        help="fit all structures jointly, these parameters in common, such as E or E,alpha,beta",
    )
    parser.add_argument("--flops", metavar="CONVENTION", help="count FLOPs by another convention, e.g. 6N")
    parser.add_argument(
        "--irreducible",
        type=float,
        metavar="LOSS",
        help="without --law: also test under this known irreducible loss, nats/token",
    )
    _add_method(parser)
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def _add_method(parser: Parser) -> None:
    parser.add_argument(
        "--huber-delta",
        type=_delta,
        metavar="DELTA",
        help="in log loss; inf for least squares (default: 1.345 times the noise, and least squares below 6 "
        "degrees of freedom); 1e-3 is the literature's",
    )
    parser.add_argument(
        "--objective-space",
        choices=("log",),
        default="log",
        help="residuals are of log loss, as in the literature (default: %(default)s)",
    )
    parser.add_argument(
        "--interval",
        choices=("auto", "delta", "profile", "bootstrap"),
        default="auto",
        help="how intervals are computed; auto: delta method with t below 30 runs, bootstrap from there on",
    )
    parser.add_argument(
        "--resamples", type=_count, default=1000, metavar="N", help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the bootstrap (default: %(default)s)"
    )
    add_cluster(parser)
    parser.add_argument(
        "--card", type=card_target, metavar="PATH", help="write a methods card, NAME.md or NAME.json"
    )


def _delta(word: str) -> float:
    value = number_of(word)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{word} must be above zero; give the noise of log loss, or inf")
    return value


def _count(word: str) -> int:
    return whole_number(word, 20, 1_000_000)


def _seed(word: str) -> int:
    return whole_number(word, 0, 2**31)


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the options ask for."""
    from analysis.fit import Settings

    return Settings(args.huber_delta, args.interval, args.resamples, args.seed)


def run(args: argparse.Namespace) -> None:
    """Fit, and print the report."""
    if args.law is None:
        _report(args)
    else:
        _law(args)


def _law(args: argparse.Namespace) -> None:
    from analysis.card import write_card
    from analysis.errors import AnalysisError
    from analysis.fit import law_named
    from analysis.law_report import latex, markdown
    from analysis.lawfits import fit_table, law_columns
    from analysis.progress import Progress
    from analysis.runs.loading import load, run_labels, with_flops
    from analysis.runs.table import structures_of, use_flops

    if args.irreducible is not None:
        raise AnalysisError(f"--irreducible: --law {args.law} fits its own constant; leave one of them out")
    law = law_named(args.law)
    # FLOPs can be had from other columns.
    needed = [column for column in law_columns(law) if column != "train_flops"]
    name, runs = load(args.table, args.results, args.maps, needed, args.group, args.condition)
    if args.flops is not None:
        runs = use_flops(runs, args.flops)
    if "train_flops" in law_columns(law):
        runs = with_flops(runs)
    share = [part.strip() for part in args.share.split(",")] if args.share is not None else None
    clusters = run_labels(runs, args.cluster)
    with Progress("structures fitted", len(structures_of(runs.table))) as progress:
        result = fit_table(
            runs,
            name,
            law,
            grouped=args.group is not None,
            share=share,
            settings=settings_of(args),
            clusters=clusters,
            watch=progress.update,
        )
    if args.card is not None:
        write_card(args.card, result)
    put_latex(args.latex, lambda: latex(result))
    if args.json is not None and put_json(args.json, result.to_json()):
        return
    sys.stdout.write(markdown(result))


def _report(args: argparse.Namespace) -> None:
    from analysis.analyse import analyse
    from analysis.errors import AnalysisError
    from analysis.report import latex, markdown, to_json
    from analysis.runs.loading import load, with_flops
    from analysis.runs.table import use_flops

    given = {
        "--share": args.share is not None,
        "--huber-delta": args.huber_delta is not None,
        "--card": args.card is not None,
        "--cluster": args.cluster is not None,
        "--interval": args.interval != "auto",
        "--resamples": args.resamples != 1000,
        "--seed": args.seed != 0,
    }
    for option, yes in given.items():
        if yes:
            raise AnalysisError(f"{option}: needs a law to fit; add for example --law chinchilla")
    name, runs = load(args.table, args.results, args.maps, ("val_loss",), args.group, args.condition)
    runs = with_flops(runs)
    if args.flops is not None:
        runs = use_flops(runs, args.flops)
    analysis = analyse(runs, name, args.irreducible)
    put_latex(args.latex, lambda: latex(analysis))
    if args.json is not None and put_json(args.json, to_json(analysis)):
        return
    if sys.stdout.isatty():
        _show(analysis)
    else:
        sys.stdout.write(markdown(analysis))


def _show(analysis: Analysis) -> None:
    """The report on a terminal."""
    from analysis.report import FIT_HEADER, METHOD, RUN_HEADER, fit_rows, run_rows

    rows, notes = fit_rows(analysis)
    show("Runs", RUN_HEADER, run_rows(analysis.runs.table))
    show(f"{analysis.name}: held-out loss over training FLOPs", FIT_HEADER, rows)
    for i, note in enumerate(notes, 1):
        say(f"[{i}] {note}")
    say(METHOD)
    say(f"Data: {analysis.runs.coverage()}.")
    say(f"Verdict. {analysis.comparison.verdict}")
