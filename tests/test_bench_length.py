"""Time per token over length: what is timed, its columns, table and figure, and refusals in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from analysis import bench_tables
from analysis.errors import AnalysisError
from analysis.figures.lengths import length_figure
from analysis.figures.style import hovers
from analysis.lengths import read_lengths
from analysis.products import measured
from analysis.products.tracked import Tracked
from trainer.bench import length
from trainer.bench.commands import bench_app
from trainer.bench.length import DIRECTIONS, KEY, Ladder, Times
from trainer.bench.table import merge_rows, read_rows
from trainer.errors import ConfigError
from trainer.models.config import ModelConfig

CPU = torch.device("cpu")
SHAPE = {"d_model": 24, "n_heads": 2, "vocab_size": 16, "bias": False, "n_layers": 1}
MODELS = {
    "recurrent": ModelConfig.model_validate({**SHAPE, "kind": "recurrent", "recurrence": {"block": 8}}),
    "dense": ModelConfig.model_validate(SHAPE),
}
TINY = (
    "length", "--block", "8", "--d-model", "16", "--heads", "2", "--vocab", "16", "--repeats", "2",
    "--device", "cpu", "--threads", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    """Commands that run in this process set them."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ladder(tokens: int | None = 64, sequences: int | None = None) -> Ladder:
    return Ladder(MODELS, (16, 32, 64), tokens, sequences, "fp32")


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_timed_has_the_flops_that_are_told(kind: str) -> None:
    plan = ladder(128)
    made = length._Contestant(MODELS[kind], 32, plan.batch(32), "fp32", CPU)
    assert made.inputs.shape == (4, 32)
    # The counter does not know the fused kernel of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.forward()
    assert 3 * counter.get_total_flops() == plan.flops(kind, 32, 4)
    parameters = list(made.network.parameters())
    seen: set[int] = set()
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: seen.add(id(p)))
    made.train()
    assert seen == {id(parameter) for parameter in parameters}
    assert all(parameter.grad is None for parameter in parameters)


def times() -> Times:
    """Seconds per token of two rounds: recurrent 1 and 2, then twice that at 64; dense in proportion."""
    out: Times = {}
    for direction, factor in DIRECTIONS.items():
        for n in (16, 32, 64):
            slow = 2.0 if n == 64 else 1.0
            out["recurrent", n, direction] = [factor * slow * 1e-6, factor * slow * 2e-6]
            out["dense", n, direction] = [factor * n / 16 * 1e-6, factor * n / 16 * 4e-6]
    return out


def test_quotients_are_round_by_round_and_over_the_exact_flops() -> None:
    plan = ladder()
    row = length._row(plan, times(), "recurrent", 64, "forward+backward")
    assert (row["us_per_token"], row["us_per_token_min"], row["us_per_token_max"]) == pytest.approx(
        (9, 6, 12)
    )
    assert (row["shortest"], row["us_over_shortest"], row["us_over_shortest_max"]) == pytest.approx(
        (16, 2, 2)
    )
    # Over dense 2 / 4 in the first round and 4 / 16 in the second.
    over = [row[f"us_over_dense{end}"] for end in ("_min", "", "_max")]
    assert over == pytest.approx([0.25, 0.375, 0.5])
    # 12 D^2 weights a layer, twice for the recurrent one, V D of the head, and squares: 8 blocks of 8.
    d, v = 24, 16
    recurrent = 64 * (24 * d * d + v * d) * 2 + 4 * d * (2 * 8**2 + 7 * 16**2)
    dense = 64 * (12 * d * d + v * d) * 2 + 4 * d * 64**2
    exact = float(Fraction(recurrent, dense))
    assert row["flops_over_dense"] == pytest.approx(exact, rel=1e-12)
    assert row["cost_over_flops_max"] == pytest.approx(0.5 / exact)
    half = 64 * (24 * d * d + v * d) * 2 + 2 * d * (2 * 8**2 + 7 * 16**2)
    causal = float(Fraction(half, 64 * (12 * d * d + v * d) * 2 + 2 * d * 64**2))
    assert row["causal_flops_over_dense"] == pytest.approx(causal, rel=1e-12)
    assert row["cost_over_causal_flops_max"] == pytest.approx(0.5 / causal)
    assert row["flops_per_second"] == pytest.approx(3 * recurrent / 64 / 9e-6)
    dense_row = length._row(plan, times(), "dense", 64, "forward")
    assert dense_row["us_over_dense"] is dense_row["cost_over_flops"] is dense_row["block"] is None
    assert dense_row["us_over_shortest"] == pytest.approx(4)


