"""The smoothly broken power law: one power law that bends into another, in one variable.

L = E + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f), with f > 0: a negative one gives the same curves again.  In log-log
the excess over E falls with slope c0 below d and c0 + c1 beyond it; f is the width of the bend in log x.

With u = log x, t = (u - log d) / f: log(L - E) = log b - c0 u - c1 f log(1 + e^t), which for given E, d and f
is linear in log b, c0 and c1.  That gives the map of starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from analysis.arrays import Array, Places
from analysis.engine.sums import Bound, Column, SumLaw, Term, bind
from analysis.errors import AnalysisError

PARAMETERS = ("E", "b", "c0", "c1", "d", "f")
E, B, C0, C1, D, F = range(6)
"""Places of log E, log b, c0, c1, log d and log f in a whole parameter vector; b and d are of centred x."""
SHARP = 0.02
"""Least f, in distances between neighbouring points: these cannot see a sharper bend, which falls between."""
SHARES = (0.0, 0.4, 0.7, 0.85, 0.93, 0.97, 0.99, 0.997)
"""E of the starts, as a share of the lowest loss."""
BREAKS, WIDTHS = 16, 8
"""How many d and f are tried for starts."""
LITTLE = 1e-3
"""Least excess over E, as a share of the loss, that the map of starts takes a logarithm of."""
AT_LIMIT = 1e-9


@dataclass(frozen=True)
class BrokenLaw(SumLaw):
    """A law whose power term has a break; `terms` are those of the law without it."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Parameters that are positive and enter by their logarithms."""
        return ("E", "b", "d", "f")

    @property
    def exponents(self) -> tuple[str, ...]:
        """The exponent below the break, and what it gains beyond."""
        return ("c0", "c1")

    @property
    def parameters(self) -> tuple[str, ...]:
        """All of them, in the order of a whole parameter vector."""
        return PARAMETERS

    @property
    def unbroken(self) -> SumLaw:
        """The law for c1 = 0."""
        return SumLaw("irreducible", self.formula.split(" (1 ")[0], self.terms, self.source)


def broken_law(variable: str = "train_flops", symbol: str = "C") -> BrokenLaw:
    """Return the law in a variable of the table: a column, and the letter of the formula.

    Source: Caballero et al., arXiv 2210.14891, eq. 1 with n = 1.
    """
    return BrokenLaw(
        "broken",
        f"L = E + b {symbol}^-c0 (1 + ({symbol}/d)^(1/f))^(-c1 f)",
        (Term("E", {}), Term("b", {variable: "c0"})),
        "Caballero et al., arXiv 2210.14891, eq. 1 with one break",
    )


BROKEN = broken_law()


