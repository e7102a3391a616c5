"""Products of one runs table: its tables, the scaling figure, gaps to dense, training dynamics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from analysis import report
from analysis.analyse import Analysis, analyse
from analysis.arms import dynamics_tables, gaps_report
from analysis.arms.dynamics import Dynamics
from analysis.arms.gaps import Gaps, gaps
from analysis.errors import AnalysisError
from analysis.figures.dynamics import dynamics_figure
from analysis.figures.gaps import gaps_figure
from analysis.figures.published import FILE, SOURCE, published_runs, shared_structures
from analysis.figures.scaling import scaling_figure
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.runs.table import Runs
from analysis.stages import staged

TRACES, CURVES = "_dynamics.csv", "_curves.csv"


def products(tracked: Tracked) -> Iterator[Product]:
    """What every runs table gives: a table with a fit its figure, one with arms their gaps and dynamics."""
    for name in tracked.names:
        runs = tracked.runs(name)
        table = tracked.path(name)
        if runs.table.empty:
            continue
        yield Product(
            name,
            f"Laws, verdict and runs of {name} as tables",
            (table,),
            lambda name=name: tables_made(tracked.analysis(name)),  # type: ignore[misc]
            name,
        )
        found = gaps_worth_drawing(runs, name)
        traces, curves = tracked.table(f"{name}{TRACES}"), tracked.table(f"{name}{CURVES}")
        # Where no curve has a law, and another figure shows the points, theirs would only repeat them.
        if not (found is not None or traces or staged(runs)) or has_law(runs):
            yield _scaling(tracked, name)
        if found is not None:
            yield Product(
                f"{name}_gaps",
                f"Held-out loss of every arm of {name} over training FLOPs, a panel a size, and beneath it "
                "the gap of each arm to the dense runs of its size, paired by seed, with 95 % intervals "
                "where there are several seeds.",
                (table,),
                lambda found=found: gaps_made(found),  # type: ignore[misc]
                name,
            )
        if traces is not None and curves is not None:
            try:
                found_here = list(_dynamics(tracked, name, traces, curves))
            except AnalysisError as error:
                # A damaged table of curves costs its own figures only.
                tracked.problems.append(str(error))
                continue
            yield from found_here


def has_law(runs: Runs) -> bool:
    """Whether any structure has the three training budgets that a law needs."""
    return bool((runs.table.groupby("structure")["train_flops"].nunique() >= 3).any())


def _scaling(tracked: Tracked, name: str) -> Product:
    published = tracked.published(FILE)
    inputs = (tracked.path(name), *([published] if published is not None else []))

    def make() -> Made:
        analysis = tracked.analysis(name)
        shared = None
        if published is not None:
            shared = shared_structures(published_runs(published), analysis.structures)
        panel = analyse(shared, "Published") if shared is not None else None
        return Made(scaling_figure(analysis, panel, SOURCE))

    shows = (
        f"Held-out loss over training FLOPs in {name}, log-log, a curve a structure: runs as points, fitted "
        "power laws as lines with 95 % bands where there are enough; beside it the published points of the "
        "same structures, where there are any."
    )
    return Product(f"{name}_scaling", shows, inputs, make, name)


def _dynamics(tracked: Tracked, name: str, traces: Path, curves: Path) -> Iterator[Product]:
    table = tracked.path(name)
    inputs = (table, traces, curves)
    result = dynamics_tables.read_dynamics(traces, curves, name, tracked.runs(name).coverage())
    for structure in _moving(result):
        yield Product(
            dynamics_name(result, structure),
            f"Training loss of {structure} in {name}, a panel a peak learning rate, unguided and guided, "
            "with the steps at which spikes begin; beneath, final held-out loss and number of spikes.",
            inputs,
            lambda structure=structure: Made(dynamics_figure(result, structure)),  # type: ignore[misc]
            name,
        )
    yield Product(
        f"{name}_spikes",
        f"Loss spikes of {name} by structure, treatment and learning rate as a table",
        inputs,
        lambda: spikes_made(result),
        name,
    )


def dynamics_made(result: Dynamics) -> Iterator[tuple[str, Made]]:
    """Names and figures of training dynamics, one a structure, and their table."""
    for structure in result.structures:
        yield dynamics_name(result, structure), Made(dynamics_figure(result, structure))
    yield f"{result.name}_spikes", spikes_made(result)


def spikes_made(result: Dynamics) -> Made:
    """The table of spikes."""
    name = f"{result.name}_dynamics"
    texts = {f"{name}.md": dynamics_tables.markdown(result), f"{name}.tex": dynamics_tables.latex(result)}
    return Made(texts=texts)


def _moving(result: Dynamics) -> list[str]:
    """The structures whose dynamics have something to show: treatments side by side, or spikes."""
    return [
        structure
        for structure in result.structures
        if len(result.arms(structure)) > 1
        or any(t.spikes or t.state == "diverged" for t in result.traces if t.structure == structure)
    ]


def dynamics_name(result: Dynamics, structure: str) -> str:
    """The name of the dynamics figure of one structure, which is part of it where there are several."""
    ending = "_" + structure.replace(", ", "_") if len(result.structures) > 1 else ""
    return f"{result.name}_dynamics{ending}"


def tables_made(analysis: Analysis) -> Made:
    """Laws, verdict and runs of a table."""
    name = analysis.name
    return Made(
        texts={
            f"{name}.md": report.markdown(analysis),
            f"{name}.tex": report.latex(analysis),
            f"{name}.json": report.to_json(analysis),
        }
    )


def gaps_worth_drawing(runs: Runs, name: str) -> Gaps | None:
    """Gaps of a table that has more to show than its scaling figure; None also where there are none."""
    try:
        found = gaps(runs, name)
    except AnalysisError:
        # Not asked for: a foreign table without dense runs, or with replicates that have no seeds, has none.
        return None
    return found if found.worth_drawing else None


def gaps_made(found: Gaps) -> Made:
    """Figure and tables of gaps to dense."""
    texts = {
        f"{found.name}_gaps.md": gaps_report.markdown(found),
        f"{found.name}_gaps.tex": gaps_report.latex(found),
        f"{found.name}_gaps.json": gaps_report.to_json(found),
        f"{found.name}_gaps.csv": gaps_report.to_csv(found),
    }
    return Made(gaps_figure(found), texts)
