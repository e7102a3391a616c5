"""Anyone's table of runs, as CSV, JSONL or parquet, with columns of any name, to checked rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.runs.table import KNOWN, OPTIONAL_NUMBERS, Runs, cell, from_rows

NEEDED = ("structure", "train_flops", "val_loss")
RECORDS = (".jsonl", ".ndjson", ".parquet")
ENDINGS = (".csv", ".tsv", *RECORDS)
ALIASES = {
    "params": ("N", "n_params", "num_params", "parameters", "params_total", "N_total"),
    "tokens": ("D", "n_tokens", "num_tokens", "train_tokens", "tokens_seen"),
    "train_flops": ("C", "flops", "FLOPs", "compute", "flops_from_repo_formula"),
    "val_loss": ("loss", "L", "eval_loss", "final_loss", "validation_loss", "loss_digitised"),
    "structure": ("curve", "arch", "architecture", "model"),
}
"""Our column -> what others call it."""

Lines = list[tuple[int, list[str]]]


def read_table(
    path: Path,
    mapping: Mapping[str, str] | None = None,
    needed: Sequence[str] = NEEDED,
    condition: str | None = None,
) -> tuple[Runs, str | None]:
    """Read a CSV, JSONL or parquet file of runs.

    Columns that others name otherwise (N, D, C, loss ...) are understood where that is unambiguous.

    Args:
        path: the file; its ending says what it is.
        mapping: foreign column name -> our name.
        needed: columns that must be there.
        condition: which rows to keep, as in `table.rows_meeting`.

    Returns the runs, and which columns were taken for which of ours, in words, if any were.

    Raises:
        AnalysisError: as `read_csv`.
    """
    ending = path.suffix.lower()
    lines = _csv_lines(path) if ending not in RECORDS else _record_lines(path)
    guessed = guess(lines[0][1], mapping or {})
    runs = _runs(path, lines, {**(mapping or {}), **guessed}, needed, condition)
    words = ", ".join(f"{theirs} as {ours}" for theirs, ours in guessed.items())
    return runs, f"{path.name}: read {words}" if words else None


def guess(header: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Columns of others that can only mean one of ours: their name -> our name.

    Args:
        header: the columns of the file.
        mapping: what the user has said already.
    """
    names = [name.strip() for name in header]
    found = {}
    for ours, theirs in ALIASES.items():
        if ours in names or ours in mapping.values():
            continue
        there = [name for name in names if name in theirs and name not in mapping]
        if len(there) == 1:
            found[there[0]] = ours
    return found


def read_csv(path: Path, mapping: Mapping[str, str] | None = None, needed: Sequence[str] = NEEDED) -> Runs:
    """Read anyone's CSV (.tsv: tab-separated) of runs.

    params, tokens and seed are used where they are there, and all other columns are kept. Where there is a
    column `state`, only rows that say `done` are data.

    Args:
        path: the file, UTF-8, with a header line.
        mapping: foreign column name -> our name.
        needed: columns that must be there.

    Raises:
        AnalysisError: naming the line, for missing columns, values that are no positive numbers, and repeats.
    """
    return _runs(path, _csv_lines(path), mapping or {}, needed)


def _runs(
    path: Path,
    lines: Lines,
    mapping: Mapping[str, str],
    needed: Sequence[str],
    condition: str | None = None,
) -> Runs:
    header = _renamed(lines[0][1], mapping, path)
    numbers = [name for name in header if _is_number(name)]
    if 2 * len(numbers) >= len(header) > 0:
        raise AnalysisError(
            f"{path}: row 1 holds numbers ({', '.join(numbers[:3])}), so the file has no header line; "
            "put one on top, such as structure,params,tokens,train_flops,val_loss"
        )
    rows, labels = [], []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise AnalysisError(
                f"{path}: row {number} has {len(cells)} cells where the header has {len(header)}; "
                "put cells that hold commas in double quotes"
            )
        rows.append({name: cell.strip() for name, cell in zip(header, cells, strict=True)})
        labels.append(f"row {number}")
    if not rows:
        raise AnalysisError(f"{path}: has a header and no rows; give one row a run")
    missing = [name for name in needed if name not in header]
    if missing:
        raise AnalysisError(
            f"{path}: no column {', '.join(missing)} among {', '.join(header)}; "
            f"rename with --map THEIRS={missing[0]}"
        )
    return from_rows(rows, labels, str(path), condition, mapping)


