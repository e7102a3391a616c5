"""The linear families: each class knows its factors, counts, initialisation, forward and dense equivalent.

Importing this module loads no torch, so that the planner can price a run; methods that touch tensors
import it themselves.  Shapes: B = n_blocks, R = rank, N = d_in, M = d_out, T = tokens (any leading shape).

To add a family, write one class here (or anywhere that is imported) with the ``@register`` decorator.
"""

from __future__ import annotations

import difflib
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.messages import validation_line

if TYPE_CHECKING:
    from torch import Generator, Tensor

Shape = tuple[int, ...]

BUDGET_TOLERANCE = 0.1
"""How far, relatively, the weights behind a name like 'blockdense-63' may be from what it says."""


class Structure(BaseModel):
    """How one linear map R^N -> R^M of an FFN is stored and applied.

    A subclass is both the configuration (its fields are part of a run's identity) and the mathematics.
    Everything that is counted is derived from :meth:`factor_shapes`.
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
        """Draw the factors; `std` is the standard deviation that a dense weight would have."""

    @abstractmethod
    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """Apply to x of shape (..., d_in); returns (..., d_out)."""

    @abstractmethod
    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The dense (d_out, d_in) matrix that :meth:`forward` multiplies by."""

    def matmul_params(self, d_in: int, d_out: int) -> int:
        """Weights that take part in matrix products, biases not counted."""
        return sum(math.prod(shape) for shape in self.factor_shapes(d_in, d_out).values())

    def flops_per_token(self, d_in: int, d_out: int) -> int:
        """Forward FLOPs for one token, a multiply-add counted as 2."""
        return 2 * self.matmul_params(d_in, d_out)


def register(cls: type[Structure]) -> type[Structure]:
    """Make a family known under its `kind`."""
    Structure.registry[cls.model_fields["kind"].default] = cls
    return cls


def structure_from(value: Any, d_model: int) -> Structure:
    """Build a structure from a name ("dense", "lowrank-63"), a table with `kind`, or a structure.

    The number in a name is the share of a dense FFN's weights in per cent; 63 and 32 are the papers'
    5/8 and 5/16 (rank d_model / 2 and d_model / 4 for lowrank).  Raises ValueError naming what is known.
    """
    if isinstance(value, Structure):
        return value
    if isinstance(value, str):
        kind, _, budget = value.partition("-")
        family = _family(kind, value)
        if kind == "dense":
            if budget:
                raise ValueError(f"structure {value!r}: dense takes no budget; write 'dense'")
            return family.from_budget(1.0, d_model)
        if not budget.isdigit() or not 1 <= int(budget) <= 100:
            raise ValueError(
                f"structure {value!r} needs a budget in per cent, as '{kind}-63', or a table {{kind = ...}}"
            )
        return _checked_budget(family.from_budget(budget_fraction(int(budget)), d_model), value, d_model)
    if isinstance(value, Mapping):
        if "kind" not in value:
            raise ValueError(f"structure table without 'kind'; known kinds: {', '.join(Structure.registry)}")
        family = _family(str(value["kind"]), str(value["kind"]))
        try:
            return family.model_validate(dict(value))
        except ValidationError as error:
            raise ValueError(validation_line(error, family, f"structure {value['kind']!r}")) from None
    raise ValueError(f"structure must be a name or a table, not {type(value).__name__}")


def _ffn_share(structure: Structure, d_model: int) -> float:
    """Weights of a d_model -> 4 d_model -> d_model FFN over those of a dense one."""
    weights = structure.matmul_params(d_model, 4 * d_model) + structure.matmul_params(4 * d_model, d_model)
    return weights / (8 * d_model * d_model)


def _checked_budget(structure: Structure, name: str, d_model: int) -> Structure:
    """Refuse a name whose budget the family cannot come near at this width."""
    wanted, got = budget_fraction(int(name.partition("-")[2])), _ffn_share(structure, d_model)
    if abs(got / wanted - 1) > BUDGET_TOLERANCE:
        fields = ", ".join(f"{key} = {value!r}" for key, value in structure.model_dump().items())
        raise ValueError(
            f"structure {name!r} cannot be had at d_model = {d_model}: the nearest keeps {100 * got:.3g} % "
            f"of a dense FFN; name that budget or give the table {{{fields}}}"
        )
    return structure


def structure_label(structure: Structure, d_model: int) -> str:
    """The short name that resolves to this structure at this width, else its kind with its fields.

    At small widths neighbouring budgets round to the same fields; the roundest of them is the label, so
    that one budget keeps one name over a ladder of sizes.
    """
    if structure.kind == "dense":
        return "dense"
    share = round(100 * _ffn_share(structure, d_model))
    near = sorted(range(max(1, share - 4), min(100, share + 4) + 1), key=lambda b: (b % 10 > 0, b % 5 > 0))
    for budget in (63, 32, *near):
        if type(structure).from_budget(budget_fraction(budget), d_model) == structure:
            return f"{structure.kind}-{budget}"
    fields = ",".join(f"{k}={v}" for k, v in structure.model_dump().items() if k != "kind")
    return f"{structure.kind}({fields})"


