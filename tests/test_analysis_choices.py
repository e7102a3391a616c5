"""What hangs on a choice, comparisons over seconds, and the cost of a family of sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import planted_study as planted
import pytest

from analysis.analyse import compared, over_seconds
from analysis.compare.choices import choices, choices_texts
from analysis.compare.report import compare_report, markdown
from analysis.design.planned import assume, grid_of
from analysis.design.precision import design
from analysis.design.promise import save
from analysis.laws import IRREDUCIBLE, POWER
from analysis.products.catalogue import catalogue
from analysis.products.tracked import Tracked
from analysis.runs.cost import cost_texts, costs
from analysis.runs.table import Runs, from_rows

SIZES, SEEDS = (1, 2, 4, 8), (1, 2, 3)


def ladder(tilt: float = 0.0, noise: float = 0.002, slow: float = 2.0) -> Runs:
    """Two structures of one law; `tilt` raises the smallest size's loss of the second, `slow` its time."""
    rng = np.random.default_rng(1)
    rows = []
    for structure in ("dense", "lowrank-32"):
        for size in SIZES:
            for seed in SEEDS:
                flops = 1e12 * size**2 * (0.8 if structure != "dense" else 1.0)
                loss = float(30 * flops**-0.08 * np.exp(noise * rng.standard_normal()))
                seconds = flops / 1e10 * (slow if structure != "dense" else 1)
                if structure != "dense" and size == 1:
                    loss *= 1 + tilt
                rows.append({
                    "run_id": f"{structure}-{size}-{seed}", "state": "done", "size": f"s{size}",
                    "structure": structure, "seed": str(seed), "params": str(1000 * size),
                    "tokens": str(20_000 * size), "train_flops": repr(flops), "val_loss": repr(loss),
                    "flops_6N": repr(0.9 * flops), "seconds": repr(seconds),
                    "device": "cpu", "attempts": "2" if seed == 3 else "1",
                })  # fmt: skip
    return from_rows(rows, [row["run_id"] for row in rows], "planted")


def test_an_answer_that_one_size_carries_is_seen() -> None:
    found = {choice.name: choice for choice in choices(ladder(tilt=0.05))}
    assert list(found) == ["all runs", "without s1", "FLOPs as 6 N D", "wall seconds"]
    p = {name: choice.test("none").p_value for name, choice in found.items()}  # type: ignore[union-attr]
    assert max(p["all runs"], p["FLOPs as 6 N D"], p["wall seconds"]) < 0.01 and p["without s1"] > 0.05
    assert found["without s1"].runs == 18


def test_the_runs_first_planned_are_a_choice_where_others_were_added() -> None:
    runs = ladder()
    first = runs.table[runs.table["seed"] < 3]
    assert {c.name: c.runs for c in choices(runs, first)}["the runs first planned"] == 16
    assert "the runs first planned" not in [c.name for c in choices(runs, runs.table)]
    text = choices_texts(choices(runs, first), runs, "w")
    rows = [[cell.strip() for cell in line.split("|")] for line in text["w_choices.md"].splitlines()]
    assert ["the runs first planned", "16"] in [row[1:3] for row in rows]
    assert len(json.loads(text["w_choices.json"])["choices"]) == 5


def test_time_multipliers_are_those_of_the_seconds() -> None:
    """Of equal slopes, 0.8 of the FLOPs at twice the time each: 1 / 1.6 of the FLOPs' law in seconds."""
    runs = ladder(noise=1e-4)
    curves, surfaces, seconds = compared(runs)
    report = compare_report(runs, "w", curves, surfaces, seconds, "x", "dense", None, 0)
    by = {(one.variable, one.law): one for one in report.savings}
    compute = [m.value for m in by["train_flops", "L = k C^-alpha"].ratios]
    time = [m.value for m in by["seconds", "L = k t^-alpha"].ratios]
    assert compute == pytest.approx([1.0] * 5, abs=0.02) and time == pytest.approx([0.5] * 5, abs=0.02)
    text = markdown(report)
    assert "## Time multipliers under L = k t^-alpha" in text and "at equal wall seconds" in text


@pytest.mark.parametrize(
    "change", [{"device": ["cpu", "cuda"] * 12}, {"seconds": [float("nan")] + [1.0] * 23}]
)
def test_seconds_that_are_no_common_measure_are_not_compared(change: dict[str, list[Any]]) -> None:
    runs = ladder()
    changed = Runs(runs.table.assign(**change))
    assert over_seconds(changed) is None and compared(changed)[2] is None
    assert "wall seconds" not in [choice.name for choice in choices(changed)]


def test_cost_counts_a_run_once_and_adds_up(tmp_path: Path) -> None:
    runs = ladder()
    part = Runs(runs.table.iloc[:6].reset_index(drop=True), diverged=("x",), failed=("y", "z"))
    study = planted.study(tmp_path, planted.rate_rows())
    found = costs({"a": runs, "a-b": part, "a-lr": study})
    assert [(c.runs, c.new, c.further, c.diverged, c.lost) for c in found] == [
        (24, 24, 8, 0, 0), (9, 0, 0, 1, 2), (36, 36, None, 4, 0)
    ]  # fmt: skip
    assert found[0].flops == pytest.approx(runs.table["train_flops"].sum())
    total = json.loads(cost_texts(found, "a")["a_cost.json"])["all"]
    assert (total["new"], total["further"], total["lost"]) == (60, None, 2)
    holes = Runs(runs.table.assign(attempts=["", *["2"] * 23]))
    assert costs({"a": holes})[0].further is None


def test_a_family_of_tables_has_its_cost_and_seeds_their_products(tmp_path: Path) -> None:
    from analysis.runs.table import to_csv

    (tmp_path / "tables").mkdir()
    for name in ("w", "w-a", "w-b", "other"):
        (tmp_path / "tables" / f"{name}_runs.csv").write_text(to_csv(ladder()))
    first = ladder().table[ladder().table["seed"] < 3].reset_index(drop=True)
    grid = grid_of(first)
    designs = [design(assume(law, grid, None, {}, (0.002, "x")), grid) for law in (POWER, IRREDUCIBLE)]
    save(tmp_path / "tables" / "w_planned.csv", first.assign(val_loss=float("nan")), designs)
    products = {product.name: product for product in catalogue(Tracked(tmp_path, None))}
    assert "w_cost" in products and "other_cost" not in products
    assert {"w_compare", "w_choices", "w_seconds"} <= products.keys()
    for name in ("w_compare", "w_choices", "w_seconds", "w_cost"):
        made = products[name].make()
        assert made.texts or made.figure is not None
    assert "the runs first planned" in products["w_choices"].make().texts["w_choices.md"]


def test_one_seed_gives_the_comparison_alone(tmp_path: Path) -> None:
    from analysis.runs.table import to_csv

    runs = ladder()
    table: pd.DataFrame = runs.table[runs.table["seed"] == 1].reset_index(drop=True)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "w_runs.csv").write_text(to_csv(Runs(table)))
    names = {product.name for product in catalogue(Tracked(tmp_path, None))}
    assert "w_compare" in names and not {"w_choices", "w_seconds"} & names
