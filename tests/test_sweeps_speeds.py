"""Predicted speeds against planted machines: other shapes, crowded runs, hostile results."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sweeps.layout import plan_layout
from sweeps.price import STARTUP_SECONDS, Prices, Setting
from sweeps.sweepfile import SweepExecution
from trainer.config import RunConfig
from trainer.flops import describe, flops_per_token, model_counts, train_flops
from trainer.presets import resolve

SETTING = Setting("a processor", 1, room=2)
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)


def config(
    d: int = 16, layers: int = 2, vocabulary: int = 64, batch: int = 256, lr: float = 1e-3
) -> RunConfig:
    corpus = {"kind": "synthetic", "vocab_size": vocabulary, "order": 1}
    return resolve(
        {
            "model": {"d_model": d, "n_layers": layers, "n_heads": 2, "seq_len": 32},
            "optim": {"peak_lr": lr, "batch_tokens": batch},
            "data": {"corpus": corpus},
            "tokens": 100 * batch,
        },
        "a test",
    )


def planted(run: RunConfig) -> float:
    """Seconds for a token on the planted machine: arithmetic, logits, and what a step costs."""
    counts = model_counts(run.model)
    step = 2e-3 * run.model.n_layers + 1e-9 * counts.params_total
    return flops_per_token(run.model) / 5e10 + 1e-9 * run.model.vocab_size + step / run.optim.batch_tokens


def result(
    run: RunConfig, slow: float = 1.0, begin: float = 0.0, seconds: float = 100.0, **more: Any
) -> dict[str, Any]:
    counts = describe(run)
    return {
        "structure_kind": run.model.structure.kind,
        "d_model": run.model.d_model,
        "n_layers": run.model.n_layers,
        "batch_tokens": run.optim.batch_tokens,
        "precision": run.precision,
        "params": counts.pop("params_total"),
        **counts,
        "seconds": seconds,
        "tokens_per_second": 1 / (planted(run) * slow),
        "finished": (BEGIN + timedelta(seconds=begin + seconds)).isoformat(),
        "device": "a processor",
        "threads": 1,
        **more,
    }


def seconds_a_token(results: list[dict[str, Any]], run: RunConfig, setting: Setting = SETTING) -> float:
    price = Prices(results, setting).price(run)
    work = train_flops(run) + run.eval.tokens * model_counts(run.model).forward
    return (price.seconds - STARTUP_SECONDS) / work * flops_per_token(run.model)


SHAPES = [
    config(d, layers, vocabulary, batch)
    for d, layers, vocabulary, batch in (
        (8, 2, 64, 256), (16, 2, 64, 256), (32, 2, 64, 256), (16, 2, 1024, 256), (32, 3, 1024, 512),
        (32, 4, 64, 512), (48, 3, 256, 1024), (16, 6, 256, 2048),
    )
]  # fmt: skip


def one_after_the_other(slow: float = 1.0) -> list[dict[str, Any]]:
    return [result(run, slow, begin=200.0 * n) for n, run in enumerate(SHAPES)]


@pytest.mark.parametrize(
    "run",
    [config(56, 5, 512, 640), config(24, 3, 128, 384), config(12, 2, 512, 1024), config(64, 2, 64, 128)],
)
def test_a_shape_that_was_never_measured_is_priced_by_what_it_does(run: RunConfig) -> None:
    """FLOPs alone do not tell: vocabulary and batch change the speed severalfold at equal FLOPs."""
    assert math.log(seconds_a_token(one_after_the_other(), run) / planted(run)) == pytest.approx(0, abs=0.3)


def test_a_large_vocabulary_in_small_batches_says_little_of_small_ones_in_large() -> None:
    """Of one FLOPs per token, within some per cent, and speeds apart by more than three."""
    slow, fast = config(36, 2, 2048, 128), config(64, 2, 64, 2048)
    assert flops_per_token(slow.model) == pytest.approx(flops_per_token(fast.model), rel=0.2)
    assert planted(slow) > 3 * planted(fast)
    results = [*one_after_the_other(), result(slow, begin=5000)]
    assert seconds_a_token(results, fast) < 1.5 * planted(fast)
    assert seconds_a_token(results, slow) == pytest.approx(planted(slow))


def test_its_own_shape_speaks_alone_by_the_median() -> None:
    run = SHAPES[2]
    results = [
        *one_after_the_other(3.0),
        *[result(run, slow, 9000 + 200 * n) for n, slow in enumerate((1, 1, 1, 9))],
    ]
    assert seconds_a_token(results, run) == pytest.approx(planted(run))


def test_runs_that_shared_the_cores_do_not_outvote_one_that_did_not() -> None:
    """Four at a time on two cores: each took three and a half times as long."""
    run = SHAPES[1]
    crowded = [result(run, 3.5, seconds=350.0) for _ in range(4)]
    assert seconds_a_token([*crowded, result(run, begin=2000)], run) == pytest.approx(planted(run))
    # As many as there is room for are no crowd: their median is over all of them.
    pair = [result(run, 2.0, begin=2000), result(run, 2.0, begin=2000)]
    assert seconds_a_token([*pair, result(run, begin=3000)], run) == pytest.approx(2 * planted(run))
    # Where nothing says that they were on one machine, all count.
    anywhere = Setting("a processor", 1)
    assert seconds_a_token([*crowded, result(run, begin=2000)], run, anywhere) == pytest.approx(
        3.5 * planted(run)
    )


def test_runs_with_other_threads_are_no_measure_but_a_crowd() -> None:
    run = SHAPES[1]
    wide = result(run, 0.5, seconds=350.0, threads=2)
    disturbed = result(run, 3.5, seconds=350.0)
    assert seconds_a_token([wide, disturbed, result(run, begin=2000)], run) == pytest.approx(planted(run))


def test_crowded_runs_alone_are_better_than_none() -> None:
    run = SHAPES[1]
    crowded = [result(run, 3.5, seconds=350.0) for _ in range(4)]
    assert Prices(crowded, SETTING).price(run).measured
    assert seconds_a_token(crowded, run) == pytest.approx(3.5 * planted(run))


@pytest.mark.parametrize(
    "change",
    [
        {"finished": "yesterday"}, {"finished": None}, {"seconds": "long"}, {"seconds": 1e308},
        {"threads": "two"}, {"d_model": 0}, {"n_layers": None}, {"params": -1}, {"batch_tokens": 0},
        {"tokens_per_second": math.nan}, {"flops_per_token": math.inf}, {"tokens": 0},
    ],
)  # fmt: skip
def test_a_result_that_makes_no_sense_changes_no_price_of_others(change: dict[str, Any]) -> None:
    run = SHAPES[1]
    results = [result(run), result(SHAPES[0], begin=200)]
    odd = {**result(SHAPES[5], begin=400), **change}
    assert seconds_a_token([*results, odd], run) == pytest.approx(planted(run))
    for missing in odd:
        Prices([{key: value for key, value in odd.items() if key != missing}], SETTING).price(run)


def test_a_machine_has_room_for_its_cores_and_jobs_of_a_cluster_for_no_known_number() -> None:
    execution = SweepExecution(device="cpu", slots=6, threads=2)
    assert plan_layout(execution).setting.room is not None
    assert (plan_layout(execution).setting.room or 0) >= 12
    assert plan_layout(execution, cores=4).setting.room is None
