"""Warm start: runs of the ledger that belong to a cell although no trial of it asked for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from sweeps.ledger import Ledger
from sweeps.search.asktell import Outcome
from sweeps.search.searched import Searched
from trainer.config import RunConfig
from trainer.errors import TrainerError
from trainer.rundir import CONFIG, read_json


def learn_from_ledger(
    searched: Sequence[Searched], ledger: Ledger, own: frozenset[str], others: bool
) -> tuple[int, int]:
    """Add finished runs that belong to a cell and are no trial of it.

    Args:
        searched: the cells.
        ledger: where the runs are.
        own: ids of runs that the study's record has: trials whose log was lost, which count as such.
        others: whether runs of other sweeps and studies are taken as well.

    Returns: how many were taken of the study's own, and of others.
    """
    known = {run_id for one in searched for run_id in one.by_run}
    counts = [0, 0]
    for run_id, config, result in _finished(ledger, known, own, others):
        for one in searched:
            if one.run_id(config) != run_id or (point := one.space.locate(config)) is None:
                continue
            outcome = Outcome("done", (float(result["val_loss"]),), {"run_id": run_id})
            if one.objectives == 1:
                one.learn(point, config, outcome, ledger.state(run_id), run_id in own)
                counts[run_id not in own] += 1
    return counts[0], counts[1]


def _finished(
    ledger: Ledger, known: set[str], own: frozenset[str], others: bool
) -> Iterator[tuple[str, RunConfig, dict[str, Any]]]:
    wanted = sorted((set(ledger.ids()) if others else own) - known)
    for run_id, state in ledger.scan(wanted).items():
        if state.state != "done" or state.result is None:
            continue
        try:
            content = read_json(ledger.run_dir(run_id) / CONFIG) or {}
            config = RunConfig.model_validate(
                {key: content[key] for key in RunConfig.model_fields if key in content}
            )
        except (OSError, TrainerError, ValidationError):
            # Its own sweep reports it; here it is only one lesson less.
            continue
        yield run_id, config, state.result
