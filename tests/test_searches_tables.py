"""The tables of a study: trials that are read, best shapes, parity, growth of the optimum, trade-offs."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import numpy as np
import planted_study as planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.__main__ import main
from analysis.errors import AnalysisError
from analysis.isoflop.minima import Point, Sampled, fitted, sampled
from analysis.products.tracked import Tracked
from analysis.runs.export import export
from analysis.runs.loading import load
from analysis.searches.curves import rate_curves, valleys
from analysis.searches.optimum import contrasts, difference, growth
from analysis.searches.pareto import contests, non_dominated
from analysis.searches.parity import parity, verdict
from analysis.searches.report import best_texts, optimum_texts, pareto_texts, parity_texts
from analysis.searches.shapes import best_shapes
from analysis.searches.trials import read_study


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["analysis", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "finished"}, "state = 'finished' is none of"),
        ({"val_loss": ""}, "done has val_loss ''"),
        ({"val_loss": "nan"}, "val_loss = nan is not finite"),
        ({"val_loss": "-1"}, "done has val_loss '-1'"),
        ({"trial": "1.5"}, "trial = '1.5' is not a whole number"),
        ({"trial": "1"}, "has trial 1 twice"),
        ({"run_id": ""}, "run_id is empty"),
        ({"search.d_model": "wide"}, "search.d_model = 'wide' is not a number"),
        ({"search.d_model": "-1"}, "is below zero"),
        ({"kind": "depth"}, "kind is both"),
        ({"study": "other"}, "study is both"),
        ({"structure": "blockdense"}, "has several structures or budgets"),
    ],
)
def test_damaged_trials_are_one_line_with_place_and_remedy(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    rows = planted.width_rows(trials=3)
    rows[0] |= changes
    with pytest.raises(AnalysisError) as caught:
        planted.study(tmp_path, rows)
    assert words in str(caught.value) and "trials.csv" in str(caught.value)
    assert "python -m sweeps search" in str(caught.value)


@pytest.mark.parametrize("text", ["", "a,b\n", "study,kind\x00\n1,2\n", '"study', "\xff"])
def test_files_that_are_no_trials_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trials.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(AnalysisError):
        read_study(path)


def test_a_torn_last_line_and_a_foreign_importance_are_said(tmp_path: Path) -> None:
    path = planted.write(tmp_path, planted.width_rows(trials=3))
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(AnalysisError, match="cells under"):
        read_study(path)
    path.write_text(whole)
    beside = planted.importance(tmp_path, {"structure=nobody": {"d_model": 1.0}})
    with pytest.raises(AnalysisError, match="is of no cell"):
        read_study(path, beside)


def test_pruned_runs_are_no_data_and_repeats_count_once(tmp_path: Path) -> None:
    rows = planted.width_rows()
    for row in rows:
        if row["state"] == "pruned":
            row["val_loss"] = 0.5
    found = planted.study(tmp_path, rows)
    assert found.done == 68 and len(found.trials) == 80
    assert all(len({t.run_id for t in cell.done}) == len(cell.done) for cell in found.cells)
    assert min(best.shape.loss for best in best_shapes(found)) > 2
    assert "4 pruned, 4 diverged, 4 repeats, 4 known before" in found.coverage()


def test_a_run_with_two_losses_is_refused(tmp_path: Path) -> None:
    rows = planted.width_rows()
    next(row for row in rows if row["repeat"])["val_loss"] = 3.7
    with pytest.raises(AnalysisError, match="two losses"):
        planted.study(tmp_path, rows)


def test_neighbours_are_the_next_values_and_ties_are_said(tmp_path: Path) -> None:
    losses = {(32, 4): 3.05, (48, 4): 3.0, (64, 4): 3.008, (48, 2): 3.2, (96, 2): 3.3, (24, 3): 3.4}
    base = planted.width_rows(trials=1)[0]
    rows = [
        {**base, "trial": i, "run_id": f"r{i}", "search.d_model": w, "search.n_layers": n, "val_loss": loss}
        for i, ((w, n), loss) in enumerate(losses.items())
    ]
    best = best_shapes(planted.study(tmp_path, rows))[0]
    assert dict(best.shape.values) == {"d_model": 48, "n_layers": 4}
    beside = {(n.dimension, n.side): n for n in best.neighbours}
    assert dict(beside["d_model", "lower"].shape.values)["d_model"] == 32  # type: ignore[union-attr]
    higher = beside["d_model", "higher"].shape
    assert higher is not None and best.above(higher) == pytest.approx(0.008 / 0.012)
    assert best.ties == (higher,) and beside["n_layers", "higher"].shape is None
    lower = beside["n_layers", "lower"]
    assert dict(lower.shape.values) == {"d_model": 24, "n_layers": 3} and not lower.alone  # type: ignore[union-attr]
    text = best_texts(planted.study(tmp_path, rows))["w_best.md"]
    assert "1 tie within one standard error; edge: no higher n_layers has a loss" in text


def test_the_best_of_a_cell_is_none_of_which_a_seed_diverged(tmp_path: Path) -> None:
    base = planted.width_rows(trials=1)[0]
    rows = [
        {**base, "trial": 0, "run_id": "a", "val_loss": 2.0},
        {**base, "trial": 1, "run_id": "b", "seed": 2, "state": "diverged", "val_loss": ""},
        {**base, "trial": 2, "run_id": "c", "search.d_model": 96, "val_loss": 3.0},
    ]
    assert best_shapes(planted.study(tmp_path, rows))[0].shape.runs == ("c",)


def test_shapes_of_one_width_are_no_replicates(tmp_path: Path) -> None:
    points = [Point(w, f"n {n}", 3 + 0.1 * n + 0.001 * s) for w in (32, 64) for n in (2, 3) for s in (0, 1)]
    one = Sampled(**sampled([*points, Point(32, "n 1", None, state="diverged"), Point(32, "n 1", 2.0)]))
    assert one.losses == {32: (3.2, 3.201), 64: (3.2, 3.201)} and one.diverged == {32: 1}
    assert [shape.words for shape in one.others[32]] == ["n 3", "n 1"] and one.whole == [32, 64]


def test_pruned_widths_do_not_hide_an_edge() -> None:
    points = [Point(w, "", 3 - 0.01 * i) for i, w in enumerate((24, 32, 48, 64))]
    points.append(Point(96, "", None, state="pruned"))
    assert fitted([Sampled(**sampled(points))], "width", True)[0].reason == (
        "edge: at or above 64; those above were pruned"
    )


def test_planted_growth_is_in_its_interval_with_two_and_with_four_budgets(tmp_path: Path) -> None:
    for budgets, lines in (((2e12, 8e12), False), ((2e12, 4e12, 8e12, 1.6e13), True)):
        found = valleys(
            planted.study(tmp_path, planted.width_rows(budgets, growth={"dense": 0.2, "lowrank-32": 0.45}))
        )
        assert [v.structure for v in found] == ["dense"] * len(budgets) + ["lowrank-32"] * len(budgets)
        rates = growth(found)
        for one, planted_value in zip(rates, (0.2, 0.45), strict=True):
            assert not one.reason and one.low < one.exponent < one.high
            assert one.exponent == pytest.approx(planted_value, abs=0.08)
            assert (one.line is not None) == lines
        assert contrasts(rates)[0].difference == pytest.approx(0.25, abs=0.1)


def test_the_band_of_the_growth_is_the_lines_own_interval(tmp_path: Path) -> None:
    one = growth(
        valleys(planted.study(tmp_path, planted.width_rows((2e12, 4e12, 8e12), growth={"dense": 0.25})))
    )[0]
    assert one.line is not None
    middle, low, high = one.line.at(np.array([1e9, 1e16]))
    span = math.log(1e7)
    assert math.log(middle[1] / middle[0]) / span == pytest.approx(one.exponent)
    assert np.all(low < middle) and np.all(middle < high)
    # Far out the width of the band is that of the slope.
    far = one.line.at(np.array([1e90]))
    reach = math.log(far[2][0] / far[0][0]) / (math.log(1e90) - one.line.centre)
    assert reach == pytest.approx(one.high - one.exponent, rel=0.01)


def test_growth_that_is_not_identified_is_refused_with_its_reason(tmp_path: Path) -> None:
    one = growth(valleys(planted.study(tmp_path, planted.width_rows((2e12,)))))
    assert [g.reason for g in one] == ["one budget", "one budget"]
    assert "dense: one budget" in contrasts(one)[0].verdict
    edge = planted.width_rows((2e12, 4e12), growth={"dense": 0.25, "lowrank-32": 9.0})
    rates = growth(valleys(planted.study(tmp_path, edge)))
    assert "edge: at or" in rates[1].reason and math.isnan(rates[1].exponent)
    text = optimum_texts(planted.study(tmp_path, edge))["w_optimum.md"]
    assert "not identified: lowrank-32: 1 of 2 budgets has a minimum" in text


def test_intervals_of_a_difference_are_those_of_normal_errors_where_they_are_symmetric() -> None:
    low, high = difference(3.0, (1.0, 5.0), 1.0, (-0.5, 2.5))
    assert (low, high) == (2 - 2.5, 2 + 2.5)


def test_best_rates_are_planted_ones_and_parity_is_judged(tmp_path: Path) -> None:
    found = parity(planted.study(tmp_path, planted.rate_rows()))
    assert len(found) == 4
    for one in found:
        truth = 0.012 if one.cell.structure == "dense" else 0.02
        assert one.curve is not None and one.curve.low < truth < one.curve.high
        assert (one.trials, one.runs, one.lost) == (9, 9, {"diverged": 1})
    assert all(line.endswith(": parity: 9 distinct runs each") for line in verdict(found))
    rows = planted.rate_rows()
    rows.append({**rows[2], "trial": 9, "repeat": 1})
    assert verdict(parity(planted.study(tmp_path, rows))) == verdict(found)
    fewer = planted.rate_rows()[:-2]
    fewer += [{**fewer[-1], "trial": 20 + i, "repeat": 1} for i in range(2)]
    text = parity_texts(planted.study(tmp_path, fewer))["w_parity.md"]
    assert "cpu-s: no parity: distinct runs are dense 9, lowrank-32 7" in text
    assert "lowest of several noisy losses is optimistic" in text


def test_edges_of_rates_are_no_optima(tmp_path: Path) -> None:
    found = parity(planted.study(tmp_path, planted.rate_rows({"dense": 0.0005, "lowrank-32": 0.09})))
    assert {one.reason.rpartition(" ")[0] for one in found} == {
        "edge: at or below", "edge: runs diverge above",
    }  # fmt: skip


def test_batch_sizes_are_curves_of_their_own(tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "search.batch_tokens": batch,
            "trial": 9 * k + int(str(row["trial"])),
            "run_id": f"{row['run_id']}{k}",
        }
        for k, batch in enumerate((1024, 2048))
        for row in planted.rate_rows({"dense": 0.012})
    ]
    found = rate_curves(planted.study(tmp_path, rows))
    assert {c.structure for c in found} == {"dense, batch_tokens=1024", "dense, batch_tokens=2048"}
    assert len(found) == 4 and not any(c.selected for c in found)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    def beaten(p: tuple[float, float]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    assert sorted(non_dominated(points)) == [i for i, p in enumerate(points) if not beaten(p)]


def test_trade_offs_hold_every_structures_own_front(tmp_path: Path) -> None:
    study = planted.study(tmp_path, planted.pareto_rows())
    found = contests(study)
    assert [c.budget for c in found] == [2e12, 8e12]
    assert all(set(c.front) <= set(c.own) for c in found)
    assert {c.trials[i].structure for c in found for i in c.own} == {"dense", "lowrank-32"}
    rows = list(csv.DictReader(pareto_texts(study)["w_pareto.csv"].splitlines()))
    assert len(rows) == sum(len(c.own) for c in found)


def test_export_copies_checked_and_sorted_and_keeps_what_has_more(tmp_path: Path) -> None:
    rows = planted.width_rows()
    planted.write(tmp_path, list(reversed(rows)))
    planted.importance(tmp_path, {str(rows[0]["cell"]): {"d_model": 0.7, "n_layers": 0.3}})
    name, study, paths = export("w", tmp_path, tmp_path, None)
    assert (name, [path.name for path in paths]) == ("w", ["w_trials.csv", "w_importance.csv"])
    kept = paths[0].read_bytes()
    assert study == Tracked(tmp_path).study("w") and Tracked(tmp_path).names == ()
    planted.write(tmp_path, rows)
    export("w", tmp_path, tmp_path, None)
    assert paths[0].read_bytes() == kept
    planted.write(tmp_path, rows[:10])
    assert len(export("w", tmp_path, tmp_path, None)[1].trials) == 80  # type: ignore[union-attr]
    assert paths[0].read_bytes() == kept
    (tmp_path / "searches" / "w" / "importance.csv").unlink()
    assert len(export("w", tmp_path, tmp_path, None, True)[1].trials) == 10  # type: ignore[union-attr]
    assert Tracked(tmp_path).study("w").importance == ()
    (tmp_path / "searches" / "w" / "trials.csv").unlink()
    assert export("w", tmp_path, tmp_path, None)[2][0] == paths[0]


def test_a_study_has_no_laws_and_says_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    planted.write(tmp_path, planted.width_rows())
    with pytest.raises(AnalysisError, match="is a study of shapes, no sweep"):
        load("w", tmp_path, None)
    for word in ("fit", "report", "compare"):
        assert command(monkeypatch, word, "w", "--results", str(tmp_path)) == 2
        said = capsys.readouterr().err
        assert "--export-sweep FILE" in said and "Traceback" not in said
    record = tmp_path / "sweeps" / "x.json"
    record.parent.mkdir()
    record.write_text('{"run_ids": [], "study": {"kind": "width", "description": ""}}')
    with pytest.raises(AnalysisError, match="no trial of this study is over"):
        export("x", tmp_path, tmp_path, None)
