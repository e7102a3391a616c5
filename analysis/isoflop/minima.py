"""Loss over one setting (a width, a learning rate): what was tried, and where a parabola has its minimum.

At one value of the setting there may be several shapes of network: runs of one shape are replicates and are
averaged, shapes are not. The lowest shape stands for the value (lower envelope); as a minimum of noisy means
it is optimistic by about their noise, the more so the more shapes were tried.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from analysis.isoflop.optima import RISE
from analysis.isoflop.parabola import LEAST_SIZES, Quadratic, fit_axis

LEVEL = 0.95
SHAPE_COLUMNS = ("params", "n_layers", "d_ff", "n_heads", "n_kv_heads", "attn_dim", "rank", "n_blocks")
"""Columns by which runs of one label and one width are told apart as networks of different shapes."""


@dataclass(frozen=True)
class Point:
    """One run: the value of the setting, everything else that tells shapes apart, and what came of it.

    loss: nats per token; None where there is none. state: `done`, `diverged` or `pruned`.
    """

    value: float
    shape: str
    loss: float | None
    flops: float = math.nan
    state: str = "done"
    run_id: str = ""


@dataclass(frozen=True)
class Shape:
    """The runs of one shape at one value: their losses (nats per token), FLOPs and ids; how many diverged."""

    words: str
    losses: tuple[float, ...]
    flops: tuple[float, ...] = ()
    diverged: int = 0
    runs: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean loss over seeds."""
        return float(np.mean(self.losses))


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Losses over the values of one setting, all else that is compared being equal, and their minimum.

    shapes: at each value with a finished run the shape of the lowest mean loss, of those at which no run
    diverged where there are such. others: the further shapes at a value, the lowest first; also those of
    values that are not in `shapes`, since nothing comparable was tried there, and empty where these have no
    loss either. diverged, pruned:
    runs by value that have no loss. reason: why there is no optimum; empty where there is one. short: that in
    one or two words. optimum, low, high: vertex of the parabola and Fieller's 95 % interval. log_se:
    standard error of the vertex's logarithm. fit: the parabola, where there are points enough.
    """

    shapes: Mapping[float, Shape]
    others: Mapping[float, tuple[Shape, ...]] = field(default_factory=dict)
    diverged: Mapping[float, int] = field(default_factory=dict)
    pruned: Mapping[float, int] = field(default_factory=dict)
    reason: str = ""
    short: str = ""
    optimum: float = math.nan
    low: float = math.nan
    high: float = math.nan
    log_se: float = math.nan
    fit: Quadratic | None = None

    @property
    def losses(self) -> dict[float, tuple[float, ...]]:
        """Finished runs of the lowest shape at each value, nats per token."""
        return {value: shape.losses for value, shape in self.shapes.items()}

    @property
    def values(self) -> list[float]:
        """Every value that has a loss or a diverged run, ascending."""
        return sorted({*self.shapes, *self.diverged})

    @property
    def apart(self) -> list[float]:
        """Values at which only shapes were tried that are not comparable, ascending."""
        return sorted(value for value in self.others if value not in self.shapes)

    @property
    def whole(self) -> list[float]:
        """Values whose shape lost no run: where some diverged, the others' mean is too good."""
        return sorted(value for value, shape in self.shapes.items() if not shape.diverged)

    @property
    def best(self) -> float:
        """The value of the lowest mean loss; of those at which runs diverged only where there is no other."""
        return min(self.whole or sorted(self.shapes), key=self.mean)

    @property
    def selected(self) -> bool:
        """Whether at any value the lowest of several shapes was taken."""
        return any(self.others.values())

    def mean(self, value: float) -> float:
        """Mean loss at a value, of its lowest shape."""
        return self.shapes[value].mean

    def se(self, value: float) -> float:
        """Standard error of that mean over seeds; 0 for one run, whose error is not known."""
        losses = self.shapes[value].losses
        return float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0


Found = TypeVar("Found", bound=Sampled)


