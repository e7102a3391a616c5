"""Self-guided training: published counts, the schedule, the draws, kill and resume within guidance."""

from __future__ import annotations

import csv
import math
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from tests.test_loop import EVERY_STEP, Killed, losses, run, start_cli, stop_at, write_config
from tests.test_loop import TINY as UNGUIDED
from trainer.batches import Batches
from trainer.checkpoint import list_checkpoints, load_weights
from trainer.corpora import prepare
from trainer.distributed import World
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.flops import describe, flops_per_token, guide_flops_per_token, spent_flops
from trainer.guidance import expected_passes, guide_weight
from trainer.models.guide import branch_runs, drawn_guide_flops
from trainer.models.transformer import Transformer
from trainer.presets import merge, resolve
from trainer.rundir import read_metrics, read_result
from trainer.step import TrainStep

PUBLISHED = Path(__file__).parent.parent / "results" / "published"
GUIDED = merge(UNGUIDED, {"guide": {"mode": "fixed_steps", "fraction": 0.7}})


def computed_rows() -> list[dict[str, str]]:
    with open(PUBLISHED / "structuredffn_computed_flops.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["variant"] != "basic"]


def config_of(row: dict[str, str]) -> dict[str, Any]:
    """The run that a row of the published method stands for."""
    partial: dict[str, Any] = {"preset": f"paper-{row['size']}", "structure": "dense"}
    if row["structure"] != "dense":
        fields = {"rank": row["rank"], "n_blocks": row["nblocks"]}
        partial["structure"] = {"kind": row["structure"], **{k: int(v) for k, v in fields.items() if v}}
    variant = row["variant"]
    if variant.startswith("more_tokens"):
        partial["budget"] = {"equal": "flops"}
    else:
        partial["budget"] = {"tokens": int(row["tokens_arg"])}
    if "selfguided" in variant:
        mode = "fixed_steps" if "fixedstep" in variant else "fixed_flops"
        fraction = float(variant.rstrip(")").split("selfguided")[1].split("_")[-1])
        partial["guide"] = {"mode": mode, "fraction": fraction}
    if variant == "GQA" or variant.startswith("wide"):
        attn_dim, kv = int(row["attn_dim"]), {"m": 4, "l": 2}[row["size"]]
        head = 64 if row["size"] == "m" else 128
        if variant.startswith("wide"):
            kv, head = 4, 64
        partial["model"] = {
            "attn_dim": attn_dim,
            "n_heads": attn_dim // head,
            "n_kv_heads": kv,
            "d_ff": int(row["ffn_dim"]),
        }
    return partial


ROWS = computed_rows()


def test_every_row_of_the_method_is_there() -> None:
    kinds = [row["variant"].split("_")[0] for row in ROWS]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "selfguided": 18, "more": 12, "GQA": 2, "wide": 4
    }  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['size']}-{r['structure']}-{r['variant'][:24]}")
def test_published_method_row_to_the_last_digit(row: dict[str, str]) -> None:
    counts = describe(resolve(config_of(row), "test"))
    assert counts["params_total"] == int(row["params_total_incl_bias_norm"])
    assert counts["params_ffn"] == int(row["ffn_params"])
    assert counts["steps"] == int(row["steps"])
    assert counts["guided_steps"] == int(row["guided_steps"])
    assert counts["tokens"] == int(row["tokens_seen"])
    assert counts["unique_tokens"] == int(row["unique_tokens"])
    assert counts["forward_flops_per_token"] == int(float(row["fwd_flops_per_token"]))
    assert float(counts["train_flops"]) == float(row["training_flops"])


