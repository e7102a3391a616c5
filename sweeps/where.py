"""`--where KEY=VALUE[,VALUE...]`: the runs of grids that a command is about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeps.errors import SweepError
from sweeps.rules import flatten
from sweeps.text import number
from trainer.config import RunConfig
from trainer.messages import nearest
from trainer.presets import run_labels

Facts = Mapping[str, Any]
"""Dotted key of a run's configuration -> value, and its labels `size` and `structure`."""


def chosen(conditions: Sequence[str], grids: Sequence[Sequence[RunConfig]]) -> list[list[int]]:
    """Places, in each grid, of the runs for which all conditions hold; each may be without one, not all.

    Args:
        conditions: as `seed=1,2` or `structure=dense`; none choose every run.
        grids: the runs of one sweep after another.

    Raises:
        SweepError: a key or a value that no run of any grid has, or conditions that no run fulfils at once.
    """
    if not conditions:
        return [list(range(len(configs))) for configs in grids]
    facts = [[facts_of(config) for config in configs] for configs in grids]
    everything = [run for grid in facts for run in grid]
    tests = [_Condition(written, everything) for written in conditions]
    places = [[n for n, run in enumerate(grid) if all(test.holds(run) for test in tests)] for grid in facts]
    if not any(places):
        raise SweepError(f"--where: no run has all of these at once: {' '.join(conditions)}")
    return places


def facts_of(config: RunConfig) -> dict[str, Any]:
    """What conditions may ask of a run."""
    return {**flatten(config.model_dump(mode="json"), whole=False), **run_labels(config)}


class _Condition:
    """One KEY=VALUE[,VALUE...], read against the runs that there are."""

    def __init__(self, written: str, runs: Sequence[Facts]) -> None:
        key, equals, values = written.partition("=")
        self.key = key.strip()
        if not (self.key and equals and values.strip()):
            raise SweepError(f"--where {written}: is not KEY=VALUE[,VALUE...], as seed=1,2")
        keys = list(dict.fromkeys(name for run in runs for name in run))
        if self.key not in keys:
            raise SweepError(f"--where {written}: unknown key '{self.key}'{_nearest_key(self.key, keys)}")
        known = {_text(run[self.key]): run[self.key] for run in runs if self.key in run}
        self.wanted = set()
        for value in _split(values, known.values()):
            if not any(_is(there, value) for there in known.values()):
                raise SweepError(
                    f"--where {written}: no run has {self.key} = {value}{nearest(value, list(known))}"
                )
            self.wanted |= {text for text, there in known.items() if _is(there, value)}

    def holds(self, run: Facts) -> bool:
        return self.key in run and _text(run[self.key]) in self.wanted


def _nearest_key(key: str, keys: list[str]) -> str:
    hint = nearest(key, keys)
    # All of them would be a hundred.
    return hint if "did you" in hint else nearest(key, list(dict.fromkeys(k.split(".")[0] for k in keys)))


def _split(values: str, known: Iterable[Any]) -> list[str]:
    """The values between the commas; labels may hold commas themselves (`recurrent, lowrank-63`)."""
    parts, there, found = values.split(","), list(known), []
    while parts:
        longest = next(
            (n for n in range(len(parts), 1, -1) if any(_is(v, ",".join(parts[:n])) for v in there)), 1
        )
        found.append(",".join(parts[:longest]).strip())
        del parts[:longest]
    return found


def _is(value: Any, written: str) -> bool:
    """Whether a value is what somebody wrote, in any spelling of a number."""
    written = written.strip()
    if written == _text(value):
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(written) == value
        except ValueError:
            return False
    return False


def _text(value: Any) -> str:
    if isinstance(value, float):
        # What number() rounds away tells runs apart as well.
        return number(value) if float(number(value)) == value else repr(value)
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
