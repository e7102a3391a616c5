"""Trials as curves: loss over width at each budget, and over the peak learning rate of each structure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from analysis.arms.rates import LEAST_RATES, RATE, Curve
from analysis.isoflop.minima import Point, best_shape, fitted, sampled
from analysis.isoflop.widths import FLOPS, LEAST_WIDTHS, PARAMETERS, Valley, distinct_budgets
from analysis.runs.treatments import PLAIN
from analysis.searches.trials import Cell, Study, Trial, shown, words

BATCH = "batch_tokens"
OVER = {"tokens": "tokens_per_param", "lr": ""}
"""By kind of study the dimension that its valleys are over; d_model for all others, none where empty."""


def over(study: Study) -> str:
    """The dimension that the valleys of a study are over; empty for a study of learning rates."""
    return OVER.get(study.kind, "d_model")


def has_valley(study: Study) -> bool:
    """Whether a cell has losses at three widths at least."""
    return any(_wide_enough(cell, over(study)) for cell in study.pooled.cells)


def valleys(study: Study) -> list[Valley]:
    """The valleys of a study's cells that have three widths at least.

    The lowest of the shapes tried at a width stands for it (lower envelope), if the cell's best shape, at
    this width, is among them: without it, what was tried is no sign of how low the loss can be. Pruned runs
    have no loss, and a shape of which a run diverged stands for a width only where there is no other. The
    parabolas of one structure share the variance about them.
    """
    found: list[Valley] = []
    dimension, every = over(study), study.pooled.cells
    for structure in dict.fromkeys(cell.structure for cell in every):
        cells = [c for c in every if c.structure == structure and _wide_enough(c, dimension)]
        bare = [_valley(cell, dimension) for cell in cells]
        # There is no line through vertices at one budget, along which points could be moved.
        at_flops = all(valley.unit == FLOPS for valley in bare) and distinct_budgets(bare) == len(bare)
        found += fitted(bare, "width", True, [v.budget for v in bare] if at_flops else None)
    return found


def _wide_enough(cell: Cell, dimension: str) -> bool:
    return len({dict(t.searched)[dimension] for t in cell.done if dimension in dict(t.searched)}) >= (
        LEAST_WIDTHS
    )


def _valley(cell: Cell, dimension: str) -> Valley:
    """A cell at the budget of its runs; without a target of FLOPs, parameters are what is held fixed."""
    unit = PARAMETERS if math.isnan(cell.budget) else FLOPS
    column = "params" if unit == PARAMETERS else "train_flops"
    known = [trial.numbers[column] for trial in cell.done if trial.numbers[column] > 0]
    budget = math.exp(float(np.mean(np.log(known)))) if known else cell.budget
    counted = unit == FLOPS and len(known) == len(cell.done)
    points = list(_points(cell.distinct, dimension, counted, budget))
    fields = sampled(points, best_shape(points))
    return Valley(structure=cell.structure, budget=budget, unit=unit, over=dimension, **fields)


def _points(
    trials: Iterable[Trial], dimension: str, counted: bool = False, budget: float = math.nan
) -> Iterator[Point]:
    for trial in trials:
        searched = dict(trial.searched)
        if dimension not in searched or trial.state == "failed":
            continue
        rest = words(tuple(pair for pair in trial.searched if pair[0] != dimension))
        loss = trial.loss if trial.state == "done" else None
        flops = trial.numbers["train_flops"] if counted else budget
        yield Point(searched[dimension], rest, loss, flops, trial.state, trial.run_id)


def has_rates(study: Study) -> bool:
    """Whether a cell has tried three peak learning rates at least, and has a loss for one of them."""
    return any(
        cell.done and len({dict(t.searched)[RATE] for t in cell.trials if RATE in dict(t.searched)})
        >= LEAST_RATES
        for cell in study.pooled.cells
    )  # fmt: skip


def rate_curves(study: Study) -> list[Curve]:
    """Loss over the peak learning rate, a curve a cell and, where several were tried, a batch size.

    The best rate depends on the batch, so rates at different batches are no curve; other searched dimensions
    are settled by the lower envelope. The variance about the parabolas is pooled over the study.
    """
    bare = []
    study = study.pooled
    for cell in study.cells:
        mine = [trial for trial in cell.distinct if RATE in dict(trial.searched)]
        batches = sorted({_batch(trial) for trial in mine})
        for batch in batches:
            trials = [trial for trial in mine if _batch(trial) == batch]
            tokens = [t.numbers["tokens"] for t in trials if t.numbers["tokens"] > 0]
            structure = f"{cell.structure}, {BATCH}={shown(batch)}" if len(batches) > 1 else cell.structure
            curve = Curve(
                size=cell.size, structure=structure, treatment=PLAIN,
                tokens=float(np.median(tokens)) if tokens else math.nan,
                **sampled(_points(trials, RATE)),
            )  # fmt: skip
            if curve.shapes and len(curve.rates) >= LEAST_RATES:
                bare.append(curve)
    sizes = [cell.size for cell in by_size(study)]
    return fitted(sorted(bare, key=lambda curve: sizes.index(curve.size)), "rate", False)


def by_size(study: Study) -> list[Cell]:
    """The cells of a study, those of the fewest parameters first."""
    return sorted(study.cells, key=_params)


def _params(cell: Cell) -> float:
    known = [trial.numbers["params"] for trial in cell.trials if trial.numbers["params"] > 0]
    return float(np.median(known)) if known else 0.0


def _batch(trial: Trial) -> float:
    return dict(trial.searched).get(BATCH, 0.0)
