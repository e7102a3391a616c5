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
    """Block-diagonal product: x (..., N) with blocks (B, K, N/B) gives (..., B K)."""
    import torch

    if torch.compiler.is_compiling():
        # The compiler plans its own layouts, and cannot see into a product that writes into a view.
        parts = x.reshape(*x.shape[:-1], blocks.shape[0], blocks.shape[2])
        return torch.einsum("...bi,boi->...bo", parts, blocks).flatten(-2)
    from trainer.models.block_products import BlockProduct, in_autocast_dtype

    flat, blocks = in_autocast_dtype(x.reshape(-1, x.shape[-1]), blocks)
    out: Tensor = BlockProduct.apply(flat, blocks)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])


def shuffled_product(x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """f^-1(U f(V x)) + b: x (..., N), blocks V (B, w, N/B) and U (B, M/B, w), bias (M,); returns (..., M).

    f writes the B blocks of a vector as rows of a matrix and reads it by columns.
    """
    import torch

    n_blocks, width, _ = v.shape
    tokens = x.numel() // x.shape[-1]
    if not torch.compiler.is_compiling() and u.shape[1] % n_blocks == 0 and tokens >= width:
        from trainer.models.block_products import ShuffledProduct, in_autocast_dtype

        flat, v, u, bias = in_autocast_dtype(x.reshape(-1, x.shape[-1]), v, u, bias)
        fast: Tensor = ShuffledProduct.apply(flat, v, u, bias)  # type: ignore[no-untyped-call]
        return fast.view(*x.shape[:-1], fast.shape[-1])
    # With fewer tokens than rows (decoding) reordering a weight would cost more than moving the output.
    hidden = block_product(x, v).view(*x.shape[:-1], n_blocks, width)
    out = block_product(hidden.transpose(-1, -2).flatten(-2), u)
    plain = out.view(*x.shape[:-1], -1, n_blocks).transpose(-1, -2).flatten(-2)
    return plain if bias is None else plain + bias.to(plain.dtype)


def orthonormal_blocks(shape: Shape, generator: Generator) -> Tensor:
    """Random blocks whose singular values are all 1 (arXiv 2406.16450, app. A.1)."""
    import torch

    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    blocks: Tensor = u @ vh
    return blocks
