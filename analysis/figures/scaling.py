"""The scaling figure: held-out loss over training FLOPs, with fitted laws, bands and the published points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.analyse import Analysis, points
from analysis.figures.curves import (
    CURVE_POINTS,
    DASHES,
    Window,
    draw_law,
    draw_runs,
    handle,
    law_entry,
    window,
    wrapped,
)
from analysis.figures.style import GREY, ONE_COLUMN, TWO_COLUMNS, Look, house_style, looks, title
from analysis.fit import Fit

LEGEND_ROOM = 0.14
# More structures than this leave no free corner for the legend: it goes under the panel.
INSIDE = 4
FLOPS, SECONDS = ("Training FLOPs", "C"), ("Wall seconds of training", "t")
"""What a panel is over: the label of its axis, and the letter in its law."""


def scaling_figure(ours: Analysis, published: Analysis | None = None, source: str = "") -> Figure:
    """Draw loss over training FLOPs, log-log, one colour a structure, shades of it for its variants.

    Points are runs (mean and standard error over seeds where there are several). Solid lines are the power
    law with its 95 % band, dashed lines the law with an irreducible loss, drawn only where it is identified.
    Both panels show the same loss ratio per unit of height and the same decades per unit of width, so that
    slopes may be compared by eye; their losses may not (other text, other tokens).

    Args:
        ours: the fitted table.
        published: a second panel.
        source: where the published numbers are from, written under their panel.
    """
    panels = [ours] if published is None else [ours, published]
    with house_style():
        figure, rows, size = _panels(panels, [FLOPS] * len(panels))
        coverage = ours.runs.coverage() if ours.runs.expected > len(ours.runs.table) else ""
        title(rows[0], ours.name, coverage, size / len(panels))
        if published is not None:
            title(rows[1], "Published", source, size / len(panels))
        # Computed here, while the style holds: the layout engine is created from it.
        figure.draw_without_rendering()
    return figure


def seconds_figure(ours: Analysis, timed: Analysis, machine: str = "") -> Figure:
    """Draw loss over training FLOPs and, beside it, over the wall seconds that the runs took.

    Args:
        ours: the fitted table.
        timed: the same with seconds in place of FLOPs.
        machine: what the runs trained on, written over the second panel.
    """
    with house_style():
        figure, rows, size = _panels([ours, timed], [FLOPS, SECONDS])
        coverage = ours.runs.coverage() if ours.runs.expected > len(ours.runs.table) else ""
        title(rows[0], ours.name, coverage, size / 2)
        title(rows[1], "Time", machine, size / 2)
        figure.draw_without_rendering()
    return figure


def _panels(panels: Sequence[Analysis], over: Sequence[tuple[str, str]]) -> tuple[Figure, list[Axes], float]:
    """Panels side by side at one scale, each over its variable (label, letter); also the figure's width."""
    windows = [_window(panel) for panel in panels]
    height = max(limits.height for limits in windows)
    width = max(limits.width for limits in windows)
    size = (ONE_COLUMN, 3.1) if len(panels) == 1 else (TWO_COLUMNS, 3.3)
    beneath = max(map(_legend_lines, panels)) > INSIDE
    if beneath:
        size = (size[0], size[1] + 0.15 * (max(map(_legend_lines, panels)) + 2))
    figure = Figure(figsize=size)
    rows = list(figure.subplots(1, len(panels), squeeze=False)[0])
    chosen = looks([label for panel in panels for label in panel.structures])
    for axes, panel, limits, (label, letter) in zip(rows, panels, windows, over, strict=True):
        _draw(axes, panel, chosen)
        limits.apply(axes, width, height)
        axes.set_xlabel(label)
        _legend(axes, panel, chosen, beneath, letter)
    rows[0].set_ylabel("Held-out loss (nats per token)")
    return figure, rows, size[0]


def _window(panel: Analysis) -> Window:
    lines = _legend_lines(panel)
    room = LEGEND_ROOM * (lines if lines <= INSIDE else 0) / 4
    flops, loss = (panel.runs.table[name].to_numpy(np.float64) for name in ("train_flops", "val_loss"))
    return window(flops, loss, room)


def _draw(axes: Axes, panel: Analysis, chosen: dict[str, Look]) -> None:
    for label in panel.structures:
        look = chosen[label]
        flops, _ = points(panel.runs.table, label)
        grid = np.geomspace(flops.min(), flops.max(), CURVE_POINTS)
        draw_law(axes, panel.power[label], grid, look, look.line)
        draw_law(axes, panel.irreducible[label], grid, look, DASHES)
        draw_runs(axes, panel.runs.table[panel.runs.table["structure"] == label], look)


def _legend(axes: Axes, panel: Analysis, chosen: dict[str, Look], beneath: bool, letter: str) -> None:
    handles = [
        handle(law_entry(label, fit), chosen[label], isinstance(fit, Fit))
        for label, fit in panel.power.items()
    ]
    if any(isinstance(fit, Fit) and fit.identified for fit in panel.irreducible.values()):
        text = r"with irreducible loss $E$"
        handles.append(Line2D([], [], color=GREY, linestyle=DASHES, linewidth=1.5, label=text))
    title = rf"$L \propto {letter}^{{\,-\alpha}}$, 95 % band"
    place: dict[str, Any] = {"loc": "upper right"}
    if beneath:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
    axes.legend(handles=handles, title=title, title_fontsize=7, alignment="left", **place)


def _legend_lines(panel: Analysis) -> int:
    """Lines that the curves need in the legend."""
    return sum(1 + wrapped(label).count("\n") for label in panel.structures)
