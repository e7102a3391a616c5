"""Tests whether structures differ in their exponents, with and without an irreducible loss, and says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import brentq, least_squares
from scipy.special import fdtrc, gammaincinv, ndtr

from analysis.digits import number, probability
from analysis.errors import AnalysisError
from analysis.fit import distinct_budgets, t_quantile
from analysis.laws import Array
from analysis.search import ROUNDING

LEVEL, POWER = 0.05, 0.80
FLOOR_GRID = 60

Groups = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class SlopeTest:
    """The F test of one exponent for all structures against one for each, by nested least squares.

    hypothesis: `none` (no irreducible loss), `given` (E subtracted) or `shared` (one E, fitted).
    exponents, standard_errors: by structure, under separate exponents.
    irreducible, irreducible_se: E in nats per token; its error only where it is fitted inside its bounds.
    detectable: the smallest difference between two structures' exponents that would be found with 80 %
        probability at the 5 % level, for the pair of structures where it is largest.
    caution: why the test is to be read with care, or None.
    """

    hypothesis: str
    exponents: dict[str, float]
    standard_errors: dict[str, float]
    common: float
    irreducible: float
    irreducible_se: float | None
    statistic: float
    dof: tuple[int, int]
    p_value: float
    residual_sd: float
    detectable: float
    caution: str | None

    @property
    def rejected(self) -> bool:
        """Whether equality is rejected at the 5 % level."""
        return self.p_value < LEVEL

    def to_dict(self) -> dict[str, Any]:
        """JSON form, float64 at full precision."""
        return {**vars(self), "dof": list(self.dof), "rejected": self.rejected}


@dataclass(frozen=True)
class NoTest:
    """A test that the data do not allow, and why."""

    hypothesis: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"hypothesis": self.hypothesis, "refused": self.reason}


@dataclass(frozen=True)
class Comparison:
    """All tests of a table, and what they amount to in words."""

    tests: tuple[SlopeTest | NoTest, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"tests": [test.to_dict() for test in self.tests], "verdict": self.verdict}


@dataclass(frozen=True)
class _Joint:
    """A joint fit: alphas (one, or one a group), E, squared residuals, covariance of (alphas..., E)."""

    alphas: Array
    irreducible: float
    cost: float
    inverse: Array
    interior: bool


def compare_slopes(groups: Groups, design: str | None = None, irreducible: float | None = None) -> Comparison:
    """Test equality of exponents without E, under a given E if there is one, and under one shared fitted E.

    Args:
        groups: structure -> (training FLOPs, losses), arrays of shape (n,).
        design: the design in words, such as `4 sizes x 1 seed`; the number of runs by default.
        irreducible: a known E in nats per token, such as the entropy rate of a synthetic source.

    Raises:
        AnalysisError: the given E is negative or not below every loss.
    """
    usable = {
        name: (np.asarray(flops, np.float64), np.asarray(loss, np.float64))
        for name, (flops, loss) in groups.items()
        if len(loss) >= 3 and distinct_budgets(np.asarray(flops, np.float64)) >= 3
    }
    tests: list[SlopeTest | NoTest] = [slope_test(usable, 0.0)]
    if irreducible is not None:
        tests.append(slope_test(usable, irreducible))
    tests.append(slope_test(usable, None))
    words = design or f"{sum(len(loss) for _, loss in groups.values())} runs"
    return Comparison(tuple(tests), verdict(tests, words))


def slope_test(groups: Groups, irreducible: float | None) -> SlopeTest | NoTest:
    """Test that all structures share one exponent.

    With E = 0 or a given E the model is a line in log(L - E) against log C for each structure; with E fitted
    (None) it is E + k_g (C/C0)^-alpha_g in log loss, E being optimised anew under each hypothesis.

    Raises:
        AnalysisError: the given E is negative or not below every loss.
    """
    name = "shared" if irreducible is None else "given" if irreducible > 0 else "none"
    if len(groups) < 2:
        return NoTest(name, f"{len(groups)} structure with enough points: nothing to compare")
    data = _centred(groups)
    lowest = min(float(np.exp(y).min()) for _, y in data)
    if irreducible is not None and not 0 <= irreducible < lowest:
        raise AnalysisError(
            f"irreducible loss {irreducible:g}: must lie from 0 to below the lowest loss {lowest:g}; mend it"
        )
    g, n = len(data), sum(y.size for _, y in data)
    dof = n - 2 * g - (1 if irreducible is None else 0)
    if dof < 1:
        return NoTest(name, f"{n} points leave no degree of freedom beside {n - dof} parameters")
    if irreducible is None:
        full, null = _fit_shared(data, lowest, False), _fit_shared(data, lowest, True)
    else:
        lines = [(x, np.log(np.exp(y) - irreducible)) for x, y in data]
        full, null = _fit_lines(lines, irreducible, False), _fit_lines(lines, irreducible, True)
    if full.cost <= n * ROUNDING:
        return NoTest(name, "the curves pass through every point: there is no noise to test against")
    return _slope_test(name, list(groups), full, null, dof)


def _slope_test(name: str, labels: list[str], full: _Joint, null: _Joint, dof: int) -> SlopeTest:
    g = len(labels)
    variance = full.cost / dof
    covariance = variance * full.inverse
    statistic = max(0.0, (null.cost - full.cost) / (g - 1) / variance)
    errors = np.sqrt(np.diag(covariance))
    pairs = [
        math.sqrt(max(0.0, covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]))
        for i in range(g)
        for j in range(i)
    ]
    fitted = name == "shared"
    return SlopeTest(
        hypothesis=name,
        exponents=dict(zip(labels, map(float, full.alphas), strict=True)),
        standard_errors=dict(zip(labels, map(float, errors[:g]), strict=True)),
        common=float(null.alphas[0]),
        irreducible=full.irreducible,
        irreducible_se=float(errors[g]) if fitted and full.interior else None,
        statistic=statistic,
        dof=(g - 1, dof),
        p_value=float(fdtrc(g - 1, dof, statistic)),
        residual_sd=math.sqrt(variance),
        detectable=detectable_difference(max(pairs), dof),
        caution=_caution(full, null) if fitted else None,
    )


def _caution(full: _Joint, null: _Joint) -> str | None:
    if full.irreducible <= 0:
        return "the shared E is at its bound 0, so the points do not identify it"
    if not full.interior:
        return "the shared E is at its bound, the lowest loss, so the points do not identify it"
    return "E is at a bound where the exponents are shared" if not null.interior else None


def detectable_difference(
    standard_error: float, dof: int, level: float = LEVEL, power: float = POWER
) -> float:
    """Return the difference that a two-sided t test at `level` finds with probability `power`.

    The noncentral t distribution is used, not the normal one: with few degrees of freedom they differ much.
    """
    return standard_error * _detectable_in_errors(dof, level, power)


@cache
def _detectable_in_errors(dof: int, level: float, power: float) -> float:
    critical = t_quantile(dof, 1 - level)
    # The noncentral t as a mean over quantiles of the noise estimate: scipy's own is NaN for large shifts.
    quantiles = (np.arange(10_000) + 0.5) / 10_000
    noise = np.sqrt(2 * gammaincinv(dof / 2, quantiles) / dof)

    def shortfall(shift: float) -> float:
        found = ndtr(shift - critical * noise) + ndtr(-shift - critical * noise)
        return float(found.mean()) - power

    high = critical + 2.0
    while shortfall(high) < 0:
        high *= 1.5
    return float(brentq(shortfall, 0.0, high, xtol=1e-12))


def _centred(groups: Groups) -> list[tuple[Array, Array]]:
    """Each structure's (log C - log C0, log L), C0 the geometric mean over all."""
    logs = [(np.log(flops), np.log(loss)) for flops, loss in groups.values()]
    centre = float(np.concatenate([x for x, _ in logs]).mean())
    return [(x - centre, y) for x, y in logs]


