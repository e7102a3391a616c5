"""The learning-rate figure: loss above each structure's best peak rate, and whether all share that rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.arms.rates import RATE, Curve, shared
from analysis.arrays import Array
from analysis.figures.gaps import FILLS, UNKNOWN_FILL
from analysis.figures.legends import legend_columns
from analysis.figures.style import GREY, TWO_COLUMNS, Line, Look, house_style, hover, looks, nice_ticks, title
from analysis.isoflop.parabola import Quadratic
from analysis.runs.treatments import PLAIN, STATIC

TICKS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ROOT = 0.7
"""Losses above the best that need an axis of the square root, nats."""
GUIDED_LINE: Line = (0, (3, 1.5))
PANEL, ROW, COLUMNS = 2.6, 0.2, 2


def learning_rates_figure(found: Sequence[Curve], name: str, note: str = "") -> Figure:
    """Draw loss above each structure's best over peak rates, a panel a size, and the optima beside them.

    Lines join means over seeds, bars are standard errors. Crosses at the upper edge are rates at which runs
    diverged, with how many of how many. Thin dashes are the parabolas, down to their vertex. Right: optima
    with 95 % intervals; open marks are the best rates tried where there is no optimum, with the reason.

    Args:
        found: at least one curve.
        name: of the table.
        note: what is to be said of it, such as runs that are missing.
    """
    sizes = list(dict.fromkeys(curve.size for curve in found))
    chosen = looks([curve.structure for curve in found])
    columns = min(COLUMNS, len(sizes))
    rows = -(-len(sizes) // columns)
    span, pooled = _span(found), any(not curve.reason for curve in found)
    parabolas = False
    with house_style():
        height = max(PANEL * rows, ROW * (len(found) + 2 * len(sizes)) + 0.7) + 0.55
        figure = Figure(figsize=(TWO_COLUMNS, height))
        grid = figure.add_gridspec(
            rows, columns + 1, width_ratios=[1.0] * columns + [1.15 if columns > 1 else 1]
        )
        for i, size in enumerate(sizes):
            axes = figure.add_subplot(grid[i // columns, i % columns])
            mine = [curve for curve in found if curve.size == size]
            parabolas = _panel(axes, mine, chosen, span) or parabolas
            title(
                axes, f"{name}, {size}" if size else name, note if i == 0 else "", TWO_COLUMNS / (columns + 1)
            )
            if i % columns == 0:
                axes.set_ylabel("Loss above the structure's best (nats)")
        right = figure.add_subplot(grid[:, columns])
        _optima(right, found, chosen, span)
        words = f"{shared(found)}; variance pooled over curves" if pooled else shared(found)
        title(right, "Best peak learning rate", words, TWO_COLUMNS / (columns + 1))
        handles = _handles(found, chosen, parabolas)
        ncols = legend_columns(handles, TWO_COLUMNS, 4)
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
        figure.draw_without_rendering()
    return figure


def _span(found: Sequence[Curve]) -> tuple[float, float]:
    rates = [rate for curve in found for rate in curve.rates]
    pad = 0.08 * math.log(max(rates) / min(rates))
    return min(rates) * math.exp(-pad), max(rates) * math.exp(pad)


def _panel(axes: Axes, found: Sequence[Curve], chosen: Mapping[str, Look], span: tuple[float, float]) -> bool:
    """The curves of one size; returns whether parabolas are among them."""
    top = 0.0
    for curve in found:
        look, best = chosen[curve.structure], curve.mean(curve.best)
        rates = list(curve.shapes)
        means = [curve.mean(rate) - best for rate in rates]
        errors = [curve.se(rate) for rate in rates]
        top = max([top, *(mean + error for mean, error in zip(means, errors, strict=True))])
        container = axes.errorbar(
            rates, means, yerr=errors if any(errors) else None, linewidth=0.9, elinewidth=0.7, zorder=4,
            linestyle=GUIDED_LINE if curve.treatment else look.line, **_marker(look, curve.treatment),
        )  # fmt: skip
        hover(container.lines[0], [_text(curve, rate) for rate in rates], [_run(curve, r) for r in rates])
    top = max(top, 0.02)
    _loss_axis(axes, top)
    # On an axis of the square root a parabola's bottom is no bottom.
    fits = [
        (curve, curve.fit) for curve in found if curve.fit is not None and not curve.reason and top <= ROOT
    ]
    for curve, fit in fits:
        _parabola(axes, curve, fit, chosen[curve.structure])
    _rate_axis(axes, span)
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=2)
    _crosses(axes, found, chosen)
    return bool(fits)


def _parabola(axes: Axes, curve: Curve, fit: Quadratic, look: Look) -> None:
    x = np.linspace(fit.low, fit.high, 60)
    c0, c1, c2 = fit.coefficients
    u = (x - fit.centre) / fit.scale
    y = c0 + c1 * u + c2 * u * u - curve.mean(curve.best)
    axes.plot(np.exp(x), y, color=look.colour, linewidth=0.6, linestyle=(0, (1, 1)), zorder=3)


def _loss_axis(axes: Axes, top: float) -> None:
    """Linear, or of the square root where the bottom of a valley would be lost."""
    root = top > ROOT
    if root:
        axes.set_yscale("function", functions=(_signed_root, _signed_square))
    ceiling = (math.sqrt(top) * 1.22) ** 2 if root else 1.3 * top
    axes.set_ylim(-((0.16 * math.sqrt(top)) ** 2) if root else -0.12 * top, ceiling)
    ticks = [0.0] if root else nice_ticks(0.0, ceiling)
    for tick in TICKS:
        if root and math.sqrt(ceiling) >= math.sqrt(tick) > math.sqrt(ticks[-1]) + 0.09 * math.sqrt(ceiling):
            ticks.append(tick)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _signed_root(values: Array) -> Array:
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))


def _signed_square(values: Array) -> Array:
    return np.asarray(np.sign(values) * np.square(values))


def _rate_axis(axes: Axes, span: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*span)
    powers = range(math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])) + 1)
    steps = (1, 3) if span[1] / span[0] > 12 else (1, 2, 5)
    ticks = [s * 10.0**p for p in powers for s in steps if span[0] <= s * 10.0**p <= span[1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("Peak learning rate")


def _crosses(axes: Axes, found: Sequence[Curve], chosen: Mapping[str, Look]) -> None:
    """Rates at which runs diverged, stacked below the upper edge, with how many of how many."""
    stacked: dict[float, int] = defaultdict(int)
    from_share = (axes.transScale + axes.transLimits).inverted()
    for curve in found:
        for rate, count in curve.diverged.items():
            at = rate, float(from_share.transform((0.5, 0.97 - 0.06 * stacked[rate]))[1])
            stacked[rate] += 1
            colour = chosen[curve.structure].colour
            line = axes.plot(*at, "x", color=colour, markersize=4, markeredgewidth=1.1, zorder=6)
            text = f"{count}/{count + len(curve.losses.get(rate, ()))}"
            axes.annotate(
                text, at, xytext=(-4, 0), textcoords="offset points", fontsize=6.5, color=colour, ha="right",
                va="center",
            )  # fmt: skip
            hover(line[0], [f"{curve.name}, {curve.size}: {text} runs diverged at {RATE} {rate:g}"])


def _optima(
    axes: Axes, found: Sequence[Curve], chosen: Mapping[str, Look], span: tuple[float, float]
) -> None:
    place = 0.0
    names: list[tuple[float, str]] = []
    for size in dict.fromkeys(curve.size for curve in found):
        axes.text(
            0.0, place, f" {size}", transform=axes.get_yaxis_transform(), fontsize=7, fontweight="bold",
            va="center",
        )  # fmt: skip
        for curve in (c for c in found if c.size == size):
            place += 1
            names.append((place, ""))
            _optimum(axes, curve, place, chosen[curve.structure], span)
        place += 1.3
    axes.set_ylim(place - 0.7, -0.7)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    _rate_axis(axes, span)


def _optimum(axes: Axes, curve: Curve, place: float, look: Look, span: tuple[float, float]) -> None:
    style = _marker(look, curve.treatment)
    if not curve.reason:
        # An end beyond the rates tried is cut off there.
        ends = max(curve.low, span[0]), min(curve.high, span[1])
        error = [[curve.optimum - ends[0]], [ends[1] - curve.optimum]]
        container = axes.errorbar(
            [curve.optimum], [place], xerr=error, linestyle="none", elinewidth=0.9, zorder=4, **style
        )
        words = f"best {curve.optimum:.3g}, 95 % interval {curve.low:.3g} to {curve.high:.3g}"
        hover(container.lines[0], [f"{curve.name}, {curve.size}: {words}"])
        return
    rates = curve.rates
    axes.plot([rates[0], rates[-1]], [place, place], color="#cccccc", linewidth=0.8, zorder=2)
    line = axes.plot(
        [curve.best], [place], linestyle="none", zorder=4, **{**style, "markerfacecolor": "white"}
    )
    hover(line[0], [f"{curve.name}, {curve.size}: lowest at {curve.best:g}; {curve.reason}"])
    axes.annotate(
        curve.reason, (rates[0], place), xytext=(5, 4), textcoords="offset points", fontsize=6.5, color=GREY,
        ha="left", va="bottom",
    )  # fmt: skip


def _marker(look: Look, treatment: str) -> dict[str, Any]:
    """The look of a structure where nothing is guided, else filled as in the figure of gaps."""
    style = {"color": look.colour, "markersize": 4, "markeredgewidth": 0.9}
    if treatment == PLAIN:
        return {**style, **look.marker_style()}
    fill = FILLS.get(treatment.removesuffix(STATIC), UNKNOWN_FILL)
    return {
        **style, "marker": look.marker, "fillstyle": fill, "markerfacecolor": look.colour,
        "markerfacecoloralt": "white",
    }  # fmt: skip


def _handles(found: Sequence[Curve], chosen: Mapping[str, Look], parabolas: bool) -> list[Line2D]:
    handles = []
    for structure, treatment in dict.fromkeys((c.structure, c.treatment) for c in found):
        look = chosen[structure]
        line = GUIDED_LINE if treatment else look.line
        label = f"{structure}, {treatment}" if treatment else structure
        style = _marker(look, treatment)
        handles.append(Line2D([], [], linewidth=0.9, linestyle=line, label=label, **style))
    if any(curve.diverged for curve in found):
        label = "diverged, runs of runs"
        handles.append(Line2D([], [], marker="x", color=GREY, linestyle="none", markersize=4, label=label))
    if parabolas:
        handles.append(
            Line2D([], [], color=GREY, linewidth=0.6, linestyle=(0, (1, 1)), label="parabola in log rate")
        )
    return handles


def _run(curve: Curve, rate: float) -> str:
    """The id of the run at a rate; empty where it is not one run."""
    runs = curve.shapes[rate].runs
    return runs[0] if len(runs) == 1 else ""


def _text(curve: Curve, rate: float) -> str:
    losses = curve.losses[rate]
    spread = f" ± {curve.se(rate):.2g}" if len(losses) > 1 else ""
    seeds = f", {len(losses)} seeds" if len(losses) > 1 else ""
    above = curve.mean(rate) - curve.mean(curve.best)
    return (
        f"{curve.name}, {curve.size}: loss {curve.mean(rate):.4g}{spread} at {RATE} {rate:g}{seeds}, "
        f"{above:.3g} above its best"
    )
