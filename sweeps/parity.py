"""Tuning parity: do the structures that will be compared at one size differ in more than their structure?

A comparison is fair only where learning rate, batch, tokens and the rest are equal or differ on purpose, so
every difference is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from pydantic import BaseModel

from sweeps.text import number
from trainer.config import RunConfig
from trainer.models.config import ModelConfig

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
    lines = []
    for size, structures in cells.items():
        if len(structures) > 1:
            settings = {structure: _settings(parts) for structure, parts in structures.items()}
            lines += _lines(size, settings)
    return lines


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


def _lines(size: str, settings: dict[str, dict[str, dict[Hashable, None]]]) -> list[str]:
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    lines = []
    for name in names:
        sets = {structure: values[name] for structure, values in settings.items() if name in values}
        if len({frozenset(values) for values in sets.values()}) > 1:
            said = ", ".join(f"{structure} {_shown(values)}" for structure, values in sets.items())
            lines.append(f"{size}: {name} differs: {said}")
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
