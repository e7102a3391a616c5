"""Labels of curves: a structure, and what else tells its runs apart (`lowrank-63, peak_lr=0.008`)."""

from __future__ import annotations

import math
import re

FAMILIES = ("dense", "lowrank", "blockdense", "blockshuffle")

VariantKey = tuple[tuple[str, float, str], ...]


def base_and_variant(label: str) -> tuple[str, str]:
    """Split `dense, peak_lr=0.008` into (`dense`, `peak_lr=0.008`), and `dense` into (`dense`, ``)."""
    match = re.fullmatch(r"(.+?), ([A-Za-z_][\w.]*=.*)", label.strip())
    return (match[1], match[2]) if match else (label.strip(), "")


def family_and_budget(label: str) -> tuple[str, float]:
    """Split `lowrank-63`, `lowrank63` or `LowRank 63%` into (`lowrank`, 63); no number is a full budget."""
    base = base_and_variant(label)[0].lower()
    match = re.fullmatch(r"(.*?[^\d.])[-_ ]?(\d+(?:\.\d+)?) ?%?", base)
    return (match[1].rstrip("-_ "), float(match[2])) if match else (base, math.inf)


def structure_order(label: str) -> tuple[int, str, float, VariantKey, str]:
    """Sort key of labels: dense first, the papers' families, others; larger budgets first; then variants."""
    family, budget = family_and_budget(label)
    rank = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return rank, family, -budget, _variant_key(base_and_variant(label)[1]), label


def _variant_key(variant: str) -> VariantKey:
    """Variants in the order of their values, numbers as numbers and before words."""
    parts = [part.partition("=") for part in variant.split(", ") if part]
    return tuple((name, _as_number(value), value) for name, _, value in parts)


def _as_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.inf
    return value if math.isfinite(value) else math.inf
