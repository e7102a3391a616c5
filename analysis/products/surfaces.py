"""Figures of laws in parameters and tokens: IsoFLOP curves, isoloss contours, allocation, over-training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.allocation import cost_of
from analysis.digits import number
from analysis.figures.allocation import allocation_figure
from analysis.figures.isoflop import Profile, PublishedOptima, isoflop_figure
from analysis.figures.isoloss import Surface, isoloss_figure
from analysis.figures.overtraining import Ratios, overtraining_figure
from analysis.figures.pairs import pairs_figure
from analysis.fit import Settings, fit_law
from analysis.fitcheck import COLLINEAR
from analysis.isoflop.budgets import group_budgets
from analysis.isoflop.optima import IsoFlop, isoflop
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.reproduce.rows import numbers, read, records
from analysis.runs.table import Runs, structures_of

COLUMNS = ("params", "tokens", "train_flops", "val_loss")
LEAST_SIZES, LEAST_RATIOS = 3, 3
LAW_RUNS = 5
"""Parameters of the law, and so the fewest runs that it can be fitted to."""
CONFIG = "rw/tuned/short/const/standard/val"
"""Porian et al.'s last: RefinedWeb, tuned hyperparameters, counted with the head."""
HOFFMANN = "Hoffmann et al."
PORIAN = "Porian et al."
POINTS, ISOFLOP, OPTIMA, FITS = (
    "kyo_points.csv", "porian_isoflop_points.csv", "porian_optima.csv", "porian_fits.csv",
)  # fmt: skip
NANOCHAT, EXPONENTS, GADRE = "nanochat_optima.csv", "nanochat_exponents.csv", "gadre_models.csv"
KYO_SOURCE = (
    "234 points of Hoffmann et al., arXiv 2203.15556, figure 4, from github.com/kyo-takano/chinchilla."
)
PORIAN_SOURCE = "Data and optima: Porian et al., arXiv 2406.19146; their exponent is of the weighted line."
ALLOCATION_SOURCE = (
    "Hoffmann et al., arXiv 2203.15556, points from github.com/kyo-takano/chinchilla; Porian et al., "
    f"arXiv 2406.19146, {CONFIG}; github.com/karpathy/nanochat, dev/LOG.md."
)
GADRE_SOURCE = "Gadre et al., arXiv 2403.08540: loss on C4, FLOPs 6 N D."


TRAINING_SETS = {"c4_original": "C4", "rpj": "RedPajama", "rw_original": "RefinedWeb"}
QUICK = Settings(resamples=500)
ISOFLOP_SHOWS = (
    "Loss over parameters at equal training FLOPs with a parabola for each budget, and the sizes at "
    "their lowest points over FLOPs, with intervals and the fitted exponent."
)
ISOLOSS_SHOWS = (
    "Contours of equal loss of the fitted L(N, D) over training FLOPs and parameters, the runs in the "
    "colour of their loss, and the compute-optimal size with its band; only the runs where the law is "
    "not identified."
)
ALLOCATION_SHOWS = (
    "Compute-optimal parameters, tokens and tokens per parameter over training FLOPs, by the fitted "
    "law and by IsoFLOP parabolas, with 95 % bands."
)
PAIRS_SHOWS = (
    "How the errors of alpha, beta, E and the exponent of the optimal size go together: bootstrap draws of "
    "each pair, histograms with intervals, and correlations."
)
OVERTRAINING_SHOWS = (
    "Loss over tokens per parameter at fixed size and over training FLOPs at fixed tokens per parameter, "
    "with the law of over-training where the runs identify it."
)


def products(tracked: Tracked) -> Iterator[Product]:
    """The figures of every runs table whose sizes and tokens vary by themselves, and of published numbers."""
    for name in tracked.names:
        runs = tracked.runs(name)
        if runs.table.empty or runs.table[list(COLUMNS)].isna().any(axis=None):
            continue
        yield from _of_table(tracked, name, runs)
    yield from _published(tracked)


def varies(rows: pd.DataFrame) -> bool:
    """Whether sizes and tokens of one structure vary by themselves, so that L(N, D) can be asked for."""
    n, d = (np.log(rows[key].to_numpy(np.float64)) for key in ("params", "tokens"))
    if len(rows) < LAW_RUNS or np.ptp(n) < 1e-6 or np.ptp(d) < 1e-6:
        return False
    return float(np.corrcoef(n, d)[0, 1]) ** 2 <= COLLINEAR


