"""Gaps to dense: planted gaps are recovered, arms are told apart, and little data claims little."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_analysis_table import csv_file, drawn, make_sweep, result

from analysis.__main__ import main
from analysis.arms.gaps import Difference, Gaps, Row, gaps, holm, paired
from analysis.arms.gaps_report import markdown, to_csv, to_json
from analysis.errors import AnalysisError
from analysis.figures.gaps import gaps_figure
from analysis.figures.style import hovers
from analysis.products.draw import write as write_product
from analysis.products.sweeps import gaps_made
from analysis.runs.loading import together
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs, runs_table
from analysis.runs.table import to_csv as runs_csv
from analysis.runs.treatments import FIXED_FLOPS, FIXED_STEPS, MORE_TOKENS, PLAIN, STATIC, structure_label

pytestmark = pytest.mark.usefixtures("few_figures")

# What is planted: loss over dense, by treatment.
PLANTED = {PLAIN: 0.10, FIXED_STEPS: 0.07, FIXED_FLOPS: 0.04, MORE_TOKENS: 0.05}
MODES = {PLAIN: "none", FIXED_STEPS: "fixed_steps", FIXED_FLOPS: "fixed_flops", MORE_TOKENS: "none"}
DENSE_FLOPS = {"s": 1e12, "m": 8e12}
DENSE_TOKENS = {"s": 1_000_000, "m": 3_000_000}


def arm(size: str, treatment: str | None, seed: int, loss: float, structure: str = "lowrank-32") -> Any:
    """One run as result.json holds it; treatment None is dense, of which low-rank runs cost 0.7 a token."""
    flops, tokens = DENSE_FLOPS[size], DENSE_TOKENS[size]
    body: dict[str, object] = {
        "size": size, "seed": seed, "val_loss": loss, "flops": None, "guide_stochastic": None,
        "d_model": 64, "d_ff": 256, "params": 1e5 if size == "s" else 3e5,
    }  # fmt: skip
    if treatment is None:
        return body | {
            "structure": "dense", "tokens": tokens, "unique_tokens": tokens, "train_flops": flops,
            "guide_mode": "none",
        }  # fmt: skip
    mode = MODES[treatment.removesuffix(STATIC)]
    seen = {FIXED_FLOPS: 1.3, MORE_TOKENS: 1 / 0.7}.get(treatment, 1.0) * tokens
    spent = {PLAIN: 0.7, FIXED_STEPS: 0.8, FIXED_STEPS + STATIC: 0.9}.get(treatment, 0.999) * flops
    return body | {
        "structure": structure, "tokens": round(seen), "train_flops": spent, "guide_mode": mode,
        "unique_tokens": round(seen) if treatment == MORE_TOKENS else tokens,
        "guide_stochastic": not treatment.endswith(STATIC) if mode != "none" else None,
    }  # fmt: skip


def planted(seeds: int = 3, noise: float = 0.002) -> list[Any]:
    """Both sizes, dense and four treatments; runs of one seed share a large offset, as real ones do."""
    rng = np.random.default_rng(4)
    rows = []
    for size, seed in itertools.product(DENSE_FLOPS, range(1, seeds + 1)):
        shared = 3.0 + 0.05 * rng.normal()
        rows.append(arm(size, None, seed, shared))
        rows += [arm(size, t, seed, shared + gap + noise * rng.normal()) for t, gap in PLANTED.items()]
    return rows


def table(rows: list[Any], **absent: Any) -> Runs:
    return Runs(pd.DataFrame([row | {"run_id": f"r{i:03}"} for i, row in enumerate(rows)]), **absent)


def row_of(found: Gaps, size: str, treatment: str, structure: str = "lowrank-32") -> Row:
    wanted = (size, structure, treatment)
    return next(r for r in found.rows if (r.place.size, r.place.structure, r.place.treatment) == wanted)


def test_planted_gaps_are_recovered_although_seeds_differ_more() -> None:
    found = gaps(table(planted()), "x")
    assert found.sizes == ["s", "m"] and len(found.rows) == 10 and not found.notes
    for size, (treatment, gap) in itertools.product(DENSE_FLOPS, PLANTED.items()):
        row = row_of(found, size, treatment)
        assert row.gap is not None and row.gap.interval is not None and row.gap.pairs == 3
        assert row.gap.interval[0] < gap < row.gap.interval[1]
        # Unpaired, the seeds' spread of 0.05 would hide gaps of this size.
        assert row.se is not None and row.se > 0.01 > row.gap.se  # type: ignore[operator]
        assert row.verdict == "worse than dense"
    assert row_of(found, "s", FIXED_FLOPS).flops_ratio == pytest.approx(0.999)
    differences = {(c.place.size, c.words): c.difference.mean for c in found.contrasts}
    assert len(differences) == 6
    assert differences["s", f"{FIXED_STEPS} − unguided"] == pytest.approx(-0.03, abs=0.006)
    assert differences["m", f"{FIXED_FLOPS} − {MORE_TOKENS}"] == pytest.approx(-0.01, abs=0.006)


def test_intervals_hold_the_planted_gap_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        shared = rng.normal(size=3)
        d = paired(
            dict(enumerate(shared + 0.1 + 0.01 * rng.normal(size=3))),
            dict(enumerate(shared + 0.01 * rng.normal(size=3))),
        )
        assert d is not None and d.interval is not None
        held += d.interval[0] < 0.1 < d.interval[1]
    assert 0.935 < held / 2000 < 0.965


def test_one_seed_gives_no_interval_and_says_so() -> None:
    found = gaps(table(planted(seeds=1)), "x")
    for row in found.rows:
        assert row.verdict == "" and row.se is None
        assert row.gap is None or (row.gap.interval, row.gap.p_value) == (None, None)
    text = markdown(found)
    assert text.count("one pair: no interval") == 8 + 6 and "the gap may be the seed's" in text
    assert "better" not in text and "worse" not in text


def test_unequal_seeds_are_paired_and_counted() -> None:
    rows = [row for row in planted() if not (row["structure"] == "dense" and row["seed"] == 2)]
    row = row_of(gaps(table(rows), "x"), "s", PLAIN)
    assert row.gap is not None and row.gap.pairs == 2 and row.seeds == (1, 2, 3)
    assert "| 3, 2 paired |" in markdown(gaps(table(rows), "x"))
    alone = [r for r in rows if r["structure"] != "dense" or r["seed"] == 1]
    only = [r for r in alone if r["structure"] == "dense" or r["seed"] != 1]
    assert "no seed shared with dense" in markdown(gaps(table(only), "x"))


def test_equal_differences_are_no_evidence() -> None:
    d = paired({1: 3.1, 2: 3.3}, {1: 3.0, 2: 3.2})
    assert d == Difference(2, pytest.approx(0.1)) and not d.settled


def test_holm_by_hand() -> None:
    values = [0.01, None, 0.04, 0.03, 0.5]
    given = [None if p is None else Difference(3, 0.0, 1.0, (-1, 1), p) for p in values]
    corrected = [None if d is None else d.holm for d in holm(given)]
    assert corrected == [pytest.approx(0.04), None, pytest.approx(0.09), pytest.approx(0.09), 0.5]


def test_static_guidance_is_an_arm_of_its_own_and_contrasted() -> None:
    rows = planted() + [arm("s", FIXED_STEPS + STATIC, seed, 3.0 + seed / 100) for seed in (1, 2, 3)]
    found = gaps(table(rows), "x")
    assert row_of(found, "s", FIXED_STEPS + STATIC).flops_ratio == pytest.approx(0.9)
    words = [c.words for c in found.contrasts if c.first == FIXED_STEPS + STATIC]
    assert words == [f"{FIXED_STEPS}{STATIC} − unguided", f"{FIXED_STEPS}{STATIC} − {FIXED_STEPS}"]


def test_diverged_runs_are_counted_in_their_arm(tmp_path: Path) -> None:
    runs: dict[str, dict[str, object] | None] = {}
    for i, row in enumerate(planted()):
        runs[f"r{i:03}"] = result(f"r{i:03}", **row)
    lost = arm("s", FIXED_STEPS, 4, 9.0) | {"state": "diverged", "val_loss": None, "train_flops": 1e11}
    stranger = arm("s", PLAIN, 1, 9.0, "mamba") | {"state": "diverged", "val_loss": None}
    unknown = arm("s", PLAIN, 1, 9.0) | {"state": "diverged", "val_loss": None, "size": "huge"}
    runs |= {
        "lost": result("lost", **lost),
        "str": result("str", **stranger),
        "unk": result("unk", **unknown),
    }
    make_sweep(tmp_path, "d", runs)
    # Its result holds the tokens that it saw; the budget is in its configuration.
    (tmp_path / "runs" / "lost" / "config.json").write_text(json.dumps({"tokens": DENSE_TOKENS["s"]}))
    read = runs_table(tmp_path, "d")
    path = tmp_path / "d_runs.csv"
    path.write_text(runs_csv(read))
    for table_ in (read, read_csv(path)):
        found = gaps(table_, "d")
        assert row_of(found, "s", FIXED_STEPS).diverged == 1
        assert sum(row.diverged for row in found.rows) == 1
        assert "3 (+ 1 diverged)" in markdown(found)
        assert "mamba (unguided) at size s: all 1 finished runs diverged" in found.notes[0]
        assert "cannot be told: unk" in found.notes[1]


def lost(size: str, treatment: str | None, *seeds: int) -> tuple[Any, ...]:
    return tuple(
        arm(size, treatment, seed, 9.0) | {"run_id": f"lost-{treatment}-{seed}", "state": "diverged"}
        for seed in seeds
    )


def without(rows: list[Any], gone: tuple[Any, ...]) -> list[Any]:
    keys = ("size", "guide_mode", "tokens", "structure", "seed")
    named = [[row[k] for k in keys] for row in gone]
    return [row for row in rows if [row[k] for k in keys] not in named]


def better_than_dense(seeds: int = 5) -> list[Any]:
    """Guidance, fixed steps, is better than dense, and unguided worse, in every seed."""
    noise = {None: 0.0, PLAIN: 0.001, FIXED_STEPS: 0.002}
    means = {None: 3.0, PLAIN: 3.05, FIXED_STEPS: 2.95}
    return [
        arm("s", t, seed, mean + seed / 10 + noise[t] * (seed % 3))
        for t, mean in means.items()
        for seed in range(1, seeds + 1)
    ]


def test_an_arm_that_lost_runs_is_not_called_better() -> None:
    gone = lost("s", FIXED_STEPS, 2, 5)
    whole = gaps(table(better_than_dense()), "x")
    assert row_of(whole, "s", FIXED_STEPS).verdict == "better than dense"
    assert [c.verdict for c in whole.contrasts] == [f"{FIXED_STEPS} is better"]
    found = gaps(table(without(better_than_dense(), gone), lost=gone, diverged=("lost",)), "x")
    row = row_of(found, "s", FIXED_STEPS)
    assert (row.diverged, row.reference_diverged, row.reference_runs) == (2, 0, 5)
    assert row.gap is not None and row.gap.settled and row.gap.mean < 0
    assert row.verdict == "not judged: 2 of 5 diverged"
    (contrast,) = found.contrasts
    assert contrast.difference.settled
    assert contrast.verdict == f"not judged: 2 of 5 diverged ({FIXED_STEPS})"
    text = markdown(found)
    assert "better than dense" not in text and "is better" not in text
    assert "| 3 (2 of 5, 0 of 5 diverged) |" in text and "nothing is judged" in text
    assert "nothing is judged" not in markdown(whole)
    (line,) = (r for r in csv.DictReader(io.StringIO(to_csv(found))) if r["treatment"] == FIXED_STEPS)
    assert (line["diverged"], line["reference_diverged"], line["verdict"]) == ("2", "0", row.verdict)
    (body,) = json.loads(to_json(found))["contrasts"]
    assert [body[f"{which}_{what}"] for which in ("first", "second") for what in ("runs", "diverged")] == [
        5, 2, 5, 0,
    ]  # fmt: skip


def test_an_arm_that_lost_runs_can_be_called_worse() -> None:
    gone = lost("s", PLAIN, 4)
    found = gaps(table(without(better_than_dense(), gone), lost=gone), "x")
    assert row_of(found, "s", PLAIN).verdict == "worse than dense, though 1 of 5 diverged"
    assert row_of(found, "s", FIXED_STEPS).verdict == "better than dense"
    (contrast,) = found.contrasts
    assert contrast.verdict == f"{FIXED_STEPS} is better, though 1 of 5 diverged (unguided)"


def test_dense_runs_that_diverged_count_in_every_row() -> None:
    gone = lost("s", None, 1)
    found = gaps(table(without(better_than_dense(), gone), lost=gone), "x")
    assert row_of(found, "s", PLAIN).verdict == "not judged: 1 of 5 diverged (dense)"
    assert row_of(found, "s", FIXED_STEPS).verdict == "better than dense, though 1 of 5 diverged (dense)"
    assert {row["reference_diverged"] for row in csv.DictReader(io.StringIO(to_csv(found)))} == {"1"}
    assert [c.verdict for c in found.contrasts] == [f"{FIXED_STEPS} is better"]


def test_wide_networks_are_held_against_the_usual_dense_one_and_rates_against_their_own() -> None:
    rows = [arm("s", None, 1, 3.0) | {"structure": "dense, n_kv_heads=2"}]
    rows.append(arm("s", None, 1, 3.1) | {"structure": "dense, n_kv_heads=1", "d_ff": 288})
    rows.append(arm("s", MORE_TOKENS, 1, 3.2) | {"structure": "lowrank-63, n_kv_heads=1, tokens=more"})
    found = gaps(table(rows), "x")
    assert {row.place.reference for row in found.rows} == {"dense, n_kv_heads=2"}
    assert row_of(found, "s", MORE_TOKENS, "lowrank-63, n_kv_heads=1").gap == Difference(
        1, pytest.approx(0.2)
    )
    rates = [arm("s", None, 1, 3.0 + lr) | {"structure": f"dense, peak_lr={lr}"} for lr in (0.1, 0.2)]
    rates.append(arm("s", PLAIN, 1, 3.5) | {"structure": "lowrank-32, peak_lr=0.2"})
    row = row_of(gaps(table(rates), "x"), "s", PLAIN, "lowrank-32, peak_lr=0.2")
    assert row.place.reference == "dense, peak_lr=0.2" and row.gap == Difference(1, pytest.approx(0.3))


def test_budgets_of_one_size_are_cells_of_their_own() -> None:
    rows = []
    for i, factor in enumerate((1, 2, 4)):
        for row in (arm("s", None, 1, 3.0 - i / 10), arm("s", PLAIN, 1, 3.1 - i / 10 + i / 100)):
            scaled = {k: row[k] * factor for k in ("tokens", "unique_tokens", "train_flops")}
            rows.append(row | scaled)
    found = gaps(table(rows), "x")
    means = [r.gap.mean for r in found.rows if r.gap is not None]
    assert means == pytest.approx([0.10, 0.11, 0.12])
    texts = [text for text in spoken(found) if "gap" in text]
    assert [text.rsplit(" on ")[1] for text in texts] == [f"{n}.00e06 tokens" for n in (1, 2, 4)]
    assert found.worth_drawing and not gaps(table(planted_plain()), "x").worth_drawing


def planted_plain() -> list[Any]:
    return [arm(size, t, 1, 3.0) for size in DENSE_FLOPS for t in (None, PLAIN)]


def test_tables_without_the_new_columns_are_unguided(tmp_path: Path) -> None:
    header = "structure,size,seed,tokens,train_flops,val_loss"
    rows = ["dense,s,1,1e6,1e12,3.0", "lowrank-32,s,1,1e6,7e11,3.1", "lowrank-32,s,2,1.42e6,9.95e11,3.05"]
    runs = read_csv(csv_file(tmp_path, header, *rows, "lowrank-32,s,3,9e6,7e12,2.9"))
    found = gaps(runs, "x")
    assert [row.place.treatment for row in found.rows] == [PLAIN, PLAIN, MORE_TOKENS]
    assert "seed 3: no dense run of that size has its tokens, or its FLOPs within 1 %" in found.notes[0]
    with pytest.raises(AnalysisError, match="no dense run to hold others against"):
        gaps(read_csv(csv_file(tmp_path, header, rows[1])), "x")
    twice = csv_file(tmp_path, f"run_id,{header}", f"a,{rows[0]}", f"b,{rows[0]}")
    with pytest.raises(AnalysisError, match=r"two runs of dense .unguided. at size s have seed 1"):
        gaps(read_csv(twice), "x")


def test_scaling_tables_name_guides_and_budgets_and_nothing_that_follows(tmp_path: Path) -> None:
    runs: dict[str, dict[str, object] | None] = {}
    configs = []
    arms = (None, PLAIN, FIXED_STEPS, FIXED_STEPS + STATIC, FIXED_FLOPS, MORE_TOKENS)
    for i, (size, treatment) in enumerate(itertools.product(DENSE_FLOPS, arms)):
        row = arm(size, treatment, 1, 3.0)
        runs[f"r{i:03}"] = result(f"r{i:03}", **row)
        guide = {"mode": row["guide_mode"], "stochastic": row["guide_stochastic"] is not False}
        guide |= {"fraction": None, "steps": 0 if row["guide_mode"] == "none" else 100 + i}
        configs.append({"tokens": row["unique_tokens"], "seed": 1, "guide": guide})
    make_sweep(tmp_path, "g", runs)
    for run_id, config in zip(runs, configs, strict=True):
        (tmp_path / "runs" / run_id / "config.json").write_text(json.dumps(config))
    read = runs_table(tmp_path, "g")
    assert sorted(set(read.table["structure"])) == [
        "dense", "lowrank-32", "lowrank-32, guide=fixed_flops", "lowrank-32, guide=fixed_steps",
        "lowrank-32, guide=fixed_steps, stochastic=false", "lowrank-32, tokens=more",
    ]  # fmt: skip
    assert {row.place.structure for row in gaps(read, "g").rows} == {"dense", "lowrank-32"}
    assert len(gaps(read, "g").rows) == len(runs)


def test_labels_lose_only_what_the_treatment_says() -> None:
    assert structure_label("lowrank-32, guide=fixed_steps, stochastic=false") == "lowrank-32"
    assert structure_label("lowrank-32, guide=fixed_flops, peak_lr=0.01") == "lowrank-32, peak_lr=0.01"
    assert structure_label("dense") == "dense"


def test_tables_agree_and_figures_repeat(tmp_path: Path) -> None:
    found = gaps(table(planted()), "x")
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    body = json.loads(to_json(found))
    assert len(rows) == len(body["rows"]) == 10
    for row, other in zip(rows, body["rows"], strict=True):
        assert float(row["val_loss"]) == other["loss"]
        assert (float(row["gap"]) if row["gap"] else None) == (other["gap"] and other["gap"]["mean"])
    paths = write_product("x_gaps", gaps_made(found), tmp_path / "a")
    first = {path.name: path.read_bytes() for path in paths}
    paths = write_product("x_gaps", gaps_made(gaps(table(planted()), "x")), tmp_path / "b")
    second = {path.name: path.read_bytes() for path in paths}
    assert first == second and sum(name.endswith((".svg", ".pdf", ".png")) for name in first) == 3


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_mean_and_interval_lies_within_its_panel(seeds: int) -> None:
    figure = gaps_figure(gaps(table(planted(seeds)), "x"))
    assert len(figure.axes) == 4
    for axes in figure.axes:
        (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        drawn = [np.asarray(c.lines[0].get_xydata()) for c in axes.containers if c]  # type: ignore[attr-defined]
        assert len(drawn) in (4, 5)
        for x, y in np.concatenate(drawn):
            assert left < x < right and low < y < high
    names = [text.get_text() for text in figure.axes[2].get_yticklabels()]
    assert names == [
        "lowrank-32", "lowrank-32: guided, fixed steps", "lowrank-32: guided, fixed FLOPs",
        "lowrank-32: more tokens",
    ]  # fmt: skip


def spoken(found: Gaps) -> dict[str, tuple[float, float]]:
    """Hover text -> the point of the figure of gaps that it belongs to."""
    told = [(np.asarray(line.get_xydata()), told.texts) for line, told in hovers(gaps_figure(found))]
    return {text: tuple(point) for points, texts in told for text, point in zip(texts, points, strict=True)}


def test_hover_texts_name_arm_value_and_interval_of_their_points() -> None:
    found = gaps(table(planted()), "x")
    points, row = spoken(found), row_of(found, "s", MORE_TOKENS)
    assert len(points) == 10 + 8 and row.gap is not None and row.gap.interval is not None
    values = "{:.4f} [{:.4f}, {:.4f}]".format(row.gap.mean, *row.gap.interval)
    assert points[f"lowrank-32: more tokens, s: gap {values} nats to dense, 3 pairs"] == (row.gap.mean, 3)
    text = f"lowrank-32: more tokens, s: loss {row.loss:.3f} ± {row.se:.3f} nats at 9.99e11 FLOPs"
    assert points[f"{text}, mean of 3 runs"][1] == row.loss
    assert {text.split(":")[0] for text in points} == {"dense, s", "dense, m", "lowrank-32"}


def test_hover_texts_say_what_is_missing() -> None:
    texts = list(spoken(gaps(table(planted(seeds=1)), "x")))
    assert sum(text.endswith("1 pair, no interval") and "[" not in text for text in texts) == 8
    assert sum(text.endswith("1 run, seed 1") and "±" not in text for text in texts) == 10
    gone = lost("s", FIXED_STEPS, 2, 5) + lost("s", None, 1)
    texts = list(spoken(gaps(table(without(better_than_dense(), gone), lost=gone), "x")))
    ends = "2 pairs, 2 of 5 diverged, 1 of 5 diverged (dense)"
    assert [text.endswith(ends) for text in texts if f"{FIXED_STEPS}, s: gap" in text] == [True]


def test_command_takes_sweeps_together_and_figures_redraw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = planted()
    (tmp_path / "tables").mkdir()
    for name, part in (("one", slice(0, 20)), ("two", slice(15, 30))):
        text = runs_csv(Runs(table(rows).table[part]))
        (tmp_path / "tables" / f"{name}_runs.csv").write_text(text)
    monkeypatch.setattr(sys, "argv", ["analysis", "gaps", "one", "two", "--results", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    body = json.loads(capsys.readouterr().out)
    assert body["name"] == "one-two" and [len(row["seeds"]) for row in body["rows"]] == [3] * 10
    before = (tmp_path / "tables" / "one-two_gaps.md").read_bytes()
    merged = tmp_path / "tables" / "one-two_runs.csv"
    drawn(str(merged), tmp_path, tmp_path / "again", None, False)
    assert (tmp_path / "again" / "tables" / "one-two_gaps.md").read_bytes() == before
    changed = table([row | {"val_loss": 1.0} for row in rows])
    with pytest.raises(AnalysisError, match="run r000: the tables give it different losses"):
        together([table(rows), changed])
