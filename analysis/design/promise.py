"""What planned runs were said to be able to tell, written down before they are run: NAME_planned.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from analysis.design.planned import grid_of
from analysis.design.precision import Assumed, Design, Grid
from analysis.errors import AnalysisError
from analysis.laws import IRREDUCIBLE, POWER
from analysis.output import write_if_changed
from analysis.runs.reading import read_table
from analysis.runs.table import cell

ENDING = "_planned.csv"
LAWS = {law.name: law for law in (POWER, IRREDUCIBLE)}
"""Laws of which a promise is kept: those that the verdict compares structures under."""
NOISE, ASSUMED, PLANNED = "noise", "assumed", "planned"
LEFT_OUT = ("config", "state", "val_loss", NOISE, ASSUMED, PLANNED)
MEND = "write it with 'python -m sweeps plan NAME --power --save'"


@dataclass(frozen=True)
class Promise:
    """Planned runs, and what was taken for true when they were planned.

    table: a row a run: run_id, size, structure (as the fits label it), seed, params, tokens, train_flops.
    assumed: by the name of the law.
    noise: standard deviation of log loss between seeds.
    date: of the plan, UTC.
    """

    table: pd.DataFrame
    grid: Grid
    assumed: Mapping[str, Assumed]
    noise: float
    date: str


def save(path: Path, table: pd.DataFrame, designs: Sequence[Design], force: bool = False) -> None:
    """Write planned runs with the noise and the laws assumed, and today's date.

    Args:
        path: the file.
        table: the planned runs, their curves told apart as `planned.curves` does.
        designs: what was predicted of them.
        force: replace a promise that stands.

    Raises:
        AnalysisError: there is one already, the runs have losses, or no law in FLOPs was asked for.
    """
    if path.exists() and not force:
        raise AnalysisError(f"{path}: a promise stands there already; --force replaces it")
    if not table["val_loss"].isna().all():
        raise AnalysisError(f"{path}: the runs have losses; a promise is of runs that have none yet")
    kept = [one.assumed for one in designs if one.assumed.law.name in LAWS]
    if not kept:
        raise AnalysisError(f"{path}: a promise is of laws in FLOPs ({', '.join(LAWS)}); leave --law out")
    columns = [str(c) for c in table.columns if c not in LEFT_OUT and not table[c].isna().all()]
    values = {one.law.name: dict(one.values) for one in kept}
    said = [repr(kept[0].noise), json.dumps(values), datetime.now(UTC).date().isoformat()]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, NOISE, ASSUMED, PLANNED])
    for row in table.to_dict("records"):
        writer.writerow([*(_text(row[name]) for name in columns), *said])
    write_if_changed(path, out.getvalue())


def _text(value: object) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else cell(value)


def read(path: Path) -> Promise:
    """Read a promise back.

    Raises:
        AnalysisError: a column is missing or holds what no promise does.
    """
    table = read_table(path, needed=("structure", "train_flops"))[0].table
    if table.empty:
        raise AnalysisError(f"{path}: holds no planned run; {MEND}")
    for name in (NOISE, ASSUMED, PLANNED):
        if name not in table:
            raise AnalysisError(f"{path}: no column '{name}'; {MEND}")
        if table[name].nunique() > 1:
            raise AnalysisError(f"{path}: several values of '{name}'; a promise is one; {MEND}")
    try:
        noise, values = float(table[NOISE].iloc[0]), json.loads(table[ASSUMED].iloc[0])
        known = {name: {str(k): float(v) for k, v in values[name].items()} for name in values if name in LAWS}
        if not (math.isfinite(noise) and noise > 0 and known):
            raise ValueError("no noise above 0, or no law in FLOPs")
        assumed = {name: Assumed(LAWS[name], found, noise) for name, found in known.items()}
        for one in assumed.values():
            for name in one.law.parameters:
                if not one.value(name) > 0:
                    raise ValueError(f"{name} of {one.law.name} is not above 0")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AnalysisError(f"{path}: '{NOISE}' or '{ASSUMED}' cannot be read ({error}); {MEND}") from None
    return Promise(table, grid_of(table), assumed, noise, str(table[PLANNED].iloc[0]))
