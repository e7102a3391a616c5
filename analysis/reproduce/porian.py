"""Porian et al., arXiv 2406.19146: exponents of compute-optimal sizes, and nine fits that never moved."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.arrays import Array
from analysis.engine.solve import solve
from analysis.engine.sums import bind
from analysis.laws import IRREDUCIBLE
from analysis.reproduce.rows import (
    DIFFERS,
    LOWER,
    NEVER_LEFT,
    REPRODUCED,
    Row,
    compare,
    numbers,
    read,
    records,
    slope,
)

STUDY = "porian"
EXPONENT = 1e-6
ALPHA = 2e-5
"""Their optimiser stops at a relative tolerance of 1e-6, which leaves this much in alpha."""
LOWEST_FLOPS, HIGHEST_FLOPS = 1e16, 5e17
"""Budgets of their fits of the loss; the others are left out."""
GRID_ALPHA, GRID_LOG_E, GRID_LOG_A = np.arange(4) / 10, np.arange(-2, 3) / 2, np.arange(6) * 5.0
"""Points from which their fits of the loss start."""


def reproduce(folder: Path) -> list[Row]:
    """Every exponent of size and tokens, plain and weighted, and every fit of loss over compute."""
    optima = read(folder, "porian_optima.csv").dropna()
    rows: list[Row] = []
    for fit in records(folder, "porian_fits.csv"):
        points = optima[optima["config"] == fit["config"]]
        rows += _exponents(points, fit)
        rows += _losses(points, fit)
    return sorted(rows, key=lambda row: ("alpha" in row.quantity, "weighted" in row.quantity))


def _exponents(points: pd.DataFrame, fit: dict[str, float]) -> list[Row]:
    """Straight lines in log-log; weighted: by the inverse variance of the logarithm of the optimum."""
    x = np.log(numbers(points, "flops"))
    rows = []
    for letter, key in (("N", "n"), ("D", "t")):
        y = np.log(numbers(points, f"{letter}_opt"))
        precision = numbers(points, f"log{letter}_std") ** -2.0
        for kind, weights in (("basic", None), ("weighted", precision)):
            ours, _ = slope(x, y, weights)
            name = f"{fit['config']}: {kind} exponent of {letter}"
            rows.append(compare(STUDY, name, fit[f"{kind}_{key}_exponent"], ours, EXPONENT))
    return rows


def _losses(points: pd.DataFrame, fit: dict[str, float]) -> list[Row]:
    """L = E + A C^-alpha by least squares in log loss, plain and weighted by inverse variance."""
    flops = numbers(points, "flops")
    used = (flops > LOWEST_FLOPS) & (flops < HIGHEST_FLOPS)
    flops, loss = flops[used], numbers(points, "loss_opt")[used]
    deviation = numbers(points, "logloss_std")[used]
    return [
        _basic(flops, loss, fit),
        _weighted(flops, loss, (deviation / deviation.mean()) ** -2.0, fit),
    ]


def _saturating(flops: Array, loss: Array, weights: Array | None) -> dict[str, float]:
    found = solve(bind(IRREDUCIBLE, {"train_flops": flops}, loss), np.inf, weights)
    values = found.bound.natural(found.phi)
    return {column.name: float(v) for column, v in zip(found.bound.columns, values, strict=True)}


def _squares(flops: Array, loss: Array, e: float, k: float, alpha: float) -> float:
    residual = np.log(e + k * flops**-alpha) - np.log(loss)
    return float(residual @ residual)


def _basic(flops: Array, loss: Array, fit: dict[str, float]) -> Row:
    ours = _saturating(flops, loss, None)
    alpha, published = ours["alpha"], fit["basic_alpha"]
    name = f"{fit['config']}: basic alpha of loss"
    if abs(alpha - published) <= ALPHA:
        return Row(STUDY, name, published, alpha, ALPHA, REPRODUCED)
    lower = _squares(flops, loss, ours.get("E", 0.0), ours["k"], alpha) < _squares(
        flops, loss, fit["basic_E"], fit["basic_A"], published
    )
    return Row(
        STUDY, name, published, alpha, ALPHA, LOWER if lower else DIFFERS,
        "sum of squares a little above the minimum: theirs had stopped early" if lower else "",
    )  # fmt: skip


def _weighted(flops: Array, loss: Array, weights: Array, fit: dict[str, float]) -> Row:
    """Theirs hand the variance's inverse to an optimiser that takes standard deviations.

    That inverts the weights, and makes all residuals so small that most starts count as converged.
    """
    ours = _saturating(flops, loss, weights)
    note = f"E {fit['weighted_E']:.4f} -> {ours.get('E', 0.0):.4f}"
    stuck = is_start(fit["weighted_A"], fit["weighted_E"], fit["weighted_alpha"])
    row = compare(
        STUDY, f"{fit['config']}: weighted alpha of loss", fit["weighted_alpha"], ours["alpha"], ALPHA,
        f"{note}; theirs weighs by the variance instead of its inverse", expected=False,
    )  # fmt: skip
    if not stuck:
        return row
    start = f"A = e^{math.log(fit['weighted_A']):.0f}, log E = {math.log(fit['weighted_E']):.1f}"
    return Row(
        STUDY, row.quantity, row.published, row.ours, row.tolerance, NEVER_LEFT,
        f"{start}, alpha = {fit['weighted_alpha']:.1f} is a point of their grid of starts; {note}",
    )  # fmt: skip


def is_start(a: float, e: float, alpha: float) -> bool:
    """Whether a fit is one of the points that it may have started from."""
    return any(
        math.isclose(a, math.exp(log_a), rel_tol=1e-9)
        and math.isclose(e, math.exp(log_e), rel_tol=1e-9)
        and math.isclose(alpha, start, rel_tol=1e-9, abs_tol=1e-12)
        for log_a, log_e, start in itertools.product(GRID_LOG_A, GRID_LOG_E, GRID_ALPHA)
    )
