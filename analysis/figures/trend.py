"""The figure of gaps to dense over size: pairs, lines with bands, and beside them the change per decade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.arms.trend import DECADE, Pair, Trend, Trends, percent
from analysis.digits import interval, number, probability
from analysis.figures.curves import DASHES
from analysis.figures.gaps import FILLS, UNKNOWN_FILL
from analysis.figures.legends import legend_columns
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    VARIANT_LINES,
    Look,
    house_style,
    hover,
    log_flops_axis,
    looks,
    nice_ticks,
    title,
)
from analysis.runs.labels import family_and_budget
from analysis.runs.treatments import PLAIN, STATIC

STEP, WIDEST = 0.045, 0.26
"""Arms stand side by side at each size: by how much in decades, and the share of the way to the nearest size
that they may take up together."""
INTERVALS = "95 % (thin: unequal noise), p (Holm)"
MOST_BANDS = 6
"""With more arms than this, bands would hide each other; the intervals at the right are there for all."""
HEIGHT, ROW, LEGEND_LINE = 2.9, 0.36, 0.16
SPAN = 1.25
"""The axis goes this factor of FLOPs beyond the outer sizes."""
GRID_POINTS = 80
ZERO = "#000000"


@dataclass(frozen=True)
class _Drawn:
    """An arm, its look, and by which factor of FLOPs its points stand beside the size's own place."""

    arm: Trend
    look: Look
    shift: float


def trend_figure(result: Trends) -> Figure:
    """Draw gaps in per cent over FLOPs of the dense run, and each arm's change per decade of FLOPs.

    Left: a colour a structure; a small mark a pair, a large one the mean of a size, arms side by side at each
    size; the least-squares line with its 95 % band under equal noise, dashed where replicates reject it; zero
    is dense. Right: the change of loss over dense per decade of FLOPs, 95 % intervals under equal (thick) and
    unequal noise (thin), and p after Holm's correction.
    """
    drawn = _drawn(result)
    with house_style():
        rows = len(drawn)
        handles = [Line2D([], [], label=one.arm.label, **_styled(one.look)) for one in drawn]
        handles.append(Line2D([], [], label="dense", color=ZERO, linewidth=0.9))
        columns = legend_columns(handles, TWO_COLUMNS, 5)
        lines = -(-len(handles) // columns)
        height = max(HEIGHT, 1.2 + ROW * rows) + LEGEND_LINE * (1 + lines)
        figure = Figure(figsize=(TWO_COLUMNS, height))
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.75, 1.0]})
        _gaps(left, drawn)
        _slopes(right, drawn)
        title(left, result.name, _coverage(result), 0.6 * TWO_COLUMNS)
        title(right, "Change per decade of FLOPs", INTERVALS, 0.36 * TWO_COLUMNS)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        figure.draw_without_rendering()
    return figure


def _drawn(result: Trends) -> list[_Drawn]:
    """The arms with their looks: colour and marker by structure, filling and line by treatment."""
    chosen = looks([arm.structure for arm in result.arms] + ["dense"])
    treatments = sorted({arm.treatment for arm in result.arms}, key=lambda t: (t != PLAIN, t))
    logs = sorted({math.log(one.flops) for arm in result.arms for one in arm.sizes})
    nearest = min(b - a for a, b in pairwise(logs))
    room = WIDEST * max(nearest, 0.1 * (logs[-1] - logs[0]))
    step = min(STEP * math.log(10), room / max(1, len(result.arms) - 1))
    found = []
    for i, arm in enumerate(result.arms):
        look = chosen[arm.structure]
        if family_and_budget(arm.structure)[0] == "dense":
            look = replace(look, colour=GREY)
        if len(treatments) > 1:
            fill = FILLS.get(arm.treatment.removesuffix(STATIC), UNKNOWN_FILL)
            line = VARIANT_LINES[treatments.index(arm.treatment) % len(VARIANT_LINES)]
            look = replace(look, filled=fill != "none", fill="full" if fill == "none" else fill, line=line)
        found.append(_Drawn(arm, look, math.exp(step * (i - (len(result.arms) - 1) / 2))))
    return found


def _coverage(result: Trends) -> str:
    """What the panel is of, and which runs are missing."""
    missing = f"; {result.coverage}" if ";" in result.coverage else ""
    bands = "; 95 % bands" if len(result.arms) <= MOST_BANDS else ""
    return f"pairs of one size, token budget and seed{bands}{missing}"


