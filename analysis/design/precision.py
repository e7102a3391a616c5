"""Before a sweep: how well its planned runs will know a law's parameters, and what differences they can find.

Nothing here reads a loss.  The covariance of a fit is noise^2 (J'J)^-1 at an assumed law, J being the
derivatives of log loss at the planned runs: exact for a power law, first-order for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Array
from analysis.compare.slopes import detectable_difference
from analysis.digits import number
from analysis.engine.sums import ALL, Bound, SumLaw, bind
from analysis.fit import distinct
from analysis.fitcheck import COLLINEAR, ILL_CONDITIONED
from analysis.uncertainty import SINGULAR, condition_number, t_quantile


@dataclass(frozen=True)
class Grid:
    """Planned runs.

    data: params, tokens and train_flops, as far as they are known, each of shape (n,), above zero.
    groups: the structure of each run.
    """

    data: Mapping[str, Array]
    groups: tuple[str, ...]

    @property
    def n(self) -> int:
        """Runs."""
        return len(self.groups)

    @property
    def structures(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(dict.fromkeys(self.groups))

    def of(self, *structures: str) -> Grid:
        """The runs of these structures."""
        kept = np.array([group in structures for group in self.groups], bool)
        groups = tuple(group for group in self.groups if group in structures)
        return Grid({name: values[kept] for name, values in self.data.items()}, groups)

    def plus(self, other: Grid) -> Grid:
        """These runs and others."""
        data = {name: np.concatenate([values, other.data[name]]) for name, values in self.data.items()}
        return Grid(data, (*self.groups, *other.groups))


@dataclass(frozen=True)
class Assumed:
    """What is taken for true before anything is measured.

    values: of the law's parameters, by name for all structures (`alpha`) or for one (`alpha[dense]`).
    noise: standard deviation of log loss between runs that differ in nothing but their seed.
    sources: where the values and the noise come from, a sentence each.
    """

    law: SumLaw
    values: Mapping[str, float]
    noise: float
    sources: tuple[str, ...] = ()

    def value(self, name: str, group: str = ALL) -> float:
        """A parameter of a structure; of all of them the mean where each has its own."""
        if group != ALL and f"{name}[{group}]" in self.values:
            return self.values[f"{name}[{group}]"]
        if name in self.values:
            return self.values[name]
        own = [value for label, value in self.values.items() if label.startswith(f"{name}[")]
        return float(np.mean(own))


@dataclass(frozen=True)
class Impossible:
    """A fit that the planned runs do not allow, and why.

    kind: `few` (more runs of other sizes are needed before anything else can be said), `alike`, `dof`,
        `condition` or `error`.
    """

    group: str
    kind: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"group": self.group, "refused": self.reason}


@dataclass(frozen=True)
class Predicted:
    """A fit before its runs.

    group: the structure; ALL for a joint fit of several.
    covariance: of the centred and logarithmic parameters phi, shape (p, p).
    condition: number of the Jacobian with columns of length 1.
    """

    group: str
    bound: Bound
    phi: Array
    covariance: Array
    condition: float

    @property
    def dof(self) -> int:
        """Degrees of freedom that the fit will have left."""
        return self.bound.n - self.phi.size

    @property
    def t(self) -> float:
        """Half a 95 % interval in standard errors."""
        return t_quantile(self.dof)

    def values(self) -> dict[str, float]:
        """The assumed parameters, as the formula has them."""
        return self._labelled(self.bound.natural(self.phi))

    def errors(self) -> dict[str, float]:
        """Standard errors of the parameters, as the formula has them."""
        slope = self.bound.natural_jacobian(self.phi)
        return self._labelled(np.sqrt(np.einsum("ip,pq,iq->i", slope, self.covariance, slope)))

    def error(self, slope: Array) -> float:
        """Standard error of a quantity whose derivatives by phi are these, shape (p,)."""
        return math.sqrt(max(0.0, float(slope @ self.covariance @ slope)))

    def allocation(self) -> tuple[float, float] | None:
        """The exponent a of N* ~ C^a, beta / (alpha + beta), and its standard error; None without one."""
        law = self.bound.law
        names = {variable: name for term in law.terms for variable, name in term.powers.items()}
        if set(names) != {"params", "tokens"} or names["params"] == names["tokens"]:
            return None
        size, data = (self.bound.place(names[name], self.group) for name in ("params", "tokens"))
        alpha, beta = float(self.phi[size]), float(self.phi[data])
        slope = np.zeros(self.phi.size)
        slope[size], slope[data] = -beta / (alpha + beta) ** 2, alpha / (alpha + beta) ** 2
        return beta / (alpha + beta), self.error(slope)

    def _labelled(self, values: Array) -> dict[str, float]:
        return {c.label: float(v) for c, v in zip(self.bound.columns, values, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "group": self.group,
            "runs": self.bound.n,
            "dof": self.dof,
            "t": self.t,
            "condition": self.condition,
            "params": self.values(),
            "standard_errors": self.errors(),
            "allocation": self.allocation() if self.group != ALL else None,
        }


@dataclass(frozen=True)
class Difference:
    """An exponent of one structure less that of another.

    detectable: the smallest true difference that a test at the 5 % level finds with 80 % probability.
    """

    exponent: str
    pair: tuple[str, str]
    standard_error: float
    dof: int
    detectable: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "pair": list(self.pair)}


@dataclass(frozen=True)
class Design:
    """What planned runs will tell under one law.

    alone: each structure's own fit.
    joint: one fit of all structures with a shared irreducible loss; None without such, or with one structure.
    differences: by hypothesis as in compare.HYPOTHESES (`none`, `shared`, `separate`): between all pairs of
        structures, the pairs of the first exponent first.
    """

    assumed: Assumed
    grid: Grid
    alone: dict[str, Predicted | Impossible]
    joint: Predicted | Impossible | None
    differences: dict[str, tuple[Difference, ...] | Impossible]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, float64 at full precision."""
        return {
            "law": self.assumed.law.name,
            "formula": self.assumed.law.formula,
            "assumed": dict(self.assumed.values),
            "noise": self.assumed.noise,
            "sources": list(self.assumed.sources),
            "fits": {name: fit.to_dict() for name, fit in self.alone.items()},
            "shared": self.joint.to_dict() if self.joint is not None else None,
            "differences": {
                name: found.to_dict() if isinstance(found, Impossible) else [one.to_dict() for one in found]
                for name, found in self.differences.items()
            },
        }


