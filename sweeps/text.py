"""Numbers, durations and tables as people read them.

Tables are set by hand: rich needs seconds for the 10,000 rows that a large sweep prints.
"""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """A count with a unit and three digits: 842, 12.3k, 1.20M."""
    if value is None:
        return "-"
    for size, unit in _UNITS:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}" if abs(value) < size * 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def size(n_bytes: float) -> str:
    """Bytes with a unit: 12.3 MB."""
    short = count(n_bytes)
    return f"{short[:-1]} {short[-1]}B" if short[-1].isalpha() else f"{short} B"


def flops(value: float) -> str:
    """FLOPs as 1.2e13."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def number(value: object) -> str:
    """A setting as one writes it in a file: 5e-3, 0.1, 4096."""
    if not isinstance(value, float):
        return str(value)
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"


def plural(n: int, noun: str) -> str:
    """The number with its noun: 1 run, 12 runs."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str] = frozenset()) -> str:
    """Columns two spaces apart; those named in `right` are set flush right."""
    widths = [
        max([len(head), *map(len, column)]) for head, column in zip(heads, _columns(heads, rows), strict=True)
    ]
    sides = [">" if head in right else "<" for head in heads]
    row_format = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    lines = [row_format.format(*heads).rstrip()]
    lines += [row_format.format(*row).rstrip() for row in rows]
    return "\n".join(lines)


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * len(heads)
