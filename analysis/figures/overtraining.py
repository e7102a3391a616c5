"""The over-training figure: loss over tokens per parameter at fixed size, and over FLOPs at fixed ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.arrays import Array
from analysis.digits import with_error
from analysis.figures.isoloss import SEQUENTIAL, count, log_counts_axis, run_text, shades, wrapped
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    log_flops_axis,
    log_loss_axis,
    looks,
    title,
)
from analysis.fit import Fit, Refusal
from analysis.isoflop.budgets import group_budgets

CURVE_POINTS = 60
SAME_RATIO = 0.15
"""Ratios within so much of their mean are one: those of a structure differ a little from size to size."""
COLUMNS = 3
MOST_TICKS, APART = 9, 1.3
"""Ratios that get a tick each on their scale: so many, and no closer than this factor."""
ROW, WIDTH = 2.35, 0.9 * TWO_COLUMNS


@dataclass(frozen=True)
class Ratios:
    """Runs of one structure, or on one training set, at several sizes and tokens per parameter.

    label: structure or training set.
    table: one row a run: params, tokens, train_flops, val_loss; perhaps size, seed, run_id, val_loss_se, and
        low and high, the interval of the loss.
    fit: the law `overtrain` of Gadre et al.
    """

    label: str
    table: pd.DataFrame
    fit: Fit | Refusal

    @property
    def ratio(self) -> Array:
        """Tokens per parameter of each run, shape (n,)."""
        return (self.table["tokens"] / self.table["params"]).to_numpy(np.float64)

    @property
    def why(self) -> str:
        """Why there is no law, in words; empty where it is identified."""
        if isinstance(self.fit, Refusal):
            return self.fit.reason
        return "" if self.fit.identified else "; ".join(str(finding) for finding in self.fit.findings)


def overtraining_figure(
    ours: Sequence[Ratios], published: Sequence[Ratios], name: str, note: str = "", source: str = ""
) -> Figure:
    """Draw what more tokens than compute-optimal do to the loss, our runs above published ones.

    Ours: a panel a size, loss over tokens per parameter, a colour a structure; then a panel a structure, loss
    over FLOPs, a colour a ratio M = D / N. Published: the latter, and without ours the former too, a colour a
    size. Lines are the law L = E + (a M^eta + b M^-eta) C^-eta: over FLOPs, curves of one exponent whose
    offset is the ratio's. Where the runs do not identify it, they are joined by thin lines instead and the
    panel says why.

    Args:
        ours: structures with the same sizes; may be empty.
        published: training sets; may be empty.
        name: of our table.
        note: how complete it is.
        source: of the published numbers.

    Source: Gadre et al., arXiv 2403.08540, figure 2 and eq. 4.
    """
    assert ours or published, "a product of no runs is none"
    sizes = _sizes(ours)
    if len(ours) > 2 * COLUMNS or len(sizes) > 2 * COLUMNS:
        note = (
            f"{note} Only {2 * COLUMNS} of {len(sizes)} sizes and {len(ours)} structures have panels.".strip()
        )
    kinds: tuple[tuple[str, Sequence[Any]], ...] = (
        ("size", sizes[: 2 * COLUMNS]),
        ("ours", ours[: 2 * COLUMNS]),
        ("published", published[:COLUMNS]),
        ("ratio", [] if ours else published[:COLUMNS]),
    )
    plan = [(kind, items) for kind, items in kinds if items]
    rows = [(kind, items[i : i + COLUMNS]) for kind, items in plan for i in range(0, len(items), COLUMNS)]
    ratios = np.concatenate([part.ratio for part in (*ours, *published)])
    norm = LogNorm(float(ratios.min()), float(ratios.max()) * 1.0001)
    chosen = looks([part.label for part in ours])
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, ROW * len(rows) + 0.3))
        wide = math.lcm(*(len(items) for _, items in rows))
        grid = figure.add_gridspec(len(rows), wide)
        for i, (kind, items) in enumerate(rows):
            span = wide // len(items)
            panels: list[Axes] = []
            for j in range(len(items)):
                place = grid[i, j * span : (j + 1) * span]
                panels.append(figure.add_subplot(place, sharey=panels[0] if panels else None))
            _row(panels, kind, items, ours, chosen, norm)
            for j, axes in enumerate(panels):
                own = name if i == j == 0 else "Published" if kind == "published" and j == 0 else ""
                label = items[j] if isinstance(items[j], str) else items[j].label
                words = _words(kind, i, note, source) if j == 0 else ""
                title(axes, f"{own}: {label}" if own else label, words, WIDTH / len(items))
        figure.draw_without_rendering()
    return figure


def _row(
    panels: Sequence[Axes], kind: str, items: Sequence[Any], ours: Sequence[Ratios],
    chosen: Mapping[str, Look], norm: LogNorm,
) -> None:  # fmt: skip
    """The panels of one row, on one loss axis, and what explains their colours beside the last."""
    handles: list[Line2D] = []
    for axes, item in zip(panels, items, strict=True):
        if kind == "size":
            handles = _over_ratio(axes, item, ours, chosen)
        elif kind == "ratio":
            handles = _by_size(axes, item)
        else:
            _over_flops(axes, item, norm, chosen.get(item.label))
            axes.annotate(
                _law(item, int(15 * WIDTH / len(items))), (0.03, 0.03), xycoords="axes fraction",
                fontsize=6.5, color=GREY, zorder=1.5,
            ).set_in_layout(False)  # fmt: skip
    if handles:
        # Beside the row, since the curves leave no corner free at every size.
        panels[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=6.5)
    else:
        _bar(panels[-1], norm, [float(ratio) for part in items for ratio in part.ratio])
    panels[0].set_ylabel("Held-out loss\n(nats per token)")
    _scale(panels)


def _words(kind: str, row: int, note: str, source: str) -> str:
    """The note over a row: of our table over the first, of the study over its first."""
    return note if row == 0 and kind == "size" else source if kind == "published" else ""


def _sizes(ours: Sequence[Ratios]) -> list[str]:
    """Names of the sizes in the order of their parameters, those with three ratios in any structure."""
    place: dict[str, float] = {}
    for part in ours:
        for size, rows in part.table.groupby(_named(part.table), sort=False):
            if np.unique(rows["tokens"]).size >= 3:
                place[str(size)] = max(place.get(str(size), 0.0), float(rows["params"].max()))
    return sorted(place, key=lambda size: place[size])


def _named(table: pd.DataFrame) -> pd.Series:
    """The name of each run's size: the column, or its parameters."""
    if "size" in table and bool((table["size"].astype(str) != "").all()):
        return table["size"].astype(str)
    return table["params"].map(lambda params: f"{count(float(params))} parameters")


