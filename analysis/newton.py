"""Batched damped Newton: fits a sum of power terms under many weightings, and from many starts, at once.

The objective is sum_i w_i huber_delta(log-sum-exp_k(z_ik) - log L_i), a sum and not a mean, in float64.  Its
exact Hessian is a small softmax block for each point, so that all members of a batch (starts, bootstrap
resamples) advance together in a few matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import Array

MAX_STEPS = 200
DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-5, 1e-14, 1e12
GRADIENT, EXACT = 1e-9, 1e-13
"""A member has converged when no column of its Jacobian has a larger share of the residuals than this."""
ROUNDING = 1e-31
"""Sums of squares of log residuals below n times this are zero to the rounding of float64."""
CHUNK_NUMBERS = 300_000
"""Numbers in the largest temporary array, about 2 MB: it stays in the processor's cache."""


@dataclass(frozen=True)
class Minima:
    """Where each member of a batch has come to.

    phi: parameters, shape (b, p).
    cost: sum over the points of the weighted Huber loss, shape (b,).
    gradient: largest component of the gradient along a parameter, over the norms of that parameter's column
        and of the (clipped) residuals: scale-free, 0 at an exact optimum, at most 1; shape (b,).
    converged: whether `gradient` is negligible, or the residuals are rounding; shape (b,).
    steps: Newton steps of the slowest member.
    """

    phi: Array
    cost: Array
    gradient: Array
    converged: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    steps: int

    def best(self) -> int:
        """The member of lowest cost."""
        return int(np.argmin(self.cost))


