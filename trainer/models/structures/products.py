"""Products and draws that several families share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.models.structures.base import Shape

if TYPE_CHECKING:
    from torch import Generator, Tensor


def divide(what: str, size: int, n_blocks: int) -> int:
    """Size / n_blocks; ValueError names what does not divide."""
    if size % n_blocks:
        raise ValueError(f"n_blocks = {n_blocks} does not divide {what} = {size}")
    return size // n_blocks


def nearest_multiple(value: float, multiple: int) -> int:
    """The multiple nearest to `value`, at least one."""
    return max(multiple, int(value / multiple + 0.5) * multiple)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b for x (..., N), W (M, N)."""
    from torch.nn.functional import linear

    product: Tensor = linear(x, weight, bias)
    return product


def block_diagonal(blocks: Tensor) -> Tensor:
    """The dense matrix with `blocks` (B, K, N/B) on its diagonal."""
    import torch

    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def block_product(x: Tensor, blocks: Tensor) -> Tensor:
    """Block-diagonal product: x (T, B, N/B) with blocks (B, K, N/B) gives (T, B, K)."""
    import torch

    return torch.einsum("tbi,boi->tbo", x, blocks)


def autocast_like(x: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    """`x` and `weights` in the dtype that autocast would give a product of them."""
    import torch

    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, *weights  # type: ignore[return-value]
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), *(w if w is None else w.to(dtype) for w in weights)  # type: ignore[return-value]


def product_into(out: Tensor, left: Tensor, right: Tensor, add: bool = False) -> None:
    """Write, or add, left (B, I, K) times right (B, K, J) into the strided view `out` (B, I, J).

    BLAS takes a row stride for every operand, so that no operand is copied where the last or the last
    but one stride of each is 1.  On a CPU, batched products want a contiguous output; single ones do not.
    """
    import torch

    if out.device.type == "cpu":
        for product, a, b in zip(out.unbind(), left.unbind(), right.unbind(), strict=True):
            if add:
                torch.addmm(product, a, b, out=product)
            else:
                torch.mm(a, b, out=product)
    elif add:
        torch.baddbmm(out, left, right, out=out)
    else:
        torch.bmm(left, right, out=out)


def orthonormal_blocks(shape: Shape, generator: Generator) -> Tensor:
    """Random blocks whose singular values are all 1 (arXiv 2406.16450, app. A.1)."""
    import torch

    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    blocks: Tensor = u @ vh
    return blocks
