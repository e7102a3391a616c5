"""Study files that cannot be: each is answered with one line that names the place and what would do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import TINY, Cli
from planted_search import spaces_of, study, text

from sweeps.errors import SweepError
from sweeps.search.studyfile import find_study, read_study, study_files
from trainer.errors import TrainerError

WIDTHS = "d_model = [12, 24]\n"
PARAMS = {"kind": "width-params", "top": "params = [60000]", "budget": "tokens = 65536"}
TOKENS = {"kind": "tokens", "shape": "d_model = [12, 24, 36]"}
LR = {"kind": "lr", "budget": "tokens = 65536"}

BAD: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "empty": ({"space": ""}, ("space is empty", "d_model = [24, 48]")),
    "single": ({"space": "d_model = [12]"}, ("space.d_model = [12]", "two values")),
    "no values": ({"space": WIDTHS + "n_layers = []"}, ("space.n_layers = []",)),
    "empty table": ({"space": WIDTHS + "n_layers = {}"}, ("space.n_layers", "'low' is missing")),
    "low above high": ({"space": "d_model = {low = 24, high = 12}"}, ("low = 24", "high = 12", "empty")),
    "low is high": ({"space": "d_model = {low = 12, high = 12}"}, ("low = 12", "empty")),
    "no high": ({"space": "d_model = {low = 12}"}, ("space.d_model", "'high' is missing")),
    "lo": ({"space": "d_model = {lo = 12, hi = 24}"}, ("unknown key 'lo'", "'low'")),
    "stpe": ({"space": "d_model = {low = 12, high = 24, stpe = 12}"}, ("unknown key 'stpe'", "'step'")),
    "step and count": ({"space": "d_model = {low = 1, high = 9, step = 1, count = 3}"}, ("either step or",)),
    "no step": ({"space": "d_model = {low = 12, high = 48, log = true}"}, ("needs step or count",)),
    "wide": ({"space": "d_model = {low = -1e308, high = 1e308, step = 1}"}, ("too far apart",)),
    "wide log": ({"space": WIDTHS + "peak_lr = {low = 1e-300, high = 1e300, log = true}"}, ("too far",)),
    "long": ({"space": "d_model = {low = 12, high = 1e9, step = 12}"}, ("space.d_model", "larger step")),
    "half a width": ({"space": "d_model = {low = 12.5, high = 48, step = 12}"}, ("whole numbers",)),
    "half a step": ({"space": "d_model = {low = 12, high = 48, step = 1.5}"}, ("whole numbers",)),
    "half in a list": ({"space": "d_model = [12.5, 24]"}, ("whole numbers",)),
    "nan": ({"space": WIDTHS + "peak_lr = [nan, 1e-3]"}, ("space.peak_lr", "finite")),
    "inf": ({"space": "d_model = [12, inf]"}, ("space.d_model", "finite")),
    "nan range": ({"space": WIDTHS + "peak_lr = {low = nan, high = 1e-3}"}, ("low = nan", "finite")),
    "inf range": ({"space": "d_model = {low = 12, high = inf}"}, ("high = inf", "finite")),
    "zero": ({"space": "d_model = [0, 12]"}, ("space.d_model", "not positive")),
    "log of zero": ({"space": WIDTHS + "peak_lr = {low = 0, high = 1, log = true}"}, ("log = true",)),
    "text": ({"space": "d_model = '12'"}, ("give a list of values, or a range",)),
    "texts": ({"space": "d_model = ['12', '24']"}, ("only numbers",)),
    "truth": ({"space": "d_model = [true, false]"}, ("only numbers",)),
    "true range": ({"space": "d_model = {low = true, high = 24}"}, ("low = True",)),
    "no such rate": ({"space": WIDTHS + "peak_lr = {low = 1, high = 99}"}, ("optim.peak_lr = 99",)),
    "low end": ({"space": WIDTHS + "optim.beta2 = {low = -1, high = 0.9}"}, ("optim.beta2 = -1",)),
    "fractions of a whole": (
        {
            "base": 'model.parametrization = "mup"',
            "space": WIDTHS + "model.base_d_model = {low = 1, high = 9}",
        },
        ("model.base_d_model", "integer"),
    ),
    "unknown short key": ({"space": "d_modle = [12, 24]"}, ("unknown key 'd_modle'", "'d_model'")),
    "unknown dotted key": ({"space": WIDTHS + "optim.beat = [0.1, 0.2]"}, ("unknown key 'optim.beat'",)),
    "long name": ({"space": WIDTHS + "model.d_ff = [12, 24]"}, ("space.model.d_ff", "write d_ff")),
    "heads": ({"space": WIDTHS + "model.n_heads = [1, 2]"}, ("space.model.n_heads", "axis")),
    "other text": ({"space": WIDTHS + "eval.tokens = [1, 2]"}, ("space.eval.tokens", "cannot be compared")),
    "other words": ({"space": WIDTHS + "model.vocab_size = [17, 18]"}, ("space.model.vocab_size", "axis")),
    "kind": ({"kind": "widht"}, ("unknown kind 'widht'", "'width'")),
    "sampler": ({"search": 'sampler = "tpee"'}, ("search.sampler", "'tpee'", "'tpe'")),
    "pruner": ({"search": 'pruner = "medain"'}, ("search.pruner", "'medain'", "'median'")),
    "key": ({"search": "trails = 3"}, ("search.trails", "'trials'")),
    "shape key": ({"shape": "head_dmi = 3"}, ("shape.head_dmi", "'head_dim'")),
    "top key": ({"top": "descriptoin = 'x'"}, ("descriptoin", "'description'")),
    "axis": ({"axes": "strcture = ['dense']"}, ("strcture", "'structure'")),
    "no trials": ({"search": "trials = 0"}, ("search.trials = 0",)),
    "part of a trial": ({"search": "trials = 1.5"}, ("search.trials = 1.5",)),
    "rungs": ({"search": "rungs = [0.0001]"}, ("search.rungs", "0.01")),
    "no rungs": ({"search": "rungs = []"}, ("search.rungs",)),
    "last rung": ({"search": "rungs = [1]"}, ("search.rungs",)),
    "no budget": ({"budget": ""}, ("training FLOPs", "[budget] train_flops", "budget.train_flops an axis")),
    "true budget": ({"budget": "train_flops = true"}, ("give [budget] train_flops",)),
    "nan budget": ({"budget": "train_flops = nan"}, ("train_flops = nan",)),
    "tokens as budget": ({"budget": "tokens = 65536"}, ("[budget] train_flops",)),
    "bare family": ({"axes": "structure = ['lowrank']"}, ("add rank to [space]", "'lowrank-32'")),
    "no such family": ({"axes": "structure = ['lowrnak-32']"}, ("lowrnak-32", "'lowrank-32'")),
    "idle rank": ({"space": WIDTHS + "rank = [2, 4]"}, ("space.rank", "no cell")),
    "twice a cell": ({"axes": "structure = ['dense', 'dense']"}, ("structure=dense", "drop one")),
    "two of d_ff": ({"space": WIDTHS + "d_ff = [12, 24]\nff_ratio = [1, 2]"}, ("keep one",)),
    "two of rank": (
        {"axes": "structure = ['lowrank']", "space": WIDTHS + "rank = [2, 4]\nrank_ratio = [0.1, 0.2]"},
        ("space.rank and space.rank_ratio", "keep one"),
    ),
    "base width": ({"base": "model.d_model = 12"}, ("base.model.d_model", "space.d_model", "preset")),
    "base d_ff": (
        {"base": "model.d_ff = 12", "space": WIDTHS + "ff_ratio = [1, 2]"},
        ("base.model.d_ff", "space.ff_ratio", "keep one"),
    ),
    "base rate": (
        {"base": "optim.peak_lr = 1e-3", "space": WIDTHS + "peak_lr = [1e-3, 2e-3]"},
        ("base.optim.peak_lr", "space.peak_lr", "keep one"),
    ),
    "axis rate": (
        {"axes": '"optim.peak_lr" = [1e-3, 2e-3]', "space": WIDTHS + "peak_lr = [1e-3, 2e-3]"},
        ("axes.optim.peak_lr", "space.peak_lr"),
    ),
    "axis dotted": (
        {"axes": '"optim.beta2" = [0.9, 0.95]', "space": WIDTHS + "optim.beta2 = [0.8, 0.9]"},
        ("axes.optim.beta2", "space.optim.beta2"),
    ),
    "override": (
        {"tail": '[[override]]\nwhen = {structure = "dense"}\nset = {"model.n_layers" = 3}'},
        ("override.model.n_layers", "space.n_layers"),
    ),
    "budget text": ({"base": 'budget = "x"', "budget": ""}, ("budget",)),
    "no params": ({**PARAMS, "top": ""}, ("width-params", "params = [...]")),
    "params elsewhere": ({"top": "params = [60000]"}, ("drop params",)),
    "few params": ({**PARAMS, "top": "params = [10]"}, ("10 parameters", "without an FFN")),
    "no params at all": ({**PARAMS, "top": "params = [0]"}, ("params = [0]", "positive")),
    "twice the params": ({**PARAMS, "top": "params = [60000, 60000]"}, ("params=60000", "drop one")),
    "params and d_ff": ({**PARAMS, "base": "model.d_ff = 48"}, ("base.model.d_ff", "drop it")),
    "params and ff_ratio": ({**PARAMS, "space": WIDTHS + "ff_ratio = [1, 2]"}, ("space.ff_ratio",)),
    "one batch": ({**PARAMS, "budget": "tokens = 1"}, ("tokens = 1", "one batch of 2048")),
    "pareto pruner": ({"kind": "pareto", "search": 'pruner = "median"'}, ("two", "drop it")),
    "pareto cmaes": ({"kind": "pareto", "search": 'sampler = "cmaes"'}, ("cmaes", "two", "drop it")),
    "second": ({"tail": "[second]\nbatch = 2"}, ("[second]", 'kind = "pareto"')),
    "objective": ({"kind": "pareto", "tail": "[second]\nobjective = 'fnn_ms'"}, ("ffn_ms",)),
    "cmaes on a line": ({"search": 'sampler = "cmaes"', "space": WIDTHS}, ("cmaes", "two dimensions")),
    "grid of a range": (
        {"search": 'sampler = "grid"', "space": WIDTHS + "peak_lr = {low = 1e-3, high = 1e-2}"},
        ("grid", "space.peak_lr", "count"),
    ),
    "many": ({"space": "d_model = {low = 12, high = 12000, step = 12}\nn_layers = {low = 1, high = 50}"},
             ("50,000 combinations", "20,000")),
    "heads that break": ({"space": "d_model = [13, 17]"}, ("d_model = 13", "head_dim = 12")),
    "narrow limits": ({"shape": "ff_ratio = [4, 1]"}, ("no shape has a d_ff", "empty")),
    "width of lr": ({**LR, "space": "peak_lr = [1e-3, 1e-2]\nd_model = [12, 24]"}, ("space.d_model",)),
    "lr of nothing": ({**LR, "space": "batch_tokens = [1024, 2048]"}, ("searches peak_lr",)),
    "odd batch": ({**LR, "space": "peak_lr = [1e-3, 1e-2]\nbatch_tokens = [100, 200]"}, ("multiple of",)),
    "widths missing": ({"kind": "tokens", "space": "tokens_per_param = {low = 1, high = 9}"}, ("d_model",)),
    "widths empty": (
        {"kind": "tokens", "space": "tokens_per_param = {low = 1, high = 9}", "shape": "d_model = []"},
        ("shape.d_model is empty",),
    ),
    "list of ratios": ({**TOKENS, "space": "tokens_per_param = [1, 20, 500]"}, ("give a range",)),
    "steps of ratios": ({**TOKENS, "space": "tokens_per_param = {low = 1, high = 9, step = 1}"}, ("range",)),
    "far ratios": ({**TOKENS, "space": "tokens_per_param = {low = 1e6, high = 1e7}"}, ("no size has",)),
    "widths elsewhere": ({"shape": "d_model = [12]"}, ("shape.d_model", '"tokens"')),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_study_that_cannot_be_is_answered_in_one_line(case: str, tmp_path: Path) -> None:
    parts, words = BAD[case]
    with pytest.raises((SweepError, TrainerError)) as caught:
        spaces_of(study(tmp_path, "bad", **parts))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    assert "bad.toml" in line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize("budget", [1e4, 3e8])
def test_what_an_impossible_budget_is_answered_with_would_do(tmp_path: Path, budget: float) -> None:
    with pytest.raises(SweepError, match="the budget is impossible") as caught:
        spaces_of(study(tmp_path, budget=f"train_flops = {budget}"))
    found = re.search(r"the smallest shape needs ([\d.e+]+)", str(caught.value))
    assert found is not None
    assert spaces_of(study(tmp_path, budget=f"train_flops = {found[1]}"))[0].shapes >= 1


def test_rank_is_searched_where_a_structure_leaves_it_open_and_not_elsewhere(tmp_path: Path) -> None:
    one = study(tmp_path, axes="structure = ['dense', 'lowrank']", space=WIDTHS + "rank = [2, 4]")
    dense, lowrank = spaces_of(one)
    assert [d.name for d in dense.dimensions] == ["d_model"]
    assert [d.name for d in lowrank.dimensions] == ["d_model", "rank"]


def test_all_that_makes_earlier_trials_misleading_changes_a_cells_name(tmp_path: Path) -> None:
    def name(**parts: str) -> str:
        return spaces_of(study(tmp_path, **parts))[0].cell.name

    plain = name()
    different = [
        name(budget="train_flops = 2e11"), name(space=WIDTHS), name(base="optim.beta2 = 0.9"),
        name(shape="head_dim = 6"), name(kind="pareto"),
    ]  # fmt: skip
    assert len({plain, *different}) == 6
    assert (
        name(search='trials = 3\nseed = 4\nsampler = "random"\nin_flight = 7', top="description = 'x'")
        == plain
    )


def test_the_studies_of_the_program_can_be_searched() -> None:
    assert len(study_files()) >= 5
    for path in study_files():
        assert all(space.shapes > 1 for space in spaces_of(read_study(path))), path


def test_an_unknown_study_is_answered_with_the_nearest() -> None:
    with pytest.raises(SweepError, match=r"unknown study 'widht'; did you mean 'width'"):
        find_study("widht")


def test_command_lines_name_the_mistake(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text(space="d_model = [nan, 12]"))
    assert "space.d_model" in cli.mistake("search", str(path))
    path.write_text(text(budget="train_flops = 1e4"))
    assert "the budget is impossible" in cli.mistake("search", str(path), "--dry-run")


def test_a_sweep_is_no_study_and_a_study_no_sweep(cli: Cli, tmp_path: Path) -> None:
    sweep, searched = tmp_path / "sweep.toml", tmp_path / "study.toml"
    sweep.write_text(TINY)
    searched.write_text(text())
    assert "python -m sweeps run" in cli.mistake("search", str(sweep))
    assert "python -m sweeps search" in cli.mistake("run", str(searched))
    assert not (cli.results / "searches").exists()
