"""The end of a study in a table: the best point of each cell, how sure that is, and what mattered."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.search.searched import Searched, Trial
from sweeps.search.shapes import said
from sweeps.text import table

COUNTS = ("n_layers", "rank", "n_blocks")
"""Dimensions that nothing lies below 1 of: no edge is there."""


def summary(searched: Sequence[Searched]) -> str:
    """A line a cell.

    `ties` are other points within one standard error of the best loss: with one seed each, they are as good.
    """
    heads = (
        "cell",
        "best",
        "loss",
        "se",
        "ties",
        "edge",
        "done",
        "pruned",
        "diverged",
        "failed",
        "importance",
    )
    rows = [_row(one) for one in searched]
    return table(heads, rows, frozenset(heads[2:5]) | frozenset(heads[6:10]))


def _row(searched: Searched) -> tuple[str, ...]:
    counts = {
        state: sum(t.outcome is not None and t.outcome.state == state for t in searched.by_run.values())
        for state in ("done", "pruned", "diverged", "failed")
    }
    numbers = tuple(str(many) for many in counts.values())
    best = searched.best
    label = searched.cell.label or "all"
    if best is None:
        return label, "-", "-", "-", "-", "", *numbers, ""
    error = standard_error(best)
    ties = sum(
        trial is not best and trial.loss is not None and trial.loss - (best.loss or 0.0) <= error
        for trial in searched.by_run.values()
    )
    shares = searched.importance()
    importance = ", ".join(
        f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda i: -i[1])
    )
    return (
        label, said(best.asked.point), f"{best.loss:.4f}", f"{error:.4f}", str(ties),
        ", ".join(edges(searched, best)), *numbers, importance,
    )  # fmt: skip


def standard_error(trial: Trial) -> float:
    """Of a trial's held-out loss, over its held-out text."""
    result = trial.state.result if trial.state is not None else None
    return float((result or {}).get("val_loss_se") or 0.0)


def edges(searched: Searched, trial: Trial) -> list[str]:
    """Dimensions in which a point lies at an end of what can be had: the best may lie beyond."""
    found = []
    for one in searched.cell.dimensions:
        value, (low, high) = trial.asked.point[one.name], searched.space.ends(one)
        if value == 1 and one.name in COUNTS:
            continue
        if low < high and value in (low, high):
            found.append(f"{one.name} {'lowest' if value == low else 'highest'}")
    return found
