"""The IsoFLOP figure: loss over parameters at equal FLOPs with parabolas, and the line of their optima."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit

from analysis.arrays import Array, Places
from analysis.digits import with_error
from analysis.figures.isoloss import (
    count,
    flops_words,
    log_counts_axis,
    run_text,
    shades,
    with_interval,
    wrapped,
)
from analysis.figures.style import GREY, TWO_COLUMNS, house_style, hover, log_flops_axis, log_loss_axis, title
from analysis.isoflop.budgets import group_budgets
from analysis.isoflop.frontier import LEAST_SE, Exponent, weighted_line
from analysis.isoflop.optima import RISE, Budget, IsoFlop
from analysis.isoflop.parabola import bottom

MOST_ROWS = 4
CURVE_POINTS = 80
ABOVE = 1.22
"""Losses above so many times the highest optimum are out of the panel, and the note counts them."""
BESIDE = 1.35
PUBLISHED = "#D55E00"
MOST_LABELS = 14
LISTED = 3
"""So many unused curves are listed by budget and reason; of more, the reasons are counted."""


@dataclass(frozen=True)
class PublishedOptima:
    """Optima as a study gives them.

    label: in legends.
    flops, params, tokens: one a budget, shape (k,).
    log_se: standard deviations of the logarithm of params, shape (k,), or None.
    exponent: of N*, in words, as printed; empty where none is.
    """

    label: str
    flops: Array
    params: Array
    tokens: Array
    log_se: Array | None = None
    exponent: str = ""


@dataclass(frozen=True)
class Profile:
    """Runs of one structure at several budgets of FLOPs, and the optima found in them.

    label: structure, or configuration of a study.
    table: one row a run: params, tokens, train_flops, val_loss.
    found: approach 2 on these rows, with the default tolerance and rise.
    published: the study's own optima.
    """

    label: str
    table: pd.DataFrame
    found: IsoFlop
    published: PublishedOptima | None = None


def isoflop_figure(profiles: Sequence[Profile], name: str, note: str = "") -> Figure:
    """Draw IsoFLOP curves (left) and the optimal sizes over FLOPs (right), a row a structure.

    Left: a colour a budget; parabolas are solid over the points that they are fitted to, which are filled,
    others of the budget are pale; a diamond is the vertex with Fieller's 95 % interval. Budgets whose curve
    has no usable vertex are grey and open, and the note says why. Right: those vertices, the line through
    them with its 95 % band, and the published optima where a study gives them.

    Args:
        profiles: one a row; of more than four the first four are drawn, and the note says so.
        name: of the table.
        note: source, or how complete the table is.
    """
    assert profiles, "a product of no runs is none"
    shown = profiles[:MOST_ROWS]
    if len(shown) < len(profiles):
        note = f"{note} {len(profiles) - len(shown)} further structures are not drawn.".strip()
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 3.5 * len(shown)))
        grid = figure.subplots(len(shown), 2, squeeze=False, gridspec_kw={"width_ratios": [1.3, 1]})
        for i, profile in enumerate(shown):
            left, right = grid[i]
            outside = _curves(left, profile)
            heading = f"{name}: {profile.label}" if profile.label != name else name
            words = [note if i == 0 else "", *_unused(profile.found), outside]
            title(left, heading, " ".join(word for word in words if word), TWO_COLUMNS * 0.53)
            _optima(right, profile)
            title(right, "Compute-optimal size", _agreement(profile), TWO_COLUMNS * 0.4)
        figure.draw_without_rendering()
    return figure


def _unused(found: IsoFlop) -> list[str]:
    """What the budgets without a vertex are, in words."""
    refused = [budget for budget in found.budgets if budget.params.code]
    if not refused:
        return []
    if len(refused) <= LISTED:
        return [f"Not used, {flops_words(b.flops)} FLOPs: {b.params.reason.split(';')[0]}." for b in refused]
    kinds = Counter(budget.params.verdict for budget in refused)
    told = ", ".join(f"{number} {verdict}" for verdict, number in kinds.most_common())
    return [f"{len(refused)} of {len(found.budgets)} budgets not used (grey): {told}."]


def _curves(axes: Axes, profile: Profile) -> str:
    """The left panel; returns what lies outside of it, in words."""
    table, found = profile.table, profile.found
    loss = table["val_loss"].to_numpy(np.float64)
    members = group_budgets(table["train_flops"].to_numpy(np.float64))
    assert len(members) == len(found.budgets), "the optima are of these rows"
    colours = shades([budget.flops for budget in found.budgets])
    heights = [budget.params.loss for budget in found.budgets if budget.params.loss is not None]
    top = ABOVE * max(heights) if heights else float(loss.max())
    pale, labelled = False, _labelled(found)
    for budget, places in zip(found.budgets, members, strict=True):
        named = budget.flops in labelled
        pale |= _curve(axes, profile, budget, places, colours[budget.flops], named)
    sizes = table["params"].to_numpy(np.float64)
    reach = math.log(sizes.max() / sizes.min()) if sizes.size > 1 else 1.0
    log_counts_axis(axes, "x", sizes.min() * math.exp(-0.04 * reach), sizes.max() * math.exp(0.19 * reach))
    low, high = float(min(loss.min(), *heights, top)), float(min(loss.max(), top))
    spare = max(high / low, 1.01) ** 0.06
    log_loss_axis(axes, low / spare, high * spare)
    axes.set_xlabel("Parameters N")
    axes.set_ylabel("Held-out loss (nats per token)")
    above = int(np.sum(loss > high * spare))
    words = [f"Pale: over {100 * RISE:g} % above the lowest loss of the budget, not fitted."] if pale else []
    if above:
        words.append(f"{above} runs with losses up to {loss.max():.3g} lie above the panel.")
    return " ".join(words)


def _curve(axes: Axes, profile: Profile, budget: Budget, places: Places, colour: Any, named: bool) -> bool:
    """Points and parabola of one budget; returns whether some of its points are not fitted."""
    rows = profile.table.iloc[places].sort_values("params", kind="stable")
    n, y = (rows[key].to_numpy(np.float64) for key in ("params", "val_loss"))
    curve = budget.params
    used = np.asarray(bottom(np.log(y), np.log(n), RISE), bool) & (curve.optimum is not None)
    if curve.optimum is None:
        axes.plot(n, y, color=GREY, linewidth=0.6, alpha=0.6, zorder=2)
    for chosen, style in (
        (used, {"color": colour, "markersize": 3.4}),
        (
            ~used,
            {"color": GREY, "markerfacecolor": "white", "markersize": 3.0, "markeredgewidth": 0.7}
            if curve.optimum is None
            else {"color": colour, "markersize": 2.4, "alpha": 0.4},
        ),
    ):
        if not chosen.any():
            continue
        (line,) = axes.plot(n[chosen], y[chosen], "o", linestyle="none", zorder=3, **style)
        mine = rows[chosen]
        texts = [run_text(row, profile.label) for row in mine.to_dict("records")]
        ids = [str(run or "") for run in mine["run_id"]] if "run_id" in mine else []
        hover(line, texts, ids)
    end = n[-1], float(y[-1])
    if curve.optimum is not None and curve.loss is not None and curve.curvature is not None:
        ends = max(n[used].min(), n[0]), min(n[used].max(), n[-1])
        x = np.geomspace(min(ends[0], curve.optimum), max(ends[1], curve.optimum), CURVE_POINTS)
        height = curve.loss * np.exp(curve.curvature * np.log(x / curve.optimum) ** 2)
        axes.plot(x, height, color=colour, linewidth=1.1, zorder=4)
        _vertex(axes, budget, colour)
        end = float(x[-1]), float(height[-1])
    if named:
        axes.annotate(
            flops_words(budget.flops), end, xytext=(4, 0), textcoords="offset points", fontsize=6.5,
            va="center", color=GREY if curve.optimum is None else colour, zorder=6, annotation_clip=True,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip
    return curve.optimum is not None and not used.all()


def _labelled(found: IsoFlop) -> set[float]:
    """The budgets whose FLOPs stand at their curves: all, or of many an even share of the usable."""
    if len(found.budgets) <= MOST_LABELS:
        return {budget.flops for budget in found.budgets}
    usable = [budget.flops for budget in found.budgets if budget.params.optimum is not None]
    return set(usable[:: -(-len(usable) // MOST_LABELS) or 1])


def _vertex(axes: Axes, budget: Budget, colour: Any) -> None:
    curve = budget.params
    assert None not in (curve.optimum, curve.low, curve.high, curve.loss)
    places = np.array([curve.low, curve.optimum, curve.high], np.float64)
    height = np.full(3, curve.loss, np.float64)
    axes.plot(places[[0, 2]], height[[0, 2]], color="black", linewidth=0.9, zorder=5)
    line, = axes.plot(
        places[1:2], height[1:2], "D", color=colour, markersize=4, markeredgecolor="black",
        markeredgewidth=0.7, zorder=6,
    )  # fmt: skip
    hover(line, [vertex_text(budget)])


def vertex_text(budget: Budget) -> str:
    """What a report says of an optimum."""
    curve = budget.params
    assert curve.optimum is not None and curve.low is not None and curve.high is not None
    return (
        f"budget {flops_words(budget.flops)} FLOPs: N* {count(curve.optimum)} "
        f"[{count(curve.low)}, {count(curve.high)}], loss {with_error(curve.loss or math.nan, curve.loss_se)}"
    )


def _optima(axes: Axes, profile: Profile) -> None:
    """The right panel: N* over FLOPs."""
    found, published = profile.found, profile.published
    usable = [budget for budget in found.budgets if budget.params.optimum is not None]
    colours = shades([budget.flops for budget in found.budgets])
    centres = [budget.flops for budget in found.budgets]
    if published is not None:
        _published(axes, published)
    for budget in usable:
        curve = budget.params
        assert curve.optimum is not None and curve.low is not None and curve.high is not None
        error = [[curve.optimum - curve.low], [curve.high - curve.optimum]]
        drawn = axes.errorbar(
            [budget.flops], [curve.optimum], yerr=error, fmt="D", color=colours[budget.flops], markersize=4,
            markeredgecolor="black", markeredgewidth=0.6, ecolor="black", elinewidth=0.9, zorder=5,
        )  # fmt: skip
        hover(drawn.lines[0], [vertex_text(budget)])
    if isinstance(found.a, Exponent):
        grid = np.geomspace(min(centres), max(centres), CURVE_POINTS)
        place, low, high = line_band(found, grid)
        label = f"parabolas:\n$a$ = {with_interval(found.a.value, found.a.low, found.a.high)}"
        axes.plot(grid, place, color="black", linewidth=1.1, zorder=4, label=label)
        axes.fill_between(grid, low, high, color="black", alpha=0.15, linewidth=0, zorder=2)
    else:
        axes.annotate(
            wrapped(f"No line: {found.a.reason}", 42), (0.03, 0.97), xycoords="axes fraction", va="top",
            fontsize=6.5, color=GREY,
        )  # fmt: skip
    log_flops_axis(axes, min(centres) / BESIDE, max(centres) * BESIDE)
    sizes = profile.table["params"].to_numpy(np.float64)
    places = [*sizes] if not usable else [b.params.optimum for b in usable if b.params.optimum is not None]
    ends = [
        min(max(end, min(places) / 4), max(places) * 4)
        for b in usable
        for end in (b.params.low, b.params.high)
        if end is not None
    ]
    more = [] if published is None else [*published.params]
    log_counts_axis(axes, "y", min(*places, *ends, *more) / 3.5, max(*places, *ends, *more) * 1.3)
    axes.set_xlabel("Training FLOPs")
    axes.set_ylabel("Compute-optimal parameters N*")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right", title=r"$N^* \propto C^{\,a}$, 95 %", title_fontsize=7, alignment="left"
        )


def _published(axes: Axes, optima: PublishedOptima) -> None:
    label = "published"
    error = None
    if optima.log_se is not None:
        error = [optima.params * -np.expm1(-optima.log_se), optima.params * np.expm1(optima.log_se)]
        label += ", ± 1 sd"
    label += f":\n{optima.exponent}" if optima.exponent else ""
    drawn = axes.errorbar(
        optima.flops, optima.params, yerr=error, fmt="s", color=PUBLISHED, markersize=5.5, elinewidth=2.2,
        markerfacecolor="white", markeredgewidth=0.9, alpha=0.75, capsize=0, zorder=3,
        label=label,
    )  # fmt: skip
    hover(drawn.lines[0], published_texts(optima))


def published_texts(optima: PublishedOptima) -> list[str]:
    """What a report says of a study's own optima."""
    return [
        f"{optima.label}, published: N* {count(n)}, D* {count(d)} at {flops_words(c)} FLOPs"
        for c, n, d in zip(optima.flops, optima.params, optima.tokens, strict=True)
    ]


