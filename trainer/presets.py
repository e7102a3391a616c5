"""Named sizes, and how a partial configuration (preset, structure, budget) becomes a RunConfig.

`paper-*` are the four models of arXiv 2406.16450 (tables 10-11); `cpu-*` (d_model / n_layers = 12)
and `gpu-*` (64) are ladders of constant aspect ratio; at their widths every budget of every family is exact.
"""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.config import GuideConfig, RunConfig
from trainer.corpora.spec import IDS_KINDS
from trainer.errors import ConfigError
from trainer.flops import flops_of_steps, flops_per_step, flops_per_token, model_counts
from trainer.messages import nearest, validation_line
from trainer.models.config import ModelConfig
from trainer.models.structures import structure_label

Partial = dict[str, Any]


def _paper(d_model: int, n_layers: int, n_heads: int, peak_lr: float, tokens: int) -> Partial:
    return {
        "model": {
            "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads,
            "vocab_size": 32_000, "seq_len": 1024,
        },
        "data": {
            # 26 G tokens of training and held-out text at 4 to 5 bytes a token.
            "corpus": {
                "kind": "hf", "name": "tiiuae/falcon-refinedweb", "text_field": "content",
                "max_bytes": 130_000_000_000,
            },
            "heldout_fraction": 0.025,
            "tokenizer": {"kind": "file", "path": "tokenizers/llama-7b.json"},
        },
        "optim": {
            "peak_lr": peak_lr, "batch_tokens": 524_288, "beta2": 0.999, "decay": "all",
        },
        "eval": {"tokens": 512_000 * 1024},
        "tokens": tokens,
        "precision": "bf16",
    }  # fmt: skip


def _cpu(d_model: int, n_layers: int, n_heads: int, peak_lr: float) -> Partial:
    # Learning rates fall as 1 / d_model from 1.6e-2 at width 24, the best of four there for dense and for
    # lowrank-32; at width 48, 7e-3 beat 1.4e-2 for lowrank-32 (pysource, 20 tokens per parameter).
    return {
        "model": {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "seq_len": 128},
        "data": {"corpus": "pysource", "tokenizer": "bpe-512"},
        "optim": {"peak_lr": peak_lr, "batch_tokens": 2048},
    }


