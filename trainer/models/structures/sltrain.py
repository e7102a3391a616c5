"""A low-rank product plus a sparse matrix on a fixed support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from trainer.models.structures.base import Fan, Shape, Structure, register
from trainer.models.structures.products import linear

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register
class SLTrain(Structure):
    """(s U V + S) x with V (R, N), U (M, R) and S of density δ: R (M + N) + δ M N weights (arXiv 2406.02214).

    The support of S is drawn once and stays.  Parameters are counted as in the paper, FLOPs are those of what
    is executed, there and here: the dense matrix is assembled in each pass and multiplied by.  The layer
    saves memory and not time.
    """

    kind: Literal["sltrain"] = "sltrain"
    """Family name."""
    rank: int = Field(gt=0)
    """R, at most min(d_in, d_out)."""
    density: float = Field(default=0.03, gt=0, le=1)
    """δ, the share of the entries that S holds."""
    scale: float = Field(default=0.25, gt=0)
    """s, the paper's alpha / rank; its run at 60 M parameters has 32 / 128."""

    @classmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """S keeps its density; an FFN has 10 H R + 8 δ H^2 weights against 8 H^2."""
        density = cls.model_fields["density"].default
        return cls(rank=max(1, round(0.8 * d_model * (fraction - density))))

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """V (R, N), U (M, R) and the entries of S."""
        if self.rank > min(d_in, d_out):
            raise ValueError(f"rank = {self.rank} is larger than the layer ({d_in} -> {d_out})")
        return {"v": (self.rank, d_in), "u": (d_out, self.rank), "entries": self._entries(d_in, d_out)}

    def buffer_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """Places of the entries of S in the matrix read row by row."""
        return {"support": self._entries(d_in, d_out)}

    def flops_per_token(self, d_in: int, d_out: int) -> int:
        """Of the product with the assembled matrix."""
        return 2 * d_in * d_out

    def flops_per_pass(self, d_in: int, d_out: int) -> int:
        """Of the product U V; elementwise work (the scale, the entries of S) is counted nowhere."""
        return 2 * self.rank * d_in * d_out

    def fans(self, d_in: int, d_out: int) -> dict[str, Fan]:
        """An output of S sums over δ N inputs, in a path of its own."""
        sparse = Fan(max(1, round(self.density * d_in)), max(1, round(self.density * d_out)), 1)
        return {"v": Fan(d_in, self.rank, 2), "u": Fan(self.rank, d_out, 2), "entries": sparse}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """U zero, V uniform as Kaiming has it, S uniform in +- 1 / sqrt(N); `std` is not used."""
        import torch

        bound = d_in**-0.5
        shapes = self.factor_shapes(d_in, d_out)
        uniform = {name: torch.rand(shapes[name], generator=generator) * 2 - 1 for name in ("v", "entries")}
        places = torch.randperm(d_in * d_out, generator=generator)[: shapes["entries"][0]]
        return {
            **{name: value * bound for name, value in uniform.items()},
            "u": torch.zeros(shapes["u"]),
            "support": places.sort().values,
        }

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """(s U V + S) x + b, by way of the assembled matrix."""
        return linear(x, self.merged_weight(factors), bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The assembled matrix s U V + S."""
        low_rank = (factors["u"] * self.scale) @ factors["v"]
        entries = factors["entries"].type_as(low_rank)
        return low_rank.flatten().index_add(0, factors["support"], entries).view(low_rank.shape)

    def _entries(self, d_in: int, d_out: int) -> Shape:
        return (max(1, round(self.density * d_in * d_out)),)
