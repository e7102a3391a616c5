"""The study file: what one TOML file in sweeps/configs/search says, and how a study is found by name.

It is a sweep file whose axes make cells, in each of which a search goes on by itself, and beside that:

kind = "width"              width | width-params | lr | tokens | pareto: what is held fixed, see KINDS
params = [30000, 60000]     width-params: the parameters that every shape of a cell has, one more axis
[space]                     what is searched: key = [values] or {low, high, step | count, log}
[shape]                     how a width becomes a network: head_dim, aspect, lr_width_exponent ...
[search]                    sampler, trials, pruner, in_flight, seed, storage
[second]                    pareto: what is weighed against the loss
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sweeps.errors import SweepError
from sweeps.rules import check_key, flatten, normal_key
from sweeps.sweepfile import CONFIGS, Sweep, find_sweep, parse_as
from trainer.messages import nearest, validation_line
from trainer.presets import load_toml

STUDIES = CONFIGS / "search"
SHAPE_KEYS = ("d_model", "n_layers", "d_ff", "ff_ratio", "rank", "rank_ratio", "n_blocks")
"""Short keys of a space that change the shape of the network."""
SHORT_KEYS = (*SHAPE_KEYS, "peak_lr", "batch_tokens", "tokens_per_param")
PLAIN_KEYS = {"d_model": "model.d_model", "n_layers": "model.n_layers", "d_ff": "model.d_ff",
              "peak_lr": "optim.peak_lr", "batch_tokens": "optim.batch_tokens"}  # fmt: skip
"""Short keys that are one field of a run, and which."""
SAMPLERS = ("tpe", "cmaes", "gp", "grid", "random")
PRUNERS = ("none", "median", "halving", "hyperband")
LONGEST_GRID = 1000
LEAST_RUNG = 0.01
FOLLOWING = ("model.n_heads", "model.n_kv_heads", "model.attn_dim", "model.seq_len", "model.vocab_size")
DIGITS = 3
"""Significant digits of what is sampled continuously: two proposals nearer than that are one run."""


@dataclass(frozen=True)
class Kind:
    """What a kind of study holds fixed."""

    fixed: str
    """In words."""
    needs: tuple[str, ...]
    """Keys of the space without which it makes no sense."""
    allows: tuple[str, ...]
    """Short keys that its space may have."""
    flops_budget: bool = True
    """Whether each cell needs budget.train_flops."""


KINDS: dict[str, Kind] = {
    "width": Kind("training FLOPs; tokens follow from the shape", ("d_model",), (*SHAPE_KEYS, "peak_lr")),
    "width-params": Kind(
        "parameters; d_ff follows from the rest of the shape", ("d_model",),
        ("d_model", "n_layers", "rank", "rank_ratio", "n_blocks", "peak_lr"), flops_budget=False,
    ),
    "lr": Kind("size and tokens", ("peak_lr",), ("peak_lr", "batch_tokens"), flops_budget=False),
    "tokens": Kind(
        "training FLOPs; width and depth follow from tokens per parameter", ("tokens_per_param",),
        ("tokens_per_param", "rank", "rank_ratio", "n_blocks", "peak_lr"),
    ),
    "pareto": Kind(
        "training FLOPs; loss is weighed against speed", ("d_model",), (*SHAPE_KEYS, "peak_lr")
    ),
}  # fmt: skip


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(_Table):
    """A range of a space."""

    low: float = Field(strict=True)
    """Smallest value."""
    high: float = Field(strict=True)
    """Largest value."""
    step: float | None = Field(default=None, gt=0)
    """Distance of neighbours; a range of whole numbers has 1."""
    count: int | None = Field(default=None, ge=2, le=LONGEST_GRID)
    """Values, evenly spaced (with log: evenly in the logarithm), instead of a step."""
    log: bool = False
    """Whether ratios count, not differences."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}; the range is empty")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low > 0, and low is {self.low:g}")
        wide = self.high / self.low if self.log else (self.high - self.low) / (self.step or 1.0)
        if not math.isfinite(wide):
            raise ValueError(f"low = {self.low:g} and high = {self.high:g} are too far apart")
        if self.step is not None and (self.count is not None or self.log):
            raise ValueError(
                "step is for evenly spaced values; give either step or count (with or without log)"
            )
        return self