def _over_ratio(axes: Axes, size: str, ours: Sequence[Ratios], chosen: Mapping[str, Look]) -> list[Line2D]:
    """Loss over tokens per parameter at one size, a colour a structure."""
    for part in ours:
        rows = part.table[_named(part.table) == size]
        if rows.empty:
            continue
        look = chosen[part.label]
        x = _points(axes, rows, "ratio", part.label, {"color": look.colour, **look.marker_style()})
        drawn = _curve_at_size(axes, part, rows, x, look.colour)
        if not drawn:
            means = rows.groupby("tokens")["val_loss"].mean()
            axes.plot(np.unique(x), means, color=look.colour, linewidth=0.6, alpha=0.6, zorder=2)
    handles = [
        Line2D([], [], color=chosen[part.label].colour, linewidth=0.9, label=part.label,
               **chosen[part.label].marker_style())
        for part in ours
    ]  # fmt: skip
    _ratio_axis(axes)
    return handles


def _by_size(axes: Axes, part: Ratios) -> list[Line2D]:
    """Loss over tokens per parameter on one training set, a colour a size."""
    colours = shades(sorted(set(part.table["params"])))
    handles = []
    for params, rows in part.table.groupby("params", sort=True):
        colour = colours[float(str(params))]
        x = _points(axes, rows, "ratio", part.label, {"color": colour, "marker": "o"})
        _curve_at_size(axes, part, rows, x, colour)
        handles.append(
            Line2D([], [], color=colour, marker="o", linewidth=0.9, label=f"N = {count(float(str(params)))}")
        )
    _ratio_axis(axes)
    return handles[::-1]


def _curve_at_size(axes: Axes, part: Ratios, rows: pd.DataFrame, x: Array, colour: Any) -> bool:
    if isinstance(part.fit, Refusal) or part.why or rows["params"].nunique() > 1:
        return False
    grid = np.geomspace(x.min(), x.max(), CURVE_POINTS)
    params = float(rows["params"].iloc[0])
    # FLOPs of one size are so many a token, whatever the number of tokens.
    price = float((rows["train_flops"] / rows["tokens"]).mean())
    flops = price * params * grid
    _law_curve(axes, part.fit, grid, flops, grid, colour)
    return True