def _fit_lines(lines: list[tuple[Array, Array]], irreducible: float, common: bool) -> _Joint:
    """Parallel or free straight lines by ordinary least squares, in closed form."""
    centred = [(x - x.mean(), y - y.mean()) for x, y in lines]
    sxx = np.array([float(x @ x) for x, _ in centred])
    sxy = np.array([float(x @ y) for x, y in centred])
    slopes = np.array([sxy.sum() / sxx.sum()]) if common else sxy / sxx
    each = np.broadcast_to(slopes, sxx.shape)
    cost = sum(float(((y - b * x) ** 2).sum()) for (x, y), b in zip(centred, each, strict=True))
    return _Joint(-slopes, irreducible, cost, np.diag(1 / (sxx.sum(keepdims=True) if common else sxx)), True)


def _weighted_lines(
    data: list[tuple[Array, Array]], floor: float, common: bool
) -> tuple[Array, Array, float]:
    """Near-optimal log k and alpha for a fixed E.

    Lines in log(L - E), weighted by ((L - E) / L)^2: to first order these are residuals of log L.
    """
    parts = []
    for x, y in data:
        rest = np.exp(y) - floor
        w = (rest / np.exp(y)) ** 2
        mx, mz = float(w @ x / w.sum()), float(w @ np.log(rest) / w.sum())
        dx, dz = x - mx, np.log(rest) - mz
        parts.append((mx, mz, float(w @ dx**2), float(w @ (dx * dz)), float(w @ dz**2)))
    mx, mz, sxx, sxz, szz = np.array(parts).T
    slopes = np.full(len(data), sxz.sum() / sxx.sum()) if common else sxz / sxx
    cost = float((szz - 2 * slopes * sxz + slopes**2 * sxx).sum())
    return mz - slopes * mx, -slopes, cost


