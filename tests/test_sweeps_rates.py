"""Peak learning rates by rule: one rate a structure, one exponent of the width."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.search.cells import cells_of
from sweeps.search.studyfile import read_study
from sweeps.sweepfile import parse_sweep
from trainer.config import RunConfig

AXES = '[axes]\npreset = ["cpu-2xs", "cpu-s"]\nstructure = ["dense", "lowrank-32"]\n'
RATES = "[rates]\nof_width = 24\nexponent = -0.5\npeak_lr = { dense = 0.01, lowrank-32 = 0.02 }\n"


def runs(text: str) -> list[RunConfig]:
    return expand(parse_sweep(tomllib.loads(text), Path("try.toml")))


def test_rates_go_by_structure_and_width_in_place_of_the_presets() -> None:
    seen = {(c.model.d_model, c.model.structure.kind): c.optim.peak_lr for c in runs(AXES + RATES)}
    assert seen == {
        (24, "dense"): 0.01, (24, "lowrank"): 0.02, (48, "dense"): 0.00707, (48, "lowrank"): 0.0141
    }  # fmt: skip


def test_the_usual_exponent_is_minus_one_and_widths_may_be_given_without_a_preset() -> None:
    text = "[base.model]\nd_model = 48\nn_layers = 2\nn_heads = 2\n[base]\noptim.batch_tokens = 2048\n"
    text = "[base]\nmodel = { d_model = 48, n_layers = 2, n_heads = 2, seq_len = 64 }\n"
    text += "optim.batch_tokens = 2048\n[axes]\nseed = [1, 2]\n"
    text += "[rates]\nof_width = 24\npeak_lr = { dense = 0.01 }\n"
    assert {c.optim.peak_lr for c in runs(text)} == {0.005}


def test_a_rate_goes_by_the_width_that_an_override_leaves_and_more_structures_may_be_in_the_table() -> None:
    rates = RATES.replace("dense = 0.01", "dense = 0.01, monarch-50 = 0.03")
    text = AXES + rates + '[[override]]\nwhen = { preset = "cpu-s" }\nset = { "model.d_model" = 96 }\n'
    seen = {(c.model.d_model, c.optim.peak_lr) for c in runs(text) if c.model.structure.kind == "dense"}
    assert seen == {(24, 0.01), (96, 0.005)}


def test_an_override_has_the_last_word() -> None:
    text = AXES + RATES + '[[override]]\nwhen = { structure = "dense" }\nset = { "optim.peak_lr" = 0.3 }\n'
    assert {c.optim.peak_lr for c in runs(text) if c.model.structure.kind == "dense"} == {0.3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            AXES + RATES.replace("lowrank-32", "lowrank-63"),
            "has no rate for structure 'lowrank-32'; did you mean 'lowrank-63'",
        ),
        (
            AXES + RATES.replace(", lowrank-32 = 0.02", ""),
            "structure=lowrank-32: rates.peak_lr has no rate for structure 'lowrank-32'",
        ),
        (AXES + RATES + "[base]\noptim.peak_lr = 0.1\n", "both [rates] and base.optim.peak_lr say the rate"),
        (AXES + '"optim.peak_lr" = [0.1]\n' + RATES, "both [rates] and an axis say optim.peak_lr"),
        (AXES + RATES.replace("= 0.01", "= 0.0"), "rates.peak_lr.dense = 0: give a rate above 0"),
        (AXES + RATES.replace("of_width = 24", "of_width = 0"), "rates.of_width"),
        (AXES + RATES.replace("exponent", "exponnet"), "did you mean 'exponent'"),
        (
            AXES.replace('"lowrank-32"', '{ kind = "lowrank", rank = 6 }')
            + RATES.replace(", lowrank-32 = 0.02", ""),
            "is a table; give its peak_lr in an [[override]]",
        ),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(SweepError) as caught:
        runs(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_study_of_rates_takes_no_rule(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('kind = "lr"\n' + AXES + RATES + "[space]\npeak_lr = [0.01, 0.02]\n")
    with pytest.raises(SweepError, match=r"both \[rates\] and an axis say"):
        cells_of(read_study(file))
