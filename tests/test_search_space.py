"""Spaces: every point keeps to what its study holds fixed, any proposal finds one, none is drawn twice."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_search import spaces_of, study

from sweeps.search.space import Space
from sweeps.search.studyfile import significant
from sweeps.search.summary import edges
from trainer.config import RunConfig
from trainer.flops import model_counts, train_flops

SHAPES = "d_model = [12, 24, 36, 48]\nn_layers = [1, 2, 3]\n"
STUDIES: dict[str, dict[str, str]] = {
    "width": {
        "axes": "structure = ['dense', 'lowrank-32', 'blockdense-32', 'blockshuffle-32']", "space": SHAPES,
    },
    "width by ratio": {
        "axes": "structure = ['lowrank']",
        "space": SHAPES + "ff_ratio = [1, 2, 4]\nrank_ratio = [0.1, 0.11, 0.25, 0.5]",
    },
    "width with a rate": {
        "space": SHAPES + "peak_lr = {low = 1e-3, high = 3e-2, log = true}", "shape": "head_dim = 6",
    },
    "width and two numbers": {
        "space": SHAPES + "peak_lr = {low = 1e-3, high = 3e-2, log = true}\n"
        "optim.weight_decay = {low = 0, high = 0.2}",
    },
    "width-params": {
        "kind": "width-params", "budget": "tokens = 65536", "top": "params = [30000, 60000]",
        "axes": "structure = ['dense', 'lowrank-32', 'blockdense-32', 'blockshuffle-32']", "space": SHAPES,
    },
    "width-params by rank": {
        "kind": "width-params", "budget": "tokens = 65536", "top": "params = [40000]",
        "axes": "structure = ['blockdense']", "space": SHAPES + "rank = [2, 4, 8]\nn_blocks = [2, 3, 4]",
    },
    "lr": {
        "kind": "lr", "budget": "tokens_per_param = 20\nof = 'dense'",
        "axes": "preset = ['cpu-2xs', 'cpu-xs']",
        "space": "peak_lr = [0.003, 0.006, 0.012]\nbatch_tokens = [1024, 2048, 4096]",
    },
    "tokens": {
        "kind": "tokens", "budget": "train_flops = 4e11", "axes": "structure = ['dense', 'lowrank-32']",
        "space": "tokens_per_param = {low = 1, high = 500, log = true}",
        "shape": "d_model = {low = 12, high = 120, step = 12}\naspect = 24",
    },
    "tokens with a rate": {
        "kind": "tokens", "budget": "train_flops = 4e11",
        "space": "tokens_per_param = {low = 1, high = 500}\npeak_lr = {low = 1e-3, high = 1e-2}",
        "shape": "d_model = [24, 36, 48]",
    },
    "pareto": {"kind": "pareto", "space": SHAPES},
}  # fmt: skip


@lru_cache
def spaces(name: str) -> list[Space]:
    with TemporaryDirectory() as folder:
        return spaces_of(study(Path(folder), **STUDIES[name]))


CELLS = [(name, n) for name in STUDIES for n in range(len(spaces(name)))]


def keeps(space: Space, config: RunConfig) -> None:
    """Holds a run against what its study holds fixed, counted anew."""
    one, model = space.cell, config.model
    if one.study.kind != "lr":
        assert model.d_model == model.n_heads * (one.study.shape.head_dim or 12)
    assert config.tokens % config.optim.batch_tokens == 0
    if one.budget is not None:
        assert abs(train_flops(config) / one.budget - 1) <= 0.01
    if one.params is not None:
        assert abs(model_counts(model).params_total / one.params - 1) <= 0.01
    blocks = getattr(model.structure, "n_blocks", 1)
    assert model.d_model % blocks == model.d_ff % blocks == 0
    kinds = {"dense": "dense", "lowrank": "lowrank"}
    assert model.structure.kind == kinds.get(one.structure, one.structure.partition("-")[0])


@st.composite
def proposals(draw: st.DrawFn) -> tuple[Space, dict[str, float]]:
    name, n = draw(st.sampled_from(CELLS))
    space = spaces(name)[n]
    return space, {d.name: draw(st.floats(d.low, d.high)) for d in space.dimensions}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[0]}-{cell[1]}")
def test_every_point_keeps_to_what_is_fixed_and_is_found_again(cell: tuple[str, int]) -> None:
    space = spaces(cell[0])[cell[1]]
    if space.size is None:
        draws = (space.untried((), seed) for seed in range(30))
        points = [point for point in draws if point is not None]
    else:
        points = list(space.every())
        assert len(points) == space.size
    configs = [space.config(point) for point in points]
    assert len(set(configs)) == len({tuple(point.values()) for point in points})
    for point, config in zip(points, configs, strict=True):
        keeps(space, config)
        assert space.locate(config) == point
        assert space.snap(point) == point
        assert list(point) == [d.name for d in space.dimensions]


@settings(max_examples=150, deadline=None)
@given(proposals())
def test_any_proposal_within_the_ranges_finds_a_point_that_can_be_had(
    proposal: tuple[Space, dict[str, float]],
) -> None:
    space, raw = proposal
    point = space.snap(raw)
    assert space.snap(point) == point
    config = space.config(point)
    keeps(space, config)
    assert space.locate(config) == point
    for one in space.dimensions:
        assert one.low * (1 - 0.005) <= point[one.name] <= one.high * (1 + 0.005)


@settings(max_examples=60, deadline=None)
@given(proposals())
def test_where_nothing_is_in_the_way_a_proposal_is_moved_to_the_nearest_value(
    proposal: tuple[Space, dict[str, float]],
) -> None:
    space, raw = proposal
    if space.size != math.prod(len(d.values or ()) for d in space.dimensions):
        return
    point = space.snap(raw)
    for one in space.dimensions:
        assert one.values is not None
        below = max(v for v in one.values if v <= raw[one.name])
        above = min(v for v in one.values if v >= raw[one.name])
        assert point[one.name] in (below, above)
        if raw[one.name] - below < 0.49 * (above - below):
            assert point[one.name] == below


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[0]}-{cell[1]}")
def test_untried_points_come_once_each_and_end(cell: tuple[str, int]) -> None:
    space = spaces(cell[0])[cell[1]]
    if space.size is None:
        return
    tried: list[tuple[float, ...]] = []
    while (point := space.untried(tried, seed=len(tried))) is not None:
        tried.append(tuple(point[d.name] for d in space.dimensions))
        assert len(tried) <= space.size
    assert len(set(tried)) == len(tried) == space.size


def test_a_narrow_range_of_numbers_ends_too(tmp_path: Path) -> None:
    space = spaces_of(study(tmp_path, kind="lr", space="peak_lr = {low = 0.01, high = 0.0102}"))[0]
    tried: list[tuple[float, ...]] = []
    while (point := space.untried(tried, seed=len(tried))) is not None:
        tried.append(tuple(point.values()))
    assert sorted(tried) == [(0.01,), (0.0101,), (0.0102,)]


def test_two_ratios_of_one_rank_are_one_point() -> None:
    space = spaces("width by ratio")[0]
    assert space.shapes < 4 * 3 * 3 * 4
    assert len({space.config(point) for point in space.every()}) == space.size


def test_a_point_of_a_study_of_tokens_is_the_ratio_that_its_run_has() -> None:
    for name in ("tokens", "tokens with a rate"):
        for space in spaces(name):
            for seed in range(20):
                point = space.untried((), seed)
                assert point is not None
                config = space.config(point)
                ratio = config.tokens / model_counts(config.model).params_total
                assert point["tokens_per_param"] == significant(ratio)
                assert abs(point["tokens_per_param"] / ratio - 1) < 0.005


def test_runs_of_elsewhere_are_no_points() -> None:
    wide, ratio = spaces("width"), spaces("width by ratio")[0]
    for point in wide[0].every():
        config = wide[0].config(point)
        assert wide[1].locate(config) is None and ratio.locate(config) is None
        for change in ({"seed": 2}, {"tokens": 2 * config.tokens}, {"precision": "bf16"}):
            assert wide[0].locate(config.model_copy(update=change)) is None
    rates = spaces("width with a rate")[0]
    point = rates.untried((), 1)
    assert point is not None
    finer = {**point, "peak_lr": 0.0012345}
    assert rates.locate(rates.shaper.config(finer)) is None


def test_the_best_size_at_an_end_of_those_that_there_are_is_called_so(tmp_path: Path) -> None:
    class Found:
        def __init__(self, space: Space, point: dict[str, float]) -> None:
            self.space, self.cell, self.asked, self.point = space, space.cell, self, point

    space = spaces("tokens")[0]
    ratios = sorted(space.every(), key=lambda point: point["tokens_per_param"])
    called = [edges(one, one) for one in (Found(space, point) for point in ratios)]  # type: ignore[arg-type]
    assert called[0] == ["tokens_per_param lowest"] and called[-1] == ["tokens_per_param highest"]
    assert not any(called[1:-1])