def test_steps_have_the_same_tokens_or_the_same_sequences() -> None:
    assert [ladder(64).batch(n) for n in (16, 32, 64)] == [4, 2, 1]
    assert [ladder(None, 3).batch(n) for n in (16, 32, 64)] == [3, 3, 3]
    assert (ladder(64).step, ladder(None, 1).step) == ("64 tokens", "1 sequence")


def test_the_command_says_what_it_will_do_and_writes_a_table_that_can_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "bench" / "length.csv"
    old = {**dict.fromkeys(KEY, "1"), "device": "old"}
    merge_rows(path, [old], KEY)
    arguments = [*TINY, "--lengths", "32,16", "--tokens", "64", "--results", str(tmp_path)]
    ran = CliRunner().invoke(bench_app, arguments)
    assert ran.exit_code == 0, ran.output
    said = next(line for line in ran.stderr.splitlines() if "networks at" in line)
    assert said.startswith("2 networks at 16, 32 tokens, 64 tokens a step") and "2 rounds: about " in said
    assert sum(" tokens x " in line for line in ran.stdout.splitlines()) == 8
    assert ran.stdout.splitlines()[-2].startswith("recurrent, forward: at most x")
    rows = read_rows(path)
    assert rows[0]["device"] == "old" and len(rows) == 9
    new = [row for row in rows if row["device"] != "old"]
    assert {(r["kind"], r["block"], r["seq_len"], r["sequences"]) for r in new} == {
        ("recurrent", "8", "16", "4"), ("recurrent", "8", "32", "2"), ("dense", "", "16", "4"),
        ("dense", "", "32", "2"),
    }  # fmt: skip
    assert {row["repeats"] for row in new} == {"2"}
    again = CliRunner().invoke(bench_app, [*arguments, "--json"])
    printed = json.loads(again.stdout)
    assert len(printed) == 8 and len(read_rows(path)) == 9
    fixed = [*TINY, "--lengths", "16", "--sequences", "2", "--results", str(tmp_path / "b")]
    assert CliRunner().invoke(bench_app, fixed).exit_code == 0
    made = read_lengths(tmp_path / "b" / "tables" / "bench" / "length.csv")
    assert {row.step for row in made} == {"2 sequences a step"} and made[0].over_shortest == (1, 1, 1)
    length_figure(made)


