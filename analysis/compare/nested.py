"""Joint fits of several structures with more and more parameters of their own, and the tests between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc, fdtrc

from analysis.arrays import Array
from analysis.engine.newton import minimise
from analysis.engine.solve import Optimum, solve
from analysis.engine.sums import Bound, SumLaw, bind
from analysis.fit import NO_NOISE, aicc

PERMUTATIONS = 999
LEVEL = 0.05
CLEAR = 1e-3
"""What is left of the noise where it is asked how small a p could be."""
MOST_LEVERAGE = 1 - 1e-6
"""A point that a parameter of its own fits exactly has no residual to jackknife."""
FLIPS = 1999
"""Samples of the wild bootstrap of laws without a constant, whose fits are projections."""
ROUGH = 1e-7
"""When the descent of a permuted sample stops: its F is then exact to four digits."""


@dataclass(frozen=True)
class JointFit:
    """One joint fit by least squares on log loss.

    free: parameters that each structure has its own of.
    parameters: how many are fitted.
    squares: sum of squared residuals of log loss.
    whole: the law bound to the data, with the terms that vanished.
    """

    free: tuple[str, ...]
    parameters: int
    squares: float
    aicc: float | None
    whole: Bound
    optimum: Optimum

    @property
    def dof(self) -> int:
        """Degrees of freedom of the residuals; a constant at its bound 0 counts as fitted."""
        return self.whole.n - self.parameters

    @property
    def at_bound(self) -> bool:
        """Whether a coefficient has vanished."""
        return bool(self.optimum.vanished)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        natural = self.optimum.bound.natural(self.optimum.phi)
        labels = [column.label for column in self.optimum.bound.columns]
        return {
            "free": list(self.free),
            "parameters": self.parameters,
            "sum_squares": self.squares,
            "aicc": self.aicc,
            "params": dict(zip(labels, map(float, natural), strict=True)),
            "at_bound": list(self.optimum.vanished),
        }


def joint_fit(
    law: SumLaw, data: dict[str, Array], loss: Array, groups: Sequence[str], free: Sequence[str]
) -> JointFit:
    """Fit a law to several structures at once.

    Args:
        law: the law.
        data: its variables, shape (n,).
        loss: shape (n,).
        groups: the structure of each point.
        free: parameters that each has its own of.

    Raises:
        AnalysisError: as `engine.sums.bind`.
    """
    bound = bind(law, data, loss, groups, free)
    optimum = solve(bound, math.inf)
    squares, p = 2 * optimum.cost, len(bound.columns)
    return JointFit(tuple(free), p, squares, aicc(squares, bound.n, p), bound, optimum)


@dataclass(frozen=True)
class NestedTest:
    """Two nested joint fits: does the larger fit better than chance would let it?

    constraints: parameters that the smaller one lacks.
    statistic, f_p: F test.
    likelihood_ratio_p: of n log(SS0 / SS1) as chi-squared: too small where points are few.
    permutation_p: share of samples with permuted residuals of the smaller fit (Freedman and Lane 1983) whose
        F is as large; None where it was not asked for.
    wild_p: the same of samples whose residuals keep their places and change their signs at random, which lets
        the noise of every point be of its own size: a wild bootstrap with signs, the smaller model imposed
        and jackknifed residuals, as Davidson and Flachaire (2008, J. Econometrics 146, 162) recommend, but of
        F in place of their robust t, so that its level is right to first order only: docs/coverage.md
        simulates it for laws without a constant, for which it is always made. With a constant it is made
        with the permutations, and rejects too seldom where runs are few. None where so few points could not
        reject at the 5 % level whatever they were, since nearly all their signs do the same.
    """

    constraints: int
    dof: int
    statistic: float
    f_p: float
    likelihood_ratio_p: float
    permutation_p: float | None
    wild_p: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


def nested_test(null: JointFit, full: JointFit, permutations: int = 0, seed: int = 0) -> NestedTest | None:
    """Test a joint fit against a larger one; None where this leaves no residuals to test with.

    Args:
        null: the smaller fit, whose parameters are among those of the other.
        full: the larger.
        permutations: samples of the permutation test, and of the wild bootstrap of a law with a constant; 0
            for none.
        seed: of the samples.
    """
    constraints, dof, n = full.parameters - null.parameters, full.dof, full.whole.n
    if dof < 1 or constraints < 1 or full.squares <= n * NO_NOISE:
        return None
    statistic = _f(null.squares, full.squares, constraints, dof)
    ratio = n * math.log(max(null.squares, full.squares) / full.squares)
    permuted = permuted_statistics(null, full, permutations, seed) if permutations else None
    flips = max(permutations, FLIPS) if is_line(full.whole) else permutations
    return NestedTest(
        constraints,
        dof,
        statistic,
        float(fdtrc(constraints, dof, statistic)),
        float(chdtrc(constraints, ratio)),
        _share(permuted, statistic),
        _wild(null, full, flips, seed, statistic) if flips else None,
    )


def _share(drawn: Array | None, statistic: float) -> float | None:
    """Share of samples, the data among them, whose F is as large."""
    if drawn is None:
        return None
    return (1 + int(np.sum(drawn >= statistic * (1 - 1e-6)))) / (1 + drawn.size)


def _wild(null: JointFit, full: JointFit, flips: int, seed: int, statistic: float) -> float | None:
    """The p of the wild bootstrap; None where it could not be small with hardly any noise either."""
    found = _share(flipped_statistics(null, full, null.whole.log_loss, flips, seed), statistic)
    if found is None or found < LEVEL or not is_line(full.whole):
        return found
    fitted = full.optimum.bound.log_value(full.optimum.phi)
    clear = fitted + CLEAR * (full.whole.log_loss - fitted)
    least = _share(
        flipped_statistics(null, full, clear, flips, seed),
        float(sampled_statistics(null, full, clear[None])[0]),
    )
    return found if least is not None and least < LEVEL else None


def _f(null: float, full: float, constraints: int, dof: int) -> float:
    return max(0.0, (null - full) / constraints / (full / dof))


def permuted_statistics(null: JointFit, full: JointFit, permutations: int, seed: int) -> Array:
    """F of samples whose residuals about the smaller fit are permuted, shape (permutations,)."""
    fitted = null.optimum.bound.log_value(null.optimum.phi)
    residual = null.whole.log_loss - fitted
    dice = np.random.default_rng(seed)
    samples = np.stack([fitted + dice.permutation(residual) for _ in range(permutations)])
    return sampled_statistics(null, full, samples)


def flipped_statistics(null: JointFit, full: JointFit, log_loss: Array, samples: int, seed: int) -> Array:
    """F of samples of the wild bootstrap about the smaller fit, shape (samples,).

    Args:
        null: the smaller fit.
        full: the larger.
        log_loss: what `null` was fitted to; of a line others may be, which are fitted here; shape (n,).
        samples: how many.
        seed: of the signs.
    """
    bound, phi = null.optimum.bound, null.optimum.phi
    fitted = bound.log_value(phi)
    if is_line(null.whole):
        basis, _ = np.linalg.qr(bound.jacobian(phi))
        fitted = basis @ (basis.T @ log_loss)
    residual = (log_loss - fitted) / (1 - leverage(bound, phi))
    return sampled_statistics(null, full, fitted + signs(samples, bound.n, seed) * residual)


def leverage(bound: Bound, phi: Array) -> Array:
    """What a fit takes of the noise of each point, below 1, shape (n,)."""
    basis, _ = np.linalg.qr(bound.jacobian(phi))
    return np.asarray(np.minimum(np.sum(basis**2, axis=1), MOST_LEVERAGE), np.float64)


def signs(samples: int, n: int, seed: int) -> Array:
    """Signs of residuals, -1 or 1 with even odds (Rademacher), shape (samples, n)."""
    return np.asarray(np.random.default_rng(seed).integers(0, 2, (samples, n)) * 2.0 - 1.0)


def is_line(bound: Bound) -> bool:
    """Whether log loss is linear in all parameters: one term, that no point leaves out."""
    return len(bound.law.terms) == 1 and bool(np.all(np.isfinite(bound.offset)))


def sampled_statistics(null: JointFit, full: JointFit, log_loss: Array) -> Array:
    """F of the two fits on other losses of the same design.

    Args:
        null: the smaller fit; where the descents start.
        full: the larger.
        log_loss: shape (b, n).

    Returns shape (b,).
    """
    small = refit_squares(null, [null], log_loss)
    large = refit_squares(full, [full, null], log_loss)
    # A larger law fits at least as well; where its descent stopped short, the smaller one's optimum counts.
    large = np.minimum(large, small)
    constraints, dof = full.parameters - null.parameters, full.dof
    return np.asarray((small - large) / constraints / np.maximum(large / dof, 1e-300))


def refit_squares(model: JointFit, starts: Sequence[JointFit], log_loss: Array) -> Array:
    """Sums of squares of a joint fit on other losses, the best over several starts, shape (b,).

    A law with a constant is also fitted without it, since a descent towards 0 is slow.
    """
    whole = model.whole
    if is_line(whole):
        basis, _ = np.linalg.qr(whole.jacobian(np.zeros(len(whole.columns))))
        return np.asarray(np.sum((log_loss - (log_loss @ basis) @ basis.T) ** 2, axis=1))
    best = np.full(len(log_loss), np.inf)
    constants = [term.coefficient for term in whole.law.terms if not term.powers]
    reduced = whole.without([column for column in whole.columns if column.name in constants])
    for bound in [whole] if not constants else [whole, reduced]:
        for start in starts:
            phi = _carried(start, bound)
            found = minimise(bound, np.tile(phi, (len(log_loss), 1)), log_loss=log_loss, tolerance=ROUGH)
            best = np.minimum(best, 2 * found.cost)
    return best


def _carried(start: JointFit, bound: Bound) -> Array:
    """Parameters of one joint fit as a start of another, that shares other parameters or has fewer."""
    known = dict(zip(start.optimum.bound.columns, start.optimum.phi, strict=True))
    out = []
    for column in bound.columns:
        values = [value for other, value in known.items() if other.name == column.name]
        same = [value for other, value in known.items() if other == column]
        if same or values:
            out.append(float(same[0]) if same else float(np.mean(values)))
        else:
            # A constant that had vanished starts at a tenth of the loss.
            out.append(float(np.log(0.1) + bound.log_loss.mean()))
    return np.array(out)
