"""How long the ledger takes: `python -m sweeps.bench [RUNS]` times plan and status of a large sweep."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeps.index import INDEX
from sweeps.overview import look
from sweeps.sweepfile import read_sweep
from trainer.config import RunConfig
from trainer.flops import describe
from trainer.presets import run_labels
from trainer.rundir import CONFIG, write_result

SWEEP = """
[axes]
preset = ["cpu-2xs", "cpu-xs", "cpu-s", "cpu-m", "cpu-l"]
structure = ["dense", "lowrank-63", "lowrank-32", "blockdense-63"]
optim.peak_lr = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
seed = {seeds}
[budget]
tokens_per_param = 20
of = "dense"
"""


def main(n_runs: int) -> None:
    """Make a ledger of about `n_runs` finished runs in a temporary folder and time the commands on it."""
    with tempfile.TemporaryDirectory() as folder:
        file, results = Path(folder) / "big.toml", Path(folder) / "results"
        file.write_text(SWEEP.format(seeds=list(range(max(1, n_runs // 100)))))
        overview = look(read_sweep(file), results)
        for run_id, config in zip(overview.ids, overview.configs, strict=True):
            _finish(results / "runs" / run_id, run_id, config)
        print(f"{len(overview.ids):,} runs")
        _time("--help", "--help")
        for command in ("plan", "status"):
            (results / "runs" / INDEX).unlink(missing_ok=True)
            for index in ("writing the index", "with the index"):
                _time(f"{command}, {index}", command, str(file), "--results", str(results))


def _finish(folder: Path, run_id: str, config: RunConfig) -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(config.canonical_json())
    counts = describe(config)
    result = {
        "run_id": run_id,
        "schema": 1,
        "state": "done",
        **run_labels(config),
        "structure_kind": config.model.structure.kind,
        "seed": config.seed,
        "precision": config.precision,
        "params": counts.pop("params_total"),
        **counts,
        "val_loss": 2.5,
        "val_loss_se": 0.01,
        "seconds": 10.0,
        "tokens_per_second": 1e4,
        "finished": "2025-01-01T00:00:00+00:00",
        "device": "a processor",
        "threads": 1,
        "attempts": 1,
    }
    write_result(folder, result)


def _time(label: str, *args: str) -> None:
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "sweeps", *args], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{label:26} {wall:6.2f} s, of which {busy:.2f} s on a processor", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
