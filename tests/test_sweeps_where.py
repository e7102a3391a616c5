"""Runs chosen by --where: which match, what is refused, and that the rest of the sweep stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from test_sweeps_local import Lab

from sweeps import launch as launching
from sweeps import running
from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.launch import launch
from sweeps.running import Options
from sweeps.session import read_record
from sweeps.sweepfile import load_sweep, parse_sweep
from sweeps.where import chosen, facts_of
from trainer.config import RunConfig

GRID = {
    "base": {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "seq_len": 32},
        "optim": {"peak_lr": 5e-3, "batch_tokens": 256},
        "eval": {"tokens": 1024},
        "data": {"corpus": {"kind": "synthetic", "vocab_size": 32, "order": 1}},
    },
    "axes": {
        "structure": ["dense", "lowrank-63"],
        "optim": {"peak_lr": [5e-3, 1 / 300]},
        "seed": [1, 2, 12],
    },
    "budget": {"tokens": 2560},
}


@pytest.fixture(scope="module")
def grid() -> list[RunConfig]:
    return expand(parse_sweep(GRID, Path("grid.toml")))


def some(grid: list[RunConfig], *conditions: str) -> list[int]:
    return chosen(conditions, [grid])[0]


@given(
    seeds=st.sets(st.sampled_from([1, 2, 12]), min_size=1),
    structures=st.sets(st.sampled_from(["dense", "lowrank-63"]), min_size=1),
)
def test_all_conditions_hold_for_the_chosen_and_for_no_other(
    grid: list[RunConfig], seeds: set[int], structures: set[str]
) -> None:
    found = some(grid, f"seed={','.join(map(str, seeds))}", f"structure={','.join(structures)}")
    dense = {"dense": True, "lowrank-63": False}
    kinds = {dense[name] for name in structures}
    assert found == [
        n for n, c in enumerate(grid) if c.seed in seeds and (c.model.structure.kind == "dense") in kinds
    ]


@pytest.mark.parametrize(
    "same",
    [
        "optim.peak_lr=0.005", "optim.peak_lr=5e-3", "optim.peak_lr=.0050", "optim.peak_lr= 5e-3 ",
        "optim.peak_lr=0.005,5e-3",
    ],
)  # fmt: skip
def test_a_number_may_be_spelt_in_any_way(grid: list[RunConfig], same: str) -> None:
    assert [grid[n].optim.peak_lr for n in some(grid, same)] == [5e-3] * 6


def test_what_a_run_has_without_saying_so_counts(grid: list[RunConfig]) -> None:
    everything = list(range(12))
    assert some(grid) == everything
    assert some(grid, "model.d_model=16", "precision=fp32", "model.loop=none") == everything
    assert some(grid, "model.dense_first_ffn=true") == everything
    assert some(grid, "model.structure.kind=lowrank") == some(grid, "structure=lowrank-63")
    rank = facts_of(grid[-1])["model.structure.rank"]
    assert some(grid, f"model.structure.rank={rank}") == some(grid, "structure=lowrank-63")


def test_a_label_with_a_comma_is_one_value() -> None:
    content = {**GRID, "axes": {"model.kind": ["transformer", "recurrent"], **GRID["axes"]}}
    configs = expand(parse_sweep(content, Path("grid.toml")))
    wanted = [n for n, c in enumerate(configs) if c.model.kind == "recurrent" and c.seed == 2]
    labels = {facts_of(configs[n])["structure"] for n in wanted}
    assert labels == {"recurrent", "recurrent, lowrank-63"}
    assert chosen(["structure=recurrent, lowrank-63,recurrent", "seed=2"], [configs])[0] == wanted
    only = chosen(["structure=recurrent, lowrank-63", "seed=2"], [configs])[0]
    assert {facts_of(configs[n])["structure"] for n in only} == {"recurrent, lowrank-63"}


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (["seeed=1"], "unknown key 'seeed'; did you mean 'seed'?"),
        (["peak_lr=1"], "did you mean 'optim.peak_lr'?"),
        (["zq=1"], "valid: curriculum, data, eval"),
        (["model=1"], "unknown key 'model'"),
        (["budget.tokens=2560"], "unknown key 'budget.tokens'"),
        (["seed=3"], "no run has seed = 3; valid: 1, 12, 2"),
        (["seed=1,3"], "no run has seed = 3"),
        (["seed=1,"], "no run has seed = "),
        (["structure=lowrnk-63"], "did you mean 'lowrank-63'?"),
        (["seed=true"], "no run has seed = true"),
        (["seed=nan"], "no run has seed = nan"),
        (["model.bias=1"], "no run has model.bias = 1"),
        (["seed"], "is not KEY=VALUE"),
        (["seed="], "is not KEY=VALUE"),
        (["=1"], "is not KEY=VALUE"),
        (["seed=1", "seed=2"], "no run has all of these at once: seed=1 seed=2"),
    ],
)
def test_what_no_run_has_is_refused(grid: list[RunConfig], conditions: list[str], words: str) -> None:
    with pytest.raises(SweepError) as raised:
        some(grid, *conditions)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_value_may_be_in_one_of_several_grids_alone(grid: list[RunConfig]) -> None:
    dense = grid[:6]
    assert chosen(["structure=lowrank-63", "seed=1"], [dense, grid]) == [[], [6, 9]]


def test_no_key_of_a_sweep_of_the_program_is_like_a_label() -> None:
    """Labels are put over the configuration, and would hide a setting of their name."""
    keys = set(RunConfig.model_fields)
    assert not keys & {"size", "structure"}
    assert {"seed", "model.d_model", "optim.peak_lr", "size"} <= set(
        facts_of(expand(load_sweep("lowrank"))[0])
    )


def test_the_plan_counts_the_chosen_and_says_what_is_left_out(
    cli: Cli, write_sweep: Callable[..., Path], results: Path
) -> None:
    file = str(write_sweep())
    whole = json.loads(cli("plan", file, "--json").stdout)
    part = json.loads(cli("plan", file, "--json", "--where", "seed=2", "--where", "structure=dense").stdout)
    assert part["runs"] == [run for run in whole["runs"] if run["seed"] == 2 and run["structure"] == "dense"]
    assert part["totals"]["new_flops"] == part["runs"][0]["flops"] < whole["totals"]["new_flops"]
    assert (part["left_out"], whole["left_out"]) == (3, 0)
    text = cli("plan", file, "--where", "seed=2", "--write").stdout
    assert "left out: 2 of the sweep's 4 runs" in text
    record = read_record(results, "tiny")
    assert record is not None and len(record["run_ids"]) == 4
    cap = part["totals"]["new_flops"] * 1.01
    cli("run", file, "--dry-run", "--max-flops", str(cap), "--where", "seed=2", "--where", "structure=dense")
    assert "more than --max-flops" in cli.mistake("run", file, "--max-flops", str(cap), "--where", "seed=2")
    assert "did you mean 'seed'" in cli.mistake("run", file, "--where", "sed=2")
    assert "leave --where out" in cli.mistake("plan", file, "--power", "--where", "seed=2")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run` with the pretended trainer of a Lab."""

    def run(lab: Lab, *where: str, files: tuple[str, ...] = ()) -> int:
        def begin(*args: object, **options: object) -> launching.Ending:
            return launch(*args, worker=lab.command, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(running, "launch", begin)
        return running.run([str(lab.file), *files], Options(lab.results, mirror=False, where=where))

    return run


def test_only_the_chosen_are_trained_and_the_exit_code_is_theirs(
    tmp_path: Path, results: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    one = Lab(tmp_path, results, [1, 11, 12, 13])
    assert train(one, "seed=12,1") == 0
    assert {seed: one.state(seed).state for seed in one.ids} == {1: "done", 11: "new", 12: "done", 13: "new"}
    assert "2 runs (2 more of the sweep left out): 2 done" in capsys.readouterr().out
    record = read_record(results, "lab")
    assert record is not None and record["run_ids"] == list(one.ids.values())
    # A diverged run is the concern of those who chose it.
    assert train(one, "seed=11") == 1
    assert train(one, "seed=12") == 0
    assert train(one, "seed=13") == 0
    assert train(one) == 1
    assert one.trained(1) == one.trained(11) == one.trained(12) == one.trained(13) == 1


def test_a_corrupt_run_that_is_left_out_hinders_nothing(
    tmp_path: Path, results: Path, train: Callable[..., int]
) -> None:
    one = Lab(tmp_path, results, [1, 12])
    assert train(one, "seed=12") == 0
    (results / "runs" / one.ids[12] / "result.json").write_text("{")
    assert train(one, "seed=1") == 0
    with pytest.raises(SweepError, match="sweeps retry"):
        train(one)
