"""The allocation figure: compute-optimal parameters, tokens and their ratio over FLOPs, by two approaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.allocation import Allocation, Optimum
from analysis.arrays import Array
from analysis.figures.isoflop import PublishedOptima, line_band, published_texts, vertex_text
from analysis.figures.isoloss import Surface, log_counts_axis, with_interval, wrapped
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    log_flops_axis,
    looks,
    title,
)
from analysis.fit import Fit
from analysis.isoflop.frontier import Exponent, agreement
from analysis.isoflop.optima import IsoFlop
from analysis.uncertainty import t_quantile

BUDGETS = 60
BELOW, BEYOND = 3.0, 10.0
"""The law is drawn from so many times below the runs' FLOPs to so many times above them."""
DASHES = (0, (3, 1.5))
DOTS = (0, (1, 1))
PANELS = (
    ("optimal parameters", "Parameters N*"),
    ("Optimal tokens", "Tokens D*"),
    ("Optimal tokens per parameter", "Tokens per parameter D* / N*"),
)
HEIGHT, WIDE = 5.6, 60
REACH = 6.0
"""The axes reach so many times beyond all values; a longer interval leaves the panel."""


@dataclass(frozen=True)
class _Line:
    """A value with its interval over FLOPs; all shapes (k,)."""

    flops: Array
    value: Array
    low: Array
    high: Array


