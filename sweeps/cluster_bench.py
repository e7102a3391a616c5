"""What a cluster costs: `python -m sweeps.cluster_bench` times submission, status and packing on this Slurm.

1. a submission of 1,000 runs and `status` of it (the jobs are dropped before they train);
2. short runs packed into few jobs: time that the jobs had over time that went into training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweeps.slurm import command

SWEEP = """
[base]
model = {{ d_model = 16, n_layers = 2, n_heads = 2, seq_len = 32 }}
optim = {{ peak_lr = 5e-3, batch_tokens = 256 }}
eval = {{ tokens = 1024 }}
[base.data]
corpus = {{ kind = "synthetic", vocab_size = 32, order = 1 }}
[axes]
seed = {seeds}
[budget]
tokens = {tokens}
[execution]
threads = 1
[slurm]
cpus = 1
time = 600
job_minutes = {minutes}
jobs = {jobs}
"""


def main(argv: list[str] | None = None) -> None:
    """Run both parts in a temporary folder."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.cluster_bench", description=__doc__)
    parser.add_argument("--many", type=int, default=1000, help="runs of the first part (0: leave it out)")
    parser.add_argument("--runs", type=int, default=200, help="runs of the second part (0: leave it out)")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each of those")
    parser.add_argument("--jobs", type=int, default=8, help="jobs that share them")
    parser.add_argument("--folder", help="where to work; a file system that all nodes see")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.many:
            _many(Path(folder), options.many)
        if options.runs:
            _packed(Path(folder), options.runs, options.steps, options.jobs)


def _many(folder: Path, runs: int) -> None:
    # A day is predicted for each run, so that each has a job of its own.
    file = _write(folder / "many.toml", runs, 4_000_000_000, 1.0, 50)
    call = ("--results", str(folder / "many"))
    took = _timed("run", str(file), "--executor", "slurm", "--no-mirror", "--yes", *call)
    print(f"submission of {runs:,} runs: {took:.2f} s")
    print(f"status of it: {_timed('status', str(file), *call):.2f} s", flush=True)
    _timed("cancel", str(file), *call)
    submission = next((folder / "many" / "sweeps" / "submissions").iterdir())
    jobs = json.loads((submission / "record.json").read_text())["job_ids"]
    command(["scancel", *jobs])


def _packed(folder: Path, runs: int, steps: int, jobs: int) -> None:
    file = _write(folder / "packed.toml", runs, steps * 256, 1.0, jobs)
    results = folder / "packed"
    call = ("--results", str(results))
    began = time.monotonic()
    _timed("run", str(file), "--executor", "slurm", "--no-mirror", "--yes", *call)
    submission = next((results / "sweeps" / "submissions").iterdir())
    arrays = json.loads((submission / "arrays.json").read_text())["arrays"]
    count = sum(len(array["jobs"]) for array in arrays)
    while (status := _status(str(file), call))["counts"].get("done", 0) < runs or any(
        job["live"] for job in status["slurm"]["jobs"]
    ):
        done = status["counts"].get("done", 0)
        print(
            f"\r{done} of {runs} runs, {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True
        )
        time.sleep(5.0)
    print(file=sys.stderr)
    trained = had = 0.0
    for result in (results / "runs").glob("*/result.json"):
        trained += float(json.loads(result.read_text())["seconds"])
    for diary in (submission / "jobs").glob("*.json"):
        facts = json.loads(diary.read_text())
        had += float(facts["updated"]) - float(facts["started"])
    print(
        f"{runs} runs of {trained / runs:.1f} s in {count} jobs: training {trained:.0f} s, jobs {had:.0f} s, "
        f"overhead {100 * (had / trained - 1):.1f} %; {time.monotonic() - began:.0f} s in all"
    )


def _write(path: Path, runs: int, tokens: int, minutes: float, jobs: int) -> Path:
    path.write_text(SWEEP.format(seeds=list(range(runs)), tokens=tokens, minutes=minutes, jobs=jobs))
    return path


def _timed(*args: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeps", *args], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _status(file: str, call: tuple[str, ...]) -> dict[str, Any]:
    args = [sys.executable, "-m", "sweeps", "status", file, "--json", *call]
    status: dict[str, Any] = json.loads(subprocess.run(args, capture_output=True, check=True).stdout)
    return status


if __name__ == "__main__":
    main()
