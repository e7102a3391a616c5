"""The points of a cell that keep to what is held fixed, and the nearest of them to any proposal.

Constraints (whole heads, ranks, blocks that divide, the budget within 1 %) are met by construction: every
combination of the grid's values is looked at once, beforehand, and a sampler's proposal is moved to the
nearest that can be had.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from sweeps.errors import SweepError
from sweeps.search.cells import Cell
from sweeps.search.dimension import Dimension
from sweeps.search.shapes import TOLERANCE, Point, Shaper, realised, said
from sweeps.search.studyfile import significant
from sweeps.text import flops, plural
from trainer.config import RunConfig
from trainer.errors import TrainerError
from trainer.flops import flops_per_step, model_counts, train_flops
from trainer.presets import Budget

MOST_SHAPES = 20_000
TOKENS = "tokens_per_param"
DRAWS = 1000
"""So many draws from a range that were all tried before, and it counts as exhausted."""
INSIDE = 0.618
"""A share of a range that is a whole number at neither end of any short one."""


class Space:
    """What can be proposed in one cell.

    Raises SweepError where nothing can, with the budget or value that stands in the way.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.shaper = Shaper(cell)
        self.by_size = cell.study.kind == "tokens"
        self.dimensions = cell.dimensions
        self.numbers = [d for d in cell.dimensions if d.values is None and not self._derived(d)]
        """Dimensions that are no grid."""
        self._configs: dict[tuple[float, ...], RunConfig] = {}
        self._keys: dict[RunConfig, tuple[float, ...]] = {}
        self._hidden: dict[tuple[float, ...], Point] = {}
        self._fill()
        self._points = list(self._configs)
        self._ranks = {key: number for number, key in enumerate(self._points)}
        self._check_numbers()
        self._places = np.array(
            [[d.place(v) for d, v in zip(self._grid, p, strict=True)] for p in self._points]
        )

    @property
    def size(self) -> int | None:
        """How many points there are; None where a dimension is a range of numbers."""
        return None if self.numbers else len(self._points)

    @property
    def shapes(self) -> int:
        """How many combinations of the grid's values can be had."""
        return len(self._points)

    @property
    def largest(self) -> RunConfig:
        """The run with the most training tokens."""
        return max(self._configs.values(), key=lambda config: config.tokens)

    def ends(self, one: Dimension) -> tuple[float, float]:
        """Smallest and largest value of a dimension that any point has."""
        if one not in self._grid:
            return one.low, one.high
        values = [key[self._grid.index(one)] for key in self._points]
        return min(values), max(values)

    def sample(self, most: int) -> list[RunConfig]:
        """Runs from all over the grid, at most so many."""
        configs = list(self._configs.values())
        return configs[:: max(1, -(-len(configs) // most))]

    def snap(self, point: Point, taken: Collection[tuple[float, ...]] = ()) -> dict[str, float]:
        """The nearest point that can be had, nearness counted in ranks of the grid's values.

        Args:
            point: a value of each dimension.
            taken: points, as values in order of the dimensions, to stay away from; those of spaces without a
                `size` are so many that they are not.
        """
        snapped = dict(point)
        if self._grid:
            at = np.array([d.place(point[d.name]) for d in self._grid])
            far = ((self._places - at) ** 2).sum(axis=1)
            if not self.numbers and len(taken) < len(self._points):
                far[[self._ranks[one] for one in taken if one in self._ranks]] = np.inf
            best = int(np.argmin(far))
            snapped |= self._named(self._points[best])
        for one in self.numbers:
            snapped[one.name] = one.nearest(point[one.name])
        return {d.name: snapped[d.name] for d in self.dimensions}

    def config(self, point: Point) -> RunConfig:
        """The run of a point that `snap`, `untried` or `locate` gave."""
        key = tuple(point[d.name] for d in self._grid)
        if not self.numbers:
            return self._configs[key]
        grid = self._hidden.get(key, self._named(key))
        return self.shaper.config({**grid, **{one.name: point[one.name] for one in self.numbers}})

    def locate(self, config: RunConfig) -> dict[str, float] | None:
        """The point that a run stands for; None where it is no run of this cell."""
        if not self.numbers:
            key = self._keys.get(config)
            return None if key is None else self._named(key)
        near: dict[str, float] = {}
        for one in self.dimensions:
            value = realised(config, one.name)
            if value is None:
                return None
            near[one.name] = value
        point = self.snap(near)
        try:
            return point if self.config(point) == config else None
        except (SweepError, TrainerError):
            return None

    def along(self, point: Point, name: str) -> list[dict[str, float]]:
        """The points that differ from one in a single dimension of the grid, where they can be had."""
        one = next((d for d in self._grid if d.name == name and d.values is not None), None)
        if one is None:
            return []
        moved = [{**point, name: value} for value in one.values or () if value != point[name]]
        return [p for p in moved if tuple(p[d.name] for d in self._grid) in self._ranks]

    def untried(self, tried: Collection[tuple[float, ...]], seed: int) -> dict[str, float] | None:
        """A point that is not among those tried, drawn evenly; None where all were.

        Args:
            tried: values of points, in order of the dimensions.
            seed: of the draw.
        """
        draw = random.Random(seed)
        if self.numbers:
            drawn = (self._drawn(draw) for _ in range(DRAWS))
            return next((point for point in drawn if tuple(point.values()) not in tried), None)
        # Without ranges the grid's dimensions are all of them, in their order.
        left = [key for key in self._points if key not in tried]
        return self._named(draw.choice(left)) if left else None

    def _drawn(self, draw: random.Random) -> dict[str, float]:
        point = self._named(draw.choice(self._points))
        for one in self.numbers:
            share = draw.random()
            spread = one.high / one.low if one.log else one.high - one.low
            value = one.low * spread**share if one.log else one.low + share * spread
            point[one.name] = one.nearest(value)
        return {d.name: point[d.name] for d in self.dimensions}

    def every(self) -> Iterator[dict[str, float]]:
        """All points, in order of the dimensions; only of spaces that have a `size`."""
        assert not self.numbers
        return (self._named(key) for key in self._points)

    @property
    def _grid(self) -> list[Dimension]:
        return [d for d in self.dimensions if d.values is not None or self._derived(d)]

    def _named(self, key: tuple[float, ...]) -> dict[str, float]:
        return dict(zip([d.name for d in self._grid], key, strict=True))

    def _derived(self, one: Dimension) -> bool:
        """Whether its values follow from the sizes that there are."""
        return self.by_size and one.name == TOKENS

    def _fill(self) -> None:
        reasons: Counter[str] = Counter()
        free = {one.name: one.high for one in self.numbers}
        for grid, hidden in self._combinations():
            try:
                config = self.shaper.config({**grid, **hidden, **free})
            except (SweepError, TrainerError) as error:
                # All that differs from point to point is which one it is.
                reasons[
                    str(error).replace(f"{self.shaper.place} {said({**grid, **hidden, **free})}", "")
                ] += 1
                continue
            if (reason := self._refused(config)) is not None:
                reasons[reason] += 1
                continue
            if self.by_size:
                grid = {**grid, TOKENS: significant(config.tokens / model_counts(config.model).params_total)}
            key = tuple(grid[d.name] for d in self._grid)
            # Two ratios may be rounded to the same rank: one run is one point.
            if key not in self._configs and config not in self._keys:
                self._configs[key], self._keys[config] = config, key
                self._hidden[key] = {k: v for k, v in {**grid, **hidden}.items() if k != TOKENS}
        if not self._configs:
            raise SweepError(self._empty(reasons))

    def _check_numbers(self) -> None:
        """Refuse a range that has values which no run can have; its high end was tried with every shape."""
        for share in (0.0, INSIDE) if self.numbers else ():
            self.config(
                {
                    **self._named(self._points[0]),
                    **{d.name: d.nearest(d.low + share * (d.high - d.low)) for d in self.numbers},
                }
            )

    def _combinations(self) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        """Values of the grid's dimensions, and what they entail that is not searched."""
        grids = [d for d in self._grid if not self._derived(d)]
        widths = self._widths() if self.by_size else [{}]
        many = math.prod(len(d.values or ()) for d in grids) * len(widths)
        if many > MOST_SHAPES:
            raise SweepError(
                f"{self.shaper.place}: the space has {many:,} combinations, more than {MOST_SHAPES:,}; take "
                f"larger steps or fewer dimensions"
            )
        for values in itertools.product(*[d.values or () for d in grids]):
            for hidden in widths:
                yield dict(zip([d.name for d in grids], values, strict=True)), dict(hidden)

    def _widths(self) -> list[dict[str, float]]:
        """Width and depth of each size of a study of tokens."""
        from sweeps.search.dimension import dimension

        study = self.cell.study
        given = study.shape.d_model
        assert given is not None
        found = dimension("d_model", given, f"{study.source}: shape")
        aspect = study.shape.aspect or self._aspect()
        return [{"d_model": w, "n_layers": max(1, round(w / aspect))} for w in found.values or ()]

    def _aspect(self) -> float:
        depth, width = self.shaper.known("model.n_layers"), self.shaper.base_width
        if depth is None or width is None:
            raise SweepError(
                f"{self.shaper.place}: depth follows from the width; set shape.aspect or base.preset"
            )
        return width / depth

    def _refused(self, config: RunConfig) -> str | None:
        """Why a run does not keep to what is fixed; None where it does."""
        params = model_counts(config.model).params_total
        if self.cell.params is not None and abs(params / self.cell.params - 1) > TOLERANCE:
            return f"no shape comes within {TOLERANCE:.0%} of {self.cell.params:,} parameters"
        ratio = config.tokens / params
        limits = self.cell.study.shape.tokens_per_param
        if limits is not None and not limits[0] <= ratio <= limits[1]:
            return f"no shape has {limits[0]:g} to {limits[1]:g} tokens per parameter"
        form, limits = config.model.d_ff / config.model.d_model, self.cell.study.shape.ff_ratio
        if limits is not None and not limits[0] <= form <= limits[1]:
            return f"no shape has a d_ff of {limits[0]:g} to {limits[1]:g} d_model"
        searched = next((d for d in self.dimensions if self._derived(d)), None)
        if searched is not None and not searched.low <= ratio <= searched.high:
            return f"no size has {searched.low:g} to {searched.high:g} tokens per parameter at this budget"
        budget = self.target(config)
        if budget is not None and abs(train_flops(config) / budget - 1) > TOLERANCE:
            return f"{flops(budget)} FLOPs are too few: whole steps"
        return None

    def target(self, config: RunConfig) -> float | None:
        """The training FLOPs that a run is to have; None where parameters are fixed."""
        if self.cell.budget is not None:
            return self.cell.budget
        if self.cell.params is not None:
            return None
        # Before tokens are rounded to whole batches; a search of batch sizes has to keep to them.
        wanted = self._tokens(config)
        each = flops_per_step(config.model, config.optim.batch_tokens) / config.optim.batch_tokens
        return None if config.guided_steps else wanted * each

    def _tokens(self, config: RunConfig) -> int:
        from trainer.presets import complete_budget, preset

        partial = self.cell.partial
        base = preset(str(partial["preset"])) if "preset" in partial else {}
        budget: Budget = complete_budget(partial.get("budget"), base.get("tokens"))
        return budget.tokens_for(config.model, config.optim.batch_tokens, config.guide)

    def _empty(self, reasons: Mapping[str, int]) -> str:
        """Why nothing can be had."""
        reason, many, place = (
            max(reasons, key=lambda one: reasons[one]),
            sum(reasons.values()),
            self.shaper.place,
        )
        if "whole steps" in reason or (self.cell.budget is not None and "less than one batch" in reason):
            least = self._least_budget()
            # Rounded up: who does what the line says is not to be told the same again.
            digit = 10.0 ** math.floor(math.log10(least) - 1)
            least = math.ceil(least / digit) * digit
            return (
                f"{place}: the budget is impossible: {flops(self.cell.budget or 0.0)} FLOPs are less "
                f"than 100 "
                f"steps of every shape, and rounding to whole steps misses it by more than "
                f"{TOLERANCE:.0%}; the "
                f"smallest shape needs {flops(least)}; raise it, or lower optim.batch_tokens"
            )
        text = reason.removeprefix(place).removeprefix(": ")
        return f"{place}: {text} (the space is empty: none of {plural(many, 'combination')} can be had)"

    def _least_budget(self) -> float:
        free = {one.name: one.high for one in self.numbers}
        # Any budget does that is enough: only the cost of a step is asked for.
        rich = Shaper(replace(self.cell, partial={**self.cell.partial, "budget": {"tokens": 10**15}}))
        steps = []
        for grid, hidden in self._combinations():
            try:
                config = rich.config({**grid, **hidden, **free})
            except (SweepError, TrainerError):
                continue
            steps.append(flops_per_step(config.model, config.optim.batch_tokens))
        return min(steps, default=0) / TOLERANCE
