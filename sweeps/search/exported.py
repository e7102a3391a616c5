"""`--export-sweep`: the winners of a study as a sweep file, to be trained with more seeds, or at more sizes.

Written with tomli-w, the counterpart of the standard library's TOML reader by its author.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.identity import identify
from sweeps.rules import flatten
from sweeps.search.searched import Searched, Trial
from sweeps.search.studyfile import Study
from sweeps.sweepfile import parse_sweep
from trainer.config import RunConfig
from trainer.rundir import io_errors, write_atomic


def export_sweep(study: Study, searched: Sequence[Searched], path: Path) -> int:
    """Write the best run of each cell, of a pareto study all that are not dominated; how many there are.

    The file says everything of each run, so that it names the very runs that are in the ledger.
    Raises SweepError where no cell has one, or the file is there and says something else.
    """
    best = [(one, trial) for one in searched for trial in winners(one)]
    missing = [one.cell.label or study.name for one in searched if one.best is None]
    if not best:
        raise SweepError(f"--export-sweep: no trial of {study.name} is done; run the search first")
    text = _text(study, best, missing)
    with io_errors(path):
        if path.exists() and path.read_bytes() != text.encode():
            raise SweepError(
                f"{path}: is there already and says something else; choose another file, or move it aside"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return len(best)


def winners(searched: Searched) -> list[Trial]:
    """The trial of the lowest loss; of two objectives, those that no other is at least as good as in both."""
    if searched.objectives == 1:
        return [searched.best] if searched.best is not None else []
    done = [(t.loss, t.second, t) for t in searched.by_run.values() if t.loss is not None]
    both = [(loss, second, t) for loss, second, t in done if second is not None]
    return [
        t
        for loss, second, t in both
        if not any(a <= loss and b <= second and (a, b) != (loss, second) for a, b, _ in both)
    ]


def _text(study: Study, best: Sequence[tuple[Searched, Trial]], missing: Sequence[str]) -> str:
    configs = [_table(trial.config) for _, trial in best]
    shared, own = _shared(configs)
    names = ", ".join(dict.fromkeys(one.cell.label for one, _ in best if one.cell.label))
    content: dict[str, Any] = {
        "description": f"Best runs of the {study.kind} study {study.name}" + (f": {names}" if names else ""),
        "base": shared,
    }
    if own:
        # Of one length each: they advance together, a run a place.
        content["zip"] = [{key: [table[key] for table in own] for key in own[0]}]
    said = f"# No trial is done in: {', '.join(missing)}.\n" if missing else ""
    text = said + "# The best run of each cell; write seed = [1, 2, 3] under [axes] to replicate them.\n"
    text += tomli_w.dumps(content)
    sweep = parse_sweep(content, Path("export.toml"))
    wanted, _ = identify([trial.config for _, trial in best])
    got, _ = identify(expand(sweep))
    assert list(dict.fromkeys(wanted)) == got, "a sweep file that names other runs"
    return text


def _table(config: RunConfig) -> dict[str, Any]:
    """A configuration as a sweep file takes it: no values that are None or follow from others."""
    table = config.model_dump(mode="json", exclude_none=True)
    table["budget"] = {"tokens": table.pop("tokens")}
    table["structure"] = table["model"].pop("structure")
    table["guide"].pop("steps", None)
    return table


def _shared(tables: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all have in common, as a table, and what tells them apart, by dotted key."""
    flat = [flatten(table) for table in tables]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    same = [key for key in keys if all(key in one and one[key] == flat[0][key] for one in flat)]
    shared: dict[str, Any] = {}
    for key in same:
        *outer, last = key.split(".")
        inner = shared
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = flat[0][key]
    own = [key for key in keys if key not in same]
    for key in own:
        if not all(key in one for one in flat):
            raise SweepError(
                f"--export-sweep: only some of the winners have {key}, which one sweep file cannot say; "
                f"split the study into one for each"
            )
    return shared, [{key: one[key] for key in own} for one in flat] if own else []
