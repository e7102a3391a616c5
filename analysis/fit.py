"""Fits one law to one structure's runs, with standard errors, a certificate, and refusals that say why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

from analysis.errors import AnalysisError
from analysis.laws import LAWS, Array, IrreduciblePowerLaw, PowerLaw

CONFIDENCE = 0.95
# Sums of squared log-loss residuals below n times this are zero to the rounding of float64 losses.
ROUNDING = 1e-28
SAME_BUDGET = 1e-6
GRID_ALPHA, GRID_FLOOR = 72, 48
SPREAD_STARTS = 12
COMPETING = 1.05


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
        """Return the 95 % confidence band of the fitted curve at `flops` (delta method in log loss), or None."""
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


def fit_law(law: str, flops: Array, loss: Array, group: str = "all", reference: float | None = None) -> Fit | Refusal:
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


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Intercept at x = 0 and slope of the least-squares line."""
    dx = x - x.mean()
    slope = float(dx @ (y - y.mean()) / (dx @ dx))
    return float(y.mean() - slope * x.mean()), slope


def _fit_line(flops: Array, loss: Array, group: str, centre: float) -> Fit:
    """The power law is a straight line in log-log: least squares in closed form."""
    intercept, slope = _line(np.log(flops / centre), np.log(loss))
    theta = np.array([math.exp(intercept), -slope])
    warnings = ["the loss does not fall with training FLOPs"] if slope >= 0 else []
    return _finish(PowerLaw(centre), theta, flops, loss, group, 1, 1, [], warnings)


def _residuals(law: PowerLaw | IrreduciblePowerLaw, theta: Array, flops: Array, loss: Array) -> Array:
    return np.log(law.evaluate(theta, flops)) - np.log(loss)


def _log_jacobian(law: PowerLaw | IrreduciblePowerLaw, theta: Array, flops: Array) -> Array:
    return law.jacobian(theta, flops) / law.evaluate(theta, flops)[:, None]


def _profile_starts(x: Array, y: Array) -> list[Array]:
    """Global starts (E, log k, alpha) for the law with E, by variable projection.

    With r = E / k the law is log L = log k + log(r + exp(-alpha x)): for fixed (alpha, r) the best log k is a
    mean, so the objective is mapped over the whole (alpha, r) plane at once. r is spaced by the share of the
    loss that is irreducible at the largest budget, from 0 to .998. Returned are all local minima of the map,
    and a coarse lattice beside them, so that a basin narrower than the map's mesh is still met.
    """
    span = float(x.max() - x.min())
    alphas = np.geomspace(0.02, 40.0, GRID_ALPHA) / span
    shares = np.sin(np.linspace(0.0, 0.5 * np.pi * 0.97, GRID_FLOOR)) ** 2
    ratio = (shares / (1 - shares))[None, :] * np.exp(-alphas * x.max())[:, None]
    decay = np.exp(-alphas[:, None, None] * x)
    z = y - np.log(ratio[:, :, None] + decay)
    log_k = z.mean(axis=2)
    cost = ((z - log_k[:, :, None]) ** 2).sum(axis=2)
    padded = np.pad(cost, 1, constant_values=np.inf)
    rows, cols = cost.shape
    lowest = np.ones_like(cost, dtype=bool)
    for i, j in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        lowest &= cost <= padded[i : i + rows, j : j + cols]
    cells = [(int(i), int(j)) for i, j in np.argwhere(lowest)]
    cells.sort(key=lambda cell: float(cost[cell]))
    lattice = np.linspace(0, rows - 1, SPREAD_STARTS).astype(int)
    cells = cells[:SPREAD_STARTS] + [(int(i), int((7 * i) % cols)) for i in lattice]
    return [np.array([ratio[c] * math.exp(log_k[c]), log_k[c], alphas[c[0]]]) for c in dict.fromkeys(cells)]


