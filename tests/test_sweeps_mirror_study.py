"""A study in MLflow, against a real SQLite store: its own run, its trials below it, its tables."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from conftest import finish_run, write_metrics
from test_sweeps_mirror import Read, mirror, read_back, unfinished

from sweeps.attach import _best, _best_points, is_attached
from sweeps.ledger import RunState
from sweeps.mirror import sync
from sweeps.mirrored import default_uri
from sweeps.overview import Overview, look
from sweeps.session import write_record
from sweeps.sweepfile import read_sweep
from trainer.rundir import write_status

STUDY = {"kind": "width", "description": "", "trials": 4, "sampler": {"name": "tpe", "seed": 3}}


def study_says(results: Path) -> tuple[dict[str, Any], Read]:
    """What the store has of a study's own run, and of its trials; MLflow's own ids and the folder apart."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(default_uri(results))
    found = client.get_experiment_by_name("tiny")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], filter_string="tags.kind = 'sweep'")
    trials = read_back(results)
    for trial in trials.values():
        assert trial["tags"].pop("mlflow.parentRunId") == run.info.run_id
    digests = {}
    for artifact in client.list_artifacts(run.info.run_id):
        # The path in the store is of the results folder that it was filled from.
        content = Path(urlparse(run.info.artifact_uri).path, artifact.path).read_bytes()
        digests[artifact.path] = hashlib.sha256(content).hexdigest()
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags.pop("results") == hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:12]
    assert all(tags[f"{Path(name).stem}_sha256"] == digest for name, digest in digests.items())
    metrics = {
        key: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    own = {
        "name": run.info.run_name, "status": run.info.status, "params": run.data.params, "tags": tags,
        "times": (run.info.start_time, run.info.end_time), "metrics": metrics, "artifacts": sorted(digests),
    }  # fmt: skip
    return own, trials


@pytest.mark.slow
def test_the_trials_of_a_study_nest_below_its_run(results: Path, write_sweep: Callable[..., Path]) -> None:
    overview = look(read_sweep(write_sweep()), results)
    first, second, pruned = overview.ids[:3]
    file = overview.sweep.path

    def record(*run_ids: str) -> None:
        write_record(results, "tiny", "", file, run_ids, STUDY)

    record(first)
    assert mirror(results) == {"created": 0, "updated": 0, "unchanged": 0, "busy": 0}
    assert study_runs(results) == 0
    # The first trial is under way: the study's run is there, and has not ended.
    unfinished(results, overview, "running", 6, checkpoint=4)
    assert mirror(results)["created"] == 1
    own, trials = study_says(results)
    assert (own["name"], own["status"], own["times"]) == ("tiny (study)", "RUNNING", (1735689600000, None))
    assert own["params"] == {"study_kind": "width"}
    assert {key: value for key, value in own["tags"].items() if key.startswith("study_")} == {
        "study_kind": "width", "study_description": "", "study_trials": "4", "study_sampler.name": "tpe",
        "study_sampler.seed": "3",
    }  # fmt: skip
    assert (own["metrics"], own["artifacts"], list(trials)) == ({}, [], [first])
    # It and another end, a third is pruned, and the tables are there.
    finish_run(results, overview.configs[0], first)
    finish_run(results, overview.configs[1], second, val_loss=2.4, finished="2025-01-01T00:01:00+00:00")
    folder = finish_run(results, overview.configs[2], pruned)
    (folder / "result.json").unlink()
    (folder / "checkpoints").mkdir()
    for suffix in ("safetensors", "json"):
        (folder / "checkpoints" / f"step-000000004.{suffix}").touch()
    write_status(folder, {"state": "pruned", "attempt": 1, "started": 1735689600.0, "updated": 1735689650.0})
    record(first, second, pruned)
    leave(
        results, {"dense/1e15": {"val_loss": 2.4, "run_id": second}, "b": {"val_loss": 2.6, "run_id": first}}
    )
    assert mirror(results) == {"created": 2, "updated": 1, "unchanged": 0, "busy": 0}
    own, trials = study_says(results)
    assert own["metrics"] == {
        "best_val_loss dense_1e15": [(0, 2.4, 1735689660000)], "best_val_loss b": [(0, 2.6, 1735689610000)],
    }  # fmt: skip
    assert own["artifacts"] == ["importance.csv", "trials.csv"]
    assert (own["status"], own["times"]) == ("FINISHED", (1735689600000, 1735689660000))
    assert {key: own["tags"][key] for key in ("study_kind", "runs", "done", "pruned")} == {
        "study_kind": "width", "runs": "3", "done": "2", "pruned": "1",
    }  # fmt: skip
    assert (trials[pruned]["status"], trials[pruned]["tags"]["state"]) == ("KILLED", "pruned")
    # Again: nothing; after a change: only that.
    assert mirror(results) == {"created": 0, "updated": 0, "unchanged": 3, "busy": 0}
    assert study_says(results) == (own, trials)
    # A better one is a further point: a run of its own remains what it is.
    better = {"dense/1e15": {"val_loss": 2.4, "run_id": second}, "b": {"val_loss": 2.4, "run_id": second}}
    leave(results, better)
    assert mirror(results)["unchanged"] == 3
    own, trials = study_says(results)
    assert own["metrics"].pop("best_val_loss b") == [(0, 2.6, 1735689610000), (1, 2.4, 1735689660000)]
    (results / "mlflow.db").unlink()
    shutil.copytree(results, results.with_name("restored"))
    assert mirror(results.with_name("restored"))["created"] == 3
    rebuilt, again = study_says(results.with_name("restored"))
    assert rebuilt["metrics"].pop("best_val_loss b") == [(0, 2.4, 1735689660000)]
    assert (rebuilt, again) == (own, trials)


def everything(uri: str) -> dict[str, Any]:
    """All that a store has of an experiment's runs, by MLflow's ids."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("tiny")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    return {
        run.info.run_id: (run.to_dictionary(), [client.get_metric_history(run.info.run_id, key)
                                                for key in run.data.metrics])
        for run in runs
    }  # fmt: skip


def parents(uri: str) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """By a parent's id: what it says, and its trials, MLflow's id by run id."""
    runs = {name: run["data"] for name, (run, _) in everything(uri).items()}
    found: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        name: (run, {}) for name, run in runs.items() if run["tags"].get("kind") == "sweep"
    }
    for name, run in runs.items():
        if name not in found:
            below = found[run["tags"]["mlflow.parentRunId"]][1]
            assert run["tags"]["run_id"] not in below
            below[run["tags"]["run_id"]] = name
    return found


@pytest.fixture
def studied(results: Path, write_sweep: Callable[..., Path]) -> Overview:
    """A study of two finished trials, that has left its tables."""
    overview = look(read_sweep(write_sweep()), results)
    for run_id, config in zip(overview.ids[:2], overview.configs, strict=False):
        finish_run(results, config, run_id)
    write_record(results, "tiny", "", overview.sweep.path, overview.ids[:2], STUDY)
    leave(results, {"b": {"val_loss": 2.6, "run_id": overview.ids[0]}})
    return overview


@pytest.mark.slow
def test_the_run_of_a_study_and_its_trials_keep_their_ids(results: Path, studied: Overview) -> None:
    uri, (first, second, third) = default_uri(results), studied.ids[:3]
    mirror(results)
    ((parent, (_, children)),) = parents(uri).items()
    assert set(children) == {first, second}
    # Losses go down, and up where a result was lost; settings change, come and go.
    settings: list[dict[str, Any]] = [
        {**STUDY, "trials": 9}, {**STUDY, "trials": 9, "valley": "d_model"},
        {"kind": "width", "description": "wider", "pruner": "median"},
    ]  # fmt: skip
    for loss, study in zip((2.5, 2.45, 2.7), settings, strict=True):
        leave(results, {"b": {"val_loss": loss, "run_id": second}})
        write_record(results, "tiny", "", studied.sweep.path, studied.ids[:2], study)
        assert not is_attached(results, "tiny", "tiny", uri)
        mirror(results)
        assert is_attached(results, "tiny", "tiny", uri)
        ((name, (run, below)),) = parents(uri).items()
        assert (name, below) == (parent, children)
        assert run["metrics"] == {"best_val_loss b": loss}
    assert {key: value for key, value in run["tags"].items() if key.startswith("study_")} == {
        "study_kind": "width", "study_description": "wider", "study_pruner": "median",
    }  # fmt: skip
    said, _ = study_says(results)
    assert [point[:2] for point in said["metrics"]["best_val_loss b"]] == [
        (0, 2.6), (1, 2.5), (2, 2.45), (3, 2.7),
    ]  # fmt: skip
    # A third trial ends, and the first one has begun anew, with it the study.
    finish_run(results, studied.configs[2], third)
    write_metrics(results / "runs" / first, studied.configs[0], 10, offset=1000.0)
    write_record(results, "tiny", "", studied.sweep.path, studied.ids[:3], settings[-1])
    mirror(results)
    ((name, (_, below)),) = parents(uri).items()
    assert name == parent and set(below) == {first, second, third} and below[second] == children[second]
    before = everything(uri)
    mirror(results)
    assert everything(uri) == before


@pytest.mark.slow
def test_two_results_folders_on_one_store_leave_each_other_alone(
    results: Path, studied: Overview, tmp_path: Path
) -> None:
    uri, other = f"sqlite:///{tmp_path / 'shared.db'}", tmp_path / "other"
    first, second = studied.ids[:2]
    shutil.copytree(results, other)
    # The same run, trained elsewhere at another time.
    write_metrics(other / "runs" / first, studied.configs[0], 10, offset=1000.0)
    leave(other, {"b": {"val_loss": 2.3, "run_id": second}})
    assert sync(results, "tiny", "tiny", uri)["created"] == 2
    alone = everything(uri)
    assert not is_attached(other, "tiny", "tiny", uri)
    assert sync(other, "tiny", "tiny", uri)["created"] == 2
    before, found = everything(uri), parents(uri)
    assert alone.items() <= before.items()
    assert [set(children) for _, children in found.values()] == [{first, second}] * 2
    assert {run["metrics"]["best_val_loss b"] for run, _ in found.values()} == {2.6, 2.3}
    assert len({run["tags"]["results"] for run, _ in found.values()}) == 2
    for folder in (results, other):
        assert sync(folder, "tiny", "tiny", uri)["unchanged"] == 2
    assert everything(uri) == before
    # An ordinary sweep of the name, from a third folder, replaces neither.
    third = tmp_path / "third"
    write_record(third, "tiny", "", studied.sweep.path, [])
    (third / "reports").mkdir()
    (third / "reports" / "tiny.html").write_text("<h1>one</h1>")
    sync(third, "tiny", "tiny", uri)
    assert before.items() <= everything(uri).items()


@pytest.mark.slow
def test_what_an_earlier_version_made_is_replaced_and_its_trials_are_kept(
    results: Path, studied: Overview, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    uri = default_uri(results)
    mirror(results)
    ((old, (_, children)),) = parents(uri).items()
    client = MlflowClient(uri)
    client.delete_tag(old, "results")
    client.log_param(old, "sampler.name", "random")
    # In another's folder it would not be ours to delete.
    other = tmp_path / "other"
    shutil.copytree(results, other, ignore=shutil.ignore_patterns("mlflow.db"))
    sync(other, "tiny", "tiny", uri)
    assert set(parents(uri)) > {old}
    mirror(results)
    found = parents(uri)
    assert old not in found and len(found) == 2
    assert children in [below for _, below in found.values()]
    # Deleted by hand, it comes back, and takes its trials along.
    (mine,) = (name for name, (_, below) in found.items() if below == children)
    client.delete_run(mine)
    mirror(results)
    found = parents(uri)
    assert mine not in found and children in [below for _, below in found.values()]


def study_runs(results: Path) -> int:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(default_uri(results))
    found = client.get_experiment_by_name("tiny")
    assert found is not None
    return len(client.search_runs([found.experiment_id], filter_string="tags.kind = 'sweep'"))


def leave(results: Path, best: Any) -> None:
    """What a study leaves besides its runs."""
    folder = results / "searches" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("trials", "importance"):
        (folder / f"{name}.csv").write_text(f"{name} {json.dumps(best)}\n")
    (folder / "best.json").write_text(json.dumps(best))


def test_of_a_best_that_makes_no_sense_nothing_is_said(results: Path) -> None:
    result = {"finished": "2025-01-01T00:00:10+00:00", "steps": 10}
    states = {"r": RunState("done", result=result), "pruned": RunState("pruned")}
    senseless: list[Any] = [
        3, None, {}, {"val_loss": "2.0", "run_id": "r"}, {"val_loss": float("nan"), "run_id": "r"},
        {"val_loss": True, "run_id": "r"}, {"val_loss": 2.0, "run_id": "pruned"},
        {"val_loss": 2.0, "run_id": "gone"}, {"val_loss": 2.0, "run_id": ["r"]},
    ]  # fmt: skip
    best = {f"c{n}": one for n, one in enumerate(senseless)}
    assert _best_points(best, states) == []
    both = {"a/b": {"val_loss": 2.0, "run_id": "r"}, "a:b": {"val_loss": 3, "run_id": "r"}}
    assert [(point.key, point.value) for point in _best_points(both, states)] == [
        ("best_val_loss a_b", 2.0), ("best_val_loss a_b 2", 3.0),
    ]  # fmt: skip
    folder = results / "searches" / "tiny"
    folder.mkdir(parents=True)
    for content in ("", "{", "[1]", "\xff"):
        (folder / "best.json").write_bytes(content.encode("latin-1"))
        assert _best(results, "tiny", {}) == {}


def test_what_a_study_shows_is_known_to_be_there_without_asking_the_store(results: Path) -> None:
    write_record(results, "tiny", "", results / "tiny.toml", [])
    assert is_attached(results, "tiny", "tiny", "sqlite:///x")
    write_record(results, "tiny", "", results / "tiny.toml", [], STUDY)
    assert not is_attached(results, "tiny", "tiny", "sqlite:///x")
