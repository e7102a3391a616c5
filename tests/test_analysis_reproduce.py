"""Published studies fitted again: what must hold, planted defects, and the tables of published facts."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.reproduce import gemstones, gemstones_lines, kyo, porian
from analysis.reproduce.report import cells, markdown, summary
from analysis.reproduce.rows import DIFFERS, LOWER, NEVER_LEFT, REPRODUCED, Row, compare, slope
from analysis.reproduce.studies import SOURCES, STUDIES, chosen, published_folder

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PUBLISHED = RESULTS / "published"
VERDICTS = {
    "porian": {REPRODUCED: 74, LOWER: 1, NEVER_LEFT: 9, DIFFERS: 6},
    "gemstones": {REPRODUCED: 22, LOWER: 20},
    "gemstones-lines": {REPRODUCED: 5, DIFFERS: 19},
    "gadre": {REPRODUCED: 2},
    "nanochat": {REPRODUCED: 7, DIFFERS: 5},
    "kyo": {REPRODUCED: 5, LOWER: 1},
    "datablations": {REPRODUCED: 3},
    "fig1": {REPRODUCED: 14},
}
SLOW = {"gemstones"}


@cache
def fitted(name: str) -> list[Row]:
    if name not in SLOW:
        return STUDIES[name](PUBLISHED)
    # The command takes one thread, with which these small matrices are several times faster.
    rows = json.loads(command(name, "--json").stdout)["rows"]
    return [Row(**{key: value for key, value in row.items() if key != "holds"}) for row in rows]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "analysis", "reproduce", *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in STUDIES]
)
def test_every_row_of_a_study_holds(name: str) -> None:
    rows = fitted(name)
    assert [row for row in rows if not row.holds] == []
    assert Counter(row.verdict for row in rows) == VERDICTS[name]
    assert all(row.note for row in rows if row.verdict == DIFFERS), "a difference without its reason"
    assert len({row.quantity for row in rows}) == len(rows)
    tracked = (RESULTS / "tables" / "reproduce.md").read_text()
    lines = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", tracked, re.MULTILINE | re.DOTALL)[0].splitlines()
    shown = {cell[1].strip(): cell[-3].strip() for line in lines if len(cell := line.split("|")) > 5}
    assert {row.quantity: row.verdict for row in rows}.items() <= shown.items()


def test_exponents_of_porian_agree_to_a_millionth() -> None:
    exponents = [row for row in fitted("porian") if " exponent of " in row.quantity]
    assert len(exponents) == 60
    assert max(abs(row.ours - row.published) for row in exponents) < 1e-6


def test_a_fit_that_never_left_its_start_is_detected() -> None:
    assert porian.is_start(math.exp(5), math.exp(0.5), 0.1)
    assert porian.is_start(math.exp(5), 1.0, 0.1)
    assert not porian.is_start(math.exp(5), 1.0, 0.1 + 1e-6)
    stuck = [row for row in fitted("porian") if row.verdict == NEVER_LEFT]
    assert len(stuck) == 9
    # A weighted fit that did move is near the plain one, and theirs is not.
    plain = {
        row.quantity.replace("basic", "weighted"): row.ours
        for row in fitted("porian")
        if "basic alpha" in row.quantity
    }
    assert all(abs(row.ours - plain[row.quantity]) < 0.02 for row in stuck)
    assert all(row.published == pytest.approx(0.1) for row in stuck)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of published facts with a few fits only."""
    folder = tmp_path / "published"
    shutil.copytree(PUBLISHED, folder)
    for name, rows in (("", 1), ("_more_sets", 0), ("_no_embeddings", 1), ("_shape", 0)):
        path = folder / f"gemstones_fits{name}.csv"
        pd.read_csv(path).head(rows).to_csv(path, index=False)
    return folder


def test_a_published_minimum_above_ours_had_not_converged(few: Path) -> None:
    total, without = gemstones.reproduce(few)
    assert (total.verdict, without.verdict) == (LOWER, REPRODUCED)
    assert "exponents moved" in total.note and "exponents agree" in without.note


def test_points_that_are_not_the_authors_are_no_reproduction(few: Path) -> None:
    points = pd.read_csv(few / "gemstones_points.csv")
    points.loc[points["set"] == "hot", "val_loss"] *= 1.001
    points.to_csv(few / "gemstones_points.csv", index=False)
    rows = gemstones.reproduce(few)
    assert {row.verdict for row in rows} == {DIFFERS} and not any(row.holds for row in rows)
    assert "not theirs" in rows[0].note


