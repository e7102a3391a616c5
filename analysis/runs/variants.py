"""What tells runs of one structure and size apart beside tokens and seed, as names for their curves.

A sweep over learning rates or activations has several runs of one structure, size and seed.  They belong to
different curves, which the sweep's own configurations name: `dense, peak_lr=0.008`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Flat = dict[str, str]
Group = tuple[str, ...]

# A curve runs over budgets and averages over seeds; the structure is in the label already.  The guided steps
# follow from the mode, the fraction and the tokens.
NOT_VARIANTS = ("tokens", "seed", "model.structure", "guide.steps")
# Filled in from other fields unless written: they are named only where nothing else tells runs apart.
FILLED_IN = ("data.tokenizer", "model.attn_dim", "model.d_ff", "model.n_kv_heads", "model.vocab_size")

SAME_BUDGET = 0.02
"""How far neighbouring training FLOPs of one IsoFLOP set may lie apart: runs end on whole batches."""
LEAST_SIZES = 3
# Letters of a value in a label.
LONGEST = 24


def flatten(table: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested tables as dotted key -> readable value; `data.corpus.kind` is called `data.corpus`.

    `guide.mode` is called `guide`; a table whose mode is `none`, and the guide's usual form, are not there.
    """
    flat: Flat = {}
    for key, value in table.items():
        name = prefix.rstrip(".") if key in ("kind", "mode") and prefix else prefix + key
        if _unsaid(name, value):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[name] = _text(value)
    return flat


def _unsaid(name: str, value: Any) -> bool:
    """Whether a setting is what it is where nobody asks for another, so that a label need not say it."""
    if isinstance(value, Mapping):
        return value.get("mode") == "none"
    return name == "guide.stochastic" and value is True


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, str):
        # Labels are lists joined by a comma and a space.
        return value.replace(", ", ",")
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else json.dumps(value)


def _shorter(values: Iterable[str]) -> dict[str, str]:
    """Of paths the last part, of what is too long to read a beginning, as long as they stay apart."""
    texts = list(values)
    last = {text: text.rstrip("/").rpartition("/")[2] or text for text in texts}
    short = last if len(set(last.values())) == len(texts) else {text: text for text in texts}
    return {text: _abridged(text, name) for text, name in short.items()}


def _abridged(text: str, name: str) -> str:
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def isoflop_sets(runs: Sequence[tuple[str, str]], flops: Sequence[float]) -> list[int] | None:
    """The number of each run's IsoFLOP set; None unless every run is in one.

    A set is the runs of about equal training FLOPs, if these are of three sizes of one structure at least.

    Args:
        runs: (structure, size) of each run.
        flops: training FLOPs of each.
    """
    order = sorted(range(len(flops)), key=lambda i: flops[i])
    sets, number = [0] * len(flops), 0
    for before, i in pairwise(order):
        number += flops[i] > flops[before] * (1 + SAME_BUDGET)
        sets[i] = number
    sizes: dict[tuple[int, str], set[str]] = defaultdict(set)
    for (structure, size), one in zip(runs, sets, strict=True):
        sizes[one, structure].add(size)
    wide = {one for (one, _), there in sizes.items() if len(there) >= LEAST_SIZES}
    return sets if sets and set(sets) <= wide else None


