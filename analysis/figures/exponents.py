"""The exponents figure: every structure's exponent with its interval under each view of E."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.analyse import Analysis
from analysis.compare.slopes import NoTest, SlopeTest
from analysis.digits import interval, number, p_cell, probability, with_error
from analysis.engine.sums import ALL
from analysis.figures.curves import (
    DASHES,
    absence,
    footnote,
    footnote_letters,
    legend_lines,
    points_of,
    wrapped,
)
from analysis.figures.style import (
    GREY,
    ONE_COLUMN,
    TWO_COLUMNS,
    Look,
    house_style,
    hover,
    looks,
    nice_ticks,
    title,
)
from analysis.fit import Fit, Refusal
from analysis.runs.labels import structure_order
from analysis.uncertainty import t_quantile

VIEWS = {"none": "No E", "given": "E given", "shared": "One E for all", "separate": "An E for each"}
ROW, LINE, GAP, FRAME = 0.17, 0.125, 0.07, 0.75
"""Inches: of a structure's row, a line of words, the space between blocks, and title and axis of a panel."""
DASHED = "Dashed: the exponent common to all. Detectable: with 80 % power at the 5 % level."
NAMES_INCHES, LETTERS = 0.8, 19
"""Width of the structures' names, and how many letters of words stand in an inch."""
REACH = 1.2
"""An interval is cut where it is farther out than this many times the range of the exponents ..."""
LEAST_REACH = 0.04
"""... and than this."""


@dataclass(frozen=True)
class _Exponent:
    """An exponent with its 95 % interval; the last three are NaN where there is none."""

    value: float
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan


Views = Mapping[str, Mapping[str, _Exponent]]
"""View of E -> structure -> exponent."""


@dataclass(frozen=True)
class _Block:
    """One view of E: its words (lines for each panel), rows, and in inches its top and a row's height."""

    view: str
    words: tuple[tuple[str, ...], ...]
    top: float
    labels: tuple[str, ...]
    row: float

    @property
    def rows_at(self) -> float:
        """Height of the first row's middle."""
        return self.top + LINE * max(map(len, self.words)) + self.row * 0.6


