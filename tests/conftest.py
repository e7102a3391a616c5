"""What the tests of the sweeps share: a small sweep file, a command line, the folder of a finished run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainer.config import RunConfig
from trainer.flops import describe
from trainer.presets import run_labels
from trainer.rundir import write_result

# Before numpy is loaded, as `python -m analysis` does: threads wait longer than such small matrices take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A shell's background job ignores Ctrl-C and hands that on; the tests of Ctrl-C start from the usual state.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("conformance", "slurm.sweep")

ROOT = Path(__file__).parent.parent

TINY = """
description = "a very small sweep"
[base]
model = { d_model = 16, n_layers = 2, n_heads = 2, seq_len = 32 }
optim = { peak_lr = 5e-3, batch_tokens = 256 }
eval = { tokens = 1024 }
[base.data]
corpus = { kind = "synthetic", vocab_size = 32, order = 1 }
[axes]
structure = ["dense", "lowrank-63"]
seed = [1, 2]
[budget]
tokens = 2560
"""


@dataclass
class Cli:
    """Runs `python -m sweeps` in a process of its own."""

    results: Path

    def __call__(self, *args: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sweeps", *args, "--results", str(self.results)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def mistake(self, *args: str) -> str:
        """Run something wrong; returns the one line that says so."""
        done = self(*args, code=2)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, done.stderr
        return lines[0]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty results folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def cli(results: Path) -> Cli:
    """The command line on an empty results folder."""
    return Cli(results)


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Write a sweep file; by default the small one."""

    def write(content: str = TINY, name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(textwrap.dedent(content))
        return path

    return write


def fake_result(config: RunConfig, run_id: str, **changes: Any) -> dict[str, Any]:
    """A result.json such as the trainer writes, without training."""
    counts = describe(config)
    result = {
        "run_id": run_id,
        "schema": 1,
        "state": "done",
        **run_labels(config),
        "structure_kind": config.model.structure.kind,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        "batch_tokens": config.optim.batch_tokens,
        "seed": config.seed,
        "precision": config.precision,
        "params": counts.pop("params_total"),
        **counts,
        "train_loss": 2.5,
        "val_loss": 2.6,
        "val_loss_se": 0.01,
        "val_bits_per_byte": None,
        "diverged_step": None,
        "seconds": 4.0,
        "tokens_per_second": 1000.0,
        "finished": "2025-01-01T00:00:10+00:00",
        "device": "a processor",
        "threads": 1,
        "attempts": 1,
    }
    return {**result, **changes}


def finish_run(results: Path, config: RunConfig, run_id: str, n_lines: int = 10, **changes: Any) -> Path:
    """Write the folder of a finished run, as training leaves it."""
    folder = results / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.canonical_json())
    (folder / "env.json").write_text(json.dumps({"git_sha": "abc123", "device": "a processor"}))
    (folder / "status.json").write_text(json.dumps({"state": "done", "attempt": 1, "started": 1735689600.0}))
    write_metrics(folder, config, n_lines)
    write_result(folder, fake_result(config, run_id, **changes))
    return folder


def write_metrics(folder: Path, config: RunConfig, n_lines: int, offset: float = 0.0) -> None:
    """Write the first metric lines of a run, one a step; `offset` seconds later than usual."""
    lines = [
        {
            "step": step,
            "tokens": step * config.optim.batch_tokens,
            "train_loss": 3.0 - step / 100,
            "lr": 1e-3,
            "grad_norm": 0.5,
            "tokens_per_second": 1000.0 + offset,
            "seconds": step * 0.5,
            "time": 1735689600.0 + step * 0.5 + offset,
        }
        for step in range(1, n_lines + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a sweep's tables, scaling figure, gaps and dynamics, and the benches: all figures take minutes."""
    from analysis.products import catalogue, measured, sweeps

    monkeypatch.setattr(catalogue, "PROVIDERS", (sweeps.products, measured.products))
