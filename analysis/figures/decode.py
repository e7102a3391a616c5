"""The decoding figure: time a token and throughput of generation over batch size, a column a machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.figures.latency import measured, rounds
from analysis.figures.style import TWO_COLUMNS, Look, house_style, hover, looks
from analysis.latency import Decode
from analysis.runs.labels import structure_order

MOST_COLUMNS, LEGEND_COLUMNS = 4, 3


def decode_figure(rows: Sequence[Decode]) -> Figure:
    """Draw ms a step, one token for each sequence (above) and new tokens a second (below) against batch size.

    A column is a machine with a model; each has scales of its own, so that a fast one does not flatten a slow
    one. Models at a single batch size make no curve: they are left to the table where others were measured at
    several.
    """
    batches_of = {(a.device, a.setting, a.model): set[int]() for a in rows}
    for a in rows:
        batches_of[a.device, a.setting, a.model].add(a.batch)
    curves = [key for key, batches in batches_of.items() if len(batches) > 1]
    columns = (curves or list(batches_of))[:MOST_COLUMNS]
    chosen = looks([a.network for a in rows if (a.device, a.setting, a.model) in columns])
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 4.2))
        grid = figure.subplots(2, len(columns), squeeze=False, sharex="col")
        for column, (device, setting, model) in enumerate(columns):
            mine = [a for a in rows if (a.device, a.setting, a.model) == (device, setting, model)]
            upper, lower = grid[:, column]
            for network in sorted({a.network for a in mine}, key=structure_order):
                line = sorted((a for a in mine if a.network == network), key=lambda a: a.batch)
                _curve(upper, lower, line, chosen[network])
            upper.set_title(f"{device}, {setting}\n{model}", fontsize=7, linespacing=1.3)
            lower.set_xlabel("Sequences at once")
            for axes in (upper, lower):
                _scales(axes, sorted({a.batch for a in mine}))
        grid[0, 0].set_ylabel("Time a step (ms)")
        grid[1, 0].set_ylabel("New tokens a second")
        _legend(figure, chosen)
        figure.draw_without_rendering()
    return figure


def _curve(upper: Axes, lower: Axes, line: Sequence[Decode], look: Look) -> None:
    """One network over batch size: its times above, its throughput with the range of rounds below."""
    x = [a.batch for a in line]
    style: dict[str, Any] = {
        "color": look.colour,
        "linestyle": look.line,
        "linewidth": 0.9,
        "markersize": 3.6,
    }
    style |= look.marker_style()
    (times,) = upper.plot(x, [a.ms for a in line], **style)
    (rates,) = lower.plot(x, [a.tokens_per_second for a in line], **style)
    hover(times, [f"{_words(a)}: {_time(a)}" for a in line])
    hover(rates, [f"{_words(a)}: {_throughput(a)}" for a in line])
    if all(math.isfinite(a.low) for a in line):
        lower.fill_between(
            x,
            [a.low for a in line],
            [a.high for a in line],
            color=look.colour,
            alpha=0.12,
            linewidth=0,
        )


def _words(a: Decode) -> str:
    batch = f"{a.batch} sequence{'' if a.batch == 1 else 's'}"
    return f"{a.network}, {a.model}, {batch}, {a.device}, {a.setting}"


def _time(a: Decode) -> str:
    # Their product, the tokens of a step, is the same in every round.
    product = a.ms * a.tokens_per_second
    return f"{measured(a.ms)} ms a step{rounds(product / a.high, product / a.low)}"


def _throughput(a: Decode) -> str:
    return f"{measured(a.tokens_per_second)} new tokens a second{rounds(a.low, a.high)}"


def _scales(axes: Axes, batches: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _legend(figure: Figure, chosen: Mapping[str, Look]) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle=look.line,
            linewidth=0.9,
            label=label,
            **look.marker_style(),
        )
        for label, look in chosen.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)))
