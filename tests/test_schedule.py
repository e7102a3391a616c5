"""Learning-rate schedules against their defining properties."""

from __future__ import annotations

import itertools

import pytest

from trainer.config import OptimConfig
from trainer.schedule import learning_rate


def rates(steps: int, **fields: object) -> list[float]:
    optim = OptimConfig.model_validate({"peak_lr": 0.5, "batch_tokens": 1, **fields})
    return [learning_rate(step, steps, optim) for step in range(steps)]


def test_cosine_rises_linearly_and_ends_exactly_at_the_final_rate() -> None:
    got = rates(100, warmup_fraction=0.1, final_lr_fraction=0.1)
    assert got[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert max(got) == got[9] == 0.5
    assert got[9:] == sorted(got[9:], reverse=True)
    assert got[-1] == pytest.approx(0.05)
    # Half way down the cosine the rate is the mean of peak and final.
    assert got[54] == pytest.approx((0.5 + 0.05) / 2)


def test_wsd_is_flat_and_then_linear() -> None:
    got = rates(100, schedule="wsd", warmup_fraction=0.1, decay_fraction=0.2, final_lr_fraction=0.0)
    assert set(got[9:80]) == {0.5}
    drops = [a - b for a, b in itertools.pairwise(got[79:])]
    assert drops == pytest.approx([0.025] * 20)
    assert got[-1] == 0.0


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 11])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.8])
def test_short_runs_stay_within_bounds(schedule: str, steps: int, warmup: float) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(steps, schedule=schedule, warmup_fraction=warmup))
