"""The decoder-only transformer: pre-norm, RoPE, grouped-query attention, structured FFN, tied head.

Shapes: B = sequences, T = positions, D = d_model, F = d_ff, H = query heads, G = key/value heads,
E = width of a head, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.flops import ffn_structures
from trainer.models.config import ModelConfig
from trainer.models.structures import Dense, Structure


class StructuredLinear(nn.Module):
    """A linear map whose weight is held in the factors of a structure."""

    def __init__(self, structure: Structure, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.structure, self.d_in, self.d_out = structure, d_in, d_out
        shapes = structure.factor_shapes(d_in, d_out)
        self.factors = nn.ParameterDict({name: nn.Parameter(torch.empty(s)) for name, s in shapes.items()})
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        self.guide: nn.Module | None = None
        for name, shape in structure.buffer_shapes(d_in, d_out).items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Factors and buffers by name."""
        factors = cast(Mapping[str, Tensor], self.factors)
        own = self._buffers
        return {**factors, **cast(Mapping[str, Tensor], own)} if own else factors

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x (..., d_in); returns (..., d_out).  In training, a guide has its say before the bias."""
        if self.guide is None or not self.training:
            return self.structure.forward(x, self.weights, self.bias)
        mixed: Tensor = self.guide(x, self.structure.forward(x, self.weights, None))
        return mixed if self.bias is None else mixed + self.bias.to(mixed.dtype)

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Initialise factors and buffers as the structure says; the bias starts at zero."""
        for name, value in self.structure.init(self.d_in, self.d_out, std, generator).items():
            self.weights[name].copy_(value)

    def merged_weight(self) -> Tensor:
        """The dense (d_out, d_in) matrix that this layer stands for."""
        return self.structure.merged_weight(self.weights)


def make_norm(model: ModelConfig) -> nn.Module:
    """The pre-norm of a block or of the head."""
    if model.norm == "rmsnorm":
        return nn.RMSNorm(model.d_model, eps=model.norm_eps)
    return nn.LayerNorm(model.d_model, eps=model.norm_eps, bias=model.bias)


def rope_table(seq_len: int, head_dim: int, base: float) -> Tensor:
    """Rotations (T, 1, E/2, 2): cosine and sine of position times frequency (Su et al. 2104.09864)."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(seq_len, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=-1)[:, None].float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (B, T, heads, E) by their position's angles, in fp32."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():
        # The compiler fuses real arithmetic and leaves complex kernels as they are; eager, one kernel wins.
        (even, odd), (cos, sin) = pairs.unbind(-1), table[: x.shape[1]].unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(table[: x.shape[1]])
    return torch.view_as_real(turned).flatten(-2).type_as(x)


class Past(Protocol):
    """Where a layer's earlier keys and values are, while tokens are generated (trainer.models.decode)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v (B, G, T, E), let q (B, H, T, E) attend to all that is kept; returns (B, H, T, E)."""


class Attention(nn.Module):
    """Causal self-attention with RoPE; the four projections are always dense."""

    def __init__(self, model: ModelConfig, kernel: str) -> None:
        super().__init__()
        self.model, self.kernel = model, kernel
        self.qkv = StructuredLinear(Dense(), model.d_model, model.attn_dim + 2 * model.kv_dim, model.bias)
        self.out = StructuredLinear(Dense(), model.attn_dim, model.d_model, model.bias)
        gain = (model.head_dim,)
        self.q_gain = nn.Parameter(torch.ones(gain)) if model.qk_norm else None
        self.k_gain = nn.Parameter(torch.ones(gain)) if model.qk_norm else None

    def forward(self, x: Tensor, rope: Tensor | None, mask: Tensor, past: Past | None = None) -> Tensor:
        """Attend; x is (B, T, D), `rope` the rotations or None, `mask` (T, T) with -inf above the diagonal.

        With a `past`, what may be attended to is its affair, and `mask` means nothing.
        """
        batch, length, _ = x.shape
        n_heads, n_kv, width = self.model.n_heads, self.model.n_kv_heads, self.model.head_dim
        qkv = self.qkv(x).view(batch, length, n_heads + 2 * n_kv, width)
        qk, v = qkv.split((n_heads + n_kv, n_kv), dim=2)
        if self.q_gain is not None and self.k_gain is not None:
            q, k = qk.split((n_heads, n_kv), dim=2)
            q = F.rms_norm(q, (width,), self.q_gain, self.model.norm_eps)
            k = F.rms_norm(k, (width,), self.k_gain, self.model.norm_eps)
            qk = torch.cat((q, k), dim=2)
        # Queries and keys turn by the same angles: one kernel for both.
        turned = (qk if rope is None else rotate(qk, rope).type_as(v)).transpose(1, 2)
        q, k = turned[:, :n_heads], turned[:, n_heads:]
        v = v.transpose(1, 2)
        if past is not None:
            mixed = past.attend(q, k, v)
        elif self.kernel == "matmul":
            mixed = matmul_attention(q, k, v, mask[:length, :length], self.model.attention_scale)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.model.attention_scale, enable_gqa=n_kv != n_heads
            )
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, n_heads * width))
        return out


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention by explicit products; q is (B, H, T, E), k and v (B, G, T, E), returns (B, H, T, E)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q * scale) @ k.transpose(-2, -1)
    return torch.softmax(scores + mask.to(scores.dtype), dim=-1).to(v.dtype) @ v


