"""Runs that could be added to a planned grid, on its own log lattice of sizes and token ratios, priced."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.arrays import Array
from analysis.design.precision import Grid
from analysis.engine.sums import SumLaw

SAME_SIZE, SAME_RATIO, SAME_RUN = 0.02, 0.22, 0.01
"""Differences of logarithms below which sizes, and token ratios of one level, count as equal.

Ratios drift along a level: a structure's tokens may be those of a dense network of other size.
"""
MOST_SIZES, MOST_RATIOS = 16, 9
"""Levels of a grid that has more are spaced evenly."""
ALONE = 2.0
"""The step of a grid with one level only."""

Ratio = Callable[[float], float]
"""From log N to log (D / N)."""


@dataclass(frozen=True)
class Candidate:
    """One run that could be added.

    params, tokens: NaN where the grid has only FLOPs.
    train_flops: its price, at the FLOPs per parameter and token of the grid's runs of that size.
    kind: in words: `extra seed`, `size between`, `larger size, more tokens` ...
    """

    group: str
    params: float
    tokens: float
    train_flops: float
    kind: str

    @property
    def order(self) -> tuple[float, float]:
        """Sort key: by size, then by FLOPs."""
        return (0.0 if np.isnan(self.params) else self.params, self.train_flops)


@dataclass(frozen=True)
class Level:
    """A level: its logarithm, and its place: `` (on the grid), `between`, `smaller`, `larger`."""

    at: float
    place: str


def candidates(law: SumLaw, grid: Grid) -> list[Candidate]:
    """Runs that could be added for a law, none twice: a repeat of a planned run is an extra seed.

    Sizes are those of the grid, those half-way between, and one step beyond either end. For a law in params
    and tokens, so are the token ratios; for a law in FLOPs, runs stay at the ratios of the grid.

    Args:
        law: the law.
        grid: the planned runs.
    """
    sized = "params" in grid.data and "tokens" in grid.data
    found: list[Candidate] = []
    for name in grid.structures:
        mine = grid.of(name)
        found += _of_sizes(law, mine, name) if sized else _of_flops(mine, name)
    return found


def _of_flops(grid: Grid, name: str) -> list[Candidate]:
    levels = lattice(np.log(grid.data["train_flops"]), SAME_SIZE, MOST_SIZES)
    nan = float("nan")
    return [
        Candidate(name, nan, nan, _count(level.at), _words(level.place, "budget", "", "run"))
        for level in levels
    ]


def _of_sizes(law: SumLaw, grid: Grid, name: str) -> list[Candidate]:
    size, ratio = np.log(grid.data["params"]), np.log(grid.data["tokens"] / grid.data["params"])
    flops = np.log(grid.data["train_flops"])
    kappa = _over(size, flops - 2 * size - ratio)
    ratios = _ratios(size, ratio)
    if "tokens" not in law.variables:
        ratios = [(curve, place) for curve, place in ratios if place == ""]
    seen: list[tuple[float, float]] = []
    found = []
    for x, y, c in _cells(size, ratio, flops):
        seen.append((x, y))
        found.append(Candidate(name, _count(x), _count(x + y), _count(c), "extra seed"))
    for level in lattice(size, SAME_SIZE, MOST_SIZES):
        for curve, place in ratios:
            x, y = level.at, curve(level.at)
            if all(abs(x - a) + abs(y - b) > SAME_RUN + SAME_SIZE for a, b in seen):
                seen.append((x, y))
                words = _words(level.place, "size", place, "tokens")
                found.append(Candidate(name, _count(x), _count(x + y), _count(2 * x + y + kappa(x)), words))
    return found


def _count(log: float) -> float:
    """A whole number of parameters, tokens or FLOPs."""
    return float(np.round(np.exp(log)))


def _words(size: str, what: str, ratio: str, of: str) -> str:
    at_size = f"{what} between" if size == "between" else f"{size} {what}" if size else ""
    at_ratio = {"": "", "between": f"{of} between", "larger": f"more {of}", "smaller": f"fewer {of}"}[ratio]
    if what == "budget" and not size:
        return "extra seed"
    return ", ".join(filter(None, (at_size, at_ratio))) or "size and tokens of the grid"


def lattice(logs: Array, same: float, most: int) -> list[Level]:
    """The levels of a grid, those half-way between, and one step beyond either end, upwards.

    Args:
        logs: logarithms, shape (n,).
        same: difference below which two neighbours are of one level.
        most: levels; more are spaced evenly.
    """
    levels = np.array([float(np.median(part)) for part in _clusters(logs, same)])
    if levels.size > most:
        levels = np.linspace(levels[0], levels[-1], most)
    step = float(np.median(np.diff(levels))) if levels.size > 1 else float(np.log(ALONE))
    out = [Level(float(levels[0]) - step, "smaller"), Level(float(levels[0]), "")]
    for low, high in itertools.pairwise(levels):
        out += [Level(float(low + high) / 2, "between"), Level(float(high), "")]
    return [*out, Level(float(levels[-1]) + step, "larger")]


def _clusters(logs: Array, same: float) -> list[Array]:
    ordered = np.sort(logs)
    return np.split(ordered, np.flatnonzero(np.diff(ordered) > same) + 1)


def _ratios(size: Array, ratio: Array) -> list[tuple[Ratio, str]]:
    """Levels of the token ratio as curves over size, with those between and beyond."""
    parts = _clusters(ratio, SAME_RATIO)
    levels = lattice(ratio, SAME_RATIO, MOST_RATIOS)
    if len(parts) > MOST_RATIOS:
        return [(_constant(level.at), level.place) for level in levels]
    middles = [float(np.median(part)) for part in parts]
    curves = []
    for part in parts:
        mine = (ratio >= part[0]) & (ratio <= part[-1])
        curves.append(_over(size[mine], ratio[mine]))
    out: list[tuple[Ratio, str]] = []
    for level in levels:
        # A level that is not of the grid drifts with size as the nearest that is.
        near = int(np.argmin([abs(level.at - middle) for middle in middles]))
        out.append((_shifted(curves[near], level.at - middles[near]), level.place))
    return out


def _constant(value: float) -> Ratio:
    return lambda at: value


def _shifted(curve: Ratio, by: float) -> Ratio:
    return lambda at: curve(at) + by


def _over(size: Array, value: Array) -> Ratio:
    """A quantity between sizes, along straight lines; beyond them, that of the nearest."""
    places = np.unique(size)
    means = np.array([float(value[size == place].mean()) for place in places])
    return lambda at: float(np.interp(at, places, means))


def _cells(size: Array, ratio: Array, flops: Array) -> list[tuple[float, float, float]]:
    """The configurations of the grid, each once: log N, log D / N, log C."""
    rounded = np.round(np.stack([size, ratio, flops], axis=1), 6)
    _, first = np.unique(rounded, axis=0, return_index=True)
    return [(float(size[i]), float(ratio[i]), float(flops[i])) for i in np.sort(first)]
