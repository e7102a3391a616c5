"""The figure of a known irreducible loss: L - E with one power a structure, and every fitted E beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.analyse import points
from analysis.arrays import Array
from analysis.digits import estimate, number, probability, with_error
from analysis.engine.sums import bind
from analysis.figures.curves import (
    CURVE_POINTS,
    LEGEND_LINE,
    absence,
    draw_runs,
    handle,
    legend_beneath,
    legend_lines,
    window,
    wrapped,
)
from analysis.figures.style import GREY, TWO_COLUMNS, Look, house_style, hover, looks, nice_ticks, title
from analysis.known.judged import Known
from analysis.known.refits import KINDS, Refit, hold
from analysis.laws import IRREDUCIBLE

PANEL, ROW, FRAME = 2.5, 0.125, 0.75
"""Inches: least height of a panel, of a refit's row, and of title and axis."""
SHARES = (1.15, 1.0)
REACH = 2.5
"""An interval is cut where it is further from all fitted values than so many middle half-widths."""
BLACK = "#000000"
SOURCES = {"val_entropy": "entropy of the held-out text", "entropy_rate": "entropy rate of the source"}


def known_figure(found: Known) -> Figure:
    """Draw L - E over training FLOPs, log-log, with the law of each structure, E held at its known value.

    Beside it the E of every refit with its 95 % interval, the known value as a line: filled where the
    interval holds it. Intervals that leave the panel end in an arrow; a refit without one says so.
    """
    chosen = looks(found.structures)
    rows = _rows(found)
    inches = TWO_COLUMNS / 2
    with house_style():
        legend = LEGEND_LINE * (legend_lines(found.structures) + 3)
        height = max(PANEL + legend, ROW * len(rows) + 0.3) + FRAME
        figure = Figure(figsize=(TWO_COLUMNS, height))
        left, right = figure.subplots(1, 2, width_ratios=SHARES)
        _reducible(left, found, chosen)
        source = SOURCES.get(found.source, "as given")
        note = "; ".join(part for part in (f"E = {found.known:.4f}, {source}", absence(found.runs)) if part)
        title(left, f"{found.name}: E known", note, inches)
        _forest(right, rows, found.known, chosen)
        title(right, "Fitted E", _counted(found), inches * 0.8)
        figure.draw_without_rendering()
    return figure


def _counted(found: Known) -> str:
    parts = [
        f"{KINDS[one.kind]} {one.held} of {one.of}" + (f" ({one.without} without)" if one.without else "")
        for one in found.shares()
    ]
    return f"95 % intervals that hold the known E (filled): {', '.join(parts)}"


def _reducible(axes: Axes, found: Known, chosen: Mapping[str, Look]) -> None:
    table, handles = found.runs.table, []
    lines: list[tuple[Array, Array]] = []
    for name in found.structures:
        look, (flops, loss) = chosen[name], points(table, name)
        draw_runs(axes, table[table["structure"] == name], look, found.known, "L - E")
        curve = _law(flops, loss, found.known)
        if curve is not None:
            axes.plot(*curve, color=look.colour, linestyle=look.line, linewidth=0.8, zorder=3)
            lines.append(curve)
        handles.append(handle(_entry(found, name), look, curve is not None))
    flops, loss = table["train_flops"].to_numpy(np.float64), table["val_loss"].to_numpy(np.float64)
    limits = window(
        np.concatenate([flops, *(x for x, _ in lines)]),
        np.concatenate([loss - found.known, *(y for _, y in lines)]),
    )
    limits.apply(axes, limits.width, limits.height)
    axes.set_xlabel("Training FLOPs")
    axes.set_ylabel("$L - E$ (nats per token)")
    legend_beneath(axes, handles)


def _law(flops: Array, loss: Array, known: float) -> tuple[Array, Array] | None:
    """FLOPs and fitted L - E, both of shape (m,), of a structure's runs with E held; None without a law."""
    bound = bind(IRREDUCIBLE, {"train_flops": flops}, loss)
    held = hold(bound, flops, loss, np.full(loss.size, "", dtype=object), known)
    if held is None:
        return None
    grid = np.geomspace(flops.min(), flops.max(), CURVE_POINTS)
    return grid, np.exp(bound.at({"train_flops": grid}).log_value(held.phi)) - known


