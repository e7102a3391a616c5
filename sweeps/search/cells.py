"""The cells of a study: one search each, told apart by what the study's axes choose."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.errors import SweepError
from sweeps.grid import points
from sweeps.rules import lookup
from sweeps.search.dimension import Dimension, dimension
from sweeps.search.studyfile import KINDS, Study
from sweeps.text import number
from trainer.models.structures import Structure
from trainer.presets import Partial

FIELD_KEYS = {"rank": "rank", "rank_ratio": "rank", "n_blocks": "n_blocks"}
"""Keys of a space that are fields of a structure."""


@dataclass(frozen=True)
class Cell:
    """One search of a study."""

    study: Study
    """Whose."""
    label: str
    """What the axes choose, as "structure=lowrank-32 budget.train_flops=2e12"."""
    chosen: dict[str, Any] = field(hash=False)
    """The same by key."""
    partial: Partial = field(hash=False)
    """Partial RunConfig of all its trials."""
    structure: str
    """Name of the structure, as the study has it."""
    params: int | None
    """Parameters that every shape has; None where they are free."""
    budget: float | None
    """Training FLOPs of every trial; None where something else is fixed."""
    dimensions: tuple[Dimension, ...]
    """What is searched here."""

    @property
    def name(self) -> str:
        """What Optuna calls the search: it changes with all that would make earlier trials misleading."""
        settings = self.study
        content = [
            self.partial, settings.kind, self.params, settings.shape.model_dump(mode="json"),
            [(d.name, d.values, d.low, d.high, d.log) for d in self.dimensions],
            settings.second.model_dump(mode="json") if settings.second else None,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        return f"{settings.name}/{self.label or 'all'}@{digest[:8]}"

    def search(self, fingerprint: str) -> str:
        """The same on a corpus: losses on another text are of no use to it."""
        return f"{self.name}.{hashlib.sha256(fingerprint.encode()).hexdigest()[:4]}"


def cells_of(study: Study) -> list[Cell]:
    """The cells of a study, first axis slowest, parameters last; SweepError where one cannot be searched."""
    found = []
    for point in points(study):
        for params in study.params or (None,):
            chosen = {**point.chosen, **({"params": params} if params is not None else {})}
            found.append(_cell(study, chosen, point.partial, params))
    if twice := [label for label, many in Counter(cell.label for cell in found).items() if many > 1]:
        raise SweepError(f"{study.source}: two cells are called '{twice[0] or 'all'}'; drop one of them")
    used = {dimension.name for cell in found for dimension in cell.dimensions}
    if idle := [key for key in study.space if key not in used]:
        raise SweepError(
            f"{study.source}: space.{idle[0]} applies to no cell: no structure leaves it open (a family's "
            f"name alone, as 'lowrank', does; 'lowrank-32' says it all)"
        )
    return found


def _cell(study: Study, chosen: dict[str, Any], partial: Partial, params: int | None) -> Cell:
    label = " ".join(f"{key}={_shown(value)}" for key, value in chosen.items())
    place = f"{study.source}: {label}" if label else study.source
    budget = (partial.get("budget") or {}).get("train_flops")
    if isinstance(budget, bool):
        budget = None
    if KINDS[study.kind].flops_budget and not isinstance(budget, int | float):
        raise SweepError(
            f"{place}: a study of kind {study.kind} holds training FLOPs fixed; give [budget] "
            f"train_flops, or "
            f"make budget.train_flops an axis"
        )
    structure = lookup(partial, "structure")
    fields = _searched_fields(study, structure, place)
    dimensions = tuple(
        dimension(key, given, study.source)
        for key, given in study.space.items()
        if key not in FIELD_KEYS or FIELD_KEYS[key] in fields
    )
    if not dimensions:
        raise SweepError(f"{place}: nothing of [space] applies to structure {_shown(structure)}")
    _check_sampler(study, dimensions, place)
    name = structure if isinstance(structure, str) else _shown(structure)
    flops = float(budget) if isinstance(budget, int | float) else None
    return Cell(study, label, chosen, partial, str(name), params, flops, dimensions)


def _check_sampler(study: Study, dimensions: Sequence[Dimension], place: str) -> None:
    sampler = study.search.sampler
    if sampler == "cmaes" and len(dimensions) < 2:
        raise SweepError(
            f'{place}: search.sampler = "cmaes" needs two dimensions, and only {dimensions[0].name} is '
            f"searched; take tpe"
        )
    ranges = [d.name for d in dimensions if d.values is None and d.name != "tokens_per_param"]
    if sampler == "grid" and ranges:
        raise SweepError(
            f'{place}: search.sampler = "grid" cannot go through the range space.{ranges[0]}; give it count '
            f"or a list of values"
        )


def _searched_fields(study: Study, structure: Any, place: str) -> set[str]:
    """The structure's fields that the space has to give: of a family name, or what its table leaves out."""
    given: set[str] = set()
    if isinstance(structure, dict):
        kind, given = str(structure.get("kind")), set(structure) - {"kind"}
    else:
        kind, _, budget = str(structure).partition("-")
        if budget:
            return set()
    family = Structure.registry.get(kind)
    if family is None:
        # The configuration names the families that there are.
        return set()
    needed = [n for n, f in family.model_fields.items() if n not in given and f.is_required()]
    has = {FIELD_KEYS[key] for key in study.space if key in FIELD_KEYS}
    for name in needed:
        if name not in has:
            add = f"add {name} to [space], or " if name in FIELD_KEYS else ""
            raise SweepError(
                f"{place}: structure {kind} needs its {name}: {add}name a budget, as '{kind}-32', or give a "
                f'table {{kind = "{kind}", {name} = ...}}'
            )
    return set(needed)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_shown(inner)}" for key, inner in value.items()) + "}"
    return number(value)
