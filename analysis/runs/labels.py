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


def passes_and_sparsity(label: str) -> tuple[str, int, float]:
    """Split `dense, looped 4, pruned 75%` into (`dense`, 4, 75); 1 pass and 0 % where it does not say so."""
    match = re.fullmatch(
        r"(.+?)(?:, looped (\d+))?(?:, pruned (\d+(?:\.\d+)?)%)?", base_and_variant(label)[0]
    )
    return (match[1], int(match[2] or 1), float(match[3] or 0)) if match else (label, 1, 0.0)


def structure_order(label: str) -> tuple[int, str, float, int, float, VariantKey, str]:
    """Sort key of labels: dense first, the papers' families, others; larger budgets first; then variants.

    A structure that is looped or pruned follows itself, more passes and higher sparsities later.
    """
    structure, passes, sparsity = passes_and_sparsity(label)
    family, budget = family_and_budget(structure)
    rank = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return rank, family, -budget, passes, sparsity, _variant_key(base_and_variant(label)[1]), label


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
