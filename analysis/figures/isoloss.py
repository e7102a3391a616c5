"""The isoloss figure: contours of a fitted L(N, D) over FLOPs and parameters, with runs and frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Outline
from matplotlib.patheffects import Normal, Stroke
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.spatial import ConvexHull

from analysis.allocation import Allocation, Cost, allocation
from analysis.arrays import Array
from analysis.digits import with_error
from analysis.figures.style import (
    GREY,
    ONE_COLUMN,
    TWO_COLUMNS,
    house_style,
    hover,
    log_flops_axis,
    nice_ticks,
    title,
)
from analysis.fit import Fit, Refusal
from analysis.isoflop.optima import IsoFlop

GRID, BUDGETS = 90, 40
MOST_PANELS, COLUMNS, ACROSS = 6, 3, 2
LEVELS = 10
SEQUENTIAL = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.85, 256)), "loss")
"""Without its yellow end, which white paper swallows."""
HALO = [Stroke(linewidth=1.8, foreground="white"), Normal()]
SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Surface:
    """Runs of one structure, or of one study, and what has been fitted to them.

    label: structure, or name of the study.
    table: one row a run: params, tokens, train_flops, val_loss; perhaps val_loss_se, size, seed, run_id.
    fit: of the law L(N, D).
    cost: what their FLOPs are of size and tokens.
    optima: approach 2 on the same runs, where they form budgets.
    """

    label: str
    table: pd.DataFrame
    fit: Fit | Refusal
    cost: Cost
    optima: IsoFlop | None = None

    @property
    def seen(self) -> tuple[float, float]:
        """Least and greatest training FLOPs of the runs."""
        flops = self.table["train_flops"]
        return float(flops.min()), float(flops.max())

    @property
    def why(self) -> str:
        """Why the law says nothing of these runs, in words; empty where it is identified."""
        if isinstance(self.fit, Refusal):
            return self.fit.reason
        if self.fit.identified and self.fit.spread is not None:
            return ""
        return "; ".join(str(finding) for finding in self.fit.findings) or "its errors are not known"

    def allocation(self, budgets: Sequence[float]) -> Allocation | None:
        """Compute-optimal sizes by the law ("approach 3"); None where it does not tell."""
        if isinstance(self.fit, Refusal):
            return None
        return allocation(self.fit, self.cost, budgets, self.seen)


def isoloss_figure(surfaces: Sequence[Surface], name: str, note: str = "", unit: str = "") -> Figure:
    """Draw contours of equal loss over training FLOPs and parameters, a panel a structure.

    Contours are whole within the outline of the runs and dashed beyond it; points are runs in the colour of
    their loss; the line is the compute-optimal size with its 95 % band, dashed beyond the runs' FLOPs. A law
    that the runs do not identify has no contours, and its panel says why.

    Args:
        surfaces: one a panel; of more than six the first six are drawn, and the note says so.
        name: title of a single panel, and of the first of several.
        note: source, or how complete the table is.
        unit: of the loss; nats per token where empty.
    """
    assert surfaces, "a product of no runs is none"
    shown = surfaces[:MOST_PANELS]
    if len(shown) < len(surfaces):
        note = f"{note} {len(surfaces) - len(shown)} further structures are not drawn.".strip()
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    with house_style():
        width = ONE_COLUMN + 0.7 if columns == 1 else TWO_COLUMNS
        figure = Figure(figsize=(width, 3.5 if columns == 1 else 2.7 * rows + 0.25))
        grid = figure.subplots(rows, columns, squeeze=False)
        losses = np.concatenate([s.table["val_loss"].to_numpy(np.float64) for s in shown])
        low, high = float(losses.min()), float(losses.max())
        norm = LogNorm(low / 1.001, high * 1.001)
        pending = []
        for i, surface in enumerate(shown):
            axes = grid.flat[i]
            pending.append((axes, _panel(axes, surface, norm, int(12 * width / columns))))
            if i >= len(shown) - columns:
                axes.set_xlabel("Training FLOPs")
            if i % columns == 0:
                axes.set_ylabel("Parameters N")
            heading = f"{name}: {surface.label}" if i == 0 and surface.label != name else surface.label
            title(axes, heading, note if i == 0 else "", (width - 0.6) / columns)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        bar = figure.colorbar(ScalarMappable(norm, SEQUENTIAL), ax=grid, aspect=30, pad=0.02)
        bar.set_label(f"Held-out loss ({unit or 'nats per token'})")
        bar.ax.yaxis.set_major_locator(FixedLocator(nice_ticks(low, high, 6)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        # Labels are set into the lines by their place on paper, which the layout has to settle first.
        figure.draw_without_rendering()
        for axes, lines in pending:
            if lines is not None:
                labels = axes.clabel(lines, fontsize=6.5, fmt=lambda value: f"{value:g}", inline_spacing=3)
                for label in labels:
                    label.set(path_effects=HALO, zorder=6)
        figure.draw_without_rendering()
    return figure


def _panel(axes: Axes, surface: Surface, norm: LogNorm, letters: int) -> Any:
    """One panel; returns the contours to be labelled, or None."""
    flops, params = (surface.table[key].to_numpy(np.float64) for key in ("train_flops", "params"))
    optimum = surface.allocation([])
    window = [_widened(flops), _widened(params, top=0.5 if optimum is None else 0.17)]
    log_flops_axis(axes, *window[0])
    log_counts_axis(axes, "y", *window[1])
    for row in surface.table.to_dict("records"):
        line, = axes.plot(
            [row["train_flops"]], [row["params"]], "o", color=SEQUENTIAL(norm(row["val_loss"])),
            markersize=3.2, markeredgecolor="white", markeredgewidth=0.3, zorder=4,
        )  # fmt: skip
        hover(line, [run_text(row, surface.label)], [str(row.get("run_id") or "")])
    optimum = surface.allocation(np.geomspace(*window[0], BUDGETS).tolist())
    if optimum is None or isinstance(surface.fit, Refusal):
        text = f"No contours: L(N, D) is not identified. {surface.why or 'The law gives no optimum'}."
        axes.annotate(
            wrapped(text, letters), (0.03, 0.97), fontsize=6.5,
            xycoords="axes fraction", va="top", color=GREY, zorder=6,
            bbox={"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 1.5},
        ).set_in_layout(False)  # fmt: skip
        return None
    _frontier(axes, optimum)
    return _contours(axes, surface, window)


def _contours(axes: Axes, surface: Surface, window: Sequence[tuple[float, float]]) -> Any:
    assert isinstance(surface.fit, Fit)
    x, y = (np.geomspace(low, high, GRID) for low, high in window)
    flops, params = np.meshgrid(x, y)
    cost = surface.cost
    tokens = (flops / (cost.kappa * params**cost.u)) ** (1 / cost.v)
    data = {"params": params.ravel(), "tokens": tokens.ravel(), "params_avg": params.ravel()}
    loss = surface.fit.predict(data).reshape(params.shape)
    seen = surface.table["val_loss"]
    levels = nice_ticks(float(seen.min()), float(seen.max()), LEVELS)
    inside = within(surface.table, flops, params)
    style: Mapping[str, Any] = {"levels": levels, "colors": "#222222", "zorder": 2}
    axes.contour(flops, params, loss, linewidths=0.45, linestyles="dashed", alpha=0.45, **style)
    return axes.contour(flops, params, np.where(inside, loss, np.nan), linewidths=0.8, **style)


def within(table: pd.DataFrame, flops: Array, params: Array) -> Any:
    """Which places lie within the runs' outline in log FLOPs and log parameters; a mask like `flops`."""
    points = np.log(table[["train_flops", "params"]].to_numpy(np.float64))
    outline = Outline(points[ConvexHull(points).vertices])
    places = np.stack([np.log(flops).ravel(), np.log(params).ravel()], axis=1)
    return outline.contains_points(places).reshape(flops.shape)


