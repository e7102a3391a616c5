"""The MLflow run that stands for a sweep: its report is an artifact, and a study's trials nest below it.

An ordinary sweep has one once there is a report, a study as soon as one of its trials has begun.  That of a
study is one and the same over the study's life, and each results folder has its own.  Works on a client that
sweeps.mirror hands over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from sweeps.ledger import Ledger, RunState
from sweeps.session import read_record
from sweeps.snapshot import Point, began, flat
from trainer.rundir import write_atomic

ARTIFACT = "report.html"
BEST = "best.json"
DIGESTS = {ARTIFACT: "report_sha256", "trials.csv": "trials_sha256", "importance.csv": "importance_sha256"}
"""Artifacts, and the tags that say what they were when they were uploaded."""
PARENT = "mlflow.parentRunId"
"""MLflow's own tag: its pages nest a run below the one that is named there."""
RESULTS = "results"
"""The tag of a study's run that says which results folder it is of, for several may share a store."""
SETTING = "study_"
"""How the tags begin that say how a study is set."""


def report_file(results: Path, sweep: str) -> Path:
    """Where `python -m analysis report` leaves the page of a sweep."""
    return results / "reports" / f"{sweep}.html"


def search_folder(results: Path, study: str) -> Path:
    """Where a study leaves its tables and the best of each cell."""
    return results / "searches" / study


def is_attached(results: Path, sweep: str, experiment: str, uri: str) -> bool:
    """Whether what the sweep's run shows was uploaded as it is now, or is nothing; the store is not asked."""
    study = (read_record(results, sweep) or {}).get("study")
    try:
        digests = {name: _digest(path) for name, path in _files(results, sweep, study).items()}
        if not digests and study is None:
            return True
        said = _mark_file(results, sweep).read_text().strip()
    except OSError:
        return False
    return said == _mark(results, experiment, uri, digests, study, _best(results, sweep, study))


@dataclass(frozen=True)
class Attached:
    """What became of the run that stands for a sweep."""

    run: str
    """MLflow's id of it."""
    report: bool | None
    """Whether the report was uploaded; None where there is none, or it could not be."""


@dataclass(frozen=True)
class _Face:
    """What that run shows, but for artifacts and how the sweep stood."""

    start_ms: int
    end_ms: int | None
    params: dict[str, str]
    """What cannot change, as MLflow's parameters cannot."""
    settings: dict[str, str]
    """What can: tags."""
    metrics: list[Point]
    """The newest point of each metric."""