class Shape(_Table):
    """How a width becomes a network."""

    head_dim: int | None = Field(default=None, gt=0)
    """Width of an attention head, which d_model has to be a multiple of; default that of the base."""
    aspect: float | None = Field(default=None, gt=0)
    """tokens: d_model / n_layers; default that of the base."""
    d_model: tuple[int, ...] | Range | None = None
    """tokens: the widths that a size may have."""
    multiple: int = Field(default=1, gt=0)
    """What d_ff and rank, where they follow from a ratio or from the parameters, are multiples of."""
    lr_width_exponent: float | None = None
    """Where it is not searched, peak_lr = base peak_lr (d_model / base d_model)^this; default -1, or 0 with
    mup, which scales by itself."""
    tokens_per_param: tuple[float, float] | None = None
    """Shapes with fewer or more training tokens per parameter are left out."""
    ff_ratio: tuple[float, float] | None = None
    """Shapes with a smaller or larger d_ff / d_model are left out."""


class Search(_Table):
    """How a space is searched."""

    sampler: str = "tpe"
    """tpe, cmaes, gp, grid or random."""
    trials: int | None = Field(default=None, gt=0)
    """Runs in each cell, repeated proposals not counted; default 20, or with grid all shapes."""
    seed: int = Field(default=1, ge=0)
    """Of the sampler."""
    startup: int | None = Field(default=None, gt=0)
    """Trials that are drawn at random before tpe, cmaes or gp begin; default a quarter, 4 to 10."""
    in_flight: int | None = Field(default=None, gt=0)
    """Trials at a time over all cells; default the runs that the machine trains at a time."""
    valley: str = ""
    """A grid dimension: once the trials of a cell are over, its best point is tried at all other values of it
    as well, beyond the trials, so that the loss over it is known; "" for none."""
    pruner: str = "none"
    """none, median, halving (successive) or hyperband."""
    rungs: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Shares of a run's tokens at which it is held against the others."""
    storage: str = ""
    """Where Optuna keeps the study: "" for the SQLite file results/searches/optuna.db, "journal" for a file
    of lines beside it, else the URL of a database."""
    warm_start: bool = True
    """Whether finished runs of other sweeps and studies that belong to a cell teach its sampler."""


class Second(_Table):
    """What a pareto study weighs against the loss."""

    objective: Literal["decode_ms", "ffn_ms"] = "decode_ms"
    """Milliseconds to generate a token, or to run one FFN on a batch of tokens."""
    batch: int = Field(default=1, gt=0)
    """Rows that are generated at once, or tokens that the FFN is given."""
    repeats: int = Field(default=15, gt=2)
    """Timed rounds, shape and base network in turn."""


class Study(Sweep):
    """One study file."""

    kind: str
    """See KINDS."""
    params: tuple[int, ...] = ()
    """width-params: parameters of the shapes of a cell."""
    space: dict[str, tuple[float, ...] | Range]
    """What is searched."""
    shape: Shape = Shape()
    """How a width becomes a network."""
    search: Search = Search()
    """How."""
    second: Second | None = None
    """pareto: the second objective."""

    @property
    def searched(self) -> tuple[str, ...]:
        """The keys of the space."""
        return tuple(self.space)

    @property
    def argument(self) -> str:
        """How commands take this study: its name where it came with the program, else its path."""
        return self.name if self.path.parent == STUDIES else str(self.path)


