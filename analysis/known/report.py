"""Tables and sentences on fits judged against a known irreducible loss: Markdown, LaTeX, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.digits import estimate, number, p_cell, quantity, with_error
from analysis.known.judged import GIVEN, WANTED, Known, Share
from analysis.known.refits import KINDS, METHOD, REPLICATES, Exponent, Interval, Refit
from analysis.report import plain
from analysis.tables import Table, latex_file

HEADER = (
    "fit", "structure", "seed", "runs", "E", "95 % interval", "holds the known E", "alpha", "95 % interval",
    "alpha, E known", "95 % interval", "one power, p",
)  # fmt: skip
STEP_HEADER = ("structure", "FLOPs from", "to", "local exponent of L - E")
CSV_HEADER = (
    "kind", "structure", "seed", "runs", "budgets", "known", "E", "E_low", "E_high", "holds", "side", "alpha",
    "alpha_low", "alpha_high", "alpha_known", "alpha_known_low", "alpha_known_high", "alpha_bias",
    "lack_kind", "lack_F", "lack_dof1", "lack_dof2", "lack_p", "reason",
)  # fmt: skip
SOURCES = {
    "val_entropy": "the entropy of the held-out text itself",
    "entropy_rate": "the entropy rate of the endless source",
    GIVEN: "as given",
}
SHARED_TEXT = (
    "The refits are no independent trials: all are judged on the same held-out text, seeds of one structure "
    "share its law, and a law that does not hold misses for all of them alike. The interval of the share "
    "takes them for independent."
)


def method(found: Known) -> str:
    """How the numbers were made."""
    return (
        f"Least squares on log loss. Intervals of E and of a fitted alpha: {METHOD.partition(';')[0]}; of "
        "the engine's intervals those that hold the truth most often where runs are few (docs/fitting.md). "
        "With E known, alpha has the same objective, E held, and t intervals. One power, p: F test of E "
        "known + k C^-alpha against the spread of seeds where there are seeds, else against a bend, a "
        "quadratic in log FLOPs."
    )


def evaluation_words(found: Known) -> str | None:
    """How far the held-out text's own entropy may be from that of its source; None where it is known."""
    if found.source != "entropy_rate":
        return None
    size = "" if found.evaluation is None else f", by about {found.evaluation:.2g} nats (a standard error)"
    return (
        "E is judged against the endless source; the entropy of the held-out text differs from it as a "
        f"sample mean does{size}, equally for all fits."
    )


def opening(found: Known) -> str:
    """What is known, and of which runs."""
    return (
        f"Known E = {found.known:.4f} nats per token, {SOURCES[found.source]}. Data: {found.runs.coverage()}."
    )


def share_sentence(one: Share) -> str:
    """How often the intervals of one kind hold the known value."""
    ends = ""
    if one.interval is not None and one.of > 1:
        low, middle, high = (100 * part for part in (one.interval[0], one.held / one.of, one.interval[1]))
        ends = f" ({middle:.0f} %, 95 %: {low:.0f} to {high:.0f} %)"
    if one.of == 0:
        return f"{KINDS[one.kind]}: no interval to judge ({one.without} {_fits(one.without)} none)"
    none = f"; {one.without} further {_fits(one.without)} no interval" if one.without else ""
    intervals = "interval" if one.of == 1 else "intervals"
    return f"{KINDS[one.kind]}: the known value lies in {one.held} of {one.of} {intervals}{ends}{none}"


def _fits(count: int) -> str:
    return "fit has" if count == 1 else "fits have"


def summary(found: Known) -> list[str]:
    """The counts, and where they are too low, the reason."""
    shares = found.shares()
    sentences = [f"{share_sentence(one)}." for one in shares]
    sentences[0] = sentences[0][0].upper() + sentences[0][1:]
    counted = " ".join(one[0].upper() + one[1:] for one in sentences)
    parts = [f"**{counted}**", SHARED_TEXT]
    low = [one for one in shares if one.of and one.held < WANTED * one.of]
    if low:
        parts.append(f"Why less than nine in ten: {reason(found)}")
    parts.append(bias_words(found))
    return [part for part in parts if part]


def reason(found: Known) -> str:
    """Which side E falls on, whether one power holds, and what the local exponents do."""
    own = [one for one in found.refits if one.kind != "shared"]
    missed = [one for one in own if one.holds is False]
    parts = []
    if missed:
        above = sum(one.side == "above" for one in missed)
        parts.append(
            f"of {len(missed)} that miss, {above} lie above the known E and {len(missed) - above} below"
        )
    tested = [one.lack for one in own if one.lack is not None]
    if tested:
        rejected = sum(lack.rejected for lack in tested)
        parts.append(
            f"one power of FLOPs above the known E is rejected (p < 0.05) in {rejected} of {len(tested)}"
        )
    return "; ".join([*parts, steps_words(found)]) + "."


def steps_words(found: Known) -> str:
    """The local exponents from small to large, and what they do to a fitted E."""
    means = found.middle_steps()
    if len(means) < 2:
        return "too few budgets for local exponents"
    shown = ", ".join(f"{value:.3f}" for value in means)
    text = f"the local exponents of L - E, from small to large (means over structures), are {shown}"
    trend = float(np.polyfit(np.arange(len(means)), means, 1)[0]) * (len(means) - 1)
    error = _step_error(found)
    if error is not None and abs(trend) < 2 * error:
        return f"{text}: no trend beyond the spread of seeds, and the misses are not explained by it"
    if trend < 0:
        return (
            f"{text}: they fall, so L - E is not one power, and a fitted E takes the flattening for a floor"
        )
    return f"{text}: they rise, so L - E is not one power, and a fitted E lies too low"


