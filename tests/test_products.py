"""Figures as products of tracked tables: what is drawn, on record, stale, and how broken tables are told."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_analysis_figures import contents, fill_sweep, remarks
from test_analysis_table import drawn, make_sweep, result

from analysis.__main__ import main
from analysis.errors import AnalysisError
from analysis.products.catalogue import catalogue, of_table
from analysis.products.draw import draw_products
from analysis.products.manifest import check, read_manifest, sha256
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.runs.export import export
from analysis.runs.reading import read_csv

pytestmark = pytest.mark.usefixtures("few_figures")

ROOT = Path(__file__).parents[1]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["analysis", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def tracked_sweep(root: Path) -> list[Path]:
    """A small results folder whose sweep has been exported and drawn without published points."""
    fill_sweep(root)
    return drawn("lowrank", root, root, None, False)


def known(root: Path) -> list[str]:
    return [product.name for product in catalogue(Tracked(root, None))]


def test_every_tracked_figure_of_the_repository_is_on_record_with_what_it_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    results = ROOT / "results"
    figures = read_manifest(results)["figures"]
    assert set(figures) == {product.name for product in catalogue(Tracked(results, results))}
    tables = read_manifest(results)["tables"]
    for name, entry in figures.items():
        assert entry["command"] == f"python -m analysis figures --only {name}"
        assert {"python", "numpy", "scipy", "pandas", "matplotlib"} == set(entry["versions"])
        assert entry["git_sha"] and entry["shows"] and entry["inputs"]
        for file, digest in {**entry["inputs"], **entry["outputs"]}.items():
            assert sha256(results / file) == digest, f"{name}: {file}; run make figures"
            if file.startswith("tables/") and file.endswith("_runs.csv"):
                assert tables[digest]["run_ids"]["done"]
    assert not {p.stem for p in (results / "figures").iterdir()} - set(figures), "a figure of no product"


def test_a_second_drawing_changes_no_file_and_no_entry(tmp_path: Path) -> None:
    paths = tracked_sweep(tmp_path)
    manifest = tmp_path / "manifest.json"
    before, entries = contents(paths), manifest.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in [*paths, manifest]}
    assert contents(drawn("lowrank", tmp_path, tmp_path, None, False)) == before
    assert manifest.read_bytes() == entries
    assert {path: path.stat().st_mtime_ns for path in [*paths, manifest]} == times


def test_from_nothing_come_the_same_bytes(tmp_path: Path) -> None:
    before = contents(tracked_sweep(tmp_path))
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    (tmp_path / "manifest.json").unlink()
    assert contents(drawn("lowrank", tmp_path, tmp_path, None, False)) == before


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_a_figure_that_was_edited_is_stale_and_mended(tmp_path: Path, ending: str) -> None:
    paths = tracked_sweep(tmp_path)
    before = contents(paths)
    edited = tmp_path / "figures" / f"lowrank_scaling.{ending}"
    edited.write_bytes(edited.read_bytes() + b" ")
    stale = check(tmp_path, known(tmp_path))
    assert [(one.name, one.reasons) for one in stale] == [
        ("lowrank_scaling", (f"figures/lowrank_scaling.{ending} has changed",))
    ]
    assert contents(drawn("lowrank", tmp_path, tmp_path, None, False)) == before
    assert check(tmp_path, known(tmp_path)) == []


def two_sweeps(root: Path) -> None:
    tracked_sweep(root)
    other = (root / "tables" / "lowrank_runs.csv").read_text().replace("cpu-", "gpu-")
    (root / "other.csv").write_text(other)
    drawn(str(root / "other.csv"), root, root, None, False)


def test_check_names_exactly_the_figures_that_a_table_feeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two_sweeps(tmp_path)
    folder = ("--results", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tracked = Tracked(tmp_path, None)
    fed = {product.name for product in of_table(catalogue(tracked), tracked, "other")}
    assert len(fed) >= 2 and not any(name.startswith("lowrank") for name in fed)
    table = tmp_path / "tables" / "other_runs.csv"
    whole = table.read_text()
    capsys.readouterr()

    table.write_text(whole.replace("r", "r", 1).rstrip("\n").rsplit("\n", 1)[0] + "\n")
    assert command(monkeypatch, "figures", "--check", "--no-published", *folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines} == fed
    assert all(line.endswith("tables/other_runs.csv has changed") for line in lines)

    table.unlink()
    assert command(monkeypatch, "figures", "--check", "--no-published", *folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines} == fed
    assert all(line.endswith("tables/other_runs.csv is gone") for line in lines)

    table.write_text(whole)
    assert command(monkeypatch, "figures", "--check", "--no-published", *folder) == 0
    assert "follow from the tracked tables" in capsys.readouterr().out


def test_a_table_that_was_never_drawn_is_named(tmp_path: Path) -> None:
    tracked_sweep(tmp_path)
    shutil.copy(tmp_path / "tables" / "lowrank_runs.csv", tmp_path / "later.csv")
    export(str(tmp_path / "later.csv"), tmp_path, tmp_path, None)
    stale = {one.name: one.reasons for one in check(tmp_path, known(tmp_path))}
    assert stale and all(reasons == ("has not been drawn yet",) for reasons in stale.values())
    assert {name.split("_")[0] for name in stale} == {"later"}


def test_check_without_a_manifest_or_with_a_damaged_one_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked_sweep(tmp_path)
    manifest = tmp_path / "manifest.json"
    for text in (None, "{", "[]", '{"schema": 1, "figures": {"x": {}}, "tables": {}}', '{"schema": 99}'):
        manifest.unlink(missing_ok=True)
        if text is not None:
            manifest.write_text(text)
        capsys.readouterr()
        assert command(monkeypatch, "figures", "--check", "--results", str(tmp_path)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(manifest) in error and "analysis figures" in error


def test_a_broken_table_is_told_and_all_others_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked_sweep(tmp_path)
    (tmp_path / "tables" / "bad_runs.csv").write_text("params,val_loss\n1,not a loss\n")
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    capsys.readouterr()
    assert command(monkeypatch, "figures", "--no-published", "--results", str(tmp_path)) == 2
    captured = capsys.readouterr()
    (line,) = remarks(captured.err)
    assert "bad_runs.csv" in line and (tmp_path / "figures" / "lowrank_scaling.svg").is_file()


def test_a_product_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    table = tmp_path / "tables" / "t.csv"
    table.parent.mkdir()
    table.write_text("x\n")

    def fail() -> Made:
        raise AnalysisError("t.csv: row 2 is no number; mend it")

    products = [
        Product("good", "something", (table,), lambda: Made(texts={"good.md": "good\n"})),
        Product("bad", "nothing", (table,), fail),
    ]
    outcome = draw_products(products, Tracked(tmp_path, None), None)
    assert outcome.problems == ("bad: t.csv: row 2 is no number; mend it",)
    assert list(read_manifest(tmp_path)["figures"]) == ["good"]


def test_only_draws_one_and_keeps_the_record_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked_sweep(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "figures" / "lowrank_scaling.pdf").unlink()
    (tmp_path / "figures" / "lowrank_scaling.svg").unlink()
    words = ("figures", "--no-published", "--results", str(tmp_path), "--only")
    capsys.readouterr()
    assert command(monkeypatch, *words, "lowrank_scaling") == 0
    drawn_now = {Path(line).name for line in capsys.readouterr().out.split()}
    assert drawn_now == {"lowrank_scaling.svg", "lowrank_scaling.pdf", "lowrank_scaling.png", "manifest.json"}
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert command(monkeypatch, *words, "lowrank_scalin") == 2
    error = capsys.readouterr().err
    assert "did you mean 'lowrank_scaling'?" in error and error.count("\n") == 1


@pytest.mark.slow
def test_several_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    before = contents(tracked_sweep(tmp_path))
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    tracked = Tracked(tmp_path, None)
    products = catalogue(tracked)
    # As many products as are worth a second process: the same ones, said twice, are one file.
    outcome = draw_products(products * 3, tracked, None, jobs=2)
    assert not outcome.problems
    after = contents([path for path in outcome.paths])
    assert {name: before[name] for name in after} == after


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("figures", "--check", "lowrank"), "name no sweep"),
        (("figures", "--force"), "--force: is for one sweep"),
        (("figures", "--out", "x"), "--out: is for one sweep"),
        (("figures", "--only", "nothing"), "no such figure"),
        (("export", "nothing"), "there is no sweep 'nothing'"),
        (("report", "nothing"), "there is no sweep 'nothing'"),
        (("report", "--out", "x"), "--out and --map"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SCALING_RESULTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


def lost_sweep(root: Path) -> None:
    """A sweep of which runs are done, diverged, failed, corrupted and missing."""
    fill_sweep(root)
    runs: dict[str, dict[str, object] | None] = {}
    for run_id in ("d1", "m1"):
        runs[run_id] = None
    make_sweep(root, "extra", runs)
    record = root / "sweeps" / "lowrank.json"
    body = json.loads(record.read_text())
    body["run_ids"] += ["failed00", "diverged00", "broken00", "missing00"]
    record.write_text(json.dumps(body))
    failed = root / "runs" / "failed00"
    failed.mkdir()
    (failed / "status.json").write_text(json.dumps({"state": "failed"}))
    (failed / "error.txt").write_text("Traceback\n  line\nMemoryError: 3 GiB wanted\n")
    diverged = root / "runs" / "diverged00"
    make_sweep_run(diverged, state="diverged", val_loss=None, diverged_step=7)
    broken = root / "runs" / "broken00"
    broken.mkdir()
    (broken / "result.json").write_text('{"state": "done", "sha256": "0"}')


def make_sweep_run(folder: Path, **changes: object) -> None:
    from trainer.rundir import write_result

    folder.mkdir()
    content: Mapping[str, object] = {**result(folder.name, structure="dense", size="cpu-1"), **changes}
    write_result(folder, dict(content))


def test_export_keeps_runs_that_are_no_data_points_and_figures_still_come_out(tmp_path: Path) -> None:
    lost_sweep(tmp_path)
    _, runs, paths = export("lowrank", tmp_path, tmp_path, None)
    assert (runs.failed, runs.diverged) == (("failed00",), ("diverged00",))
    assert (runs.corrupted, runs.missing) == (("broken00",), ("missing00",))
    again = read_csv(paths[0])
    assert again.absent() == runs.absent() and len(again.table) == 12
    names = contents(drawn("lowrank", tmp_path, tmp_path, None, False))
    assert b"12 of 16 runs; missing: missing00; diverged: diverged00; failed: failed00" in names["lowrank.md"]
    assert "lowrank_scaling.svg" in names
    ids = next(iter(read_manifest(tmp_path)["tables"].values()))["run_ids"]
    assert len(ids["done"]) == 12 and ids["failed"] == ["failed00"]
    hashes = next(iter(read_manifest(tmp_path)["tables"].values()))["result_sha256"]
    written = {run: json.loads((tmp_path / "runs" / run / "result.json").read_text()) for run in ids["done"]}
    assert hashes == {run: content["sha256"] for run, content in written.items()}
