"""Exact parameters and FLOPs of a run, from its configuration alone.

A multiply-add counts as 2.  Conventions for the training FLOPs of a run:

- ``paper`` (stored everywhere): 3 x forward; every matmul and the tied head once, attention over the full
  T x T square, no embedding lookup (arXiv 2406.16450, as its code counts).
- ``causal``: the same with half the attention square.
- ``6N`` and ``6N_non_embedding``: 6 x parameters x tokens.
- ``sparse``: as ``paper``, but of a pruned run only the multiply-adds of weights that are still there at each
  step.  The others count what is executed: dense products, however many zeros are in them.

A layer that a token passes several times (loop, recurrence) counts each time.  A recurrent transformer
attends within windows of two blocks of K tokens; where K is drawn, the mean over its range counts.

Self-guided training adds 3 x forward of each dense branch where it runs, under every convention.  Weights
that are assembled from factors in each pass (sltrain) are counted once a step in `paper` and `causal`; that
micro-batches assemble them again is a matter of how a run is executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from trainer.curriculum import parts, tokens_of_steps
from trainer.guidance import expected_passes
from trainer.models.config import ModelConfig
from trainer.models.structures import Dense, Structure
from trainer.pruning import PruneConfig, exact, first_and_last, removed, stretches

if TYPE_CHECKING:
    from trainer.config import RunConfig

CONVENTIONS = ("paper", "causal", "6N", "6N_non_embedding", "sparse")


@dataclass(frozen=True)
class ModelCounts:
    """Counts of one model; parameters are weights, FLOPs are for one token forward."""

    params_total: int
    """Every trained number."""
    params_embedding: int
    """The tied embedding, and learned positions."""
    params_non_embedding: int
    """Weights of matrix products outside the embedding (biases and norm gains not counted)."""
    params_ffn: int
    """Weights of the FFNs' matrix products."""
    params_bias_norm: int
    """Biases and norm gains."""
    forward_matmul: int
    """FLOPs of all weight matrices, the head included, for one token."""
    sequence_attention: int
    """FLOPs of QK^T and AV over full squares, for one sequence: all of it, or the windows of a recurrence."""
    seq_len: int
    """Tokens of that sequence."""
    forward_pass: int
    """FLOPs of a pass beside those of its tokens, however many these are."""

    @property
    def forward(self) -> int:
        """Forward FLOPs per token, `paper` convention; the mean over a sequence, rounded down."""
        return self.forward_matmul + self.sequence_attention // self.seq_len


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
    positions = model.seq_len * d if model.positions == "learned" else 0
    of_attention = d * attn + 2 * d * kv + attn * d
    ffn_weights = ffn_flops = pass_flops = 0
    windows = _windows(model)
    for structure, passes in zip(ffn_structures(model), model.layer_passes, strict=True):
        for d_in, d_out in ffn_shapes(model):
            ffn_weights += structure.matmul_params(d_in, d_out)
            ffn_flops += passes * structure.flops_per_token(d_in, d_out)
            pass_flops += round((windows or passes) * structure.flops_per_pass(d_in, d_out))
    norm = d * (2 if model.norm == "layernorm" and model.bias else 1)
    bias_norm = norm * (2 * layers + 1)
    if model.bias:
        bias_norm += layers * (attn + 2 * kv + d + sum(d_out for _, d_out in ffn_shapes(model)))
    if model.qk_norm:
        bias_norm += layers * 2 * model.head_dim
    if model.recurrence is not None and model.recurrence.mix == "learned":
        bias_norm += layers
    return ModelCounts(
        params_total=embedding + positions + layers * of_attention + ffn_weights + bias_norm,
        params_embedding=embedding + positions,
        params_non_embedding=layers * of_attention + ffn_weights,
        params_ffn=ffn_weights,
        params_bias_norm=bias_norm,
        forward_matmul=2 * (embedding + sum(model.layer_passes) * of_attention) + ffn_flops,
        sequence_attention=_sequence_attention(model),
        seq_len=model.seq_len,
        forward_pass=pass_flops,
    )


def _sequence_attention(model: ModelConfig) -> int:
    """FLOPs of attention over one sequence, all passes of all layers."""
    if model.recurrence is None:
        return 4 * model.seq_len**2 * model.attn_dim * sum(model.layer_passes)
    drawn = model.recurrence.drawn
    pairs = Fraction(sum(recurrent_pairs(model.seq_len, block) for block in drawn), len(drawn))
    return round(4 * pairs * model.attn_dim * model.n_layers)


