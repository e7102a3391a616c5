"""McLeish et al., arXiv 2502.06857 (Gemstones): every published fit of the loss: minimum and exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.arrays import Array
from analysis.engine.solve import solve
from analysis.engine.sums import SumLaw, Term, bind
from analysis.laws import CHINCHILLA
from analysis.reproduce.rows import DIFFERS, LOWER, Row, compare_objectives, numbers, read, records

STUDY = "gemstones"
SOURCE = "McLeish et al., arXiv 2502.06857"
VOCABULARY = 50304
"""Rows of the embedding, which the fits without embeddings take off the parameters, once."""
SHAPE = SumLaw(
    "width-depth", "L = E + A W^-a + B Z^-b + G D^-d",
    (
        Term("E", {}), Term("width", {"width": "width_exponent"}), Term("depth", {"depth": "depth_exponent"}),
        Term("tokens", {"tokens": "tokens_exponent"}),
    ),
    SOURCE,
)  # fmt: skip
SHAPE_AND_SIZE = SumLaw(
    "width-depth-params", "L = E + A W^-a + B Z^-b + F N^-c + G D^-d",
    (*SHAPE.terms[:3], Term("params", {"params": "params_exponent"}), SHAPE.terms[3]), SOURCE,
)  # fmt: skip
LAWS = {law.name: law for law in (SHAPE, SHAPE_AND_SIZE)}
ROUNDING = 0.5e-10
"""Objectives are printed with ten decimals."""
AGREE = 0.005
"""Exponents within this count as the same."""
NEGLIGIBLE = 1e-4
"""Share of a term in the loss below which its parameters mean nothing."""
FEW_SIZES = 8


def reproduce(folder: Path) -> list[Row]:
    """Every fit of the total parameters, of those without embeddings, and of width and depth."""
    points = read(folder, "gemstones_points.csv")
    shape = points["run"].str.extract(r"-(\d+)x(\d+)_").astype(np.float64)
    points = points.assign(width=shape[0], depth=shape[1])
    without = points.assign(params=points["params"] - VOCABULARY * points["width"])
    rows = []
    for name, table, label in (
        ("gemstones_fits.csv", points, "N, D"),
        ("gemstones_fits_more_sets.csv", points, "N, D"),
        ("gemstones_fits_no_embeddings.csv", without, "N without embeddings, D"),
    ):
        for fit in records(folder, name):
            logs = {"E": fit["log_E"], "A": fit["log_A"], "B": fit["log_B"]}
            own = table[table["set"] == fit["set"]]
            rows.append(_row(f"{label}: {_which(fit)}", CHINCHILLA, own, fit, logs))
    for fit in records(folder, "gemstones_fits_shape.csv"):
        law = LAWS[fit["law"]]
        logs = {n: fit["log_E" if n == "E" else f"log_{n}_coefficient"] for n in law.coefficients}
        words = "W, Z, N, D" if law is SHAPE_AND_SIZE else "W, Z, D"
        rows.append(_row(f"{words}: {_which(fit)}", law, points[points["set"] == fit["set"]], fit, logs))
    return rows


def _which(fit: Mapping[str, float]) -> str:
    return f"{fit['set']}, delta {fit['huber_delta']:g}"


def _row(
    name: str, law: SumLaw, points: pd.DataFrame, fit: dict[str, float], logs: Mapping[str, float]
) -> Row:
    data = {variable: numbers(points, variable) for variable in law.variables}
    bound, delta = bind(law, data, numbers(points, "val_loss")), float(fit["huber_delta"])
    theirs = _objective(law, data, bound.log_loss, fit, logs, delta)
    if abs(theirs - fit["objective"]) > 2 * ROUNDING:
        note = f"their parameters give {theirs:.10f} on these points, which are not theirs"
        return Row(STUDY, name, fit["objective"], theirs, 2 * ROUNDING, DIFFERS, note)
    found = solve(bound, delta)
    known = dict(zip((c.name for c in found.bound.columns), found.bound.natural(found.phi), strict=True))
    exponents = {e: float(known.get(e, math.nan)) for e in law.exponents}
    row = compare_objectives(STUDY, name, fit["objective"], found.cost, ROUNDING)
    note = _note(row, fit, exponents)
    if known.get("E", 0.0) < NEGLIGIBLE * points["val_loss"].min():
        note += "; E vanishes in both: the data ask for none"
    if (sizes := points["params"].nunique()) < FEW_SIZES:
        note += f"; {sizes} sizes determine the exponent of size weakly"
    if not found.converged:
        note += "; ours has not converged to the last digit either"
    return Row(row.study, name, row.published, row.ours, row.tolerance, row.verdict, note)


def _objective(
    law: SumLaw,
    data: Mapping[str, Array],
    log_loss: Array,
    fit: Mapping[str, float],
    logs: Mapping[str, float],
    delta: float,
) -> float:
    """The sum of Huber losses of the log residuals at the published parameters."""
    terms = [
        logs[term.coefficient] - sum(fit[e] * np.log(data[v]) for v, e in term.powers.items())
        + np.zeros(log_loss.size)
        for term in law.terms
    ]  # fmt: skip
    residual = np.abs(np.logaddexp.reduce(terms, axis=0) - log_loss)
    inside = np.minimum(residual, delta)
    return float(np.sum(inside * (residual - 0.5 * inside)))


def _note(row: Row, fit: Mapping[str, float], ours: Mapping[str, float]) -> str:
    """Whether the exponents moved, and why."""
    short = {name: name.removesuffix("_exponent") for name in ours}
    moved = [
        f"{short[n]} {fit[n]:.4f} -> {value:.4f}" for n, value in ours.items() if abs(value - fit[n]) > AGREE
    ]
    notes = []
    if not moved:
        notes.append(f"exponents agree: {', '.join(f'{short[n]} {value:.4f}' for n, value in ours.items())}")
    else:
        share = (row.published - row.ours) / row.published
        notes.append(f"exponents moved: {', '.join(moved)}")
        notes.append(
            f"theirs stopped {100 * share:.2g} % above the minimum"
            if row.verdict == LOWER
            else "the objective is flat there: it is the same to five digits"
        )
    return "; ".join(notes)
