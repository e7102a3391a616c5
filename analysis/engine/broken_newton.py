"""Batched damped Newton for the broken law: its derivatives, and the limits of its break."""

from __future__ import annotations

import numpy as np

from analysis.arrays import Array, Mask, Places
from analysis.engine.broken import C0, C1, PARAMETERS, B, BrokenBound, D, E, F, bend, log_power
from analysis.engine.newton import CHUNK_NUMBERS, EXACT, GONE, Minima, _Batch

LINEAR = [B, C0, C1]
"""What the log of the power term is linear in."""
RIDGE = 1e-12


def minimise_broken(
    bound: BrokenBound,
    starts: Array,
    weights: Array | None = None,
    delta: float | Array = np.inf,
    *,
    held: Mask | None = None,
    tolerance: float = EXACT,
) -> Minima:
    """Descend from every start, as `newton.minimise` does, with d and f inside their limits.

    Args:
        bound: law and data.
        starts: shape (b, p).
        weights: of the points, for each member: shape (b, n), (n,) or None for ones.
        delta: Huber's, for all members or each: shape (b,).
        held: parameters that stay where they start, shape (b, p) or (p,).
        tolerance: `Minima.gradient` at which a member is done.

    In `Minima.gradient` a parameter at a limit that it would cross counts as 0.
    """
    b, p = starts.shape
    spread = np.broadcast_to(np.ones(bound.n) if weights is None else weights, (b, bound.n))
    still = np.broadcast_to(np.zeros(p, bool) if held is None else held, (b, p))
    kink = np.broadcast_to(np.asarray(delta, np.float64), (b,))
    target = np.broadcast_to(bound.log_loss, (b, bound.n))
    chunk = max(1, CHUNK_NUMBERS // (bound.n * len(PARAMETERS)))
    parts = [
        _BrokenBatch(bound, target[c], starts[c], spread[c], kink[c], still[c], tolerance).run()
        for c in (slice(first, first + chunk) for first in range(0, b, chunk))
    ]
    return Minima(
        np.concatenate([part.phi for part in parts]),
        np.concatenate([part.cost for part in parts]),
        np.concatenate([part.gradient for part in parts]),
        np.concatenate([part.converged for part in parts]),
        max(part.steps for part in parts),
    )


class _BrokenBatch(_Batch):
    """Members that advance together; outside of its limits the law is that at the limits."""

    def __init__(
        self,
        bound: BrokenBound,
        log_loss: Array,
        starts: Array,
        weights: Array,
        delta: Array,
        held: Mask,
        tolerance: float,
    ) -> None:
        super().__init__(bound, log_loss, starts, weights, delta, held, tolerance)
        self.bound, self.x, self.places = bound, bound.x, bound.places
        names = [column.name for column in bound.columns]
        self.low, self.high = np.full(self.p, -np.inf), np.full(self.p, np.inf)
        for name, (low, high) in zip(("d", "f"), bound.limits, strict=True):
            if name in names:
                self.low[names.index(name)], self.high[names.index(name)] = low, high
        self.linear = np.array([names.index(PARAMETERS[place]) for place in LINEAR])
        # A break that moves no point may begin to: only E can be gone for good.
        self.positive = np.array([name == "E" for name in names])

    def _cost(self, phi: Array, members: Places) -> Array:
        """Cost of trials, shape (m,), after log b, c0 and c1 were moved in place to where it is lower.

        The log of the power term is linear in these, so that one Gauss-Newton step is nearly exact.  Without
        it, steps in d and f leave the valley, which is bent, and hundreds of short ones are needed.
        """
        whole = self.bound.whole(phi)
        with np.errstate(over="ignore", invalid="ignore"):
            power, slopes = log_power(whole, self.x)
            value = np.logaddexp(whole[:, E, None], power)
            cost = self._sum(value, members)
            linear = slopes[:, LINEAR] * ~self.held[members][:, self.linear, None]
            step = self._linear_step(linear * np.exp(power - value)[:, None], value, members)
            power -= np.einsum("mkn,mk->mn", linear, step)
            after = self._sum(np.logaddexp(whole[:, E, None], power), members)
        better = np.flatnonzero(after < cost)
        phi[better[:, None], self.linear] -= step[better]
        return np.minimum(cost, after)

    def _sum(self, value: Array, members: Places) -> Array:
        residual = np.abs(value - self.log_loss[members])
        inside = np.minimum(residual, self.delta[members])
        cost = np.einsum("mn,mn->m", self.weights[members], inside * (residual - 0.5 * inside))
        return np.where(np.isfinite(cost), cost, np.inf)

    def _linear_step(self, jacobian: Array, value: Array, members: Places) -> Array:
        """Gauss-Newton step in log b, c0 and c1, shape (m, 3), to subtract; 0 where there is none."""
        residual, delta = value - self.log_loss[members], self.delta[members]
        weights = self.weights[members]
        inside = weights * (np.abs(residual) <= delta)
        gram = np.matmul(jacobian * inside[:, None], jacobian.transpose(0, 2, 1))
        slope = np.matmul(jacobian, (weights * np.clip(residual, -delta, delta))[:, :, None])[:, :, 0]
        scale = np.sqrt(np.maximum(np.einsum("mkk->mk", gram), 1e-300))
        gram = gram / (scale[:, :, None] * scale[:, None, :]) + RIDGE * np.eye(len(LINEAR))
        known = np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(slope).all(axis=1)
        gram[~known], slope[~known] = np.eye(len(LINEAR)), 0.0
        step = np.linalg.solve(gram, (slope / scale)[:, :, None])[:, :, 0] / scale
        return np.where(np.isfinite(step), step, 0.0)

    def _expand(self, members: Places) -> tuple[Array, Array, Array, Array]:
        """Gradient (m, p), Hessian (m, p, p), norms of Jacobian columns (m, p) and of residuals (m,)."""
        self.phi[members] = np.clip(self.phi[members], self.low, self.high)
        phi, weights, delta = self.phi[members], self.weights[members], self.delta[members]
        whole = self.bound.whole(phi)
        value, share, slopes, second = _second_order(whole, self.x)
        residual = value - self.log_loss[members]
        clipped = np.clip(residual, -delta, delta)
        pull = weights * clipped
        inside = weights * (np.abs(residual) <= delta)
        jacobian = slopes * share[:, None]
        jacobian[:, E] = 1 - share
        # Second derivatives of log-sum-exp: those of the power term, and how the two terms trade places.
        trade = slopes.copy()
        trade[:, E] = -1.0
        curve = np.matmul(trade * (pull * share * (1 - share))[:, None], trade.transpose(0, 2, 1))
        curve += np.matmul(jacobian * inside[:, None], jacobian.transpose(0, 2, 1))
        for (first, other), values in second.items():
            part = np.einsum("mn,mn->m", pull * share, values)
            curve[:, first, other] += part
            if first != other:
                curve[:, other, first] += part
        jacobian, curve = jacobian[:, self.places], curve[:, self.places][:, :, self.places]
        slope = np.matmul(jacobian, pull[:, :, None])[:, :, 0]
        scale = np.sqrt(np.matmul(jacobian**2, weights[:, :, None])[:, :, 0])
        size = np.sqrt(np.einsum("mn,mn->m", weights, clipped**2))
        gone = scale < GONE * np.sqrt(weights.sum(axis=1))[:, None]
        still = self.held[members] | (gone & ((slope >= 0) | ~self.positive))
        still |= ((phi <= self.low) & (slope >= 0)) | ((phi >= self.high) & (slope <= 0))
        if still.any():
            slope[still] = 0.0
            curve[still[:, :, None] | still[:, None, :]] = 0.0
            scale[still] = 1.0
            curve[:, np.arange(self.p), np.arange(self.p)] += still
        return slope, curve, np.maximum(scale, 1e-300), size


def _second_order(whole: Array, x: Array) -> tuple[Array, Array, Array, dict[tuple[int, int], Array]]:
    """Log L and the share of the power term, shape (m, n), with the derivatives of the log of that term.

    Returns also the first, shape (m, 6, n), and the second that are not 0, each of shape (m, n).
    """
    shape = bend(whole, x)
    power, slopes = log_power(whole, x, shape)
    t, _, step, even = shape
    width, gain = np.exp(whole[:, F, None]), whole[:, C1, None]
    value = np.logaddexp(whole[:, E, None], power)
    peak = step * (1 - step)
    second = {
        (C1, D): step,
        (C1, F): -width * even,
        (D, D): -gain * peak / width,
        (D, F): -gain * peak * t,
        (F, F): -gain * width * (even + t**2 * peak),
    }
    return value, np.exp(power - value), slopes, second