@dataclass(frozen=True)
class BrokenBound(Bound):
    """A broken law on a table.

    Its `terms` and `offset` are those of the law without the break; they tell which points are replicates.
    """

    limits: tuple[tuple[float, float], tuple[float, float]] = ((-np.inf, np.inf), (-np.inf, np.inf))
    """Lowest and highest centred log d, and log f."""
    held: Mapping[str, float] = field(default_factory=dict)
    """d or f where the optimum is at its limit: name -> centred logarithm; it is no column then."""

    @property
    def x(self) -> Array:
        """Centred logarithm of the variable, shape (n,)."""
        return np.asarray(-self.terms[:, 1, self.place("c0")])

    @property
    def places(self) -> Places:
        """Where the columns are in a whole parameter vector, shape (p,)."""
        return np.array([PARAMETERS.index(column.name) for column in self.columns])

    def whole(self, phi: Array) -> Array:
        """All six parameters with d and f inside their limits, shape (..., 6), from phi, shape (..., p)."""
        out = np.full((*phi.shape[:-1], len(PARAMETERS)), -np.inf)
        for name, value in self.held.items():
            out[..., PARAMETERS.index(name)] = value
        out[..., self.places] = phi
        for place, (low, high) in zip((D, F), self.limits, strict=True):
            out[..., place] = np.clip(out[..., place], low, high)
        return out

    def log_value(self, phi: Array) -> Array:
        """Log of the law at the points, shape (n,)."""
        whole = self.whole(phi)
        power, _ = log_power(whole[None], self.x)
        return np.asarray(np.logaddexp(whole[E], power[0]))

    def jacobian(self, phi: Array) -> Array:
        """D log L / d phi, shape (n, p)."""
        whole = self.whole(phi)
        power, slopes = log_power(whole[None], self.x)
        share = np.exp(power[0] - np.logaddexp(whole[E], power[0]))
        slopes = slopes[0] * share
        slopes[E] = 1 - share
        return np.ascontiguousarray(slopes[self.places].T)

    def at(self, data: Mapping[str, Array], groups: Sequence[str] | None = None) -> BrokenBound:
        """The same law and centres on other points, whose losses are not known (their logarithms are 0).

        Raises:
            AnalysisError: the variable is missing or has no logarithm.
        """
        # A sum of terms that leaves E out would leave c1 out too, which is in no term.
        flat = Bound.at(replace(self, absent=()), data, groups)
        return _with_break(replace(flat, absent=self.absent), self.limits, self.held)

    def hold(self, phi: Array) -> BrokenBound:
        """The law with d and f fixed where they are at a limit; itself where neither is."""
        held = {}
        for name, (low, high) in zip(("d", "f"), self.limits, strict=True):
            for place in [i for i, column in enumerate(self.columns) if column.name == name]:
                if phi[place] <= low + AT_LIMIT or phi[place] >= high - AT_LIMIT:
                    held[name] = float(np.clip(phi[place], low, high))
        if not held:
            return self
        kept = [place for place, column in enumerate(self.columns) if column.name not in held]
        return replace(
            self,
            columns=tuple(self.columns[place] for place in kept),
            terms=self.terms[:, :, kept],
            held={**self.held, **held},
        )

    def fixed(self) -> dict[str, float]:
        """Values of d and f that are held at a limit, by name."""
        shift = {"d": self._centre, "f": 0.0}
        return {name: float(np.exp(value + shift[name])) for name, value in self.held.items()}

    def natural(self, phi: Array) -> Array:
        """Parameters as the formula has them: b at variable = 1, d in the unit of the variable.

        Args:
            phi: centred and logarithmic, shape (..., p).
        """
        out = np.array(phi, np.float64)
        for place, column in enumerate(self.columns):
            if column.name == "b":
                out[..., place] = np.exp(phi[..., place] + self._centre * phi[..., self.place("c0")])
            elif column.name == "d":
                out[..., place] = np.exp(phi[..., place] + self._centre)
            elif column.name not in self.law.exponents:
                out[..., place] = np.exp(phi[..., place])
        return out

    def natural_jacobian(self, phi: Array) -> Array:
        """D natural / d phi, shape (p, p)."""
        value, out = self.natural(phi), np.eye(phi.size)
        for place, column in enumerate(self.columns):
            if column.name not in self.law.exponents:
                out[place, place] = value[place]
        out[self.place("b"), self.place("c0")] = value[self.place("b")] * self._centre
        return out

    @property
    def _centre(self) -> float:
        return self.centres[self.law.variables[0]]

    def _needed(self, column: Column, lost: set[Column]) -> bool:
        """Only E is ever left out, and no exponent is E's."""
        return True


def bind_broken(
    law: BrokenLaw,
    data: Mapping[str, Array],
    loss: Array,
    groups: Sequence[str] | None = None,
    free: Sequence[str] = (),
) -> BrokenBound:
    """Bind a broken law to a table.

    Args:
        law: the law.
        data: its variable, shape (n,), above zero.
        loss: held-out loss, shape (n,), above zero.
        groups: the structure of each point; they share all parameters.
        free: must be empty.

    Raises:
        AnalysisError: as `sums.bind` does, and where a parameter is freed.
    """
    if free:
        raise AnalysisError(
            f"{law.name}: {', '.join(free)} of each structure in a joint fit is not offered for a law with a "
            f"break; fit each structure alone"
        )
    flat = bind(law, data, loss, groups)
    x = -flat.terms[:, 1, flat.place("c0")]
    span = max(float(np.ptp(x)), 1e-6)
    steps = max(1, np.unique(np.round(x, 6)).size - 1)
    widths = (float(np.log(SHARP * span / steps)), float(np.log(span)))
    # Outside of the points d and c1 would trade places without end.
    return _with_break(flat, ((float(x.min()), float(x.max())), widths), {})


def _with_break(flat: Bound, limits: Any, held: Mapping[str, float]) -> BrokenBound:
    return BrokenBound(
        flat.law,
        flat.columns,
        flat.terms,
        flat.offset,
        flat.log_loss,
        flat.groups,
        flat.centres,
        flat.absent,
        limits,
        held,
    )


