"""Width searches: loss over d_model at fixed training FLOPs, and the width at which it is lowest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.isoflop.budgets import group_budgets
from analysis.isoflop.minima import Point, Sampled, fitted, sampled, shape_words
from analysis.runs.labels import base_and_variant, structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import SHAPE_FIELDS, guidance, structure_label

LEAST_WIDTHS = 3
TOLERANCE = 0.05
"""Relative distance of a run's FLOPs from its budget's mean."""
ALIKE = 0.01
"""Distance in log within which two budgets are one."""
FLOPS, PARAMETERS = "FLOPs", "parameters"


@dataclass(frozen=True, kw_only=True)
class Valley(Sampled):
    """One structure at one budget, over width; the parabola is of log loss in log width.

    budget: geometric mean of the runs, in `unit`: training FLOPs, or parameters where those are held fixed.
    over: the setting that its values are of.
    """

    structure: str
    budget: float
    unit: str = FLOPS
    over: str = "d_model"


def distinct_budgets(found: Sequence[Valley]) -> int:
    """How many budgets valleys have; those within one per cent of each other are one."""
    logs = sorted(math.log(valley.budget) for valley in found)
    return len(logs) and 1 + sum(after - before > ALIKE for before, after in pairwise(logs))


def has_valley(runs: Runs) -> bool:
    """Whether a structure of the table has at least three widths at one budget."""
    rows = _rows(runs)
    return any(kept for _, _, kept in _budgets(rows))


def valleys(runs: Runs) -> list[Valley]:
    """Every structure's valleys with at least three widths, in order of structures and budgets.

    Runs of one width that are networks of different shapes are no replicates: the lowest shape stands for the
    width. The parabolas of one structure share the variance about them; see `analysis.isoflop.minima.fitted`.
    """
    found = []
    for structure, mine, kept in _budgets(_rows(runs)):
        budgets = [math.exp(float(np.mean([math.log(mine[i].flops) for i in place]))) for place in kept]
        lost = list(_lost(runs, structure, budgets))
        bare = [
            Valley(
                structure=structure, budget=budget,
                **sampled([*(mine[i] for i in place), *(point for j, point in lost if j == k)]),
            )
            for k, (budget, place) in enumerate(zip(budgets, kept, strict=True))
        ]  # fmt: skip
        found += fitted(bare, "width", True, budgets)
    return found


def _budgets(rows: Mapping[str, list[Point]]) -> Iterator[tuple[str, list[Point], list[Any]]]:
    """Structures in order, their finished runs, and the places of those budgets that have widths enough."""
    for structure in sorted(rows, key=structure_order):
        mine = rows[structure]
        groups = group_budgets(np.array([point.flops for point in mine]), TOLERANCE)
        kept = [place for place in groups if len({mine[i].value for i in place}) >= LEAST_WIDTHS]
        if kept:
            yield structure, mine, kept


def _rows(runs: Runs) -> dict[str, list[Point]]:
    """The finished runs that have a width, by structure."""
    rows: dict[str, list[Point]] = {}
    for row in runs.table.to_dict("records"):
        width, flops = _width(row), float(row["train_flops"])
        if width is not None:
            point = Point(
                width, _shape(row), float(row["val_loss"]), flops, run_id=str(row.get("run_id") or "")
            )
            rows.setdefault(_label(row), []).append(point)
    return rows


def _shape(row: Mapping[Any, Any]) -> str:
    """The shape of a run beside its width: parts of its label that say it, and its columns."""
    _, variant = base_and_variant(structure_label(str(row["structure"])))
    parts = [part for part in variant.split(", ") if part.partition("=")[0] in SHAPE_FIELDS]
    return ", ".join(filter(None, [shape_words(row), *parts]))


def _width(row: Mapping[Any, Any]) -> float | None:
    try:
        width = float(row.get("d_model") or math.nan)
    except ValueError:
        return None
    return float(round(width)) if width >= 1 else None


def _label(row: Mapping[Any, Any]) -> str:
    """The structure without the shape of the network, and with how it was guided."""
    base, variant = base_and_variant(structure_label(str(row["structure"])))
    parts = [part for part in variant.split(", ") if part and part.partition("=")[0] not in SHAPE_FIELDS]
    guided = guidance(row)
    return ", ".join([base, *parts, *([guided] if guided else [])])


def _lost(runs: Runs, structure: str, budgets: list[float]) -> Iterator[tuple[int, Point]]:
    """Diverged runs and the place of their budget, where their tokens and FLOPs per token tell it."""
    for row in runs.lost:
        width = _width(row)
        if width is None or _label(row) != structure:
            continue
        try:
            planned = float(row.get("tokens") or math.nan) * float(row.get("flops_per_token") or math.nan)
        except ValueError:
            continue
        for k, budget in enumerate(budgets):
            if abs(planned / budget - 1) <= TOLERANCE:
                yield k, Point(width, _shape(row), None, planned, "diverged", str(row.get("run_id") or ""))
                break
