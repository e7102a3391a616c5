"""Writes numbers with as many digits as their standard errors support."""

from __future__ import annotations

import math

LARGE = 1e4
"""From here on a number whose error reaches its tens is written with a power of ten."""
WIDE = 10.0
"""An interval whose ends differ by more than this factor supports two digits, whatever its width."""


def decimals(se: float) -> int:
    """Return how many decimals show two significant digits of the standard error `se`."""
    return max(0, _place(se))


def _place(se: float) -> int:
    """The decimal place of the second significant digit: 3 for 0.012, -1 for 120."""
    rounded = float(f"{se:.1e}")
    return 1 - math.floor(math.log10(rounded))


def _known(se: float | None) -> bool:
    return se is not None and math.isfinite(se) and se > 0


def number(value: float, se: float | None = None, plain: int = 4) -> str:
    """Return `value` with the digits that `se` supports, or `plain` significant ones without it.

    Such as `0.0535`, `1230` where the error is 250, and `1.2e+06` where it is 90,000.
    """
    if not math.isfinite(value):
        return "-"
    if se is None or not _known(se):
        return f"{value:.{plain}g}"
    place = _place(se)
    if place >= 0:
        return f"{value:.{place}f}"
    if abs(value) < LARGE:
        return f"{round(value, place):.0f}"
    return f"{value:.{max(0, math.floor(math.log10(abs(value))) + place)}e}"


def with_error(value: float, se: float | None, plain: int = 4) -> str:
    """Return `value ± se`, both with the digits that `se` supports."""
    if se is None or not _known(se) or not math.isfinite(value):
        return number(value, None, plain)
    return f"{number(value, se)} ± {number(se, se)}"


def interval(low: float, high: float, se: float | None) -> str:
    """Return `[low, high]` with the digits that `se` supports."""
    return f"[{number(low, se)}, {number(high, se)}]"


def estimate(value: float, low: float, high: float, se: float | None = None) -> tuple[str, str]:
    """Return a value and its 95 % interval, with the digits that `se` supports.

    Without `se`, a quarter of the interval stands for it. Where the ends are further apart than a factor of
    ten, so that no one error fits both, each number has two significant digits.
    """
    error = se if se is not None and _known(se) else (high - low) / 4
    if not _known(error):
        return number(value), "-"
    if low > 0 and high > WIDE * low:
        return significant(value), f"[{significant(low)}, {significant(high)}]"
    return number(value, error), interval(low, high, error)


def significant(value: float, digits: int = 2) -> str:
    """Return `value` with so many significant digits, zeros at its end too: `0.020`, `1.0`, `120`."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    # The last digit's decimal place, after rounding to so many digits.
    place = digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if place >= 0:
        return f"{value:.{place}f}"
    return f"{round(value, place):.0f}" if abs(value) < LARGE else f"{value:.{digits - 1}e}"


def probability(p: float) -> str:
    """Return a p-value as a report writes it: two significant digits, never `0`."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2f}" if p >= 0.0995 else f"= {p:#.2g}"


def p_cell(p: float | None) -> str:
    """A p-value as a table's cell, without the sign of equality; a dash where there is none."""
    return "-" if p is None else probability(p).removeprefix("= ")


def quantity(value: float) -> str:
    """Return a count or FLOPs in three significant digits, such as `1.20e+12` or `84,934`."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) < 1e7 and value == round(value) else f"{value:.2e}"
