"""Figures, report and command line: bytes that repeat, tables that stand in for runs, one-line errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_analysis_table import drawn, make_sweep, result

from analysis.__main__ import main
from analysis.analyse import analyse
from analysis.errors import AnalysisError
from analysis.figures.published import FILE, published_runs, shared_structures
from analysis.figures.scaling import scaling_figure
from analysis.figures.style import looks, nice_ticks, save
from analysis.report import fit_rows, markdown, to_json
from analysis.runs.loading import load
from analysis.runs.reading import read_csv
from analysis.runs.table import structures_of
from trainer.rundir import write_result

pytestmark = pytest.mark.usefixtures("few_figures")

ROOT = Path(__file__).parents[1]
TRACKED = ROOT / "results" / "tables" / "lowrank_runs.csv"


def fill_sweep(results: Path, name: str = "lowrank", gaps: int = 0) -> None:
    rng = np.random.default_rng(0)
    runs: dict[str, dict[str, object] | None] = {}
    for j, structure in enumerate(("dense", "lowrank-63", "lowrank-32")):
        for i, flops in enumerate(np.geomspace(1e11, 3e13, 4)):
            run_id = f"{j}{i}aa77"
            loss = float((1.0 + 1.5 * (flops / 2e12) ** -0.1) * (1 + 0.01 * j) * np.exp(0.004 * rng.normal()))
            cost = float(flops) * (1 - 0.17 * j)
            runs[run_id] = result(
                run_id, structure=structure, size=f"cpu-{i}", train_flops=cost, val_loss=loss,
                flops={"paper": cost, "6N": cost * 0.9}, val_bits_per_byte=loss / 3,
            )  # fmt: skip
    for run_id in list(runs)[:gaps]:
        runs[run_id] = None
    make_sweep(results, name, runs)


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths if path.name != "manifest.json"}


def remarks(stderr: str) -> list[str]:
    """The lines on stderr but those that say how far a slow machine is."""
    return [line for line in stderr.splitlines() if not line.startswith("drawing: ")]


@pytest.mark.slow
def test_two_processes_draw_the_same_bytes_whatever_the_user_style(tmp_path: Path) -> None:
    fill_sweep(tmp_path)
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 9\nsavefig.dpi: 50\n")
    here = contents(drawn("lowrank", tmp_path, tmp_path / "here", None, True))
    hostile = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    command = [sys.executable, "-m", "analysis", "figures", "lowrank", "--results", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "there")], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, **hostile},
    )  # fmt: skip
    assert done.returncode == 0 and remarks(done.stderr) == [], done.stderr
    there = contents([Path(line) for line in done.stdout.split()])
    assert set(here) >= {
        "lowrank.json", "lowrank.md", "lowrank_runs.csv",
        "lowrank_scaling.pdf", "lowrank_scaling.png", "lowrank_scaling.svg",
    }  # fmt: skip
    # This process has fewer figures, see few_figures.
    assert here == {name: there[name] for name in here}


def test_tracked_table_stands_in_for_runs_and_leaves_files_alone(tmp_path: Path) -> None:
    fill_sweep(tmp_path, gaps=3)
    paths = drawn("lowrank", tmp_path, tmp_path, None, False)
    before = contents(paths)
    assert b"9 of 12 runs; missing: 00aa77, 01aa77, 02aa77" in before["lowrank.md"]
    for path in paths:
        os.utime(path, (1, 1))
    # A sweep that is planned here, none of whose runs are here, must not erase the tracked table.
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert load("lowrank", tmp_path, None)[1].expected == 12
    (tmp_path / "sweeps" / "lowrank.json").unlink()
    assert contents(drawn("lowrank", tmp_path, tmp_path, None, False)) == before
    assert {path.stat().st_mtime for path in paths} == {1}


def test_a_sweep_without_runs_or_table_is_a_user_mistake(tmp_path: Path) -> None:
    make_sweep(tmp_path, "lowrank", {"r1": None})
    with pytest.raises(AnalysisError, match=r"no finished run .0 of 1 runs; missing: r1"):
        drawn("lowrank", tmp_path, tmp_path, None, False)


def test_incomplete_sweep_still_comes_out(tmp_path: Path) -> None:
    fill_sweep(tmp_path, gaps=10)
    _, runs = load("lowrank", tmp_path, None)
    analysis = analyse(runs, "lowrank")
    text = markdown(analysis)
    assert "2 points: a law needs at least 3" in text and "No test of the exponents" in text
    assert save(scaling_figure(analysis), tmp_path / "x")[0].read_text().startswith("<?xml")


def test_a_note_names_each_curve_once_whatever_is_in_its_label(tmp_path: Path) -> None:
    rows = ["run_id,structure,size,seed,tokens,train_flops,val_loss"]
    for i, curve in enumerate(("dense", "dense, peak_lr=0.1", "dense, peak_lr=0.1, guide=fixed_steps")):
        rows.append(f'r{i},"{curve}",s,1,1000000,1e12,3.{i}')
    path = tmp_path / "x.csv"
    path.write_text("\n".join(rows) + "\n")
    table, notes = fit_rows(analyse(read_csv(path), "x"))
    curves = "dense; dense, peak_lr=0.1; dense, peak_lr=0.1, guide=fixed_steps"
    assert notes == [f"{curves}: 1 points: a law needs at least 3"]
    assert [row[2] for row in table] == ["- [1]"] * 3


def test_published_panel_shows_only_what_the_table_shares() -> None:
    path = ROOT / "results" / "published" / FILE
    assert path is not None
    published = published_runs(path)
    assert len(published.table) == 19
    shared = shared_structures(published, ["dense", "lowrank-63", "lowrank-32"])
    assert shared is not None and structures_of(shared.table) == ["dense", "lowrank-63", "lowrank-32"]
    assert len(shared.table) == 12
    assert shared_structures(published, ["dense", "mamba"]) is None


def test_both_panels_share_one_scale(tmp_path: Path) -> None:
    fill_sweep(tmp_path)
    _, runs = load("lowrank", tmp_path, None)
    path = ROOT / "results" / "published" / FILE
    assert path is not None
    figure = scaling_figure(analyse(runs, "a"), analyse(published_runs(path), "b"), "source")
    spans = [(np.ptp(np.log(a.get_xlim())), np.ptp(np.log(a.get_ylim()))) for a in figure.axes]
    np.testing.assert_allclose(spans[0], spans[1], rtol=1e-9)
    box = [a.get_window_extent() for a in figure.axes]
    assert box[0].width == pytest.approx(box[1].width, rel=0.02)
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert 3 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 9
        x, y = axes.get_xlim(), axes.get_ylim()
        for line in axes.get_lines():
            data = np.asarray(line.get_xydata())
            assert np.all((x[0] < data[:, 0]) & (data[:, 0] < x[1]))
            assert np.all((y[0] < data[:, 1]) & (data[:, 1] < y[1]))


def test_a_structure_looks_the_same_in_every_company() -> None:
    assert (
        looks(["dense", "lowrank-63"])["lowrank-63"] == looks(["lowrank-63", "blockdense-32"])["lowrank-63"]
    )
    many = looks(
        ["dense", *(f"{f}-{b}" for f in ("lowrank", "blockdense", "blockshuffle") for b in (63, 32))]
    )
    assert len({(look.colour, look.marker, look.filled) for look in many.values()}) == 7
    others = looks([f"new{chr(97 + i)}" for i in range(12)])
    assert len({(look.colour, look.marker, look.filled) for look in others.values()}) == 12


@pytest.mark.parametrize(("low", "high"), [(2.2, 3.2), (2.50, 2.53), (1.0, 9.0), (0.01, 0.02)])
def test_ticks_are_round_and_enough(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 9 and low <= ticks[0] and ticks[-1] <= high
    assert all(len(f"{tick:g}") <= 6 for tick in ticks)


def test_report_json_is_full_precision_and_sorted(tmp_path: Path) -> None:
    fill_sweep(tmp_path)
    _, runs = load("lowrank", tmp_path, None)
    text = to_json(analyse(runs, "lowrank"))
    body = json.loads(text)
    assert text == json.dumps(body, indent=1, sort_keys=True) + "\n"
    assert body["runs"][0]["val_loss"] == runs.table["val_loss"][0]
    assert body["fits"]["dense"]["power"]["interval_method"] == "delta method, t"
    assert body["coverage"]["done"] == 12 and "F(2, 6)" in body["comparison"]["verdict"]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_fit_prints_markdown_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foreign.csv"
    path.write_text(
        "arch,C,loss\n" + "".join(f"a,{c:g},{3 * (c / 1e12) ** -0.07!r}\n" for c in (1e11, 1e12, 1e13))
    )
    options = ["fit", str(path), "--map", "arch=structure", "--map", "C=train_flops,loss=val_loss"]
    assert command(monkeypatch, *options) == 0
    assert "| structure |" in capsys.readouterr().out
    assert command(monkeypatch, *options, "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["fits"]["a"]["power"]["params"]["alpha"] == pytest.approx(0.07, abs=1e-8)
    assert body["runs"][0]["params"] is None


def test_fit_by_another_convention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_sweep(tmp_path)
    monkeypatch.setenv("SCALING_RESULTS", str(tmp_path))
    assert command(monkeypatch, "fit", "lowrank", "--flops", "6N", "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["train_flops"] == pytest.approx(0.9e11)


def test_without_a_name_only_tracked_tables_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_sweep(tmp_path)
    before = contents(drawn("lowrank", tmp_path, tmp_path, None, False))
    changed = tmp_path / "runs" / "00aa77"
    shutil.rmtree(changed)
    write_result_of(changed, val_loss=9.0)
    monkeypatch.setenv("SCALING_RESULTS", str(tmp_path))
    assert command(monkeypatch, "figures", "--no-published") == 0
    captured = capsys.readouterr()
    assert remarks(captured.err) == []
    # The table itself is what they are drawn from.
    del before["lowrank_runs.csv"]
    assert contents([Path(line) for line in captured.out.split()]) == before


def write_result_of(folder: Path, **changes: object) -> None:
    folder.mkdir()
    write_result(folder, result(folder.name, **changes))


def test_fewer_finished_runs_replace_a_table_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_sweep(tmp_path)
    before = contents(drawn("lowrank", tmp_path, tmp_path, None, False))
    for run_id in ("00aa77", "01aa77"):
        shutil.rmtree(tmp_path / "runs" / run_id)
    monkeypatch.setenv("SCALING_RESULTS", str(tmp_path))
    options = ["figures", "lowrank", "--no-published"]
    assert command(monkeypatch, *options) == 0
    captured = capsys.readouterr()
    assert contents([Path(line) for line in captured.out.split()]) == before
    assert "10 of 12 runs finished" in captured.err and len(remarks(captured.err)) == 1
    fewer = tmp_path / "elsewhere" / "lowrank.csv"
    fewer.parent.mkdir()
    fewer.write_text("\n".join(before["lowrank_runs.csv"].decode().splitlines()[:5]))
    assert command(monkeypatch, "figures", str(fewer)) == 2
    captured = capsys.readouterr()
    assert "has 4 finished runs" in captured.err and len(remarks(captured.err)) == 1
    assert command(monkeypatch, *options, "--force") == 0
    assert len(read_csv(tmp_path / "tables" / "lowrank_runs.csv").table) == 10


def test_a_complete_smaller_sweep_replaces_its_table_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_sweep(tmp_path)
    drawn("lowrank", tmp_path, tmp_path, None, False)
    record = tmp_path / "sweeps" / "lowrank.json"
    body = json.loads(record.read_text())
    record.write_text(json.dumps(body | {"run_ids": body["run_ids"][:8]}))
    drawn("lowrank", tmp_path, tmp_path, None, False)
    assert "8 of 8 runs finished" in capsys.readouterr().err
    assert len(read_csv(tmp_path / "tables" / "lowrank_runs.csv").table) == 8


def test_fit_says_where_a_table_stands_in_for_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_sweep(tmp_path)
    drawn("lowrank", tmp_path, tmp_path, None, False)
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setenv("SCALING_RESULTS", str(tmp_path))
    assert command(monkeypatch, "fit", "lowrank") == 0
    error = capsys.readouterr().err
    assert "read from the tracked table" in error and len(remarks(error)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "lowrank", "--results", __file__], "is no folder"),
        (["figures", "--results", __file__], "is no folder"),
        (["fit", "x" * 5000], "File name too long"),
        (["fit", str(TRACKED), "--irreducible", "nan"], "--irreducible nan: must lie"),
        (["fit", str(TRACKED), "--irreducible", "-1"], "--irreducible -1: must lie"),
        (["fit", "nothing"], "no sweep 'nothing'"),
        (["fit", "none.csv"], "no such file"),
        (["fit", "../etc"], "neither a file nor the name of a sweep"),
        (["fit", "lowrank", "--map", "a=val_loss"], "leave --map out"),
        (["figures"], "no table"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(remarks(captured.err)) == 1


def test_unwritable_output_is_a_user_mistake(tmp_path: Path) -> None:
    fill_sweep(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match="cannot be written"):
        drawn("lowrank", tmp_path, tmp_path / "file", None, False)


def test_tracked_csv_of_a_foreign_table_reads_without_its_map(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("arch,C,loss\na,1e11,3\na,1e12,2.8\na,1e13,2.7\n")
    drawn(str(path), tmp_path, tmp_path, ["arch=structure,C=train_flops,loss=val_loss"], True)
    assert read_csv(tmp_path / "tables" / "x_runs.csv").table["val_loss"].tolist() == [3, 2.8, 2.7]
