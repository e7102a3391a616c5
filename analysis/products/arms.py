"""Figures of training treatments, gaps over size, shapes and learning rates, from tables that allow them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from analysis.arms import trend_report
from analysis.arms.rates import curves, enough_rates
from analysis.arms.trend import Trends, trend
from analysis.errors import AnalysisError
from analysis.figures import published as papers
from analysis.figures.learning_rates import learning_rates_figure
from analysis.figures.spending import Bubble, both_ways, bubbles, spending_figure
from analysis.figures.trend import trend_figure
from analysis.figures.valley import valley_figure
from analysis.figures.wide import wide_figure
from analysis.isoflop.widths import has_valley, valleys
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.runs.table import Runs
from analysis.runs.treatments import FIXED_FLOPS, MORE_TOKENS, PLAIN
from analysis.wide import Network, own_networks, published_networks, wide_texts

DECODE = Path("bench", "decode.csv")
TABLE_2 = "structuredffn_table2_wide_gqa.csv"
GUIDED = "structuredffn_selfguided.csv"
GUIDED_SOURCE = (
    "arXiv 2406.16450, other text and tokens than ours: compare orders, not levels; one run each; xl "
    "unguided and dense m to xl printed, the rest digitised (\N{PLUS-MINUS SIGN}0.05)"
)
ARMS = {"Dense": PLAIN, "no guidance": PLAIN, "self-guided": FIXED_FLOPS, "more tokens": MORE_TOKENS}


def products(tracked: Tracked) -> Iterator[Product]:
    """Every figure of arms that the tracked tables allow."""
    yield from _wide(tracked)
    for name in tracked.names:
        runs = tracked.runs(name)
        if runs.table.empty:
            continue
        if both_ways(runs):
            yield _spending(tracked, name)
        found = trend_worth_drawing(runs, name)
        if found is not None:
            yield _trend(tracked, name, found)
        if enough_rates(runs):
            yield _learning_rates(tracked, name)
        if has_valley(runs):
            yield _valley(tracked, name)


def trend_worth_drawing(runs: Runs, name: str) -> Trends | None:
    """The gaps to dense over size of a table that has a slope; None where it has none.

    None also where a size has several token budgets: over FLOPs those are no ladder of sizes.
    """
    try:
        found = trend(runs, name)
    except AnalysisError:
        # Not asked for: a table without dense runs, or of fewer than three sizes, has none.
        return None
    return found if found.ladder else None


def trend_made(found: Trends) -> Made:
    """Figure and tables of gaps to dense over size."""
    texts = {
        f"{found.name}_trend.md": trend_report.markdown(found),
        f"{found.name}_trend.tex": trend_report.latex(found),
        f"{found.name}_trend.json": trend_report.to_json(found),
        f"{found.name}_trend.csv": trend_report.to_csv(found),
    }
    return Made(trend_figure(found), texts)


def _trend(tracked: Tracked, name: str, found: Trends) -> Product:
    shows = (
        f"Loss of each structure of {name} over that of the dense run of its size, tokens and seed, in per "
        "cent, over the dense run's training FLOPs, with fitted lines and 95 % bands; beside it the change "
        "per decade of FLOPs, with 95 % intervals and p."
    )
    return Product(f"{name}_trend", shows, (tracked.path(name),), lambda: trend_made(found), name)


def _learning_rates(tracked: Tracked, name: str) -> Product:
    def make() -> Made:
        runs = tracked.runs(name)
        return Made(learning_rates_figure(curves(runs), name, _coverage(runs)))

    shows = (
        "Held-out loss above each structure's best over the peak learning rate, a panel a size, with the "
        "rates at which runs diverged; beside it the best rate of each structure, with its interval where "
        "there is one."
    )
    return Product(f"{name}_learning_rates", shows, (tracked.path(name),), make, name)


def _valley(tracked: Tracked, name: str) -> Product:
    def make() -> Made:
        runs = tracked.runs(name)
        return Made(valley_figure(valleys(runs), name, _coverage(runs)))

    shows = (
        "Held-out loss over width at fixed training FLOPs, a panel a structure and a colour a budget, with "
        "the minimum of the fitted parabola; in the last panel the best width over training FLOPs."
    )
    return Product(f"{name}_valley", shows, (tracked.path(name),), make, name)


def _wide(tracked: Tracked) -> Iterator[Product]:
    """A comparison for each table of wide networks, or of the published numbers alone where there is none."""
    theirs, decode = tracked.published(TABLE_2), tracked.table(str(DECODE))
    names = [name for name in tracked.names if _is_wide(name) and not tracked.runs(name).table.empty]
    shows = (
        "Perplexity against generated tokens a second of the transformer, its grouped-query form, and wide "
        "and structured networks at equal training FLOPs; where our own were trained, by how much their "
        "perplexity lies over the transformer's, paired by seed."
    )
    for name in names or [""] * (theirs is not None):
        ours = (tracked.path(name), *((decode,) if decode else ())) if name else ()
        stem = f"{name or 'published'}_networks"
        inputs = (*ours, *((theirs,) if theirs else ()))
        yield Product(stem, shows, inputs, partial(_made, tracked, name, stem), name)


def _is_wide(name: str) -> bool:
    return name == "wide" or name.startswith("wide-")


def networks(tracked: Tracked, name: str) -> tuple[list[Network], list[str]]:
    """The published networks and those of a table of wide ones (none for an empty name), and notes on these.

    Raises:
        AnalysisError: a table cannot be read.
    """
    theirs = tracked.published(TABLE_2)
    found = published_networks(theirs) if theirs is not None else []
    if not name:
        return found, []
    ours, notes = own_networks(tracked.runs(name), name, tracked.table(str(DECODE)))
    return found + ours, notes


def _made(tracked: Tracked, name: str, stem: str) -> Made:
    found, notes = networks(tracked, name)
    missing = [note for note in notes if " runs" in note and not note.startswith("tokens/s")]
    return Made(wide_figure(found, name, "; ".join(missing)), wide_texts(found, notes, stem))


def _coverage(runs: Runs) -> str:
    """What is missing of a table, in words; empty where nothing is."""
    return runs.coverage() if runs.expected > len(runs.table) else ""


def _spending(tracked: Tracked, name: str) -> Product:
    theirs, sizes = tracked.published(GUIDED), tracked.published(papers.FILE)
    both = (theirs, sizes) if theirs is not None and sizes is not None else ()

    def make() -> Made:
        runs = tracked.runs(name)
        ours = bubbles(runs, name)
        # The papers say nothing of other structures.
        shared = "lowrank-32" in {b.structure for b in ours}
        published = published_bubbles(*both) if both and shared else []
        return Made(spending_figure(ours, name, _coverage(runs), published, GUIDED_SOURCE))

    shows = (
        "Held-out perplexity over distinct training tokens, bubbles of the area of the networks' parameters: "
        "what the FLOPs that a structure saves come to when spent on self-guided training or on more tokens, "
        "against dense at equal FLOPs."
    )
    return Product(f"{name}_spending", shows, (tracked.path(name), *both), make, name)


def published_bubbles(path: Path, sizes: Path) -> list[Bubble]:
    """The papers' low-rank networks of 32 %: dense, unguided, guided and on more tokens, at four sizes.

    Args:
        path: `structuredffn_selfguided.csv`; rows that are statements of the text are left out.
        sizes: `structuredffn_table9_v1_table6_v2.csv`, which has the parameters.

    Raises:
        AnalysisError: a file is not what the repository tracks.
    """
    try:
        with open(sizes, newline="", encoding="utf-8") as file:
            params = {
                (row["size"], row["structure"], row["ffn_budget"]): 1e6 * float(row["params_total_M"])
                for row in csv.DictReader(file)
            }
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [b for row in rows if (b := _bubble(row, params)) is not None]
    except (OSError, KeyError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); check the file out again") from None


def _bubble(row: dict[str, str], params: dict[tuple[str, str, str], float]) -> Bubble | None:
    setting = row["setting"]
    treatment = next((arm for words, arm in ARMS.items() if words in setting), None)
    if treatment is None or not (setting == "Dense" or setting.startswith("LowRank 32%")):
        return None
    dense = setting == "Dense"
    ratio = re.search(r"guided ratio ([\d.]+)", row["detail"])
    tokens = 1e9 * float(row["unique_tokens_B"])
    return Bubble(
        size=row["size"],
        structure="dense" if dense else "lowrank-32",
        treatment=treatment,
        tokens=tokens,
        seen=tokens * (1 + float(ratio[1])) if ratio else tokens,
        losses=(math.log(float(row["ppl_or_statement"])),),
        params=params[(row["size"], "Dense", "100%") if dense else (row["size"], "LowRank", "32%")],
        flops=float(row["training_flops"]),
    )