class SweepRun:
    """The run that stands for a sweep, on its way into a tracking store.

    Args:
        client: MlflowClient of the store.
        uri: its tracking URI.
        experiment: name and id of the sweep's experiment.
        ledger: where the runs are.
        sweep: name of the sweep.
        study: what its record says of the study that it is; None for an ordinary sweep.
    """

    def __init__(
        self,
        client: Any,
        uri: str,
        experiment: tuple[str, str],
        ledger: Ledger,
        sweep: str,
        study: Mapping[str, Any] | None,
    ) -> None:
        self.client, self.uri, self.ledger, self.sweep, self.study = client, uri, ledger, sweep, study
        self.experiment, self.experiment_id = experiment

    def find(self) -> str | None:
        """MLflow's id of the run as it is there now; None without one."""
        return next((str(run.info.run_id) for run in self._there()), None)

    def begun(self, run_ids: Sequence[str]) -> bool:
        """Whether any of the runs has begun to train."""
        return self._start(run_ids) is not None

    def attach(self, run_ids: Sequence[str], timeout: float, warn: Callable[[str], None]) -> Attached | None:
        """Bring the run up to date; whoever else is at it does so in our place.

        Args:
            run_ids: all runs of the sweep.
            timeout: seconds to wait for another process that does the same.
            warn: takes the one line that says that artifacts cannot be written.

        Returns: None where there is nothing to show yet, or another process was at it.
        """
        from filelock import FileLock, Timeout

        files = _files(self.ledger.results, self.sweep, self.study)
        if not files and self.study is None:
            return None
        lock = self.ledger.results / "sweeps" / f".{self.sweep}.report.lock"
        try:
            with FileLock(lock).acquire(timeout=timeout), tempfile.TemporaryDirectory() as folder:
                # Copies: files may be written again meanwhile, and their names in the store are fixed ones.
                copies = {name: Path(shutil.copy2(file, Path(folder) / name)) for name, file in files.items()}
                return self._attach(copies, run_ids, warn)
        except Timeout:
            return None

    def _attach(
        self, files: Mapping[str, Path], run_ids: Sequence[str], warn: Callable[[str], None]
    ) -> Attached | None:
        digests = {name: _digest(path) for name, path in files.items()}
        states = self.ledger.scan(run_ids)
        best = _best(self.ledger.results, self.sweep, self.study)
        face = self._face(states, files.get(ARTIFACT), best)
        if face is None:
            return None
        run = self._run(face)
        changed = [name for name in files if run.data.tags.get(DIGESTS[name]) != digests[name]]
        for name in changed:
            try:
                self._upload(run.info, files[name])
            except Exception as error:
                # Every kind of artifact store raises errors of its own, and none concerns the runs.
                line = " ".join(str(error).split()) or type(error).__name__
                what = "the report" if name == ARTIFACT else name
                warn(f"{what} of {self.sweep} was not uploaded to MLflow: {line[:200]}")
                return Attached(run.info.run_id, None)
        tags = {**{DIGESTS[name]: digest for name, digest in digests.items()}, **self._tags(states)}
        for key, value in tags.items():
            if run.data.tags.get(key) != value:
                self.client.set_tag(run.info.run_id, key, value)
        end = face.end_ms
        if end is not None and (run.info.status != "FINISHED" or run.info.end_time != end):
            self.client.set_terminated(run.info.run_id, status="FINISHED", end_time=end)
        mark = _mark(self.ledger.results, self.experiment, self.uri, digests, self.study, best)
        write_atomic(_mark_file(self.ledger.results, self.sweep), mark + "\n")
        return Attached(run.info.run_id, ARTIFACT in changed if ARTIFACT in files else None)

    def _face(
        self, states: Mapping[str, RunState], page: Path | None, best: Mapping[str, Any]
    ) -> _Face | None:
        """What the run shows; None for a study of which nothing has begun."""
        times = _times(states)
        if self.study is None:
            assert page is not None
            written = round(page.stat().st_mtime * 1000)
            return _Face(*(times or (written, written)), {}, {}, [])
        start = self._start(states)
        if start is None:
            return None
        kind = {f"{SETTING}kind": str(self.study.get("kind", ""))}
        settings = {f"{SETTING}{key}": value for key, value in flat(self.study).items()}
        return _Face(start, times[1] if times else None, kind, settings, _best_points(best, states))

    def _start(self, run_ids: Iterable[str]) -> int | None:
        """When a study began, ms: when the first of its trials did, in the order of their proposals."""
        starts = (began(self.ledger.run_dir(run_id)) for run_id in run_ids)
        return next((one for one in starts if one is not None), None)

    def _run(self, face: _Face) -> Any:
        """The MLflow run that stands for the sweep, made anew where it says what is true no more."""
        found = None
        for run in self._there():
            if not self._continues(run, face):
                self.client.delete_run(run.info.run_id)
            elif found is None:
                found = run
        if found is None:
            tags = {"kind": "sweep", "sweep": self.sweep}
            if self.study is not None:
                tags[RESULTS] = _results_tag(self.ledger.results)
            found = self.client.create_run(
                self.experiment_id, start_time=face.start_ms, tags=tags,
                run_name=f"{self.sweep} ({'report' if self.study is None else 'study'})",
            )  # fmt: skip
        self._log(found, face)
        return found

    def _continues(self, run: Any, face: _Face) -> bool:
        """Whether a run that is ours says nothing that is wrong now and could not be put right."""
        if self.study is None:
            return bool(run.info.start_time == face.start_ms)
        # Whatever its start: a first trial that began anew is no reason to lose the id, which links name.
        same = all(run.data.params.get(key, value) == value for key, value in face.params.items())
        return RESULTS in run.data.tags and same

    def _there(self) -> list[Any]:
        """The runs of the store that are ours to change or to delete."""
        # A sweep's name is of letters, digits, '.', '_' and '-' (sweeps.sweepfile.find_sweep).
        mine = f"tags.kind = 'sweep' and tags.sweep = '{self.sweep}'"
        runs = list(self.client.search_runs([self.experiment_id], filter_string=mine))
        if self.study is None:
            return [run for run in runs if RESULTS not in run.data.tags][:1]
        tag = _results_tag(self.ledger.results)
        return [run for run in runs if run.data.tags.get(RESULTS) == tag or self._is_former(run)]

    def _is_former(self, run: Any) -> bool:
        """Whether a run is what an earlier version made of this study: its artifacts are in our folder."""
        tags, place = run.data.tags, urlparse(run.info.artifact_uri)
        if RESULTS in tags or f"{SETTING}kind" not in tags or place.scheme not in ("", "file"):
            return False
        return Path(unquote(place.path)).is_relative_to(self.ledger.results.resolve())

    def _log(self, run: Any, face: _Face) -> None:
        name, tags = run.info.run_id, run.data.tags
        for key, value in face.params.items():
            if key not in run.data.params:
                self.client.log_param(name, key, value)
        for key, value in face.settings.items():
            if tags.get(key) != value:
                self.client.set_tag(name, key, value)
        if self.study is not None:
            for key in tags:
                if key.startswith(SETTING) and key not in face.settings:
                    self.client.delete_tag(name, key)
        for point in face.metrics:
            if run.data.metrics.get(point.key) != point.value:
                # The step decides which point MLflow takes for the newest.
                steps = (one.step for one in self.client.get_metric_history(name, point.key))
                self.client.log_metric(
                    name, point.key, point.value, point.time_ms, max(steps, default=-1) + 1
                )

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
        tags = {"runs": str(len(states)), "done": str(counts["done"]), "failed": str(counts["failed"])}
        return tags if self.study is None else {**tags, "pruned": str(counts["pruned"])}


