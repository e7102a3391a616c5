"""RunConfig: defaults, identity, one-line refusals, and the ladders of presets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.flops import model_counts, train_flops
from trainer.presets import PRESETS, load_toml, merge, resolve, run_labels

SYNTHETIC = {"corpus": {"kind": "synthetic", "vocab_size": 32, "order": 1}, "tokenizer": None}
TINY: dict[str, Any] = {
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "seq_len": 16},
    "data": SYNTHETIC,
    "optim": {"peak_lr": 1e-2, "batch_tokens": 64},
    "tokens": 640,
}


def test_derived_defaults_are_written_out() -> None:
    model = json.loads(resolve(TINY, "t").canonical_json())["model"]
    assert (model["attn_dim"], model["d_ff"], model["n_kv_heads"], model["vocab_size"]) == (16, 64, 2, 32)
    assert model["structure"] == {"kind": "dense"}


def test_identity_does_not_depend_on_what_is_left_to_defaults() -> None:
    spelled = merge(TINY, {"model": {"attn_dim": 16, "d_ff": 64}, "seed": 1, "precision": "fp32"})
    assert resolve(TINY, "t").run_id("f") == resolve(spelled, "t").run_id("f")
    round_trip = RunConfig.model_validate_json(resolve(TINY, "t").canonical_json())
    assert round_trip == resolve(TINY, "t")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"precision": "bf16"},
        {"tokens": 704},
        {"optim": {"peak_lr": 2e-2}},
        {"optim": {"beta1": 0.8}},
        {"eval": {"tokens": 64}},
        {"model": {"dense_first_ffn": False}},
        {"structure": "lowrank-63"},
    ],
    ids=str,
)
def test_every_field_is_part_of_the_identity(change: dict[str, Any]) -> None:
    assert resolve(merge(TINY, change), "t").run_id("f") != resolve(TINY, "t").run_id("f")


def test_identity_is_frozen() -> None:
    """A changed hash orphans every finished run: raise SCHEMA_VERSION knowingly, never by accident."""
    assert resolve(TINY, "t").run_id("corpus") != resolve(TINY, "t").run_id("other corpus")
    assert resolve(TINY, "t").run_id("corpus") == "4a9727bb2536"


def test_budgets_are_rounded_down_to_whole_batches() -> None:
    assert resolve({**TINY, "tokens": 703}, "t").tokens == 640
    assert resolve({**TINY, "tokens": 703}, "t").steps == 10


@pytest.mark.parametrize("of", ["run", "dense"])
def test_tokens_per_param(of: str) -> None:
    given = {k: v for k, v in TINY.items() if k != "tokens"}
    config = resolve({**given, "structure": "lowrank-32", "budget": {"tokens_per_param": 20, "of": of}}, "t")
    counted = config.model if of == "run" else resolve({**TINY}, "t").model
    wanted = 20 * model_counts(counted).params_total
    assert 0 <= wanted - config.tokens < 64


def test_train_flops_budget_is_met_from_below() -> None:
    given = {k: v for k, v in TINY.items() if k != "tokens"}
    config = resolve({**given, "budget": {"train_flops": 1e9}}, "t")
    assert 0 <= 1e9 - train_flops(config) < 64 * train_flops(config) / config.tokens


COSTS: list[dict[str, Any]] = [
    {"guide": {"mode": "fixed_steps"}},
    {"guide": {"mode": "fixed_steps", "stochastic": False, "fraction": 0.3}},
    {"guide": {"mode": "fixed_flops"}},
    {"guide": {"mode": "fixed_flops", "stochastic": False}},
    {"guide": {"mode": "fixed_flops", "fraction": 0.25}},
    {"structure": "sltrain-63"},
    {"structure": "sltrain-63", "guide": {"mode": "fixed_steps"}},
    {},
]


def without_tokens(change: dict[str, Any]) -> dict[str, Any]:
    return merge({"structure": "lowrank-32", **{k: v for k, v in TINY.items() if k != "tokens"}}, change)


@pytest.mark.parametrize("change", COSTS, ids=str)
def test_a_budget_of_flops_counts_all_that_the_run_spends(change: dict[str, Any]) -> None:
    """It is kept to, and one step more would pass it."""
    for budget in (3e9, 3.1e9, 123_456_789_012.0):
        config = resolve({**without_tokens(change), "budget": {"train_flops": budget}}, "t")
        longer = resolve({**without_tokens(change), "tokens": config.tokens + 64}, "t")
        assert train_flops(config) <= budget < train_flops(longer)


@pytest.mark.parametrize("change", [c for c in COSTS if "fixed_flops" not in str(c)], ids=str)
def test_a_run_equal_in_flops_spends_the_dense_runs_guide_included(change: dict[str, Any]) -> None:
    dense = resolve({**without_tokens({"structure": "dense"}), "tokens": 64 * 100}, "t")
    budget = {"tokens": 64 * 100, "equal": "flops"}
    config = resolve({**without_tokens(change), "budget": budget}, "t")
    longer = resolve({**without_tokens(change), "tokens": config.tokens + 64}, "t")
    assert train_flops(config) <= train_flops(dense) < train_flops(longer)


def test_a_budget_too_small_for_a_guided_run_is_refused_in_one_line() -> None:
    guided = without_tokens({"guide": {"mode": "fixed_steps"}})
    one_step = train_flops(resolve({**without_tokens({}), "tokens": 64}, "t"))
    for flops, said in ((one_step / 2, "less than one batch"), (one_step, "less than one step")):
        with pytest.raises(ConfigError, match=said):
            resolve({**guided, "budget": {"train_flops": flops}}, "t")
    with pytest.raises(ConfigError, match=r"guide\.mode"):
        resolve({**guided, "guide": {"mode": "x"}, "budget": {"train_flops": 1e9}}, "t")


@pytest.mark.parametrize("fraction", [None, 0.2])
def test_equal_flops_and_fixed_flops_contradict_each_other(fraction: float | None) -> None:
    change = {"guide": {"mode": "fixed_flops", "fraction": fraction}, "budget": {"equal": "flops"}}
    with pytest.raises(ConfigError, match=r'^run\.toml: budget\.equal = "flops" with guide\.mode') as error:
        resolve(without_tokens(change), "run.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optim": {"peek_lr": 1}}, ["unknown key 'optim.peek_lr'", "did you mean 'peak_lr'"]),
        ({"modle": {}}, ["unknown key 'modle'", "did you mean 'model'"]),
        ({"model": {"structure": {"kind": "lowrank", "rank": 17}}}, ["rank = 17 is larger than the layer"]),
        ({"structure": {"kind": "blockshuffle", "n_blocks": 3}}, ["n_blocks = 3 does not divide"]),
        ({"structure": {"kind": "lowrank", "rnk": 3}}, ["rnk"]),
        ({"structure": "butterfly-63"}, ["unknown structure 'butterfly-63'", "blockshuffle"]),
        ({"model": {"n_heads": 3}}, ["n_heads = 3 does not divide attn_dim = 16"]),
        ({"model": {"n_heads": 16}}, ["is odd"]),
        ({"model": {"n_kv_heads": 4}}, ["n_kv_heads = 4 does not divide"]),
        ({"optim": {"batch_tokens": 65}}, ["not a multiple of model.seq_len"]),
        ({"structure": "blockshuffle-50"}, ["nearest keeps 62.5 %", "n_blocks = 2"]),
        ({"optim": {"beta1": 1.0}}, ["optim.beta1 = 1.0"]),
        ({"tokens": 3}, ["tokens", "less than one batch"]),
        ({"optim": {"peak_lr": float("nan")}}, ["peak_lr"]),
        ({"optim": {"schedule": "linear"}}, ["optim.schedule = 'linear'", "cosine"]),
        ({"budget": {"tokens": 5, "train_flops": 3}}, ["give one of"]),
        ({"preset": "cpu-xxs"}, ["unknown preset 'cpu-xxs'", "did you mean 'cpu-"]),
    ],
    ids=str,
)
def test_mistakes_are_one_line_with_place_and_remedy(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(merge(TINY, change), "run.toml")
    assert "\n" not in str(error.value)
    for word in ["run.toml" if "preset" not in change else "", *words]:
        assert word in str(error.value)


def test_a_corpus_of_ids_drops_the_tokenizer_of_the_preset() -> None:
    for corpus in ("synthetic", {"kind": "synthetic", "vocab_size": 32, "order": 1}):
        config = resolve({"preset": "gpu-xs", "data": {"corpus": corpus}}, "t")
        assert config.data.tokenizer is None
        assert config.model.vocab_size == config.data.vocab_size


@pytest.mark.parametrize("text", ["a = ", "\x00", "[x]\n[x]"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad.toml: not TOML"):
        load_toml(path)
    with pytest.raises(ConfigError, match="no such file"):
        load_toml(tmp_path / "none.toml")


def test_the_ladders() -> None:
    for ladder, aspect, least, most in (("cpu", 12, 3e4, 2e6), ("gpu", 64, 2e6, 3e8)):
        models = [resolve({"preset": p}, p).model for p in PRESETS if p.startswith(ladder)]
        sizes = [model_counts(m).params_non_embedding for m in models]
        assert sizes == sorted(sizes)
        assert sum(least / 2 <= size <= most * 1.1 for size in sizes) >= 5
        assert {m.d_model / m.n_layers for m in models} == {aspect}


def test_every_preset_takes_every_family_and_keeps_its_label() -> None:
    for name in PRESETS:
        for structure in ("dense", "lowrank-63", "lowrank-32", "blockdense-32", "blockshuffle-63"):
            labels = run_labels(resolve({"preset": name, "structure": structure}, name))
            assert labels == {"size": name, "structure": structure}


def test_configuration_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, trainer.presets, trainer.rundir, trainer.execution;"
        "print([m for m in ('torch', 'numpy', 'pandas', 'mlflow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
