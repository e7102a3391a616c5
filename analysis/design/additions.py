"""The cheapest runs to add to a planned sweep for a wanted standard error or detectable difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Array, Mask
from analysis.compare.slopes import detectable_difference
from analysis.design.candidates import Candidate, candidates
from analysis.design.precision import (
    Assumed,
    Grid,
    Impossible,
    Predicted,
    bind_at,
    contrast,
    differences,
    freed,
    likeness,
    predict,
    usable,
)
from analysis.engine.sums import ALL
from analysis.errors import AnalysisError
from analysis.fitcheck import COLLINEAR

WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Powers of the price that a gain is divided by: 1 prefers cheap runs, 0 those that tell most."""
RIDGE = 1e-12
"""Share of each parameter's own information that is added: what is not identified yet has an error then."""
REACHED = 1 + 1e-9


@dataclass(frozen=True)
class Goal:
    """What the additions are for.

    exponent: which.
    size: wanted standard error, or wanted detectable difference between any two structures.
    detect: whether it is a detectable difference.
    group: the structure whose exponent it is; ALL for every structure.
    """

    exponent: str
    size: float
    detect: bool = False
    group: str = ALL


@dataclass(frozen=True)
class Additions:
    """Runs to add.

    before, after: what the goal is about, the worst over structures or pairs; None where the fit is refused.
    reached: whether `after` is as wanted.
    picks: the runs, in the order of the structures and sizes.
    spent: training FLOPs of the picks.
    planned: training FLOPs of the grid.
    limit: how many runs could be added.
    caution: why a fit of all runs will be refused in spite of them, or None.
    """

    goal: Goal
    before: float | None
    after: float | None
    reached: bool
    picks: tuple[Candidate, ...]
    spent: float
    planned: float
    limit: int
    caution: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            **vars(self),
            "goal": dict(vars(self.goal)),
            "picks": [dict(vars(pick)) for pick in self.picks],
        }


def standing(assumed: Assumed, grid: Grid, goal: Goal) -> float | Impossible:
    """What the runs give of a goal: the worst standard error, or the largest detectable difference."""
    law = assumed.law
    if goal.detect:
        found = differences(_joint(assumed, grid))
        if isinstance(found, Impossible):
            return found
        return max(one.detectable for one in found if one.exponent == goal.exponent)
    worst = 0.0
    for name in usable(law, grid) if goal.group == ALL else (goal.group,):
        alone = predict(assumed, grid.of(name))
        if isinstance(alone, Impossible):
            return alone
        worst = max(worst, alone.error(contrast(alone.bound, goal.exponent, name)))
    return worst


def _joint(assumed: Assumed, grid: Grid) -> Predicted | Impossible:
    able = usable(assumed.law, grid)
    return predict(assumed, grid.of(*able), freed(assumed.law, share_floor=True))


