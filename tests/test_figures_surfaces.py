"""Figures of laws in parameters and tokens: what is drawn is what was fitted, and refusals are in words."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.arrays import Array
from analysis.figures.allocation import allocation_figure
from analysis.figures.isoflop import Profile, PublishedOptima, isoflop_figure, line_band, vertex_text
from analysis.figures.isoloss import count, flops_words, isoloss_figure, with_interval
from analysis.figures.overtraining import overtraining_figure
from analysis.figures.pairs import ellipse, pairs_figure, quantities
from analysis.figures.style import house_style, hovers
from analysis.fit import Refusal, Settings
from analysis.isoflop.frontier import Exponent
from analysis.products.surfaces import (
    fitted,
    gadre,
    has_budgets,
    nanochat,
    optima_of,
    porian_optima,
    porian_rows,
    products,
    ratios_of,
    varies,
)
from analysis.products.tracked import Tracked

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
COLUMNS = ["run_id", "state", "size", "structure", "seed", "params", "tokens", "train_flops", "val_loss"]


def loss(n: Array, d: Array, noise: float, seed: int = 0) -> Array:
    dice = np.random.default_rng(seed).standard_normal(np.size(n))
    return np.asarray((1.7 + 30 * n**-0.32 + 60 * d**-0.33) * np.exp(noise * dice))


def grid(sizes: int = 4, ratios: int = 4, noise: float = 0.002) -> pd.DataFrame:
    n = np.repeat(2e4 * 3.0 ** np.arange(sizes), ratios)
    d = n * np.tile(5 * 4.0 ** np.arange(ratios), sizes)
    return pd.DataFrame({"params": n, "tokens": d, "train_flops": 6 * n * d, "val_loss": loss(n, d, noise)})


def profiles(noise: float = 0.001) -> pd.DataFrame:
    rows = []
    for c in (1e12, 1e13, 1e14):
        n = 0.09 * c**0.5 * np.exp(np.linspace(-0.9, 0.9, 7))
        rows.append(pd.DataFrame({"params": n, "tokens": c / 6 / n, "train_flops": c}))
    table = pd.concat(rows, ignore_index=True)
    table["val_loss"] = loss(table["params"].to_numpy(), table["tokens"].to_numpy(), noise)
    return table


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def contours(figure: Figure) -> list[ContourSet]:
    return list(figure.findobj(ContourSet))


def write(root: Path, name: str, table: pd.DataFrame, states: tuple[str, ...] = ()) -> None:
    (root / "tables").mkdir(parents=True, exist_ok=True)
    with (root / "tables" / f"{name}_runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for i, row in enumerate(table.to_dict("records")):
            known = {"run_id": f"{i:04d}", "state": "done", "size": "s", "structure": "dense", "seed": 1}
            writer.writerow(known | {str(k): v for k, v in row.items()})
        for i, state in enumerate(states):
            writer.writerow({"run_id": f"lost{i}", "state": state})


def test_the_isoflop_figure_shows_each_vertex_with_its_interval_and_every_run() -> None:
    table = profiles()
    found = optima_of(table)
    figure = isoflop_figure([Profile("dense", table, found)], "planted")
    left, right = figure.axes
    usable = [budget for budget in found.budgets if budget.params.optimum is not None]
    assert len(usable) == 3
    known = {text: line for line, hover in hovers(figure) for text in hover.texts}
    for budget in usable:
        line = known[vertex_text(budget)]
        assert float(np.asarray(line.get_xdata())[0]) in (budget.params.optimum, budget.flops)
        ends = [np.asarray(one.get_xdata(), np.float64) for one in left.lines]
        assert any(e.size == 2 and np.allclose(e, [budget.params.low, budget.params.high]) for e in ends)
    drawn = {
        (float(x), float(y))
        for line, _ in hovers(figure)
        if line.axes is left
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    }
    assert drawn >= set(zip(table["params"], table["val_loss"], strict=True))
    assert isinstance(found.a, Exponent)
    assert with_interval(found.a.value, found.a.low, found.a.high) in words(figure)
    assert right.get_xlabel() == "Training FLOPs"


def test_the_band_of_the_line_of_optima_is_that_of_its_exponent_far_away() -> None:
    found = optima_of(profiles())
    assert isinstance(found.a, Exponent) and isinstance(found.b, Exponent)
    place, low, high = line_band(found, np.array([found.a.reference]))
    assert place[0] == pytest.approx(found.a.at_reference)
    t = (found.a.high - found.a.value) / found.a.se
    assert math.log(high[0] / low[0]) / 2 == pytest.approx(t * found.a.log_se_at_reference)
    far = np.array([1e80, 1e81])
    _, low, high = line_band(found, far)
    assert np.log(high[1] / high[0]) / np.log(10) == pytest.approx(found.a.high, rel=1e-3)
    tokens, _, _ = line_band(found, np.array([found.b.reference]), "tokens")
    assert tokens[0] == pytest.approx(found.b.at_reference)


def test_curves_without_a_vertex_are_open_and_listed_with_their_reason() -> None:
    table = profiles()
    first = table["train_flops"] == 1e12
    # Only sizes far above the optimum: its vertex is below them.
    table.loc[first, "params"] *= 12
    table.loc[first, "tokens"] /= 12
    n, d = (table[key].to_numpy() for key in ("params", "tokens"))
    table["val_loss"] = loss(n, d, 0.0005)
    found = optima_of(table)
    refused = [budget for budget in found.budgets if budget.params.code]
    assert len(refused) == 1
    figure = isoflop_figure([Profile("dense", table, found)], "planted")
    assert refused[0].params.reason.split(";")[0] in words(figure)
    assert "No line" in words(figure)
    open_points = [line for line, _ in hovers(figure) if line.get_markerfacecolor() == "white"]
    assert sum(np.size(line.get_xdata()) for line in open_points) == 7
    one = table[first].reset_index(drop=True)
    isoflop_figure([Profile("dense", one, optima_of(one))], "one budget")


def test_published_optima_stand_beside_ours() -> None:
    optima = porian_optima(PUBLISHED / "porian_optima.csv", PUBLISHED / "porian_fits.csv")
    rows = porian_rows(PUBLISHED / "porian_isoflop_points.csv")
    figure = isoflop_figure([Profile("Porian et al.", rows, optima_of(rows), optima)], "Published", "source.")
    texts = {text: line for line, hover in hovers(figure) for text in hover.texts}
    mine = [text for text in texts if "published" in text]
    assert len(mine) == len(optima.flops) == 12
    np.testing.assert_array_equal(np.asarray(texts[mine[0]].get_ydata()), optima.params)
    assert "a$ = 0.4969 [0.4907, 0.5045]" in words(figure) and "source." in words(figure)
    above = int((rows["val_loss"] > figure.axes[0].get_ylim()[1]).sum())
    assert f"{above} runs with losses up to 8.75 lie above the panel" in words(figure)


def test_isoloss_contours_are_the_fitted_law_and_stop_at_the_runs_outline() -> None:
    surface = fitted("dense", grid())
    assert not surface.why and not isinstance(surface.fit, Refusal)
    figure = isoloss_figure([surface], "planted")
    dashed, whole = contours(figure)
    for level, path in zip(whole.levels, whole.get_paths(), strict=True):
        for flops, params in path.vertices[:: max(1, len(path.vertices) // 5)]:
            tokens = (flops / surface.cost.kappa / params**surface.cost.u) ** (1 / surface.cost.v)
            data = {"params": np.array([params]), "tokens": np.array([tokens])}
            assert float(surface.fit.predict(data)[0]) == pytest.approx(level, rel=2e-3)
            assert surface.table["tokens"].min() * 0.8 < tokens < surface.table["tokens"].max() * 1.25
    assert len(dashed.levels) == len(whole.levels)
    texts = [text for _, hover in hovers(figure) for text in hover.texts]
    assert len(texts) == len(surface.table)
    optimum = surface.allocation([1e12])
    assert optimum is not None
    assert with_interval(optimum.a.value, optimum.a.low, optimum.a.high) in words(figure)


def test_where_the_law_is_not_identified_there_are_points_and_the_reason_only() -> None:
    two = fitted("dense", grid(sizes=2, ratios=8))
    figure = isoloss_figure([two], "two sizes")
    assert not contours(figure) and not figure.findobj(QuadMesh)[1:]
    assert "2 distinct values of params" in words(figure)
    assert len(hovers(figure)) == 16
    empty = allocation_figure([two], "two sizes")
    assert "2 distinct values of params" in words(empty)
    assert "2 distinct values of params" in words(pairs_figure([two], "two sizes"))


def test_a_law_without_a_floor_gives_no_allocation_and_says_so() -> None:
    table = grid(sizes=3, ratios=3)
    far = np.log(table["train_flops"] / table["train_flops"].min())
    # Ever steeper, so that no floor is in sight.
    table["val_loss"] = 4 * np.exp(-0.03 * far - 0.004 * far**2)
    surface = fitted("dense", table)
    assert "E is at its bound 0" in surface.why
    assert "E is at its bound 0" in words(allocation_figure([surface], "bound"))
    figure = pairs_figure([surface], "bound")
    assert "not identified" in words(figure) and "E$ =" not in words(figure)


def test_the_allocation_figure_draws_both_approaches_and_dashes_what_is_beyond_the_runs() -> None:
    table = profiles()
    surface = fitted("dense", table)
    assert surface.optima is not None
    printed = PublishedOptima("a study", np.array([1e13]), np.array([3e5]), np.array([5e6]))
    figure = allocation_figure([surface], "planted", [printed], "note.")
    params, tokens, ratio = figure.axes[:3]
    low, high = surface.seen
    solid = next(line for line in params.lines if line.get_linestyle() == "-")
    dashed = next(line for line in params.lines if line.get_linestyle() == "--")
    x = np.asarray(solid.get_xdata(), np.float64)
    assert low * 0.98 <= x.min() and x.max() <= high * 1.02
    assert float(np.max(np.asarray(dashed.get_xdata()))) > 5 * high
    expected = surface.allocation(x.tolist())
    assert expected is not None
    np.testing.assert_allclose(
        np.asarray(solid.get_ydata(), np.float64), [o.params.value for o in expected.optima]
    )
    by_panel = [{text for line, h in hovers(figure) if line.axes is axes for text in h.texts}
                for axes in (params, tokens, ratio)]  # fmt: skip
    assert by_panel[0] == by_panel[1] == by_panel[2] and len(by_panel[0]) == 4
    told = words(figure)
    assert "dense, law fitted" in told and "dense, parabolas" in told and "a study, as published" in told
    assert "note." in told


def test_pairs_have_the_draws_and_the_exponent_of_the_allocation() -> None:
    surface = fitted("dense", grid(6, 6))
    assert not isinstance(surface.fit, Refusal) and surface.fit.spread is not None
    draws = surface.fit.spread.draws
    assert draws is not None
    rows = {row.name: row for row in quantities(surface)}
    optimum = surface.allocation([])
    assert optimum is not None and surface.fit.intervals is not None
    assert rows["a"].value == pytest.approx(optimum.a.value)
    assert (rows["a"].low, rows["a"].high) == pytest.approx((optimum.a.low, optimum.a.high))
    assert (rows["beta"].low, rows["beta"].high) == pytest.approx(surface.fit.intervals["beta"])
    figure = pairs_figure([surface], "planted")
    panel = figure.axes[4]  # beta over alpha
    cloud = next(line for line in panel.lines if np.size(line.get_xdata()) == len(draws))
    np.testing.assert_allclose(np.asarray(cloud.get_xdata()), rows["alpha"].of(draws))
    np.testing.assert_allclose(np.asarray(cloud.get_ydata()), rows["beta"].of(draws))
    r = np.corrcoef(rows["alpha"].of(draws), rows["beta"].of(draws))[0, 1]
    assert f"r = {r:+.2f}".replace("-", "\N{MINUS SIGN}") in words(figure)


def test_the_ellipse_holds_its_share_of_normal_draws() -> None:
    covariance = np.array([[2.0, 1.2], [1.2, 1.0]])
    edge = ellipse(covariance, 10**6)
    inverse = np.linalg.inv(covariance)
    distance = np.einsum("im,ij,jm->m", edge, inverse, edge)
    assert distance == pytest.approx(np.full(distance.size, -2 * math.log(0.05)), rel=1e-3)
    few = fitted("dense", grid(4, 3))
    assert not isinstance(few.fit, Refusal) and few.fit.spread is not None and few.fit.spread.draws is None
    assert "delta method" in words(pairs_figure([few], "few"))


def test_overtraining_draws_every_run_and_the_law_at_its_ratio() -> None:
    table = grid(sizes=2, ratios=8, noise=0.001).assign(size=["xs"] * 8 + ["s"] * 8)
    ours = ratios_of("dense", table)
    assert not isinstance(ours.fit, Refusal) and not ours.why
    figure = overtraining_figure([ours], [], "planted")
    sizes, by_flops = figure.axes[:2], figure.axes[2]
    assert [axes.get_title(loc="left") for axes in sizes] == ["planted: xs", "s"]
    for axes, params in zip(sizes, sorted(set(table["params"])), strict=True):
        rows = table[table["params"] == params]
        points = next(line for line, _ in hovers(figure) if line.axes is axes)
        np.testing.assert_allclose(np.asarray(points.get_xdata()), rows["tokens"] / params)
        np.testing.assert_allclose(np.asarray(points.get_ydata()), rows["val_loss"])
        law = next(line for line in axes.lines if np.size(line.get_xdata()) > 8)
        x = np.asarray(law.get_xdata(), np.float64)
        data = {"params": np.full_like(x, params), "tokens": params * x, "train_flops": 6 * params**2 * x}
        np.testing.assert_allclose(np.asarray(law.get_ydata(), np.float64), ours.fit.predict(data), rtol=1e-9)
    assert sum(np.size(line.get_xdata()) for line, _ in hovers(figure) if line.axes is by_flops) == 16
    assert r"\eta$ =" in words(figure)


def test_overtraining_says_why_there_is_no_law_and_draws_published_runs_with_intervals() -> None:
    theirs = gadre(PUBLISHED / "gadre_models.csv")
    assert [part.label for part in theirs] == ["C4", "RedPajama", "RefinedWeb"]
    one_size = grid(sizes=1, ratios=3)
    ours = ratios_of("dense", one_size)
    figure = overtraining_figure([ours], theirs, "tiny", "2 of 3 runs.", "Gadre et al.")
    told = words(figure)
    assert "No law: " in told and "2 of 3 runs." in told and "Gadre et al." in told
    published = [text for _, hover in hovers(figure) for text in hover.texts if "RedPajama" in text]
    assert len(published) == 35
    alone = overtraining_figure([], theirs, "Published", source="Gadre et al.")
    assert len([t for _, hover in hovers(alone) for t in hover.texts]) == 2 * 104
    assert [axes.get_title(loc="left") for axes in alone.axes[:1]] == ["Published: C4"]


def test_products_are_those_that_a_table_allows_and_tell_of_lost_runs(tmp_path: Path) -> None:
    diagonal = grid(6, 1)
    write(tmp_path, "diagonal", diagonal)
    write(tmp_path, "over", grid(2, 8), ("diverged", "missing"))
    write(tmp_path, "surface", grid())
    write(tmp_path, "profile", profiles(), ("failed",))
    unknown = grid().drop(columns=["params"])
    write(tmp_path, "unknown", unknown)
    found = {product.name: product for product in products(Tracked(tmp_path))}
    ours = {name for name in found if not name.startswith("published")}
    kinds = ("isoloss", "allocation", "pairs")
    assert ours == {
        "over_isoloss", "over_overtraining", "surface_overtraining", *(f"surface_{kind}" for kind in kinds),
        "profile_isoflop", *(f"profile_{kind}" for kind in kinds),
    }  # fmt: skip
    assert {"isoflop", "isoloss", "allocation", "pairs", "overtraining"} == {
        name.removeprefix("published_") for name in found if name.startswith("published")
    }
    assert all(path.is_file() for product in found.values() for path in product.inputs)
    assert found["over_isoloss"].sweep == "over" and not found["published_pairs"].sweep
    figure = found["over_isoloss"].make().figure
    assert figure is not None and "diverged: lost0" in words(figure) and "missing: lost1" in words(figure)
    assert [hover.runs[0] for _, hover in hovers(figure)][:2] == ["0000", "0001"]
    assert found["over_overtraining"].inputs[1].name == "gadre_models.csv"


def test_what_a_table_allows_follows_its_columns() -> None:
    assert varies(grid()) and not varies(grid(6, 1)) and not varies(grid(1, 6)) and not varies(grid(2, 2))
    assert has_budgets(profiles()) and not has_budgets(grid(6, 1)) and not has_budgets(grid(2, 8))


def vector_graphics(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@pytest.mark.slow
def test_the_same_table_gives_the_same_bytes() -> None:
    written = []
    for _ in range(2):
        table = profiles()
        surface = fitted("dense", table, Settings(interval="bootstrap", resamples=200))
        figures = (
            isoloss_figure([surface], "planted"),
            allocation_figure([surface], "planted"),
            pairs_figure([surface], "planted"),
        )
        written.append([vector_graphics(figure) for figure in figures])
    assert written[0] == written[1]
    assert all(20_000 < len(drawn) < 300_000 for drawn in written[0])


def test_nanochat_optima_come_with_their_printed_exponents() -> None:
    found = nanochat(PUBLISHED / "nanochat_optima.csv", PUBLISHED / "nanochat_exponents.csv")
    assert [optima.exponent for optima in found] == ["$a$ = 0.54", "$a$ = 0.37", "$a$ = 0.70"]
    assert all(optima.flops.size == 4 for optima in found)


def test_counts_flops_and_intervals_are_written_as_reports_do() -> None:
    assert [count(v) for v in (12, 26784, 999_999, 7e10)] == ["12", "26.8k", "1M", "70B"]
    assert [flops_words(v) for v in (9.731e12, 1e16)] == ["9.73e12", "1e16"]
    assert with_interval(0.49914, 0.469, 0.528) == "0.499 [0.469, 0.528]"
    assert with_interval(0.5, -math.inf, math.inf) == "0.5"
