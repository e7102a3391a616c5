"""The natural law as text, figure, product and command: nothing is claimed beyond intervals."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.text import Text
from test_natural import BETA, QUICK, TRUTH, grid

from analysis.__main__ import main
from analysis.figures.natural import BAND_COLOUR, natural_figure
from analysis.figures.style import hovers
from analysis.natural.estimate import BAND, BOUNDS, KINDS, Estimate, Group, Natural
from analysis.natural.report import CSV_HEADER, latex, markdown, reach_rows, to_csv, to_json
from analysis.natural.study import Curve, natural
from analysis.natural.verdict import overall, value_words, verdict
from analysis.products.natural import products
from analysis.products.tracked import Tracked

ROOT = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module")
def planted() -> Natural:
    """One curve whose smallest size is too good for the two smallest budgets."""
    return natural([Curve("dense", grid(0.003, seed=6))], "planted", QUICK, "60 of 60 runs")


def with_estimates(group: Group, **intervals: tuple[float, float] | None) -> Group:
    """The group with other intervals; None for an estimate that is refused."""
    found = {}
    for kind in KINDS:
        ends = intervals.get(kind)
        middle = None if ends is None else (ends[0] + ends[1]) / 2
        found[kind] = Estimate(kind, middle, *(ends or (None, None)), reason="" if ends else "too few runs")
    return replace(group, estimates=found)


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def test_a_verdict_claims_only_what_intervals_decide(planted: Natural) -> None:
    group = planted.groups[0]
    bounds = {"agnostic": (0.4, 0.5), "realizable": (0.7, 0.75)}
    inside = verdict(with_estimates(group, measured=(0.5, 0.6), law=(0.55, 0.7), **bounds))
    assert "cannot be told apart" in inside and "lie inside the published band" in inside
    assert "Chinchilla's 1.0 is excluded;" in inside and "(the estimates lie inside it)" in inside
    assert "not identified: compute-optimal by parabolas" in inside
    apart = verdict(with_estimates(group, measured=(0.5, 0.8), law=(0.9, 1.2), isoflop=(0.6, 0.95)))
    assert "measured and compute-optimal by the law differ" in apart and "told apart" not in apart
    assert "compute-optimal by the law lies outside the published band" in apart
    assert "measured and compute-optimal by parabolas leave that open" in apart
    assert (
        "1.0 is excluded by measured and compute-optimal by parabolas, not by compute-optimal by the law"
        in (apart)
    )
    assert "beta is not identified, so the reconstruction of the paper's bound gives nothing" in apart
    wide = verdict(with_estimates(group, measured=(0.1, 1.9), **bounds))
    assert "whether it lies in the published band [0.44, 0.72] is left open" in wide
    assert "1.0 is not excluded" in wide and "told apart" not in wide
    nothing = verdict(with_estimates(group, **bounds))
    assert "the runs identify no gamma (measured: too few runs" in nothing
    assert "says nothing of the data beyond beta" in nothing and "excluded" not in nothing


def test_the_verdict_of_several_curves_counts_what_each_decides(planted: Natural) -> None:
    group = planted.groups[0]
    groups = [
        with_estimates(group, measured=(0.5, 0.6), law=(0.5, 0.7)),
        with_estimates(group, measured=(1.1, 1.2)),
        with_estimates(group, measured=(0.5, 0.6), law=(0.9, 1.1)),
        with_estimates(group, law=(0.9, 1.1)),
        with_estimates(group),
    ]
    text = overall(groups)
    assert "Of 5 curves 4 identify a gamma: all estimates of 1 lie inside" in text
    assert (
        "all of 2 outside it" in text
        and "all estimates of 2 exclude Chinchilla's 1.0, none of 1 does" in text
    )
    assert f"Verdict. {text}" in markdown(replace(planted, groups=tuple(groups)))


def test_numbers_have_the_digits_of_their_intervals() -> None:
    assert value_words(Estimate("law", 1.1428, 1.01, 1.29)) == ("1.143", "[1.010, 1.290]")
    assert value_words(Estimate("law", 0.8, -0.4, np.inf)) == ("0.8", "[-0.4, inf]")
    assert value_words(Estimate("law", 1 / 3, 1 / 3, 1 / 3 + 1e-12))[0] == "0.333333"
    assert value_words(Estimate("law", None)) == ("-", "-")


def test_the_report_marks_the_reconstruction_and_holds_every_number(planted: Natural) -> None:
    text = markdown(planted)
    assert "project's reconstruction, not a theorem of arXiv 2402.14746" in text
    assert text.count("reconstructed bound") == 2 and "no two witnesses" in text
    assert "the smallest size reaches it" in text and "fitted freely, E is" in text
    assert "| 25 %" in text and "| 10 %" in text and "the largest size" in text
    body = json.loads(to_json(planted))
    estimates = {one["kind"]: one for one in body["curves"][0]["estimates"]}
    assert {kind for kind, one in estimates.items() if one["reconstruction"]} == set(BOUNDS)
    law = planted.groups[0].estimates["law"]
    assert estimates["law"]["value"] == law.value and estimates["law"]["high"] == law.high
    reached = {one["tokens"]: one["params"] for one in body["curves"][0]["reached"]}
    assert len(reached) == 5 and sum(size is not None for size in reached.values()) == 3
    assert "reconstruction" in latex(planted) and r"\label{tab:planted-natural-estimates}" in latex(planted)
    rows = list(csv.DictReader(io.StringIO(to_csv(planted))))
    assert tuple(rows[0]) == CSV_HEADER and len(rows) == 4 + 8
    measured = [
        row for row in rows if (row["kind"], row["within"], row["reference"]) == ("measured", "0.5", "limit")
    ]
    assert float(measured[0]["gamma"]) == planted.groups[0].estimates["measured"].value


def test_many_budgets_of_which_the_same_is_to_be_said_share_a_row(planted: Natural) -> None:
    group = planted.groups[0]
    choice = group.chosen(planted.within, planted.reference)
    assert choice is not None
    one = replace(choice.reached[0], params=None, censored="above", reason="no size reaches it")
    alike = replace(choice, reached=tuple(replace(one, tokens=1e6 * i) for i in range(1, 9)))
    (row,) = reach_rows(replace(planted, groups=(replace(group, choices=(alike,)),)))
    assert row[1] == "1,000,000 to 8,000,000" and row[-1] == "8 budgets: no size reaches it"


def test_the_figure_shows_every_estimate_the_band_and_one(planted: Natural) -> None:
    figure = natural_figure(planted)
    left, right = figure.axes[:2]
    (band,) = [
        one for one in left.patches
        if isinstance(one, Rectangle | Polygon) and to_hex(one.get_facecolor()) == BAND_COLOUR.lower()
    ]  # fmt: skip
    corners = band.get_extents().transformed(left.transData.inverted())
    assert (corners.x0, corners.x1) == pytest.approx(BAND)
    ones = [line for line in left.lines if np.allclose(np.asarray(line.get_xdata(), float), 1.0)]
    assert any(line.get_linestyle() == "--" for line in ones)
    points = {line.get_gid(): line for line, _ in hovers(figure) if line.axes is left}
    known = {kind: one for kind, one in planted.groups[0].estimates.items() if one.known}
    assert set(points) == set(known) == {"agnostic", "realizable", "measured", "law"}
    for kind, one in known.items():
        assert float(np.asarray(points[kind].get_xdata())[0]) == one.value
        assert left.get_xlim()[0] < one.interval()[0] and one.interval()[1] < left.get_xlim()[1]
        assert to_hex(points[kind].get_markerfacecolor()) == ("#ffffff" if kind in BOUNDS else "#000000")
    texts = words(figure)
    assert "reconstructed by this project" in texts and "not identified" in texts
    assert "0 budgets of equal FLOPs with 4 sizes" in texts and "2402.14746: 0.44 to 0.72" in texts
    arrows = [line for line in right.lines if str(line.get_gid()).startswith("censored")]
    assert [line.get_gid() for line in arrows] == ["censored-below"] * 2
    assert [float(np.asarray(line.get_ydata())[0]) for line in arrows] == pytest.approx([2000.0] * 2)
    (law,) = [line for line in right.lines if line.get_gid() == "law"]
    x, y = (np.log(np.asarray(data, np.float64)) for data in law.get_data())
    assert (y[-1] - y[0]) / (x[-1] - x[0]) == pytest.approx(known["law"].value)


def test_n_of_d_in_the_figure_is_that_of_the_table(planted: Natural) -> None:
    choice = planted.groups[0].chosen(planted.within, planted.reference)
    assert choice is not None
    wanted = [(one.tokens, one.params) for one in choice.reached if one.params is not None]
    right = natural_figure(planted).axes[1]
    drawn = next(line for line, one in _hovers(right.figure) if "N = " in one and line.axes is right)
    assert np.array(drawn.get_data()).T == pytest.approx(np.array(wanted))


def _hovers(figure: object) -> list[tuple[Line2D, str]]:
    assert isinstance(figure, Figure)
    return [(line, one.texts[0]) for line, one in hovers(figure)]


def test_a_figure_of_nothing_identified_says_why(planted: Natural) -> None:
    group = with_estimates(planted.groups[0])
    empty = replace(planted, groups=(replace(group, choices=(), optimum=(), vertices=()),))
    texts = words(natural_figure(empty))
    assert "no size is identified" in texts and texts.count("not identified") >= 5
    assert "too few runs" in texts


def test_several_curves_show_their_known_estimates_only(planted: Natural) -> None:
    group = planted.groups[0]
    labels = ("a", "b", "c")
    several = replace(planted, groups=tuple(replace(group, label=label) for label in labels))
    figure = natural_figure(several)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(names) == 3 * 4 and "optimal, parabolas" not in names
    assert "the table says why" in words(figure)


def write(path: Path, table: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(structure="dense", seed=table["seed"].astype(int)).to_csv(path, index=False)
    return path


def test_only_grids_are_products(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    write(tables / "grid_runs.csv", grid(0.003, seed=6))
    diagonal = grid(0.003)
    write(tables / "diagonal_runs.csv", diagonal[np.isclose(diagonal["tokens"], 100 * diagonal["params"])])
    write(tables / "line_runs.csv", grid(tokens=(2e5,)))
    write(tables / "four_runs.csv", grid(sizes=(2e3, 4e3), tokens=(2e5, 4e5)))
    found = list(products(Tracked(tmp_path, None)))
    assert [product.name for product in found] == ["grid_natural"] and found[0].sweep == "grid"
    assert found[0].inputs == (tables / "grid_runs.csv",)
    made = found[0].make()
    assert set(made.texts) == {f"grid_natural.{end}" for end in ("md", "tex", "json", "csv")}
    assert made.figure is not None and "grid" in words(made.figure)


def test_tracked_sweeps_that_are_no_grids_have_no_natural_law() -> None:
    names = {product.name for product in products(Tracked(ROOT))}
    assert "published_natural" in names
    sweeps = ("lowrank", "blockdense", "blockshuffle", "lr", "selfguided", "stability")
    assert not names & {f"{name}_natural" for name in sweeps}


def test_published_runs_identify_chinchillas_gamma() -> None:
    from analysis.products import natural as room

    curves = room.PUBLISHED[room.POINTS](ROOT / "published" / room.POINTS)
    (group,) = natural(curves, "published", room.QUICK).groups
    assert group.estimates["law"].holds(1.0) and group.estimates["isoflop"].holds(1.0)
    gemstones = room.PUBLISHED[room.GEMSTONES](ROOT / "published" / room.GEMSTONES)
    assert [curve.label for curve in gemstones] == [f"Gemstones, set={name}" for name in room.SETS]
    assert all(len(set(curve.clusters or ())) in (20, 22) for curve in gemstones)
    (once,) = room.PUBLISHED[room.DATABLATIONS](ROOT / "published" / room.DATABLATIONS)
    assert len(once.table) == 41 and (once.table["tokens"] <= 1.001 * once.table["unique_tokens"]).all()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["analysis", "natural", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command_writes_one_answer_of_several_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(tmp_path / "one.csv", grid(0.003, seed=6))
    second = write(tmp_path / "two.csv", grid(0.003, seed=7, known=False))
    few = ("--resamples", "100", "--out", str(tmp_path / "out"), "--within", "0.25")
    assert command(monkeypatch, str(first), str(second), *few, "--json", "-") == 0
    body = json.loads(capsys.readouterr().out)
    assert [curve["label"] for curve in body["curves"]] == ["one, dense", "two, dense"]
    assert [curve["irreducible_loss"]["source"] for curve in body["curves"]] == ["entropy_rate", "fitted"]
    assert body["within"] == 0.25 and body["published_band"] == list(BAND)
    for curve in body["curves"]:
        estimates = {one["kind"]: one for one in curve["estimates"]}
        assert estimates["measured"]["low"] < TRUTH < estimates["measured"]["high"]
        assert estimates["realizable"]["value"] == pytest.approx(1 - BETA, abs=0.05)
    written = sorted(path.name for path in (tmp_path / "out").rglob("one-two_natural.*"))
    ends = ("csv", "json", "md", "pdf", "png", "svg", "tex")
    assert written == [f"one-two_natural.{end}" for end in ends]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[t["params"] == 2e3], "1 distinct size; it needs 3"),
        (lambda t: t[t["tokens"] == 2e5], "1 distinct token budget; it needs 3"),
        (lambda t: pd.concat([t, t]), "repeats row"),
        (lambda t: t.assign(val_loss=t["val_loss"].where(t.index != 3)), "val_loss is empty"),
        (lambda t: t.assign(tokens=-1.0), "not above zero"),
        (lambda t: t.drop(columns="tokens"), "no column tokens among"),
    ],
)
def test_hostile_tables_are_one_line(
    change: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write(tmp_path / "x.csv", change(grid(0.003)))  # type: ignore[operator]
    assert command(monkeypatch, str(path), "--out", str(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert words in err and len([line for line in err.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "out").exists()
