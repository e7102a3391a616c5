"""The content of result.json: the one record of a run that becomes a data point."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from trainer.checkpoint import LoopState
from trainer.config import SCHEMA_VERSION, RunConfig
from trainer.corpora import Corpus
from trainer.curriculum import stages_of, tokens_of_steps
from trainer.evaluate import Evaluation
from trainer.flops import CONVENTIONS, describe, spent_flops, variant_params
from trainer.models.guide import drawn_guide_flops
from trainer.presets import run_labels


def build_result(
    config: RunConfig,
    corpus: Corpus,
    run_id: str,
    state: str,
    evaluation: Evaluation | None,
    reached: LoopState,
    diverged_step: int | None,
) -> dict[str, Any]:
    """Gather what a finished (`done`) or `diverged` run leaves.

    A diverged run has no val_loss, and its tokens and FLOPs are those it spent.
    """
    counts = describe(config)
    steps_done, seconds, ends = reached.step, reached.seconds, reached.stages.ends
    tokens = tokens_of_steps(config, steps_done, ends)
    spent = {name: spent_flops(config, steps_done, name, ends) for name in CONVENTIONS}
    counts |= {"tokens": tokens, "steps": steps_done, "train_flops": spent["paper"]}
    counts["unique_tokens"] = min(tokens, config.tokens)
    counts["guided_steps"] = min(steps_done, config.guided_steps)
    # A run that never lost a weight had on average what it has.
    counts |= {"params_avg": counts["params_total"], **variant_params(config, steps_done)}
    counts.pop("train_flops_sparse", None)
    return {
        "run_id": run_id,
        "schema": SCHEMA_VERSION,
        "state": state,
        **run_labels(config),
        "structure_kind": config.model.structure.kind,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        "d_ff": config.model.d_ff,
        "seed": config.seed,
        "corpus": corpus.label,
        "precision": config.precision,
        "params": counts.pop("params_total"),
        **counts,
        **({"sparsity": config.prune.sparsity} if config.prune else {}),
        "batch_tokens": config.optim.batch_tokens,
        "peak_lr": config.optim.peak_lr,
        "flops": spent,
        "guide_mode": config.guide.mode,
        "guide_stochastic": config.guide.stochastic if config.guided_steps else None,
        "guide_flops_drawn": drawn_guide_flops(config, steps_done),
        "train_loss": reached.train_loss,
        "val_loss": evaluation.loss if evaluation else None,
        "val_loss_se": evaluation.loss_se if evaluation else None,
        "val_bits_per_byte": evaluation.bits_per_byte if evaluation else None,
        "val_tokens": evaluation.tokens if evaluation else None,
        "val_entropy": evaluation.entropy if evaluation else None,
        **_task_scores(evaluation),
        "entropy_rate": corpus.entropy_rate,
        "diverged_step": diverged_step,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(1e-9, seconds), 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **_stages(config, reached),
    }


def _stages(config: RunConfig, reached: LoopState) -> dict[str, Any]:
    """What only runs with a curriculum have."""
    if config.curriculum is None:
        return {}
    stages = stages_of(config, reached.stages, reached.step, reached.seconds)
    return {"stages": stages, "full_length": config.curriculum.lengths[-1]}


def _task_scores(evaluation: Evaluation | None) -> dict[str, float]:
    """What only tasks with right and wrong answers have."""
    if evaluation is None or evaluation.accuracy is None or evaluation.exact_match is None:
        return {}
    return {"val_accuracy": evaluation.accuracy, "val_exact_match": evaluation.exact_match}
