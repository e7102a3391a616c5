"""Batched damped Newton: fits a sum of power terms under many weightings, and from many starts, at once.

The objective is sum_i w_i huber_delta(log-sum-exp_k(z_ik) - log L_i), a sum and not a mean, in float64.  Its
exact Hessian is a small softmax block for each point, so that all members of a batch (starts, bootstrap
resamples) advance together in a few matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.arrays import Array, Mask, Places
from analysis.engine.sums import Bound

MAX_STEPS = 200
DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-5, 1e-14, 1e12
GRADIENT, EXACT = 1e-9, 1e-13
"""A member has converged when no column of its Jacobian has a larger share of the residuals than this."""
ROUNDING = 1e-31
"""Sums of squares of log residuals below n times this are zero to the rounding of float64."""
GONE = 1e-9
"""A parameter moves no point where the root mean square of its column of the Jacobian is below this."""
MOST_SHRINKING = -0.9
"""Share of a coefficient that one step takes away at most."""
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
    bound: Bound,
    starts: Array,
    weights: Array | None = None,
    delta: float | Array = np.inf,
    *,
    log_loss: Array | None = None,
    held: Mask | None = None,
    tolerance: float = EXACT,
    most_steps: int = MAX_STEPS,
) -> Minima:
    """Descend from every start.

    Args:
        bound: law and data.
        starts: shape (b, p).
        weights: of the points, for each member: shape (b, n), (n,) or None for ones.
        delta: where Huber's loss turns from square to absolute, in log loss; inf for least squares; for all
            members, or one for each: shape (b,).
        log_loss: other losses than those of `bound` (simulated, permuted), shape (b, n) or (n,).
        held: parameters that stay where they start, shape (b, p) or (p,).
        tolerance: `Minima.gradient` at which a member is done; one that gets no better is done in any case.
        most_steps: after which a member ends where it is.
    """
    n, k, p = bound.terms.shape
    b = starts.shape[0]

    def each(values: Array | Mask | float, width: int) -> Array:
        return np.broadcast_to(np.atleast_2d(np.asarray(values, np.float64)), (b, width))

    spread = each(1.0 if weights is None else weights, n)
    target = each(bound.log_loss if log_loss is None else log_loss, n)
    still = each(0.0 if held is None else held, p) > 0
    kink = np.broadcast_to(np.asarray(delta, np.float64), (b,))
    chunk = max(1, CHUNK_NUMBERS // (n * max(k, p)))
    parts = [
        _Batch(bound, target[c], starts[c], spread[c], kink[c], still[c], tolerance).run(most_steps)
        for c in (slice(first, first + chunk) for first in range(0, b, chunk))
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
        self,
        bound: Bound,
        log_loss: Array,
        starts: Array,
        weights: Array,
        delta: Array,
        held: Mask,
        tolerance: float,
    ) -> None:
        n, k, p = bound.terms.shape
        self.n, self.k, self.p = n, k, p
        self.tolerance, self.held = tolerance, held
        self.positive = bound.enters_by_logarithm
        # Term by term, so that points lie side by side; most terms read few of the parameters.
        self.by_term = np.ascontiguousarray(bound.terms.transpose(1, 0, 2))
        self.reads = [(int(i), int(j)) for i, j in np.argwhere(np.any(self.by_term != 0, axis=1))]
        self.rows = self.by_term.reshape(k * n, p)
        self.offset = np.ascontiguousarray(bound.offset.T).reshape(k * n)
        self.squares = np.einsum("rp,rq->rpq", self.rows, self.rows).reshape(k * n, p * p)
        self.phi = np.array(starts, np.float64)
        self.weights, self.log_loss = np.ascontiguousarray(weights), np.ascontiguousarray(log_loss)
        self.delta = delta[:, None]

    def run(self, most_steps: int = MAX_STEPS) -> Minima:
        """Newton steps until every member has converged or can go no further."""
        b = self.phi.shape[0]
        cost, gradient = np.empty(b), np.full(b, np.inf)
        damping, active = np.full(b, DAMPING), np.arange(b)
        cost[:] = self._cost(self.phi, active)
        state = self._expand(active)
        steps = 0
        while active.size and steps < most_steps:
            steps += 1
            slope, curve, scale, size = state
            gradient[active] = self._share(slope, scale, size)
            trial = self._moved(self.phi[active], self._direction(slope, curve, scale, damping[active]))
            trial_cost = self._cost(trial, active)
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
            if renew.any():
                fresh = self._expand(active[renew])
                for old, new in zip(state, fresh, strict=True):
                    old[renew] = new
            state = (slope[keep], curve[keep], scale[keep], size[keep])
            active = active[keep]
        last = self._expand(np.arange(b))
        gradient = self._share(last[0], last[2], last[3])
        converged = (gradient < 1e3 * GRADIENT) | (cost <= self.n * ROUNDING)
        return Minima(self.phi, cost, gradient, converged, steps)

    def _moved(self, phi: Array, step: Array) -> Array:
        """Go along a step: straight in the coefficients and not in their logarithms.

        The valley along which terms trade with each other, E + k = constant, is straight there.
        """
        return np.asarray(phi + np.where(self.positive, np.log1p(np.maximum(step, MOST_SHRINKING)), step))

    def _values(self, phi: Array) -> tuple[Array, Array]:
        """Log L of each point, shape (m, n), and the share of each term in it, shape (m, K, n)."""
        z = (phi @ self.rows.T + self.offset).reshape(-1, self.k, self.n)
        top = z.max(axis=1)
        share = np.exp(z - top[:, None])
        total = share.sum(axis=1)
        share /= total[:, None]
        return top + np.log(total), share

    def _cost(self, phi: Array, members: Places) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            value, _ = self._values(phi)
            residual = np.abs(value - self.log_loss[members])
            inside = np.minimum(residual, self.delta[members])
            cost = np.einsum("mn,mn->m", self.weights[members], inside * (residual - 0.5 * inside))
        return np.where(np.isfinite(cost), cost, np.inf)

    def _expand(self, members: Places) -> tuple[Array, Array, Array, Array]:
        """Gradient (m, p), Hessian (m, p, p), norms of Jacobian columns (m, p) and of residuals (m,).

        Parameters that are held, and those of a term that has vanished and wants to stay so, have neither
        slope nor coupling: the gradient is the projected one.
        """
        weights, delta = self.weights[members], self.delta[members]
        value, share = self._values(self.phi[members])
        residual = value - self.log_loss[members]
        clipped = np.clip(residual, -delta, delta)
        pull = weights * clipped
        inside = weights * (np.abs(residual) <= delta)
        jacobian = np.zeros((len(members), self.p, self.n))
        for term, place in self.reads:
            jacobian[:, place] += share[:, term] * self.by_term[term, :, place]
        slope = np.matmul(jacobian, pull[:, :, None])[:, :, 0]
        softmax = (pull[:, None] * share).reshape(len(members), -1) @ self.squares
        outer = np.matmul(jacobian * (inside - pull)[:, None], jacobian.transpose(0, 2, 1))
        curve = softmax.reshape(-1, self.p, self.p) + outer
        scale = np.sqrt(np.matmul(jacobian**2, weights[:, :, None])[:, :, 0])
        size = np.sqrt(np.einsum("mn,mn->m", weights, clipped**2))
        gone = scale < GONE * np.sqrt(weights.sum(axis=1))[:, None]
        still = self.held[members] | (gone & ((slope >= 0) | ~self.positive))
        if still.any():
            slope[still] = 0.0
            curve[still[:, :, None] | still[:, None, :]] = 0.0
            scale[still] = 1.0
            curve[:, np.arange(self.p), np.arange(self.p)] += still
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
        # Columns have length 1, so the damping is measured against 1: a term that vanishes has a large
        # curvature of its own, which must not slow the others.
        bent = np.maximum(np.abs(values), 1e-15 * floor) + damping[:, None]
        along = np.einsum("mpq,mp->mq", vectors, slope / scale) / bent
        return np.asarray(-np.einsum("mpq,mq->mp", vectors, along) / scale)