def find_study(written: str) -> Path:
    """The file of a study, by its name in sweeps/configs/search or its path; SweepError without one."""
    if written.endswith(".toml") or "/" in written:
        return find_sweep(written)
    path = STUDIES / f"{written}.toml"
    if not path.is_file():
        names = [file.stem for file in study_files()]
        raise SweepError(
            f"unknown study '{written}'{nearest(written, names)} (or give the path of a .toml file)"
        )
    return path


def study_files() -> list[Path]:
    """The studies that come with the program, by name."""
    return sorted(STUDIES.glob("*.toml"))


def read_study(path: Path) -> Study:
    """Read a study file; SweepError, in one line, says what in it cannot be."""
    content = load_toml(path)
    if "space" not in content and "kind" not in content:
        raise SweepError(
            f"{path.name}: a study needs kind and [space]; for a sweep take 'python -m sweeps run {path}'"
        )
    spaces = content.pop("space", None)
    place = f"{path.name}: space"
    if not isinstance(spaces, Mapping) or not spaces:
        raise SweepError(
            f"{place} is empty; give it at least one key with values, such as d_model = [24, 48]"
        )
    content["space"] = {key: _entry(value, f"{place}.{key}") for key, value in _keys(spaces).items()}
    study = parse_as(Study, content, path)
    _check(study)
    return study


def load_study(written: str) -> Study:
    """Find and read a study."""
    return read_study(find_study(written))


