"""Gradual pruning: schedule and counts, that what is gone stays gone, kill and resume, the average law."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.test_analysis_diagnose import command
from tests.test_guidance import same_run
from tests.test_loop import EVERY_STEP, TINY, Killed, losses, run, start_cli, stop_at, write_config
from trainer.checkpoint import list_checkpoints, load_weights
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.flops import (
    CONVENTIONS,
    average_params,
    describe,
    model_counts,
    params_active,
    prunable_matrices,
    removed_weights,
    spent_flops,
)
from trainer.generate import find_run, load_network
from trainer.models.build import build_network
from trainer.models.prune import GONE, prunable_weights, smallest
from trainer.presets import merge, resolve, run_labels
from trainer.pruning import PruneConfig, prunes_at, removed
from trainer.rundir import read_result
from trainer.step import TrainStep

DENSE = merge(TINY, {"structure": "dense"})
PRUNED = {"prune": {"sparsity": 0.75, "every": 3}}


def config_of(**change: Any) -> RunConfig:
    return resolve(merge(DENSE, {**PRUNED, **change}), "t")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products here are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


# Masks


def test_smallest_magnitudes_go_and_the_first_of_equals() -> None:
    first = nn.Parameter(torch.tensor([[0.5, -0.1], [0.0, 0.3]]))
    second = nn.Parameter(torch.tensor([-0.1, 2.0, -0.0, 0.1]))
    masks = smallest([first, second], [None, None], 4)
    assert masks[0].tolist() == [[False, True], [True, False]]
    assert masks[1].tolist() == [True, False, True, False]
    # What is gone stays gone, though a weight before it is zero as well.
    gone = torch.tensor([False, False, True, False])
    assert smallest([first, second], [None, gone], 1)[1].tolist() == gone.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.data())
def test_masks_equal_a_sort_by_hand(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    weights = [nn.Parameter(torch.tensor(part, dtype=torch.float32)) for part in (values[:cut], values[cut:])]
    gone: list[torch.Tensor | None] = [None, None]
    before = 0
    for count in sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=4))):
        known = (
            [] if gone[0] is None else torch.cat([m for m in gone if m is not None]).nonzero()[:, 0].tolist()
        )
        rank = sorted(range(len(values)), key=lambda i: (i not in known, abs(values[i]), i))
        gone = list(smallest(weights, gone, count))
        assert torch.cat([m for m in gone if m is not None]).nonzero()[:, 0].tolist() == sorted(rank[:count])
        assert before <= count
        before = count


HOSTILE = {"peak_lr": 0.05, "weight_decay": 2.0, "beta1": 0.95, "eps": 1e-3, "decay": "all"}


def batch_of(config: RunConfig, step: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows = np.random.default_rng(step).integers(0, 32, (4, config.model.seq_len + 1))
    return rows[:, :-1], rows[:, 1:]


@pytest.mark.parametrize("structure", ["dense", "lowrank-63", "blockshuffle-63"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_is_gone_stays_gone(scope: str, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(
        structure=structure, prune={"sparsity": 0.75, "every": 3, "scope": scope}, optim=HOSTILE
    )
    step = TrainStep(config, Execution(device="cpu", attention="matmul"), torch.device("cpu"), World())
    weights = prunable_weights(step.network)
    clip = nn.utils.clip_grad_norm_

    def watched(parameters: Any, most: float) -> torch.Tensor:
        for weight, mask in zip(weights, masks, strict=True):
            assert weight.grad is not None
            assert not weight.grad[mask].any(), "a removed weight adds to the gradient's norm"
        return clip(parameters, most)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    masks = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights]
    there = []
    for number in range(config.steps):
        there.append(sum(int((~mask).sum()) for mask in masks))
        step(number, *batch_of(config, number))
        now = [step.optimizer.state[weight].get(GONE, torch.zeros_like(mask)) for weight, mask in zip(
            weights, masks, strict=True)]  # fmt: skip
        assert all(bool(mask[old].all()) for mask, old in zip(now, masks, strict=True)), "a mask grew smaller"
        masks = now
        assert sum(int(mask.sum()) for mask in masks) == removed_weights(config, number + 1)
        for weight, mask in zip(weights, masks, strict=True):
            assert not weight[mask].any()
            assert bool(weight[~mask].all()), "a weight that is there became zero"
            assert not step.optimizer.state[weight]["exp_avg"][mask].any()
            if scope == "layer":
                assert int(mask.sum()) == removed(config.prune, config.steps, mask.numel(), number + 1)  # type: ignore[arg-type]
    rest = model_counts(config.model).params_total - model_counts(config.model).params_non_embedding
    assert average_params(config, config.steps) == Fraction(sum(there), config.steps) + rest
    # Kernels multiply by the zeros as well; the other convention leaves them out.
    with FlopCounterMode(display=False) as counter:
        step(config.steps - 1, *batch_of(config, 0))
    executed = config.steps * counter.get_total_flops()
    assert executed == spent_flops(config, config.steps)
    lost = sum(sum(w.numel() for w in weights) - n for n in there)
    assert spent_flops(config, config.steps, "sparse") == executed - 6 * 64 * lost


def test_training_equals_adamw_with_masks_by_hand() -> None:
    """Weights and moments multiplied by masks behind every plain step of torch's own AdamW."""
    config = config_of(optim={"weight_decay": 0.5, "clip": 1e9})
    execution = Execution(device="cpu", attention="matmul")
    ours = TrainStep(config, execution, torch.device("cpu"), World())
    network = build_network(config.model, "matmul")
    network.load_state_dict(ours.network.state_dict())
    decayed = [p for p in network.parameters() if p.ndim >= 2]
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.5},
         {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0}],
        betas=(0.9, 0.95), foreach=False,
    )  # fmt: skip
    weights = prunable_weights(network)
    masks = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights]
    for number in range(config.steps):
        inputs, targets = batch_of(config, number)
        ours(number, inputs, targets)
        network(torch.from_numpy(inputs), torch.from_numpy(targets)).mean().backward()
        for group in plain.param_groups:
            group["lr"] = ours.rate
        plain.step()
        plain.zero_grad()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(~mask)
                for name in ("exp_avg", "exp_avg_sq"):
                    plain.state[weight][name].mul_(~mask)
            flat = np.concatenate([weight.abs().numpy().ravel() for weight in weights])
            chosen = torch.zeros(flat.size, dtype=torch.bool)
            chosen[np.argsort(flat, kind="stable")[: removed_weights(config, number + 1)]] = True
            split = torch.split(chosen, [weight.numel() for weight in weights])
            masks = [part.view_as(weight) for part, weight in zip(split, weights, strict=True)]
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(~mask)
                for name in ("exp_avg", "exp_avg_sq"):
                    plain.state[weight][name].mul_(~mask)
    for a, b in zip(ours.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# Runs


@pytest.fixture(scope="module", params=["global", "layer"])
def pruned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    change = {"structure": "lowrank-50", "prune": {**PRUNED["prune"], "scope": request.param}}
    folder = tmp_path_factory.mktemp("pruned") / "run"
    assert run(folder, **change) == "done"
    return change, folder


@pytest.mark.parametrize("step", [7, 9, 10, 17, 29])
def test_stopped_at_any_step_is_bit_identical(
    tmp_path: Path, pruned: tuple[dict[str, Any], Path], step: int
) -> None:
    change, reference = pruned
    folder = tmp_path / "run"
    assert run(folder, should_stop=stop_at(step), **change) == "preempted"
    assert any(f".{GONE}." in name for name in load_file(list_checkpoints(folder)[0])) == (step >= 10)
    assert run(folder, **change) == "done"
    same_run(folder, reference)


@pytest.mark.parametrize("step", [12, 20])
def test_killed_between_checkpoints_is_bit_identical(
    tmp_path: Path, pruned: tuple[dict[str, Any], Path], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, reference = pruned
    ticks = iter(range(10**6))
    monkeypatch.setattr("trainer.loop.time.monotonic", lambda: float(next(ticks)))
    folder = tmp_path / "run"
    execution = Execution(device="cpu", threads=1, checkpoint_seconds=4, heartbeat_seconds=1e9)
    with pytest.raises(Killed):
        run(folder, execution, stop_at(step, Killed), **change)
    monkeypatch.undo()
    assert run(folder, **change) == "done"
    same_run(folder, reference)


def test_what_a_pruned_run_records(pruned: tuple[dict[str, Any], Path]) -> None:
    change, folder = pruned
    config, result = resolve(merge(TINY, change), "t"), read_result(folder)
    assert result is not None
    counts = model_counts(config.model)
    naive = sum(params_active(config, step) for step in range(config.steps)) / config.steps
    assert result["params"] == counts.params_total
    assert result["params_avg"] == round(naive) < result["params"]
    assert result["sparsity"] == 0.75 and result["structure"] == "lowrank-50, pruned 75%"
    assert result["train_flops"] == result["flops"]["paper"] > result["flops"]["sparse"]
    assert result["flops"].keys() == set(CONVENTIONS)
    network = build_network(config.model)
    assert load_weights(folder, network) == config.steps
    whole, step = load_network(find_run(str(folder), folder.parent))
    assert step == config.steps
    for loaded in (network, whole):
        zeros = sum(int((weight == 0).sum()) for weight in prunable_weights(loaded))
        assert result["params"] - zeros == result["params_final"] == params_active(config, config.steps)


def test_a_whole_run_had_on_average_what_it_has(tmp_path: Path) -> None:
    run(tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result["params_avg"] == result["params"]
    assert result["flops"]["sparse"] == result["flops"]["paper"]
    assert not {"params_final", "sparsity", "params_once", "train_flops_sparse"} & result.keys()


def test_a_diverged_run_counts_what_it_did(tmp_path: Path) -> None:
    """Its loss is refused from the start of pruning on, wherever that was noticed."""
    change = {**PRUNED, "prune": {"sparsity": 0.9, "start": 0.0, "stop": 0.1, "every": 1}}
    optim = {"peak_lr": 9.0, "clip": 1e9, "warmup_fraction": 0.0}
    assert run(tmp_path / "run", optim=optim, **change) == "diverged"
    result, config = read_result(tmp_path / "run"), resolve(merge(TINY, {"optim": optim, **change}), "t")
    assert result is not None
    done = result["steps"]
    active = [params_active(config, step) for step in range(done + 1)]
    assert 0 < done < 30
    assert result["params_avg"] == round(Fraction(sum(active[:done]), done))
    assert result["params_final"] == active[done]


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


@pytest.mark.slow
def test_two_processes_train_the_same_pruned_run(tmp_path: Path) -> None:
    change = {"structure": "dense", **PRUNED}
    run(tmp_path / "one", EVERY_STEP, **change)
    config = tmp_path / "run.toml"
    write_config(config, merge(TINY, change))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    folder = tmp_path / "two"
    processes = [start_cli(folder, tmp_path, config, **env, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    for (_, a, _), (_, b, _) in zip(losses(folder), losses(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    masks = [load_file(list_checkpoints(path)[0]) for path in (folder, tmp_path / "one")]
    gone = [sum(int(t.sum()) for name, t in mask.items() if f".{GONE}." in name) for mask in masks]
    assert gone[0] == gone[1] > 0


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
