"""The MLflow mirror against a real SQLite store: round trip, restoration, resumed runs, outages, races."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli, finish_run, write_metrics
from tracking import TrackingServer
from tracking import read_back as store_says

from sweeps.background import BackgroundMirror, mirror_of
from sweeps.errors import MirrorError
from sweeps.ledger import Ledger
from sweeps.mirror import sync
from sweeps.mirrored import default_uri, is_mirrored
from sweeps.overview import Overview, look
from sweeps.session import write_record
from sweeps.snapshot import MAX_LINES, snapshot
from sweeps.sweepfile import read_sweep
from trainer.rundir import write_status

Read = dict[str, dict[str, Any]]


@pytest.fixture
def overview(results: Path, write_sweep: Callable[..., Path]) -> Overview:
    """A recorded sweep of four runs, of which nothing has been trained."""
    overview = look(read_sweep(write_sweep()), results)
    write_record(results, "tiny", "", overview.sweep.path, overview.ids)
    return overview


def mirror(results: Path) -> dict[str, int]:
    return sync(results, "tiny", "tiny", None)


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables and nothing else: MLflow needs seconds to make one."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "sweeps").mkdir()
    write_record(folder, "none", "", folder / "none.toml", [])
    sync(folder, "none", "none", None)
    return folder / "mlflow.db"


@pytest.fixture
def store(fresh_store: Path, results: Path) -> Path:
    """The default store of the results folder, with its tables."""
    return Path(shutil.copy(fresh_store, results / "mlflow.db"))


def restore(results: Path, cli: Cli, overview: Overview) -> str:
    """Delete the store and rebuild it in another process, as a user does."""
    (results / "mlflow.db").unlink()
    done = cli("sync", str(overview.sweep.path))
    assert done.stderr == ""
    # MLflow keeps the deleted file open in this process, so it is shown the new one under another name.
    shutil.copytree(results, results.with_name("restored"))
    return done.stdout


def read_back(results: Path) -> Read:
    """Everything the store says about each run, but its own ids."""
    return store_says(default_uri(results), "tiny")


@pytest.mark.slow
def test_round_trip_and_restoration(overview: Overview, results: Path, store: Path, cli: Cli) -> None:
    done, diverged, failed = overview.ids[:3]
    configs = dict(zip(overview.ids, overview.configs, strict=True))
    finish_run(results, configs[done], done)
    finish_run(results, configs[diverged], diverged, state="diverged", val_loss=None, val_loss_se=None)
    folder = finish_run(results, configs[failed], failed)
    (folder / "result.json").unlink()
    write_status(folder, {"state": "failed", "attempt": 2, "started": 1735689600.0, "updated": 1735689700.0})
    assert mirror(results) == {"created": 3, "updated": 0, "unchanged": 0, "busy": 0}
    first = read_back(results)
    assert set(first) == {done, diverged, failed}
    assert {name: run["status"] for name, run in first.items()} == {
        done: "FINISHED", diverged: "FAILED", failed: "FAILED",
    }  # fmt: skip
    run = first[done]
    assert run["params"]["optim.peak_lr"] == "0.005"
    assert run["params"]["model.structure.kind"] == "dense"
    assert run["tags"]["git_sha"] == "abc123"
    assert (run["tags"]["state"], run["tags"]["size"]) == ("done", "d16-L2")
    assert run["times"] == (1735689600000, 1735689610000)
    assert run["metrics"]["train_loss"] == [(n, 3.0 - n / 100, 1735689600000 + 500 * n) for n in range(1, 11)]
    assert run["metrics"]["val_loss"] == [(10, 2.6, 1735689610000)]
    assert mirror(results) == {"created": 0, "updated": 0, "unchanged": 3, "busy": 0}
    assert read_back(results) == first
    assert restore(results, cli, overview) == "3 created, 0 updated, 0 unchanged\n"
    assert read_back(results.with_name("restored")) == first


def unfinished(results: Path, overview: Overview, state: str, n_lines: int, checkpoint: int | None) -> Path:
    run_id, config = overview.ids[0], overview.configs[0]
    folder = finish_run(results, config, run_id, n_lines)
    (folder / "result.json").unlink()
    write_status(folder, {"state": state, "attempt": 1, "started": 1735689600.0, "heartbeat": 1735689650.0})
    (folder / "checkpoints").mkdir(exist_ok=True)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    if checkpoint is not None:
        for suffix in ("safetensors", "json"):
            (folder / "checkpoints" / f"step-{checkpoint:09d}.{suffix}").touch()
    return folder


@pytest.mark.slow
def test_a_resumed_curve_grows_and_never_repeats_a_step(
    overview: Overview, results: Path, store: Path, cli: Cli
) -> None:
    run_id, config = overview.ids[0], overview.configs[0]
    unfinished(results, overview, "running", 6, None)
    assert mirror(results)["created"] == 0
    folder = unfinished(results, overview, "running", 6, checkpoint=4)
    assert mirror(results)["created"] == 1
    run = read_back(results)[run_id]
    assert [step for step, _, _ in run["metrics"]["train_loss"]] == [1, 2, 3, 4]
    assert run["status"] == "KILLED"
    # Resumed at step 4: what was logged after it is logged again, later.
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:4]
    write_metrics(folder, config, 10, offset=50.0)
    lines += (folder / "metrics.jsonl").read_text().splitlines()[4:]
    result_folder = finish_run(results, config, run_id)
    (result_folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert mirror(results)["updated"] == 1
    grown = read_back(results)[run_id]
    assert [step for step, _, _ in grown["metrics"]["train_loss"]] == list(range(1, 11))
    assert grown["metrics"]["train_loss"][:4] == run["metrics"]["train_loss"]
    assert grown["status"] == "FINISHED"
    restore(results, cli, overview)
    assert read_back(results.with_name("restored"))[run_id] == grown


@pytest.mark.slow
def test_a_run_that_began_anew_replaces_its_old_curve(overview: Overview, results: Path, store: Path) -> None:
    run_id, config = overview.ids[0], overview.configs[0]
    unfinished(results, overview, "preempted", 6, checkpoint=6)
    mirror(results)
    folder = finish_run(results, config, run_id)
    write_metrics(folder, config, 10, offset=1000.0)
    mirror(results)
    run = read_back(results)[run_id]
    assert [step for step, _, _ in run["metrics"]["train_loss"]] == list(range(1, 11))
    assert run["times"][0] == 1735690600000


@pytest.mark.slow
def test_a_corrupt_result_leaves_the_mirror_as_it_is(overview: Overview, results: Path, store: Path) -> None:
    folder = finish_run(results, overview.configs[0], overview.ids[0])
    mirror(results)
    first = read_back(results)
    (folder / "result.json").write_text("{")
    mirror(results)
    assert read_back(results) == first


def test_long_curves_are_thinned_the_same_way_at_any_time(overview: Overview, results: Path) -> None:
    config = overview.configs[0].model_copy(update={"tokens": 256 * 5000})
    ledger = Ledger(results)
    folder = finish_run(results, config, "r", n_lines=5000)
    whole = snapshot(ledger, "r", ledger.state("r"), "tiny")
    write_metrics(folder, config, 2500)
    half = snapshot(ledger, "r", ledger.state("r"), "tiny")
    assert whole is not None and half is not None
    assert MAX_LINES * 0.9 < len(whole.lines) <= MAX_LINES + 2
    assert whole.lines[: len(half.lines)] == half.lines
    assert whole.lines[-1][0].step == 5000


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_refuses_is_one_line_within_seconds(cli: Cli, write_sweep: Callable[..., Path]) -> None:
    began = time.monotonic()
    line = cli.mistake("sync", str(write_sweep()), "--uri", f"http://me:secret@127.0.0.1:{closed_port()}")
    assert time.monotonic() - began < 8
    assert "does not answer" in line
    assert "secret" not in line
    assert "no folder" in cli.mistake("sync", str(write_sweep()), "--uri", "sqlite:////no/such/folder/x.db")


@pytest.mark.slow
def test_a_store_that_refuses_is_one_line(overview: Overview, results: Path) -> None:
    (results / "mlflow.db").write_text("this is no database, and was not made by MLflow")
    with pytest.raises(MirrorError, match="MLflow at sqlite") as caught:
        mirror(results)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_is_given_up(overview: Overview, results: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        began = time.monotonic()
        with pytest.raises(MirrorError):
            sync(results, "tiny", "tiny", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - began < 60


@pytest.mark.slow
def test_two_syncs_at_once_on_a_fresh_store(overview: Overview, results: Path, cli: Cli) -> None:
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    command = [sys.executable, "-m", "sweeps", "sync", str(overview.sweep.path), "--results", str(results)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], said
    assert all(errors == "" for _, errors in said)
    assert sorted(out for out, _ in said) == [
        "0 created, 0 updated, 4 unchanged\n", "0 created, 0 updated, 4 unchanged\n",
        "4 created, 0 updated, 0 unchanged\n",
    ]  # fmt: skip
    assert set(read_back(results)) == set(overview.ids)


@pytest.mark.slow
def test_the_background_mirror_finishes_and_is_then_not_needed(overview: Overview, results: Path) -> None:
    said: list[str] = []
    background = BackgroundMirror(mirror_of(overview.sweep), results, said.append, every=0.2)
    assert not background.up_to_date(overview.ids)
    background.start()
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    background.poll()
    background.finish(interrupted=False)
    assert [line for line in said if "MLflow mirror" in line] == []
    assert set(read_back(results)) == set(overview.ids)
    assert background.up_to_date(overview.ids)
    uri = default_uri(results)
    assert is_mirrored(Ledger(results), overview.ids, "tiny", "tiny", uri)
    (results / "mlflow.db").unlink()
    assert not background.up_to_date(overview.ids)


def test_an_outage_is_one_warning_and_bounded(overview: Overview, results: Path) -> None:
    settings = overview.sweep.mlflow.model_copy(update={"uri": f"http://127.0.0.1:{closed_port()}"})
    sweep = overview.sweep.model_copy(update={"mlflow": settings})
    said: list[str] = []
    background = BackgroundMirror(mirror_of(sweep), results, said.append, every=0.1)
    background.start()
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        background.poll()
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    background.finish(interrupted=False)
    assert time.monotonic() - began < 10
    assert len([line for line in said if "does not answer" in line]) == 1
    assert f"run 'python -m sweeps sync {sweep.path} --results {results}' later" in said[0]


def test_a_torn_record_is_one_line(results: Path) -> None:
    (results / "sweeps").mkdir()
    (results / "sweeps" / "tiny.json").write_text(json.dumps({"sweep": "tiny"}))
    with pytest.raises(Exception, match="not a sweep record"):
        mirror(results)


def write_report(results: Path, text: str) -> str:
    """Write the sweep's page; returns its SHA-256."""
    path = results / "reports" / "tiny.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def report_says(uri: str, folder: Path, experiment: str = "tiny") -> dict[str, Any]:
    """What a store has of the sweep's report: everything but MLflow's own ids."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], filter_string="tags.kind = 'sweep'")
    (artifact,) = client.list_artifacts(run.info.run_id)
    folder.mkdir()
    content = Path(client.download_artifacts(run.info.run_id, artifact.path, str(folder))).read_bytes()
    return {
        "name": run.info.run_name, "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
        "artifact": artifact.path, "content": content,
    }  # fmt: skip


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, results: Path, tmp_path: Path) -> Iterator[str]:
    """A SQLite store with its tables, or a server that is the only one to reach its artifacts."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("fresh_store"), results / "mlflow.db")
        yield default_uri(results)
        return
    server = TrackingServer(tmp_path / "server")
    try:
        server.start()
        yield server.uri
    finally:
        server.kill()