def _frontier(axes: Axes, found: Allocation) -> None:
    colour = "#D55E00"
    flops = np.array([optimum.train_flops for optimum in found.optima])
    place, low, high = (
        np.array([getattr(optimum.params, key) for optimum in found.optima])
        for key in ("value", "low", "high")
    )
    known = ~np.array([optimum.extrapolated for optimum in found.optima])
    a = found.a
    label = "$N^*(C)$, 95 % band: $a$ = " + (
        "1/2 by the law" if found.fixed else f"{with_interval(a.value, a.low, a.high)}"
    )
    axes.plot(flops, place, color=colour, linestyle=(0, (3, 1.5)), linewidth=1.0, zorder=3)
    axes.plot(flops[known], place[known], color=colour, linewidth=1.3, zorder=3, label=label)
    axes.fill_between(flops, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2.5)
    beyond = Line2D([], [], color=GREY, linewidth=0.8, linestyle="dashed", label="beyond the runs")
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], beyond], loc="upper left", fontsize=6.5)


def heading(figure: Figure, name: str, note: str) -> None:
    """A figure's title in bold, and under it in grey a note over its whole width."""
    text = wrapped(note, int(figure.get_figwidth() * 17.5))
    above = figure.suptitle(
        name + "\n" * (text.count("\n") + bool(text)), x=0.01, ha="left", fontweight="bold", fontsize=8
    )
    figure.add_artist(
        Annotation(text, (0, 0), xycoords=above, fontsize=6.5, color=GREY, va="bottom", linespacing=1.15)
    )


