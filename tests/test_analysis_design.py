"""Designs: predicted errors against simulated ones, power, the cheapest additions, and what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from analysis.arrays import Array
from analysis.compare.nested import sampled_statistics
from analysis.compare.slopes import LEVEL, Groups, joint
from analysis.design.additions import Additions, Goal, Search, as_grid, cheapest, standing
from analysis.design.candidates import candidates
from analysis.design.planned import assume, curves, seed_noise
from analysis.design.precision import (
    Assumed,
    Difference,
    Grid,
    Impossible,
    Predicted,
    bind_at,
    contrast,
    design,
    differences,
    freed,
    predict,
)
from analysis.engine.newton import minimise
from analysis.laws import CHINCHILLA, IRREDUCIBLE, POWER, TIED
from analysis.runs.reading import read_csv
from analysis.uncertainty import t_quantile

SLOPE = Assumed(POWER, {"k": 10.0, "alpha": 0.055}, 0.004)
BENT = {"E": 1.7, "k": 50.0, "alpha": 0.1}
HOFFMANN = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28}


def grid(sizes: Array, ratios: Sequence[float], seeds: int = 1, structures: Sequence[str] = ("a",)) -> Grid:
    """Every structure at every size and tokens per parameter; each is a fifth smaller than the one before."""
    runs = [
        (0.8**i * n, n * ratio, name)
        for i, name in enumerate(structures)
        for n in sizes
        for ratio in ratios
        for _ in range(seeds)
    ]
    params, tokens = (np.array([run[k] for run in runs], np.float64) for k in (0, 1))
    data = {"params": params, "tokens": tokens, "train_flops": 6 * params * tokens}
    return Grid(data, tuple(run[2] for run in runs))


def simulated(assumed: Assumed, planned: Grid, free: Sequence[str] = (), count: int = 800) -> Array:
    """Fitted phi of simulated sweeps, shape (count, p)."""
    bound, phi = bind_at(assumed, planned, free)
    noise = assumed.noise * np.random.default_rng(1).standard_normal((count, planned.n))
    found = minimise(bound, np.tile(phi, (count, 1)), log_loss=bound.log_value(phi) + noise)
    assert found.converged.all()
    return found.phi


def predicted(assumed: Assumed, planned: Grid, free: Sequence[str] = ()) -> Predicted:
    found = predict(assumed, planned, free)
    assert isinstance(found, Predicted), found
    return found


def only_difference(found: Predicted) -> Difference:
    between = differences(found)
    assert not isinstance(between, Impossible) and len(between) == 1
    return between[0]


CASES = {
    "6 sizes x 4 ratios, chinchilla": (
        Assumed(CHINCHILLA, HOFFMANN, 0.004), grid(np.geomspace(1e7, 1e9, 6), [5, 10, 20, 40]), (),
    ),
    "4 sizes x 3 seeds, power": (
        SLOPE, grid(np.geomspace(1e7, 1e9, 4), [20], 3), (),
    ),
    "5 sizes, irreducible": (
        Assumed(IRREDUCIBLE, {"E": 1.69, "k": 20.0, "alpha": 0.06}, 0.0014),
        grid(np.geomspace(1e6, 1e9, 5), [20]), (),
    ),
    "5 sizes x 3 ratios, tied": (
        Assumed(TIED, {"E": 1.7, "A": 400.0, "B": 400.0, "eta": 0.3}, 0.004),
        grid(np.geomspace(1e7, 1e9, 5), [5, 20, 80]), (),
    ),
    "2 structures, shared E": (
        Assumed(IRREDUCIBLE, {"E": 1.69, "k": 50.0, "alpha": 0.08}, 0.003),
        grid(np.geomspace(1e6, 1e9, 6), [20], 2, ("a", "b")), ("k", "alpha"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_predicted_errors_are_those_of_simulated_sweeps(case: str) -> None:
    assumed, planned, free = CASES[case]
    found, draws = predicted(assumed, planned, free), simulated(*CASES[case])
    natural = found.bound.natural(draws).std(axis=0, ddof=1)
    assert list(found.errors().values()) == pytest.approx(natural, rel=0.15)
    if free:
        one = only_difference(found)
        gap = draws @ contrast(found.bound, "alpha", "a", "b")
        assert one.standard_error == pytest.approx(gap.std(ddof=1), rel=0.15)
    if assumed.law is CHINCHILLA:
        alpha, beta = (draws[:, found.bound.place(name)] for name in ("alpha", "beta"))
        value, error = found.allocation() or (math.nan, math.nan)
        assert value == pytest.approx(0.28 / 0.62) and error == pytest.approx(
            (beta / (alpha + beta)).std(ddof=1), rel=0.15
        )


def test_a_power_law_is_predicted_exactly() -> None:
    assumed, planned, _ = CASES["4 sizes x 3 seeds, power"]
    x = np.log(planned.data["train_flops"])
    error = assumed.noise / math.sqrt(float(np.sum((x - x.mean()) ** 2)))
    found = predicted(assumed, planned)
    assert found.errors()["alpha"] == pytest.approx(error, rel=1e-10)
    assert found.values() == pytest.approx(assumed.values, rel=1e-10)
    assert found.dof == 10 and found.t == pytest.approx(2.228, abs=1e-3)


def test_the_detectable_difference_is_found_as_often_as_it_says() -> None:
    base, planned, free = CASES["2 structures, shared E"]
    one = only_difference(predicted(base, planned, free))
    apart = {**base.values, "alpha[b]": base.values["alpha"] + one.detectable}
    # Equal losses at the centre, so that the structures differ in slope alone.
    centre = float(np.log(planned.data["train_flops"]).mean())
    apart["k[b]"] = base.values["k"] * math.exp(one.detectable * centre)
    bound, phi = bind_at(Assumed(base.law, apart, base.noise), planned, free)
    dice, count = np.random.default_rng(5), 1500
    samples = bound.log_value(phi) + base.noise * dice.standard_normal((count, planned.n))
    names = np.array(planned.groups)
    flops, loss = planned.data["train_flops"], np.exp(samples[0])
    groups: Groups = {name: (flops[names == name], loss[names == name]) for name in planned.structures}
    null, full = (joint(IRREDUCIBLE, groups, parameters) for parameters in (("k",), ("k", "alpha")))
    statistics = sampled_statistics(null, full, samples)
    share = float(np.mean(statistics > t_quantile(full.dof, 1 - LEVEL) ** 2))
    assert 0.76 <= share <= 0.84


@pytest.mark.parametrize(
    ("assumed", "planned", "shares", "limit"),
    [
        (SLOPE, grid(np.geomspace(1e7, 1e9, 3), [20]), (0.9, 0.6), 4),
        (
            Assumed(IRREDUCIBLE, {"E": 1.69, "k": 50, "alpha": 0.08}, 0.001),
            grid(np.geomspace(1e7, 1e9, 4), [20]), (0.8, 0.5), 4,
        ),
        (
            Assumed(CHINCHILLA, HOFFMANN, 0.002),
            grid(np.geomspace(1e7, 1e9, 3), [5, 20, 80]), (0.8, 0.6, 0.5), 3,
        ),
        (SLOPE, grid(np.geomspace(1e7, 1e9, 3), [20], 1, ("a", "b")), (0.8, 0.5), 3),
    ],
)  # fmt: skip
def test_additions_are_as_cheap_as_the_best_of_all_choices(
    assumed: Assumed, planned: Grid, shares: Sequence[float], limit: int
) -> None:
    detect = len(planned.structures) > 1
    now = standing(assumed, planned, Goal("alpha", 1.0, detect))
    assert isinstance(now, float)
    for share in shares:
        goal = Goal("alpha", share * now, detect)
        found = cheapest(assumed, planned, goal, limit)
        assert isinstance(found, Additions) and found.reached and found.after is not None
        best = exhaustive(Search(assumed, planned, goal, limit))
        assert best <= found.spent * (1 + 1e-9) and found.spent <= 1.05 * best


def exhaustive(search: Search) -> float:
    """The lowest price of all choices of runs that reach the goal."""
    best = math.inf
    for count in range(1, search.limit + 1):
        chosen = np.array(list(itertools.combinations_with_replacement(range(len(search.prices)), count)))
        rows = search.rows[chosen]
        inverse = np.linalg.inv(search.start + np.einsum("mkp,mkq->mpq", rows, rows))
        worst = np.einsum("ap,mpq,aq->ma", search.contrasts, inverse, search.contrasts).max(axis=1)
        prices = search.prices[chosen].sum(axis=1)
        best = min(best, float(np.min(prices[worst <= search.allowed(count)], initial=math.inf)))
    return best


def test_the_advised_runs_give_the_wanted_error() -> None:
    assumed = Assumed(CHINCHILLA, HOFFMANN, 0.004)
    planned = grid(np.geomspace(1e7, 1e9, 4), [10, 40])
    goal = Goal("alpha", 0.012)
    before = standing(assumed, planned, goal)
    assert isinstance(before, float) and before > 0.02
    found = cheapest(assumed, planned, goal, 20)
    assert isinstance(found, Additions) and found.reached and found.before == pytest.approx(before)
    whole = planned.plus(as_grid(found.picks, planned))
    draws = simulated(assumed, whole)[:, predicted(assumed, whole).bound.place("alpha")]
    assert draws.std(ddof=1) == pytest.approx(0.012, rel=0.1)
    assert found.spent == pytest.approx(sum(6 * one.params * one.tokens for one in found.picks), rel=1e-3)


def test_a_goal_out_of_reach_and_one_reached_already() -> None:
    assumed, planned, _ = CASES["4 sizes x 3 seeds, power"]
    far = cheapest(assumed, planned, Goal("alpha", 1e-5), 4)
    assert isinstance(far, Additions) and not far.reached and len(far.picks) == 4
    assert far.after is not None and far.before is not None and 1e-5 < far.after < far.before
    near = cheapest(assumed, planned, Goal("alpha", 0.1), 4)
    assert isinstance(near, Additions) and near.reached and near.picks == () and near.spent == 0
    none = cheapest(assumed, planned, Goal("alpha", 0.1, detect=True), 4)
    assert isinstance(none, Impossible) and "two structures" in none.reason


def test_designs_that_identify_nothing_are_refused_in_words() -> None:
    assumed = Assumed(CHINCHILLA, HOFFMANN, 0.004)
    diagonal = grid(np.geomspace(1e7, 1e9, 8), [20], 2)
    line = grid(np.geomspace(1e7, 1e9, 5), [20])
    for law, planned, words in (
        (assumed, diagonal, "params and tokens vary together (r^2 = 1.0000), as along one line D = k N"),
        (assumed, grid(np.array([1e7, 1e9]), [5, 10, 20, 40]), "2 distinct values of params"),
        (Assumed(IRREDUCIBLE, BENT, 0.2), line, "the error exceeds the value"),
        (
            Assumed(IRREDUCIBLE, BENT, 1e-4),
            grid(np.geomspace(1e7, 1e9, 3), [20]),
            "3 runs leave no degree of freedom beside 3 parameters",
        ),
        (
            Assumed(IRREDUCIBLE, BENT, 1e-6),
            grid(np.geomspace(1e8, 1.2e8, 5), [20]),
            "over these runs the terms of the law look alike",
        ),
    ):
        found = predict(law, planned)
        assert isinstance(found, Impossible) and words in found.reason
    # What one line of sizes cannot tell, a few runs off it can.
    mended = cheapest(assumed, diagonal, Goal("alpha", 0.05), 20)
    assert (
        isinstance(mended, Additions) and mended.reached and mended.before is None and mended.caution is None
    )
    assert {"fewer tokens", "more tokens"} & {part for c in mended.picks for part in c.kind.split(", ")}


def test_structures_without_enough_sizes_are_left_out_of_the_comparison() -> None:
    planned = grid(np.geomspace(1e7, 1e9, 4), [20], 1, ("a", "b")).plus(
        grid(np.array([1e8]), [20], 1, ("c",))
    )
    found = design(SLOPE, planned)
    assert isinstance(found.alone["c"], Impossible) and isinstance(found.alone["a"], Predicted)
    pairs = found.differences["none"]
    assert not isinstance(pairs, Impossible) and [one.pair for one in pairs] == [("a", "b")]
    assert pairs[0].dof == 4 and found.joint is None
    shared = design(CASES["2 structures, shared E"][0], planned).differences
    assert list(shared) == ["shared", "separate"]
    assert freed(CHINCHILLA, share_floor=True) == ("A", "B", "alpha", "beta")


def test_candidates_lie_on_the_lattice_and_one_step_beyond() -> None:
    sizes = np.array([1e6, 1e7, 1e8])
    offers = candidates(CHINCHILLA, grid(sizes, [10, 40], 2))
    assert len({(round(c.params), round(c.tokens)) for c in offers}) == len(offers) == 7 * 5
    found = sorted({round(math.log10(c.params), 2) for c in offers})
    assert found == [5, 6, 6.5, 7, 7.5, 8, 9]
    assert {round(c.tokens / c.params, 1) for c in offers} == {2.5, 10, 20, 40, 160}
    assert all(c.train_flops == pytest.approx(6 * c.params * c.tokens, rel=1e-5) for c in offers)
    assert sum(c.kind == "extra seed" for c in offers) == 6
    along = candidates(POWER, grid(sizes, [20]))
    assert {round(c.tokens / c.params, 1) for c in along} == {20} and len(along) == 7
    alone = candidates(POWER, Grid({"train_flops": np.array([1e15, 1e17, 1e19])}, ("a",) * 3))
    assert [c.train_flops for c in alone] == pytest.approx([1e13, 1e15, 1e16, 1e17, 1e18, 1e19, 1e21])


def test_replicates_give_the_noise(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    path = tmp_path / "t.csv"
    rows = [
        f"dense,{s},{n},1e6,{3 * math.exp(0.01 * dice.standard_normal())}"
        for n in range(1, 41)
        for s in range(3)
    ]
    path.write_text("\n".join(["structure,seed,params,tokens,val_loss", *rows]))
    sd, words = seed_noise(read_csv(path, needed=("val_loss",)), "t")
    assert sd == pytest.approx(0.01, rel=0.2) and "40 configurations, 80 degrees of freedom" in words


def test_losses_decide_what_is_assumed() -> None:
    truth, planned, _ = CASES["6 sizes x 4 ratios, chinchilla"]
    bound, phi = bind_at(truth, planned)
    loss = np.exp(bound.log_value(phi) + 0.004 * np.random.default_rng(2).standard_normal(planned.n))
    found = assume(CHINCHILLA, planned, loss, {}, None)
    assert found.value("alpha") == pytest.approx(0.34, abs=0.05) and found.noise == pytest.approx(
        0.004, rel=0.4
    )
    assert "24 losses" in found.sources[0] and "residual sd" in found.sources[1]
    assert assume(CHINCHILLA, planned, loss, {"alpha": 0.5}, (0.1, "x")).value("alpha") == 0.5
    usual = assume(CHINCHILLA, planned, None, {}, None)
    height = float(np.exp(bind_at(usual, planned)[0].log_value(bind_at(usual, planned)[1])).mean())
    assert usual.noise == 0.0014 and "arXiv 2404.10102" in usual.sources[0] and 2.8 < height < 3.8
    flat = assume(IRREDUCIBLE, planned, planned.data["train_flops"] ** -0.1, {}, None)
    assert "E vanishes" in flat.sources[0] and flat.value("E") == 1.69


def test_curves_are_told_apart_as_fit_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [
        f'r{i},{name},s,1,1e6,{tokens},{flops},"{{""optim"": {{""peak_lr"": {rate}}}}}"'
        for i, (name, tokens, flops, rate) in enumerate(
            [
                ("dense", 2e7, 1e14, 0.01),
                ("lowrank-32", 2e7, 5e13, 0.01),
                ("lowrank-32", 4e7, 1e14, 0.01),
                ("lowrank-32", 2e7, 5e13, 0.02),
            ]
        )
    ]
    path.write_text("\n".join(["run_id,structure,size,seed,params,tokens,train_flops,config", *rows]))
    found = curves(read_csv(path, needed=()))
    assert list(found.table["structure"]) == [
        "dense, peak_lr=0.01",
        "lowrank-32, peak_lr=0.01",
        "lowrank-32, peak_lr=0.01, tokens=more",
        "lowrank-32, peak_lr=0.02",
    ]
