"""What tells runs of one label apart: the settings in which runs of one size and structure differ, as names.

A grid over vocabularies or weight decays has runs that size, structure, guidance and seed do not tell apart.
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

Flat = Mapping[str, Hashable]
Label = tuple[str, ...]

SHOWN = ("tokens", "optim.batch_tokens", "optim.peak_lr")
"""Settings that have columns of their own in a plan."""
_IN_LABEL = ("seed", "guide.mode", "guide.stochastic", "guide.steps")
_COLUMNS = ("id", "size", "structure", "guide", "seed", "params", "steps", "state", "step", "loss", "time")
_LONGEST = 24


def grid_keys(sweep: Sweep) -> list[str]:
    """Dotted keys that the axes and zips of a sweep, or the space of a study, choose."""
    tables = (sweep.axes, *sweep.zip)
    return [*(normal_key(key) for table in tables for key in flatten(table)), *sweep.searched]


def varied(
    configs: Sequence[RunConfig], labels: Sequence[Label], chosen: Sequence[str] = ()
) -> list[dict[str, str]]:
    """For each run, the settings in which runs of its label differ: name -> value, both as short as can be.

    A setting that follows from the others is left out, unless the grid chooses it.

    Args:
        configs: the runs.
        labels: (size, structure, guidance, seed) of each.
        chosen: dotted keys that the grid chooses.
    """
    groups: dict[Label, list[int]] = defaultdict(list)
    for n, label in enumerate(labels):
        groups[label[:-1]].append(n)
    if all(_same(configs, group) for group in groups.values()):
        return [{} for _ in configs]
    flats = _flats(configs)
    names = [name for name in dict.fromkeys(name for flat in flats for name in flat) if name not in _IN_LABEL]
    differing = [name for name in names if _differs(name, flats, labels, groups)]
    kept = [name for key in chosen for name in differing if name == key]
    rest = [name for key in chosen for name in differing if name.startswith(f"{key}.")]
    for name in [*rest, *(name for name in SHOWN if name in differing), *differing]:
        if name not in kept and not _follows(name, kept, flats, labels):
            kept.append(name)
    order = list(dict.fromkeys([*(name for name in kept if name not in SHOWN), *kept]))
    heads = {name: _shortest(name, order) for name in order}
    values = {name: _short({_text(flat[name]) for flat in flats if name in flat}) for name in order}
    return [
        {heads[name]: values[name][_text(flat[name])] for name in order if name in flat} for flat in flats
    ]


def said(settings: Mapping[str, str]) -> str:
    """The settings of a run in a few words."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _same(configs: Sequence[RunConfig], group: Sequence[int]) -> bool:
    """Whether runs of a label differ in nothing but the seed; quick, since runs share their parts."""
    first = configs[group[0]]
    fields = [(name, getattr(first, name)) for name in RunConfig.model_fields if name != "seed"]
    return all(
        (found := getattr(configs[n], name)) is value or found == value
        for n in group[1:]
        for name, value in fields
    )


def _flats(configs: Sequence[RunConfig]) -> list[dict[str, Hashable]]:
    """Dotted key -> value of each run; runs share their parts, which are taken apart once."""
    parts: dict[int, dict[str, Hashable]] = {}
    found = []
    for config in configs:
        flat: dict[str, Hashable] = {}
        for name in RunConfig.model_fields:
            value = getattr(config, name)
            if not isinstance(value, BaseModel):
                flat[name] = value
                continue
            if id(value) not in parts:
                parts[id(value)] = _flat(value, f"{name}.")
            flat |= parts[id(value)]
        found.append(flat)
    return found


def _flat(part: BaseModel, prefix: str) -> dict[str, Hashable]:
    flat: dict[str, Hashable] = {}
    for name, value in part:
        if isinstance(value, BaseModel):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # `corpus.kind` is called `corpus`.
            flat[prefix.rstrip(".") if name == "kind" else prefix + name] = value
    return flat


def _differs(
    name: str, flats: Sequence[Flat], labels: Sequence[Label], groups: Mapping[Label, Sequence[int]]
) -> bool:
    """Whether runs of one label differ in it; a seed of the data may follow the run's own."""
    if not name.endswith(".seed"):
        return any(len({flats[n].get(name) for n in group}) > 1 for group in groups.values())
    seen: dict[Label, Hashable] = {}
    return any(
        seen.setdefault(label, flat.get(name)) != flat.get(name)
        for label, flat in zip(labels, flats, strict=True)
    )


def _follows(name: str, kept: Sequence[str], flats: Sequence[Flat], labels: Sequence[Label]) -> bool:
    """Whether the label and the settings that are kept determine it."""
    seen: dict[Hashable, Hashable] = {}
    for label, flat in zip(labels, flats, strict=True):
        known = (label, *(flat.get(other) for other in kept))
        if seen.setdefault(known, flat.get(name)) != flat.get(name):
            return False
    return True


def _shortest(name: str, names: Sequence[str]) -> str:
    """The shortest ending of a dotted name that neither another one nor a column of a table has."""
    parts = name.split(".")
    others = [other for other in (*names, *SHOWN, *_COLUMNS) if other != name]
    for n in range(1, len(parts)):
        ending = ".".join(parts[-n:])
        if not any(other == ending or other.endswith(f".{ending}") for other in others):
            return ending
    return name


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "+".join(map(_text, value))
    if isinstance(value, BaseModel):
        return "/".join(_text(inner) for _, inner in value)
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else number(value)


def _short(texts: set[str]) -> dict[str, str]:
    """Of paths the last part, of what is long a beginning, as long as they stay apart."""
    for shorter in (lambda text: _cut(text.rstrip("/").rpartition("/")[2] or text), _cut):
        found = {text: shorter(text) for text in texts}
        if len(set(found.values())) == len(texts):
            return found
    return {text: text for text in texts}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
