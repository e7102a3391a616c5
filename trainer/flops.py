"""Exact parameters and FLOPs of a run, from its configuration alone.

A multiply-add counts as 2.  Conventions for the training FLOPs of a run:

- ``paper`` (stored everywhere): 3 x forward; every matmul and the tied head once, attention over the full
  T x T square, no embedding lookup (arXiv 2406.16450, as its code counts).
- ``causal``: the same with half the attention square.
- ``6N`` and ``6N_non_embedding``: 6 x parameters x tokens.

Self-guided training adds 3 x forward of each dense branch where it runs, under every convention.  Weights
that are assembled from factors in each pass (sltrain) are counted once a step in `paper` and `causal`; that
micro-batches assemble them again is a matter of how a run is executed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from trainer.guidance import expected_passes
from trainer.models.config import ModelConfig
from trainer.models.structures import Dense, Structure

if TYPE_CHECKING:
    from trainer.config import RunConfig

CONVENTIONS = ("paper", "causal", "6N", "6N_non_embedding")


@dataclass(frozen=True)
class ModelCounts:
    """Counts of one model; parameters are weights, FLOPs are for one token forward."""

    params_total: int
    """Every trained number."""
    params_embedding: int
    """The tied embedding."""
    params_non_embedding: int
    """Weights of matrix products outside the embedding (biases and norm gains not counted)."""
    params_ffn: int
    """Weights of the FFNs' matrix products."""
    params_bias_norm: int
    """Biases and norm gains."""
    forward_matmul: int
    """FLOPs of all weight matrices, the head included, for one token."""
    forward_attention: int
    """FLOPs of QK^T and AV over the full square, for one token."""
    forward_pass: int
    """FLOPs of a pass beside those of its tokens, however many these are."""

    @property
    def forward(self) -> int:
        """Forward FLOPs per token, `paper` convention."""
        return self.forward_matmul + self.forward_attention


def ffn_structures(model: ModelConfig) -> list[Structure]:
    """The structure of each block's FFN, first block first."""
    first: Structure = Dense() if model.dense_first_ffn else model.structure
    return [first] + [model.structure] * (model.n_layers - 1)


def ffn_shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """(d_in, d_out) of the linear maps of one FFN: up (twice for swiglu) and down."""
    up = (model.d_model, model.d_ff)
    down = (model.d_ff, model.d_model)
    return [up, up, down] if model.activation == "swiglu" else [up, down]


@lru_cache(maxsize=4096)
def model_counts(model: ModelConfig) -> ModelCounts:
    """Count a model's parameters and forward FLOPs."""
    d, attn, kv, layers = model.d_model, model.attn_dim, model.kv_dim, model.n_layers
    embedding = model.vocab_size * d
    attn_weights = layers * (d * attn + 2 * d * kv + attn * d)
    ffn_weights = ffn_flops = pass_flops = 0
    for structure in ffn_structures(model):
        for d_in, d_out in ffn_shapes(model):
            ffn_weights += structure.matmul_params(d_in, d_out)
            ffn_flops += structure.flops_per_token(d_in, d_out)
            pass_flops += structure.flops_per_pass(d_in, d_out)
    norm = d * (2 if model.norm == "layernorm" and model.bias else 1)
    bias_norm = norm * (2 * layers + 1)
    if model.bias:
        bias_norm += layers * (attn + 2 * kv + d + sum(d_out for _, d_out in ffn_shapes(model)))
    if model.qk_norm:
        bias_norm += layers * 2 * model.head_dim
    return ModelCounts(
        params_total=embedding + attn_weights + ffn_weights + bias_norm,
        params_embedding=embedding,
        params_non_embedding=attn_weights + ffn_weights,
        params_ffn=ffn_weights,
        params_bias_norm=bias_norm,
        forward_matmul=2 * (embedding + attn_weights) + ffn_flops,
        forward_attention=4 * model.seq_len * attn * layers,
        forward_pass=pass_flops,
    )


