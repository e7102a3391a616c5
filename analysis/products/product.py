"""A product: one figure, or one table's texts, made from tracked tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Made:
    """What a product came to.

    figure: drawn, or None where the product is a table.
    texts: of files in tables/, by their names, such as `lowrank.md`.
    """

    figure: Figure | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Product:
    """A figure or a table, and how to make it.

    name: stem of its files.
    shows: what is to be seen in it, a sentence or two for whoever cannot see it.
    inputs: the tables that it is made of, below the results folder or, for published ones, the source tree.
    make: draws and writes it, from those tables alone.
    sweep: name of the runs table that it belongs to; empty for one of published or measured numbers alone.
    """

    name: str
    shows: str
    inputs: tuple[Path, ...]
    make: Callable[[], Made]
    sweep: str = ""