def test_published_wide_table() -> None:
    """Parameters, FLOPs and tokens as the table prints them."""
    with open(PUBLISHED / "structuredffn_table2_wide_gqa.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8
    for printed in table:
        size = printed["model"].split()[0 if "Transformer" in printed["model"] else 1].split("-")[-1]
        if "Ours" in printed["model"]:
            variants = [v for v in (r["variant"] for r in ROWS if r["size"] == size) if v.startswith("wide")]
            variant = next(v for v in variants if ("selfguided" in v) == ("self-guided" in printed["model"]))
        else:
            variant = "GQA" if "GQA" in printed["model"] else ""
        row = next((r for r in ROWS if r["size"] == size and r["variant"] == variant), None)
        partial = config_of(row) if row is not None else {"preset": f"paper-{size}"}
        counts = describe(resolve(partial, "test"))
        assert round(counts["params_total"] / 1e6) == int(printed["params_M"])
        assert f"{counts['train_flops']:.2e}" == f"{float(printed['training_flops']):.2e}"
        assert f"{counts['unique_tokens'] / 1e9:.1f}" == f"{float(printed['tokens_B']):.1f}"


@pytest.mark.parametrize("structure", ["lowrank-32", "blockdense-63", "blockshuffle-32"])
@pytest.mark.parametrize("stochastic", [True, False])
def test_fixed_flops_reach_the_dense_run_from_below(structure: str, stochastic: bool) -> None:
    guide = {"mode": "fixed_flops", "stochastic": stochastic}
    config = resolve({"preset": "cpu-s", "structure": structure, "guide": guide}, "t")
    dense = describe(resolve({"preset": "cpu-s"}, "t"))["train_flops"]
    spent = describe(config)["train_flops"]
    one_more = (flops_per_token(config.model) + guide_flops_per_token(config.model)) * 2048
    assert dense - one_more < spent <= dense


def test_the_weight_falls_from_one_to_zero_with_mean_one_half() -> None:
    weights = [guide_weight(step, 37) for step in range(40)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 0.99
    assert 0 < weights[36] < 0.01
    assert weights[37:] == [0.0, 0.0, 0.0]
    assert math.fsum(weights) == pytest.approx(37 / 2, abs=1e-12)
    for done in range(38):
        passes = expected_passes(done, 37, stochastic=True)
        assert float(passes) == pytest.approx(math.fsum(weights[:done]), abs=1e-9)
    assert expected_passes(50, 37, stochastic=True) * 2 == 37
    assert expected_passes(50, 37, stochastic=False) == 37


def test_draws_have_the_probability_of_the_weight_and_are_independent() -> None:
    guided = 4000
    drawn = torch.tensor([branch_runs(7, step, 8, guided).tolist() for step in range(guided)]).double()
    weights = torch.tensor([guide_weight(step, guided) for step in range(guided)]).double()
    noise = drawn - weights[:, None]
    # Five standard errors of a mean of Bernoulli draws, and of products of two of them.
    assert (noise.mean(dim=0).abs() < 5 * 0.5 / math.sqrt(guided)).all()
    assert ((noise.T @ noise / guided).fill_diagonal_(0).abs() < 5 * 0.25 / math.sqrt(guided)).all()
    assert (branch_runs(7, 5, 8, guided) == branch_runs(7, 5, 8, guided)).all()
    assert any(
        (branch_runs(7, s, 8, guided) != branch_runs(8, s, 8, guided)).any() for s in range(2000, 2010)
    )


def guided_step(change: dict[str, Any]) -> TrainStep:
    config = resolve(merge(GUIDED, change), "t")
    return TrainStep(config, Execution(device="cpu"), torch.device("cpu"), World())


@pytest.mark.parametrize("structure", ["lowrank-50", "blockdense-63", "blockshuffle-32"])
def test_a_guide_starts_as_the_map_that_it_guides(structure: str) -> None:
    step = guided_step({"structure": structure, "guide": {"stochastic": False}})
    assert step.guidance is not None
    tokens = torch.arange(32).view(2, 16)
    plain = step.network.eval().logits(tokens)
    step.network.train()
    for at in (0, 10):
        step.guidance.set(at)
        torch.testing.assert_close(step.network.logits(tokens), plain, rtol=1e-4, atol=1e-5)
    # Half way, another dense matrix counts with the cosine's weight.
    module = step.guidance.maps[0]
    x = torch.randn(5, module.d_in)
    guide = step.guidance.guides[0]
    with torch.no_grad():
        guide.weight.normal_()
        want = guide.mix * (x @ guide.weight.T) + (1 - guide.mix) * (x @ module.merged_weight().T)
        torch.testing.assert_close(module(x), want + module.bias, rtol=1e-4, atol=1e-5)
        guide.runs = False
        torch.testing.assert_close(module(x), x @ module.merged_weight().T + module.bias)


def test_flops_of_a_guided_step_are_those_that_torch_counts() -> None:
    step = guided_step({"structure": "lowrank-50"})
    config = step.config
    corpus_batch = (torch.randint(0, 32, (4, 16)).numpy(), torch.randint(0, 32, (4, 16)).numpy())
    counted = []
    for at in range(6):
        with FlopCounterMode(display=False) as counter:
            step(at, *corpus_batch)
        counted.append(counter.get_total_flops())
    plain = TrainStep(
        resolve(merge(UNGUIDED, {"structure": "lowrank-50"}), "t"),
        Execution(device="cpu"),
        torch.device("cpu"),
        World(),
    )
    with FlopCounterMode(display=False) as counter:
        plain(0, *corpus_batch)
    assert sum(counted) - 6 * counter.get_total_flops() == drawn_guide_flops(config, 6)
    assert drawn_guide_flops(config, 6) > 0


@pytest.fixture(scope="module", params=["fixed_steps", "fixed_flops", "static"])
def guided(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    mode = (
        {"mode": "fixed_steps", "stochastic": False} if request.param == "static" else {"mode": request.param}
    )
    change = {"guide": {**mode, "fraction": 0.5}, "structure": "lowrank-50"}
    folder = tmp_path_factory.mktemp("guided") / "run"
    assert run(folder, **change) == "done"
    return change, folder


@pytest.mark.parametrize("step", [1, 7, 14, 15, 16, 29])
def test_stopped_within_and_behind_guidance_is_bit_identical(
    tmp_path: Path, guided: tuple[dict[str, Any], Path], step: int
) -> None:
    change, reference = guided
    folder = tmp_path / "run"
    assert run(folder, should_stop=stop_at(step), **change) == "preempted"
    names = load_file(list_checkpoints(folder)[0])
    assert any("guide" in name for name in names) == (step < 15)
    assert run(folder, **change) == "done"
    same_run(folder, reference)


@pytest.mark.parametrize("step", [5, 13, 17])
def test_killed_within_guidance_is_bit_identical(
    tmp_path: Path, guided: tuple[dict[str, Any], Path], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, reference = guided
    ticks = iter(range(10**6))
    monkeypatch.setattr("trainer.loop.time.monotonic", lambda: float(next(ticks)))
    folder = tmp_path / "run"
    execution = Execution(device="cpu", threads=1, checkpoint_seconds=4, heartbeat_seconds=1e9)
    with pytest.raises(Killed):
        run(folder, execution, stop_at(step, Killed), **change)
    monkeypatch.undo()
    assert run(folder, **change) == "done"
    same_run(folder, reference)


def same_run(folder: Path, reference: Path) -> None:
    assert losses(folder) == [entry for entry in losses(reference)]
    ours, theirs = read_result(folder), read_result(reference)
    assert ours is not None
    assert theirs is not None
    for key in ("val_loss", "val_loss_se", "train_loss", "train_flops", "tokens", "guide_flops_drawn"):
        assert ours[key] == theirs[key], key
    files = [load_file(list_checkpoints(path)[0]) for path in (folder, reference)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_what_a_guided_run_records(guided: tuple[dict[str, Any], Path]) -> None:
    change, folder = guided
    result, lines = read_result(folder), read_metrics(folder)
    assert result is not None
    config = resolve(merge(UNGUIDED, change), "t")
    assert result["guide_mode"] == config.guide.mode
    assert result["guided_steps"] == 15
    assert result["unique_tokens"] == 30 * 64
    assert result["tokens"] == (45 if config.guide.mode == "fixed_flops" else 30) * 64
    assert result["train_flops"] == spent_flops(config, config.steps)
    assert [line["guide_weight"] for line in lines] == [guide_weight(s, 15) for s in range(len(lines))]
    # A guided checkpoint serves as a model: the guides are not part of it.
    network = Transformer(config.model)
    assert load_weights(folder, network) == config.steps


def test_a_stop_within_guidance_leaves_a_usable_model(tmp_path: Path) -> None:
    run(tmp_path / "run", should_stop=stop_at(3), **{"guide": {"mode": "fixed_steps"}})
    assert load_weights(tmp_path / "run", Transformer(resolve(UNGUIDED, "t").model)) == 3


def test_fixed_flops_repeat_the_guided_batches(tmp_path: Path) -> None:
    config = resolve(merge(UNGUIDED, {"guide": {"mode": "fixed_flops", "fraction": 0.5}}), "t")
    batches = Batches(prepare(config.data, tmp_path, progress=False), 1, 16, config.batch_sequences, 1)
    seen = [batches.batch(config.data_step(step))[0] for step in range(config.steps)]
    assert len(seen) == 45
    assert all((seen[30 + k] == seen[k]).all() for k in range(15))
    assert not any((seen[k] == seen[j]).all() for k in range(30) for j in range(k))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"structure": "dense", "guide": {"mode": "fixed_steps"}}, "no FFN is structured"),
        ({"guide": {"fraction": 0.5}}, 'nothing while mode = "none"'),
        ({"guide": {"mode": "fixed_steps", "fraction": 0.01}}, "less than one step"),
        ({"guide": {"mode": "fixed_steps", "steps": 3}}, "leave it out"),
        ({"guide": {"mode": "fixedsteps"}}, "guide.mode"),
        ({"guide": {"mode": "fixed_flops"}, "structure": {"kind": "lowrank", "rank": 16}}, "costs as much"),
    ],
    ids=str,
)
def test_mistakes_are_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        resolve(merge(UNGUIDED, change), "file.toml")
    assert str(caught.value).startswith("file.toml: ")
    assert "\n" not in str(caught.value)


def test_a_resolved_guide_reads_back_as_itself() -> None:
    config = resolve(merge(UNGUIDED, {"guide": {"mode": "fixed_flops"}}), "t")
    assert type(config).model_validate_json(config.canonical_json()) == config
    assert (config.guide.steps or 0) > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiling_a_guided_run_changes_only_rounding(tmp_path: Path) -> None:
    change = {"guide": {"mode": "fixed_steps"}}
    run(tmp_path / "eager", **change)
    run(tmp_path / "compiled", Execution(device="cpu", threads=1, compile=True), **change)
    for (_, a, _), (_, b, _) in zip(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_the_same_guided_run(tmp_path: Path) -> None:
    run(tmp_path / "one", EVERY_STEP, **{"guide": {"mode": "fixed_steps"}})
    config = tmp_path / "run.toml"
    write_config(config, merge(UNGUIDED, {"guide": {"mode": "fixed_steps"}}))
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
        assert a == pytest.approx(b, rel=1e-5)
