"""The residuals figure: what a law leaves of the losses, over its variables, its value, normal quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.special import ndtri

from analysis.arrays import Array
from analysis.figures.curves import (
    LEGEND_LINE,
    absence,
    evaluation_error,
    footnote,
    footnote_letters,
    handle,
    listed,
    points_of,
    record,
    run_id,
    run_words,
    short,
    wrapped,
)
from analysis.figures.style import (
    GREY,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    log_flops_axis,
    looks,
    nice_ticks,
)
from analysis.fit import Fit, Refusal, law_named
from analysis.lawfits import law_columns
from analysis.runs.table import Runs

NAMES = {
    "train_flops": "Training FLOPs", "params": "Parameters", "tokens": "Training tokens",
    "params_avg": "Mean parameters",
}  # fmt: skip
ONE_ROW, HEIGHT, SMALL = 3, 1.95, 40
DODGE = 0.012
"""Seeds of one cell stand apart by this share of the axis."""
FULL_LEVERAGE = 1e-9
QUANTILE_SHIFT = 0.375
"""Blom's positions (i - 3/8) / (n + 1/4) of ordered residuals."""

Fits = Mapping[str, Fit | Refusal]


@dataclass(frozen=True)
class Residuals:
    """One structure's residuals.

    rows: its runs, in the order of the arrays, all of shape (n,).
    percent: 100 times observed less fitted log loss.
    fitted: nats per token.
    standardised: over s sqrt(1 - h), h being the leverage; NaN where a run is fitted whatever it gives.
    sd: s in percent, or None where the law leaves no degree of freedom.
    """

    label: str
    rows: list[dict[str, Any]]
    percent: Array
    fitted: Array
    standardised: Array
    sd: float | None


def residuals_of(table: pd.DataFrame, label: str, fit: Fit) -> Residuals:
    """The residuals of a structure's fit, in the order of its rows.

    Standardised residuals are internally studentised (Cook and Weisberg 1982): those of few runs cannot
    exceed sqrt(n - p).
    """
    bound, phi = fit.optimum.bound, fit.optimum.phi
    log_fitted = bound.log_value(phi)
    residual = bound.log_loss - log_fitted
    q, _ = np.linalg.qr(bound.jacobian(phi))
    spare = 1 - np.einsum("np,np->n", q, q)
    sd = fit.residual_sd
    standardised = np.full(residual.size, math.nan)
    if sd:
        free = spare > FULL_LEVERAGE
        standardised[free] = residual[free] / (sd * np.sqrt(spare[free]))
    rows = [record(row) for row in table[table["structure"] == label].to_dict("records")]
    assert len(rows) == residual.size
    return Residuals(
        label, rows, 100 * residual, np.exp(log_fitted), standardised, None if sd is None else 100 * sd
    )


