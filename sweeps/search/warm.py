"""Runs of the ledger that no trial asked for: a study's own whose log was lost, and those of others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from pydantic import ValidationError

from sweeps.ledger import Ledger
from sweeps.search.asktell import Outcome
from sweeps.search.searched import Searched
from sweeps.search.space import Space
from sweeps.search.triallog import Asked, TrialLog
from trainer.config import RunConfig
from trainer.corpora import fingerprint
from trainer.errors import TrainerError
from trainer.rundir import CONFIG, read_json


def recover(spaces: Sequence[Space], log: TrialLog, ledger: Ledger, own: Iterable[str]) -> int:
    """Log again the trials of a study that its record has and its log lost, whatever became of them.

    Also those of a study whose file was changed since, where they are points of it as it is now.

    Args:
        spaces: the cells.
        log: the study's.
        ledger: where the runs are.
        own: run ids of the record.

    Returns: how many there were.
    """
    names = {space.cell.search(fingerprint(space.largest.data)) for space in spaces}
    numbers = Counter(line.search for line in log.lines)
    logged = {line.run for line in log.lines if line.search in names}
    found = 0
    for run_id, config in _configs(ledger, [one for one in own if one not in logged]):
        for space in spaces:
            if config.run_id(fingerprint(space.largest.data)) != run_id:
                continue
            if (point := space.locate(config)) is not None:
                name = space.cell.search(fingerprint(space.largest.data))
                log.add(
                    Asked(
                        name, numbers[name], run_id, point, config.canonical_json(), repeat=False, warm=False,
                        known=False, time=round(time.time(), 3),
                    )
                )  # fmt: skip
                numbers[name] += 1
                found += 1
    return found


def learn_from_ledger(searched: Sequence[Searched], ledger: Ledger) -> int:
    """Add finished runs of other sweeps and studies that belong to a cell; how many there were."""
    known = {run_id for one in searched for run_id in one.by_run}
    count = 0
    one_objective = [one for one in searched if one.objectives == 1]
    states = ledger.scan(sorted(set(ledger.ids()) - known) if one_objective else ())
    done = {run_id: state for run_id, state in states.items() if state.state == "done"}
    for run_id, config in _configs(ledger, done):
        state = done[run_id]
        assert state.result is not None
        for one in one_objective:
            if one.run_id(config) == run_id and (point := one.space.locate(config)) is not None:
                outcome = Outcome("done", (float(state.result["val_loss"]),), {"run_id": run_id})
                one.learn(point, config, outcome, state)
                count += 1
    return count


def _configs(ledger: Ledger, wanted: Collection[str]) -> Iterator[tuple[str, RunConfig]]:
    for run_id in wanted:
        try:
            content = read_json(ledger.run_dir(run_id) / CONFIG) or {}
            config = RunConfig.model_validate(
                {key: content[key] for key in RunConfig.model_fields if key in content}
            )
        except (OSError, TrainerError, ValidationError):
            # Its own sweep reports it; here it is only one lesson less.
            continue
        yield run_id, config
