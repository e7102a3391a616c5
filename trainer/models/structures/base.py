"""What a linear family has to answer, and the registry of families.

Importing this room loads no torch, so that the planner can price a run; methods that touch tensors import it
themselves.  Shapes: B = n_blocks, R = rank, N = d_in, M = d_out, T = tokens (any leading shape).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Generator, Tensor

Shape = tuple[int, ...]


class Fan(NamedTuple):
    """What a structure-aware parametrization has to know of a factor."""

    fan_in: int
    """Inputs that one output of the factor sums over."""
    fan_out: int
    """Outputs that one input of the factor reaches."""
    depth: int
    """Factors that are multiplied one after another in the path that this one is on."""

    @property
    def spectral_std(self) -> float:
        """Standard deviation at which the factor's spectral norm is of order sqrt(fan_out / fan_in).

        sqrt(1 / fan_in) min(1, sqrt(fan_out / fan_in)), Yang et al. 2310.17813.
        """
        return math.sqrt(1 / self.fan_in) * min(1.0, math.sqrt(self.fan_out / self.fan_in))


class Structure(BaseModel):
    """How one linear map R^N -> R^M of an FFN is stored and applied.

    A subclass is both the configuration (its fields are part of a run's identity) and the mathematics.
    Everything that is counted is derived from :meth:`factor_shapes`.  `factors` below are the trained factors
    and the buffers by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: ClassVar[dict[str, type[Structure]]] = {}
    kind: str
    """Name of the family in the registry."""

    @classmethod
    @abstractmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """Choose the fields so that a d_model -> 4 d_model -> d_model FFN keeps `fraction` of its weights."""

    @abstractmethod
    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """Shape of each weight factor of a map R^d_in -> R^d_out; raises ValueError where it cannot be."""

    @abstractmethod
    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Draw the factors and buffers; `std` is the standard deviation that a dense weight would have."""

    @abstractmethod
    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """Apply to x of shape (..., d_in); returns (..., d_out)."""

    @abstractmethod
    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The dense (d_out, d_in) matrix that :meth:`forward` multiplies by."""

    def buffer_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """Shape of each int64 tensor that :meth:`init` draws and training leaves alone (a fixed support)."""
        return {}

    def fans(self, d_in: int, d_out: int) -> dict[str, Fan]:
        """Fan-in, fan-out and depth of each factor; as it stands, for a chain of blocks (..., out, in)."""
        shapes = self.factor_shapes(d_in, d_out)
        return {name: Fan(shape[-1], shape[-2], len(shapes)) for name, shape in shapes.items()}

    def matmul_params(self, d_in: int, d_out: int) -> int:
        """Weights that take part in matrix products, biases not counted."""
        return sum(math.prod(shape) for shape in self.factor_shapes(d_in, d_out).values())

    def flops_per_token(self, d_in: int, d_out: int) -> int:
        """Forward FLOPs for one token, a multiply-add counted as 2."""
        return 2 * self.matmul_params(d_in, d_out)

    def flops_per_pass(self, d_in: int, d_out: int) -> int:
        """Forward FLOPs that a pass takes beside those of its tokens, however many (to assemble a weight)."""
        return 0


def register(cls: type[Structure]) -> type[Structure]:
    """Make a family known under its `kind`."""
    Structure.registry[cls.model_fields["kind"].default] = cls
    return cls
