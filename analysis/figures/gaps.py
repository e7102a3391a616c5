"""The gaps figure: loss over training FLOPs by arm, and beneath it each arm's gap to dense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.arms.gaps import Gaps, Row
from analysis.digits import estimate, number, with_error
from analysis.figures.curves import points_of, short
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Fill,
    Line,
    Look,
    house_style,
    hover,
    log_flops_axis,
    log_loss_axis,
    looks,
    nice_ticks,
)
from analysis.runs.labels import family_and_budget
from analysis.runs.treatments import FIXED_FLOPS, FIXED_STEPS, MORE_TOKENS, PLAIN, STATIC

# How much of a marker is filled says the treatment; a static guide's marker has a ring besides.
FILLS: dict[str, Fill] = {PLAIN: "none", FIXED_STEPS: "left", FIXED_FLOPS: "full", MORE_TOKENS: "bottom"}
UNKNOWN_FILL: Fill = "right"
UNTREATED = "same tokens, unguided"
# Arms of equal FLOPs stand beside each other by this share of the panel's width in log FLOPs.
DODGE = 0.03
TOP, LINE, LEGEND_LINE = 2.1, 0.15, 0.15
MOST_PANELS = 4
# Letters of a name that fits beside three panels or more, and of a line of the legend.
SHORT_NAME, LEGEND_LETTERS = 14, 112


def gaps_figure(result: Gaps) -> Figure:
    """Draw one panel a size, loss over training FLOPs, and under it the gaps to dense.

    Colour and marker say the structure, the marker's filling the treatment. The upper panels show means over
    seeds with standard errors, and the dense loss with its standard error as line and band; the lower ones
    gaps paired by seed with 95 % intervals: by arm where a size has one budget, else over the budget.
    """
    sizes = result.sizes
    chosen = _looks(result)
    many = any(len(_budgets(result, size)) > 1 for size in sizes)
    arms = _arms(result)
    lower = 2.0 if many else max(0.9, (LINE if len(sizes) < 3 else 1.5 * LINE) * len(arms) + 0.3)
    with house_style():
        columns = min(len(sizes), MOST_PANELS)
        bands = -(-len(sizes) // columns)
        height = bands * (TOP + lower) + LEGEND_LINE * (2 + _legend_rows(arms))
        figure = Figure(figsize=(TWO_COLUMNS, height))
        grid = figure.subplots(
            2 * bands, columns, squeeze=False, gridspec_kw={"height_ratios": [TOP, lower] * bands}
        )
        spread = _ratio(result)
        limits = _gap_limits(result)
        for i, size in enumerate(sizes):
            band, column = divmod(i, columns)
            upper, under = grid[2 * band, column], grid[2 * band + 1, column]
            rows = [row for row in result.rows if row.place.size == size]
            _losses(upper, rows, chosen, spread)
            upper.set_title(size or result.name, fontweight="bold")
            if many:
                _over_budgets(under, rows, chosen, limits)
            else:
                _forest(under, rows, arms, chosen, limits, column == 0, columns > 2)
            if column == 0:
                upper.set_ylabel("Held-out loss (nats per token)")
                if many:
                    under.set_ylabel("Gap to dense (nats)")
        for i in range(len(sizes), bands * columns):
            band, column = divmod(i, columns)
            for axes in grid[2 * band : 2 * band + 2, column]:
                axes.set_axis_off()
        handles = _handles(arms, chosen)
        figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(arms))
        figure.draw_without_rendering()
    return figure


def _looks(result: Gaps) -> dict[str, Look]:
    """The looks of all structures; the reference is black, and a dense network of other shape is grey."""
    chosen = looks([row.place.structure for row in result.rows])
    references = {row.place.reference for row in result.rows}
    for label, look in chosen.items():
        if family_and_budget(label)[0] == "dense" and len(references) == 1:
            colour = looks(["dense"])["dense"].colour if label in references else GREY
            chosen[label] = replace(look, colour=colour)
    return chosen


def _budgets(result: Gaps, size: str) -> set[int]:
    return {row.place.budget for row in result.rows if row.place.size == size}


def _arms(result: Gaps) -> list[tuple[str, str]]:
    """(structure, treatment) of every arm but the reference, in the table's order."""
    return list(
        dict.fromkeys(
            (row.place.structure, row.place.treatment) for row in result.rows if not row.place.is_reference
        )
    )


def _fill(treatment: str) -> Fill:
    return FILLS.get(treatment.removesuffix(STATIC), UNKNOWN_FILL)


def _ratio(result: Gaps) -> float:
    """The largest loss ratio of any size: all panels show the same, so that gaps may be compared by eye."""
    spans = []
    for size in result.sizes:
        losses = [loss for row in result.rows if row.place.size == size for loss in row.losses]
        spans.append(max(losses) / min(losses))
    return float(max(*spans, 1.005) ** 1.2)