def variants(
    runs: Sequence[tuple[str, str, str]],
    configs: Sequence[Mapping[str, Any]],
    budgets: Sequence[int] | None = None,
) -> list[str]:
    """Name what each run varies, e.g. `peak_lr=0.008, activation=gelu`; `` for every run of a plain sweep.

    Args:
        runs: (structure, size, seed) of each run.
        configs: the configuration of each run, as config.json holds it; empty where it is not known.
        budgets: the IsoFLOP set of each run, where the runs are such sets: what goes with the budget (a batch
            that grows with it) tells no curves apart. None where they are not.
    """
    flats = [flatten(config) for config in configs]
    names = dict.fromkeys(name for flat in flats for name in flat)
    candidates = [name for name in names if not _is_or_below(name, NOT_VARIANTS)]
    if budgets is not None:
        candidates = [name for name in candidates if not _follows(name, budgets, flats)]
    differing = [name for name in candidates if _differs(name, runs, flats)]
    kept = _without_implied(differing, runs, flats)
    short = {name: _shortest(name, names) for name in kept}
    structures = [structure for structure, _, _ in runs]
    shown = {structure: _shown(structure, kept, runs, flats) for structure in dict.fromkeys(structures)}
    values = {name: _shorter({flat[name] for flat in flats if name in flat}) for name in kept}
    return [
        ", ".join(f"{short[name]}={values[name][flat[name]]}" for name in shown[structure] if name in flat)
        for structure, flat in zip(structures, flats, strict=True)
    ]


def _follows(name: str, budgets: Sequence[int], flats: Sequence[Flat]) -> bool:
    """Whether all runs of one budget have one value of it."""
    values: dict[int, set[str]] = defaultdict(set)
    for budget, flat in zip(budgets, flats, strict=True):
        if flat:
            values[budget].add(flat.get(name, ""))
    return all(len(there) == 1 for there in values.values())


def _is_or_below(name: str, tables: Iterable[str]) -> bool:
    return any(name == table or name.startswith(f"{table}.") for table in tables)


def _differs(name: str, runs: Sequence[tuple[str, str, str]], flats: Sequence[Flat]) -> bool:
    """Whether runs of one structure and size differ in it; a seed of the data may follow the run's own."""
    length = 3 if name.endswith(".seed") else 2
    return any(len(values) > 1 for values in _values(name, runs, flats, lambda run: run[:length]).values())


def _values(
    name: str, runs: Sequence[tuple[str, str, str]], flats: Sequence[Flat], group: Callable[..., Group]
) -> dict[Group, set[str]]:
    values: dict[Group, set[str]] = defaultdict(set)
    for run, flat in zip(runs, flats, strict=True):
        # A run whose configuration is not here differs in nothing that could be named.
        if flat:
            values[group(run)].add(flat.get(name, ""))
    return values


def _without_implied(
    names: Sequence[str], runs: Sequence[tuple[str, str, str]], flats: Sequence[Flat]
) -> list[str]:
    """Drop fields that follow from the others: defaults, and those of a table whose kind varies."""
    kept = list(names)
    for name in names:
        if name not in FILLED_IN and not _is_or_below(name, [other for other in names if other != name]):
            continue
        rest = [other for other in kept if other != name]
        implied: dict[Group, set[str]] = defaultdict(set)
        for (structure, size, _), flat in zip(runs, flats, strict=True):
            if flat:
                implied[structure, size, *(flat.get(other, "") for other in rest)].add(flat.get(name, ""))
        if all(len(values) == 1 for values in implied.values()):
            kept = rest
    return kept


def _shown(
    structure: str, names: Sequence[str], runs: Sequence[tuple[str, str, str]], flats: Sequence[Flat]
) -> list[str]:
    """Those of the names that label this structure.

    A field that only follows the size (the learning rates of a ladder of presets) would tear a curve apart.
    """
    mine = [(run, flat) for run, flat in zip(runs, flats, strict=True) if run[0] == structure]
    own_runs, own_flats = [run for run, _ in mine], [flat for _, flat in mine]
    return [
        name
        for name in names
        if _differs(name, own_runs, own_flats)
        or len(_values(name, own_runs, own_flats, lambda run: run[:1]).get((structure,), ())) == 1
    ]


def _shortest(name: str, names: Iterable[str]) -> str:
    """The shortest ending of a dotted name that no other field shares: `peak_lr`, but `eval.tokens`."""
    parts = name.split(".")
    endings = [".".join(parts[-count:]) for count in range(1, len(parts))]
    others = [other for other in names if other != name]
    alone = (e for e in endings if not any(other == e or other.endswith(f".{e}") for other in others))
    return next(alone, name)
