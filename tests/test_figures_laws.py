"""The figures of fitted laws: what is drawn is what was fitted, and what cannot be drawn is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.analyse import Analysis, analyse
from analysis.compare.slopes import SlopeTest
from analysis.figures.exponents import exponents_figure
from analysis.figures.families import PaperFamilies, families_figure
from analysis.figures.published import FILE, SOURCE, published_runs, shared_structures
from analysis.figures.reducible import reducible_figure
from analysis.figures.residuals import residuals_figure, residuals_of
from analysis.figures.scaling import scaling_figure
from analysis.figures.style import hovers, save
from analysis.fit import Fit
from analysis.products.laws import HOFFMANN, HOFFMANN_E, paper_sizes, products
from analysis.products.tracked import Tracked
from analysis.runs.reading import read_csv
from analysis.uncertainty import t_quantile

ROOT = Path(__file__).parents[1] / "results"
PUBLISHED = ROOT / "published" / FILE
PAPER = ("dense", "lowrank-63", "lowrank-32")


def table(
    path: Path, structures: Sequence[str] = PAPER, sizes: int = 5, seeds: int = 1, e: float = 1.5,
    noise: float = 0.002, states: Sequence[str] = (), alpha: float = 0.15, last: float = 1e15,
) -> Path:  # fmt: skip
    """Write runs of L = e + k C^-alpha; `states` are of the first runs, the others are done."""
    dice = np.random.default_rng(0)
    lines = ["run_id,state,size,structure,seed,params,tokens,train_flops,val_loss,val_loss_se"]
    for j, structure in enumerate(structures):
        for i, flops in enumerate(np.geomspace(1e11, last, sizes)):
            for seed in range(1, seeds + 1):
                cost = float(flops) * (1 - 0.15 * j)
                loss = (e + 1.5 * (cost / 1e12) ** -alpha) * math.exp(noise * dice.normal())
                state = states[len(lines) - 1] if len(lines) <= len(states) else "done"
                who = f'r{len(lines):03d},{state},s{i},"{structure}",{seed}'
                done = f"{who},{1e5 * 4**i},{1e6 * 4**i},{cost!r},{loss!r},0.01"
                lines.append(done if state == "done" else f"{who},,{1e6 * 4**i},{cost!r},,")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Two seeds of five sizes, of which three runs are lost."""
    path = tmp_path_factory.mktemp("laws") / "planted_runs.csv"
    return analyse(read_csv(table(path, seeds=2, states=["diverged", "failed", "missing"])), "planted")


@pytest.fixture(scope="module")
def theirs() -> Analysis:
    """The papers' low-rank points."""
    shared = shared_structures(published_runs(PUBLISHED), list(PAPER))
    assert shared is not None
    return analyse(shared, "Published", HOFFMANN_E)


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def test(analysis: Analysis, hypothesis: str) -> SlopeTest:
    return next(
        one for one in analysis.comparison.tests
        if isinstance(one, SlopeTest) and one.hypothesis == hypothesis
    )  # fmt: skip


test.__test__ = False  # type: ignore[attr-defined]


def drawn(figure: Figure, panel: int, start: str) -> dict[str, tuple[float, float]]:
    """Hover text -> (x, y) of the points of one panel whose text begins so."""
    found = {}
    for line, one in hovers(figure):
        if line.axes is figure.axes[panel]:
            for text, x, y in zip(one.texts, line.get_xdata(), line.get_ydata(), strict=True):  # type: ignore[arg-type]
                if text.startswith(start):
                    found[text] = (float(x), float(y))
    return found


