"""A block-diagonal factor, then a dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from trainer.models.structures.base import Shape, Structure, register
from trainer.models.structures.products import (
    block_diagonal,
    block_product,
    divide,
    linear,
    nearest_multiple,
    orthonormal_blocks,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register
class BlockDense(Structure):
    """U (V_b x): V_b block-diagonal (R, N) of B blocks, U dense (M, R): R (M + N / B) weights."""

    kind: Literal["blockdense"] = "blockdense"
    """Family name."""
    rank: int = Field(gt=0)
    """R, the width between the factors, a multiple of n_blocks."""
    n_blocks: int = Field(gt=0)
    """B, the number of diagonal blocks of the first factor."""

    @classmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """An FFN has 5 H R (1 + 1/B) weights against 8 H^2; two blocks unless the width forbids.

        The papers keep the rank of the 63 % budget a multiple of 256 and take four blocks with
        R = 3 H / 4 where 2 H / 3 is not one (arXiv 2406.16450 table 6, v2); elsewhere the rank is
        rounded to a multiple of a power of two near H / 16.
        """
        scale = fraction / 0.625
        for n_blocks, share in ((2, 2 / 3), (4, 3 / 4)):
            rank = share * d_model
            if rank.is_integer() and rank % 256 == 0 and (rank * scale).is_integer():
                return cls(rank=int(rank * scale), n_blocks=n_blocks)
        multiple = max(2, 2 ** math.floor(math.log2(max(d_model, 32) / 16)))
        return cls(rank=nearest_multiple(2 / 3 * d_model * scale, multiple), n_blocks=2)

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """V (B, R/B, N/B) and U (M, R)."""
        if self.rank > max(d_in, d_out):
            raise ValueError(f"rank = {self.rank} is larger than the layer ({d_in} -> {d_out})")
        rows, cols = divide("rank", self.rank, self.n_blocks), divide("d_in", d_in, self.n_blocks)
        return {"v": (self.n_blocks, rows, cols), "u": (d_out, self.rank)}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Orthonormal blocks: every singular value of every block is 1."""
        shapes = self.factor_shapes(d_in, d_out)
        return {name: orthonormal_blocks(shape, generator) for name, shape in shapes.items()}

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """U (V_b x) + b."""
        return linear(block_product(x, factors["v"]), factors["u"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """U blockdiag(V)."""
        return factors["u"] @ block_diagonal(factors["v"])
