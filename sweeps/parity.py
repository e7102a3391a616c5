"""Tuning parity: do the structures that will be compared at one size differ in more than their structure?

A comparison is fair only where learning rate, batch, tokens and the rest are equal or differ on purpose, so
every difference is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from sweeps.rules import flatten, normal_key
from sweeps.sweepfile import Sweep
from sweeps.text import number
from trainer.config import RunConfig
from trainer.models.config import ModelConfig

Meant = Mapping[str, str]
"""Setting -> what of the sweep file says that it differs between structures."""

_FIRST = ("peak_lr", "batch_tokens", "tokens", "weight_decay", "schedule")
_SHOWN_VALUES = 4
# What is compared, and what follows from another setting.
_NOT_TUNING = (
    ("model", "structure"), ("model", "kind"), ("model", "recurrence"), ("model", "loop"), ("guide", "steps"),
)  # fmt: skip


def differences(configs: Sequence[RunConfig], labels: Sequence[tuple[str, str]]) -> list[str]:
    """One line for each setting in which structures of one size differ.

    Args:
        configs: the runs.
        labels: (size, structure) of each.
    """
    return parity(configs, labels)[0]


def parity(
    configs: Sequence[RunConfig], labels: Sequence[tuple[str, str]], meant: Meant | None = None
) -> tuple[list[str], list[str]]:
    """A warning for each setting in which structures of one size differ, and a note for each that is meant.

    Args:
        configs: the runs.
        labels: (size, structure) of each.
        meant: see `meant_by`; a setting in it is one note for all sizes, and no warning.
    """
    cells: dict[str, dict[str, dict[str, dict[int, Any]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for config, (size, structure) in zip(configs, labels, strict=True):
        cell = cells[size][structure]
        # Runs share their parts, so collecting the parts by identity is much cheaper than their fields.
        for part in ("optim", "eval", "data", "model", "guide"):
            value = getattr(config, part)
            cell[part].setdefault(id(value), value)
        for name in ("tokens", "precision", "seed"):
            value = getattr(config, name)
            cell[name].setdefault(value if isinstance(value, int) else hash(value), value)
    compared = [size for size, structures in cells.items() if len(structures) > 1]
    lines, sizes = [], defaultdict[str, list[str]](list)
    for size in compared:
        settings = {structure: _settings(parts) for structure, parts in cells[size].items()}
        for name, said in _differing(settings):
            if meant is not None and name in meant:
                sizes[name].append(size)
            else:
                lines.append(f"{size}: {name} differs: {said}")
    notes = [
        f"{name} differs by structure{_at(where, compared)}, as {(meant or {})[name]} says"
        for name, where in sizes.items()
    ]
    return lines, notes


def meant_by(sweep: Sweep) -> dict[str, str]:
    """Settings that differ between structures because the sweep file says so.

    Those are peak learning rates with [rates]; tokens where training FLOPs are given, or are equal; and what
    an [[override]] or a [[zip]] with structures in it sets.  Settings are called as in `parity`.
    """
    said: dict[str, list[str]] = defaultdict(list)
    if sweep.rates is not None:
        said["peak_lr"].append("[rates]")
    grid = {key: v for table in (sweep.axes, *sweep.zip) for key, v in _flat(table).items()}
    budget = {**_flat({"budget": sweep.base.get("budget") or {}}), **_flat({"budget": sweep.budget or {}})}
    amounts = [key for key in ("budget.tokens", "budget.tokens_per_param") if key in grid]
    if "budget.train_flops" in grid or ("budget.train_flops" in budget and not amounts):
        said["tokens"].append("the budget in FLOPs")
    elif grid.get("budget.equal", [budget.get("budget.equal")]) == ["flops"]:
        said["tokens"].append('the budget with equal = "flops"')
    for table in sweep.zip:
        if "structure" in _flat(table):
            for key in _flat(table):
                said[_setting(key)].append("[[zip]]")
    for rule in sweep.override:
        if any(key.split(".")[0] == "structure" for key in _flat(rule.when)):
            for key in _flat(rule.set):
                said[_setting(key)].append("[[override]]")
    return {name: " with ".join(dict.fromkeys(places)) for name, places in said.items()}


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    return {normal_key(key): value for key, value in flatten(table).items()}


def _setting(key: str) -> str:
    """What `parity` calls the setting of a dotted key."""
    first, _, rest = key.partition(".")
    if first == "budget":
        return "tokens"
    return rest if first in ("optim", "model") else key


def _at(sizes: Sequence[str], of: Sequence[str]) -> str:
    """Where, unless everywhere."""
    if len(sizes) == len(of):
        return ""
    more = ", ..." if len(sizes) > _SHOWN_VALUES else ""
    return f" at {', '.join(sizes[:_SHOWN_VALUES])}{more}"


def _settings(parts: dict[str, dict[int, Any]]) -> dict[str, dict[Hashable, None]]:
    """Setting -> its values, in order of appearance."""
    found: dict[str, dict[Hashable, None]] = defaultdict(dict)
    for part, values in parts.items():
        for value in values.values():
            if isinstance(value, BaseModel):
                for name in type(value).model_fields:
                    if (part, name) not in _NOT_TUNING and not _idle(name, value):
                        label = name if part in ("optim", "model") else f"{part}.{name}"
                        found[label][getattr(value, name)] = None
            else:
                found[part][value] = None
    return found


def _idle(name: str, value: BaseModel) -> bool:
    """Whether a setting means nothing beside the others: a first FFN that stays dense where all are dense."""
    return name == "dense_first_ffn" and isinstance(value, ModelConfig) and value.structure.kind == "dense"


def _differing(settings: dict[str, dict[str, dict[Hashable, None]]]) -> list[tuple[str, str]]:
    """Settings that differ between structures, and the values of each structure."""
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    lines = []
    for name in names:
        sets = {structure: values[name] for structure, values in settings.items() if name in values}
        if len({frozenset(values) for values in sets.values()}) > 1:
            said = ", ".join(f"{structure} {_shown(values)}" for structure, values in sets.items())
            lines.append((name, said))
    return lines


def _shown(values: dict[Hashable, None]) -> str:
    texts = [_short(value) for value in values]
    if len(texts) > _SHOWN_VALUES:
        texts = [*texts[: _SHOWN_VALUES - 1], f"... ({len(texts)} values)"]
    return "/".join(texts)


def _short(value: Hashable) -> str:
    if isinstance(value, BaseModel):
        fields = ", ".join(f"{name}={_short(inner)}" for name, inner in value)
        return f"{{{fields}}}"
    text = number(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
