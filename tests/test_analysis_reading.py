"""Anyone's table: JSONL and parquet, columns by other names, conditions, groups, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.runs.loading import last_points, load, run_labels, with_flops
from analysis.runs.reading import guess, read_table
from analysis.runs.table import ONE_CURVE, rows_meeting

ROWS = [
    {"N": 1e7, "D": 2e8, "loss": 3.5, "arch": "dense", "note": "a, b", "width": 64},
    {"N": 4e7, "D": 8e8, "loss": 3.1, "arch": "dense", "note": None, "width": 128},
    {"N": 1e7, "D": 4e8, "loss": 3.6, "arch": "lowrank", "note": "c", "width": 64},
]


def files(folder: Path) -> list[Path]:
    frame = pd.DataFrame(ROWS)
    paths = [folder / f"t{ending}" for ending in (".csv", ".tsv", ".jsonl", ".parquet")]
    frame.to_csv(paths[0], index=False)
    frame.to_csv(paths[1], index=False, sep="\t")
    paths[2].write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    frame.to_parquet(paths[3])
    return paths


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    tables = []
    for path in files(tmp_path):
        runs, words = read_table(path, needed=("val_loss",))
        assert words is not None and "N as params" in words and "arch as structure" in words
        tables.append(runs.table)
    for table in tables:
        assert table["params"].tolist() == [1e7, 4e7, 1e7]
        assert table["val_loss"].tolist() == [3.5, 3.1, 3.6]
        assert table["structure"].tolist() == ["dense", "dense", "lowrank"]
        assert table["note"].tolist() == ["a, b", "", "c"] and table["train_flops"].isna().all()
    assert [float(v) for v in tables[3]["width"]] == [float(v) for v in tables[0]["width"]]


def test_names_are_guessed_only_where_they_can_mean_one_thing() -> None:
    assert guess(["N", "D", "loss"], {}) == {"N": "params", "D": "tokens", "loss": "val_loss"}
    assert guess(["loss", "final_loss"], {}) == {}
    assert guess(["val_loss", "loss"], {}) == {}
    assert guess(["N", "n_params_total"], {"n_params_total": "params"}) == {}


def test_a_condition_keeps_rows(tmp_path: Path) -> None:
    runs, _ = read_table(files(tmp_path)[0], needed=("val_loss",))
    assert sum(rows_meeting(runs.table, "val_loss < 3.55 and structure == 'dense'")) == 2
    assert sum(rows_meeting(runs.table, "width == 128")) == 1
    for condition, words in (
        ("val_loss <", "write a condition over"),
        ("depth > 3", "'depth' is not defined"),
        ("val_loss + 1", "is no condition"),
        ("val_loss > 9", "none of 3 runs meets it"),
        ("__import__('os').getcwd() == ''", "--filter"),
    ):
        with pytest.raises(AnalysisError, match=words) as caught:
            rows_meeting(runs.table, condition)
        assert "\n" not in str(caught.value)


def test_repeats_are_sought_among_the_rows_that_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("set,N,D,loss\na,1e7,1e8,3\na,2e7,1e8,2.9\nb,1e7,1e8,3\n")
    with pytest.raises(AnalysisError, match="row 4 repeats row 2"):
        read_table(path, needed=("val_loss",))
    assert len(read_table(path, needed=("val_loss",), condition="set == 'a'")[0].table) == 2
    # The file's own names may be used, whatever they are read as.
    grouped = load(str(path), tmp_path, None, ("val_loss",), "set", "set == 'a' and N < 1.5e7")[1].table
    assert grouped["structure"].tolist() == ["a"] and grouped["params"].tolist() == [1e7]


def test_group_makes_any_column_the_structure(tmp_path: Path) -> None:
    path = files(tmp_path)[0]
    _, runs = load(str(path), tmp_path, None, ("val_loss",), "width")
    assert sorted(runs.table["structure"]) == ["128", "64", "64"]
    with pytest.raises(AnalysisError, match="--map or --group names column 'depth'"):
        load(str(path), tmp_path, None, ("val_loss",), "depth")


def test_flops_are_six_n_d_where_none_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, _ = read_table(files(tmp_path)[0], needed=("val_loss",))
    filled = with_flops(runs).table
    np.testing.assert_allclose(filled["train_flops"], 6 * filled["params"] * filled["tokens"])
    assert "taken as 6 params tokens" in capsys.readouterr().err
    alone = tmp_path / "alone.csv"
    alone.write_text("C,loss\n1e15,3.1\n2e15,3.0\n")
    table = read_table(alone, needed=("val_loss",))[0].table
    assert set(table["structure"]) == {ONE_CURVE} and table["train_flops"].tolist() == [1e15, 2e15]


def test_checkpoints_are_told_by_the_column_of_their_run(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("run,N,D,loss\nr1,1e7,1e8,3\nr1,1e7,2e8,2.9\nr2,2e7,1e8,2.8\n")
    runs, _ = read_table(path, needed=("val_loss",))
    assert sorted(run_labels(runs, None) or []) == ["r1", "r1", "r2"]
    with pytest.raises(AnalysisError, match="--cluster model: no such column"):
        run_labels(runs, "model")
    path.write_text("run,N,D,loss\nr1,1e7,1e8,3\nr2,2e7,1e8,2.8\n")
    assert run_labels(read_table(path, needed=("val_loss",))[0], None) is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.jsonl", '{"a": 1}\n{bad\n', "row 2 is no JSON"),
        ("t.jsonl", "[1, 2]\n", "row 1 is no JSON object"),
        ("t.jsonl", "", "is empty"),
        ("t.jsonl", '{"N": 1e7, "D": 1e8}\n', "no column val_loss"),
        ("t.jsonl", '{"loss": NaN}\n', "row 1: val_loss = nan is not finite"),
        ("t.parquet", "not parquet", "t.parquet"),
        ("t.csv", "1e7,2e8,3.5\n1e7,4e8,3.4\n", "row 1 holds numbers"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(AnalysisError, match=words) as caught:
        read_table(path, needed=("val_loss",))
    assert "\n" not in str(caught.value)


def test_rows_that_cannot_stand_are_dropped_by_a_condition(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "N,D,loss,state,seconds\n1e7,1e8,nan,finished,12s\n2e7,-1,2.9,finished,\n3e7,1e8,2.8,x,7\n"
    )
    with pytest.raises(AnalysisError, match="row 2: val_loss = nan is not finite"):
        read_table(path, needed=("val_loss",))
    table = read_table(path, needed=("val_loss",), condition="val_loss < 5 and tokens > 0")[0].table
    assert table["val_loss"].tolist() == [2.8] and table["seconds"].tolist() == [7.0]


def test_checkpoints_may_share_a_run_id_and_are_compared_by_their_last(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("run_id,N,D,loss\nr1,1e7,1e8,3\nr1,1e7,2e8,2.9\nr2,2e7,1e8,2.8\nr2,2e7,3e8,2.6\n")
    runs, _ = read_table(path, needed=("val_loss",))
    assert sorted(run_labels(runs, None) or []) == ["r1", "r1", "r2", "r2"]
    assert sorted(last_points(runs, None).table["val_loss"]) == [2.6, 2.9]
