"""Text for people at a terminal: colour where it is wanted, aligned tables, wrapped sentences."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

RED, YELLOW = "31", "33"
LEFT = ("run", "size", "structure", "treatment", "contrast", "verdict", "estimate")
"""Columns that hold words: they start at the left."""
GAP = "  "
NARROWEST = 8
"""Words are broken down to this width, on however narrow a terminal."""


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour (`RED`, `YELLOW`) where the stream is a terminal and NO_COLOR is unset."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def say(text: str) -> None:
    """Print a sentence, its words wrapped at the width of the terminal."""
    wide = shutil.get_terminal_size().columns
    print(textwrap.fill(text, wide, break_long_words=False, break_on_hyphens=False))


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title and aligned columns, as wide as the terminal at most where that can be."""
    print(f"{title}\n{aligned(header, rows, shutil.get_terminal_size().columns)}\n")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A table in plain text: words at the left, numbers at the right, long cells on several lines.

    Cells break between words; where that is not enough, words do. Numbers are never broken, so a table of
    many of them may be wider than asked for.
    """
    words = [name in LEFT for name in header]
    columns = [[row[i] for row in rows] for i in range(len(header))]
    widths = [max(map(len, [name, *cells])) for name, cells in zip(header, columns, strict=True)]
    whole = [_longest([n, *cells], w) for n, cells, w in zip(header, columns, words, strict=True)]
    broken = [
        max(min(least, NARROWEST), 0 if w else _longest(cells, w))
        for least, cells, w in zip(whole, columns, words, strict=True)
    ]
    room = width - len(GAP) * (len(header) - 1)
    for least in (whole, broken):
        while sum(widths) > room:
            spare = [i for i in range(len(widths)) if widths[i] > least[i]]
            if not spare:
                break
            widths[max(spare, key=lambda i: widths[i])] -= 1
    lines = [*_lines(header, widths, words), GAP.join("-" * w for w in widths)]
    for row in rows:
        lines += _lines(row, widths, words)
    return "\n".join(lines)


class _Units(textwrap.TextWrapper):
    """Breaks at spaces, and after the slash of units such as nats/token."""

    wordsep_simple_re = re.compile(r"( +)|(?<=[A-Za-z]/)(?=[A-Za-z])")


class _Words(textwrap.TextWrapper):
    """Breaks at spaces, and after slashes and hyphens within names."""

    wordsep_simple_re = re.compile(r"( +)|(?<=\w[/-])(?=\w)")


def _longest(cells: Sequence[str], words: bool) -> int:
    """The length of the longest part that stays in one piece."""
    breaks = (_Words if words else _Units).wordsep_simple_re
    return max((len(part) for cell in cells for part in breaks.split(cell) if part), default=1)


def _lines(cells: Sequence[str], widths: Sequence[int], words: Sequence[bool]) -> list[str]:
    """One row of cells as lines of text."""
    parts = [
        (_Words if left else _Units)(w, break_on_hyphens=False).wrap(cell)
        for cell, w, left in zip(cells, widths, words, strict=True)
    ]
    lines = []
    for i in range(max(map(len, parts))):
        texts = [part[i] if i < len(part) else "" for part in parts]
        padded = [
            text.ljust(w) if left else text.rjust(w)
            for text, w, left in zip(texts, widths, words, strict=True)
        ]
        lines.append(GAP.join(padded).rstrip())
    return lines


def error_line(text: str) -> None:
    """Say on stderr, in red on a terminal, what the user can mend: one line."""
    print(coloured(f"error: {' '.join(text.split())}", RED, sys.stderr), file=sys.stderr)