def _gpu(d_model: int, n_layers: int, peak_lr: float, batch_tokens: int) -> Partial:
    return {
        "model": {"d_model": d_model, "n_layers": n_layers, "n_heads": d_model // 64, "seq_len": 1024},
        "data": {"corpus": "pysource", "tokenizer": "bpe-8192"},
        "optim": {"peak_lr": peak_lr, "batch_tokens": batch_tokens},
        "precision": "bf16",
    }


PRESETS: dict[str, Partial] = {
    "paper-s": _paper(768, 12, 12, 6e-4, 2_200_000_000),
    "paper-m": _paper(1024, 24, 16, 3e-4, 6_700_000_000),
    "paper-l": _paper(1536, 24, 12, 2.5e-4, 14_580_000_000),
    "paper-xl": _paper(2048, 24, 16, 2e-4, 25_500_000_000),
    "cpu-2xs": _cpu(24, 2, 2, 1.6e-2),
    "cpu-xs": _cpu(36, 3, 2, 1.2e-2),
    "cpu-s": _cpu(48, 4, 2, 9e-3),
    "cpu-m": _cpu(60, 5, 2, 7e-3),
    "cpu-l": _cpu(72, 6, 3, 6e-3),
    "cpu-xl": _cpu(96, 8, 4, 4.5e-3),
    "cpu-2xl": _cpu(120, 10, 5, 3.5e-3),
    "gpu-xs": _gpu(192, 3, 3e-3, 65_536),
    "gpu-s": _gpu(256, 4, 2.5e-3, 65_536),
    "gpu-m": _gpu(384, 6, 2e-3, 131_072),
    "gpu-l": _gpu(512, 8, 1.5e-3, 131_072),
    "gpu-xl": _gpu(704, 11, 1e-3, 262_144),
    "gpu-2xl": _gpu(1152, 18, 6e-4, 524_288),
}


AMOUNTS = ("tokens", "tokens_per_param", "train_flops")
"""The ways to say how long to train."""

_DEFAULT_AMOUNT = {"tokens_per_param": 20, "of": "dense"}


class Budget(BaseModel):
    """How long to train: one of tokens, tokens_per_param and train_flops."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: int | None = Field(default=None, gt=0)
    """Training tokens."""
    tokens_per_param: float | None = Field(default=None, gt=0)
    """Training tokens over parameters."""
    train_flops: float | None = Field(default=None, gt=0)
    """Training FLOPs, `paper` convention, those of guidance included."""
    of: Literal["run", "dense"] = "run"
    """Whose parameters tokens_per_param counts: the run's own, or those of its dense counterpart."""
    count: Literal["total", "non_embedding"] = "total"
    """Which parameters tokens_per_param counts."""
    equal: Literal["tokens", "flops"] = "tokens"
    """What a run has in common with its dense counterpart: the tokens above, or the FLOPs that the
    counterpart spends on them (`more tokens` of arXiv 2406.16450)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of tokens, tokens_per_param, train_flops (got {', '.join(given) or 'none'})"
            )
        if self.equal == "flops" and self.train_flops is not None:
            raise ValueError(
                'equal = "flops" wants tokens or tokens_per_param; train_flops is a number of FLOPs'
            )
        if self.equal == "flops" and self.tokens_per_param is not None and self.of != "dense":
            raise ValueError('equal = "flops" counts the dense counterpart\'s tokens; add of = "dense"')
        return self

    def tokens_for(self, model: ModelConfig, batch_tokens: int, guide: GuideConfig) -> int:
        """Training tokens that this budget allows the model, at least 1, not yet rounded to whole batches.

        Raises ConfigError where budget and guidance contradict each other.
        """
        if self.equal == "flops" and guide.mode == "fixed_flops":
            raise ConfigError(
                'budget.equal = "flops" with guide.mode = "fixed_flops": such a run fills up '
                "to the dense counterpart's FLOPs with guided steps already; take "
                'equal = "tokens" or mode = "fixed_steps"'
            )
        dense = model.dense_counterpart()
        if self.train_flops is not None:
            return _tokens_within(self.train_flops, model, batch_tokens, guide)
        if self.tokens is not None:
            tokens = self.tokens
        else:
            assert self.tokens_per_param is not None
            counts = model_counts(dense if self.of == "dense" else model)
            params = counts.params_total if self.count == "total" else counts.params_non_embedding
            tokens = max(1, int(self.tokens_per_param * params))
        if self.equal == "flops":
            # The counterpart itself trains on whole batches.
            spent = tokens // batch_tokens * flops_per_step(dense, batch_tokens)
            return _tokens_within(spent, model, batch_tokens, guide)
        return tokens


def _tokens_within(flops: float, model: ModelConfig, batch_tokens: int, guide: GuideConfig) -> int:
    """The most training tokens, at least 1, with which a run does not pass so many FLOPs."""
    per_token = flops_per_token(model)
    if guide.mode == "none" and not model_counts(model).forward_pass:
        # Whole numbers stay exact; run ids rest on the quotients.
        return max(1, flops // per_token if isinstance(flops, int) else int(flops / per_token))

    def spent(base_steps: int) -> int:
        guided = guide.steps_for(model, base_steps, batch_tokens)
        steps = guide.total_steps(base_steps, guided)
        return math.ceil(flops_of_steps(model, batch_tokens, steps, guided, guide.stochastic))

    # Every step adds FLOPs, so the last number of steps that keeps within them is found by halving.
    most = min(int(flops // flops_per_step(model, batch_tokens)) + 1, 2**62)
    return max(1, (bisect_right(range(most + 1), int(flops), key=spent) - 1) * batch_tokens)


def complete_budget(budget: Mapping[str, Any] | None, tokens: Any) -> Budget:
    """The budget of a run; where a table names no amount, `tokens` (a preset's) or the default are meant.

    Raises ValidationError.
    """
    table: Any = {} if budget is None else budget
    if isinstance(table, Mapping) and not table.keys() & set(AMOUNTS):
        table = {**({"tokens": tokens} if tokens is not None else _DEFAULT_AMOUNT), **table}
    return Budget.model_validate(table)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Partial:
    """Deep merge: tables are merged, anything else in `top` replaces.

    A table with `kind` replaces whole, for its kinds have fields of their own; `model` has all in one table.
    """
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        deep = isinstance(value, Mapping) and (key == "model" or "kind" not in value)
        merged[key] = merge(old, value) if deep and isinstance(old, Mapping) else value
    if "corpus" in top and "tokenizer" not in top and _corpus_kind(top["corpus"]) in IDS_KINDS:
        # These corpora are ids already: a tokenizer that came with the old corpus goes with it.
        merged.pop("tokenizer", None)
    return merged


def _corpus_kind(corpus: Any) -> Any:
    return corpus.get("kind") if isinstance(corpus, Mapping) else corpus


def preset(name: str) -> Partial:
    """The partial configuration of a named size; ConfigError with the nearest name where unknown."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'{nearest(name, list(PRESETS))}")
    return PRESETS[name]


def resolve(partial: Mapping[str, Any], source: str) -> RunConfig:
    """Build a RunConfig from a partial one.

    Beside RunConfig's own keys, `partial` may hold `preset` (a name), `structure` (a name or table, short
    for model.structure) and `budget` (a table, see Budget; its amount is by default the preset's tokens, else
    20 per parameter of the dense counterpart).  Raises ConfigError with one line that starts with `source`.
    """
    given = dict(partial)
    name = given.pop("preset", None)
    structure, budget = given.pop("structure", None), given.pop("budget", None)
    if name is not None:
        given = merge(preset(str(name)), given)
    if structure is not None:
        given = merge(given, {"model": {"structure": structure}})
    try:
        if "tokens" in given and budget is None:
            return RunConfig.model_validate(given)
        chosen = complete_budget(budget, given.pop("tokens", None))
    except ValidationError as error:
        owner: type[BaseModel] = Budget if error.title == "Budget" else RunConfig
        where = f"{source}: budget" if owner is Budget else source
        raise ConfigError(validation_line(error, owner, where)) from None
    try:
        # A placeholder budget lets the model be validated first; the real one needs its counts.
        draft = RunConfig.model_validate({**given, "tokens": 2**62, "guide": {}})
        tokens = chosen.tokens_for(draft.model, draft.optim.batch_tokens, _guide(given))
        return RunConfig.model_validate({**given, "tokens": tokens})
    except ValidationError as error:
        raise ConfigError(validation_line(error, RunConfig, source)) from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _guide(given: Mapping[str, Any]) -> GuideConfig:
    """The guide of a partial configuration, as written; none where RunConfig is going to refuse it."""
    try:
        return GuideConfig.model_validate(given.get("guide", {}))
    except ValidationError:
        return GuideConfig()


def load_toml(path: Path) -> Partial:
    """Read a TOML file; ConfigError names the file and the line where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def size_label(model: ModelConfig) -> str:
    """The preset with this depth and width, else its dimensions as 'd64-L4'."""
    return _sizes().get((model.d_model, model.n_layers), f"d{model.d_model}-L{model.n_layers}")


def run_labels(config: RunConfig) -> dict[str, str]:
    """`size` and `structure` of a run, as tables and figures group by them."""
    model = config.model
    structure = structure_label(model.structure, model.d_model)
    if model.kind == "recurrent":
        structure = "recurrent" if structure == "dense" else f"recurrent, {structure}"
    if model.loop is not None:
        structure += f", looped {model.loop.passes}"
    if config.prune is not None:
        structure += f", {config.prune.label}"
    return {"size": size_label(model), "structure": structure}


@lru_cache(maxsize=1)
def _sizes() -> dict[tuple[int, int], str]:
    return {(p["model"]["d_model"], p["model"]["n_layers"]): name for name, p in PRESETS.items()}
