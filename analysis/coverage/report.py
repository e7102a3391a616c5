"""All simulated studies and tests, and their report: three tables in Markdown and LaTeX, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.coverage.nulls import PERMUTATIONS, Rejections, Setting, reject, settings
from analysis.coverage.simulate import NOISE, WITHOUT_RESAMPLES, Coverage, Study, cover, studies
from analysis.coverage.unequal import TIMES, Unequal, reject_unequal, unequal_settings
from analysis.digits import significant
from analysis.errors import AnalysisError
from analysis.progress import Progress
from analysis.tables import Table, latex_file

NULLS = 5
"""Nulls for each simulation asked for."""
CHECKED = 60
"""One table in so many, at least one and at most six of a study, is fitted by the public functions too."""
WANTED = (0.93, 0.97)
"""Coverage of 95 % intervals that keep their word."""
WANTED_REJECTIONS = (0.035, 0.065)
"""Rejections by a test of the 5 % level that keeps its word."""
HELD = (
    "Shares of the intervals that hold the truth, in %; from "
    f"{WANTED[0] * 100:.0f} to {WANTED[1] * 100:.0f} is wanted."
)
REJECTED = (
    "Shares of tables, all made with equal exponents, on which equality is rejected, in %; from "
    f"{WANTED_REJECTIONS[0] * 100:.1f} to {WANTED_REJECTIONS[1] * 100:.1f} is wanted of F, "
    "on which verdicts rest."
)
QUANTITIES = (("E",), ("A", "k"), ("B",), ("alpha",), ("beta",), ("a",))
COVERAGE_HEADER = (
    *("law", "runs", "noise", "intervals", "tables"),
    *("E", "A or k", "B", "alpha", "beta", "a = beta / (alpha + beta)"),
)
REJECTION_HEADER = (
    *("structures", "FLOPs", "irreducible loss", "error of E"),
    *("tables", "F", "likelihood ratio", "permutation"),
)
UNEQUAL = (
    "Shares of tables of straight lines with equal slopes on which equality is rejected, in %; the noise of "
    f"some runs is {TIMES:g} times as large as that of the others. From {WANTED_REJECTIONS[0] * 100:.1f} to "
    f"{WANTED_REJECTIONS[1] * 100:.1f} is wanted. The last columns: shares on which it is rejected where the "
    "first slope differs by what a t test of two slopes finds with 80 % probability if all noise is the "
    "smaller one."
)
UNEQUAL_HEADER = ("structures", "larger noise", "tables", "F", "wild bootstrap", "F finds", "wild finds")
FLOORS = {"none": "none", "shared": "one, fitted", "separate": "one each, fitted"}


@dataclass(frozen=True)
class Simulated:
    """All that was simulated."""

    simulations: int
    seed: int
    coverages: tuple[Coverage, ...]
    rejections: tuple[Rejections, ...]
    unequal: tuple[Unequal, ...]


def simulate(
    simulations: int = 400,
    seed: int = 0,
    of: Sequence[Study] | None = None,
    tests: Sequence[Setting] | None = None,
    unequal: Sequence[tuple[Setting, str]] | None = None,
) -> Simulated:
    """Simulate studies and tests; the same arguments give the same numbers.

    Args:
        simulations: tables of each study with a bootstrap; studies without one, and tests, have five times
            as many.
        seed: of the noise.
        of: studies; all by default.
        tests: settings of the tests; all by default.
        unequal: designs, and where their noise is larger; all by default.

    Raises:
        AnalysisError: fewer than one simulation, or a seed below zero.
    """
    if simulations < 1:
        raise AnalysisError(f"{simulations} simulations: at least 1 is needed")
    if seed < 0:
        raise AnalysisError(f"seed {seed}: must be 0 or above")
    of, tests = studies() if of is None else of, settings() if tests is None else tests
    uneven = unequal_settings() if unequal is None else unequal
    checks = min(6, max(1, simulations // CHECKED))
    coverages: list[Coverage] = []
    rejections: list[Rejections] = []
    found: list[Unequal] = []
    with Progress("simulations", len(of) + len(tests) + len(uneven)) as progress:

        def tick(what: str) -> None:
            progress.name = what
            progress.update(len(coverages) + len(rejections) + len(found))

        for place, study in enumerate(of):
            count = simulations * (1 if study.resampled else WITHOUT_RESAMPLES)
            coverages.append(cover(study, count, (seed, 0, place), checks, tick))
        for place, test in enumerate(tests):
            count = simulations * NULLS
            rejections.append(reject(test, count, simulations, (seed, 1, place), checks, tick))
        for place, (design, where) in enumerate(uneven):
            found.append(reject_unequal(design, where, simulations * NULLS, (seed, 2, place), checks, tick))
    return Simulated(simulations, seed, tuple(coverages), tuple(rejections), tuple(found))


def keeps(value: float, wanted: tuple[float, float]) -> bool:
    """Whether a share, to the digits that are shown, is as wanted."""
    return wanted[0] <= float(f"{value * 100:.1f}") / 100 <= wanted[1]


def markdown(found: Simulated) -> str:
    """The whole report."""
    lines = [
        "# Do the intervals and tests keep their word?",
        "",
        _made(found),
        *["", "## Intervals of 95 %", ""],
        HELD,
        "",
        coverage_table(found).markdown(padded=False),
        *["", "## Tests of equal exponents at the 5 % level", ""],
        REJECTED,
        "",
        rejection_table(found).markdown(padded=False),
        *["", "## The same where noise is not equal", ""],
        UNEQUAL,
        "",
        unequal_table(found).markdown(padded=False),
    ]
    return "\n".join(lines) + "\n"


def _made(found: Simulated) -> str:
    return (
        "Tables simulated from known laws, by `python -m analysis coverage --simulations "
        f"{found.simulations} --seed {found.seed}`. The noise is in log loss, of standard deviation "
        f"{NOISE * 100:g} %. Bold: not as wanted."
    )


def coverage_table(found: Simulated) -> Table:
    """How often intervals hold the truth."""
    notes = (coverage_sentence(found.coverages), _checked_intervals(found.coverages))
    return Table(COVERAGE_HEADER, [coverage_row(c) for c in found.coverages], HELD, notes)


def rejection_table(found: Simulated) -> Table:
    """How often tests reject a true null."""
    notes = (rejection_sentence(found.rejections), _checked_tests(found.rejections))
    return Table(REJECTION_HEADER, [rejection_row(r) for r in found.rejections], REJECTED, notes)


def latex(found: Simulated) -> str:
    r"""All tables as one file to \input."""
    tables = {
        "tab:coverage": coverage_table(found),
        "tab:rejections": rejection_table(found),
        "tab:unequal": unequal_table(found),
    }
    return latex_file((label, replace(t, notes=(_made(found), *t.notes))) for label, t in tables.items())


def coverage_row(found: Coverage) -> tuple[str, ...]:
    """A study under COVERAGE_HEADER."""
    study = found.study
    cells = []
    for names in QUANTITIES:
        mine = [name for name in names if name in found.below]
        cells.append(_share(found.share(mine[0]), WANTED) if mine else "")
    return (study.law, study.words, study.noise, found.method, str(found.simulations), *cells)


def rejection_row(found: Rejections) -> tuple[str, ...]:
    """A setting under REJECTION_HEADER."""
    setting = found.setting
    permuted = f"{found.by_permutation / found.permuted * 100:.1f}" if found.permuted else ""
    return (
        setting.words,
        setting.range,
        FLOORS[setting.hypothesis],
        significant(found.floor_error) if found.floor_error is not None else "",
        str(found.nulls),
        _share(found.by_f / found.nulls, WANTED_REJECTIONS),
        f"{found.by_likelihood / found.nulls * 100:.1f}",
        permuted,
    )


def unequal_table(found: Simulated) -> Table:
    """How often tests of slopes reject a true null where noise is not equal."""
    rows = [
        (
            *(one.design.words, one.place, str(one.nulls)),
            _share(one.by_f / one.nulls, WANTED_REJECTIONS),
            _share(one.by_wild / one.nulls, WANTED_REJECTIONS),
            *(f"{found / one.nulls * 100:.0f}" for found in (one.found_by_f, one.found_by_wild)),
        )
        for one in found.unequal
    ]
    return Table(UNEQUAL_HEADER, rows, UNEQUAL, (unequal_sentence(found.unequal),))


def unequal_sentence(found: Sequence[Unequal]) -> str:
    """What unequal noise makes of the tests."""
    if not found:
        return "None simulated."
    f = [one.by_f / one.nulls * 100 for one in found]
    wild = [one.by_wild / one.nulls * 100 for one in found]
    kept = [sum(keeps(share / 100, WANTED_REJECTIONS) for share in shares) for shares in (f, wild)]
    checked = sum(one.checked for one in found)
    same = "the same p" if max(one.gap for one in found) < 1e-9 else "another p"
    return (
        f"F rejects from {min(f):.1f} to {max(f):.1f} % ({kept[0]} of {len(found)} as wanted), the wild "
        f"bootstrap from {min(wild):.1f} to {max(wild):.1f} % ({kept[1]}). So a verdict on slopes without an "
        f"irreducible loss says where the two decide differently. On {checked} tables `compare.slope_test` "
        f"gave {same} of the wild bootstrap."
    )


def _share(value: float, wanted: tuple[float, float]) -> str:
    if not math.isfinite(value):
        return "none"
    text = f"{value * 100:.1f}"
    return text if keeps(value, wanted) else f"**{text}**"


def coverage_sentence(found: Sequence[Coverage]) -> str:
    """How many intervals are as wanted, and what of the others."""
    shares = [(c, c.share(name)) for c in found for name in c.below]
    off = [(c.study.words, c.study.note) for c, share in shares if not keeps(share, WANTED)]
    text = f"{len(shares) - len(off)} of {len(shares)} are as wanted{_others(off)}."
    if without := sum(c.without for c in found):
        text += f" {without} tables gave no interval, and are left out."
    counts = sorted({c.simulations for c in found})
    errors = ", ".join(f"{100 * math.sqrt(0.95 * 0.05 / n):.1f} with {n} tables" for n in counts)
    return f"{text} Of a share of 95 % the standard error is {errors}."


def rejection_sentence(found: Sequence[Rejections]) -> str:
    """How many tests are as wanted, and what of the others."""
    off = [
        (f"{r.setting.words}, {r.setting.range} FLOPs, E {FLOORS[r.setting.hypothesis]}", r.setting.note)
        for r in found
        if not keeps(r.by_f / r.nulls, WANTED_REJECTIONS)
    ]
    text = f"F is as wanted in {len(found) - len(off)} of {len(found)} settings{_others(off)}."
    if found:
        highest = max(r.by_likelihood / r.nulls for r in found)
        text += (
            " The likelihood ratio, which takes no account of how uncertain the noise is, rejects up to "
            f"{highest * 100:.0f} %: no verdict rests on it."
        )
    return text


def _others(off: Sequence[tuple[str, str]]) -> str:
    """Those that are not as wanted, in words, each reason once."""
    if not off:
        return ""
    by_note: dict[str, list[str]] = {}
    for words, note in off:
        known = by_note.setdefault(note, [])
        if words not in known:
            known.append(words)
    parts = [f"{'; '.join(words)}{f' ({note})' if note else ''}" for note, words in by_note.items()]
    return f", and not: {'; '.join(parts)}"


def _ceiling(gap: float) -> str:
    """The power of ten above a difference, so that rounding errors of machines do not show."""
    return f"{10.0 ** math.ceil(math.log10(max(gap, 1e-6))):.0e}" if math.isfinite(gap) else "infinity"


def _checked_intervals(found: Sequence[Coverage]) -> str:
    checked, gap = sum(c.checked for c in found), max((c.gap for c in found), default=0.0)
    return (
        "All tables of a study are descended to together, from the optimum without noise, and then have the "
        f"errors of any fit; on {checked} of them `fit_law` and `allocation`, with default settings, gave "
        f"the same intervals within {_ceiling(gap)} of their widths. The resampling has another seed for "
        "each table."
    )


def _checked_tests(found: Sequence[Rejections]) -> str:
    checked, gap = sum(r.checked for r in found), max((r.gap for r in found), default=0.0)
    text = (
        "F is from `nested.sampled_statistics`, for all tables of a setting together; on "
        f"{checked} of them `compare.slope_test` gave the same F within {_ceiling(gap)} of it"
    )
    if permuted := sum(r.permuted for r in found):
        wrong = sum(r.disagreed for r in found)
        decided = "the same decision" if not wrong else f"another decision on {wrong}"
        text += f", and by permutation {decided}. The permutation test of {PERMUTATIONS} permutations was "
        text += f"made on {permuted} tables in all"
    return f"{text}. `error of E` is what noise and design imply for the first structure, in nats per token."


def to_json(found: Simulated) -> str:
    """All counts."""
    body = {
        "simulations": found.simulations,
        "seed": found.seed,
        "coverage": [c.to_dict() for c in found.coverages],
        "rejections": [r.to_dict() for r in found.rejections],
        "unequal": [u.to_dict() for u in found.unequal],
    }
    return json.dumps(body, indent=1) + "\n"
