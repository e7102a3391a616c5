"""Where weights start and how fast they learn, under both parametrizations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.config import RunConfig
from trainer.coordcheck import Check, coordinate_check, slopes
from trainer.coordcheck_report import check_from, report
from trainer.errors import ConfigError
from trainer.models.guide import Guide
from trainer.models.parametrize import initialise, learning_rate_scales
from trainer.models.structures import Fan
from trainer.models.transformer import StructuredLinear, Transformer
from trainer.optim import build_optimizer
from trainer.presets import merge, resolve

BASE: dict[str, Any] = {
    "model": {
        "d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 32, "seq_len": 16, "dense_first_ffn": False,
    },
    "optim": {"peak_lr": 1e-2, "batch_tokens": 64},
    "tokens": 640,
}  # fmt: skip
MUP = {"model": {"parametrization": "mup", "base_d_model": 16}}


def config(structure: str, **change: Any) -> RunConfig:
    return resolve(merge(merge(BASE, change), {"structure": structure}), "test")


def network(run: RunConfig) -> Transformer:
    made = Transformer(run.model)
    initialise(made, run.seed)
    return made


def test_the_papers_initialisation_is_frozen() -> None:
    """Trained runs rest on these very draws ."""
    tables = {s: network(config(s)).state_dict() for s in ("dense", "lowrank-32", "blockshuffle-32")}
    dense = tables["dense"]
    assert dense["embedding.weight"][3, :3].tolist() == pytest.approx(
        [-0.0131643, 0.0077657, -0.0079691], abs=1e-6
    )
    assert dense["blocks.1.ffn.down.factors.weight"][5, :3].tolist() == pytest.approx(
        [0.0036457, 0.0115737, -0.0321013], abs=1e-6
    )
    low = tables["lowrank-32"]
    merged = low["blocks.1.ffn.up.factors.u"] @ low["blocks.1.ffn.up.factors.v"]
    assert merged[7, :3].tolist() == pytest.approx([-0.0072706, 0.002239, -0.0059934], abs=1e-5)
    blocks = tables["blockshuffle-32"]["blocks.0.ffn.up.factors.v"]
    assert blocks[1, 2, :3].tolist() == pytest.approx([-0.3579615, -0.2436206, -0.4387606], abs=1e-5)


@pytest.mark.parametrize("structure", ["dense", "lowrank-32"])
def test_the_papers_optimizer_has_one_rate(structure: str) -> None:
    run = config(structure)
    groups = build_optimizer(network(run), run.optim).param_groups
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]
    assert learning_rate_scales(network(run)) == {}


@pytest.mark.parametrize(
    "structure",
    ["dense", "lowrank-32", "blockdense-32", "blockshuffle-32", "monarch-32", "sltrain-32"],
)
def test_every_factor_decays_and_no_bias_or_gain_does(structure: str) -> None:
    run = config(structure, model={"qk_norm": True})
    made = network(run)
    groups = build_optimizer(made, run.optim).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    names = {name for name, parameter in made.named_parameters() if id(parameter) in decayed}
    every = {name for name, _ in made.named_parameters()}
    assert names == {n for n in every if ".factors." in n or n == "embedding.weight"}
    assert {name.rpartition(".")[2] for name in every - names} == {"bias", "weight", "q_gain", "k_gain"}
    flat = {n for n, p in made.named_parameters() if n in names and p.ndim < 2}
    # Only sltrain has factors of one axis: what the other families' runs decay is what they always did.
    assert {name.rpartition(".")[2] for name in flat} == ({"entries"} if structure == "sltrain-32" else set())


def test_factors_learn_by_their_own_fans() -> None:
    """By hand: d_model 64 over base 16, FFN 64 -> 256 -> 64 at rank 16."""
    scales = learning_rate_scales(network(config("lowrank-32", **MUP)))
    dense = 16 / 64
    assert scales["blocks.0.attention.qkv.factors.weight"] == dense
    assert scales["blocks.0.ffn.up.factors.v"] == dense * 64 / (64 * 2)
    assert scales["blocks.0.ffn.up.factors.u"] == dense * 64 / (16 * 2)
    assert scales["blocks.0.ffn.down.factors.v"] == dense * 256 / (256 * 2)
    assert scales["blocks.0.ffn.down.factors.u"] == dense * 256 / (16 * 2)
    assert "embedding.weight" not in scales
    shuffled = learning_rate_scales(network(config("blockshuffle-32", **MUP)))
    assert shuffled["blocks.0.ffn.up.factors.v"] == dense * 64 / (16 * 2)
    sparse = learning_rate_scales(network(config("sltrain-32", **MUP)))
    assert sparse["blocks.0.ffn.up.factors.entries"] == dense * 64 / 2


def test_a_guide_learns_as_the_dense_map_that_it_is() -> None:
    made = network(config("lowrank-32", **MUP))
    layer = made.blocks[0].ffn.up  # type: ignore[union-attr]
    assert isinstance(layer, StructuredLinear)
    layer.guide = Guide(layer.merged_weight().detach())
    assert learning_rate_scales(made)["blocks.0.ffn.up.guide.weight"] == 16 / 64


@pytest.mark.parametrize(
    ("fan", "std"), [(Fan(100, 400, 1), 0.1), (Fan(100, 25, 1), 0.05), (Fan(4, 4, 2), 0.5)]
)
def test_spectral_standard_deviation(fan: Fan, std: float) -> None:
    assert fan.spectral_std == pytest.approx(std)
    if min(fan[:2]) > 20:
        norm = float(torch.linalg.matrix_norm(torch.randn(fan.fan_out, fan.fan_in) * std, ord=2))
        # Of order sqrt(fan_out / fan_in): between it and three times it.
        assert 1 < norm / (fan.fan_out / fan.fan_in) ** 0.5 < 3


@pytest.mark.parametrize(
    "structure", ["lowrank-32", "blockdense-32", "blockshuffle-32", "monarch-32", "sltrain-32"]
)
def test_mup_draws_each_factor_with_its_own_deviation(structure: str) -> None:
    made = network(config(structure, **MUP))
    layer = made.blocks[0].ffn.up  # type: ignore[union-attr]
    assert isinstance(layer, StructuredLinear)
    for name, fan in layer.structure.fans(64, 256).items():
        assert float(layer.factors[name].std()) == pytest.approx(fan.spectral_std, rel=0.15)


def test_decay_does_not_depend_on_the_scale() -> None:
    run = config("lowrank-32", **MUP)
    for group in build_optimizer(network(run), run.optim).param_groups:
        assert group["weight_decay"] * group["lr_scale"] == pytest.approx(
            0.1 if group["weight_decay"] else 0.0
        )


def test_at_the_base_width_dense_mup_has_the_papers_rate_and_scales() -> None:
    run = config("dense", model={"parametrization": "mup", "base_d_model": 64})
    assert run.model.logit_scale == 1
    assert run.model.attention_scale == pytest.approx(16**-0.5)
    assert set(learning_rate_scales(network(run)).values()) == {1.0}


def test_wider_heads_weaken_attention_scores() -> None:
    wide = config("dense", model={"parametrization": "mup", "base_d_model": 64, "base_head_dim": 4})
    assert wide.model.attention_scale == pytest.approx(4**0.5 / 16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"parametrization": "mup"}}, "needs base_d_model"),
        ({"model": {"base_d_model": 64}}, 'parametrization = "mup" only'),
        ({"model": {"parametrization": "mu"}}, "model.parametrization"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(merge(BASE, change), "x")


STRUCTURES = ("dense", "lowrank-32", "blockdense-32", "blockshuffle-32", "monarch-32", "sltrain-32")


def test_mup_is_flat_in_width_where_the_papers_way_is_not() -> None:
    check = Check(structures=STRUCTURES, widths=(64, 128, 256), seeds=(1,), steps=2)
    both = slopes(coordinate_check(check, 1, lambda what: None))
    found = [slope for slope in both if slope.step == 2]
    mup = {(s.structure, s.tensor): s.slope for s in found if s.parametrization == "mup"}
    paper = {(s.structure, s.tensor): s.slope for s in found if s.parametrization == "paper"}
    assert len(mup) == len(paper) == len(STRUCTURES) * 7
    # One seed and narrow networks: below the one half of the mildest wrong scaling, no closer.
    assert all(abs(slope) < 0.4 for slope in mup.values()), {k: v for k, v in mup.items() if abs(v) >= 0.4}
    for structure in STRUCTURES:
        assert max(paper[structure, tensor] for tensor in ("attention", "residual", "logits")) > 0.5
    text = report(both)
    assert all(name in text for name in STRUCTURES)
    # What mup intends with the first logits is said to be intended, and only that.
    first = {(s.structure, s.parametrization) for s in both if s.by_design}
    assert first == {(name, "mup") for name in STRUCTURES}
    assert not any(s.by_design for s in both if s.tensor != "logits" or s.step)


def power_rows(step: int, **powers: float) -> list[dict[str, Any]]:
    """Measurements at one step that grow as these powers of the width."""
    return [
        {
            "width": width, "structure": "monarch-32", "parametrization": "mup", "seed": 1, "step": step,
            "tensor": tensor, "rms": width**power,
        }
        for tensor, power in powers.items()
        for width in (64, 128, 256)
    ]  # fmt: skip


def test_the_report_names_what_is_not_flat_at_either_end() -> None:
    rows = power_rows(0, ffn=0.37, logits=-0.5, residual=0.1)
    rows += power_rows(1, ffn=0.9, logits=0.9) + power_rows(5, ffn=0.1, logits=0.0, residual=0.3)
    text = report(slopes(rows))
    (last, first) = (line for line in text.splitlines() if line.startswith("monarch-32"))
    assert last.endswith("not flat: residual")
    assert first.split(maxsplit=2)[2] == "ffn +0.37, logits -0.50 (by design)"
    other = report(slopes(power_rows(0, logits=-1.0) + power_rows(5, logits=0.0)))
    assert "logits -1.00" in other
    assert "design" not in other
    paper = [{**row, "parametrization": "paper"} for row in rows]
    assert "logits -0.50" in report(slopes(paper))
    assert "design" not in report(slopes(paper))
    assert "step:\nnothing" in report(slopes(power_rows(0, ffn=0.0) + power_rows(5, ffn=0.0)))


@pytest.mark.parametrize(("steps", "at"), [(1, 1), (4, 1)])
def test_a_network_that_stopped_learning_is_told_and_not_measured(steps: int, at: int) -> None:
    check = Check(("lowrank-32",), ("paper",), (64, 128), (1,), steps, peak_lr=5.0)
    with pytest.raises(ConfigError, match="lower --peak-lr") as caught:
        coordinate_check(check, 1, lambda what: None)
    said = f"coordcheck: lowrank-32, paper, d_model = 64: diverged at step {at} "
    assert str(caught.value).startswith(said), caught.value


def test_widths_that_are_no_multiple_of_the_head_width_are_refused() -> None:
    for widths in ("64,80", "16,64"):
        with pytest.raises(ConfigError, match="is no multiple of the head width 32"):
            check_from("dense", "paper", widths, 1, 1, 1e-3)


def test_blanks_around_names_do_not_matter() -> None:
    check = check_from("dense, lowrank-32 ", " paper, mup", "64, 128", 1, 1, 1e-3)
    assert check == check_from("dense,lowrank-32", "paper,mup", "64,128", 1, 1, 1e-3)
    assert check.structures == ("dense", "lowrank-32")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("dense", "paper", "64", 1, 1, 1e-3), "at least two widths"),
        (("dense", "paper", "64,a", 1, 1, 1e-3), "whole numbers"),
        (("dense", "mop", "64,128", 1, 1, 1e-3), "unknown 'mop'"),
    ],
)
def test_what_cannot_be_checked_is_refused(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_from(*given)


def test_a_structure_that_a_width_does_not_allow_is_told_before_measuring() -> None:
    """Three blocks divide 96 and do not divide 128."""
    begun: list[str] = []
    with pytest.raises(ConfigError, match="coordcheck: blockshuffle-42, d_model = 128"):
        coordinate_check(Check(("blockshuffle-42",), ("paper",), (96, 128), (1,)), 1, begun.append)
    assert not begun
