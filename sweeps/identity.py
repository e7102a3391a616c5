"""Run ids: the content hash of a run's whole configuration and of the corpus it reads."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config import RunConfig
from trainer.corpora import DataConfig, fingerprint
from trainer.errors import TrainerError

UNKNOWN = "-"
"""Stands for the id of a run whose corpus cannot be had here."""


def identify(configs: Sequence[RunConfig]) -> tuple[list[str], list[str]]:
    """Run ids in the order of `configs`, and one line for each corpus whose fingerprint cannot be had.

    The fingerprint is computed once per distinct corpus; runs on a corpus that is not there get UNKNOWN.
    """
    prints: dict[DataConfig, str | None] = {}
    problems = []
    ids = []
    for config in configs:
        if config.data not in prints:
            try:
                prints[config.data] = fingerprint(config.data)
            except TrainerError as error:
                prints[config.data] = None
                problems.append(str(error))
        mark = prints[config.data]
        ids.append(UNKNOWN if mark is None else config.run_id(mark))
    return ids, list(dict.fromkeys(problems))
