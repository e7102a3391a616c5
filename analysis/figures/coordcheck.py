"""The coordinate-check figure: activation size against width, at successive steps, by parametrization."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.arrays import Array
from analysis.figures.style import GREY, TWO_COLUMNS, house_style
from analysis.latency import Coordinate
from analysis.runs.labels import structure_order

MOST_TENSORS = 7
X_MARGIN, Y_MARGIN = 0.12, 0.16
PANEL_HEIGHT, LOW_PANEL = 1.35, 1.05
SLOPES = "slope: d log rms / d log width at the first and the last step"
# The palest end of the map would vanish on white.
PALEST = 0.85


def coordcheck_figure(rows: Sequence[Coordinate]) -> Figure:
    """Draw the root mean square of tensors against width, log-log: a row a parametrization and structure.

    Lines are training steps, dark to light, each the geometric mean over seeds. In every panel stands the
    slope d log rms / d log width at the first and the last step: where the parametrization transfers, it does
    not grow with the steps (arXiv 2203.03466, appendix D.1).
    """
    bands = sorted(
        {(a.parametrization, a.structure) for a in rows},
        key=lambda b: (b[0] != "paper", b[0], structure_order(b[1])),
    )
    tensors = list(dict.fromkeys(a.tensor for a in rows))[:MOST_TENSORS]
    steps = sorted({a.step for a in rows})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, PALEST, len(steps)))
    with house_style():
        figure = Figure(
            figsize=(TWO_COLUMNS, (PANEL_HEIGHT if len(bands) <= 4 else LOW_PANEL) * len(bands) + 0.9)
        )
        grid = figure.subplots(len(bands), len(tensors), squeeze=False, sharex=True, sharey=True)
        _axes(grid[0, 0], rows)
        for i, (parametrization, structure) in enumerate(bands):
            for j, tensor in enumerate(tensors):
                axes = grid[i, j]
                mine = [
                    a for a in rows
                    if (a.parametrization, a.structure, a.tensor) == (parametrization, structure, tensor)
                ]  # fmt: skip
                slopes = [
                    _line(axes, [a for a in mine if a.step == s], c)
                    for s, c in zip(steps, shades, strict=True)
                ]
                _note_slopes(axes, steps, slopes)
                if i == 0:
                    axes.set_title(tensor, fontsize=7)
            grid[i, 0].set_ylabel(f"{parametrization}\n{structure}\nrms", fontsize=6.5)
        for axes in grid[-1]:
            axes.set_xlabel("Width")
        handles = [Line2D([], [], color=c, label=f"step {s}") for s, c in zip(steps, shades, strict=True)]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(8, len(handles)),
            title=SLOPES,
            title_fontsize=7,
        )
        figure.draw_without_rendering()
    return figure


def _line(axes: Axes, rows: Sequence[Coordinate], colour: Array) -> float:
    """Draw one step's line; returns its slope in log-log, nan where there are fewer than two widths."""
    widths = sorted({a.width for a in rows if a.rms > 0})
    if not widths:
        return math.nan
    rms = [
        float(np.exp(np.mean([math.log(a.rms) for a in rows if a.width == w and a.rms > 0]))) for w in widths
    ]
    axes.plot(widths, rms, ".-", color=tuple(colour), linewidth=1.0, markersize=3.5)
    return slope(widths, rms)


def slope(widths: Sequence[int], rms: Sequence[float]) -> float:
    """The least-squares slope of log rms over log width; nan where there are fewer than two widths."""
    finite = [(math.log(w), math.log(r)) for w, r in zip(widths, rms, strict=True) if math.isfinite(r)]
    if len(finite) < 2:
        return math.nan
    x, y = np.array(finite).T
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _note_slopes(axes: Axes, steps: Sequence[int], slopes: Sequence[float]) -> None:
    known = [(s, value) for s, value in zip(steps, slopes, strict=True) if math.isfinite(value)]
    if not known:
        return
    ends = known if len(known) == 1 else [known[0], known[-1]]
    text = ", ".join(f"{value:+.2f}" for _, value in ends).replace("-", "\N{MINUS SIGN}")
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=5.5, color=GREY)


def _axes(axes: Axes, rows: Sequence[Coordinate]) -> None:
    """Scales and limits, which all panels share: setting them on each would take most of the time."""
    widths = sorted({a.width for a in rows})
    sizes = [math.log(a.rms) for a in rows if 0 < a.rms < math.inf]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*_wider(math.log(widths[0]), math.log(widths[-1]), X_MARGIN))
    if sizes:
        axes.set_ylim(*_wider(min(sizes), max(sizes), Y_MARGIN))
    ticks = widths if len(widths) <= 2 else [widths[0], widths[-1]]
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _wider(low: float, high: float, margin: float) -> tuple[float, float]:
    """Limits of an axis with a share of its length free at both ends, from and to logarithms."""
    room = margin * (high - low) or 0.5
    return math.exp(low - room), math.exp(high + room)
