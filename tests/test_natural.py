"""The natural law's estimates: planted laws come back, and what a design does not identify is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.allocation import Cost
from analysis.errors import AnalysisError
from analysis.fit import Fit, Settings
from analysis.natural import bounds
from analysis.natural.estimate import LARGEST, LIMIT, Estimate, Floor, Group
from analysis.natural.law import fitted_floor, free_law, held_law
from analysis.natural.measured import Measured
from analysis.natural.optimum import ratio
from analysis.natural.reach import falling
from analysis.natural.study import Curve, Options, curves_of, natural
from analysis.runs.table import Runs

QUICK = Options(settings=Settings(interval="delta"), resamples=200)
E, A, B, ALPHA, BETA = 1.5, 8.0, 200.0, 0.35, 0.4
TRUTH = BETA / ALPHA


def grid(
    noise: float = 0.0, seed: int = 0, beta: float = BETA, b: float = B, seeds: int = 2, known: bool = True,
    sizes: Sequence[float] = tuple(2e3 * 2.5 ** np.arange(6)),
    tokens: Sequence[float] = tuple(2e5 * 2.0 ** np.arange(5)),
) -> pd.DataFrame:  # fmt: skip
    """Runs of L = E + A N^-alpha + B D^-beta with normal noise in log loss."""
    dice = np.random.default_rng(seed)
    rows = [(n, d, s) for n in sizes for d in tokens for s in range(seeds)]
    table = pd.DataFrame(rows, columns=["params", "tokens", "seed"]).astype(np.float64)
    loss = E + A * table["params"] ** -ALPHA + b * table["tokens"] ** -beta
    table["val_loss"] = loss * np.exp(noise * dice.standard_normal(len(table)))
    table["train_flops"] = 6 * table["params"] * table["tokens"]
    return table.assign(entropy_rate=E) if known else table


def group_of(table: pd.DataFrame, options: Options = QUICK, clusters: Sequence[str] | None = None) -> Group:
    return natural([Curve("planted", table, clusters)], "planted", options).groups[0]


def holds(one: Estimate, truth: float) -> bool:
    return one.known and one.holds(truth)


def test_chinchillas_beta_gives_the_published_band() -> None:
    assert bounds.gamma_of(0.28, "agnostic") == pytest.approx(0.44)
    assert bounds.gamma_of(0.28, "realizable") == pytest.approx(0.72)
    group = group_of(grid(0.004, beta=0.28, b=50.0))
    assert isinstance(group.fit, Fit) and group.fit.intervals is not None
    low, high = group.fit.intervals["beta"]
    for kind, factor, truth in (("agnostic", 2, 0.44), ("realizable", 1, 0.72)):
        one = group.estimates[kind]
        assert one.interval() == pytest.approx((1 - factor * high, 1 - factor * low))
        assert holds(one, truth)


@pytest.mark.parametrize("known", [True, False])
def test_noiseless_grids_give_beta_over_alpha_whatever_is_wanted(known: bool) -> None:
    group = group_of(grid(known=known))
    assert group.floor.exact is known and group.floor.value == pytest.approx(E)
    given_limit = [choice for choice in group.choices if choice.reference == LIMIT and choice.used >= 3]
    assert {choice.within for choice in given_limit} == {0.25, 0.5}
    for choice in given_limit:
        assert choice.estimate.value == pytest.approx(TRUTH, abs=0.03)
    assert group.estimates["law"].value == pytest.approx(TRUTH, rel=1e-6)
    assert group.estimates["realizable"].value == pytest.approx(1 - BETA, rel=1e-6)


def test_the_largest_size_as_reference_draws_gamma_towards_zero() -> None:
    group = group_of(grid())
    by_largest, by_limit = group.chosen(0.25, LARGEST), group.chosen(0.25, LIMIT)
    assert by_largest is not None and by_limit is not None
    assert by_largest.used == by_limit.used == 5
    low, high = by_largest.estimate.value, by_limit.estimate.value
    assert low is not None and high is not None and low < 0.75 * TRUTH < high


@pytest.mark.parametrize("known", [True, False])
def test_planted_exponents_lie_in_the_intervals(known: bool) -> None:
    group = group_of(grid(0.003, seed=6, known=known), replace(QUICK, within=0.25))
    assert holds(group.estimates["measured"], TRUTH) and holds(group.estimates["law"], TRUTH)
    assert holds(group.estimates["agnostic"], 1 - 2 * BETA) and holds(group.estimates["realizable"], 1 - BETA)
    if known:
        assert any("fitted freely, E is" in note and "holds the known 1.5" in note for note in group.notes)
    else:
        assert group.floor.low is not None and group.floor.high is not None
        assert group.floor.low < E < group.floor.high


def test_intervals_of_the_measured_gamma_cover() -> None:
    held = 0
    for seed in range(60):
        table = grid(0.005, seed=seed)
        n, d, y = (table[key].to_numpy(np.float64) for key in ("params", "tokens", "val_loss"))
        found = Measured(n, d, y, Floor(E, "given"), None, None, resamples=200, seed=seed)
        held += holds(found.choice(0.25, LIMIT).estimate, TRUTH)
    # Of 60 at 95 %, fewer than 51 would come up once in 3,000 times.
    assert held >= 51


def test_the_error_of_a_fitted_floor_goes_into_every_simulated_table() -> None:
    table = grid(0.004, seed=2)
    n, d, y = (table[key].to_numpy(np.float64) for key in ("params", "tokens", "val_loss"))
    free = free_law(n, d, y, "x", Settings(interval="delta"), None)
    floor = fitted_floor(free)
    assert isinstance(free, Fit) and free.standard_errors is not None
    found = Measured(n, d, y, floor, free, None, 400)
    assert found.tables.floor[:2] == pytest.approx([floor.value] * 2, abs=0.01)
    spread = float(np.nanstd(found.tables.floor[2:]))
    assert spread == pytest.approx(free.standard_errors["E"], rel=0.3)
    assert holds(found.choice(0.25, LIMIT).estimate, TRUTH)
    known = Measured(n, d, y, Floor(floor.value, "given"), None, None, 20)
    assert float(np.ptp(known.tables.floor)) == 0.0


def test_budgets_whose_crossing_lies_beyond_the_sizes_are_censored_and_never_extrapolated() -> None:
    table = grid(sizes=tuple(3e3 * 1.9 ** np.arange(5)), tokens=tuple(2e5 * 2.0 ** np.arange(8)))
    group = group_of(table, replace(QUICK, within=0.5))
    choice = group.chosen(0.5, LIMIT)
    assert choice is not None
    for one in choice.reached:
        wanted = (A / (0.5 * B)) ** (1 / ALPHA) * one.tokens**TRUTH
        if wanted < 3e3:
            assert (one.censored, one.params, one.reason) == ("below", None, "the smallest size reaches it")
        elif wanted > one.largest:
            assert (one.censored, one.params, one.reason) == ("above", None, "no size reaches it")
        else:
            assert one.params == pytest.approx(wanted, rel=0.05) and one.smallest < one.params < one.largest
    sides = [one.censored for one in choice.reached]
    assert sides.count("below") >= 2 and sides.count("above") >= 1 and sides.count("") == choice.used >= 3
    reason = group_of(table, replace(QUICK, within=0.1)).estimates["measured"].reason
    assert "budgets give a size" in reason and "by no size" in reason and "needs 3" in reason


def test_isoflop_tables_give_the_slope_of_their_vertices() -> None:
    rows = []
    for flops in np.geomspace(1e12, 1e15, 5):
        best = 0.35 * (flops / 6) ** 0.53
        rows += [(n, flops / (6 * n), flops) for n in best * np.geomspace(0.4, 2.5, 7)]
    table = pd.DataFrame(rows, columns=["params", "tokens", "train_flops"])
    dice = np.random.default_rng(3)
    loss = E + 8 * table["params"] ** -0.35 + 10 * table["tokens"] ** -0.35
    group = group_of(table.assign(val_loss=loss * np.exp(0.0005 * dice.standard_normal(len(table)))))
    one = group.estimates["isoflop"]
    assert holds(one, 1.0) and len(group.vertices) == 5
    log_d, log_n = np.log(np.array(group.vertices)).T
    assert one.value == pytest.approx(float(np.polyfit(log_d, log_n, 1)[0]), rel=0.02)
    clustered = group_of(table.assign(val_loss=loss), clusters=["a", "b", "c", "d", "e"] * 7)
    assert clustered.estimates["isoflop"].reason == "several points are of one run"


@given(
    st.floats(0.05, 1.5), st.floats(0.05, 1.5), st.floats(0.5, 1.5), st.floats(0.5, 1.5),
)  # fmt: skip
def test_the_ratio_of_both_exponents_is_beta_over_alpha(
    alpha: float, beta: float, u: float, v: float
) -> None:
    a = beta / (alpha * v + beta * u)
    assert ratio(a, Cost(6.0, u, v)) == pytest.approx(beta / alpha, rel=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.data())
def test_pooled_sequences_never_rise_keep_their_mean_and_leave_falling_ones_alone(
    values: list[float], data: st.DataObject
) -> None:
    counts = np.array(
        data.draw(st.lists(st.integers(1, 4), min_size=len(values), max_size=len(values))), float
    )
    row = np.array([values])
    out = falling(row, counts)
    assert np.all(np.diff(out[0]) <= 1e-9)
    assert out[0] @ counts == pytest.approx(row[0] @ counts, abs=1e-8)
    ordered = -np.sort(-row, axis=1)
    assert falling(ordered, counts) == pytest.approx(ordered)


def test_losses_that_do_not_depend_on_size_identify_nothing_that_needs_it() -> None:
    table = grid(0.002)
    flat = table.assign(val_loss=(E + B * table["tokens"] ** -BETA) * np.exp(0.002 * np.sin(table.index**2)))
    group = group_of(flat)
    assert not group.anything
    assert "no bend" in group.estimates["measured"].reason
    assert group.estimates["law"].reason.startswith("the law is not identified: SL00")
    assert group.estimates["agnostic"].reason.startswith("beta is not identified: SL00")


def test_without_an_irreducible_loss_that_is_identified_nothing_is_measured() -> None:
    dice = np.random.default_rng(1)
    table = grid(known=False)
    loss = (A * table["params"] ** -ALPHA + B * table["tokens"] ** -BETA) * np.exp(
        0.01 * dice.standard_normal(len(table))
    )
    group = group_of(table.assign(val_loss=loss))
    reason = group.estimates["measured"].reason
    assert "irreducible loss is not known" in reason and "SL007" in reason
    # The same table with its floor stated has an answer.
    assert group_of(table.assign(val_loss=loss), replace(QUICK, irreducible=0.0)).estimates["law"].known


def test_a_held_floor_sharpens_beta_and_is_exact() -> None:
    table = grid(0.004, seed=4)
    n, d, y = (table[key].to_numpy(np.float64) for key in ("params", "tokens", "val_loss"))
    settings = Settings(interval="delta")
    free, held = free_law(n, d, y, "x", settings, None), held_law(n, d, y, "x", E, settings, None)
    assert isinstance(free, Fit) and free.intervals is not None and held.intervals is not None
    assert held.params["E"] == E and held.identified
    assert np.ptp(held.intervals["beta"]) < np.ptp(free.intervals["beta"])
    assert held.intervals["beta"][0] < BETA < held.intervals["beta"][1]
    residual = np.log(
        E + held.value("A") * n ** -held.value("alpha") + held.value("B") * d ** -held.value("beta")
    )
    assert 0.5 * float(np.sum((residual - np.log(y)) ** 2)) == pytest.approx(held.objective, rel=0.2)


def test_checkpoints_of_one_run_go_together() -> None:
    dice = np.random.default_rng(0)
    table = grid(0.001, seeds=1, sizes=tuple(2e3 * 1.5 ** np.arange(12)))
    runs = [f"{n:.0f}" for n in table["params"]]
    shared = {run: 0.01 * dice.standard_normal() for run in dict.fromkeys(runs)}
    table["val_loss"] *= np.exp([shared[run] for run in runs])
    apart, together = group_of(table), group_of(table, clusters=runs)
    assert together.runs == 12 and apart.runs == 60
    assert "jackknife over 12 runs" in together.estimates["law"].method
    assert holds(together.estimates["law"], TRUTH)
    one, other = (g.estimates["realizable"].interval() for g in (together, apart))
    assert math.isfinite(one[1]) and other != one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": (2e3,)}, "1 distinct size; it needs 3"),
        ({"tokens": (2e5,)}, "1 distinct token budget; it needs 3"),
        ({"sizes": (2e3, 4e3), "tokens": (1e5, 2e5)}, "2 distinct sizes; it needs 3"),
        ({"sizes": (2e3, 4e3, 8e3), "tokens": (1e5,), "seeds": 1}, "3 runs; it needs 5"),
    ],
)
def test_designs_that_give_no_gamma_whatever_the_losses_are_one_line(
    change: dict[str, object], words: str
) -> None:
    with pytest.raises(AnalysisError, match=words):
        group_of(grid(**change))  # type: ignore[arg-type]


def test_unknown_tokens_and_empty_tables_are_one_line() -> None:
    table = grid().assign(structure="all", tokens=math.nan)
    with pytest.raises(AnalysisError, match="needs tokens of every run"):
        curves_of(Runs(table), "x")
    with pytest.raises(AnalysisError, match="no finished run"):
        curves_of(Runs(table.iloc[:0]), "x")
    with pytest.raises(AnalysisError, match="--within 0: must be above zero"):
        Options(within=0.0)


def test_repeated_rows_and_one_seed_are_no_obstacle() -> None:
    table = pd.concat([grid(0.004, seed=1)] * 2, ignore_index=True)
    assert group_of(table).estimates["law"].known
    single = group_of(grid(0.004, seed=1, seeds=1), replace(QUICK, within=0.25))
    assert holds(single.estimates["measured"], TRUTH)


@pytest.mark.parametrize("wrong", [1.2, 99.0])
def test_entropy_rates_that_differ_or_cannot_be_are_refused(wrong: float) -> None:
    table = grid(0.002)
    table.loc[0 if wrong < 2 else slice(None), "entropy_rate"] = wrong
    with pytest.raises(AnalysisError, match="entropy_rate is not one number below every loss"):
        group_of(table)