def too_few(law: SumLaw, grid: Grid) -> str | None:
    """Why the runs of one structure are too few for a law, whatever their places, or None."""
    for name in law.variables:
        if (sizes := distinct(np.asarray(grid.data[name], np.float64))) < 3:
            return f"{sizes} distinct value{'s' if sizes > 1 else ''} of {name}: a law needs at least 3"
    return None


def likeness(law: SumLaw, grid: Grid) -> float:
    """Squared correlation of the logarithms of a law's two variables over the runs; 0 if it has but one."""
    if len(law.variables) < 2:
        return 0.0
    first, second = (np.log(grid.data[name]) for name in law.variables)
    return float(np.corrcoef(first, second)[0, 1] ** 2)


def alike(law: SumLaw, grid: Grid) -> str | None:
    """Why the two variables of a law vary as one over the runs of a structure, or None."""
    if (r2 := likeness(law, grid)) <= COLLINEAR:
        return None
    first, second = law.variables
    return f"{first} and {second} vary together (r^2 = {r2:.4f}), as along one line D = k N"


def scattered(law: SumLaw, grid: Grid) -> bool:
    """Whether a law in FLOPs alone is asked of runs of one structure that spend FLOPs on unlike sizes."""
    if law.variables != ("train_flops",) or "params" not in grid.data:
        return False
    logs = np.log(grid.data["params"]), np.log(grid.data["train_flops"])
    return float(np.corrcoef(*logs)[0, 1]) ** 2 < COLLINEAR if np.ptp(logs[0]) > 0 else bool(np.ptp(logs[1]))


def usable(law: SumLaw, grid: Grid) -> tuple[str, ...]:
    """The structures with enough runs for a law to be compared."""
    return tuple(name for name in grid.structures if too_few(law, grid.of(name)) is None)


def bind_at(assumed: Assumed, grid: Grid, free: Sequence[str] = ()) -> tuple[Bound, Array]:
    """The assumed law on planned runs, and its parameters phi, shape (p,)."""
    law = assumed.law
    groups = grid.groups if free else None
    bound = bind(law, grid.data, np.ones(grid.n), groups, free)
    only = grid.structures[0] if len(grid.structures) == 1 else ALL
    values = np.array([assumed.value(c.name, c.group if c.group != ALL else only) for c in bound.columns])
    positive = bound.enters_by_logarithm
    phi = np.where(positive, 0.0, values)
    # What centring takes out of the coefficients is what they come to where all others are as assumed.
    shift = np.log(bound.natural(phi)[positive])
    phi[positive] = np.log(values[positive]) - shift
    return bound, phi