def _agreement(profile: Profile) -> str:
    found = profile.found
    if not isinstance(found.a, Exponent):
        return ""
    far = f"{100 * found.a.tau:.2g} % beyond" if found.a.tau else "within"
    return f"{found.a.budgets} of {len(found.budgets)} budgets; optima scatter {far} their own errors."


def line_band(found: IsoFlop, flops: Array, which: str = "params") -> tuple[Array, Array, Array]:
    """The line through the optima with its band (95 %, or the level of the exponent) at given FLOPs.

    Args:
        found: with an exponent of N* (`params`) or of D* (`tokens`, through kappa).
        flops: shape (m,).
        which: of the two.

    Returns:
        N* or D*, and its lower and upper end, each of shape (m,).

    Source: as `analysis.isoflop.frontier.frontier`; the error of a regression line at a point.
    """
    exponent = found.a if which == "params" else found.b
    assert isinstance(exponent, Exponent), "there is a line to draw"
    rows = [
        (b.flops, b.params.optimum, b.params.log_se)
        if which == "params"
        else (b.flops, b.optimal_tokens, b.optimal_tokens_log_se)
        for b in found.budgets
        if b.params.optimum is not None
    ]
    c, optimum, se = np.array(rows, np.float64).T
    x = np.log(c / exponent.reference)
    weights = 1 / (np.maximum(se, LEAST_SE) ** 2 + exponent.tau**2)
    _, _, mean, square = weighted_line(x, np.log(optimum), weights)
    scale = exponent.se * math.sqrt(square)
    at = np.log(flops / exponent.reference)
    place = math.log(exponent.at_reference) + exponent.value * at
    half = stdtrit(exponent.dof, 0.5 + exponent.level / 2) * scale
    half = half * np.sqrt(1 / weights.sum() + (at - mean) ** 2 / square)
    return np.exp(place), np.exp(place - half), np.exp(place + half)
