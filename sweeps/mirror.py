"""The MLflow mirror: copies the ledger into a tracking store, from which nothing is ever read back.

One experiment a sweep, one MLflow run a run id, and one that stands for the sweep (sweeps.attach), below
which the trials of a study nest.  Everything is derived from the run folders, so that a deleted store is
rebuilt identically: metric lines carry their own times, and a line is sent only once it can no longer be
taken back (it is older than the newest checkpoint, or its run is finished).  The only module that imports
mlflow.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from sweeps.attach import Nest, SweepRun
from sweeps.errors import MirrorError, SweepError
from sweeps.ledger import Ledger
from sweeps.machine import step_back
from sweeps.mirrored import default_uri, sqlite_file, write_mark
from sweeps.session import read_record
from sweeps.snapshot import Point, Snapshot, seal, snapshot
from trainer.errors import TrainerError

CONNECT_SECONDS = 3.0
BATCH_METRICS, BATCH_PARAMS = 1000, 100
FEW_RUNS = 8
LOCK = "mirror.lock"
SENT, SENT_DIGEST, SEALED = "mirror.sent", "mirror.sent_digest", "mirror.sealed"

_ENVIRONMENT = {
    # A server that does not answer has to be given up within seconds, not within MLflow's minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # It would set its loggers back to talking while it is imported.
    "MLFLOW_CONFIGURE_LOGGING": "false",
    # Of a server's runs it would print addresses, between the lines that the launcher reads.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The client would report its use to the vendor.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def sync(
    results: Path,
    sweep: str,
    experiment: str,
    uri: str | None,
    wait: float | None = None,
    only: Sequence[str] | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """Bring the mirror of a sweep up to date; running it again changes nothing.

    Args:
        results: results folder.
        sweep: name of a sweep that was run.
        experiment: MLflow experiment.
        uri: tracking URI; None for the default.
        wait: seconds to wait for another writer; None to leave the work to it.
        only: the runs to mirror; default all of the sweep, and its report if there is one.
        warn: takes a line where the report could not be uploaded; everything else is mirrored all the same.

    Returns: how many runs were `created`, `updated`, `unchanged`; `busy` 1 where another writer is at it;
    `report`, where there is one, 1 if it was uploaded and 0 if it was there already.
    Raises MirrorError, within seconds, where the store cannot be reached or refuses.
    """
    from filelock import FileLock, Timeout

    uri = uri or default_uri(results)
    record = read_record(results, sweep)
    if record is None:
        raise SweepError(f"sweep '{sweep}' has not been run in {results}; nothing to mirror")
    _probe(uri)
    _prepare_mlflow()
    run_ids = record["run_ids"] if only is None else only
    # A SQLite file has one writer; on a server each run has its own.
    database, timeout = sqlite_file(uri), 0.0 if wait is None else wait
    try:
        with ExitStack() as held:
            if database is not None:
                database.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(database.with_name(f".{database.name}.lock"))
                held.enter_context(lock.acquire(timeout=timeout))
            store, study = _Store(uri, results, experiment, sweep), record.get("study")
            whole = SweepRun(store.client, uri, (experiment, store.experiment), store.ledger, sweep, study)
            attached = None
            if study is not None:
                # First, since its trials have to name it.
                attached = whole.attach(run_ids, timeout, warn) if only is None else None
                parent = attached.run if attached is not None else whole.find()
                if parent is None:
                    # Nothing has begun, or whoever is about to make that run mirrors the trials as well.
                    return {"created": 0, "updated": 0, "unchanged": 0, "busy": int(whole.begun(run_ids))}
                store.nest = Nest(store.client, store.experiment, sweep, parent)
            counts = store.sync(run_ids, timeout)
            if study is None and only is None:
                attached = whole.attach(run_ids, timeout, warn)
            if attached is not None and attached.report is not None:
                counts["report"] = int(attached.report)
        if only is None and not counts["busy"]:
            write_mark(Ledger(results), run_ids, sweep, experiment, uri)
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
            self.experiment = self._create_experiment(experiment, artifacts)
        elif found.lifecycle_stage != "active":
            raise MirrorError(
                f"MLflow experiment '{experiment}' is deleted there; restore it or name another one"
            )
        else:
            self.experiment = found.experiment_id
        self.nest = Nest(self.client, self.experiment, sweep, None)

    def _create_experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            # Many workers that start together all find it missing, and one is the first to make it.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = self.client.get_experiment_by_name(name)
            assert found is not None
            return found.experiment_id

    def sync(self, run_ids: Sequence[str], timeout: float) -> dict[str, int]:
        """Mirror the runs that have something to show; each for at most `timeout` s behind another writer."""
        from filelock import FileLock, Timeout

        there = self._mirrored(run_ids)
        counts = {"created": 0, "updated": 0, "unchanged": 0, "busy": 0}
        for run_id in run_ids:
            run, state = there.get(run_id), self.ledger.state(run_id)
            tags = run.data.tags if run is not None else {}
            sealed = state.result and seal(state.result) == tags.get(SEALED)
            if sealed and self.nest.tags.items() <= tags.items():
                counts["unchanged"] += 1
            elif self.ledger.run_dir(run_id).is_dir():
                try:
                    with FileLock(self.ledger.run_dir(run_id) / LOCK).acquire(timeout=timeout):
                        outcome = self._look_again(run_id)
                except Timeout:
                    outcome = "busy"
                if outcome is not None:
                    counts[outcome] += 1
        return counts

    def _look_again(self, run_id: str) -> str | None:
        """Mirror one run whose lock is held: it may have changed on either side before the lock was ours."""
        shot = snapshot(self.ledger, run_id, self.ledger.state(run_id), self.sweep)
        return None if shot is None else self._mirror(shot, self._mirrored([run_id]).get(run_id))

    def _mirrored(self, run_ids: Sequence[str]) -> dict[str, Any]:
        """What the store has of runs, by run id; of many, everything is fetched in pages."""
        found: dict[str, tuple[int, Any]] = {}
        for run in self._candidates(run_ids):
            run_id = run.data.tags.get("run_id")
            rank = self.nest.rank(run) if run_id is not None else 0
            if rank > (found[run_id][0] if run_id in found else 0):
                found[run_id] = rank, run
        return {run_id: run for run_id, (_, run) in found.items()}

    def _candidates(self, run_ids: Sequence[str]) -> Iterator[Any]:
        if len(run_ids) <= FEW_RUNS:
            for run_id in run_ids:
                yield from self.client.search_runs(
                    [self.experiment], filter_string=f"tags.run_id = '{run_id}'"
                )
            return
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

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
            name,
            {
                **shot.tags,
                **self.nest.tags,
                SENT: str(len(shot.lines)),
                SENT_DIGEST: shot.digest(len(shot.lines)),
            },
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
        tags = {**shot.tags, **self.nest.tags, SENT: str(len(shot.lines))}
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


class _Names:
    """Run ids that come on standard input."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._rest = b""

    def read(self, seconds: float) -> bool:
        """Collect names for some seconds; True, at once, when there will be no more."""
        until = time.monotonic() + seconds
        while select.select([sys.stdin], [], [], max(0.0, until - time.monotonic()))[0]:
            chunk = os.read(sys.stdin.fileno(), 1 << 16)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self.seen += [name for line in lines if (name := line.decode()) and name not in self.seen]
            if not chunk:
                return True
        return False