def _csv_lines(path: Path) -> Lines:
    """The lines of a CSV that are not blank, each with its line number in the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise AnalysisError(f"{path}: no such file; give a CSV or the name of a sweep") from None
    except UnicodeDecodeError as error:
        raise AnalysisError(f"{path}: is not UTF-8 text ({error.reason}); save it as a UTF-8 CSV") from None
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read ({error.strerror}); give a readable CSV file") from None
    if "\0" in text:
        raise AnalysisError(f"{path}: holds zero bytes, so it is no text; save it as a UTF-8 CSV")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise AnalysisError(f"{path}: row {reader.line_num} is no CSV ({error}); save it again") from None
    if not lines:
        raise AnalysisError(f"{path}: is empty; give a header line and one row a run")
    found = [mark for mark in (";", "\t", ",") if mark != delimiter and mark in "".join(lines[0][1])]
    if len(lines[0][1]) == 1 and found:
        name = {";": "semicolons", "\t": "tabs", ",": "commas"}[found[0]]
        wanted = "tabs" if delimiter == "\t" else "commas (or tabs, as .tsv)"
        raise AnalysisError(f"{path}: its columns are separated by {name}; save it with {wanted}")
    return lines


def _record_lines(path: Path) -> Lines:
    """The rows of a JSONL or parquet file as text cells, the header first, each with its number."""
    records = _parquet(path) if path.suffix.lower() == ".parquet" else _jsonl(path)
    if not records:
        raise AnalysisError(f"{path}: is empty; give one row a run")
    names = list(dict.fromkeys(str(name) for _, record in records for name in record))
    rows = [(number, ["" if r.get(n) is None else cell(r[n]) for n in names]) for number, r in records]
    return [(0, names), *rows]


def _jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    records = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); give a readable JSONL file") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise AnalysisError(
                f"{path}: row {number} is no JSON ({error.msg}); give one object a line"
            ) from None
        if not isinstance(record, dict):
            raise AnalysisError(f"{path}: row {number} is no JSON object; give one object a line")
        records.append((number, record))
    return records


def _parquet(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise AnalysisError(
            f"{path}: parquet needs pyarrow; pip install pyarrow, or save it as CSV"
        ) from None
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); give a readable parquet file") from None
    except ValueError as error:
        raise AnalysisError(f"{path}: is no parquet file ({error}); save it again, or as CSV") from None
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [(i, {str(k): v for k, v in row.items()}) for i, row in enumerate(rows, 1)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _renamed(header: Sequence[str], mapping: Mapping[str, str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    for theirs, ours in mapping.items():
        if theirs not in names:
            option = "--map or --group" if ours == "structure" else "--map"
            raise AnalysisError(
                f"{path}: {option} names column '{theirs}', which is not among {', '.join(names)}; "
                "mend the name"
            )
    replaced = set(mapping.values())
    # A column that already bears the name asked for another one gives way, and is kept beside it.
    renamed = [mapping.get(name, f"{name}_unmapped" if name in replaced else name) for name in names]
    for name in renamed:
        if renamed.count(name) > 1:
            raise AnalysisError(f"{path}: column '{name}' appears twice; rename or drop one of them")
    return renamed


def parse_map(pairs: Sequence[str]) -> dict[str, str]:
    """Read `--map` options, each `theirs=ours`, several joined by commas; returns theirs -> ours.

    The order `ours=theirs` is understood too where only the left side is one of our columns.
    """
    mapping: dict[str, str] = {}
    ours = {*KNOWN, *OPTIONAL_NUMBERS}
    for pair in (part for option in pairs for part in option.split(",")):
        left, sign, right = (part.strip() for part in pair.partition("="))
        if not (left and sign and right):
            raise AnalysisError(f"--map {pair!r}: is not THEIRS=OURS; write for example --map loss=val_loss")
        theirs, name = (left, right) if right in ours or left not in ours else (right, left)
        if name not in ours:
            raise AnalysisError(f"--map {pair!r}: '{name}' is no column of ours; use {', '.join(KNOWN)}")
        if theirs in mapping or name in mapping.values():
            raise AnalysisError(f"--map {pair!r}: '{theirs}' or '{name}' is mapped twice; keep one of them")
        mapping[theirs] = name
    return mapping
