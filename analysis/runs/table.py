"""The runs table: from a sweep's run folders, or from anyone's CSV, to checked rows in a fixed order.

A sweep and the CSV exported from it (analysis.runs.reading) go through the same checks and give the same
table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.runs.labels import structure_order
from analysis.runs.treatments import VARIANTS, places
from analysis.runs.variants import isoflop_sets, variants
from trainer.errors import RunDirError
from trainer.rundir import CONFIG, read_json, read_result, read_status

POSITIVE = ("params", "tokens", "train_flops", "val_loss")
OPTIONAL_NUMBERS = (
    "val_loss_se", "val_bits_per_byte", "val_entropy", "entropy_rate", "seconds", "params_avg",
)  # fmt: skip
FLOORS = ("val_entropy", "entropy_rate")
"""Columns that give a corpus's irreducible loss: of the held-out text itself, then of the endless source."""
KNOWN = ("params", "tokens", "train_flops", "val_loss", "structure", "seed", "size", "run_id", "state")
LEADING = ("run_id", "state", "size", "structure", "seed", "params", "tokens", "train_flops", "val_loss")
STATES = ("done", "missing", "running", "failed", "diverged", "corrupted", "preempted", "pruned", "new")
HEADS = ("n_heads", "n_kv_heads")
RESULT_HASH = "result_sha256"
"""Column with the checksum that a run's result.json carries."""
LEFT_OUT = ("schema", "sha256", "finished", "flops")

Cells = dict[str, str]

ONE_CURVE = "all"
"""What the runs of a table without structures are called."""


@dataclass(frozen=True)
class Runs:
    """The data points of a sweep or CSV, and by run id those that gave none.

    `table` has one row a finished run: params, tokens, train_flops and val_loss (nats per token) as float64,
    structure and seed, and every further column of the source. NaN stands where params or tokens are unknown.
    `lost`: cells of diverged runs whose structure is known, with their budget's tokens and the FLOPs spent.
    """

    table: pd.DataFrame
    missing: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    corrupted: tuple[str, ...] = ()
    lost: tuple[Cells, ...] = ()

    @property
    def expected(self) -> int:
        """How many runs there should be."""
        return len(self.table) + sum(len(ids) for _, ids in self.absent())

    def absent(self) -> list[tuple[str, tuple[str, ...]]]:
        """The runs that are no data points: (state, run ids), states in a fixed order."""
        states = ("missing", "diverged", "failed", "corrupted")
        return [(state, getattr(self, state)) for state in states]

    def coverage(self, shown: int = 4) -> str:
        """Say how complete the table is, e.g. `9 of 12 runs; missing: 3f2a..., ...`."""
        parts = [f"{len(self.table)} of {self.expected} runs"]
        for state, ids in self.absent():
            if ids:
                more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
                parts.append(f"{state}: {', '.join(name[:12] for name in ids[:shown])}{more}")
        return "; ".join(parts)


def structures_of(table: pd.DataFrame) -> list[str]:
    """The structure labels of a table, each once, in the order of figures and reports."""
    return sorted(set(table["structure"]), key=structure_order)


def runs_table(results: Path, sweep: str | None) -> Runs:
    """Gather the finished runs of a sweep, or of the whole ledger where `sweep` is None.

    Runs of one structure and size whose configurations differ in more than tokens and seed get labels that
    say so, such as `dense, peak_lr=0.008`: they are curves of their own.

    Args:
        results: the results folder, with sweeps/<name>.json and runs/<run_id>/.
        sweep: name of the sweep.

    Raises:
        AnalysisError: no such sweep, or a sweep record that cannot be read.
    """
    ids = _ledger_ids(results) if sweep is None else _sweep_ids(results, sweep)
    read = [_run_cells(results / "runs" / run_id, run_id) for run_id in dict.fromkeys(ids)]
    rows = _named_apart(read)
    source = f"runs of sweep '{sweep}'" if sweep else f"runs in {results / 'runs'}"
    return from_rows(rows, [f"run {row['run_id']}" for row in rows], source)


