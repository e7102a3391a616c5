"""Products of fitted laws: the papers' families, reducible losses, exponents, and residuals."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from analysis.analyse import Analysis, analyse, points
from analysis.compare.slopes import usable
from analysis.figures.exponents import exponents_figure
from analysis.figures.families import PAPER_FAMILIES, PaperFamilies, families_figure
from analysis.figures.published import FILE, SOURCE, published_runs, shared_structures
from analysis.figures.reducible import reducible_figure
from analysis.figures.residuals import residuals_figure
from analysis.fit import Settings
from analysis.lawfits import fit_table
from analysis.laws import CHINCHILLA, IRREDUCIBLE, POWER
from analysis.products.product import Made, Product
from analysis.products.sweeps import has_law
from analysis.products.tracked import Tracked
from analysis.runs.labels import family_and_budget
from analysis.runs.reading import read_table
from analysis.runs.table import Runs, structures_of

HOFFMANN_E = 1.69
"""Nats per token, Hoffmann et al., arXiv 2203.15556, eq. 10; what the published points are tried with."""
HOFFMANN = "of other text: Hoffmann et al., arXiv 2203.15556, eq. 10"
KYO = "kyo_points.csv"
KYO_SOURCE = "Hoffmann et al., arXiv 2203.15556, figure 4, from github.com/kyo-takano/chinchilla @75e5858f"


def products(tracked: Tracked) -> Iterator[Product]:
    """The families of the papers; of every sweep with a law three figures; residuals of published points."""
    path = tracked.published(FILE)
    if any(name in tracked.names and not tracked.runs(name).table.empty for name in PAPER_FAMILIES):
        yield _families(tracked, path)
    for name in tracked.names:
        if not tracked.runs(name).table.empty and has_law(tracked.runs(name)):
            yield from _laws(tracked, name, path)
    points = tracked.published(KYO)
    if points is not None:
        yield Product(
            "published_residuals",
            f"Residuals in percent of {CHINCHILLA.formula} fitted to 234 points of Hoffmann et al., over "
            "parameters, tokens and fitted loss, and their standardised values over normal quantiles.",
            (points,),
            lambda: _published_residuals(points),
        )


def _families(tracked: Tracked, path: Path | None) -> Product:
    there = [name for name in PAPER_FAMILIES if name in tracked.names]

    def make() -> Made:
        ours = {name: _ours(tracked, name) for name in PAPER_FAMILIES}
        theirs = None
        if path is not None:
            theirs = PaperFamilies(analyse(published_runs(path), "Published"), paper_sizes(path), SOURCE)
        return Made(families_figure(ours, theirs))

    return Product(
        "families",
        "Held-out loss over training FLOPs with power laws, a column each for low-rank, block-dense and "
        "block-shuffle networks at 63 % and 32 % beside dense ones: our runs above, the points of "
        "arXiv 2406.16450 that have a published loss below.",
        (*(tracked.path(name) for name in there), *([path] if path is not None else [])),
        make,
    )


def _ours(tracked: Tracked, name: str) -> Analysis | str:
    """A family's fitted sweep, or what its panel says in place of it."""
    if name not in tracked.names:
        return f"not run yet: make sweep-{name}"
    if tracked.runs(name).table.empty:
        return f"no finished run: {tracked.runs(name).coverage()}"
    return tracked.analysis(name)


def paper_sizes(path: Path) -> dict[str, int]:
    """At how many sizes the paper trained each structure, as `lowrank-63`; a loss may be published or not."""
    counts: dict[str, int] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            family, budget = family_and_budget(f"{row['structure']} {row['ffn_budget']}")
            label = family if budget == 100 else f"{family}-{budget:g}"
            counts[label] = counts.get(label, 0) + 1
    return counts


def _laws(tracked: Tracked, name: str, path: Path | None) -> Iterator[Product]:
    """Reducible loss, exponents and residuals of one sweep."""
    shared = None if path is None else _comparable(path, structures_of(tracked.runs(name).table))
    both = (tracked.path(name), *([path] if path is not None and shared is not None else []))

    @cache
    def theirs() -> Analysis | None:
        return None if shared is None else analyse(shared, "Published", HOFFMANN_E)

    beside = " and of the published points" if shared is not None else ""
    yield Product(
        f"{name}_reducible",
        f"Losses of {name}{beside} less an irreducible loss E, over training FLOPs, log-log: E shared by all "
        "structures and E of each, moved by its standard error; where E is 0, nothing is subtracted.",
        both,
        lambda: Made(reducible_figure(tracked.analysis(name), theirs(), SOURCE, HOFFMANN)),
        name,
    )
    yield Product(
        f"{name}_exponents",
        f"Exponents of training FLOPs of {name}{beside} with 95 % intervals, under each view of the "
        "irreducible loss, with p of their equality and the difference that the runs could find.",
        both,
        lambda: Made(exponents_figure(tracked.analysis(name), theirs(), SOURCE, HOFFMANN)),
        name,
    )
    yield Product(
        f"{name}_residuals",
        f"Residuals in percent of the laws fitted to {name}, over training FLOPs and fitted loss, and their "
        "standardised values over normal quantiles.",
        (tracked.path(name),),
        lambda: _residuals(tracked.analysis(name)),
        name,
    )


def _comparable(path: Path, structures: list[str]) -> Runs | None:
    """The published points of the same structures, where at least two of these have an exponent."""
    shared = shared_structures(published_runs(path), structures)
    if shared is None:
        return None
    groups = {label: points(shared.table, label) for label in structures_of(shared.table)}
    return shared if len(usable(groups)) > 1 else None


def _residuals(analysis: Analysis) -> Made:
    laws = {POWER.name: analysis.power, IRREDUCIBLE.name: analysis.irreducible}
    return Made(residuals_figure(analysis.name, analysis.runs, laws))


def _published_residuals(path: Path) -> Made:
    runs, _ = read_table(path, needed=("params", "tokens", "val_loss"))
    # The figure shows no intervals, so there is no need of the bootstrap.
    found = fit_table(runs, KYO, CHINCHILLA, grouped=False, settings=Settings(interval="delta"))
    fits = {CHINCHILLA.name: {fit.group: fit for fit in found.fits}}
    return Made(residuals_figure("Published", runs, fits, KYO_SOURCE))
