"""Writes results so that unchanged ones keep their files, and a crash leaves the old or the new one."""

from __future__ import annotations

from pathlib import Path

from analysis.errors import AnalysisError
from trainer.rundir import write_atomic


def write_if_changed(path: Path, data: str | bytes) -> bool:
    """Write a file unless it already holds these bytes; returns whether it wrote.

    Raises:
        AnalysisError: the folder cannot be made or written to.
    """
    payload = data.encode() if isinstance(data, str) else data
    try:
        if path.is_file() and path.read_bytes() == payload:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, payload)
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return True