def _ledger_ids(results: Path) -> list[str]:
    folder = results / "runs"
    if not folder.is_dir():
        raise AnalysisError(f"{folder}: no run folders; run a sweep first or name the folder with --results")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _sweep_ids(results: Path, sweep: str) -> list[str]:
    path = results / "sweeps" / f"{sweep}.json"
    record = read_json(path)
    if record is None:
        known = sorted(p.stem for p in path.parent.glob("*.json"))
        remedy = f"known: {', '.join(known)}" if known else f"run 'make sweep-{sweep}' first"
        raise AnalysisError(f"{path}: there is no sweep '{sweep}'; {remedy}")
    ids = record.get("run_ids")
    if not isinstance(ids, list) or not all(isinstance(run_id, str) for run_id in ids):
        raise AnalysisError(f"{path}: holds no list 'run_ids'; plan the sweep again to rewrite it")
    return ids


def _named_apart(read: Sequence[tuple[Cells, Mapping[str, Any]]]) -> list[Cells]:
    """The cells of each run, its structure's label completed by what the sweep varies besides."""
    named = [(cells, config) for cells, config in read if "structure" in cells]
    groups = [(cells["structure"], cells.get("size", ""), cells.get("seed", "")) for cells, _ in named]
    known = all(cells.get("train_flops") for cells, _ in named)
    flops = [float(cells["train_flops"]) for cells, _ in named] if known else []
    budgets = isoflop_sets([group[:2] for group in groups], flops) if known else None
    found = variants(groups, [config for _, config in named], budgets)
    for (cells, _), variant in zip(named, found, strict=True):
        if variant:
            cells["structure"] += f", {variant}"
    if budgets is not None:
        # Equal FLOPs are what these runs are about, and more tokens of a cheaper structure no treatment.
        return [cells for cells, _ in read]
    # The tokens of a run are no part of its curve's label, but more of them in place of saved FLOPs are.
    done = [cells for cells, _ in named if cells["state"] == "done" and cells.get("train_flops")]
    for cells, place in zip(done, places(done), strict=True):
        if place is not None and place.treatment in VARIANTS:
            cells["structure"] += f", {VARIANTS[place.treatment]}"
    return [cells for cells, _ in read]


def _run_cells(folder: Path, run_id: str) -> tuple[Cells, Mapping[str, Any]]:
    """One run as text cells, and its configuration; one without a valid result keeps only id and state."""
    try:
        result = read_result(folder)
        config = read_json(folder / CONFIG) or {}
    except RunDirError:
        return {"run_id": run_id, "state": "corrupted"}, {}
    if result is None:
        state = str(read_status(folder).get("state"))
        return {"run_id": run_id, "state": state if state in ("failed", "diverged") else "missing"}, {}
    state = str(result.get("state"))
    if state != "done" and not (state == "diverged" and "structure" in result):
        return {"run_id": run_id, "state": state}, {}
    flops = result.get("flops")
    by_convention = {f"flops_{name}": value for name, value in flops.items()} if flops else {}
    kept = {key: value for key, value in result.items() if key not in LEFT_OUT}
    cells = {**kept, **by_convention, "run_id": run_id, RESULT_HASH: result.get("sha256")}
    if state == "diverged" and "tokens" in config:
        cells["tokens"] = config["tokens"]
    model = config.get("model") or {}
    # What tells grouped-query attention apart, which results of older runs do not name.
    cells |= {name: model[name] for name in HEADS if name in model}
    return {key: cell(value) for key, value in cells.items()}, config


def cell(value: Any) -> str:
    """A value as the text that it is read back from."""
    if value is None:
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return repr(value)
        return f"{value:.0f}" if value == round(value) and abs(value) < 2**53 else repr(value)
    return value if isinstance(value, str) else json.dumps(value)