def residuals_figure(name: str, runs: Runs, laws: Mapping[str, Fits], source: str = "") -> Figure:
    """Draw residuals of log loss over each variable of a law, over the fitted loss, and a quantile plot.

    Every run is a point, seeds of one cell beside each other; bars are standard errors of the evaluation,
    where known. The quantile plot holds standardised residuals of each structure against normal quantiles:
    normal noise lies about the line. Words say residual standard deviation and largest residual.

    Args:
        name: of the table.
        runs: the table.
        laws: law -> structure -> its fit; later laws are left out where a bound makes them the first.
        source: where published numbers are from.
    """
    drawn: list[tuple[str, list[Residuals]]] = []
    words: list[str] = []
    for law, fits in laws.items():
        kept, sentence = _kept(runs.table, law, fits, first=not drawn)
        words.append(sentence)
        if kept:
            drawn.append((law, kept))
    words += [part for part in (absence(runs), f"Points: {source}." if source else "") if part]
    panels = {law: len(law_columns(law_named(law))) + 1 for law, _ in drawn}
    columns = max((_columns(count) for count in panels.values()), default=1)
    heights = [-(-panels[law] // columns) for law, _ in drawn]
    labels = list(dict.fromkeys(one.label for _, kept in drawn for one in kept))
    entries = 0 if len(labels) < 2 else -(-len(labels) // _legend_columns(labels))
    lines = sum(-(-len(part) // footnote_letters(TWO_COLUMNS)) for part in words)
    with house_style():
        inches = HEIGHT * max(1, sum(heights)) + 0.12 * lines + LEGEND_LINE * (entries + 1) + 0.2
        figure = Figure(figsize=(TWO_COLUMNS, inches))
        grid = figure.subplots(max(1, sum(heights)), columns, squeeze=False)
        chosen = looks(labels)
        flat = iter(grid)
        for (law, kept), height in zip(drawn, heights, strict=True):
            axes = [one for _ in range(height) for one in next(flat)]
            _law(axes, law, kept, chosen)
        if not drawn:
            grid[0, 0].set_axis_off()
        figure.suptitle(name, x=0.01, ha="left", fontsize=8, fontweight="bold")
        footnote(figure, words)
        if entries:
            handles = [handle(wrapped(label), chosen[label], False) for label in labels]
            figure.legend(handles=handles, loc="outside upper center", ncols=_legend_columns(labels))
        # Computed here, while the style holds: the layout engine is created from it.
        figure.draw_without_rendering()
    return figure


def _columns(panels: int) -> int:
    return 2 if panels == 4 else ONE_ROW


def _legend_columns(labels: Sequence[str]) -> int:
    return max(1, min(5, 100 // (max(map(len, labels)) + 8)))


def _kept(table: pd.DataFrame, law: str, fits: Fits, first: bool) -> tuple[list[Residuals], str]:
    """The residuals that are drawn of a law, and what is to be said of it."""
    kept, bound, refused, exact, open_ones = [], [], [], [], []
    for label, fit in fits.items():
        at_bound = [] if isinstance(fit, Refusal) else list(fit.certificate.at_bound)
        if isinstance(fit, Refusal):
            refused.append(f"{label} ({fit.reason})")
        elif not first and at_bound:
            bound.append(f"{label} ({', '.join(at_bound)} = 0)")
        elif fit.dof <= 0:
            exact.append(label)
        else:
            kept.append(residuals_of(table, label, fit))
            open_ones += [] if fit.identified else [label]
    parts = []
    if kept:
        robust = any(isinstance(fit, Fit) and fit.huber_delta is not None for fit in fits.values())
        sds = [f"{_named(one)}{_percent(one.sd)}" for one in kept if one.sd is not None]
        worst = max(kept, key=lambda one: float(np.abs(one.percent).max()))
        at = int(np.abs(worst.percent).argmax())
        parts = [f"residual sd {'(Huber) ' if robust else ''}{listed(sds, 6)}"] if sds else []
        parts.append(f"largest {worst.percent[at]:+.2g} % ({_where(worst.rows[at])})")
    for what, labels in (
        ("not identified", open_ones),
        ("at a bound, so as above", bound),
        ("as many parameters as runs, so none is left", exact),
        ("no fit", refused),
    ):
        parts += [f"{what}: {listed(labels)}"] if labels else []
    return kept, f"{law_named(law).formula}: {'; '.join(parts)}."


def _percent(value: float) -> str:
    return f"{value:#.2g}".rstrip(".") + " %"


def _named(one: Residuals) -> str:
    return "" if one.label == "all" else f"{one.label} "


def _where(row: Mapping[str, Any]) -> str:
    """A run by its name, or by its size and tokens where its table has no names."""
    if run_id(row) or row.get("size"):
        return run_words(row)
    return f"{short(float(row['params']))} parameters, {short(float(row['tokens']))} tokens"


def _law(axes: Sequence[Axes], law: str, kept: Sequence[Residuals], chosen: Mapping[str, Look]) -> None:
    names = list(law_columns(law_named(law)))[:-1]
    reach = 0.0
    for one in kept:
        errors = [100 * (evaluation_error(row) or 0) / float(row["val_loss"]) for row in one.rows]
        reach = max(reach, float(np.max(np.abs(one.percent) + errors)))
    for panel, name in zip(axes, [*names, ""], strict=False):
        places = [_variable(one, name) for one in kept]
        low, high = min(float(x.min()) for x in places), max(float(x.max()) for x in places)
        width = max(math.log(high / low), 0.02)
        for one, x in zip(kept, places, strict=True):
            _points(panel, one, x, width, chosen[one.label])
        _axis(panel, low * math.exp(-0.07 * width), high * math.exp(0.07 * width), name)
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=2)
        panel.set_ylim(-1.1 * reach - 1e-9, 1.1 * reach + 1e-9)
    _quantiles(axes[len(names) + 1], kept, chosen)
    axes[0].set_ylabel("Residual of log loss (%)")
    axes[0].set_title(law_named(law).formula, fontweight="bold")
    for panel in axes[len(names) + 2 :]:
        panel.set_axis_off()


def _variable(one: Residuals, name: str) -> Array:
    return np.array([float(row[name]) for row in one.rows]) if name else one.fitted


def _points(axes: Axes, one: Residuals, x: Array, width: float, look: Look) -> None:
    size = 3.6 if len(one.rows) <= SMALL else 2.2
    errors = [evaluation_error(row) for row in one.rows]
    bars = [
        math.nan if e is None else 100 * e / row["val_loss"] for e, row in zip(errors, one.rows, strict=True)
    ]
    drawn = axes.errorbar(
        x * np.exp(DODGE * width * _beside(one, x)), one.percent,
        yerr=None if all(map(math.isnan, bars)) else bars, color=look.colour, elinewidth=0.7, capsize=1.2,
        markeredgewidth=0.8, linestyle="none", zorder=4, **{**look.marker_style(), "markersize": size},
    )  # fmt: skip
    texts = [_text(one, i) for i in range(len(one.rows))]
    hover(points_of(drawn), texts, [run_id(row) for row in one.rows])


def _beside(one: Residuals, x: Array) -> Array:
    """Steps by which the seeds of a cell stand apart, 0 for single runs, shape (n,)."""
    cells: dict[tuple[float, ...], list[int]] = {}
    for i, row in enumerate(one.rows):
        cells.setdefault((float(x[i]), float(row["train_flops"]), float(row["params"])), []).append(i)
    steps = np.zeros(x.size)
    for members in cells.values():
        steps[members] = np.arange(len(members)) - (len(members) - 1) / 2
    return steps


def _text(one: Residuals, i: int) -> str:
    row = one.rows[i]
    return f"{_where(row)}: residual {one.percent[i]:+.2f} % of a fitted loss of {one.fitted[i]:.4g}"


def _axis(axes: Axes, low: float, high: float, name: str) -> None:
    if name:
        log_flops_axis(axes, low, high)
        axes.set_xlabel(NAMES.get(name, name))
        return
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(nice_ticks(low, high, 4)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("Fitted loss (nats per token)")


def _quantiles(axes: Axes, kept: Sequence[Residuals], chosen: Mapping[str, Look]) -> None:
    reach = 1.0
    for one in kept:
        known = np.flatnonzero(np.isfinite(one.standardised))
        if not known.size:
            continue
        order = known[np.argsort(one.standardised[known], kind="stable")]
        places = ndtri(
            (np.arange(1, order.size + 1) - QUANTILE_SHIFT) / (order.size + 1 - 2 * QUANTILE_SHIFT)
        )
        (line,) = axes.plot(
            places, one.standardised[order], color=chosen[one.label].colour, linestyle="none",
            **{**chosen[one.label].marker_style(), "markersize": 3.6 if order.size <= SMALL else 2.2},
            markeredgewidth=0.8, zorder=4,
        )  # fmt: skip
        hover(line, [_text(one, i) for i in order], [run_id(one.rows[i]) for i in order])
        reach = max(reach, float(np.abs(places).max()), float(np.abs(one.standardised[order]).max()))
    axes.plot([-1.1 * reach, 1.1 * reach], [-1.1 * reach, 1.1 * reach], color=GREY, linewidth=0.8, zorder=2)
    axes.set_xlim(-1.1 * reach, 1.1 * reach)
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_xlabel("Normal quantile")
    axes.set_ylabel("Standardised residual")