def _polish(start: Array, x: Array, y: Array, upper: tuple[float, float], tolerance: float) -> Array:
    """Descend from `start` = (E, log k, alpha) to a local optimum, 0 <= (E, alpha) <= `upper`."""
    lowest, alpha_max = upper

    def residuals(p: Array) -> Array:
        return np.asarray(np.log(p[0] + np.exp(p[1] - p[2] * x)) - y)

    def jacobian(p: Array) -> Array:
        u = np.exp(p[1] - p[2] * x)
        return np.stack([np.ones_like(u), u, -x * u], axis=1) / (p[0] + u)[:, None]

    low, high = np.array([0.0, -np.inf, 0.0]), np.array([lowest, np.inf, alpha_max])
    inside = np.clip(start, [1e-9 * lowest, -np.inf, 1e-9], [lowest * (1 - 1e-9), np.inf, alpha_max * 0.999])
    found = least_squares(
        residuals, inside, jac=jacobian, bounds=(low, high), x_scale="jac",
        xtol=tolerance, ftol=tolerance, gtol=tolerance, max_nfev=400,
    )  # fmt: skip
    return np.asarray(found.x, np.float64)


def _cost(p: Array, x: Array, y: Array) -> float:
    return float(((np.log(p[0] + np.exp(p[1] - p[2] * x)) - y) ** 2).sum())


def _fit_irreducible(flops: Array, loss: Array, group: str, centre: float) -> Fit | Refusal:
    law = IrreduciblePowerLaw(centre)
    x, y = np.log(flops / centre), np.log(loss)
    lowest, span = float(loss.min()), float(x.max() - x.min())
    intercept, slope = _line(x, y)
    if slope >= 0:
        return Refusal(law.name, group, loss.size, "the loss does not fall with training FLOPs")
    alpha_max = 80.0 / span
    starts = _profile_starts(x, y)
    # E = 0 is the law without E, known in closed form; it stands for every optimum on that bound.
    optima = [np.array([0.0, intercept, -slope])]
    optima += [_polish(start, x, y, (lowest, alpha_max), 1e-8) for start in starts]
    costs = [_cost(p, x, y) for p in optima]
    leader = int(np.argmin(costs))
    if leader > 0:
        optima[leader] = _polish(optima[leader], x, y, (lowest, alpha_max), 1e-15)
        costs[leader] = _cost(optima[leader], x, y)
    found = [np.array([p[0], math.exp(p[1]), p[2]]) for p in optima]
    # The bound is kept unless an interior point is better by more than rounding.
    best = leader
    slack = loss.size * ROUNDING
    if costs[0] <= costs[best] * (1 + 1e-9) + slack:
        best = 0
    rivals = _distinct([t for t, cost in zip(found, costs, strict=True) if cost <= COMPETING * costs[best] + slack])
    reasons = []
    if len(rivals) > 1:
        values = sorted(float(theta[2]) for theta in rivals)
        reasons.append(f"{len(rivals)} optima fit within 5 %, alpha from {values[0]:.3g} to {values[-1]:.3g}")
    bounds = _at_bounds(found[best], lowest, alpha_max)
    return _finish(law, found[best], flops, loss, group, len(starts) + 1, len(rivals), bounds, reasons)


def _distinct(thetas: list[Array]) -> list[Array]:
    """Optima that differ by more than 1 % in some parameter; polished copies of one optimum count once."""
    kept: list[Array] = []
    for theta in thetas:
        scale = np.abs(theta) + 1e-3
        if not any(np.all(np.abs(theta - other) <= 0.01 * scale) for other in kept):
            kept.append(theta)
    return kept


def _at_bounds(theta: Array, lowest: float, alpha_max: float) -> list[str]:
    floor, _, alpha = (float(value) for value in theta)
    reasons = []
    if floor <= 1e-6 * lowest:
        reasons.append("E is at its bound 0: the points show no bend towards a floor")
    if floor >= lowest * (1 - 1e-6):
        reasons.append("E is at its bound, the lowest loss: the curve is flat at the end")
    if alpha >= 0.99 * alpha_max:
        reasons.append("alpha is at its bound: the loss drops in one step")
    return reasons


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
    unidentified = [*bounds, *_not_identified(law, theta, errors, loss, dof)]
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
    law: PowerLaw | IrreduciblePowerLaw, theta: Array, errors: Array | None, loss: Array, dof: int
) -> list[str]:
    """Why the data leave E open although it is inside its bounds."""
    if law.name != IrreduciblePowerLaw.name or errors is None:
        return []
    floor, se, lowest = float(theta[0]), float(errors[0]), float(loss.min())
    spread = float(loss.max()) - lowest
    if se > spread:
        return [f"its standard error {se:.2g} exceeds the spread of the losses {spread:.2g}"]
    half = t_quantile(dof) * se
    if floor - half <= 0 and floor + half >= lowest:
        return ["its 95 % interval holds everything from 0 to the lowest loss"]
    return []


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
