"""All that can be drawn and written from the tracked tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from analysis.products import (
    arms,
    comparison,
    cost,
    known,
    laws,
    measured,
    natural,
    promised,
    recurrent,
    searches,
    surfaces,
    sweeps,
)
from analysis.products.product import Product
from analysis.products.tracked import Tracked

Provider = Callable[[Tracked], Iterator[Product]]

PROVIDERS: tuple[Provider, ...] = (
    sweeps.products,
    laws.products,
    comparison.products,
    surfaces.products,
    known.products,
    promised.products,
    natural.products,
    arms.products,
    searches.products,
    recurrent.products,
    cost.products,
    measured.products,
)
"""In the order in which their figures stand in a report."""


def catalogue(tracked: Tracked) -> list[Product]:
    """Every figure and table that the tracked tables allow."""
    found = [product for provider in PROVIDERS for product in provider(tracked)]
    names = [product.name for product in found]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return found


def of_table(products: Sequence[Product], tracked: Tracked, name: str) -> list[Product]:
    """Those products that a runs table, or the trials of a study, feeds."""
    mine = {tracked.path(name), tracked.trials(name)}
    return [product for product in products if not mine.isdisjoint(product.inputs)]
