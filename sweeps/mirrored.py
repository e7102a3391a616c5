"""Remembers what was last mirrored, so that a sweep in which nothing happened does not load MLflow at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sweeps.ledger import Ledger
from trainer.rundir import write_atomic


def default_uri(results: Path) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the results folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.resolve() / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI; None for other stores."""
    if not uri.startswith("sqlite:///") or ":memory:" in uri:
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def write_mark(ledger: Ledger, run_ids: Sequence[str], sweep: str, experiment: str, uri: str) -> None:
    """Note that the mirror holds the finished runs of a sweep; called after a complete sync."""
    mark = _mark(ledger, run_ids, experiment, uri)
    if mark is not None:
        write_atomic(_path(ledger, sweep), mark + "\n")


def is_mirrored(ledger: Ledger, run_ids: Sequence[str], sweep: str, experiment: str, uri: str) -> bool:
    """Whether the last complete sync still holds: every run finished, none changed, the database there."""
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return False
    try:
        said = _path(ledger, sweep).read_text().strip()
    except OSError:
        return False
    return said == _mark(ledger, run_ids, experiment, uri)


def _mark(ledger: Ledger, run_ids: Sequence[str], experiment: str, uri: str) -> str | None:
    """Hash of all results; None while a run is unfinished."""
    seals = []
    for run_id, state in ledger.scan(run_ids).items():
        if state.result is None:
            return None
        seals.append((run_id, state.result["sha256"]))
    return hashlib.sha256(json.dumps([experiment, uri, seals]).encode()).hexdigest()


def _path(ledger: Ledger, sweep: str) -> Path:
    return ledger.results / "sweeps" / f".{sweep}.mirrored"
