"""The command `design`: what a planned sweep will be able to tell, and which runs to add for more."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commandline import Commands, Parser
from analysis.commands.options import add_json, add_latex, add_table, put_json, put_latex

if TYPE_CHECKING:
    from analysis.design.additions import Goal
    from analysis.design.precision import Grid
    from analysis.engine.sums import SumLaw

SUMMARY = "Before a sweep: standard errors and detectable differences of its planned runs, and runs to add."
DESCRIPTION = """
TABLE is a CSV, JSONL or parquet file with one row a planned run (params, tokens, train_flops, structure,
seed), or the name of a sweep, whose finished runs are taken. Losses are not needed; where there are some, law
and noise are assumed as fitted to them.

With --target or --detect, the cheapest runs to add are sought: other sizes and token ratios on the grid's own
lattice, one step beyond it, and extra seeds. Prints Markdown.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("design", help=SUMMARY, description=f"{SUMMARY}\n\n{DESCRIPTION}")
    add_table(parser)
    parser.add_argument(
        "--law",
        metavar="NAME",
        help="power, irreducible (in FLOPs), chinchilla or tied (in N and D); without, all of them",
    )
    _add_assumptions(parser)
    _add_goal(parser)
    parser.add_argument(
        "--save",
        type=_csv_target,
        metavar="PATH",
        help="write the planned runs with noise, laws and date to this CSV, a promise to hold the sweep to",
    )
    parser.add_argument("--force", action="store_true", help="--save: replace a promise that stands")
    add_json(parser)
    add_latex(parser)
    parser.set_defaults(run=run)


def _add_assumptions(parser: Parser) -> None:
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument(
        "--noise",
        type=float,
        metavar="SD",
        help="standard deviation of log loss between seeds (default: .0014, or that of the losses)",
    )
    noise.add_argument("--noise-from", metavar="TABLE", help="measure the noise on the replicates of a table")
    parser.add_argument(
        "--assume",
        metavar="VALUES",
        help="parameters of --law, such as E=1.7,A=400,B=400,alpha=.34,beta=.28; of one structure as "
        "alpha[dense]=.3",
    )


def _add_goal(parser: Parser) -> None:
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--target",
        metavar="NAME=SE",
        help="wanted standard error of an exponent in every structure's own fit, such as alpha=0.01, or in "
        "that of one: alpha[dense]=0.01",
    )
    goal.add_argument(
        "--detect",
        metavar="D",
        help="wanted detectable difference of exponents between any two structures, such as 0.005; of the "
        "law's first exponent, or beta=0.005",
    )
    parser.add_argument(
        "--max-runs", type=_count, default=20, metavar="N", help="most runs to add (default: %(default)s)"
    )


def _csv_target(word: str) -> Path:
    if not word.endswith(".csv"):
        raise argparse.ArgumentTypeError(f"the file of planned runs must be named .csv, and '{word}' is not")
    return Path(word)


def _count(word: str) -> int:
    value = int(word)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{word} must lie from 1 to 1000")
    return value


def run(args: argparse.Namespace) -> None:
    """Predict, and print the report."""
    import numpy as np

    from analysis.analyse import design_words
    from analysis.design.additions import cheapest
    from analysis.design.planned import assume, chosen_laws, curves, grid_of, parse_values
    from analysis.design.precision import design
    from analysis.design.promise import save
    from analysis.design.report import Planning, latex, markdown
    from analysis.errors import AnalysisError
    from analysis.runs.loading import load, note, with_flops

    if args.force and args.save is None:
        raise AnalysisError("--force: is for --save, which it lets replace a promise; leave it out")
    noise = _noise(args)
    name, runs = load(args.table, args.results, args.maps, (), args.group, args.condition)
    if runs.table.empty:
        raise AnalysisError(f"{name}: no runs; give a file with one row a planned run")
    runs = curves(with_flops(runs))
    laws = chosen_laws(args.law, runs.table)
    grid = grid_of(runs.table)
    if args.assume is not None and args.law is None:
        raise AnalysisError("--assume: say whose parameters these are; add for example --law chinchilla")
    given = parse_values(args.assume, laws[0], grid.structures) if args.assume is not None else {}
    goals = _goals(args, laws, grid)
    known = not runs.table["val_loss"].isna().any()
    losses = runs.table["val_loss"].to_numpy(np.float64) if known else None
    designs = [design(assume(law, grid, losses, given, noise), grid) for law in laws]
    planning = Planning(
        name,
        design_words(runs.table),
        float(grid.data["train_flops"].sum()),
        tuple(designs),
        {
            one.assumed.law.name: cheapest(one.assumed, grid, goals[one.assumed.law.name], args.max_runs)
            for one in designs
            if one.assumed.law.name in goals
        },
    )
    if args.save is not None:
        save(args.save, runs.table, designs, args.force)
        note(f"{name}: promised in {args.save}")
    put_latex(args.latex, lambda: latex(planning))
    if args.json is not None and put_json(args.json, planning.to_json()):
        return
    sys.stdout.write(markdown(planning))


def _noise(args: argparse.Namespace) -> tuple[float, str] | None:
    """The noise that the options give, and its source."""
    from analysis.design.planned import seed_noise
    from analysis.errors import AnalysisError
    from analysis.runs.loading import load

    if args.noise_from is not None:
        name, runs = load(args.noise_from, args.results, None, ("val_loss",))
        return seed_noise(runs, name)
    if args.noise is None:
        return None
    if not (math.isfinite(args.noise) and args.noise > 0):
        raise AnalysisError(f"--noise {args.noise:g}: must be above zero, in log loss; .0014 is usual")
    return args.noise, "as given"


def _goals(args: argparse.Namespace, laws: Sequence[SumLaw], grid: Grid) -> dict[str, Goal]:
    """What additions are sought for, by law: those of the laws that have such an exponent."""
    from analysis.design.additions import Goal
    from analysis.design.planned import check_parameter
    from analysis.engine.sums import ALL
    from analysis.errors import AnalysisError

    option = "--target" if args.target is not None else "--detect"
    text = args.target if args.target is not None else args.detect
    if text is None:
        return {}
    label, size = _wanted(option, text)
    name, _, group = label.partition("[")
    group = group.removesuffix("]")
    if group and (option == "--detect" or group not in grid.structures):
        what = "is of two structures" if option == "--detect" else "no such structure"
        raise AnalysisError(f"{option} {label}: {what}; there are {', '.join(grid.structures)}")
    # Slopes are those in FLOPs, as `fit` compares them, unless another law is named.
    slopes = [law for law in laws if law.variables == ("train_flops",)] or laws
    having = [law for law in laws if name in law.exponents] if name else slopes
    if not having:
        check_parameter(option, name, laws, list(dict.fromkeys(e for law in laws for e in law.exponents)))
    return {
        law.name: Goal(name or law.exponents[0], size, option == "--detect", group or ALL) for law in having
    }


def _wanted(option: str, text: str) -> tuple[str, float]:
    """The label, `` without, and the size of a goal."""
    from analysis.errors import AnalysisError

    label, sign, word = text.rpartition("=")
    if option == "--target" and not sign:
        raise AnalysisError(f"--target {text}: is not NAME=SE; write for example --target alpha=0.01")
    try:
        size = float(word)
    except ValueError:
        raise AnalysisError(f"{option} {text}: {word!r} is not a number; mend it") from None
    if not (math.isfinite(size) and size > 0):
        raise AnalysisError(f"{option} {text}: must be above zero; mend it")
    return label.strip(), size
