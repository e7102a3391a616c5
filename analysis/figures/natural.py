"""The natural figure: every estimate of gamma in N ~ D^gamma with its interval, and N over D itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.figures.curves import footnote, footnote_letters, points_of
from analysis.figures.isoloss import count, log_counts_axis
from analysis.figures.style import GREY, TWO_COLUMNS, Look, house_style, hover, looks, nice_ticks, title
from analysis.natural.estimate import BAND, BOUNDS, CHINCHILLA, KINDS, Choice, Estimate, Group, Natural, Reach
from analysis.natural.verdict import value_words

MARKERS = {"agnostic": "v", "realizable": "^", "measured": "o", "law": "s", "isoflop": "D"}
NAMES = {
    "agnostic": r"$1-2\beta$ (ours)",
    "realizable": r"$1-\beta$ (ours)",
    "measured": "measured",
    "law": "optimal, law",
    "isoflop": "optimal, parabolas",
}
BAND_COLOUR, BAND_ALPHA = "#E69F00", 0.16
DASHES, DOTS = (0, (3, 1.5)), (0, (1, 1.2))
ROW, FRAME, LEAST_HEIGHT, UPPER, LEGEND_LINE = 0.155, 0.75, 3.3, 2.0, 0.145
"""Inches: a row of the forest, titles and axes, the figure at least, the panel of N over D at least, and a
line of the legend."""
MOST_WIDE = 8
"""Entries up to which the legend has two columns."""
LEAST_RANGE = (0.3, 1.15)
"""Values of gamma that are always seen."""
REACH = 0.8
"""An interval is cut where it is further out than this share of the range of the values."""
FEW = 2
"""Curves up to which refused estimates have rows of their own, and reasons beneath the figure."""
STEPS = 25
"""Points of the line of the law."""
REASON = 170
"""Letters of a reason beneath the figure; the table has the whole of it."""
FADED, DAGGER = 0.45, " †"
"""How an estimate is drawn that rests on a law which its own runs contradict."""
DAGGER_NOTE = "†: the runs contradict this law (the table says how): it decides neither band nor 1.0."
BOUND_NOTE = (
    "(ours): the paper's bound as reconstructed by this project from beta alone, not its theorem. Arrow at "
    "an interval: it goes on. Dashed N*(D): beyond the sizes trained. All intervals are 95 %."
)
BAND_NOTE = f"arXiv 2402.14746: {BAND[0]} to {BAND[1]}"


def natural_figure(found: Natural, note: str = "", called: str = "") -> Figure:
    """Draw the estimates of gamma as a forest, and N over D.

    Left: a row an estimate, markers by kind and colours by curve, with 95 % intervals, the published band
    shaded and Chinchilla's 1.0 as a line. Right: measured N(D) with intervals and the line through it
    (dotted), censored budgets as arrows at the smallest or largest size, and the compute-optimal N*(D) of the
    fitted law (solid, dashed beyond the sizes of the runs) and of IsoFLOP parabolas (diamonds).

    Args:
        found: the estimates.
        note: source, or how complete the tables are.
        called: title; the name of the table without.
    """
    chosen = looks([group.label for group in found.groups])
    rows = _rows(found)
    forest = ROW * sum(1 if kind else 1.2 for _, kind in rows)
    height = max(LEAST_HEIGHT, forest + FRAME)
    doubted = any(one.doubt for group in found.groups for one in group.estimates.values())
    feet = [*_reasons(found), DAGGER_NOTE if doubted else "", BOUND_NOTE, note]
    lines = sum(-(-len(text) // footnote_letters(TWO_COLUMNS)) for text in feet if text)
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, height + 0.125 * lines))
        handles = _handles(found, chosen)
        columns = 2 if len(handles) <= MOST_WIDE else 1
        words = LEGEND_LINE * -(-len(handles) // columns)
        grid = figure.add_gridspec(
            2, 2, width_ratios=[1.0, 1.05], height_ratios=[max(height - FRAME - words, UPPER), words]
        )
        left = figure.add_subplot(grid[:, 0])
        right, corner = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        _forest(left, rows, chosen)
        title(left, f"{called or found.name}: $N \\propto D^{{\\,\\gamma}}$", "", TWO_COLUMNS / 2)
        _sizes(right, found, chosen)
        title(right, "Parameters over tokens", "", TWO_COLUMNS / 2)
        corner.set_axis_off()
        corner.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(-0.06, 1.0), fontsize=6.5, frameon=False,
            ncols=columns, alignment="left", columnspacing=1.0, borderaxespad=0,
        ).set_in_layout(False)  # fmt: skip
        footnote(figure, [text for text in feet if text])
        figure.draw_without_rendering()
    return figure


def _rows(found: Natural) -> list[tuple[Group, str]]:
    """(curve, kind of estimate) from top to bottom; an empty kind is the name of the curve."""
    rows = []
    for group in found.groups:
        shown = [kind for kind in KINDS if len(found.groups) <= FEW or group.estimates[kind].known]
        rows += [(group, kind) for kind in ("", *shown)]
    return rows


def _reasons(found: Natural) -> list[str]:
    """Why estimates have no row, or no interval."""
    if len(found.groups) > FEW:
        every = any(not one.known for group in found.groups for one in group.estimates.values())
        told = "An estimate without a row is not identified, or means nothing; the table says why."
        return [told] if every else []
    texts = []
    for group in found.groups:
        lost: dict[str, list[str]] = {}
        for kind, one in group.estimates.items():
            if not one.known:
                # Both ends of the reconstruction share their reason.
                lost.setdefault(_cut(one.reason), []).append(NAMES[kind].removesuffix(" (ours)"))
        name = f"{group.label}, " if len(found.groups) > 1 else ""
        texts += [f"{name}{' and '.join(kinds)}: {reason}." for reason, kinds in lost.items()]
    return texts


def _cut(reason: str) -> str:
    return reason if len(reason) <= REASON else f"{reason[:REASON].rsplit(' ', 1)[0]} .."


def _forest(axes: Axes, rows: Sequence[tuple[Group, str]], chosen: dict[str, Look]) -> None:
    limits = _limits([group.estimates[kind] for group, kind in rows if kind])
    axes.axvspan(*BAND, color=BAND_COLOUR, alpha=BAND_ALPHA, linewidth=0, zorder=0.5)
    axes.axvline(CHINCHILLA, color=GREY, linestyle=DASHES, linewidth=0.9, zorder=2)
    places, names, y = [], [], 0.0
    for group, kind in rows:
        y += 1.0 if kind else 1.2
        if not kind:
            axes.annotate(
                group.label, (0.012, y + 0.1), xycoords=("axes fraction", "data"), fontsize=6.5, va="center",
                fontweight="bold", zorder=7,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip
            continue
        places.append(y)
        names.append(NAMES[kind] + (DAGGER if group.estimates[kind].doubt else ""))
        _estimate(axes, group, kind, y, chosen[group.label].colour, limits)
    axes.set_ylim(y + 0.7, 0.4)
    axes.set_xlim(*limits)
    axes.set_xticks(nice_ticks(*limits, 5))
    axes.set_yticks(places, names, fontsize=6.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(r"$\gamma$, 95 % interval")


def _estimate(
    axes: Axes, group: Group, kind: str, y: float, colour: str, limits: tuple[float, float]
) -> None:
    one = group.estimates[kind]
    if one.value is None:
        words = "means nothing" if one.meaningless else "not identified"
        axes.annotate(
            words, (0.012, y), xycoords=("axes fraction", "data"), fontsize=6, color=GREY, va="center",
            zorder=7, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
        return
    low, high = (limits if one.low is None or one.high is None else (one.low, one.high)) if one.known else (
        one.value, one.value,
    )  # fmt: skip
    ends = [max(low, limits[0] - 1), min(high, limits[1] + 1)]
    drawn = axes.errorbar(
        [one.value], [y], xerr=[[one.value - ends[0]], [ends[1] - one.value]] if one.known else None,
        color=colour, elinewidth=0.9, linestyle="none", zorder=5, alpha=FADED if one.doubt else 1,
        **_marker(kind, colour),
    )  # fmt: skip
    drawn.lines[0].set_gid(kind)
    hover(points_of(drawn), [_estimate_words(group, one)])
    for end, marker in ((low, "<"), (high, ">")):
        if one.known and not limits[0] <= end <= limits[1]:
            edge = min(max(end, limits[0]), limits[1])
            axes.plot([edge], [y], marker, color=colour, markersize=3.2, clip_on=False, zorder=6)


def _marker(kind: str, colour: str) -> dict[str, Any]:
    """The reconstruction's markers are open: it is no measurement."""
    inside = "white" if kind in BOUNDS else colour
    return {"marker": MARKERS[kind], "markersize": 4, "markerfacecolor": inside, "markeredgecolor": colour,
            "markeredgewidth": 0.8}  # fmt: skip


