"""Finding the runs that a command names: a sweep's folders, its tracked table, or anyone's CSV."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from analysis.errors import AnalysisError
from analysis.table import Runs, parse_map, read_csv, runs_table


def load(table: str, results: Path, maps: list[str] | None) -> tuple[str, Runs]:
    """Find a sweep or CSV and read it; returns the name that its figures and tables get, and the runs.

    A sweep is read from its run folders. Where there is no record of it here, or none of its runs (a fresh
    clone), the tracked table of its finished runs stands in, and a line on stderr says so.
    """
    mapping = parse_map(maps or [])
    path = Path(table)
    if is_csv(table):
        name = re.sub(r"[^\w.-]+", "-", path.stem.removesuffix("_runs")).strip("-.") or "table"
        return name, read_csv(path, mapping)
    if mapping:
        raise AnalysisError(f"--map: '{table}' is a sweep, whose columns are known; leave --map out")
    if not re.fullmatch(r"[\w.-]+", table):
        raise AnalysisError(f"'{table}': is neither a file nor the name of a sweep; mend the name")
    check_folder(results)
    tracked = results / "tables" / f"{table}_runs.csv"
    record = results / "sweeps" / f"{table}.json"
    runs = None if tracked.is_file() and not record.is_file() else runs_table(results, table)
    if tracked.is_file() and (runs is None or runs.table.empty):
        note(f"{table}: no finished runs in {results / 'runs'}; read from the tracked table {tracked}")
        runs = read_csv(tracked)
    assert runs is not None
    return table, runs


def is_csv(table: str) -> bool:
    """Whether the name is that of a file rather than of a sweep."""
    path = Path(table)
    return path.suffix.lower() in (".csv", ".tsv") or path.is_file()


def check_folder(results: Path) -> None:
    """Refuse a results folder that is a file."""
    if results.exists() and not results.is_dir():
        raise AnalysisError(
            f"--results {results}: is no folder; name the folder that holds runs/ and tables/"
        )


def note(text: str) -> None:
    """Say on stderr what was read or kept other than asked for."""
    Console(stderr=True).print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


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
    if is_csv(table):
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