def test_a_length_that_does_not_fit_is_a_row_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = length._Contestant.losses

    def small(self: length._Contestant) -> torch.Tensor:
        if self.length == 32 and self.network.model.kind == "transformer":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self)

    monkeypatch.setattr(length._Contestant, "losses", small)
    arguments = [*TINY, "--lengths", "16,32", "--tokens", "32", "--results", str(tmp_path)]
    ran = CliRunner().invoke(bench_app, arguments)
    assert ran.exit_code == 0, ran.output
    assert next(line for line in ran.stdout.splitlines() if "out of memory" in line).startswith("dense")
    rows = read_rows(tmp_path / "tables" / "bench" / "length.csv")
    assert len(rows) == 6
    # Without the dense network there is nothing to hold the recurrent one against at that length.
    assert {(r["seq_len"], bool(r["cost_over_flops"])) for r in rows if r["kind"] == "recurrent"} == {
        ("16", True), ("32", False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "x"), "--lengths x: give whole numbers"),
        (("--lengths", "24", "--tokens", "64"), "--tokens 64 is no multiple of length 24"),
        (("--tokens", "64", "--sequences", "2"), "--tokens and --sequences: give one"),
        (("--precision", "fp8"), "known are fp32 and bf16"),
        (("--heads", "3"), "n_heads = 3 does not divide"),
        (("--mix", "half"), "recurrence.mix = 'half'"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    ran = CliRunner().invoke(bench_app, [*TINY, *arguments])
    assert isinstance(ran.exception, ConfigError)
    assert message in str(ran.exception) and "\n" not in str(ran.exception)


LONG = (256, 1024, 4096, 16384)


def written(path: Path, sequences: int | None = None, device: str = "AMD EPYC") -> None:
    """A table as of a machine whose recurrent network is 8 % slower at the longest length."""
    plan = Ladder(MODELS, LONG, None if sequences else 16384, sequences, "fp32")
    draws, out = np.random.default_rng(0), dict[tuple[str, int, str], list[float]]()
    for kind in MODELS:
        for n in LONG:
            for direction in DIRECTIONS:
                seconds = plan.flops(kind, n, 1) / n * DIRECTIONS[direction] * 1e-11
                if kind == "recurrent":
                    seconds *= 1.2 + 0.1 * n / LONG[-1]
                out[kind, n, direction] = list(seconds * np.exp(0.01 * draws.standard_normal(5)))
    place = {"device": device, "threads": 2, "torch": "2.13.0"}
    merge_rows(path, [{**length._row(plan, out, *which), **place} for which in out], KEY)


def test_table_and_figure_show_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "bench" / "length.csv"
    written(path)
    written(path, 8, "NVIDIA H200")
    first, second = bench_tables.bench_tables("length", path)
    assert "AMD EPYC, 2 threads, fp32 eager, d_model 24, 2 heads, 16,384 tokens a step" in first.caption
    assert "8 sequences a step" in second.caption and len(first.rows) == len(second.rows) == 16
    assert first.rows[0][:5:2] == ["forward", "256", first.rows[0][4]] and first.rows[0][5] == "1"
    texts = bench_tables.markdown("length", [first, second]), bench_tables.latex("length", [first, second])
    assert "256 tokens" in texts[0] and texts[1].isascii()
    rows = read_lengths(path)
    drawn = hovers(length_figure(rows))
    # Two columns of: four lines of times, and of the recurrent network two in the middle and four beneath.
    assert len(drawn) == 2 * (4 + 2 + 4) and all(len(h.texts) == len(LONG) for _, h in drawn)
    flat = [line for line, h in drawn if "times its time per token" in h.texts[0]]
    for line in flat:
        assert 1.03 < float(np.asarray(line.get_ydata())[-1]) < 1.15
    causal = [np.asarray(line.get_ydata()) for line, h in drawn if "causal FLOPs over dense" in h.texts[0]]
    assert len(causal) == 4 and all(float(cost[-1]) < 1 for cost in causal)
    costs = [np.asarray(line.get_ydata()) for line, h in drawn if "times FLOPs over dense" in h.texts[0]]
    assert len(costs) == 4 and all(1.15 < float(cost.min()) and float(cost.max()) < 1.35 for cost in costs)
    products = [p.name for p in measured.products(Tracked(tmp_path, None))]
    assert products == ["bench_length", "length"]


def test_lengths_without_a_dense_network_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "length.csv"
    written(path)
    rows = [row for row in read_rows(path) if row["kind"] == "recurrent"]
    alone = [{k: "" if "dense" in k or "cost" in k else v for k, v in row.items()} for row in rows]
    path.unlink()
    merge_rows(path, alone, KEY)
    found = read_lengths(path)
    assert all(math.isnan(row.cost[0]) for row in found)
    assert len(hovers(length_figure(found))) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",fp32,", ",fp32", "cannot be read|no column|whole number"),
        ("16384 tokens", "tokens", "step = 'tokens' is not as"),
        (",1024,16,", ",many,16,", "seq_len = 'many' is no whole number"),
        ("us_over_shortest", "us_over_shorter", "no column 'us_over_shortest'"),
        ("step", "steps", "no column 'step'"),
        (",5,AMD", ",-5,AMD", "repeats = '-5'"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "length.csv"
    written(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(AnalysisError, match=message) as caught:
        read_lengths(path)
    assert "\n" not in str(caught.value) and "bench length" in str(caught.value)
