"""Gaps to dense at equal FLOPs: read between dense runs, so that a share of FLOPs that shrinks cancels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from analysis.arms.matched import matched, matched_texts
from analysis.arms.trend import trend
from analysis.errors import AnalysisError
from analysis.runs.table import Runs, from_rows

SIZES = (1.0, 3.0, 9.0, 27.0, 81.0)


def ladder(
    factor: Callable[[int], float],
    noise: float = 0.0,
    seeds: int = 3,
    share: Callable[[int], float] | None = None,
) -> Runs:
    """The structure has `factor` times dense's loss at its own FLOPs, which are `share` of dense's."""
    rng, rows = np.random.default_rng(5), []
    share = share or (lambda i: 0.9 - 0.07 * i)

    def dense(flops: float) -> float:
        return 2.0 * (flops / 1e10) ** -0.08

    for i, size in enumerate(SIZES):
        for structure, flops in (("dense", 1e10 * size), ("lowrank-32", 1e10 * size * share(i))):
            for seed in range(1, seeds + 1):
                loss = dense(flops) * (factor(i) if structure != "dense" else 1.0)
                loss *= math.exp(noise * rng.standard_normal())
                rows.append({
                    "run_id": f"{structure}{i}-{seed}", "state": "done", "size": f"s{i}",
                    "structure": structure,
                    "seed": str(seed), "params": str(int(1000 * size)), "tokens": str(int(20_000 * size)),
                    "train_flops": repr(flops), "val_loss": repr(loss),
                })  # fmt: skip
    return from_rows(rows, [row["run_id"] for row in rows], "planted")


def test_a_structure_on_the_dense_curve_has_no_gap_where_the_one_at_equal_size_grows() -> None:
    runs = ladder(lambda i: 1.0)
    (one,) = matched(runs, "w")
    assert one.line.slope == pytest.approx(0.0, abs=1e-9)
    assert [size.log.mean for size in one.sizes] == pytest.approx([0.0] * 5, abs=1e-9)
    # What a test at equal size takes for a change with size: the share of FLOPs falls from .9 to .62.
    assert trend(runs, "w").arms[0].line.slope > 0.005


def test_a_planted_gap_and_its_growth_are_found() -> None:
    (one,) = matched(ladder(lambda i: math.exp(0.02 + 0.01 * i), noise=0.001), "w")
    per_size = math.log(3)
    # The structure's own FLOPs grow more slowly than dense's, so its slope is a little steeper.
    assert one.line.slope == pytest.approx(0.01 / per_size, rel=0.15)
    assert one.sizes[-1].log.mean == pytest.approx(0.06, abs=0.005)
    assert one.verdict == "falls behind dense; at the largest: worse"
    better = matched(ladder(lambda i: 0.95, noise=0.001), "w")[0]
    assert better.verdict == "no change shown; at the largest: better"


def test_intervals_cover() -> None:
    held = robustly = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        runs = ladder(lambda i: 1.0)
        table = runs.table.assign(val_loss=runs.table["val_loss"] * np.exp(0.01 * rng.standard_normal(30)))
        (one,) = matched(Runs(table), "w")
        assert one.line.interval is not None and one.line.robust_interval is not None
        held += one.line.interval[0] <= 0 <= one.line.interval[1]
        robustly += one.line.robust_interval[0] <= 0 <= one.line.robust_interval[1]
    # Gaps of neighbouring sizes share dense runs: 92 and 94 % of 1,000.
    assert 172 <= held <= 194 and 178 <= robustly <= 197


def test_runs_far_outside_the_dense_ladder_are_no_gap() -> None:
    with pytest.raises(AnalysisError, match="no structure has runs at 3 sizes within the dense runs' FLOPs"):
        matched(ladder(lambda i: 1.0, share=lambda i: 1e-3), "w")
    only = ladder(lambda i: 1.0).table
    with pytest.raises(AnalysisError, match="no seed has dense runs of 3 budgets"):
        matched(Runs(only[(only["structure"] != "dense") | (only["size"] == "s0")]), "w")


def test_one_seed_has_gaps_without_intervals_and_texts_say_so() -> None:
    runs = ladder(lambda i: 1.03, noise=0.002, seeds=1)
    found = matched(runs, "w")
    texts = matched_texts(found, runs, "w")
    assert found[0].sizes[0].log.interval is None and "undecided" in found[0].verdict
    assert json.loads(texts["w_matched.json"])["structures"][0]["runs"] == 5
    assert texts["w_matched.md"].count("| s0 ") == 1 and texts["w_matched.tex"].isascii()
