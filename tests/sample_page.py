"""Reports to look at and to test: one made of tracked runs, a hostile one, and one of nearly nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.analyse import analyse
from analysis.figures.scaling import scaling_figure
from analysis.figures.style import TWO_COLUMNS, house_style, hover, hovers, looks, title
from analysis.page.content import Cell, Page, PageFigure, PageFinding, PageTable, Settle
from analysis.report import FIT_HEADER, METHOD, RUN_HEADER, fit_rows, run_rows
from analysis.runs.reading import read_csv

ROOT = Path(__file__).parent.parent
HOSTILE = "</script><script>alert(1)</script>\"'&<b>]]>"
LONG = "blockshuffle-with-a-very-long-name-that-nobody-would-choose-but-somebody-did-" * 3
RUN_KEYS = ("params", "tokens", "train_flops", "val_loss", "val_bits_per_byte", "seconds")


def point_texts(figure: Figure) -> list[str]:
    """All hover texts of a figure, in the order of its lines."""
    return [text for _, spoken in hovers(figure) for text in spoken.texts]


def points_figure(
    runs: tuple[str, ...], names: tuple[str, ...] = ("dense", "lowrank-63", "lowrank-32")
) -> Figure:
    """Three structures over two panels, every point with a text; one is NaN, one curve half-filled."""
    flops = np.geomspace(1e11, 1e13, 4)
    with house_style():
        figure = Figure(figsize=(TWO_COLUMNS, 2.7))
        panels = figure.subplots(1, 2)
        for k, (name, look) in enumerate(looks(names).items()):
            loss = 4.2 * (flops / 1e11) ** (-0.09 + 0.01 * k)
            if k == 2:
                loss[1] = np.nan
            half = {"fillstyle": "left"} if k == 1 else {}
            for axes, values in ((panels[0], loss), (panels[1], loss / loss[0])):
                marks = {**look.marker_style(), **half}
                (line,) = axes.plot(
                    flops, values, color=look.colour, linestyle="-", linewidth=0.9, label=name, **marks
                )
                ids = tuple(runs[4 * k : 4 * k + 4])
                found = enumerate(zip(flops, values, strict=True))
                texts = [f"{name}, size {i}: loss {v:.3f} at {f:.2e} FLOPs" for i, (f, v) in found]
                hover(line, texts, ids if len(ids) == 4 else ())
        labels = ("Held-out loss (nats per token)", "Loss over that of the smallest")
        for axes, words in zip(panels, labels, strict=True):
            axes.set_xscale("log")
            axes.set_xlabel("Training FLOPs")
            axes.set_ylabel(words)
            axes.axvspan(2e12, 5e12, color="#eef4fa", zorder=0)
        title(panels[0], "Loss", "made up, to be looked at", TWO_COLUMNS / 2)
        title(panels[1], "Share", "", TWO_COLUMNS / 2)
        panels[0].legend(title=r"$L = E + A\,N^{-\alpha}$, 95 % band")
        figure.draw_without_rendering()
    return figure


def cells_of(rows: Iterable[Iterable[str]]) -> tuple[tuple[Cell, ...], ...]:
    """Texts as cells."""
    return tuple(tuple(map(Cell, row)) for row in rows)


def table(title: str, header: str, *rows: str, notes: tuple[str, ...] = ()) -> PageTable:
    """A table from lines with bars between cells."""
    return PageTable(
        title, tuple(header.split("|")), cells_of(row.split("|") for row in rows), notes, sortable=True
    )


def runs_of(name: str) -> tuple[PageTable, list[str]]:
    """The runs table of a tracked sweep, and its run ids."""
    runs = read_csv(ROOT / "results" / "tables" / f"{name}_runs.csv").table
    rows = []
    for cells, record in zip(run_rows(runs), runs.to_dict("records"), strict=True):
        made = [
            Cell(cells[0], sort=cells[0], anchor=f"run-{record['run_id']}"),
            Cell(cells[1]),
            Cell(cells[2]),
            Cell(cells[3], sort=float(record["seed"])),
        ]
        made += [Cell(text, sort=float(record[key])) for text, key in zip(cells[4:], RUN_KEYS, strict=True)]
        rows.append((*made, Cell("done", state="done")))
    header = (*RUN_HEADER, "state")
    return PageTable(f"Runs of {name}", header, tuple(rows), sortable=True), [str(i) for i in runs["run_id"]]


def real_page() -> Page:
    """The report of a tracked sweep; what it takes to settle it and what it cost are made up."""
    analysis = analyse(read_csv(ROOT / "results" / "tables" / "lowrank_runs.csv"), "lowrank")
    runs, ids = runs_of("lowrank")
    rows, notes = fit_rows(analysis)
    tests = analysis.comparison.verdict.split(". ")
    return Page(
        name="lowrank",
        description="Dense against low-rank FFNs: four sizes, 20 tokens a parameter, one seed.",
        answer="open",
        headline="Not shown: equality of slopes is not rejected whatever the irreducible loss.",
        verdict=tuple(f"{sentence.rstrip('.')}." for sentence in tests),
        hypotheses=table(
            "Tests of equal slopes",
            "irreducible loss|F|p|largest difference|detectable",
            "none|F(2, 6) = 2.19|0.19|0.020|0.032",
            "one for all|F(2, 5) = 1.82|0.25|0.020|0.034",
            "one each|F(2, 3) = 0.12|0.89|0.020|0.041",
            notes=("p by the F test; detectable: with 80 % power at the 5 % level.",),
        ),
        coverage=analysis.runs.coverage(),
        losses=(),
        settle=Settle(
            ("Two more seeds of every size would find a difference of 0.012.", "More sizes help less."),
            table(
                "Ways to spend more",
                "what|runs|FLOPs|hours|difference found then",
                "2 more seeds|24|5.7e13|0.5|0.012",
                "1 more size|3|9.0e13|0.8|0.021",
            ),
        ),
        cost=table(
            "Spent", "structure|runs|FLOPs|hours", "dense|4|1.4e+13|0.16", "lowrank-63|4|1.2e+13|0.15"
        ),
        figures=(
            PageFigure("lowrank_scaling", "Loss falls along parallel lines.", scaling_figure(analysis)),
            PageFigure("lowrank_two_panels", "Loss in two panels.", points_figure(tuple(ids))),
        ),
        runs=runs,
        tables=(PageTable("Fits", FIT_HEADER, cells_of(rows), (METHOD, *notes)),),
        findings=(
            PageFinding(
                "SL007",
                "vanishing term",
                "E is at its bound 0: the points show no bend towards a floor",
                "train to larger budgets, or give the irreducible loss if it is known",
                ("dense", "lowrank-63", "lowrank-32"),
            ),
        ),
        looked_for="Looked for and not found: SL001, SL002. Could not be looked for: SL010 (one seed).",
        card={"corpus": "pysource, bpe-512", "seeds": "1", "schedule": "", "batch tokens": "2,048"},
        provenance={
            "git": "297d5c8e3c0f6a8f0b6f2a4cbb1d0a7f6b7d9e11",
            "command": "python -m analysis report lowrank",
            "tables/lowrank_runs.csv": "sha256 " + "9f86d081" * 8,
        },
    )


def hostile_page() -> Page:
    """A report whose every text is an attack or far too long, of a sweep that went wrong."""
    rows = tuple(
        (
            Cell(
                f"{i:012x}",
                anchor=f"run-{i:012x}",
                link="javascript:alert(1)" if i % 2 else f"../runs/{i:012x}",
            ),
            Cell(HOSTILE if i == 1 else LONG if i == 2 else f"structure {i}"),
            Cell("-" if state != "done" else f"{3 + i / 7:.3f}", sort=None if state != "done" else 3 + i / 7),
            Cell(f"{state} at step 12" if state == "diverged" else state, state=state),
        )
        for i, state in enumerate(
            ["done", "failed", "diverged", "missing", "corrupted", "done", "done", "done"]
        )
    )
    runs = PageTable(
        f"Runs {HOSTILE}", ("run", "structure", "loss", "state"), rows, (HOSTILE, LONG), sortable=True
    )
    names = ("dense", f"{HOSTILE[:30]}", LONG[:60])
    return Page(
        name=HOSTILE,
        description=LONG,
        answer="mixed",
        headline=f"It hangs on the hypothesis {HOSTILE}",
        verdict=(HOSTILE, LONG),
        hypotheses=PageTable(
            "Tests", ("under", HOSTILE), ((Cell(LONG), Cell(HOSTILE)), (Cell("b"), Cell("2")))
        ),
        coverage="4 of 8 runs (1 failed: 000000000001; 1 diverged: 000000000002; 1 missing; 1 corrupted)",
        losses=(
            "1 run failed: 000000000001.",
            "1 run diverged: 000000000002.",
            f"1 run is missing: {HOSTILE}.",
        ),
        settle=Settle((HOSTILE,), PageTable("Options", ("what", "runs"), ())),
        cost=PageTable("Spent", ("what", "FLOPs"), ((Cell(LONG), Cell("1e12", 1e12)),)),
        figures=tuple(
            PageFigure(name, f"{HOSTILE} {LONG}", points_figure(tuple(f"{i:012x}" for i in range(12)), names))
            for name in (HOSTILE, HOSTILE, "plain")
        ),
        runs=runs,
        tables=(runs,),
        findings=(PageFinding("SL001", HOSTILE, LONG, HOSTILE, (HOSTILE, LONG)),),
        looked_for=HOSTILE,
        card={HOSTILE: LONG, "empty": ""},
        provenance={LONG: HOSTILE},
    )


def bare_page() -> Page:
    """A report of a sweep without a test, a figure or a finding."""
    return Page(
        name="bare",
        description="",
        answer="none",
        headline="Nothing can be said: no run is finished.",
        verdict=(),
        hypotheses=None,
        coverage="0 of 12 runs",
        losses=("12 runs are missing.",),
        settle=Settle(("Run the sweep.",)),
        cost=table("Spent", "what|FLOPs"),
        figures=(),
        runs=table("Runs", "run|state"),
        tables=(),
        findings=(),
        looked_for="",
        card={},
        provenance={},
    )
