"""The figure of recurrent transformers, from what is published of them; our own runs have none yet."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.figures.recurrent import read_architectures, read_experiments, recurrent_figure
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked

COMPLEXITY, EXPERIMENTS = "kausik_complexity.csv", "kausik_experiments.csv"


def products(tracked: Tracked) -> Iterator[Product]:
    """The published numbers, where both of their files are there."""
    yield from _published(tracked)


def _published(tracked: Tracked) -> Iterator[Product]:
    complexity, experiments = tracked.published(COMPLEXITY), tracked.published(EXPERIMENTS)
    if complexity is None or experiments is None:
        return

    def make() -> Made:
        return Made(recurrent_figure(read_architectures(complexity), read_experiments(experiments)))

    shows = (
        "Forward FLOPs per sample over sequence length of a regular, a recurrent and a block-recurrent "
        "transformer, by the paper's formulas and by our count; below, its printed losses and accuracies."
    )
    yield Product("published_recurrent", shows, (complexity, experiments), make)
