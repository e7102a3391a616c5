"""The bench commands: rounds in turn, rows that replace their like, refusals in one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.bench.ffn import Group, contestant
from trainer.bench.table import merge_rows, read_rows
from trainer.bench.timing import interleaved, out_of_memory
from trainer.errors import TrainerError
from trainer.flops import flops_per_step, flops_per_token
from trainer.presets import resolve

CPU = torch.device("cpu")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer", "bench", *arguments], capture_output=True, text=True, timeout=250
    )


def test_alternatives_are_called_in_turn_and_warm_ups_are_not_counted() -> None:
    calls: list[str] = []
    actions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = interleaved(actions, CPU, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_short_calls_are_repeated_until_they_took_long_enough() -> None:
    timings = interleaved({"a": lambda: time.sleep(0.001)}, CPU, repeats=2, least_seconds=0.1)
    assert len(timings["a"].seconds) > 10
    assert 0.001 <= timings["a"].fastest <= timings["a"].median <= timings["a"].slowest


def test_a_deadline_leaves_one_round() -> None:
    timings = interleaved({"a": lambda: None, "b": lambda: None}, CPU, 100, deadline=time.perf_counter())
    assert [len(timing.seconds) for timing in timings.values()] == [1, 1]


def test_rows_replace_their_like_and_leave_other_machines_alone(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "bench" / "x.csv"
    merge_rows(path, [{"width": 64, "device": "cpu", "ms": 1.23456789}], ("width", "device"))
    merge_rows(path, [{"width": 8, "device": "gpu", "ms": 0.1, "speedup": None}], ("width", "device"))
    merge_rows(path, [{"width": 64, "device": "cpu", "ms": 2.0}], ("width", "device"))
    assert read_rows(path) == [
        {"width": "8", "device": "gpu", "ms": "0.1", "speedup": ""},
        {"width": "64", "device": "cpu", "ms": "2", "speedup": ""},
    ]


def test_a_file_that_is_no_bench_table_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(TrainerError, match="no column width"):
        merge_rows(path, [{"width": 64}], ("width",))
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    "structure", ["dense", "lowrank-32", "blockdense-63", "blockshuffle-32", "monarch-32", "sltrain-32"]
)
def test_what_is_timed_is_a_whole_ffn_with_all_its_gradients(structure: str) -> None:
    made = contestant(Group(64, 32, "fp32", False), structure, CPU)
    hooks = {name: 0 for name, _ in made.ffn.named_parameters()}
    for name, parameter in made.ffn.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: hooks.update({name: int(p.grad is not None)})
        )
    made.train()
    assert set(hooks.values()) == {1}
    with FlopCounterMode(display=False) as counter:
        made.forward()
    assert made.flops == counter.get_total_flops()
    assert any(p.ndim == 1 for p in made.ffn.parameters()), "no bias"


def test_running_out_of_memory_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_ffn_command_writes_rows_and_tells_widths_that_do_not_divide(tmp_path: Path) -> None:
    ran = bench(
        "ffn", "--widths", "30,32", "--tokens", "64", "--structures", "lowrank-32,blockshuffle-32",
        "--repeats", "2", "--results", str(tmp_path), "--json", "--device", "cpu", "--threads", "1",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    (refused,) = (row for row in rows if "error" in row)
    assert (refused["width"], refused["structure"]) == (30, "blockshuffle-32")
    assert "does not divide" in refused["error"]
    with open(tmp_path / "tables" / "bench" / "ffn.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) - 1 == 2 * (2 + 3)
    dense = [row for row in rows if row["structure"] == "dense" and "error" not in row]
    assert all(row["speedup"] == 1 for row in dense)
    (limit,) = {
        row["flops_limit"] for row in rows if row["structure"] == "blockshuffle-32" and "error" not in row
    }
    assert limit == pytest.approx(3.2)


def test_train_command_measures_a_preset_with_fewer_sequences(tmp_path: Path) -> None:
    ran = bench(
        "train", "--preset", "cpu-2xs", "--structures", "dense, sltrain-32", "--precisions", " fp32",
        "--batch", "2", "--steps", "1", "--warmup", "1", "--repeats", "1", "--json",
        "--results", str(tmp_path),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    assert [(row["size"], row["structure"]) for row in rows] == [
        ("cpu-2xs", "dense"),
        ("cpu-2xs", "sltrain-32"),
    ]
    assert {row["batch_tokens"] for row in rows} == {256}
    for row in rows:
        model = resolve({"preset": "cpu-2xs", "structure": row["structure"]}, "t").model
        flops = flops_per_step(model, 256)
        assert row["flops_per_second"] == pytest.approx(flops * row["tokens_per_second"] / 256)
    assert flops > 256 * flops_per_token(model)
    assert len(read_rows(tmp_path / "tables" / "bench" / "train.csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ffn", "--widths", "x"), "--widths x"),
        (("ffn", "--structures", "lowrnk-32"), "did you mean 'lowrank-32'"),
        (("ffn", "--precisions", "fp8"), "known are fp32 and bf16"),
        (("train", "--preset", "cpu-7"), "unknown preset"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    ran = bench(*arguments)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
