"""What the mirror shows of a run: parameters, curve, final figures, tags and times, from its folder alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sweeps.ledger import Ledger, RunState, newest_checkpoint
from sweeps.rules import flatten
from trainer.config import RunConfig
from trainer.presets import run_labels
from trainer.rundir import CONFIG, ENV, read_json, read_metrics, read_status

MAX_LINES = 400
"""Most metric lines of a run that are mirrored; a curve needs no more."""
STATUS = {
    "done": "FINISHED", "diverged": "FAILED", "failed": "FAILED",
    "preempted": "KILLED", "pruned": "KILLED", "running": "RUNNING",
}  # fmt: skip
FINAL = (
    "val_loss", "val_loss_se", "val_bits_per_byte", "val_entropy", "entropy_rate", "params",
    "params_non_embedding", "train_flops", "flops_per_token", "seconds", "diverged_step", "val_accuracy",
    "val_exact_match",
)  # fmt: skip
_NOT_METRICS = ("step", "time")


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class Snapshot:
    """A run as the mirror shows it."""

    run_id: str
    """Our run id."""
    name: str
    """Its name in lists."""
    params: dict[str, str]
    """The flattened configuration."""
    lines: list[list[Point]]
    """The points of each metric line that is there to stay, in order."""
    final: list[Point]
    """Figures of the result."""
    tags: dict[str, str]
    """State, labels, code version."""
    status: str
    """MLflow's word for the state."""
    start_ms: int
    """When it began to train."""
    end_ms: int | None
    """When it ended; None while it runs."""
    sealed: str | None
    """Set once nothing will change any more: names the result that was mirrored."""

    def digest(self, n_lines: int) -> str:
        """Hash of the first lines, to notice when a resumed run has rewritten them."""
        return hashlib.sha256(json.dumps(self.lines[:n_lines]).encode()).hexdigest()[:16]


def snapshot(ledger: Ledger, run_id: str, state: RunState, sweep: str) -> Snapshot | None:
    """Read a run folder; None where there is nothing to show yet, or a corrupt result hides what there was.

    A run that trains is shown from its first checkpoint on: whatever it logged before may be taken back.
    """
    folder = ledger.run_dir(run_id)
    content = read_json(folder / CONFIG)
    checkpoint = newest_checkpoint(folder) if state.result is None else None
    unsure = state.state in ("running", "preempted", "pruned") and checkpoint is None
    if state.state in ("new", "corrupt") or unsure or content is None:
        return None
    metrics, status = read_metrics(folder), read_status(folder)
    start = _start(metrics, status)
    if start is None:
        return None
    config = RunConfig.model_validate({key: content[key] for key in RunConfig.model_fields if key in content})
    stays = math.inf if state.result is not None else (checkpoint or 0)
    lines = [_points(line) for line in _thinned(metrics, config.steps) if line["step"] <= stays]
    return Snapshot(
        run_id=run_id,
        name=" ".join(
            filter(None, [*run_labels(config).values(), config.guide.label, f"seed {config.seed}"])
        ),
        params=flat(config.model_dump(mode="json")),
        lines=lines,
        final=_final(state.result, lines) if state.result is not None else [],
        tags=_tags(run_id, sweep, config, state, read_json(folder / ENV) or {}),
        status=STATUS[state.state],
        start_ms=start,
        end_ms=_end(state, status),
        sealed=seal(state.result) if state.result is not None else None,
    )


def seal(result: Mapping[str, Any]) -> str:
    """Names a result by its content."""
    return str(result["sha256"])[:16]


def began(folder: Path) -> int | None:
    """When a run began to train, ms; None where it has not."""
    return _start(read_metrics(folder), read_status(folder))


def _start(metrics: list[dict[str, Any]], status: Mapping[str, Any]) -> int | None:
    """The first line tells its time and the training seconds before it; before that, the status does."""
    if metrics and "time" in metrics[0]:
        return round((float(metrics[0]["time"]) - float(metrics[0].get("seconds", 0.0))) * 1000)
    return round(float(status["started"]) * 1000) if "started" in status else None


def _end(state: RunState, status: Mapping[str, Any]) -> int | None:
    if state.result is not None:
        return round(datetime.fromisoformat(state.result["finished"]).timestamp() * 1000)
    if state.state == "running":
        return None
    said = float(status.get("updated") or status.get("heartbeat") or 0.0)
    return round(said * 1000) or None


def _thinned(metrics: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """At most MAX_LINES training lines, chosen by their steps alone so that a later look chooses the same."""
    kept, last = [], -1
    for line in metrics:
        bucket = line["step"] * MAX_LINES // max(1, steps)
        if bucket > last or "val_loss" in line or line["step"] == steps:
            kept.append(line)
            last = bucket
    return kept


def _points(line: Mapping[str, Any]) -> list[Point]:
    time_ms, step = round(line.get("time", 0) * 1000), line["step"]
    return [
        Point(key, float(value), time_ms, step)
        for key, value in line.items()
        if key not in _NOT_METRICS and _is_number(value)
    ]


def _final(result: Mapping[str, Any], lines: list[list[Point]]) -> list[Point]:
    time_ms = round(datetime.fromisoformat(result["finished"]).timestamp() * 1000)
    step = int(result["steps"])
    there = {point.key for line in lines for point in line if point.step == step}
    return [
        Point(key, float(result[key]), time_ms, step)
        for key in FINAL
        if _is_number(result.get(key)) and key not in there
    ]


def _tags(
    run_id: str, sweep: str, config: RunConfig, state: RunState, env: Mapping[str, Any]
) -> dict[str, str]:
    tags = {
        "run_id": run_id,
        "sweep": sweep,
        "state": state.state,
        **run_labels(config),
        "structure_kind": config.model.structure.kind,
        "seed": config.seed,
        "attempts": state.attempt,
        "git_sha": env.get("git_sha"),
        "mlflow.source.git.commit": env.get("git_sha"),
        "git_diff": env.get("git_diff"),
        "device": (state.result or {}).get("device") or env.get("device"),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def flat(table: Mapping[str, Any]) -> dict[str, str]:
    """A nested table as MLflow's parameters: dotted keys, values as text."""
    values = flatten(table, whole=False).items()
    return {key: (value if isinstance(value, str) else json.dumps(value))[:6000] for key, value in values}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