def test_parameters_and_flops_of_the_authors_models() -> None:
    width, depth = np.array([384.0, 2048.0]), np.array([13.0, 27.0])
    points = pd.read_csv(PUBLISHED / "gemstones_points.csv").drop_duplicates("run").set_index("run")
    theirs = points.loc[["PyGemma-384x13_pretrain", "PyGemma-2048x27_pretrain"], "params"]
    # The table counts the embedding and the head; the fits without embeddings take off one of them.
    assert gemstones_lines.blocks(width, depth) + 2 * 50304 * width == pytest.approx(
        theirs.to_numpy(), abs=0.5
    )
    ratio = gemstones_lines.flops_per_token(width, depth) / (6 * theirs.to_numpy())
    assert ratio == pytest.approx(1, abs=0.06)


def test_the_envelope_is_convex_and_falls() -> None:
    flops = np.geomspace(1, 1e4, 30)
    loss = 2 + flops**-0.3
    worse = np.concatenate([loss, loss * 1.2])
    on = gemstones_lines.envelope(np.concatenate([flops, 1.5 * flops]), worse)
    assert (on < 30).all() and {0, 29} <= set(on)
    assert (np.diff(worse[on]) < 0).all()


def test_the_linear_programme_recovers_a_planted_law(tmp_path: Path) -> None:
    n, d = np.geomspace(1e8, 1e10, 40), np.geomspace(1e11, 1e9, 40) * np.tile([1.0, 3.0], 20)
    planted = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37}
    loss = 1.7 + 400 * n**-0.34 + 2000 * d**-0.37
    pd.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": loss}).to_csv(
        tmp_path / "kyo_points.csv", index=False
    )
    pd.DataFrame([planted | {"objective": 0.0}]).to_csv(tmp_path / "kyo_fits.csv", index=False)
    rows = {row.quantity: row for row in kyo.reproduce(tmp_path)}
    assert {name: rows[name].ours for name in planted} == pytest.approx(planted, rel=1e-3)


def test_a_weighted_slope_counts_repeated_points() -> None:
    x, y = np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.5, 4.0])
    weighted = slope(x, y, np.array([1.0, 2.0, 1.0]))
    assert weighted == pytest.approx(slope(x[[0, 1, 1, 2]], y[[0, 1, 1, 2]]))


def test_a_difference_without_a_known_reason_does_not_hold() -> None:
    assert compare("s", "q", 1.0, 1.1, 0.2).holds
    assert not compare("s", "q", 1.0, 1.1, 0.01).holds
    known = compare("s", "q", 1.0, 1.1, 0.01, "first; the reason", expected=False)
    assert known.holds and known.verdict == DIFFERS
    text = summary({"s": [known, known]})
    assert text[0] == "2 numbers: 2 differs." and "- s, 2: the reason" in text
    failed = summary({"s": [compare("s", "q", 1.0, 1.1, 0.01)]})
    assert any("should not" in line for line in failed)


def test_rounding_errors_do_not_reach_the_table() -> None:
    noise = Row("fig1", "q", 0.5, 0.5 + 1e-16, 1e-6, REPRODUCED)
    assert cells(noise)[1:4] == ("0.5", "0.5000000", "0")
    assert markdown({"fig1": [noise]}).count("\n## ") == 1


def test_a_study_that_does_not_exist_is_named() -> None:
    assert chosen(["kyo", "porian"]) == ["porian", "kyo"] and chosen([]) == list(STUDIES)
    with pytest.raises(AnalysisError, match="no study 'kio'; there are: porian"):
        chosen(["kio"])
    assert set(SOURCES) == set(STUDIES)
    assert published_folder(Path("nowhere")) == PUBLISHED


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"nanochat_optima\.csv: no such file"):
        STUDIES["nanochat"](tmp_path)


def test_the_command_prints_writes_and_fails_where_a_number_differs(few: Path, tmp_path: Path) -> None:
    good = command("fig1", "nanochat", "--out", str(tmp_path), "--json")
    assert good.returncode == 0, good.stderr
    rows = json.loads(good.stdout)["rows"]
    assert {row["study"] for row in rows} == {"fig1", "nanochat"} and all(row["holds"] for row in rows)
    written = (tmp_path / "reproduce_nanochat_fig1.md").read_text()
    targets = pd.read_csv(few / "nanochat_exponents.csv").assign(n_exponent=0.9)
    targets.to_csv(few / "nanochat_exponents.csv", index=False)
    bad = command("nanochat", "--results", str(few.parent))
    assert bad.returncode == 1 and "They differ, and should not" in bad.stdout
    assert "| transformer_only: exponent of N, budgets as run | 0.7 | 0.6965 |" in written


def test_every_published_table_has_its_source_and_is_small() -> None:
    sources = (PUBLISHED / "SOURCES.md").read_text()
    named = set(re.findall(r"^\| `([^`]+\.csv)`", sources, re.MULTILINE))
    files = {path.name for path in PUBLISHED.glob("*.csv")}
    assert named == files
    assert all((PUBLISHED / name).stat().st_size < 300_000 for name in files)