def _keys(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a space; a table with a low or a high end is a range."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, Mapping) and value and prefix + key not in SHORT_KEYS
        if inner and not {"low", "high", "step", "count", "log"} & value.keys():
            found |= _keys(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _entry(value: Any, place: str) -> tuple[float, ...] | Range:
    if isinstance(value, Mapping):
        try:
            return Range.model_validate(dict(value))
        except ValidationError as error:
            raise SweepError(validation_line(error, Range, place)) from None
    if not isinstance(value, list):
        raise SweepError(f"{place} = {value!r}: give a list of values, or a range {{low = ..., high = ...}}")
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in value):
        raise SweepError(f"{place} = {value}: only numbers can be searched; make anything else an axis")
    if not all(math.isfinite(one) for one in value):
        raise SweepError(f"{place} = {value}: give finite numbers")
    if len(set(value)) < 2:
        raise SweepError(
            f"{place} = {value}: nothing to search; give two values or more, or put it in [base]"
        )
    return tuple(sorted(set(value)))


def _check(study: Study) -> None:
    source = study.source
    if study.kind not in KINDS:
        raise SweepError(f"{source}: unknown kind '{study.kind}'{nearest(study.kind, list(KINDS))}")
    kind = KINDS[study.kind]
    for name, given, known in (
        ("sampler", study.search.sampler, SAMPLERS), ("pruner", study.search.pruner, PRUNERS)
    ):  # fmt: skip
        if given not in known:
            raise SweepError(
                f"{source}: search.{name}: unknown {name} '{given}'{nearest(given, list(known))}"
            )
    for key in study.space:
        if key in SHORT_KEYS:
            if key not in kind.allows:
                raise SweepError(
                    f"{source}: space.{key}: a study of kind {study.kind} does not search it (it holds "
                    f"{kind.fixed}); it searches {', '.join(kind.allows)} and dotted keys of a run"
                )
        else:
            _check_dotted(key, source)
    for key in kind.needs:
        if key not in study.space:
            raise SweepError(f"{source}: a study of kind {study.kind} searches {key}; add it to [space]")
    if study.search.valley and study.search.valley not in study.space:
        hint = nearest(study.search.valley, list(study.space))
        raise SweepError(f"{source}: search.valley: '{study.search.valley}' is not searched{hint}")
    _check_pairs(study)
    _check_kind(study)
    if not all(LEAST_RUNG <= rung < 1 for rung in study.search.rungs) or not study.search.rungs:
        raise SweepError(
            f"{source}: search.rungs = {list(study.search.rungs)}: give shares of a run from {LEAST_RUNG} to "
            f"below 1"
        )


def _check_dotted(key: str, source: str) -> None:
    if "." not in key:
        raise SweepError(f"{source}: space: unknown key '{key}'{nearest(key, list(SHORT_KEYS))}")
    check_key(key, f"{source}: space")
    short = key.rpartition(".")[2]
    if short in SHORT_KEYS or key in FOLLOWING:
        better = f"write {short}" if short in SHORT_KEYS else "make it an axis"
        raise SweepError(f"{source}: space.{key}: {better}, so that the other sizes can follow")
    if key.startswith(("budget.", "data.", "eval.", "guide.")) or key in ("tokens", "seed"):
        raise SweepError(f"{source}: space.{key}: makes losses that cannot be compared; make it an axis")


def _check_pairs(study: Study) -> None:
    for one, other in (("d_ff", "ff_ratio"), ("rank", "rank_ratio")):
        if one in study.space and other in study.space:
            raise SweepError(f"{study.source}: space.{one} and space.{other} set the same thing; keep one")
    places = {f"base.{key}": key for key in flatten(study.base)}
    places |= {f"axes.{key}": key for key in flatten(study.axes)}
    places |= {f"zip.{key}": key for table in study.zip for key in flatten(table)}
    places |= {f"override.{key}": key for one in study.override for key in flatten(one.set)}
    searched = {PLAIN_KEYS.get(key, "model.d_ff" if key == "ff_ratio" else key): key for key in study.space}
    for place, key in places.items():
        if normal_key(key) in searched:
            raise SweepError(
                f"{study.source}: {place} and space.{searched[normal_key(key)]} set the same thing; keep one"
                + (" (the base's size comes from a preset)" if place.startswith("base.model") else "")
            )
        if key == "model.d_ff" and study.kind == "width-params":
            raise SweepError(f"{study.source}: {place}: d_ff follows from the parameters; drop it")


def _check_kind(study: Study) -> None:
    source = study.source
    if (study.kind == "width-params") != bool(study.params):
        word = (
            "needs params = [...]"
            if study.kind == "width-params"
            else "holds no parameters fixed; drop params"
        )
        raise SweepError(f"{source}: a study of kind {study.kind} {word}")
    if any(count < 1 for count in study.params):
        raise SweepError(f"{source}: params = {list(study.params)}: give positive numbers")
    if study.second is not None and study.kind != "pareto":
        raise SweepError(f'{source}: [second] is for kind = "pareto"; drop it')
    if study.kind == "pareto" and (study.search.pruner != "none" or study.search.sampler == "cmaes"):
        name = 'sampler = "cmaes"' if study.search.sampler == "cmaes" else f'pruner = "{study.search.pruner}"'
        raise SweepError(
            f"{source}: search.{name} knows one objective only, and a pareto study has two; drop it"
        )
    if study.kind == "tokens" and study.shape.d_model is None:
        raise SweepError(
            f"{source}: a study of kind tokens needs shape.d_model, the widths that a size may have"
        )
    if study.kind != "tokens" and (study.shape.d_model is not None or study.shape.aspect is not None):
        raise SweepError(
            f'{source}: shape.d_model and shape.aspect are for kind = "tokens"; search d_model in [space]'
        )
    if study.kind == "tokens":
        ratios = study.space["tokens_per_param"]
        if not isinstance(ratios, Range) or ratios.step is not None or ratios.count is not None:
            raise SweepError(
                f"{source}: space.tokens_per_param: give a range {{low = ..., high = ..., log = true}}; "
                f"which of its values there are follows from the sizes"
            )
        if study.shape.d_model == ():
            raise SweepError(f"{source}: shape.d_model is empty; give the widths that a size may have")


def significant(value: float) -> float:
    """A number with DIGITS significant digits."""
    return float(f"{value:.{DIGITS - 1}e}") if math.isfinite(value) else value
