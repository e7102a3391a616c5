"""Fits one law to one structure's runs, with standard errors, a certificate, and refusals that say why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtrit

from analysis.digits import probability
from analysis.errors import AnalysisError
from analysis.laws import LAWS, Array, IrreduciblePowerLaw, PowerLaw
from analysis.search import ROUNDING, best_optimum, line

CONFIDENCE = 0.95
SAME_BUDGET = 1e-6


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

    gradient: the largest component of the residuals along a column of the Jacobian, in log loss; components
        that a bound holds are left out. Zero at an exact optimum, whatever the scale of the parameters.
    converged: whether `gradient` is negligible beside the residuals.
    starts: how many starts were polished.
    minima: distinct optima whose sum of squares is within 5 % of the best (1 = unrivalled).
    """

    gradient: float
    converged: bool
    starts: int
    minima: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Fit:
    """A fitted law at full precision.

    Least squares on log loss, every run with equal weight. `standard_errors` are those of the delta method,
    s^2 (J'J)^-1 with s^2 on n - p degrees of freedom, and `intervals` are 95 % by Student's t; both are None
    where `warnings` say that there is none. `identified` is False where the irreducible loss is only nominal.
    """

    law: str
    group: str
    n: int
    reference: float
    parameters: dict[str, float]
    standard_errors: dict[str, float] | None
    intervals: dict[str, tuple[float, float]] | None
    covariance: tuple[tuple[float, ...], ...] | None
    dof: int
    sum_squares: float
    residual_sd: float | None
    r_squared: float | None
    aicc: float | None
    certificate: Certificate
    identified: bool
    warnings: tuple[str, ...]

    @property
    def theta(self) -> Array:
        """The parameters as a vector, in the law's order."""
        return np.array(list(self.parameters.values()))

    def predict(self, flops: Array) -> Array:
        """Return the fitted loss at `flops`, shape (n,), nats per token."""
        return LAWS[self.law](self.reference).evaluate(self.theta, flops)

    def band(self, flops: Array) -> tuple[Array, Array] | None:
        """Return the 95 % confidence band of the curve at `flops` (delta method in log loss), or None."""
        if self.covariance is None:
            return None
        law = LAWS[self.law](self.reference)
        loss = law.evaluate(self.theta, flops)
        slope = law.jacobian(self.theta, flops) / loss[:, None]
        variance = np.einsum("ij,jk,ik->i", slope, np.array(self.covariance), slope)
        half = t_quantile(self.dof) * np.sqrt(np.maximum(variance, 0.0))
        return loss * np.exp(-half), loss * np.exp(half)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, float64 at full precision."""
        body = dict(vars(self))
        body["interval_method"] = "delta method, t" if self.intervals else None
        body["certificate"] = self.certificate.to_dict()
        return body


def t_quantile(dof: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t."""
    return float(stdtrit(dof, 0.5 + confidence / 2))


def distinct_budgets(flops: Array) -> int:
    """How many different training budgets there are; replicates of one run count once."""
    ordered = np.sort(np.log(flops))
    return 1 + int(np.sum(np.diff(ordered) > SAME_BUDGET)) if ordered.size else 0


def fit_law(
    law: str, flops: Array, loss: Array, group: str = "all", reference: float | None = None
) -> Fit | Refusal:
    """Fit a law to the runs of one structure.

    Args:
        law: `power` or `irreducible`.
        flops: training FLOPs, shape (n,), above zero.
        loss: held-out loss in nats per token, shape (n,), above zero.
        group: the structure's label, for the report.
        reference: C0; the geometric mean of `flops` by default.

    Raises:
        AnalysisError: arrays of unequal length, values that have no logarithm, or an unknown law.
    """
    flops, loss = np.asarray(flops, np.float64), np.asarray(loss, np.float64)
    if law not in LAWS:
        raise AnalysisError(f"law '{law}' is not known; use one of {', '.join(LAWS)}")
    if flops.ndim != 1 or flops.shape != loss.shape:
        raise AnalysisError(f"{group}: {flops.size} FLOPs and {loss.size} losses; give one loss a run")
    if not (np.all(np.isfinite(flops) & (flops > 0)) and np.all(np.isfinite(loss) & (loss > 0))):
        raise AnalysisError(f"{group}: FLOPs and losses must be finite and above zero; drop the other runs")
    budgets = distinct_budgets(flops)
    if flops.size < 3:
        return Refusal(law, group, flops.size, f"{flops.size} points: a law needs at least 3")
    if budgets < 3:
        reason = f"{budgets} distinct training budgets: a law needs at least 3"
        return Refusal(law, group, flops.size, reason)
    centre = reference if reference is not None else float(np.exp(np.mean(np.log(flops))))
    if law == PowerLaw.name:
        return _fit_line(flops, loss, group, centre)
    return _fit_irreducible(flops, loss, group, centre)


def _fit_line(flops: Array, loss: Array, group: str, centre: float) -> Fit:
    """The power law is a straight line in log-log: least squares in closed form."""
    intercept, slope = line(np.log(flops / centre), np.log(loss))
    theta = np.array([math.exp(intercept), -slope])
    warnings = ["the loss does not fall with training FLOPs"] if slope >= 0 else []
    return _finish(PowerLaw(centre), theta, flops, loss, group, 1, 1, [], warnings)


def _residuals(law: PowerLaw | IrreduciblePowerLaw, theta: Array, flops: Array, loss: Array) -> Array:
    return np.log(law.evaluate(theta, flops)) - np.log(loss)


def _log_jacobian(law: PowerLaw | IrreduciblePowerLaw, theta: Array, flops: Array) -> Array:
    return np.asarray(law.jacobian(theta, flops) / law.evaluate(theta, flops)[:, None])


