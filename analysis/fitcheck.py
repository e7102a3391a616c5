"""What a fit shows about itself: codes SL001 to SL008, SL018 and SL020 to SL023 of the catalogue."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import fdtrc, stdtrit

from analysis.arrays import Array
from analysis.breakcheck import break_findings, break_signs
from analysis.compare.ftest import NO_NOISE
from analysis.digits import number, probability
from analysis.engine.broken import BrokenBound
from analysis.engine.solve import Optimum, descend
from analysis.findings import Finding
from analysis.uncertainty import LEAST_CLUSTERS, Spread

ILL_CONDITIONED = 3e3
"""Condition numbers: about 200 for a grid of sizes and ratios, above 1e5 for sizes along D = 20 N."""
CANDIDATE, FEW, MOVED = 3.5, 0.1, 0.5
"""Outliers are sought beyond so many robust standard deviations, among at most this share of the points, and
are influential where they move an exponent by so many of its standard errors."""
COLLINEAR = 0.98
"""Squared correlation of the logarithms of two variables from which on they vary as one."""
DELTA_RANGE = (0.3, 10.0)
SHORT = 10.0


def fit_findings(
    optimum: Optimum,
    spread: Spread | None,
    condition: float,
    floor: str | None,
    clusters: Sequence[str] | None,
) -> tuple[list[Finding], bool]:
    """All that is wrong with a fit, and whether its parameters are identified.

    Args:
        optimum: the fit.
        spread: its errors; None where there are none.
        condition: number of its Jacobian.
        floor: why its constant may as well be 0, or None.
        clusters: the run of each point, or None.
    """
    breaks, descent = break_findings(optimum, spread), _descent(optimum)
    design = breaks or _design(optimum, spread, condition)
    unidentified = [*_vanished(optimum), *_floor(floor), *design]
    # Without a break its parameters may be anything, which says nothing of the rest.
    several = [] if any(one.code == "SL007" for one in breaks) else _minima(optimum)
    others = [
        *descent,
        *several,
        *_delta(optimum, spread),
        *_errors(optimum, spread, clusters),
        *outliers(optimum, spread),
        *_signs(optimum),
        *_lack_of_fit(optimum),
    ]
    return [*unidentified, *others], not (unidentified or several or descent) and spread is not None


def _descent(optimum: Optimum) -> list[Finding]:
    noise = 2 * optimum.cost > optimum.bound.n * NO_NOISE
    found = []
    if not optimum.converged and noise:
        found.append(Finding("SL001", f"the gradient is {optimum.gradient:.1g} of the residuals"))
    if not optimum.moved and noise:
        found.append(Finding("SL002", f"none of {optimum.starts} starts leads away from where it began"))
    return found


def _vanished(optimum: Optimum) -> list[Finding]:
    law, found = optimum.bound.law, []
    for label in optimum.vanished:
        constant = any(label.split("[")[0] == term.coefficient and not term.powers for term in law.terms)
        what = "the points show no bend towards a floor" if constant else "the points do not need its term"
        found.append(Finding("SL007", f"{label} is at its bound 0: {what}"))
    return found


def _floor(reason: str | None) -> list[Finding]:
    return [Finding("SL007", reason)] if reason is not None else []


def _minima(optimum: Optimum) -> list[Finding]:
    if len(optimum.minima) < 2 or optimum.vanished:
        return []
    names = optimum.bound.columns
    parts = []
    for place, column in enumerate(names):
        if column.name in optimum.bound.law.exponents:
            low, high = optimum.minima[:, place].min(), optimum.minima[:, place].max()
            parts.append(f"{column.label} from {low:.3g} to {high:.3g}")
    count = len(optimum.minima)
    return [Finding("SL004", f"{count} optima fit within 5 %: {', '.join(parts)}")]


def _design(optimum: Optimum, spread: Spread | None, condition: float) -> list[Finding]:
    bound, found = optimum.bound, []
    if pair := _diagonal(optimum):
        found.append(Finding("SL006", pair))
    elif condition > ILL_CONDITIONED:
        found.append(
            Finding("SL006", f"condition number {condition:.1g}: over these points its terms look alike")
        )
    if spread is None or not np.isfinite(spread.covariance).all():
        return found
    open_ones = []
    for place, column in enumerate(bound.columns):
        if column.name in bound.law.exponents and not found:
            error = math.sqrt(spread.covariance[place, place])
            if error > abs(float(optimum.phi[place])):
                open_ones.append(f"{column.label} = {number(float(optimum.phi[place]), error)} ± {error:.2g}")
    if open_ones:
        found.append(Finding("SL006", f"{', '.join(open_ones)}: the error exceeds the value"))
    return found


def _diagonal(optimum: Optimum) -> str | None:
    """Two variables of the law that vary as one over the points, in words."""
    bound = optimum.bound
    names = [name for term in bound.law.terms for name in term.powers]
    logs = {
        name: -bound.terms[:, k, bound.place(exponent, bound.columns[0].group)]
        for k, term in enumerate(bound.law.terms)
        for name, exponent in term.powers.items()
        if any(exponent == column.name for column in bound.columns)
        and all(column.group == "" for column in bound.columns)
    }
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if first not in logs or second not in logs or first == second:
                continue
            r = float(np.corrcoef(logs[first], logs[second])[0, 1])
            if r * r > COLLINEAR:
                return f"{first} and {second} vary together (r^2 = {r * r:.4f}), as along one line D = k N"
    return None


def _delta(optimum: Optimum, spread: Spread | None) -> list[Finding]:
    if spread is None or not math.isfinite(optimum.delta) or spread.noise**2 < NO_NOISE:
        return []
    ratio = optimum.delta / optimum.sigma if optimum.sigma > 0 else math.inf
    low, high = DELTA_RANGE
    if ratio < low:
        effect = "the fit is close to a median regression, and its intervals are wider"
    elif ratio > high:
        effect = "it never takes effect: the fit is least squares"
    else:
        return []
    sentence = f"delta {optimum.delta:.2g} is {ratio:.2g} times the noise {optimum.sigma:.2g}: {effect}"
    return [Finding("SL005", sentence)]


def _errors(optimum: Optimum, spread: Spread | None, clusters: Sequence[str] | None) -> list[Finding]:
    bound, p = optimum.bound, optimum.phi.size
    runs = len(set(clusters)) if clusters is not None else bound.n
    if spread is None and runs < bound.n:
        least = max(LEAST_CLUSTERS, p + 1)
        return [
            Finding("SL018", f"no standard error: {runs} runs, and to leave out whole runs needs {least}")
        ]
    if spread is None and bound.n <= p:
        return [Finding("SL020", f"no standard error: {bound.n} points, {p} parameters")]
    if spread is None:
        return [Finding("SL006", "no standard error: the parameters cannot be told apart")]
    if spread.failed > 0.02 * (spread.failed + len(spread.draws if spread.draws is not None else [])):
        return [Finding("SL001", f"{spread.failed} bootstrap resamples did not converge; they are left out")]
    return []


def outliers(optimum: Optimum, spread: Spread | None) -> list[Finding]:
    """Points far off the law that move an exponent when they are left out together."""
    bound, p = optimum.bound, optimum.phi.size
    if spread is None or 2 * optimum.cost <= bound.n * NO_NOISE:
        return []
    residual = bound.log_value(optimum.phi) - bound.log_loss
    middle = float(np.median(np.abs(residual))) / 0.6745 * math.sqrt(bound.n / (bound.n - p))
    far = np.flatnonzero(np.abs(residual) > CANDIDATE * middle)
    spare = bound.n - far.size - p
    if not 0 < far.size <= max(1, round(FEW * bound.n)) or spare < 3:
        return []
    weights = np.ones(bound.n)
    weights[far] = 0.0
    # Against least squares, which is what most fits are: Huber's loss has halved the harm already.
    whole = descend(bound, optimum.phi[None])
    without = descend(bound, optimum.phi[None], weights)
    rest = bound.log_value(without.phi[0]) - bound.log_loss
    noise = math.sqrt(2 * float(without.cost[0]) / spare)
    # Among n clean points one lies further off with a probability of one in ten thousand.
    limit = float(stdtrit(spare, 1 - 0.5e-4 / bound.n)) * noise
    far = far[np.abs(rest[far]) > limit]
    parts = _moved(optimum, spread, whole.phi[0], without.phi[0])
    if not far.size or not parts:
        return []
    rows = ", ".join(str(int(i) + 1) for i in far[:8]) + (" ..." if far.size > 8 else "")
    what = f"point {rows} is" if far.size == 1 else f"points {rows} are"
    sentence = f"{what} over {limit / noise:.1f} sd off; without them least squares moves {', '.join(parts)}"
    return [Finding("SL008", sentence)]


def _moved(optimum: Optimum, spread: Spread, before: Array, after: Array) -> list[str]:
    parts = []
    for place, column in enumerate(optimum.bound.columns):
        error = math.sqrt(spread.covariance[place, place])
        if column.name in optimum.bound.law.exponents and abs(after[place] - before[place]) > MOVED * error:
            old, new = number(float(before[place]), error), number(float(after[place]), error)
            parts.append(f"{column.label} from {old} to {new}")
    return parts


def _signs(optimum: Optimum) -> list[Finding]:
    bound = optimum.bound
    if isinstance(bound, BrokenBound):
        return break_signs(optimum)
    wrong = [
        f"{column.label} = {optimum.phi[place]:.3g}"
        for place, column in enumerate(bound.columns)
        if column.name in bound.law.exponents and optimum.phi[place] <= 0
    ]
    return [Finding("SL022", f"{', '.join(wrong)}: the loss does not fall")] if wrong else []


def _lack_of_fit(optimum: Optimum) -> list[Finding]:
    """Replicates (equal variables, other seeds) measure the noise without any law."""
    bound = optimum.bound
    found = lack_of_fit(bound.terms, bound.log_value(optimum.phi) - bound.log_loss, optimum.phi.size)
    if found is None or found[2] > 0.01:
        return []
    statistic, dof, p_value = found
    sentence = (
        f"the law misses by more than replicates scatter (F({dof[0]}, {dof[1]}) = {statistic:.1f}, "
        f"p {probability(p_value)})"
    )
    return [Finding("SL021", sentence)]


def lack_of_fit(
    terms: Array, residual: Array, parameters: int
) -> tuple[float, tuple[int, int], float] | None:
    """F test of the law against the pure error of replicates; None where there are too few of these.

    Args:
        terms: what each point reads, shape (n, K, p): replicates read the same.
        residual: of log loss, shape (n,).
        parameters: fitted.
    """
    _, cell = np.unique(np.round(terms.reshape(len(terms), -1), 9), axis=0, return_inverse=True)
    cells = int(cell.max()) + 1
    pure_dof, lack_dof = len(residual) - cells, cells - parameters
    if pure_dof < 3 or lack_dof < 1:
        return None
    means = np.bincount(cell.ravel(), residual) / np.bincount(cell.ravel())
    pure = float(np.sum((residual - means[cell.ravel()]) ** 2))
    lack = float(residual @ residual) - pure
    if pure <= len(residual) * NO_NOISE:
        return None
    statistic = max(0.0, (lack / lack_dof) / (pure / pure_dof))
    return statistic, (lack_dof, pure_dof), float(fdtrc(lack_dof, pure_dof, statistic))
