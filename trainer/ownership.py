"""Whose run a folder holds: nothing may be resumed into, or read from, the folder of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.errors import RunDirError
from trainer.rundir import CONFIG, read_json, read_result

REMEDY = "choose another folder, or move this one away"


def check_owner(run_dir: Path, config: RunConfig, run_id: str, fingerprint: str) -> None:
    """Raise RunDirError, naming the first difference, unless the folder is new or holds run `run_id`."""
    there = read_json(run_dir / CONFIG)
    if there is not None:
        try:
            other = RunConfig.model_validate(there)
        except ValidationError:
            raise RunDirError(
                f"{run_dir / CONFIG}: written by another version of this program; {REMEDY}"
            ) from None
        if other.run_id(fingerprint) != run_id:
            raise RunDirError(f"{run_dir}: holds another run ({_difference(there, config)}); {REMEDY}")
    result = read_result(run_dir)
    if result is not None and result["run_id"] != run_id:
        raise RunDirError(
            f"{run_dir}: holds the result of run {result['run_id']}, not of {run_id} (its configuration or "
            f"corpus differs); {REMEDY}"
        )


def _difference(there: dict[str, Any], config: RunConfig) -> str:
    theirs, ours = _flat(there), _flat(json.loads(config.canonical_json()))
    key = next(key for key in sorted(theirs | ours) if theirs.get(key) != ours.get(key))
    return f"{key} is {theirs.get(key)} there and {ours.get(key)} here"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
