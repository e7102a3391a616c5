"""Laws that are sums of power terms, and their binding to a table: which parameter each point's terms read.

L = sum_k exp(z_k), every z_k linear in the parameters phi: logarithms of coefficients, and exponents.  To
share a parameter between structures, or to free it, only changes the columns that a point's terms read: one
optimiser serves every law and every grouping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.errors import AnalysisError
from analysis.laws import Array

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


POWER = SumLaw(
    "power", "L = k C^-alpha", (Term("k", {"train_flops": "alpha"}),),
    "Kaplan et al., arXiv 2001.08361, eq. 1.1-1.3",
)  # fmt: skip
IRREDUCIBLE = SumLaw(
    "irreducible", "L = E + k C^-alpha", (Term("E", {}), Term("k", {"train_flops": "alpha"})),
    "Hestness et al., arXiv 1712.00409, eq. 1",
)  # fmt: skip
CHINCHILLA = SumLaw(
    "chinchilla", "L = E + A N^-alpha + B D^-beta",
    (Term("E", {}), Term("A", {"params": "alpha"}), Term("B", {"tokens": "beta"})),
    "Hoffmann et al., arXiv 2203.15556, eq. 2",
)  # fmt: skip
TIED = SumLaw(
    "tied", "L = E + A N^-eta + B D^-eta",
    (Term("E", {}), Term("A", {"params": "eta"}), Term("B", {"tokens": "eta"})),
    "Gadre et al., arXiv 2403.08540, eq. 4: E + (a M^h + b M^-h) C^-h with M = D/N, C = 6ND, h = eta/2",
)  # fmt: skip

SUM_LAWS = {law.name: law for law in (POWER, IRREDUCIBLE, CHINCHILLA, TIED)}


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
    log_loss: Array
    """Shape (n,)."""
    centres: Mapping[str, float]
    """Mean of the logarithm of each variable."""

    @property
    def n(self) -> int:
        """Points."""
        return self.log_loss.size

    def place(self, name: str, group: str = ALL) -> int:
        """Column of a parameter; KeyError where there is none."""
        for place, column in enumerate(self.columns):
            if column.name == name and column.group in (group, ALL):
                return place
        raise KeyError(f"{name}[{group}]")

    def natural(self, phi: Array) -> Array:
        """Parameters as the formula has them, coefficients at variable = 1 in their own units.

        Args:
            phi: centred and logarithmic, shape (..., p).
        """
        out = np.array(phi, np.float64)
        for place, column in enumerate(self.columns):
            if column.name in self.law.exponents:
                continue
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
    index = {(column.name, column.group): place for place, column in enumerate(columns)}
    centres = {name: float(np.log(value).mean()) for name, value in values.items()}
    terms = np.zeros((loss.size, len(law.terms), len(columns)))
    for i, group in enumerate(names):
        for k, term in enumerate(law.terms):
            terms[i, k, index.get((term.coefficient, group), index.get((term.coefficient, ALL), 0))] = 1.0
            for variable, exponent in term.powers.items():
                place = index.get((exponent, group), index.get((exponent, ALL), 0))
                terms[i, k, place] -= np.log(values[variable][i]) - centres[variable]
    return Bound(law, columns, terms, np.log(loss), centres)


def _checked(law: SumLaw, data: Mapping[str, Array], name: str, n: int) -> Array:
    if name not in data:
        raise AnalysisError(f"{law.name} ({law.formula}) needs the column '{name}'; map yours with --map")
    value = np.asarray(data[name], np.float64)
    if value.shape != (n,):
        raise AnalysisError(f"{name}: {value.size} values for {n} losses; give one a run")
    if not bool(np.all(np.isfinite(value) & (value > 0))):
        raise AnalysisError(f"{name}: must be finite and above zero; drop the other runs")
    return value
