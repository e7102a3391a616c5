"""Precision promised and obtained: simulated sweeps that keep the plan, and those that do not."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_ladder import ladder

from analysis.__main__ import main
from analysis.analyse import analyse
from analysis.compare.slopes import SlopeTest
from analysis.design import promised_report as report
from analysis.design.planned import assume, grid_of, seed_noise
from analysis.design.precision import design
from analysis.design.promise import Promise, read, save
from analysis.design.promised import Promised, hold_to_it
from analysis.errors import AnalysisError
from analysis.laws import CHINCHILLA, IRREDUCIBLE, POWER, SumLaw
from analysis.products.catalogue import catalogue
from analysis.products.tracked import Tracked
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs, to_csv

NOISE = 0.004
ROOT = Path(__file__).parents[1]


def promise(folder: Path, noise: float = NOISE, laws: tuple[SumLaw, ...] = (POWER, IRREDUCIBLE)) -> Promise:
    """The ladder's runs as planned, saved and read back."""
    path = folder / "own_planned.csv"
    table = ladder().table.assign(val_loss=math.nan)
    designs = [
        design(assume(law, grid_of(table), None, {}, (noise, "as given")), grid_of(table)) for law in laws
    ]
    save(path, table, designs)
    return read(path)


def trained(plan: Promise, law: str, seed: int, noise: float = NOISE, **changed: float) -> Runs:
    """The planned runs with losses under the assumed law, or one with other values."""
    values = {**plan.assumed[law].values, **changed}
    dice = np.random.default_rng(seed)
    flops = plan.table["train_flops"].to_numpy(np.float64)
    clean = values.get("E", 0.0) + values["k"] * flops ** -values["alpha"]
    return Runs(plan.table.assign(val_loss=clean * np.exp(noise * dice.standard_normal(flops.size))))


