"""Figures of a study: what is drawn is what its trials say, lost runs and unidentified growth included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import planted_study as planted
import pytest
from matplotlib.figure import Figure
from test_figures_arms import all_words, table, texts, width_rows

from analysis.figures.learning_rates import learning_rates_figure
from analysis.figures.pareto import pareto_figure
from analysis.figures.search_history import search_history_figure
from analysis.figures.style import hovers, save
from analysis.figures.valley import valley_figure
from analysis.isoflop.widths import valleys as runs_valleys
from analysis.products.catalogue import catalogue, of_table
from analysis.products.draw import draw_table
from analysis.products.searches import products
from analysis.products.tracked import Tracked
from analysis.runs.export import export
from analysis.searches.curves import rate_curves, valleys
from analysis.searches.pareto import contests


def points(figure: Figure, start: str) -> list[tuple[float, float]]:
    found = []
    for line, told in hovers(figure):
        xy = np.stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)], axis=1)
        found += [
            (x, y) for (x, y), text in zip(xy.tolist(), told.texts, strict=True) if text.startswith(start)
        ]
    return found


def test_every_trial_stands_in_the_history_with_its_state(tmp_path: Path) -> None:
    study = planted.study(tmp_path, planted.width_rows())
    figure = search_history_figure(study)
    told = texts(figure)
    assert len(told) == len(study.trials)
    for words in ("; pruned after 25 % of the run", "; diverged", "; repeat", "; known before"):
        assert sum(words in text for text in told) == 4
    cell = study.cells[0]
    drawn = points(figure, f"{cell.label}, trial ")
    assert {t.loss for t in cell.done} <= {y for _, y in drawn}
    # A repeat costs no run.
    assert max(x for x, _ in drawn) == len(cell.distinct)
    assert "4 pruned" in all_words(figure) and "repeat, at no cost" in all_words(figure)


def test_importances_are_bars_of_their_length(tmp_path: Path) -> None:
    rows = planted.width_rows()
    planted.importance(tmp_path, {str(rows[0]["cell"]): {"d_model": 0.7, "n_layers": 0.3}})
    figure = search_history_figure(planted.study(tmp_path, rows))
    widths = sorted(
        p.get_width() for axes in figure.axes for p in axes.patches if abs(p.get_height() - 0.3) < 1e-9
    )
    assert widths == pytest.approx([0.3, 0.7]) and "not known" in all_words(figure)


@pytest.mark.parametrize("state", ["done", "pruned", "diverged", "failed"])
def test_one_trial_is_drawn_whatever_became_of_it(tmp_path: Path, state: str) -> None:
    row = planted.width_rows(trials=1)[0] | {"state": state}
    planted.write(tmp_path, [row if state == "done" else {**row, "val_loss": "", "val_loss_se": ""}])
    export("w", tmp_path, tmp_path, None)
    made = {product.name: product.make() for product in products(Tracked(tmp_path))}
    assert sorted(made) == ["w_best", "w_search"]
    figure = made["w_search"].figure
    assert figure is not None and len(texts(figure)) == 1


def test_a_valley_of_trials_is_the_lower_envelope_and_says_so(tmp_path: Path) -> None:
    study = planted.study(tmp_path, planted.width_rows())
    found = valleys(study)
    figure = valley_figure(found, "w", "x")
    lowest: dict[float, float] = {}
    for trial in study.cells[0].done:
        width = dict(trial.searched)["d_model"]
        lowest[width] = min(trial.loss, lowest.get(width, 9.0))
    first = next(line for line, told in hovers(figure) if told.texts[0].startswith("dense: loss"))
    assert dict(zip(first.get_xdata(), first.get_ydata(), strict=True)) == pytest.approx(lowest)
    words = all_words(figure)
    assert "optimistic by about the noise" in words and "other shapes of a width" in words
    assert "two budgets: no band" in words and "1/3" in words
    drawn = sum(len(told.runs) for _, told in hovers(figure) if told.runs)
    assert drawn == len({t.run_id for t in study.trials if t.state == "done"})


def test_the_fitted_growth_has_a_band_and_an_unknown_one_is_said(tmp_path: Path) -> None:
    figure = valley_figure(valleys(planted.study(tmp_path, planted.width_rows((2e12, 4e12, 8e12)))), "w")
    assert len(figure.axes[2].collections) >= 2 and "no band" not in all_words(figure)
    alone = valley_figure(valleys(planted.study(tmp_path, planted.width_rows((2e12,)))), "w")
    assert "dense: not identified; lowrank-32: not identified" in all_words(alone)


def test_shapes_of_one_width_in_a_runs_table_are_no_seeds(tmp_path: Path) -> None:
    rows = width_rows()
    deeper = [
        {**row, "params": 2 * int(str(row["params"])), "val_loss": float(str(row["val_loss"])) + 0.3}
        for row in rows
        if row["state"] == "done" and row["d_model"] != 144
    ]
    found = runs_valleys(table(tmp_path / "x.csv", [*rows, *deeper]))
    bare = runs_valleys(table(tmp_path / "y.csv", rows))
    assert [v.losses for v in found] == [v.losses for v in bare]
    assert all(v.selected for v in found) and "optimistic" in all_words(valley_figure(found, "x"))


def test_rates_and_trade_offs_are_those_of_the_trials(tmp_path: Path) -> None:
    rates = planted.study(tmp_path, planted.rate_rows())
    figure = learning_rates_figure(rate_curves(rates), "w")
    assert sum("above its best" in text for text in texts(figure)) == rates.done
    trade = planted.study(tmp_path, planted.pareto_rows())
    figure = pareto_figure(contests(trade), "decode_ms", "w")
    known = {(t.numbers["second"], t.loss) for t in trade.trials if t.state == "done"}
    assert set(points(figure, "")) == known
    assert "Decode latency (ms per token)" in all_words(figure)


@pytest.mark.slow
def test_figures_of_a_study_are_drawn_on_record_and_repeat(tmp_path: Path) -> None:
    rows = planted.width_rows(trials=10)
    planted.write(tmp_path, rows)
    outcome = draw_table("w", tmp_path, tmp_path, None, False)
    assert not outcome.problems
    names = {path.name for path in outcome.paths}
    assert {"w_search.svg", "w_valley.svg", "w_best.md", "w_optimum.tex", "w_trials.csv"} <= names
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    ids = {entry["file"]: entry["run_ids"] for entry in manifest["tables"].values()}["tables/w_trials.csv"]
    assert set(ids["done"]) == {str(row["run_id"]) for row in rows}
    before = {path: path.read_bytes() for path in outcome.paths}
    for path in outcome.paths:
        if path.parent.name == "figures":
            path.unlink()
    draw_table("w", tmp_path, tmp_path, None, False)
    assert {path: path.read_bytes() for path in before} == before


def test_a_runs_table_of_the_same_name_keeps_its_valley(tmp_path: Path) -> None:
    planted.write(tmp_path, planted.width_rows())
    export("w", tmp_path, tmp_path, None)
    table(tmp_path / "tables" / "w_runs.csv", width_rows(seeds=1))
    tracked = Tracked(tmp_path)
    names = [product.name for product in of_table(catalogue(tracked), tracked, "w")]
    assert len(names) == len(set(names)) and {"w_valley", "w_trials_valley", "w_search"} <= set(names)


def test_a_damaged_study_leaves_the_others_alone(tmp_path: Path) -> None:
    planted.write(tmp_path, planted.width_rows())
    export("w", tmp_path, tmp_path, None)
    (tmp_path / "tables" / "bad_trials.csv").write_text("study\n")
    tracked = Tracked(tmp_path)
    assert tracked.studies == ("w",) and "bad_trials.csv" in tracked.problems[0]


@pytest.mark.slow
def test_saved_bytes_repeat(tmp_path: Path) -> None:
    trade = planted.study(tmp_path, planted.pareto_rows())
    made = [
        {
            p.name: p.read_bytes()
            for p in save(pareto_figure(contests(trade), "ffn_ms", "w"), tmp_path / f / "x")
        }
        for f in ("a", "b")
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("width-params", ("Parameters", "Width d_model")), ("tokens", ("Tokens per parameter",))],
)
def test_other_kinds_have_valleys_over_what_they_search(
    tmp_path: Path, kind: str, words: tuple[str, ...]
) -> None:
    rows = []
    for row in planted.width_rows():
        row |= {"kind": kind}
        if kind == "tokens":
            row |= {"search.tokens_per_param": row["search.d_model"], "search.d_model": ""}
        else:
            # Parameters are held fixed here, and the two budgets stand for two counts of them.
            row |= {"params": row["budget_flops"], "budget_flops": ""}
        rows.append(row)
    columns = (*planted.COLUMNS, "search.tokens_per_param")
    planted.write(tmp_path, rows, columns=columns)
    export("w", tmp_path, tmp_path, None)
    figure = next(p for p in products(Tracked(tmp_path)) if p.name == "w_valley").make().figure
    assert figure is not None and all(word in all_words(figure) for word in words)
    assert any("best" in text and "95 % interval" in text for text in texts(figure))
