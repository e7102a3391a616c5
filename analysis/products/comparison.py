"""Products that compare the structures of a table: the report, what hangs on a choice, time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from analysis.analyse import Analysis, analyse, compared, design_words, known_floor, over_seconds
from analysis.arms.matched import matched, matched_texts
from analysis.compare.choices import choices, choices_texts
from analysis.compare.report import compare_report, latex, markdown, to_json
from analysis.compare.slopes import usable
from analysis.design.promise import read
from analysis.errors import AnalysisError
from analysis.figures.published import FILE, published_runs
from analysis.figures.scaling import seconds_figure
from analysis.products.laws import HOFFMANN_E
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.runs.table import Runs
from analysis.runs.variants import isoflop_sets

PLANNED = "_planned.csv"
LADDER = ("dense", "lowrank-63", "lowrank-32")
"""The structures of which all four published sizes have a loss."""


def products(tracked: Tracked) -> Iterator[Product]:
    """Comparisons of every table with two curves, choices and time where there are seeds; the published."""
    for name in tracked.names:
        runs = tracked.runs(name)
        if runs.table.empty or _isoflop(runs):
            # Losses of one budget differ by size, which tests over FLOPs would take for noise.
            continue
        if len(usable(compared(runs)[0])) > 1:
            yield from _of_sweep(tracked, name)
    path = tracked.published(FILE)
    if path is not None:
        yield Product(
            "published_compare",
            "Nested fits, tests, multipliers and gaps of the twelve published points of dense and low-rank "
            "networks (arXiv 2406.16450, figure 1) as tables",
            (path,), lambda: _report(_ladder(path), "published", HOFFMANN_E),
        )  # fmt: skip


def _isoflop(runs: Runs) -> bool:
    """Whether the runs are IsoFLOP sets, of which a law in FLOPs alone says nothing."""
    table = runs.table
    if "size" not in table or bool(table["train_flops"].isna().any()):
        return False
    named = list(zip(table["structure"].astype(str), table["size"].astype(str), strict=True))
    return isoflop_sets(named, table["train_flops"].to_list()) is not None


def _ladder(path: Path) -> Runs:
    """The published points of the structures that have all sizes."""
    runs = published_runs(path)
    kept = runs.table["structure"].isin(LADDER)
    return replace(runs, table=runs.table[kept].reset_index(drop=True))


def _report(runs: Runs, name: str, irreducible: float | None) -> Made:
    """The report of `analysis compare`, without permutations, which take minutes; the command has them."""
    inputs, known = compared(runs), known_floor(runs.table, irreducible)
    report = compare_report(runs, name, *inputs, design_words(runs.table), None, known, 0)
    texts = {"md": markdown(report), "tex": latex(report), "json": to_json(report)}
    return Made(texts={f"{name}_compare.{ending}": text for ending, text in texts.items()})


def _of_sweep(tracked: Tracked, name: str) -> Iterator[Product]:
    runs, path = tracked.runs(name), (tracked.path(name),)
    yield Product(
        f"{name}_compare",
        f"Nested fits, tests, multipliers of compute, tokens and time, and gaps of {name} as tables",
        path, lambda: _report(runs, name, None), name,
    )  # fmt: skip
    if runs.table["seed"].nunique() < 2:
        return
    planned = tracked.table(f"{name}{PLANNED}")

    def others() -> Made:
        first = None if planned is None else read(planned).table
        return Made(texts=choices_texts(choices(runs, first), runs, name))

    yield Product(
        f"{name}_choices",
        f"Equal slopes of {name} without its smallest size, by other FLOPs and over time as a table",
        (*path, *([planned] if planned is not None else [])), others, name,
    )  # fmt: skip
    yield from _matched(runs, name, path)
    timed = over_seconds(runs)
    # A single run's time is too uncertain, on machines that others use as well.
    if timed is not None:
        yield Product(
            f"{name}_seconds",
            f"Held-out loss of {name} over training FLOPs and over the wall seconds that the runs took, "
            "log-log, with power laws and 95 % bands.",
            path, lambda: Made(_over_time(tracked.analysis(name), timed)), name,
        )  # fmt: skip


def _matched(runs: Runs, name: str, path: tuple[Path, ...]) -> Iterator[Product]:
    """Gaps to dense at equal FLOPs, where a structure has them at three sizes."""
    try:
        found = matched(runs, name)
    except AnalysisError:
        # Not asked for: a table without a dense ladder has none.
        return
    yield Product(
        f"{name}_matched",
        f"Gaps to dense of {name} at equal training FLOPs, read between the dense runs, as tables",
        path, lambda: Made(texts=matched_texts(found, runs, name)), name,
    )  # fmt: skip


def _over_time(ours: Analysis, timed: Runs) -> Figure:
    """The figure over FLOPs and seconds, with what the runs trained on."""
    table = timed.table
    device = str(table["device"].iloc[0]) if "device" in table else ""
    return seconds_figure(ours, analyse(timed, "Time"), device)
