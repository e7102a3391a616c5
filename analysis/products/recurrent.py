"""Products of recurrent transformers: what is published of them, and the stages of our curriculum runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis import stages
from analysis.figures.recurrent import SOURCE, read_architectures, read_experiments, recurrent_figure
from analysis.figures.stages import stages_figure
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.stages import Published, StagedRun, read_stages, staged

COMPLEXITY, EXPERIMENTS = "kausik_complexity.csv", "kausik_experiments.csv"
COPIES = {"copy": "Copy", "selective-copy": "Selective copy"}
"""Corpora, by the first word of their label, and what the paper calls these tasks."""


def products(tracked: Tracked) -> Iterator[Product]:
    """The published numbers, where both of their files are there, and every table of curriculum runs."""
    yield from _published(tracked)
    for name in tracked.names:
        if staged(tracked.runs(name)):
            yield _stages(tracked, name)


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


def _stages(tracked: Tracked, name: str) -> Product:
    table, experiments = tracked.path(name), tracked.published(EXPERIMENTS)
    tasks = [task for task in COPIES if task in _tasks(tracked, name)]
    papers = experiments if tasks else None

    def make() -> Made:
        runs = read_stages(tracked.runs(name), str(table))
        theirs = [] if papers is None else _published_copies(papers, tasks)
        return stages_made(name, runs, theirs)

    shows = (
        f"Training time at which each sequence length was solved in the curriculum runs of {name}, over "
        "length, log-log, a line a run, and the time of each length alone; a length that was not solved is "
        "an empty mark."
    )
    return Product(f"{name}_stages", shows, (table, *([papers] if papers is not None else [])), make, name)


def _tasks(tracked: Tracked, name: str) -> set[str]:
    """The kinds of task of a table: the first words of its corpora."""
    table = tracked.runs(name).table
    corpora = table["corpus"] if "corpus" in table else ()
    return {str(corpus).partition(" ")[0] for corpus in corpora}


def _published_copies(path: Path, tasks: Sequence[str]) -> list[Published]:
    """What the paper reports of the copy tasks, 4,096 tokens of noise."""
    wanted = [COPIES[task] for task in tasks]
    return [
        Published(f"{one.task.lower()} (4,096 of noise)", one.model.lower(), one.params, one.accuracy, SOURCE)
        for one in read_experiments(path)
        if one.task in wanted and one.accuracy is not None
    ]


def stages_made(name: str, runs: Sequence[StagedRun], published: Sequence[Published]) -> Made:
    """Figure and tables of the stages of curriculum runs."""
    texts = {
        f"{name}_stages.md": stages.markdown(name, runs, published),
        f"{name}_stages.tex": stages.latex(name, runs, published),
        f"{name}_stages.csv": stages.to_csv(runs),
    }
    return Made(stages_figure(runs, published), texts)
