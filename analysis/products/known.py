"""Fits against a known irreducible loss, as a product of tracked ladders of known entropy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from analysis.figures.known import known_figure
from analysis.known import report
from analysis.known.judged import Known, judge, why_not
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked

SHOWS = (
    "Held-out loss less the known irreducible loss over training FLOPs, log-log, with one power of FLOPs a "
    "structure; beside it the irreducible loss that every refit finds, with its 95 % interval, and the known "
    "value as a line."
)


def products(tracked: Tracked) -> Iterator[Product]:
    """One for every runs table that is a ladder on text of known entropy."""
    for name in tracked.names:
        if why_not(tracked.runs(name)) is None:
            path = tracked.path(name)
            yield Product(f"{name}_known", SHOWS, (path,), partial(_of_table, tracked, name), name)


def _of_table(tracked: Tracked, name: str) -> Made:
    return known_made(judge(tracked.runs(name), name))


def known_made(found: Known) -> Made:
    """Figure and tables of fits against a known irreducible loss."""
    stem = f"{found.name}_known"
    texts = {
        f"{stem}.md": report.markdown(found),
        f"{stem}.tex": report.latex(found),
        f"{stem}.json": report.to_json(found),
        f"{stem}.csv": report.to_csv(found),
    }
    return Made(known_figure(found), texts)