def _over_flops(axes: Axes, part: Ratios, norm: LogNorm, look: Look | None) -> None:
    """Loss over FLOPs of one structure or training set, a colour a ratio."""
    ratio = part.ratio
    for places in group_budgets(ratio, SAME_RATIO):
        mean = float(np.exp(np.log(ratio[places]).mean()))
        colour = SEQUENTIAL(norm(mean))
        rows = part.table.iloc[places]
        x = _points(
            axes, rows, "flops", part.label, {"color": colour, "marker": look.marker if look else "o"}
        )
        reach = math.log(float(x.max() / x.min())) or 1.0
        grid = np.geomspace(x.min() * math.exp(-0.1 * reach), x.max() * math.exp(0.1 * reach), CURVE_POINTS)
        if isinstance(part.fit, Refusal) or part.why:
            means = rows.groupby("train_flops")["val_loss"].mean()
            axes.plot(np.unique(x), means, color=colour, linewidth=0.6, alpha=0.6, zorder=2)
        else:
            _law_curve(axes, part.fit, grid, grid, np.full_like(grid, mean), colour)
    flops = part.table["train_flops"].to_numpy(np.float64)
    reach = math.exp(0.06 * max(math.log(flops.max() / flops.min()), 0.7))
    log_flops_axis(axes, flops.min() / reach, flops.max() * reach)
    axes.set_xlabel("Training FLOPs")


def _law_curve(axes: Axes, fit: Fit, x: Array, flops: Array, ratio: Array, colour: Any) -> None:
    data = {"flops_over_multiplier": flops / ratio, "flops_times_multiplier": flops * ratio}
    axes.plot(x, fit.predict(data), color=colour, linewidth=0.9, zorder=2)


def _points(axes: Axes, rows: pd.DataFrame, what: str, label: str, style: Mapping[str, Any]) -> Array:
    """Runs with the error of their loss, where one is known; returns their places on the x axis."""
    rows = rows.sort_values(["tokens", "params"], kind="stable")
    x = (rows["tokens"] / rows["params"] if what == "ratio" else rows["train_flops"]).to_numpy(np.float64)
    loss = rows["val_loss"].to_numpy(np.float64)
    error: Any = None
    if "low" in rows and "high" in rows:
        error = [loss - rows["low"].to_numpy(np.float64), rows["high"].to_numpy(np.float64) - loss]
    elif "val_loss_se" in rows and bool(rows["val_loss_se"].notna().all()):
        error = rows["val_loss_se"].to_numpy(np.float64)
    drawn = axes.errorbar(
        x, loss, yerr=error, linestyle="none", markersize=3.2, markeredgewidth=0.8, elinewidth=0.7, capsize=0,
        zorder=4, **style,
    )  # fmt: skip
    texts = [run_text(row, label) for row in rows.to_dict("records")]
    ratios = (rows["tokens"] / rows["params"]).to_numpy(np.float64)
    texts = [f"{text}, {ratio:.3g} tokens per parameter" for text, ratio in zip(texts, ratios, strict=True)]
    hover(drawn.lines[0], texts, [str(run or "") for run in rows["run_id"]] if "run_id" in rows else [])
    return x


def _law(part: Ratios, letters: int) -> str:
    """The law of a panel in words, or why there is none."""
    if isinstance(part.fit, Refusal) or part.why:
        return wrapped(f"No law: {part.why}.", letters)
    errors = part.fit.standard_errors or {}
    eta = with_error(part.fit.value("eta"), errors.get("eta"))
    floor = with_error(part.fit.value("E"), errors.get("E"))
    return rf"$\eta$ = {eta}" + f"\nE = {floor}"


def _ratio_axis(axes: Axes) -> None:
    low, high = axes.dataLim.x0, axes.dataLim.x1
    reach = math.exp(0.05 * max(math.log(high / low), 0.7))
    log_counts_axis(axes, "x", low / reach, high * reach)
    axes.set_xlabel("Tokens per parameter M")


def _scale(row: Sequence[Axes]) -> None:
    """One loss axis for the panels of a row."""
    low = min(axes.dataLim.y0 for axes in row)
    high = max(axes.dataLim.y1 for axes in row)
    spare = max(high / low, 1.01) ** 0.06
    log_loss_axis(row[0], low / spare, high * spare)
    for axes in row[1:]:
        axes.tick_params(labelleft=False)


def _bar(axes: Axes, norm: LogNorm, ratios: Sequence[float]) -> None:
    """The scale of ratios, to the right of a panel."""
    bar = axes.figure.colorbar(
        ScalarMappable(norm, SEQUENTIAL), cax=axes.inset_axes((1.05, 0.0, 0.04, 1.0)),
        label="Tokens per parameter M",
    )  # fmt: skip
    values = np.array(ratios)
    seen = [float(np.exp(np.log(values[p]).mean())) for p in group_budgets(values, SAME_RATIO)]
    few = len(seen) <= MOST_TICKS and all(b > APART * a for a, b in pairwise(seen))
    bar.ax.yaxis.set_major_locator(FixedLocator(seen) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
