"""Asking and telling: every sampler, the same proposals for a seed, and a storage that says what was told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from planted_search import Lab, study, torn

from sweeps.errors import SweepError
from sweeps.search.asktell import Keeper, Optimizer, Outcome
from sweeps.search.dimension import Dimension
from sweeps.search.studyfile import SAMPLERS, Search

MIXED = (
    Dimension("d_ff", (12, 20, 48), 12, 48),
    Dimension("d_model", (12, 24, 36, 48), 12, 48),
    Dimension("peak_lr", None, 1e-3, 1e-1, log=True),
)
GRIDS = "d_model = [12, 24, 36, 48]\nn_layers = [1, 2, 3]\npeak_lr = [1e-3, 2e-3, 5e-3]"


def optimizer(
    sampler: str = "tpe", seed: int = 1, keeper: Keeper | None = None, dims: Sequence[Dimension] = MIXED
) -> Optimizer:
    return Optimizer("s", dims, Search(sampler=sampler), 4, seed, 1, keeper)


def twelve(one: Optimizer) -> list[dict[str, float]]:
    """Twelve trials, one after another, of a loss with its lowest at d_ff = 20, d_model = 36."""
    points = []
    for number in range(12):
        asked, point = one.ask()
        assert asked == number
        loss = abs(point["d_ff"] - 20) / 50 + abs(point["d_model"] - 36) / 50 + abs(point["peak_lr"] - 0.01)
        one.tell(number, Outcome("done", (loss,), {"run_id": f"r{number}"}))
        points.append(point)
    return points


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_every_sampler_proposes_what_the_dimensions_have(sampler: str) -> None:
    for point in twelve(optimizer(sampler)):
        assert point["d_ff"] in (12, 20, 48) and point["d_model"] in (12, 24, 36, 48)
        assert 1e-3 <= point["peak_lr"] <= 1e-1


@pytest.mark.slow
def test_the_gaussian_process_proposes_what_the_dimensions_have() -> None:
    points = twelve(optimizer("gp"))
    assert all(point["d_ff"] in (12, 20, 48) and 1e-3 <= point["peak_lr"] <= 1e-1 for point in points)
    assert points == twelve(optimizer("gp"))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_one_at_a_time_a_seed_makes_the_same_proposals(sampler: str) -> None:
    assert twelve(optimizer(sampler, 3)) == twelve(optimizer(sampler, 3)) != twelve(optimizer(sampler, 4))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "grid", "random"])
def test_every_sampler_ends_a_study_with_so_many_different_runs(sampler: str, tmp_path: Path) -> None:
    settings = f'sampler = "{sampler}"\ntrials = 10\nstorage = "journal"'
    lab = Lab(study(tmp_path, space=GRIDS, search=settings), tmp_path / "results", most=1)
    assert lab.run()
    assert len({trial.asked.run for trial in lab.counted}) == len(lab.counted) == 10
    again = Lab(lab.study, tmp_path / "other", most=1)
    assert again.run()
    assert [trial.asked.point for trial in again.trials] == [trial.asked.point for trial in lab.trials]


@pytest.mark.parametrize("storage", ["", "journal"])
def test_the_storage_says_what_was_told(storage: str, tmp_path: Path) -> None:
    keeper = Keeper(storage, tmp_path)
    one = optimizer(keeper=keeper)
    outcomes = [
        Outcome("done", (2.5,), {"run_id": "a"}),
        Outcome("diverged", (5.5,), {"run_id": "b", "diverged": True}),
        Outcome("pruned", (), {"run_id": "c"}, {0.125: 4.0, 0.25: 3.5}),
        Outcome("failed", (), {"run_id": "d", "message": "broken"}),
    ]  # fmt: skip
    points = [one.ask()[1] for _ in outcomes]
    assert not keeper.study("s", ["minimize"]).trials, "a trial that is not over is in the storage"
    for number in (2, 0, 3, 1):
        one.tell(number, outcomes[number])
    number, _ = one.ask()
    one.tell(number, Outcome("done", (1.0,)), keep=False)
    script = (
        "import sys, json; from pathlib import Path; from sweeps.search.asktell import Keeper\n"
        "trials = Keeper(sys.argv[1], Path(sys.argv[2])).study('s', ['minimize']).trials\n"
        "print(json.dumps([[t.state.name, t.values, t.params, t.intermediate_values, t.user_attrs['run']]"
        " for t in trials]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, storage, str(tmp_path)], capture_output=True, text=True, check=True
    )
    told = {content[4]["trial"]: content for content in json.loads(done.stdout)}
    assert sorted(told) == [0, 1, 2, 3]
    states = ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    for number, outcome in enumerate(outcomes):
        state, values, params, curve, about = told[number]
        assert state == states[number]
        # Optuna calls the last of what a pruned trial reported its value.
        assert values == (list(outcome.values) or ([3.5] if state == "PRUNED" else None))
        assert about == {"trial": number, **outcome.facts}
        assert curve == {str(round(1000 * share)): loss for share, loss in outcome.curve.items()}
        assert (
            params["peak_lr"] == points[number]["peak_lr"] and params["d_model"] == points[number]["d_model"]
        )


def test_what_was_kept_is_not_kept_again(tmp_path: Path) -> None:
    keeper = Keeper("journal", tmp_path)
    twelve(optimizer(keeper=keeper))
    kept = keeper.study("s", ["minimize"]).trials
    again = optimizer(keeper=Keeper("journal", tmp_path))
    for trial in kept:
        point = {
            "d_ff": (12, 20, 48)[trial.params["d_ff.rank"]], "d_model": trial.params["d_model"],
            "peak_lr": trial.params["peak_lr"],
        }  # fmt: skip
        again.restore(point, Outcome("done", tuple(trial.values), {"run_id": f"r{trial.number}"}))
    assert len(keeper.study("s", ["minimize"]).trials) == 12


def test_a_journal_whose_last_line_is_torn_or_locked_by_a_dead_writer_goes_on(tmp_path: Path) -> None:
    twelve(optimizer(keeper=Keeper("journal", tmp_path)))
    journal = tmp_path / "optuna.journal"
    torn(journal)
    Path(f"{journal}.lock").write_text("")
    keeper = Keeper("journal", tmp_path)
    one = optimizer(keeper=keeper)
    number, _ = one.ask()
    one.tell(number, Outcome("done", (1.0,), {"run_id": "x"}))
    for line in journal.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/x.db", "mysq://u:secret@host/db", ""])
def test_a_storage_that_cannot_be_had_is_one_line_without_its_password(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.search.asktell.ATTEMPTS", 1)
    if not url:
        (tmp_path / "optuna.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(SweepError, match="no run is lost") as caught:
        Keeper(url, tmp_path).study("s", ["minimize"])
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_storage_that_breaks_amid_a_search_is_one_line(tmp_path: Path) -> None:
    keeper = Keeper("", tmp_path)
    one = optimizer(keeper=keeper)
    number, _ = one.ask()
    os.truncate(tmp_path / "optuna.db", 100)
    with pytest.raises(SweepError, match="mend it, or move it aside"):
        one.tell(number, Outcome("done", (1.0,)))


def test_importance_finds_the_planted_dimension_and_sums_to_one() -> None:
    one = optimizer()
    points = []
    for number in range(40):
        _, point = one.ask()
        points.append((point, (point["d_model"] - 30) ** 2 / 100 + 0.01 * (point["d_ff"] == 20)))
        one.tell(number, Outcome("done", (points[-1][1],)))
    shares = one.importance(points)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "d_model" and shares["d_model"] > 0.8
    assert one.importance(points[:3]) == {}, "three trials say nothing"
    assert one.importance([(point, 1.0) for point, _ in points]) == {}, "equal losses say nothing"
    same = [(points[0][0], 1.0 + 0.1 * n) for n in range(6)]
    assert sum(one.importance(same).values()) in (0, pytest.approx(1))


def test_importance_of_a_single_dimension_is_all() -> None:
    one = optimizer(dims=MIXED[1:2])
    points = [({"d_model": value}, loss) for value, loss in zip((12, 24, 36, 48), (3, 2, 1, 2), strict=True)]
    assert one.importance(points) == {"d_model": pytest.approx(1)}  # type: ignore[arg-type]
