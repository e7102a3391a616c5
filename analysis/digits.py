"""Writes numbers with as many digits as their standard errors support."""

from __future__ import annotations

import math


def decimals(se: float) -> int:
    """Return how many decimals show two significant digits of the standard error `se`."""
    rounded = float(f"{se:.1e}")
    return max(0, 1 - math.floor(math.log10(rounded)))


def _known(se: float | None) -> bool:
    return se is not None and math.isfinite(se) and se > 0


def number(value: float, se: float | None = None, plain: int = 4) -> str:
    """Return `value` with the digits that `se` supports, or `plain` significant ones without it."""
    if not math.isfinite(value):
        return "-"
    if se is None or not _known(se):
        return f"{value:.{plain}g}"
    return f"{value:.{decimals(se)}f}"


def with_error(value: float, se: float | None, plain: int = 4) -> str:
    """Return `value ± se`, both with the digits that `se` supports."""
    if se is None or not _known(se) or not math.isfinite(value):
        return number(value, None, plain)
    return f"{number(value, se)} ± {number(se, se)}"


def interval(low: float, high: float, se: float | None) -> str:
    """Return `[low, high]` with the digits that `se` supports."""
    return f"[{number(low, se)}, {number(high, se)}]"


def probability(p: float) -> str:
    """Return a p-value as a report writes it: two significant digits, never `0`."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2f}" if p >= 0.0995 else f"= {p:.2g}"


def quantity(value: float) -> str:
    """Return a count or FLOPs in three significant digits, such as `1.20e+12` or `84,934`."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) < 1e7 and value == round(value) else f"{value:.2e}"
