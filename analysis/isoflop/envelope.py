"""Approach 1 of Hoffmann et al.: the lower envelope of training curves, and N* and D* along it.

Points of one curve are not independent, so intervals come from resampling whole runs.  Checkpoints of runs
whose learning rate has not decayed yet lie above what a run of that length reaches: where the table holds
such, use approach 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.arrays import Array, Mask, Places
from analysis.errors import AnalysisError
from analysis.isoflop.budgets import checked
from analysis.isoflop.frontier import NoExponent, plain

LEAST_SIZES = 3
"""Distinct optimal sizes that a line needs: two always lie on one."""
CHUNK = 64
"""Resamples worked on together, which bounds the memory."""


@dataclass(frozen=True)
class EnvelopeLine:
    """Exponent of X* ~ C^value along the envelope: unweighted log-log least squares."""

    value: float
    low: float | None
    """Percentile interval over resamples of runs; None where less than half of them gave a line."""
    high: float | None
    level: float
    reference: float
    """FLOPs: geometric mean of the points of the line."""
    at_reference: float
    """X* at `reference`, in parameters or tokens."""
    resamples: int
    """Resamples of runs that gave a line."""


@dataclass(frozen=True)
class Envelope:
    """Lower envelope of training curves over log-spaced FLOPs."""

    flops: Array
    """Bins, shape (m,); the fields below have the same shape."""
    loss: Array
    params: Array
    """N of the lowest run: N*."""
    tokens: Array
    """Its tokens at these FLOPs: D*."""
    run: tuple[str, ...]
    """Its label."""
    edge: Mask
    """Whether it is the smallest or largest of the sizes whose curves reach these FLOPs."""
    runs: int
    """Curves of two checkpoints or more."""
    sizes: int
    """Distinct N."""
    used: int
    """Points on the line."""
    a: EnvelopeLine | NoExponent
    """N* ~ C^a."""
    b: EnvelopeLine | NoExponent
    """D* ~ C^b."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values, float64 at full precision."""
        return dict(plain(self))