Shape: TypeAlias = tuple[Array, Array, Array, Array]


def bend(whole: Array, x: Array) -> Shape:
    """Shape of the break at the points, each of shape (m, n).

    Args:
        whole: parameters, shape (m, 6).
        x: centred logarithms, shape (n,).

    Returns t, log(1 + e^t), the logistic function s of t, and log(1 + e^t) - t s.
    """
    t = (x - whole[:, D, None]) * np.exp(-whole[:, F, None])
    far = np.abs(t)
    small = np.exp(-far)
    rest = np.log1p(small)
    tail = small / (1 + small)
    # The last is even in t; the difference itself would cancel far beyond the break.
    return t, np.maximum(t, 0.0) + rest, np.where(t > 0, 1 - tail, tail), rest + far * tail


def log_power(whole: Array, x: Array, shape: Shape | None = None) -> tuple[Array, Array]:
    """Log of the power term, shape (m, n), and its derivatives, shape (m, 6, n); that by log E is 0.

    Args:
        whole: parameters, shape (m, 6).
        x: centred logarithms, shape (n,).
        shape: what `bend` gives for these, where it is known.
    """
    _, soft, step, even = bend(whole, x) if shape is None else shape
    width, gain = np.exp(whole[:, F, None]), whole[:, C1, None]
    slopes = np.zeros((len(whole), len(PARAMETERS), x.size))
    slopes[:, B] = 1.0
    slopes[:, C0] = -x
    slopes[:, C1] = -width * soft
    slopes[:, D] = gain * step
    slopes[:, F] = -gain * width * even
    return whole[:, B, None] - whole[:, C0, None] * x - gain * width * soft, slopes


def map_of_starts(bound: BrokenBound, weights: Array | None = None) -> tuple[Array, Array, Array]:
    """Best fits for given E, d and f, to first order in the residuals of log L.

    Args:
        bound: law and data.
        weights: of the points, shape (n,); None for ones.

    Returns the cells (places on the axes of E, d and f), shape (c, 3); phi, shape (c, p); and sums of squared
    log residuals, shape (c,).
    """
    x, loss = bound.x, np.exp(bound.log_loss)
    weight = np.ones(bound.n) if weights is None else np.asarray(weights, np.float64)
    has = {column.name for column in bound.columns}
    low, high = bound.limits[F - D]
    breaks = np.linspace(x.min(), x.max(), BREAKS + 2)[1:-1] if "d" in has else np.array([bound.held["d"]])
    widths = np.linspace(low, high, WIDTHS + 2)[1:-1] if "f" in has else np.array([bound.held["f"]])
    grid = np.array([(i, j) for i in range(breaks.size) for j in range(widths.size)])
    whole = np.zeros((len(grid), len(PARAMETERS)))
    whole[:, D], whole[:, F] = breaks[grid[:, 0]], widths[grid[:, 1]]
    basis = log_power(whole, x)[1][:, [B, C0, C1]]
    cells, points, costs = [], [], []
    for level, share in enumerate(SHARES if "E" in has else (0.0,)):
        floor = share * loss.min()
        excess = np.maximum(loss - floor, LITTLE * loss)
        pull = weight * (excess / loss) ** 2
        scale = np.sqrt(np.einsum("ckn,n->ck", basis**2, pull))[:, :, None]
        matrix = basis / np.maximum(scale, 1e-300)
        gram = np.einsum("ckn,cln,n->ckl", matrix, matrix, pull) + 1e-10 * np.eye(3)
        right = np.einsum("ckn,n->ck", matrix, pull * np.log(excess))
        solution = np.linalg.solve(gram, right[:, :, None]) / np.maximum(scale, 1e-300)
        whole[:, [B, C0, C1]] = solution[:, :, 0]
        whole[:, E] = np.log(max(floor, LITTLE * loss.min())) if "E" in has else -np.inf
        power = np.einsum("ckn,ck->cn", basis, solution[:, :, 0])
        residual = np.logaddexp(whole[:, E, None], power) - bound.log_loss
        cells.append(np.column_stack([np.full(len(grid), level), grid]))
        points.append(whole[:, bound.places].copy())
        costs.append(residual**2 @ weight)
    return np.concatenate(cells).astype(np.float64), np.concatenate(points), np.concatenate(costs)
