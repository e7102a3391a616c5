"""What a family of sweeps and studies has cost: runs, FLOPs, hours, attempts, and what was lost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis.digits import quantity
from analysis.runs.table import Runs
from analysis.searches.trials import Study
from analysis.tables import Table, latex_file

HEADER = (
    "table", "runs", "not in a table above", "their FLOPs", "their hours", "further attempts", "diverged",
    "failed or missing",
)  # fmt: skip
NOTES = (
    "Hours are those of single runs added up, as the finished attempt counts them; several train at a time.",
    "A run that several tables hold is counted where it stands first. A dash: a table does not say. "
    "FLOPs and hours are those of finished runs; the pilot's runs are in no table.",
)


@dataclass(frozen=True)
class Cost:
    """The cost of one table: its runs, and FLOPs, seconds and further attempts of those not counted before.

    further: attempts beyond the first; None where the table does not say. lost: failed, corrupted or missing.
    """

    name: str
    runs: int
    new: int
    flops: float
    seconds: float
    further: int | None
    diverged: int
    lost: int


def costs(tables: Mapping[str, Runs | Study]) -> list[Cost]:
    """The cost of each table in turn; a run of several is counted in the first."""
    seen: set[str] = set()
    return [
        _of_study(name, table, seen) if isinstance(table, Study) else _of_runs(name, table, seen)
        for name, table in tables.items()
    ]


def _of_runs(name: str, runs: Runs, seen: set[str]) -> Cost:
    table = runs.table
    new = table[~table["run_id"].astype(str).isin(seen)]
    seen |= set(table["run_id"].astype(str))
    flops, seconds = (float(new[key].sum()) if key in new else 0.0 for key in ("train_flops", "seconds"))
    attempts = pd.to_numeric(new["attempts"], errors="coerce") if "attempts" in new else None
    known = attempts is not None and not bool(attempts.isna().any())
    further = int(np.sum(attempts.to_numpy(np.float64) - 1)) if attempts is not None and known else None
    lost = sum(len(ids) for state, ids in runs.absent() if state != "diverged")
    return Cost(name, runs.expected, len(new), flops, seconds, further, len(runs.diverged), lost)


def _of_study(name: str, study: Study, seen: set[str]) -> Cost:
    runs = {trial.run_id: trial for trial in study.trials}
    new = [trial for run, trial in runs.items() if run not in seen]
    seen |= set(runs)
    flops, seconds = (
        float(np.nansum([trial.numbers[key] for trial in new])) for key in ("train_flops", "seconds")
    )
    attempts = [trial.numbers["attempts"] for trial in new]
    further = None if any(math.isnan(value) for value in attempts) else int(sum(attempts)) - len(attempts)
    counts = {state: len(ids) for state, ids in study.run_ids().items()}
    lost = counts.get("failed", 0)
    return Cost(name, len(runs), len(new), flops, seconds, further, counts.get("diverged", 0), lost)


def cost_texts(found: Sequence[Cost], name: str) -> dict[str, str]:
    """NAME_cost as Markdown, LaTeX and JSON, by file name; the last line is the sum."""
    rows = [_row(cost) for cost in found]
    known = [cost.further for cost in found if cost.further is not None]
    further = sum(known) if len(known) == len(found) else None
    total = Cost(
        "all", sum(c.new for c in found), sum(c.new for c in found), sum(c.flops for c in found),
        sum(c.seconds for c in found), further, sum(c.diverged for c in found),
        sum(c.lost for c in found),
    )  # fmt: skip
    table = Table(HEADER, [*rows, _row(total)], f"{name}: what its runs cost.", NOTES)
    stem = f"{name}_cost"
    body = {"name": name, "tables": [asdict(cost) for cost in found], "all": asdict(total)}
    return {
        f"{stem}.md": f"# {name}: cost\n\n{table.markdown()}\n",
        f"{stem}.tex": latex_file([(f"tab:{name}-cost", table)]),
        f"{stem}.json": json.dumps(body, indent=1, allow_nan=False) + "\n",
    }


def _row(cost: Cost) -> list[str]:
    further = "-" if cost.further is None else str(cost.further)
    return [
        cost.name, str(cost.runs), str(cost.new), quantity(cost.flops), f"{cost.seconds / 3600:.2f}", further,
        str(cost.diverged), str(cost.lost),
    ]  # fmt: skip
