"""The bench commands: rounds in turn, rows that replace their like, refusals in one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import pbkdf2_hmac
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from trainer.bench import decode, ffn, train
from trainer.bench.commands import bench_app
from trainer.bench.ffn import Group, contestant
from trainer.bench.table import merge_rows, read_rows
from trainer.bench.timing import Seconds, interleaved, median_interval, out_of_memory, quotients
from trainer.errors import TrainerError
from trainer.flops import flops_per_step, flops_per_token
from trainer.models.transformer import StructuredLinear
from trainer.presets import resolve

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    """Commands that run in this process set them."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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


def test_quotients_are_taken_round_by_round() -> None:
    assert quotients("x", [2.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == {"x": 3.0, "x_min": 2.0, "x_max": 4.0}
    assert quotients("x", [], [1.0]) == quotients("x", [1.0], []) == {"x": None, "x_min": None, "x_max": None}


def test_interval_of_a_median_by_the_tables_of_order_statistics() -> None:
    assert median_interval(range(1, 6)) == (None, None)
    assert median_interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    # Ranks 6 and 15 of 20, 40 and 61 of 100, as printed in tables of the binomial distribution.
    assert median_interval(range(1, 21)) == (6, 15)
    assert median_interval(range(1, 101)) == (40, 61)


def test_processor_time_leaves_out_waiting_and_counts_every_thread() -> None:
    start = Seconds.now()
    time.sleep(0.1)
    slept = Seconds.now().since(start)
    assert slept.wall >= 0.1 and slept.processor < 0.05

    def work(seconds: float) -> None:
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pbkdf2_hmac("sha256", b"a", b"", 1000)

    start = Seconds.now()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0.1, 0.1)))
    assert Seconds.now().since(start).processor > 0.19


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


def degenerate(network: torch.nn.Module) -> bool:
    """Whether a sparse part has several entries in one place."""
    layers = [part for part in network.modules() if isinstance(part, StructuredLinear)]
    supports = [layer.weights["support"] for layer in layers if layer.structure.kind == "sltrain"]
    assert supports
    return any(support.unique().numel() < support.numel() for support in supports)


def test_a_sparse_part_is_timed_on_a_support_as_a_run_draws_it() -> None:
    assert not degenerate(contestant(Group(64, 32, "fp32", False), "sltrain-63", CPU).ffn)
    model = {"d_model": 32, "n_layers": 3, "n_heads": 4, "seq_len": 16, "vocab_size": 20}
    optim = {"peak_lr": 1e-3, "batch_tokens": 16}
    config = resolve({"model": model, "structure": "sltrain-63", "tokens": 16, "optim": optim}, "t")
    assert not degenerate(decode.build(config, CPU).network)


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


TINY = ("--d-model", "16", "--n-layers", "2", "--n-heads", "2", "--vocab", "16", "--device", "cpu")
TINY_TRAIN = (
    *TINY, "--seq-len", "8", "--batch", "2", "--steps", "1", "--warmup", "1", "--threads", "1",
    "--precisions", "fp32",
)  # fmt: skip


def test_training_is_held_against_dense_and_old_rows_stay(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "bench" / "train.csv"
    old = {**dict.fromkeys(train.KEY, "1"), "device": "old", "tokens_per_second": 5.0}
    merge_rows(path, [old], train.KEY)
    arguments = ("train", *TINY_TRAIN, "--structures", "lowrank-32, lowrank-63", "--repeats", "4")
    ran = CliRunner().invoke(bench_app, [*arguments, "--results", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    lines = [line for line in ran.stdout.splitlines() if " over dense x" in line]
    assert [line.split()[0] for line in lines] == ["dense", "lowrank-32", "lowrank-63"]
    rows = {row["structure"]: row for row in read_rows(path)}
    assert (rows["1"]["tokens_per_second"], rows["1"]["speedup"]) == ("5", "")
    spread = [
        [float(rows[n][f"speedup{end}"]) for end in ("_min", "", "_max")] for n in ("dense", "lowrank-32")
    ]
    assert spread[0] == [1, 1, 1] and spread[1] == sorted(spread[1]) and spread[1][0] < spread[1][2]


def no_memory(*arguments: object, **more: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_training_that_fits_alone_but_not_side_by_side_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "interleaved", no_memory)
    arguments = ["train", *TINY_TRAIN, "--structures", "lowrank-32", "--results", str(tmp_path)]
    ran = CliRunner().invoke(bench_app, arguments)
    assert ran.exit_code == 0 and ran.exception is None, ran.output
    assert ran.stdout.splitlines() == ["all: out of memory with all configurations side by side"]
    assert not read_rows(tmp_path / "tables" / "bench" / "train.csv")


def test_ffns_are_shown_where_the_dense_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(group: Group, structure: str, device: torch.device) -> ffn._Contestant:
        if structure == "dense":
            no_memory()
        return contestant(group, structure, device)

    monkeypatch.setattr(ffn, "contestant", small)
    arguments = ["ffn", "--widths", "32", "--tokens", "32", "--structures", "lowrank-32", "--repeats", "1"]
    ran = CliRunner().invoke(bench_app, [*arguments, "--device", "cpu", "--results", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    dense, structured = (next(li for li in ran.stdout.splitlines() if n in li) for n in ("dense", "lowrank"))
    assert "out of memory" in dense and "FLOPs x3.2" in structured and "ms -" in structured
    rows = read_rows(tmp_path / "tables" / "bench" / "ffn.csv")
    assert [(row["structure"], row["speedup"]) for row in rows] == [("lowrank-32", "")] * 2


def test_generation_is_timed_by_the_processor_too(tmp_path: Path) -> None:
    arguments = (
        "decode", *TINY, "--structures", "lowrank-32", "--premerge", "never", "--batches", "1", "--length",
        "16", "--repeats", "8", "--threads", "1",
    )  # fmt: skip
    ran = CliRunner().invoke(bench_app, [*arguments, "--results", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    rows = {row["structure"]: row for row in read_rows(tmp_path / "tables" / "bench" / "decode.csv")}
    assert {float(rows["dense"][f"cpu_ms_over_dense{end}"]) for end in ("", "_min", "_max")} == {1.0}
    row = rows["lowrank-32, premerge=never"]
    low, middle, high = (float(row[f"cpu_ms_over_dense{end}"]) for end in ("_min", "", "_max"))
    assert low <= middle <= high and low < high
    # Of eight rounds the interval is from the least to the most.
    assert (float(row["cpu_ms_over_dense_low"]), float(row["cpu_ms_over_dense_high"])) == (low, high)
    assert float(row["cpu_ms"]) > 0


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
