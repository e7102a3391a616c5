"""Gadre et al., arXiv 2403.08540: the loss of two large runs, foretold from five small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from analysis.arrays import Array
from analysis.reproduce.rows import Row, compare, numbers, read, records

STUDY = "gadre"
SMALLEST = "d=96_l=8_h=4"
SMALL = (SMALLEST, "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
CHINCHILLA_TOKENS = 20
"""Tokens per parameter at multiplier 1."""
OVERTRAINED = 16.0
"""The fifth run is the smallest model at this multiplier; the other four are at 1."""
ROUNDING = 5e-5
"""Percentage points; the errors are printed with four decimals."""
LOWEST, HIGHEST = 0.01, 2.0


def reproduce(folder: Path) -> list[Row]:
    """The two errors that the authors print."""
    models = read(folder, "gadre_models.csv")
    rows = []
    for target in records(folder, "gadre_errors.csv"):
        own = models[models["training_set"] == target["training_set"]]
        fit = _fit(own[_is_small(own)])
        large = own[(own["model"] == target["model"]) & (own["multiplier"] == target["multiplier"])]
        (measured,) = numbers(large, "c4_loss")
        error = 100 * abs(float((_terms(large, fit[0]) @ fit[1])[0]) / measured - 1)
        ratio = target["multiplier"] * CHINCHILLA_TOKENS
        size = float(numbers(large, "params")[0]) / 1e9
        name = f"error in % of the C4 loss foretold for {size:.1f}B at {ratio:.0f} tokens a parameter"
        rows.append(compare(STUDY, name, target["error_percent"], error, ROUNDING))
    return rows


def _is_small(models: pd.DataFrame) -> pd.Series:
    balanced = models["model"].isin(SMALL) & (models["multiplier"] == 1.0)
    return balanced | ((models["model"] == SMALLEST) & (models["multiplier"] == OVERTRAINED))


def _terms(models: pd.DataFrame, eta: float) -> Array:
    """What E, alpha and beta multiply in L = E + alpha N^-eta + beta 6^(-eta/2) (M N)^-eta, shape (n, 3)."""
    size = numbers(models, "params")
    ratio = CHINCHILLA_TOKENS * numbers(models, "multiplier")
    return np.stack([np.ones_like(size), size**-eta, 6.0 ** (-eta / 2) * (ratio * size) ** -eta], axis=1)


def _fit(models: pd.DataFrame) -> tuple[float, Array]:
    """Least squares in the loss itself, as theirs; for a given eta the law is linear."""
    loss = numbers(models, "c4_loss")

    def linear(eta: float) -> tuple[Array, float]:
        terms = _terms(models, eta)
        scale = terms.max(axis=0)
        solution = np.linalg.lstsq(terms / scale, loss)[0] / scale
        residual = terms @ solution - loss
        return solution, float(residual @ residual)

    found = minimize_scalar(
        lambda eta: linear(float(eta))[1],
        bounds=(LOWEST, HIGHEST),
        method="bounded",
        options={"xatol": 1e-10},
    )
    eta = float(found.x)
    return eta, linear(eta)[0]
