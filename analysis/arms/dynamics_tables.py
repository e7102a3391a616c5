"""The tracked tables of training dynamics: runs with their spikes, thinned curves, and the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.arms.dynamics import Dynamics, Rule, Trace, conclusions
from analysis.digits import significant, with_error
from analysis.errors import AnalysisError
from analysis.tables import Table, latex_file

CURVE_HEADER = ("run_id", "step", "train_loss", "highest")
ARM_HEADER = (
    "structure", "treatment", "peak_lr", "runs", "diverged", "runs that spike", "spikes", "largest (nats)",
    "not recovered", "final loss (nats/token)",
)  # fmt: skip


def arm_rows(result: Dynamics) -> list[list[str]]:
    """One row a structure, treatment and rate, under `ARM_HEADER`; ± is a standard error over seeds."""
    rows = []
    for structure in result.structures:
        for arm in result.arms(structure):
            for rate in result.rates(structure):
                traces = result.at(structure, arm, rate)
                if not traces:
                    continue
                losses = np.array([t.val_loss for t in traces if math.isfinite(t.val_loss)])
                largest = [t.largest for t in traces if t.spikes]
                se = float(losses.std(ddof=1)) / math.sqrt(losses.size) if losses.size > 1 else None
                rows.append(
                    [
                        structure,
                        arm,
                        f"{rate:g}",
                        str(len(traces)),
                        str(sum(t.state == "diverged" for t in traces)),
                        str(sum(t.spikes > 0 for t in traces)),
                        str(sum(t.spikes for t in traces)),
                        f"{max(largest):.2f}" if largest else "-",
                        str(sum(t.unrecovered for t in traces)),
                        with_error(float(losses.mean()), se, 5) if losses.size else "-",
                    ]
                )
    return rows


def arm_table(result: Dynamics) -> Table:
    """Spikes and final losses over learning rates; the notes say what a spike is."""
    thresholds = [t.threshold for t in result.traces if math.isfinite(t.threshold)]
    rule = Rule().words()
    if thresholds:
        rule += f" Here that is {significant(min(thresholds))} to {significant(max(thresholds))} nats."
    short = [t.run_id for t in result.traces if not math.isfinite(t.threshold)]
    notes = [rule]
    if short:
        notes.append(
            f"{len(short)} of {len(result.traces)} runs logged too few points to look for spikes: "
            f"{', '.join(short[:8])}; log every step with execution.log_points."
        )
    caption = (
        f"{result.name}: training dynamics over peak learning rates; final held-out loss is the mean over "
        "seeds ± its standard error."
    )
    return Table(ARM_HEADER, arm_rows(result), caption, notes)


def latex(result: Dynamics) -> str:
    r"""The table as one file to \input, what follows from it and the missing runs in its notes."""
    table = arm_table(result)
    said = (*conclusions(result), f"Data: {result.coverage}.")
    return latex_file([(f"tab:{result.name}-dynamics", replace(table, notes=(*said, *table.notes)))])


def markdown(result: Dynamics) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    parts = [
        f"# {result.name}: training dynamics over learning rates",
        " ".join(conclusions(result)),
        f"Data: {result.coverage}.",
        arm_table(result).markdown(),
    ]
    return "\n\n".join(parts) + "\n"


def traces_csv(result: Dynamics) -> str:
    """The runs as CSV, one row each, columns the fields of `Trace`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(Trace)]
    writer.writerow(names)
    for trace in result.traces:
        writer.writerow([_cell(getattr(trace, name)) for name in names])
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return str(value)


def curves_csv(result: Dynamics) -> str:
    """The thinned curves as CSV under `CURVE_HEADER`, losses to five digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CURVE_HEADER)
    for trace in result.traces:
        for step, mean, highest in result.curves[trace.run_id]:
            writer.writerow([trace.run_id, int(step), f"{mean:.5g}", f"{highest:.5g}"])
    return out.getvalue()


def read_dynamics(traces: Path, curves: Path, name: str, coverage: str = "") -> Dynamics:
    """Read back what `traces_csv` and `curves_csv` wrote.

    Raises:
        AnalysisError: a table that is not what was written.
    """
    try:
        rows = [_read_trace(row) for row in _dicts(traces)]
        by_run: dict[str, list[list[float]]] = {row.run_id: [] for row in rows}
        for row in _dicts(curves):
            by_run[row["run_id"]].append([float(row[column]) for column in CURVE_HEADER[1:]])
    except (KeyError, TypeError, ValueError) as error:
        raise AnalysisError(
            f"{traces}, {curves}: cannot be read ({error!r}); write them anew: 'python -m analysis dynamics'"
        ) from None
    kept = {run_id: np.array(points) for run_id, points in by_run.items() if points}
    return Dynamics(name, tuple(rows), kept, coverage)


def _dicts(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _read_trace(row: Mapping[str, str]) -> Trace:
    values: dict[str, Any] = {}
    for field in fields(Trace):
        text = row[field.name]
        if field.name == "onsets":
            values[field.name] = tuple(int(part) for part in text.split("+") if part)
        elif field.type == "float":
            values[field.name] = float(text) if text else math.nan
        else:
            values[field.name] = int(text) if field.type == "int" else text
    return Trace(**values)
