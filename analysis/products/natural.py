"""The natural law as a product: of every tracked grid of sizes and token budgets, and of published runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.figures.natural import natural_figure
from analysis.fit import Settings, distinct
from analysis.natural import report
from analysis.natural.estimate import Natural
from analysis.natural.reach import LEAST_BUDGETS, budgets_of
from analysis.natural.study import Curve, Options, curves_of, natural, why_no_law
from analysis.products.product import Made, Product
from analysis.products.surfaces import TRAINING_SETS, kyo, porian_rows, varies
from analysis.products.tracked import Tracked
from analysis.reproduce.rows import read
from analysis.runs.table import Runs, structures_of

POINTS, GADRE, PORIAN, GEMSTONES, DATABLATIONS = (
    "kyo_points.csv", "gadre_models.csv", "porian_isoflop_points.csv", "gemstones_points.csv",
    "datablations_runs.csv",
)  # fmt: skip
SETS = ("cool_end", "hot", "lr_ablation_hot")
"""Of the Gemstones: other sets are parts of these, or have too few runs to leave out whole ones."""
ONCE = 1.001
"""Tokens over distinct tokens up to which none was repeated."""
QUICK = Options(settings=Settings(resamples=300), resamples=300)
SOURCE = (
    "Hoffmann et al., arXiv 2203.15556 (points from github.com/kyo-takano/chinchilla); Gadre et al., "
    "2403.08540 (C4 loss); Porian et al., 2406.19146; Gemstones: McLeish et al., 2502.06857 (checkpoints, "
    "whole runs resampled); Muennighoff et al., 2305.16264 (runs without repetition). N as each study counts "
    "it."
)
SHOWS = (
    "Every estimate of gamma in N ~ D^gamma with its 95 % interval, a row each: the paper's bound as "
    "reconstructed here from beta, the measured one and the compute-optimal ones, with the published band "
    "from 0.44 to 0.72 shaded and Chinchilla's 1.0 as a line; beside it the measured and the optimal "
    "parameters over tokens, censored budgets as arrows."
)


def products(tracked: Tracked) -> Iterator[Product]:
    """The natural law of every grid among the runs tables, and of published runs."""
    for name in tracked.names:
        if is_grid(tracked.runs(name)):
            path = tracked.path(name)
            yield Product(f"{name}_natural", SHOWS, (path,), partial(_of_table, tracked, name), name)
    paths = [found for file in PUBLISHED if (found := tracked.published(file)) is not None]
    if len(paths) == len(PUBLISHED):
        yield Product("published_natural", SHOWS, tuple(paths), partial(_published, paths))


def is_grid(runs: Runs) -> bool:
    """Whether sizes and token budgets of some structure form a grid: three budgets of three sizes each."""
    if runs.table.empty or bool(runs.table[["params", "tokens", "val_loss"]].isna().any(axis=None)):
        return False
    return any(_grid(runs.table[runs.table["structure"] == one]) for one in structures_of(runs.table))


def _grid(rows: pd.DataFrame) -> bool:
    n, d = (rows[column].to_numpy(np.float64) for column in ("params", "tokens"))
    if why_no_law(rows) or not varies(rows) or distinct(d) < LEAST_BUDGETS:
        return False
    return len(budgets_of(n, d)) >= LEAST_BUDGETS


def _of_table(tracked: Tracked, name: str) -> Made:
    runs = tracked.runs(name)
    found = natural(curves_of(runs, name, quiet=True), name, coverage=runs.coverage())
    return natural_made(found, runs.coverage() + "." if runs.expected > len(runs.table) else "")


def natural_made(found: Natural, note: str = "", called: str = "") -> Made:
    """Figure and tables of the natural law."""
    stem = f"{found.name}_natural"
    texts = {
        f"{stem}.md": report.markdown(found),
        f"{stem}.tex": report.latex(found),
        f"{stem}.json": report.to_json(found),
        f"{stem}.csv": report.to_csv(found),
    }
    return Made(natural_figure(found, note, called), texts)


def _published(paths: list[Path]) -> Made:
    curves = [curve for path in paths for curve in PUBLISHED[path.name](path)]
    found = natural(curves, "published", QUICK, SOURCE.removesuffix("."))
    return natural_made(found, SOURCE, "Published")


def _kyo(path: Path) -> list[Curve]:
    return [Curve("Hoffmann et al.", kyo(path))]


def _gadre(path: Path) -> list[Curve]:
    table = read(path.parent, path.name).rename(columns={"c4_loss": "val_loss"})
    return [
        Curve(f"Gadre et al., set={TRAINING_SETS.get(str(label), str(label))}", rows.reset_index(drop=True))
        for label, rows in table.groupby("training_set")
    ]


def _porian(path: Path) -> list[Curve]:
    return [Curve("Porian et al.", porian_rows(path))]


def _gemstones(path: Path) -> list[Curve]:
    table = read(path.parent, path.name)
    found = []
    for name in SETS:
        rows = table[table["set"] == name].reset_index(drop=True)
        found.append(Curve(f"Gemstones, set={name}", rows, [str(run) for run in rows["run"]]))
    return found


def _datablations(path: Path) -> list[Curve]:
    table = read(path.parent, path.name)
    once = table[table["tokens"] <= ONCE * table["unique_tokens"]]
    return [Curve("Muennighoff et al.", once.reset_index(drop=True))]


PUBLISHED = {
    POINTS: _kyo,
    GADRE: _gadre,
    PORIAN: _porian,
    GEMSTONES: _gemstones,
    DATABLATIONS: _datablations,
}
"""File of published runs -> how its curves are read."""
