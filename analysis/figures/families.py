"""The families figure: the papers' scaling curves of each family, our runs above and theirs below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.analyse import Analysis, points
from analysis.figures.curves import (
    CURVE_POINTS,
    LEGEND_LINE,
    absence,
    draw_law,
    draw_runs,
    footnote,
    handle,
    law_entry,
    legend_beneath,
    legend_lines,
    window,
    words_instead,
)
from analysis.figures.style import TWO_COLUMNS, Look, house_style, looks, title
from analysis.fit import Fit
from analysis.runs.labels import family_and_budget

PAPER_FAMILIES = ("lowrank", "blockdense", "blockshuffle")
REFERENCE = "dense"
PANEL = 2.3
"""Height of a panel with its title and axis label, in inches."""


@dataclass(frozen=True)
class PaperFamilies:
    """The published points.

    analysis: all of them that have a loss, fitted.
    sizes: structure -> at how many sizes the paper trained it, a published loss or not.
    source: where the losses are from.
    """

    analysis: Analysis
    sizes: Mapping[str, int]
    source: str


def families_figure(ours: Mapping[str, Analysis | str], published: PaperFamilies | None = None) -> Figure:
    """Draw loss over training FLOPs, log-log, a column a family: dense and its budgets, with power laws.

    Points are runs (mean and standard error over seeds where there are several; else the standard error of
    the evaluation), lines power laws with their 95 % bands. All panels show the same loss ratio per unit of
    height and the same decades per unit of width, so that slopes may be compared by eye; panels of one row
    have the same axes. Losses of the two rows may not be compared (other text, other tokens).

    Args:
        ours: family -> its fitted sweep, or what its panel says in place of one.
        published: the papers' points, the lower row.

    Source of the arrangement: arXiv 2406.16450, figure 1.
    """
    theirs = {} if published is None else {family: _labels(published.analysis, family) for family in ours}
    mine = {f: [] if isinstance(a, str) else a.structures for f, a in ours.items()}
    rows = [mine] if published is None else [mine, theirs]
    lines = [max(legend_lines(labels) for labels in row.values()) for row in rows]
    with house_style():
        height = sum(PANEL + LEGEND_LINE * count for count in lines) + 0.2
        figure = Figure(figsize=(TWO_COLUMNS, height))
        grid = figure.subplots(len(rows), len(ours), squeeze=False, sharey="row", sharex="row")
        chosen = looks([label for row in rows for labels in row.values() for label in labels])
        for axes, (family, found) in zip(grid[0], ours.items(), strict=True):
            axes.set_xlabel("Training FLOPs")
            if isinstance(found, str):
                words_instead(axes, found)
            else:
                _panel(axes, found, mine[family], chosen)
            note = "" if isinstance(found, str) else absence(found.runs)
            title(axes, family, note, TWO_COLUMNS / len(ours))
        if published is not None:
            for axes, family in zip(grid[1], ours, strict=True):
                axes.set_xlabel("Training FLOPs")
                _panel(axes, published.analysis, theirs[family], chosen)
                note = _published_words(published, family)
                title(axes, f"Published: {family}", note, TWO_COLUMNS / len(ours))
            footnote(figure, [f"Published: {published.source}."])
        _limits([list(row) for row in grid], ours, published, theirs)
        for row in grid:
            row[0].set_ylabel("Held-out loss (nats per token)")
        # Computed here, while the style holds: the layout engine is created from it.
        figure.draw_without_rendering()
    return figure


def _labels(published: Analysis, family: str) -> list[str]:
    return [
        label for label in published.structures if family_and_budget(label)[0] in (REFERENCE, family)
    ]  # fmt: skip


def _panel(axes: Axes, panel: Analysis, labels: Sequence[str], chosen: Mapping[str, Look]) -> None:
    for label in labels:
        flops, _ = points(panel.runs.table, label)
        grid = np.geomspace(flops.min(), flops.max(), CURVE_POINTS)
        draw_law(axes, panel.power[label], grid, chosen[label], chosen[label].line)
        draw_runs(axes, panel.runs.table[panel.runs.table["structure"] == label], chosen[label])
    handles = [
        handle(law_entry(label, panel.power[label]), chosen[label], isinstance(panel.power[label], Fit))
        for label in labels
    ]
    legend_beneath(axes, handles)


def _limits(
    grid: Sequence[Sequence[Axes]],
    ours: Mapping[str, Analysis | str],
    published: PaperFamilies | None,
    theirs: Mapping[str, Sequence[str]],
) -> None:
    """One scale for all panels; each row holds the points of all its panels."""
    tables = [[found.runs.table for found in ours.values() if not isinstance(found, str)]]
    if published is not None:
        table = published.analysis.runs.table
        tables.append([table[table["structure"].isin(labels)] for labels in theirs.values()])
    windows = []
    for row in tables:
        flops, loss = (
            np.concatenate([table[name].to_numpy(np.float64) for table in row] or [np.empty(0)])
            for name in ("train_flops", "val_loss")
        )
        windows.append(window(flops, loss) if flops.size else None)
    known = [limits for limits in windows if limits is not None]
    width = max((limits.width for limits in known), default=0.0)
    height = max((limits.height for limits in known), default=0.0)
    for panels, limits in zip(grid, windows, strict=True):
        for axes in panels:
            if limits is None:
                axes.set_xticks([])
                axes.set_yticks([])
            else:
                limits.apply(axes, width, height)


def _published_words(published: PaperFamilies, family: str) -> str:
    """At how many of the paper's sizes a loss is published, and which budgets that leaves without a fit."""
    table = published.analysis.runs.table
    parts: list[str] = []
    for label, sizes in published.sizes.items():
        of, budget = family_and_budget(label)
        if of != family:
            continue
        known = int((table["structure"] == label).sum())
        fit = published.analysis.power.get(label)
        words = f"{budget:g} % at {known} of {sizes}{'' if parts else ' sizes'}"
        parts.append(words if isinstance(fit, Fit) else f"{words} (no fit)")
    return f"Published losses: {', '.join(parts)}" if parts else "No loss published"