def exponents_figure(
    ours: Analysis, published: Analysis | None = None, source: str = "", given: str = ""
) -> Figure:
    """Draw a forest of exponents: a block a view of E, a row a structure, our runs left, published right.

    Points are exponents with 95 % intervals by Student's t from the joint fit of the test, or where there is
    no test from each structure's own fit; the dashed line is the exponent common to all. Words say p of equal
    exponents, the difference that the runs would find, and why a view cannot be tested. Each panel has a
    scale of its own.

    Args:
        ours: the fitted table.
        published: the right panel.
        source: where the published numbers are from.
        given: where the E given to the published points is from.
    """
    panels = [ours] if published is None else [ours, published]
    found = [{view: _exponents(panel, view) for view in VIEWS} for panel in panels]
    width = TWO_COLUMNS if published is not None else ONE_COLUMN + NAMES_INCHES
    inches = (width - NAMES_INCHES) / len(panels)
    blocks, height = _blocks(panels, found, int((inches - 0.15) * LETTERS), given)
    with house_style():
        cut = any(
            end < limits[0] or end > limits[1]
            for panel, views in zip(panels, found, strict=True)
            for limits in [_limits(panel, views)]
            for view in views.values()
            for one in view.values()
            for end in (one.low, one.high)
        )
        foot = DASHED + (" Arrow: the interval goes on." if cut else "")
        foot += f" Published: {source}." if published is not None and source else ""
        lines = -(-len(foot) // footnote_letters(width))
        figure = Figure(figsize=(width, height + FRAME + LINE * lines))
        row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        chosen = looks([label for panel in panels for label in panel.structures])
        for i, (axes, panel) in enumerate(zip(row, panels, strict=True)):
            limits = _limits(panel, found[i])
            for block in blocks:
                _words_above(axes, block, block.words[i])
                _draw(axes, block, found[i][block.view], chosen, limits)
                _common(axes, panel, block)
            axes.set_xlim(*limits)
            axes.set_xticks(nice_ticks(*limits, 4))
            axes.set_xlabel(r"Exponent $\alpha$ of training FLOPs, 95 % interval")
            called = "Published" if panel is published else panel.name
            title(axes, called, absence(panel.runs), inches)
            axes.grid(axis="y", visible=False)
        places = [block.rows_at + block.row * k for block in blocks for k in range(len(block.labels))]
        names = [wrapped(label) for block in blocks for label in block.labels]
        row[0].set_yticks(places, names, fontsize=6.5)
        row[0].set_ylim(height, 0)
        for axes in row:
            axes.tick_params(axis="y", length=0)
        footnote(figure, [foot])
        # Computed here, while the style holds: the layout engine is created from it.
        figure.draw_without_rendering()
    return figure


def _test(panel: Analysis, view: str) -> SlopeTest | NoTest | None:
    return next((test for test in panel.comparison.tests if test.hypothesis == view), None)


def _exponents(panel: Analysis, view: str) -> dict[str, _Exponent]:
    """What a view gives each structure."""
    test = _test(panel, view)
    if isinstance(test, SlopeTest):
        far = t_quantile(test.dof[1])
        return {
            label: _Exponent(value)
            if error is None
            else _Exponent(value, error, value - far * error, value + far * error)
            for label, value in test.exponents.items()
            for error in [test.error(label)]
        }
    alone: dict[str, Fit | Refusal] = {"none": panel.power, "separate": panel.irreducible}.get(view, {})
    out = {}
    for label, fit in alone.items():
        if isinstance(fit, Refusal) or not fit.identified or not math.isfinite(fit.value("alpha")):
            continue
        out[label] = _Exponent(fit.value("alpha"))
        if fit.standard_errors is not None and fit.intervals is not None:
            out[label] = _Exponent(fit.value("alpha"), fit.standard_errors["alpha"], *fit.intervals["alpha"])
    return out


def _blocks(
    panels: Sequence[Analysis],
    found: Sequence[Mapping[str, Mapping[str, _Exponent]]],
    letters: int,
    given: str,
) -> tuple[list[_Block], float]:
    """The blocks from top to bottom, and the height of all in inches."""
    seen = {label for views in found for shown in views.values() for label in shown}
    labels = sorted(seen, key=structure_order)
    row = ROW + LINE * max((legend_lines([label]) - 1 for label in labels), default=0)
    blocks, top = [], 0.03
    for view in VIEWS:
        if all(_test(panel, view) is None for panel in panels):
            continue
        words = tuple(
            tuple(
                line
                for sentence in _words(panel, view, given if i else "")
                for line in textwrap.wrap(sentence, letters, break_on_hyphens=False)
            )
            for i, panel in enumerate(panels)
        )
        # Structures shown under any view have a row in all, so that the eye finds them.
        rows = labels if any(views[view] for views in found) else []
        block = _Block(view, words, top, tuple(rows), row)
        blocks.append(block)
        top = block.rows_at + row * (len(rows) - 0.4) + GAP
    return blocks, top


def _words(panel: Analysis, view: str, given: str) -> list[str]:
    """What a test came to, the view first."""
    test = _test(panel, view)
    if test is None:
        return [VIEWS[view], "none is known of this text"]
    if not isinstance(test, SlopeTest):
        alone = "; each fitted by itself" if _exponents(panel, view) else ""
        return [VIEWS[view], f"no test: {test.reason}{alone}"]
    name = VIEWS[view]
    if view in ("given", "shared"):
        name += f": E = {with_error(test.irreducible[ALL], test.irreducible_se.get(ALL), 3)}"
    reach = "not known" if test.reach is None else f"from {number(test.reach, test.reach)}"
    found = f"equal exponents: p {probability(test.p_value)}{_unequal(test)}; detectable {reach}"
    gone = any(test.error(structure) is None for structure in test.exponents)
    bound = "; no intervals there" if gone else ""
    origin = [given] if given and view == "given" else []
    return [name, *origin, found, *([test.caution + bound] if test.caution else [])]


def _unequal(test: SlopeTest) -> str:
    """The p of the test that allows for unequal noise, where it was made."""
    p = test.test.wild_p
    return "" if p is None else f" (unequal noise: {p_cell(p)})"


def _limits(panel: Analysis, views: Views) -> tuple[float, float]:
    """The range that shows every exponent, and their intervals unless these are far wider."""
    shown = [exponent for view in views.values() for exponent in view.values()]
    common = [test.common for test in panel.comparison.tests if isinstance(test, SlopeTest)]
    values = [*(exponent.value for exponent in shown), *common]
    if not values:
        return 0.0, 1.0
    reach = max(REACH * (max(values) - min(values)), LEAST_REACH)
    ends = [end for e in shown for end in (e.low, e.high) if not math.isnan(end)]
    low = max(min([*values, *ends]), min(values) - reach)
    high = min(max([*values, *ends]), max(values) + reach)
    margin = 0.05 * max(high - low, 1e-3)
    return low - margin, high + margin


def _words_above(axes: Axes, block: _Block, words: Sequence[str]) -> None:
    for i, line in enumerate(words):
        axes.annotate(
            line, (0.01, block.top + LINE * i), xycoords=("axes fraction", "data"), fontsize=6.5, va="top",
            color="#000000" if i == 0 else GREY, fontweight="bold" if i == 0 else "normal",
        )  # fmt: skip


def _common(axes: Axes, panel: Analysis, block: _Block) -> None:
    test = _test(panel, block.view)
    if isinstance(test, SlopeTest):
        ends = [block.rows_at - block.row / 2, block.rows_at + block.row * (len(block.labels) - 0.5)]
        axes.plot([test.common] * 2, ends, color=GREY, linewidth=0.8, linestyle=DASHES, zorder=2)


def _draw(
    axes: Axes, block: _Block, shown: Mapping[str, _Exponent],
    chosen: Mapping[str, Look], limits: tuple[float, float],
) -> None:  # fmt: skip
    for i, label in enumerate(block.labels):
        y = block.rows_at + block.row * i
        if label not in shown:
            if shown:
                axes.annotate(
                    "not tested", (0.01, y), xycoords=("axes fraction", "data"),
                    fontsize=6.5, color=GREY, va="center",
                )  # fmt: skip
            continue
        one, look = shown[label], chosen[label]
        known = not math.isnan(one.low)
        drawn = axes.errorbar(
            [one.value], [y], xerr=[[one.value - one.low], [one.high - one.value]] if known else None,
            color=look.colour, elinewidth=0.9, markeredgewidth=0.9, linestyle="none", zorder=5,
            **look.marker_style(),
        )  # fmt: skip
        text = f"{label}, {VIEWS[block.view]}: exponent {with_error(one.value, one.error)}"
        text += f", 95 % interval {interval(one.low, one.high, one.error)}" if known else ", no interval"
        hover(points_of(drawn), [text])
        for end, marker in ((one.low, "<"), (one.high, ">")):
            if end < limits[0] or end > limits[1]:
                # The interval goes on beyond the panel.
                edge = min(max(end, limits[0]), limits[1])
                axes.plot([edge], [y], marker, color=look.colour, markersize=3.5, clip_on=False, zorder=6)
