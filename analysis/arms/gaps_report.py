"""Tables and sentences about gaps to dense: Markdown, LaTeX, JSON, CSV, and rows for a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

from analysis.arms.gaps import Difference, Gaps, to_dict
from analysis.digits import interval, p_cell, quantity, with_error
from analysis.report import plain
from analysis.tables import Table, latex_file
from analysis.uncertainty import t_quantile

ROW_HEADER = (
    "size", "structure", "treatment", "seeds", "tokens", "FLOPs", "FLOPs/dense", "loss (nats/token)",
    "gap to dense", "95 % interval", "p (Holm)", "verdict",
)  # fmt: skip
CONTRAST_HEADER = (
    "size", "structure", "contrast", "pairs", "FLOPs ratio", "difference", "95 % interval", "p", "p (Holm)",
    "verdict",
)  # fmt: skip
CSV_HEADER = (
    "size", "budget_tokens", "structure", "treatment", "reference", "seeds", "diverged",
    "reference_diverged", "tokens", "train_flops", "flops_over_dense", "val_loss", "val_loss_se", "pairs",
    "gap", "gap_se", "gap_low", "gap_high", "p_value", "p_holm", "verdict",
)  # fmt: skip


def gap_rows(result: Gaps) -> list[list[str]]:
    """The arms as table rows under `ROW_HEADER`."""
    rows = []
    for row in result.rows:
        seeds = str(len(row.seeds)) + (f" (+ {row.diverged} diverged)" if row.diverged else "")
        if row.gap is not None and row.gap.pairs != len(row.seeds):
            seeds += f", {row.gap.pairs} paired"
        cells = [row.place.size or "-", row.place.structure, row.place.treatment or "-", seeds]
        cells += [quantity(row.tokens), quantity(row.flops), f"{row.flops_ratio:.3f}"]
        cells += [with_error(row.loss, row.se, 5), *_difference_cells(row.gap), _holm(row.gap)]
        if row.place.is_reference:
            cells.append("the reference")
        else:
            cells.append(row.verdict or _why_none(row.gap))
        rows.append(cells)
    return rows


def contrast_rows(result: Gaps) -> list[list[str]]:
    """The contrasts as table rows under `CONTRAST_HEADER`."""
    rows = []
    for contrast in result.contrasts:
        d = contrast.difference
        p = p_cell(d.p_value)
        pairs = str(d.pairs)
        if contrast.first_diverged or contrast.second_diverged:
            pairs += (
                f" ({contrast.first_diverged} of {contrast.first_runs}, "
                f"{contrast.second_diverged} of {contrast.second_runs} diverged)"
            )
        cells = [contrast.place.size or "-", contrast.place.structure, contrast.words, pairs]
        cells += [f"{contrast.flops_ratio:.3f}", *_difference_cells(d), p, _holm(d)]
        rows.append([*cells, contrast.verdict or _why_none(d)])
    return rows


def _difference_cells(d: Difference | None) -> list[str]:
    if d is None:
        return ["-", "-"]
    if d.interval is None:
        return [f"{d.mean:+.4f}", "-"]
    mean = with_error(d.mean, d.se)
    return [mean if d.mean < 0 else f"+{mean}", interval(*d.interval, d.se)]


def _holm(d: Difference | None) -> str:
    return p_cell(None if d is None else d.holm)


def _why_none(d: Difference | None) -> str:
    if d is None:
        return "no seed shared with dense"
    if d.interval is None:
        return "one pair: no interval" if d.pairs == 1 else "no spread between seeds: no interval"
    return ""


def method(result: Gaps) -> str:
    """What the numbers are, and how little few seeds can tell."""
    pairs = {row.gap.pairs for row in result.rows if row.gap is not None}
    text = (
        "Gaps and differences are means over runs paired by seed, which share the order of data and the "
        "held-out text; intervals are Student's t on n - 1 degrees of freedom, over seeds alone. A verdict "
        "stands only where the interval excludes 0; p-values are two-sided, and corrected by Holm within "
        "each table. Tokens are those seen, repeated ones each time."
    )
    if any(row.diverged for row in result.rows):
        text += (
            " A run that diverged has no loss, so differences are of the others; where the arm that seems "
            "better lost runs so, nothing is judged."
        )
    few = sorted(n for n in pairs if 1 < n < 5)
    if few:
        n = few[0]
        text += (
            f" {n} seeds leave {n - 1} degree{'s' if n > 2 else ''} of freedom: an interval is "
            f"{2 * t_quantile(n - 1):.1f} standard errors wide, so only large differences can be told from "
            "none, and that an interval holds 0 does not show that there is no difference."
        )
    if 1 in pairs:
        text += " Where there is one pair of runs there is no interval, and the gap may be the seed's."
    return text


def gap_table(result: Gaps) -> Table:
    """The arms against dense."""
    caption = f"{result.name}: held-out loss of each arm, and its gap to dense at the same size and budget."
    return Table(ROW_HEADER, gap_rows(result), caption)


def contrast_table(result: Gaps) -> Table:
    """The arms of one structure against each other."""
    caption = f"{result.name}: differences of held-out loss (nats per token) within a structure."
    return Table(CONTRAST_HEADER, contrast_rows(result), caption)


def latex(result: Gaps) -> str:
    r"""All tables of the report as one file to \input, how the numbers were made in their notes."""
    data = f"Data: {result.coverage}."
    notes = (data, method(result), *result.notes)
    tables = [(f"tab:{result.name}-gaps", replace(gap_table(result), notes=notes))]
    if result.contrasts:
        tables.append((f"tab:{result.name}-contrasts", replace(contrast_table(result), notes=notes)))
    return latex_file(tables)


def markdown(result: Gaps) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    parts = [
        f"# {result.name}: gaps to dense",
        f"Data: {result.coverage}.",
        gap_table(result).markdown(),
    ]
    if result.contrasts:
        parts += ["## Within a structure", contrast_table(result).markdown()]
    parts.append(method(result))
    if result.notes:
        parts.append("\n".join(f"- {note}" for note in result.notes))
    return "\n\n".join(parts) + "\n"


def to_json(result: Gaps) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    return json.dumps(plain(to_dict(result)), indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_csv(result: Gaps) -> str:
    """The arms as CSV under `CSV_HEADER`, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in result.rows:
        place, d = row.place, row.gap
        low, high = d.interval if d is not None and d.interval is not None else (None, None)
        numbers: list[float | None] = [
            row.tokens, row.flops, row.flops_ratio, row.loss, row.se, *_numbers(d)[:3],
            low, high, *_numbers(d)[3:],
        ]  # fmt: skip
        labels = [place.size, place.budget, place.structure, place.treatment, place.reference]
        writer.writerow(
            [
                *labels,
                "+".join(map(str, row.seeds)),
                row.diverged,
                row.reference_diverged,
                *map(_cell, numbers),
                row.verdict,
            ]
        )
    return out.getvalue()


def _numbers(d: Difference | None) -> list[float | None]:
    return [None] * 5 if d is None else [d.pairs, d.mean, d.se, d.p_value, d.holm]


def _cell(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return repr(value)
