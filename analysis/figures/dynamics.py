"""The dynamics figure: training loss by learning rate, unguided against self-guided, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from analysis.arms.dynamics import Dynamics, Trace
from analysis.digits import number
from analysis.figures.style import TWO_COLUMNS, house_style, hover

# Blue and vermilion stay apart with every colour blindness; further treatments follow.
ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
ARM_MARKERS = ("o", "s", "^", "D", "v")
MOST_COLUMNS, CURVE_HEIGHT, SUMMARY_HEIGHT = 3, 1.45, 2.1


def dynamics_figure(result: Dynamics, structure: str) -> Figure:
    """Draw one structure's training-loss curves, a panel a learning rate, then final loss and spikes over it.

    Thin lines are runs (means of bins of logged points), ticks at a panel's top the steps at which spikes
    begin, a cross the end of a run that diverged. Below, points are runs and lines means over seeds.
    """
    rates, arms = result.rates(structure), result.arms(structure)
    columns = min(MOST_COLUMNS, max(2, len(rates)))
    rows = -(-len(rates) // columns)
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, rows * CURVE_HEIGHT + SUMMARY_HEIGHT + 0.25))
        parts = figure.subfigures(
            2, 1, squeeze=False, height_ratios=[rows * CURVE_HEIGHT + 0.3, SUMMARY_HEIGHT]
        )
        upper, lower = parts[:, 0]
        panels = upper.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        _limits(panels.flat[0], result, structure)
        for axes, rate in zip(panels.flat, rates, strict=False):
            _curves(axes, result, structure, arms, rate)
        for axes in panels.flat[len(rates) :]:
            axes.set_axis_off()
        upper.supxlabel("Training step", fontsize=8)
        upper.supylabel("Training loss (nats)", fontsize=8)
        losses, spikes = lower.subplots(1, 2)
        _final_losses(losses, result, structure, arms, rates)
        _spike_counts(spikes, result, structure, arms, rates)
        handles = [
            Line2D([], [], color=colour, marker=marker, label=f"{structure}, {arm}")
            for arm, colour, marker in zip(arms, ARM_COLOURS, ARM_MARKERS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        figure.draw_without_rendering()
    return figure


def _curves(axes: Axes, result: Dynamics, structure: str, arms: Sequence[str], rate: float) -> None:
    for i, arm in enumerate(arms):
        colour = ARM_COLOURS[i % len(ARM_COLOURS)]
        for trace in result.at(structure, arm, rate):
            curve = result.curves.get(trace.run_id)
            if curve is None:
                continue
            axes.plot(curve[:, 0], curve[:, 1], color=colour, linewidth=0.7, alpha=0.8, zorder=3 + i)
            if trace.state == "diverged":
                (cross,) = axes.plot(*curve[-1, :2], "X", color=colour, markersize=5, zorder=8)
                step, loss = curve[-1, :2]
                # A cross beyond the panel is cut off: nothing of it can be pointed at.
                if loss <= axes.get_ylim()[1]:
                    end = f"diverged after step {step:,.0f}, training loss {number(loss)} nats"
                    hover(cross, [f"{_words(trace)}: {end}"], [trace.run_id])
            for k, onset in enumerate(trace.onsets, 1):
                (tick,) = axes.plot(
                    [onset], [1 - 0.045 * i], "v", color=colour, markersize=3.5, markeredgewidth=0,
                    transform=axes.get_xaxis_transform(), clip_on=False, zorder=9,
                )  # fmt: skip
                begins = f"spike {k} of {trace.spikes} begins at step {onset:,}"
                hover(tick, [f"{_words(trace)}: {begins}{_heights(trace)}"], [trace.run_id])
    axes.set_title(f"peak learning rate {rate:g}")


def _limits(axes: Axes, result: Dynamics, structure: str) -> None:
    curves = [result.curves[t.run_id] for t in result.traces if t.structure == structure]
    lows = [float(curve[:, 1].min()) for curve in curves]
    low, first = min(lows), max(float(curve[0, 1]) for curve in curves)
    # A run that diverges leaves a last point far above all others; it is cut off.
    high = min(max(float(curve[:, 1].max()) for curve in curves), first + 0.5 * (first - low))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
    axes.set_xlim(0, max(float(curve[-1, 0]) for curve in curves) * 1.02)


def _dodge(i: int, count: int) -> float:
    """Factors by which arms at one learning rate stand beside each other on a logarithmic axis."""
    return float(1.06 ** (i - (count - 1) / 2))


def _final_losses(
    axes: Axes, result: Dynamics, structure: str, arms: Sequence[str], rates: Sequence[float]
) -> None:
    lost: list[tuple[float, str, int]] = []
    for i, arm in enumerate(arms):
        colour, shift = ARM_COLOURS[i % len(ARM_COLOURS)], _dodge(i, len(arms))
        means = []
        for rate in rates:
            traces = result.at(structure, arm, rate)
            ended = [t for t in traces if math.isfinite(t.val_loss)]
            losses = [t.val_loss for t in ended]
            (points,) = axes.plot(
                [rate * shift] * len(losses), losses, ARM_MARKERS[i], color=colour, markersize=3, alpha=0.6
            )
            if losses:
                texts = [f"{_words(t)}: held-out loss {number(t.val_loss)} nats" for t in ended]
                hover(points, texts, [t.run_id for t in ended])
                means.append((rate * shift, float(np.mean(losses))))
            if count := sum(t.state == "diverged" for t in traces):
                lost.append((rate * shift, colour, count))
        axes.plot(*np.array(means).reshape(-1, 2).T, color=colour)
    for x, colour, count in lost:
        axes.annotate(
            f"{count} div.", (x, 1), xycoords=("data", "axes fraction"), color=colour, fontsize=6,
            ha="center", va="bottom", rotation=60,
        )  # fmt: skip
    _rate_axis(axes, rates)
    axes.set_ylabel("Held-out loss (nats)")


def _spike_counts(
    axes: Axes, result: Dynamics, structure: str, arms: Sequence[str], rates: Sequence[float]
) -> None:
    for i, arm in enumerate(arms):
        colour, shift = ARM_COLOURS[i % len(ARM_COLOURS)], _dodge(i, len(arms))
        means = []
        for rate in rates:
            traces: list[Trace] = result.at(structure, arm, rate)
            counts = [t.spikes for t in traces]
            # Equal counts of several seeds stand beside each other, since they would hide each other.
            offsets = [
                1.015 ** (counts[:k].count(c) - (counts.count(c) - 1) / 2) for k, c in enumerate(counts)
            ]
            x = [rate * shift * offset for offset in offsets]
            (points,) = axes.plot(x, counts, ARM_MARKERS[i], color=colour, markersize=3, alpha=0.6)
            if counts:
                hover(points, [_count_words(t) for t in traces], [t.run_id for t in traces])
                means.append((rate * shift, float(np.mean(counts))))
        axes.plot(*np.array(means).reshape(-1, 2).T, color=colour)
    _rate_axis(axes, rates)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylim(bottom=-0.25)
    axes.set_ylabel("Spikes of a run")


def _words(trace: Trace) -> str:
    """A run as hover texts name it; a structure that names its size already is not given another."""
    size = "" if not trace.size or ", size=" in trace.structure else f", {trace.size}"
    arm = f"{trace.structure}: {trace.treatment}{size}, seed {trace.seed}"
    return f"{arm}, peak learning rate {trace.peak_lr:g}"


def _count_words(trace: Trace) -> str:
    if math.isnan(trace.threshold):
        count = "too few points to look for spikes"
    else:
        count = f"{trace.spikes} spike{'' if trace.spikes == 1 else 's'}{_heights(trace)}"
    return f"{_words(trace)}: {count}{', diverged' if trace.state == 'diverged' else ''}"


def _heights(trace: Trace) -> str:
    if not trace.spikes:
        return ""
    lasting = f", {trace.unrecovered} not recovered" if trace.unrecovered else ""
    return f", highest {trace.largest:.2f} nats{lasting}"


def _rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(list(rates)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(rates), [f"{rate:g}" for rate in rates])
    axes.set_xlabel("Peak learning rate")
