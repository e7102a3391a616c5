"""Fits one law to one structure's runs, with intervals, a certificate, and refusals that say why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Array
from analysis.compare.ftest import NO_NOISE as NO_NOISE
from analysis.compare.ftest import floor_test
from analysis.engine.broken import BROKEN, BrokenLaw, bind_broken
from analysis.engine.solve import Optimum, solve
from analysis.engine.sums import Column, SumLaw, bind
from analysis.errors import AnalysisError
from analysis.findings import Finding
from analysis.fitcheck import fit_findings
from analysis.laws import SUM_LAWS
from analysis.uncertainty import RESAMPLES, Spread, condition_number, profile_interval, spread_of

LAWS: dict[str, SumLaw] = {**SUM_LAWS, BROKEN.name: BROKEN}
"""All that can be fitted, by name."""
SAME_VALUE = 1e-6
NO_CHANGE = 1e-12
LEAST_SQUARES_DOF = 6
"""With fewer degrees of freedom the scale of the noise, and so Huber's delta, would be little but chance."""
ILL_CONDITIONED = 3e3


@dataclass(frozen=True)
class Settings:
    """How to fit.

    huber_delta: in log loss; None for 1.345 standard deviations of the noise, inf for least squares.
    interval: `delta`, `profile`, `bootstrap`, or `auto` for the bootstrap from 30 points on.
    resamples: bootstrap refits.
    seed: of the resampling.
    """

    huber_delta: float | None = None
    interval: str = "auto"
    resamples: int = RESAMPLES
    seed: int = 0


PROFILE = "profile likelihood, t; coefficients by the delta method"
LEAST_SQUARES = Settings(huber_delta=math.inf, interval="delta")


@dataclass(frozen=True)
class Refusal:
    """A fit that the data do not allow, and why."""

    law: str
    group: str
    n: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"law": self.law, "group": self.group, "n": self.n, "refused": self.reason}


@dataclass(frozen=True)
class Certificate:
    """Evidence that a fit is the optimum.

    gradient: the largest share of the residuals along a column of the Jacobian, components that a bound holds
        left out: 0 at an exact optimum, at most 1, whatever the scale of the parameters.
    converged: whether `gradient` is negligible.
    starts: how many starts were polished.
    moved: whether the optimum is away from all of them.
    minima: distinct optima whose objective is within 5 % of the best (1 = unrivalled).
    ranges: over those minima, the lowest and highest value of each exponent.
    at_bound: coefficients that are 0, their lower bound; d and f of a broken law at a limit.
    condition: condition number of the Jacobian of log loss with its columns scaled to length 1.
    """

    gradient: float
    converged: bool
    starts: int
    moved: bool
    minima: int
    ranges: dict[str, tuple[float, float]]
    at_bound: tuple[str, ...]
    condition: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "at_bound": list(self.at_bound)}


