"""Studies taken up after something has changed: the corpus, a run, the log, another study; and valleys."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_search import Lab, Training, spaces_of, study, torn

from sweeps.errors import SweepError
from sweeps.ledger import Ledger
from sweeps.search.exported import winners
from sweeps.search.summary import edges
from sweeps.session import refuse_other_file, write_record
from trainer.config import RunConfig
from trainer.flops import model_counts
from trainer.rundir import RESULT

WIDE = "d_model = {low = 12, high = 72, step = 12}\nn_layers = [1, 2, 3, 4, 5]"
PRUNING = 'trials = 14\nsampler = "random"\npruner = "median"\nstartup = 4\n'


def shape_loss(config: RunConfig) -> float:
    """Lowest at width 36, and better the shallower."""
    return 2.0 + 0.01 * abs(config.model.d_model - 36) + 0.1 * config.model.n_layers


def test_losses_on_another_text_are_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Lab(study(tmp_path, search="trials = 4"), tmp_path / "results")
    assert one.run()
    before = {trial.asked.run for trial in one.trials}
    monkeypatch.setattr("planted_search.fingerprint", lambda data: "another text")
    monkeypatch.setattr("sweeps.search.warm.fingerprint", lambda data: "another text")
    assert one.run()
    assert len(one.counted) == 4 and not before & {trial.asked.run for trial in one.trials}
    assert len(one.training.begun) == 8


def test_the_ledger_counts_not_what_the_storage_was_told_once(tmp_path: Path) -> None:
    results = tmp_path / "results"
    training = Training(Ledger(results), lambda config: "diverged", shape_loss)
    one = Lab(study(tmp_path, search="trials = 4"), results, training)
    assert one.run()
    assert all(trial.outcome and trial.outcome.state == "diverged" for trial in one.trials)
    training.fate = lambda config: "done"
    for trial in one.trials:
        (results / "runs" / trial.asked.run / RESULT).unlink()
    training.ended.clear()
    assert one.run()
    told = {t.asked.run: t.outcome.values for t in one.counted if t.outcome}
    assert told == {trial.asked.run: (shape_loss(trial.config),) for trial in one.counted}
    memory = one.searched[0].optimizer._study.trials
    assert {trial.values[0] for trial in memory} == {loss for (loss,) in told.values()}


def test_what_another_study_pruned_is_trained_here(tmp_path: Path) -> None:
    results = tmp_path / "results"
    training = Training(Ledger(results), loss=shape_loss)
    first = Lab(study(tmp_path, "first", space=WIDE, search=PRUNING), results, training, most=4)
    assert first.run()
    pruned = set(training.pruned)
    assert pruned
    training.pruned.clear()
    late = PRUNING.replace("startup = 4", "startup = 40\nwarm_start = false")
    other = Lab(study(tmp_path, "other", space=WIDE, search=late), results, training, most=4)
    assert other.run()
    outcomes = {t.asked.run: t.outcome.state for t in other.counted if t.outcome}
    both = pruned & outcomes.keys()
    assert both
    assert {outcomes[run] for run in both} == {"done"} and not training.pruned


@pytest.mark.parametrize("lost", ["log", "line"])
def test_a_lost_log_leaves_no_trial_out_of_the_storage(tmp_path: Path, lost: str) -> None:
    results = tmp_path / "results"
    one = Lab(study(tmp_path, search="trials = 4"), results)
    assert one.run()
    log = one.folder / "trials.jsonl"
    log.unlink() if lost == "log" else torn(log)
    more = Lab(study(tmp_path, search="trials = 6"), results, one.training)
    more.record = one.record
    assert more.run()
    kept = [trial.user_attrs["run"]["run_id"] for trial in more.kept()]
    assert len(kept) == len(set(kept)) == 6 and set(kept) == {t.asked.run for t in more.counted}


def test_a_second_file_of_a_name_is_refused(tmp_path: Path) -> None:
    one, other = study(tmp_path / "a"), study(tmp_path / "b")
    write_record(tmp_path, one.name, "", one.path, [])
    refuse_other_file(tmp_path, one.name, one.path)
    with pytest.raises(SweepError, match="is taken in"):
        refuse_other_file(tmp_path, other.name, other.path)


def test_the_line_through_the_best_point_is_tried_beyond_the_trials(tmp_path: Path) -> None:
    space = "d_model = [12, 24, 36, 48, 60]\nn_layers = [1, 2, 3]"
    one = study(tmp_path, space=space, search='trials = 4\nvalley = "d_model"')
    lab = Lab(one, tmp_path / "results", Training(Ledger(tmp_path / "results"), loss=shape_loss), most=3)
    assert lab.run()
    best = lab.searched[0].best
    assert best is not None
    depth = best.asked.point["n_layers"]
    line = {t.asked.point["d_model"] for t in lab.trials if t.asked.point["n_layers"] == depth}
    there = {p["d_model"] for p in lab.spaces[0].every() if p["n_layers"] == depth}
    assert line == there >= {12, 24, 36, 48} and best.asked.point["d_model"] == 36
    begun = len(lab.training.begun)
    assert len(lab.counted) == begun > 4
    assert lab.run() and len(lab.training.begun) == begun


def test_valley_names_a_searched_dimension(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"search\.valley: 'd_ff' is not searched"):
        study(tmp_path, search='valley = "d_ff"')


def test_one_layer_is_no_edge(tmp_path: Path) -> None:
    lab = Lab(study(tmp_path, search="trials = 6"), tmp_path / "results")
    lab.training.loss = shape_loss
    assert lab.run()
    best = lab.searched[0].best
    assert best is not None and best.asked.point == {"d_model": 36, "n_layers": 1}
    assert edges(lab.searched[0], best) == ["d_model highest"]


def test_all_that_is_not_dominated_wins_and_what_cannot_be_measured_fails(tmp_path: Path) -> None:
    def second(run_id: str, config: RunConfig) -> float:
        if config.model.d_model == 12:
            raise SweepError("cannot be measured")
        return float(model_counts(config.model).params_total)

    one = study(tmp_path, kind="pareto", search="trials = 6")
    lab = Lab(one, tmp_path / "results", second=second)
    lab.training.loss = shape_loss
    assert lab.run()
    states = {(t.config.model.d_model, t.outcome.state) for t in lab.counted if t.outcome}
    assert states == {(12, "failed"), (24, "done"), (36, "done")}
    found = {(t.config.model.d_model, t.config.model.n_layers) for t in winners(lab.searched[0])}
    assert found == {(24, 1), (36, 1)}


def test_spaces_are_the_same_each_time(tmp_path: Path) -> None:
    one = study(tmp_path)
    assert [list(space.every()) for space in spaces_of(one)] == [
        list(space.every()) for space in spaces_of(one)
    ]