def _windows(model: ModelConfig) -> Fraction | None:
    """Windows that a layer of a recurrence goes over in a sequence, each a pass: x_1, N - 1 pairs, h_N."""
    if model.recurrence is None:
        return None
    drawn = model.recurrence.drawn
    return Fraction(sum(-(-model.seq_len // block) + 1 for block in drawn), len(drawn))


def recurrent_pairs(seq_len: int, block: int) -> int:
    """Pairs of positions in the windows of one recurrent layer over a sequence, full squares.

    With N blocks: x_1 alone, N - 1 windows of two blocks, and h_N alone; the last block may be short.
    """
    rest = (seq_len - 1) % block + 1
    blocks = (seq_len - rest) // block + 1
    if blocks == 1:
        return 2 * rest**2
    return block**2 + (blocks - 2) * (2 * block) ** 2 + (block + rest) ** 2 + rest**2


def at_length(model: ModelConfig, seq_len: int) -> ModelConfig:
    """The same network on sequences of another length, as far as FLOPs go."""
    return model if seq_len == model.seq_len else model.model_copy(update={"seq_len": seq_len})


def flops_per_token(model: ModelConfig, convention: str = "paper") -> int:
    """Training FLOPs per token (forward and backward) under a named convention, with all weights there."""
    counts = model_counts(model)
    if convention in ("paper", "sparse"):
        return 3 * counts.forward
    if convention == "causal":
        return 3 * (counts.forward_matmul + counts.sequence_attention // (2 * counts.seq_len))
    if convention == "6N":
        return 6 * counts.params_total
    if convention == "6N_non_embedding":
        return 6 * counts.params_non_embedding
    raise ValueError(f"unknown FLOPs convention {convention!r}; known: {', '.join(CONVENTIONS)}")


def flops_per_step(model: ModelConfig, batch_tokens: int, convention: str = "paper") -> int:
    """Training FLOPs of an unguided step on `batch_tokens` tokens under a named convention."""
    if convention.startswith("6N"):
        return batch_tokens * flops_per_token(model, convention)
    counts = model_counts(model)
    attention = counts.sequence_attention // (2 if convention == "causal" else 1)
    # Not from the FLOPs of a token, which are rounded where a sequence's do not divide by its length.
    sequences = batch_tokens * attention // counts.seq_len
    return 3 * (batch_tokens * counts.forward_matmul + sequences + counts.forward_pass)


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
    weights = zip(guided_maps(model), guided_passes(model), strict=True)
    return 6 * sum(passes * d_in * d_out for (d_in, d_out), passes in weights)


def guided_passes(model: ModelConfig) -> list[int]:
    """How often a token passes each of the guided maps."""
    layers = zip(ffn_structures(model), model.layer_passes, strict=True)
    return [passes for s, passes in layers if s.kind != "dense" for _ in ffn_shapes(model)]


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


def prunable_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """(weights, times that a token passes it) of every matrix that pruning thins out, factors each alone."""
    d, attn, kv = model.d_model, model.attn_dim, model.kv_dim
    matrices = []
    for structure, passes in zip(ffn_structures(model), model.layer_passes, strict=True):
        factors = [structure.factor_shapes(d_in, d_out).values() for d_in, d_out in ffn_shapes(model)]
        sizes = [d * (attn + 2 * kv), attn * d, *(prod(shape) for shapes in factors for shape in shapes)]
        matrices += [(size, passes) for size in sizes]
    return matrices


def _prunable_groups(model: ModelConfig, prune: PruneConfig) -> Counter[tuple[int, int]]:
    """(weights, passes) of what is ranked together, and how many such there are."""
    matrices = prunable_matrices(model)
    if prune.scope == "layer":
        return Counter(matrices)
    return Counter([(sum(weights for weights, _ in matrices), matrices[0][1])])


def check_prunable(model: ModelConfig, prune: PruneConfig, steps: int) -> None:
    """Raise ValueError where pruning such a network in so many steps makes no sense, or cannot be counted."""
    for structure in ffn_structures(model):
        for d_in, d_out in ffn_shapes(model):
            each = structure.flops_per_token(d_in, d_out), structure.flops_per_pass(d_in, d_out)
            if each != (2 * structure.matmul_params(d_in, d_out), 0):
                raise ValueError(
                    f"structure {structure.kind} multiplies by a dense matrix, whatever is removed from its "
                    f"factors; prune another structure"
                )
    if prune.scope == "global" and len(set(model.layer_passes)) > 1:
        raise ValueError(
            'scope = "global" with layers passed through different numbers of times: what is left to compute '
            'would depend on where weights go; take scope = "layer", or no prelude and coda'
        )
    first, last = first_and_last(prune, steps)
    if first >= last:
        raise ValueError(
            f"start = {prune.start:g} and stop = {prune.stop:g} are the same of {steps} steps; train longer"
        )
    groups = _prunable_groups(model, prune)
    if not any(int(exact(prune.sparsity) * weights) for weights, _ in groups):
        raise ValueError(f"sparsity = {prune.sparsity:g} removes no weight; take a larger one")


def removed_weights(config: RunConfig, done: int) -> int:
    """Weights that pruning has taken during the update that follows `done` updates; 0 without pruning."""
    return _removed(config, done, False)


def _removed(config: RunConfig, done: int, each_pass: bool) -> int:
    """Removed weights, or with `each_pass` the multiply-adds of a token that went with them."""
    if config.prune is None:
        return 0
    prune, steps = config.prune, config.steps
    return sum(
        count * (passes if each_pass else 1) * removed(prune, steps, weights, done)
        for (weights, passes), count in _prunable_groups(config.model, prune).items()
    )


def _removed_over(config: RunConfig, steps: int, each_pass: bool) -> int:
    """The sum of `_removed` over the first `steps` updates of a run."""
    if config.prune is None:
        return 0
    whole = stretches(config.prune, config.steps, steps)
    return sum(n * _removed(config, done, each_pass) for done, n in whole)


def params_active(config: RunConfig, step: int) -> int:
    """Parameters N(t) that are there during update `step` (0-based); behind the last update, those left."""
    return model_counts(config.model).params_total - removed_weights(config, step)


def average_params(config: RunConfig, steps: int) -> Fraction:
    """N_avg, the mean of N(t) over the tokens of the first `steps` updates (arXiv 2501.12486)."""
    total = Fraction(model_counts(config.model).params_total)
    return total - Fraction(_removed_over(config, steps, False), steps) if steps else total


def loop_params(model: ModelConfig) -> tuple[int, int]:
    """(N_once, N_rec): weights of matrix products in layers passed through once, and in the looped ones.

    The looped law has N_once + passes^phi N_rec for N (arXiv 2604.21106).
    """
    looped = sum(weights for weights, passes in prunable_matrices(model) if passes > 1)
    return model_counts(model).params_non_embedding - looped, looped


def spent_flops(
    config: RunConfig, steps: int, convention: str = "paper", ends: Sequence[int] | None = None
) -> int:
    """Training FLOPs of the first `steps` steps of a run under a named convention.

    `ends`: the steps at which stages of its curriculum ended; None counts every step at full length.
    """
    batch_tokens, stochastic = config.optim.batch_tokens, config.guide.stochastic
    if ends is not None and config.curriculum is not None:
        if convention.startswith("6N"):
            return tokens_of_steps(config, steps, ends) * flops_per_token(config.model, convention)
        return sum(
            n * flops_per_step(at_length(config.model, length), config.batch_sequences * length, convention)
            for length, n in parts(config, steps, ends)
        )
    if config.guide.mode == "none":
        whole = steps * flops_per_step(config.model, batch_tokens, convention)
        gone = _removed_over(config, steps, True) if convention == "sparse" else 0
        return whole - 6 * batch_tokens * gone
    spent = flops_of_steps(config.model, batch_tokens, steps, config.guided_steps, stochastic, convention)
    return round(spent)


def train_flops(config: RunConfig, convention: str = "paper") -> int:
    """FLOPs of the whole run under a named convention."""
    return spent_flops(config, config.steps, convention)


def describe(config: RunConfig) -> dict[str, int]:
    """All counts of a run under the names that commands print; train_flops are those of `paper`."""
    counts = asdict(model_counts(config.model))
    return {
        **{key: value for key, value in counts.items() if key.startswith("params")},
        **variant_params(config, config.steps),
        "tokens": config.steps * config.optim.batch_tokens,
        "unique_tokens": config.tokens,
        "steps": config.steps,
        "guided_steps": config.guided_steps,
        "forward_flops_per_token": model_counts(config.model).forward,
        "flops_per_token": flops_per_token(config.model),
        "train_flops": train_flops(config),
        **({"train_flops_sparse": train_flops(config, "sparse")} if config.prune else {}),
        **_recurrent_sequence(config.model),
    }


def _recurrent_sequence(model: ModelConfig) -> dict[str, int]:
    """Forward FLOPs of a sequence of a recurrent transformer, as counted here and as its paper counts.

    The paper's L (N/K) (4 D K^2 + 2 K D^2), and 2 more a block where outputs are added, has one operation for
    a weight of D x D: no factor 2 of a multiply-add, nor the 12 such weights of a layer, nor the head.
    """
    if model.recurrence is None:
        return {}
    d, block = model.d_model, model.recurrence.block
    each = 4 * d * block**2 + 2 * block * d**2 + (0 if model.recurrence.mix == "forget" else 2)
    counts = model_counts(model)
    return {
        "sequence_flops": model.seq_len * counts.forward_matmul + counts.sequence_attention,
        "sequence_flops_as_published": model.n_layers * model.seq_len * each // block,
    }


def variant_params(config: RunConfig, steps: int) -> dict[str, int]:
    """Parameters that only looped and pruned runs tell of, the latter after `steps` steps.

    params_once and params_looped (see loop_params); params_avg, to the nearest whole one, and params_final.
    """
    counts: dict[str, int] = {}
    if config.model.loop is not None:
        counts |= zip(("params_once", "params_looped"), loop_params(config.model), strict=True)
    if config.prune is not None:
        average = round(average_params(config, steps))
        counts |= {"params_avg": average, "params_final": params_active(config, steps)}
    return counts
