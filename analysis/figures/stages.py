"""The figure of curriculum runs: training time until each sequence length was solved, and of each alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures.legends import legend_columns
from analysis.figures.lengths import length_axis
from analysis.figures.style import GREY, TWO_COLUMNS, Line, Look, house_style, hover, looks, title
from analysis.stages import Published, Stage, StagedRun, clock, percent, three, unit

DASHED: Line = (0, (3, 1.5))
MOST_TICKS, LETTERS = 8, 125
LEAST = 0.001
"""Seconds to which times are recorded: what rounds to none has its place here, on a logarithmic axis."""


def stages_figure(runs: Sequence[StagedRun], published: Sequence[Published] = ()) -> Figure:
    """Draw cumulative training time over length (left) and the time of each stage alone (right).

    A line a run, log-log; a length that was not solved is an empty mark behind a dashed line, at the time
    spent until the end.

    Args:
        runs: with their stages.
        published: results of such tasks in a paper, told beneath.
    """
    words, size = unit(max(run.stages[-1].cumulative for run in runs))
    chosen = looks([run.name for run in runs])
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 3.3 + 0.14 * len(runs)))
        left, right = figure.subplots(1, 2, sharex=True)
        for run in runs:
            _line(left, run, chosen[run.name], size, True)
            _line(right, run, chosen[run.name], size, False)
        lengths = sorted({stage.seq_len for run in runs for stage in run.stages})
        for axes in (left, right):
            _scales(axes, lengths)
        title(left, "Until a length is solved", "training time since the run began", TWO_COLUMNS / 2)
        title(right, "Each length alone", "training time of its stage", TWO_COLUMNS / 2)
        left.set_ylabel(f"Training time ({words})")
        right.set_ylabel(f"Time of the stage ({words})")
        handles = [
            Line2D([], [], label=f"{run.name}{_final(run)}", **_styled(chosen[run.name])) for run in runs
        ]
        if any(not run.stages[-1].solved for run in runs):
            style = _styled(Look(GREY, "o", False, DASHED))
            handles.append(Line2D([], [], label="not solved when the run ended", **style))
        columns = legend_columns(handles, TWO_COLUMNS, 3)
        told = "\n".join(line for text in _told(published) for line in wrap(text, LETTERS))
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, title=told or None,
            title_fontsize=6.5,
        )  # fmt: skip
        legend.get_title().set_color(GREY)
        figure.draw_without_rendering()
    return figure


def _styled(look: Look) -> dict[str, Any]:
    return {
        "color": look.colour,
        "linestyle": look.line,
        "linewidth": 0.9,
        "markersize": 4,
        **look.marker_style(),
    }


def _line(axes: Axes, run: StagedRun, look: Look, size: float, cumulative: bool) -> None:
    """One run over its lengths."""

    def time(stage: Stage) -> float:
        return max(LEAST, stage.cumulative if cumulative else stage.seconds) / size

    solved = [stage for stage in run.stages if stage.solved]
    missed = [stage for stage in run.stages if not stage.solved]
    if missed:
        dashed = _styled(replace(look, line=DASHED)) | {"marker": "none"}
        last = run.stages[-2:]
        axes.plot([s.seq_len for s in last], [time(s) for s in last], zorder=3, **dashed)
    for stages, styled in ((solved, look), (missed, replace(look, line="none", filled=False))):
        if not stages:
            continue
        x, y = [s.seq_len for s in stages], [time(s) for s in stages]
        (points,) = axes.plot(x, y, zorder=4, **_styled(styled))
        hover(points, [_words(run, s) for s in stages], [run.run_id] * len(stages))


def _words(run: StagedRun, stage: Stage) -> str:
    loss = "" if math.isnan(stage.val_loss) else f", held-out loss {three(stage.val_loss)} nats"
    state = "solved" if stage.solved else "not solved"
    return (
        f"{run.name}, {stage.seq_len:,} tokens: {state} after {clock(stage.cumulative)}, of which "
        f"{clock(stage.seconds)} and {stage.steps:,} steps at this length{loss}"
    )


def _final(run: StagedRun) -> str:
    """What came out in the end, where the corpus has answers."""
    return "" if math.isnan(run.accuracy) else f": {percent(run.accuracy)} % right at full length"


def _told(published: Sequence[Published]) -> list[str]:
    """What is published, a sentence a network."""
    networks = dict.fromkeys((one.model, one.params, one.source) for one in published)
    sentences = []
    for model, params, source in networks:
        mine = [one for one in published if (one.model, one.params, one.source) == (model, params, source)]
        results = ", ".join(f"{one.task} {one.accuracy:g} % right" for one in mine)
        sentences.append(f"Published: {model}, {params / 1e3:,.4g}k parameters, {results}; {source}")
    return sentences


def _scales(axes: Axes, lengths: Sequence[int]) -> None:
    length_axis(axes, lengths, MOST_TICKS, 1.2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("Sequence length (tokens)")
