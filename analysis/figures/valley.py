"""The valley figure: loss over width at fixed training FLOPs, and how the best width grows with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.digits import quantity
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    log_flops_axis,
    log_loss_axis,
    looks,
    title,
)
from analysis.isoflop.budgets import group_budgets
from analysis.isoflop.optima import RISE
from analysis.isoflop.widths import TOLERANCE, Valley

COLUMNS, PANEL = 2, 2.7
CURVE_POINTS = 80
WORDS = (
    f"parabolas through losses within {100 * RISE:g} % of the lowest, 95 % intervals; open: best tried, no "
    "optimum"
)
DODGE = 0.012
"""Structures at one budget stand beside each other by this share of the panel's width."""


def valley_figure(found: Sequence[Valley], name: str, note: str = "") -> Figure:
    """Draw a panel a structure, loss over width with a colour a budget, and beside them the best widths.

    Points are means over seeds with standard errors; dashes the parabola of log loss in log width, its vertex
    a bar with a 95 % interval. Crosses at the upper edge are widths at which runs diverged. In the last panel
    open marks are the best widths tried where there is no optimum, with the reason.

    Args:
        found: at least one valley.
        name: of the table.
        note: what is to be said of it, such as runs that are missing.
    """
    structures = list(dict.fromkeys(valley.structure for valley in found))
    chosen = looks(structures)
    colours = _colours(found)
    panels = len(structures) + 1
    columns = min(COLUMNS if panels != 3 else 3, panels)
    rows = -(-panels // columns)
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, PANEL * rows + 0.45))
        grid = figure.subplots(rows, columns, squeeze=False)
        for i, structure in enumerate(structures):
            axes = grid.flat[i]
            _panel(axes, [v for v in found if v.structure == structure], found, chosen[structure], colours)
            title(axes, f"{name}, {structure}", note if i == 0 else "", TWO_COLUMNS / columns)
            if i % columns == 0:
                axes.set_ylabel("Held-out loss (nats per token)")
        last = grid.flat[panels - 1]
        _optima(last, found, chosen)
        title(last, "Best width", WORDS, TWO_COLUMNS / columns)
        for axes in grid.flat[panels:]:
            axes.set_axis_off()
        handles = _handles(found, chosen, colours)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
        figure.draw_without_rendering()
    return figure


def _colours(found: Sequence[Valley]) -> dict[float, str]:
    """A colour for each budget, from dark (small) to light; equal ones of all structures share it."""
    flops = np.array([valley.flops for valley in found])
    groups = group_budgets(flops, TOLERANCE)
    map_ = matplotlib.colormaps["viridis"]
    shades = np.linspace(0.0, 0.82, len(groups))
    return {float(flops[i]): to_hex(map_(s)) for s, place in zip(shades, groups, strict=True) for i in place}


def _panel(
    axes: Axes, mine: Sequence[Valley], found: Sequence[Valley], look: Look, colours: dict[float, str]
) -> None:
    losses = [loss for valley in found for values in valley.losses.values() for loss in values]
    room = max(math.log(max(losses) / min(losses)), 0.02)
    log_loss_axis(axes, min(losses) * math.exp(-0.1 * room), max(losses) * math.exp(0.25 * room))
    _width_axis(axes, "x", [width for valley in found for width in (*valley.losses, *valley.diverged)])
    stacked: dict[int, int] = {}
    for valley in mine:
        colour = colours[valley.flops]
        style = {**look.marker_style(), "color": colour, "markersize": 3.8, "markeredgewidth": 0.9}
        # The filling of a marker takes the budget's colour too.
        style["markerfacecolor"] = colour if look.filled else "white"
        widths = list(valley.losses)
        errors = [_se(valley.losses[width]) for width in widths]
        container = axes.errorbar(
            widths, [valley.mean(width) for width in widths], yerr=errors if any(errors) else None,
            linestyle="none", elinewidth=0.8, zorder=5, **style,
        )  # fmt: skip
        hover(container.lines[0], [_text(valley, width) for width in widths])
        _parabola(axes, valley, colour)
        for width, count in valley.diverged.items():
            _cross(axes, valley, width, count, stacked.setdefault(width, 0), colour)
            stacked[width] += 1


def _parabola(axes: Axes, valley: Valley, colour: str) -> None:
    fit = valley.fit
    if fit is None or not fit.curvature > 0:
        return
    x = np.linspace(fit.low, fit.high, CURVE_POINTS)
    c0, c1, c2 = fit.coefficients
    u = (x - fit.centre) / fit.scale
    axes.plot(np.exp(x), np.exp(c0 + c1 * u + c2 * u * u), color=colour, linewidth=0.8, zorder=3,
              linestyle=(0, (3, 1.5)))  # fmt: skip
    if valley.reason:
        return
    low, high = axes.get_xlim()
    ends = max(valley.low, low), min(valley.high, high)
    error = [[valley.optimum - ends[0]], [ends[1] - valley.optimum]]
    container = axes.errorbar(
        [valley.optimum], [math.exp(fit.height)], xerr=error, marker="|", markersize=7, color=colour,
        linestyle="none", elinewidth=1.1, markeredgewidth=1.3, zorder=6,
    )  # fmt: skip
    hover(container.lines[0], [_words(valley)])