@pytest.mark.slow
def test_the_report_is_uploaded_once_and_replaced_when_it_changes(
    overview: Overview, results: Path, uri: str, tmp_path: Path, cli: Cli
) -> None:
    for run_id, config in zip(overview.ids[:3], overview.configs, strict=False):
        finish_run(results, config, run_id)
    args = ("sync", str(overview.sweep.path), "--uri", uri)
    assert cli(*args).stdout == "3 created, 0 updated, 0 unchanged\n"
    digest = write_report(results, "<h1>one</h1>")
    done = cli(*args)
    assert (done.stdout, done.stderr) == ("0 created, 0 updated, 3 unchanged; report uploaded\n", "")
    first = report_says(uri, tmp_path / "one")
    assert first == {
        "name": "tiny (report)", "status": "FINISHED", "times": (1735689606000, 1735689610000),
        "tags": {
            "kind": "sweep", "sweep": "tiny", "report_sha256": digest,
            "runs": "4", "done": "3", "failed": "0",
        },
        "artifact": "report.html", "content": b"<h1>one</h1>",
    }  # fmt: skip
    assert cli(*args).stdout == "0 created, 0 updated, 3 unchanged; report unchanged\n"
    changed = write_report(results, "<h1>two &auml;</h1>")
    assert cli(*args).stdout.endswith("report uploaded\n")
    second = report_says(uri, tmp_path / "two")
    assert second == {
        **first, "content": b"<h1>two &auml;</h1>", "tags": {**first["tags"], "report_sha256": changed},
    }  # fmt: skip


