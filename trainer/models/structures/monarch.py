"""Two block-diagonal factors with unequal numbers of blocks, a shuffle between them (block tensor-train)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from trainer.models.structures.base import Shape, Structure, register
from trainer.models.structures.products import block_product

if TYPE_CHECKING:
    from torch import Generator, Tensor

_NEAR = 0.02
"""Budgets that miss by less count as equally good."""


@register
class Monarch(Structure):
    """Block tensor-train of two cores: R (P N + Q M) weights, P and Q blocks (arXiv 2406.06248 sec. 3.1).

    Each of the Q input blocks gives R numbers to each of the P output blocks, which multiplies the Q R
    numbers that it gets: y[p] = sum over q, r of U[p, :, (q, r)] V[q, (p, r), :] x[q].  With P = Q and
    R = min(M, N) / Q^2 it is blockshuffle up to the order of the features.
    """

    kind: Literal["monarch"] = "monarch"
    """Family name."""
    blocks_in: int = Field(gt=0)
    """Q, blocks that the input is cut into."""
    blocks_out: int = Field(gt=0)
    """P, blocks that the output is cut into."""
    rank: int = Field(gt=0)
    """R, the numbers that an input block gives to an output block."""

    @classmethod
    def from_budget(cls, fraction: float, d_model: int) -> Self:
        """An FFN has 5 H R (P + Q) weights against 8 H^2.

        Of the divisors Q < P of H that meet the budget, the pair nearest to the square roots of the
        dimensions, Q = sqrt(H) and P = sqrt(4 H), that the paper takes; the nearest budget where none does.
        """
        divisors = [n for n in range(1, d_model + 1) if d_model % n == 0]
        choices = []
        for blocks_in in divisors:
            for blocks_out in (n for n in divisors if n > blocks_in):
                rank = max(1, round(1.6 * d_model * fraction / (blocks_in + blocks_out)))
                if rank > d_model // blocks_out:
                    continue
                miss = abs(rank * (blocks_in + blocks_out) / (1.6 * d_model * fraction) - 1)
                root = math.sqrt(d_model)
                shape = abs(math.log(blocks_in / root)) + abs(math.log(blocks_out / (2 * root)))
                choices.append(
                    ((miss if miss > _NEAR else 0.0, shape, blocks_in), blocks_in, blocks_out, rank)
                )
        if not choices:
            return cls(blocks_in=1, blocks_out=1, rank=max(1, round(0.8 * d_model * fraction)))
        _, blocks_in, blocks_out, rank = min(choices)
        return cls(blocks_in=blocks_in, blocks_out=blocks_out, rank=rank)

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """V (Q, P R, N / Q) and U (P, M / P, Q R)."""
        if d_in % self.blocks_in or d_out % self.blocks_out:
            name, size = ("blocks_in", d_in) if d_in % self.blocks_in else ("blocks_out", d_out)
            raise ValueError(f"{name} = {getattr(self, name)} does not divide the layer's {size}")
        return {
            "v": (self.blocks_in, self.blocks_out * self.rank, d_in // self.blocks_in),
            "u": (self.blocks_out, d_out // self.blocks_out, self.blocks_in * self.rank),
        }

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Normal by each factor's own fan-in and fan-out, as the paper prescribes; `std` is not used."""
        import torch

        shapes, fans = self.factor_shapes(d_in, d_out), self.fans(d_in, d_out)
        return {
            name: torch.randn(shape, generator=generator) * fans[name].spectral_std
            for name, shape in shapes.items()
        }

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """U (shuffled V x) + b."""
        hidden = block_product(x, factors["v"])
        grouped = hidden.reshape(*x.shape[:-1], self.blocks_in, self.blocks_out, self.rank)
        out = block_product(grouped.transpose(-3, -2).flatten(-3), factors["u"])
        return out if bias is None else out + bias.to(out.dtype)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The dense (M, N) matrix: block (p, q) is the product of R columns of U with R rows of V."""
        import torch

        v = factors["v"].reshape(self.blocks_in, self.blocks_out, self.rank, -1)
        u = factors["u"].reshape(self.blocks_out, -1, self.blocks_in, self.rank)
        merged = torch.einsum("pmqr,qprn->pmqn", u, v)
        return merged.flatten(0, 1).flatten(1)