def main(argv: list[str] | None = None) -> int:
    """Follow a launcher: sync now and then, and once more when it closes our standard input.

    With --own, only the runs are mirrored whose ids come on standard input, one a line.
    Prints one JSON line a sync, {"problem": line or null}; never fails because of the store.
    """
    parser = argparse.ArgumentParser(prog="python -m sweeps.mirror")
    parser.add_argument("sweep")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--uri")
    parser.add_argument("--every", type=float, default=30.0)
    parser.add_argument("--own", action="store_true")
    options = parser.parse_args(argv)
    # The runs need the processor more; at the end, when other users' programs remain, it still gets its turn.
    step_back(os.getpid())
    names = _Names()
    final = False
    while not final:
        final = names.read(options.every)
        began = time.monotonic()
        problem: str | None = None
        warned: list[str] = []
        try:
            wait = 60.0 if final else None
            only = names.seen if options.own else None
            sync(options.results, options.sweep, options.experiment, options.uri, wait, only, warned.append)
            problem = next(iter(warned), None)
        except (SweepError, TrainerError) as error:
            problem = str(error)
        took = time.monotonic() - began
        # At most a hundredth of the time goes into mirroring what is still under way.
        options.every = max(options.every, min(600.0, 100 * took))
        print(json.dumps({"problem": problem, "seconds": round(took, 2)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
