"""What a study will cost, before anything is trained: runs, FLOPs and seconds of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.layout import Layout
from sweeps.ledger import Ledger
from sweeps.overview import OTHER_RESULTS
from sweeps.price import Prices
from sweeps.search.cells import Cell
from sweeps.search.searched import target_of
from sweeps.search.space import Space
from sweeps.text import flops, number, plural, table
from trainer.commandline import duration
from trainer.flops import train_flops


@dataclass(frozen=True)
class CellPrice:
    """One cell."""

    cell: Cell
    """Which."""
    shapes: int
    """Combinations of the grid's values that keep to what is fixed."""
    size: int | None
    """Points; None where a dimension is a range of numbers."""
    trials: int
    """Runs that the study asks for."""
    beyond: int
    """Most runs beyond these, on the line through the best point (search.valley)."""
    flops: float
    """Training FLOPs of the dearest run of the space."""
    seconds: float
    """Predicted seconds of a run, in the mean over the space."""
    measured: bool
    """Whether the prediction rests on runs of this machine."""
    farthest: float
    """Largest relative distance of a run's FLOPs from the budget; 0 without one."""

    @property
    def total(self) -> float:
        """FLOPs of all trials, none of them pruned or known."""
        return (self.trials + self.beyond) * self.flops


SAMPLE = 200
"""Shapes of a cell that are priced."""


def price_cells(spaces: Sequence[Space], ledger: Ledger, layout: Layout) -> list[CellPrice]:
    """Price every cell of a study."""
    prices = Prices(list(ledger.other_results((), OTHER_RESULTS)), layout.setting)
    return [_price(space, prices) for space in spaces]


def _price(space: Space, prices: Prices) -> CellPrice:
    configs = space.sample(SAMPLE)
    costs = [prices.price(config) for config in configs]
    spent = [train_flops(config) for config in configs]
    off = [
        abs(used / target - 1)
        for used, config in zip(spent, configs, strict=True)
        if (target := space.target(config)) is not None
    ]
    return CellPrice(
        space.cell,
        space.shapes,
        space.size,
        target_of(space.cell, space),
        _beyond(space),
        float(max(spent)),
        sum(cost.seconds for cost in costs) / len(costs),
        all(cost.measured for cost in costs),
        max(off, default=0.0),
    )


def _beyond(space: Space) -> int:
    cell = space.cell
    line = next((d for d in cell.dimensions if d.name == cell.study.search.valley), None)
    if line is None or line.values is None:
        return 0
    left = len(line.values) - 1
    return left if space.size is None else min(left, space.size - target_of(cell, space))


def price_table(prices: Sequence[CellPrice]) -> str:
    """The cells as people read them."""
    heads = ("cell", "searched", "points", "trials", "FLOPs each", "seconds each", "off budget")
    rows = [
        (
            one.cell.label or "all",
            ", ".join(dimension.name for dimension in one.cell.dimensions),
            f"{one.size:,}" if one.size is not None else f"{one.shapes:,} x range",
            f"{one.trials} + {one.beyond}" if one.beyond else str(one.trials),
            flops(one.flops),
            number(float(round(one.seconds))) + ("" if one.measured else " (guessed)"),
            f"{one.farthest:.2%}",
        )
        for one in prices
    ]
    return table(heads, rows, frozenset(heads[2:]))


def seconds_of(prices: Sequence[CellPrice], slots: int) -> float:
    """Predicted seconds of a study with so many runs at a time."""
    return sum((one.trials + one.beyond) * one.seconds for one in prices) / max(1, slots)


def totals_said(prices: Sequence[CellPrice], seconds: float) -> str:
    """Trials, FLOPs and time of a study, in words."""
    trials = sum(one.trials + one.beyond for one in prices)
    basis = "measured" if all(one.measured for one in prices) else "guessed"
    return (
        f"{plural(len(prices), 'cell')}, {plural(trials, 'trial')}, at most "
        f"{flops(sum(p.total for p in prices))} "
        f"FLOPs, {duration(seconds)} ({basis} speed)"
    )
