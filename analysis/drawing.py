"""All that is drawn and written of a table: scaling law, gaps to dense, dynamics; and of the benches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis import report
from analysis.analyse import Analysis, analyse
from analysis.arms import dynamics_tables, gaps_report
from analysis.arms.dynamics import Dynamics, dynamics, learning_rates_differ
from analysis.arms.gaps import Gaps, gaps
from analysis.errors import AnalysisError
from analysis.figures.coordcheck import coordcheck_figure
from analysis.figures.decode import decode_figure
from analysis.figures.dynamics import dynamics_figure
from analysis.figures.gaps import gaps_figure
from analysis.figures.latency import tokens_figure, width_figure
from analysis.figures.published import SOURCE, find_published, published_runs, shared_structures
from analysis.figures.scaling import scaling_figure
from analysis.figures.style import save
from analysis.fit import Fit
from analysis.latency import (
    read_coordcheck,
    read_decode,
    read_layers,
    read_published_tokens,
    read_published_widths,
)
from analysis.output import write_if_changed
from analysis.runs.loading import is_file, larger, load
from analysis.runs.table import Runs, to_csv

COORDCHECK, FFN, DECODE = Path("coordcheck.csv"), Path("bench", "ffn.csv"), Path("bench", "decode.csv")


def draw(
    table: str, results: Path, out: Path, maps: list[str] | None, published: bool, force: bool = False
) -> list[Path]:
    """Write figures and tables of one sweep or CSV below `out`; returns the paths.

    A table whose runs have treatments (self-guided, more tokens) or several budgets of one size gets a figure
    of gaps to dense besides; a sweep over learning rates gets one of its training dynamics.
    """
    name, runs = load(table, results, maps)
    if not force:
        runs = larger(runs, out / "tables" / f"{name}_runs.csv", table)
    over_rates = learning_rates_differ(runs)
    analysis = analyse(runs, name)
    paths = []
    found = _gaps_worth_drawing(runs, name)
    fitted = any(isinstance(fit, Fit) for fit in analysis.power.values())
    # Where no curve has a law, and another figure shows the points, theirs would only repeat them.
    if fitted or not (over_rates or found is not None):
        paths = _draw_scaling(analysis, results, out, published)
    texts = {".md": report.markdown(analysis), ".json": report.to_json(analysis), "_runs.csv": to_csv(runs)}
    paths += _write(out / "tables", name, texts)
    if found is not None:
        paths += draw_gaps(found, out)
    if over_rates:
        moves = _dynamics_at_hand(runs, name, None if is_file(table) else results, results / "tables")
        paths += draw_dynamics(moves, out) if moves is not None else []
    return paths


def _draw_scaling(analysis: Analysis, results: Path, out: Path, published: bool) -> list[Path]:
    shared = None
    if published and (path := find_published(results)) is not None:
        shared = shared_structures(published_runs(path), analysis.structures)
    panel = analyse(shared, "Published") if shared is not None else None
    return save(scaling_figure(analysis, panel, SOURCE), out / "figures" / f"{analysis.name}_scaling")


def _gaps_worth_drawing(runs: Runs, name: str) -> Gaps | None:
    """Gaps of a table that has more to show than its scaling figure; None also where there are none."""
    try:
        found = gaps(runs, name)
    except AnalysisError:
        # Not asked for: a foreign table without dense runs, or with replicates that have no seeds, has none.
        return None
    return found if found.worth_drawing else None


def draw_gaps(found: Gaps, out: Path) -> list[Path]:
    """Write figure and tables of gaps to dense below `out`; returns the paths."""
    texts = {
        "_gaps.md": gaps_report.markdown(found),
        "_gaps.json": gaps_report.to_json(found),
        "_gaps.csv": gaps_report.to_csv(found),
    }
    paths = save(gaps_figure(found), out / "figures" / f"{found.name}_gaps")
    return paths + _write(out / "tables", found.name, texts)


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


def draw_dynamics(result: Dynamics, out: Path) -> list[Path]:
    """Write figures (one a structure) and tables of training dynamics below `out`; returns the paths."""
    paths = []
    for structure in result.structures:
        several = len(result.structures) > 1
        ending = "_dynamics_" + structure.replace(", ", "_") if several else "_dynamics"
        paths += save(dynamics_figure(result, structure), out / "figures" / f"{result.name}{ending}")
    texts = {
        "_dynamics.md": dynamics_tables.markdown(result),
        "_dynamics.csv": dynamics_tables.traces_csv(result),
        "_curves.csv": dynamics_tables.curves_csv(result),
    }
    return paths + _write(out / "tables", result.name, texts)


def draw_benches(results: Path, out: Path) -> list[Path]:
    """Draw what is tracked of measurements: layer latency, decoding, coordinate check; returns the paths."""
    tables, figures = results / "tables", out / "figures"
    paths = []
    if (tables / FFN).is_file():
        ours = read_layers(tables / FFN)
        theirs = read_published_widths(results), read_published_tokens(results)
        for stem, figure in (
            ("ffn_latency_width", width_figure(ours, theirs[0])),
            ("ffn_latency_tokens", tokens_figure(ours, theirs[1])),
        ):
            paths += save(figure, figures / stem) if figure is not None else []
    if (tables / DECODE).is_file():
        paths += save(decode_figure(read_decode(tables / DECODE)), figures / "decode")
    if (tables / COORDCHECK).is_file():
        paths += save(coordcheck_figure(read_coordcheck(tables / COORDCHECK)), figures / "coordcheck")
    return paths


def _write(folder: Path, name: str, texts: dict[str, str]) -> list[Path]:
    paths = []
    for ending, text in texts.items():
        path = folder / f"{name}{ending}"
        write_if_changed(path, text)
        paths.append(path)
    return paths
