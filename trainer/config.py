"""RunConfig: everything that decides a run's result, and nothing that only decides how it is executed.

The whole of it, defaults included, is a run's identity.  Importing this module loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.corpora import DataConfig
from trainer.models.structures import Structure, structure_from

SCHEMA_VERSION = 1
"""Raised when the meaning of a field changes, so that old results are never served for it."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Frozen):
    """A decoder-only transformer: pre-norm, RoPE, tied head."""

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
    activation: Literal["gelu", "swiglu"] = "gelu"
    """FFN nonlinearity; swiglu has a third, gating map."""
    bias: bool = True
    """Biases in linear maps and LayerNorm."""
    qk_norm: bool = False
    """RMS-normalise queries and keys of each head, with a learned gain."""
    rope_base: float = Field(default=10000.0, gt=1)
    """Base of the rotary frequencies."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of dense weights and embeddings at initialisation."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        d_model, n_heads = data.get("d_model"), data.get("n_heads")
        if isinstance(d_model, int):
            swiglu = data.get("activation") == "swiglu"
            data.setdefault("attn_dim", d_model)
            data.setdefault("d_ff", -(-8 * d_model // 24) * 8 if swiglu else 4 * d_model)
            data["structure"] = structure_from(data.get("structure", "dense"), d_model)
        if isinstance(n_heads, int):
            data.setdefault("n_kv_heads", n_heads)
        return data

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.attn_dim % self.n_heads:
            raise ValueError(f"n_heads = {self.n_heads} does not divide attn_dim = {self.attn_dim}")
        if self.head_dim % 2:
            raise ValueError(f"head width attn_dim / n_heads = {self.head_dim} is odd; RoPE needs it even")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}")
        if self.n_layers == 1 and self.dense_first_ffn and self.structure.kind != "dense":
            raise ValueError(
                f"structure {self.structure.kind} would change nothing: n_layers = 1, and dense_first_ffn "
                f"keeps that layer's FFN dense; set dense_first_ffn = false"
            )
        for d_in, d_out in ((self.d_model, self.d_ff), (self.d_ff, self.d_model)):
            self.structure.factor_shapes(d_in, d_out)
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attn_dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Total width of the key heads, and of the value heads."""
        return self.head_dim * self.n_kv_heads


class OptimConfig(_Frozen):
    """AdamW and its schedule."""

    peak_lr: float = Field(gt=0, lt=10)
    """Learning rate at the end of the warm-up."""
    batch_tokens: Positive
    """Tokens in one global batch (one optimizer step), a multiple of seq_len."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.95
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay, multiplied by the learning rate."""
    decay: Literal["all", "matrices"] = "matrices"
    """Which parameters decay: all of them (as the papers' code does), or those with two or more axes."""
    clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Cosine decay, or warm-up-stable-decay (linear)."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in the linear warm-up."""
    decay_fraction: Fraction = 0.2
    """Share of the steps in the final decay of `wsd`; cosine does not use it."""
    final_lr_fraction: Fraction = 0.1
    """Last learning rate over the peak."""
    diverge_ratio: float = Field(default=2.0, gt=1)
    """A training loss above this many times ln(vocab_size) ends the run as diverged."""

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction + decay_fraction is larger than 1")
        return self


class EvalConfig(_Frozen):
    """The held-out measurement that becomes the run's val_loss."""

    tokens: Positive = 131_072
    """Held-out tokens, the same for every run on the same corpus and seq_len."""


class RunConfig(_Frozen):
    """One training run."""

    model: ModelConfig
    """The network."""
    data: DataConfig = DataConfig()
    """The corpus and its tokenizer."""
    optim: OptimConfig
    """Optimizer, schedule and batch."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""
    tokens: Positive
    """Training tokens, a whole number of batches (a budget is rounded down to one)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast with fp32 weights and optimizer."""
    seed: int = Field(default=1, ge=0)
    """Of initialisation and data order."""

    @model_validator(mode="before")
    @classmethod
    def _fill_vocab(cls, data: Any) -> Any:
        if (
            isinstance(data, dict)
            and isinstance(data.get("model"), dict)
            and "vocab_size" not in data["model"]
        ):
            try:
                vocab_size = DataConfig.model_validate(data.get("data", {})).vocab_size
            except ValidationError:
                # The field `data` will be told with its own path; the model must not be blamed meanwhile.
                vocab_size = 1
            data = {**data, "model": {**data["model"], "vocab_size": vocab_size}}
        return data

    @field_validator("tokens", mode="after")
    @classmethod
    def _whole_batches(cls, tokens: int, info: ValidationInfo) -> int:
        optim: OptimConfig | None = info.data.get("optim")
        if optim is None:
            return tokens
        if tokens < optim.batch_tokens:
            raise ValueError(f"less than one batch of {optim.batch_tokens} tokens")
        return tokens // optim.batch_tokens * optim.batch_tokens

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.optim.batch_tokens % self.model.seq_len:
            raise ValueError(
                f"optim.batch_tokens = {self.optim.batch_tokens} is not a multiple of "
                f"model.seq_len = {self.model.seq_len}"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.optim.batch_tokens

    @property
    def batch_sequences(self) -> int:
        """Sequences in a global batch."""
        return self.optim.batch_tokens // self.model.seq_len

    def canonical_json(self) -> str:
        """The one text form of this configuration: every field, sorted keys, no spaces."""
        return self._text(_canonical(self.data))

    def run_id(self, corpus_fingerprint: str) -> str:
        """Content hash of the whole configuration, the schema version and the corpus (12 hex digits).

        Where files lie is not content: the corpus' fingerprint stands for them.
        """
        content = self._text(_identity(self.data))
        text = f"[{SCHEMA_VERSION},{json.dumps(corpus_fingerprint)},{content}]"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _text(self, data: str) -> str:
        texts = {"data": data}
        for name in type(self).model_fields:
            if name != "data":
                value = getattr(self, name)
                texts[name] = _canonical(value) if isinstance(value, BaseModel) else json.dumps(value)
        return "{" + ",".join([f'"{name}":{texts[name]}' for name in sorted(texts)]) + "}"


@lru_cache(maxsize=4096)
def _canonical(part: BaseModel) -> str:
    """Canonical JSON of one table; the runs of a sweep share most of theirs."""
    return json.dumps(part.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=256)
def _identity(data: DataConfig) -> str:
    """Canonical JSON of what identifies the data beside the corpus' fingerprint."""
    return json.dumps(data.identity(), sort_keys=True, separators=(",", ":"))
