"""The reducible-loss figure: what is left of the losses when the irreducible loss is subtracted, log-log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.analyse import Analysis, points
from analysis.arrays import Array
from analysis.compare.slopes import NoTest, SlopeTest, joint, usable
from analysis.digits import number, with_error
from analysis.engine.sums import ALL
from analysis.figures.curves import (
    CURVE_POINTS,
    LEGEND_LINE,
    Window,
    absence,
    draw_runs,
    footnote,
    handle,
    legend_beneath,
    legend_lines,
    listed,
    window,
    words_instead,
    wrapped,
)
from analysis.figures.style import ONE_COLUMN, TWO_COLUMNS, Look, house_style, looks, title
from analysis.fit import Fit
from analysis.laws import IRREDUCIBLE, POWER

COLUMNS = {"given": "E given", "shared": "one E for all", "separate": "an E for each"}
FREE = {"given": ("k", "alpha"), "shared": ("k", "alpha"), "separate": ("E", "k", "alpha")}
"""What each structure has of its own in the joint fit of each hypothesis."""
PANEL, NOTE_LINE = 2.25, 0.12
"""Heights in inches: of a panel with title and axis label, of a line of its note."""
MOST_APART = 3.0
"""Panels of a row whose heights in log loss differ by a larger factor have a scale each."""


@dataclass(frozen=True)
class Floor:
    """What one panel subtracts.

    values: structure -> E in nats per token.
    errors: structure -> its standard error; none where E is at its bound, or given.
    exponents: structure -> exponent of L - E with its standard error, or None.
    curves: structure -> (training FLOPs, fitted L - E), both of shape (m,).
    note: what E is, in words.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float]
    exponents: Mapping[str, tuple[float, float | None]]
    curves: Mapping[str, tuple[Array, Array]]
    note: str


def reducible_figure(
    ours: Analysis, published: Analysis | None = None, source: str = "", given: str = ""
) -> Figure:
    """Draw L - E over training FLOPs, log-log: a column a view of E, upper row ours, lower row published.

    Thin bars are standard errors of the losses, as in the scaling figure; pale bars show where a point moves
    when E moves by its standard error, all points of the panel (of the structure, where each has its E)
    together. Lines are the fitted laws less E. A point below E cannot be drawn and is counted. The panels of
    a row show the same loss ratio per unit of height, unless E makes them too different.

    Args:
        ours: the fitted table.
        published: the lower row.
        source: where the published numbers are from.
        given: where the E given to the published points is from.
    """
    panels = [ours] if published is None else [ours, published]
    columns = _columns(panels)
    found = [
        [_floor(panel, name, given if panel is published else "") for name in columns] for panel in panels
    ]
    inches = TWO_COLUMNS / len(columns) if len(columns) > 1 else ONE_COLUMN
    with house_style():
        figure = Figure(figsize=(inches * len(columns), _height(found, inches)))
        grid = figure.subplots(len(panels), len(columns), squeeze=False)
        chosen = looks([label for panel in panels for label in panel.structures])
        for row, panel, floors in zip(grid, panels, found, strict=True):
            called = "Published" if panel is published else panel.name
            for axes, name, floor in zip(row, columns, floors, strict=True):
                axes.set_xlabel("Training FLOPs")
                if isinstance(floor, str):
                    words_instead(axes, floor)
                note = "" if isinstance(floor, str) else _draw(axes, panel, floor, chosen)
                if axes is row[0]:
                    note = "; ".join(part for part in (note, absence(panel.runs)) if part)
                title(axes, f"{called}: {COLUMNS[name]}", note, inches)
            row[0].set_ylabel("$L - E$ (nats per token)")
        if published is not None and source:
            footnote(figure, [f"Published: {source}."])
        _limits([list(row) for row in grid], panels, found)
        # Computed here, while the style holds: the layout engine is created from it.
        figure.draw_without_rendering()
    return figure


def _columns(panels: Sequence[Analysis]) -> list[str]:
    """The views of E that any panel has; for one structure, its own E and a shared one are the same."""
    found = [name for name in COLUMNS if any(_test(panel, name) is not None for panel in panels)]
    tested = any(isinstance(_test(panel, "shared"), SlopeTest) for panel in panels)
    alone = any(isinstance(fit, Fit) for panel in panels for fit in panel.irreducible.values())
    return [name for name in found if name != "shared" or tested or not alone]


