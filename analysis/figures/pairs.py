"""The pairs figure: how the errors of a fitted law's parameters, and of the optimal exponent, go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter
from scipy.special import fdtri

from analysis.arrays import Array
from analysis.figures.isoloss import Surface, heading, with_interval
from analysis.figures.style import TWO_COLUMNS, Look, house_style, looks, nice_ticks
from analysis.fit import Fit
from analysis.uncertainty import gradient

MOST = 4
"""Structures that may lie over each other in one panel."""
BINS = 36
TAIL, SPARE = 0.002, 0.08
"""Draws beyond these quantiles may lie out of the panels; the note says how many do."""
CIRCLE = 120
WORDS = {"alpha": r"$\alpha$", "beta": r"$\beta$", "E": "$E$", "a": "$a$"}
SYMBOLS = {
    "alpha": r"$\alpha$",
    "beta": r"$\beta$",
    "E": "$E$ (nats per token)",
    "a": r"$a$, $N^*\propto C^{\,a}$",
}


@dataclass(frozen=True)
class Quantity:
    """A parameter, or what is computed of several, with what is known of its error.

    name: in `SYMBOLS`.
    value, low, high: point estimate and 95 % interval.
    of: from phi, shape (..., p), to the quantity, shape (...).
    """

    name: str
    value: float
    low: float
    high: float
    of: Callable[[Array], Array]


@dataclass(frozen=True)
class _Spread:
    """One structure's quantities, their draws (b, k) if it has any, and their covariance (k, k)."""

    label: str
    look: Look
    quantities: tuple[Quantity, ...]
    draws: Array | None
    covariance: Array
    dof: int
    method: str


def quantities(surface: Surface) -> tuple[Quantity, ...]:
    """Exponents, irreducible loss and optimal exponent of a fitted L(N, D), as far as it has them.

    Source: a = beta / (alpha v + beta u) for C = kappa N^u D^v, as `analysis.allocation`.
    """
    fit = surface.fit
    assert isinstance(fit, Fit) and fit.spread is not None, "only what has errors is drawn"
    phi, spread = fit.optimum.phi, fit.spread
    names = [column.name for column in fit.optimum.bound.columns]
    found: dict[str, Callable[[Array], Array]] = {}
    for name in ("alpha", "beta", "E"):
        if name in names:
            found[name] = _parameter(fit, names.index(name))
    if "alpha" in found and "beta" in found:
        alpha, beta, cost = found["alpha"], found["beta"], surface.cost
        found["a"] = lambda at: beta(at) / (alpha(at) * cost.v + beta(at) * cost.u)
    rows = []
    for name, function in found.items():
        low, high = (float(end) for end in spread.interval(function, phi))
        rows.append(Quantity(name, float(function(phi)), low, high, function))
    return tuple(rows)


def _parameter(fit: Fit, place: int) -> Callable[[Array], Array]:
    return lambda phi: fit.optimum.bound.natural(phi)[..., place]


def pairs_figure(surfaces: Sequence[Surface], name: str, note: str = "") -> Figure:
    """Draw a scatter matrix of the bootstrap draws of alpha, beta, E and the exponent of N*.

    Below the diagonal are the draws of each pair and the point estimate; on it their histograms with point
    estimate and 95 % interval; above it their correlations. Where errors are by the delta method there are no
    draws: the joint 95 % ellipse and normal curves stand for them.

    Args:
        surfaces: fitted, a colour each; what has no errors is named in the note with the reason.
        name: of the table.
        note: source, or how complete the table is.
    """
    chosen = looks([surface.label for surface in surfaces])
    words = [note]
    drawn: list[_Spread] = []
    for surface in surfaces:
        if isinstance(surface.fit, Fit) and surface.fit.spread is not None and len(drawn) < MOST:
            drawn.append(_spread(surface, surface.fit, chosen[surface.label]))
        elif isinstance(surface.fit, Fit) and len(drawn) == MOST:
            words.append(f"{surface.label} is not drawn: {MOST} structures are.")
        if surface.why:
            words.append(f"{surface.label}: not identified ({surface.why}).")
    columns = [key for key in SYMBOLS if any(q.name == key for s in drawn for q in s.quantities)]
    with house_style():
        side = max(len(columns), 2)
        figure = Figure(figsize=(TWO_COLUMNS, 0.9 + 1.42 * side if columns else 1.6))
        grid = figure.subplots(side, side, squeeze=False)
        limits = {key: _limits(drawn, key) for key in columns}
        words += _outside(drawn, limits)
        for axes in grid.flat:
            axes.grid(False)
        for axes in grid.flat if not columns else grid[len(columns) :].flat:
            axes.set_axis_off()
        for i, below in enumerate(columns):
            for j, across in enumerate(columns):
                _cell(grid[i, j], drawn, below, across, i - j, limits)
            _labels(grid, i, below, len(columns))
        method = "; ".join(dict.fromkeys(spread.method for spread in drawn)) or "no structure has errors"
        text = " ".join(word for word in [*words, f"Errors: {method}."] if word)
        heading(figure, name, text)
        handles = [
            Line2D([], [], color=s.look.colour, marker="o", linestyle="none",
                   label=f"{s.label}: {interval_words(s.quantities)}")
            for s in drawn
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=1)
        figure.draw_without_rendering()
    return figure