def _entry(found: Known, name: str) -> str:
    """A structure's line in the legend: its exponent, and p of one power where that is doubtful."""
    one = next(fit for fit in found.of("all") if fit.structure == name)
    exponent = one.exponents[0]
    if exponent.given is None:
        return f"{wrapped(name)}  (no exponent)"
    half = None
    if exponent.given_interval is not None:
        half = (exponent.given_interval[1] - exponent.given_interval[0]) / 4
    text = rf"{wrapped(name)}  $\alpha$ = {with_error(exponent.given, half)}"
    return text if one.lack is None else f"{text}, one power: p {probability(one.lack.p_value)}"


def _rows(found: Known) -> list[tuple[str, Refit]]:
    """The refits from top to bottom with their names: each structure's seeds, all its seeds, then all."""
    out = []
    for name in found.structures:
        mine = [one for one in found.refits if one.structure == name]
        out += [(f"{name}, seed {one.seed}" if one.seed is not None else name, one) for one in mine]
    return out + [("one E for all", one) for one in found.of("shared")]


def _forest(axes: Axes, rows: Sequence[tuple[str, Refit]], known: float, chosen: Mapping[str, Look]) -> None:
    low, high = _limits([one for _, one in rows], known)
    axes.axvline(known, color=GREY, linewidth=0.9, zorder=1)
    for i, (name, one) in enumerate(rows):
        look = chosen.get(one.structure, Look(BLACK, "*", True))
        pooled = one.kind != "seed"
        if one.value is not None and low < one.value < high:
            (point,) = axes.plot(
                [one.value], [i], look.marker if one.interval is not None else "x", color=look.colour,
                markerfacecolor=look.colour if one.holds else "white", linestyle="none", zorder=5,
                markersize=4.2 if pooled else 3.0, markeredgewidth=0.8,
            )  # fmt: skip
            hover(point, [_words(name, one)])
        if one.interval is None:
            _say_none(axes, i, one, low, high)
            continue
        ends = [min(max(end, low), high) for end in one.interval]
        axes.plot(ends, [i, i], color=look.colour, linewidth=1.4 if pooled else 0.7, zorder=3)
        for end, at, arrow in zip(one.interval, ends, "<>", strict=True):
            if end != at:
                axes.plot([at], [i], arrow, color=look.colour, markersize=3, clip_on=False, zorder=3)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks(nice_ticks(low, high, 4))
    axes.set_yticks(range(len(rows)), [_short(name, one) for name, one in rows], fontsize=6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("E (nats per token), 95 % interval")


def _say_none(axes: Axes, row: int, one: Refit, low: float, high: float) -> None:
    """That a refit has no interval, beside its value."""
    value = min(max(one.value or 0.0, low), high)
    right = value < (low + high) / 2
    words = "refused" if one.value is None else "no interval" if one.value > 0 else "E at 0: no interval"
    axes.annotate(
        words, (value, row), xytext=(5 if right else -5, 0), textcoords="offset points", va="center",
        ha="left" if right else "right", fontsize=5.5, color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
    )  # fmt: skip


def _short(name: str, one: Refit) -> str:
    return f"seed {one.seed}" if one.seed is not None else name


def _limits(refits: Sequence[Refit], known: float) -> tuple[float, float]:
    """From left to right of the panel: all fitted values in view, but no interval that dwarfs the others."""
    values = [known, *(one.value for one in refits if one.value)]
    ends = [end for one in refits if one.interval for end in one.interval if math.isfinite(end)]
    widths = [(b - a) / 2 for a, b in zip(ends[::2], ends[1::2], strict=False)]
    reach = REACH * max(float(np.median(widths)) if widths else 0.0, 0.01 * known)
    low = max(min([*values, *ends]), min(values) - reach)
    high = min(max([*values, *ends]), max(values) + reach)
    margin = 0.05 * max(high - low, 0.01 * known)
    return low - margin, high + margin


def _words(name: str, one: Refit) -> str:
    if one.interval is None or one.value is None:
        return f"{name}: E = {number(one.value or 0.0)}, no interval ({one.reason})"
    value, ends = estimate(one.value, *one.interval)
    return f"{name}: E = {value} {ends}, known {one.known:.4f}, {one.n} runs"
