"""Block-diagonal products and their gradients without the copies that a chain of torch calls would make.

BLAS takes a row stride for each operand and for the result, so blocks of a vector, and shuffled blocks, can
be read and written where they lie.  Autograd cannot say that; these functions do.

Shapes: T = tokens, B = blocks, N = d_in, M = d_out, n = N / B, m = M / B, K or w = rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_PADDING = 16
"""Elements added to a row of a features-by-tokens matrix; where T is a power of two, the rows that one
product reads would otherwise fall into few cache sets."""


def product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write left (B, I, K) times right (B, K, J) into `out` (B, I, J), a view with any strides.

    No operand is copied where one of its last two strides is 1.
    """
    if out.device.type == "cpu" and not out.is_contiguous():
        # The batched product of a CPU has no place in BLAS for such an output; a single product has.
        for product, a, b in zip(out.unbind(), left.unbind(), right.unbind(), strict=True):
            torch.mm(a, b, out=product)
    else:
        torch.bmm(left, right, out=out)


def blocks_of(x: Tensor, n_blocks: int) -> Tensor:
    """The blocks (B, T, N/B) of the vectors x (T, N), a view."""
    return x.view(len(x), n_blocks, x.shape[1] // n_blocks).transpose(0, 1)


def in_autocast_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that autocast would multiply them in; as they are outside autocast.

    Autocast does not look into products that write into a given output.
    """
    kind = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


class BlockProduct(torch.autograd.Function):
    """x (T, N) times blocks (B, K, n) on the diagonal gives (T, B K)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor) -> Tensor:
        """Multiply; one product a block, each into its columns of the result."""
        n_blocks, rows, _ = blocks.shape
        ctx.save_for_backward(x, blocks)
        out = x.new_empty(len(x), n_blocks * rows)
        product_into(blocks_of(out, n_blocks), blocks_of(x, n_blocks), blocks.transpose(1, 2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and of the blocks."""
        x, blocks = ctx.saved_tensors
        parts = blocks_of(grad.contiguous(), len(blocks))
        grad_x = grad_blocks = None
        if ctx.needs_input_grad[0]:
            grad_x = x.new_empty(x.shape)
            product_into(blocks_of(grad_x, len(blocks)), parts, blocks)
        if ctx.needs_input_grad[1]:
            grad_blocks = torch.bmm(parts.transpose(1, 2), blocks_of(x, len(blocks)))
        return grad_x, grad_blocks


class ShuffledProduct(torch.autograd.Function):
    """f^-1(U f(V x)) + b for x (T, N), V (B, w, n), U (B, m, w), b (M,) or None; B has to divide m.

    The hidden vectors are kept features by tokens: there the shuffle f, which takes every B-th feature, is a
    row stride of the product that writes them.  The rows of each block of U are put into the order in which
    f^-1 asks for them, a copy of a weight instead of activations; what is left of f^-1 moves runs of m / B
    features, in the pass that adds the bias.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
        """Two products, and the pass that adds the bias and unshuffles."""
        n_blocks, width, _ = v.shape
        run = u.shape[1] // n_blocks
        hidden = _features_by_tokens(x, n_blocks * width)
        product_into(
            hidden.view(width, n_blocks, -1).transpose(0, 1), v, blocks_of(x, n_blocks).transpose(1, 2)
        )
        rows = u.view(n_blocks, run, n_blocks, width).transpose(1, 2).reshape(u.shape)
        inputs = hidden.view(n_blocks, width, -1).transpose(1, 2)  # (B, T, w)
        shuffled = torch.bmm(inputs, rows.transpose(1, 2))  # (B, T, m)
        ctx.save_for_backward(x, v, rows, hidden)
        out = x.new_empty(len(x), n_blocks, n_blocks, run)
        ordered = shuffled.view(n_blocks, len(x), n_blocks, run).permute(1, 2, 0, 3)
        if bias is None:
            out.copy_(ordered)
        else:
            torch.add(ordered, bias.view(n_blocks, n_blocks, run), out=out)
        return out.view(len(x), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, V, U and b."""
        x, v, rows, hidden = ctx.saved_tensors
        n_blocks, width, _ = v.shape
        run = rows.shape[1] // n_blocks
        need_x, need_v, need_u, need_bias = ctx.needs_input_grad
        grad_x = grad_v = grad_u = None
        parts = (
            grad.reshape(len(x), n_blocks, n_blocks, run).permute(2, 0, 1, 3).reshape(n_blocks, len(x), -1)
        )
        if need_u:
            inputs = hidden.view(n_blocks, width, -1).transpose(1, 2)
            grad_rows = torch.bmm(parts.transpose(1, 2), inputs)
            grad_u = grad_rows.view(n_blocks, n_blocks, run, width).transpose(1, 2).reshape(rows.shape)
        if need_x or need_v:
            grad_hidden = _features_by_tokens(x, n_blocks * width)
            product_into(grad_hidden.view(n_blocks, width, -1), rows.transpose(1, 2), parts.transpose(1, 2))
            unshuffled = grad_hidden.view(width, n_blocks, -1).transpose(0, 1)  # (B, w, T)
            if need_v:
                grad_v = torch.bmm(unshuffled, blocks_of(x, n_blocks))
            if need_x:
                grad_x = x.new_empty(x.shape)
                product_into(blocks_of(grad_x, n_blocks), unshuffled.transpose(1, 2), v)
        return grad_x, grad_v, grad_u, grad.sum(0) if need_bias else None


def _features_by_tokens(x: Tensor, features: int) -> Tensor:
    return x.new_empty(features, len(x) + _PADDING)[:, : len(x)]
