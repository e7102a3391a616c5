"""Wei et al., arXiv 2406.16450: the slopes of dense and low-rank networks, and the test of their equality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analysis.arrays import Array
from analysis.reproduce.rows import Row, compare, numbers, read

STUDY = "fig1"
TOLERANCE = {"slope": 1e-5, "F(2, 6)": 5e-4, "p": 5e-4}
EXPONENT_UNDER_E = 6e-5
"""With an irreducible loss taken off, the exponents were printed with four decimals."""


def reproduce(folder: Path) -> list[Row]:
    """Slopes, F and p, from digitised losses or printed ones, with and without an irreducible loss."""
    points = read(folder, "fig1_scaling_lowrank_digitised.csv")
    digitised = points["loss_digitised"]
    losses = {"digitised": digitised, "printed": points["loss_from_published_ppl"].fillna(digitised)}
    rows = []
    targets = read(folder, "fig1_tests.csv")
    for (label, e), group in targets.groupby(["losses", "irreducible"], sort=False):
        ours = slopes_and_test(points, losses[str(label)].to_numpy(np.float64) - float(str(e)))
        for name, value in zip(group["quantity"], group["value"], strict=True):
            tolerance = TOLERANCE["slope" if name.startswith("slope") else name]
            if e and name.startswith("slope"):
                tolerance = EXPONENT_UNDER_E
            text = f"{name}, {label} losses{f' less {e:g}' if e else ''}"
            rows.append(compare(STUDY, text, float(value), ours[name], tolerance))
    return rows


def slopes_and_test(points: pd.DataFrame, loss: Array) -> dict[str, float]:
    """The slope of each curve in log-log, and F and p of the hypothesis that they are equal."""
    x, y = np.log(numbers(points, "flops_from_repo_formula")), np.log(loss)
    curves = list(dict.fromkeys(points["curve"]))
    member = np.stack([points["curve"].to_numpy() == curve for curve in curves], axis=1).astype(np.float64)
    x = x - x.mean()
    equal, _ = _squares(np.hstack([member, x[:, None]]), y)
    free, solution = _squares(np.hstack([member, member * x[:, None]]), y)
    between, spare = len(curves) - 1, y.size - 2 * len(curves)
    f = (equal - free) / between / (free / spare)
    found = {f"slope {curve}": float(solution[len(curves) + i]) for i, curve in enumerate(curves)}
    return found | {f"F({between}, {spare})": f, "p": float(stats.f.sf(f, between, spare))}


def _squares(matrix: Array, y: Array) -> tuple[float, Array]:
    solution = np.asarray(np.linalg.lstsq(matrix, y)[0], np.float64)
    residual = y - matrix @ solution
    return float(residual @ residual), solution
