"""Laws that are sums of power terms, and their binding to a table: which parameter each point's terms read.

L = sum_k exp(z_k), every z_k linear in the parameters phi: logarithms of coefficients, and exponents.  To
share a parameter between structures, or to free it, only changes the columns that a point's terms read: one
optimiser serves every law and every grouping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.arrays import Array, Mask
from analysis.errors import AnalysisError

EXTREME = 1e100
ALL = ""
"""The group of a parameter that all structures share."""


@dataclass(frozen=True)
class Term:
    """One term: coefficient x product of variable^-exponent."""

    coefficient: str
    """Name of the coefficient: E, A, B, k."""
    powers: Mapping[str, str]
    """Column of the table -> name of the exponent that the term falls with; empty for a constant."""


@dataclass(frozen=True)
class SumLaw:
    """A law in words and in terms."""

    name: str
    formula: str
    terms: tuple[Term, ...]
    source: str
    """Paper and equation."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns that the law needs."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.powers))

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Parameters that are positive and enter by their logarithms."""
        return tuple(dict.fromkeys(term.coefficient for term in self.terms))

    @property
    def exponents(self) -> tuple[str, ...]:
        """Parameters that enter as exponents."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.powers.values()))

    @property
    def parameters(self) -> tuple[str, ...]:
        """All of them, coefficients first."""
        return (*self.coefficients, *self.exponents)


DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {
    "flops_over_multiplier": (("params", "tokens", "train_flops"), lambda n, d, c: c * n / d),
    "flops_times_multiplier": (("params", "tokens", "train_flops"), lambda n, d, c: c * d / n),
}
"""Variables that are computed from columns of the table where it does not hold them: columns, function."""


@dataclass(frozen=True)
class Column:
    """One fitted parameter."""

    name: str
    """Name in the law."""
    group: str
    """The structure that it is of; ALL where it is shared."""

    @property
    def label(self) -> str:
        """As reports write it."""
        return f"{self.name}[{self.group}]" if self.group != ALL else self.name


@dataclass(frozen=True)
class Bound:
    """A law on a table.

    Logarithms of the variables are centred at their means (`centres`), which makes coefficients and exponents
    nearly independent; `natural` undoes it.
    """

    law: SumLaw
    columns: tuple[Column, ...]
    terms: Array
    """d z_ik / d phi_p, shape (n, K, p)."""
    offset: Array
    """z_ik at phi = 0: 0, or -inf where a term is left out; shape (n, K)."""
    log_loss: Array
    """Shape (n,)."""
    groups: tuple[str, ...]
    """The structure of each point."""
    centres: Mapping[str, float]
    """Mean of the logarithm of each variable."""
    absent: tuple[Column, ...] = ()
    """Parameters of terms that are left out: their coefficients are 0."""

    @property
    def n(self) -> int:
        """Points."""
        return self.log_loss.size

    @property
    def enters_by_logarithm(self) -> Mask:
        """Which parameters are logarithms of coefficients, shape (p,)."""
        return np.array([column.name in self.law.coefficients for column in self.columns])

    def place(self, name: str, group: str = ALL) -> int:
        """Column of a parameter; KeyError where there is none."""
        for place, column in enumerate(self.columns):
            if column.name == name and column.group in (group, ALL):
                return place
        raise KeyError(f"{name}[{group}]")

    def log_value(self, phi: Array) -> Array:
        """Log of the law at the points, shape (n,)."""
        return _log_sum(self.terms @ phi + self.offset)

    def jacobian(self, phi: Array) -> Array:
        """D log L / d phi, shape (n, p)."""
        z = self.terms @ phi + self.offset
        share = np.exp(z - _log_sum(z)[:, None])
        return np.asarray(np.einsum("nk,nkp->np", share, self.terms))

    def at(self, data: Mapping[str, Array], groups: Sequence[str] | None = None) -> Bound:
        """The same law and centres on other points, whose losses are not known (their logarithms are 0).

        Raises:
            AnalysisError: a variable is missing or has no logarithm.
        """
        n = len(next(iter(data.values()))) if data else 0
        values = {name: _checked(self.law, data, name, n) for name in self.law.variables}
        names = [ALL] * n if groups is None else list(groups)
        known = (*self.columns, *self.absent)
        terms, _ = _terms(self.law, known, values, self.centres, names)
        whole = Bound(
            self.law, known, terms, np.zeros(terms.shape[:2]), np.zeros(n), tuple(names), self.centres
        )
        return whole.without(self.absent)

    def without(self, gone: Sequence[Column]) -> Bound:
        """The law without some of its coefficients, and without the exponents that only these had."""
        lost = {column for column in gone if column.name in self.law.coefficients}
        if not lost:
            return self
        kept = [column for column in self.columns if column not in lost and self._needed(column, lost)]
        places = [self.columns.index(column) for column in kept]
        out = np.any(self.terms[:, :, [self.columns.index(column) for column in lost]] != 0, axis=2)
        return replace(
            self,
            columns=tuple(kept),
            terms=np.where(out[:, :, None], 0.0, self.terms)[:, :, places],
            offset=np.where(out, -np.inf, self.offset),
            absent=(*self.absent, *(column for column in self.columns if column not in kept)),
        )

    def _needed(self, column: Column, lost: set[Column]) -> bool:
        """Whether a coefficient that is left has this exponent; coefficients need nothing."""
        if column.name in self.law.coefficients:
            return True
        having = {term.coefficient for term in self.law.terms if column.name in term.powers.values()}
        return any(
            other.name in having and (ALL in (other.group, column.group) or other.group == column.group)
            for other in self.columns
            if other not in lost
        )

    def natural(self, phi: Array) -> Array:
        """Parameters as the formula has them, coefficients at variable = 1 in their own units.

        A coefficient that lies beyond float64, since no point is anywhere near 1, is infinite.

        Args:
            phi: centred and logarithmic, shape (..., p).
        """
        out = np.array(phi, np.float64)
        for place, column in enumerate(self.columns):
            if column.name in self.law.exponents:
                continue
            with np.errstate(over="ignore"):
                out[..., place] = np.exp(phi[..., place] + phi @ self._shift(column))
        return out

    def natural_jacobian(self, phi: Array) -> Array:
        """D natural / d phi, shape (p, p)."""
        value = self.natural(phi)
        out = np.eye(phi.size)
        for place, column in enumerate(self.columns):
            if column.name not in self.law.exponents:
                out[place] = value[place] * (out[place] + self._shift(column))
        return out

    def _shift(self, column: Column) -> Array:
        """What centring took out of a coefficient: sum of exponent x centre, as a row over phi."""
        row = np.zeros(len(self.columns))
        term = next(term for term in self.law.terms if term.coefficient == column.name)
        for variable, exponent in term.powers.items():
            # A shared coefficient with exponents of its own in each group is refused when binding.
            row[self.place(exponent, column.group)] += self.centres[variable]
        return row


