"""The MLflow mirror: copies the ledger into a tracking store, from which nothing is ever read back.

One experiment a sweep, one MLflow run a run id.  Everything is derived from the run folders, so that a
deleted store is rebuilt identically: metric lines carry their own times, and a line is sent only once it
can no longer be taken back (it is older than the newest checkpoint, or its run is finished).  The only
module that imports mlflow.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from sweeps.errors import MirrorError, SweepError
from sweeps.ledger import Ledger
from sweeps.mirrored import default_uri, sqlite_file, write_mark
from sweeps.session import read_record
from sweeps.snapshot import Point, Snapshot, seal, snapshot
from trainer.errors import TrainerError

CONNECT_SECONDS = 3.0
BATCH_METRICS, BATCH_PARAMS = 1000, 100
SENT, SENT_DIGEST, SEALED = "mirror.sent", "mirror.sent_digest", "mirror.sealed"

_ENVIRONMENT = {
    # A server that does not answer has to be given up within seconds, not within MLflow's minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # It would set its loggers back to talking while it is imported.
    "MLFLOW_CONFIGURE_LOGGING": "false",
    # The client would report its use to the vendor.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def sync(
    results: Path, sweep: str, experiment: str, uri: str | None, wait: float | None = None
) -> dict[str, int]:
    """Bring the mirror of a sweep up to date; running it again changes nothing.

    Args:
        results: results folder.
        sweep: name of a sweep that was run.
        experiment: MLflow experiment.
        uri: tracking URI; None for the default.
        wait: seconds to wait for another writer; None to leave the work to it.

    Returns: how many runs were `created`, `updated`, `unchanged`; `busy` 1 where another writer is at it.
    Raises MirrorError, within seconds, where the store cannot be reached or refuses.
    """
    from filelock import FileLock, Timeout

    uri = uri or default_uri(results)
    record = read_record(results, sweep)
    if record is None:
        raise SweepError(f"sweep '{sweep}' has not been run in {results}; nothing to mirror")
    _probe(uri)
    _prepare_mlflow()
    lock = _lock_path(results, sweep, uri)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0 if wait is None else wait):
            counts = _Store(uri, results, experiment, sweep).sync(record["run_ids"])
            write_mark(Ledger(results), record["run_ids"], sweep, experiment, uri)
            return counts
    except Timeout:
        return {"created": 0, "updated": 0, "unchanged": 0, "busy": 1}
    except (SweepError, TrainerError):
        raise
    except Exception as error:
        # MLflow, SQLAlchemy, requests and alembic have no common base; all they raise concerns the store.
        line = " ".join(str(error).split()).partition(" [SQL:")[0] or type(error).__name__
        raise MirrorError(f"MLflow at {_shown(uri)}: {line[:200]}") from error


class _Store:
    """One experiment of one tracking store."""

    def __init__(self, uri: str, results: Path, experiment: str, sweep: str) -> None:
        from mlflow.tracking import MlflowClient

        self.ledger, self.sweep = Ledger(results), sweep
        database = sqlite_file(uri)
        if database is not None and not database.exists():
            _create_database(database)
        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            local = uri.startswith("sqlite:")
            artifacts = (results.resolve() / "mlartifacts").as_uri() if local else None
            self.experiment = self.client.create_experiment(experiment, artifact_location=artifacts)
        elif found.lifecycle_stage != "active":
            raise MirrorError(
                f"MLflow experiment '{experiment}' is deleted there; restore it or name another one"
            )
        else:
            self.experiment = found.experiment_id

    def sync(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Mirror the runs that have something to show."""
        there = self._mirrored()
        counts = {"created": 0, "updated": 0, "unchanged": 0, "busy": 0}
        for run_id in run_ids:
            run = there.get(run_id)
            state = self.ledger.state(run_id)
            if run is not None and state.result and seal(state.result) == run.data.tags.get(SEALED):
                counts["unchanged"] += 1
            elif (shot := snapshot(self.ledger, run_id, state, self.sweep)) is not None:
                counts[self._mirror(shot, run)] += 1
        return counts

    def _mirrored(self) -> dict[str, Any]:
        found, token = {}, None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            for run in page:
                if "run_id" in run.data.tags:
                    found[run.data.tags["run_id"]] = run
            token = page.token
            if not token:
                return found

    def _mirror(self, shot: Snapshot, run: Any | None) -> str:
        if run is not None and not self._continues(shot, run):
            # Neither points nor start times can be changed in MLflow, so the run is made anew.
            self.client.delete_run(run.info.run_id)
            run = None
        if run is not None and self._equal(shot, run):
            return "unchanged"
        outcome = "created" if run is None else "updated"
        if run is None:
            run = self.client.create_run(
                self.experiment, start_time=shot.start_ms, run_name=shot.name, tags={"run_id": shot.run_id}
            )
        name, sent = run.info.run_id, int(run.data.tags.get(SENT, 0))
        self._log_params(name, {k: v for k, v in shot.params.items() if k not in run.data.params})
        self._log_points(name, [point for line in shot.lines[sent:] for point in line])
        self._log_points(name, shot.final)
        self._log_tags(
            name, {**shot.tags, SENT: str(len(shot.lines)), SENT_DIGEST: shot.digest(len(shot.lines))}
        )
        if shot.end_ms is not None:
            self.client.set_terminated(name, status=shot.status, end_time=shot.end_ms)
        elif run.info.status != shot.status:
            self.client.update_run(name, status=shot.status)
        if shot.sealed is not None:
            self.client.set_tag(name, SEALED, shot.sealed)
        return outcome

    def _continues(self, shot: Snapshot, run: Any) -> bool:
        """Whether what was sent is a beginning of what the folder says now."""
        sent = int(run.data.tags.get(SENT, 0))
        same_start = run.info.start_time == shot.start_ms
        same_params = run.data.params.items() <= shot.params.items()
        # Final figures of a result that has since been replaced cannot be taken back.
        replaced = SEALED in run.data.tags and shot.sealed != run.data.tags[SEALED]
        known = SENT not in run.data.tags or (
            sent <= len(shot.lines) and shot.digest(sent) == run.data.tags[SENT_DIGEST]
        )
        return same_start and same_params and known and not replaced

    def _equal(self, shot: Snapshot, run: Any) -> bool:
        tags = {**shot.tags, SENT: str(len(shot.lines))}
        return (
            tags.items() <= run.data.tags.items()
            and run.info.status == shot.status
            and (shot.end_ms is None or run.info.end_time == shot.end_ms)
            and (shot.sealed is None or run.data.tags.get(SEALED) == shot.sealed)
        )

    def _log_params(self, name: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entries), BATCH_PARAMS):
            self.client.log_batch(name, params=entries[start : start + BATCH_PARAMS])

    def _log_points(self, name: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        entries = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        for start in range(0, len(entries), BATCH_METRICS):
            self.client.log_batch(name, metrics=entries[start : start + BATCH_METRICS])

    def _log_tags(self, name: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(name, tags=[RunTag(key, value) for key, value in tags.items()])


def _create_database(path: Path) -> None:
    """Make an empty SQLite store in one go: one that was killed amid its migrations could never be opened."""
    from mlflow.tracking import MlflowClient

    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{temp}").search_experiments(max_results=1)
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _lock_path(results: Path, sweep: str, uri: str) -> Path:
    """SQLite has one writer a file; a server has one a sweep, so that two launchers do not send twice."""
    if (path := sqlite_file(uri)) is not None:
        return path.with_name(f".{path.name}.lock")
    return results / "sweeps" / f".{sweep}.mirror.lock"


def _probe(uri: str) -> None:
    """Refuse a server that nobody answers for, before MLflow is loaded and starts to retry."""
    parts = urlparse(uri)
    behind_proxy = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if parts.scheme in ("http", "https") and not behind_proxy:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            with socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS):
                return
        except (OSError, ValueError, OverflowError) as error:
            raise MirrorError(
                f"MLflow at {_shown(uri)} does not answer ({error}); is the server up?"
            ) from None
    if (path := sqlite_file(uri)) is not None and not path.parent.is_dir():
        raise MirrorError(f"MLflow at {uri}: there is no folder {path.parent}; make it or choose another URI")


def _shown(uri: str) -> str:
    """The URI without user and password."""
    parts = urlparse(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else uri


def _prepare_mlflow() -> None:
    """Set what MLflow reads when it is imported, and silence its chatter."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3", "git"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def main(argv: list[str] | None = None) -> int:
    """Follow a launcher: sync now and then, and once more when it closes our standard input.

    Prints one JSON line a sync, {"problem": line or null}; never fails because of the store.
    """
    parser = argparse.ArgumentParser(prog="python -m sweeps.mirror")
    parser.add_argument("sweep")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--uri")
    parser.add_argument("--every", type=float, default=30.0)
    options = parser.parse_args(argv)
    # The runs need the processor more; at the end, when other users' programs remain, it still gets its turn.
    os.nice(10)
    final = False
    while not final:
        final = bool(select.select([sys.stdin], [], [], options.every)[0])
        began, problem = time.monotonic(), None
        try:
            wait = 60.0 if final else None
            sync(options.results, options.sweep, options.experiment, options.uri, wait)
        except (SweepError, TrainerError) as error:
            problem = str(error)
        took = time.monotonic() - began
        # At most a hundredth of the time goes into mirroring what is still under way.
        options.every = max(options.every, min(600.0, 100 * took))
        print(json.dumps({"problem": problem, "seconds": round(took, 2)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