def minimise(
    terms: Array,
    log_loss: Array,
    starts: Array,
    weights: Array | None = None,
    delta: float = np.inf,
    tolerance: float = EXACT,
) -> Minima:
    """Descend from every start.

    Args:
        terms: d z_ik / d phi_p, shape (n, K, p).
        log_loss: shape (n,).
        starts: shape (b, p).
        weights: of the points, for each member: shape (b, n), (n,) or None for ones.
        delta: where Huber's loss turns from square to absolute, in log loss; inf for least squares.
        tolerance: `Minima.gradient` at which a member is done; one that gets no better is done in any case.
    """
    n, k, p = terms.shape
    b = starts.shape[0]
    spread = np.ones((1, n)) if weights is None else np.atleast_2d(np.asarray(weights, np.float64))
    spread = np.broadcast_to(spread, (b, n))
    chunk = max(1, CHUNK_NUMBERS // (n * max(k, p)))
    parts = [
        _Batch(terms, log_loss, starts[part], spread[part], delta, tolerance).run()
        for part in (slice(first, first + chunk) for first in range(0, b, chunk))
    ]
    return Minima(
        np.concatenate([part.phi for part in parts]),
        np.concatenate([part.cost for part in parts]),
        np.concatenate([part.gradient for part in parts]),
        np.concatenate([part.converged for part in parts]),
        max(part.steps for part in parts),
    )


class _Batch:
    """Members that advance together; those that have converged drop out."""

    def __init__(
        self, terms: Array, log_loss: Array, starts: Array, weights: Array, delta: float, tolerance: float
    ) -> None:
        n, k, p = terms.shape
        self.n, self.k, self.p, self.delta = n, k, p, delta
        self.log_loss, self.tolerance = log_loss, tolerance
        # Term by term, so that points lie side by side; most terms read few of the parameters.
        self.by_term = np.ascontiguousarray(terms.transpose(1, 0, 2))
        self.reads = [(int(i), int(j)) for i, j in np.argwhere(np.any(self.by_term != 0, axis=1))]
        self.rows = self.by_term.reshape(k * n, p)
        self.squares = np.einsum("rp,rq->rpq", self.rows, self.rows).reshape(k * n, p * p)
        self.phi = np.array(starts, np.float64)
        self.weights = np.ascontiguousarray(weights)

    def run(self) -> Minima:
        """Newton steps until every member has converged or can go no further."""
        b = self.phi.shape[0]
        cost, gradient = np.empty(b), np.full(b, np.inf)
        damping, active = np.full(b, DAMPING), np.arange(b)
        cost[:] = self._cost(self.phi, self.weights)
        state = self._expand(active)
        steps = 0
        while active.size and steps < MAX_STEPS:
            steps += 1
            slope, curve, scale, size = state
            gradient[active] = self._share(slope, scale, size)
            trial = self.phi[active] + self._direction(slope, curve, scale, damping[active])
            trial_cost = self._cost(trial, self.weights[active])
            better = trial_cost < cost[active]
            moved = active[better]
            self.phi[moved], cost[moved] = trial[better], trial_cost[better]
            damping[moved] = np.maximum(damping[moved] / 10, LEAST_DAMPING)
            damping[active[~better]] *= 10
            # One that is at its optimum to rounding finds nothing better, whatever the damping.
            done = damping[active] > MOST_DAMPING
            done |= ~better & (gradient[active] < GRADIENT)
            done |= (gradient[active] < self.tolerance) | (cost[active] <= self.n * ROUNDING)
            keep = ~done
            renew = keep & better
            active_next = active[keep]
            if renew.any():
                fresh = self._expand(active[renew])
                for old, new in zip(state, fresh, strict=True):
                    old[renew] = new
            state = (slope[keep], curve[keep], scale[keep], size[keep])
            active = active_next
        last = self._expand(np.arange(b))
        gradient = self._share(last[0], last[2], last[3])
        converged = (gradient < 1e3 * GRADIENT) | (cost <= self.n * ROUNDING)
        return Minima(self.phi, cost, gradient, converged, steps)

    def _values(self, phi: Array) -> tuple[Array, Array]:
        """Log L of each point, shape (m, n), and the share of each term in it, shape (m, K, n)."""
        z = (phi @ self.rows.T).reshape(-1, self.k, self.n)
        top = z.max(axis=1)
        share = np.exp(z - top[:, None])
        total = share.sum(axis=1)
        share /= total[:, None]
        return top + np.log(total), share

    def _cost(self, phi: Array, weights: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            value, _ = self._values(phi)
            residual = np.abs(value - self.log_loss)
            inside = np.minimum(residual, self.delta)
            cost = np.einsum("mn,mn->m", weights, inside * (residual - 0.5 * inside))
        return np.where(np.isfinite(cost), cost, np.inf)

    def _expand(
        self, members: np.ndarray[tuple[int], np.dtype[np.intp]]
    ) -> tuple[Array, Array, Array, Array]:
        """Gradient (m, p), Hessian (m, p, p), norms of Jacobian columns (m, p) and of residuals (m,)."""
        weights = self.weights[members]
        value, share = self._values(self.phi[members])
        residual = value - self.log_loss
        clipped = np.clip(residual, -self.delta, self.delta)
        pull = weights * clipped
        inside = weights * (np.abs(residual) <= self.delta)
        jacobian = np.zeros((len(members), self.p, self.n))
        for term, place in self.reads:
            jacobian[:, place] += share[:, term] * self.by_term[term, :, place]
        slope = np.matmul(jacobian, pull[:, :, None])[:, :, 0]
        softmax = (pull[:, None] * share).reshape(len(members), -1) @ self.squares
        outer = np.matmul(jacobian * (inside - pull)[:, None], jacobian.transpose(0, 2, 1))
        curve = softmax.reshape(-1, self.p, self.p) + outer
        scale = np.sqrt(np.matmul(jacobian**2, weights[:, :, None])[:, :, 0])
        size = np.sqrt(np.einsum("mn,mn->m", weights, clipped**2))
        return slope, curve, np.maximum(scale, 1e-300), size

    @staticmethod
    def _share(slope: Array, scale: Array, size: Array) -> Array:
        return np.asarray(np.max(np.abs(slope) / scale, axis=1) / np.maximum(size, 1e-300))

    @staticmethod
    def _direction(slope: Array, curve: Array, scale: Array, damping: Array) -> Array:
        """The damped Newton step; along directions of negative curvature, downhill by its absolute value."""
        curve = curve / (scale[:, :, None] * scale[:, None, :])
        values, vectors = np.linalg.eigh(curve)
        floor = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-300)
        bent = np.maximum(np.abs(values), 1e-15 * floor) + damping[:, None] * floor
        along = np.einsum("mpq,mp->mq", vectors, slope / scale) / bent
        return np.asarray(-np.einsum("mpq,mq->mp", vectors, along) / scale)
