"""Sweep files: what they expand to, and what is said of those that are wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.identity import UNKNOWN, identify
from sweeps.resolver import Resolver
from sweeps.sweepfile import Sweep, load_sweep, parse_sweep, sweep_files
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.flops import flops_per_token, model_counts, train_flops
from trainer.presets import resolve


def sweep(text: str, name: str = "try") -> Sweep:
    return parse_sweep(tomllib.loads(text), Path(f"{name}.toml"))


def runs(text: str) -> list[RunConfig]:
    return expand(sweep(text))


BASE = '[base]\npreset = "cpu-xs"\n'


def test_axes_are_a_product_with_the_first_slowest() -> None:
    got = runs(
        BASE + '[axes]\nstructure = ["dense", "lowrank-63"]\nseed = [3, 1]\noptim.peak_lr = [1e-3, 2e-3]\n'
    )
    seen = [(c.model.structure.kind, c.seed, c.optim.peak_lr) for c in got]
    assert seen == [(k, s, lr) for k in ("dense", "lowrank") for s in (3, 1) for lr in (1e-3, 2e-3)]


def test_zipped_lists_advance_together_and_multiply_with_axes() -> None:
    got = runs('[axes]\nseed = [1, 2]\n[[zip]]\npreset = ["cpu-xs", "cpu-s"]\noptim.peak_lr = [1e-3, 2e-3]\n')
    small, large = (
        resolve({"preset": "cpu-xs"}, "x").model.d_model,
        resolve({"preset": "cpu-s"}, "x").model.d_model,
    )
    seen = [(c.seed, c.model.d_model, c.optim.peak_lr) for c in got]
    assert seen == [(s, d, lr) for s in (1, 2) for d, lr in ((small, 1e-3), (large, 2e-3))]


def test_exclude_drops_points_that_match_every_value() -> None:
    text = '[axes]\npreset = ["cpu-xs", "cpu-s"]\nseed = [1, 2, 3]\n'
    text += '[[exclude]]\npreset = "cpu-s"\nseed = [2, 3]\n'
    sizes = [(c.model.n_layers, c.seed) for c in runs(text)]
    xs, s = (resolve({"preset": p}, "x").model.n_layers for p in ("cpu-xs", "cpu-s"))
    assert sizes == [(xs, 1), (xs, 2), (xs, 3), (s, 1)]


def test_override_matches_before_any_change_and_later_ones_win() -> None:
    text = BASE + (
        '[axes]\nstructure = ["dense", "lowrank-63"]\n'
        '[[override]]\nwhen = { structure = "lowrank-63" }\n'
        'set = { optim.peak_lr = 4e-3, structure = "lowrank-32" }\n'
        '[[override]]\nwhen = { structure = "lowrank-63" }\nset = { optim.peak_lr = 3e-3, seed = 9 }\n'
    )
    dense, low = runs(text)
    assert dense.optim.peak_lr == resolve({"preset": "cpu-xs"}, "x").optim.peak_lr
    assert (low.optim.peak_lr, low.seed) == (3e-3, 9)
    assert (
        low.model.structure == resolve({"preset": "cpu-xs", "structure": "lowrank-32"}, "x").model.structure
    )


def test_when_matches_values_that_the_preset_gives() -> None:
    width = resolve({"preset": "cpu-s"}, "x").model.d_model
    text = f'[axes]\npreset = ["cpu-xs", "cpu-s"]\n[[exclude]]\nmodel.d_model = {width}\n'
    assert len(runs(text)) == 1


def test_equal_runs_are_merged_into_the_first() -> None:
    got = runs(BASE + '[axes]\nstructure = ["dense", { kind = "dense" }, "lowrank-63"]\nseed = [1]\n')
    assert [c.model.structure.kind for c in got] == ["dense", "lowrank"]


def test_structure_axis_may_be_written_in_either_way() -> None:
    both = [
        runs(BASE + f'[axes]\n{key} = ["dense", "lowrank-63"]\n')
        for key in ("structure", '"model.structure"')
    ]
    assert both[0] == both[1]


def test_budget_of_the_dense_counterpart_gives_all_structures_equal_tokens() -> None:
    axes = '[axes]\nstructure = ["dense", "lowrank-32"]\n'
    of_dense = runs(BASE + axes + '[budget]\ntokens_per_param = 20\nof = "dense"\n')
    of_run = runs(BASE + axes + "[budget]\ntokens_per_param = 20\n")
    assert of_dense[0].tokens == of_dense[1].tokens == of_run[0].tokens > of_run[1].tokens
    wanted = 20 * model_counts(of_run[1].model).params_total
    assert wanted - of_run[1].optim.batch_tokens < of_run[1].tokens <= wanted


def test_an_axis_of_budgets_replaces_the_sweeps_amount() -> None:
    got = runs(BASE + "[axes]\nbudget.train_flops = [1e11, 2e11]\n[budget]\ntokens_per_param = 20\n")
    spent = [c.tokens * flops_per_token(c.model) for c in got]
    assert all(0.9 * want < flops <= want for flops, want in zip(spent, (1e11, 2e11), strict=True))
    assert [c.tokens for c in runs(BASE + "[axes]\ntokens = [40960, 81920]\n")] == [40960, 81920]


def test_a_budget_equal_in_flops_spends_what_the_dense_run_spends() -> None:
    text = BASE + '[axes]\nstructure = ["dense", "lowrank-32"]\nbudget.equal = ["tokens", "flops"]\n'
    dense, same_tokens, more = runs(text + '[budget]\ntokens_per_param = 20\nof = "dense"\n')
    assert same_tokens.tokens == dense.tokens < more.tokens
    one_batch = more.optim.batch_tokens * flops_per_token(more.model)
    assert train_flops(dense) - one_batch < train_flops(more) <= train_flops(dense)
    # Without an amount, the preset's tokens or the default of 20 per dense parameter are meant.
    assert runs(text) == [dense, same_tokens, more]
    papers = runs('[base]\npreset = "paper-s"\nstructure = "lowrank-32"\nbudget.equal = "flops"\n')
    assert [c.steps for c in papers] == [5811]


@pytest.mark.parametrize("scale", ["", "-gpu", "-paper"])
def test_the_papers_experiments_spend_what_they_say(scale: str) -> None:
    """Guided, with more tokens, or wide: all at the FLOPs of the dense run, within the published rounding."""
    for name in ("selfguided", "more-tokens", "wide"):
        configs = expand(load_sweep(name + scale))
        sizes: dict[tuple[int, int], list[RunConfig]] = {}
        for config in configs:
            sizes.setdefault((config.model.d_model, config.seed), []).append(config)
        for cell in sizes.values():
            dense = next(c for c in cell if c.model.structure.kind == "dense")
            assert {c.guide.mode for c in cell} >= ({"none"} if name == "more-tokens" else {"fixed_flops"})
            for config in cell:
                equal = (
                    config.guide.mode == "fixed_flops"
                    or config.tokens > dense.tokens
                    or config.model.structure.kind == "dense"
                )
                ratio = train_flops(config) / train_flops(dense)
                assert (0.985 < ratio < 1.01) if equal else ratio < 0.97, (name + scale, ratio)


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(["cpu-xs", "cpu-s", "paper-s", "gpu-xs", None]),
    structure=st.sampled_from(
        ["dense", "lowrank-63", {"kind": "lowrank", "rank": 8}, "lowrank-0", "nope", None]
    ),
    seed=st.sampled_from([0, 7, -1, True, "1", 1.0, None]),
    optim=st.sampled_from([None, {"peak_lr": 1e-3}, {"peak_lr": -1.0}, {"batch_tokens": 999}, {"x": 1}]),
    data=st.sampled_from([None, {"corpus": "synthetic"}, "synthetic", {"tokenizer": "bytes"}, 3]),
    budget=st.sampled_from(
        [
            None,
            {"tokens": 99_999},
            {"tokens": 1},
            {"tokens_per_param": 3, "of": "dense"},
            {},
            {"equal": "flops"},
            {"equal": "flops", "tokens_per_param": 3},
            {"train_flops": 2e11},
            {"count": "non_embedding"},
        ]
    ),
    guide=st.sampled_from(
        [None, {"mode": "fixed_flops"}, {"mode": "fixed_steps", "stochastic": False}, {"fraction": 0.5}, 3]
    ),
)
def test_the_quick_way_equals_resolve(**given_values: Any) -> None:
    """Sharing parts must change neither a configuration nor whether it is refused."""
    partial = {key: value for key, value in given_values.items() if value is not None}
    try:
        wanted: RunConfig | None = resolve(partial, "x")
    except (ConfigError, TypeError):
        wanted = None
    resolver = Resolver()
    for _ in range(2):
        if wanted is None:
            with pytest.raises((ConfigError, SweepError), match=r"^x"):
                resolver.config(partial, lambda: "x")
        else:
            got = resolver.config(partial, lambda: "x")
            assert got == wanted
            assert got.canonical_json() == wanted.canonical_json()


@pytest.mark.parametrize("budget", [{"train_flops": 2e11}, {"equal": "flops"}], ids=str)
def test_the_quick_way_counts_the_guide_in_a_budget_of_flops(budget: dict[str, Any]) -> None:
    """One resolver, the same budget: each point gets the tokens of its own guidance."""
    modes: list[dict[str, Any]] = [
        {"mode": "none"}, {"mode": "fixed_steps"}, {"mode": "fixed_steps", "stochastic": False},
    ]  # fmt: skip
    if "train_flops" in budget:
        modes.append({"mode": "fixed_flops"})
    resolver = Resolver()
    base = {"preset": "cpu-xs", "structure": "lowrank-32", "budget": budget}
    points = [{**base, "guide": mode} for mode in modes]
    got = [resolver._assembled(point) for point in points]
    assert got == [resolve(point, "x") for point in points]
    assert len({config.tokens for config in got if config is not None}) == len(modes)


def test_equal_flops_with_fixed_flops_is_refused_with_the_points_name() -> None:
    text = BASE + 'structure = "lowrank-32"\n[base.guide]\nmode = "fixed_flops"\n[budget]\nequal = "flops"\n'
    with pytest.raises(ConfigError, match=r'^try\.toml.*: budget\.equal = "flops" with guide\.mode'):
        runs(text)


def test_ids_are_those_of_the_configurations() -> None:
    from trainer.corpora import fingerprint

    configs = runs(BASE + '[base.data]\ncorpus = "synthetic"\ntokenizer = "none"\n[axes]\nseed = [1, 2]\n')
    ids, problems = identify(configs)
    assert ids == [c.run_id(fingerprint(c.data)) for c in configs]
    assert len(set(ids)) == 2
    assert not problems


def test_a_missing_corpus_leaves_runs_without_id_and_says_why_once() -> None:
    configs = runs(BASE + '[base.data]\ncorpus = "text:no/such/folder"\n[axes]\nseed = [1, 2]\n')
    ids, problems = identify(configs)
    assert ids == [UNKNOWN, UNKNOWN]
    assert len(problems) == 1
    assert "no/such/folder" in problems[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[axis]\nseed = [1]\n", ["try.toml", "'axis'", "'axes'"]),
        (BASE + "[axes]\nseeed = [1]\n", ["axes", "'seeed'", "'seed'"]),
        (BASE + "[axes]\noptim.peak_rl = [1]\n", ["axes", "'optim.peak_rl'", "'peak_lr'"]),
        (BASE + "[axes]\nprest = ['cpu-s']\n", ["'prest'", "'preset'"]),
        (BASE + "[axes]\nseed = []\n", ["axes.seed", "empty list"]),
        (BASE + "[axes]\nseed = 3\n", ["axes.seed = 3", "list"]),
        (
            BASE + "[[zip]]\nseed = [1, 2]\noptim.peak_lr = [1e-3]\n",
            ["zip 1", "seed has 2", "optim.peak_lr has 1"],
        ),
        (BASE + "[axes]\nseed = [1]\n[[zip]]\nseed = [1]\n", ["zip 1.seed", "axes.seed", "keep one"]),
        (
            BASE + "[axes]\ntokens = [9999]\nbudget.train_flops = [1e9]\n",
            ["budget.train_flops", "tokens", "keep one"],
        ),
        (BASE + "tokens = 9999\n[budget]\ntokens = 99\n", ["base.tokens", "[budget]", "keep one"]),
        (BASE + "[budget]\ntokns = 99\n", ["'budget.tokns'", "'tokens'"]),
        (BASE + "[budget]\ntokens = 9999\ntrain_flops = 1e9\n", ["budget", "train_flops"]),
        (BASE + "[axes]\nseed = [1]\n[[exclude]]\nseed = 2\n", ["exclude 1", "matches no run", "seed = 2"]),
        (BASE + "[axes]\nseed = [1]\n[[exclude]]\nseed = 1\n", ["every grid point is excluded"]),
        (BASE + "[[exclude]]\nsed = 1\n", ["exclude 1", "'sed'", "'seed'"]),
        (BASE + "[[exclude]]\n", ["exclude 1", "no key"]),
        (
            BASE
            + '[axes]\nstructure = ["dense", "lowrank-63"]\n[[override]]\nwhen = {structure = "lowrnk-63"}\n'
            "set = {seed = 2}\n",
            ["override 1", "structure = lowrnk-63", "'lowrank-63'"],
        ),
        (
            BASE + "[[override]]\nwhen = {seed = 1}\nset = {optm.peak_lr = 1}\n",
            ["override 1", "'optm.peak_lr'"],
        ),
        (BASE + "[[override]]\nwhen = {seed = 1}\n", ["override.0.set", "missing"]),
        (BASE + "[execution]\nslot = 2\n", ["'execution.slot'", "'slots'"]),
        (BASE + "[execution]\ndevice = 'gpu'\n", ["execution.device", "gpu"]),
        (BASE + "[mlflow]\nurl = 'x'\n", ["'mlflow.url'", "'uri'"]),
        ("[axes]\npreset = ['cpu-xss']\n", ["preset=cpu-xss", "'cpu-xs'"]),
        (
            "[axes]\npreset = ['cpu-xs']\nstructure = [{kind = 'lowrank', rank = 4000}]\n",
            ["try.toml: preset=cpu-xs structure={kind=lowrank, rank=4000}", "rank = 4000"],
        ),
        (BASE + "[axes]\noptim = [3]\n", ["optim=3"]),
        (BASE + "model = 3\n", ["try.toml"]),
        ("description = 'nothing else'\n", ["'model'", "missing"]),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, words: list[str]) -> None:
    with pytest.raises((SweepError, ConfigError)) as caught:
        runs(text)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("try.toml")
    for word in words:
        assert word in line


def test_sweeps_are_found_by_name_or_path(tmp_path: Path) -> None:
    name = sweep_files()[0].stem
    assert load_sweep(name).name == name
    path = tmp_path / "mine.toml"
    path.write_text(BASE)
    assert load_sweep(str(path)).name == "mine"
    with pytest.raises(SweepError, match=f"did you mean '{name}'"):
        load_sweep(name[:-1] + "x")
    with pytest.raises(SweepError, match="no such sweep file"):
        load_sweep(str(tmp_path / "other.toml"))
    path.write_text("[axes\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: not TOML"):
        load_sweep(str(path))


@pytest.mark.parametrize("path", sweep_files(), ids=lambda path: path.stem)
def test_every_sweep_that_comes_with_the_program_expands(path: Path) -> None:
    configs = expand(load_sweep(path.stem))
    assert len(configs) == len(set(configs)) > 0
