"""Who the runs of a sweep are, for those who only watch: ids, names, steps, FLOPs, predicted seconds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeps.display import run_name
from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.identity import UNKNOWN, identify
from sweeps.layout import layout_or_guess
from sweeps.ledger import Ledger
from sweeps.overview import OTHER_RESULTS
from sweeps.price import Prices
from sweeps.session import read_record, recorded_sweeps
from sweeps.sweepfile import CONFIGS, Sweep, find_sweep, read_sweep
from sweeps.varied import grid_keys, said, varied
from trainer.config import RunConfig
from trainer.errors import TrainerError
from trainer.flops import spent_flops, train_flops
from trainer.messages import nearest
from trainer.presets import run_labels
from trainer.rundir import CONFIG, read_json


@dataclass(frozen=True)
class Card:
    """One run, as its configuration has it."""

    name: str
    """What people call it."""
    config: RunConfig
    """Its configuration."""
    steps: int
    """Optimizer steps."""
    flops: int
    """Training FLOPs of the whole run, `paper` convention."""

    def spent(self, step: int) -> int:
        """FLOPs of the first steps."""
        return spent_flops(self.config, min(max(0, step), self.steps)) if step else 0


def card_of(config: RunConfig) -> Card:
    """The card of a run."""
    labels = run_labels(config)
    name = run_name(labels["size"], labels["structure"], config.guide.label, config.seed)
    return Card(name, config, config.steps, train_flops(config))


def card_in(folder: Path) -> Card | None:
    """The card of a run by its folder; None where that does not tell."""
    try:
        content = read_json(folder / CONFIG) or {}
        known = {key: content[key] for key in RunConfig.model_fields if key in content}
        return card_of(RunConfig.model_validate(known))
    except (OSError, TrainerError, ValueError):
        # A ValidationError is a ValueError.
        return None


def _told_apart(cards: list[Card], chosen: Sequence[str]) -> list[Card]:
    """Where runs of a sweep have the same name, theirs with the settings in which they differ as well."""
    if len({card.name for card in cards}) == len(cards):
        return cards
    labels = [run_labels(card.config) for card in cards]
    names = [
        (label["size"], label["structure"], card.config.guide.label, str(card.config.seed))
        for label, card in zip(labels, cards, strict=True)
    ]
    settings = varied([card.config for card in cards], names, chosen)
    return [
        replace(card, name=run_name(size, structure, " ".join(filter(None, (guide, said(one)))), int(seed)))
        for card, (size, structure, guide, seed), one in zip(cards, names, settings, strict=True)
    ]


class Roster:
    """The runs of one sweep.

    Args:
        name: name of the sweep.
        argument: how commands take it.
        ids: run ids, in grid order.
        file: the sweep file, read once cards or prices are asked for.
        mark: time of the record that this comes from; None without one.
        study: whether its runs were proposed one after the other, so that only its record tells which.
    """

    def __init__(
        self, name: str, argument: str, ids: list[str], file: Path, mark: int | None, study: bool = False
    ) -> None:
        self.name, self.argument, self.ids, self.file, self.mark = name, argument, ids, file, mark
        self.study = study
        self.cards: dict[str, Card] = {}
        self.slots = 1
        self._sweep: Sweep | None = None
        self._expanded = False
        self._prices: Prices | None = None
        self._seconds: dict[str, float] = {}

    @property
    def command(self) -> tuple[str, str]:
        """What goes on with it, as words of the command line."""
        return "search" if self.study else "run", self.argument

    def expand(self) -> None:
        """Fill the cards from the sweep file, once; SweepError or TrainerError where that cannot be done."""
        if self._expanded or self.study:
            return
        self._expanded = True
        sweep = read_sweep(self.file)
        configs = expand(sweep)
        ids, problems = identify(configs)
        cards = [card_of(config) for config in configs]
        known = set(self.ids)
        if not known:
            if problems:
                raise SweepError(problems[0])
            self.ids = ids
        self.cards |= {
            run_id: card
            for run_id, card in zip(ids, _told_apart(cards, grid_keys(sweep)), strict=True)
            if run_id != UNKNOWN and (run_id in known or not known)
        }
        self._sweep = sweep

    def price(self, results: Mapping[str, Mapping[str, Any] | None], ledger: Ledger) -> None:
        """Learn this machine's speed from `results` (by run id) and from others of the ledger; once."""
        if self._prices is not None or self._sweep is None:
            return
        layout = layout_or_guess(self._sweep.execution)
        known = [dict(result) for result in results.values() if result is not None]
        known += ledger.other_results(results, OTHER_RESULTS)
        self._prices, self.slots = Prices(known, layout.setting), layout.slots

    def seconds(self, run_id: str) -> float | None:
        """Predicted seconds of a whole run on this machine; None where its configuration is not known."""
        card = self.cards.get(run_id)
        if card is None or self._prices is None:
            return None
        if run_id not in self._seconds:
            self._seconds[run_id] = self._prices.price(card.config).seconds
        return self._seconds[run_id]


def record_time(results: Path, name: str) -> int | None:
    """When a sweep was last recorded, in ns; None where it never was."""
    try:
        return os.stat(results / "sweeps" / f"{name}.json").st_mtime_ns
    except OSError:
        return None


def recorded_roster(results: Path, name: str) -> Roster | None:
    """A sweep as its record has it; None where that is gone or torn."""
    mark = record_time(results, name)
    try:
        record = read_record(results, name)
    except (SweepError, OSError):
        return None
    if record is None:
        return None
    file, study = Path(record["file"]), "study" in record
    known = file.parent in (CONFIGS, CONFIGS / "search")
    return Roster(name, name if known else str(file), record["run_ids"], file, mark, study)


def asked_roster(results: Path, written: str) -> Roster:
    """The sweep that a user means by name or file, run or not.

    Raises SweepError or TrainerError where there is none, or where neither file nor record tell its runs.
    """
    try:
        file = find_sweep(written)
    except SweepError as unknown:
        known = recorded_roster(results, written) if "/" not in written else None
        if known is None:
            hint = nearest(written, recorded_sweeps(results))
            raise (SweepError(f"unknown sweep '{written}'{hint}") if "did you" in hint else unknown) from None
        return known
    sweep = read_sweep(file)
    return recorded_roster(results, sweep.name) or Roster(sweep.name, sweep.argument, [], file, None)