def _height(found: Sequence[Sequence[Floor | str]], inches: float) -> float:
    """Inches that panels, notes and legends need."""
    total = 0.2
    for row in found:
        floors = [floor for floor in row if isinstance(floor, Floor)]
        notes = max((len(floor.note) / (15 * inches) for floor in floors), default=0.0)
        entries = max((legend_lines(floor.values) for floor in floors), default=0)
        total += PANEL + NOTE_LINE * notes + LEGEND_LINE * entries
    return total


def _test(panel: Analysis, hypothesis: str) -> SlopeTest | NoTest | None:
    return next((test for test in panel.comparison.tests if test.hypothesis == hypothesis), None)


def _floor(panel: Analysis, hypothesis: str, given: str) -> Floor | str:
    """What to subtract under a hypothesis, or why nothing can be."""
    test = _test(panel, hypothesis)
    if test is None:
        return "no E is known of this text"
    if isinstance(test, NoTest):
        return (_alone(panel, test.reason) if hypothesis == "separate" else None) or f"no test: {test.reason}"
    values = {
        label: test.irreducible.get(label, test.irreducible.get(ALL, math.nan)) for label in panel.structures
    }
    errors = {
        label: error
        for label in values
        if (error := test.irreducible_se.get(label, test.irreducible_se.get(ALL))) is not None
    }
    values = {label: value for label, value in values.items() if math.isfinite(value)}
    # That an E is at its bound stands in the words about E already.
    caution = "" if 0.0 in values.values() else test.caution or ""
    notes = [_floor_words(hypothesis, values, errors, given), caution]
    if missing := [label for label in panel.structures if label not in values]:
        notes.append(f"no E of its own, so not drawn: {listed(missing)}")
    return Floor(
        values,
        errors,
        {label: (value, test.error(label)) for label, value in test.exponents.items()},
        _joint_curves(panel, hypothesis, values),
        "; ".join(note for note in notes if note),
    )


def _alone(panel: Analysis, reason: str) -> Floor | None:
    """Each structure's own fit, where there is no test because there is nothing to compare."""
    fits = {label: fit for label, fit in panel.irreducible.items() if isinstance(fit, Fit)}
    if not fits:
        return None
    values = {label: fit.value("E") for label, fit in fits.items()}
    known = {label: fit.standard_errors for label, fit in fits.items()}
    errors = {label: error["E"] for label, error in known.items() if error is not None and values[label] > 0}
    exponents = {
        label: (fit.value("alpha"), (known[label] or {}).get("alpha")) for label, fit in fits.items()
    }
    curves = {}
    for label, fit in fits.items():
        grid = _grid(panel, label)
        curves[label] = grid, fit.predict({"train_flops": grid}) - values[label]
    open_ones = [label for label, fit in fits.items() if values[label] > 0 and not fit.identified]
    notes = [_floor_words("separate", values, errors, ""), f"no test: {reason}"]
    if open_ones:
        notes.insert(1, f"not identified: E of {listed(open_ones)}")
    return Floor(values, errors, exponents, curves, "; ".join(notes))


def _joint_curves(
    panel: Analysis, hypothesis: str, values: Mapping[str, float]
) -> dict[str, tuple[Array, Array]]:
    groups = usable({label: points(panel.runs.table, label) for label in panel.structures})
    subtracted = next(iter(values.values())) if hypothesis == "given" else 0.0
    law = POWER if hypothesis == "given" else IRREDUCIBLE
    optimum = joint(law, groups, FREE[hypothesis], subtracted).optimum
    curves = {}
    for label in groups:
        grid = _grid(panel, label)
        at = optimum.bound.at({"train_flops": grid}, [label] * grid.size)
        left = 0.0 if hypothesis == "given" else values[label]
        curves[label] = grid, np.exp(at.log_value(optimum.phi)) - left
    return curves


def _grid(panel: Analysis, label: str) -> Array:
    flops, _ = points(panel.runs.table, label)
    return np.geomspace(flops.min(), flops.max(), CURVE_POINTS)


