"""Stages of curriculum runs: what the trainer leaves is what is tabulated and drawn; damage is one line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_analysis_table import csv_file, drawn, make_sweep, result

from analysis.errors import AnalysisError
from analysis.figures.stages import stages_figure
from analysis.figures.style import hovers
from analysis.products.draw import draw_products
from analysis.products.recurrent import products
from analysis.products.tracked import Tracked
from analysis.runs.reading import read_csv
from analysis.runs.table import cell
from analysis.stages import latex, markdown, percent, read_stages, staged, three, to_csv, unit
from trainer.curriculum import StageState, stages_of
from trainer.presets import resolve

LENGTHS = [64, 96, 160, 288]
RUN = {
    "model": {"d_model": 24, "n_layers": 1, "n_heads": 2, "seq_len": 288, "kind": "recurrent"},
    "data": {"corpus": {"kind": "copy", "n_tokens": 8}},
    "optim": {"batch_tokens": 4 * 288, "peak_lr": 1e-3},
    "curriculum": {"lengths": LENGTHS, "below": 0.1},
    "tokens": 4 * 288 * 1000,
}
COPY, SELECTIVE = "copy (16 tokens of 8, seed 0)", "selective-copy (16 tokens of 8, seed 0)"


def left(
    ends: list[int], seconds: list[float], steps: int, spent: float, finished: bool
) -> list[dict[str, Any]]:
    """What the trainer writes of a run whose stages ended so."""
    losses = [0.05] * len(ends)
    state = StageState(ends, seconds, losses, loss=0.4 if not finished else 0.0005, finished=finished)
    return stages_of(resolve(RUN, "test"), state, steps, spent)


WHOLE = left([100, 250, 400], [10.0, 30.0, 70.0], 900, 7200.5, True)
HALF = left([100, 250], [12.0, 36.0], 1000, 400.0, False)


def tasks(folder: Path, first: object = WHOLE, second: object = HALF, **changes: object) -> Path:
    """A table of two runs, one a task."""
    rows = [
        result("a" * 12, structure="recurrent, corpus=copy", corpus=COPY, stages=first, val_accuracy=0.99998),
        result("b" * 12, structure="recurrent, corpus=selective-copy", corpus=SELECTIVE, stages=second,
               val_accuracy=0.412, val_exact_match=0.01),
    ]  # fmt: skip
    rows[0] |= {"val_exact_match": 0.9998, **changes}
    names = [name for name in rows[0] if name not in ("flops", "finished", "schema")]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "copy_runs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([cell(row[name]) for name in names] for row in rows)
    return folder / "copy_runs.csv"


def test_what_the_trainer_leaves_is_read_back(tmp_path: Path) -> None:
    runs = read_csv(tasks(tmp_path))
    assert staged(runs)
    whole, half = read_stages(runs, "copy")
    assert (whole.name, half.name) == (COPY, SELECTIVE)
    assert [s.seq_len for s in whole.stages] == LENGTHS and [s.seq_len for s in half.stages] == LENGTHS[:3]
    assert [s.cumulative for s in whole.stages] == pytest.approx([10, 30, 70, 7200.5])
    assert [s.seconds for s in whole.stages] == pytest.approx([10, 20, 40, 7130.5])
    assert [s.tokens for s in half.stages] == [4 * 64 * 100, 4 * 96 * 150, 4 * 160 * 750]
    assert [s.solved for s in half.stages] == [True, True, False] and (whole.reached, half.reached) == (
        288,
        96,
    )
    assert half.stages[-1].val_loss == 0.4 and half.accuracy == 0.412


def test_tables_hold_every_stage_and_the_results(tmp_path: Path) -> None:
    runs = read_stages(read_csv(tasks(tmp_path)), "copy")
    rows = list(csv.DictReader(to_csv(runs).splitlines()))
    assert [int(row["seq_len"]) for row in rows] == [*LENGTHS, *LENGTHS[:3]]
    assert [row["solved"] for row in rows] == ["true"] * 6 + ["false"]
    assert float(rows[3]["cumulative_seconds"]) == 7200.5
    assert float(rows[6]["seconds_per_step"]) == pytest.approx(364 / 750)
    text = markdown("copy", runs)
    assert "hours in all" in text and "| 99.998 " in text and "| 41.2 " in text and "| no " in text
    tex = latex("copy", runs)
    assert tex.isascii() and r"\label{tab:copy-stages}" in tex and tex.count("{") == tex.count("}")


def test_the_figure_shows_when_each_length_was_solved(tmp_path: Path) -> None:
    runs = read_stages(read_csv(tasks(tmp_path)), "copy")
    found = hovers(stages_figure(runs))
    # Of each panel two lines of solved lengths, and one mark of a length that was not.
    assert [len(h.texts) for _, h in found] == [4, 2, 1, 4, 2, 1]
    until, _, missed = (np.asarray(line.get_ydata()) for line, _ in found[:3])
    assert until == pytest.approx(np.array([10, 30, 70, 7200.5]) / 3600)
    assert missed == pytest.approx([400 / 3600]) and "not solved after 6.67 minutes" in found[2][1].texts[0]
    alone = np.asarray(found[3][0].get_ydata())
    assert alone == pytest.approx(np.array([10, 20, 40, 7130.5]) / 3600)
    assert set(found[0][1].runs) == {"a" * 12}


def test_the_products_say_what_is_published_of_the_same_tasks(tmp_path: Path) -> None:
    tasks(tmp_path / "tables")
    tracked = Tracked(tmp_path)
    (product,) = (p for p in products(tracked) if p.name == "copy_stages")
    assert [path.name for path in product.inputs] == ["copy_runs.csv", "kausik_experiments.csv"]
    made = product.make()
    assert set(made.texts) == {"copy_stages.md", "copy_stages.tex", "copy_stages.csv"}
    lines = [
        line.split("|") for line in made.texts["copy_stages.md"].splitlines() if "[1]" in line and "|" in line
    ]
    assert [(line[2].strip(), line[7].strip()) for line in lines] == [("508,700", "100"), ("508,700", "99.6")]
    assert made.figure is not None
    title = made.figure.legends[0].get_title().get_text().replace("\n", " ")
    assert "508.7k parameters" in title and "100 % right" in title and "99.6 % right" in title
    alone = next(iter(products(Tracked(tmp_path, None))))
    assert [path.name for path in alone.inputs] == ["copy_runs.csv"]
    assert "[1]" not in alone.make().texts["copy_stages.md"]


def test_a_sweep_of_single_runs_of_two_tasks_is_drawn_from_its_folders(tmp_path: Path) -> None:
    bodies = [
        result(name, structure="recurrent", corpus=corpus, stages=stages, val_loss=loss)
        for name, corpus, stages, loss in (("a", COPY, WHOLE, 0.0006), ("b", SELECTIVE, HALF, 1.9))
    ]
    make_sweep(tmp_path, "copy", {str(body["run_id"]): body for body in bodies})
    for body, kind in zip(bodies, ("copy", "selective-copy"), strict=True):
        config = {"data": {"corpus": {"kind": kind}}}
        (tmp_path / "runs" / str(body["run_id"]) / "config.json").write_text(json.dumps(config))
    names = {path.name for path in drawn("copy", tmp_path, tmp_path, None, False)}
    assert {"copy.md", "copy_runs.csv", "copy_stages.md", "copy_stages.csv", "copy_stages.png"} <= names
    found = read_stages(read_csv(tmp_path / "tables" / "copy_runs.csv"), "copy")
    assert [run.stages[-1].solved for run in found] == [True, False] and math.isnan(found[0].accuracy)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    head = ["structure", "seed", "params", "tokens", "train_flops", "val_loss", "stages"]
    stages = json.dumps(WHOLE)

    def named(*rows: tuple[str, int, str]) -> list[str]:
        with open(tmp_path / "t.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*head, "corpus"])
            writer.writerows([s, seed, 10, 10, 10, 1, stages, corpus] for s, seed, corpus in rows)
        return [run.name for run in read_stages(read_csv(tmp_path / "t.csv"), "t")]

    assert named(("recurrent, corpus=a", 0, "a"), ("recurrent, corpus=b", 0, "b")) == ["a", "b"]
    assert named(("r", 0, "a"), ("r", 1, "a")) == ["a, seed=0", "a, seed=1"]
    assert named(("r", 0, "a"), ("dense", 0, "a")) == ["a: dense", "a: r"]
    assert named(("r", 0, ""), ("dense", 0, "")) == ["dense", "r"]


def test_tables_without_stages_have_no_such_product(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    csv_file(
        tmp_path / "tables",
        "structure,seed,params,tokens,train_flops,val_loss,stages", "dense,0,10,10,10,1,3",
        "dense,1,10,10,10,1,",
        name="x_runs.csv",
    )  # fmt: skip
    assert list(products(Tracked(tmp_path, None))) == []


def changed(change: Callable[[list[dict[str, Any]]], object]) -> list[dict[str, Any]]:
    stages = [dict(stage) for stage in WHOLE]
    change(stages)
    return stages


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{]", "is no JSON list of stages"),
        ([], "is no JSON list of stages"),
        ([1], "stage 1 is no table"),
        (changed(lambda s: s[1].pop("seconds")), "stage 2 has no seconds"),
        (changed(lambda s: s[1].update(seq_len=64)), "stage 2: seq_len = 64 does not rise"),
        (changed(lambda s: s[1].update(seq_len="96")), "seq_len = '96' is no whole number from 1"),
        (changed(lambda s: s[1].update(steps=-1)), "steps = -1 is no whole number from 0"),
        (changed(lambda s: s[1].update(seconds=math.nan)), "seconds = nan is no number from 0"),
        (changed(lambda s: s[1].update(val_loss=True)), "val_loss = True is no number from 0"),
        (changed(lambda s: s[1].update(solved="no")), "solved = 'no' is neither true nor false"),
        (changed(lambda s: s[1].update(solved=False)), "length 96 is not solved, yet a longer one follows"),
        (changed(lambda s: [stage.update(steps=0) for stage in s]), "no stage has a step"),
    ],
)
def test_damaged_stages_are_one_line_and_cost_only_their_figure(
    tmp_path: Path, stages: object, message: str
) -> None:
    tasks(tmp_path / "tables", second=stages)
    tracked = Tracked(tmp_path, None)
    outcome = draw_products(list(products(tracked)), tracked, None)
    (problem,) = outcome.problems
    assert message in problem and "\n" not in problem and SELECTIVE in problem and "copy_runs.csv" in problem


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"val_accuracy = '99\.9' is no share"):
        read_stages(read_csv(tasks(tmp_path, val_accuracy="99.9")), "copy")


def test_a_stage_that_the_last_step_began_is_left_out(tmp_path: Path) -> None:
    begun = changed(lambda s: s[-1].update(steps=0, tokens=0, solved=False, val_loss=None))
    whole, _ = read_stages(read_csv(tasks(tmp_path, begun)), "copy")
    assert [stage.seq_len for stage in whole.stages] == LENGTHS[:-1]
    # Seconds that round to nothing, on a logarithmic axis.
    instant = changed(lambda s: [stage.update(seconds=0.0) for stage in s])
    stages_figure(read_stages(read_csv(tasks(tmp_path, instant, instant)), "copy"))


@given(st.floats(0, 1))
def test_only_a_share_of_one_is_100_percent(share: float) -> None:
    assert (percent(share) == "100") == (share == 1) and (percent(share) == "0") == (share == 0)


def test_times_are_told_in_the_unit_that_fits() -> None:
    assert [unit(s)[0] for s in (1.0, 119.9, 120.0, 7199.0, 7200.0)] == [
        "seconds", "seconds", "minutes", "minutes", "hours",
    ]  # fmt: skip
    assert [three(v) for v in (0.0261, 0.22, 283.4, 12345.0, math.nan)] == [
        "0.0261",
        "0.220",
        "283",
        "12,345",
        "-",
    ]