def _fit_shared(data: list[tuple[Array, Array]], lowest: float, common: bool) -> _Joint:
    """One E for all structures: a profile over E gives the starts, joint least squares the optimum."""
    g = len(data)
    x = np.concatenate([part for part, _ in data])
    y = np.concatenate([part for _, part in data])
    group = np.repeat(np.arange(g), [part.size for part, _ in data])
    slot = np.zeros_like(group) if common else group

    def residuals(p: Array) -> Array:
        return np.asarray(np.log(p[0] + np.exp(p[1 + group] - p[1 + g + slot] * x)) - y)

    def jacobian(p: Array) -> Array:
        u = np.exp(p[1 + group] - p[1 + g + slot] * x)
        out = np.zeros((x.size, p.size))
        out[:, 0] = 1.0
        out[np.arange(x.size), 1 + group] = u
        out[np.arange(x.size), 1 + g + slot] = -x * u
        return np.asarray(out / (p[0] + u)[:, None])

    floors = lowest * np.sin(np.linspace(0, 0.5 * np.pi * 0.98, FLOOR_GRID)) ** 2
    profile = [_weighted_lines(data, float(floor), common) for floor in floors]
    costs = np.array([cost for _, _, cost in profile])
    dips = [i for i in range(1, FLOOR_GRID) if costs[i] <= costs[max(i - 1, 0) : i + 2].min()]
    log_k, alphas, _ = profile[0]
    best = np.concatenate([[0.0], log_k, alphas[:1] if common else alphas])
    best_cost = float((residuals(best) ** 2).sum())
    low = np.concatenate([[0.0], np.full(best.size - 1, -np.inf)])
    high = np.concatenate([[lowest], np.full(best.size - 1, np.inf)])
    for i in dict.fromkeys([*dips, 1, FLOOR_GRID // 2]):
        log_k, alphas, _ = profile[i]
        start = np.concatenate([[floors[i]], log_k, alphas[:1] if common else alphas])
        found = least_squares(
            residuals, start, jac=jacobian, bounds=(low, high), x_scale="jac",
            xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=400,
        )  # fmt: skip
        # E = 0 stays unless an interior point is better by more than rounding.
        if 2 * found.cost < best_cost * (1 - 1e-9):
            best, best_cost = np.asarray(found.x, np.float64), 2 * float(found.cost)
    interior = bool(1e-6 * lowest < best[0] < lowest * (1 - 1e-6))
    floor = float(best[0]) if best[0] > 1e-6 * lowest else 0.0
    return _Joint(best[1 + g :], floor, best_cost, _inverse(jacobian(best), g, interior), interior)


def _inverse(jacobian: Array, g: int, interior: bool) -> Array:
    """(J'J)^-1 of (alphas..., E); at a bound E is held fixed."""
    used = jacobian if interior else jacobian[:, 1:]
    inverse = np.linalg.pinv(used.T @ used, rcond=1e-14)
    first = 1 + g if interior else g
    keep = [*range(first, used.shape[1]), *([0] if interior else [])]
    return np.asarray(inverse[np.ix_(keep, keep)])


def verdict(tests: list[SlopeTest | NoTest], design: str) -> str:
    """Say in plain words what the tests can and cannot tell."""
    done = [test for test in tests if isinstance(test, SlopeTest)]
    if not done:
        return f"No test of the exponents: {_reason(tests)}."
    sentences = [_sentence(test) for test in tests]
    if len({test.rejected for test in done}) > 1:
        sentences.append("The answer depends on the irreducible loss, so the data do not settle it.")
    elif not done[0].rejected and _steepest(done[0]) != _steepest(done[-1]):
        sentences.append(
            f"Which structure is steepest depends on the irreducible loss: {_steepest(done[0])} without it, "
            f"{_steepest(done[-1])} with it."
        )
    first = done[0]
    values = list(first.exponents.values())
    largest, limit = max(values) - min(values), first.detectable
    sentences.append(
        f"{design} can only detect slope differences above {number(limit, limit)} between two structures "
        f"(80 % power at the 5 % level); the largest found is {number(largest, limit)}."
    )
    if not any(test.rejected for test in done):
        sentences.append("That equality is not rejected does not show that the slopes are equal.")
    return " ".join(sentences)


def _reason(tests: list[SlopeTest | NoTest]) -> str:
    return next((test.reason for test in tests if isinstance(test, NoTest)), "no runs")


def _steepest(test: SlopeTest) -> str:
    return max(test.exponents, key=lambda name: test.exponents[name])


def _sentence(test: SlopeTest | NoTest) -> str:
    lead = {"none": "Without an irreducible loss", "given": "With a given irreducible loss"}
    if isinstance(test, NoTest):
        opening = lead.get(test.hypothesis, "With one irreducible loss shared by all structures")
        return f"{opening} there is no test: {test.reason}."
    opening = lead.get(test.hypothesis, "With one fitted irreducible loss shared by all structures")
    if test.hypothesis != "none":
        error = f" ± {number(test.irreducible_se, test.irreducible_se)}" if test.irreducible_se else ""
        opening += f" (E = {number(test.irreducible, test.irreducible_se, 3)}{error})"
    a, b = test.dof
    outcome = "rejected" if test.rejected else "not rejected"
    numbers = f"F({a}, {b}) = {test.statistic:.2f}, p {probability(test.p_value)}"
    text = f"{opening}, equality of slopes is {outcome} ({numbers})"
    if test.rejected:
        text += f"; steepest is {_steepest(test)}"
        text += ", unless the structures differ in E itself" if test.hypothesis != "none" else ""
    return f"{text}; {test.caution}." if test.caution else f"{text}."