def _spread(surface: Surface, fit: Fit, look: Look) -> _Spread:
    assert fit.spread is not None
    rows = quantities(surface)
    draws = fit.spread.draws
    values = None if draws is None else np.stack([row.of(draws) for row in rows], axis=1)
    if values is not None:
        covariance = np.atleast_2d(np.cov(values, rowvar=False))
    else:
        slope = np.stack([gradient(row.of, fit.optimum.phi) for row in rows])
        covariance = slope @ fit.spread.covariance @ slope.T
    return _Spread(surface.label, look, rows, values, covariance, fit.spread.dof, fit.spread.method)


def _find(spread: _Spread, name: str) -> int | None:
    return next((i for i, row in enumerate(spread.quantities) if row.name == name), None)


def _limits(drawn: Sequence[_Spread], name: str) -> tuple[float, float]:
    """Ends of an axis: nearly all draws, and the whole interval."""
    ends: list[float] = []
    for spread in drawn:
        place = _find(spread, name)
        if place is None:
            continue
        row = spread.quantities[place]
        ends += [row.low, row.high]
        if spread.draws is not None:
            ends += [float(end) for end in np.quantile(spread.draws[:, place], [TAIL, 1 - TAIL])]
        else:
            reach = np.sqrt(2 * fdtri(2, spread.dof, 0.95) * spread.covariance[place, place])
            ends += [row.value - reach, row.value + reach]
    spare = SPARE * max(max(ends) - min(ends), 1e-9)
    return min(ends) - spare, max(ends) + spare


def _outside(drawn: Sequence[_Spread], limits: dict[str, tuple[float, float]]) -> list[str]:
    out = 0
    for spread in drawn:
        if spread.draws is not None:
            ends = np.array([limits[row.name] for row in spread.quantities])
            beyond = (spread.draws < ends[:, 0]) | (spread.draws > ends[:, 1])
            out += int(beyond.any(axis=1).sum())
    return [f"{out} draws lie out of the panels."] if out else []


def _cell(
    axes: Axes, drawn: Sequence[_Spread], below: str, across: str, side: int,
    limits: dict[str, tuple[float, float]],
) -> None:  # fmt: skip
    """One panel of the matrix; `side` is above zero below the diagonal."""
    if side < 0:
        _correlations(axes, drawn, below, across)
        return
    axes.set_xlim(*limits[across])
    if side > 0:
        axes.set_ylim(*limits[below])
    for spread in drawn:
        i, j = _find(spread, below), _find(spread, across)
        if i is None or j is None:
            continue
        if side == 0:
            _histogram(axes, spread, j, limits[across])
        else:
            _pair(axes, spread, i, j)


