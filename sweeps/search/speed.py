"""The second objective of a pareto study: how long a shape takes, held against one fixed network.

A machine's speed changes by the minute and from day to day; what is kept is the ratio to the fixed
network, times that one's milliseconds when the study began.  Measured while nothing is trained, each shape
once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from sweeps.errors import SweepError
from sweeps.layout import Layout
from sweeps.search.studyfile import Second
from sweeps.slot import PACKAGE_ROOT
from trainer.config import RunConfig
from trainer.rundir import write_atomic

FILE = "speeds.json"
LIMIT_SECONDS = 300.0


class Speeds:
    """Measures shapes.

    Args:
        second: what is measured.
        reference: the network that all are held against.
        folder: the study's, which keeps what was measured.
        layout: where runs are trained, which is where speed counts.
    """

    def __init__(self, second: Second, reference: RunConfig, folder: Path, layout: Layout) -> None:
        self.second, self.reference, self.layout = second, reference, layout
        self.path = folder / FILE
        self._kept = self._read()

    def measure(self, run_id: str, config: RunConfig) -> float:
        """Milliseconds of a run's network; SweepError where they cannot be had."""
        if run_id not in self._kept["ratios"]:
            rounds = self._rounds(config)
            if self._kept["ms"] is None:
                self._kept["ms"] = statistics.median(rounds[0])
            ratios = [own / base for base, own in zip(*rounds, strict=True)]
            self._kept["ratios"][run_id] = statistics.median(ratios)
            write_atomic(self.path, json.dumps(self._kept, indent=1) + "\n")
        return float(self._kept["ms"] * self._kept["ratios"][run_id])

    def _rounds(self, config: RunConfig) -> list[list[float]]:
        """Milliseconds of the reference and of a network, round by round."""
        execution = self.layout.execution
        asked = {
            **self.second.model_dump(mode="json"),
            "device": execution.device,
            "threads": execution.threads,
            "configs": [self.reference.canonical_json(), config.canonical_json()],
        }
        environment = {**os.environ, **self.layout.environments[0], "PYTHONPATH": str(PACKAGE_ROOT)}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "trainer.bench.speed"], input=json.dumps(asked), env=environment,
                capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
                start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise SweepError(
                f"second.objective = '{self.second.objective}' was not measured within "
                f"{LIMIT_SECONDS:.0f} s; "
                f"take fewer second.repeats or a smaller second.batch"
            ) from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise SweepError(f"second.objective = '{self.second.objective}' cannot be measured: {last}")
        rounds: list[list[float]] = json.loads(done.stdout.strip().splitlines()[-1])["rounds"]
        return rounds

    def _read(self) -> dict[str, Any]:
        settings = {
            **self.second.model_dump(mode="json"), "device": self.layout.setting.device,
            "threads": self.layout.setting.threads, "reference": self.reference.canonical_json(),
        }  # fmt: skip
        try:
            kept = json.loads(self.path.read_bytes())
            if kept["settings"] == settings and isinstance(kept["ratios"], dict):
                return dict(kept)
        except (OSError, ValueError, KeyError, TypeError):
            # Missing, torn or of another version: it is measured again.
            pass
        return {"settings": settings, "ms": None, "ratios": {}}
