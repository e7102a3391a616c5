"""What a plan says of runs that their labels do not tell apart, and of differences that the file asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, finish_run

from sweeps.layout import layout_or_guess
from sweeps.overview import look
from sweeps.plan import Plan
from sweeps.report import plan_table
from sweeps.sweepfile import read_sweep

Write = Callable[..., Path]


def with_grid(grid: str, text: str = TINY) -> str:
    """The small sweep with another grid."""
    return text.replace('[axes]\nstructure = ["dense", "lowrank-63"]\nseed = [1, 2]', grid)


@pytest.fixture
def plan(results: Path, write_sweep: Write) -> Callable[[str], Plan]:
    def make(text: str) -> Plan:
        sweep = read_sweep(write_sweep(text))
        return look(sweep, results).plan(layout_or_guess(sweep.execution))

    return make


def heads(plan: Plan) -> list[str]:
    return plan_table(plan).splitlines()[0].replace("peak LR", "peak_LR").split()


def column(plan: Plan, name: str) -> list[str]:
    at = heads(plan).index(name)
    return [line.split()[at] for line in plan_table(plan).splitlines()[1:]]


PLAIN = ["id", "size", "structure", "seed", "params", "tokens", "steps", "FLOPs", "batch", "peak_LR"]


def test_a_plain_sweep_has_the_plain_columns(plan: Callable[[str], Plan]) -> None:
    found = plan(TINY)
    assert heads(found) == [*PLAIN, "time", "state"]
    assert all(run.varied == {} for run in found.runs)


@pytest.mark.parametrize(
    ("axes", "name", "values"),
    [
        ('"data.corpus.vocab_size" = [32, 64]', "vocab_size", ["32", "64"]),
        ('"optim.weight_decay" = [0.0, 0.1]', "weight_decay", ["0", "0.1"]),
        ('"model.bias" = [true, false]', "bias", ["true", "false"]),
        ('"eval.tokens" = [512, 1024]', "eval.tokens", ["512", "1024"]),
        ('"data.corpus.seed" = [3, 4]', "corpus.seed", ["3", "4"]),
    ],
)
def test_a_setting_without_a_column_gets_one(
    plan: Callable[[str], Plan], axes: str, name: str, values: list[str]
) -> None:
    found = plan(with_grid(f"[axes]\n{axes}"))
    assert [head for head in heads(found) if head not in [*PLAIN, "time", "state"]] == [name]
    assert column(found, name) == values


def test_what_has_a_column_gets_no_second_one_but_names_the_runs(plan: Callable[[str], Plan]) -> None:
    found = plan(with_grid('[axes]\n"optim.peak_lr" = [1e-3, 2e-3]\ntokens = [2560, 5120]'))
    assert heads(found) == [*PLAIN, "time", "state"]
    assert [run.varied["peak_lr"] for run in found.runs] == ["1e-3", "1e-3", "2e-3", "2e-3"]
    assert [run.varied["tokens"] for run in found.runs] == ["2560", "5120"] * 2


def test_what_only_follows_the_size_is_no_difference_and_depth_at_one_size_is_none_either(
    plan: Callable[[str], Plan],
) -> None:
    ladder = '[[zip]]\n"model.d_model" = [16, 32]\n"optim.weight_decay" = [0.1, 0.2]'
    assert heads(plan(with_grid(ladder))) == [*PLAIN, "time", "state"]
    assert heads(plan(with_grid('[axes]\n"model.n_layers" = [2, 3]'))) == [*PLAIN, "time", "state"]


def test_corpora_are_told_apart_by_what_they_differ_in(plan: Callable[[str], Plan]) -> None:
    """One key of the grid sets a table; what follows from its first difference needs no column."""
    kinds = (
        '[axes]\n"data.corpus" = [{ kind = "synthetic", vocab_size = 32, order = 1 }, '
        '{ kind = "synthetic", vocab_size = 32, order = 2 }, { kind = "copy" }]'
    )
    found = plan(with_grid(kinds))
    assert column(found, "corpus") == ["synthetic", "synthetic", "copy"]
    assert column(found, "order")[:2] == ["1", "2"] and column(found, "order")[2] == "-"
    assert len({tuple(run.varied.items()) for run in found.runs}) == 3


def test_long_values_are_short_and_stay_apart(plan: Callable[[str], Plan]) -> None:
    folders = [f"a/rather/long/way/to/a/folder/{name}" for name in ("first", "second")]
    axis = ", ".join(f'"text:{folder}"' for folder in folders)
    found = plan(with_grid(f'[axes]\n"data.corpus" = [{axis}]'))
    assert [run.varied["paths"] for run in found.runs] == ["first", "second"]


def test_plan_status_and_json_name_the_setting(cli: Cli, results: Path, write_sweep: Write) -> None:
    file = write_sweep(with_grid('[axes]\n"optim.weight_decay" = [0.0, 0.25]'))
    overview = look(read_sweep(file), results)
    finish_run(results, overview.configs[1], overview.ids[1])
    runs = json.loads(cli("plan", str(file), "--json").stdout)["runs"]
    assert [run["varied"] for run in runs] == [{"weight_decay": "0"}, {"weight_decay": "0.25"}]
    assert "weight_decay=0.25" in cli("status", str(file)).stdout.splitlines()[2]
    rows = json.loads(cli("status", str(file), "--json").stdout)["runs"]
    assert [row["varied"] for row in rows] == [run["varied"] for run in runs]


def test_a_running_sweep_names_the_setting(plan: Callable[[str], Plan], results: Path) -> None:
    from sweeps.display import TerminalView
    from sweeps.ledger import Ledger

    found = plan(with_grid('[axes]\n"optim.weight_decay" = [0.0, 0.25]'))
    view, said = TerminalView(found.runs, 0, 1, Ledger(results)), []
    view.say = said.append  # type: ignore[method-assign]
    for run in found.runs:
        view.event(run.id, {"event": "start", "total": 10})
        view.event(run.id, {"event": "end", "state": "diverged"})
    assert ["weight_decay=0 seed" in said[0], "weight_decay=0.25 seed" in said[1]] == [True, True]


SIZES = (
    "[[zip]]\nmodel.d_model = [16, 32]\nmodel.n_layers = [2, 3]\n"
    '[axes]\nstructure = ["dense", "lowrank-63"]\n'
)
RATES = "[rates]\nof_width = 16\npeak_lr = {{ dense = {}, lowrank-63 = {} }}\n"
WITHOUT_RATE = TINY.replace("peak_lr = 5e-3, ", "")


def said(plan: Plan) -> dict[str, Any]:
    return {"warnings": plan.warnings, "notes": plan.notes}


def test_rates_by_rule_are_one_line_for_all_sizes(plan: Callable[[str], Plan]) -> None:
    found = plan(with_grid(SIZES + RATES.format(0.01, 0.02), WITHOUT_RATE))
    assert said(found) == {"warnings": [], "notes": ["peak_lr differs by structure, as [rates] says"]}
    assert said(plan(with_grid(SIZES + RATES.format(0.01, 0.01), WITHOUT_RATE))) == {
        "warnings": [],
        "notes": [],
    }


def test_tokens_by_a_budget_in_flops_are_one_line(plan: Callable[[str], Plan]) -> None:
    for budget in ("train_flops = 1e9", 'tokens = 25600\nequal = "flops"'):
        found = plan(with_grid(SIZES).replace("tokens = 2560", budget))
        assert found.warnings == [] and len(found.notes) == 1
        assert found.notes[0].startswith("tokens differs by structure, as the budget")
    axis = with_grid(SIZES + '"budget.train_flops" = [1e9, 2e9]')
    assert plan(axis).warnings == [] and len(plan(axis).notes) == 1


def test_tokens_of_each_runs_own_parameters_are_warned_of(plan: Callable[[str], Plan]) -> None:
    own = 'tokens_per_param = 20\nof = "run"'
    found = plan(with_grid(SIZES).replace("tokens = 2560", own))
    assert [line.split(":")[1].split()[0] for line in found.warnings] == ["tokens", "tokens"]
    # An axis of parameters stands over the budget in FLOPs of the file.
    axis = with_grid(SIZES + '"budget.tokens_per_param" = [20]\n')
    over = plan(axis.replace("tokens = 2560", 'train_flops = 1e9\nof = "run"'))
    assert len(over.warnings) == 2 and over.notes == []


def test_what_an_override_sets_for_a_structure_is_a_note_and_what_it_does_not_a_warning(
    plan: Callable[[str], Plan],
) -> None:
    override = '[[override]]\nwhen = {{ structure = "lowrank-63"{} }}\nset = {{ optim.peak_lr = 4e-3 }}\n'
    other = "[[override]]\nwhen = { model.d_model = 32 }\nset = { optim.weight_decay = 0.3 }\n"
    found = plan(with_grid(SIZES + override.format("") + other))
    assert said(found) == {"warnings": [], "notes": ["peak_lr differs by structure, as [[override]] says"]}
    found = plan(with_grid(SIZES + override.format(", model.d_model = 16")))
    assert found.notes == ["peak_lr differs by structure at d16-L2, as [[override]] says"]


def test_a_difference_that_no_rule_gives_stays_a_warning_beside_the_note(plan: Callable[[str], Plan]) -> None:
    zipped = (
        '[[zip]]\nstructure = ["dense", "lowrank-63"]\n"optim.peak_lr" = [1e-3, 2e-3]\n'
        '[[exclude]]\nstructure = "dense"\n"optim.weight_decay" = 0.2\n'
        '[axes]\n"optim.weight_decay" = [0.1, 0.2]\n'
    )
    found = plan(with_grid(zipped))
    assert found.notes == ["peak_lr differs by structure, as [[zip]] says"]
    assert found.warnings == ["d16-L2: weight_decay differs: dense 0.1, lowrank-63 0.1/0.2"]


def test_the_command_line_says_notes_and_json_has_them(cli: Cli, write_sweep: Write) -> None:
    file = str(write_sweep(with_grid(SIZES + RATES.format(0.01, 0.02), WITHOUT_RATE)))
    said = cli("plan", file).stderr.splitlines()
    assert said == ["note: peak_lr differs by structure, as [rates] says"]
    facts = json.loads(cli("plan", file, "--json").stdout)
    assert (facts["warnings"], facts["notes"]) == ([], ["peak_lr differs by structure, as [rates] says"])
