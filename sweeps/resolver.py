"""Builds the RunConfigs of a grid quickly: points share most of their parts, and each part is validated once.

What comes out equals trainer.presets.resolve, which also writes the error message where a point is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from sweeps.errors import SweepError
from trainer.config import EvalConfig, GuideConfig, OptimConfig, RunConfig
from trainer.corpora import DataConfig
from trainer.errors import ConfigError, TrainerError
from trainer.models.config import ModelConfig
from trainer.presets import PRESETS, Partial, complete_budget, merge, resolve

_PARTS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
    "guide": GuideConfig,
}
_SCALARS = ("precision", "seed")


class Resolver:
    """Turns partial configurations into RunConfigs; one object for the points of one sweep."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], Any] = {}
        self._tokens: dict[tuple[str, Any, int, int, int], int] = {}
        self._seedless: dict[tuple[str, ...], RunConfig] = {}

    def config(self, partial: Partial, name: Callable[[], str]) -> RunConfig:
        """The RunConfig of a point; ConfigError, one line that starts with its name, where it is wrong."""
        try:
            quick = self._quick(partial)
        except (ValidationError, TrainerError, ValueError, TypeError):
            quick = None
        if quick is not None:
            return quick
        source = name()
        try:
            return resolve(partial, source)
        except TrainerError as error:
            said = str(error)
            raise ConfigError(said if said.startswith(source) else f"{source}: {said}") from None
        except (TypeError, AttributeError):
            raise SweepError(
                f"{source}: a table is wanted where a plain value is given, or the reverse"
            ) from None

    def _quick(self, partial: Partial) -> RunConfig | None:
        """The same from shared parts; None where the slow way has to look at the point."""
        seed = partial.get("seed")
        if type(seed) is not int or seed < 0:
            return self._assembled(partial)
        # Seeds are what large grids have most of, and nothing else depends on them.
        key = tuple([f"{name}={value!r}" for name, value in partial.items() if name != "seed"])
        if key not in self._seedless:
            config = self._assembled(partial)
            if config is None:
                return None
            self._seedless[key] = config
        return self._seedless[key].model_copy(update={"seed": seed})

    def _assembled(self, partial: Partial) -> RunConfig | None:
        name, structure, budget = partial.get("preset"), partial.get("structure"), partial.get("budget")
        known = {"preset", "structure", "budget", *_PARTS, *_SCALARS}
        if not partial.keys() <= known or (name is not None and name not in PRESETS):
            return None
        base = PRESETS[name] if name is not None else {}
        values: dict[str, Any] = {key: base[key] for key in _SCALARS if key in base}
        values |= {key: partial[key] for key in _SCALARS if key in partial}
        for part in ("data", "optim", "eval", "guide"):
            if part in partial or part in base:
                values[part] = self._part(part, str(name), base.get(part), partial.get(part))
        data = values.get("data", _DEFAULT_DATA)
        model = values["model"] = self._model(str(name), base, partial.get("model", {}), structure, data)
        if budget is None and "tokens" in base:
            values["tokens"] = base["tokens"]
        else:
            guide = values.get("guide", _NO_GUIDE)
            values["tokens"] = self._budgeted(budget, base.get("tokens"), model, values["optim"], guide)
        return RunConfig.model_validate(values)

    def _part(self, part: str, name: str, base: Any, given: Any) -> Any:
        key = (part, name, repr(given))
        if key not in self._parts:
            both = isinstance(base, Mapping) and isinstance(given, Mapping)
            # The outer table decides, as in the slow way, whether tables merge or replace each other.
            merged = merge({part: base}, {part: given})[part] if both else (base if given is None else given)
            self._parts[key] = _PARTS[part].model_validate(merged)
        return self._parts[key]

    def _model(self, name: str, base: Partial, given: Any, structure: Any, data: DataConfig) -> ModelConfig:
        key = ("model", name, repr(given), repr(structure), str(id(data)))
        if key not in self._parts:
            merged = merge({"model": base.get("model", {})}, {"model": given})
            if structure is not None:
                merged = merge(merged, {"model": {"structure": structure}})
            table = dict(merged["model"])
            if "vocab_size" not in table:
                table["vocab_size"] = data.vocab_size
            self._parts[key] = ModelConfig.model_validate(table)
        found: ModelConfig = self._parts[key]
        return found

    def _budgeted(
        self, budget: Any, tokens: Any, model: ModelConfig, optim: OptimConfig, guide: GuideConfig
    ) -> int:
        key = (repr(budget), tokens, id(model), optim.batch_tokens, id(guide))
        if key not in self._tokens:
            chosen = complete_budget(budget, tokens)
            self._tokens[key] = chosen.tokens_for(model, optim.batch_tokens, guide)
        return self._tokens[key]


_DEFAULT_DATA = DataConfig()
_NO_GUIDE = GuideConfig()