def allocation_figure(
    surfaces: Sequence[Surface], name: str, published: Sequence[PublishedOptima] = (), note: str = ""
) -> Figure:
    """Draw N*(C), D*(C) and D*/N*, a colour a structure or study.

    Solid lines with a band are approach 3 (the fitted law) within the FLOPs of the runs, dashed and hatched
    beyond them; filled markers are approach 2 (vertices of IsoFLOP parabolas, with Fieller intervals) and the
    dotted line theirs, with its band; open markers are optima as a study gives them. All intervals are 95 %.

    Args:
        surfaces: fitted; one that is not identified is named with the reason, and not drawn.
        name: of the table.
        published: optima as printed, each in a colour of its own.
        note: source, or how complete the table is.
    """
    chosen = looks([*(surface.label for surface in surfaces), *(optima.label for optima in published)])
    entries: list[Line2D] = []
    notes = [note]
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, HEIGHT))
        panels = figure.subplots(2, 2)
        grid = panels.flat[:3]
        for surface in surfaces:
            entries += _surface(grid, surface, chosen[surface.label], notes)
        for optima in published:
            entries.append(_study(grid, optima, chosen[optima.label]))
        _axes(grid, surfaces, published)
        for axes, (heading, _) in zip(grid, PANELS, strict=True):
            title(axes, f"{name}: {heading}" if axes is grid[0] else heading, "", TWO_COLUMNS / 2)
        entries.append(
            Line2D(
                [], [], color=GREY, linestyle=DASHES, label="dashed and hatched: beyond the FLOPs of the runs"
            )
        )
        corner = panels[1, 1]
        corner.set_axis_off()
        legend = corner.legend(
            handles=entries, loc="upper left", bbox_to_anchor=(-0.12, 1.02), fontsize=6.5, frameon=False,
            title=r"$N^* \propto C^{\,a}$, 95 % intervals", title_fontsize=7, alignment="left",
        )  # fmt: skip
        text = "\n".join(wrapped(word, WIDE) for word in notes if word)
        corner.annotate(
            text, (0, 0), xycoords=legend, xytext=(4, -8), textcoords="offset points", fontsize=6.5,
            color=GREY, va="top", linespacing=1.15, annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip
        legend.set_in_layout(False)
        figure.draw_without_rendering()
    return figure


def _surface(grid: Any, surface: Surface, look: Look, notes: list[str]) -> list[Line2D]:
    """Both approaches on the runs of one structure; returns their entries in the legend."""
    entries = []
    low, high = surface.seen
    found = surface.allocation(np.geomspace(low / BELOW, high * BEYOND, BUDGETS).tolist())
    if found is None:
        notes.append(f"{surface.label}, law: not drawn ({surface.why or 'it gives no optimum'}).")
    else:
        for axes, line in zip(grid, _law(found.optima), strict=True):
            _draw(axes, line, surface.seen, look)
        told = "by the law" if found.fixed else with_interval(found.a.value, found.a.low, found.a.high)
        entries.append(_entry(look, f"{surface.label}, law fitted: $a$ = {told}", line="-", marker=""))
    optima = surface.optima
    if optima is not None and any(budget.params.optimum is not None for budget in optima.budgets):
        entries.append(_parabolas(grid, optima, surface.label, look))
        notes.append(_agreement(surface, optima, found))
    return entries


def _agreement(surface: Surface, optima: IsoFlop, found: Allocation | None) -> str:
    """A sentence where the two approaches differ by more than their errors; else empty."""
    spread = surface.fit.spread if isinstance(surface.fit, Fit) else None
    if found is None or spread is None or found.fixed or not isinstance(optima.a, Exponent):
        return ""
    error = (found.a.high - found.a.low) / (2 * t_quantile(spread.dof))
    joint = agreement(optima.a, found.a.value, error, spread.dof)
    if not joint.disagrees:
        return ""
    ends = with_interval(joint.difference, joint.low, joint.high)
    return f"{surface.label}: the exponents of parabolas and law differ by {ends}."


def _law(optima: Sequence[Optimum]) -> tuple[_Line, _Line, _Line]:
    """N*, D* and their ratio; at given FLOPs D* falls with N*, so the ratio's ends are theirs."""
    flops = np.array([optimum.train_flops for optimum in optima], np.float64)
    n, d = (
        [
            np.array([getattr(getattr(optimum, part), end) for optimum in optima])
            for end in ("value", "low", "high")
        ]
        for part in ("params", "tokens")
    )
    ratio = (d[0] / n[0], d[1] / n[2], d[2] / n[1])
    return _Line(flops, *n), _Line(flops, *d), _Line(flops, *ratio)


def _draw(axes: Axes, line: _Line, seen: tuple[float, float], look: Look) -> None:
    known = (line.flops >= seen[0] * 0.99) & (line.flops <= seen[1] * 1.01)
    axes.plot(line.flops, line.value, color=look.colour, linestyle=DASHES, linewidth=0.9, zorder=3)
    axes.plot(line.flops[known], line.value[known], color=look.colour, linewidth=1.3, zorder=3)
    bounds = line.flops[known]
    for part in (line.flops <= bounds.min(), known, line.flops >= bounds.max()):
        inside = part is known
        axes.fill_between(
            line.flops[part], line.low[part], line.high[part], color=look.colour, zorder=1.5,
            alpha=0.2 if inside else 0.3, linewidth=0, facecolor=look.colour if inside else "none",
            hatch=None if inside else "//////",
        )  # fmt: skip


def _parabolas(grid: Any, found: IsoFlop, label: str, look: Look) -> Line2D:
    usable = [budget for budget in found.budgets if budget.params.optimum is not None]
    flops = np.array([budget.flops for budget in usable])
    n, d = (
        np.array(
            [[getattr(b.params, key) for b in usable] for key in ("optimum", "low", "high")], np.float64
        ),
        np.array(
            [
                [b.optimal_tokens for b in usable],
                [b.optimal_tokens_low for b in usable],
                [b.optimal_tokens_high for b in usable],
            ],
            np.float64,
        ),
    )
    ratio = np.array([d[0] / n[0], d[1] / n[2], d[2] / n[1]])
    for axes, (value, low, high) in zip(grid, (n, d, ratio), strict=True):
        drawn = axes.errorbar(
            flops, value, yerr=[value - low, high - value], linestyle="none", color=look.colour,
            markersize=3.0,
            elinewidth=0.7, capsize=0, markeredgewidth=0.4, marker=look.marker,
            markeredgecolor="white", zorder=5,
        )  # fmt: skip
        hover(drawn.lines[0], [f"{label}, {vertex_text(budget)}" for budget in usable])
    told = "no line"
    if isinstance(found.a, Exponent) and isinstance(found.b, Exponent):
        line = np.geomspace(flops.min(), flops.max(), BUDGETS)
        size, data = np.array(line_band(found, line)), np.array(line_band(found, line, "tokens"))
        # At given FLOPs the tokens fall with the size, so that the ratio's ends are opposite ones.
        lean = np.array([data[0] / size[0], data[1] / size[2], data[2] / size[1]])
        for axes, (value, low, high) in zip(grid, (size, data, lean), strict=True):
            axes.plot(line, value, color=look.colour, linestyle=DOTS, linewidth=1.1, zorder=4)
            axes.fill_between(line, low, high, color=look.colour, alpha=0.12, linewidth=0, zorder=1.6)
        told = f"$a$ = {with_interval(found.a.value, found.a.low, found.a.high)}"
    return _entry(look, f"{label}, parabolas: {told}", line=DOTS, marker=look.marker)


def _study(grid: Any, optima: PublishedOptima, look: Look) -> Line2D:
    for axes, value in zip(grid, (optima.params, optima.tokens, optima.tokens / optima.params), strict=True):
        line, = axes.plot(
            optima.flops, value, linestyle="none", marker=look.marker, color=look.colour, markersize=5.5,
            markerfacecolor="none", markeredgewidth=0.8, zorder=4,
        )  # fmt: skip
        hover(line, published_texts(optima))
    told = f": {optima.exponent}" if optima.exponent else ""
    entry = _entry(look, f"{optima.label}, as published{told}", line="none", marker=look.marker)
    entry.set_markerfacecolor("none")
    return entry


def _entry(look: Look, label: str, line: Any, marker: str) -> Line2D:
    return Line2D(
        [], [], color=look.colour, linestyle=line, marker=marker, markersize=4, label=wrapped(label, WIDE)
    )


def _axes(grid: Any, surfaces: Sequence[Surface], published: Sequence[PublishedOptima]) -> None:
    ends = [end for surface in surfaces for end in surface.seen]
    ends += [float(flops) for optima in published for flops in optima.flops]
    low, high = min(ends) / BELOW, max(ends) * BEYOND
    for axes, (_, label) in zip(grid, PANELS, strict=True):
        log_flops_axis(axes, low, high)
        if not axes.lines:
            axes.set_axis_off()
            continue
        axes.set_yscale("log")
        bottom, top = axes.dataLim.y0, axes.dataLim.y1
        drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
        if drawn.size:
            bottom, top = max(bottom, drawn.min() / REACH), min(top, drawn.max() * REACH)
            log_counts_axis(axes, "y", bottom / 1.3, top * 1.3)
        axes.set_xlabel("Training FLOPs")
        axes.set_ylabel(label)
