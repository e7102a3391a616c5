"""Labels of cells: what the axes of a study chose, and which of it makes a series of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SEED, BUDGET = "seed", "budget."
STRUCTURES = ("structure", "model.structure")
SIZES = ("preset", "size", "model.d_model", "model.n_layers")
PARAMS = "params"


def chosen(label: str) -> dict[str, str]:
    """What the axes chose, by key: `structure=dense seed=1` in parts; empty for the label of no axis."""
    found: dict[str, str] = {}
    key, depth = "", 0
    for word in label.split(" "):
        name, equals, value = word.partition("=")
        # A table of settings has spaces and equals signs within its braces.
        if depth == 0 and equals and name.replace(".", "").replace("_", "").isalnum():
            key = name
            found[key] = value
        elif key:
            found[key] += f" {word}"
        depth += word.count("{") - word.count("}")
    return found


def seedless(label: str) -> str:
    """The label without its seed: cells that share it are replicates of one search."""
    return " ".join(f"{key}={value}" for key, value in chosen(label).items() if key != SEED) or "all"


def variants(labels: Sequence[str], kind: str) -> dict[str, tuple[str, str]]:
    """By label what must be added to its structure, and to its size, for cells that may not be compared.

    Added to the structure is what the study's other axes chose (`weight_decay=0.1`), since curves at several
    values of a setting are no replicates; axes of one value alone add nothing. Rates are compared at one size
    and one budget, so in a study of rates a budget is added to the size; where parameters are held fixed,
    tokens are a setting as any other.

    Args:
        labels: of all cells.
        kind: of the study.
    """
    parts = {label: chosen(label) for label in labels}
    keys = list(dict.fromkeys(key for one in parts.values() for key in one))
    varied = [key for key in keys if len({one.get(key) for one in parts.values()}) > 1]
    apart = {*STRUCTURES, PARAMS, SEED, *(_of_size(varied, parts.values()) if kind == "lr" else ())}
    budgets = [key for key in varied if key.startswith(BUDGET)]
    series = [key for key in varied if key not in apart and (key not in budgets or kind == "width-params")]
    place = budgets if kind == "lr" else []
    alike = Counter(_short(key) for key in varied)

    def words(one: Mapping[str, str], which: Sequence[str]) -> str:
        return ", ".join(
            f"{key if alike[_short(key)] > 1 else _short(key)}={one[key]}" for key in which if key in one
        )

    return {label: (words(one, series), words(one, place)) for label, one in parts.items()}


def _of_size(varied: Sequence[str], parts: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys that say a cell's size, and those that go with it: one value at each size, as of a zip."""
    sizes = [key for key in varied if key in SIZES]
    if not sizes:
        return []
    values: dict[str, dict[tuple[str | None, ...], set[str | None]]] = {key: {} for key in varied}
    for one in parts:
        size = tuple(one.get(key) for key in sizes)
        for key in varied:
            values[key].setdefault(size, set()).add(one.get(key))
    return [key for key in varied if all(len(there) == 1 for there in values[key].values())]


def _short(key: str) -> str:
    return key.rpartition(".")[2]
