"""Trade-offs of a study with two objectives: the runs that no other run beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.searches.trials import Study, Trial


@dataclass(frozen=True)
class Contest:
    """The runs of one size and budget: their points, and which are not dominated.

    trials: done, with both objectives. own: places of those that no run of their own structure dominates.
    front: places of those that no run at all dominates. unmeasured: runs that have a loss alone.
    """

    size: str
    budget: float
    trials: tuple[Trial, ...]
    own: tuple[int, ...]
    front: tuple[int, ...]
    unmeasured: int = 0


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other is at least as low as in both coordinates and lower in one.

    Equal points do not dominate each other: all of them are kept. In the order of the first coordinate.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: list[int] = []
    for i in order:
        # By the order, whatever dominates this one came before it, and the last kept is the lowest so far.
        if not kept or points[i][1] < points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def second_name(study: Study) -> str:
    """What the second objective is called; empty where there is none."""
    return next((trial.second_name for trial in study.trials if trial.second_name), "")


def contests(study: Study) -> list[Contest]:
    """The contests of a study, smaller sizes and budgets first; lower is better in both objectives."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    budgets: dict[tuple[str, str], float] = {}
    for cell in study.pooled.cells:
        key = cell.size, str(cell.budget)
        budgets[key] = cell.budget
        mine = groups.setdefault(key, [])
        known = {trial.run_id for trial in mine}
        mine += [trial for trial in cell.done if trial.run_id not in known]
    found = []
    for key in sorted(groups, key=lambda k: (k[0], -1.0 if math.isnan(budgets[k]) else budgets[k])):
        trials = [trial for trial in groups[key] if not math.isnan(trial.numbers["second"])]
        if trials:
            own = [
                places[i]
                for name in dict.fromkeys(trial.structure for trial in trials)
                for places in [[i for i, trial in enumerate(trials) if trial.structure == name]]
                for i in non_dominated([_point(trials[j]) for j in places])
            ]
            front = non_dominated([_point(trial) for trial in trials])
            missing = len(groups[key]) - len(trials)
            found.append(Contest(key[0], budgets[key], tuple(trials), tuple(own), tuple(front), missing))
    return found


def _point(trial: Trial) -> tuple[float, float]:
    return trial.numbers["second"], trial.loss