def inverse_information(bound: Bound, phi: Array) -> Array | None:
    """(J'J)^-1 of log loss, shape (p, p); None where parameters cannot be told apart at all."""
    jacobian = bound.jacobian(phi)
    scale = np.linalg.norm(jacobian, axis=0)
    if bound.n < phi.size or not bool(np.all(scale > 0)):
        return None
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    if singular[-1] <= SINGULAR * singular[0]:
        return None
    return np.asarray((right.T / singular**2) @ right / np.outer(scale, scale))


def predict(assumed: Assumed, grid: Grid, free: Sequence[str] = ()) -> Predicted | Impossible:
    """Predict one fit: of one structure, or jointly of several with parameters of their own.

    Args:
        assumed: the law, its parameters and the noise.
        grid: the planned runs.
        free: parameters that each structure has its own of.
    """
    group = grid.structures[0] if not free else ALL
    for name in grid.structures:
        mine = grid.of(name)
        if reason := too_few(assumed.law, mine):
            return Impossible(name, "few", reason)
        if reason := alike(assumed.law, mine):
            return Impossible(name, "alike", reason)
    bound, phi = bind_at(assumed, grid, free)
    if bound.n <= phi.size:
        reason = f"{bound.n} runs leave no degree of freedom beside {phi.size} parameters"
        return Impossible(group, "dof", reason)
    condition, inverse = condition_number(bound, phi), inverse_information(bound, phi)
    if inverse is None or condition > ILL_CONDITIONED:
        reason = f"condition number {condition:.1g}: over these runs the terms of the law look alike"
        return Impossible(group, "condition", reason)
    found = Predicted(group, bound, phi, assumed.noise**2 * inverse, condition)
    if reason := _lost(found):
        return Impossible(group, "error", reason)
    return found


def _lost(found: Predicted) -> str | None:
    """Parameters that the noise hides, in words: the first-order error exceeds the value itself."""
    constants = [term.coefficient for term in found.bound.law.terms if not term.powers]
    values, errors = found.values(), found.errors()
    parts = [
        f"{c.label} = {number(values[c.label], errors[c.label])} ± {errors[c.label]:.2g}"
        for c in found.bound.columns
        if (c.name in found.bound.law.exponents or c.name in constants) and errors[c.label] > values[c.label]
    ]
    return f"{', '.join(parts)}: the error exceeds the value" if parts else None


def freed(law: SumLaw, share_floor: bool) -> tuple[str, ...]:
    """The parameters that each structure has its own of in a joint fit: all, or all but the constant."""
    constants = [term.coefficient for term in law.terms if not term.powers]
    return tuple(name for name in law.parameters if not (share_floor and name in constants))


def design(assumed: Assumed, grid: Grid) -> Design:
    """Predict every fit and comparison of planned runs under one law.

    Args:
        assumed: the law, its parameters and the noise.
        grid: the planned runs.
    """
    law = assumed.law
    alone = {name: predict(assumed, grid.of(name)) for name in grid.structures}
    able = usable(law, grid)
    if len(able) < 2:
        return Design(assumed, grid, alone, None, {})
    floor = any(not term.powers for term in law.terms)
    together = grid.of(*able)
    joint = predict(assumed, together, freed(law, share_floor=True)) if floor else None
    separate = predict(assumed, together, freed(law, share_floor=False))
    fits = {"shared": joint, "separate": separate} if floor else {"none": separate}
    return Design(assumed, grid, alone, joint, {k: differences(f) for k, f in fits.items() if f is not None})


def differences(joint: Predicted | Impossible) -> tuple[Difference, ...] | Impossible:
    """Errors of the differences of every exponent between all pairs of structures of a joint fit."""
    if isinstance(joint, Impossible):
        return joint
    labels, found = list(dict.fromkeys(joint.bound.groups)), []
    for exponent in joint.bound.law.exponents:
        for i, first in enumerate(labels):
            for second in labels[i + 1 :]:
                error = joint.error(contrast(joint.bound, exponent, first, second))
                limit = detectable_difference(error, joint.dof)
                found.append(Difference(exponent, (first, second), error, joint.dof, limit))
    return tuple(found)


def contrast(bound: Bound, exponent: str, first: str, second: str | None = None) -> Array:
    """Derivatives by phi of a structure's exponent, or of its difference to another's, shape (p,)."""
    slope = np.zeros(len(bound.columns))
    slope[bound.place(exponent, first)] = 1.0
    if second is not None:
        slope[bound.place(exponent, second)] = -1.0
    return slope
