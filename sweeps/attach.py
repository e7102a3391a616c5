"""The report of a sweep in its mirror: an MLflow run that stands for the sweep, the page its artifact.

Works on a client that sweeps.mirror hands over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sweeps.ledger import Ledger, RunState
from trainer.rundir import write_atomic

ARTIFACT = "report.html"
DIGEST = "report_sha256"


def report_file(results: Path, sweep: str) -> Path:
    """Where `python -m analysis report` leaves the page of a sweep."""
    return results / "reports" / f"{sweep}.html"


def is_attached(results: Path, sweep: str, experiment: str, uri: str) -> bool:
    """Whether the report as it is now was uploaded there, or there is none; the store is not asked."""
    try:
        digest = _digest(report_file(results, sweep).read_bytes())
    except OSError:
        return True
    try:
        return _mark_file(results, sweep).read_text().strip() == _mark(experiment, uri, digest)
    except OSError:
        return False


class Attachment:
    """The report of a sweep on its way into a tracking store.

    Args:
        client: MlflowClient of the store.
        uri: its tracking URI.
        experiment: name and id of the sweep's experiment.
        ledger: where the runs are.
        sweep: name of the sweep.
    """

    def __init__(
        self, client: Any, uri: str, experiment: tuple[str, str], ledger: Ledger, sweep: str
    ) -> None:
        self.client, self.uri, self.ledger, self.sweep = client, uri, ledger, sweep
        self.experiment, self.experiment_id = experiment

    def attach(self, run_ids: Sequence[str], timeout: float, warn: Callable[[str], None]) -> bool | None:
        """Upload the report unless it is there already; whoever else is at it does so in our place.

        Args:
            run_ids: all runs of the sweep.
            timeout: seconds to wait for another process that does the same.
            warn: takes the one line that says that artifacts cannot be written.

        Returns: whether it was uploaded; None where there is none, or nothing could be done.
        """
        from filelock import FileLock, Timeout

        file = report_file(self.ledger.results, self.sweep)
        if not file.is_file():
            return None
        lock = self.ledger.results / "sweeps" / f".{self.sweep}.report.lock"
        try:
            with FileLock(lock).acquire(timeout=timeout), tempfile.TemporaryDirectory() as folder:
                # A copy: the page may be written again meanwhile, and its name in the store is a fixed one.
                copy = Path(shutil.copy2(file, Path(folder) / ARTIFACT))
                return self._attach(copy, run_ids, warn)
        except Timeout:
            return None

    def _attach(self, page: Path, run_ids: Sequence[str], warn: Callable[[str], None]) -> bool | None:
        digest = _digest(page.read_bytes())
        states = self.ledger.scan(run_ids)
        start, end = _times(states, page)
        run = self._run(start)
        uploaded: bool = run.data.tags.get(DIGEST) != digest
        if uploaded:
            try:
                self._upload(run.info, page)
            except Exception as error:
                # Every kind of artifact store raises errors of its own, and none concerns the runs.
                line = " ".join(str(error).split()) or type(error).__name__
                warn(f"the report of {self.sweep} was not uploaded to MLflow: {line[:200]}")
                return None
        tags = {DIGEST: digest, **self._tags(states)}
        for key, value in tags.items():
            if run.data.tags.get(key) != value:
                self.client.set_tag(run.info.run_id, key, value)
        if run.info.status != "FINISHED" or run.info.end_time != end:
            self.client.set_terminated(run.info.run_id, status="FINISHED", end_time=end)
        write_atomic(
            _mark_file(self.ledger.results, self.sweep), _mark(self.experiment, self.uri, digest) + "\n"
        )
        return uploaded

    def _run(self, start: int) -> Any:
        """The MLflow run that stands for the sweep."""
        # A sweep's name is of letters, digits, '.', '_' and '-' (sweeps.sweepfile.find_sweep).
        mine = f"tags.kind = 'sweep' and tags.sweep = '{self.sweep}'"
        for run in self.client.search_runs([self.experiment_id], filter_string=mine, max_results=1):
            if run.info.start_time == start:
                return run
            # A start cannot be changed in MLflow, and a store that is rebuilt has to say the same.
            self.client.delete_run(run.info.run_id)
        return self.client.create_run(
            self.experiment_id, start_time=start, run_name=f"{self.sweep} (report)",
            tags={"kind": "sweep", "sweep": self.sweep},
        )  # fmt: skip

    def _upload(self, info: Any, page: Path) -> None:
        place = urlparse(info.artifact_uri)
        remote = self.uri.startswith(("http://", "https://"))
        if remote and place.scheme in ("", "file") and not Path(place.path).parent.parent.is_dir():
            # The client would make the server's folder on this machine, where nobody looks for it.
            raise OSError(f"the server keeps artifacts in a folder of its own, {info.artifact_uri}")
        self.client.log_artifact(info.run_id, str(page))

    def _tags(self, states: Mapping[str, RunState]) -> dict[str, str]:
        """How the sweep stood."""
        counts = Counter(state.state for state in states.values())
        return {"runs": str(len(states)), "done": str(counts["done"]), "failed": str(counts["failed"])}


def _times(states: Mapping[str, RunState], page: Path) -> tuple[int, int]:
    """When the first run began and the last one ended, ms; without any, the time of the page."""
    results = [state.result for state in states.values() if state.result is not None]
    ends = [datetime.fromisoformat(result["finished"]).timestamp() for result in results]
    if not ends:
        return (round(page.stat().st_mtime * 1000),) * 2
    starts = [end - float(result["seconds"]) for end, result in zip(ends, results, strict=True)]
    return round(min(starts) * 1000), round(max(ends) * 1000)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _mark(experiment: str, uri: str, digest: str) -> str:
    return hashlib.sha256(json.dumps([experiment, uri, digest]).encode()).hexdigest()


def _mark_file(results: Path, sweep: str) -> Path:
    return results / "sweeps" / f".{sweep}.report"