def _log_sum(z: Array) -> Array:
    top = z.max(axis=1)
    return np.asarray(top + np.log(np.exp(z - top[:, None]).sum(axis=1)))


def bind(
    law: SumLaw,
    data: Mapping[str, Array],
    loss: Array,
    groups: Sequence[str] | None = None,
    free: Sequence[str] = (),
) -> Bound:
    """Bind a law to a table.

    Args:
        law: the law.
        data: each of its variables, shape (n,), above zero.
        loss: held-out loss, shape (n,), above zero.
        groups: the structure of each point; None for one curve.
        free: parameters that every structure has its own of; the others are shared.

    Raises:
        AnalysisError: a variable is missing, lengths differ, values have no logarithm, a freed parameter is
            none of the law's, or an exponent is freed while its coefficient is shared.
    """
    loss = np.asarray(loss, np.float64)
    values = {name: _checked(law, data, name, loss.size) for name in law.variables}
    if not bool(np.all(np.isfinite(loss) & (loss > 0))):
        raise AnalysisError(f"{law.name}: losses must be finite and above zero; drop the other runs")
    if float(loss.min()) < 1 / EXTREME or float(loss.max()) > EXTREME:
        raise AnalysisError(f"{law.name}: losses beyond 1e-100 to 1e100 are no losses; mend their unit")
    names = [ALL] * loss.size if groups is None else list(groups)
    if len(names) != loss.size:
        raise AnalysisError(f"{law.name}: {len(names)} groups for {loss.size} losses; give one a run")
    if unknown := [name for name in free if name not in law.parameters]:
        raise AnalysisError(f"{law.name} has no parameter '{unknown[0]}'; it has {', '.join(law.parameters)}")
    for term in law.terms:
        loose = [name for name in term.powers.values() if name in free]
        if loose and term.coefficient not in free:
            raise AnalysisError(
                f"{law.name}: {loose[0]} of each structure needs {term.coefficient} of each structure: a "
                f"shared coefficient would depend on the unit of the variable; free both"
            )
    labels = list(dict.fromkeys(names))
    columns = tuple(
        Column(name, group)
        for name in law.parameters
        for group in (labels if name in free and groups is not None else [ALL])
    )
    centres = {name: float(np.log(value).mean()) for name, value in values.items()}
    terms, offset = _terms(law, columns, values, centres, names)
    return Bound(law, columns, terms, offset, np.log(loss), tuple(names), centres)


def _terms(
    law: SumLaw,
    columns: Sequence[Column],
    values: Mapping[str, Array],
    centres: Mapping[str, float],
    names: Sequence[str],
) -> tuple[Array, Array]:
    """What each point's terms read: d z / d phi, shape (n, K, p), and z at phi = 0, shape (n, K)."""
    n = len(names)
    logs = {name: np.log(value) - centres[name] for name, value in values.items()}
    terms = np.zeros((n, len(law.terms), len(columns)))
    group_of = np.array(names, dtype=object)
    for place, column in enumerate(columns):
        mine = np.ones(n, bool) if column.group == ALL else group_of == column.group
        for k, term in enumerate(law.terms):
            if term.coefficient == column.name:
                terms[mine, k, place] = 1.0
            for variable, exponent in term.powers.items():
                if exponent == column.name:
                    terms[mine, k, place] -= logs[variable][mine]
    return terms, np.zeros((n, len(law.terms)))


def _checked(law: SumLaw, data: Mapping[str, Array], name: str, n: int) -> Array:
    if name not in data:
        if name in DERIVED:
            parts = [_checked(law, data, part, n) for part in DERIVED[name][0]]
            return np.asarray(DERIVED[name][1](*parts))
        raise AnalysisError(f"{law.name} ({law.formula}) needs the column '{name}'; map yours with --map")
    value = np.asarray(data[name], np.float64)
    if value.shape != (n,):
        raise AnalysisError(f"{name}: {value.size} values for {n} losses; give one a run")
    if not bool(np.all(np.isfinite(value) & (value > 0))):
        raise AnalysisError(f"{name}: must be finite and above zero; drop the other runs")
    if float(value.min(initial=1.0)) < 1 / EXTREME or float(value.max(initial=1.0)) > EXTREME:
        raise AnalysisError(f"{name}: values beyond 1e-100 to 1e100 cannot be fitted; mend their unit")
    return value
