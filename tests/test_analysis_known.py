"""Fits judged against a known irreducible loss: planted ladders, a law that bends, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_ladder import ALPHA, BUDGETS, STRUCTURES, E, flattening, ladder, one_power
from scipy.optimize import curve_fit
from scipy.stats import binom

from analysis.__main__ import main
from analysis.analyse import points
from analysis.arrays import Array
from analysis.errors import AnalysisError
from analysis.figures.known import known_figure
from analysis.figures.style import hovers
from analysis.fit import Fit, Settings, fit_law
from analysis.known import report
from analysis.known.judged import binomial, judge, why_not
from analysis.known.refits import BEND, REPLICATES, refit
from analysis.products.catalogue import catalogue
from analysis.products.tracked import Tracked
from analysis.runs.table import Runs, to_csv

ROOT = Path(__file__).parents[1]
ALONE = {"dense": 1.0}


def test_intervals_of_planted_ladders_hold_the_truth_as_often_as_they_say() -> None:
    held = dict.fromkeys(("seed", "all"), 0)
    of = dict.fromkeys(held, 0)
    for seed in range(16):
        found = judge(ladder(seed, structures=ALONE), "planted")
        for one in found.shares():
            held[one.kind] += one.held
            of[one.kind] += one.of + one.without
    assert of == {"seed": 48, "all": 16}
    for kind, count in held.items():
        # 95 % is meant: below these counts a true 95 % falls once in two hundred times.
        assert count >= int(binom.ppf(0.005, of[kind], 0.95)), (kind, held)


def test_a_law_that_bends_misses_above_and_says_why() -> None:
    found = judge(ladder(1, excess=flattening), "bent")
    one_seed, all_seeds, shared = found.shares()
    assert (one_seed.of, all_seeds.of, shared.of) == (9, 3, 1)
    assert all_seeds.held == shared.held == 0 and one_seed.held <= 2
    for one in (*found.of("all"), *found.of("shared")):
        assert one.side == "above" and one.lack is not None
        assert one.lack.kind == REPLICATES and one.lack.p_value < 1e-4
        assert all(e.bias is not None and e.bias > 0.1 for e in one.exponents)
    means = found.middle_steps()
    # The planted local exponent, 0.235 - 0.05 x, at the middles of the steps of log FLOPs.
    logs = np.log(BUDGETS / BUDGETS[2])
    assert means == pytest.approx(0.235 - 0.05 * (logs[1:] + logs[:-1]) / 2, abs=0.03)
    text = report.markdown(found)
    assert "Why less than nine in ten" in text and "a fitted E takes the flattening for a floor" in text
    assert "of them" not in report.reason(found) and " 0 below" in report.reason(found)


def test_one_power_is_not_called_bent() -> None:
    found = judge(ladder(1), "planted")
    assert report.SHARED_TEXT in report.markdown(found)
    assert "Why less than nine in ten" not in report.markdown(found)
    assert "no trend beyond the spread of seeds" in report.steps_words(found)


def test_e_held_is_the_least_squares_fit_of_the_other_two() -> None:
    runs = ladder(3, structures=ALONE)
    flops, loss = points(runs.table, "dense")
    one = refit("all", "dense", None, flops, loss, ["dense"] * loss.size, E)

    def law(x: Array, level: float, alpha: float) -> Array:
        return np.asarray(np.log(E + np.exp(level - alpha * x)))

    x = np.log(flops / BUDGETS[2])
    best, covariance = curve_fit(law, x, np.log(loss), p0=(0.0, 0.3))
    given, ends = one.exponents[0].given, one.exponents[0].given_interval
    assert given == pytest.approx(best[1], rel=1e-6) and ends is not None
    # 13 degrees of freedom: t is 2.1604.
    assert (ends[1] - ends[0]) / 2 == pytest.approx(2.160369 * math.sqrt(covariance[1, 1]), rel=1e-4)


def test_without_noise_everything_is_the_truth() -> None:
    found = judge(ladder(noise=0.0), "exact")
    for one in found.refits:
        assert one.value == pytest.approx(E, rel=1e-6)
        for exponent in one.exponents:
            assert exponent.given == pytest.approx(ALPHA, rel=1e-8)
            assert exponent.fitted == pytest.approx(ALPHA, rel=1e-5)
    assert all(step.exponent == pytest.approx(ALPHA, rel=1e-9) for step in found.steps)
    report.markdown(found)


def test_errors_of_local_exponents_are_their_spread_over_ladders() -> None:
    values, errors = [], []
    for seed in range(40):
        # The last step has the least excess, and so the largest error.
        runs = ladder(seed, structures=ALONE)
        step = judge_steps(runs)[-1]
        values.append(step[0])
        errors.append(step[1])
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)
    assert np.mean(values) == pytest.approx(ALPHA, abs=0.01)


def judge_steps(runs: Runs) -> list[tuple[float, float]]:
    from analysis.known.judged import _steps

    return [(one.exponent, one.error or math.nan) for one in _steps(runs.table, ["dense"], E)]


def test_the_bend_test_rejects_a_twentieth_of_straight_ladders() -> None:
    from analysis.known.refits import _bent

    dice, labels = np.random.default_rng(0), np.array(["dense"] * 5, dtype=object)
    rejected = 0
    for _ in range(600):
        loss = (E + one_power(BUDGETS, "dense")) * np.exp(0.004 * dice.standard_normal(5))
        found = _bent(BUDGETS, loss, labels, E)
        assert found is not None and found.kind == BEND and found.dof == (1, 2)
        rejected += found.rejected
    assert 12 <= rejected <= 52


@pytest.mark.parametrize(("held", "of"), [(0, 5), (5, 5), (9, 10), (12, 15)])
def test_the_interval_of_a_share_has_a_fortieth_in_either_tail(held: int, of: int) -> None:
    ends = binomial(held, of)
    assert ends is not None
    low, high = ends
    assert low <= held / of <= high
    assert held == 0 or binom.sf(held - 1, of, low) == pytest.approx(0.025)
    assert held == of or binom.cdf(held, of, high) == pytest.approx(0.025)
    assert binomial(0, 0) is None


def test_refusals_stand_in_the_table_and_count_as_no_interval() -> None:
    runs = ladder(2)
    table = runs.table
    few = (table["structure"] != "lowrank-32") | (table["train_flops"] < 2e11)
    few &= ~((table["structure"] == "lowrank-63") & (table["seed"] == 12) & (table["train_flops"] > 3e11))
    found = judge(Runs(table[few].reset_index(drop=True)), "holes")
    none = [one for one in found.refits if one.interval is None]
    assert [(one.structure, one.seed) for one in none] == [
        ("lowrank-63", 12), ("lowrank-32", 11), ("lowrank-32", 12), ("lowrank-32", 13), ("lowrank-32", None),
    ]  # fmt: skip
    assert all(one.reason.startswith("refused:") and one.value is None for one in none)
    one_seed, all_seeds, _ = found.shares()
    assert (one_seed.of, one_seed.without, all_seeds.of, all_seeds.without) == (5, 4, 2, 1)
    text = report.markdown(found)
    assert "4 further fits have no interval" in text and "1 further fit has no interval" in text
    assert (
        sum("| no interval " in line for line in text.splitlines()) == 5
        and "Not in the fit with one E" in text
    )
    rows = list(csv.DictReader(io.StringIO(report.to_csv(found))))
    assert sum(row["holds"] == "" for row in rows) == 5
    assert json.loads(report.to_json(found))["shares"][0]["without"] == 4


def test_an_e_at_its_bound_has_no_interval_and_is_kept() -> None:
    def steeper(flops: Array, structure: str) -> Array:
        x = np.log(flops / BUDGETS[2])
        return np.asarray(0.9 * np.exp(-0.2 * x - 0.05 * x**2))

    found = judge(ladder(0, excess=steeper, structures=ALONE), "steep")
    assert all(one.value == 0 and one.holds is None and one.side == "below" for one in found.refits)
    assert "no interval to judge (3 fits have none)" in report.markdown(found)
    assert "rise" in report.steps_words(found)
    assert len(known_figure(found).axes) == 2


def test_the_text_itself_is_preferred_to_its_source() -> None:
    runs = ladder(0, column="entropy_rate", structures=ALONE)
    of_source = judge(runs, "source")
    assert of_source.source == "entropy_rate"
    assert "differs from it as a sample mean does, by about 0.012 nats" in report.markdown(of_source)
    both = Runs(runs.table.assign(val_entropy=E - 0.01))
    of_text = judge(both, "text")
    assert (of_text.source, of_text.known) == ("val_entropy", E - 0.01)
    assert "endless" not in report.markdown(of_text)
    assert judge(both, "given", 2.5).source == "given"


def test_the_figure_has_a_point_for_every_fit() -> None:
    found = judge(ladder(1), "planted")
    figure = known_figure(found)
    texts = [text for _, hover in hovers(figure) for text in hover.texts]
    assert sum("known 2.8302" in text for text in texts) == len(found.refits) == 13
    assert sum("L - E" in text for text in texts) >= len(found.runs.table)


def grid() -> Runs:
    table = ladder(0, structures=ALONE).table
    longer = table.assign(tokens=2 * table["tokens"], train_flops=2 * table["train_flops"])
    longer["run_id"] = longer["run_id"] + "x"
    return Runs(pd.concat([table, longer], ignore_index=True))


@pytest.mark.parametrize(
    ("runs", "irreducible", "words"),
    [
        (ladder(column=None), None, "no known irreducible loss"),
        (ladder(column=None), 2.8, None),
        (ladder(), None, None),
        (ladder(floor=0.0, excess=lambda c, s: 3 + 0 * c), None, "is 0: what is asked for is certain"),
        (Runs(ladder().table.assign(val_entropy=9.0)), None, "is not below the lowest loss"),
        (Runs(ladder().table.assign(val_entropy=np.linspace(2, 2.5, 45))), None, "not one value for all"),
        (grid(), None, "a grid in parameters and tokens"),
        (ladder(budgets=BUDGETS[:3]), None, "no structure has 4 training budgets; the most are 3"),
        (Runs(ladder().table.iloc[:0]), None, "no finished run"),
        (ladder(), 0.0, "give one above 0"),
    ],
)
def test_why_a_table_is_not_judged(runs: Runs, irreducible: float | None, words: str | None) -> None:
    reason = why_not(runs, irreducible)
    assert reason is None if words is None else reason is not None and words in reason
    if words is not None:
        with pytest.raises(AnalysisError, match="planted: "):
            judge(runs, "planted", irreducible)


def test_only_ladders_of_known_entropy_are_products(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "ladder_runs.csv").write_text(to_csv(ladder(structures=ALONE)))
    (tables / "plain_runs.csv").write_text(to_csv(ladder(structures=ALONE, column=None)))
    for name in ("natural", "copy"):
        (tables / f"{name}_runs.csv").write_bytes((ROOT / f"results/tables/{name}_runs.csv").read_bytes())
    made = {one.name: one for one in catalogue(Tracked(tmp_path, None))}
    assert [name for name in made if name.endswith("_known")] == ["ladder_known"]
    texts = made["ladder_known"].make().texts
    assert set(texts) == {f"ladder_known.{ending}" for ending in ("md", "tex", "json", "csv")}


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["analysis", "known", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.csv"
    path.write_text(to_csv(ladder(structures=ALONE, column=None)))
    assert command(monkeypatch, str(path), "--irreducible", str(E), "--out", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert out.startswith("# own: fits against the known irreducible loss") and "as given" in out
    assert (tmp_path / "figures" / "own_known.svg").is_file()
    assert (tmp_path / "tables" / "own_known.md").read_text() == out
    for words, said in (
        ((), "no known irreducible loss"),
        (("--irreducible", "99"), "--irreducible 99: must lie"),
        (("--irreducible", "nan"), "must lie"),
    ):
        assert command(monkeypatch, str(path), *words, "--out", str(tmp_path)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error


def test_all_structures_share_one_e() -> None:
    (shared,) = judge(ladder(4), "planted").of("shared")
    assert [one.structure for one in shared.exponents] == list(STRUCTURES) and shared.n == 45


@pytest.mark.slow
def test_profile_intervals_hold_e_where_those_by_the_delta_method_do_not() -> None:
    dice, held, of = np.random.default_rng(1), {"delta": 0, "profile": 0}, {"delta": 0, "profile": 0}
    clean = E + 0.9 * (BUDGETS / BUDGETS[2]) ** -0.15
    for _ in range(200):
        loss = clean * np.exp(0.02 * dice.standard_normal(5))
        for method in held:
            with np.errstate(all="ignore"):
                settings = Settings(math.inf, method)
                fit = fit_law("irreducible", {"train_flops": BUDGETS}, loss, settings=settings)
            if isinstance(fit, Fit) and fit.intervals is not None:
                low, high = fit.intervals["E"]
                held[method] += low <= E <= high
                of[method] += 1
    assert of["delta"] == of["profile"] > 60
    assert held["profile"] > 0.92 * of["profile"] and held["delta"] < 0.85 * of["delta"]
