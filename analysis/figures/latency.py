"""The latency figures: FFN time and speed-up over dense, against width and tokens, beside published ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.digits import significant
from analysis.figures.style import GREY, TWO_COLUMNS, Look, house_style, hover, looks
from analysis.latency import PUBLISHED_DEVICE, Layer, fastest_settings
from analysis.runs.labels import structure_order

Of = Callable[[Layer], int]

MOST_MACHINES, MOST_WIDTHS, LEGEND_COLUMNS = 3, 4, 4
READ_OFF = "read off ±0.3 ms"
PUBLISHED_NOTE = f"30,000 tokens, {READ_OFF}"
DIGITISED_NOTE = "digitised, ±0.03 ms or less"


def width_figure(ours: Sequence[Layer], published: Sequence[Layer]) -> Figure | None:
    """Draw FFN latency and speed-up over dense against width, a column a machine; None where widths are one.

    Each machine is shown at the setting and the number of tokens named above its column. Machines differ, so
    latencies have scales of their own; speed-ups share one.
    """
    groups = []
    for device, rows in _by_device(fastest_settings(ours)).items():
        tokens = _most(rows, lambda a: a.tokens, lambda a: a.width)
        mine = [a for a in rows if a.tokens == tokens]
        if len({a.width for a in mine}) > 1:
            groups.append((f"{device}\n{mine[0].setting}, {tokens:,} tokens", mine, ""))
    if not groups:
        return None
    groups = groups[:MOST_MACHINES]
    if published:
        groups.append((f"{PUBLISHED_DEVICE}\n{PUBLISHED_NOTE}", list(published), READ_OFF))
    chosen = looks([a.structure for _, rows, _ in groups for a in rows])
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 4.3))
        grid = figure.subplots(2, len(groups), squeeze=False, sharey="row" if len(groups) == 1 else False)
        limits = _speedup_limits([a for _, rows, _ in groups for a in rows])
        for column, (title, rows, note) in enumerate(groups):
            upper, lower = grid[:, column]
            _latencies(upper, rows, chosen, lambda a: a.width, note)
            upper.set_title(title, fontsize=7, linespacing=1.3)
            _speedups(lower, rows, chosen, lambda a: a.width, limits, note)
            lower.set_xlabel("Model width")
            for axes in (upper, lower):
                _value_axis(axes, [a.width for a in rows])
        grid[0, 0].set_ylabel("FFN forward (ms)")
        grid[1, 0].set_ylabel("Speed-up over dense")
        _legend(figure, chosen)
        figure.draw_without_rendering()
    return figure


def tokens_figure(ours: Sequence[Layer], published: Sequence[Layer]) -> Figure | None:
    """Draw speed-up over dense against the number of tokens, a row a machine, a column a width.

    None where no machine was measured at several numbers of tokens. Widths that the published curves have
    come first.
    """
    groups = []
    for device, rows in list(_by_device(fastest_settings(ours)).items())[:MOST_MACHINES]:
        if _widths(rows):
            groups.append((f"{device}, {rows[0].setting}", rows, ""))
    if not groups:
        return None
    if published:
        groups.append((f"{PUBLISHED_DEVICE}; {DIGITISED_NOTE}", list(published), DIGITISED_NOTE))
    kept = [(title, rows, note, _chosen_widths(rows, published)) for title, rows, note in groups]
    columns = max(len(widths) for *_, widths in kept)
    shown = [a for _, rows, _, widths in kept for a in rows if a.width in widths]
    chosen = looks([a.structure for a in shown])
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 1.75 * len(kept) + 0.5))
        grid = figure.subplots(len(kept), columns, squeeze=False)
        limits = _speedup_limits(shown)
        for row, (title, layers, note, widths) in enumerate(kept):
            for column, axes in enumerate(grid[row]):
                if column >= len(widths):
                    axes.set_axis_off()
                    continue
                mine = [a for a in layers if a.width == widths[column]]
                _speedups(axes, mine, chosen, lambda a: a.tokens, limits, note)
                _value_axis(axes, [a.tokens for a in mine])
                name = f"{title}\n" if column == 0 else "\n"
                axes.set_title(f"{name}width {widths[column]:,}", fontsize=7, linespacing=1.3)
            grid[row, 0].set_ylabel("Speed-up over dense")
        for axes in grid[-1]:
            axes.set_xlabel("Tokens")
        _legend(figure, chosen)
        figure.draw_without_rendering()
    return figure


def _by_device(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    devices = sorted(
        {a.device for a in layers}, key=lambda name: (name.endswith(("thread", "threads")), name)
    )
    return {device: [a for a in layers if a.device == device] for device in devices}


def _most(layers: Sequence[Layer], fixed: Of, counted: Of) -> int:
    values: dict[int, set[int]] = {}
    for layer in layers:
        values.setdefault(fixed(layer), set()).add(counted(layer))
    return max(values, key=lambda value: (len(values[value]), value))


def _widths(layers: Sequence[Layer]) -> list[int]:
    """Widths at which there are several numbers of tokens."""
    tokens = {a.width: {b.tokens for b in layers if b.width == a.width} for a in layers}
    return sorted(width for width, values in tokens.items() if len(values) > 1)


def _chosen_widths(layers: Sequence[Layer], published: Sequence[Layer]) -> list[int]:
    widths, theirs = _widths(layers), {a.width for a in published}
    if len(widths) <= MOST_WIDTHS:
        return widths
    shared = [width for width in widths if width in theirs][:MOST_WIDTHS]
    others = [width for width in reversed(widths) if width not in shared]
    return sorted([*shared, *others][:MOST_WIDTHS])


def _curves(layers: Sequence[Layer]) -> list[tuple[str, list[Layer]]]:
    labels = sorted({a.structure for a in layers}, key=structure_order)
    return [
        (label, sorted((a for a in layers if a.structure == label), key=lambda a: (a.width, a.tokens)))
        for label in labels
    ]


def _latencies(axes: Axes, layers: Sequence[Layer], chosen: dict[str, Look], of: Of, note: str) -> None:
    for label, rows in _curves(layers):
        look = chosen[label]
        x = [of(a) for a in rows]
        (points,) = axes.plot(
            x, [a.ms for a in rows], color=look.colour, linewidth=0.9, markersize=3.6, markeredgewidth=0.9,
            **look.marker_style(),
        )  # fmt: skip
        # Numbers read off a figure have no more digits than were read.
        times = [f"{a.ms:g} ms, {note}" if note else f"{measured(a.ms)} ms" for a in rows]
        hover(points, [f"{_words(a)}: forward {time}" for a, time in zip(rows, times, strict=True)])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _speedups(
    axes: Axes, layers: Sequence[Layer], chosen: dict[str, Look], of: Of, limits: tuple[float, float],
    note: str,
) -> None:  # fmt: skip
    axes.axhline(1, color=GREY, linewidth=0.8, zorder=2)
    for label, rows in _curves(layers):
        rows = [a for a in rows if math.isfinite(a.speedup)]
        if label == "dense" or not rows:
            continue
        look, x = chosen[label], [of(a) for a in rows]
        y = np.array([a.speedup for a in rows])
        (points,) = axes.plot(
            x, y, color=look.colour, linewidth=0.9, markersize=3.6, markeredgewidth=0.9, zorder=4,
            **look.marker_style(),
        )  # fmt: skip
        source = f", from times {note}" if note else ""
        hover(
            points,
            [
                f"{_words(a)}: speed-up over dense {measured(a.speedup)}{rounds(a.low, a.high)}{source}"
                for a in rows
            ],
        )
        if all(math.isfinite(a.low) for a in rows):
            low, high = [a.low for a in rows], [a.high for a in rows]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0, zorder=2)
    axes.set_ylim(*limits)


def _words(layer: Layer) -> str:
    where = ", ".join(part for part in (layer.device, layer.setting) if part)
    return f"{layer.structure}, width {layer.width:,}, {layer.tokens:,} tokens, {where}"


def measured(value: float) -> str:
    """A measured time, rate or ratio in three digits, or all before the point: `12.8`, `13,042`."""
    return f"{value:,.0f}" if value >= 1000 else significant(value, 3)


def rounds(low: float, high: float) -> str:
    """The slowest and fastest round as hover texts have it; empty where they are not known (nan)."""
    return f" (rounds {measured(low)} to {measured(high)})" if math.isfinite(low + high) else ""


def _speedup_limits(layers: Sequence[Layer]) -> tuple[float, float]:
    values = [a.speedup for a in layers if math.isfinite(a.speedup)] or [1.0]
    # Single rounds that were disturbed do not set the scale.
    rounds = [a.high for a in layers if math.isfinite(a.high) and a.high < 1.2 * max(values)]
    low, high = min(*values, 1.0), max(*values, *rounds, 1.0)
    margin = 0.06 * max(high - low, 0.2)
    return low - margin, high + margin


def _value_axis(axes: Axes, values: Sequence[int]) -> None:
    """A logarithmic axis whose ticks are the measured values, as many as fit."""
    ordered = sorted(set(values))
    axes.set_xscale("log")
    axes.set_xlim(ordered[0] / 1.15, ordered[-1] * 1.15)
    ticks: list[int] = []
    room = math.log(1.32 * ordered[-1] / ordered[0]) / 5.2
    for value in reversed(ordered):
        if not ticks or math.log(ticks[-1] / value) >= room:
            ticks.append(value)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 8192 and value % 1024 == 0 else f"{value:g}"


def _legend(figure: Figure, chosen: dict[str, Look]) -> None:
    handles = [
        Line2D([], [], color=look.colour, linewidth=0.9, label=label, **look.marker_style())
        for label, look in chosen.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)))
