"""Tables and sentences about the natural law: Markdown, LaTeX, JSON, CSV, and rows for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.digits import estimate, number, quantity
from analysis.fit import Fit
from analysis.natural.estimate import (
    BAND,
    BOUNDS,
    CHINCHILLA,
    KINDS,
    LIMIT,
    REFERENCES,
    Estimate,
    Group,
    Natural,
    Reach,
    digits_of,
    share_words,
)
from analysis.natural.verdict import overall, value_words, verdict
from analysis.report import plain
from analysis.tables import Table, latex_file

ESTIMATE_HEADER = (
    "structure", "estimate", "gamma", "95 % interval", f"in [{BAND[0]}, {BAND[1]}]", "1.0 excluded",
    "verdict",
)  # fmt: skip
CURVE_HEADER = ("structure", "runs", "sizes", "token budgets", "E", "from", "alpha", "beta")
REACH_HEADER = ("structure", "tokens", "sizes", "wanted excess", "N", "95 % interval", "verdict")
CHOICE_HEADER = (
    "structure", "within", "of the excess of", "budgets used", "gamma", "95 % interval", "verdict",
)  # fmt: skip
CSV_HEADER = (
    "curve", "kind", "gamma", "low", "high", "within", "reference", "budgets_used", "method", "reason",
)  # fmt: skip
FEW = 5
"""Budgets of which the same is to be said, from more of which on one row says it."""
RECONSTRUCTION = (
    "1 - 2 beta and 1 - beta are this project's reconstruction, not a theorem of arXiv 2402.14746: its range "
    "of gamma, [0.44, 0.72], is printed in the abstract, its derivation was not to be had. If the excess "
    "loss falls as D^-beta and a class of dimension N needs D ~ N / excess examples (realizable) or "
    "N / excess^2 (agnostic), N ~ D^(1 - beta) or D^(1 - 2 beta); Chinchilla's beta = 0.28 gives 0.72 and "
    "0.44. They follow from beta alone, whatever sizes the data want, and mean nothing where they are not "
    "above 0."
)
SAME_RATIO = (
    "Under L = E + A N^-alpha + B D^-beta the measured and the compute-optimal gamma are both beta / alpha: "
    "where they agree, the data bear that law out; they are no two witnesses of its value."
)


def estimate_rows(found: Natural) -> list[list[str]]:
    """The estimates as table rows under `ESTIMATE_HEADER`."""
    rows = []
    for group in found.groups:
        for kind, one in group.estimates.items():
            value, ends = value_words(one)
            band, excluded = "-", "-"
            if one.decides:
                band = {"inside": "yes", "outside": "no", "undecided": "open"}[one.against_band()]
                # What follows from beta alone is below 1 whatever the data.
                excluded = "-" if kind in BOUNDS else "no" if one.holds(CHINCHILLA) else "yes"
            words = "; ".join(part for part in (one.reason or one.method, one.doubt) if part)
            rows.append([group.label, KINDS[kind], value, ends, band, excluded, words])
    return rows


def curve_rows(found: Natural) -> list[list[str]]:
    """The curves and their fitted laws as table rows under `CURVE_HEADER`."""
    rows = []
    for group in found.groups:
        floor = group.floor
        if floor.value is None:
            e, source = "-", "not identified"
        elif floor.low is None or floor.high is None:
            e, source = number(floor.value, None, 5), floor.source.replace("_", " ")
        else:
            e, source = " ".join(digits_of(floor.value, floor.low, floor.high)), floor.source
        counts = [str(group.runs), str(group.sizes), str(group.budgets)]
        rows.append(
            [group.label, *counts, e, source, *(_exponent(group, name) for name in ("alpha", "beta"))]
        )
    return rows


def _exponent(group: Group, name: str) -> str:
    fit = group.fit
    if not isinstance(fit, Fit) or not fit.identified or fit.intervals is None:
        return "-"
    return " ".join(digits_of(fit.value(name), *fit.intervals[name]))


def reach_rows(found: Natural) -> list[list[str]]:
    """The measured N(D) as table rows under `REACH_HEADER`."""
    rows = []
    for group in found.groups:
        choice = group.chosen(found.within, found.reference)
        reached = choice.reached if choice is not None else ()
        sides = {(one.censored, one.reason) for one in reached}
        if len(reached) > FEW and len(sides) == 1 and all(one.params is None for one in reached):
            # Many budgets of which the same is to be said.
            rows.append([group.label, *_alike(reached)])
        else:
            rows += [[group.label, *_reach_cells(one)] for one in reached]
    return rows


def _alike(reached: Sequence[Reach]) -> list[str]:
    first, last = reached[0], reached[-1]
    smallest, largest = min(one.smallest for one in reached), max(one.largest for one in reached)
    cells = _reach_cells(replace(first, smallest=smallest, largest=largest))
    words = f"{len(reached)} budgets: {first.reason}"
    return [f"{quantity(first.tokens)} to {quantity(last.tokens)}", cells[1], "-", cells[3], "-", words]


def _reach_cells(one: Reach) -> list[str]:
    sizes = f"{quantity(one.smallest)} to {quantity(one.largest)}"
    wanted = "-" if one.wanted is None else number(one.wanted, None, 3)
    if one.params is None:
        bound = {"below": f"<{quantity(one.smallest)}", "above": f">{quantity(one.largest)}"}
        return [quantity(one.tokens), sizes, wanted, bound.get(one.censored, "-"), "-", one.reason]
    if one.low is None or one.high is None:
        return [quantity(one.tokens), sizes, wanted, quantity(one.params), "-", "no interval"]
    value, ends = estimate(one.params, one.low, one.high)
    return [quantity(one.tokens), sizes, wanted, value, ends, ""]


def choice_rows(found: Natural) -> list[list[str]]:
    """The measured gamma under every choice as table rows under `CHOICE_HEADER`."""
    rows = []
    for group in found.groups:
        for choice in group.choices:
            if not choice.reached:
                continue
            used = f"{choice.used} of {len(choice.reached)}"
            words = [share_words(choice.within), REFERENCES[choice.reference], used]
            rows.append([group.label, *words, *value_words(choice.estimate), choice.estimate.reason])
    return rows


def method(found: Natural) -> str:
    """What the numbers are."""
    against = (
        "that of N without limit at the same D (curves c(D) + A N^-alpha, c free at every budget)"
        if found.reference == LIMIT
        else "that of the largest size at the same D, which draws gamma towards 0"
    )
    return (
        "gamma: N ~ D^gamma. Measured: the smallest N whose excess over the irreducible loss is within "
        f"{share_words(found.within)} of {against}, by monotone interpolation of log excess over log N "
        "between the sizes trained, never beyond them; least squares of log N on log D. Losses of a budget "
        "whose tokens differ are first brought to one D by the fitted law's slope in D. The interval: the "
        "runs' own scatter simulated about those curves, every simulated table through the whole method. "
        "Compute-optimal: a / b of N* ~ C^a and D* ~ C^b. All intervals are 95 %."
    )


def tables(found: Natural) -> list[tuple[str, Table]]:
    """(key, table) of all tables of the report that have rows."""
    name = found.name
    every = [
        ("estimates", ESTIMATE_HEADER, estimate_rows(found), f"{name}: gamma of N ~ D^gamma."),
        ("curves", CURVE_HEADER, curve_rows(found), f"{name}: runs, and L = E + A N^-alpha + B D^-beta."),
        ("reach", REACH_HEADER, reach_rows(found), f"{name}: the smallest N that reaches the wanted excess."),
        (
            "choices", CHOICE_HEADER, choice_rows(found),
            f"{name}: the measured gamma under other choices of what is wanted.",
        ),
    ]  # fmt: skip
    return [(key, Table(header, rows, caption)) for key, header, rows, caption in every if rows]


def verdicts(found: Natural) -> list[str]:
    """One sentence a curve; of several, one on all of them first."""
    sentences = [verdict(group) for group in found.groups]
    return sentences if len(sentences) == 1 else [overall(found.groups), *sentences]


def remarks(found: Natural) -> list[str]:
    """What should be read beside the numbers."""
    return [*(note for group in found.groups for note in group.notes), *found.notes]


HEADINGS = {
    "curves": "Curves",
    "reach": "Measured N(D)",
    "choices": "Other choices of what is wanted",
}


def markdown(found: Natural) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    parts = [f"# {found.name}: natural scaling law"]
    if found.coverage:
        parts.append(f"Data: {found.coverage}.")
    sentences = verdicts(found)
    parts.append(f"Verdict. {sentences[0]}")
    if len(sentences) > 1:
        parts.append("\n".join(f"- {one}" for one in sentences[1:]))
    for key, table in tables(found):
        if key in HEADINGS:
            parts.append(f"## {HEADINGS[key]}")
        parts.append(table.markdown())
        if key == "estimates":
            parts += [RECONSTRUCTION, method(found), SAME_RATIO]
    if notes := remarks(found):
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def latex(found: Natural) -> str:
    r"""All tables of the report as one file to \input, how the numbers were made in their notes."""
    data = [f"Data: {found.coverage}."] if found.coverage else []
    notes = {
        "estimates": [*verdicts(found), *data, RECONSTRUCTION, method(found), SAME_RATIO],
        "curves": remarks(found),
    }
    return latex_file(
        (f"tab:{found.name}-natural-{key}", replace(table, notes=notes.get(key, ())))
        for key, table in tables(found)
    )


def to_dict(found: Natural) -> dict[str, Any]:
    """JSON form."""
    return {
        "name": found.name,
        "published_band": list(BAND),
        "within": found.within,
        "reference": found.reference,
        "coverage": found.coverage,
        "notes": list(found.notes),
        "verdict": verdicts(found)[0],
        "reconstruction": RECONSTRUCTION,
        "curves": [_group_dict(group, found) for group in found.groups],
    }


def _group_dict(group: Group, found: Natural) -> dict[str, Any]:
    chosen = group.chosen(found.within, found.reference)
    choices = [
        {
            "within": choice.within,
            "reference": choice.reference,
            "estimate": choice.estimate.to_dict(),
            "budgets_used": choice.used,
        }
        for choice in group.choices
    ]
    return {
        "label": group.label,
        "runs": group.runs,
        "sizes": group.sizes,
        "token_budgets": group.budgets,
        "irreducible_loss": dict(vars(group.floor)),
        "law": group.fit.to_dict(),
        "estimates": [
            {**one.to_dict(), "reconstruction": kind in BOUNDS} for kind, one in group.estimates.items()
        ],
        "reached": [dict(vars(one)) for one in (chosen.reached if chosen is not None else ())],
        "choices": choices,
        "vertices": [list(one) for one in group.vertices],
        "verdict": verdict(group),
        "against_the_law": list(group.against),
        "notes": list(group.notes),
    }


def to_json(found: Natural) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    return json.dumps(plain(to_dict(found)), indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_csv(found: Natural) -> str:
    """The estimates, and the measured one under every choice, as CSV under `CSV_HEADER`, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for group in found.groups:
        for one in group.estimates.values():
            if one.kind != "measured":
                writer.writerow([group.label, *_csv_cells(one, "", "", "")])
        for choice in group.choices:
            cells = _csv_cells(choice.estimate, repr(choice.within), choice.reference, str(choice.used))
            writer.writerow([group.label, *cells])
    return out.getvalue()


def _csv_cells(one: Estimate, within: str, reference: str, used: str) -> list[str]:
    numbers = ["" if value is None else repr(value) for value in (one.value, one.low, one.high)]
    return [one.kind, *numbers, within, reference, used, one.method, one.reason]