def _losses(axes: Axes, rows: Sequence[Row], chosen: Mapping[str, Look], spread: float) -> None:
    flops = np.log([row.flops for row in rows])
    width = max(float(np.ptp(flops)), math.log(1.6)) * 1.3
    middle = (float(flops.min()) + float(flops.max())) / 2
    log_flops_axis(axes, math.exp(middle - width / 2), math.exp(middle + width / 2))
    losses = [loss for row in rows for loss in row.losses]
    centre = math.sqrt(max(losses) * min(losses))
    log_loss_axis(axes, centre / math.sqrt(spread), centre * math.sqrt(spread))
    axes.set_xlabel("Training FLOPs (equal ones side by side)")
    _dense(axes, [row for row in rows if row.place.is_reference], chosen)
    for row, shift in _dodged(rows, width):
        look = chosen[row.place.structure]
        at = row.flops * math.exp(shift)
        drawn = axes.errorbar(
            [at], [row.loss], yerr=row.se, elinewidth=0.8, markeredgewidth=0.9, linestyle="none", zorder=5,
            **_marker(look, row.place.treatment),
        )  # fmt: skip
        hover(points_of(drawn), [_loss_words(row)])


def _dense(axes: Axes, rows: Sequence[Row], chosen: Mapping[str, Look]) -> None:
    """The dense loss as a line across the panel, or through its budgets, its standard error as a band."""
    if not rows:
        return
    look = chosen[rows[0].place.structure]
    loss = np.array([row.loss for row in rows])
    se = np.array([row.se or 0.0 for row in rows])
    x = np.array([row.flops for row in rows])
    if len({row.place.budget for row in rows}) == 1 or len({row.place.structure for row in rows}) > 1:
        axes.axhline(loss[0], color=look.colour, linewidth=0.8, zorder=2)
        axes.axhspan(loss[0] - se[0], loss[0] + se[0], color=look.colour, alpha=0.12, linewidth=0, zorder=1)
    else:
        axes.plot(x, loss, color=look.colour, linewidth=0.8, zorder=2)
        axes.fill_between(x, loss - se, loss + se, color=look.colour, alpha=0.12, linewidth=0, zorder=1)


def _dodged(rows: Sequence[Row], width: float) -> list[tuple[Row, float]]:
    """Each arm with its shift in log FLOPs, so that arms of nearly equal FLOPs do not hide each other."""
    if len({row.place.budget for row in rows}) > 1:
        return [(row, 0.0) for row in rows]
    arms = [row for row in rows if not row.place.is_reference]
    groups: list[list[Row]] = []
    for row in sorted(arms, key=lambda row: row.flops):
        if groups and math.log(row.flops / groups[-1][0].flops) < DODGE * width:
            groups[-1].append(row)
        else:
            groups.append([row])
    placed = [(row, 0.0) for row in rows if row.place.is_reference]
    for group in groups:
        ordered = [row for row in rows if any(row is other for other in group)]
        step = min(DODGE * width, 0.25 * width / max(1, len(ordered)))
        placed += [(row, step * (i - (len(ordered) - 1) / 2)) for i, row in enumerate(ordered)]
    return placed


def _marker(look: Look, treatment: str) -> dict[str, Any]:
    fill = _fill(treatment)
    return {
        "marker": look.marker,
        "color": look.colour,
        "fillstyle": "full" if fill == "none" else fill,
        "markerfacecolor": "white" if fill == "none" else look.colour,
        "markerfacecoloralt": "white",
        "markeredgecolor": "#000000" if treatment.endswith(STATIC) else look.colour,
        "markersize": 5,
    }


def _gap_limits(result: Gaps) -> tuple[float, float]:
    """One scale of gaps for all panels; an interval far wider than the gaps themselves is cut off."""
    found = [row.gap for row in result.rows if row.gap is not None]
    means = [d.mean for d in found] + [0.0]
    reach = 3 * max(max(means) - min(means), 1e-4)
    ends = [end for d in found if d.interval is not None for end in d.interval]
    low = max(min([*means, *ends]), min(means) - reach)
    high = min(max([*means, *ends]), max(means) + reach)
    margin = 0.06 * max(high - low, 1e-4)
    return low - margin, high + margin


