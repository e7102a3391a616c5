"""From a written structure to its class, and from a structure to the short name of its budget."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainer.messages import validation_line
from trainer.models.structures.base import Structure

BUDGET_TOLERANCE = 0.1
"""How far, relatively, the weights behind a name like 'blockdense-63' may be from what it says."""


def structure_from(value: Any, d_model: int) -> Structure:
    """Build a structure from a name ("dense", "lowrank-63"), a table with `kind`, or a structure.

    The number in a name is the share of a dense FFN's weights in per cent; 63 and 32 are the papers'
    5/8 and 5/16 (rank d_model / 2 and d_model / 4 for lowrank).  Raises ValueError naming what is known.
    """
    if isinstance(value, Structure):
        return value
    if isinstance(value, str):
        kind, _, budget = value.partition("-")
        family = _family(kind, value)
        if kind == "dense":
            if budget:
                raise ValueError(f"structure {value!r}: dense takes no budget; write 'dense'")
            return family.from_budget(1.0, d_model)
        if not budget.isdigit() or not 1 <= int(budget) <= 100:
            raise ValueError(
                f"structure {value!r} needs a budget in per cent, as '{kind}-63', or a table {{kind = ...}}"
            )
        return _checked_budget(family.from_budget(budget_fraction(int(budget)), d_model), value, d_model)
    if isinstance(value, Mapping):
        if "kind" not in value:
            raise ValueError(f"structure table without 'kind'; known kinds: {', '.join(Structure.registry)}")
        family = _family(str(value["kind"]), str(value["kind"]))
        try:
            return family.model_validate(dict(value))
        except ValidationError as error:
            raise ValueError(validation_line(error, family, f"structure {value['kind']!r}")) from None
    raise ValueError(f"structure must be a name or a table, not {type(value).__name__}")


def _ffn_share(structure: Structure, d_model: int) -> float:
    """Weights of a d_model -> 4 d_model -> d_model FFN over those of a dense one."""
    weights = structure.matmul_params(d_model, 4 * d_model) + structure.matmul_params(4 * d_model, d_model)
    return weights / (8 * d_model * d_model)


def _checked_budget(structure: Structure, name: str, d_model: int) -> Structure:
    """Refuse a name whose budget the family cannot come near at this width."""
    wanted, got = budget_fraction(int(name.partition("-")[2])), _ffn_share(structure, d_model)
    if abs(got / wanted - 1) > BUDGET_TOLERANCE:
        fields = ", ".join(f"{key} = {value!r}" for key, value in structure.model_dump().items())
        raise ValueError(
            f"structure {name!r} cannot be had at d_model = {d_model}: the nearest keeps {100 * got:.3g} % "
            f"of a dense FFN; name that budget or give the table {{{fields}}}"
        )
    return structure


def structure_label(structure: Structure, d_model: int) -> str:
    """The short name that resolves to this structure at this width, else its kind with its fields.

    At small widths neighbouring budgets round to the same fields; the roundest of them is the label, so
    that one budget keeps one name over a ladder of sizes.
    """
    if structure.kind == "dense":
        return "dense"
    share = round(100 * _ffn_share(structure, d_model))
    near = sorted(range(max(1, share - 4), min(100, share + 4) + 1), key=lambda b: (b % 10 > 0, b % 5 > 0))
    for budget in (63, 32, *near):
        if type(structure).from_budget(budget_fraction(budget), d_model) == structure:
            return f"{structure.kind}-{budget}"
    fields = ",".join(f"{k}={v}" for k, v in structure.model_dump().items() if k != "kind")
    return f"{structure.kind}({fields})"


def budget_fraction(percent: int) -> float:
    """Share of dense FFN weights behind a budget name: the papers' 63 is 5/8 and their 32 is 5/16."""
    return {63: 0.625, 32: 0.3125}.get(percent, percent / 100)


def _family(kind: str, written: str) -> type[Structure]:
    if kind in Structure.registry:
        return Structure.registry[kind]
    close = difflib.get_close_matches(kind, Structure.registry, n=1)
    hint = f"; did you mean {written.replace(kind, close[0], 1)!r}?" if close else ""
    raise ValueError(f"unknown structure {written!r}{hint} (known families: {', '.join(Structure.registry)})")