def ratios(found: Promised, hypothesis: str) -> float:
    (view,) = (one for one in found.views if one.hypothesis == hypothesis)
    return float(np.mean([one.ratio for one in view.entries if one.ratio is not None]))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    plan = promise(tmp_path)
    assert plan.noise == NOISE and len(plan.table) == 45 and set(plan.assumed) == {"power", "irreducible"}
    assert plan.assumed["irreducible"].value("E") == 1.69
    with open(tmp_path / "own_planned.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not {"config", "val_loss", "state"} & set(rows[0])
    assert [float(row["train_flops"]) for row in rows] == list(ladder().table["train_flops"])


def test_a_promise_is_not_rewritten_in_silence(tmp_path: Path) -> None:
    promise(tmp_path)
    with pytest.raises(AnalysisError, match="a promise stands there already; --force replaces it"):
        promise(tmp_path)
    table = ladder().table
    with pytest.raises(AnalysisError, match="the runs have losses"):
        save(tmp_path / "other.csv", table, [])
    with pytest.raises(AnalysisError, match="a promise is of laws in FLOPs"):
        promise(tmp_path / "elsewhere", laws=(CHINCHILLA,))


def test_sweeps_with_the_noise_and_the_law_of_the_plan_obtain_what_was_promised(tmp_path: Path) -> None:
    plan = promise(tmp_path)
    plain = [ratios(hold_to_it(plan, trained(plan, "power", s), "own"), "none") for s in range(8)]
    assert np.mean(plain) == pytest.approx(1, abs=0.08)
    bent = [hold_to_it(plan, trained(plan, "irreducible", s), "own") for s in range(8)]
    # The fitted E differs from sweep to sweep, and the error of alpha with it: the means lie near 1.
    assert np.mean([ratios(one, "shared") for one in bent]) == pytest.approx(1, abs=0.15)
    assert np.mean([ratios(one, "separate") for one in bent]) == pytest.approx(1, abs=0.2)


def test_the_parts_multiply_and_name_what_changed(tmp_path: Path) -> None:
    plan = promise(tmp_path)
    whole = hold_to_it(plan, trained(plan, "power", 1, noise=2 * NOISE), "own")
    third = trained(plan, "power", 1)
    two_seeds = Runs(third.table[third.table["seed"] != 13].reset_index(drop=True))
    fewer = hold_to_it(plan, two_seeds, "own")
    for view in (*whole.views, *fewer.views):
        for one in view.entries:
            if one.ratio is None:
                continue
            parts = one.factors
            assert one.ratio == pytest.approx(math.prod(p for p in parts if p is not None), rel=1e-9)
    noise = [one.factors[2] for one in whole.views[0].entries]
    assert whole.replicates is not None
    assert noise == pytest.approx([noise[0]] * len(noise)) and 1.6 < noise[0] < 2.4
    assert whole.replicates.low > NOISE and "beyond its own error" in report.markdown(whole)
    # Without E the errors of a structure go as one over the root of the runs, whatever the law.
    for one in fewer.views[0].entries:
        assert one.factors[0] == pytest.approx(math.sqrt(3 / 2)) and one.factors[1] == pytest.approx(1)
    assert (fewer.planned, fewer.finished, fewer.unplanned) == (45, 30, 0)


def test_a_law_other_than_assumed_is_told_as_such(tmp_path: Path) -> None:
    plan = promise(tmp_path)
    found = hold_to_it(plan, trained(plan, "irreducible", 2, alpha=0.25, E=2.8302, k=900.0), "own")
    shared = found.views[1]
    laws = [one.factors[1] for one in shared.entries if one.factors[1] is not None]
    assert len(laws) == 5 and max(abs(value - 1) for value in laws) > 0.1
    assert shared.fitted["E"] == pytest.approx(2.83, abs=0.3)
    assert "E 1.69 assumed" in report.markdown(found)
    # A law without E misses the bend, which is no noise of the seeds.
    none = found.views[0]
    assert none.lack is not None and none.lack[2] < 0.001 and none.residual_sd is not None
    assert found.replicates is not None and none.residual_sd > 1.3 * found.replicates.sd


def test_what_was_obtained_is_what_the_verdict_says(tmp_path: Path) -> None:
    plan = promise(tmp_path)
    runs = trained(plan, "irreducible", 3)
    found = hold_to_it(plan, runs, "own")
    tests = {t.hypothesis: t for t in analyse(runs, "own").comparison.tests if isinstance(t, SlopeTest)}
    for view in found.views:
        test = tests[view.hypothesis]
        errors = {one.what: one.obtained for one in view.entries}
        for structure, error in test.standard_errors.items():
            assert errors[f"alpha[{structure}]"] == pytest.approx(error, rel=1e-6)
        limits = [one.detectable for one in view.entries if one.detectable is not None]
        # Theirs is of the worst pair, of which dense need not be one.
        assert len(limits) == 2 and max(limits) <= test.detectable * (1 + 1e-9)
        assert view.residual_sd == test.residual_sd
    assert found.replicates is not None
    assert found.replicates.sd == pytest.approx(seed_noise(runs, "own")[0], rel=1e-9)


def test_where_e_is_at_its_bound_nothing_is_held_against_the_promise(tmp_path: Path) -> None:
    # A curve that bends downwards has no E above 0.
    plan = promise(tmp_path)
    flops = plan.table["train_flops"].to_numpy(np.float64)
    bent = np.exp(1.5 - 0.05 * np.log(flops / 1e19) - 0.004 * np.log(flops / 1e19) ** 2)
    dice = np.random.default_rng(0)
    runs = Runs(plan.table.assign(val_loss=bent * np.exp(NOISE * dice.standard_normal(flops.size))))
    found = hold_to_it(plan, runs, "own")
    none, shared, separate = found.views
    assert all(one.obtained is not None for one in none.entries)
    for view in (shared, separate):
        assert view.caution is not None and "bound 0" in view.caution
        assert {one.obtained for one in view.entries} == {one.detectable for one in view.entries} == {None}
        assert all(one.promised is not None and one.factors[0] == pytest.approx(1) for one in view.entries)
    text = report.markdown(found)
    assert text.count("no standard errors are known to hold the promise against") == 2
    for made in (report.latex, report.to_csv, report.to_json):
        assert made(found)


def test_runs_are_met_by_structure_seed_and_flops(tmp_path: Path) -> None:
    plan = promise(tmp_path)
    runs = trained(plan, "power", 4)
    other = runs.table.assign(run_id=["x" + name for name in runs.table["run_id"]])
    more = other.assign(seed=other["seed"] + 100, run_id=["y" + name for name in other["run_id"]]).iloc[:5]
    strange = other.assign(structure="wide", run_id=["z" + name for name in other["run_id"]]).iloc[:5]
    found = hold_to_it(plan, Runs(pd.concat([other, more, strange], ignore_index=True)), "own")
    assert (found.planned, found.finished, found.renamed, found.unplanned) == (45, 45, 45, 5)
    text = report.markdown(found)
    assert "45 of them under another run id" in text and "Not planned, and left out: wide." in text
    with pytest.raises(AnalysisError, match="no finished run of a planned structure"):
        hold_to_it(plan, Runs(strange), "own")


def test_a_law_that_was_not_planned_for_and_a_single_structure(tmp_path: Path) -> None:
    plan = promise(tmp_path, laws=(POWER,))
    runs = trained(plan, "power", 5)
    found = hold_to_it(plan, runs, "own")
    assert found.views[1].not_promised == "the plan did not ask for this law"
    assert "nothing was promised" in report.markdown(found)
    alone = hold_to_it(plan, Runs(runs.table[runs.table["structure"] == "dense"]), "own")
    assert all(view.refused for view in alone.views) and "nothing to compare" in report.markdown(alone)
    for made in (report.latex, report.to_csv, report.to_json):
        assert made(found) and made(alone)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",noise,", ",sound,", "no column 'noise'"),
        ("0.004", "zero", "cannot be read"),
        ("0.004", "-1", "cannot be read"),
        ('{""power""', '{""power', "cannot be read"),
        ('""alpha"": 0.055', '""alpha"": -1', "alpha of power is not above 0"),
        ('{""power""', '{""chinchilla""', None),
    ],
)
def test_a_damaged_promise_is_one_line(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    promise(tmp_path)
    path = tmp_path / "own_planned.csv"
    path.write_text(path.read_text().replace(old, new))
    if words is None:
        assert set(read(path).assumed) == {"irreducible"}
        return
    with pytest.raises(AnalysisError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_one_promise_is_one(tmp_path: Path) -> None:
    promise(tmp_path)
    path = tmp_path / "own_planned.csv"
    head, first, rest = path.read_text().split("\n", 2)
    path.write_text("\n".join([head, first.replace("0.004", "0.005"), rest]))
    with pytest.raises(AnalysisError, match="several values of 'noise'"):
        read(path)


def test_it_is_a_product_where_both_tables_are(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    plan = promise(tables)
    assert not [one for one in catalogue(Tracked(tmp_path, None)) if one.name.endswith("_promised")]
    (tables / "own_runs.csv").write_text(to_csv(trained(plan, "power", 6)))
    (made,) = (one for one in catalogue(Tracked(tmp_path, None)) if one.name == "own_promised")
    assert [path.name for path in made.inputs] == ["own_runs.csv", "own_planned.csv"]
    texts = made.make().texts
    assert set(texts) == {f"own_promised.{ending}" for ending in ("md", "tex", "json", "csv")}
    assert json.loads(texts["own_promised.json"])["planned"] == 45


def test_the_study_s_promise_is_that_of_its_plan() -> None:
    plan = read(ROOT / "results" / "tables" / "study_planned.csv")
    pilot = read_csv(ROOT / "results" / "study" / "pilot_used.csv")
    assert plan.noise == seed_noise(pilot, "pilot")[0] and plan.date == "2026-11-22"
    found = design(plan.assumed["power"], plan.grid).differences["none"]
    assert isinstance(found, tuple)
    # As the plan has it: 0.0012 and 0.0035.
    assert max(one.standard_error for one in found) == pytest.approx(0.0012, abs=5e-5)
    assert max(one.detectable for one in found) == pytest.approx(0.0035, abs=5e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--save", "plan.txt"), "must be named .csv"),
        (("--force",), "--force: is for --save"),
        (("--save", "plan.csv", "--law", "chinchilla"), "laws in FLOPs"),
    ],
)
def test_mistakes_of_design_save_are_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    table = ladder().table
    table["tokens"] = table["tokens"] * (1 + table["seed"] % 3)
    table.drop(columns=["val_loss", "val_loss_se", "val_entropy"]).to_csv("own.csv", index=False)
    monkeypatch.setattr(sys, "argv", ["analysis", "design", "own.csv", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and said in error
