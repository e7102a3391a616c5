"""The search figure: what each trial of a study came to, the best so far, and which dimensions matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    log_loss_axis,
    looks,
    title,
)
from analysis.searches.trials import Cell, Importance, Study, Trial

COLUMNS, PANEL, BARS = 2, 1.95, 0.42
"""Cells beside each other, height of a panel in inches, and width of the bars as a share of a panel's."""
LOST = {"diverged": "x", "pruned": "v", "failed": "1"}
"""Markers at the upper edge: runs that have no loss."""
ROOM = 3.0
"""Losses further above the best than so many times the lower half's spread lie above the panel."""


def search_history_figure(study: Study) -> Figure:
    """Draw a panel a cell, loss of each trial over the number of runs, and importances as bars beside it.

    Runs stand in the order of their proposal; filled marks were trained for the study, open ones known from
    the ledger. The step line is the lowest loss so far. Repeats, which cost nothing, are small grey marks
    between the runs; runs without a loss stand at the upper edge.

    Args:
        study: with at least one trial.
    """
    chosen = looks([cell.structure for cell in study.cells])
    bars = {one.cell for one in study.importance}
    columns = min(COLUMNS, len(study.cells))
    rows = -(-len(study.cells) // columns)
    ratios = [1.0, BARS] * columns if bars else [1.0] * columns
    with house_style():
        # One panel alone would be stretched.
        inches = TWO_COLUMNS if len(ratios) > 1 else 0.6 * TWO_COLUMNS
        figure = Figure(figsize=(inches, PANEL * rows + 0.75))
        grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
        wide = 1.1 * inches / columns / (1 + BARS if bars else 1)
        for i, cell in enumerate(study.cells):
            row, column = i // columns, i % columns
            axes = figure.add_subplot(grid[row, column * (2 if bars else 1)])
            _history(axes, cell, chosen[cell.structure])
            title(axes, study.title(cell), _counts(cell), wide)
            if column == 0:
                axes.set_ylabel("Held-out loss (nats per token)")
            if i + columns >= len(study.cells):
                axes.set_xlabel("Runs, in the order proposed")
            if bars:
                beside = figure.add_subplot(grid[row, 2 * column + 1])
                _importance(beside, [one for one in study.importance if one.cell == cell.label])
        handles = _handles(study)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        figure.suptitle(f"{study.name}: {study.coverage()}", fontsize=7, color=GREY, x=0.01, ha="left")
        figure.draw_without_rendering()
    return figure


def _counts(cell: Cell) -> str:
    count = len(cell.trials)
    words = [f"{count} trial{'s' if count > 1 else ''}: {len(cell.done)} done"]
    for state in LOST:
        count = sum(trial.state == state for trial in cell.distinct)
        words += [f"{count} {state}"] if count else []
    again = sum(trial.repeat for trial in cell.trials)
    words += [f"{again} repeat{'s' if again > 1 else ''}"] if again else []
    return ", ".join(words)


def _history(axes: Axes, cell: Cell, look: Look) -> None:
    places = _places(cell)
    done = [t for t in cell.trials if t.state == "done"]
    first = [t for t in done if not t.repeat]
    low, high = _limits([t.loss for t in done])
    log_loss_axis(axes, low, high)
    count = max(places.values(), default=1.0)
    axes.set_xlim(0.3, max(count, 1.0) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    shown = [t for t in first if t.loss < high]
    beyond = len(first) - len(shown)
    for known in (False, True):
        mine = [t for t in shown if t.from_ledger == known]
        if mine:
            style = {**look.marker_style(), "markersize": 3.6, "markeredgewidth": 0.8, "linestyle": "none"}
            inside = "white" if known else look.colour
            style |= {"markerfacecolor": inside, "markerfacecoloralt": inside}
            line = axes.plot(
                [places[t.number] for t in mine], [t.loss for t in mine], color=look.colour, zorder=5, **style
            )
            hover(line[0], [_text(t) for t in mine], [t.run_id for t in mine])
    again = [t for t in done if t.repeat and t.loss < high]
    if again:
        line = axes.plot(
            [places[t.number] for t in again], [t.loss for t in again], "|", color=GREY, markersize=4.5,
            markeredgewidth=0.8, zorder=4,
        )  # fmt: skip
        hover(line[0], [_text(t) for t in again], [t.run_id for t in again])
    _best_so_far(axes, first, places, look, count)
    _tied(axes, first)
    _lost(axes, cell, places)
    if beyond:
        axes.annotate(
            f"{beyond} above", (1, 0.86), xycoords="axes fraction", xytext=(-2, 0),
            textcoords="offset points", fontsize=6.5, color=GREY, ha="right", va="top",
        )  # fmt: skip


def _places(cell: Cell) -> dict[int, float]:
    """Where each trial stands: runs at 1, 2, 3 ..., a repeat half a step after the run before it."""
    places, count = {}, 0
    for trial in cell.trials:
        count += not trial.repeat
        places[trial.number] = count + (0.5 if trial.repeat else 0.0)
    return places


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """Of the loss axis: all losses, unless a few of them would flatten the rest."""
    if not losses:
        return 1.0, 10.0
    ordered = sorted(math.log(loss) for loss in losses)
    low, spread = ordered[0], ordered[len(ordered) // 2] - ordered[0]
    top = ordered[-1]
    # A wide search starts far off: what matters is how the best ones compare.
    if spread > 0 and top - low > 2 * ROOM * spread:
        top = max(value for value in ordered if value - low <= 2 * ROOM * spread)
    room = max(top - low, 0.01)
    return math.exp(low - 0.12 * room), math.exp(top + 0.3 * room)


def _best_so_far(
    axes: Axes, first: Sequence[Trial], places: Mapping[int, float], look: Look, count: float
) -> None:
    x, y, best = [], [], math.inf
    for trial in first:
        best = min(best, trial.loss)
        x.append(places[trial.number])
        y.append(best)
    if x and count > x[-1]:
        x.append(count)
        y.append(best)
    if len(x) > 1:
        axes.step(x, y, where="post", color=look.colour, linewidth=0.9, alpha=0.6, zorder=3)


def _tied(axes: Axes, first: Sequence[Trial]) -> None:
    """A band of one standard error above the best: what lies in it cannot be told from it."""
    best = min(first, key=lambda trial: trial.loss, default=None)
    if best is not None and best.se > 0 and len(first) > 1:
        axes.axhspan(best.loss, best.loss + best.se, color="#d8d8d8", linewidth=0, zorder=1)


def _lost(axes: Axes, cell: Cell, places: Mapping[int, float]) -> None:
    """Runs without a loss, at the upper edge."""
    top = (axes.transScale + axes.transLimits).inverted().transform((0.5, 0.95))[1]
    for state, marker in LOST.items():
        mine = [t for t in cell.trials if t.state == state]
        if mine:
            line = axes.plot(
                [places[t.number] for t in mine], [float(top)] * len(mine), marker, color=GREY, markersize=4,
                markerfacecolor="white", markeredgewidth=0.9, linestyle="none", zorder=6,
            )  # fmt: skip
            hover(line[0], [_text(t) for t in mine], [t.run_id for t in mine])


def _text(trial: Trial) -> str:
    words = f"{trial.cell}, trial {trial.number}: {trial.words}"
    if trial.state != "done":
        share = trial.numbers["progress"]
        after = f" after {100 * share:.0f} % of the run" if math.isfinite(share) else ""
        return f"{words}; {trial.state}{after}"
    error = f" ± {trial.se:.2g}" if trial.se > 0 else ""
    told = "; repeat" if trial.repeat else "; known before" if trial.from_ledger else ""
    return f"{words}; loss {trial.loss:.4g}{error}{told}"


def _importance(axes: Axes, found: Sequence[Importance]) -> None:
    """Shares as bars, the largest on top, each with its dimension's name above it."""
    axes.set_axis_off()
    title(axes, "Importance", "" if found else "not known", 1.0)
    ordered = sorted(found, key=lambda one: (-one.share, one.dimension))
    rows = max(len(ordered), 3)
    axes.set_xlim(0, 1.0)
    axes.set_ylim(rows - 0.35, -0.65)
    for i, one in enumerate(ordered):
        axes.barh(i + 0.12, one.share, height=0.3, color="#9a9a9a", zorder=3)
        axes.annotate(
            f"{one.dimension} {one.share:.2f}", (0, i - 0.08), xytext=(0, 1), textcoords="offset points",
            fontsize=6.5, va="bottom",
        )  # fmt: skip


def _handles(study: Study) -> list[Line2D]:
    trials = study.trials

    def mark(marker: str, label: str, **style: str) -> Line2D:
        return Line2D([], [], marker=marker, linestyle="none", color=GREY, markersize=4, label=label, **style)  # type: ignore[arg-type]

    handles = [mark("o", "run")]
    if any(t.from_ledger and not t.repeat for t in trials):
        handles.append(mark("o", "run known before", markerfacecolor="white"))
    handles.append(Line2D([], [], color=GREY, linewidth=0.9, label="best so far"))
    if any(sum(t.se > 0 for t in cell.done) > 1 for cell in study.cells):
        handles.append(
            Line2D([], [], color="#d8d8d8", linewidth=5, label="within one standard error of the best")
        )
    if any(t.repeat for t in trials):
        handles.append(mark("|", "repeat, at no cost"))
    for state, marker in LOST.items():
        if any(t.state == state for t in trials):
            handles.append(mark(marker, f"{state}, no loss", markerfacecolor="white"))
    return handles
