"""Pruned networks and runs: masks, that what is gone stays gone, kill and resume, what is recorded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.test_guidance import same_run
from tests.test_loop import EVERY_STEP, TINY, Killed, losses, run, start_cli, stop_at, write_config
from tests.test_pruning import PRUNED, config_of
from trainer.checkpoint import list_checkpoints, load_weights
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.execution import Execution
from trainer.flops import (
    CONVENTIONS,
    average_params,
    model_counts,
    params_active,
    removed_weights,
    spent_flops,
)
from trainer.generate import find_run, load_network
from trainer.models.build import build_network
from trainer.models.prune import GONE, prunable_weights, smallest
from trainer.presets import merge, resolve
from trainer.pruning import removed
from trainer.rundir import read_result
from trainer.step import TrainStep


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products here are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
