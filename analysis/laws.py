"""Power laws of held-out loss in training FLOPs: value, derivatives and parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from analysis.errors import AnalysisError

Array = npt.NDArray[np.float64]


class Law(Protocol):
    """What the fits, the report and the figures need to know of a law."""

    name: ClassVar[str]
    formula: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]

    @property
    def reference(self) -> float:
        """C0, the training FLOPs at which k is read off."""

    def evaluate(self, theta: Array, flops: Array) -> Array:
        """Return the loss at `flops`, shape (n,), in the unit of the data (nats per token)."""

    def jacobian(self, theta: Array, flops: Array) -> Array:
        """Return d loss / d theta, shape (n, p), in the order of `parameters`."""


@dataclass(frozen=True)
class PowerLaw:
    """L = k (C / C0)^-alpha: a straight line in log-log axes, without an irreducible loss.

    C0 (`reference`) is a constant and not fitted: the geometric mean of the training FLOPs of the whole
    table. alpha does not depend on it; k is the loss at C0, nearly uncorrelated with alpha, and comparable
    between structures that share the same C0.
    """

    name: ClassVar[str] = "power"
    formula: ClassVar[str] = "L = k (C/C0)^-alpha"
    parameters: ClassVar[tuple[str, ...]] = ("k", "alpha")
    reference: float

    def evaluate(self, theta: Array, flops: Array) -> Array:
        """Return the loss at `flops`, shape (n,), nats per token."""
        k, alpha = theta
        return np.asarray(k * np.exp(-alpha * np.log(flops / self.reference)))

    def jacobian(self, theta: Array, flops: Array) -> Array:
        """Return d loss / d (k, alpha), shape (n, 2)."""
        k, alpha = theta
        x = np.log(flops / self.reference)
        u = np.exp(-alpha * x)
        return np.stack([u, -k * x * u], axis=1)


@dataclass(frozen=True)
class IrreduciblePowerLaw:
    """L = E + k (C / C0)^-alpha with an irreducible loss E >= 0; C0 as in `PowerLaw`.

    The form of Hestness et al. (arXiv 1712.00409) and Hoffmann et al. (arXiv 2203.15556) in one variable.
    k is the reducible part of the loss at C0.
    """

    name: ClassVar[str] = "irreducible"
    formula: ClassVar[str] = "L = E + k (C/C0)^-alpha"
    parameters: ClassVar[tuple[str, ...]] = ("E", "k", "alpha")
    reference: float

    def evaluate(self, theta: Array, flops: Array) -> Array:
        """Return the loss at `flops`, shape (n,), nats per token."""
        floor, k, alpha = theta
        return np.asarray(floor + k * np.exp(-alpha * np.log(flops / self.reference)))

    def jacobian(self, theta: Array, flops: Array) -> Array:
        """Return d loss / d (E, k, alpha), shape (n, 3)."""
        _, k, alpha = theta
        x = np.log(flops / self.reference)
        u = np.exp(-alpha * x)
        return np.stack([np.ones_like(u), u, -k * x * u], axis=1)


LAWS: dict[str, type[PowerLaw] | type[IrreduciblePowerLaw]] = {
    PowerLaw.name: PowerLaw,
    IrreduciblePowerLaw.name: IrreduciblePowerLaw,
}


def geometric_mean(flops: Array) -> float:
    """Return the geometric mean of `flops`, the C0 of a table; all must be positive."""
    if flops.size == 0 or not bool(np.all(flops > 0)):
        raise AnalysisError("training FLOPs: C0 needs at least one value, and all above zero; mend the table")
    return float(np.exp(np.mean(np.log(flops))))