def from_rows(
    rows: Sequence[Cells],
    labels: Sequence[str],
    source: str,
    condition: str | None = None,
    theirs: Mapping[str, str] | None = None,
) -> Runs:
    """Type and check rows of text cells (column -> text), one a run, and put them in order.

    Args:
        rows: the cells; a row whose `state` is not `done` is counted and not read.
        labels: what error messages call each row.
        source: what error messages call the table.
        condition: which finished runs to keep, as in `rows_meeting`.
        theirs: what the file calls our columns, for conditions that use its names: their name -> ours.

    Raises:
        AnalysisError: a value that cannot stand, or a run that appears twice.
    """
    if not any(row.get("state") in STATES for row in rows):
        # A column of this name that holds other words than ours is another's.
        rows = [{name: text for name, text in row.items() if name != "state"} for row in rows]
    if condition is not None:
        # Before anything is checked, so that rows that cannot stand can be left out by it.
        met = rows_meeting(_as_text(rows, theirs or {}), condition)
        labels = [label for label, yes in zip(labels, met, strict=True) if yes]
        rows = [row for row, yes in zip(rows, met, strict=True) if yes]
    done = [i for i, row in enumerate(rows) if row.get("state", "done") == "done"]
    absent: dict[str, list[str]] = {"missing": [], "diverged": [], "failed": [], "corrupted": []}
    for i, row in enumerate(rows):
        if row.get("state", "done") != "done":
            state = row["state"] if row["state"] in absent else "missing"
            absent[state].append(row.get("run_id") or labels[i])
    lost = tuple(row for row in rows if row.get("state") == "diverged" and row.get("structure"))
    columns = _columns([rows[i] for i in done])
    typed = [_typed_row(rows[i], columns, f"{source}: {labels[i]}") for i in done]
    _refuse_repeats(typed, [labels[i] for i in done], source)
    typed.sort(key=_row_order)
    table = pd.DataFrame(typed, columns=columns)
    return Runs(table, **{state: tuple(ids) for state, ids in absent.items()}, lost=lost)


def _as_text(rows: Sequence[Cells], theirs: Mapping[str, str]) -> pd.DataFrame:
    """The cells as a table, the file's own names of our columns beside ours."""
    frame = pd.DataFrame(list(rows)).fillna("")
    return frame.assign(**{name: frame[ours] for name, ours in theirs.items() if name not in frame})


