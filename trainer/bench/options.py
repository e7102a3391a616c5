"""What the bench commands share: options, whole numbers in a list, quotients in words."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from trainer.errors import ConfigError

ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; default all cores.")
]
RepeatsOption = Annotated[int, typer.Option("--repeats", min=1, help="Rounds, structures in turn.")]


def counts(text: str, option: str) -> list[int]:
    """Whole numbers above 0, comma-separated; ConfigError with the option's name where they are not."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{option} {text}: give whole numbers above 0, comma-separated, as 256,512")
    return found


def factor(row: dict[str, Any], name: str, digits: int = 2, ends: tuple[str, str] = ("min", "max")) -> str:
    """A quotient with its range, `x1.50 (1.43-1.55)`; a dash where there was nothing to divide by."""
    middle, low, high = (row.get(column) for column in (name, *(f"{name}_{end}" for end in ends)))
    if middle is None:
        return "-"
    spread = "" if low is None else f" ({low:.{digits}f}-{high:.{digits}f})"
    return f"x{middle:.{digits}f}{spread}"


def say(line: str) -> None:
    """A line for whoever waits, apart from what is measured."""
    print(line, file=sys.stderr, flush=True)
