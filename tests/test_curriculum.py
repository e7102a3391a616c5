"""The curriculum: stages move on when they are learned, survive any kill, and their FLOPs are those spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint import list_checkpoints
from trainer.config import RunConfig
from trainer.corpora import fingerprint, prepare
from trainer.curriculum import (
    Curriculum,
    CurriculumConfig,
    StageState,
    parts,
    shortfall,
    tokens_of_steps,
)
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.flops import CONVENTIONS, flops_per_step, spent_flops, train_flops
from trainer.loop import train
from trainer.presets import merge, resolve
from trainer.rundir import read_json, read_metrics, read_result

LENGTHS = [8, 12, 32]
RUN: dict[str, Any] = {
    "model": {
        "kind": "recurrent", "d_model": 16, "n_layers": 1, "n_heads": 2, "seq_len": 32,
        "positions": "learned", "recurrence": {"block": 4, "block_range": [3, 6], "mix": "learned"},
    },
    "data": {"corpus": {"kind": "copy", "n_tokens": 2, "alphabet": 3}},
    "optim": {"peak_lr": 2e-2, "batch_tokens": 256, "warmup_fraction": 0.0, "schedule": "wsd", "clip": 10.0},
    "eval": {"tokens": 512},
    "tokens": 256 * 60,
    "curriculum": {"lengths": LENGTHS, "below": 1.2, "every": 5, "sequences": 16, "length_decay": 0.5,
                   "settle": True},
}  # fmt: skip
EVERY_STEP = Execution(device="cpu", threads=1, checkpoint_seconds=0, heartbeat_seconds=1e-9)


class Killed(BaseException):
    """Stands for a process that ends between two instructions."""


def run(
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    execution: Execution = EVERY_STEP,
    **change: Any,
) -> str:
    config = config_of(**change)
    corpus = prepare(config.data, folder.parent, progress=False)
    return train(config, corpus, folder, config.run_id(fingerprint(config.data)), execution, should_stop)


def config_of(**change: Any) -> RunConfig:
    return resolve(merge(RUN, change), "test")


def stop_at(call: int, error: type[BaseException] | None = None) -> Callable[[], bool]:
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        if asked == call and error is not None:
            raise error
        return asked >= call

    return ask


def told(folder: Path) -> list[Any]:
    return [
        [line[k] for k in ("step", "tokens", "train_loss", "lr", "seq_len", "stage_loss", "grad_norm")]
        for line in read_metrics(folder)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == "done"
    return folder


def test_stages_follow_each_other_and_count_what_they_cost(undisturbed: Path) -> None:
    result = read_result(undisturbed)
    assert result is not None
    stages = result["stages"]
    assert [stage["seq_len"] for stage in stages] == LENGTHS[: len(stages)]
    assert len(stages) >= 2, "the fixture is to reach a second stage"
    assert sum(stage["steps"] for stage in stages) == 60
    sequences = 256 // 32
    assert [s["tokens"] for s in stages] == [s["steps"] * s["seq_len"] * sequences for s in stages]
    assert result["tokens"] == sum(stage["tokens"] for stage in stages)
    for stage in stages[:-1]:
        assert stage["solved"]
        assert stage["val_loss"] < 1.2
        assert stage["steps"] % 5 == 0
    model = config_of().model
    by_hand = sum(
        s["steps"]
        * flops_per_step(model.model_copy(update={"seq_len": s["seq_len"]}), sequences * s["seq_len"])
        for s in stages
    )
    assert result["train_flops"] == by_hand < train_flops(config_of())
    lines = read_metrics(undisturbed)
    assert lines[-1]["tokens"] == result["tokens"]
    lengths = [line["seq_len"] for line in lines]
    assert lengths == sorted(lengths)


def test_the_rate_falls_with_the_length_and_settles_at_full_length(undisturbed: Path) -> None:
    for line in read_metrics(undisturbed):
        before_decay = line["step"] <= 48
        if line["seq_len"] < 32 and before_decay:
            assert line["lr"] == pytest.approx(2e-2 * (1 - 0.5 * line["seq_len"] / 32))
    plan = CurriculumConfig(lengths=(8, 32), below=1.0, length_decay=0.5, settle=True)
    assert plan.rate(8, last=False, loss=0.1) == pytest.approx(0.875)
    assert plan.rate(32, last=True, loss=None) == pytest.approx(0.5)
    assert plan.rate(32, last=True, loss=0.1) == pytest.approx(0.5 * (1 - math.exp(-0.1)))


@pytest.mark.parametrize("error", [None, Killed])
@pytest.mark.parametrize("call", [1, 6, 7, 23, 41, 58, 71])
def test_killed_or_stopped_inside_a_stage_and_resumed_is_bit_identical(
    tmp_path: Path, undisturbed: Path, call: int, error: type[BaseException] | None
) -> None:
    """should_stop is asked after steps and within measurements, so both are interrupted here."""
    folder = tmp_path / "run"
    if error is None:
        assert run(folder, stop_at(call)) == "preempted"
    else:
        with pytest.raises(Killed):
            run(folder, stop_at(call, error))
    assert run(folder) == "done"
    assert told(folder) == told(undisturbed)
    result, expected = read_result(folder), read_result(undisturbed)
    assert result is not None
    assert expected is not None
    for name in ("stages",):
        for mine, theirs in zip(result[name], expected[name], strict=True):
            assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    for key in (
        "val_loss",
        "val_accuracy",
        "val_exact_match",
        "train_loss",
        "tokens",
        "train_flops",
        "flops",
    ):
        assert result[key] == expected[key], key


def test_killed_with_sparse_checkpoints_measures_again_what_was_lost(
    tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    rare = EVERY_STEP.model_copy(update={"checkpoint_seconds": 3600.0})
    assert run(folder, stop_at(27), rare) == "preempted"
    with pytest.raises(Killed):
        run(folder, stop_at(29, Killed), rare)
    assert run(folder, execution=rare) == "done"
    assert told(folder) == told(undisturbed)


def test_a_stage_is_in_every_checkpoint(undisturbed: Path) -> None:
    (newest, *_) = list_checkpoints(undisturbed)
    sidecar = read_json(newest.with_suffix(".json"))
    assert sidecar is not None
    result = read_result(undisturbed)
    assert result is not None
    assert len(sidecar["stages"]["ends"]) == len(result["stages"]) - 1


def test_finish_below_ends_the_run_at_full_length(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    change = {"curriculum": {"below": 50.0, "finish_below": 49.0}}
    assert run(folder, **change) == "done"
    result = read_result(folder)
    assert result is not None
    # Each of the three stages is through at its first measurement.
    assert [stage["steps"] for stage in result["stages"]] == [5, 5, 5]
    assert all(stage["solved"] for stage in result["stages"])
    assert result["steps"] == 15
    assert run(folder, **change) == "done"


def test_the_line_of_a_run_that_finishes_early_is_written_and_the_same_after_a_stop(tmp_path: Path) -> None:
    change = {"curriculum": {"below": 50.0, "finish_below": 49.0}}
    seldom = EVERY_STEP.model_copy(update={"log_points": 2})
    assert run(tmp_path / "a", execution=seldom, **change) == "done"
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [15]
    result = read_result(tmp_path / "a")
    assert result is not None
    assert result["train_loss"] == pytest.approx(math.log(5), rel=0.5)
    calls = 0
    states = []
    while not states or states[-1] == "preempted":
        calls += 1
        states.append(run(tmp_path / "b", stop_at(6), seldom, **change))
        assert calls < 20
    assert told(tmp_path / "b") == told(tmp_path / "a")


def test_a_run_that_does_not_come_to_the_last_length_says_so(tmp_path: Path, undisturbed: Path) -> None:
    assert run(tmp_path / "run", **{"curriculum": {"below": 1e-9}}) == "done"
    result = read_result(tmp_path / "run")
    assert result is not None
    assert shortfall(result) == "came to length 8 of 32 only"
    result["stages"].append({**result["stages"][0], "seq_len": 32})
    assert shortfall(result) == ""
    assert shortfall({"val_loss": 1.0}) == ""


def test_a_run_that_diverges_does_not_finish(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    change = {
        "curriculum": {"below": 50.0, "finish_below": 49.0},
        "optim": {"diverge_ratio": 1.0001, "peak_lr": 9.0},
    }
    seldom = EVERY_STEP.model_copy(update={"log_points": 1, "checkpoint_seconds": 3600.0})
    assert run(folder, execution=seldom, **change) == "diverged"
    result = read_result(folder)
    assert result is not None
    assert result["val_loss"] is None
    assert result["diverged_step"] is not None


def test_parts_and_tokens() -> None:
    config = config_of()
    assert list(parts(config, 60, [10, 25])) == [(8, 10), (12, 15), (32, 35)]
    assert list(parts(config, 10, [10])) == [(8, 10)]
    assert list(parts(config, 12, [10])) == [(8, 10), (12, 2)]
    assert list(parts(config, 4, [])) == [(8, 4)]
    assert tokens_of_steps(config, 12, [10]) == 8 * (10 * 8 + 2 * 12)
    assert tokens_of_steps(config, 12) == 12 * 256
    for convention in CONVENTIONS:
        whole = spent_flops(config, 60, convention, [])
        assert whole < spent_flops(config, 60, convention)
        split = spent_flops(config, 20, convention, [10]) + spent_flops(config, 60, convention, [10])
        assert split > whole


def test_a_measurement_of_one_length_says_nothing_of_the_next() -> None:
    state = StageState()
    curriculum = Curriculum(config_of(), state)
    assert curriculum.length == 8
    assert not curriculum.due(0)
    assert curriculum.due(5)
    curriculum.record(5, 3.0, 0.1, 1.0)
    assert not curriculum.due(5)
    assert (curriculum.stage, state.loss) == (0, 3.0)
    curriculum.record(10, 1.0, 0.9, 2.0)
    assert (curriculum.stage, curriculum.length, state.loss, state.ends) == (1, 12, None, [10])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"curriculum": {"lengths": [8, 8, 32]}}, "do not rise"),
        ({"curriculum": {"lengths": [8, 16]}}, "curriculum.lengths end with 16, not with model.seq_len = 32"),
        ({"curriculum": {"lengths": []}}, "lengths"),
        ({"curriculum": {"below": 0}}, "below"),
        (
            {"curriculum": {"lengths": [3, 32]}},
            "curriculum.lengths: 3 on the corpus copy: no room for 2 tokens",
        ),
        ({"curriculum": {"length_decay": 1.0}}, "length_decay"),
        (
            {"guide": {"mode": "fixed_steps"}, "structure": "lowrank-63"},
            "curriculum and guide both change a run",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config_of(**change)
    assert "\n" not in str(caught.value)
