"""Finding the runs that a command names: a sweep's folders, its tracked table, or anyone's CSV."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.errors import AnalysisError
from analysis.runs.reading import ENDINGS, NEEDED, parse_map, read_csv, read_table
from analysis.runs.table import Runs, rows_meeting, runs_table
from analysis.searches.trials import FOLDER, TRIALS, no_sweep
from analysis.terminal import YELLOW, coloured
from trainer.rundir import read_json

RUN_COLUMNS = ("run", "run_name", "run_id", "wandb_id")


def load(
    table: str,
    results: Path,
    maps: list[str] | None,
    needed: Sequence[str] = NEEDED,
    group: str | None = None,
    condition: str | None = None,
) -> tuple[str, Runs]:
    """Find a sweep or file and read it; returns the name that its figures and tables get, and the runs.

    A sweep is read from its run folders. Where there is no record of it here, or none of its runs (a fresh
    clone), the tracked table of its finished runs stands in, and a line on stderr says so.

    Args:
        table: name of a sweep, or a CSV, JSONL or parquet file.
        results: the results folder.
        maps: the --map options.
        needed: columns that a file must have.
        group: column whose values tell the curves apart, in place of `structure`.
        condition: which rows to keep, as in `table.rows_meeting`.

    Raises:
        AnalysisError: nothing of this name, a study of shapes, or a table that cannot stand.
    """
    if Path(table).suffix == ".toml":
        raise AnalysisError(f"{table}: is a sweep file; give the sweep's name, {Path(table).stem}")
    if is_study(table, results):
        raise AnalysisError(no_sweep(table))
    name, runs = _find(table, results, maps, needed, group, condition)
    if not is_file(table):
        runs = _by(runs, group) if group is not None else runs
        if condition is not None:
            met = rows_meeting(runs.table, condition)
            runs = replace(runs, table=runs.table[met].reset_index(drop=True))
    if condition is not None:
        note(f"{name}: {len(runs.table)} runs meet --filter")
    return name, runs


def _find(
    table: str,
    results: Path,
    maps: list[str] | None,
    needed: Sequence[str],
    group: str | None,
    condition: str | None,
) -> tuple[str, Runs]:
    mapping = parse_map(maps or [])
    path = Path(table)
    if is_file(table):
        name = re.sub(r"[^\w.-]+", "-", path.stem.removesuffix("_runs")).strip("-.") or "table"
        if group is not None and group != "structure" and mapping.get(group) != "structure":
            mapping = {k: v for k, v in mapping.items() if v != "structure"} | {group: "structure"}
        runs, words = read_table(path, mapping, needed, condition)
        if words is not None:
            note(words)
        return name, runs
    if mapping:
        raise AnalysisError(f"--map: '{table}' is a sweep, whose columns are known; leave --map out")
    if not re.fullmatch(r"[\w.-]+", table):
        raise AnalysisError(f"'{table}': is neither a file nor the name of a sweep; mend the name")
    check_folder(results)
    tracked = results / "tables" / f"{table}_runs.csv"
    record = results / "sweeps" / f"{table}.json"
    found = None if tracked.is_file() and not record.is_file() else runs_table(results, table)
    if tracked.is_file() and (found is None or found.table.empty):
        note(f"{table}: no finished runs in {results / 'runs'}; read from the tracked table {tracked}")
        found = read_csv(tracked)
    assert found is not None
    return table, found


def _by(runs: Runs, group: str) -> Runs:
    if group not in runs.table:
        columns = ", ".join(map(str, runs.table.columns))
        raise AnalysisError(f"--group {group}: no such column; use one of {columns}")
    return replace(runs, table=runs.table.assign(structure=runs.table[group].astype(str)))


def is_file(table: str) -> bool:
    """Whether the name is that of a file rather than of a sweep."""
    path = Path(table)
    return path.suffix.lower() in ENDINGS or path.is_file()


def is_study(table: str, results: Path) -> bool:
    """Whether the name is that of a study of shapes: by its trials here, its record, or its tracked trials.

    A runs table of the same name is read in its place, where the study itself is not here.
    """
    if is_file(table) or not re.fullmatch(r"[\w.-]+", table) or not results.is_dir():
        return False
    if (results / FOLDER / table / TRIALS).is_file():
        return True
    record = read_json(results / "sweeps" / f"{table}.json")
    if record is not None:
        return isinstance(record.get("study"), dict)
    tracked = results / "tables"
    return (tracked / f"{table}_trials.csv").is_file() and not (tracked / f"{table}_runs.csv").is_file()


def with_flops(runs: Runs) -> Runs:
    """The runs with training FLOPs, which are 6 N D where the table gives none, and a line says so."""
    table = runs.table
    if not table["train_flops"].isna().all() or table["params"].isna().any() or table["tokens"].isna().any():
        return runs
    note("no column train_flops: taken as 6 params tokens; counted FLOPs would be better")
    return replace(runs, table=table.assign(train_flops=6 * table["params"] * table["tokens"]))


def run_labels(runs: Runs, column: str | None, quiet: bool = False) -> list[str] | None:
    """The run of each point, where several points come from one; None where each is of its own.

    Args:
        runs: the table.
        column: that names the runs; without, one of `RUN_COLUMNS` is taken.
        quiet: whether to say nothing of a column that was taken.

    Raises:
        AnalysisError: there is no such column.
    """
    if column is not None and column not in runs.table:
        columns = ", ".join(map(str, runs.table.columns))
        raise AnalysisError(f"--cluster {column}: no such column; use one of {columns}")
    names = [column] if column is not None else [name for name in RUN_COLUMNS if name in runs.table]
    for name in names:
        labels = [str(value) for value in runs.table[name]]
        if len(set(labels)) < len(labels) and "" not in labels:
            if column is None and not quiet:
                note(f"{len(set(labels))} runs by column '{name}': points of a run go together in errors")
            return labels
    return None


def last_points(runs: Runs, column: str | None) -> Runs:
    """Only the last point of each run, where several points come from one; a line says so.

    Tests between structures take points for independent, which those of one run are not.

    Args:
        runs: the table.
        column: that names the runs; without, one of `RUN_COLUMNS` is taken.
    """
    labels = run_labels(runs, column, quiet=True)
    if labels is None:
        return runs
    table = runs.table.assign(_run=labels)
    by = "tokens" if not table["tokens"].isna().any() else "train_flops"
    last = table.sort_values(by, kind="stable").drop_duplicates(["structure", "_run"], keep="last")
    kept = table.loc[sorted(last.index)].drop(columns="_run").reset_index(drop=True)
    note(f"{len(table)} points of {len(kept)} runs: compared by the last point of each")
    return replace(runs, table=kept)


def check_folder(results: Path) -> None:
    """Refuse a results folder that is a file."""
    if results.exists() and not results.is_dir():
        raise AnalysisError(
            f"--results {results}: is no folder; name the folder that holds runs/ and tables/"
        )


def note(text: str) -> None:
    """Say on stderr what was read or kept other than asked for."""
    print(coloured(text, YELLOW, sys.stderr), file=sys.stderr)


def larger(runs: Runs, kept: Path, table: str) -> Runs:
    """The runs to draw where they would replace the table `kept`: its own where it has more of them.

    A sweep that is complete, with fewer runs than before, replaces its table all the same.

    Raises:
        AnalysisError: a CSV, which is not the table itself, would replace a table with more finished runs.
    """
    if not kept.is_file():
        return runs
    done, expected = len(runs.table), runs.expected
    try:
        before = read_csv(kept)
    except AnalysisError:
        if done == expected:
            return runs
        raise
    had = len(before.table)
    if had <= done:
        return runs
    if is_file(table):
        raise AnalysisError(
            f"{table}: has {done} finished runs, and {kept} that it would replace has {had}; "
            "choose another --out, or replace it with --force"
        )
    if done == expected:
        note(f"{table}: {done} of {expected} runs finished; {kept} had {had}: replaced")
        return runs
    note(
        f"{table}: {done} of {expected} runs finished, and {kept} has {had}: drawn from it; "
        "--force replaces it"
    )
    return before


def together(tables: Sequence[Runs]) -> Runs:
    """The runs of several tables as one; a run that several of them hold counts once.

    Raises:
        AnalysisError: a run id stands for different losses.
    """
    frames = [runs.table for runs in tables]
    joined = pd.concat(frames, ignore_index=True)
    if "run_id" in joined:
        known = joined["run_id"].fillna("") != ""
        losses = joined[known].groupby("run_id")["val_loss"].nunique()
        if (losses > 1).any():
            raise AnalysisError(
                f"run {losses.index[losses > 1][0]}: the tables give it different losses; draw the older "
                "table anew with 'python -m analysis figures'"
            )
        joined = joined[~(known & joined.duplicated("run_id"))].reset_index(drop=True)
    states = ("missing", "diverged", "failed", "corrupted")
    ids = {state: tuple(dict.fromkeys(i for r in tables for i in getattr(r, state))) for state in states}
    lost = {row.get("run_id", ""): row for runs in tables for row in runs.lost}
    return replace(tables[0], table=joined, lost=tuple(lost.values()), **ids)
