"""Parts of a report's content: the runs with those that failed, their cost, and tables of other reports."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.digits import quantity
from analysis.page.content import Cell, PageTable
from analysis.page.settle import duration
from analysis.report import RUN_HEADER, run_rows
from analysis.runs.table import Runs, structures_of
from analysis.tables import Table
from trainer.errors import RunDirError
from trainer.rundir import read_json

ERROR = "error.txt"
STATE_WORDS = {
    "missing": "not run yet, or their folders are elsewhere",
    "diverged": "their loss became infinite or not a number, so they are no data points",
    "failed": "they ended with an error",
    "corrupted": "their result file is damaged",
}
SORTED = (
    None,
    None,
    None,
    "seed",
    "params",
    "tokens",
    "train_flops",
    "val_loss",
    "val_bits_per_byte",
    "seconds",
)
"""Columns of the runs table that each column of RUN_HEADER is sorted by."""
MOST_IDS = 12


@dataclass(frozen=True)
class Record:
    """What is known of a sweep beside its table.

    description: of the sweep.
    folders: where its run folders are; None where they are not here.
    command: that writes the report; empty for that of the table's name.
    """

    description: str = ""
    folders: Path | None = None
    command: str = ""


def read_record(results: Path, name: str) -> Record:
    """What the results folder knows of a sweep."""
    try:
        content = read_json(results / "sweeps" / f"{name}.json") or {}
    except RunDirError:
        # A damaged record costs the report its description only.
        content = {}
    folders = results / "runs"
    return Record(str(content.get("description") or ""), folders if folders.is_dir() else None)


def losses(runs: Runs, problems: Sequence[str]) -> tuple[str, ...]:
    """A sentence on each state of runs that are no data points, and on each figure that was not drawn."""
    said = []
    for state, ids in runs.absent():
        if ids:
            more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
            count = f"{len(ids)} run{'s' if len(ids) > 1 else ''} {state}"
            said.append(f"{count} ({STATE_WORDS[state]}): {', '.join(ids[:MOST_IDS])}{more}.")
    return (*said, *(f"Not drawn: {problem}." for problem in problems))


def run_table(runs: Runs, record: Record, report: Path) -> PageTable:
    """All runs, those that failed first, each with its state and a link to its folder where that is here."""
    rows = []
    for state, ids in reversed(runs.absent()):
        lost = {row.get("run_id", ""): row for row in runs.lost}
        rows += [_lost_row(run_id, state, lost.get(run_id, {}), record, report) for run_id in ids]
    for values, texts in zip(runs.table.to_dict("records"), run_rows(runs.table), strict=True):
        rows.append(_run_row({str(k): v for k, v in values.items()}, texts, record, report))
    header = (RUN_HEADER[0], "state", *RUN_HEADER[1:])
    return PageTable("Runs", header, tuple(rows), sortable=True)


def _run_row(
    values: Mapping[str, Any], texts: Sequence[str], record: Record, report: Path
) -> tuple[Cell, ...]:
    run_id = str(values.get("run_id") or "")
    cells = [_id_cell(run_id, texts[0], record, report), Cell("done", "done", state="done")]
    for column, text in zip(SORTED[1:], texts[1:], strict=True):
        value = values.get(column) if column else text
        known = not isinstance(value, float) or math.isfinite(value)
        cells.append(Cell(text, value if known else None))
    return tuple(cells)


def _lost_row(
    run_id: str, state: str, cells: Mapping[str, str], record: Record, report: Path
) -> tuple[Cell, ...]:
    def known(name: str) -> Cell:
        text = cells.get(name, "")
        return Cell(text or "-", text or None)

    def counted(name: str) -> Cell:
        try:
            value = float(cells.get(name, ""))
        except ValueError:
            return Cell("-")
        return Cell(quantity(value), value) if math.isfinite(value) else Cell("-")

    said = error_line(record.folders / run_id) if record.folders is not None else ""
    told = Cell(f"{state}: {said}" if said else state, state, state=state)
    return (
        _id_cell(run_id, run_id[:12], record, report),
        told,
        *(known(name) for name in ("size", "structure", "seed")),
        *(counted(name) for name in ("params", "tokens", "train_flops")),
        *(Cell("-") for _ in range(3)),
    )


def error_line(folder: Path) -> str:
    """The last line of a failed run's traceback, which names the error; empty where there is none."""
    try:
        lines = (folder / ERROR).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _id_cell(run_id: str, text: str, record: Record, report: Path) -> Cell:
    if not run_id:
        return Cell(text)
    here = record.folders is not None and (record.folders / run_id).is_dir()
    anchor = f"run-{run_id}"
    link = f"#{anchor}"
    if here and record.folders is not None:
        relative = os.path.relpath((record.folders / run_id).resolve(), report.resolve().parent)
        link = f"{Path(relative).as_posix()}/"
    return Cell(text, run_id, link, anchor)


def cost_table(runs: Runs) -> PageTable:
    """What was spent, by structure: runs, training FLOPs, and time where it is recorded."""
    table = runs.table
    rows = [
        _spent(name, table[table["structure"] == name].to_dict("records")) for name in structures_of(table)
    ]
    rows.append(_spent("all", table.to_dict("records")))
    notes = ["Time is that of the processes, one after the other; several may have run at once."]
    wasted = [float(row["train_flops"]) for row in runs.lost if _is_number(row.get("train_flops"))]
    if wasted:
        notes.append(f"Diverged runs spent {quantity(sum(wasted))} FLOPs besides.")
    if len(runs.table) < runs.expected:
        notes.append("What other runs that gave no data point spent is not known.")
    return PageTable("Spent", ("structure", "runs", "training FLOPs", "time"), tuple(rows), tuple(notes))


def _spent(name: str, records: Sequence[Mapping[Any, Any]]) -> tuple[Cell, ...]:
    flops = sum(float(row["train_flops"]) for row in records)
    seconds = [float(row["seconds"]) for row in records if _is_number(row.get("seconds"))]
    whole = len(seconds) == len(records)
    time = duration(sum(seconds)) if whole and seconds else "-"
    if seconds and not whole:
        time = f"{duration(sum(seconds))} of {len(seconds)} runs"
    return (
        Cell(name),
        Cell(str(len(records)), len(records)),
        Cell(quantity(flops), flops),
        Cell(time, sum(seconds) if seconds else None),
    )


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def as_page_table(title: str, table: Table, sortable: bool = False) -> PageTable:
    """A table of another report; rows are sorted by the number that a cell begins with."""
    rows = tuple(tuple(Cell(text, _leading(text)) for text in row) for row in table.rows)
    return PageTable(title, tuple(table.header), rows, tuple(table.notes), sortable)


def _leading(text: str) -> float | str | None:
    """What a text is sorted by: the number that it begins with, else itself; nothing for a dash."""
    plain = text.replace(",", "").replace("\N{MINUS SIGN}", "-")
    number = re.match(r"\[?([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w-])", plain)
    if number:
        return float(number[1])
    return None if text.startswith("-") else text
