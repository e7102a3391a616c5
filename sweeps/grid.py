"""From a sweep file to the RunConfigs of its grid: axes x zips, minus exclusions, with overrides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial as bind
from typing import Any, NamedTuple

from sweeps.errors import SweepError
from sweeps.rates import KEY, checked, rate_of
from sweeps.resolver import Resolver
from sweeps.rules import Rule, amounts_apart, check_key, dotted, flatten, normal_key
from sweeps.sweepfile import Sweep
from sweeps.text import number
from trainer.config import RunConfig
from trainer.presets import Partial, merge

Assignment = dict[str, Any]


class Point(NamedTuple):
    """One grid point before it becomes a RunConfig."""

    chosen: Assignment
    """Dotted key -> value, as axes and zips choose them."""
    partial: Partial
    """The partial RunConfig."""

    def label(self, source: str) -> str:
        """What error messages call the point: "lowrank.toml: preset=cpu-xs structure=lowrank-63"."""
        said = " ".join(f"{key}={_shown(value)}" for key, value in self.chosen.items())
        return f"{source}: {said}" if said else source


def expand(sweep: Sweep) -> list[RunConfig]:
    """The runs of a sweep, first axis slowest, zips after the axes; equal runs are merged into the first.

    Raises SweepError (the file) or ConfigError (a grid point), in one line.
    """
    resolver = Resolver()
    configs = [resolver.config(point.partial, bind(point.label, sweep.source)) for point in points(sweep)]
    return list(dict.fromkeys(configs))


def points(sweep: Sweep) -> list[Point]:
    """The grid points of a sweep that are not excluded, with its overrides applied, before they become runs.

    Raises SweepError, in one line, where the file makes no sense.
    """
    excludes = [
        Rule(f"exclude {n}", flatten(table), sweep.source) for n, table in enumerate(sweep.exclude, 1)
    ]
    overrides = [
        (Rule(f"override {n}", flatten(entry.when), sweep.source), _changes(entry.set, n, sweep.source))
        for n, entry in enumerate(sweep.override, 1)
    ]
    everything = _points(sweep)
    kept = [point for point in everything if not any([rule.matches(point.partial) for rule in excludes])]
    changed = []
    rates = (
        sweep.rates if sweep.rates is None else checked(sweep.rates, sweep.base, _keys(sweep), sweep.source)
    )
    for point in kept:
        partial, rated = point.partial, False
        for rule, changes in overrides:
            if rule.matches(point.partial):
                for key, value in changes.items():
                    partial = assign(partial, key, value)
                    rated = rated or key == KEY
        # Last, since an override may change the width that a rate goes by; its own rate has the last word.
        if rates is not None and not rated:
            rate = rate_of(rates, partial, point.label(sweep.source))
            partial = assign(partial, KEY, rate)
        changed.append(Point(point.chosen, partial))
    for rule in [*excludes, *(rule for rule, _ in overrides)]:
        rule.refuse_if_idle([point.partial for point in (everything if rule in excludes else kept)])
    if not changed:
        raise SweepError(f"{sweep.source}: every grid point is excluded; drop or narrow an [[exclude]]")
    return changed


def _points(sweep: Sweep) -> list[Point]:
    base, dimensions = _base(sweep), _dimensions(sweep)
    points = [Point({}, base)]
    for dimension in dimensions:
        points = [_with(point, assignment) for point in points for assignment in dimension]
    return points


def _keys(sweep: Sweep) -> list[str]:
    """The keys that axes, zips and a search choose."""
    tables = (sweep.axes, *sweep.zip)
    return [*(normal_key(key) for table in tables for key in flatten(table)), *sweep.searched]


def _with(point: Point, assignment: Assignment) -> Point:
    partial = point.partial
    for key, value in assignment.items():
        partial = assign(partial, key, value)
    return Point({**point.chosen, **assignment}, partial)


def _base(sweep: Sweep) -> Partial:
    """The base with its budget: `tokens` is a budget too, so that axes may replace one by another."""
    base = dict(sweep.base)
    for key in flatten(base):
        check_key(key, f"{sweep.source}: base")
    given = [name for name in ("tokens", "budget") if name in base]
    if given and sweep.budget is not None:
        raise SweepError(f"{sweep.source}: both base.{given[0]} and [budget] say how long to train; keep one")
    if sweep.budget is not None:
        for key in sweep.budget:
            check_key(f"budget.{key}", sweep.source)
        base["budget"] = dict(sweep.budget)
    if "tokens" in base:
        base["budget"] = {"tokens": base.pop("tokens")}
    return base


def _dimensions(sweep: Sweep) -> list[list[Assignment]]:
    """Each axis, then each zip, as the list of assignments it runs through."""
    dimensions: list[list[Assignment]] = []
    taken: dict[str, str] = {}
    for key, values in flatten(sweep.axes).items():
        _take(taken, key, "axes", sweep.source)
        dimensions.append(
            [{normal_key(key): value} for value in _values(values, f"axes.{key}", sweep.source)]
        )
    for n, table in enumerate(sweep.zip, 1):
        place = f"zip {n}"
        columns = {
            key: _values(values, f"{place}: {key}", sweep.source) for key, values in flatten(table).items()
        }
        for key in columns:
            _take(taken, key, place, sweep.source)
        lengths = {key: len(values) for key, values in columns.items()}
        if not lengths:
            raise SweepError(f"{sweep.source}: {place} is empty; give it keys with lists of equal length")
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise SweepError(f"{sweep.source}: {place}: its lists differ in length ({said}); make them equal")
        keys = [normal_key(key) for key in columns]
        dimensions.append([dict(zip(keys, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return dimensions


def _take(taken: dict[str, str], key: str, place: str, source: str) -> None:
    check_key(key, f"{source}: {place}")
    new = normal_key(key)
    for old, where in taken.items():
        clash = amounts_apart(old, new) or old == new or _inside(old, new) or _inside(new, old)
        if clash:
            raise SweepError(
                f"{source}: {place}.{key} and {where}.{dotted(old)} set the same thing; keep one"
            )
    taken[new] = place


def _inside(inner: str, outer: str) -> bool:
    return inner.startswith(outer + ".")


def _values(values: Any, place: str, source: str) -> list[Any]:
    if not isinstance(values, list):
        raise SweepError(f"{source}: {place} = {_shown(values)}: give a list of values, or put it in [base]")
    if not values:
        raise SweepError(f"{source}: {place} is an empty list; give it at least one value")
    return values


def _changes(table: Mapping[str, Any], n: int, source: str) -> Assignment:
    changes = flatten(table)
    for key in changes:
        check_key(key, f"{source}: override {n}: set")
    return {normal_key(key): value for key, value in changes.items()}


def assign(partial: Partial, key: str, value: Any) -> Partial:
    """A copy of `partial` with a dotted key set; one amount of a budget replaces another."""
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    budget = partial.get("budget")
    if key.startswith("budget.") and budget is not None:
        kept = {name: old for name, old in budget.items() if not amounts_apart(f"budget.{name}", key)}
        partial = {**partial, "budget": kept}
    return merge(partial, nested)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={_shown(inner)}" for key, inner in value.items()) + "}"
    return number(value)
