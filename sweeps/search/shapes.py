"""From a point of a space to the RunConfig that it stands for, and back.

What is searched decides the rest: heads from the width, the peak learning rate from the width where it is
not searched, depth from the width in a study of tokens, d_ff from the parameters where these are fixed, and
tokens from the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sweeps.errors import SweepError
from sweeps.grid import assign
from sweeps.resolver import Resolver
from sweeps.rules import lookup
from sweeps.search.cells import FIELD_KEYS, Cell
from sweeps.search.studyfile import PLAIN_KEYS, significant
from trainer.config import RunConfig
from trainer.flops import model_counts
from trainer.models.config import ModelConfig
from trainer.presets import Partial

Point = Mapping[str, float]
"""Key of the space -> value."""
TOLERANCE = 0.01
"""How far, relatively, what a study holds fixed may be off."""


class Shaper:
    """Makes the configurations of one cell."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.shape = cell, cell.study.shape
        self._resolver = Resolver()
        self.place = f"{cell.study.source}: {cell.label}" if cell.label else cell.study.source
        self.searched = {dimension.name for dimension in cell.dimensions}
        self.base_width = self.known("model.d_model")
        self.base_lr = self.known("optim.peak_lr")
        self.head_dim = self._head_dim()

    def config(self, point: Point, label: str = "") -> RunConfig:
        """The run of a point.  Raises ConfigError or SweepError, in one line, where there is none."""
        partial = self.partial(point)
        config = self._resolver.config(partial, lambda: f"{self.place} {label or said(point)}")
        return self._with_params(config, partial) if self.cell.params is not None else config

    def partial(self, point: Point) -> Partial:
        """The partial RunConfig of a point."""
        partial = self.cell.partial
        for key, value in point.items():
            if key in PLAIN_KEYS:
                partial = assign(partial, PLAIN_KEYS[key], value)
            elif "." in key:
                partial = assign(partial, key, value)
        width = int(point["d_model"]) if "d_model" in point else None
        if width is not None:
            partial = self._for_width(partial, width, point)
        fields = {FIELD_KEYS[key]: value for key, value in point.items() if key in FIELD_KEYS}
        if fields:
            at = width or self.base_width or 1
            partial = assign(partial, "structure", self._structure(fields, point, int(at)))
        return partial

    def _for_width(self, partial: Partial, width: int, point: Point) -> Partial:
        """Heads, FFN and learning rate that follow from a width."""
        if "attn_dim" not in self.cell.partial.get("model", {}):
            if width % self.head_dim:
                raise SweepError(
                    f"{self.place}: d_model = {width} is no multiple of head_dim = {self.head_dim}"
                )
            partial = assign(partial, "model.n_heads", width // self.head_dim)
        if "ff_ratio" in point:
            partial = assign(partial, "model.d_ff", self._rounded(point["ff_ratio"] * width))
        exponent = self._exponent(partial)
        if "peak_lr" not in point and exponent:
            if self.base_width is None or self.base_lr is None:
                raise SweepError(
                    f"{self.place}: peak_lr follows from the width, but the base has no width and "
                    f"peak_lr to start "
                    f"from; give base.preset, search peak_lr, or set shape.lr_width_exponent = 0"
                )
            rate = significant(self.base_lr * (width / self.base_width) ** exponent)
            partial = assign(partial, "optim.peak_lr", rate)
        return partial

    def _exponent(self, partial: Partial) -> float:
        if self.shape.lr_width_exponent is not None:
            return self.shape.lr_width_exponent
        return 0.0 if lookup(partial, "model.parametrization") == "mup" else -1.0

    def _structure(self, fields: Mapping[str, float], point: Point, width: int) -> dict[str, Any]:
        given = lookup(self.cell.partial, "structure")
        table = dict(given) if isinstance(given, dict) else {"kind": str(given)}
        if "rank_ratio" in point:
            table["rank"] = self._rounded(point["rank_ratio"] * width)
        for key in ("rank", "n_blocks"):
            if key in point:
                table[key] = int(point[key])
        return table

    def _rounded(self, value: float) -> int:
        multiple = self.shape.multiple
        return max(multiple, round(value / multiple) * multiple)

    def _with_params(self, config: RunConfig, partial: Partial) -> RunConfig:
        """The same with the d_ff that brings the parameters nearest to those that are fixed."""
        wanted, model = self.cell.params, config.model
        assert wanted is not None
        step = math.lcm(self.shape.multiple, getattr(model.structure, "n_blocks", 1))
        # Parameters are linear in d_ff; no factor is larger than a layer that is as wide as the network.
        first = math.ceil(model.d_model / step) * step
        one, two = (_params(model, d_ff) for d_ff in (first, 2 * first))
        d_ff = first + round((wanted - one) * first / (two - one) / step) * step
        if d_ff < step:
            raise SweepError(
                f"{self.place}: {wanted:,} parameters are fewer than this shape has without an FFN"
            )
        return self._resolver.config(assign(partial, "model.d_ff", d_ff), lambda: self.place)

    def known(self, key: str) -> float | None:
        """A number that the base, or its preset, gives; None where neither does."""
        value = lookup(self.cell.partial, key)
        return float(value) if isinstance(value, int | float) else None

    def _head_dim(self) -> int:
        if self.shape.head_dim is not None:
            return self.shape.head_dim
        heads = self.known("model.n_heads")
        if heads is None or self.base_width is None:
            if not self.searched & {"d_model", "tokens_per_param"}:
                return 1
            raise SweepError(
                f"{self.place}: heads follow from the width, but no head_dim is known; set "
                f"shape.head_dim, or "
                f"give base.preset"
            )
        return max(1, int(self.base_width // heads))


def said(point: Point) -> str:
    """A point as people read it: "d_model=48 n_layers=4"."""
    return " ".join(f"{key}={value:g}" for key, value in point.items())


def realised(config: RunConfig, key: str) -> float | None:
    """The value that a run has under a key of a space; None where it has none."""
    model = config.model
    if key == "ff_ratio":
        return model.d_ff / model.d_model
    if key == "tokens_per_param":
        return config.tokens / model_counts(model).params_total
    if key in FIELD_KEYS:
        value = getattr(model.structure, FIELD_KEYS[key], None)
        if value is None:
            return None
        return float(value) / model.d_model if key == "rank_ratio" else value
    return _at(config, PLAIN_KEYS.get(key, key))


def _at(config: RunConfig, key: str) -> float | None:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, BaseModel) or part not in type(value).model_fields:
            return None
        value = getattr(value, part)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _params(model: ModelConfig, d_ff: int) -> int:
    """Parameters of a model with another d_ff."""
    return model_counts(model.model_copy(update={"d_ff": d_ff})).params_total
