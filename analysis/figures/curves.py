"""What figures of loss over FLOPs share: runs as points, laws with bands, limits, legend entries."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from analysis.arrays import Array
from analysis.digits import with_error
from analysis.figures.style import GREY, Line, Look, hover, log_flops_axis, log_loss_axis
from analysis.fit import Fit, Refusal
from analysis.runs.table import Runs

CURVE_POINTS = 120
X_MARGIN, Y_MARGIN = 0.12, 0.08
LEGEND_LETTERS = 32
DASHES: Line = (0, (3, 1.5))
LOST_SHOWN, WORDS_LETTERS = 2, 28
LEGEND_LINE, LEGEND_BENEATH = 0.13, 0.4
"""Height of an entry, and from the axes down to the first, in inches."""


@dataclass(frozen=True)
class Window:
    """Limits of a panel in log10: FLOPs from x to x + width, loss from y to y + height."""

    x: float
    width: float
    y: float
    height: float

    def apply(self, axes: Axes, width: float, height: float) -> None:
        """Set both axes; a panel smaller than `width` by `height` is widened to it, its points in the middle.

        Panels given the same two then show the same loss ratio per unit of height and decades per unit of
        width.
        """
        side, over = (width - self.width) / 2, (height - self.height) / 2
        log_flops_axis(axes, 10 ** (self.x - side), 10 ** (self.x + self.width + side))
        log_loss_axis(axes, 10 ** (self.y - over), 10 ** (self.y + self.height + over))


def window(flops: Array, loss: Array, room: float = 0.0) -> Window:
    """The limits that hold these points, both arrays of shape (n,).

    Args:
        flops: training FLOPs.
        loss: in nats per token.
        room: share of the height to leave free above them, for a legend.
    """
    x, y = np.log10(flops), np.log10(loss)
    width, height = max(float(np.ptp(x)), 0.3), max(float(np.ptp(y)), 0.02)
    left = (float(x.min()) + float(x.max()) - width) / 2
    bottom = (float(y.min()) + float(y.max()) - height) / 2
    return Window(
        left - X_MARGIN * width / 2,
        width * (1 + X_MARGIN),
        bottom - Y_MARGIN * height,
        height * (1 + Y_MARGIN + (Y_MARGIN + room)),
    )


def draw_law(axes: Axes, fit: Fit | Refusal, grid: Array, look: Look, line: Line) -> None:
    """Draw an identified law over FLOPs `grid`, shape (m,), with its 95 % band; anything else not at all."""
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


def draw_runs(axes: Axes, rows: pd.DataFrame, look: Look, floor: float = 0.0, what: str = "loss") -> None:
    """Draw one structure's losses less `floor`: means over seeds with their standard error, seeds small.

    A single run has the standard error of its evaluation, where it is known. Hover texts call the quantity
    `what`.
    """
    for flops, cell in rows.groupby("train_flops", sort=True):
        losses, at = cell["val_loss"].to_numpy(np.float64) - floor, float(str(flops))
        runs = [record(row) for row in cell.to_dict("records")]
        error = None
        if losses.size > 1:
            error = float(losses.std(ddof=1)) / math.sqrt(losses.size)
            (seeds,) = axes.plot(
                np.full(losses.size, at), losses, look.marker, color=look.colour,
                markersize=2.2, alpha=0.45, linestyle="none", zorder=4,
            )  # fmt: skip
            texts = [
                f"{run_words(row)}: {value_words(what, loss, evaluation_error(row), at)}"
                for row, loss in zip(runs, losses, strict=True)
            ]
            hover(seeds, texts, [run_id(row) for row in runs])
        else:
            error = evaluation_error(runs[0])
        drawn = axes.errorbar(
            [at], [losses.mean()], yerr=error, color=look.colour,
            **look.marker_style(), markeredgewidth=1.0, elinewidth=0.8, linestyle="none", zorder=5,
        )  # fmt: skip
        value = value_words(what, float(losses.mean()), error, at)
        one = losses.size == 1
        who = run_words(runs[0]) if one else f"{place_words(runs[0])}, mean of {losses.size} runs"
        hover(points_of(drawn), [f"{who}: {value}"], [run_id(runs[0]) if one else ""])


def points_of(container: Any) -> Line2D:
    """The line of an error-bar plot that has the points."""
    line = container.lines[0]
    assert isinstance(line, Line2D)
    return line


def record(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a table by column name."""
    return {str(key): value for key, value in row.items()}


def evaluation_error(row: Mapping[str, Any]) -> float | None:
    """The standard error of a run's loss over the evaluated text, in nats per token, where it is known."""
    error = float(row.get("val_loss_se", math.nan))
    return error if math.isfinite(error) else None