def _floor_words(
    hypothesis: str, values: Mapping[str, float], errors: Mapping[str, float], given: str
) -> str:
    bars = "pale bars: E moved by its standard error"
    if hypothesis == "given":
        return (
            f"E = {next(iter(values.values())):.4g}, {given or 'the entropy rate of the corpus, or as given'}"
        )
    if all(value == 0 for value in values.values()):
        which = "E" if hypothesis == "shared" or len(values) == 1 else "every E"
        return f"{which} at its bound 0: nothing subtracted"
    if hypothesis == "shared":
        label = next(iter(values))
        return f"E = {with_error(values[label], errors.get(label), 3)}" + (f"; {bars}" if errors else "")
    parts = [
        f"{label} {with_error(value, errors.get(label), 3)}" if value > 0
        else f"{label} at its bound 0 (nothing subtracted)"
        for label, value in values.items()
    ]  # fmt: skip
    return f"E: {', '.join(parts)}" + (f"; {bars}" if errors else "")


def _draw(axes: Axes, panel: Analysis, floor: Floor, chosen: Mapping[str, Look]) -> str:
    """Draw a panel; returns its note, with what could not be drawn."""
    below = endless = 0
    for label, value in floor.values.items():
        look = chosen[label]
        rows = panel.runs.table[panel.runs.table["structure"] == label]
        above = rows[rows["val_loss"] > value]
        below += len(rows) - len(above)
        error = floor.errors.get(label)
        if error is not None:
            left = above["val_loss"].to_numpy(np.float64) - value
            endless += int(np.sum(left <= error))
            # A bar that passes 0 has no end on a logarithmic axis: it is drawn out of the panel.
            low = np.where(left > error, left - error, left * 1e-6)
            axes.vlines(
                above["train_flops"], low, left + error, color=look.colour, alpha=0.25, linewidth=3.2,
                zorder=2,
            )  # fmt: skip
        if label in floor.curves:
            axes.plot(*floor.curves[label], color=look.colour, linestyle=look.line, linewidth=0.8, zorder=3)
        draw_runs(axes, above, look, value, "L - E" if value > 0 else "L - 0")
    handles = [
        handle(_entry(label, floor), chosen[label], label in floor.exponents) for label in floor.values
    ]
    legend_beneath(axes, handles)
    parts = [floor.note]
    if below:
        parts.append(f"{below} point{'s' if below > 1 else ''} below E, not drawn")
    if endless:
        parts.append(f"{endless} pale bar{'s' if endless > 1 else ''} without a lower end: E may be above L")
    return "; ".join(parts)


def _entry(label: str, floor: Floor) -> str:
    label_words = wrapped(label)
    if label not in floor.exponents:
        return f"{label_words}  (too few budgets)"
    value, error = floor.exponents[label]
    if not math.isfinite(value):
        return f"{label_words}  (no exponent)"
    return rf"{label_words}  $\alpha$ = {with_error(value, error) if error else number(value)}"


def _limits(
    grid: Sequence[Sequence[Axes]], panels: Sequence[Analysis], found: Sequence[Sequence[Floor | str]]
) -> None:
    """Points in view; the panels of a row at one scale, unless that would flatten some of them."""
    rows: list[list[tuple[Axes, Window]]] = []
    for row, panel, floors in zip(grid, panels, found, strict=True):
        rows.append([])
        for axes, floor in zip(row, floors, strict=True):
            if isinstance(floor, str):
                axes.set_xticks([])
                axes.set_yticks([])
                continue
            lowered = panel.runs.table["val_loss"] - panel.runs.table["structure"].map(dict(floor.values))
            seen = (lowered > 0).to_numpy()
            if seen.any():
                flops = panel.runs.table["train_flops"].to_numpy(np.float64)[seen]
                rows[-1].append((axes, window(flops, lowered.to_numpy(np.float64)[seen])))
    width = max((limits.width for places in rows for _, limits in places), default=0.0)
    for places in rows:
        heights = [limits.height for _, limits in places]
        for axes, limits in places:
            together = max(heights) <= MOST_APART * min(heights)
            limits.apply(axes, width, max(heights) if together else limits.height)
