"""Pruned runs: who heeds a request, what the ledger says then, and that nothing of the run is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, finish_run
from test_sweeps_feed import CONFIG
from test_sweeps_local import Recorder

from analysis.runs.table import from_rows, runs_table, to_csv
from sweeps.job import Share
from sweeps.launch import prepare_corpora
from sweeps.layout import Layout
from sweeps.lease import read_lease
from sweeps.ledger import Ledger, RunState
from sweeps.local import WORKER, LocalQueue
from sweeps.observe import Observer
from sweeps.overview import look
from sweeps.plan import make_plan
from sweeps.price import Prices, Setting
from sweeps.prune import PRUNE, PruneWatch, ask_to_prune, forget_prune, prune_asked, prune_line
from sweeps.report import state_counts
from sweeps.session import Session, new_session, read_record, write_record, write_session
from sweeps.snapshot import snapshot
from sweeps.submission import SESSION
from sweeps.sweepfile import read_sweep
from sweeps.watch import Watch
from sweeps.worker import Events, Stop, Worker
from trainer.corpora import prepare
from trainer.errors import RunDirError
from trainer.execution import Execution
from trainer.rundir import read_result, read_status, write_status

FACTS = {"study": "widths", "step": 40, "rung": 2, "reason": "worse than the\nmedian of 6"}
LINE = "pruned (study widths, step 40, rung 2): worse than the median of 6"


@pytest.fixture
def run_id(results: Path) -> str:
    return CONFIG.run_id(prepare(CONFIG.data, results, progress=False).fingerprint)


class Told(Events):
    """Events that are remembered."""

    def __init__(self) -> None:
        super().__init__(None)
        self.ends: list[dict[str, Any]] = []

    def send(self, event: str, **facts: Any) -> None:
        if event == "end":
            self.ends.append(facts)


def trains(asks: Callable[[Path], None], steps: int = 3) -> Callable[..., str]:
    """A pretended trainer that looks whether to stop after every step, once `asks` was called."""

    def train(
        config: Any, corpus: Any, run_dir: Path, run_id: str, execution: Any, stop: Any, progress: Any
    ) -> str:
        write_status(run_dir, {"state": "running", "attempt": 1, "started": 1.0})
        assert not stop()
        asks(run_dir)
        for _ in range(steps):
            time.sleep(0.1)
            if stop():
                (run_dir / "checkpoints").mkdir(exist_ok=True)
                for suffix in ("safetensors", "json"):
                    (run_dir / "checkpoints" / f"step-000000001.{suffix}").touch()
                write_status(run_dir, {"state": "preempted", "attempt": 1, "step": 1, "started": 1.0})
                return "preempted"
        finish_run(run_dir.parent.parent, config, run_id)
        return "done"

    return train


def ask_its_owner(run_dir: Path) -> None:
    lease = read_lease(run_dir)
    assert lease is not None
    ask_to_prune(run_dir, lease["owner"], FACTS)


def work(results: Path, run_id: str, train: Callable[..., str], prunes: bool) -> Told:
    told = Told()
    session = session_of(results, run_id, prunes)
    assert Worker(session, told, Stop(session, None), train).work() == 0
    return told


def session_of(results: Path, run_id: str, prunes: bool) -> Session:
    execution = Execution(device="cpu", threads=1).model_dump(mode="json")
    return new_session("tiny", results, execution, [(run_id, CONFIG)], 2, prunes=prunes)


@pytest.fixture
def pruned(results: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was pruned."""
    monkeypatch.setattr("sweeps.prune.CHECK_SECONDS", 0.05)
    told = work(results, run_id, trains(ask_its_owner), prunes=True)
    (end,) = told.ends
    assert (end["state"], end["message"]) == ("pruned", LINE)
    return results / "runs" / run_id


