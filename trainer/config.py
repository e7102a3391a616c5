"""RunConfig: everything that decides a run's result, and nothing that only decides how it is executed.

The whole of it, defaults included, is a run's identity.  Importing this module loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.corpora import DataConfig
from trainer.corpora.taskspec import TaskSpec
from trainer.curriculum import CurriculumConfig
from trainer.flops import check_prunable, guided_maps, matching_guided_steps
from trainer.guidance import DEFAULT_FRACTION
from trainer.models.config import Frozen, ModelConfig, Positive
from trainer.pruning import PruneConfig

SCHEMA_VERSION = 1
"""Raised when the meaning of a field changes, so that old results are never served for it."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimConfig(Frozen):
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
    """Which parameters decay: all of them (as the papers' code does), or those with two or more axes and the
    factors of structures."""
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


class GuideConfig(Frozen):
    """Self-guided training (arXiv 2406.16450 sec. 3.2): dense matrices beside structured maps, faded out."""

    mode: Literal["none", "fixed_steps", "fixed_flops"] = "none"
    """fixed_steps guides the first steps of the run; fixed_flops also repeats the guided tokens at the end,
    so that the run costs the FLOPs of its dense counterpart."""
    stochastic: bool = True
    """Run a map's dense branch only with probability a, the weight that it has at the step: half the cost."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Guided steps over the run's steps without repetition; default 1/2 for fixed_steps, for fixed_flops what
    reaches the dense counterpart's FLOPs."""
    steps: int | None = Field(default=None, ge=0)
    """Guided steps; follows from the other fields and may be left out."""

    @property
    def label(self) -> str:
        """Its mode as tables show it, empty where there is no guidance."""
        if self.mode == "none":
            return ""
        return self.mode if self.stochastic else f"{self.mode} static"

    def steps_for(self, model: ModelConfig, base_steps: int, batch_tokens: int) -> int:
        """Guided steps of a run of `base_steps` steps without repetition; what cannot be is not refused."""
        if self.mode == "none":
            return 0
        if self.fraction is not None:
            return math.floor(self.fraction * base_steps)
        if self.mode == "fixed_flops":
            return max(0, matching_guided_steps(model, base_steps, batch_tokens, self.stochastic))
        return math.floor(DEFAULT_FRACTION * base_steps)

    def total_steps(self, base_steps: int, guided_steps: int) -> int:
        """Optimizer steps of a run, with the guided ones that fixed_flops repeats."""
        return base_steps + (guided_steps if self.mode == "fixed_flops" else 0)

    def resolved(self, model: ModelConfig, base_steps: int, batch_tokens: int) -> GuideConfig:
        """The same with `steps` filled in.  Raises ValueError where that cannot be."""
        if self.mode == "none":
            if self.fraction is not None or self.steps:
                raise ValueError(
                    'fraction and steps mean nothing while mode = "none"; set mode = "fixed_steps"'
                )
            return GuideConfig(steps=0)
        if not guided_maps(model):
            raise ValueError(f"mode = {self.mode!r}, but no FFN is structured: there is nothing to guide")
        steps = self.steps_for(model, base_steps, batch_tokens)
        if self.fraction is None and self.mode == "fixed_flops":
            if steps < 1:
                raise ValueError(
                    "mode fixed_flops: the run costs as much as its dense counterpart already; no step can "
                    "be guided"
                )
            if steps > base_steps:
                raise ValueError(
                    f"mode fixed_flops: reaching the dense counterpart's FLOPs needs {steps} guided steps, "
                    f"more than the run's {base_steps}; give guide.fraction (at most 1)"
                )
        if steps < 1:
            raise ValueError(f"fraction of {base_steps} steps is less than one step; take a larger one")
        if self.steps not in (None, steps):
            raise ValueError(f"steps = {self.steps}, but the other fields make it {steps}; leave it out")
        return self.model_copy(update={"steps": steps})


class EvalConfig(Frozen):
    """The held-out measurement that becomes the run's val_loss."""

    tokens: Positive = 131_072
    """Held-out tokens, the same for every run on the same corpus and seq_len."""