@dataclass(frozen=True)
class Fit:
    """A fitted law at full precision.

    params: by name; those of one of several structures as `alpha[dense]`. A coefficient that the data do not
        need is 0, and an exponent that only it had is None.
    standard_errors, intervals: 95 %; None where `findings` say that there are none.
    objective: sum over points of Huber's loss of the log residuals (half their squares inside delta).
    huber_delta: None for least squares.
    residual_sd: standard deviation of the noise in log loss.
    identified: False where a parameter is only nominal.
    """

    law: str
    formula: str
    group: str
    n: int
    params: dict[str, float | None]
    standard_errors: dict[str, float] | None
    intervals: dict[str, tuple[float, float]] | None
    interval_method: str | None
    objective: float
    huber_delta: float | None
    dof: int
    residual_sd: float | None
    r_squared: float | None
    aicc: float | None
    certificate: Certificate
    identified: bool
    findings: tuple[Finding, ...]
    optimum: Optimum
    spread: Spread | None

    def value(self, name: str) -> float:
        """A parameter; NaN where it has none."""
        found = self.params[name]
        return math.nan if found is None else found

    def predict(self, data: Mapping[str, Array], groups: Sequence[str] | None = None) -> Array:
        """Return the fitted loss at other points, shape (n,); `data` holds the law's variables."""
        return np.exp(self.optimum.bound.at(data, groups).log_value(self.optimum.phi))

    def band(
        self, data: Mapping[str, Array], groups: Sequence[str] | None = None
    ) -> tuple[Array, Array] | None:
        """Return the 95 % confidence band of the curve at other points, or None."""
        if self.spread is None:
            return None
        at = self.optimum.bound.at(data, groups)

        def curve(phi: Array) -> Array:
            flat = np.atleast_2d(phi)
            values = np.stack([at.log_value(one) for one in flat])
            return values if phi.ndim == 2 else values[0]

        low, high = self.spread.interval(curve, self.optimum.phi)
        return np.exp(low), np.exp(high)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, float64 at full precision."""
        body = {name: value for name, value in vars(self).items() if name not in ("optimum", "spread")}
        body["certificate"] = self.certificate.to_dict()
        del body["findings"]
        body["diagnostics"] = [finding.to_dict() for finding in self.findings]
        if self.spread is not None and self.spread.draws is not None:
            body["resamples_failed"] = self.spread.failed
        return body


def distinct(values: Array) -> int:
    """How many different values there are; replicates of one run count once."""
    ordered = np.sort(np.log(values))
    return 1 + int(np.sum(np.diff(ordered) > SAME_VALUE)) if ordered.size else 0


def law_named(name: str) -> SumLaw:
    """Find a law.

    Raises:
        AnalysisError: there is none of this name.
    """
    if name not in LAWS:
        raise AnalysisError(f"law '{name}' is not known; use one of {', '.join(LAWS)}")
    return LAWS[name]


def fit_law(
    law: str | SumLaw,
    data: Mapping[str, Array],
    loss: Array,
    group: str = "all",
    *,
    groups: Sequence[str] | None = None,
    free: Sequence[str] = (),
    settings: Settings | None = None,
    clusters: Sequence[str] | None = None,
) -> Fit | Refusal:
    """Fit a law.

    Args:
        law: one of `LAWS`, or its name; `broken_law` gives the broken one in another variable.
        data: its variables (params, tokens, train_flops ...), each of shape (n,), above zero.
        loss: held-out loss in nats per token, shape (n,), above zero.
        group: what the report calls these points.
        groups: the structure of each point, where several are fitted jointly.
        free: parameters that each structure has its own of.
        settings: how to fit; robust, with automatic intervals, by default.
        clusters: the run that each point is of, where several are of one run.

    Raises:
        AnalysisError: unknown law or parameter, a missing variable, arrays of unequal length, or values that
            have no logarithm.
    """
    form = law_named(law) if isinstance(law, str) else law
    settings = settings or Settings()
    loss = np.asarray(loss, np.float64)
    bound = (
        bind_broken(form, data, loss, groups, free)
        if isinstance(form, BrokenLaw)
        else bind(form, data, loss, groups, free)
    )
    p = len(bound.columns)
    if reason := _too_few(form, data, bound.n, p):
        return Refusal(form.name, group, bound.n, reason)
    if float(np.ptp(bound.log_loss)) < NO_CHANGE:
        return Refusal(form.name, group, bound.n, "the loss does not vary")
    if reason := _rising(form, data, loss):
        return Refusal(form.name, group, bound.n, reason)
    delta = settings.huber_delta
    if delta is None and bound.n - p < LEAST_SQUARES_DOF:
        delta = math.inf
    return _finish(solve(bound, delta), bound.columns, group, settings, clusters)


def _too_few(law: SumLaw, data: Mapping[str, Array], n: int, p: int) -> str | None:
    if n < 3:
        return f"{n} points: a law needs at least 3"
    if n < p:
        return f"{n} points: {law.name} with {p} parameters needs at least {p}"
    for name in law.variables:
        least = p if isinstance(law, BrokenLaw) else 3
        if name in data and (count := distinct(np.asarray(data[name], np.float64))) < least:
            what = "a law" if least == 3 else law.name
            return f"{count} distinct values of {name}: {what} needs at least {least}"
    return None


def _rising(law: SumLaw, data: Mapping[str, Array], loss: Array) -> str | None:
    """A law with a floor in one variable has nothing to say of a loss that does not fall."""
    if len(law.variables) != 1 or len(law.terms) < 2 or law.variables[0] not in data:
        return None
    x = np.log(np.asarray(data[law.variables[0]], np.float64))
    falls = float((x - x.mean()) @ np.log(loss)) < 0
    return None if falls else f"the loss does not fall with {law.variables[0]}"


def _finish(
    optimum: Optimum,
    columns: tuple[Column, ...],
    group: str,
    settings: Settings,
    clusters: Sequence[str] | None,
) -> Fit:
    """Errors, certificate and findings of an optimum of a law with these parameters."""
    bound, phi = optimum.bound, optimum.phi
    n, p = bound.n, len(columns)
    residual = bound.log_value(phi) - bound.log_loss
    total = float(np.sum((bound.log_loss - bound.log_loss.mean()) ** 2))
    squares = float(residual @ residual)
    spread = spread_of(optimum, settings.interval, clusters, settings.resamples, settings.seed)
    natural = dict(zip((c.label for c in bound.columns), map(float, bound.natural(phi)), strict=True))
    params: dict[str, float | None] = {
        c.label: natural.get(c.label, 0.0 if c.name in bound.law.coefficients else None) for c in columns
    }
    params.update(optimum.fixed)
    certificate = _certificate(optimum, columns)
    findings, identified = fit_findings(optimum, spread, certificate.condition, floor_test(optimum), clusters)
    open_design = any(finding.code == "SL006" for finding in findings)
    errors, intervals = (None, None) if open_design else _errors(optimum, spread)
    method = spread.method if spread is not None and intervals is not None else None
    # A profile takes points for independent, which those of one run are not.
    alone = clusters is None or len(set(clusters)) == len(clusters)
    if settings.interval == "profile" and alone and spread is not None and intervals is not None:
        intervals, method = _profiled(optimum, spread, intervals), PROFILE
    least_squares = not math.isfinite(optimum.delta)
    return Fit(
        law=bound.law.name,
        formula=bound.law.formula,
        group=group,
        n=n,
        params=params,
        standard_errors=errors,
        intervals=intervals,
        interval_method=method,
        objective=optimum.cost,
        huber_delta=None if least_squares else optimum.delta,
        dof=n - p,
        residual_sd=None if spread is None else spread.noise if least_squares else optimum.sigma,
        r_squared=1 - squares / total if total > n * NO_NOISE else None,
        aicc=aicc(squares, n, p) if least_squares else None,
        certificate=certificate,
        identified=identified,
        findings=tuple(findings),
        optimum=optimum,
        spread=spread,
    )


def _certificate(optimum: Optimum, columns: tuple[Column, ...]) -> Certificate:
    exponents = [i for i, c in enumerate(columns) if c.name in optimum.bound.law.exponents]
    ranges = {
        columns[i].label: (float(optimum.minima[:, i].min()), float(optimum.minima[:, i].max()))
        for i in exponents
    }
    return Certificate(
        gradient=optimum.gradient,
        converged=optimum.converged,
        starts=optimum.starts,
        moved=optimum.moved,
        minima=len(optimum.minima),
        ranges=ranges,
        at_bound=(*optimum.vanished, *optimum.fixed),
        condition=condition_number(optimum.bound, optimum.phi),
    )


def _errors(
    optimum: Optimum, spread: Spread | None
) -> tuple[dict[str, float] | None, dict[str, tuple[float, float]] | None]:
    """Standard errors and intervals of the parameters as the formula has them.

    Coefficients other than a constant are known by their logarithm: they span orders of magnitude.
    """
    # Errors of what is left, given that a term is 0, would hide that the term may not be 0.
    if spread is None or optimum.vanished:
        return None, None
    bound, phi = optimum.bound, optimum.phi
    constants = {term.coefficient for term in bound.law.terms if not term.powers}
    errors: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for place, column in enumerate(bound.columns):
        by_logarithm = column.name in bound.law.coefficients and column.name not in constants

        def value(at: Array, place: int = place, by_logarithm: bool = by_logarithm) -> Array:
            natural = bound.natural(at)[..., place]
            return np.log(natural) if by_logarithm else natural

        with np.errstate(divide="ignore", over="ignore"):
            error = float(spread.standard_error(value, phi))
            low, high = (float(edge) for edge in spread.interval(value, phi))
        if by_logarithm:
            error *= float(np.exp(value(phi)))
            low, high = _exp(low), _exp(high)
        errors[column.label], intervals[column.label] = error, (low, high)
    return errors, intervals


def _profiled(
    optimum: Optimum, spread: Spread, intervals: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The intervals, those of exponents and constants by profile; a coefficient at 1 FLOP is no phi."""
    bound = optimum.bound
    constants = {term.coefficient for term in bound.law.terms if not term.powers}
    out = dict(intervals)
    for place, column in enumerate(bound.columns):
        if column.name in bound.law.exponents:
            out[column.label] = profile_interval(optimum, spread, place)
        elif column.name in constants:
            low, high = profile_interval(optimum, spread, place)
            out[column.label] = (_exp(low), _exp(high))
    return out


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def aicc(squares: float, n: int, p: int) -> float | None:
    """Akaike's criterion with the small-sample term; the noise level counts as a parameter."""
    k = p + 1
    if n - k - 1 <= 0:
        return None
    return n * math.log(max(squares / n, NO_NOISE)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