def has_budgets(rows: pd.DataFrame) -> bool:
    """Whether most runs of one structure lie at equal FLOPs with those of two further sizes."""
    sizes = rows["params"].to_numpy(np.float64)
    groups = group_budgets(rows["train_flops"].to_numpy(np.float64))
    within = sum(len(places) for places in groups if np.unique(sizes[places]).size >= LEAST_SIZES)
    return 2 * within >= len(rows) > 0


def has_ratios(rows: pd.DataFrame) -> bool:
    """Whether one size of a structure has been trained on three numbers of tokens."""
    return bool((rows.groupby("params")["tokens"].nunique() >= LEAST_RATIOS).any())


def fitted(label: str, rows: pd.DataFrame, settings: Settings | None = None) -> Surface:
    """L(N, D) fitted to the runs of one structure, and approach 2 where they form budgets.

    Args:
        label: of the structure or study.
        rows: params, tokens, train_flops and val_loss of its runs.
        settings: how to fit.
    """
    n, d, c, y = (rows[key].to_numpy(np.float64) for key in COLUMNS)
    fit = fit_law("chinchilla", {"params": n, "tokens": d}, y, label, settings=settings)
    return Surface(label, rows, fit, cost_of(n, d, c), optima_of(rows) if has_budgets(rows) else None)


def optima_of(rows: pd.DataFrame) -> IsoFlop:
    """Approach 2 on the runs of one structure."""
    n, d, c, y = (rows[key].to_numpy(np.float64) for key in COLUMNS)
    return isoflop(n, d, c, y)


def ratios_of(label: str, rows: pd.DataFrame) -> Ratios:
    """The law of Gadre et al. fitted to the runs of one structure or training set."""
    data = {key: rows[key].to_numpy(np.float64) for key in COLUMNS}
    loss = data.pop("val_loss")
    fit = fit_law("overtrain", data, loss, label, settings=Settings(interval="delta"))
    return Ratios(label, rows, fit)


def _of_table(tracked: Tracked, name: str, runs: Runs) -> Iterator[Product]:
    """The figures of one runs table."""
    parts = {label: runs.table[runs.table["structure"] == label] for label in structures_of(runs.table)}
    note = runs.coverage() + "." if runs.expected > len(runs.table) else ""

    def chosen(test: Callable[[pd.DataFrame], bool]) -> list[str]:
        return [label for label, rows in parts.items() if test(rows)]

    @cache
    def surfaces() -> tuple[Surface, ...]:
        return tuple(fitted(label, parts[label]) for label in chosen(varies))

    def product(kind: str, shows: str, draw: Callable[[], Any], *more: Path) -> Product:
        inputs = (tracked.path(name), *more)
        return Product(f"{name}_{kind}", shows, inputs, lambda: Made(draw()), sweep=name)

    if budgets := chosen(has_budgets):

        def curves() -> Any:
            profiles = [Profile(label, parts[label], optima_of(parts[label])) for label in budgets]
            return isoflop_figure(profiles, name, note)

        yield product("isoflop", ISOFLOP_SHOWS, curves)
    if free := chosen(varies):
        yield product("isoloss", ISOLOSS_SHOWS, lambda: isoloss_figure(surfaces(), name, note))
        # With fewer sizes the law is refused before anything is fitted: words alone are no figure.
        if any(parts[label]["params"].nunique() >= LEAST_SIZES for label in free):
            yield product(
                "allocation", ALLOCATION_SHOWS, lambda: allocation_figure(surfaces(), name, note=note)
            )
            yield product("pairs", PAIRS_SHOWS, lambda: pairs_figure(surfaces(), name, note))
    if several := chosen(has_ratios):
        path = tracked.published(GADRE)

        def draw() -> Any:
            ours = [ratios_of(label, parts[label]) for label in several]
            theirs = gadre(path) if path is not None else []
            return overtraining_figure(ours, theirs, name, note, GADRE_SOURCE)

        yield product("overtraining", OVERTRAINING_SHOWS, draw, *([path] if path is not None else []))


