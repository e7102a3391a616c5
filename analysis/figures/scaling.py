"""The scaling figure: held-out loss over training FLOPs, with fitted laws, bands and the published points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.analyse import Analysis, points
from analysis.arrays import Array
from analysis.digits import with_error
from analysis.figures.style import (
    GREY,
    ONE_COLUMN,
    TWO_COLUMNS,
    Line,
    Look,
    house_style,
    log_flops_axis,
    log_loss_axis,
    looks,
    title,
)
from analysis.fit import Fit, Refusal

CURVE_POINTS = 120
X_MARGIN, Y_MARGIN, LEGEND_ROOM = 0.12, 0.08, 0.14
# More structures than this leave no free corner for the legend: it goes under the panel.
INSIDE, LEGEND_LETTERS = 4, 32
DASHES: Line = (0, (3, 1.5))


@dataclass(frozen=True)
class _Window:
    """Limits of a panel in log10: FLOPs from x to x + width, loss from y to y + height."""

    x: float
    width: float
    y: float
    height: float


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
    windows = [_window(panel) for panel in panels]
    height = max(window.height for window in windows)
    width = max(window.width for window in windows)
    with house_style():
        size = (ONE_COLUMN, 3.1) if published is None else (TWO_COLUMNS, 3.3)
        beneath = max(map(_legend_lines, panels)) > INSIDE
        if beneath:
            size = (size[0], size[1] + 0.15 * (max(map(_legend_lines, panels)) + 2))
        figure = Figure(figsize=size)
        rows = figure.subplots(1, len(panels), squeeze=False)[0]
        chosen = looks([label for panel in panels for label in panel.structures])
        for axes, panel, window in zip(rows, panels, windows, strict=True):
            # A panel much shorter than the other is widened to it; both then share one scale.
            spare = (width - window.width) / 2
            _draw(axes, panel, chosen)
            log_flops_axis(axes, 10 ** (window.x - spare), 10 ** (window.x + window.width + spare))
            log_loss_axis(axes, 10 ** (window.y - (height - window.height) / 2), 10 ** _top(window, height))
            axes.set_xlabel("Training FLOPs")
            _legend(axes, panel, chosen, beneath)
        rows[0].set_ylabel("Held-out loss (nats per token)")
        coverage = ours.runs.coverage() if ours.runs.expected > len(ours.runs.table) else ""
        title(rows[0], ours.name, coverage, size[0] / len(panels))
        if published is not None:
            title(rows[1], "Published", source, size[0] / len(panels))
        # Computed here, while the style holds: the layout engine is created from it.
        figure.draw_without_rendering()
    return figure


def _top(window: _Window, height: float) -> float:
    return window.y + window.height + (height - window.height) / 2


def _window(panel: Analysis) -> _Window:
    x = np.log10(panel.runs.table["train_flops"].to_numpy(np.float64))
    y = np.log10(panel.runs.table["val_loss"].to_numpy(np.float64))
    width, height = max(float(np.ptp(x)), 0.3), max(float(np.ptp(y)), 0.02)
    entries = _legend_lines(panel) if _legend_lines(panel) <= INSIDE else 0
    left = (float(x.min()) + float(x.max()) - width) / 2
    bottom = (float(y.min()) + float(y.max()) - height) / 2
    room = Y_MARGIN + LEGEND_ROOM * entries / 4
    return _Window(
        left - X_MARGIN * width / 2,
        width * (1 + X_MARGIN),
        bottom - Y_MARGIN * height,
        height * (1 + Y_MARGIN + room),
    )


def _draw(axes: Axes, panel: Analysis, chosen: dict[str, Look]) -> None:
    for label in panel.structures:
        look = chosen[label]
        flops, _ = points(panel.runs.table, label)
        grid = np.geomspace(flops.min(), flops.max(), CURVE_POINTS)
        _curve(axes, panel.power[label], grid, look, look.line)
        _curve(axes, panel.irreducible[label], grid, look, DASHES)
        _points(axes, panel.runs.table[panel.runs.table["structure"] == label], look)


def _curve(axes: Axes, fit: Fit | Refusal, grid: Array, look: Look, line: Line) -> None:
    if isinstance(fit, Refusal) or not fit.identified:
        return
    solid = line != DASHES
    # The dashes are the heavier, since they would vanish where the two laws agree.
    axes.plot(
        grid,
        fit.predict({"train_flops": grid}),
        color=look.colour,
        linestyle=line,
        linewidth=0.8 if solid else 1.5,
        zorder=3,
    )
    band = fit.band({"train_flops": grid})
    if band is not None:
        shade = 0.16 if solid else 0.08
        axes.fill_between(grid, *band, color=look.colour, alpha=shade, linewidth=0, zorder=2)


def _points(axes: Axes, rows: pd.DataFrame, look: Look) -> None:
    """Means over seeds with their standard error; single runs with that of their evaluation, where known."""
    for flops, cell in rows.groupby("train_flops", sort=True):
        losses = cell["val_loss"].to_numpy(np.float64)
        error = None
        if losses.size > 1:
            error = float(losses.std(ddof=1)) / math.sqrt(losses.size)
            axes.plot(
                np.full(losses.size, float(str(flops))), losses, look.marker, color=look.colour,
                markersize=2.2, alpha=0.45, linestyle="none", zorder=4,
            )  # fmt: skip
        elif "val_loss_se" in cell and math.isfinite(float(cell["val_loss_se"].iloc[0])):
            error = float(cell["val_loss_se"].iloc[0])
        axes.errorbar(
            [float(str(flops))], [losses.mean()], yerr=error, color=look.colour,
            **look.marker_style(), markeredgewidth=1.0, elinewidth=0.8, linestyle="none", zorder=5,
        )  # fmt: skip


def _legend(axes: Axes, panel: Analysis, chosen: dict[str, Look], beneath: bool) -> None:
    handles = []
    for label in panel.structures:
        fit, look = panel.power[label], chosen[label]
        fitted = isinstance(fit, Fit)
        handles.append(
            Line2D(
                [],
                [],
                color=look.colour,
                linewidth=1.0 if fitted else 0,
                linestyle=look.line,
                label=_entry(label, fit),
                **look.marker_style(),
            )
        )
    if any(isinstance(fit, Fit) and fit.identified for fit in panel.irreducible.values()):
        text = r"with irreducible loss $E$"
        handles.append(Line2D([], [], color=GREY, linestyle=DASHES, linewidth=1.5, label=text))
    title = r"$L \propto C^{\,-\alpha}$, 95 % band"
    place: dict[str, Any] = {"loc": "upper right"}
    if beneath:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
    axes.legend(handles=handles, title=title, title_fontsize=7, alignment="left", **place)


def _legend_lines(panel: Analysis) -> int:
    """Lines that the curves need in the legend."""
    return sum(1 + _wrapped(label).count("\n") for label in panel.structures)


def _wrapped(label: str) -> str:
    """A label broken between its parts, so that the legend stays within its panel."""
    lines = [""]
    for part in label.split(", "):
        joined = f"{lines[-1]}, {part}".removeprefix(", ")
        fits = len(joined) <= LEGEND_LETTERS or not lines[-1]
        lines = [*lines[:-1], joined] if fits else [*lines[:-1], f"{lines[-1]},", f"  {part}"]
    return "\n".join(lines)


def _entry(label: str, fit: Fit | Refusal) -> str:
    label = _wrapped(label)
    if isinstance(fit, Refusal):
        return f"{label}  ({fit.n} run{'s' if fit.n > 1 else ''}, no fit)"
    error = fit.standard_errors["alpha"] if fit.standard_errors else None
    return rf"{label}  $\alpha$ = {with_error(fit.value('alpha'), error)}"