def _cross(axes: Axes, valley: Valley, width: int, count: int, level: int, colour: str) -> None:
    from_share = (axes.transScale + axes.transLimits).inverted()
    y = float(from_share.transform((0.5, 0.97 - 0.06 * level))[1])
    line = axes.plot([width], [y], "x", color=colour, markersize=4, markeredgewidth=1.1, zorder=6)
    text = f"{count}/{count + len(valley.losses.get(width, ()))}"
    axes.annotate(
        text, (width, y), xytext=(-4, 0), textcoords="offset points", fontsize=6.5, color=colour, ha="right",
        va="center",
    )  # fmt: skip
    words = f"{text} runs diverged at width {width}, {quantity(valley.flops)} FLOPs"
    hover(line[0], [f"{valley.structure}: {words}"])


def _width_axis(axes: Axes, which: str, widths: Sequence[float]) -> None:
    """A logarithmic axis of d_model to base 2, its ticks the widths tried, as many as fit."""
    low, high = min(widths) / 1.15, max(widths) * 1.15
    ticks: list[float] = []
    for width in sorted(set(widths)):
        if not ticks or math.log(width / ticks[-1]) > math.log(high / low) / 8:
            ticks.append(width)
    axis = axes.xaxis if which == "x" else axes.yaxis
    if which == "x":
        axes.set_xscale("log", base=2)
        axes.set_xlim(low, high)
        axes.set_xlabel("Width d_model")
    else:
        axes.set_yscale("log", base=2)
        axes.set_ylim(low, high)
        axes.set_ylabel("Best width d_model")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _optima(axes: Axes, found: Sequence[Valley], chosen: dict[str, Look]) -> None:
    flops = [valley.flops for valley in found]
    low, high = min(flops) / 1.6, max(flops) * 1.6
    log_flops_axis(axes, low, high)
    axes.set_xlabel("Training FLOPs")
    _width_axis(axes, "y", [width for valley in found for width in valley.losses])
    bottom, top = axes.get_ylim()
    for i, (structure, look) in enumerate(chosen.items()):
        mine = [valley for valley in found if valley.structure == structure]
        shift = (high / low) ** (DODGE * (i - (len(chosen) - 1) / 2))
        known = [valley for valley in mine if not valley.reason]
        if known:
            ends = [(max(v.low, bottom), min(v.high, top)) for v in known]
            error = [
                [v.optimum - end[0] for v, end in zip(known, ends, strict=True)],
                [end[1] - v.optimum for v, end in zip(known, ends, strict=True)],
            ]
            container = axes.errorbar(
                [v.flops * shift for v in known], [v.optimum for v in known], yerr=error, elinewidth=0.8,
                color=look.colour, linewidth=0.9, linestyle=look.line, zorder=5, **look.marker_style(),
            )  # fmt: skip
            hover(container.lines[0], [_words(v) for v in known])
        for v in (v for v in mine if v.reason):
            style = {**look.marker_style(), "markerfacecolor": "white", "markerfacecoloralt": "white"}
            line = axes.plot(
                [v.flops * shift], [v.best], color=look.colour, linestyle="none", alpha=0.6, **style
            )
            hover(line[0], [_words(v)])
            left = v.flops < math.sqrt(low * high)
            axes.annotate(
                v.reason.partition(":")[0], (v.flops * shift, v.best), xytext=(5 if left else -5, 0),
                textcoords="offset points", fontsize=6.5, color=look.colour, ha="left" if left else "right",
                va="bottom" if i % 2 == 0 else "top",
            )  # fmt: skip


def _handles(found: Sequence[Valley], chosen: dict[str, Look], colours: dict[float, str]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=look.colour, linewidth=0.9, label=label, **look.marker_style())
        for label, look in chosen.items()
    ]
    shown: dict[str, float] = {}
    for flops, colour in sorted(colours.items()):
        shown.setdefault(colour, flops)
    handles += [
        Line2D([], [], color=colour, linewidth=2.5, label=f"{flops:.2g} FLOPs")
        for colour, flops in shown.items()
    ]
    if any(valley.diverged for valley in found):
        label = "diverged, runs of runs"
        handles.append(Line2D([], [], marker="x", color=GREY, linestyle="none", markersize=4, label=label))
    return handles


def _se(losses: Sequence[float]) -> float:
    return float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0


def _text(valley: Valley, width: int) -> str:
    losses = valley.losses[width]
    spread = f" ± {_se(losses):.2g}, {len(losses)} seeds" if len(losses) > 1 else ""
    where = f"at d_model {width}, {quantity(valley.flops)} FLOPs"
    return f"{valley.structure}: loss {valley.mean(width):.4g}{spread} {where}"


def _words(valley: Valley) -> str:
    where = f"{valley.structure}, {quantity(valley.flops)} FLOPs"
    if valley.reason:
        return f"{where}: lowest at d_model {valley.best}; {valley.reason}"
    return f"{where}: best d_model {valley.optimum:.3g}, 95 % interval {valley.low:.3g} to {valley.high:.3g}"
