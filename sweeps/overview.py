"""A sweep together with what the ledger knows of it: what plan, status and run all start from."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.grid import expand
from sweeps.identity import UNKNOWN, identify
from sweeps.layout import Layout
from sweeps.ledger import Ledger, RunState
from sweeps.parity import meant_by
from sweeps.plan import Plan, make_plan
from sweeps.price import Prices
from sweeps.sweepfile import Sweep
from sweeps.varied import grid_keys
from trainer.config import RunConfig

OTHER_RESULTS = 200
"""Results of other sweeps that are read to learn this machine's speed."""


@dataclass(frozen=True)
class Overview:
    """A sweep and its ledger at one moment."""

    sweep: Sweep
    """The sweep file."""
    configs: list[RunConfig]
    """Its runs, in grid order."""
    ids: list[str]
    """Their ids."""
    problems: list[str]
    """Why ids are missing."""
    ledger: Ledger
    """The ledger."""
    states: dict[str, RunState]
    """State of each run that has an id."""

    @property
    def identified(self) -> bool:
        """Whether every run has its id."""
        return not self.problems

    @property
    def corrupt(self) -> list[str]:
        """One line for each corrupt run."""
        return [state.message for state in self.states.values() if state.state == "corrupt" and state.message]

    def again(self) -> Overview:
        """The same runs at this moment."""
        return replace(self, states=_states(self.ledger, self.ids))

    def plan(self, layout: Layout) -> Plan:
        """What is to be done on a layout."""
        results = [state.result for state in self.states.values() if state.result is not None]
        results += self.ledger.other_results(self.states, OTHER_RESULTS)
        warnings = [f"{problem} (its runs are priced but cannot be run)" for problem in self.problems]
        prices = Prices(results, layout.setting)
        return make_plan(
            self.configs, self.ids, self.states, prices, layout.slots, warnings=warnings,
            meant=meant_by(self.sweep), chosen=grid_keys(self.sweep),
        )  # fmt: skip


def look(sweep: Sweep, results: Path) -> Overview:
    """Expand a sweep and read the states of its runs."""
    # Thousands of small objects live until the end; looking for garbage among them costs a fifth of the time.
    gc.freeze()
    gc.disable()
    try:
        return _look(sweep, configs_of(sweep, results), results)
    finally:
        gc.enable()


def configs_of(sweep: Sweep, results: Path) -> list[RunConfig]:
    """The runs of a sweep: its grid, or, of a study, those that it has asked for in this results folder."""
    if type(sweep) is Sweep:
        return expand(sweep)
    from sweeps.search.triallog import folder_of, read_log

    asked = (line for line in read_log(folder_of(results, sweep.name)) if not line.warm)
    return list(dict.fromkeys(line.run_config for line in asked))


def _look(sweep: Sweep, configs: list[RunConfig], results: Path) -> Overview:
    ids, problems = identify(configs)
    ledger = Ledger(results)
    return Overview(sweep, configs, ids, problems, ledger, _states(ledger, ids))


def _states(ledger: Ledger, ids: list[str]) -> dict[str, RunState]:
    return ledger.scan(run_id for run_id in ids if run_id != UNKNOWN)
