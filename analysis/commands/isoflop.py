"""The command `isoflop`: compute-optimal size and tokens by approaches 1 and 2, and their exponents."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from analysis.commandline import Commands
from analysis.commands.options import add_json, add_latex, add_table, put_json, put_latex
from analysis.terminal import say, show

if TYPE_CHECKING:
    import pandas as pd

    from analysis.arrays import Array
    from analysis.findings import Finding
    from analysis.isoflop.optima import IsoFlop
    from analysis.isoflop.report import Optima

SUMMARY = "Find compute-optimal sizes and tokens from IsoFLOP curves, and their exponents in FLOPs."
DESCRIPTION = """
The table needs the columns params, tokens, train_flops (realised, not a budget's label), val_loss and
structure; --map renames those of a CSV. Budgets without a usable optimum are listed with the reason.

Approach 2 fits a parabola at each budget; approach 1 takes the lower envelope of training curves, and needs
checkpoints along each run. Prints Markdown, or aligned columns on a terminal.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("isoflop", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    add_table(parser)
    parser.add_argument("--only", metavar="NAME", help="only this structure")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="runs within this of each other's mean FLOPs are one budget (default: %(default)s)",
    )
    parser.add_argument(
        "--rise",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="fit the parabola to losses up to this much above the lowest of a budget; inf for all "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--approach", choices=("1", "2", "both"), default="2", help="which of the two (default: %(default)s)"
    )
    parser.add_argument(
        "--run", dest="run_column", metavar="COLUMN", help="label of each point's run, for approach 1"
    )
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Find the optima, and print the report."""
    from analysis.errors import AnalysisError
    from analysis.isoflop.report import latex, markdown, to_json
    from analysis.runs.loading import load, with_flops
    from analysis.runs.table import structures_of

    name, runs = load(args.table, args.results, args.maps, ("val_loss",), args.group, args.condition)
    runs = with_flops(runs)
    structures = structures_of(runs.table)
    if args.only is not None:
        if args.only not in structures:
            raise AnalysisError(f"--only {args.only}: no such structure; use one of {', '.join(structures)}")
        structures = [args.only]
    if args.run_column is not None and args.run_column not in runs.table:
        columns = ", ".join(map(str, runs.table.columns))
        raise AnalysisError(f"--run {args.run_column}: no such column; use one of {columns}")
    found = [_optima(s, runs.table[runs.table["structure"] == s], args) for s in structures]
    put_latex(args.latex, lambda: latex(name, found))
    if args.json is not None and put_json(args.json, to_json(name, found)):
        return
    if sys.stdout.isatty():
        _show(found)
    else:
        sys.stdout.write(markdown(name, found))


def _optima(structure: str, table: pd.DataFrame, args: argparse.Namespace) -> Optima:
    """Both approaches on one structure."""
    import numpy as np

    from analysis.errors import AnalysisError
    from analysis.isoflop.optima import envelope, isoflop, six_nd_gap
    from analysis.isoflop.report import Optima

    needed = ("params", "tokens", "train_flops")
    missing = [c for c in needed if c not in table or bool(table[c].isna().any())]
    if missing:
        raise AnalysisError(
            f"{structure}: {' and '.join(missing)} are unknown for some runs; "
            "give them, or --map their columns"
        )
    n, d, c, y = (
        table[column].to_numpy(np.float64) for column in ("params", "tokens", "train_flops", "val_loss")
    )
    budgets = isoflop(n, d, c, y, args.tolerance, args.rise) if args.approach != "1" else None
    hull, notes = None, []
    if args.approach != "2":
        labels = table[args.run_column].tolist() if args.run_column is not None else None
        try:
            hull = envelope(n, d, c, y, labels)
        except AnalysisError as error:
            if args.approach == "1":
                raise
            notes.append(f"Approach 1: none: {error}.")
    counted = six_nd_gap(n, d, c)
    findings = [counted] if counted else []
    if budgets is not None:
        line, finding = _approach_three(budgets, n, d, c, y)
        notes.append(line)
        findings += [finding] if finding else []
    return Optima(structure, budgets, hull, tuple(findings), tuple(notes))


def _approach_three(budgets: IsoFlop, n: Array, d: Array, c: Array, y: Array) -> tuple[str, Finding | None]:
    """What a fit of L(N, D) to the same runs says of the exponent of N*, and whether the two disagree."""
    from analysis.allocation import allocation, cost_of
    from analysis.fit import Refusal, fit_law
    from analysis.isoflop.optima import Exponent, agreement

    fit = fit_law("chinchilla", {"params": n, "tokens": d}, y)
    if isinstance(fit, Refusal):
        return f"Approach 3: none: {fit.reason}.", None
    found = allocation(fit, cost_of(n, d, c), [], (0.0, 0.0))
    if found is None or fit.spread is None:
        reasons = "; ".join(str(finding) for finding in fit.findings) or "its errors are not known"
        return f"Approach 3: L(N, D) is not identified ({reasons}).", None
    if not isinstance(budgets.a, Exponent):
        return (
            f"Approach 3: N* ~ C^a with a = {found.a.value:.3f} [{found.a.low:.3f}, {found.a.high:.3f}].",
            None,
        )
    error = (found.a.high - found.a.low) / (2 * 1.96)
    joint = agreement(budgets.a, found.a.value, error, fit.spread.dof)
    return joint.sentence, joint.finding


def _show(all_found: list[Optima]) -> None:
    """The report on a terminal."""
    from analysis.isoflop.report import methods, sentences, tables

    for found in all_found:
        for title, header, rows in tables(found):
            show(title, header, rows)
        for line in sentences(found):
            say(line)
        print()
    for line in methods(all_found):
        say(line)
