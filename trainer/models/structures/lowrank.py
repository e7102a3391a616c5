"""Two thin factors: U V."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from trainer.models.structures.base import Shape, Structure, register
from trainer.models.structures.products import linear

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register
class LowRank(Structure):
    """U (V x) with V (R, N) and U (M, R): R (M + N) weights (arXiv 2406.16450 sec. 2.1)."""

    kind: Literal["lowrank"] = "lowrank"
    """Family name."""
    rank: int = Field(gt=0)
    """R, at most min(d_in, d_out)."""

    @classmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """An FFN has 10 H R weights against 8 H^2, hence R = 0.8 H fraction."""
        return cls(rank=max(1, round(0.8 * d_model * fraction)))

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """V (R, N) and U (M, R)."""
        if self.rank > min(d_in, d_out):
            raise ValueError(f"rank = {self.rank} is larger than the layer ({d_in} -> {d_out})")
        return {"v": (self.rank, d_in), "u": (d_out, self.rank)}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Spectral: best rank-R approximation of a dense draw, its singular values split evenly."""
        import torch

        dense = torch.randn(d_out, d_in, generator=generator) * std
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        root = s[: self.rank].sqrt()
        return {"v": root[:, None] * vh[: self.rank], "u": u[:, : self.rank] * root}

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """U (V x) + b."""
        return linear(linear(x, factors["v"], None), factors["u"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """U V."""
        return factors["u"] @ factors["v"]