def _fit_irreducible(flops: Array, loss: Array, group: str, centre: float) -> Fit | Refusal:
    law = IrreduciblePowerLaw(centre)
    x, y = np.log(flops / centre), np.log(loss)
    if line(x, y)[1] >= 0:
        return Refusal(law.name, group, loss.size, "the loss does not fall with training FLOPs")
    found = best_optimum(x, y)
    warnings = []
    if len(found.rivals) > 1:
        values = sorted(float(rival[2]) for rival in found.rivals)
        warnings.append(
            f"{len(values)} optima fit within 5 %, alpha from {values[0]:.3g} to {values[-1]:.3g}"
        )
    minima = len(found.rivals)
    return _finish(law, found.theta, flops, loss, group, found.starts, minima, list(found.bounds), warnings)


def _finish(
    law: PowerLaw | IrreduciblePowerLaw,
    theta: Array,
    flops: Array,
    loss: Array,
    group: str,
    starts: int,
    minima: int,
    bounds: list[str],
    warnings: list[str],
) -> Fit:
    """Standard errors, certificate and identifiability of an optimum; `bounds` say what sits at a bound."""
    n, p = loss.size, theta.size
    residual = _residuals(law, theta, flops, loss)
    cost, dof = float(residual @ residual), n - p
    y = np.log(loss)
    total = float(((y - y.mean()) ** 2).sum())
    reasons = list(warnings)
    covariance = None
    if dof < 1:
        reasons.append(f"no standard error: {n} points, {p} parameters")
    elif not bounds:
        covariance = _covariance(_log_jacobian(law, theta, flops), cost / dof)
        if covariance is None:
            reasons.append("no standard error: the parameters cannot be told apart")
    errors = None if covariance is None else np.sqrt(np.diag(covariance))
    unidentified = [*bounds, *_not_identified(law, theta, errors, flops, loss, cost)]
    if law.name == IrreduciblePowerLaw.name:
        reasons += [f"irreducible loss not identified: {reason}" for reason in unidentified]
        unidentified += warnings if minima > 1 else []
    names = law.parameters
    half = None if errors is None else t_quantile(dof) * errors
    return Fit(
        law=law.name,
        group=group,
        n=n,
        reference=law.reference,
        parameters=dict(zip(names, map(float, theta), strict=True)),
        standard_errors=None if errors is None else dict(zip(names, map(float, errors), strict=True)),
        intervals=None if half is None else {
            name: (float(v - h), float(v + h)) for name, v, h in zip(names, theta, half, strict=True)
        },
        covariance=None if covariance is None else tuple(tuple(map(float, row)) for row in covariance),
        dof=dof,
        sum_squares=cost,
        residual_sd=math.sqrt(cost / dof) if dof > 0 else None,
        r_squared=1 - cost / total if total > n * ROUNDING else None,
        aicc=_aicc(cost, n, p),
        certificate=_certificate(law, theta, flops, residual, bounds, starts, minima),
        identified=not unidentified and (covariance is not None or law.name == PowerLaw.name),
        warnings=tuple(reasons),
    )  # fmt: skip


def _covariance(jacobian: Array, variance: float) -> Array | None:
    """s^2 (J'J)^-1 through the singular values of the column-scaled Jacobian; None where it is singular."""
    scale = np.linalg.norm(jacobian, axis=0)
    if not np.all(scale > 0):
        return None
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    if singular[-1] <= 1e-12 * singular[0]:
        return None
    inverse = (right.T / singular**2) @ right
    return np.asarray(variance * inverse / np.outer(scale, scale))


def _not_identified(
    law: PowerLaw | IrreduciblePowerLaw,
    theta: Array,
    errors: Array | None,
    flops: Array,
    loss: Array,
    cost: float,
) -> list[str]:
    """Why the data leave E open although it is inside its bounds.

    Whether E = 0 fits as well is asked of the sums of squares (F test): E enters the law so far from linearly
    that its standard error, taken at the optimum, is too small for this where points are few.
    """
    if law.name != IrreduciblePowerLaw.name or errors is None:
        return []
    se, spread = float(errors[0]), float(np.ptp(loss))
    if se > spread:
        return [f"its standard error {se:.2g} exceeds the spread of the losses {spread:.2g}"]
    x, y, dof = np.log(flops / law.reference), np.log(loss), loss.size - theta.size
    intercept, slope = line(x, y)
    straight = float(((intercept + slope * x - y) ** 2).sum())
    if cost <= loss.size * ROUNDING:
        return []
    statistic = (straight - cost) / (cost / dof)
    p_value = float(fdtrc(1, dof, max(0.0, statistic)))
    if p_value < 1 - CONFIDENCE:
        return []
    return [f"E = 0 is not rejected (F(1, {dof}) = {statistic:.2f}, p {probability(p_value)})"]


def _aicc(cost: float, n: int, p: int) -> float | None:
    """Akaike's criterion with the small-sample term; the noise level counts as a parameter."""
    k = p + 1
    if n - k - 1 <= 0:
        return None
    return n * math.log(max(cost / n, ROUNDING)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _certificate(
    law: PowerLaw | IrreduciblePowerLaw,
    theta: Array,
    flops: Array,
    residual: Array,
    bounds: list[str],
    starts: int,
    minima: int,
) -> Certificate:
    jacobian = _log_jacobian(law, theta, flops)
    along = jacobian.T @ residual / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    if law.name == IrreduciblePowerLaw.name and bounds:
        along = np.delete(along, 0)
    gradient = float(np.max(np.abs(along)))
    size = float(np.linalg.norm(residual))
    return Certificate(gradient, gradient <= max(1e-6 * size, 1e-12), starts, minima)
