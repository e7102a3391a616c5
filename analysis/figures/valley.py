"""The valley figure: loss over width at fixed budgets, and how the best width grows with the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.digits import estimate, quantity
from analysis.figures.legends import legend_columns
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
from analysis.isoflop.widths import FLOPS, TOLERANCE, Valley
from analysis.searches.optimum import Growth, growth

COLUMNS, PANEL = 2, 2.7
CURVE_POINTS = 80
SELECTED = "lowest of the shapes tried at each width: optimistic by about the noise"
SETTINGS = {"d_model": "width d_model", "tokens_per_param": "tokens per parameter"}
"""What the values of a valley are called on an axis."""
DODGE = 0.012
"""Structures at one budget stand beside each other by this share of the panel's width."""


def valley_figure(found: Sequence[Valley], name: str, note: str = "") -> Figure:
    """Draw a panel a structure, loss over width with a colour a budget, and beside them the best widths.

    Points are means over seeds with standard errors, of the lowest shape where several share a width; small
    faint dots are the other shapes. Dashes are the parabola of log loss in log width, its vertex a bar with a
    95 % interval. Crosses at the upper edge are widths at which runs diverged. In the last panel open marks
    are the best widths tried where there is no optimum, with the reason, and lines are the fitted growth,
    with a 95 % band from three budgets on.

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
            said = SELECTED if any(valley.selected for valley in found) else ""
            words = "; ".join(filter(None, [note, said])) if i == 0 else ""
            title(axes, f"{name}, {structure}", words, TWO_COLUMNS / columns)
            if i % columns == 0:
                axes.set_ylabel("Held-out loss (nats per token)")
        last = grid.flat[panels - 1]
        rates = growth(found)
        _optima(last, found, chosen, rates)
        setting = SETTINGS.get(found[0].over, found[0].over)
        title(last, f"Best {setting}", _said(rates), TWO_COLUMNS / columns)
        for axes in grid.flat[panels:]:
            axes.set_axis_off()
        handles = _handles(found, chosen, colours)
        ncols = legend_columns(handles, TWO_COLUMNS, 5)
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
        figure.draw_without_rendering()
    return figure


def _said(rates: Sequence[Growth]) -> str:
    """The exponents of the best width over the budget, or that they are not identified; in words."""
    said = []
    for one in rates:
        ends = ("not identified",) if one.reason else estimate(one.exponent, one.low, one.high)
        said.append(f"{one.structure}: {' '.join(ends)}")
    known = [one for one in rates if not one.reason]
    bare = "; two budgets: no band" if any(one.line is None for one in known) else ""
    return f"exponents, 95 % intervals: {'; '.join(said)}{bare}" if known else "; ".join(said)


def _colours(found: Sequence[Valley]) -> dict[float, str]:
    """A colour for each budget, from dark (small) to light; equal ones of all structures share it."""
    flops = np.array([valley.budget for valley in found])
    groups = group_budgets(flops, TOLERANCE)
    map_ = matplotlib.colormaps["viridis"]
    shades = np.linspace(0.0, 0.82, len(groups))
    return {float(flops[i]): to_hex(map_(s)) for s, place in zip(shades, groups, strict=True) for i in place}


def _panel(
    axes: Axes, mine: Sequence[Valley], found: Sequence[Valley], look: Look, colours: dict[float, str]
) -> None:
    losses = [loss for valley in found for values in valley.losses.values() for loss in values]
    others = [s.mean for v in found for rest in v.others.values() for s in rest]
    room = max(math.log(max(losses) / min(losses)), 0.02)
    # Poor shapes may lie far above every valley, and would flatten it.
    top = min(max([*losses, *others]), max(losses) * math.exp(0.5 * room))
    log_loss_axis(axes, min(losses) * math.exp(-0.1 * room), top * math.exp(0.25 * room))
    widths_ = [width for valley in found for width in (*valley.losses, *valley.diverged, *valley.others)]
    _width_axis(axes, "x", widths_, found[0].over)
    stacked: dict[float, int] = {}
    beyond = 0
    for valley in mine:
        colour = colours[valley.budget]
        beyond += _others(axes, valley, colour)
        style = {**look.marker_style(), "color": colour, "markersize": 3.8, "markeredgewidth": 0.9}
        # The filling of a marker takes the budget's colour too.
        style["markerfacecolor"] = colour if look.filled else "white"
        widths = list(valley.losses)
        errors = [valley.se(width) for width in widths]
        container = axes.errorbar(
            widths, [valley.mean(width) for width in widths], yerr=errors if any(errors) else None,
            linestyle="none", elinewidth=0.8, zorder=5, **style,
        )  # fmt: skip
        runs = [valley.shapes[width].runs for width in widths]
        ids = [one[0] if len(one) == 1 else "" for one in runs]
        hover(container.lines[0], [_text(valley, width) for width in widths], ids)
        _parabola(axes, valley, colour)
        for width, count in valley.diverged.items():
            _cross(axes, valley, width, count, stacked.setdefault(width, 0), colour)
            stacked[width] += 1
    if beyond:
        axes.annotate(
            f"{beyond} poorer shape{'s' if beyond > 1 else ''} above", (1, 0.9), xycoords="axes fraction",
            xytext=(-2, 0), textcoords="offset points", fontsize=6.5, color=GREY, ha="right", va="top",
        )  # fmt: skip


def _others(axes: Axes, valley: Valley, colour: str) -> int:
    """The shapes that are not the lowest of their width; returns how many lie above the panel."""
    top = axes.get_ylim()[1]
    points = [(width, shape) for width, rest in valley.others.items() for shape in rest]
    shown = [(width, shape) for width, shape in points if shape.mean < top]
    if shown:
        line = axes.plot(
            [width for width, _ in shown], [shape.mean for _, shape in shown], ".", color=colour,
            markersize=3.6, alpha=0.55, markeredgewidth=0, zorder=3.5,
        )  # fmt: skip
        hover(
            line[0],
            [f"{_at(valley, width)}, {shape.words}: loss {shape.mean:.4g}" for width, shape in shown],
            [shape.runs[0] if len(shape.runs) == 1 else "" for _, shape in shown],
        )
    return len(points) - len(shown)


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


def _cross(axes: Axes, valley: Valley, width: float, count: int, level: int, colour: str) -> None:
    from_share = (axes.transScale + axes.transLimits).inverted()
    y = float(from_share.transform((0.5, 0.97 - 0.06 * level))[1])
    line = axes.plot([width], [y], "x", color=colour, markersize=4, markeredgewidth=1.1, zorder=6)
    shapes = [s for s in (valley.shapes.get(width), *valley.others.get(width, ())) if s is not None]
    text = f"{count}/{count + sum(len(shape.losses) for shape in shapes)}"
    axes.annotate(
        text, (width, y), xytext=(-4, 0), textcoords="offset points", fontsize=6.5, color=colour, ha="right",
        va="center",
    )  # fmt: skip
    hover(line[0], [f"{_at(valley, width)}: {text} runs diverged"])


def _width_axis(axes: Axes, which: str, widths: Sequence[float], over: str) -> None:
    """A logarithmic axis of widths to base 2, its ticks the widths tried, as many as fit."""
    setting = SETTINGS.get(over, over)
    low, high = min(widths) / 1.15, max(widths) * 1.15
    ticks: list[float] = []
    for width in sorted(set(widths)):
        if not ticks or math.log(width / ticks[-1]) > math.log(high / low) / 8:
            ticks.append(width)
    axis = axes.xaxis if which == "x" else axes.yaxis
    if which == "x":
        axes.set_xscale("log", base=2)
        axes.set_xlim(low, high)
        axes.set_xlabel(setting[:1].upper() + setting[1:])
    else:
        axes.set_yscale("log", base=2)
        axes.set_ylim(low, high)
        axes.set_ylabel(f"Best {setting}")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _optima(axes: Axes, found: Sequence[Valley], chosen: dict[str, Look], rates: Sequence[Growth]) -> None:
    budgets = [valley.budget for valley in found]
    low, high = min(budgets) / 1.6, max(budgets) * 1.6
    log_flops_axis(axes, low, high)
    axes.set_xlabel("Training FLOPs" if found[0].unit == FLOPS else "Parameters")
    _width_axis(axes, "y", [width for valley in found for width in valley.losses], found[0].over)
    bottom, top = axes.get_ylim()
    for i, (structure, look) in enumerate(chosen.items()):
        mine = [valley for valley in found if valley.structure == structure]
        shift = (high / low) ** (DODGE * (i - (len(chosen) - 1) / 2))
        known = [valley for valley in mine if not valley.reason]
        grown = next(one for one in rates if one.structure == structure)
        if grown.line is not None:
            _growth_line(axes, grown, min(v.budget for v in known), max(v.budget for v in known), look)
        if known:
            ends = [(max(v.low, bottom), min(v.high, top)) for v in known]
            error = [
                [v.optimum - end[0] for v, end in zip(known, ends, strict=True)],
                [end[1] - v.optimum for v, end in zip(known, ends, strict=True)],
            ]
            container = axes.errorbar(
                [v.budget * shift for v in known], [v.optimum for v in known], yerr=error, elinewidth=0.8,
                color=look.colour, linewidth=0.9, linestyle=look.line if len(known) == 2 else "none",
                zorder=5, **look.marker_style(),
            )  # fmt: skip
            hover(container.lines[0], [_words(v) for v in known])
        for v in (v for v in mine if v.reason):
            style = {**look.marker_style(), "markerfacecolor": "white", "markerfacecoloralt": "white"}
            line = axes.plot(
                [v.budget * shift], [v.best], color=look.colour, linestyle="none", alpha=0.6, **style
            )
            hover(line[0], [_words(v)])
            left = v.budget < math.sqrt(low * high)
            axes.annotate(
                v.short, (v.budget * shift, v.best), xytext=(5 if left else -5, 0),
                textcoords="offset points", fontsize=6.5, color=look.colour, ha="left" if left else "right",
                va="bottom" if i % 2 == 0 else "top",
            )  # fmt: skip


def _growth_line(axes: Axes, grown: Growth, low: float, high: float, look: Look) -> None:
    """The fitted growth over the budgets that it is fitted to, and its band."""
    assert grown.line is not None
    budgets = np.geomspace(low, high, CURVE_POINTS)
    middle, lower, upper = grown.line.at(budgets)
    bottom, top = axes.get_ylim()
    axes.plot(budgets, middle, color=look.colour, linewidth=0.9, linestyle=look.line, zorder=4)
    axes.fill_between(
        budgets, np.clip(lower, bottom, top), np.clip(upper, bottom, top), color=look.colour, alpha=0.12,
        linewidth=0, zorder=1,
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
        Line2D([], [], color=colour, linewidth=2.5, label=f"{flops:.2g} {found[0].unit}")
        for colour, flops in shown.items()
    ]
    if any(valley.fit is not None for valley in found):
        words = f"parabola, losses within {100 * RISE:g} %"
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=(0, (3, 1.5)), label=words))
    if any(valley.selected for valley in found):
        label = "other shapes of a width"
        handles.append(
            Line2D([], [], marker=".", color=GREY, linestyle="none", markersize=3.6, alpha=0.55, label=label)
        )
    if any(valley.reason for valley in found):
        style: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}
        handles.append(Line2D([], [], color=GREY, markersize=4, label="best tried, no optimum", **style))
    if any(valley.diverged for valley in found):
        label = "diverged, runs of runs"
        handles.append(Line2D([], [], marker="x", color=GREY, linestyle="none", markersize=4, label=label))
    return handles


def _at(valley: Valley, width: float) -> str:
    budget = f"{quantity(valley.budget)} {valley.unit}"
    return f"{valley.structure}, {valley.over} {width:.4g}, {budget}"


def _text(valley: Valley, width: float) -> str:
    losses, shape = valley.losses[width], valley.shapes[width].words
    spread = f" ± {valley.se(width):.2g}, {len(losses)} seeds" if len(losses) > 1 else ""
    where = f"at {valley.over} {width:.4g}, {quantity(valley.budget)} {valley.unit}"
    of = f", {shape}" if shape and valley.selected else ""
    return f"{valley.structure}: loss {valley.mean(width):.4g}{spread} {where}{of}"


def _words(valley: Valley) -> str:
    where = f"{valley.structure}, {quantity(valley.budget)} {valley.unit}"
    if valley.reason:
        return f"{where}: lowest at {valley.over} {valley.best:.4g}; {valley.reason}"
    ends = f"95 % interval {valley.low:.3g} to {valley.high:.3g}"
    return f"{where}: best {valley.over} {valley.optimum:.3g}, {ends}"