def test_reducible_points_are_losses_less_the_fitted_e(planted: Analysis, theirs: Analysis) -> None:
    figure = reducible_figure(planted, theirs, SOURCE, HOFFMANN)
    shared = test(planted, "shared").irreducible[""]
    rows = planted.runs.table[planted.runs.table["structure"] == "lowrank-63"]
    seeds = {text: at for text, at in drawn(figure, 1, "lowrank-63").items() if "seed" in text}
    assert sorted(y for _, y in seeds.values()) == pytest.approx(sorted(rows["val_loss"] - shared))
    separate = test(planted, "separate").irreducible["lowrank-63"]
    seeds = {text: at for text, at in drawn(figure, 2, "lowrank-63").items() if "seed" in text}
    assert sorted(y for _, y in seeds.values()) == pytest.approx(sorted(rows["val_loss"] - separate))
    dense = theirs.runs.table[theirs.runs.table["structure"] == "dense"]["val_loss"]
    assert sorted(y for _, y in drawn(figure, 3, "dense").values()) == pytest.approx(sorted(dense - 1.69))
    assert "nothing subtracted" in words(figure) and "no E is known of this text" in words(figure)
    assert f"Published: {SOURCE}." in words(figure) and "27 of 30 runs" in words(figure)


def test_pale_bars_move_points_by_the_error_of_e(planted: Analysis) -> None:
    figure = reducible_figure(planted)
    found = test(planted, "shared")
    loss = planted.runs.table[planted.runs.table["structure"] == "dense"]["val_loss"].to_numpy()
    bars = next(one for one in figure.axes[0].collections if isinstance(one, LineCollection))
    low = sorted(float(np.asarray(segment)[0, 1]) for segment in bars.get_segments())
    assert low == pytest.approx(sorted(loss - found.irreducible[""] - found.irreducible_se[""]))


def test_points_below_e_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", noise=0.01, alpha=0.7, last=1e18)
    analysis = analyse(read_csv(path), "x")
    e = test(analysis, "shared").irreducible[""]
    below = int((analysis.runs.table["val_loss"] <= e).sum())
    assert below > 0
    figure = reducible_figure(analysis)
    seen = sum(len(drawn(figure, 0, label)) for label in analysis.structures)
    assert seen == len(analysis.runs.table) - below
    assert f"{below} point" in words(figure) and "below E, not drawn" in words(figure)


def test_exponents_and_their_intervals_are_those_of_the_tests(planted: Analysis, theirs: Analysis) -> None:
    figure = exponents_figure(planted, theirs, SOURCE, HOFFMANN)
    shared = test(planted, "shared")
    (point,) = drawn(figure, 0, "lowrank-32, One E").values()
    assert point[0] == pytest.approx(shared.exponents["lowrank-32"])
    half = t_quantile(shared.dof[1]) * shared.standard_errors["lowrank-32"]
    bars = [
        np.asarray(one.get_segments()[0])
        for one in figure.axes[0].collections
        if isinstance(one, LineCollection) and len(one.get_segments()) == 1
    ]
    (mine,) = [bar for bar in bars if bar[0, 1] == pytest.approx(point[1])]
    assert mine[:, 0] == pytest.approx([point[0] - half, point[0] + half])
    given = drawn(figure, 1, "dense, E given")
    assert [x for x, _ in given.values()] == pytest.approx([0.1319], abs=5e-5)
    text = words(figure)
    assert "none is known of this text" in text and "the shared E is at its bound 0" in text
    assert (
        "no intervals there" in text and "detectable not known" in text and "detectable from 0.0069" in text
    )


def test_one_structure_has_exponents_but_no_test(tmp_path: Path) -> None:
    analysis = analyse(read_csv(table(tmp_path / "one.csv", ("dense",))), "one")
    figure = exponents_figure(analysis)
    assert "no test: 1 structure with enough points" in words(figure)
    fit = analysis.irreducible["dense"]
    assert isinstance(fit, Fit)
    ((alpha, _),) = drawn(figure, 0, "dense, An E for each").values()
    assert alpha == pytest.approx(fit.value("alpha"))
    reduced = reducible_figure(analysis)
    assert len(reduced.axes) == 1 and len(drawn(reduced, 0, "dense")) == 5


