"""What a report says: the answer, what would settle it, runs that are no data points, the whole page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_analysis_figures import fill_sweep
from test_products import command, lost_sweep

from analysis.analyse import analyse
from analysis.compare.slopes import SlopeTest
from analysis.compare.verdict import telling
from analysis.page.answer import answer, hypotheses
from analysis.page.gather import gather
from analysis.page.parts import Record, cost_table, losses, read_record, run_table
from analysis.page.render import render
from analysis.page.settle import settle
from analysis.products.tracked import Tracked
from analysis.runs.export import export
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs

pytestmark = pytest.mark.usefixtures("few_figures")


def planted(
    exponents: dict[str, float], noise: float, sizes: int = 6, seeds: int = 1, floor: float = 0.0
) -> Runs:
    """Runs of planted power laws, an exponent a structure, with a common irreducible loss."""
    rng = np.random.default_rng(1)
    rows = []
    for structure, alpha in exponents.items():
        for flops in np.geomspace(1e15, 1e19, sizes):
            for seed in range(1, seeds + 1):
                loss = floor + 3.0 * (flops / 1e17) ** -alpha
                rows.append(
                    {
                        "structure": structure, "seed": seed, "size": f"{flops:.0e}", "run_id": "",
                        "params": (flops / 120) ** 0.5, "tokens": 20 * (flops / 120) ** 0.5,
                        "train_flops": flops, "val_loss": loss * float(np.exp(noise * rng.normal())),
                        "seconds": flops / 1e12,
                    }
                )  # fmt: skip
    table = pd.DataFrame(rows)
    table["run_id"] = [f"r{i:03}" for i in range(len(table))]
    return Runs(table)


def test_a_planted_difference_is_a_yes_and_none_is_open() -> None:
    steeper = analyse(planted({"dense": 0.05, "lowrank-32": 0.08}, 0.001, seeds=3), "x").comparison
    found = answer(steeper, "dense")
    assert found.kind == "yes" and found.headline.startswith("lowrank-32 scales steeper than dense")
    flatter = analyse(planted({"dense": 0.08, "lowrank-32": 0.05}, 0.001, seeds=3), "x").comparison
    assert answer(flatter, "dense").kind == "no"
    equal = analyse(planted({"dense": 0.05, "lowrank-32": 0.05}, 0.01), "x").comparison
    assert answer(equal, "dense").kind == "open"
    few = analyse(planted({"dense": 0.05, "lowrank-32": 0.05}, 0.01, sizes=2), "x").comparison
    assert answer(few, "dense").kind == "none" and hypotheses(few) is None


def test_an_answer_that_hangs_on_the_irreducible_loss_says_so() -> None:
    runs = planted({"dense": 0.1, "lowrank-32": 0.1}, 0.002, sizes=8, seeds=2, floor=1.5)
    # The same law at another level: in log-log without E the slopes differ, with it they do not.
    table = runs.table.copy()
    low = table["structure"] == "lowrank-32"
    table.loc[low, "val_loss"] = 1.5 + 0.6 * (table.loc[low, "val_loss"] - 1.5)
    comparison = analyse(Runs(table), "x").comparison
    rejected = {t.hypothesis: t.rejected for t in comparison.tests if isinstance(t, SlopeTest)}
    assert rejected["none"] and not rejected["shared"]
    found = answer(comparison, "dense")
    # The curves bend, so the test without E does not count, and the others do not reject.
    assert found.kind == "open"


def bent(exponents: dict[str, float], noise: float) -> Runs:
    """Curves that bend downwards, so that no irreducible loss above 0 fits."""
    table = planted(exponents, noise, seeds=3).table
    table["val_loss"] *= np.exp(-0.0006 * np.log(table["train_flops"] / 1e15) ** 2)
    return Runs(table)


def test_where_no_errors_are_known_no_structure_of_several_is_named() -> None:
    several = analyse(bent({"dense": 0.05, "lowrank-63": 0.05, "lowrank-32": 0.08}, 0.001), "x").comparison
    shared = several.tests[1]
    assert isinstance(shared, SlopeTest) and shared.rejected and shared.error("dense") is None
    found = answer(several, "dense")
    assert found.kind == "mixed"
    assert "lowrank-32 scales steeper without an irreducible loss" in found.headline
    assert "not known, for E is at its bound 0" in found.headline and "every assumption" not in found.headline
    table = hypotheses(several)
    assert table is not None and "±" in table.rows[0][1].text and "±" not in table.rows[1][1].text
    two = analyse(bent({"dense": 0.05, "lowrank-32": 0.08}, 0.001), "x").comparison
    first, second = two.tests[:2]
    assert isinstance(second, SlopeTest) and second.rejected and second.error("dense") is None
    # Of two, rejected equality says which: no error is needed.
    assert "lowrank-32 scales steeper" in answer(two, "dense").headline
    assert isinstance(first, SlopeTest) and first.rejected


def test_an_answer_that_hangs_on_equal_noise_says_so() -> None:
    for seed in range(60):
        table = planted({"dense": 0.05, "lowrank-32": 0.052}, 0.0, seeds=3).table
        last = table["train_flops"] == table["train_flops"].max()
        sd = np.where(last, 0.03, 0.005)
        noise = np.random.default_rng(seed).standard_normal(len(table))
        runs = Runs(table.assign(val_loss=table["val_loss"] * np.exp(sd * noise)))
        comparison = analyse(runs, "x").comparison
        found = answer(comparison, "dense")
        doubtful = [test for test in telling(comparison.tests) if test.rejected and test.doubt]
        if doubtful and "steeper" in found.headline:
            break
    else:
        raise AssertionError("no such table in 60")
    assert found.kind == "mixed" and "This takes noise to be equal for all runs" in found.headline
    words = settle(found.kind, comparison, runs).words
    assert any("more seeds at every size would tell" in text for text in words)
    told = hypotheses(comparison)
    assert told is not None
    assert told.rows[0][-1].text.startswith("rejected, not confirmed where noise may be unequal; steepest")


def test_seeds_that_would_settle_it_make_the_difference_detectable() -> None:
    runs = planted({"dense": 0.05, "lowrank-32": 0.053}, 0.01)
    comparison = analyse(runs, "x").comparison
    found = settle(answer(comparison, "dense").kind, comparison, runs)
    assert found.options is not None
    plain = next(t for t in comparison.tests if isinstance(t, SlopeTest) and t.hypothesis == "none")
    wanted = max(plain.exponents.values()) - min(plain.exponents.values())
    row = next(r for r in found.options.rows if "seeds of every run" in r[1].text)
    seeds = re.match(r"(\d+) seeds", row[1].text)
    assert seeds is not None and row[2].sort == (int(seeds[1]) - 1) * 12
    assert isinstance(row[5].sort, float) and row[5].sort <= wanted < plain.detectable
    total = float(runs.table["train_flops"].sum())
    assert row[3].sort == pytest.approx((int(seeds[1]) - 1) * total)
    assert row[4].sort == pytest.approx((int(seeds[1]) - 1) * total / 1e12)
    assert any("no number of runs shows" in words for words in found.words)


def test_a_tiny_difference_is_not_promised() -> None:
    runs = planted({"dense": 0.05, "lowrank-32": 0.05}, 0.02)
    table = runs.table.copy()
    table["val_loss"] = 3.0 * (table["train_flops"] / 1e17) ** -0.05
    table.loc[::2, "val_loss"] *= 1.02
    comparison = analyse(Runs(table), "x").comparison
    found = settle("open", comparison, Runs(table))
    assert found.options is not None
    assert any("more than 64 seeds" in row[1].text for row in found.options.rows)


def test_lost_runs_stand_first_with_their_error_and_in_the_words(tmp_path: Path) -> None:
    lost_sweep(tmp_path)
    _, runs, paths = export("lowrank", tmp_path, tmp_path, None)
    said = losses(read_csv(paths[0]), [])
    assert [words.split(" (")[0] for words in said] == [
        "1 run missing", "1 run diverged", "1 run failed", "1 run corrupted",
    ]  # fmt: skip
    report = tmp_path / "reports" / "lowrank.html"
    table = run_table(runs, read_record(tmp_path, "lowrank"), report)
    states = [row[1].state for row in table.rows]
    assert states == ["corrupted", "failed", "diverged", "missing", *["done"] * 12]
    assert table.rows[1][1].text == "failed: MemoryError: 3 GiB wanted"
    assert table.rows[1][0].link == "../runs/failed00/" and table.rows[3][0].link == "#run-missing00"
    assert table.rows[2][3].text == "dense" and all(len(row) == len(table.header) for row in table.rows)
    # Without the folders, as in a clone: no link leads out of the page.
    elsewhere = run_table(runs, Record(), report)
    assert all(row[0].link.startswith("#run-") for row in elsewhere.rows)


def test_costs_add_up_and_unknown_time_is_a_dash() -> None:
    runs = planted({"dense": 0.05, "lowrank-32": 0.05}, 0.01)
    rows = cost_table(runs).rows
    assert [row[0].text for row in rows] == ["dense", "lowrank-32", "all"]
    sums = [row[2].sort for row in rows]
    assert isinstance(sums[0], float) and isinstance(sums[1], float)
    assert sums[2] == pytest.approx(sums[0] + sums[1])
    without = cost_table(Runs(runs.table.drop(columns="seconds")))
    assert [row[3].text for row in without.rows] == ["-", "-", "-"]


def test_the_page_of_a_sweep_with_lost_runs_comes_out_and_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost_sweep(tmp_path)
    monkeypatch.setenv("SCALING_RESULTS", str(tmp_path))
    assert command(monkeypatch, "report", "lowrank") == 0
    path = tmp_path / "reports" / "lowrank.html"
    assert capsys.readouterr().out.split() == [str(path)]
    first = path.read_bytes()
    text = first.decode()
    assert "MemoryError: 3 GiB wanted" in text and "12 of 16 runs" in text and "1 run failed" in text
    assert command(monkeypatch, "report", "lowrank") == 0
    assert path.read_bytes() == first


def test_a_figure_that_cannot_be_drawn_is_named_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analysis.errors import AnalysisError

    fill_sweep(tmp_path)
    export("lowrank", tmp_path, tmp_path, None)

    def fail(*_: object) -> None:
        raise AnalysisError("no such font")

    monkeypatch.setattr("analysis.products.sweeps.scaling_figure", fail)
    page, problems = gather(Tracked(tmp_path, None), "lowrank", Record(), tmp_path / "x.html")
    assert problems == ["lowrank_scaling: no such font"]
    assert any("no such font" in words for words in page.losses)
    assert "no such font" in render(page)


def test_level_structures_are_not_called_steeper_because_a_third_differs() -> None:
    runs = planted({"dense": 0.0600, "lowrank-63": 0.0500, "lowrank-32": 0.0601}, 0.0005, seeds=3)
    comparison = analyse(runs, "x").comparison
    tests = [t for t in comparison.tests if isinstance(t, SlopeTest)]
    assert tests[0].rejected
    found = answer(comparison, "dense")
    assert found.kind in ("no", "open") and "lowrank-32 scales" not in found.headline
    assert "lowrank-63" in found.headline or "steepest" in found.headline


def test_nothing_is_priced_or_called_detectable_where_the_runs_do_not_identify_the_floor() -> None:
    runs = planted({"dense": 0.05, "lowrank-32": 0.052}, 0.01)
    comparison = analyse(runs, "x").comparison
    bound = [t for t in comparison.tests if isinstance(t, SlopeTest) and t.caution]
    assert bound, "planted without a floor, E is at its bound"
    table = hypotheses(comparison)
    assert table is not None
    for test, row in zip(comparison.tests, table.rows, strict=True):
        assert isinstance(test, SlopeTest) and (row[3].text == "-") == (test.caution is not None)
    found = settle("open", comparison, runs)
    assert found.options is not None
    unpriced = [row for row in found.options.rows if "do not identify E" in row[1].text]
    assert len(unpriced) == len(bound) and all(row[3].text == "-" for row in unpriced)