def cheapest(assumed: Assumed, grid: Grid, goal: Goal, limit: int) -> Additions | Impossible:
    """Choose runs to add: greedily by gain per FLOP, then without those that the goal does not need.

    Several greedy choices are made, from one that only looks at FLOPs to one that only looks at the gain; the
    cheapest that reaches the goal is kept and improved by dropping and exchanging single runs.

    Args:
        assumed: law, parameters, noise.
        grid: planned runs.
        goal: what is wanted.
        limit: most runs to add.

    Raises:
        AnalysisError: the law has no such exponent, or there is no such structure.
    """
    law = assumed.law
    if goal.exponent not in law.exponents:
        raise AnalysisError(
            f"{law.name} has no exponent '{goal.exponent}'; it has {', '.join(law.exponents)}"
        )
    if goal.group != ALL and goal.group not in grid.structures:
        raise AnalysisError(f"no structure '{goal.group}'; there are {', '.join(grid.structures)}")
    able = usable(law, grid) if goal.group == ALL else usable(law, grid.of(goal.group))
    if len(able) < (2 if goal.detect else 1):
        what = "two structures" if goal.detect else "no structure"
        reason = f"{what} with enough sizes would be needed; plan more sizes first"
        return Impossible(ALL, "few", reason if goal.detect else f"{what} has enough sizes; plan more first")
    part = grid.of(*able)
    before = standing(assumed, part, goal)
    now = None if isinstance(before, Impossible) else before
    planned = float(np.sum(grid.data["train_flops"]))
    if now is not None and now <= goal.size * REACHED:
        return Additions(goal, now, now, True, (), 0.0, planned, limit, None)
    search = Search(assumed, part, goal, limit)
    picks, found = search.run(), before
    chosen = sorted((search.offers[i] for i in picks), key=lambda c: (able.index(c.group), c.order))
    if chosen:
        found = standing(assumed, part.plus(as_grid(chosen, part)), goal)
    after = search.value(picks) if isinstance(found, Impossible) else found
    return Additions(
        goal,
        now,
        after,
        after <= goal.size * REACHED,
        tuple(chosen),
        float(sum(one.train_flops for one in chosen)),
        planned,
        limit,
        found.reason if isinstance(found, Impossible) else None,
    )


def as_grid(chosen: Sequence[Candidate], like: Grid) -> Grid:
    """Candidates as planned runs with the columns of another grid."""
    data = {name: np.array([getattr(one, name) for one in chosen], np.float64) for name in like.data}
    return Grid(data, tuple(one.group for one in chosen))


