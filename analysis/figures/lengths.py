"""The figure of sequence lengths: time per token of recurrent and dense networks, and the goals for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.figures.latency import measured, rounds
from analysis.figures.legends import legend_columns
from analysis.figures.style import GREY, TWO_COLUMNS, Line, Look, house_style, hover, looks
from analysis.lengths import COST, FLAT, LengthTiming, Spread, known

MOST_COLUMNS, MOST_TICKS = 4, 4
FORWARD = "forward"
DASHED: Line = (0, (3, 1.5))
DOTTED: Line = (0, (1, 1))
BAND = "#E8E8E8"
NAMES = (
    "Time per token (µs)",
    "Time per token over\nthat at the shortest",
    "Time over dense,\nover FLOPs over dense",
)

Of = Callable[[LengthTiming], Spread]


def length_figure(rows: Sequence[LengthTiming]) -> Figure:
    """Draw time per token (above), over the shortest length (middle) and cost over FLOPs (below).

    A column is a machine at one setting, with one width of networks and one size of steps. The lower panels
    are of recurrent networks: the band is what counts as flat, the line the most that time over dense may be
    of FLOPs over dense. Columns of a single length make no curve and are left to the table where others have
    several.
    """
    lengths: dict[tuple[str, str, str, str], set[int]] = {}
    for row in rows:
        lengths.setdefault(row.place, set()).add(row.seq_len)
    curves = [place for place, found in lengths.items() if len(found) > 1]
    columns = (curves or list(lengths))[:MOST_COLUMNS]
    shown = [row for row in rows if row.place in columns]
    chosen = looks([row.network for row in shown])
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 5.6))
        grid = figure.subplots(3, len(columns), squeeze=False, sharex="col", height_ratios=(1.5, 1, 1))
        for column, place in zip(grid.T, columns, strict=True):
            mine = [row for row in shown if row.place == place]
            _column(column.tolist(), mine, chosen)
            device, setting, shape, step = place
            # Several columns have less room each.
            joint = "\n" if len(columns) > 1 else ", "
            column[0].set_title(
                f"{device}{joint}{setting}\n{shape}{joint}{step}", fontsize=7 if len(columns) < 3 else 6.2,
                linespacing=1.3,
            )  # fmt: skip
            ticks = MOST_TICKS if len(columns) > 1 else 2 * MOST_TICKS
            length_axis(column[-1], sorted({row.seq_len for row in mine}), ticks, 1.15)
        for axes, words in zip(grid[:, 0], NAMES, strict=True):
            axes.set_ylabel(words)
        _legend(figure, chosen, sorted({row.direction for row in shown}))
        figure.draw_without_rendering()
    return figure


def _column(panels: Sequence[Axes], rows: Sequence[LengthTiming], chosen: Mapping[str, Look]) -> None:
    """The three panels of one machine and setting."""
    upper, middle, lower = panels
    recurrent = [row for row in rows if row.recurrent]
    middle.axhspan(1 - FLAT, 1 + FLAT, color=BAND, linewidth=0, zorder=1)
    lower.axhline(COST, color=GREY, linewidth=0.9, linestyle=DASHED, zorder=2)
    for axes, found, of, what in (
        (upper, rows, _time, "{} µs a token"),
        (middle, recurrent, _over_shortest, "{} times its time per token at the shortest length"),
        (lower, recurrent, _cost, "time over dense is {} times FLOPs over dense"),
    ):
        for line in _lines(found):
            _curve(axes, line, of, chosen[line[0].network], what)
    for line in _lines(recurrent):
        _causal(lower, line, chosen[line[0].network])
    lower.set_xlabel("Sequence length (tokens)")
    _scales(panels, rows)


def _time(row: LengthTiming) -> Spread:
    return row.us


def _over_shortest(row: LengthTiming) -> Spread:
    return row.over_shortest


def _cost(row: LengthTiming) -> Spread:
    return row.cost


def _lines(rows: Sequence[LengthTiming]) -> list[list[LengthTiming]]:
    """The rows of each network in each direction, from short to long."""
    names = dict.fromkeys((row.network, row.direction) for row in rows)
    return [[row for row in rows if (row.network, row.direction) == name] for name in names]


def _styled(look: Look, direction: str) -> dict[str, Any]:
    """Forward alone is dashed, its markers empty."""
    if direction == FORWARD:
        look = replace(look, line=DASHED, filled=False)
    return {
        "color": look.colour,
        "linestyle": look.line,
        "linewidth": 0.9,
        "markersize": 3.6,
        **look.marker_style(),
    }


def _curve(axes: Axes, line: Sequence[LengthTiming], of: Of, look: Look, what: str) -> None:
    line = [row for row in line if math.isfinite(of(row)[0])]
    if not line:
        return
    x = [row.seq_len for row in line]
    style = _styled(look, line[0].direction)
    (points,) = axes.plot(x, [of(row)[0] for row in line], zorder=4, **style)
    texts = [what.format(measured(of(row)[0])) + rounds(*of(row)[1:]) for row in line]
    hover(points, [f"{_words(row)}: {text}" for row, text in zip(line, texts, strict=True)])
    if all(known(of(row)) for row in line):
        low, high = [of(row)[1] for row in line], [of(row)[2] for row in line]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0, zorder=3)


def _causal(axes: Axes, line: Sequence[LengthTiming], look: Look) -> None:
    """Cost over FLOPs with half the attention squares, as a thin dotted line."""
    line = [row for row in line if math.isfinite(row.causal_cost[0])]
    if not line:
        return
    costs = [row.causal_cost[0] for row in line]
    (points,) = axes.plot(
        [row.seq_len for row in line], costs, color=look.colour, linewidth=0.7, linestyle=DOTTED,
        marker="o", markersize=1.2, zorder=3,
    )  # fmt: skip
    what = "time over dense is {} times causal FLOPs over dense"
    hover(points, [f"{_words(row)}: {what.format(measured(row.causal_cost[0]))}" for row in line])


def _words(row: LengthTiming) -> str:
    batch = f"{row.sequences:,} sequence{'' if row.sequences == 1 else 's'} of {row.seq_len:,} tokens"
    return f"{row.network}, {row.direction}, {batch}, {row.device}, {row.setting}"


def _limits(rows: Sequence[LengthTiming], of: Of, most: float) -> tuple[float, float]:
    """From below the least to above the most; a single round that was disturbed does not set the scale."""
    values = [of(row)[0] for row in rows if row.recurrent and math.isfinite(of(row)[0])] or [1.0]
    if of is _cost:
        values += [row.causal_cost[0] for row in rows if math.isfinite(row.causal_cost[0])]
    ends = [end for row in rows if row.recurrent for end in of(row)[1:] if math.isfinite(end)]
    low, high = min(*values, 1 - FLAT), max(*values, most)
    near = [end for end in ends if low / 1.2 < end < 1.2 * high]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.08 * (high - low)
    return max(0.0, low - margin), high + margin


def length_axis(axes: Axes, lengths: Sequence[int], most: int, margin: float) -> None:
    """Sequence lengths on a logarithmic axis, `most` of them labelled, the longest always."""
    axes.set_xscale("log")
    axes.set_xlim(lengths[0] / margin, lengths[-1] * margin)
    stride = -(-len(lengths) // most)
    axes.xaxis.set_major_locator(FixedLocator(list(reversed(lengths))[::stride]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _scales(column: Sequence[Axes], rows: Sequence[LengthTiming]) -> None:
    """Scales of its own for each column, so that a slow machine does not flatten the curves of a fast one."""
    upper, middle, lower = column
    upper.set_yscale("log")
    upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    upper.yaxis.set_minor_locator(NullLocator())
    upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    middle.set_ylim(*_limits(rows, _over_shortest, 1 + FLAT))
    lower.set_ylim(*_limits(rows, _cost, COST))


def _legend(figure: Figure, chosen: Mapping[str, Look], directions: Sequence[str]) -> None:
    handles = [
        Line2D([], [], label=f"{network}: {direction}", **_styled(look, direction))
        for network, look in chosen.items()
        for direction in directions
    ]
    handles += [
        Line2D([], [], color=BAND, linewidth=6, label=f"within {100 * FLAT:g} %: flat"),
        Line2D([], [], color=GREY, linewidth=0.9, linestyle=DASHED, label=f"goal: at most {COST:g}"),
        Line2D([], [], color=GREY, linewidth=0.7, linestyle=DOTTED, label="over causal FLOPs (half squares)"),
    ]
    columns = legend_columns(handles, TWO_COLUMNS, 3)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
