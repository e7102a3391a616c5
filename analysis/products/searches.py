"""Figures and tables of studies of shapes, from their tracked trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from analysis.arms.rates import RATE, enough_rates
from analysis.figures.learning_rates import learning_rates_figure
from analysis.figures.pareto import pareto_figure
from analysis.figures.search_history import search_history_figure
from analysis.figures.valley import valley_figure
from analysis.isoflop.widths import has_valley as has_runs_valley
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.searches import report
from analysis.searches.curves import has_rates, has_valley, rate_curves, valleys
from analysis.searches.pareto import contests, second_name
from analysis.searches.transfer import widths_searched
from analysis.searches.trials import Study


def products(tracked: Tracked) -> Iterator[Product]:
    """What every study gives: its history and best shapes, and the figures and tables of its kind."""
    for name in tracked.studies:
        study = tracked.study(name)
        trials, importance = tracked.trials(name), tracked.importance(name)
        yield _history(study, (trials, *([importance] if importance is not None else [])))
        yield from _of_kind(study, trials, *_taken(tracked, name))
        yield from _tables(study, trials)


def _history(study: Study, inputs: tuple[Path, ...]) -> Product:
    shows = (
        "Held-out loss of every trial over the number of runs, a panel a cell, with the best so far as a "
        "step line; repeats, pruned and diverged runs are marked. Beside it how much of the variance of the "
        "loss each searched dimension explains."
    )
    return Product(
        f"{study.name}_search", shows, inputs, lambda: Made(search_history_figure(study)), study.name
    )


def _taken(tracked: Tracked, name: str) -> tuple[bool, bool]:
    """Whether a runs table of the study's name has a valley, and curves over learning rates, of its own."""
    if name not in tracked.names or tracked.runs(name).table.empty:
        return False, False
    runs = tracked.runs(name)
    return has_runs_valley(runs), enough_rates(runs)


def _of_kind(study: Study, trials: Path, valley: bool, rates: bool) -> Iterator[Product]:
    name = study.name
    if study.kind != "lr" and has_valley(study):
        yield Product(
            f"{name}_trials_valley" if valley else f"{name}_valley",
            "Held-out loss over width at each budget, a panel a structure and a colour a budget: the lowest "
            "of the shapes tried at each width, the others faint, and the minimum of the fitted parabola; in "
            "the last panel the best width over the budget, with the fitted line where it is identified.",
            (trials,),
            lambda: Made(valley_figure(valleys(study), name, _lost(study))),
            name,
        )
    if study.kind == "lr" and has_rates(study):
        yield Product(
            f"{name}_trials_learning_rates" if rates else f"{name}_learning_rates",
            "Held-out loss above each structure's best over the peak learning rates that were searched, a "
            "panel a size, with the rates at which runs diverged; beside it the best rate of each structure, "
            "with its interval where there is one.",
            (trials,),
            lambda: Made(learning_rates_figure(rate_curves(study), name, _lost(study))),
            name,
        )
    second = second_name(study)
    if second and contests(study):
        yield Product(
            f"{name}_pareto",
            f"Held-out loss against {second} of every run, a panel a budget: the runs that no other of "
            "their structure beats in both joined by a step line, the others faint.",
            (trials,),
            lambda: Made(
                pareto_figure(contests(study), second, name, _lost(study)), report.pareto_texts(study)
            ),
            name,
        )


def _tables(study: Study, trials: Path) -> Iterator[Product]:
    def table(what: str, shows: str, texts: Callable[[Study], report.Texts]) -> Product:
        return Product(f"{study.name}_{what}", shows, (trials,), lambda: Made(texts=texts(study)), study.name)

    yield table("best", "Best shape of each cell, its neighbours and ties as a table", report.best_texts)
    if study.kind == "lr" and any(RATE in cell.dimensions for cell in study.cells):
        yield table(
            "parity", "Best learning rate by structure and size, and trials of each as a table",
            report.parity_texts,
        )  # fmt: skip
        if widths_searched(study) > 1:
            yield table("transfer", "Learning rates of other sizes by rule as a table", report.transfer_texts)
    if study.kind != "lr" and has_valley(study):
        yield table(
            "optimum", "Best width by structure and budget, and its growth as a table", report.optimum_texts
        )


def _lost(study: Study) -> str:
    """How many runs have no loss, in words; empty where all have one."""
    words = [f"{len(ids)} {state}" for state, ids in study.run_ids().items() if state != "done" and ids]
    return f"{', '.join(words)} of {sum(len(ids) for ids in study.run_ids().values())} runs" if words else ""