class Search:
    """The greedy search on the information matrix of one fit of all structures."""

    def __init__(self, assumed: Assumed, grid: Grid, goal: Goal, limit: int) -> None:
        self.goal, self.limit, self.noise, self.n = goal, limit, assumed.noise, grid.n
        self.law, self.grid = assumed.law, grid
        labels = grid.structures
        # Without anything shared, the errors of one fit of all are those of each structure's own.
        free = freed(assumed.law, share_floor=goal.detect) if len(labels) > 1 else ()
        bound, phi = bind_at(assumed, grid, free)
        self.offers = candidates(assumed.law, grid)
        offered = as_grid(self.offers, grid)
        self.rows = bound.at(offered.data, offered.groups if free else None).jacobian(phi)  # (c, p)
        self.prices = offered.data["train_flops"]
        jacobian = bound.jacobian(phi)
        own = np.einsum("np,np->p", jacobian, jacobian)
        self.start = jacobian.T @ jacobian + RIDGE * np.diag(own)
        pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
        wanted = pairs if goal.detect else [(name, None) for name in labels]
        self.contrasts = np.array([contrast(bound, goal.exponent, *pair) for pair in wanted])  # (m, p)

    def allowed(self, runs: int) -> float:
        """Largest variance, in units of the noise's, that reaches the goal with so many runs added."""
        size = self.goal.size
        dof = self.n + runs - self.start.shape[0]
        if self.goal.detect:
            size /= detectable_difference(1.0, dof) if dof > 0 else math.inf
        return float((size * REACHED / self.noise) ** 2)

    def covariance(self, picks: Sequence[int]) -> Array:
        """Of phi with these runs added, in units of the noise's variance."""
        added = self.rows[list(picks)]
        return np.asarray(np.linalg.inv(self.start + added.T @ added))

    def variances(self, matrix: Array) -> Array:
        """Of the contrasts, shape (m,)."""
        return np.asarray(np.einsum("mp,pq,mq->m", self.contrasts, matrix, self.contrasts))

    def with_one_more(self, matrix: Array) -> Array:
        """Variances of the contrasts after each candidate (rank-one updates), shape (m, c)."""
        moved = matrix @ self.rows.T
        leverage = np.einsum("cp,pc->c", self.rows, moved)
        gains = (self.contrasts @ moved) ** 2 / (1 + leverage)
        return np.asarray(self.variances(matrix)[:, None] - gains)

    def reached(self, picks: Sequence[int]) -> bool:
        """Whether the goal is, by a fit that will not be refused for variables that vary as one."""
        close = np.max(self.variances(self.covariance(picks))) <= self.allowed(len(picks))
        return bool(close) and self.alike(picks) == 0.0

    def alike(self, picks: Sequence[int]) -> float:
        """By how much size and tokens vary more alike than a fit may have them, summed over structures."""
        if len(self.law.variables) < 2:
            return 0.0
        whole = self.grid.plus(as_grid([self.offers[i] for i in picks], self.grid))
        return sum(max(0.0, likeness(self.law, whole.of(name)) - COLLINEAR) for name in whole.structures)

    def value(self, picks: Sequence[int]) -> float:
        """What the goal is about, with these runs added."""
        error = self.noise * math.sqrt(float(np.max(self.variances(self.covariance(picks)))))
        dof = self.n + len(picks) - self.start.shape[0]
        if not self.goal.detect:
            return error
        return detectable_difference(error, dof) if dof > 0 else math.inf

    def price(self, picks: Sequence[int]) -> float:
        """Training FLOPs of these runs."""
        return float(self.prices[list(picks)].sum())

    def run(self) -> list[int]:
        """The cheapest picks that reach the goal, else those that come nearest."""
        found = [self.greedy(weight) for weight in WEIGHTS]
        good = [picks for picks in found if self.reached(picks)]
        if not good:
            nearest = self.exchanged(min(found, key=self.value))
            if not self.reached(nearest):
                return nearest
            good = [nearest]
        return min((self.improved(picks) for picks in good), key=self.price)

    def greedy(self, weight: float) -> list[int]:
        """Add the run of most gain per price^weight, priced anew after each, up to the limit."""
        picks: list[int] = []
        while len(picks) < self.limit and not self.reached(picks):
            matrix, allowed = self.covariance(picks), self.allowed(len(picks) + 1)
            # What is below the goal already is worth no more FLOPs.
            now = np.maximum(self.variances(matrix) - allowed, 0.0).sum()
            then = np.maximum(self.with_one_more(matrix) - allowed, 0.0).sum(axis=0)
            gain = now - then
            if not now > 0:
                alike = np.array([self.alike([*picks, i]) for i in range(len(self.prices))])
                gain = self.alike(picks) - alike
            picks.append(int(np.argmax(gain / self.prices**weight)))
        return picks

    def exchanged(self, picks: list[int]) -> list[int]:
        """Exchange single runs for those that help more, while there are such (Fedorov's exchange)."""
        value, better = self.value(picks), True
        while better and not self.reached(picks):
            better = False
            for i in range(len(picks)):
                rest = picks[:i] + picks[i + 1 :]
                worst = np.max(self.with_one_more(self.covariance(rest)), axis=0)
                trial = [*rest, int(np.argmin(worst))]
                if self.value(trial) < value * (1 - 1e-6):
                    picks, value, better = trial, self.value(trial), True
                    break
        return picks

    def improved(self, picks: list[int]) -> list[int]:
        """Drop and exchange single runs while that makes the whole cheaper and the goal stays reached."""
        better: list[int] | None = picks
        while better is not None:
            picks, better = better, self._cheaper(better)
        return picks

    def _cheaper(self, picks: list[int]) -> list[int] | None:
        allowed = self.allowed(len(picks))
        for i in sorted(range(len(picks)), key=lambda i: -self.prices[picks[i]]):
            rest = picks[:i] + picks[i + 1 :]
            if self.reached(rest):
                return rest
            fits: Mask = np.max(self.with_one_more(self.covariance(rest)), axis=0) <= allowed
            cheap = np.flatnonzero(fits & (self.prices < self.prices[picks[i]] * (1 - 1e-9)))
            for other in cheap[np.argsort(self.prices[cheap])]:
                if self.reached([*rest, int(other)]):
                    return [*rest, int(other)]
        return None
