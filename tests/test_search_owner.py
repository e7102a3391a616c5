"""The owner of a study: each run is trained once, whatever is killed, deleted, torn, failed or diverged."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_search import Lab, Training, study, torn

from analysis.searches.trials import read_study as read_trials
from sweeps.errors import SweepError
from sweeps.ledger import Ledger
from sweeps.search.outcome import write_outcome
from sweeps.search.summary import summary
from sweeps.search.triallog import LOG, Asked, TrialLog, read_log
from trainer.config import RunConfig

JOURNAL = 'storage = "journal"\n'
SPACE = "d_model = [12, 24, 36, 48]\nn_layers = [1, 2, 3]"
CELLS = "structure = ['dense', 'lowrank-32']"


def lab(folder: Path, results: str = "results", name: str = "planted", **settings: Any) -> Lab:
    """A study of two cells with seven trials each, unless told otherwise."""
    own = {key: settings.pop(key) for key in ("most", "second", "training") if key in settings}
    parts = {"axes": CELLS, "space": SPACE, "search": JOURNAL + "trials = 7", **settings}
    return Lab(study(folder, name, **parts), folder / results, **own)


def rows(one: Lab) -> list[dict[str, str]]:
    write_outcome(one.study, one.searched, one.results)
    with open(one.folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def check_over(one: Lab, each: int = 7) -> None:
    """Every cell has so many different runs that the study asked for; all is written down as it was."""
    for searched in one.searched:
        runs = [trial.asked.run for trial in searched.trials if trial.counts]
        assert len(runs) == len(set(runs)) == each
        numbers = [trial.asked.number for trial in searched.trials]
        assert numbers == list(range(len(numbers)))
    assert all(trial.outcome is not None for trial in one.trials)
    assert max(Counter(one.training.begun).values(), default=0) <= 1
    assert not [trial for trial in one.kept() if trial.state.name == "RUNNING"]


def test_so_many_different_runs_a_cell_are_trained_and_each_once(tmp_path: Path) -> None:
    one = lab(tmp_path, most=3)
    assert one.run()
    check_over(one)
    one.check_kept()
    assert len(one.training.begun) == 14 and one.training.most == 3


def test_the_same_study_again_begins_nothing(tmp_path: Path) -> None:
    one = lab(tmp_path)
    assert one.run()
    log = (one.folder / LOG).read_bytes()
    before = list(one.training.begun)
    again = lab(tmp_path, training=Training(Ledger(one.results)))
    assert again.open().over
    again.close()
    assert not again.training.begun and (one.folder / LOG).read_bytes() == log
    assert rows(again) == rows(one)
    more = lab(tmp_path, training=one.training, search=JOURNAL + "trials = 9")
    assert more.run()
    check_over(more, 9)
    assert len(one.training.begun) == len(before) + 4


@settings(max_examples=20, deadline=None)
@given(moments=st.lists(st.integers(0, 40), min_size=1, max_size=3), most=st.integers(1, 4))
def test_killed_at_any_moment_it_ends_the_same_way(moments: list[int], most: int) -> None:
    with TemporaryDirectory() as folder:
        one = lab(Path(folder), most=most)
        for moment in moments:
            one.killed_after(moment)
        assert one.run()
        check_over(one)
        one.check_kept()
        assert len(one.training.begun) == 14, "a run was begun that no trial asked for"


@settings(max_examples=8, deadline=None)
@given(moments=st.lists(st.integers(0, 30), min_size=1, max_size=2), data=st.data())
def test_killed_with_failures_and_divergence_nothing_is_forgotten(moments: list[int], data: Any) -> None:
    def fate(config: RunConfig) -> str:
        return {12: "diverged", 48: "failed"}.get(config.model.d_model, "done")

    with TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        one = lab(Path(folder), training=Training(Ledger(results), fate))
        for moment in moments:
            one.killed_after(moment)
        assert one.run()
        check_over(one)
        one.check_kept()
        states = {t.config.model.d_model: t.outcome.state for t in one.trials if t.outcome is not None}
        assert states == {12: "diverged", 24: "done", 36: "done", 48: "failed"}


@pytest.mark.parametrize("lost", ["journal", "log", "torn log", "torn journal", "all but the runs"])
@pytest.mark.parametrize("steps", [6, 10_000])
def test_what_is_lost_is_made_again_from_the_rest(lost: str, steps: int, tmp_path: Path) -> None:
    one = lab(tmp_path)
    one.run(steps)
    one.close()
    if lost in ("journal", "all but the runs"):
        (one.folder / "optuna.journal").unlink()
    if lost in ("log", "all but the runs"):
        (one.folder / LOG).unlink()
    if lost == "torn log":
        torn(one.folder / LOG)
    if lost == "torn journal":
        torn(one.folder / "optuna.journal")
    assert one.run()
    check_over(one)
    assert len(one.training.begun) == 14
    if lost in ("journal", "all but the runs", "torn journal"):
        one.check_kept()


def test_a_lost_sqlite_file_is_made_again(tmp_path: Path) -> None:
    one = lab(tmp_path, search="trials = 4")
    one.run(5)
    (one.folder / "optuna.db").unlink()
    assert one.run()
    check_over(one, 4)
    one.check_kept()


def test_a_lost_log_does_not_hide_what_diverged_or_failed(tmp_path: Path) -> None:
    fates = {12: "diverged", 48: "failed"}
    training = Training(Ledger(tmp_path / "results"), lambda c: fates.get(c.model.d_model, "done"))
    one = lab(tmp_path, training=training, search=JOURNAL + "trials = 12")
    assert one.run()
    before = {(t.asked.run, t.outcome.state) for t in one.counted if t.outcome is not None}
    (one.folder / LOG).unlink()
    assert one.run()
    assert {(t.asked.run, t.outcome.state) for t in one.counted if t.outcome is not None} == before
    assert len(training.begun) == 24 and one.recovered == 24


def test_a_torn_line_amid_the_log_is_one_line(tmp_path: Path) -> None:
    one = lab(tmp_path)
    one.run(5)
    one.close()
    log = one.folder / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    for bad in (b'{"search"\n', b"[1]\n", b"null\n", lines[0].replace(b'"number": 0', b'"number": "0"')):
        log.write_bytes(bad + b"".join(lines[1:]))
        with pytest.raises(SweepError, match=r"trials\.jsonl, line 1: .* move the file aside") as caught:
            one.open()
        assert "\n" not in str(caught.value)
    old = json.loads(lines[0])
    old["config"] = '{"model": {}}'
    log.write_bytes(json.dumps(old).encode() + b"\n" + b"".join(lines[1:]))
    with pytest.raises(SweepError, match="does not know; move the file aside"):
        one.open()


def test_a_run_that_another_study_trained_costs_nothing(tmp_path: Path) -> None:
    first = lab(tmp_path, name="first", search=JOURNAL + "trials = 12")
    assert first.run()
    search = JOURNAL + "trials = 6\nwarm_start = false"
    other = lab(tmp_path, name="other", search=search, training=Training(Ledger(first.results)))
    assert other.run()
    check_over(other, 6)
    assert not other.training.begun
    assert all(row["from_ledger"] == "1" and row["state"] == "done" for row in rows(other))


def test_runs_of_elsewhere_teach_and_are_no_trials(tmp_path: Path) -> None:
    first = lab(tmp_path, name="first", search=JOURNAL + "trials = 4")
    assert first.run()
    other = lab(tmp_path, name="other", training=Training(Ledger(first.results)))
    assert other.run()
    check_over(other)
    assert other.learned == 8
    for searched in other.searched:
        warm = [trial for trial in searched.trials if trial.asked.warm]
        assert len(warm) == 4 and all(trial.asked.known and trial.loss is not None for trial in warm)
    counted = [row for row in rows(other) if row["sampler"]]
    assert len(counted) == 14 + sum(trial.asked.repeat for trial in other.trials)


def test_what_diverged_is_a_finite_penalty_and_never_the_best(tmp_path: Path) -> None:
    training = Training(
        Ledger(tmp_path / "results"), lambda c: "diverged" if c.model.n_layers > 1 else "done", lambda c: 99.0
    )
    one = lab(tmp_path, training=training, search=JOURNAL + "trials = 12")
    assert one.run()
    kept = [trial for trial in one.kept() if trial.user_attrs["run"].get("diverged")]
    assert len(kept) == 16
    assert all(trial.state.name == "COMPLETE" and trial.values == [2 * math.log(17)] for trial in kept)
    for searched in one.searched:
        assert searched.best is not None and searched.best.config.model.n_layers == 1
    found = rows(one)
    assert sum(row["state"] == "diverged" for row in found) == 16
    assert all((row["state"] == "done") == bool(row["val_loss"]) for row in found)
    assert "8" in summary(one.searched).splitlines()[1].split()


def test_where_all_diverged_there_is_no_best(tmp_path: Path) -> None:
    training = Training(Ledger(tmp_path / "results"), lambda config: "diverged")
    one = lab(tmp_path, training=training)
    assert one.run()
    check_over(one)
    assert all(searched.best is None and searched.importance() == {} for searched in one.searched)
    assert len(rows(one)) == len(one.trials) and summary(one.searched)


def test_a_failed_run_counts_and_is_told_as_failed(tmp_path: Path) -> None:
    training = Training(Ledger(tmp_path / "results"), lambda c: "failed" if c.model.d_model < 36 else "done")
    one = lab(tmp_path, training=training, search=JOURNAL + "trials = 12")
    assert one.run()
    check_over(one, 12)
    kept = Counter(trial.state.name for trial in one.kept())
    assert kept == {"FAIL": 12, "COMPLETE": 12}
    failed = [row for row in rows(one) if row["state"] == "failed"]
    assert len(failed) == 12 and all(row["run_id"] and not row["val_loss"] for row in failed)
    assert all(trial.user_attrs["run"]["message"] for trial in one.kept() if trial.state.name == "FAIL")


class Stubborn:
    """Proposes the same point again and again."""

    def __init__(self, one: Any) -> None:
        self.ask, self.names = one.optimizer.ask, [d.name for d in one.cell.dimensions]
        one.optimizer.ask = self._ask

    def _ask(self, fixed: Any = None) -> Any:
        point = {"d_model": 24, "n_layers": 2, "peak_lr": 0.004}
        return self.ask(fixed or {name: point[name] for name in self.names})


@pytest.mark.parametrize("most", [1, 3])
def test_on_a_grid_the_nearest_point_that_was_not_asked_for_is_tried(tmp_path: Path, most: int) -> None:
    one = lab(tmp_path, axes="structure = ['dense']", search=JOURNAL + "trials = 3", most=most)
    owner = one.open()
    Stubborn(one.searched[0])
    while not owner.over:
        owner.step(hurry=True)
        one.training.look()
    check_over(one, 3)
    points = [(trial.asked.point["d_model"], trial.asked.point["n_layers"]) for trial in one.trials]
    assert points[0] == (24, 2) and sorted(points[1:]) == [(12, 2), (36, 2)]
    one.close()


@pytest.mark.parametrize("most", [1, 3])
def test_a_repeat_in_flight_or_known_is_answered_and_the_search_goes_on(tmp_path: Path, most: int) -> None:
    space = "d_model = [12, 24]\nn_layers = [1, 2]\npeak_lr = {low = 0.003, high = 0.005}"
    one = lab(tmp_path, axes="structure = ['dense']", space=space, search=JOURNAL + "trials = 3", most=most)
    owner = one.open()
    Stubborn(one.searched[0])
    while not owner.over:
        owner.step(hurry=True)
        one.training.look()
    check_over(one, 3)
    repeats = [trial for trial in one.trials if trial.asked.repeat]
    assert repeats and all(trial.asked.known for trial in repeats)
    first = one.searched[0].by_run[repeats[0].asked.run]
    assert {t.outcome.values for t in repeats if t.outcome and t.asked.run == first.asked.run} == {
        first.outcome.values if first.outcome else ()
    }
    assert len(one.training.begun) == 3
    one.check_kept()
    one.close()


def test_a_small_space_ends_when_every_point_was_tried(tmp_path: Path) -> None:
    one = lab(tmp_path, space="d_model = [12, 24]\nn_layers = [1, 2]", search=JOURNAL + "trials = 50")
    assert one.run()
    check_over(one, 4)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_range_with_three_values_ends_too(tmp_path: Path, sampler: str) -> None:
    one = lab(
        tmp_path, kind="lr", budget="tokens = 65536", axes="preset = ['cpu-2xs']", most=2,
        space="peak_lr = {low = 0.01, high = 0.0102}", search=JOURNAL + f'sampler = "{sampler}"',
    )  # fmt: skip
    assert one.run()
    assert len(one.training.begun) == 3
    assert len(one.trials) < 200


def test_ratios_of_one_rank_are_trained_once_and_the_study_ends(tmp_path: Path) -> None:
    one = lab(
        tmp_path, axes="structure = ['lowrank']", search=JOURNAL + "trials = 500",
        space="d_model = [12, 24]\nrank_ratio = [0.2, 0.21, 0.22, 0.5]",
    )  # fmt: skip
    assert one.run()
    assert len(one.training.begun) == len(one.counted) == one.spaces[0].size == 5


def test_a_grid_visits_every_point_once(tmp_path: Path) -> None:
    one = lab(tmp_path, search=JOURNAL + 'sampler = "grid"', most=3)
    assert one.run()
    check_over(one, 12)
    assert len(one.trials) == 24
    for searched in one.searched:
        assert {tuple(t.asked.point.values()) for t in searched.trials} == {
            tuple(point.values()) for point in searched.space.every()
        }


def level(config: RunConfig) -> float:
    """A training loss whose order is that of the widths."""
    return 4.0 - config.model.d_model / 100 - config.model.n_layers / 1000


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_what_lags_behind_is_pruned_and_never_the_best(tmp_path: Path, pruner: str) -> None:
    results = tmp_path / "results"
    space = "d_model = {low = 12, high = 72, step = 12}\nn_layers = [1, 2, 3, 4, 5]"
    search = JOURNAL + f'trials = 20\nstartup = 4\npruner = "{pruner}"\nsampler = "random"'
    one = lab(
        tmp_path, axes="structure = ['dense']", space=space, search=search, most=4,
        training=Training(Ledger(results), loss=level),
    )  # fmt: skip
    assert one.run()
    check_over(one, 20)
    states = Counter(trial.outcome.state for trial in one.counted if trial.outcome is not None)
    assert states["done"] >= 3
    if pruner != "hyperband":
        assert states["pruned"] >= 4
    losses = {trial.asked.run: level(trial.config) for trial in one.counted}
    assert one.searched[0].best is not None
    assert one.searched[0].best.asked.run == min(losses, key=lambda run: losses[run])
    found = [row for row in rows(one) if (row["state"], row["repeat"]) == ("pruned", "0")]
    assert len(found) == states["pruned"]
    for row in found:
        assert not row["val_loss"] and 0 < float(row["progress"]) < 1
    for facts in one.training.pruned.values():
        assert facts["study"] == "planted" and "lags behind" in facts["reason"] and facts["rung"] < 1
    one.check_kept()
    begun = list(one.training.begun)
    again = lab(
        tmp_path, axes="structure = ['dense']", space=space, search=search,
        training=Training(Ledger(results), loss=level),
    )  # fmt: skip
    assert again.open().over and not again.training.begun and len(begun) == 20
    assert Counter(t.outcome.state for t in again.counted if t.outcome is not None) == states
    again.close()


def test_runs_with_few_lines_of_metrics_are_held_against_each_other_too(tmp_path: Path) -> None:
    class Terse(Training):
        def _log(self, run_id: str, config: RunConfig, share: float) -> None:
            lines = [
                {"step": step, "train_loss": self.loss(config)}
                for step in range(config.steps // 5, round(share * config.steps) + 1, config.steps // 5)
            ]
            content = "".join(json.dumps(line) + "\n" for line in lines)
            (self.ledger.run_dir(run_id) / "metrics.jsonl").write_text(content)

    one = lab(
        tmp_path,
        axes="structure = ['dense']",
        search=JOURNAL + 'trials = 12\nstartup = 2\npruner = "median"',
        training=Terse(Ledger(tmp_path / "results"), loss=level),
    )
    assert one.run()
    assert one.training.pruned


def test_a_run_that_ends_between_two_looks_is_held_against_the_others(tmp_path: Path) -> None:
    search = JOURNAL + 'trials = 8\nstartup = 2\npruner = "median"'
    training = Training(Ledger(tmp_path / "results"), loss=level)
    one = lab(tmp_path, axes="structure = ['dense']", search=search, training=training)
    owner = one.open()
    owner._pruned = math.inf
    while sum(trial.outcome is not None for trial in one.trials) < 6:
        owner.step(hurry=True)
        training.look()
    assert all(len(t.intermediate_values) == 3 for t in one.kept())
    one.close()


def test_a_pareto_study_measures_each_run_once_while_nothing_trains(tmp_path: Path) -> None:
    measured: list[str] = []

    def second(run_id: str, config: RunConfig) -> float:
        assert not training.under_way, "measured while something trains"
        if run_id not in measured:
            measured.append(run_id)
        return config.model.d_model / 10

    training = Training(Ledger(tmp_path / "results"))
    one = lab(tmp_path, kind="pareto", second=second, training=training, most=3)
    assert one.run()
    check_over(one)
    one.check_kept()
    assert len(measured) == 14
    assert all(row["second_name"] == "decode_ms" and float(row["second"]) > 0 for row in rows(one))
    again = lab(tmp_path, kind="pareto", second=second, training=training, most=3)
    assert again.run() and len(training.begun) == 14
    (one.folder / LOG).unlink()
    again.record = [trial.asked.run for trial in one.counted]
    assert again.run()
    check_over(again)
    assert len(training.begun) == 14


def test_a_pareto_study_can_be_looked_at_without_measuring(tmp_path: Path) -> None:
    one = lab(tmp_path, kind="pareto", second=lambda run_id, config: 1.0)
    assert one.run()
    seen = lab(tmp_path, kind="pareto", results="results", training=one.training, most=1)
    assert seen.open().over
    assert [searched.best.loss for searched in seen.searched if searched.best] == [
        searched.best.loss for searched in one.searched if searched.best
    ]
    assert summary(seen.searched)
    seen.close()


@pytest.mark.parametrize(
    "parts",
    [
        {"axes": ""},
        {"axes": 'structure = [{kind = "lowrank", rank = 4}, "dense"]'},
        {"kind": "lr", "budget": "tokens_per_param = 20", "axes": "preset = ['cpu-2xs']",
         "space": "peak_lr = [0.0012345678, 0.002]\nbatch_tokens = [1024, 2048, 4096]"},
        {"kind": "width-params", "top": "params = [30000, 60000]", "budget": "tokens = 1_048_576"},
        {"kind": "tokens", "space": "tokens_per_param = {low = 1, high = 500, log = true}",
         "shape": "d_model = [12, 24, 36, 48]"},
    ],
)  # fmt: skip
def test_analysis_reads_what_a_study_leaves(parts: dict[str, str], tmp_path: Path) -> None:
    fates = {12: "diverged", 48: "failed"}
    training = Training(Ledger(tmp_path / "results"), lambda c: fates.get(c.model.d_model, "done"))
    one = lab(tmp_path, training=training, **parts)
    assert one.run()
    found = rows(one)
    read = read_trials(one.folder / "trials.csv", one.folder / "importance.csv")
    assert sum(len(cell.trials) for cell in read.cells) == len(found) == len(one.trials)
    by_number = {(row["cell"], int(row["trial"])): row for row in found}
    for searched in one.searched:
        for trial in searched.trials:
            row = by_number[searched.cell.label or "all", trial.asked.number]
            config = trial.config
            for name, value in trial.asked.point.items():
                assert float(row[f"search.{name}"]) == value
            assert float(row["peak_lr"]) == config.optim.peak_lr
            assert int(row["tokens"]) == config.tokens and int(row["d_ff"]) == config.model.d_ff
            assert row["run_id"] == trial.asked.run


def test_whole_numbers_of_a_million_are_written_in_full(tmp_path: Path) -> None:
    one = lab(
        tmp_path, kind="lr", budget="tokens = 1e9", axes="preset = ['cpu-2xs']",
        space="peak_lr = [0.001, 0.002]\nbatch_tokens = [1048576, 2097152]",
    )  # fmt: skip
    assert one.run()
    assert {row["search.batch_tokens"] for row in rows(one)} == {"1048576", "2097152"}


def test_a_disk_that_takes_a_few_bytes_at_a_time_tears_no_line(tmp_path: Path) -> None:
    log = TrialLog(tmp_path)
    kept = log._file

    class Slow:
        def write(self, data: Any) -> int:
            return kept.write(bytes(data[:10]))

    log._file = Slow()  # type: ignore[assignment]
    asked = Asked("s", 0, "r", {"d_model": 12}, "{}", False, False, False, 1.0)
    log.add(asked)
    kept.close()
    assert read_log(tmp_path) == [asked]
