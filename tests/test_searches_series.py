"""Studies with further axes: settings are series of their own, seeds are replicates, gaps are no slopes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import planted_study as planted
import pytest
from test_figures_arms import all_words

from analysis.figures.learning_rates import learning_rates_figure
from analysis.figures.pareto import pareto_figure
from analysis.figures.search_history import search_history_figure
from analysis.figures.valley import valley_figure
from analysis.isoflop.minima import Point, Sampled, best_shape, fitted, sampled
from analysis.searches.curves import rate_curves, valleys
from analysis.searches.optimum import contrasts, growth
from analysis.searches.pareto import contests
from analysis.searches.parity import parity, verdict
from analysis.searches.report import best_texts, optimum_texts, parity_texts, unequal
from analysis.searches.series import chosen, seedless, variants
from analysis.searches.shapes import best_shapes
from analysis.searches.trials import Study


def axis(rows: list[planted.Row], added: str, shift: float, mark: str) -> list[planted.Row]:
    """The same searches at another value of an axis, their losses shifted."""
    return [
        {
            **row,
            "cell": f"{row['cell']} {added}",
            "run_id": f"{row['run_id']}{mark}",
            "val_loss": row["val_loss"] and float(str(row["val_loss"])) + shift,
        }
        for row in rows
    ]


def with_decay(root: Path, kind: str = "width") -> Study:
    rows = planted.pareto_rows() if kind == "pareto" else planted.width_rows()
    arms = [
        axis(rows, f"optim.weight_decay={value}", 0.2 * i, f"w{i}") for i, value in enumerate(("0", "0.1"))
    ]
    return planted.study(root, [row for arm in arms for row in arm])


def with_seeds(root: Path, rows: list[planted.Row]) -> Study:
    both = [
        {**row, "seed": i + 1} for i in range(2) for row in axis(rows, f"seed={i + 1}", 0.004 * i, f"s{i}")
    ]
    return planted.study(root, both)


def test_labels_are_read_with_their_tables() -> None:
    label = "structure={kind=lowrank, rank=32} seed=1 data.name=a b budget.tokens=2e6"
    assert chosen(label) == {
        "structure": "{kind=lowrank, rank=32}", "seed": "1", "data.name": "a b", "budget.tokens": "2e6",
    }  # fmt: skip
    assert seedless("seed=1") == "all" == seedless("all") and "seed" not in seedless(label)


def test_names_are_short_unless_two_settings_share_them() -> None:
    labels = ["a.rate=1 b.rate=1 c.one=1", "a.rate=1 b.rate=2 c.one=1", "a.rate=2 b.rate=1 c.one=1"]
    assert [word for word, _ in variants(labels, "width").values()] == [
        "a.rate=1, b.rate=1", "a.rate=1, b.rate=2", "a.rate=2, b.rate=1",
    ]  # fmt: skip


def test_values_of_a_further_axis_are_series_of_their_own(tmp_path: Path) -> None:
    study = with_decay(tmp_path)
    found = valleys(study)
    names = [f"{s}, weight_decay={w}" for s in ("dense", "lowrank-32") for w in ("0", "0.1")]
    assert [v.structure for v in found] == [name for name in names for _ in range(2)]
    alone = valleys(planted.study(tmp_path / "x", planted.width_rows()))
    # A constant shift of the loss leaves the arm at zero as it was alone.
    assert [v.losses for v in found if v.structure.endswith("=0")] == [v.losses for v in alone]
    rates = growth(found)
    assert [(g.structure, g.usable, g.budgets, g.reason) for g in rates] == [(n, 2, 2, "") for n in names]
    assert {(c.structure, c.reference) for c in contrasts(rates)} == {
        (names[1], names[0]), (names[2], names[0]), (names[3], names[1]),
    }  # fmt: skip
    assert all(name in optimum_texts(study)["w_optimum.md"] for name in names)


@pytest.mark.slow
def test_figures_name_the_series(tmp_path: Path) -> None:
    study = with_decay(tmp_path)
    for figure in (search_history_figure(study), valley_figure(valleys(study), "w")):
        words = all_words(figure)
        assert all(cell.structure in words for cell in study.cells)
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1


def test_trade_offs_keep_arms_apart(tmp_path: Path) -> None:
    found = contests(with_decay(tmp_path, "pareto"))
    assert len(found) == 2 and len({trial.structure for trial in found[0].trials}) == 4
    assert "weight_decay=0.1" in all_words(pareto_figure(found, "decode_ms", "w"))


def test_an_axis_of_one_value_adds_nothing(tmp_path: Path) -> None:
    rows = axis(planted.width_rows(), "optim.weight_decay=0.1", 0.0, "")
    assert {cell.structure for cell in planted.study(tmp_path, rows).cells} == {"dense", "lowrank-32"}


def test_seeds_are_replicates_of_one_search(tmp_path: Path) -> None:
    rows = planted.width_rows()
    study = with_seeds(tmp_path, rows)
    assert len(study.cells) == 8 and len({study.title(cell) for cell in study.cells}) == 8
    found, alone = valleys(study), valleys(planted.study(tmp_path / "x", rows))
    assert [(v.structure, v.losses.keys()) for v in found] == [(v.structure, v.losses.keys()) for v in alone]
    for both, one in zip(found, alone, strict=True):
        for width in both.losses:
            assert len(both.losses[width]) == 2
            assert both.mean(width) == pytest.approx(one.mean(width) + 0.002)
    assert [len(best.shape.runs) for best in best_shapes(study)] == [2] * 4
    assert "differ in their seed alone are one" in best_texts(study)["w_best.md"]
    rates = with_seeds(tmp_path / "lr", planted.rate_rows())
    assert len(rate_curves(rates)) == 4 and {one.runs for one in parity(rates)} == {18}


def test_rates_at_two_token_budgets_are_not_held_against_each_other(tmp_path: Path) -> None:
    rows = [
        {**row, "kind": "lr", "tokens": tokens, "budget_flops": ""}
        for tokens in (9e6, 2e7)
        for row in axis(planted.rate_rows(), f"budget.tokens={tokens:g}", -tokens / 1e8, f"t{tokens:g}")
    ]
    study = planted.study(tmp_path, rows)
    places = [f"{size}, tokens={tokens:g}" for size in ("cpu-xs", "cpu-s") for tokens in (9e6, 2e7)]
    found = rate_curves(study)
    assert [(c.size, c.structure) for c in found] == [(p, s) for p in places for s in ("dense", "lowrank-32")]
    assert [line.rpartition(": parity")[0] for line in verdict(parity(study))] == places
    words = all_words(learning_rates_figure(found, "w"))
    assert all(place in words for place in places)
    assert "cpu-s, tokens=2e+07" in parity_texts(study)["w_parity.csv"]


def test_widths_of_equal_parameters_at_two_token_budgets_are_two_series(tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "kind": "width-params",
            "params": row["budget_flops"],
            "cell": str(row["cell"]).replace("budget.train_flops", "params"),
        }
        for i in range(2)
        for row in axis(planted.width_rows(), f"budget.tokens={i + 1}e6", 0.0, f"t{i}")
    ]
    found = valleys(planted.study(tmp_path, rows))
    assert len({v.structure for v in found}) == 4 and all(v.unit == "parameters" for v in found)
    assert all(g.budgets == 2 for g in growth(found))


@pytest.mark.parametrize("kind", ["lr", "width-params"])
def test_flops_of_kinds_that_hold_none_fixed_are_not_read(tmp_path: Path, kind: str) -> None:
    rows = planted.rate_rows() if kind == "lr" else planted.width_rows()
    rows = [{**row, "kind": kind, "budget_flops": i % 3 or ""} for i, row in enumerate(rows)]
    assert all(math.isnan(cell.budget) for cell in planted.study(tmp_path, rows).cells)


def test_three_valleys_at_two_budgets_are_no_three_budgets(tmp_path: Path) -> None:
    found = valleys(planted.study(tmp_path, planted.width_rows(growth={"dense": 0.25})))
    assert growth([*found, found[1]])[0].reason == "3 valleys at 2 budgets"
    assert growth([found[0], found[0]])[0].budgets == 1


def test_unequal_numbers_of_runs_are_said_with_the_numbers(tmp_path: Path) -> None:
    rows = planted.width_rows()
    assert unequal(planted.study(tmp_path, rows)) == []
    text = best_texts(planted.study(tmp_path, rows))["w_best.md"]
    assert text.count("| 19 (17)") == 4
    said = unequal(planted.study(tmp_path, rows[:-4]))
    assert len(said) == 1 and "dense, 8.00e+12 FLOPs 19 (17 done), lowrank-32" in said[0]
    assert "15 (15 done)" in said[0] and "2.00e+12" not in said[0]


@pytest.mark.parametrize("name", ["n_layers", "rank"])
def test_one_is_no_edge_of_what_cannot_be_less(tmp_path: Path, name: str) -> None:
    base = planted.width_rows(trials=1)[0]
    rows = [
        {**base, "trial": i, "run_id": f"r{i}", f"search.{name}": value, "val_loss": 3 + i * 0.1}
        for i, value in enumerate((1, 2, 4))
    ]
    assert not [edge for edge in best_shapes(planted.study(tmp_path, rows))[0].edges if name in edge]
    for row, value in zip(rows, (2, 3, 4), strict=True):
        row[f"search.{name}"] = value
    assert f"no lower {name} has a loss" in best_shapes(planted.study(tmp_path, rows))[0].edges


def test_the_best_shape_is_none_of_which_a_run_diverged() -> None:
    points = [
        Point(48, "n 2", 2.0), Point(48, "n 2", None, state="diverged"),
        Point(48, "n 3", 2.5), Point(64, "n 3", 2.6), Point(64, "n 2", 2.7),
        Point(96, "n 4", 2.45), Point(96, "n 4", 2.9),
    ]  # fmt: skip
    assert best_shape(points) == "n 3"
    assert best_shape([Point(8, "", None, state="pruned"), Point(9, "", None, state="diverged")]) is None


def curve(
    missing: tuple[float, ...] = (), state: str = "done", best: float = 64.0
) -> tuple[list[Point], Sampled]:
    widths = (24, 32, 40, 48, 64, 80, 96, 128)
    points = []
    for width in widths:
        loss = 3 * math.exp(0.07 * np.log(width / best) ** 2)
        if width not in missing:
            points.append(Point(width, "n 2", loss))
        elif state != "done":
            points.append(Point(width, "n 2", None, state=state))
        points.append(Point(width, "n 3", loss + 0.2))
    return points, fitted([Sampled(**sampled(points, best_shape(points)))], "width", True)[0]


def test_no_parabola_steps_over_a_width_of_other_shapes() -> None:
    _, whole = curve()
    assert not whole.reason and whole.optimum == pytest.approx(64, rel=1e-6)
    _, short = curve(missing=(32.0,))
    assert not short.reason and short.fit is not None and math.exp(short.fit.low) == pytest.approx(40)
    for missing, words in (
        ((80.0,), "lowest at 64; at 80 only other shapes were tried"),
        ((48.0, 80.0), "lowest at 64; at 48, 80 only other shapes were tried"),
        ((40.0, 96.0), "lowest at 64; too few widths about it; at 40, 96 only other shapes were tried"),
        ((80.0, 96.0, 128.0), "edge: at or above 64; at 80, 96, 128 only other shapes were tried"),
    ):
        _, found = curve(missing)
        assert found.reason == words and math.isnan(found.optimum)
        assert set(found.apart) == set(missing) and not set(missing) & set(found.shapes)
    _, pruned = curve((80.0,), "pruned")
    assert pruned.reason == "lowest at 64; at 80 only other shapes have a loss"


def test_a_parabola_holds_the_neighbours_of_its_lowest_width() -> None:
    losses = {24: 3.6, 32: 3.3, 40: 3.0, 48: 3.02, 56: 3.03, 64: 3.04, 80: 3.06, 96: 3.08}
    found = fitted([Sampled(**sampled([Point(w, "", loss) for w, loss in losses.items()]))], "width", True)[0]
    assert "diverge" not in found.reason and found.fit is not None
    assert math.exp(found.fit.low) == pytest.approx(32)


def test_sizes_given_by_width_and_depth_and_what_goes_with_them_are_no_series() -> None:
    labels = [
        f"structure={structure} model.d_model={d} model.n_layers={n} optim.batch_tokens={b} seed={seed}"
        for structure in ("dense", "lowrank-32")
        for d, n, b in ((20, 2, 256), (36, 3, 384))
        for seed in (1, 2)
    ]
    assert set(variants(labels, "lr").values()) == {("", "")}
    decays = [f"{label} optim.weight_decay={w}" for label in labels for w in (0, 0.1)]
    assert {word for word, _ in variants(decays, "lr").values()} == {"weight_decay=0", "weight_decay=0.1"}
