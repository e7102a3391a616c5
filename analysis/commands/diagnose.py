"""The command `diagnose`: what is wrong with a table, or with a published fit to it, by code and remedy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from analysis.commandline import Commands
from analysis.commands.options import add_cluster, add_json, add_table, card_target, put_json

SUMMARY = "Look for every known pitfall of a scaling-law fit, by code, with a sentence and a remedy."
DESCRIPTION = """
Fits a law and looks at the fit, the design and the columns. Columns that it reads where they are there:
lr_decayed (true or false), n_trials or tries (how many runs a cell was chosen from), peak_lr, loss_kind, and
run or run_name (which checkpoints are of one run).

--claim FILE.json holds a published fit against the data: {"params": {"E": 1.69, ...}, "intervals": {"alpha":
[0.33, 0.35]}, "huber_delta": 1e-3, "starts": {"E": [0.5, 1], ...}, "bounds": {"B": [0, 1e4]}}; all but params
may be left out. --catalogue lists all codes.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("diagnose", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    add_table(parser, optional=True)
    parser.add_argument(
        "--law", metavar="NAME", help="chinchilla where there are params and tokens, else irreducible"
    )
    add_cluster(parser)
    parser.add_argument("--claim", type=Path, metavar="PATH", help="a published fit, as JSON")
    parser.add_argument(
        "--card", type=card_target, metavar="PATH", help="write a methods card, NAME.md or NAME.json"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 where anything was found")
    parser.add_argument(
        "--catalogue", action="store_true", help="list all codes with their remedies, and end"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Diagnose, and print what was found."""
    from analysis.errors import AnalysisError
    from analysis.findings import CATALOGUE
    from analysis.report import plain
    from analysis.tables import markdown_table

    if args.catalogue:
        rows = [[code, name, remedy] for code, (name, remedy) in CATALOGUE.items()]
        sys.stdout.write(markdown_table(("code", "name", "remedy"), rows) + "\n")
        return
    if args.table is None:
        raise AnalysisError("diagnose: needs a TABLE; name a sweep or a file, or give --catalogue")
    name, text, body, found = _diagnosed(args)
    printed = args.json is not None and put_json(
        args.json, json.dumps(plain(body), indent=1, allow_nan=False) + "\n"
    )
    if not printed:
        sys.stdout.write(f"# {name}: diagnosis\n\n{text}")
    if args.strict and found:
        sys.exit(1)


def _diagnosed(args: argparse.Namespace) -> tuple[str, str, list[dict[str, object]], bool]:
    from analysis.card import write_card
    from analysis.claim import read_claim
    from analysis.diagnose import default_law, diagnose
    from analysis.fit import law_named
    from analysis.law_report import finding_lines
    from analysis.lawfits import fit_table
    from analysis.progress import Progress
    from analysis.runs.loading import load, run_labels, with_flops
    from analysis.runs.table import structures_of

    name, runs = load(args.table, args.results, args.maps, ("val_loss",), args.group, args.condition)
    law = law_named(args.law) if args.law is not None else default_law(runs)
    if "train_flops" in law.variables:
        runs = with_flops(runs)
    clusters = run_labels(runs, args.cluster)
    claim = read_claim(args.claim) if args.claim is not None else None
    with Progress("structures diagnosed", len(structures_of(runs.table))) as progress:
        result = diagnose(runs, name, law, clusters=clusters, claim=claim, watch=progress.update)
    if args.card is not None:
        write_card(args.card, fit_table(runs, name, law, grouped=True, clusters=clusters))
    lines = [f"{one.group}: no fit of {law.formula}: {one.refused}." for one in result if one.refused]
    lines += finding_lines([(one.group, finding) for one in result for finding in one.findings])
    looked = ", ".join(f"{one.group} ({one.n} runs)" for one in result)
    head = f"Fitted {law.formula} to {looked}. {runs.coverage()}.\n\n"
    text = "\n".join(f"- {line}" for line in lines) if lines else "Nothing found."
    return name, f"{head}{text}\n", [one.to_dict() for one in result], bool(lines)
