"""Sorts the runs of a sweep into arms: against which dense runs, and what was done with the FLOPs saved.

An arm is a structure with a treatment: plain (the dense run's tokens, unguided), more tokens (unguided, until
the dense run's FLOPs are spent), or self-guided (arXiv 2406.16450 sec. 3.2 and 4.4).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.runs.labels import base_and_variant, family_and_budget

PLAIN, MORE_TOKENS, FEWER_TOKENS = "", "more tokens", "fewer tokens"
FIXED_STEPS, FIXED_FLOPS = "self-guided, fixed steps", "self-guided, fixed FLOPs"
STATIC = ", static"
TREATMENTS = (
    PLAIN,
    FIXED_STEPS,
    FIXED_STEPS + STATIC,
    FIXED_FLOPS,
    FIXED_FLOPS + STATIC,
    MORE_TOKENS,
    FEWER_TOKENS,
)
GUIDED = {"fixed_steps": FIXED_STEPS, "fixed_flops": FIXED_FLOPS}
VARIANTS = {MORE_TOKENS: "tokens=more", FEWER_TOKENS: "tokens=fewer"}
# Relative difference of training FLOPs, or tokens, that counts as none: whole batches make one.
EQUAL = 0.01
# Parts of a label that the treatment says already.
TREATMENT_FIELDS = ("guide", "guide.mode", "guide.stochastic", "stochastic", "tokens")
# Parts that are the shape of the network: a wide low-rank network is held against the usual dense one, but a
# run at another learning rate is held against the dense run at that rate.
SHAPE_FIELDS = ("d_model", "n_layers", "n_heads", "n_kv_heads", "attn_dim", "d_ff", "head_dim")
USUAL_FFN_RATIO = 4

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a run belongs.

    budget: training tokens of the dense runs that it is held against (-1 where the table counts none).
    reference: label of those dense runs.
    structure: the run's label without what `treatment` says.
    """

    size: str
    budget: int
    reference: str
    structure: str
    treatment: str

    @property
    def is_reference(self) -> bool:
        """Whether these are the dense runs themselves."""
        return self.structure == self.reference and self.treatment == PLAIN


def structure_label(label: str) -> str:
    """A curve's label without the parts that name its treatment: `lowrank-32, guide=...` loses one."""
    base, variant = base_and_variant(label)
    kept = [part for part in variant.split(", ") if part and part.partition("=")[0] not in TREATMENT_FIELDS]
    return ", ".join([base, *kept])


def places(records: Sequence[Record]) -> list[Place | None]:
    """Sort runs into arms; None for a run that no dense run of its size can be held against.

    Args:
        records: size, structure (the label), tokens, train_flops and, where known, unique_tokens, guide_mode,
            guide_stochastic, d_model, d_ff and params of each run. Without guide_mode a run is unguided.
    """
    dense: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if family_and_budget(str(record["structure"]))[0] == "dense" and not _guide_mode(record):
            dense[_size(record)][structure_label(str(record["structure"]))].append(record)
    return [_place(record, dense[_size(record)]) for record in records]


def place_diverged(record: Record, placed: Sequence[tuple[Record, Place | None]]) -> Place | None:
    """The arm of a run that diverged, found by the runs of its structure, budget and treatment that did not.

    Its FLOPs are those it spent, so they say nothing about the arm; its tokens are those it was given.
    """
    label = structure_label(str(record["structure"]))
    budgets = []
    for other, place in placed:
        if place is None or place.size != _size(record):
            continue
        same = _guide_mode(other) == _guide_mode(record) and guidance(other) == guidance(record)
        if same and place.structure == label and _tokens(other) == _tokens(record):
            return place
        if place.budget == _tokens(record):
            budgets.append(place)
    if not budgets:
        return None
    nearest = min(budgets, key=lambda place: place.reference != label)
    return Place(nearest.size, nearest.budget, nearest.reference, label, guidance(record))


def _place(record: Record, dense: Mapping[str, Sequence[Record]]) -> Place | None:
    label = structure_label(str(record["structure"]))
    reference = _reference(label, dense)
    if reference is None:
        return None
    size, flops = _size(record), float(record["train_flops"])
    spent = {_tokens(run): float(run["train_flops"]) for run in dense[reference]}
    if _tokens(record) in spent:
        return Place(size, _tokens(record), reference, label, guidance(record))
    equal = [budget for budget, other in spent.items() if abs(flops - other) <= EQUAL * other]
    if not equal:
        return None
    budget = min(equal, key=lambda tokens: abs(flops - spent[tokens]))
    return Place(size, budget, reference, label, guidance(record) or _spending(_tokens(record), budget))


def _spending(tokens: int, budget: int) -> str:
    """What an unguided run of the dense run's FLOPs does, by its tokens; plain where they are not known."""
    if min(tokens, budget) < 0 or abs(tokens - budget) <= EQUAL * budget:
        return PLAIN
    return MORE_TOKENS if tokens > budget else FEWER_TOKENS


def _reference(label: str, dense: Mapping[str, Sequence[Record]]) -> str | None:
    """The dense label to hold a label against: equal in all but shape; of several shapes the usual one."""
    same = [name for name in dense if _settings(name) == _settings(label)]
    plain = [name for name in dense if not _settings(name)]
    candidates = same or plain or (list(dense) if len(dense) == 1 else [])
    return min(candidates, key=lambda name: _unusual(dense[name][0]), default=None)


def _settings(label: str) -> tuple[str, ...]:
    """The parts of a label's variant that are not the network's shape."""
    parts = [part for part in base_and_variant(label)[1].split(", ") if part]
    return tuple(part for part in parts if part.partition("=")[0] not in SHAPE_FIELDS)


def _unusual(record: Record) -> tuple[float, float]:
    """How far a dense network is from d_ff = 4 d_model, then how small it is."""
    d_model, d_ff = _number(record.get("d_model")), _number(record.get("d_ff"))
    ratio = abs(d_ff / d_model - USUAL_FFN_RATIO) if d_model > 0 and d_ff > 0 else 0.0
    params = _number(record.get("params"))
    return ratio, -params if math.isfinite(params) else 0.0


def _size(record: Record) -> str:
    return str(record.get("size") or "")


def _guide_mode(record: Record) -> str:
    mode = str(record.get("guide_mode") or "none")
    return "" if mode == "none" else mode


def guidance(record: Record) -> str:
    """What a run's own columns say of its treatment: plain, or which kind of self-guided training."""
    mode = _guide_mode(record)
    if not mode:
        return PLAIN
    static = str(record.get("guide_stochastic")).lower() in ("false", "0", "0.0")
    return GUIDED.get(mode, f"self-guided, {mode}") + (STATIC if static else "")


def _tokens(record: Record) -> int:
    """The tokens of a run's budget, each counted once; -1 where they are not known."""
    unique = _number(record.get("unique_tokens")) if _guide_mode(record) else math.nan
    tokens = unique if math.isfinite(unique) else _number(record.get("tokens"))
    return round(tokens) if math.isfinite(tokens) else -1


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