def _styled(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": look.line, "linewidth": 1.1, **look.marker_style()}


def _gaps(axes: Axes, drawn: Sequence[_Drawn]) -> None:
    axes.axhline(0, color=ZERO, linewidth=0.9, zorder=2)
    low = min(one.arm.sizes[0].flops for one in drawn)
    high = max(one.arm.sizes[-1].flops for one in drawn)
    for one in drawn:
        grid = np.geomspace(one.arm.sizes[0].flops, one.arm.sizes[-1].flops, GRID_POINTS)
        line, band = one.arm.line, one.arm.line.band(grid)
        colour, dash = one.look.colour, DASHES if line.bends else one.look.line
        axes.plot(grid, 100 * np.expm1(line.at(grid)), color=colour, linestyle=dash, linewidth=1.1, zorder=4)
        if band is not None and len(drawn) <= MOST_BANDS:
            under, over = (100 * np.expm1(end) for end in band)
            axes.fill_between(grid, under, over, color=colour, alpha=0.13, linewidth=0, zorder=1)
        _points(axes, one)
    _limits(axes, drawn)
    log_flops_axis(axes, low / SPAN, high * SPAN)
    axes.set_xlabel("Training FLOPs of the dense run")
    axes.set_ylabel("Loss over dense (%)")


def _points(axes: Axes, one: _Drawn) -> None:
    """The pairs small, and of each size with several the mean large."""
    arm, colour = one.arm, one.look.colour
    counts = {(s.size, s.budget): s.log.pairs for s in arm.sizes}
    several = [pair for pair in arm.pairs if counts[pair.size, pair.budget] > 1]
    if several:
        (seeds,) = axes.plot(
            [pair.flops * one.shift for pair in several], [percent(pair.gap) for pair in several],
            one.look.marker, color=colour, markersize=2.2, alpha=0.5, linestyle="none", zorder=5,
        )  # fmt: skip
        hover(seeds, [_pair_words(arm, pair) for pair in several])
    (means,) = axes.plot(
        [s.flops * one.shift for s in arm.sizes], [percent(s.log.mean) for s in arm.sizes],
        **{**_styled(one.look), "linestyle": "none", "markersize": 4.2, "markeredgewidth": 0.9}, zorder=6,
    )  # fmt: skip
    texts = []
    for s in arm.sizes:
        where = f"{arm.label}, {s.size}" if s.size else arm.label
        pairs = f"{s.log.pairs} pair{'s' if s.log.pairs > 1 else ''}"
        texts.append(f"{where}: {percent(s.log.mean):+.2f} % over dense ({s.nats.mean:+.4f} nats), {pairs}")
    hover(means, texts)


def _pair_words(arm: Trend, pair: Pair) -> str:
    nats = pair.loss - pair.reference_loss
    where = f"{arm.label}, {pair.size}" if pair.size else arm.label
    return f"{where}, seed {pair.seed}: {percent(pair.gap):+.2f} % over dense ({nats:+.4f} nats)"


def _limits(axes: Axes, drawn: Sequence[_Drawn]) -> None:
    """All points and zero; of bands far wider than those, a part."""
    values = [0.0] + [percent(pair.gap) for one in drawn for pair in one.arm.pairs]
    low, high = min(values), max(values)
    reach = 0.35 * max(high - low, 0.1)
    bands = []
    for one in drawn if len(drawn) <= MOST_BANDS else ():
        ends = one.arm.line.band(np.array([one.arm.sizes[0].flops, one.arm.sizes[-1].flops]))
        bands += [] if ends is None else [percent(float(v)) for end in ends for v in end]
    bottom = min([low, *(max(v, low - reach) for v in bands)])
    top = max([high, *(min(v, high + reach) for v in bands)])
    margin = 0.05 * max(top - bottom, 0.1)
    axes.set_ylim(bottom - margin, top + margin)


def _slopes(axes: Axes, drawn: Sequence[_Drawn]) -> None:
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=2)
    for i, one in enumerate(drawn):
        line = one.arm.line
        change = percent(line.slope * DECADE)
        for ends, width in ((line.robust_interval, 0.8), (line.interval, 2.2)):
            if ends is not None:
                at = [percent(end * DECADE) for end in ends]
                axes.plot(at, [i, i], color=one.look.colour, linewidth=width, zorder=3, solid_capstyle="butt")
        style = _styled(one.look) | {"linestyle": "none", "markeredgewidth": 0.9}
        (point,) = axes.plot([change], [i], **style, zorder=5)
        hover(point, [_slope_words(one.arm)])
        axes.annotate(
            _above(one.arm), (change, i), xytext=(0, 5), textcoords="offset points", ha="center",
            va="bottom", fontsize=6.5, color=GREY, annotation_clip=False, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    low, high = _slope_limits(drawn)
    axes.set_xlim(low, high)
    ticks = nice_ticks(low, high, 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(len(drawn) - 0.5, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Loss over dense, change (%)")


def _slope_limits(drawn: Sequence[_Drawn]) -> tuple[float, float]:
    """Room for all intervals, but for what is far beyond the slopes and the intervals under equal noise."""
    inner, outer = [0.0], [0.0]
    for one in drawn:
        line = one.arm.line
        inner += [percent(v * DECADE) for v in (line.slope, *(line.interval or ()))]
        outer += [percent(v * DECADE) for v in (line.robust_interval or ())]
    low, high = min(inner), max(inner)
    reach = 0.5 * max(high - low, 0.02)
    low, high = max(min([low, *outer]), low - reach), min(max([high, *outer]), high + reach)
    margin = 0.08 * max(high - low, 0.02)
    return low - margin, high + margin


def _above(arm: Trend) -> str:
    line = arm.line
    if line.se is None:
        return "no noise"
    change = percent(line.slope * DECADE)
    text = f"{number(change, 100 * DECADE * line.se)} %"
    if arm.holm is not None:
        text += f", p {probability(arm.holm)}"
    return text + (", bends" if line.bends else "")


def _slope_words(arm: Trend) -> str:
    line = arm.line
    change, se = percent(line.slope * DECADE), 100 * DECADE * (line.se or 0.0)
    text = f"{arm.label}: {number(change, se)} % per decade of FLOPs"
    if line.interval is None:
        return f"{text}, no interval"
    low, high = (percent(end * DECADE) for end in line.interval)
    holm = "" if arm.holm is None else f", p (Holm) {probability(arm.holm)}"
    return f"{text} {interval(low, high, se)}{holm}, {len(arm.pairs)} pairs"