def _estimate_words(group: Group, one: Estimate) -> str:
    value, ends = value_words(one)
    told = f"{group.label}, {KINDS[one.kind]}: gamma {value} {ends}".removesuffix(" -")
    return f"{told}, {one.doubt}" if one.doubt else told


def _limits(shown: Sequence[Estimate]) -> tuple[float, float]:
    """A range with every value, the band and 1.0, and the intervals unless they are far wider."""
    values = [one.value for one in shown if one.value is not None] + [*BAND, CHINCHILLA, *LEAST_RANGE]
    ends = [end for one in shown if one.known for end in one.interval() if math.isfinite(end)]
    reach = REACH * (max(values) - min(values))
    low = max(min([*values, *ends]), min(values) - reach)
    high = min(max([*values, *ends]), max(values) + reach)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _sizes(axes: Axes, found: Natural, chosen: dict[str, Look]) -> None:
    """N over D, both logarithmic."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    spans: list[tuple[float, float]] = []
    sizes: list[float] = []
    for group in found.groups:
        colour = chosen[group.label].colour
        spans.append(group.tokens)
        choice = group.chosen(found.within, found.reference)
        crowded = len(found.groups) > FEW and (choice is None or not choice.used)
        if choice is not None and not crowded:
            sizes += _measured(axes, group, choice, colour, len(found.groups) <= FEW)
        if len(group.optimum) > 1:
            sizes += _line(axes, group, colour)
        if group.vertices:
            d, n = np.array(group.vertices, np.float64).T
            (line,) = axes.plot(d, n, linestyle="none", zorder=4, alpha=0.8, **_marker("isoflop", colour))
            line.set_markerfacecolor("none")
            line.set_markersize(3.2)
            words = [f"{group.label}, parabola: N* {count(b)} at D* {count(a)}" for a, b in group.vertices]
            hover(line, words)
            sizes += n.tolist()
            spans.append((float(d.min()), float(d.max())))
    if not sizes:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no size is identified", transform=axes.transAxes, ha="center", color=GREY)
        return
    low, high = min(a for a, _ in spans), max(b for _, b in spans)
    log_counts_axis(axes, "x", low / 1.3, high * 1.3)
    log_counts_axis(axes, "y", min(sizes) / 1.6, max(sizes) * 1.6)
    axes.set_xlabel("Training tokens D")
    axes.set_ylabel("Parameters N")


def _measured(axes: Axes, group: Group, choice: Choice, colour: str, spans: bool) -> list[float]:
    """Points with intervals, the line through them, and arrows; returns the sizes that must be seen.

    Args:
        axes: of parameters over tokens.
        group: the curve.
        choice: its measured N(D).
        colour: of the curve.
        spans: whether the sizes that were trained are drawn, as pale bars.
    """
    reached = [one for one in choice.reached if one.params is not None]
    if reached:
        x = np.array([one.tokens for one in reached])
        y = np.array([one.params for one in reached], np.float64)
        low = np.array([one.params if one.low is None else one.low for one in reached], np.float64)
        high = np.array([one.params if one.high is None else one.high for one in reached], np.float64)
        drawn = axes.errorbar(
            x, y, yerr=[y - low, high - y], color=colour, elinewidth=0.8, linestyle="none", zorder=5,
            **_marker("measured", colour),
        )  # fmt: skip
        hover(points_of(drawn), [_reach_words(group, one) for one in reached])
        if choice.estimate.value is not None:
            middle = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
            ends = np.array([x.min(), x.max()])
            axes.plot(
                ends, middle[1] * (ends / middle[0]) ** choice.estimate.value, color=colour, linestyle=DOTS,
                linewidth=1.1, zorder=4,
            )  # fmt: skip
    for one in choice.reached if spans else ():
        (line,) = axes.plot(
            [one.tokens] * 2, [one.smallest, one.largest], color=colour, alpha=0.25, linewidth=2.5,
            zorder=1.5, solid_capstyle="butt",
        )  # fmt: skip
        line.set_gid("sizes")
    for one in choice.reached:
        if one.censored:
            at = one.smallest if one.censored == "below" else one.largest
            sign = r"$\downarrow$" if one.censored == "below" else r"$\uparrow$"
            (line,) = axes.plot(
                [one.tokens], [at], linestyle="none", marker=sign, color=colour, markersize=6, zorder=4,
                markeredgewidth=0.3,
            )  # fmt: skip
            line.set_gid(f"censored-{one.censored}")
            hover(line, [_reach_words(group, one)])
    return [
        value
        for one in choice.reached
        for value in (one.params, *((one.smallest, one.largest) if spans or one.censored else ()))
        if value is not None
    ]


def _reach_words(group: Group, one: Reach) -> str:
    if one.params is None:
        sizes = f"{count(one.smallest)} to {count(one.largest)}"
        return f"{group.label}, D = {count(one.tokens)}: {one.reason} ({sizes})"
    ends = "" if one.low is None or one.high is None else f" [{count(one.low)}, {count(one.high)}]"
    return f"{group.label}, D = {count(one.tokens)}: N = {count(one.params)}{ends}"


def _line(axes: Axes, group: Group, colour: str) -> list[float]:
    """N*(D) of the law over the runs' tokens, dashed beyond their sizes; returns the sizes at its ends."""
    (d0, n0), (d1, n1) = group.optimum[0], group.optimum[-1]
    slope = math.log(n1 / n0) / math.log(d1 / d0)
    tokens = np.geomspace(*group.tokens, STEPS)
    sizes = n0 * (tokens / d0) ** slope
    faded = FADED if group.estimates["law"].doubt else 1
    (line,) = axes.plot(tokens, sizes, color=colour, linestyle=DASHES, linewidth=0.9, zorder=3, alpha=faded)
    line.set_gid("law")
    words = [
        f"{group.label}, law: N* {count(n)} at D* {count(d)}" for d, n in zip(tokens, sizes, strict=True)
    ]
    hover(line, words)
    inside = (sizes >= group.params[0]) & (sizes <= group.params[1])
    axes.plot(tokens[inside], sizes[inside], color=colour, linewidth=1.3, zorder=3, alpha=faded)
    return [float(sizes[0]), float(sizes[-1])]