def test_a_pruned_run_says_so_and_is_not_begun_again_by_its_study(
    pruned: Path, results: Path, run_id: str
) -> None:
    state = Ledger(results).state(run_id)
    assert (state.state, state.message, state.checkpoint, state.result) == ("pruned", LINE, 1, None)
    assert not (pruned / PRUNE).exists()
    assert work(results, run_id, trains(ask_its_owner), prunes=True).ends == []
    queue = LocalQueue(
        session_of(results, run_id, True), Layout(({},), Execution(), Setting("x", 1)), Recorder()
    )
    assert queue.run() == "finished"
    assert read_status(pruned)["state"] == "pruned"


def test_any_other_sweep_trains_a_pruned_run_to_its_end(pruned: Path, results: Path, run_id: str) -> None:
    # A request for its own lease is not heeded there: the run would be begun and pruned for ever.
    (end,) = work(results, run_id, trains(ask_its_owner), prunes=False).ends
    assert end["state"] == "done"
    assert Ledger(results).state(run_id).state == "done"


def test_a_request_for_another_attempt_is_ignored_and_removed(results: Path, run_id: str) -> None:
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    ask_to_prune(folder, "an owner that is gone", FACTS)
    gone: list[bool] = []
    told = work(results, run_id, trains(lambda run_dir: gone.append(not (run_dir / PRUNE).exists())), True)
    assert gone == [True]
    assert [end["state"] for end in told.ends] == ["done"]
    ask_to_prune(folder, "another", FACTS)
    late = PruneWatch(folder, "mine", heeds=True)
    ask_to_prune(folder, "another", FACTS)
    assert not late()


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"owner": null}', '{"reason": "none"}'])
def test_what_is_no_request_prunes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / PRUNE).write_text(content)
    assert prune_asked(tmp_path, "me") is None
    assert not PruneWatch(tmp_path, "me", heeds=True)()
    assert not (tmp_path / PRUNE).exists()


def test_a_request_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="No such file"):
        ask_to_prune(tmp_path / "missing", "me", FACTS)
    forget_prune(tmp_path)


def test_facts_do_not_override_the_owner(tmp_path: Path) -> None:
    ask_to_prune(tmp_path, "me", {"owner": "you", "rung": 1})
    assert prune_asked(tmp_path, "me") == {"owner": "me", "rung": 1}
    assert prune_line({"owner": "me"}) == "pruned: others are better"


@pytest.mark.parametrize(
    ("state", "action"),
    [(RunState("pruned", checkpoint=5), "resume"), (RunState("pruned"), "retry")],
)
def test_the_plan_resumes_a_pruned_run(state: RunState, action: str) -> None:
    plan = make_plan([CONFIG], ["r"], {"r": state}, Prices([], Setting("a processor", 1)), 1)
    assert [(run.action, run.state) for run in plan.open] == [(action, "pruned")]
    assert state_counts([state, RunState("done")]) == {"pruned": 1, "done": 1}


def test_a_pruned_run_is_no_data_point(pruned: Path, results: Path, run_id: str) -> None:
    write_record(results, "tiny", "", results / "tiny.toml", [run_id])
    runs = runs_table(results, "tiny")
    assert (len(runs.table), runs.missing) == (0, (run_id,))
    foreign = from_rows([{"run_id": "r", "state": "pruned", "val_loss": "3.0"}], ["line 2"], "runs.csv")
    assert (len(foreign.table), foreign.missing) == (0, ("r",))
    assert "done" not in to_csv(runs)


def test_those_who_watch_know_pruned_runs(pruned: Path, results: Path, run_id: str) -> None:
    seen = Observer(Ledger(results)).look([run_id])[run_id]
    assert (seen.state, seen.step, seen.message) == ("pruned", 1, LINE)
    record: dict[str, Any] = {"kind": "width", "description": "widths"}
    write_record(results, "mine", "", results / "mine.toml", [run_id], record)
    view = Watch(results, ["mine"]).look()
    assert (view.over, view.done, view.sweeps[0].counts) == (True, False, {"pruned": 1})
    assert (view.sweeps[0].share, view.waiting) == (1.0, [])
    # An ordinary sweep that has the run as well will train it.
    write_record(results, "ordinary", "", results / "ordinary.toml", [run_id])
    view = Watch(results, []).look()
    assert not view.over
    assert len(view.waiting) == 1


