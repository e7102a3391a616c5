"""A small network on the synthetic source: its held-out loss comes down to the entropy rate, not below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.corpora import fingerprint, prepare
from trainer.execution import Execution
from trainer.loop import train
from trainer.presets import resolve
from trainer.rundir import read_result


def excess(steps: int, folder: Path, structure: str) -> tuple[float, float]:
    """Held-out loss over the entropy rate, and its standard error."""
    given: dict[str, Any] = {
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "seq_len": 64},
        "structure": structure,
        "data": {"corpus": {"kind": "synthetic", "vocab_size": 16, "order": 1}},
        "optim": {"peak_lr": 1e-2, "batch_tokens": 1024},
        "tokens": 1024 * steps,
        "eval": {"tokens": 200_000},
    }
    config = resolve(given, "test")
    corpus = prepare(config.data, folder, progress=False)
    run_dir = folder / f"{structure}-{steps}"
    run_id = config.run_id(fingerprint(config.data))
    assert train(config, corpus, run_dir, run_id, Execution(threads=1)) == "done"
    result = read_result(run_dir)
    assert result is not None
    return result["val_loss"] - result["entropy_rate"], result["val_loss_se"]


@pytest.mark.parametrize("structure", ["dense", pytest.param("lowrank-63", marks=pytest.mark.slow)])
def test_the_loss_approaches_the_entropy_rate_from_above(tmp_path: Path, structure: str) -> None:
    early, short, long = (excess(steps, tmp_path, structure) for steps in (15, 50, 300))
    assert early[0] > short[0] + 3 * short[1]
    assert short[0] > 3 * short[1]
    assert short[0] > long[0] + 3 * long[1]
    assert abs(long[0]) < 3 * long[1]
