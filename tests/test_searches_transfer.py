"""Learning rates of other sizes by rule: a planted rule is found again, or the reason why not."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import planted_study as planted
import pytest

from analysis.searches.report import transfer_texts
from analysis.searches.transfer import transfer, widths_searched
from analysis.searches.trials import Study
from sweeps.rates import Rates

RATES = (0.0025, 0.0045, 0.008, 0.0143, 0.0255)
AT_30 = {"dense": 0.009, "lowrank-32": 0.006, "blockdense-32": 0.013}


def study(
    tmp_path: Path, noise: float = 0.0, exponent: float = -0.8, curvature: float = 0.05,
    widths: tuple[int, ...] = (20, 45), apart: Mapping[str, float] | None = None,
) -> Study:  # fmt: skip
    """Losses whose logarithm is a parabola in the log rate about the planted rule."""
    rows, rng = [], np.random.default_rng(3)
    for structure, rate in AT_30.items():
        for width in widths:
            best = rate * (width / 30) ** exponent
            if apart and width == max(widths):
                best *= apart.get(structure, 1.0)
            for i, lr in enumerate(RATES):
                loss = 3 * math.exp(curvature * math.log(lr / best) ** 2 + noise * rng.standard_normal())
                rows.append(
                    planted.rate_rows()[0]
                    | {
                        "cell": f"structure={structure} preset=d{width}", "structure": structure,
                        "size": f"d{width}",
                        "trial": str(i), "search.peak_lr": repr(lr), "peak_lr": repr(lr), "state": "done",
                        "val_loss": repr(loss), "d_model": str(width), "repeat": "0",
                        "run_id": f"{structure}{width}{i}", "params": str(width * 1000),
                    }
                )  # fmt: skip
    return planted.study(tmp_path, rows)


def test_a_planted_rule_is_found_again(tmp_path: Path) -> None:
    rule = transfer(study(tmp_path))
    assert rule.width == 30 and rule.reason == ""
    assert rule.exponent == pytest.approx(-0.8, abs=1e-6)
    assert {one.structure: one.rate for one in rule.rates} == pytest.approx(AT_30, rel=1e-6)


def test_intervals_hold_the_planted_rates(tmp_path: Path) -> None:
    rule = transfer(study(tmp_path, noise=0.003))
    assert abs(rule.exponent + 0.8) < 3 * rule.exponent_se
    for one in rule.rates:
        assert one.low < AT_30[one.structure] < one.high and one.high / one.low < 2
    assert rule.p_own > 0.01


def test_optima_that_no_one_exponent_fits_are_said(tmp_path: Path) -> None:
    rule = transfer(study(tmp_path, noise=0.001, apart={"dense": 2.0, "lowrank-32": 0.5}))
    assert rule.p_own < 0.001
    found = transfer_texts(study(tmp_path, noise=0.001, apart={"dense": 2.0, "lowrank-32": 0.5}))
    assert "the rule is a compromise" in found["w_transfer.md"]


def test_no_valley_and_one_width_give_no_rule(tmp_path: Path) -> None:
    assert "no valley" in transfer(study(tmp_path, noise=0.02, curvature=0.0)).reason
    one = study(tmp_path, widths=(20,))
    assert "one width" in transfer(one).reason and widths_searched(one) == 1
    said = transfer_texts(one)["w_transfer.md"]
    assert "No rule: learning rates were searched at one width only." in said and "```" not in said


def test_the_table_can_be_pasted_into_a_sweep_file(tmp_path: Path) -> None:
    text = transfer_texts(study(tmp_path))["w_transfer.md"]
    block = text.split("```toml\n")[1].split("```")[0]
    rates = Rates.model_validate(tomllib.loads(block)["rates"])
    assert rates.at("lowrank-32", 45) == pytest.approx(0.006 * (45 / 30) ** -0.8, rel=0.01)