def run_id(row: Mapping[str, Any]) -> str:
    """Run id of a row; empty where its table has none."""
    return str(row.get("run_id") or "")


def place_words(row: Mapping[str, Any]) -> str:
    """Structure and, where the table knows them, size: `dense, cpu-m`."""
    return ", ".join(str(part) for part in (row["structure"], row.get("size")) if part)


def run_words(row: Mapping[str, Any]) -> str:
    """A run as hover texts name it: `dense, cpu-m, seed 1`; published points have no seed."""
    seed = f", seed {row['seed']}" if run_id(row) or row.get("seed") else ""
    return place_words(row) + seed


def value_words(what: str, value: float, error: float | None, flops: float) -> str:
    """A value at FLOPs: `loss 2.696 ± 0.022 at 9.73e12 FLOPs`."""
    return f"{what} {with_error(value, error)} at {short(flops)} FLOPs"


def short(value: float) -> str:
    """FLOPs, parameters or tokens in three digits: `9.73e12`."""
    return f"{value:.2e}".replace("e+", "e")


def absence(runs: Runs) -> str:
    """What is not in the figure, in words: `9 of 12 runs; missing: 3f2a`; empty where nothing is."""
    if runs.expected <= len(runs.table):
        return ""
    names = [", ".join(filter(None, (row.get("structure"), row.get("size")))) for row in runs.lost]
    more = f" and {len(names) - LOST_SHOWN} more" if len(names) > LOST_SHOWN else ""
    lost = f"; of the diverged: {'; '.join(names[:LOST_SHOWN])}{more}" if names else ""
    return runs.coverage() + lost


def wrapped(label: str) -> str:
    """A label broken between its parts, so that the legend stays within its panel."""
    lines = [""]
    for part in label.split(", "):
        joined = f"{lines[-1]}, {part}".removeprefix(", ")
        fits = len(joined) <= LEGEND_LETTERS or not lines[-1]
        lines = [*lines[:-1], joined] if fits else [*lines[:-1], f"{lines[-1]},", f"  {part}"]
    return "\n".join(lines)


def law_entry(label: str, fit: Fit | Refusal) -> str:
    """A curve's line in the legend: its exponent with standard error, or that it has no fit."""
    label = wrapped(label)
    if isinstance(fit, Refusal):
        return f"{label}  ({fit.n} run{'s' if fit.n > 1 else ''}, no fit)"
    error = fit.standard_errors["alpha"] if fit.standard_errors else None
    return rf"{label}  $\alpha$ = {with_error(fit.value('alpha'), error)}"


def handle(label: str, look: Look, fitted: bool) -> Line2D:
    """The sample of a curve in a legend; without a line where it has no law."""
    return Line2D(
        [],
        [],
        color=look.colour,
        linewidth=1.0 if fitted else 0,
        linestyle=look.line,
        label=label,
        **look.marker_style(),
    )


def legend_beneath(axes: Axes, handles: Sequence[Line2D]) -> None:
    """Put a panel's legend under its axis label, an entry a line."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    beneath = axes.transAxes + ScaledTranslation(0, -LEGEND_BENEATH, figure.dpi_scale_trans)
    axes.legend(
        handles=list(handles), loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=beneath,
        fontsize=6.5, alignment="left", borderaxespad=0, frameon=False,
    )  # fmt: skip


def legend_lines(labels: Iterable[str]) -> int:
    """How many lines the entries of these curves take."""
    return sum(1 + wrapped(label).count("\n") for label in labels)


def words_instead(axes: Axes, words: str) -> None:
    """Say in a panel's middle why it shows nothing."""
    lines = textwrap.wrap(words, WORDS_LETTERS, break_on_hyphens=False)
    axes.text(
        0.5, 0.5, "\n".join(lines), transform=axes.transAxes, ha="center", va="center", color=GREY
    )  # fmt: skip


def footnote(figure: Figure, paragraphs: Sequence[str]) -> None:
    """Grey words under all panels, wrapped to the figure's width, such as where numbers are from."""
    letters = footnote_letters(figure.get_figwidth())
    lines = [line for words in paragraphs for line in textwrap.wrap(words, letters, break_on_hyphens=False)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color=GREY, linespacing=1.15)


def footnote_letters(width: float) -> int:
    """How many letters of a footnote stand in a line of so many inches."""
    return int(width * 18)


def listed(words: Sequence[str], shown: int = 3) -> str:
    """Some words, the first few of them: `a, b, c and 2 more`."""
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more
