"""The command `compare`: do structures scale differently, and what does one save against another?"""

from __future__ import annotations

import argparse
import sys

from analysis.commandline import Commands
from analysis.commands.options import add_json, add_latex, add_table, put_json, put_latex, whole_number

SUMMARY = "Test whether structures differ in their exponents, with and without an irreducible loss."
DESCRIPTION = """
Nested joint fits of loss over FLOPs, and over parameters and tokens where these vary freely (one curve,
shared E and exponents, shared E, all separate); F, likelihood-ratio and permutation tests, AICc; compute and
token multipliers over the losses that the structures share, and loss differences at equal compute.

The verdict says in words what the runs can and cannot tell.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("compare", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    add_table(parser)
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="column that names the run of each point: the last point of each is compared (default: a column "
        "run, run_name, run_id or wandb_id that repeats)",
    )
    parser.add_argument("--flops", metavar="CONVENTION", help="count FLOPs by another convention, e.g. 6N")
    parser.add_argument(
        "--baseline", metavar="NAME", help="structure that the others are held against (default: the first)"
    )
    parser.add_argument(
        "--irreducible", type=float, metavar="LOSS", help="also test under this known loss, nats/token"
    )
    parser.add_argument(
        "--permutations",
        type=_permutations,
        default=999,
        metavar="N",
        help="samples of the permutation tests; 0 for none (default: %(default)s)",
    )
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def _permutations(word: str) -> int:
    return whole_number(word, 0, 100_000)


def run(args: argparse.Namespace) -> None:
    """Compare, and print the report."""
    from analysis.analyse import compared, design_words, known_floor
    from analysis.compare.report import PARTS, compare_report, latex, markdown, to_json
    from analysis.errors import AnalysisError
    from analysis.progress import Progress
    from analysis.runs.loading import last_points, load, with_flops
    from analysis.runs.table import use_flops

    name, runs = load(args.table, args.results, args.maps, ("val_loss",), args.group, args.condition)
    runs = last_points(with_flops(runs), args.cluster)
    if args.flops is not None:
        runs = use_flops(runs, args.flops)
    if runs.table.empty or bool(runs.table["train_flops"].isna().any()):
        raise AnalysisError(
            f"{name}: not every run has training FLOPs; give train_flops, or params and tokens, or use --map"
        )
    inputs = compared(runs)
    with Progress("structures compared", PARTS) as progress:
        report = compare_report(
            runs,
            name,
            *inputs,
            design_words(runs.table),
            args.baseline,
            known_floor(runs.table, args.irreducible),
            args.permutations,
            progress.update,
        )
    put_latex(args.latex, lambda: latex(report))
    if args.json is not None and put_json(args.json, to_json(report)):
        return
    sys.stdout.write(markdown(report))
