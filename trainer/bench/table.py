"""Tables of measurements, results/tables/bench/NAME.csv: machines and settings side by side in one file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from trainer.device import device_name
from trainer.errors import TrainerError
from trainer.rundir import write_atomic

Row = Mapping[str, Any]


def machine(device: torch.device) -> dict[str, Any]:
    """The columns that say where and when a row was measured."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def bench_table(results: Path, name: str) -> Path:
    """Where the table `name` lies."""
    return results / "tables" / "bench" / f"{name}.csv"


def merge_rows(path: Path, rows: Sequence[Row], key: Sequence[str]) -> None:
    """Put `rows` into the table: they replace rows with the same `key` columns, others stay.

    The file is locked meanwhile and replaced whole.  Numbers keep six significant digits.

    Raises:
        TrainerError: the file is no table of this kind, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            texts = [{name: _text(value) for name, value in row.items()} for row in rows]
            new = {tuple(text.get(k, "") for k in key) for text in texts}
            old = [row for row in read_rows(path, key) if tuple(row.get(k, "") for k in key) not in new]
            columns = list(dict.fromkeys(name for row in (*texts, *old) for name in row))
            merged = sorted((*old, *texts), key=lambda row: [_order(row.get(k, "")) for k in key])
            out = io.StringIO()
            writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(merged)
            write_atomic(path, out.getvalue())
    except OSError as error:
        raise TrainerError(
            f"{path}: cannot be written ({error.strerror}); choose another --results"
        ) from error


def read_rows(path: Path, key: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table as text, none where there is no file; TrainerError where `key` columns lack."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in key if name not in (reader.fieldnames or ())]
        if missing:
            raise TrainerError(
                f"{path}: no column {', '.join(missing)}, so it is no table of this bench; move it away"
            )
        return [{k: v or "" for k, v in row.items() if k is not None} for row in reader]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by size, before words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