def _forest(
    axes: Axes, rows: Sequence[Row], arms: Sequence[tuple[str, str]], chosen: Mapping[str, Look],
    limits: tuple[float, float], named: bool, narrow: bool,
) -> None:  # fmt: skip
    by_arm = {(row.place.structure, row.place.treatment): row for row in rows}
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=2)
    for i, arm in enumerate(arms):
        row = by_arm.get(arm)
        if row is None or row.gap is None:
            continue
        d = row.gap
        error = None if d.interval is None else [[d.mean - d.interval[0]], [d.interval[1] - d.mean]]
        drawn = axes.errorbar(
            [d.mean], [i], xerr=error, elinewidth=0.9, markeredgewidth=0.9, linestyle="none", zorder=5,
            **_marker(chosen[arm[0]], arm[1]),
        )  # fmt: skip
        hover(points_of(drawn), [_gap_words(row)])
    axes.set_xlim(*limits)
    ticks = nice_ticks(*limits, 2 if narrow else 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    names = [_arm_words(*arm, narrow) for arm in arms] if named else [""] * len(arms)
    axes.set_yticks(range(len(arms)), names, fontsize=6 if narrow else 7)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Gap to dense (nats)" if narrow else "Gap to dense (nats), 95 % interval")


def _over_budgets(
    axes: Axes, rows: Sequence[Row], chosen: Mapping[str, Look], limits: tuple[float, float]
) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=2)
    arms = dict.fromkeys((r.place.structure, r.place.treatment) for r in rows if not r.place.is_reference)
    for structure, treatment in arms:
        mine = [
            row for row in rows
            if (row.place.structure, row.place.treatment) == (structure, treatment) and row.gap is not None
        ]  # fmt: skip
        x = [row.place.budget for row in mine]
        gaps = [row.gap for row in mine if row.gap is not None]
        lows = [d.mean - (d.interval[0] if d.interval else d.mean) for d in gaps]
        highs = [(d.interval[1] if d.interval else d.mean) - d.mean for d in gaps]
        style = {**_marker(chosen[structure], treatment), "linewidth": 0.9, "markeredgewidth": 0.9}
        error = [lows, highs] if any(lows) else None
        drawn = axes.errorbar(x, [d.mean for d in gaps], yerr=error, elinewidth=0.8, zorder=5, **style)
        if mine:
            texts = [f"{_gap_words(row)}, on {short(row.place.budget)} tokens" for row in mine]
            hover(points_of(drawn), texts)
    budgets = [row.place.budget for row in rows]
    log_flops_axis(axes, min(budgets) / 1.25, max(budgets) * 1.25)
    axes.set_ylim(*limits)
    axes.set_yticks(nice_ticks(*limits))
    axes.set_xlabel("Training tokens of the dense run")


def _loss_words(row: Row) -> str:
    runs = f"mean of {len(row.losses)} runs" if len(row.losses) > 1 else f"1 run, seed {row.seeds[0]}"
    value = f"loss {with_error(row.loss, row.se)} nats at {short(row.flops)} FLOPs"
    return f"{_row_words(row)}: {value}, {runs}{_lost_words(row)}"


def _gap_words(row: Row) -> str:
    d = row.gap
    assert d is not None
    value, ends = (number(d.mean), "") if d.interval is None else estimate(d.mean, *d.interval, d.se)
    pairs = f"{d.pairs} pair{'s' if d.pairs > 1 else ''}" + ("" if ends else ", no interval")
    gap = f"gap {value} {ends}".rstrip()
    return f"{_row_words(row)}: {gap} nats to {row.place.reference}, {pairs}{_lost_words(row)}"


def _row_words(row: Row) -> str:
    place = row.place
    arm = place.structure if place.is_reference else f"{place.structure}: {place.treatment or UNTREATED}"
    return f"{arm}, {place.size}" if place.size else arm


def _lost_words(row: Row) -> str:
    """Which runs gave no loss, of this arm and of the dense one that it is held against."""
    own = f", {row.diverged} of {len(row.seeds) + row.diverged} diverged" if row.diverged else ""
    if row.place.is_reference or not row.reference_diverged:
        return own
    return f"{own}, {row.reference_diverged} of {row.reference_runs} diverged ({row.place.reference})"


def _arm_words(structure: str, treatment: str, narrow: bool) -> str:
    short = treatment.replace("self-guided, ", "guided, ")
    between = ":\n" if narrow and len(structure) + len(short) > SHORT_NAME else ": "
    return f"{structure}{between}{short}" if short else structure


def _legend_columns(arms: Sequence[tuple[str, str]]) -> int:
    names = [*(arm[0] for arm in arms), *(arm[1] or UNTREATED for arm in arms)]
    return max(2, min(6, LEGEND_LETTERS // (max(map(len, names)) + 7)))


def _legend_rows(arms: Sequence[tuple[str, str]]) -> int:
    entries = 1 + len({arm[0] for arm in arms}) + len({arm[1] for arm in arms})
    return -(-entries // _legend_columns(arms))


def _handles(arms: Sequence[tuple[str, str]], chosen: Mapping[str, Look]) -> list[Line2D]:
    """Structures by colour and marker, then treatments by filling."""
    dense = [label for label in chosen if label not in {arm[0] for arm in arms}]
    handles = []
    for label in [*dense, *dict.fromkeys(structure for structure, _ in arms)]:
        line: Line = "-" if label in dense else "none"
        style = _marker(chosen[label], FIXED_FLOPS)
        handles.append(Line2D([], [], linewidth=0.8, linestyle=line, label=label, **style))
    treatments = list(dict.fromkeys(treatment for _, treatment in arms))
    if treatments == [PLAIN]:
        return handles
    for treatment in treatments:
        style = _marker(Look(GREY, "o", True), treatment)
        handles.append(Line2D([], [], linestyle="none", label=treatment or UNTREATED, **style))
    return handles
