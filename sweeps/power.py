"""What a planned sweep will be able to tell: its grid as a table, analysed by a process of its own."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeps.errors import SweepError
from sweeps.identity import UNKNOWN
from sweeps.overview import Overview
from trainer.config import RunConfig
from trainer.flops import describe
from trainer.presets import run_labels


def planned_row(config: RunConfig, name: str) -> dict[str, Any]:
    """One planned run under the names that result.json has, and its configuration, which names its curve."""
    counts = describe(config)
    return {
        "run_id": name,
        **run_labels(config),
        "seed": config.seed,
        "params": counts["params_total"],
        **{key: counts[key] for key in ("tokens", "unique_tokens", "train_flops")},
        "guide_mode": config.guide.mode,
        "guide_stochastic": config.guide.stochastic if config.guided_steps else None,
        "config": config.canonical_json(),
    }


def write_grid(overview: Overview, path: Path) -> None:
    """Write the runs of a sweep, done or not, as a CSV for `python -m analysis design`."""
    rows = [
        planned_row(config, run_id if run_id != UNKNOWN else f"planned-{n}")
        for n, (config, run_id) in enumerate(zip(overview.configs, overview.ids, strict=True))
    ]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def promise_path(results: Path, name: str) -> Path:
    """Where the promise of a sweep is kept, which the analysis holds the finished sweep to."""
    return results / "tables" / f"{name}_planned.csv"


def show_power(overview: Overview, options: Sequence[str], save: bool = False, force: bool = False) -> int:
    """Print what the sweep will be able to tell; returns the exit code of the analysis.

    Args:
        overview: the sweep.
        options: further words for `python -m analysis design`.
        save: also write the planned runs, and what was assumed, as results/tables/NAME_planned.csv.
        force: replace one that is there.

    Raises:
        SweepError: `force` without `save`, or a promise stands already.
    """
    words = list(options)
    if force and not save:
        raise SweepError("--force: needs --save, which it lets replace a promise")
    if save:
        path = promise_path(overview.ledger.results, overview.sweep.name)
        if path.exists() and not force:
            raise SweepError(f"{path}: a promise stands there already; --force replaces it")
        done = sum(state.state == "done" for state in overview.states.values())
        if done and not force:
            raise SweepError(
                f"{overview.sweep.name}: {done} of its runs are done; a promise is made before them "
                "(--force saves it all the same)"
            )
        words += [f"--save={path}", *["--force"] * force]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{overview.sweep.name}.csv"
        write_grid(overview, path)
        sys.stdout.flush()
        command = [sys.executable, "-m", "analysis", "design", str(path), *words]
        return subprocess.run(command, check=False).returncode