def _pair(axes: Axes, spread: _Spread, i: int, j: int) -> None:
    """Draws, or an ellipse, of quantity i over quantity j."""
    colour = spread.look.colour
    centre = spread.quantities[j].value, spread.quantities[i].value
    if spread.draws is not None:
        # As an image: a thousand markers a panel would make the file a megabyte.
        axes.plot(
            spread.draws[:, j], spread.draws[:, i], "o", linestyle="none", color=colour, markersize=1.6,
            markeredgewidth=0, alpha=0.3, rasterized=True, zorder=2,
        )  # fmt: skip
    else:
        edge = ellipse(spread.covariance[np.ix_([j, i], [j, i])], spread.dof)
        axes.plot(centre[0] + edge[0], centre[1] + edge[1], color=colour, linewidth=1.0, zorder=3)
    axes.plot(*centre, "+", color="white", markersize=9, markeredgewidth=2.4, zorder=4)
    axes.plot(*centre, "+", color="#D55E00" if colour == "#000000" else "black", markersize=8, zorder=5)


def ellipse(covariance: Array, dof: int, level: float = 0.95) -> Array:
    """Edge of the joint confidence region of two quantities about their values, shape (2, m).

    Args:
        covariance: shape (2, 2).
        dof: degrees of freedom of the noise.
        level: confidence.

    Source: Hotelling's T^2: 2 F(2, dof) for two quantities whose common scale of noise is estimated.
    """
    angle = np.linspace(0, 2 * np.pi, CIRCLE)
    size, axes = np.linalg.eigh(covariance)
    radius = np.sqrt(2 * fdtri(2, dof, level) * np.maximum(size, 0.0))
    return np.asarray(axes @ (radius[:, None] * np.stack([np.cos(angle), np.sin(angle)])))


def _histogram(axes: Axes, spread: _Spread, place: int, limits: tuple[float, float]) -> None:
    row, colour = spread.quantities[place], spread.look.colour
    if spread.draws is not None:
        edges = np.linspace(*limits, BINS + 1)
        counts = np.histogram(spread.draws[:, place], edges)[0] / len(spread.draws)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25, zorder=2)
        axes.stairs(counts, edges, color=colour, linewidth=0.8, zorder=3)
    else:
        x = np.linspace(*limits, CIRCLE)
        error = float(np.sqrt(spread.covariance[place, place]))
        if error > 0:
            axes.plot(x, np.exp(-0.5 * ((x - row.value) / error) ** 2), color=colour, linewidth=0.9, zorder=3)
    axes.axvline(row.value, color=colour, linewidth=1.1, zorder=4)
    for end in (row.low, row.high):
        axes.axvline(end, color=colour, linewidth=0.8, linestyle=(0, (3, 1.5)), zorder=4)


def _correlations(axes: Axes, drawn: Sequence[_Spread], below: str, across: str) -> None:
    axes.set_axis_off()
    lines = []
    for spread in drawn:
        i, j = _find(spread, below), _find(spread, across)
        if i is not None and j is not None:
            scale = float(np.sqrt(spread.covariance[i, i] * spread.covariance[j, j]))
            r = spread.covariance[i, j] / scale if scale > 0 else np.nan
            lines.append((f"r = {r:+.2f}".replace("-", "\N{MINUS SIGN}"), spread.look.colour))
    for k, (text, colour) in enumerate(lines):
        height = 0.5 - 0.2 * (k - (len(lines) - 1) / 2)
        axes.text(
            0.5, height, text, color=colour, ha="center", va="center", fontsize=9, transform=axes.transAxes
        )


def _labels(grid: Any, i: int, name: str, count: int) -> None:
    """Axis labels and ticks at the outer edges, and the intervals over the diagonal."""
    for j in range(count):
        axes = grid[i, j]
        if j > i:
            continue
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
        if j < i:
            axes.yaxis.set_major_locator(FixedLocator(_ticks(*axes.get_ylim())))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_yticks([])
            axes.set_ylim(bottom=0)
    if i > 0:
        grid[i, 0].set_ylabel(SYMBOLS[name])
    grid[count - 1, i].set_xlabel(SYMBOLS[name])


def _ticks(low: float, high: float) -> list[float]:
    """Round values away from the ends, where labels would run into the next panel's."""
    spare = 0.1 * (high - low)
    return [tick for tick in nice_ticks(low, high, 4) if low + spare <= tick <= high - spare]


def interval_words(rows: Sequence[Quantity]) -> str:
    """The quantities with their intervals, in words."""
    return ", ".join(f"{WORDS[row.name]} = {with_interval(row.value, row.low, row.high)}" for row in rows)
