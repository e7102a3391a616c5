"""Dotted keys of a sweep file: which there are, what two of them share, and matching points by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from sweeps.errors import SweepError
from sweeps.text import number
from trainer.config import RunConfig
from trainer.messages import nearest
from trainer.presets import Budget, Partial, preset

_AMOUNTS = ("budget.tokens", "budget.tokens_per_param", "budget.train_flops")
_ALIASES = {"model.structure": "structure", "tokens": "budget.tokens"}
_SHORT = {"preset": str, "structure": str, "budget": Budget}
_ABSENT = object()


def flatten(table: Mapping[str, Any], prefix: str = "", whole: bool = True) -> dict[str, Any]:
    """Nested tables as dotted keys; one with `kind` (a structure, a corpus) is a value where `whole`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and not (whole and "kind" in value):
            flat |= flatten(value, f"{prefix}{key}.", whole)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def normal_key(key: str) -> str:
    """The one name of a key that can be written in two ways."""
    return _ALIASES.get(key, key)


def dotted(key: str) -> str:
    """A key as people write it."""
    return "tokens" if key == "budget.tokens" else key


def amounts_apart(one: str, other: str) -> bool:
    """Whether two keys are different ways to say how long to train."""
    return one != other and one in _AMOUNTS and other in _AMOUNTS


def check_key(key: str, place: str) -> None:
    """Refuse a dotted key that no RunConfig has, naming the nearest that one has."""
    model: type[BaseModel] | None = None
    for depth, part in enumerate(key.split(".")):
        fields: Mapping[str, Any] = (
            model.model_fields if model is not None else {**RunConfig.model_fields, **_SHORT}
        )
        if part not in fields:
            hint = nearest(part, list(fields))
            raise SweepError(f"{place}: unknown key '{key}'{hint}")
        kind = fields[part].annotation if depth or part not in _SHORT else _SHORT[part]
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)) or part == "structure":
            # Unions and structures are told apart by `kind`; the configuration itself checks their keys.
            return
        model = kind


class Rule:
    """Matches grid points by dotted key = value, or = list of values of which one has to be there."""

    def __init__(self, name: str, wanted: Mapping[str, Any], source: str) -> None:
        self.name, self.source = name, source
        self.wanted = {normal_key(key): value for key, value in wanted.items()}
        self.matched = False
        if not wanted:
            raise SweepError(f"{source}: {name} says no key; it would match every run")
        for key in wanted:
            check_key(key, f"{source}: {name}")

    def matches(self, partial: Partial) -> bool:
        """Whether the point has all the wanted values (those that its preset gives included)."""
        found = all(_equal(lookup(partial, key), value) for key, value in self.wanted.items())
        self.matched = self.matched or found
        return found

    def refuse_if_idle(self, partials: Sequence[Partial]) -> None:
        """SweepError where nothing was matched, saying which value is the one that no point has."""
        if self.matched:
            return
        for key, value in self.wanted.items():
            there = list(dict.fromkeys(_text(v) for p in partials if (v := lookup(p, key)) is not _ABSENT))
            if not any(_equal(lookup(p, key), value) for p in partials):
                hint = nearest(_text(value), there) if there else "; nothing in the grid sets it"
                wanted = f"{key} = {_text(value)}"
                raise SweepError(
                    f"{self.source}: {self.name} matches no run: no grid point has {wanted}{hint}"
                )
        raise SweepError(
            f"{self.source}: {self.name} matches no run: no grid point has all its values at once"
        )


def lookup(partial: Partial, key: str) -> Any:
    """The value that a point gives a dotted key, itself or through its preset."""
    value = _descend(partial, key)
    if value is _ABSENT and key == "structure":
        value = _descend(partial, "model.structure")
    name = partial.get("preset")
    if value is _ABSENT and name is not None and key != "preset":
        value = _descend(preset(str(name)), key)
    if value is _ABSENT and key == "structure":
        return "dense"
    return value


def _descend(table: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(table, Mapping) or part not in table:
            return _ABSENT
        table = table[part]
    return table


def _equal(value: Any, wanted: Any) -> bool:
    return bool(value == wanted) or (isinstance(wanted, list) and value in wanted)


def _text(value: Any) -> str:
    return " or ".join(number(item) for item in value) if isinstance(value, list) else number(value)
