"""Precision promised and obtained, as a product of every runs table that was planned with a saved promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from analysis.design import promised_report as report
from analysis.design.promise import ENDING, read
from analysis.design.promised import hold_to_it
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked

SHOWS = "Standard errors of exponents promised before the runs of {} and those of their fits, as a table"


def products(tracked: Tracked) -> Iterator[Product]:
    """One for every runs table beside which tables/NAME_planned.csv lies."""
    for name in tracked.names:
        plan = tracked.table(f"{name}{ENDING}")
        if plan is not None and not tracked.runs(name).table.empty:
            inputs = (tracked.path(name), plan)
            make = partial(_of_table, tracked, name, plan)
            yield Product(f"{name}_promised", SHOWS.format(name), inputs, make, name)


def _of_table(tracked: Tracked, name: str, plan: Path) -> Made:
    found = hold_to_it(read(plan), tracked.runs(name), name)
    stem = f"{name}_promised"
    texts = {
        f"{stem}.md": report.markdown(found),
        f"{stem}.tex": report.latex(found),
        f"{stem}.json": report.to_json(found),
        f"{stem}.csv": report.to_csv(found),
    }
    return Made(texts=texts)
