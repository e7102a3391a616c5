"""ModelConfig: the shape of the network.  Importing this module loads no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from trainer.models.structures import Dense, Structure, structure_from

Positive = Annotated[int, Field(gt=0)]


class Frozen(BaseModel):
    """A table of a RunConfig: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    NEUTRAL: ClassVar[dict[str, Any]] = {}
    """Fields that later versions added, with the value that every run before them had.  At that value they
    are left out of the canonical form, so that finished runs keep their ids; it must never be changed."""


class RecurrenceConfig(Frozen):
    """How a recurrent transformer goes over a sequence, block by block (arXiv 2402.14746).

    (y_i, h_i+1) = T(a o + h_i, a o + x_i+1), where o is the previous output y_i-1, at first x_1.
    """

    block: Positive = 32
    """Tokens K of a block; a window holds two."""
    block_range: tuple[Positive, Positive] | None = None
    """Least and largest K of those drawn for each training step; evaluation has `block`."""
    mix: Literal["forget", "accumulate", "learned"] = "forget"
    """Weight a of the previous output: 0, 1/2, or a number of each layer, learned from 1/2 within 0 to 1."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.block_range is not None and self.block_range[0] >= self.block_range[1]:
            raise ValueError(f"block_range = {list(self.block_range)}: give [least, largest], least first")
        return self

    @property
    def drawn(self) -> range:
        """Block lengths of training steps."""
        low, high = self.block_range or (self.block, self.block)
        return range(low, high + 1)


class LoopConfig(Frozen):
    """A looped transformer: the layers between prelude and coda are passed through several times."""

    passes: int = Field(ge=2)
    """Times that each token goes through the looped layers."""
    prelude: int = Field(default=0, ge=0)
    """Layers before the looped ones, passed through once."""
    coda: int = Field(default=0, ge=0)
    """Layers behind them, passed through once."""


class ModelConfig(Frozen):
    """A decoder-only transformer, or a recurrent one: pre-norm, tied head."""

    NEUTRAL: ClassVar[dict[str, Any]] = {
        "kind": "transformer", "positions": "rope", "recurrence": None, "loop": None,
    }  # fmt: skip

    kind: Literal["transformer", "recurrent"] = "transformer"
    """Attention over the whole sequence, or a recurrence over blocks of it (see recurrence)."""
    d_model: Positive
    """Width of the residual stream."""
    n_layers: Positive
    """Number of blocks."""
    n_heads: Positive
    """Query heads."""
    n_kv_heads: Positive
    """Key and value heads (grouped-query attention where fewer than n_heads); default n_heads."""
    attn_dim: Positive
    """Total width of the query heads; default d_model."""
    d_ff: Positive
    """Hidden width of the FFN; default 4 d_model, or 8/3 d_model rounded up to 8 for swiglu."""
    vocab_size: Positive
    """Rows of the tied embedding; default that of the data's tokenizer."""
    seq_len: Positive = 256
    """Tokens in a training sequence."""
    structure: SerializeAsAny[Structure]
    """Linear family of the FFN."""
    dense_first_ffn: bool = True
    """Keep the FFN of the first block dense, as arXiv 2406.16450 does."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, FFN and head."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance."""
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    """FFN nonlinearity; swiglu has a third, gating map."""
    bias: bool = True
    """Biases in linear maps and LayerNorm."""
    qk_norm: bool = False
    """RMS-normalise queries and keys of each head, with a learned gain."""
    positions: Literal["rope", "learned", "none"]
    """rope rotates queries and keys; learned adds a vector for each of seq_len positions to the embeddings,
    once; default rope, and none where kind is recurrent, which has no rope."""
    recurrence: RecurrenceConfig | None
    """Of a recurrent transformer; default blocks of 32 tokens that forget."""
    loop: LoopConfig | None = None
    """Layers that are passed through several times; default none are."""
    rope_base: float = Field(default=10000.0, gt=1)
    """Base of the rotary frequencies."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of dense weights (`paper`) and of embeddings at initialisation."""
    parametrization: Literal["paper", "mup"] = "paper"
    """Initialisation and learning rate of each factor: as the papers do, or structure-aware and
    width-transferable (arXiv 2406.06248)."""
    base_d_model: Positive | None = None
    """Width at which the learning rate of `mup` was chosen."""
    base_head_dim: Positive | None = None
    """Head width at which the learning rate of `mup` was chosen; default that of this model."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        d_model, n_heads = data.get("d_model"), data.get("n_heads")
        recurrent = data.get("kind") == "recurrent"
        data.setdefault("positions", "none" if recurrent else "rope")
        data.setdefault("recurrence", {} if recurrent else None)
        if recurrent:
            data.setdefault("dense_first_ffn", False)
        if isinstance(d_model, int):
            swiglu = data.get("activation") == "swiglu"
            data.setdefault("attn_dim", d_model)
            data.setdefault("d_ff", -(-8 * d_model // 24) * 8 if swiglu else 4 * d_model)
            data["structure"] = structure_from(data.get("structure", "dense"), d_model)
        if isinstance(n_heads, int):
            data.setdefault("n_kv_heads", n_heads)
        if data.get("parametrization") == "mup" and isinstance(data.get("attn_dim"), int) and n_heads:
            data.setdefault("base_head_dim", data["attn_dim"] // n_heads)
        return data

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.attn_dim % self.n_heads:
            raise ValueError(f"n_heads = {self.n_heads} does not divide attn_dim = {self.attn_dim}")
        if self.head_dim % 2:
            raise ValueError(f"head width attn_dim / n_heads = {self.head_dim} is odd; RoPE needs it even")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}")
        if self.parametrization == "mup" and self.base_d_model is None:
            raise ValueError("parametrization mup needs base_d_model, the width that peak_lr was chosen at")
        if self.parametrization == "paper" and (self.base_d_model or self.base_head_dim):
            raise ValueError('base_d_model and base_head_dim mean something for parametrization = "mup" only')
        if self.n_layers == 1 and self.dense_first_ffn and self.structure.kind != "dense":
            raise ValueError(
                f"structure {self.structure.kind} would change nothing: n_layers = 1, and dense_first_ffn "
                f"keeps that layer's FFN dense; set dense_first_ffn = false"
            )
        for d_in, d_out in ((self.d_model, self.d_ff), (self.d_ff, self.d_model)):
            self.structure.factor_shapes(d_in, d_out)
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.kind == "recurrent") != (self.recurrence is not None):
            raise ValueError('recurrence needs kind = "recurrent"; set it, or drop recurrence')
        if self.kind == "recurrent" and self.positions == "rope":
            raise ValueError('positions = "rope" with kind = "recurrent"; take "none" or "learned"')
        if self.loop is None:
            return self
        if self.kind == "recurrent":
            raise ValueError(
                'loop with kind = "recurrent": a recurrent layer passes twice already; drop loop'
            )
        if self.loop.prelude + self.loop.coda >= self.n_layers:
            raise ValueError(
                f"loop: prelude = {self.loop.prelude} and coda = {self.loop.coda} leave none of the "
                f"{self.n_layers} layers to loop"
            )
        return self

    @property
    def layer_order(self) -> tuple[int, ...]:
        """The numbers of the layers in the order in which a token passes them, looped ones repeated."""
        if self.loop is None:
            return tuple(range(self.n_layers))
        first, last = self.loop.prelude, self.n_layers - self.loop.coda
        return (*range(first), *(*range(first, last),) * self.loop.passes, *range(last, self.n_layers))

    @property
    def layer_passes(self) -> tuple[int, ...]:
        """How often a token passes each layer; a recurrent one sees it as input and again as state."""
        if self.kind == "recurrent":
            return (2,) * self.n_layers
        return tuple(self.layer_order.count(layer) for layer in range(self.n_layers))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attn_dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Total width of the key heads, and of the value heads."""
        return self.head_dim * self.n_kv_heads

    @property
    def logit_scale(self) -> float:
        """What multiplies the head's input: 1, or base_d_model / d_model for `mup`."""
        return self.base_d_model / self.d_model if self.base_d_model else 1.0

    @property
    def attention_scale(self) -> float:
        """What multiplies attention scores: 1 / sqrt(head_dim), which `mup` reaches at base_head_dim only."""
        if self.base_head_dim is None:
            return 1 / math.sqrt(self.head_dim)
        return math.sqrt(self.base_head_dim) / self.head_dim

    def dense_counterpart(self) -> ModelConfig:
        """The dense transformer of this width: dense FFNs, and query heads, as wide as here, fill d_model."""
        update: dict[str, Any] = {"structure": Dense()}
        if self.d_model % self.head_dim == 0 and (self.d_model // self.head_dim) % self.n_kv_heads == 0:
            update |= {"attn_dim": self.d_model, "n_heads": self.d_model // self.head_dim}
        return self.model_copy(update=update)


def longest(model: ModelConfig) -> int | None:
    """Most tokens of a sequence that the network can read; None: any number."""
    return None if model.kind == "recurrent" and model.positions == "none" else model.seq_len