def sampled(points: Iterable[Point], through: str | None = None) -> dict[str, Any]:
    """The fields `shapes`, `others`, `diverged` and `pruned` of a `Sampled` from its runs.

    Args:
        points: the runs.
        through: a shape; values at which it was not tried have other shapes only. What was tried there says
            nothing of how low the loss can be.
    """
    groups: dict[float, dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    lost: dict[str, dict[float, int]] = {"diverged": defaultdict(int), "pruned": defaultdict(int)}
    for point in points:
        if point.state in lost:
            lost[point.state][point.value] += 1
        if point.state != "pruned":
            groups[point.value][point.shape].append(point)
    shapes, others = {}, {}
    for value, by_shape in sorted(groups.items()):
        found = [_shape(words, mine) for words, mine in sorted(by_shape.items())]
        ranked = sorted((s for s in found if s.losses), key=lambda s: (s.diverged > 0, s.mean))
        if through is not None and through not in by_shape:
            others[value] = tuple(ranked)
            continue
        if ranked:
            shapes[value] = ranked[0]
        if ranked[1:]:
            others[value] = tuple(ranked[1:])
    gone = {state: dict(sorted(counts.items())) for state, counts in lost.items()}
    return {"shapes": shapes, "others": others, **gone}


def best_shape(points: Iterable[Point]) -> str | None:
    """The shape of the lowest mean loss at any value, those with a diverged run last; None without losses."""
    groups: dict[tuple[float, str], list[Point]] = defaultdict(list)
    for point in points:
        if point.state != "pruned":
            groups[point.value, point.shape].append(point)
    found = [_shape(words, mine) for (_, words), mine in sorted(groups.items())]
    known = [shape for shape in found if shape.losses]
    return min(known, key=lambda s: (s.diverged > 0, s.mean)).words if known else None


def _shape(words: str, points: Sequence[Point]) -> Shape:
    done = [(point, point.loss) for point in points if point.loss is not None]
    return Shape(
        words,
        tuple(loss for _, loss in done),
        tuple(point.flops for point, _ in done),
        sum(point.state == "diverged" for point in points),
        tuple(point.run_id for point, _ in done),
    )


def shape_words(row: Mapping[Any, Any]) -> str:
    """What tells a run's shape apart from others of its label in a runs table: `n_layers 4, d_ff 128`."""
    cells = {name: str(row.get(name) or "").strip() for name in SHAPE_COLUMNS}
    # A table holds numbers where the rows of lost runs hold their text.
    return ", ".join(
        f"{name} {text.removesuffix('.0')}" for name, text in cells.items() if text not in ("", "nan")
    )


def fitted(
    found: Sequence[Found], noun: str, log_loss: bool, budgets: Sequence[float] | None = None
) -> list[Found]:
    """The same with their minima, the variance about all their parabolas pooled.

    A parabola goes through the values about the lowest loss without a gap: those within 5 % of it, its
    neighbours and the five lowest in any case, never fewer than four. A value at which runs diverged, or
    nothing comparable was tried, is such a gap. None is fitted where the lowest lies at an end of what was
    tried, or beside a gap. The scatter about the parabolas is their misfit too, where values are far apart.

    Args:
        found: curves whose noise is alike.
        noun: what a value is called, `width` or `rate`.
        log_loss: whether parabolas are of log loss, else of loss in nats.
        budgets: FLOPs of each; then points are moved to them along the line of the vertices, as in
            `analysis.isoflop.parabola.fit_axis`, and the FLOPs of runs are needed. None for no move.
    """
    windows = [_window(one, noun) for one in found]
    usable = {i: window for i, window in enumerate(windows) if isinstance(window, list)}
    x: list[float] = []
    y: list[float] = []
    c: list[float] = []
    members = []
    for i, window in usable.items():
        start = len(x)
        for value in window:
            shape = found[i].shapes[value]
            x += [math.log(value)] * len(shape.losses)
            y += [math.log(loss) if log_loss else loss for loss in shape.losses]
            c += [0.0] * len(shape.losses) if budgets is None else np.log(shape.flops).tolist()
        members.append(np.arange(start, len(x)))
    centres = np.array([0.0 if budgets is None else math.log(budgets[i]) for i in usable])
    results: dict[int, Found] = {}
    if usable:
        across = np.array(x)
        # The window is the choice of points already.
        axis = fit_axis(across, across, np.array(c), np.array(y), members, centres, LEVEL, math.inf)
        for j, i in enumerate(usable):
            results[i] = _with(found[i], noun, axis.fits[j], axis.verdicts[j], axis.sigma, axis.dof)
    return [results[i] if i in results else _without(one, windows[i]) for i, one in enumerate(found)]


def _without(one: Found, window: Sequence[float] | tuple[str, str]) -> Found:
    short, reason = window
    return replace(one, short=str(short), reason=str(reason))


def _with(one: Found, noun: str, fit: Quadratic | None, verdict: str, sigma: float, dof: int) -> Found:
    if fit is None or verdict != "usable":
        short, reason = {
            "inverted": ("no minimum", "no minimum"),
            "flat": ("flat", "curvature within the scatter"),
            "edge": ("outside", "vertex outside"),
        }.get(verdict, (f"few {noun}s", f"too few {noun}s"))
        return replace(one, short=short, reason=reason, fit=fit)
    low, high = (math.exp(min(max(end, -700.0), 700.0)) for end in fit.interval(sigma, dof, LEVEL))
    error = fit.vertex_se(sigma)
    return replace(one, optimum=math.exp(fit.vertex), low=low, high=high, log_se=error, fit=fit)


def _window(one: Sampled, noun: str) -> list[float] | tuple[str, str]:
    """The values that the parabola goes through, or in short and at length why there is none."""
    if not one.whole:
        return "diverged", f"runs diverged at every {noun}"
    best, apart = one.best, set(one.apart)
    tried = [value for value in one.values if value not in apart]
    if best in (tried[0], tried[-1]) and (len(tried) > 1 or not apart):
        side = "below" if best == tried[0] else "above"
        beyond = [v for v in one.pruned if (v < best if side == "below" else v > best)]
        gap = [v for v in one.apart if (v < best if side == "below" else v > best)]
        said = f"; those {side} were pruned" if set(beyond) - apart else ""
        return "edge", f"edge: at or {side} {best:g}{said}{_only_others(one, gap)}"
    # Nothing is known of the loss at the values of other shapes: no parabola steps over them.
    values = sorted({*tried, *apart})
    at = values.index(best)
    first = last = at
    good = set(one.whole)
    limit = one.mean(best) * (1 + RISE)
    while True:
        ends = [i for i in (first - 1, last + 1) if 0 <= i < len(values) and values[i] in good]
        free = [(one.mean(values[i]), i) for i in ends]
        near = [
            (mean, i) for mean, i in free if mean <= limit or last - first < LEAST_SIZES or abs(i - at) == 1
        ]
        if not near:
            break
        _, i = min(near)
        first, last = min(first, i), max(last, i)
    beside = [values[i] for i in (first - 1, last + 1) if 0 <= i < len(values)]
    gap = [value for value in beside if value in apart]
    for step, side in ((-1, "below"), (1, "above")):
        if 0 <= at + step < len(values) and values[at + step] not in good | apart:
            return "edge", f"edge: runs diverge {side} {best:g}"
    if at in (first, last) and len(tried) > 1:
        return "gap", f"lowest at {best:g}{_only_others(one, gap)}"
    if last - first + 1 < LEAST_SIZES:
        return f"few {noun}s", f"lowest at {best:g}; too few {noun}s about it{_only_others(one, gap)}"
    return values[first : last + 1]


def _only_others(one: Sampled, gap: Sequence[float]) -> str:
    """What is to be said of values at which no comparable shape has a loss; empty for none."""
    if not gap:
        return ""
    known = "have a loss" if any(value in one.pruned for value in gap) else "were tried"
    return f"; at {', '.join(f'{value:g}' for value in gap)} only other shapes {known}"
