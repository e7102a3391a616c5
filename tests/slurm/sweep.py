"""A small sweep for the tests on a real Slurm: its file, its commands, and what an undisturbed one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SWEEP = """
description = "small runs of some seconds"
[base]
model = {{ d_model = 16, n_layers = 2, n_heads = 2, seq_len = 32 }}
optim = {{ peak_lr = 5e-3, batch_tokens = 256 }}
eval = {{ tokens = 1024 }}
[base.data]
corpus = {{ kind = "synthetic", vocab_size = 32, order = 1 }}
[axes]
structure = {structures}
seed = {seeds}
[budget]
tokens = {tokens}
[execution]
checkpoint_seconds = {checkpoint_seconds}
heartbeat_seconds = 0.5
threads = 1
[slurm]
{slurm}
"""


@dataclass
class SmallSweep:
    """A sweep file in a folder of its own, and its results folder."""

    folder: Path
    seeds: list[int] = field(default_factory=lambda: [1])
    steps: int = 1000
    checkpoint_seconds: float = 0.5
    slurm: dict[str, Any] = field(default_factory=dict)
    structures: list[str] = field(default_factory=lambda: ["dense", "lowrank-63"])

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"time": 10, "notice": 60, "cpus": 1, "jobs": 8, "job_minutes": 0.01, **self.slurm}
        lines = "\n".join(f"{key} = {toml(value)}" for key, value in settings.items())
        self.file.write_text(
            textwrap.dedent(SWEEP).format(
                structures=json.dumps(self.structures), seeds=self.seeds, slurm=lines,
                tokens=self.steps * 256, checkpoint_seconds=self.checkpoint_seconds,
            )
        )  # fmt: skip

    @property
    def file(self) -> Path:
        return self.folder / "small.toml"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "sweeps", *args, "--results", str(self.results)]

    def __call__(self, *args: str, code: int | None = 0) -> str:
        done = subprocess.run(
            self.command(*args), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *args: str) -> str:
        return self("run", str(self.file), "--executor", "slurm", *args)

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self("status", str(self.file), "--json"))
        return facts

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.status()["counts"]
        return counts

    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.status()["slurm"]["jobs"]
        return jobs

    @property
    def runs(self) -> list[Path]:
        return sorted((self.results / "runs").glob("*"))

    def metrics(self, run: Path) -> list[tuple[int, float]]:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [(line["step"], line["train_loss"]) for line in map(json.loads, lines)]

    def steps_done(self) -> int:
        """Steps that the metrics of all runs tell of."""
        return sum(self.metrics(run)[-1][0] for run in self.runs if (run / "metrics.jsonl").is_file()
                   and (run / "metrics.jsonl").stat().st_size > 0)  # fmt: skip

    def losses(self) -> dict[str, Any]:
        """Everything that a run must reproduce to the last bit, by run id."""
        found = {}
        for run in self.runs:
            result = json.loads((run / "result.json").read_text())
            found[run.name] = (result["train_loss"], result["val_loss"], self.metrics(run))
        return found

    def attempts(self) -> dict[str, int]:
        return {run.name: json.loads((run / "result.json").read_text())["attempts"] for run in self.runs}

    def logs(self) -> str:
        """All that the jobs printed."""
        found = sorted((self.results / "sweeps" / "submissions").glob("*/logs/*_log.out"))
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in found)

    def wait_done(self, timeout: float = 120.0, total: int | None = None) -> None:
        """Wait until every run (or so many) has its result and no job is left."""
        total = total or len(self.structures) * len(self.seeds)

        def over() -> bool:
            done = sum((run / "result.json").is_file() for run in self.runs)
            return done == total and not any(job["live"] for job in self.jobs())

        wait_until(over, timeout, self.logs)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def wait_until(
    condition: Callable[[], bool], timeout: float, told: Callable[[], str] = str, every: float = 0.3
) -> None:
    """Poll; AssertionError with what is known where the time is up."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout:.0f} s\n{told()[-6000:]}"
        time.sleep(every)


def undisturbed(sweep: SmallSweep) -> dict[str, Any]:
    """The losses of the same sweep, trained on this machine without Slurm and without trouble."""
    twin = SmallSweep(
        sweep.folder / "undisturbed", sweep.seeds, sweep.steps, sweep.checkpoint_seconds, sweep.slurm,
        sweep.structures,
    )  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(
        [*twin.command("run", str(twin.file), "--no-mirror"), "--slots", "2"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return twin.losses()


def processes(words: Iterable[str]) -> list[int]:
    """Processes of this machine whose command lines hold all the words."""
    wanted, found = [word.encode() for word in words], []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if all(word in line for word in wanted):
            found.append(int(entry.name))
    return found