def test_the_mirror_shows_pruned_runs_as_killed(pruned: Path, results: Path, run_id: str) -> None:
    (pruned / "config.json").write_text(CONFIG.canonical_json())
    ledger = Ledger(results)
    shot = snapshot(ledger, run_id, ledger.state(run_id), "tiny")
    assert shot is not None
    assert (shot.status, shot.tags["state"]) == ("KILLED", "pruned")


@pytest.mark.parametrize(("prunes", "left"), [(True, False), (False, True)])
def test_a_job_is_not_requeued_for_what_its_study_pruned(
    pruned: Path, results: Path, run_id: str, prunes: bool, left: bool
) -> None:
    from types import SimpleNamespace

    place = results / "submission"
    place.mkdir()
    write_session(session_of(results, run_id, prunes), place / SESSION)
    made: Any = SimpleNamespace(
        path=place, results=results, arrays=(SimpleNamespace(jobs=((run_id,),), minutes=1),)
    )
    assert Share(made, 0, 0).open_runs() == ([run_id] if left else [])


def test_the_record_of_a_study_says_what_it_is(tmp_path: Path) -> None:
    said = {"kind": "width", "description": "one", "sampler": "tpe"}
    write_record(tmp_path, "widths", "", tmp_path / "widths.toml", ["r1"], said)
    record = read_record(tmp_path, "widths")
    assert record is not None
    assert record["study"] == said
    write_record(tmp_path, "plain", "", tmp_path / "plain.toml", ["r1"])
    assert "study" not in (read_record(tmp_path, "plain") or {})


@pytest.mark.slow
def test_pruned_by_the_real_trainer_and_resumed_it_gives_the_loss_of_one_never_pruned(
    results: Path, tmp_path: Path, cli: Cli, write_sweep: Callable[..., Path]
) -> None:
    text = TINY.replace('["dense", "lowrank-63"]', '["dense"]').replace("[1, 2]", "[1]")
    file = write_sweep(text.replace("tokens = 2560", "tokens = 256000"))
    overview = look(read_sweep(file), results)
    (run_id,), config = overview.ids, overview.configs[0]
    prepare_corpora([config], results)
    execution = Execution(device="cpu", threads=1)
    session = new_session("tiny", results, execution.model_dump(mode="json"), [], 2, fed=True, prunes=True)
    asked, took, view = [], [], Recorder()
    queue = LocalQueue(session, Layout(({},), execution, Setting("a processor", 1)), view, WORKER)
    queue.add(run_id, config)

    def tick() -> None:
        folder = results / "runs" / run_id
        lease = read_lease(folder)
        if not asked and lease is not None and (folder / "metrics.jsonl").exists():
            ask_to_prune(folder, lease["owner"], FACTS)
            asked.append(time.monotonic())
        if not queue.left:
            took.append(time.monotonic() - asked[0])
            queue.close_feed()

    view.on_tick = tick
    assert queue.run() == "finished"
    assert [event["state"] for event in view.events if event["event"] == "end"] == ["pruned"]
    # Twice the time that it should take, on a busy machine.
    assert took[0] < 3.0
    state = Ledger(results).state(run_id)
    assert (state.state, state.result) == ("pruned", None)
    assert state.checkpoint is not None
    assert 0 < state.checkpoint < config.steps
    assert json.loads(cli("status", str(file), "--json", code=None).stdout)["runs"][0]["state"] == "pruned"
    assert cli("status", str(file), "--check", code=None).returncode == 1
    cli("run", str(file), "--no-mirror")
    other = Cli(tmp_path / "undisturbed")
    other("run", str(file), "--no-mirror")
    mine, never = (read_result(folder / "runs" / run_id) for folder in (results, other.results))
    assert mine is not None
    assert never is not None
    for key in ("state", "val_loss", "val_loss_se", "train_loss", "tokens", "train_flops", "steps"):
        assert mine[key] == never[key], key
    assert (mine["state"], mine["attempts"], never["attempts"]) == ("done", 2, 1)