def flops_per_token(model: ModelConfig, convention: str = "paper") -> int:
    """Training FLOPs per token (forward and backward) under a named convention."""
    counts = model_counts(model)
    if convention == "paper":
        return 3 * counts.forward
    if convention == "causal":
        return 3 * (counts.forward_matmul + counts.forward_attention // 2)
    if convention == "6N":
        return 6 * counts.params_total
    if convention == "6N_non_embedding":
        return 6 * counts.params_non_embedding
    raise ValueError(f"unknown FLOPs convention {convention!r}; known: {', '.join(CONVENTIONS)}")


def flops_per_step(model: ModelConfig, batch_tokens: int, convention: str = "paper") -> int:
    """Training FLOPs of an unguided step on `batch_tokens` tokens under a named convention."""
    once = 0 if convention.startswith("6N") else 3 * model_counts(model).forward_pass
    return batch_tokens * flops_per_token(model, convention) + once


def guided_maps(model: ModelConfig) -> list[tuple[int, int]]:
    """(d_in, d_out) of every structured map, first block first: those that a guide stands beside."""
    structured = [s for s in ffn_structures(model) if s.kind != "dense"]
    return [shape for _ in structured for shape in ffn_shapes(model)]


@lru_cache(maxsize=4096)
def guide_params(model: ModelConfig) -> int:
    """Weights of the dense branches of all guided maps; they are there while guidance lasts."""
    return sum(d_in * d_out for d_in, d_out in guided_maps(model))


def guide_flops_per_token(model: ModelConfig) -> int:
    """Training FLOPs that the dense branches of all guided maps add to a token where they run."""
    return 6 * guide_params(model)


def matching_guided_steps(model: ModelConfig, base_steps: int, batch_tokens: int, stochastic: bool) -> int:
    """Guided steps that, repeated at the end, bring a run of `base_steps` up to its dense twin's FLOPs.

    The largest number that does not pass them (`fixed_flops`); below 1 where the run costs as much already.
    """
    own, dense = (flops_per_step(m, batch_tokens) for m in (model, model.dense_counterpart()))
    # Twice everything, so that half a dense branch stays a whole number.
    extra = 2 * own + (1 if stochastic else 2) * batch_tokens * guide_flops_per_token(model)
    return base_steps * 2 * (dense - own) // extra


def flops_of_steps(
    model: ModelConfig,
    batch_tokens: int,
    steps: int,
    guided_steps: int,
    stochastic: bool,
    convention: str = "paper",
) -> Fraction:
    """Training FLOPs of the first `steps` steps of a run of which `guided_steps` are guided.

    A dense branch that is drawn counts with its mean, as the paper does.
    """
    passes = expected_passes(steps, guided_steps, stochastic)
    guides = passes * batch_tokens * guide_flops_per_token(model) if passes else Fraction(0)
    return steps * flops_per_step(model, batch_tokens, convention) + guides


def spent_flops(config: RunConfig, steps: int, convention: str = "paper") -> int:
    """Training FLOPs of the first `steps` steps of a run under a named convention."""
    batch_tokens, stochastic = config.optim.batch_tokens, config.guide.stochastic
    if config.guide.mode == "none":
        return steps * flops_per_step(config.model, batch_tokens, convention)
    spent = flops_of_steps(config.model, batch_tokens, steps, config.guided_steps, stochastic, convention)
    return round(spent)


def train_flops(config: RunConfig, convention: str = "paper") -> int:
    """FLOPs of the whole run under a named convention."""
    return spent_flops(config, config.steps, convention)


def describe(config: RunConfig) -> dict[str, int]:
    """All counts of a run under the names that commands print."""
    counts = asdict(model_counts(config.model))
    return {
        **{key: value for key, value in counts.items() if key.startswith("params")},
        "tokens": config.steps * config.optim.batch_tokens,
        "unique_tokens": config.tokens,
        "steps": config.steps,
        "guided_steps": config.guided_steps,
        "forward_flops_per_token": model_counts(config.model).forward,
        "flops_per_token": flops_per_token(config.model),
        "train_flops": train_flops(config),
    }