class RunConfig(Frozen):
    """One training run."""

    NEUTRAL: ClassVar[dict[str, Any]] = {"curriculum": None, "prune": None}

    model: ModelConfig
    """The network."""
    data: DataConfig = DataConfig()
    """The corpus and its tokenizer."""
    optim: OptimConfig
    """Optimizer, schedule and batch."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""
    tokens: Positive
    """Training tokens, a whole number of batches (a budget is rounded down to one); a guided run of mode
    fixed_flops sees some of them twice."""
    guide: GuideConfig = Field(default=GuideConfig(), validate_default=True)
    """Self-guided training."""
    curriculum: CurriculumConfig | None = None
    """Stages by sequence length; `tokens` then counts all steps at full length, the most that it can cost."""
    prune: PruneConfig | None = None
    """Gradual pruning; a sparsity of 0 is the same as none."""
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

    @field_validator("guide", mode="after")
    @classmethod
    def _resolve_guide(cls, guide: GuideConfig, info: ValidationInfo) -> GuideConfig:
        model, optim, tokens = (info.data.get(name) for name in ("model", "optim", "tokens"))
        if model is None or optim is None or tokens is None:
            return guide
        return guide.resolved(model, tokens // optim.batch_tokens, optim.batch_tokens)

    @field_validator("prune", mode="after")
    @classmethod
    def _resolve_prune(cls, prune: PruneConfig | None, info: ValidationInfo) -> PruneConfig | None:
        if prune is None or prune.sparsity == 0:
            return None
        model, optim, tokens = (info.data.get(name) for name in ("model", "optim", "tokens"))
        if model is not None and optim is not None and tokens is not None:
            check_prunable(model, prune, tokens // optim.batch_tokens)
        return prune

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.optim.batch_tokens % self.model.seq_len:
            raise ValueError(
                f"optim.batch_tokens = {self.optim.batch_tokens} is not a multiple of "
                f"model.seq_len = {self.model.seq_len}"
            )
        return self

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        corpus = self.data.corpus
        if not isinstance(corpus, TaskSpec):
            return self
        lengths = [("model.seq_len", self.model.seq_len)]
        lengths += [("curriculum.lengths", n) for n in (self.curriculum.lengths if self.curriculum else ())]
        for name, length in lengths:
            if problem := corpus.length_problem(length):
                raise ValueError(f"{name}: {length} on the corpus {corpus.kind}: {problem}")
        return self

    @model_validator(mode="after")
    def _check_curriculum(self) -> Self:
        if self.curriculum is None:
            return self
        if self.curriculum.lengths[-1] != self.model.seq_len:
            raise ValueError(
                f"curriculum.lengths end with {self.curriculum.lengths[-1]}, not with "
                f"model.seq_len = {self.model.seq_len}; make them equal"
            )
        if self.guide.mode != "none":
            raise ValueError("curriculum and guide both change a run as it goes; keep one of them")
        return self

    @model_validator(mode="after")
    def _check_prune(self) -> Self:
        other = "guide" if self.guide.mode != "none" else "curriculum" if self.curriculum else None
        if self.prune is not None and other is not None:
            raise ValueError(f"prune and {other} both change a run as it goes; keep one of them")
        return self

    @property
    def base_steps(self) -> int:
        """Optimizer steps without the repetition of guided tokens."""
        return self.tokens // self.optim.batch_tokens

    @property
    def guided_steps(self) -> int:
        """Steps, from the first, in which structured maps have a dense branch."""
        return self.guide.steps or 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.guide.total_steps(self.base_steps, self.guided_steps)

    def data_step(self, step: int) -> int:
        """The step whose batch is read at `step`: behind the base steps, the guided ones come again."""
        return step if step < self.base_steps else step - self.base_steps

    @property
    def batch_sequences(self) -> int:
        """Sequences in a global batch."""
        return self.optim.batch_tokens // self.model.seq_len

    def canonical_json(self) -> str:
        """The one text form of this configuration: sorted keys, no spaces.

        Every field is in it, but those that later versions added where they say what was always so
        (Frozen.NEUTRAL).
        """
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
            value = getattr(self, name)
            if name != "data" and (name not in self.NEUTRAL or value != self.NEUTRAL[name]):
                texts[name] = _canonical(value) if isinstance(value, BaseModel) else json.dumps(value)
        return "{" + ",".join([f'"{name}":{texts[name]}' for name in sorted(texts)]) + "}"


@lru_cache(maxsize=4096)
def _canonical(part: BaseModel) -> str:
    """Canonical JSON of one table; the runs of a sweep share most of theirs."""
    dump, neutral = part.model_dump(mode="json"), part.NEUTRAL if isinstance(part, Frozen) else {}
    kept = {name: value for name, value in dump.items() if name not in neutral or value != neutral[name]}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=256)
def _identity(data: DataConfig) -> str:
    """Canonical JSON of what identifies the data beside the corpus' fingerprint."""
    return json.dumps(data.identity(), sort_keys=True, separators=(",", ":"))