@pytest.mark.slow
def test_a_deleted_store_gets_its_report_back(
    overview: Overview, results: Path, store: Path, tmp_path: Path, cli: Cli
) -> None:
    finish_run(results, overview.configs[0], overview.ids[0])
    write_report(results, "<h1>one</h1>")
    assert mirror(results) == {"created": 1, "updated": 0, "unchanged": 0, "busy": 0, "report": 1}
    assert mirror(results) == {"created": 0, "updated": 0, "unchanged": 1, "busy": 0, "report": 0}
    first = report_says(default_uri(results), tmp_path / "one")
    assert restore(results, cli, overview) == "1 created, 0 updated, 0 unchanged; report uploaded\n"
    assert report_says(default_uri(results.with_name("restored")), tmp_path / "two") == first


@pytest.mark.slow
def test_artifacts_that_cannot_be_written_are_one_warning(
    overview: Overview, results: Path, store: Path, cli: Cli
) -> None:
    finish_run(results, overview.configs[0], overview.ids[0])
    (results / "mlartifacts").write_text("a file where a folder should be")
    write_report(results, "<h1>one</h1>")
    done = cli("sync", str(overview.sweep.path))
    assert done.stdout == "1 created, 0 updated, 0 unchanged\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: the report of tiny was not uploaded to MLflow: ")
    (results / "mlartifacts").unlink()
    assert cli("sync", str(overview.sweep.path)).stdout.endswith("1 unchanged; report uploaded\n")