def _handles(found: Natural, chosen: dict[str, Look]) -> list[Any]:
    """Curves by colour where there are several, then what the markers and lines are."""
    handles: list[Any] = []
    if len(found.groups) > 1:
        handles += [Patch(color=chosen[g.label].colour, label=g.label, linewidth=0) for g in found.groups]
    choices = [group.chosen(found.within, found.reference) for group in found.groups]
    reached = [one for choice in choices if choice is not None for one in choice.reached]
    band = Patch(color=BAND_COLOUR, alpha=2 * BAND_ALPHA, linewidth=0, label=BAND_NOTE)
    handles += [band, _sample("Chinchilla: 1.0", linestyle=DASHES, linewidth=0.9)]
    if any(one.params is not None for one in reached):
        handles.append(_sample("N(D), measured", linestyle=DOTS, **_marker("measured", GREY)))
    if reached and len(found.groups) <= FEW:
        handles.append(_sample("sizes trained", alpha=0.25, linewidth=3))
    if any(one.censored for one in reached):
        handles.append(_sample("beyond the sizes", linestyle="none", marker=r"$\uparrow$", markersize=6))
    if any(len(group.optimum) > 1 for group in found.groups):
        handles.append(_sample("N*(D), fitted law"))
    if any(group.vertices for group in found.groups):
        look = {**_marker("isoflop", GREY), "markerfacecolor": "none"}
        handles.append(_sample("N*(D), parabolas", linestyle="none", **look))
    return handles


def _sample(label: str, **look: Any) -> Line2D:
    return Line2D([], [], color=GREY, label=label, **{"linewidth": 1.2, **look})
