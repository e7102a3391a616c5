"""One ladder's fit of L = E + k C^-alpha beside the same fit with E held at its known value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc

from analysis.arrays import Array
from analysis.compare.ftest import NO_NOISE
from analysis.engine.solve import descend
from analysis.engine.sums import ALL, Bound, bind
from analysis.fit import PROFILE, Fit, Refusal, Settings, distinct, fit_law
from analysis.fitcheck import lack_of_fit
from analysis.laws import IRREDUCIBLE
from analysis.uncertainty import CONFIDENCE, t_quantile

FITTED = Settings(huber_delta=math.inf, interval="profile")
"""Least squares, as the F tests need it, with profile intervals."""
METHOD = PROFILE
KINDS = {"seed": "one seed", "all": "all seeds", "shared": "one E for all"}
"""What a refit is of: a structure's runs of one seed, of all seeds, or all structures with one E."""
REPLICATES, BEND = "replicates", "bend"
LEVEL = 0.05

Interval = tuple[float, float]


@dataclass(frozen=True)
class Exponent:
    """alpha of one structure, with E fitted and with E held at the known value.

    Each None where there is none, as are the 95 % intervals.
    """

    structure: str
    fitted: float | None
    interval: Interval | None
    given: float | None
    given_interval: Interval | None

    @property
    def bias(self) -> float | None:
        """What fitting E adds to alpha."""
        return None if self.fitted is None or self.given is None else self.fitted - self.given


@dataclass(frozen=True)
class Lack:
    """F test of one power of FLOPs above the known E.

    kind: against what it is tested: `replicates` (the pure error of seeds), or without these `bend` (a
        quadratic in log FLOPs of log(L - E)).
    """

    kind: str
    statistic: float
    dof: tuple[int, int]
    p_value: float

    @property
    def rejected(self) -> bool:
        """Whether one power is rejected at the 5 % level."""
        return self.p_value < LEVEL


@dataclass(frozen=True)
class Refit:
    """One fit judged against the known E.

    kind: one of `KINDS`.
    structure: empty where all share E.
    seed: None where of all seeds.
    n, budgets: runs, and distinct training FLOPs of the structure that has most.
    value: fitted E in nats per token, 0 at its bound; None where the fit was refused.
    interval: of E, 95 %; None where there is none.
    reason: why there is no interval, or what the fit finds wrong with itself; may be empty.
    lack: None where too few runs are left to test with.
    """

    kind: str
    structure: str
    seed: int | None
    n: int
    budgets: int
    known: float
    value: float | None
    interval: Interval | None
    reason: str
    exponents: tuple[Exponent, ...]
    lack: Lack | None

    @property
    def holds(self) -> bool | None:
        """Whether the known value lies in the interval; None without one."""
        return None if self.interval is None else self.interval[0] <= self.known <= self.interval[1]

    @property
    def side(self) -> str:
        """Where the fitted E lies: `above` or `below` the known value; empty without one."""
        if self.value is None:
            return ""
        return "above" if self.value > self.known else "below"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            **vars(self),
            "exponents": [{**vars(one), "bias": one.bias} for one in self.exponents],
            "lack": None if self.lack is None else dict(vars(self.lack)),
            "holds": self.holds,
            "side": self.side or None,
        }


def refit(
    kind: str,
    structure: str,
    seed: int | None,
    flops: Array,
    loss: Array,
    groups: Sequence[str],
    known: float,
) -> Refit:
    """Fit runs with E free and with E held at its known value.

    Args:
        kind: one of `KINDS`.
        structure: whose; empty for several with one E.
        seed: of the runs; None for several.
        flops: training FLOPs, shape (n,).
        loss: nats per token, shape (n,), above `known`.
        groups: the structure of each run.
        known: E.
    """
    free = ("k", "alpha") if kind == "shared" else ()
    labels, names = np.array(groups, dtype=object), list(dict.fromkeys(groups))
    data = {"train_flops": flops}
    # The profile of an exponent that has no upper end follows it to where its term underflows.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = fit_law(
            IRREDUCIBLE,
            data,
            loss,
            structure or "all",
            groups=groups if free else None,
            free=free,
            settings=FITTED,
        )
    held = hold(bind(IRREDUCIBLE, data, loss, groups if free else None, free), flops, loss, labels, known)
    value = found.value("E") if isinstance(found, Fit) else None
    interval = found.intervals["E"] if isinstance(found, Fit) and found.intervals is not None else None
    return Refit(
        kind=kind,
        structure=structure,
        seed=seed,
        n=loss.size,
        budgets=max(distinct(flops[labels == name]) for name in names),
        known=known,
        value=value,
        interval=interval,
        reason=_reason(found),
        exponents=tuple(_exponent(found, held, name, bool(free)) for name in names),
        lack=_lack(held, flops, loss, labels, known),
    )