@pytest.mark.slow
def test_what_was_never_run_here_is_skipped_and_what_is_mirrored_is_not_looked_at(
    overview: Overview, results: Path, store: Path, cli: Cli, tmp_path: Path
) -> None:
    fresh = Cli(tmp_path / "clone")
    said = fresh("sync", "--if-run", "lowrank", "nosuch").stdout.splitlines()
    assert said == [
        f"{name}: never run in {fresh.results}; nothing to mirror" for name in ("lowrank", "nosuch")
    ]
    assert not fresh.results.exists()
    for run_id, config in zip(overview.ids, overview.configs, strict=True):
        finish_run(results, config, run_id)
    args = ("sync", "--if-run", str(overview.sweep.path))
    assert cli(*args).stdout == "4 created, 0 updated, 0 unchanged\n"
    assert cli(*args).stdout == "mirrored already\n"
    write_report(results, "<h1>one</h1>")
    assert cli(*args).stdout == "0 created, 0 updated, 4 unchanged; report uploaded\n"
    assert cli(*args, "lowrank").stdout == (
        f"tiny: mirrored already\nlowrank: never run in {results}; nothing to mirror\n"
    )
    (results / "mlflow.db").unlink()
    assert cli(*args).stdout == "4 created, 0 updated, 0 unchanged; report uploaded\n"


@pytest.mark.slow
def test_the_mirror_of_a_launcher_brings_the_report_and_tells_what_hinders_it(
    overview: Overview, results: Path, store: Path, tmp_path: Path
) -> None:
    finish_run(results, overview.configs[0], overview.ids[0])
    (results / "mlartifacts").write_text("a file where a folder should be")
    write_report(results, "<h1>one</h1>")
    for told in (1, 0):
        said: list[str] = []
        background = BackgroundMirror(mirror_of(overview.sweep), results, said.append, every=600)
        background.start()
        background.finish(interrupted=False)
        assert len([line for line in said if "report of tiny was not uploaded" in line]) == told
        if told:
            (results / "mlartifacts").unlink()
    assert report_says(default_uri(results), tmp_path / "one")["content"] == b"<h1>one</h1>"