class FeedForward(nn.Module):
    """The FFN: up, nonlinearity, down; swiglu has a gating map beside up."""

    def __init__(self, model: ModelConfig, structure: Structure) -> None:
        super().__init__()
        self.up = StructuredLinear(structure, model.d_model, model.d_ff, model.bias)
        self.down = StructuredLinear(structure, model.d_ff, model.d_model, model.bias)
        self.act = F.relu if model.activation == "relu" else F.gelu
        gated = model.activation == "swiglu"
        self.gate = StructuredLinear(structure, model.d_model, model.d_ff, model.bias) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        hidden = self.act(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        out: Tensor = self.down(hidden)
        return out


class Block(nn.Module):
    """Attention and FFN, each on a normalised copy of the residual stream."""

    def __init__(self, model: ModelConfig, structure: Structure, kernel: str) -> None:
        super().__init__()
        self.norm_attention, self.attention = make_norm(model), Attention(model, kernel)
        self.norm_ffn, self.ffn = make_norm(model), FeedForward(model, structure)

    def forward(self, x: Tensor, rope: Tensor | None, mask: Tensor, past: Past | None = None) -> Tensor:
        """Add attention, then the FFN, to x (B, T, D)."""
        x = x + self.attention(self.norm_attention(x), rope, mask, past)
        out: Tensor = x + self.ffn(self.norm_ffn(x))
        return out


class Transformer(nn.Module):
    """The language model.  `kernel` is the attention kernel, "sdpa" or "matmul"."""

    rope: Tensor | None
    mask: Tensor

    def __init__(self, model: ModelConfig, kernel: str = "sdpa") -> None:
        super().__init__()
        self.model = model
        self.embedding = nn.Embedding(model.vocab_size, model.d_model)
        self.positions: nn.Parameter | None = None
        if model.positions == "learned":
            self.positions = nn.Parameter(torch.empty(model.seq_len, model.d_model))
        self.blocks = nn.ModuleList(Block(model, s, kernel) for s in ffn_structures(model))
        self.norm_head = make_norm(model)
        rope = None
        if model.positions == "rope":
            rope = rope_table(model.seq_len, model.head_dim, model.rope_base)
        self.register_buffer("rope", rope, persistent=False)
        square = self.window if kernel == "matmul" else 0
        self.register_buffer("mask", torch.full((square, square), -torch.inf).triu(1), persistent=False)

    @property
    def window(self) -> int:
        """Most positions that attend to each other."""
        return self.model.seq_len

    def passes(self) -> list[Block]:
        """The blocks in the order in which a token passes them, looped ones repeated."""
        return [cast(Block, self.blocks[layer]) for layer in self.model.layer_order]

    def embed(self, tokens: Tensor, first: Tensor | int = 0) -> Tensor:
        """Embeddings (B, T, D) of tokens (B, T) from position `first` on, one for all rows or (B, 1)."""
        x: Tensor = self.embedding(tokens)
        if self.positions is None:
            return x
        if isinstance(first, int):
            return x + self.positions[first : first + tokens.shape[1]]
        return x + self.positions[first + torch.arange(tokens.shape[1], device=tokens.device)]

    def stream(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, D) behind the last block, from embeddings x (B, T, D)."""
        for block in self.passes():
            x = block(x, self.rope, self.mask)
        return x

    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits (B, T, V) for tokens (B, T)."""
        return self.head(self.stream(self.embed(tokens)))

    def head(self, x: Tensor) -> Tensor:
        """Logits (B, T, V) from the residual stream x (B, T, D) behind the last block."""
        hidden = self.norm_head(x)
        if self.model.logit_scale != 1:
            hidden = hidden * self.model.logit_scale
        return F.linear(hidden, self.embedding.weight)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (B, T) in nats, fp32, of `targets` (B, T); 0 where a target is -100."""
        logits = self.logits(tokens).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape)
