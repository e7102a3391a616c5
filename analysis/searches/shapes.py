"""The best shape of each cell of a study, what lies beside it, and which shapes it cannot be told from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.searches.trials import Cell, Study, Trial, Values, shown, words

LEAST = {"n_layers": 1.0, "rank": 1.0, "n_blocks": 1.0}
"""The lowest that a dimension can be: nothing could have been tried below."""


@dataclass(frozen=True)
class Tried:
    """A shape that was tried: its values, mean loss over seeds (nats per token), standard error, runs.

    se: of the loss over the held-out text, NaN where it is not known. Seeds do not lessen it, since all runs
    are held against the same text.
    """

    values: Values
    loss: float
    se: float
    runs: tuple[str, ...]

    @property
    def words(self) -> str:
        """`d_model 48, n_layers 4`."""
        return words(self.values)


@dataclass(frozen=True)
class Neighbour:
    """The next value tried in one dimension, and the shape there that is nearest in all others.

    side: `lower` or `higher`. shape: None where no such value has a loss: the best is at an edge, unless
    there can be no such value (`bound`). alone: whether all other dimensions are as at the best.
    """

    dimension: str
    side: str
    shape: Tried | None
    alone: bool = False
    bound: bool = False


@dataclass(frozen=True)
class Best:
    """The best shape of a cell; `ties` are those within one standard error of it, the best first."""

    cell: Cell
    shape: Tried
    neighbours: tuple[Neighbour, ...]
    ties: tuple[Tried, ...]

    def above(self, other: Tried) -> float:
        """By how many standard errors of the best shape's loss another's is higher."""
        return (other.loss - self.shape.loss) / self.shape.se if self.shape.se > 0 else math.nan

    @property
    def edges(self) -> list[str]:
        """The sides at which nothing lies beside the best though it could, in words."""
        one = {
            name: sum(n.shape is None for n in self.neighbours if n.dimension == name) for name in self._names
        }
        said = [
            f"only {name} {shown(dict(self.shape.values)[name])}" for name, gone in one.items() if gone == 2
        ]
        return said + [
            f"no {n.side} {n.dimension} has a loss"
            for n in self.neighbours
            if n.shape is None and not n.bound and one[n.dimension] == 1
        ]

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(n.dimension for n in self.neighbours))


def tried(cell: Cell) -> list[Tried]:
    """The shapes of a cell that have a loss, the best first; those with a diverged run come last."""
    groups: dict[Values, list[Trial]] = {}
    lost = {trial.searched for trial in cell.distinct if trial.state == "diverged"}
    for trial in cell.done:
        groups.setdefault(trial.searched, []).append(trial)
    found = []
    for values, mine in groups.items():
        errors = [trial.se for trial in mine if trial.se > 0]
        se = float(np.mean(errors)) if errors else math.nan
        loss = float(np.mean([trial.loss for trial in mine]))
        found.append(Tried(values, loss, se, tuple(trial.run_id for trial in mine)))
    return sorted(found, key=lambda shape: (shape.values in lost, shape.loss, shape.values))


def best_shapes(study: Study) -> list[Best]:
    """The best shape of every cell that has a loss, with its neighbours and ties."""
    return [_best(cell, shapes) for cell in study.pooled.cells if (shapes := tried(cell))]


def _best(cell: Cell, shapes: Sequence[Tried]) -> Best:
    best = shapes[0]
    neighbours = []
    for name, value in best.values:
        others = {dict(shape.values)[name] for shape in shapes if name in dict(shape.values)}
        lower, higher = [v for v in others if v < value], [v for v in others if v > value]
        for side, beside in (("lower", max(lower, default=None)), ("higher", min(higher, default=None))):
            at = [s for s in shapes if beside is not None and dict(s.values).get(name) == beside]
            nearest = min(at, key=lambda s: (_distance(best, s, name, shapes), s.loss), default=None)
            alone = nearest is not None and _distance(best, nearest, name, shapes) == 0
            bound = side == "lower" and value <= LEAST.get(name, -math.inf)
            neighbours.append(Neighbour(name, side, nearest, alone, bound))
    ties = [s for s in shapes[1:] if best.se > 0 and s.loss - best.loss <= best.se]
    return Best(cell, best, tuple(neighbours), tuple(ties))


def _distance(a: Tried, b: Tried, apart_from: str, shapes: Sequence[Tried]) -> float:
    """How far two shapes lie apart in all other dimensions, logarithms as shares of what was tried."""
    total = 0.0
    theirs = dict(b.values)
    for name, value in a.values:
        if name != apart_from and name in theirs and theirs[name] != value:
            tried_ = [math.log(dict(s.values)[name]) for s in shapes if name in dict(s.values)]
            total += (math.log(value / theirs[name]) / (max(tried_) - min(tried_))) ** 2
    return total