class Nest:
    """Below which run of the store those of a sweep nest, and which are its own.

    Several studies, or one in several results folders, may share an experiment and runs: each has its own of
    them, below its own run.

    Args:
        client: MlflowClient of the store.
        experiment: id of the experiment.
        sweep: name of the sweep.
        parent: MLflow's id of the run that stands for a study; None for an ordinary sweep.
    """

    def __init__(self, client: Any, experiment: str, sweep: str, parent: str | None) -> None:
        self.client, self.experiment, self.sweep = client, experiment, sweep
        self.tags = {PARENT: parent} if parent is not None else {}
        self._standing: dict[str, bool] = {}

    def rank(self, run: Any) -> int:
        """2: a run of the store is ours; 1: it may be taken over; 0: it is another study's."""
        parent, mine = run.data.tags.get(PARENT), self.tags.get(PARENT)
        if parent == mine:
            return 2
        if mine is None:
            return 1
        if parent is None:
            return int(run.data.tags.get("sweep") == self.sweep)
        return int(not self._stands(parent))

    def _stands(self, name: str) -> bool:
        """Whether a run that stands for a sweep is there, and not deleted."""
        if name not in self._standing:
            runs = self.client.search_runs([self.experiment], filter_string="tags.kind = 'sweep'")
            self._standing[name] = name in {run.info.run_id for run in runs}
        return self._standing[name]


def _files(results: Path, sweep: str, study: Mapping[str, Any] | None) -> dict[str, Path]:
    """What there is to upload, by its name in the store."""
    files = {ARTIFACT: report_file(results, sweep)}
    if study is not None:
        files |= {name: search_folder(results, sweep) / name for name in DIGESTS if name != ARTIFACT}
    return {name: path for name, path in files.items() if path.is_file()}


def _best(results: Path, sweep: str, study: Mapping[str, Any] | None) -> dict[str, Any]:
    """The best of each cell, as the study has left it; none where that file is missing or damaged."""
    try:
        content = json.loads((search_folder(results, sweep) / BEST).read_bytes()) if study is not None else {}
    except (OSError, ValueError):
        # It is written again with the study's next result, and the trials themselves are all mirrored.
        return {}
    return content if isinstance(content, dict) else {}


def _best_points(best: Mapping[str, Any], states: Mapping[str, RunState]) -> list[Point]:
    """The best loss of each cell, with time and steps of the run that reached it; it counts with a result."""
    points: dict[str, Point] = {}
    for label, entry in best.items():
        state = states.get(str(entry.get("run_id"))) if isinstance(entry, dict) else None
        loss = entry.get("val_loss") if isinstance(entry, dict) else None
        if state is None or state.result is None:
            continue
        if not isinstance(loss, int | float) or isinstance(loss, bool) or not math.isfinite(loss):
            continue
        # What MLflow allows in a name; a slash would make a group of charts.
        key = name = f"best_val_loss {re.sub(r'[^A-Za-z0-9_. -]', '_', label)}".strip()[:240]
        number = 1
        while key in points:
            number += 1
            key = f"{name} {number}"
        ended = datetime.fromisoformat(state.result["finished"]).timestamp()
        points[key] = Point(key, float(loss), round(ended * 1000), int(state.result["steps"]))
    return list(points.values())


def _times(states: Mapping[str, RunState]) -> tuple[int, int] | None:
    """When the first run began and the last one ended, ms; None without any."""
    results = [state.result for state in states.values() if state.result is not None]
    if not results:
        return None
    ends = [datetime.fromisoformat(result["finished"]).timestamp() for result in results]
    starts = [end - float(result["seconds"]) for end, result in zip(ends, results, strict=True)]
    return round(min(starts) * 1000), round(max(ends) * 1000)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _results_tag(results: Path) -> str:
    return hashlib.sha256(os.fsencode(results.resolve())).hexdigest()[:12]


def _mark(
    results: Path,
    experiment: str,
    uri: str,
    digests: Mapping[str, str],
    study: Mapping[str, Any] | None,
    best: Mapping[str, Any],
) -> str:
    said: list[Any] = [experiment, uri, digests.get(ARTIFACT)]
    if study is not None:
        said += [dict(digests), study, best, _results_tag(results)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _mark_file(results: Path, sweep: str) -> Path:
    return results / "sweeps" / f".{sweep}.report"
