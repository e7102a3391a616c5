"""From a sweep's run folders, or anyone's CSV, to the tracked tables from which all else is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis.arms import dynamics_tables
from analysis.arms.dynamics import Dynamics, dynamics, learning_rates_differ
from analysis.errors import AnalysisError
from analysis.output import write_if_changed
from analysis.runs.loading import is_file, is_study, larger, load, note
from analysis.runs.table import Runs, to_csv
from analysis.searches.trials import FOLDER, IMPORTANCE, TRIALS, Study, read_study, tidy


def export(
    table: str, results: Path, out: Path, maps: list[str] | None, force: bool = False
) -> tuple[str, Runs | Study, list[Path]]:
    """Write tables/NAME_runs.csv, and of a sweep over learning rates its training curves besides.

    Of a study of shapes, tables/NAME_trials.csv and NAME_importance.csv are written in its place.

    Runs that are not finished stand in the table with their state. A tracked table that holds more finished
    runs is not replaced by one with fewer, unless `force` says so.

    Args:
        table: name of a sweep, or a CSV, JSONL or parquet file.
        results: results folder, with runs/.
        out: results folder, with tables/, to write to.
        maps: the --map options.
        force: replace a table even by one with fewer finished runs.

    Returns the name that figures and tables get, the runs or the study, and the paths.

    Raises:
        AnalysisError: nothing of this name, no finished run, a table that cannot stand, or a folder that
            cannot be written to.
    """
    if is_study(table, results):
        if maps:
            raise AnalysisError(f"--map: '{table}' is a study, whose columns are known; leave --map out")
        return (table, *export_study(table, results, out, force))
    name, runs = load(table, results, maps)
    if runs.table.empty:
        raise AnalysisError(f"{name}: no finished run ({runs.coverage()}); run or resume the sweep first")
    path = out / "tables" / f"{name}_runs.csv"
    if not force:
        runs = larger(runs, path, table)
    text = to_csv(runs)
    other = is_file(table) and path.is_file() and path.resolve() != Path(table).resolve()
    if other and not force and path.read_text(encoding="utf-8") != text:
        raise AnalysisError(
            f"{table}: {path} is there already and holds other runs; rename the file, choose another --out, "
            "or replace the table with 'python -m analysis export --force'"
        )
    write_if_changed(path, text)
    paths = [path]
    if learning_rates_differ(runs):
        moves = _dynamics_at_hand(runs, name, None if is_file(table) else results, results / "tables")
        if moves is not None:
            paths += write_dynamics(moves, out)
    return name, runs, paths


def export_study(name: str, results: Path, out: Path, force: bool = False) -> tuple[Study, list[Path]]:
    """Copy the trials of a study and their importances to `out`, checked, in a fixed order.

    A tracked table with more finished runs is not replaced unless `force` says so; its importances stay too.

    Raises:
        AnalysisError: no trial is over, a damaged file, or a folder that cannot be written to.
    """
    source, to = results / FOLDER / name / TRIALS, out / "tables" / f"{name}_{TRIALS}"
    importance, to_importance = source.with_name(IMPORTANCE), to.with_name(f"{name}_{IMPORTANCE}")
    if not source.is_file():
        # A fresh clone, or a study that has only been planned.
        source, importance = (results / "tables" / f"{name}_{file}" for file in (TRIALS, IMPORTANCE))
        if not source.is_file():
            raise AnalysisError(
                f"{name}: no trial of this study is over; run it with 'python -m sweeps search {name}' first"
            )
        note(f"{name}: no {results / FOLDER / name / TRIALS}; read from the tracked table {source}")
    study = read_study(source, importance, name)
    if not force and to.is_file() and to != source:
        try:
            before = read_study(to, to_importance, name)
        except AnalysisError as error:
            note(f"{error}: replaced")
        else:
            if before.done > study.done:
                note(
                    f"{name}: {study.done} runs are done, and {to} has {before.done}: drawn from it; "
                    "--force replaces it"
                )
                source, importance, study = to, to_importance, before
    write_if_changed(to, tidy(source, study))
    paths = [to]
    if importance.is_file():
        write_if_changed(to_importance, tidy(importance, study))
        paths.append(to_importance)
    elif to_importance.is_file():
        # Those that are there would be of other trials.
        write_if_changed(to_importance, to_importance.read_text(encoding="utf-8").partition("\n")[0] + "\n")
        paths.append(to_importance)
    return study, paths


def write_dynamics(result: Dynamics, out: Path) -> list[Path]:
    """Write the tables of training dynamics below `out`; returns the paths."""
    texts = {
        "_dynamics.csv": dynamics_tables.traces_csv(result),
        "_curves.csv": dynamics_tables.curves_csv(result),
    }
    paths = [out / "tables" / f"{result.name}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_if_changed(path, text)
    return paths


def find_dynamics(
    runs: Runs, name: str, results: Path | None, tables: Path, watch: Callable[[int], None] | None = None
) -> Dynamics | None:
    """The dynamics of a sweep from its run folders, or from the tracked tables where these hold more runs.

    Args:
        runs: the sweep's table.
        name: of the sweep.
        results: folder with runs/; None to read tracked tables only.
        tables: folder of the tracked tables.
        watch: told the number of runs read so far.

    Returns None where neither is there.
    """
    traces, curves = tables / f"{name}_dynamics.csv", tables / f"{name}_curves.csv"
    kept = None
    if traces.is_file() and curves.is_file():
        kept = dynamics_tables.read_dynamics(traces, curves, name, runs.coverage())
    fresh = None
    if results is not None:
        try:
            fresh = dynamics(runs, results, name, watch)
        except AnalysisError:
            if kept is None:
                raise
    if fresh is None or (kept is not None and len(kept.traces) > len(fresh.traces)):
        return kept
    return fresh


def _dynamics_at_hand(runs: Runs, name: str, results: Path | None, tables: Path) -> Dynamics | None:
    try:
        return find_dynamics(runs, name, results, tables)
    except AnalysisError:
        # Not asked for: runs whose metrics are elsewhere still have their laws.
        return None
