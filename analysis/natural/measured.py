"""Gamma as measured: the slope of log N(D) over log D through the budgets, with an interval by simulation.

The tables that are simulated: the curves over sizes that were fitted (`reach.curves`) with normal noise of
the runs' own scatter about them, whole runs moving together where several points are of one. Each goes
through all of the method, an irreducible loss that is fitted and the refusals included. The interval is that
of the simulated gammas (bias-corrected percentiles), moved from what the curves without noise give to the
measured gamma. Losses of a budget whose tokens differ are brought to one D first, in every table by its own
fit of the law (`level`). On what tables the intervals were found to hold the truth: docs/natural.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from analysis.arrays import Array
from analysis.fit import Fit
from analysis.natural import level
from analysis.natural.estimate import LARGEST, LIMIT, Choice, Estimate, Floor, Reach
from analysis.natural.reach import (
    ABOVE,
    BELOW,
    LEAST_BUDGETS,
    LEAST_SIZES,
    REACHED,
    Budget,
    Crossings,
    Curves,
    Excess,
    budgets_of,
    curves,
    slope,
)
from analysis.uncertainty import CONFIDENCE, t_quantile

RESAMPLES = 1000
LEAST_DOF = 3
MOST_LOST = 0.2
"""Simulated tables that may give no gamma before there is no interval."""
MOST_BIASED = 0.1
"""Share of simulated values on one side of the truth below which more is not made of it."""
METHOD = "noise simulated about the curves over sizes"


@dataclass(frozen=True)
class Tables:
    """The measured losses and the simulated ones.

    losses: shape (R, n): the measured table, the curves without noise, then simulated ones; within a budget
        brought to one D.
    floor: irreducible loss of each, shape (R,); NaN where its fit came to nothing.
    curves: fitted to each.
    widen: by how much errors must be stretched, since the noise is known from few runs.
    """

    losses: Array
    floor: Array
    curves: Curves
    widen: float


class Measured:
    """The measured N(D) of one curve, under any choice of what is wanted.

    Args:
        params: N, shape (n,).
        tokens: D, shape (n,).
        loss: nats per token, shape (n,).
        floor: the irreducible loss.
        fit: of L = E + A N^-alpha + B D^-beta to the same runs, with E held where it is known; None where
            the law is not identified.
        clusters: the run of each point, or None.
        resamples: simulated tables.
        seed: of the simulation.
    """

    def __init__(
        self,
        params: Array,
        tokens: Array,
        loss: Array,
        floor: Floor,
        fit: Fit | None,
        clusters: Sequence[str] | None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.params, self.floor, self.reason = params, floor, ""
        self.budgets: list[Budget] = budgets_of(params, tokens)
        self.apart = level.apart(self.budgets, tokens)
        if len(self.budgets) < LEAST_BUDGETS:
            some = f"{len(self.budgets)} token budgets with {LEAST_SIZES} sizes or more"
            self.reason = f"{some}; a line needs {LEAST_BUDGETS}"
        elif floor.value is None:
            self.reason = (
                "the irreducible loss is not known: no column entropy_rate, and with E fitted "
                f"the law is not identified ({floor.reason})"
            )
        elif fit is None and self.apart > level.MOST_APART:
            self.reason = (
                f"tokens of one budget differ by up to {100 * math.expm1(self.apart):.2g} %, and no law is "
                "identified that would bring their losses to one D"
            )
        if self.reason:
            return
        self.levelled = fit is not None and self.apart > level.EQUAL
        self.tables, self.no_interval = _simulated(
            self.budgets, params, tokens, loss, floor, fit, clusters, resamples, seed
        )
        self.excess = [Excess(budget, self.tables.losses, self.tables.floor) for budget in self.budgets]

    def choice(self, within: float, reference: str) -> Choice:
        """Gamma, and N at each budget, under one choice."""
        if self.reason:
            return Choice(within, reference, Estimate("measured", None, reason=self.reason), ())
        found = [
            excess.crossing(within, reference, self.tables.curves.limits[:, j] - self.tables.floor)
            for j, excess in enumerate(self.excess)
        ]
        logs = np.stack([one.log_params for one in found], axis=1)
        log_tokens = np.log([budget.tokens for budget in self.budgets])
        gammas = slope(log_tokens, logs)
        reached = tuple(
            self._reach(budget, one, reference) for budget, one in zip(self.budgets, found, strict=True)
        )
        return Choice(within, reference, self._estimate(gammas, reached), reached)

    def limits_below(self) -> tuple[int, int]:
        """Budgets whose limit of N without limit lies below a known E, and those where its interval does too.

        Under the law it lies above by B D^-beta. Nothing is compared with an E that is fitted.
        """
        if self.reason or not self.floor.exact:
            return 0, 0
        over = self.tables.curves.limits - self.tables.floor[:, None]
        below = [j for j in range(len(self.budgets)) if over[0, j] < 0]
        errors = [(j, _error(over[:, j], self.tables.widen)[0]) for j in below]
        sure = [j for j, e in errors if e is not None and not self.no_interval and over[0, j] + e[1] < 0]
        return len(below), len(sure)

    @property
    def by_law(self) -> bool:
        """Whether what is measured rests on the fitted law: by its E, or by its slope in D."""
        return not self.reason and (not self.floor.exact or (self.levelled and self.apart > level.MOST_APART))

    def _estimate(self, gammas: Array, reached: Sequence[Reach]) -> Estimate:
        used = sum(one.params is not None for one in reached)
        if not math.isfinite(gammas[0]):
            return Estimate("measured", None, reason=_too_few(reached))
        value = float(gammas[0])
        error, lost_share = _error(gammas, self.tables.widen)
        reason = self.no_interval
        if not reason and lost_share > MOST_LOST:
            reason = f"{100 * lost_share:.0f} % of the simulated tables leave fewer than three budgets"
        if reason or error is None:
            why = reason or "nothing to simulate from"
            return Estimate("measured", value, reason=f"no interval: {why}")
        method = f"line through {used} budgets; {METHOD}, {len(gammas) - 2} tables"
        if self.levelled and self.apart > level.MOST_APART:
            method += f"; tokens up to {100 * math.expm1(self.apart):.2g} % apart brought to one D by the law"
        # What noise shifts the method by may be more than its spread: the interval holds the value even so.
        low, high = min(value + error[0], value), max(value + error[1], value)
        return Estimate("measured", value, low, high, method)

    def _reach(self, budget: Budget, one: Crossings, reference: str) -> Reach:
        smallest, largest = (float(np.exp(budget.log_sizes[end])) for end in (0, -1))
        wanted = float(one.wanted[0]) if math.isfinite(one.wanted[0]) else None
        state = int(one.state[0])
        if state == REACHED:
            value = float(one.log_params[0])
            error, lost = _error(one.log_params, self.tables.widen)
            if self.no_interval or error is None or lost > MOST_LOST:
                return Reach(budget.tokens, smallest, largest, math.exp(value), wanted=wanted)
            low, high = math.exp(min(value + error[0], value)), math.exp(max(value + error[1], value))
            return Reach(budget.tokens, smallest, largest, math.exp(value), low, high, "", wanted)
        if state in (BELOW, ABOVE):
            side = "below" if state == BELOW else "above"
            reason = "the smallest size reaches it" if state == BELOW else "no size reaches it"
            return Reach(budget.tokens, smallest, largest, None, None, None, side, wanted, reason)
        if reference == LIMIT and not math.isfinite(self.tables.curves.alpha[0]):
            reason = "the curves over sizes show no bend towards a limit"
        elif reference == LARGEST:
            reason = "the largest size lies at or below the irreducible loss"
        else:
            reason = "the curve or its limit lies at or below the irreducible loss"
        return Reach(budget.tokens, smallest, largest, None, reason=reason)


def _too_few(reached: Sequence[Reach]) -> str:
    """Why the budgets give no line."""
    used = sum(one.params is not None for one in reached)
    below, above = (sum(one.censored == side for one in reached) for side in ("below", "above"))
    lost = [one.reason for one in reached if one.params is None and not one.censored]
    if len(lost) == len(reached):
        return f"no budget has a least excess to compare with: {lost[0]}"
    parts = [
        f"{below} reached by the smallest size already" if below else "",
        f"{above} by no size" if above else "",
        f"{len(lost)} without a least excess ({lost[0]})" if lost else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f"{used} of {len(reached)} budgets give a size ({told}); a line needs {LEAST_BUDGETS}"


def _error(values: Array, widen: float) -> tuple[tuple[float, float] | None, float]:
    """How far the truth may lie from a measured value, and the share of simulated tables that have none.

    Quantiles of the simulated values from that of the curves without noise. Budgets that noise censors draw
    the slope towards 0, so their levels are those of the bias-corrected percentiles (Efron 1987, section 2):
    moved by twice the normal quantile of the share of simulated values that lie below.
    """
    if values.size < 3 or not math.isfinite(values[1]):
        return None, 1.0
    drawn = values[2:]
    there = drawn[np.isfinite(drawn)]
    lost = 1 - there.size / drawn.size
    if lost > MOST_LOST:
        return None, lost
    away = there - values[1]
    share = (np.mean(away < 0) + np.mean(away <= 0)) / 2
    bias = float(ndtri(np.clip(share, MOST_BIASED, 1 - MOST_BIASED)))
    tail = float(ndtri((1 + CONFIDENCE) / 2))
    low, high = np.quantile(away, [ndtr(2 * bias - tail), ndtr(2 * bias + tail)]) * widen
    return (float(low), float(high)), lost


def _simulated(
    budgets: list[Budget],
    params: Array,
    tokens: Array,
    loss: Array,
    floor: Floor,
    fit: Fit | None,
    clusters: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> tuple[Tables, str]:
    """The tables, and why there is no interval where there is none."""
    assert floor.value is not None
    uneven = fit is not None and level.apart(budgets, tokens) > level.EQUAL
    shift = np.zeros(loss.size)
    if fit is not None and uneven:
        shift = level.beyond(fit.optimum.bound, fit.optimum.phi[None], budgets, tokens)[0]
    first = curves(budgets, params, (loss - shift)[None])
    inside = np.isfinite(first.fitted)
    smooth = np.where(inside, first.fitted + shift, loss)
    if fit is not None and (uneven or not floor.exact):
        # Runs of no budget count in the fit of the law alone.
        smooth = np.where(inside, smooth, np.exp(fit.optimum.bound.log_value(fit.optimum.phi)))
    residual = np.log(loss[inside]) - np.log(smooth[inside])
    labels = None if clusters is None else [one for one, yes in zip(clusters, inside, strict=True) if yes]
    runs = len(set(labels)) if labels is not None else residual.size
    dof = min(residual.size - len(budgets) - 2, runs - 3)
    rows, why = [loss, smooth], ""
    if dof < LEAST_DOF or not bool(np.all(smooth > 0)):
        why = f"{residual.size} points leave {max(dof, 0)} degrees of freedom for the noise"
        dof = 1
    else:
        noise = _noise(residual, residual.size - len(budgets) - 2, labels)
        rows += list(smooth * np.exp(_drawn(noise, clusters, loss.size, resamples, seed)))
    losses = np.stack(rows)
    floors = np.full(len(rows), floor.value)
    if fit is not None and (uneven or not floor.exact):
        losses, floors[1:] = _by_own_law(losses, fit, floor, budgets, tokens, uneven)
    widen = t_quantile(dof) / t_quantile(10**9) if not why else 1.0
    return Tables(losses, floors, curves(budgets, params, losses), widen), why


def _by_own_law(
    losses: Array, fit: Fit, floor: Floor, budgets: list[Budget], tokens: Array, uneven: bool
) -> tuple[Array, Array]:
    """Losses brought to their budgets' D, and the irreducible loss of all tables but the first.

    The law is fitted to every table anew; where that does not converge the irreducible loss is NaN.
    """
    bound = fit.optimum.bound
    phi, good = level.refitted(fit, losses[1:])
    if uneven:
        every = np.vstack([fit.optimum.phi, np.where(good[:, None], phi, fit.optimum.phi)])
        losses = losses - level.beyond(bound, every, budgets, tokens)
    own = np.full(len(phi), floor.value) if floor.exact else np.exp(phi[:, bound.place("E")])
    return losses, np.where(good, own, np.nan)


def _noise(residual: Array, dof: int, labels: Sequence[str] | None) -> tuple[float, float]:
    """Standard deviations of log loss: of whole runs, and of points within them (analysis of variance)."""
    total = float(residual @ residual) / dof
    if labels is None or len(set(labels)) == len(labels):
        return 0.0, math.sqrt(total)
    _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(group, residual) / counts
    spare = max(1, residual.size - counts.size)
    within = float(np.sum((residual - means[group]) ** 2)) / spare
    return math.sqrt(max(total - within, 0.0)), math.sqrt(min(within, total))


def _drawn(
    noise: tuple[float, float], clusters: Sequence[str] | None, n: int, resamples: int, seed: int
) -> Array:
    """Simulated noise in log loss, shape (resamples, n)."""
    dice = np.random.default_rng(seed)
    of_points = noise[1] * dice.standard_normal((resamples, n))
    if clusters is None or noise[0] == 0:
        return np.asarray(of_points)
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return np.asarray(of_points + noise[0] * dice.standard_normal((resamples, names.size))[:, index])


def sensitivity(within: float, shares: Sequence[float]) -> list[tuple[float, str]]:
    """The choices that a report shows beside the chosen one: (share, reference)."""
    every = sorted({within, *shares})
    return [(share, reference) for reference in (LIMIT, LARGEST) for share in every]
