"""The wide figure: perplexity against speed of generating, and against the transformer of equal FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.digits import number, quantity
from analysis.figures.gaps import FILLS, UNKNOWN_FILL
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    house_style,
    hover,
    looks,
    nice_ticks,
    title,
)
from analysis.runs.treatments import STATIC
from analysis.wide import PUBLISHED, TRANSFORMER, WIDE, Network, percent

SOURCE = "arXiv 2406.16450v1, Table 2, 256 new tokens; other text and tokens than ours; one run each"
HEIGHT, ROW = 2.6, 0.19


def wide_figure(networks: Sequence[Network], name: str = "", note: str = "") -> Figure:
    """Draw perplexity against throughput, a panel a size, and our gaps to the transformer.

    Colour and marker say the structure (other dense networks are grey), the filling the treatment. The last
    panel shows by how much our perplexities lie over that of the transformer of their size, paired by seed,
    with 95 % intervals. Ours are in the throughput panels where two networks of a size were measured.

    Args:
        networks: published ones, ours, or both.
        name: of our table.
        note: what is to be said of it, such as runs that are missing.
    """
    published = [n for n in networks if n.whose == PUBLISHED]
    ours = [n for n in networks if n.whose != PUBLISHED]
    timed = [n for n in ours if math.isfinite(n.throughput)]
    timed = [n for n in timed if sum(m.size == n.size for m in timed) > 1]
    compared = [n for n in ours if n.kind != TRANSFORMER]
    groups = [("Published", SOURCE, published), (name, "most tokens/s of the same networks", timed)]
    groups = [group for group in groups if group[2]]
    with house_style():
        lines = len(compared) + 1.4 * len({n.size for n in compared})
        figure = Figure(figsize=(TWO_COLUMNS, max(HEIGHT, ROW * lines + 1.0) + 0.6))
        columns = len(groups) + bool(compared)
        # Names of rows need as much room as their panel.
        parts = figure.subfigures(
            1, columns, squeeze=False, width_ratios=_widths(len(groups), bool(compared))
        )[0]
        for part, (words, source, mine) in zip(parts, groups, strict=False):
            sizes = list(dict.fromkeys(n.size for n in mine))
            beside = columns == 1
            shape = (1, len(sizes)) if beside else (len(sizes), 1)
            panels = part.subplots(*shape, squeeze=False, sharex=True).flat
            for k, (axes, size) in enumerate(zip(panels, sizes, strict=True)):
                _throughputs(axes, [n for n in mine if n.size == size], mine, beside or k == len(sizes) - 1)
                width = TWO_COLUMNS / (len(sizes) if beside else columns + 0.4)
                title(axes, f"{words}, {size}".removeprefix(", "), source if k == 0 else "", width)
        if compared:
            axes = parts[-1].subplots()
            _gaps(axes, compared, columns > 2)
            seeds = sorted({n.gap.pairs for n in compared if n.gap is not None})
            pairs = (
                f"{' to '.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds, paired" if seeds else ""
            )
            title(axes, name, "; ".join(filter(None, (pairs, note))), TWO_COLUMNS / (columns + 1.5))
        figure.legend(handles=_handles(networks), loc="outside lower center", ncols=3)
        figure.draw_without_rendering()
    return figure


def _widths(groups: int, compared: bool) -> list[float]:
    return [1.0] * groups + ([1.45] if compared else [])


def _marker(n: Network) -> dict[str, Any]:
    look = looks([n.label])[n.label]
    colour = GREY if n.kind not in (TRANSFORMER, WIDE) else look.colour
    style = {"marker": look.marker, "color": colour, "markersize": 5.0, "markeredgewidth": 0.9}
    if n.kind != WIDE:
        return {**style, "markerfacecolor": colour, "fillstyle": "full"}
    fill = FILLS.get(n.treatment.removesuffix(STATIC), UNKNOWN_FILL)
    inside = "white" if fill == "none" else colour
    fill = "full" if fill == "none" else fill
    return {**style, "fillstyle": fill, "markerfacecolor": inside, "markerfacecoloralt": "white"}


def _throughputs(axes: Axes, mine: Sequence[Network], every: Sequence[Network], lowest: bool) -> None:
    """The networks of one size; all panels of a column show the same ratio of perplexities."""
    for n in mine:
        error = None if n.se is None else [n.perplexity * n.se]
        container = axes.errorbar(
            [n.throughput],
            [n.perplexity],
            yerr=error,
            linestyle="none",
            elinewidth=0.8,
            zorder=4,
            **_marker(n),
        )
        hover(container.lines[0], [_text(n)])
    x = [n.throughput for n in every]
    axes.set_xscale("log")
    spread = math.log(max(x) / min(x)) or 0.2
    low, high = min(x) * math.exp(-0.12 * spread), max(x) * math.exp(0.12 * spread)
    axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [s * 10.0**p for p in powers for s in (1, 3) if low <= s * 10.0**p <= high]
    if len(ticks) < 2:
        ticks = nice_ticks(low, high, 2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ratio = max(_ratio([n for n in every if n.size == size]) for size in dict.fromkeys(n.size for n in every))
    middle = math.sqrt(_top(mine) * _bottom(mine))
    axes.set_ylim(middle / math.sqrt(ratio) ** 1.4, middle * math.sqrt(ratio) ** 1.4)
    axes.set_yticks(nice_ticks(*axes.get_ylim(), 4))
    if lowest:
        axes.set_xlabel("Generated tokens a second")
    axes.set_ylabel("Perplexity")


def _top(networks: Sequence[Network]) -> float:
    return max(n.perplexity * (1 + (n.se or 0)) for n in networks)


def _bottom(networks: Sequence[Network]) -> float:
    return min(n.perplexity * (1 - (n.se or 0)) for n in networks)


def _ratio(networks: Sequence[Network]) -> float:
    return max(_top(networks) / _bottom(networks), 1.01)


def _gaps(axes: Axes, networks: Sequence[Network], narrow: bool) -> None:
    """A forest, a row a network, rows by size; an interval far wider than the differences is cut off."""
    known = [n.gap for n in networks if n.gap is not None]
    means = [percent(gap.mean) for gap in known] + [0.0]
    ends = [percent(end) for gap in known if gap.interval for end in gap.interval]
    reach = 3 * max(max(means) - min(means), 0.01)
    low = max(min([*means, *ends]), min(means) - reach)
    high = min(max([*means, *ends]), max(means) + reach)
    margin = 0.06 * (high - low)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=2)
    place, ticks, names = 0.0, [], []
    for size in dict.fromkeys(n.size for n in networks):
        ticks.append(place)
        names.append(size or "all")
        for n in (n for n in networks if n.size == size):
            place += 1
            ticks.append(place)
            words = n.words.replace(f"{WIDE}, ", "") if narrow else n.words
            names.append(words + (f" ({n.diverged} diverged)" if n.diverged else ""))
            if n.gap is not None:
                _difference(axes, n, place)
        place += 1.4
    axes.set_xlim(low - margin, high + margin)
    axes.set_xticks(nice_ticks(low - margin, high + margin, 4))
    axes.set_ylim(place - 0.8, -0.6)
    axes.set_yticks(ticks, names)
    sizes = {n.size or "all" for n in networks}
    for label, words in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontsize(6.5)
        label.set_fontweight("bold" if words in sizes else "normal")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Perplexity difference (%)" if narrow else "Perplexity over the transformer's (%)")


def _difference(axes: Axes, n: Network, place: float) -> None:
    assert n.gap is not None
    mean = percent(n.gap.mean)
    error = None
    if n.gap.interval is not None:
        ends = [percent(end) for end in n.gap.interval]
        error = [[mean - ends[0]], [ends[1] - mean]]
    container = axes.errorbar(
        [mean], [place], xerr=error, linestyle="none", elinewidth=0.9, zorder=4, **_marker(n)
    )
    hover(container.lines[0], [_text(n)])


def _handles(networks: Sequence[Network]) -> list[Line2D]:
    shown = {(n.kind, n.label if n.kind == WIDE else "", n.treatment): n for n in networks}
    names = {}
    for n in shown.values():
        names[f"{n.words} ({n.label})" if n.kind == WIDE else n.words] = n
    return [Line2D([], [], linestyle="none", label=words, **_marker(n)) for words, n in names.items()]


def _text(n: Network) -> str:
    whose = "" if n.whose == PUBLISHED else f" ({n.runs} run{'s' if n.runs > 1 else ''})"
    parts = [f"{n.words}, {n.size}{whose}: perplexity {number(n.perplexity, n.perplexity * (n.se or 0))}"]
    if n.gap is not None:
        told = f"{percent(n.gap.mean):+.2g} % over the transformer's"
        if n.gap.interval is not None:
            told += ", 95 % interval {:.2g} to {:.2g} %".format(*map(percent, n.gap.interval))
        parts.append(told)
    if n.verdict:
        parts.append(n.verdict)
    if math.isfinite(n.throughput):
        parts.append(f"{n.throughput:,.0f} tokens a second")
    return ", ".join([*parts, f"{quantity(n.flops)} FLOPs, {quantity(n.params)} parameters"])