def _widened(values: Array, share: float = 0.06, top: float = 0.06) -> tuple[float, float]:
    """Limits of a logarithmic axis about values, at least a factor of two apart; `top`: room above."""
    low, high = float(np.log(values.min())), float(np.log(values.max()))
    spare = max(share * (high - low), (np.log(2.0) - (high - low)) / 2, 0.02)
    return float(np.exp(low - spare)), float(np.exp(high + spare * top / share))


def log_counts_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """A logarithmic axis of parameters, tokens or their ratio, ticks such as 30k, 1M, 2B."""
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = np.log10(high / low)
    subs: tuple[float, ...] = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    if decades < 0.7:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator() if decades < 0.7 else LogLocator(subs=range(2, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_formatter(NullFormatter())


def count(value: float) -> str:
    """Parameters or tokens in three digits: `26.8k`, `1.5M`, `70B`."""
    for unit, suffix in SUFFIXES:
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def flops_words(value: float) -> str:
    """FLOPs in three digits: `9.73e12`."""
    lead, _, power = f"{value:.2e}".partition("e")
    return f"{float(lead):g}e{int(power)}"


def with_interval(value: float, low: float, high: float) -> str:
    """`0.499 [0.469, 0.528]`, with the digits that the interval supports."""
    width = (high - low) / 4
    if not np.isfinite(width) or width <= 0:
        return f"{value:.3g}"
    digits = max(0, 1 - int(np.floor(np.log10(float(f"{width:.1e}")))))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def run_text(row: Mapping[Any, Any], label: str) -> str:
    """What a report says of a run: which it is, its loss, FLOPs, size and tokens."""
    who = [label]
    if row.get("size"):
        who.append(str(row["size"]))
    if "seed" in row:
        who.append(f"seed {row['seed']}")
    error = float(row["val_loss_se"]) if pd.notna(row.get("val_loss_se")) else None
    return (
        f"{', '.join(who)}: loss {with_error(float(row['val_loss']), error)} at "
        f"{flops_words(float(row['train_flops']))} FLOPs ({count(float(row['params']))} parameters, "
        f"{count(float(row['tokens']))} tokens)"
    )


def wrapped(text: str, letters: int) -> str:
    """A text in lines of at most so many letters, broken between words."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= letters or not lines[-1] else [*lines, word]
    return "\n".join(lines)


def shades(values: Sequence[float], colours: Colormap = SEQUENTIAL) -> dict[float, Any]:
    """A colour of a sequential map for every value, by its logarithm."""
    logs = np.log(np.array(sorted(set(values)), np.float64))
    span = float(np.ptp(logs)) or 1.0
    return {
        value: colours(float(place))
        for value, place in zip(sorted(set(values)), (logs - logs.min()) / span, strict=True)
    }