def envelope(
    params: Array,
    tokens: Array,
    train_flops: Array,
    loss: Array,
    runs: Sequence[object] | None = None,
    bins: int = 1500,
    keep_edges: bool = False,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Envelope:
    """Take the lowest of all training curves at log-spaced FLOPs, and fit N* and D* against C.

    Each curve is log L, piecewise linear in log C, within its own range: nothing is extrapolated.  Where the
    lowest curve is of the smallest or largest size there, a size that was not trained may lie lower: such
    points are reported and left out of the line.

    Args:
        params: N, one value a run, shape (n,).
        tokens: D at the checkpoint, shape (n,).
        train_flops: C at the checkpoint, shape (n,).
        loss: loss at the checkpoint, shape (n,).
        runs: label of the run of each checkpoint; None where each size is one curve.
        bins: how many FLOPs values, from the least to the greatest that two curves reach.
        keep_edges: whether edge points count for the line.
        level: confidence of the intervals.
        resamples: of the bootstrap over runs; 0 for none.
        seed: of the bootstrap.

    Raises:
        AnalysisError: lengths differ, values have no logarithm, a run has several sizes, or no two curves
            share FLOPs.

    Source: Hoffmann et al., arXiv 2203.15556, section 3.1 (1,500 log-spaced FLOPs values).
    """
    n, d, c, y = checked(params, tokens, train_flops, loss)
    labels = list(map(_size_label, params)) if runs is None else [str(run) for run in runs]
    if len(labels) != n.size:
        raise AnalysisError(f"run: {len(labels)} labels for {n.size} losses; give one a checkpoint")
    names, at, losses, seen, sizes = _curves(np.array(labels), (n, d, c, y), bins)
    best = np.argmin(losses, axis=0)
    edge = _edges(losses[None], sizes[None], best[None])[0]
    column = np.arange(at.size)
    won, spent = sizes[best], seen[best, column]
    kept = np.ones_like(edge) if keep_edges else ~edge
    slopes = _resampled(losses, sizes, seen, at, keep_edges, resamples, seed)
    return Envelope(
        flops=np.exp(at),
        loss=np.exp(losses[best, column]),
        params=np.exp(won),
        tokens=np.exp(spent),
        run=tuple(names[run] for run in best),
        edge=edge,
        runs=len(names),
        sizes=np.unique(sizes).size,
        used=int(kept.sum()),
        a=_line(at[kept], won[kept], won[kept], slopes[0], resamples, level),
        b=_line(at[kept], spent[kept], won[kept], slopes[1], resamples, level),
    )


def _size_label(size: float) -> str:
    return f"{size:.0f}" if size == round(size) else repr(float(size))


def _curves(
    labels: npt.NDArray[np.str_], logs: tuple[Array, Array, Array, Array], bins: int
) -> tuple[list[str], Array, Array, Array, Array]:
    """Runs of two checkpoints or more, interpolated at the bins.

    Returns:
        Their labels (r), bins (m,), log L (r, m; inf outside of a run's range), log D (r, m), log N (r,).
    """
    n, d, c, y = logs
    names, curves, sizes = [], [], []
    for name in np.unique(labels):
        place = np.flatnonzero(labels == name)
        if np.ptp(n[place]) > 1e-9:
            raise AnalysisError(f"run {name}: its checkpoints differ in params; give each run its own label")
        # Replicates of a checkpoint are averaged: an interpolant has one value at each place.
        where, group = np.unique(c[place], return_inverse=True)
        count = np.bincount(group)
        if where.size > 1:
            names.append(str(name))
            sizes.append(n[place[0]])
            curves.append((where, np.bincount(group, y[place]) / count, np.bincount(group, d[place]) / count))
    starts, ends = sorted(curve[0][0] for curve in curves), sorted(curve[0][-1] for curve in curves)
    if len(names) > 1 and ends[-2] > starts[1]:
        at = np.linspace(starts[1], ends[-2], bins)
        losses = np.stack([np.interp(at, x, up, np.inf, np.inf) for x, up, _ in curves])
        seen = np.stack([np.interp(at, x, gone) for x, _, gone in curves])
        reached = np.isfinite(losses).sum(axis=0)
        if reached.max() > 1:
            some = reached > 0
            return names, at[some], losses[:, some], seen[:, some], np.array(sizes)
    raise AnalysisError("envelope: no two curves share training FLOPs; give checkpoints of several runs")


def _edges(losses: Array, sizes: Array, best: Places) -> Mask:
    """Where the lowest run has the smallest or largest size there; (s, r, m), (s, r), (s, m) -> (s, m)."""
    there = np.isfinite(losses)
    size = sizes[:, :, None]
    least = np.min(np.where(there, size, np.inf), axis=1)
    most = np.max(np.where(there, size, -np.inf), axis=1)
    won = np.take_along_axis(sizes, best, axis=1)
    return np.asarray((won <= least) | (won >= most))


def _resampled(
    losses: Array, sizes: Array, seen: Array, x: Array, keep_edges: bool, count: int, seed: int
) -> Array:
    """Slopes of log N* and log D* over resamples of runs, shape (2, s); those without a line are left out."""
    random, runs = np.random.default_rng(seed), sizes.size
    slopes: list[Array] = []
    for start in range(0, count, CHUNK):
        drawn = random.integers(0, runs, (min(CHUNK, count - start), runs))
        some, size = losses[drawn], sizes[drawn]
        best = np.argmin(some, axis=1)
        run = np.take_along_axis(drawn, best, axis=1)
        there = np.isfinite(losses[run, np.arange(x.size)])
        kept = there if keep_edges else there & ~_edges(some, size, best)
        for row, keep in zip(run, kept, strict=True):
            won = sizes[row[keep]]
            if np.unique(won).size >= LEAST_SIZES:
                at = x[keep] - x[keep].mean()
                up = np.stack([won, seen[row, np.arange(x.size)][keep]])
                slopes.append(up @ at / (at @ at))
    return np.array(slopes).T if slopes else np.empty((2, 0))


def _line(
    x: Array, y: Array, sizes: Array, slopes: Array, resamples: int, level: float
) -> EnvelopeLine | NoExponent:
    distinct = np.unique(sizes).size
    if distinct < LEAST_SIZES:
        return NoExponent(
            f"{distinct} sizes are lowest anywhere without being the smallest or largest there; a line needs "
            f"{LEAST_SIZES}: train more sizes",
            "SL015",
        )
    at = x - x.mean()
    low = high = None
    if slopes.size and slopes.size >= resamples / 2:
        low, high = map(float, np.quantile(slopes, [(1 - level) / 2, (1 + level) / 2]))
    return EnvelopeLine(
        value=float(at @ y / (at @ at)),
        low=low,
        high=high,
        level=level,
        reference=float(np.exp(x.mean())),
        at_reference=float(np.exp(y.mean())),
        resamples=slopes.size,
    )