def rows_meeting(table: pd.DataFrame, condition: str) -> list[bool]:
    """Which rows meet a condition over the columns, such as `val_loss < 5 and params > 1e6`.

    Raises:
        AnalysisError: it cannot be evaluated, is no condition, or no row meets it.
    """
    frame = table.copy()
    for name in frame.columns:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        # A few cells without a number, such as nan or diverged, meet no condition on numbers.
        if 2 * int(numbers.notna().sum()) >= len(numbers):
            frame[name] = numbers
    try:
        met = frame.eval(condition, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises whatever the expression raises
        known = ", ".join(str(name) for name in frame.columns)
        raise AnalysisError(f"--filter {condition!r}: {error}; write a condition over {known}") from None
    if not isinstance(met, pd.Series) or met.dtype != bool:
        raise AnalysisError(f"--filter {condition!r}: is no condition; write for example 'val_loss < 5'")
    if not met.any():
        raise AnalysisError(f"--filter {condition!r}: none of {len(met)} runs meets it; relax it")
    return [bool(yes) for yes in met]


def _columns(rows: Sequence[Cells]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    names |= dict.fromkeys(("structure", "seed", *POSITIVE))
    leading = [name for name in LEADING if name in names]
    return leading + [name for name in names if name not in leading]


def _typed_row(cells: Cells, columns: Sequence[str], place: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in columns:
        text = cells.get(name)
        if name == "structure":
            if text == "":
                raise AnalysisError(f"{place}: structure is empty; name the structure of every run")
            row[name] = ONE_CURVE if text is None else text
        elif name in POSITIVE:
            row[name] = math.nan if text is None else _positive(text, f"{place}: {name}")
        elif name == "seed":
            row[name] = _seed(text, place) if text else 0
        elif name in OPTIONAL_NUMBERS or name.startswith("flops_"):
            row[name] = _number_or_nan(text)
        else:
            row[name] = text or ""
    return row


def _number_or_nan(text: str | None) -> float:
    """A number of a column that is used only where it is one."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AnalysisError(f"{place} = {text!r} is not a number; mend or drop the row") from None


def _positive(text: str, place: str) -> float:
    if not text:
        raise AnalysisError(f"{place} is empty; mend or drop the row")
    value = _number(text, place)
    if not math.isfinite(value):
        raise AnalysisError(f"{place} = {text} is not finite; drop the row: a diverged run is no data point")
    if value <= 0:
        raise AnalysisError(f"{place} = {text} is not above zero; mend or drop the row")
    return value


def _seed(text: str, place: str) -> int:
    if not re.fullmatch(r"\d+(\.0*)?", text):
        raise AnalysisError(f"{place}: seed = {text!r} is not a whole number from 0; mend the row")
    return int(float(text))


def _refuse_repeats(rows: Sequence[dict[str, Any]], labels: Sequence[str], source: str) -> None:
    """A run id appears once; rows without one are the same run where all that identifies them is equal."""
    seen: dict[tuple[str, ...], str] = {}
    of_run: dict[str, tuple[tuple[str, str], str]] = {}
    for row, label in zip(rows, labels, strict=True):
        run_id, who = str(row.get("run_id") or ""), (row["structure"], str(row["seed"]))
        # Text, since NaN (an unknown count) equals nothing, itself included.
        spent = tuple(str(row[name]) for name in ("params", "tokens", "train_flops"))
        # Checkpoints of one run share its id, its structure and its seed.
        other = of_run.setdefault(run_id, (who, label)) if run_id else (who, label)
        key = (run_id, *spent) if run_id else (*who, *spent)
        if other[0] != who or key in seen:
            first = other[1] if other[0] != who else seen[key]
            what = (
                "same run id); drop one"
                if run_id
                else "same structure, FLOPs and seed); drop one, or tell replicates apart by a column 'seed'"
            )
            raise AnalysisError(f"{source}: {label} repeats {first} ({what}")
        seen[key] = label


def _row_order(row: dict[str, Any]) -> tuple[Any, ...]:
    sizes = tuple(-1.0 if math.isnan(row[name]) else row[name] for name in ("params", "tokens"))
    return (structure_order(row["structure"]), row["train_flops"], *sizes, row["seed"], row["val_loss"])


def use_flops(runs: Runs, convention: str) -> Runs:
    """Return the same runs with training FLOPs counted by another convention (column flops_<convention>)."""
    column = f"flops_{convention}"
    counted = [str(name) for name in runs.table.columns if str(name).startswith("flops_")]
    # A price for one token is no count of a training run.
    counted = [name for name in counted if name != "flops_per_token"]
    if column not in counted or bool(runs.table[column].isna().any()):
        known = ", ".join(name.removeprefix("flops_") for name in counted)
        raise AnalysisError(
            f"--flops {convention}: the table does not count FLOPs so; use one of: {known or 'none'}"
        )
    table = runs.table.assign(train_flops=runs.table[column])
    return replace(runs, table=table)


def to_csv(runs: Runs) -> str:
    """Write runs as CSV text that `read_csv` reads back to the same table, absent runs included."""
    columns = [str(name) for name in runs.table.columns]
    lost = {row.get("run_id", ""): row for row in runs.lost}
    gone = [(run_id, state) for state, ids in runs.absent() for run_id in ids]
    if gone:
        columns = ["run_id", "state", *(name for name in columns if name not in ("run_id", "state"))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    # Columns that hold no value at all (params of a foreign table) would be refused as empty when read back.
    columns = [name for name in columns if name not in POSITIVE or not runs.table[name].isna().all()]
    writer.writerow(columns)
    for row in runs.table.to_dict("records"):
        cells = {"state": "done", **{str(name): value for name, value in row.items()}}
        writer.writerow([_csv_cell(cells.get(name)) for name in columns])
    for run_id, state in gone:
        known = {**lost.get(run_id, {}), "run_id": run_id, "state": state}
        writer.writerow([known.get(name, "") for name in columns])
    return out.getvalue()


def _csv_cell(value: Any) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else cell(value)
