"""Gradual pruning: its schedule, its counts, what is refused, and the law of average parameters."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.grid import expand
from sweeps.sweepfile import load_sweep
from tests.test_analysis_diagnose import command
from tests.test_loop import TINY
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.flops import (
    average_params,
    describe,
    model_counts,
    params_active,
    prunable_matrices,
    removed_weights,
    spent_flops,
)
from trainer.models.build import build_network
from trainer.models.prune import prunable_weights
from trainer.presets import merge, resolve, run_labels
from trainer.pruning import PruneConfig, prunes_at, removed

DENSE = merge(TINY, {"structure": "dense"})
PRUNED = {"prune": {"sparsity": 0.75, "every": 3}}


def config_of(**change: Any) -> RunConfig:
    return resolve(merge(DENSE, {**PRUNED, **change}), "t")


# Schedule and counts


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
def test_the_published_schedule(schedule: str) -> None:
    """Zhu and Gupta, eq. 1: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, from s_i = 0."""
    prune = PruneConfig(sparsity=0.8, every=7, schedule=schedule)
    weights, steps = 10**9, 400
    power = 3 if schedule == "cubic" else 1
    for t in [*range(100, 300, 7), 300]:
        share = 0.8 * (1 - (1 - (t - 100) / 200) ** power)
        assert removed(prune, steps, weights, t) / weights == pytest.approx(share, abs=2e-9)
    assert [t for t in range(401) if prunes_at(prune, steps, t)] == [*range(107, 300, 7), 300]
    assert {removed(prune, steps, weights, t) for t in range(107)} == {0}
    assert removed(prune, steps, weights, 113) == removed(prune, steps, weights, 107) > 0
    assert {removed(prune, steps, weights, t) for t in range(300, 401)} == {800_000_000}


@pytest.mark.parametrize(("schedule", "share"), [("linear", 1 / 2), ("cubic", 5 / 8)])
def test_the_mean_over_a_run_is_the_schedules_integral(schedule: str, share: float) -> None:
    """Evenly from 25 to 75 %: half-way from N_0 to N_f; the cubic has 3/4 gone in these, and then all."""
    change = {"sparsity": 0.5, "every": 1, "schedule": schedule}
    config = resolve({"preset": "cpu-m", "prune": change, "budget": {"tokens": 2048 * 4000}}, "t")
    whole, gone = describe(config)["params_total"], describe(config)["params_non_embedding"] // 2
    assert float(average_params(config, config.steps)) == pytest.approx(whole - share * gone, rel=1e-4)
    assert params_active(config, config.steps) == whole - gone


def test_shares_mean_what_is_written() -> None:
    prune = PruneConfig(sparsity=0.29, start=0.07, stop=0.29, every=1)
    assert math.floor(0.29 * 100) == 28 and math.floor(0.07 * 100) == 7
    assert removed(prune, 100, 100, 100) == removed(prune, 100, 100, 29) == 29
    assert removed(prune, 100, 100, 28) < 29
    assert [PruneConfig(sparsity=s).label for s in (0.5, 0.755, 0.29)] == [
        "pruned 50%", "pruned 75.5%", "pruned 29%"
    ]  # fmt: skip


prunings = st.builds(
    lambda sparsity, start, length, every, schedule, scope: {
        "sparsity": sparsity, "start": start / 20, "stop": min(20, start + length) / 20, "every": every,
        "schedule": schedule, "scope": scope,
    },
    st.sampled_from([0.001, 0.3, 0.5, 0.99]), st.integers(0, 18), st.integers(1, 20), st.integers(1, 40),
    st.sampled_from(["linear", "cubic"]), st.sampled_from(["global", "layer"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(prunings, st.integers(20, 90), st.integers(0, 90))
def test_sums_over_stretches_equal_those_over_steps(prune: dict[str, Any], steps: int, until: int) -> None:
    config = config_of(prune=prune, tokens=64 * steps)
    until, batch = min(until, steps), config.optim.batch_tokens
    gone = [removed_weights(config, step) for step in range(steps + 1)]
    assert gone == sorted(gone) and gone[0] == 0
    sizes = [weights for weights, _ in prunable_matrices(config.model)]
    share = Fraction(str(prune["sparsity"]))
    groups = sizes if prune["scope"] == "layer" else [sum(sizes)]
    assert gone[-1] == sum(math.floor(share * size) for size in groups)
    active = [params_active(config, step) for step in range(until)]
    total = model_counts(config.model).params_total
    assert average_params(config, until) == (Fraction(sum(active), until) if until else total)
    whole, sparse = (spent_flops(config, until, name) for name in ("paper", "sparse"))
    assert whole - sparse == 6 * batch * sum(gone[:until])


@pytest.mark.parametrize("shape", [{}, {"n_kv_heads": 1, "attn_dim": 8, "activation": "swiglu"}], ids=str)
@pytest.mark.parametrize(
    "structure", ["dense", "lowrank-63", "blockdense-63", "blockshuffle-63", "monarch-63"]
)
def test_what_is_counted_is_what_the_network_has(structure: str, shape: dict[str, Any]) -> None:
    for model in (shape, {**shape, "kind": "recurrent", "recurrence": {"mix": "learned"}}):
        config = resolve(merge(TINY, {"structure": structure, "model": model}), "t")
        weights = prunable_weights(build_network(config.model))
        assert sorted(w.numel() for w in weights) == sorted(w for w, _ in prunable_matrices(config.model))
        assert sum(weight.numel() for weight in weights) == model_counts(config.model).params_non_embedding


def test_other_runs_are_not_touched() -> None:
    plain = resolve(DENSE, "t")
    none = resolve(merge(DENSE, {"prune": {"sparsity": 0}}), "t")
    assert none == plain and none.run_id("c") == plain.run_id("c") and "prune" not in plain.canonical_json()
    assert config_of().run_id("c") != plain.run_id("c")
    assert spent_flops(plain, plain.steps, "sparse") == spent_flops(plain, plain.steps)
    guided = resolve(merge(TINY, {"guide": {"mode": "fixed_steps"}}), "t")
    assert spent_flops(guided, 20, "sparse") == spent_flops(guided, 20)
    assert RunConfig.model_validate_json(config_of().canonical_json()) == config_of()


def test_recurrent_layers_save_each_removed_weight_twice() -> None:
    config = config_of(model={"kind": "recurrent"})
    gone = sum(removed_weights(config, step) for step in range(config.steps))
    saved = spent_flops(config, config.steps) - spent_flops(config, config.steps, "sparse")
    assert saved == 2 * 6 * config.optim.batch_tokens * gone


def test_layers_that_loop_save_each_pass() -> None:
    loop = {"n_layers": 3, "loop": {"passes": 3, "prelude": 1}}
    config = config_of(model=loop, prune={"sparsity": 0.5, "scope": "layer"})
    step = config.steps - 1
    saved = spent_flops(config, step + 1, "sparse") - spent_flops(config, step, "sparse")
    whole = spent_flops(config, 1)
    # Half of every matrix: one layer once, two of them three times.
    assert whole - saved == 3 * (removed_weights(config, step) // 3) * 6 * 64 * (1 + 3 + 3) // 3


def test_a_sweep_over_sparsities_begins_with_the_whole_network() -> None:
    runs = expand(load_sweep("pruned"))
    whole = [config for config in runs if config.prune is None]
    assert len(runs) == 9 and len(whole) == 3
    assert {config.run_id("x") for config in whole} <= {c.run_id("x") for c in expand(load_sweep("lowrank"))}
    shares = sorted({describe(c)["params_avg"] / describe(c)["params_total"] for c in runs if c.prune})
    assert 0.6 < shares[0] < shares[-1] < 0.9


def test_labels() -> None:
    assert run_labels(config_of())["structure"] == "dense, pruned 75%"
    assert run_labels(config_of(structure="lowrank-50"))["structure"] == "lowrank-50, pruned 75%"
    recurrent = config_of(model={"kind": "recurrent"}, structure="lowrank-50")
    assert run_labels(recurrent)["structure"] == "recurrent, lowrank-50, pruned 75%"


LOOPED = {"n_layers": 3, "loop": {"passes": 2, "coda": 1}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prune": {"sparsity": 1.0}}, "prune.sparsity"),
        ({"prune": {"sparsity": -0.1}}, "prune.sparsity"),
        ({"prune": {"sparsity": float("nan")}}, "prune.sparsity"),
        ({"prune": {}}, "prune.sparsity"),
        ({"prune": {"sparsity": 0.5, "every": 0}}, "prune.every"),
        ({"prune": {"sparsity": 0.5, "start": 0.5, "stop": 0.5}}, "is not before stop"),
        ({"prune": {"sparsity": 0.5, "start": 0.98, "stop": 0.99}}, "train longer"),
        ({"prune": {"sparsity": 0.5, "stop": 1.5}}, "prune.stop"),
        ({"prune": {"sparsity": 1e-6}}, "removes no weight"),
        ({"prune": {"sparsity": 0.01, "scope": "layer"}, "structure": "dense"}, None),
        ({"prune": {"sparsity": 0.5, "scope": "all"}}, "prune.scope"),
        ({"prune": {"sparsty": 0.5}}, "sparsity"),
        ({"prune": {"sparsity": 0.5}, "guide": {"mode": "fixed_steps"}}, "prune and guide"),
        ({"prune": {"sparsity": 0.5}, "structure": "sltrain-63"}, "structure sltrain multiplies by a dense"),
        ({"prune": {"sparsity": 0.5}, "model": LOOPED}, 'take scope = "layer"'),
        ({"prune": {"sparsity": 0.5, "scope": "layer"}, "model": LOOPED}, None),
        (
            {"prune": {"sparsity": 0.5}, "curriculum": {"lengths": [8, 16], "below": 1.0}},
            "prune and curriculum",
        ),
    ],
    ids=str,
)
def test_mistakes_are_told(change: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert resolve(merge(TINY, change), "file.toml").prune is not None
        return
    with pytest.raises(ConfigError, match=said) as caught:
        resolve(merge(TINY, change), "file.toml")
    assert str(caught.value).startswith("file.toml: ")
    assert "\n" not in str(caught.value)


# The law of average parameters


def test_the_average_law_is_recovered_from_pruned_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses that follow N_avg as runs really count it: whole and pruned networks lie on one curve."""
    truth = {"E": 1.7, "A": 40.0, "B": 90.0, "alpha": 0.33, "beta": 0.29}
    noise, rows = np.random.default_rng(3), []
    for size in ("cpu-2xs", "cpu-xs", "cpu-s", "cpu-m", "cpu-l"):
        for sparsity in (0.0, 0.5, 0.9):
            for per_param in (5, 20, 80):
                prune = {"sparsity": sparsity, "schedule": "cubic", "start": 0.1}
                budget = {"tokens_per_param": per_param, "of": "dense"}
                config = resolve({"preset": size, "prune": prune, "budget": budget}, "t")
                counts = describe(config)
                average = counts.get("params_avg", counts["params_total"])
                loss = truth["E"] + truth["A"] * average ** -truth["alpha"]
                loss += truth["B"] * counts["tokens"] ** -truth["beta"]
                rows.append(
                    {
                        **run_labels(config), "params": counts["params_total"], "params_avg": average,
                        "tokens": counts["tokens"], "train_flops": counts["train_flops"],
                        "val_loss": loss * math.exp(1e-4 * noise.standard_normal()),
                    }
                )  # fmt: skip
    path = tmp_path / "runs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    fits = {}
    for law in ("average", "chinchilla"):
        words = ("fit", str(path), "--law", law, "--share", "E,A,B,alpha,beta", "--json", "-")
        assert command(monkeypatch, *words) == 0
        fits[law] = json.loads(capsys.readouterr().out)
    for name in ("E", "alpha", "beta"):
        assert fits["average"]["params"][name] == pytest.approx(truth[name], rel=0.01), name
    # The size before pruning explains these losses far worse.
    assert fits["average"]["objective"] < 0.01 * fits["chinchilla"]["objective"]