def budget_fraction(percent: int) -> float:
    """Share of dense FFN weights behind a budget name: the papers' 63 is 5/8 and their 32 is 5/16."""
    return {63: 0.625, 32: 0.3125}.get(percent, percent / 100)


def _family(kind: str, written: str) -> type[Structure]:
    if kind in Structure.registry:
        return Structure.registry[kind]
    close = difflib.get_close_matches(kind, Structure.registry, n=1)
    hint = f"; did you mean {written.replace(kind, close[0], 1)!r}?" if close else ""
    raise ValueError(f"unknown structure {written!r}{hint} (known families: {', '.join(Structure.registry)})")


def _divide(what: str, size: int, n_blocks: int) -> int:
    if size % n_blocks:
        raise ValueError(f"n_blocks = {n_blocks} does not divide {what} = {size}")
    return size // n_blocks


def _nearest_multiple(value: float, multiple: int) -> int:
    return max(multiple, int(value / multiple + 0.5) * multiple)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from torch.nn.functional import linear

    product: Tensor = linear(x, weight, bias)
    return product


def _block_diagonal(blocks: Tensor) -> Tensor:
    """The dense matrix with `blocks` (B, K, N/B) on its diagonal."""
    import torch

    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _block_product(x: Tensor, blocks: Tensor) -> Tensor:
    """Block-diagonal product: x (T, B, N/B) with blocks (B, K, N/B) gives (T, B, K)."""
    import torch

    return torch.einsum("tbi,boi->tbo", x, blocks)


def _orthonormal_blocks(shape: Shape, generator: Generator) -> Tensor:
    """Random blocks whose singular values are all 1 (arXiv 2406.16450, app. A.1)."""
    import torch

    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    blocks: Tensor = u @ vh
    return blocks


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
        return _linear(x, factors["weight"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The matrix itself."""
        return factors["weight"]


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
        return _linear(_linear(x, factors["v"], None), factors["u"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """U V."""
        return factors["u"] @ factors["v"]


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
        return cls(rank=_nearest_multiple(2 / 3 * d_model * scale, multiple), n_blocks=2)

    def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
        """V (B, R/B, N/B) and U (M, R)."""
        if self.rank > max(d_in, d_out):
            raise ValueError(f"rank = {self.rank} is larger than the layer ({d_in} -> {d_out})")
        rows, cols = _divide("rank", self.rank, self.n_blocks), _divide("d_in", d_in, self.n_blocks)
        return {"v": (self.n_blocks, rows, cols), "u": (d_out, self.rank)}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Orthonormal blocks: every singular value of every block is 1."""
        shapes = self.factor_shapes(d_in, d_out)
        return {name: _orthonormal_blocks(shape, generator) for name, shape in shapes.items()}

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """U (V_b x) + b."""
        hidden = _block_product(x.reshape(-1, self.n_blocks, x.shape[-1] // self.n_blocks), factors["v"])
        return _linear(hidden.reshape(*x.shape[:-1], self.rank), factors["u"], bias)

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """U blockdiag(V)."""
        return factors["u"] @ _block_diagonal(factors["v"])


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
        n_in, n_out = _divide("d_in", d_in, self.n_blocks), _divide("d_out", d_out, self.n_blocks)
        width = min(n_in, n_out)
        return {"v": (self.n_blocks, width, n_in), "u": (self.n_blocks, n_out, width)}

    def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
        """Orthonormal blocks: every singular value of every block is 1."""
        shapes = self.factor_shapes(d_in, d_out)
        return {name: _orthonormal_blocks(shape, generator) for name, shape in shapes.items()}

    def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """f^-1(U_b f(V_b x)) + b."""
        n_blocks, width, n_in = factors["v"].shape
        hidden = _block_product(x.reshape(-1, n_blocks, n_in), factors["v"])
        shuffled = hidden.transpose(1, 2).reshape(-1, n_blocks, width)
        out = _block_product(shuffled, factors["u"])
        n_out = out.shape[-1]
        unshuffled = out.reshape(-1, n_out, n_blocks).transpose(1, 2)
        flat = unshuffled.reshape(*x.shape[:-1], n_blocks * n_out)
        return flat if bias is None else flat + bias

    def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
        """P_M^-1 blockdiag(U) P_n blockdiag(V) with the shuffles as permutations."""
        import torch

        n_blocks, width, _ = factors["v"].shape
        n_out = factors["u"].shape[1]
        shuffle = torch.arange(n_blocks * width).view(n_blocks, width).T.flatten()
        unshuffle = torch.arange(n_blocks * n_out).view(n_out, n_blocks).T.flatten()
        first = _block_diagonal(factors["v"])[shuffle]
        merged: Tensor = (_block_diagonal(factors["u"]) @ first)[unshuffle]
        return merged