def test_residuals_are_those_of_the_fit(planted: Analysis) -> None:
    laws = {"power": planted.power, "irreducible": planted.irreducible}
    figure = residuals_figure("planted", planted.runs, laws)
    fit = planted.power["dense"]
    assert isinstance(fit, Fit) and fit.residual_sd is not None
    one = residuals_of(planted.runs.table, "dense", fit)
    rows = planted.runs.table[planted.runs.table["structure"] == "dense"]
    fitted = fit.predict({"train_flops": rows["train_flops"].to_numpy(np.float64)})
    assert one.percent == pytest.approx(100 * np.log(rows["val_loss"].to_numpy() / fitted))
    assert sorted(y for _, y in drawn(figure, 0, "dense").values()) == pytest.approx(sorted(one.percent))
    # sum of r^2 is s^2 (n - p), so standardised residuals weighted by 1 - h have that sum, too.
    share = (one.percent / 100 / fit.residual_sd / one.standardised) ** 2
    assert float(share.sum()) == pytest.approx(fit.dof)
    assert np.abs(one.standardised).max() <= math.sqrt(fit.dof) + 1e-9
    text = words(figure)
    assert "of the diverged: dense, s0" in text and "residual sd dense" in text and "largest" in text
    assert all(run for line, found in hovers(figure) for run in found.runs)


def test_laws_that_a_bound_makes_alike_are_said_not_drawn() -> None:
    analysis = Tracked(ROOT).analysis("lowrank")
    laws = {"power": analysis.power, "irreducible": analysis.irreducible}
    figure = residuals_figure("lowrank", analysis.runs, laws)
    assert len(figure.axes) == 3
    assert "at a bound, so as above: dense (E = 0)" in words(figure)


def test_families_show_what_is_there_and_say_what_is_not(theirs: Analysis) -> None:
    sizes = paper_sizes(PUBLISHED)
    assert sizes["lowrank-63"] == sizes["blockshuffle-32"] == sizes["dense"] == 4
    published = PaperFamilies(analyse(published_runs(PUBLISHED), "Published"), sizes, SOURCE)
    empty = {name: f"not run yet: make sweep-{name}" for name in ("blockdense", "blockshuffle")}
    figure = families_figure({"lowrank": Tracked(ROOT).analysis("lowrank"), **empty}, published)
    assert len(drawn(figure, 0, "dense")) == 4 and not drawn(figure, 1, "")
    assert [len(drawn(figure, i, "block")) for i in (4, 5)] == [3, 4]
    text = words(figure)
    assert "not run yet: make sweep-blockdense" in text
    assert "Published losses: 63 % at 1 of 4 sizes (no fit), 32 % at 2 of 4 (no fit)" in text
    upper, lower = figure.axes[0], figure.axes[3]
    ratios = [axes.get_ylim()[1] / axes.get_ylim()[0] for axes in (upper, lower)]
    assert ratios[0] == pytest.approx(ratios[1])
    assert upper.get_position().height == pytest.approx(lower.get_position().height)
    assert figure.axes[1].get_xlim() == upper.get_xlim()


def test_points_of_the_scaling_figure_have_texts() -> None:
    analysis = Tracked(ROOT).analysis("lowrank")
    found = [one for _, one in hovers(scaling_figure(analysis))]
    assert len(found) == len(analysis.runs.table)
    assert "dense, cpu-m, seed 1: loss 2.696 ± 0.022 at 9.73e12 FLOPs" in {t for h in found for t in h.texts}
    assert {run for h in found for run in h.runs} == set(analysis.runs.table["run_id"])


def test_products_are_of_tables_with_a_law(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    table(tmp_path / "tables" / "lowrank_runs.csv")
    table(tmp_path / "tables" / "onesize_runs.csv", sizes=1, seeds=3)
    table(tmp_path / "tables" / "blockdense_runs.csv", sizes=4, states=["failed"] * 12)
    found = {one.name: one for one in products(Tracked(tmp_path))}
    assert list(found) == [
        "families", "lowrank_reducible", "lowrank_exponents", "lowrank_residuals", "published_residuals",
    ]  # fmt: skip
    made = found["families"].make().figure
    assert made is not None and "no finished run: 0 of 12 runs" in words(made)
    assert [one.name for one in products(Tracked(tmp_path, None))][-1] == "lowrank_residuals"


@pytest.mark.slow
def test_same_table_same_bytes(tmp_path: Path, planted: Analysis) -> None:
    for name in "ab":
        save(reducible_figure(planted), tmp_path / name)
    for ending in ("svg", "pdf", "png"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
