"""The trade-off figure: held-out loss against a second objective, and the runs that nothing beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.digits import quantity
from analysis.figures.legends import legend_columns
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    log_loss_axis,
    looks,
    nice_ticks,
    title,
)
from analysis.searches.pareto import Contest
from analysis.searches.trials import Trial

PANEL, COLUMNS = 2.8, 2
UNITS = {
    "decode_ms": "Decode latency (ms per token)",
    "ffn_ms": "Forward time of all FFNs (ms)",
}
"""Axis labels of second objectives; others are called what the study calls them."""


def pareto_figure(found: Sequence[Contest], second: str, name: str, note: str = "") -> Figure:
    """Draw a panel a size and budget: every run, and a step line through those that are not dominated.

    Strong marks are not dominated within their structure and joined by steps; a ring is about those that no
    run of any structure dominates. Bars are standard errors over the held-out text.

    Args:
        found: at least one contest.
        second: the second objective, of which less is better.
        name: of the study.
        note: what is to be said of it, such as runs that are missing.
    """
    chosen = looks([trial.structure for contest in found for trial in contest.trials])
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS if columns > 1 else 0.65 * TWO_COLUMNS, PANEL * rows + 0.4))
        grid = figure.subplots(rows, columns, squeeze=False)
        for i, contest in enumerate(found):
            axes = grid.flat[i]
            _panel(axes, contest, second, chosen)
            words = [note if i == 0 else ""]
            if contest.unmeasured:
                words.append(f"{contest.unmeasured} runs have no {second}")
            title(axes, _heading(contest, name), "; ".join(filter(None, words)), TWO_COLUMNS / 2)
            if i % columns == 0:
                axes.set_ylabel("Held-out loss (nats per token)")
            axes.set_xlabel(UNITS.get(second, second))
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        handles = [
            Line2D([], [], color=look.colour, linewidth=0.9, label=label, **look.marker_style())
            for label, look in chosen.items()
        ]
        ring: dict[str, Any] = {
            "marker": "o",
            "markersize": 8,
            "markerfacecolor": "none",
            "linestyle": "none",
        }
        handles.append(Line2D([], [], color=GREY, label="not dominated by any run", **ring))
        ncols = legend_columns(handles, figure.get_figwidth(), 4)
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
        figure.draw_without_rendering()
    return figure


def _heading(contest: Contest, name: str) -> str:
    budget = "" if math.isnan(contest.budget) else f"{quantity(contest.budget)} FLOPs"
    return ", ".join(filter(None, [name, contest.size, budget]))


def _panel(axes: Axes, contest: Contest, second: str, chosen: dict[str, Look]) -> None:
    _axes(axes, contest)
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    front = {contest.trials[i].run_id for i in contest.front}
    for structure, look in chosen.items():
        mine = [t for t in contest.trials if t.structure == structure]
        own = sorted(
            (contest.trials[i] for i in contest.own if contest.trials[i].structure == structure), key=_place
        )
        strong = {t.run_id for t in own}
        rest = [t for t in mine if t.run_id not in strong]
        style = {**look.marker_style(), "color": look.colour, "linestyle": "none"}
        if rest:
            line = axes.plot(
                [_place(t)[0] for t in rest], [t.loss for t in rest],
                **{**style, "markersize": 2.8, "alpha": 0.4, "zorder": 3},
            )  # fmt: skip
            hover(line[0], [_text(t, second) for t in rest], [t.run_id for t in rest])
        if own:
            x, y = [_place(t)[0] for t in own], [t.loss for t in own]
            errors = [t.se if t.se > 0 else 0.0 for t in own]
            container = axes.errorbar(
                x, y, yerr=errors if any(errors) else None, elinewidth=0.8, zorder=5,
                **{**style, "markersize": 4.2},
            )  # fmt: skip
            hover(container.lines[0], [_text(t, second) for t in own], [t.run_id for t in own])
            # Whatever lies above and to the right of a step is beaten by it.
            axes.step(
                [x[0], *x, right], [top, *y, y[-1]], where="post", color=look.colour, linewidth=0.8,
                alpha=0.7, linestyle=look.line, zorder=2,
            )  # fmt: skip
            best = [t for t in own if t.run_id in front]
            axes.plot(
                [_place(t)[0] for t in best], [t.loss for t in best], "o", markersize=8, zorder=4,
                markerfacecolor="none", markeredgecolor=GREY, markeredgewidth=0.7,
            )  # fmt: skip


def _axes(axes: Axes, contest: Contest) -> None:
    losses = [t.loss for t in contest.trials]
    times = [_place(t)[0] for t in contest.trials]
    room = max(math.log(max(losses) / min(losses)), 0.02)
    log_loss_axis(axes, min(losses) * math.exp(-0.12 * room), max(losses) * math.exp(0.12 * room))
    if min(times) <= 0:
        return
    axes.set_xscale("log")
    wide = max(math.log(max(times) / min(times)), 0.05)
    low, high = min(times) * math.exp(-0.08 * wide), max(times) * math.exp(0.08 * wide)
    axes.set_xlim(low, high)
    if high / low < 12:
        axes.xaxis.set_major_locator(FixedLocator(nice_ticks(low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _place(trial: Trial) -> tuple[float, float]:
    return trial.numbers["second"], trial.loss


def _text(trial: Trial, second: str) -> str:
    error = f" ± {trial.se:.2g}" if trial.se > 0 else ""
    at = f"{second} {trial.numbers['second']:.3g}"
    return f"{trial.structure}, {trial.words}: loss {trial.loss:.4g}{error}, {at}"
