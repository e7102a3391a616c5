"""The runs table: sweeps with gaps, hostile CSVs, order, round trips, and what an import costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.errors import AnalysisError
from analysis.products.draw import draw_table
from analysis.runs.labels import family_and_budget
from analysis.runs.reading import parse_map, read_csv
from analysis.runs.table import runs_table, structures_of, to_csv, use_flops
from trainer.rundir import write_result

HEADER = "structure,seed,params,tokens,train_flops,val_loss"
ROWS = ["dense,0,1e5,2e6,1e12,3.1", "dense,0,4e5,8e6,1.5e13,2.7", "lowrank-32,0,8e4,2e6,8e11,3.2"]


def drawn(table: str, results: Path, out: Path, maps: list[str] | None, published: bool) -> list[Path]:
    """Draw a sweep or CSV, all of which must come out; the paths without the manifest's."""
    outcome = draw_table(table, results, out, maps, published)
    assert not outcome.problems
    return [path for path in outcome.paths if path.name != "manifest.json"]


def csv_file(folder: Path, *lines: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def result(run_id: str, **changes: object) -> dict[str, object]:
    body: dict[str, object] = {
        "run_id": run_id, "schema": 1, "state": "done", "structure": "dense", "size": "cpu-s", "seed": 0,
        "params": 84934, "tokens": 1_700_000, "train_flops": 1.3e12 / 7, "val_loss": 2.9012345678901234,
        "val_loss_se": 0.0123, "val_bits_per_byte": None, "entropy_rate": None, "seconds": 12.5,
        "flops": {"paper": 1.3e12 / 7, "6N": 1.1e12}, "finished": "2031-01-01T00:00:00+00:00",
    }  # fmt: skip
    return body | changes


def make_sweep(results: Path, name: str, runs: dict[str, dict[str, object] | None]) -> None:
    for run_id, body in runs.items():
        folder = results / "runs" / run_id
        if body is not None:
            folder.mkdir(parents=True)
            write_result(folder, body)
    (results / "sweeps").mkdir(parents=True, exist_ok=True)
    record = {"sweep": name, "description": "", "file": "x.toml", "run_ids": list(runs)}
    (results / "sweeps" / f"{name}.json").write_text(json.dumps(record))


def test_sweep_counts_and_names_what_is_no_data_point(tmp_path: Path) -> None:
    make_sweep(
        tmp_path,
        "s",
        {
            "r1": result("r1"),
            "r2": result("r2", structure="lowrank-32"),
            "gone": None,
            "nan": result("nan", state="diverged", val_loss=None),
            "bad": result("bad", seed=5),
        },
    )
    (tmp_path / "runs" / "bad" / "result.json").write_text('{"run_id": "bad", "state": "done"}')
    failed = tmp_path / "runs" / "dead"
    failed.mkdir()
    (failed / "status.json").write_text('{"state": "failed"}')
    record = tmp_path / "sweeps" / "s.json"
    record.write_text(record.read_text().replace('"bad"]', '"bad", "dead"]'))
    runs = runs_table(tmp_path, "s")
    assert list(runs.table["run_id"]) == ["r1", "r2"]
    assert (runs.missing, runs.diverged, runs.failed, runs.corrupted) == (
        ("gone",), ("nan",), ("dead",), ("bad",),
    )  # fmt: skip
    text = "2 of 6 runs; missing: gone; diverged: nan; failed: dead; corrupted: bad"
    assert runs.coverage() == text
    again = read_csv(csv_file(tmp_path, to_csv(runs).rstrip("\n")))
    assert again.coverage() == text and again.table.equals(runs.table)
    assert to_csv(again) == to_csv(runs)
    assert "finished" not in runs.table and "sha256" not in runs.table


def test_sweep_numbers_survive_the_export_exactly(tmp_path: Path) -> None:
    make_sweep(tmp_path, "s", {"12e45678": result("12e45678")})
    row = runs_table(tmp_path, "s").table.iloc[0]
    assert row["train_flops"] == 1.3e12 / 7 and row["val_loss"] == 2.9012345678901234
    assert row["run_id"] == "12e45678"  # an id that looks like a number stays text
    assert use_flops(runs_table(tmp_path, "s"), "6N").table["train_flops"].tolist() == [1.1e12]
    with pytest.raises(AnalysisError, match=r"--flops causal.*use one of: paper, 6N"):
        use_flops(runs_table(tmp_path, "s"), "causal")
    with pytest.raises(AnalysisError, match="--flops per_token: the table does not count FLOPs so"):
        use_flops(runs_table(tmp_path, "s"), "per_token")


def test_unknown_sweep_lists_the_known(tmp_path: Path) -> None:
    make_sweep(tmp_path, "lowrank", {"r1": result("r1")})
    with pytest.raises(AnalysisError, match=r"no sweep 'lowrnk'; known: lowrank"):
        runs_table(tmp_path, "lowrnk")
    assert len(runs_table(tmp_path, None).table) == 1


def test_order_does_not_depend_on_the_file(tmp_path: Path) -> None:
    rows = [*ROWS, "blockdense-63,0,1,1,5,3", "lowrank-63,1,1,1,5,3", "lowrank-63,0,1,1,5,3", "zoo,0,1,1,5,3"]
    one = read_csv(csv_file(tmp_path, HEADER, *rows)).table
    two = read_csv(csv_file(tmp_path, HEADER, *reversed(rows))).table
    assert one.equals(two)
    assert structures_of(one) == ["dense", "lowrank-63", "lowrank-32", "blockdense-63", "zoo"]


@pytest.mark.parametrize(
    ("label", "parts"),
    [("lowrank-63", ("lowrank", 63)), ("LowRank 63%", ("lowrank", 63)), ("lowrank32", ("lowrank", 32))],
)
def test_labels_of_other_hands_are_understood(label: str, parts: tuple[str, float]) -> None:
    assert family_and_budget(label) == parts
    assert family_and_budget("dense") == ("dense", float("inf"))
    assert family_and_budget("7")[0] == "7"


def test_map_in_either_order_keeps_other_columns(tmp_path: Path) -> None:
    mapping = parse_map(["arch=structure,C=train_flops", "val_loss=loss"])
    assert mapping == {"arch": "structure", "C": "train_flops", "loss": "val_loss"}
    path = csv_file(
        tmp_path, "\ufeffarch, C ,loss,note,val_loss", 'a,1e12,3.0,"x, y",9', "", "a,2e12,2.5,z,9"
    )
    table = read_csv(path, mapping).table
    assert table["val_loss"].tolist() == [3.0, 2.5] and table["note"].tolist() == ["x, y", "z"]
    assert table["val_loss_unmapped"].tolist() == ["9", "9"]  # the column that gave way is kept
    assert table["params"].isna().all() and table["seed"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["loss"], "is not THEIRS=OURS"),
        (["a=b"], "no column of ours"),
        (["a=val_loss", "b=val_loss"], "mapped twice"),
    ],
)
def test_map_mistakes(pairs: list[str], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        parse_map(pairs)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["structure,train_flops,loss", "a,1,2"], "no column val_loss .*--map THEIRS=val_loss"),
        ([HEADER, *ROWS, "dense,0,1,1,1e12,nan"], "row 5: val_loss = nan is not finite"),
        ([HEADER, "", *ROWS, "dense,0,1,1,1e12,inf"], "row 6: val_loss = inf is not finite"),
        ([HEADER, "dense,0,1,1,1e12,"], "row 2: val_loss is empty"),
        ([HEADER, "dense,0,1,1,1e12,3 nats"], "row 2: val_loss = '3 nats' is not a number"),
        ([HEADER, "dense,0,1,-5,1e12,3"], "row 2: tokens = -5 is not above zero"),
        ([HEADER, "dense,0,1,1,0,3"], "row 2: train_flops = 0 is not above zero"),
        ([HEADER, "dense,1.5,1,1,2,3"], "row 2: seed = '1.5' is not a whole number"),
        ([HEADER, ",0,1,1,2,3"], "row 2: structure is empty"),
        ([HEADER, ROWS[0], "", ROWS[0]], "row 4 repeats row 2 .*column 'seed'"),
        ([HEADER, "dense,0,1,1,2,3,extra"], "row 2 has 7 cells where the header has 6"),
        (["a,b,c", "4,5,6"], "no column structure, train_flops, val_loss"),
        (["1,2,3", "4,5,6"], "row 1 holds numbers .*, so the file has no header line"),
        (["structure,val_loss,val_loss,train_flops", "a,1,2,3"], "'val_loss' appears twice"),
        ([HEADER], "a header and no rows"),
        ([""], "is empty"),
        (["structure;train_flops;val_loss", "a;1;2"], "separated by semicolons"),
        (["structure\ttrain_flops\tval_loss", "a\t1\t2"], "separated by tabs"),
        ([HEADER, "den\0se,0,1,1,2,3"], "zero bytes"),
        ([HEADER, '"dense,0,1,1,2,3'], "is no CSV"),
    ],
)
def test_hostile_csv_is_answered_in_one_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(AnalysisError, match=message) as caught:
        read_csv(csv_file(tmp_path, *lines))
    assert "\n" not in str(caught.value) and "t.csv" in str(caught.value)


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="no such file"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(AnalysisError, match="not UTF-8"):
        read_csv(tmp_path / "b.csv")
    with pytest.raises(AnalysisError, match="cannot be read"):
        read_csv(tmp_path)
    with pytest.raises(AnalysisError, match="names column 'x'"):
        read_csv(csv_file(tmp_path, HEADER, *ROWS), {"x": "val_loss"})


def test_analysis_imports_neither_torch_nor_sweeps() -> None:
    code = (
        "import sys, analysis.runs.table; light = set(sys.modules); import analysis.__main__, "
        "analysis.report, "
        "analysis.figures.scaling, analysis.figures.published;"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'sweeps', 'mlflow')];"
        "bad += [m for m in light if m in ('scipy', 'matplotlib')]; bad += ['pyplot'] * "
        "('matplotlib.pyplot' in sys.modules); sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
