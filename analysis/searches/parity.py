"""Tuning parity: whether each structure's learning rate was searched equally hard, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.arms.rates import RATE, Curve
from analysis.searches.curves import BATCH, by_size, rate_curves
from analysis.searches.shapes import Tried, tried
from analysis.searches.trials import Cell, Study


@dataclass(frozen=True)
class Tuned:
    """What the search of one structure's learning rate at one size came to.

    best: lowest finished shape, None where no run has a loss. trials, runs: proposals, and distinct runs that
    answered them. low, high: the rates tried. curve: of the best one's batch, with the fitted optimum or the
    reason why there is none; None where fewer than three rates were tried.
    """

    cell: Cell
    best: Tried | None
    trials: int
    runs: int
    lost: dict[str, int]
    low: float
    high: float
    curve: Curve | None

    @property
    def reason(self) -> str:
        """Why there is no fitted optimum; empty where there is one."""
        return self.curve.reason if self.curve is not None else "fewer than three rates"


def parity(study: Study) -> list[Tuned]:
    """The searches of a study's cells, size by size."""
    study = study.pooled
    curves = rate_curves(study)
    cells = [cell for cell in by_size(study) if RATE in cell.dimensions]
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    return [
        _tuned(cell, curves) for size in sizes for cell in study.cells if cell in cells and cell.size == size
    ]


def _tuned(cell: Cell, curves: Sequence[Curve]) -> Tuned:
    shapes = tried(cell)
    best = shapes[0] if shapes else None
    rates = [dict(trial.searched)[RATE] for trial in cell.trials if RATE in dict(trial.searched)]
    lost = {
        state: sum(trial.state == state for trial in cell.distinct)
        for state in ("pruned", "diverged", "failed")
    }
    runs = set(best.runs) if best is not None else set()
    mine = [c for c in curves if runs & {run for shape in _all(c) for run in shape}]
    return Tuned(
        cell, best, len(cell.trials), len(cell.distinct), {k: v for k, v in lost.items() if v},
        min(rates), max(rates), mine[0] if mine else None,
    )  # fmt: skip


def _all(curve: Curve) -> list[tuple[str, ...]]:
    return [s.runs for s in curve.shapes.values()] + [s.runs for rest in curve.others.values() for s in rest]


def verdict(found: Sequence[Tuned]) -> list[str]:
    """Whether the structures of each size had the same number of distinct runs, in words.

    Trials that were answered by a run before are free, and teach nothing.
    """
    said = []
    for size in dict.fromkeys(one.cell.size for one in found):
        mine = [one for one in found if one.cell.size == size]
        place = f"{size}: " if size else ""
        if len(mine) < 2:
            said.append(f"{place}one structure, no parity to judge")
            continue
        runs = {one.runs for one in mine}
        if len(runs) == 1:
            said.append(f"{place}parity: {runs.pop()} distinct runs each")
            continue
        counts = ", ".join(f"{one.cell.structure} {one.runs}" for one in mine)
        said.append(f"{place}no parity: distinct runs are {counts}")
    return said


def searched_batch(found: Sequence[Tuned]) -> bool:
    """Whether batch sizes were searched too."""
    return any(BATCH in one.cell.dimensions for one in found)
