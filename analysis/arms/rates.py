"""Peak learning rates: the curve of each structure over them, and where a parabola has its lowest loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.isoflop.minima import Point, Sampled, fitted, sampled, shape_words
from analysis.runs.labels import base_and_variant, structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import guidance, structure_label

LEAST_RATES = 3
Key = tuple[str, str, str, float]
"""Size, structure, treatment and tokens."""
RATE = "peak_lr"


@dataclass(frozen=True, kw_only=True)
class Curve(Sampled):
    """One structure and treatment at one size and budget, over peak learning rates; parabolas are of nats."""

    size: str
    structure: str
    treatment: str
    tokens: float

    @property
    def name(self) -> str:
        """Structure and treatment."""
        return f"{self.structure}, {self.treatment}" if self.treatment else self.structure

    @property
    def rates(self) -> list[float]:
        """Every rate tried, ascending."""
        return self.values


def enough_rates(runs: Runs) -> bool:
    """Whether a table has a structure with at least three rates at one size, and a loss for one of them."""
    rates: dict[Key, set[float]] = defaultdict(set)
    done = runs.table.to_dict("records")
    finished = [key for row in done if (key := _key(row)) is not None]
    rows: list[Mapping[Any, Any]] = [*done, *runs.lost]
    for row in rows:
        if (key := _key(row)) is not None:
            rates[key].add(_rate(row))
    return any(len(rates[key]) >= LEAST_RATES for key in finished)


def curves(runs: Runs) -> list[Curve]:
    """The curves of a table that have at least three rates, with optima where a parabola has one.

    Networks of different shapes at one rate are no replicates: the lowest stands for the rate. The variance
    about the parabolas is pooled over the table's curves; see `analysis.isoflop.minima.fitted`.
    """
    points: dict[Key, list[Point]] = defaultdict(list)
    for row in runs.table.to_dict("records"):
        if (key := _key(row)) is not None:
            points[key].append(_point(row, float(row["val_loss"])))
    for lost in runs.lost:
        if (key := _key(lost)) is not None:
            points[key].append(_point(lost, None))
    found = [
        Curve(size=key[0], structure=key[1], treatment=key[2], tokens=key[3], **sampled(points[key]))
        for key in sorted(points, key=_order)
    ]
    kept = [curve for curve in found if curve.shapes and len(curve.rates) >= LEAST_RATES]
    return fitted(sorted(kept, key=lambda c: c.tokens), "rate", False)


def _point(row: Mapping[Any, Any], loss: float | None) -> Point:
    state = "done" if loss is not None else "diverged"
    return Point(_rate(row), shape_words(row), loss, state=state, run_id=str(row.get("run_id") or ""))


def _rate(row: Mapping[Any, Any]) -> float:
    try:
        return float(row.get(RATE) or math.nan)
    except ValueError:
        return math.nan


def _key(row: Mapping[Any, Any]) -> Key | None:
    if not _rate(row) > 0:
        return None
    base, variant = base_and_variant(structure_label(str(row["structure"])))
    parts = [part for part in variant.split(", ") if part and part.partition("=")[0] != RATE]
    tokens = float(row.get("tokens") or math.nan)
    return str(row.get("size") or ""), ", ".join([base, *parts]), guidance(row), tokens


def _order(key: Key) -> tuple[Any, ...]:
    return key[0], structure_order(key[1]), key[2], str(key[3])


def shared(found: Sequence[Curve]) -> str:
    """Whether, at each size, one rate lies in the intervals of all structures that have one; in words."""
    parts = []
    for size in dict.fromkeys(curve.size for curve in found):
        mine = [c for c in found if c.size == size]
        known = [c for c in mine if not c.reason]
        if len(known) < 2:
            continue
        low, high = max(c.low for c in known), min(c.high for c in known)
        which = "all" if len(known) == len(mine) else f"the {len(known)} known"
        told = f"{low:.2g} to {high:.2g} lies" if low <= high else "no rate lies"
        parts.append(f"{size}: {told} in {which} intervals".removeprefix(": "))
    return "; ".join(parts) or "no two intervals to compare"
