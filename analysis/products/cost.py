"""Products of families of tables: `study` and all that are called `study-...`."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.runs.cost import cost_texts, costs
from analysis.runs.table import Runs
from analysis.searches.trials import Study

LEAST = 3
"""Tables that make a family."""


def products(tracked: Tracked) -> Iterator[Product]:
    """What each family has cost."""
    names = sorted({*tracked.names, *tracked.studies})
    for name in tracked.names:
        family = [name, *(other for other in names if other.startswith(f"{name}-"))]
        if len(family) < LEAST:
            continue
        tables: dict[str, Runs | Study] = {
            one: tracked.runs(one) if one in tracked.names else tracked.study(one) for one in family
        }
        if not all("run_id" in t.table for t in tables.values() if isinstance(t, Runs)):
            continue
        files = tuple(tracked.path(one) if one in tracked.names else tracked.trials(one) for one in family)
        yield Product(
            f"{name}_cost",
            f"Runs, FLOPs, hours and retries of {', '.join(family)} as a table",
            files,
            lambda tables=tables, name=name: Made(texts=cost_texts(costs(tables), name)),  # type: ignore[misc]
            name,
        )
