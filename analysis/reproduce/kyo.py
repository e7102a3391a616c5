"""Takano's chinchilla: an asymmetric absolute error, for given exponents a linear programme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import linprog, minimize

from analysis.arrays import Array
from analysis.reproduce.rows import Row, compare, compare_objectives, numbers, read, records

STUDY = "kyo"
ABOVE = 10.0
"""Weight of a loss that is foretold too high; one foretold too low has 1 (the quantile 1/11)."""
HOFFMANN = (0.34, 0.28)
"""Exponents to start from."""
UNIT = {"N": 1e9, "D": 1e10}
"""Sizes and tokens are counted in these within the programme, so that its columns are of one size."""
ROUNDING = 5e-9
"""The objective is printed with eight decimals."""
CLOSE = 0.005
"""Share by which a parameter may differ: the objective is flat, and theirs is a little above its minimum."""


def reproduce(folder: Path) -> list[Row]:
    """The minimum, and the parameters there."""
    points = read(folder, "kyo_points.csv")
    logs = {name: np.log(numbers(points, name) / unit) for name, unit in UNIT.items()}
    loss = numbers(points, "loss")

    def least(exponents: Array) -> float:
        return _programme(logs, loss, exponents)[0]

    start = np.array(HOFFMANN, np.float64)
    found = minimize(least, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-11})
    objective, coefficients = _programme(logs, loss, found.x)
    alpha, beta = map(float, found.x)
    ours = {
        "E": coefficients[0],
        "A": coefficients[1] * UNIT["N"] ** alpha,
        "B": coefficients[2] * UNIT["D"] ** beta,
        "alpha": alpha,
        "beta": beta,
    }
    (target,) = records(folder, "kyo_fits.csv")
    return [
        compare_objectives(
            STUDY, "mean asymmetric absolute error of the loss", target["objective"], objective, ROUNDING
        ),
        *(compare(STUDY, name, target[name], value, CLOSE * target[name]) for name, value in ours.items()),
    ]


def _programme(logs: dict[str, Array], loss: Array, exponents: Array) -> tuple[float, Array]:
    """The least mean error for given exponents, and (E, A, B) there.

    Every loss is foretold plus what it is too low by minus what it is too high by; both are above zero, and
    their weighted sum is least.
    """
    n = loss.size
    terms = np.stack(
        [np.ones(n), np.exp(-exponents[0] * logs["N"]), np.exp(-exponents[1] * logs["D"])], axis=1
    )
    balance = np.hstack([terms, np.eye(n), -np.eye(n)])
    weights = np.concatenate([np.zeros(3), np.ones(n), np.full(n, ABOVE)]) / n
    solved = linprog(weights, A_eq=balance, b_eq=loss, bounds=(0, None), method="highs")
    assert solved.x is not None and solved.fun is not None, "all errors are finite, so there is a minimum"
    return float(solved.fun), np.asarray(solved.x[:3], np.float64)
