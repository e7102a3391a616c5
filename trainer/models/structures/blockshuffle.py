"""Two block-diagonal factors with a shuffle between them (Monarch with equal blocks)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from trainer.models.structures.base import Shape, Structure, register
from trainer.models.structures.products import block_diagonal, divide, orthonormal_blocks, shuffled_product

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register
class BlockShuffle(Structure):
    """f^-1(U_b f(V_b x)), both block-diagonal: min(M, N) (M + N) / B weights (Monarch).

    f writes the B blocks of a vector as rows of a matrix and reads it by columns, so that every
    output block sees every input block.
    """

    kind: Literal["blockshuffle"] = "blockshuffle"
    """Family name."""
    n_blocks: int = Field(gt=0)
    """B, the number of diagonal blocks of each factor."""

    @classmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """An FFN has 10 H^2 / B weights against 8 H^2, hence B near 1.25 / fraction."""
        return cls(n_blocks=max(1, round(1.25 / fraction)))

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """V (B, min/B, N/B) and U (B, M/B, min/B)."""
        n_in, n_out = divide("d_in", d_in, self.n_blocks), divide("d_out", d_out, self.n_blocks)
        width = min(n_in, n_out)
        return {"v": (self.n_blocks, width, n_in), "u": (self.n_blocks, n_out, width)}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Orthonormal blocks: every singular value of every block is 1."""
        shapes = self.factor_shapes(d_in, d_out)
        return {name: orthonormal_blocks(shape, generator) for name, shape in shapes.items()}

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """f^-1(U_b f(V_b x)) + b."""
        return shuffled_product(x, factors["v"], factors["u"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """P_M^-1 blockdiag(U) P_n blockdiag(V) with the shuffles as permutations."""
        import torch

        n_blocks, width, _ = factors["v"].shape
        n_out = factors["u"].shape[1]
        shuffle = torch.arange(n_blocks * width).view(n_blocks, width).T.flatten()
        unshuffle = torch.arange(n_blocks * n_out).view(n_out, n_blocks).T.flatten()
        first = block_diagonal(factors["v"])[shuffle]
        merged: Tensor = (block_diagonal(factors["u"]) @ first)[unshuffle]
        return merged