def _published(tracked: Tracked) -> Iterator[Product]:
    """The figures of published numbers alone."""
    paths = {
        file: tracked.published(file) for file in (POINTS, ISOFLOP, OPTIMA, FITS, NANOCHAT, EXPONENTS, GADRE)
    }
    there = {file: path for file, path in paths.items() if path is not None}

    @cache
    def hoffmann() -> Surface:
        return fitted(HOFFMANN, kyo(there[POINTS]))

    @cache
    def porian() -> Profile:
        rows = porian_rows(there[ISOFLOP])
        return Profile(PORIAN, rows, optima_of(rows), porian_optima(there[OPTIMA], there[FITS]))

    def product(kind: str, shows: str, files: tuple[str, ...], draw: Callable[[], Any]) -> Iterator[Product]:
        if all(file in there for file in files):
            inputs = tuple(there[file] for file in files)
            yield Product(f"published_{kind}", shows, inputs, lambda: Made(draw()))

    def allocated() -> Any:
        study = porian()
        others = [
            *([study.published] if study.published else []),
            *nanochat(there[NANOCHAT], there[EXPONENTS]),
        ]
        mine = fitted(PORIAN, study.table, QUICK)
        return allocation_figure([hoffmann(), mine], "Published", others, ALLOCATION_SOURCE)

    yield from product(
        "isoflop", ISOFLOP_SHOWS, (ISOFLOP, OPTIMA, FITS),
        lambda: isoflop_figure([porian()], "Published", f"{PORIAN_SOURCE} Configuration {CONFIG}."),
    )  # fmt: skip
    yield from product(
        "isoloss", ISOLOSS_SHOWS, (POINTS,), lambda: isoloss_figure([hoffmann()], "Published", KYO_SOURCE)
    )
    yield from product(
        "allocation", ALLOCATION_SHOWS, (POINTS, ISOFLOP, OPTIMA, FITS, NANOCHAT, EXPONENTS), allocated
    )
    yield from product(
        "pairs", PAIRS_SHOWS, (POINTS,), lambda: pairs_figure([hoffmann()], "Published", KYO_SOURCE)
    )
    yield from product(
        "overtraining", OVERTRAINING_SHOWS, (GADRE,),
        lambda: overtraining_figure([], gadre(there[GADRE]), "Published", source=GADRE_SOURCE),
    )  # fmt: skip


def kyo(path: Path) -> pd.DataFrame:
    """The points of Hoffmann et al. as runs."""
    names = {"N": "params", "D": "tokens", "C": "train_flops", "loss": "val_loss"}
    return read(path.parent, path.name).rename(columns=names).astype(np.float64)


def porian_rows(path: Path, config: str = CONFIG) -> pd.DataFrame:
    """One configuration of Porian et al. as runs."""
    table = read(path.parent, path.name)
    rows = table[table["config"] == config]
    names = {"N": "params", "flops": "train_flops", "loss": "val_loss"}
    return rows.rename(columns=names)[list(COLUMNS)].astype(np.float64).reset_index(drop=True)


def porian_optima(optima: Path, fits: Path, config: str = CONFIG) -> PublishedOptima:
    """Their optima of that configuration; budgets whose optimum lay at the edge have none."""
    table = read(optima.parent, optima.name)
    rows = table[table["config"] == config].dropna()
    (fit,) = (one for one in records(fits.parent, fits.name) if one["config"] == config)
    low, high = fit["n_exp_ci_lo"], fit["n_exp_ci_hi"]
    exponent = f"$a$ = {number(fit['weighted_n_exponent'], (high - low) / 4)} [{low:.4f}, {high:.4f}]"
    flops, params, tokens, log_se = (numbers(rows, key) for key in ("flops", "N_opt", "D_opt", "logN_std"))
    return PublishedOptima(PORIAN, flops, params, tokens, log_se, exponent)


def nanochat(optima: Path, exponents: Path) -> list[PublishedOptima]:
    """The optima of nanochat's log, by each of its ways to count parameters."""
    table, found = read(optima.parent, optima.name), []
    for printed in records(exponents.parent, exponents.name):
        rows = table[table["convention"] == printed["convention"]]
        flops, params, tokens = (numbers(rows, key) for key in ("flops", "params", "tokens"))
        label, exponent = f"nanochat, {printed['convention']}", f"$a$ = {printed['n_exponent']:.2f}"
        found.append(PublishedOptima(label, flops, params, tokens, exponent=exponent))
    return found


def gadre(path: Path) -> list[Ratios]:
    """The models of Gadre et al. by training set, with the law fitted to each."""
    names = {"c4_loss": "val_loss", "c4_loss_low": "low", "c4_loss_high": "high", "model": "size"}
    table = read(path.parent, path.name).rename(columns=names)
    table["train_flops"] = 6.0 * table["params"] * table["tokens"]
    return [
        ratios_of(TRAINING_SETS.get(str(label), str(label)), rows)
        for label, rows in table.groupby("training_set")
    ]