def _reason(found: Fit | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    open_ones = [one.sentence for one in found.findings if one.code in ("SL001", "SL006", "SL007", "SL020")]
    if found.intervals is None:
        return "; ".join(open_ones) or "the parameters cannot be told apart"
    return "; ".join(open_ones)


def _exponent(found: Fit | Refusal, held: Held | None, name: str, several: bool) -> Exponent:
    label = f"alpha[{name}]" if several else "alpha"
    fitted: float | None = None
    interval: Interval | None = None
    if isinstance(found, Fit):
        fitted = found.params[label]
        interval = None if found.intervals is None or fitted is None else found.intervals[label]
    given = None if held is None else held.value("alpha", name if several else ALL)
    return Exponent(name, fitted, interval, *(given or (None, None)))


@dataclass(frozen=True)
class Held:
    """The law with E held.

    phi: centred and logarithmic parameters, shape (p,).
    errors: standard errors, shape (p,), 0 of E; None without degrees of freedom.
    dof: of the residuals.
    """

    bound: Bound
    phi: Array
    errors: Array | None
    dof: int

    @property
    def residual(self) -> Array:
        """Of log loss, shape (n,)."""
        return self.bound.log_value(self.phi) - self.bound.log_loss

    def value(self, name: str, group: str) -> tuple[float, Interval | None]:
        """A parameter and its 95 % interval by Student's t."""
        place = self.bound.place(name, group)
        value = float(self.phi[place])
        if self.errors is None:
            return value, None
        half = t_quantile(self.dof, CONFIDENCE) * float(self.errors[place])
        return value, (value - half, value + half)


def hold(bound: Bound, flops: Array, loss: Array, labels: Array, known: float) -> Held | None:
    """Fit the law by least squares on log loss with E held; None where a structure has one budget only."""
    place = bound.place("E")
    phi = np.zeros(len(bound.columns))
    phi[place] = math.log(known)
    x = np.log(flops) - bound.centres["train_flops"]
    for column in bound.columns:
        if column.name != "alpha":
            continue
        mine = np.ones(loss.size, bool) if column.group == ALL else labels == column.group
        if distinct(flops[mine]) < 2:
            return None
        slope, level = np.polyfit(x[mine], np.log(loss[mine] - known), 1)
        phi[bound.place("k", column.group)], phi[bound.place("alpha", column.group)] = level, -slope
    mask = np.zeros(phi.size, bool)
    mask[place] = True
    phi = descend(bound, phi[None], None, np.inf, held=mask).phi[0]
    residual = bound.log_value(phi) - bound.log_loss
    dof = bound.n - int(np.sum(~mask))
    if dof < 1:
        return Held(bound, phi, None, dof)
    jacobian = bound.jacobian(phi)[:, ~mask]
    variance = float(residual @ residual) / dof * np.diag(np.linalg.inv(jacobian.T @ jacobian))
    errors = np.zeros(phi.size)
    errors[~mask] = np.sqrt(variance)
    return Held(bound, phi, errors, dof)


def _lack(held: Held | None, flops: Array, loss: Array, labels: Array, known: float) -> Lack | None:
    """Against replicates where there are some, else against a quadratic in log FLOPs."""
    if held is None:
        return None
    found = lack_of_fit(held.bound.terms, held.residual, held.bound.n - held.dof)
    if found is not None:
        return Lack(REPLICATES, *found)
    return _bent(flops, loss, labels, known)


def _bent(flops: Array, loss: Array, labels: Array, known: float) -> Lack | None:
    """F of a quadratic term of each structure in log(L - E), weighted as errors of log loss are."""
    squares, names = np.zeros(2), list(dict.fromkeys(labels))
    for name in names:
        mine = labels == name
        if distinct(flops[mine]) < 3:
            return None
        x, left = np.log(flops[mine]), loss[mine] - known
        x = (x - x.mean()) / np.ptp(x)
        weight = left / loss[mine]
        for i, degree in enumerate((1, 2)):
            design = weight[:, None] * np.vander(x, degree + 1)
            target = weight * np.log(left)
            solution = np.linalg.lstsq(design, target, rcond=None)[0]
            rest = target - design @ solution
            squares[i] += float(rest @ rest)
    dof = (len(names), loss.size - 3 * len(names))
    if dof[1] < 1 or squares[1] <= loss.size * NO_NOISE:
        return None
    statistic = max(0.0, (squares[0] - squares[1]) / dof[0] / (squares[1] / dof[1]))
    return Lack(BEND, statistic, dof, float(fdtrc(*dof, statistic)))
