"""The spending figure: what the FLOPs that a structure saves buy, self-guided training or more tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.arms.gaps import gaps
from analysis.digits import quantity
from analysis.figures.gaps import FILLS
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
from analysis.runs.labels import structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import FIXED_FLOPS, MORE_TOKENS, PLAIN, places, structure_label

SHOWN = (PLAIN, FIXED_FLOPS, MORE_TOKENS)
WORDS = {PLAIN: "unguided, same tokens", FIXED_FLOPS: "self-guided", MORE_TOKENS: "more tokens"}
LARGEST, SMALLEST = 15.0, 3.0
"""Diameters in points of the round bubble of a panel's largest network, and below which none is drawn."""
COLUMNS, PANEL = 2, 2.55
FACE = 0.4
"""Opacity of a bubble, so that its error bar and its neighbours are seen through it."""
DODGE = {PLAIN: -0.024, FIXED_FLOPS: 0.024, MORE_TOKENS: 0.0}
"""By how much of the panel's width in log tokens arms on the dense run's tokens stand beside it."""


@dataclass(frozen=True)
class Bubble:
    """One arm at one size: what it was trained on and what it came to.

    structure: label; the transformer that others are held against is `dense`. tokens: distinct training
    tokens. seen: with those that are repeated, NaN where not known. losses: nats per token, one a seed.
    diverged: further runs that have no loss.
    """

    size: str
    structure: str
    treatment: str
    tokens: float
    seen: float
    losses: tuple[float, ...]
    params: float
    flops: float
    diverged: int = 0

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss: the geometric mean over seeds."""
        return math.exp(float(np.mean(self.losses)))

    @property
    def ends(self) -> tuple[float, float] | None:
        """Exp of the mean loss less and plus its standard error over seeds; None for one run."""
        if len(self.losses) < 2:
            return None
        mean, se = np.mean(self.losses), np.std(self.losses, ddof=1) / math.sqrt(len(self.losses))
        return float(np.exp(mean - se)), float(np.exp(mean + se))

    @property
    def words(self) -> str:
        """Structure and treatment."""
        what = {PLAIN: "unguided", FIXED_FLOPS: FIXED_FLOPS, MORE_TOKENS: MORE_TOKENS}[self.treatment]
        return self.structure if self.structure == "dense" else f"{self.structure}, {what}"


def both_ways(runs: Runs) -> bool:
    """Whether a table has an arm guided at the dense FLOPs, and one of more tokens."""
    records = [{str(key): value for key, value in row.items()} for row in runs.table.to_dict("records")]
    treatments = {place.treatment for place in places(records) if place is not None}
    return {FIXED_FLOPS, MORE_TOKENS} <= treatments


def bubbles(runs: Runs, name: str) -> list[Bubble]:
    """The arms of a table that the figure shows, dense ones first within each size.

    Raises:
        AnalysisError: as `analysis.arms.gaps.gaps`.
    """
    table = runs.table.assign(label=[structure_label(str(label)) for label in runs.table["structure"]])
    found = []
    for row in gaps(runs, name).rows:
        place = row.place
        if place.treatment not in SHOWN:
            continue
        mine = table[(table["label"] == place.structure) & (table["size"] == place.size)]
        distinct = row.tokens
        if place.treatment == FIXED_FLOPS and place.budget > 0:
            distinct = float(place.budget)
        structure = "dense" if place.is_reference else place.structure
        params = float(mine["params"].mean())
        what = (place.size, structure, place.treatment)
        found.append(Bubble(*what, distinct, row.tokens, row.losses, params, row.flops, row.diverged))
    return found


def spending_figure(
    ours: Sequence[Bubble], name: str, note: str = "", published: Sequence[Bubble] = (), source: str = ""
) -> Figure:
    """Draw perplexity over distinct training tokens, a panel a structure, bubbles of the size of networks.

    Colour and shape say the structure, the filling the treatment (as in the figure of gaps), the area the
    parameters. Bars are exp(mean loss ± standard error over seeds). Arms on the dense run's tokens stand
    beside it, unguided ones left, guided ones right.

    Args:
        ours: arms of one table.
        name: of the table.
        note: what is to be said of it, such as runs that are missing.
        published: arms of the papers; they get a panel with scales of its own.
        source: where these are from.
    """
    groups = [
        (structure, name, _note(ours, structure, note), _with_dense(ours, structure), ours)
        for structure in _treated(ours)
    ]
    for structure in _treated(published):
        groups.append((structure, "published", source, _with_dense(published, structure), published))
    chosen = looks(["dense", *(structure for structure, *_ in groups)])
    with house_style():
        columns = min(COLUMNS, len(groups))
        rows = -(-len(groups) // columns)
        width = TWO_COLUMNS if columns > 1 else TWO_COLUMNS / 2
        figure = Figure(figsize=(width, PANEL * rows + 0.45))
        grid = figure.subplots(rows, columns, squeeze=False)
        for i, (structure, whose, words, mine, scale) in enumerate(groups):
            axes = grid.flat[i]
            _panel(axes, mine, [b for b in scale if b.structure in ("dense", *_treated(scale))], chosen)
            title(axes, f"{structure}, {whose}", words, width / columns)
            axes.set_xlabel("Distinct training tokens")
            axes.set_ylabel("Held-out perplexity")
        for axes in grid.flat[len(groups) :]:
            axes.set_axis_off()
        handles = _handles([structure for structure, *_ in groups], chosen)
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns > 1 else 2)
        figure.draw_without_rendering()
    return figure


def _treated(arms: Sequence[Bubble]) -> list[str]:
    """The structures that have an arm at the dense FLOPs; an untreated one has nothing to compare."""
    found = {b.structure for b in arms if b.treatment != PLAIN}
    return sorted(found, key=structure_order)


def _with_dense(arms: Sequence[Bubble], structure: str) -> list[Bubble]:
    return [b for b in arms if b.structure in ("dense", structure)]


def _note(arms: Sequence[Bubble], structure: str, note: str) -> str:
    """The table's note, with repeated tokens and runs that diverged in the panel's arms."""
    parts = [note] if note else []
    mine = _with_dense(arms, structure)
    shares = [b.seen / b.tokens for b in mine if b.treatment == FIXED_FLOPS and b.seen > b.tokens]
    if shares:
        low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
        times = low if low == high else f"{low} to {high}"
        parts.append(f"guided runs see their tokens {times} times")
    if any(b.ends for b in mine):
        parts.append("bars: standard error over seeds; arms of equal tokens stand side by side")
    for b in mine:
        if b.diverged:
            parts.append(f"{b.words}, {b.size}: {b.diverged} of {b.diverged + len(b.losses)} diverged")
    return "; ".join(parts)


def _panel(axes: Axes, arms: Sequence[Bubble], scale: Sequence[Bubble], chosen: dict[str, Look]) -> None:
    largest = max(b.params for b in scale)
    x = [b.tokens for b in scale]
    y = [v for b in scale for v in (b.perplexity, *(b.ends or ()))]
    pad = 0.14 * max(math.log(max(x) / min(x)), 0.4), 0.16 * max(math.log(max(y) / min(y)), 0.1)
    low, high = min(x) * math.exp(-pad[0]), max(x) * math.exp(pad[0])
    _tokens_axis(axes, low, high)
    log_loss_axis(axes, min(y) * math.exp(-1.5 * pad[1]), max(y) * math.exp(pad[1]))
    # Large bubbles first, so that none hides a smaller one.
    for b in sorted(arms, key=lambda b: -b.params):
        ends = b.ends
        error = None if ends is None else [[b.perplexity - ends[0]], [ends[1] - b.perplexity]]
        shift = 0.0 if b.structure == "dense" else DODGE[b.treatment]
        container = axes.errorbar(
            [b.tokens * (high / low) ** shift], [b.perplexity], yerr=error, linestyle="none", elinewidth=0.9,
            zorder=5, **_marker(chosen[b.structure], b.treatment, b.params / largest),
        )  # fmt: skip
        hover(container.lines[0], [_text(b)])
    for size in dict.fromkeys(b.size for b in arms):
        lowest = min((b for b in arms if b.size == size), key=lambda b: (b.tokens, b.perplexity))
        below = 0.5 * _marker(chosen[lowest.structure], PLAIN, lowest.params / largest)["markersize"] + 2
        axes.annotate(
            size, (lowest.tokens, lowest.perplexity), xytext=(0, -below), fontsize=6.5,
            textcoords="offset points", color=GREY, ha="center", va="top", zorder=6,
        )  # fmt: skip
    _sizes(axes, [b.params for b in arms], largest)


def _marker(look: Look, treatment: str, share: float) -> dict[str, Any]:
    fill = FILLS[treatment]
    face = to_rgba(look.colour, FACE)
    diameter = max(SMALLEST, LARGEST * math.sqrt(share * _area("o") / _area(look.marker)))
    return {
        "marker": look.marker,
        "color": look.colour,
        "fillstyle": "full" if fill == "none" else fill,
        "markerfacecolor": "none" if fill == "none" else face,
        "markerfacecoloralt": "none",
        "markeredgecolor": look.colour,
        "markeredgewidth": 1.0,
        "markersize": diameter,
    }


@lru_cache
def _area(marker: str) -> float:
    """Area of a marker of size one, so that equal areas mean equal parameters whatever the shape."""
    style = MarkerStyle(marker)
    outlines = style.get_path().transformed(style.get_transform()).to_polygons()
    parts = [np.dot(p[:-1, 0], p[1:, 1]) - np.dot(p[1:, 0], p[:-1, 1]) for p in map(np.asarray, outlines)]
    return float(sum(abs(part) for part in parts)) / 2


def _tokens_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with few round ticks such as 2M or 10B."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    """A count with a letter for its thousands, `1.3M`."""
    for letter, unit in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def _sizes(axes: Axes, params: Sequence[float], largest: float) -> None:
    """A legend of bubbles: the panel's largest and smallest network, and one between if they differ much."""
    known = sorted(set(params))
    shown = [known[-1], known[0]] if len(known) > 1 else known
    if len(known) > 2 and known[-1] > 4 * known[0]:
        shown.insert(1, known[len(known) // 2])
    handles = [
        Line2D(
            [], [], linestyle="none", label=_short(p), **_marker(Look(GREY, "o", True), PLAIN, p / largest)
        )
        for p in shown
    ]
    axes.legend(
        handles=handles, title="Parameters (area)", title_fontsize=6.5, loc="upper right", labelspacing=0.9,
        borderaxespad=0.1, fontsize=6.5,
    )  # fmt: skip


def _handles(structures: Sequence[str], chosen: dict[str, Look]) -> list[Line2D]:
    small = (7 / LARGEST) ** 2
    names = list(dict.fromkeys(["dense", *structures]))
    handles = [
        Line2D([], [], linestyle="none", label=label, **_marker(chosen[label], PLAIN, small))
        for label in names
    ]
    for treatment in SHOWN:
        words = WORDS[treatment] + (", dense FLOPs" if treatment else "")
        style = _marker(Look(GREY, "o", True), treatment, small)
        handles.append(Line2D([], [], linestyle="none", label=words, **style))
    return handles


def _text(b: Bubble) -> str:
    spread = "" if b.ends is None else f" ({b.ends[0]:.4g} to {b.ends[1]:.4g}, {len(b.losses)} seeds)"
    again = f", seen {b.seen / b.tokens:.2f} times" if b.seen > b.tokens else ""
    lost = f", {b.diverged} more diverged" if b.diverged else ""
    return (
        f"{b.words}, {b.size}: perplexity {b.perplexity:.4g}{spread}{lost}, {_short(b.tokens)} distinct "
        f"tokens{again}, {quantity(b.flops)} FLOPs, {_short(b.params)} parameters"
    )
