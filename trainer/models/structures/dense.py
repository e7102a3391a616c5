"""The full matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from trainer.models.structures.base import Shape, Structure, register
from trainer.models.structures.products import linear

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register
class Dense(Structure):
    """The full matrix: M N weights."""

    kind: Literal["dense"] = "dense"
    """Family name."""

    @classmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """Dense has nothing to choose."""
        return cls()

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """One matrix (M, N)."""
        return {"weight": (d_out, d_in)}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Normal with standard deviation `std`."""
        import torch

        return {"weight": torch.randn(d_out, d_in, generator=generator) * std}

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """W x + b."""
        return linear(x, factors["weight"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The matrix itself."""
        return factors["weight"]