def _step_error(found: Known) -> float | None:
    """Of the trend over the local exponents' means: that of the difference of two of them."""
    errors = [step.error for step in found.steps]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors) or not known:
        return None
    structures = len({step.structure for step in found.steps})
    return math.sqrt(2 * float(np.mean(np.square(known))) / structures)


def bias_words(found: Known) -> str:
    """What fitting E does to alpha."""
    pairs = [one for fit in found.refits if fit.kind != "shared" for one in fit.exponents]
    moved = [(one, one.bias) for one in pairs if one.bias is not None]
    if not moved:
        return ""
    changes = [bias for _, bias in moved]
    with_interval = [one for one, _ in moved if one.interval is not None and one.given is not None]
    held = sum(_inside(one.given, one.interval) for one in with_interval)
    text = (
        f"Fitting E moves alpha by {np.median(changes):+.3f} in the median, {min(changes):+.3f} to "
        f"{max(changes):+.3f}, from what E known gives"
    )
    if with_interval:
        text += f", which lies in {held} of {len(with_interval)} intervals of the fitted alpha"
    return f"{text}."


def _inside(value: float | None, interval: Interval | None) -> bool:
    return value is not None and interval is not None and interval[0] <= value <= interval[1]


def rows(found: Known) -> tuple[list[list[str]], list[str]]:
    """The refits as rows under `HEADER`, and the notes that rows refer to by number."""
    out, notes = [], list[str]()
    for one in found.refits:
        value, ends = _cells(one.value, one.interval)
        if one.reason:
            text = one.reason
            notes += [] if text in notes else [text]
            ends = f"{ends} [{notes.index(text) + 1}]"
        holds = "no interval" if one.holds is None else "yes" if one.holds else f"no, {_above(one)}"
        seed = str(one.seed) if one.seed is not None else "all"
        lead = [KINDS[one.kind], one.structure or "all", seed, str(one.n), value, ends, holds]
        for i, exponent in enumerate(one.exponents):
            who = [*lead[:1], exponent.structure, *["" for _ in lead[2:]]] if i else lead
            if one.kind == "shared":
                who = [who[0], exponent.structure, *who[2:]]
            out.append([*who, *_exponent_cells(exponent), "" if i else _lack_cell(one)])
    return out, [f"[{i}] {text}" for i, text in enumerate(notes, 1)]


def _above(one: Refit) -> str:
    assert one.interval is not None
    return "E above" if one.interval[0] > one.known else "E below"


def _exponent_cells(one: Exponent) -> list[str]:
    return [*_cells(one.fitted, one.interval), *_cells(one.given, one.given_interval)]


def _cells(value: float | None, interval: Interval | None) -> tuple[str, str]:
    if value is None:
        return "-", "-"
    if interval is None:
        return number(value), "-"
    if not math.isfinite(interval[1]):
        return number(value), f"> {number(interval[0])}"
    return estimate(value, *interval)


def _lack_cell(one: Refit) -> str:
    if one.lack is None:
        return "-"
    p = p_cell(one.lack.p_value)
    return p if one.lack.kind == REPLICATES else f"{p} (bend)"


def step_rows(found: Known) -> list[list[str]]:
    """The local exponents as rows under `STEP_HEADER`."""
    return [
        [
            one.structure,
            quantity(one.flops[0]),
            quantity(one.flops[1]),
            with_error(one.exponent, one.error, 3),
        ]
        for one in found.steps
    ]


def tables(found: Known) -> list[tuple[str, Table]]:
    """Refits, and local exponents."""
    cells, notes = rows(found)
    caption = f"{found.name}: fits of L = E + k C^-alpha against the known E = {found.known:.4f}."
    steps = f"{found.name}: local exponents of L - E, E known, between neighbouring budgets."
    return [
        ("known", Table(HEADER, cells, caption, notes)),
        ("steps", Table(STEP_HEADER, step_rows(found), steps)),
    ]


def remarks(found: Known) -> list[str]:
    """What stands beneath the tables."""
    return [part for part in (method(found), evaluation_words(found), *found.notes) if part]


def markdown(found: Known) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    (_, refits), (_, steps) = tables(found)
    parts = [f"# {found.name}: fits against the known irreducible loss", opening(found), *summary(found)]
    parts += [refits.markdown(), "## Local exponents", steps.markdown(), *remarks(found)]
    return "\n\n".join(parts) + "\n"


def latex(found: Known) -> str:
    r"""All tables as one file to \input."""
    texts = (opening(found), *(part.replace("**", "") for part in summary(found)), *remarks(found))
    return latex_file(
        (f"tab:{found.name}-{label}", replace(table, notes=(*table.notes, *texts) if i == 0 else table.notes))
        for i, (label, table) in enumerate(tables(found))
    )


def to_json(found: Known) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    return json.dumps(plain(found.to_dict()), indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_csv(found: Known) -> str:
    """A row for each refit and exponent under `CSV_HEADER`, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for one in found.refits:
        low, high = one.interval or (None, None)
        lack = one.lack
        tail = [None] * 5 if lack is None else [lack.kind, lack.statistic, *lack.dof, lack.p_value]
        for exponent in one.exponents:
            numbers: Sequence[object] = [
                one.kind, exponent.structure, one.seed, one.n, one.budgets, one.known, one.value, low, high,
                None if one.holds is None else int(one.holds), one.side, exponent.fitted,
                *(exponent.interval or (None, None)), exponent.given,
                *(exponent.given_interval or (None, None)), exponent.bias, *tail, one.reason,
            ]  # fmt: skip
            writer.writerow([_cell(value) for value in numbers])
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
