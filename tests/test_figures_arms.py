"""Figures of treatments, wide networks, learning rates and widths: what is drawn is what the tables hold."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.arms.rates import Curve, curves, enough_rates, shared
from analysis.figures.learning_rates import learning_rates_figure
from analysis.figures.spending import Bubble, both_ways, bubbles, spending_figure
from analysis.figures.style import hovers, save
from analysis.figures.valley import valley_figure
from analysis.figures.wide import wide_figure
from analysis.isoflop.minima import Shape
from analysis.isoflop.widths import has_valley, valleys
from analysis.products.arms import products, published_bubbles
from analysis.products.product import Product
from analysis.products.tracked import Tracked
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs
from analysis.runs.treatments import FIXED_FLOPS, MORE_TOKENS, PLAIN
from analysis.wide import GROUPED, TRANSFORMER, WIDE, own_networks, published_networks, wide_rows

RESULTS = Path(__file__).parents[1] / "results"
TABLES, PAPERS = RESULTS / "tables", RESULTS / "published"
COLUMNS = (
    "run_id", "state", "size", "structure", "seed", "params", "tokens", "train_flops", "val_loss", "d_model",
    "d_ff", "peak_lr", "unique_tokens", "guide_mode", "guide_stochastic", "flops_per_token",
)  # fmt: skip


def table(path: Path, rows: Iterable[dict[str, object]]) -> Runs:
    """Write rows as a runs table and read it back."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for i, row in enumerate(rows):
        writer.writerow({"run_id": f"r{i:03}", "state": "done", "seed": 1, "guide_mode": "none", **row})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(out.getvalue())
    return read_csv(path)


def texts(figure: Figure) -> list[str]:
    return [text for _, found in hovers(figure) for text in found.texts]


def all_words(figure: Figure) -> str:
    from matplotlib.text import Text

    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


def rate_rows(best: float, lost: Iterable[float] = (), structure: str = "dense") -> list[dict[str, object]]:
    """A valley of curvature 0.06 about `best`, 6 rates; all runs at `lost` diverged."""
    noise = np.random.default_rng(round(1e4 * best)).normal(0, 0.001, 6)
    rows: list[dict[str, object]] = []
    for rate, e in zip((0.003, 0.006, 0.012, 0.024, 0.048, 0.096), noise, strict=True):
        gone = rate in lost
        loss = 3.0 + 0.06 * math.log(rate / best) ** 2 + e
        rows.append({
            "structure": f"{structure}, peak_lr={rate:g}", "size": "s", "peak_lr": rate, "params": 1e5,
            "tokens": 1e6, "train_flops": 1e11, "val_loss": "" if gone else loss,
            "state": "diverged" if gone else "done",
        })  # fmt: skip
    return rows


def width_rows(
    seeds: int = 2, noise: float = 0.003, bend: float = 0.06, middle: float = 50.0
) -> list[dict[str, object]]:
    """Valleys at three budgets, the best width growing as C^(1/4); one run failed, one diverged."""
    rng = np.random.default_rng(2)
    rows: list[dict[str, object]] = []
    for structure, shift in (("dense", 0.0), ("lowrank-32", 0.3)):
        for budget in (1e12, 4e12, 1.6e13):
            best = math.log(middle) + 0.25 * math.log(budget / 4e12) + shift
            for width in (24, 36, 48, 72, 96, 144):
                for seed in range(1, seeds + 1):
                    loss = 3.0 * (budget / 4e12) ** -0.05
                    loss *= math.exp(bend * (math.log(width) - best) ** 2 + noise * rng.normal())
                    state = "done"
                    if (structure, budget, width, seed) == ("lowrank-32", 4e12, 144, 2):
                        state = "diverged"
                    if (structure, budget, width, seed) == ("dense", 1e12, 24, 2):
                        state = "failed"
                    tokens = round(budget / (100 * width * width))
                    rows.append({
                        "structure": structure, "size": f"d{width}-L4", "seed": seed, "d_model": width,
                        "params": width * width, "tokens": tokens, "flops_per_token": 100 * width * width,
                        "train_flops": budget * (1 + 0.01 * rng.normal()), "state": state,
                        "val_loss": loss if state == "done" else "",
                    })  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def made() -> dict[str, Product]:
    return {product.name: product for product in products(Tracked(RESULTS))}


def test_bubbles_are_the_arms_of_the_table_and_areas_their_parameters() -> None:
    runs = read_csv(TABLES / "selfguided_runs.csv")
    assert both_ways(runs)
    found = bubbles(runs, "selfguided")
    guided = next(
        b for b in found if (b.size, b.structure, b.treatment) == ("cpu-s", "lowrank-32", FIXED_FLOPS)
    )
    rows = runs.table[runs.table["structure"] == "lowrank-32, guide=fixed_flops"]
    mine = rows[rows["size"] == "cpu-s"]
    assert guided.perplexity == pytest.approx(math.exp(mine["val_loss"].mean()))
    assert guided.tokens == float(mine["unique_tokens"].iloc[0]) < guided.seen == mine["tokens"].iloc[0]
    figure = spending_figure(found, "selfguided")
    drawn = {found.texts[0]: line for line, found in hovers(figure)}
    words = next(text for text in drawn if text.startswith("lowrank-32, self-guided, fixed FLOPs, cpu-s"))
    line = drawn[words]
    assert float(np.asarray(line.get_ydata())[0]) == pytest.approx(guided.perplexity)
    # Beside the dense run of the same tokens, so not exactly there.
    assert float(np.asarray(line.get_xdata())[0]) == pytest.approx(guided.tokens, rel=0.1)
    small = next(b for b in found if b.structure == "dense" and b.size == "cpu-xs")
    large = next(b for b in found if b.structure == "dense" and b.size == "cpu-s")
    sizes = [
        drawn[t].get_markersize() for b in (small, large) for t in drawn if t.startswith(f"dense, {b.size}:")
    ]
    assert (sizes[-1] / sizes[0]) ** 2 == pytest.approx(large.params / small.params)
    filled = {b.treatment for b in found}
    assert filled == {PLAIN, FIXED_FLOPS, MORE_TOKENS}


def test_published_bubbles_are_what_is_printed_and_say_it_is_other_text(made: dict[str, Product]) -> None:
    found = published_bubbles(
        PAPERS / "structuredffn_selfguided.csv", PAPERS / "structuredffn_table9_v1_table6_v2.csv"
    )
    assert len(found) == 16 and {b.structure for b in found} == {"dense", "lowrank-32"}
    more = next(b for b in found if b.size == "xl" and b.treatment == MORE_TOKENS)
    assert (round(more.perplexity, 2), more.tokens, more.ends) == (12.76, 41.48e9, None)
    guided = next(b for b in found if b.size == "s" and b.treatment == FIXED_FLOPS)
    assert guided.seen == pytest.approx(1.3 * guided.tokens)
    figure = made["selfguided_spending"].make().figure
    assert figure is not None and "other text and tokens" in all_words(figure)


def test_a_lost_seed_and_a_single_size_are_said_and_drawn() -> None:
    arms = [
        Bubble("s", "dense", PLAIN, 1e6, 1e6, (3.0, 3.1), 1e5, 1e12),
        Bubble("s", "lowrank-32", MORE_TOKENS, 1.4e6, 1.4e6, (3.2,), 6e4, 1e12, diverged=1),
    ]
    figure = spending_figure(arms, "x", "3 of 4 runs")
    assert "1 of 2 diverged" in all_words(figure) and "3 of 4 runs" in all_words(figure)
    assert len(texts(figure)) == 2


def test_planted_best_rates_lie_in_their_intervals(tmp_path: Path) -> None:
    rows = rate_rows(0.012) + rate_rows(0.02, structure="lowrank-32")
    runs = table(tmp_path / "tables" / "x_runs.csv", rows)
    assert enough_rates(runs)
    found = curves(runs)
    assert [c.structure for c in found] == ["dense", "lowrank-32"] and not any(c.reason for c in found)
    for curve, best in zip(found, (0.012, 0.02), strict=True):
        assert curve.low < best < curve.high and curve.high / curve.low < 1.5
    assert shared(found) == "s: no rate lies in all intervals"
    figure = learning_rates_figure(found, "x")
    line, told = next((line, h) for line, h in hovers(figure) if h.texts[0].startswith("dense, s: loss"))
    lowest = min(float(row["val_loss"]) for row in rows[:6])  # type: ignore[arg-type]
    expected = [float(row["val_loss"]) - lowest for row in rows[:6]]  # type: ignore[arg-type]
    assert np.allclose(np.asarray(line.get_ydata(), float), expected) and len(told.texts) == 6
    assert any(text.startswith("dense, s: best 0.01") for text in texts(figure))


def test_edges_and_divergence_are_no_optima(tmp_path: Path) -> None:
    low = curves(table(tmp_path / "a.csv", rate_rows(0.002)))[0]
    assert low.reason == "edge: at or below 0.003" and math.isnan(low.optimum)
    high = curves(table(tmp_path / "b.csv", rate_rows(0.05, lost=(0.096,))))[0]
    assert high.reason == "edge: runs diverge above 0.048"
    few = curves(table(tmp_path / "c.csv", rate_rows(0.012)[1:4]))[0]
    assert few.reason == "lowest at 0.012; too few rates about it"
    figure = learning_rates_figure([low, high, few], "x", "17 of 18 runs")
    words = all_words(figure)
    assert "edge: at or below 0.003" in words and "1/1" in words and "17 of 18 runs" in words
    assert any("1/1 runs diverged at peak_lr 0.096" in text for text in texts(figure))


def test_rates_at_which_a_seed_diverged_flatter_nobody(tmp_path: Path) -> None:
    rows = rate_rows(0.012)
    rows.append({**rows[2], "seed": 2, "state": "diverged", "val_loss": ""})
    curve = curves(table(tmp_path / "x.csv", rows))[0]
    assert curve.diverged == {0.012: 1} and curve.best != 0.012


def test_the_tracked_rates_are_said_to_be_edges(made: dict[str, Product]) -> None:
    found = curves(read_csv(TABLES / "stability_runs.csv"))
    assert {(c.structure, c.treatment) for c in found} == {
        ("lowrank-32", PLAIN), ("lowrank-32", "self-guided, fixed steps"),
    }  # fmt: skip
    assert {c.reason for c in found} == {"edge: at or below 0.012"}
    assert "stability_learning_rates" in made and "lowrank_learning_rates" not in made


def test_planted_valleys_are_found_and_lost_runs_said(tmp_path: Path) -> None:
    runs = table(tmp_path / "tables" / "w_runs.csv", width_rows())
    assert has_valley(runs) and not has_valley(read_csv(TABLES / "lowrank_runs.csv"))
    found = valleys(runs)
    assert len(found) == 6
    for valley in found:
        shift = 0.3 if valley.structure == "lowrank-32" else 0.0
        truth = math.exp(math.log(50) + 0.25 * math.log(valley.budget / 4e12) + shift)
        assert valley.optimum == pytest.approx(truth, rel=0.15) and valley.low < valley.optimum < valley.high
    assert next(v for v in found if v.diverged).diverged == {144: 1}
    product = {p.name: p for p in products(Tracked(tmp_path))}["w_valley"]
    figure = product.make().figure
    assert figure is not None
    words = all_words(figure)
    assert "70 of 72 runs" in words and "failed: r" in words and "1/2" in words
    drawn = {h.texts[0]: line for line, h in hovers(figure)}
    first = next(line for text, line in drawn.items() if text.startswith("dense: loss"))
    assert list(np.asarray(first.get_xdata())) == list(found[0].losses)
    means = [found[0].mean(width) for width in found[0].losses]
    assert np.allclose(np.asarray(first.get_ydata(), float), means)


def test_edge_and_flat_valleys_have_no_best_width(tmp_path: Path) -> None:
    edge = valleys(table(tmp_path / "a.csv", width_rows(middle=8.0)))
    assert {v.reason for v in edge if v.structure == "dense" and v.budget < 2e12} == {"edge: at or below 24"}
    flat = valleys(table(tmp_path / "b.csv", width_rows(noise=0.05, bend=0.0005)))
    assert any(v.reason for v in flat) and all(math.isnan(v.optimum) for v in flat if v.reason)
    figure = valley_figure(edge + flat[:1], "x")
    assert "edge" in all_words(figure) and any("edge: at or below" in text for text in texts(figure))
    few = valleys(table(tmp_path / "c.csv", [r for r in width_rows() if r["d_model"] in (36, 48, 72)]))
    assert {v.reason for v in few} <= {
        "lowest at 48; too few widths about it",
        "edge: at or above 72",
        "edge: at or below 36",
    }


def wide_runs(path: Path, lost: bool = False) -> Runs:
    rows: list[dict[str, object]] = []
    for seed in (1, 2, 3):
        shared_loss = 3.0 + 0.1 * seed
        base = {"size": "s", "seed": seed, "d_model": 64, "train_flops": 1e12, "unique_tokens": 1e6}
        low = {**base, "structure": "lowrank-63", "params": 8e4, "d_ff": 300}
        gone = lost and seed == 3
        guided: dict[str, object] = {
            **low, "structure": "lowrank-63, guide=fixed_flops", "tokens": 1.3e6, "guide_mode": "fixed_flops",
            "guide_stochastic": "true", "state": "diverged" if gone else "done",
            "val_loss": "" if gone else shared_loss - 0.01 - 0.001 * seed,
        }  # fmt: skip
        more = {"structure": "lowrank-63, tokens=more", "tokens": 1.4e6, "unique_tokens": 1.4e6}
        usual = {"structure": "dense, d_ff=256", "params": 1e5, "d_ff": 256, "tokens": 1e6}
        other = {"structure": "dense, d_ff=300", "params": 99e3, "d_ff": 300, "tokens": 1e6}
        rows += [
            {**base, **usual, "val_loss": shared_loss},
            {**base, **other, "val_loss": shared_loss + 0.02 + 0.001 * seed},
            {**low, **more, "val_loss": shared_loss - 0.03 + 0.001 * seed},
            guided,
        ]
    return table(path, rows)


DECODE = (
    "size,structure,params_total,n_kv_heads,precision,compiled,length,batch,tokens_per_second,device,threads,error\n"
    "s,dense,100000,2,fp32,False,256,1,100,CPU,1,\n"
    "s,dense,100000,2,fp32,False,256,8,400,CPU,1,\n"
    "s,dense,100000,2,fp32,False,256,16,,CPU,1,out of memory\n"
    'm,"lowrank-63, premerge=auto",80000,1,fp32,False,256,8,900,CPU,1,\n'
    's,"lowrank-63, premerge=auto",80001,1,fp32,False,256,8,800,CPU,1,\n'
    's,"lowrank-63, premerge=auto",80000,1,fp32,False,256,8,700,CPU,1,\n'
)


def test_speeds_are_of_the_very_network_or_a_dash(tmp_path: Path) -> None:
    runs = wide_runs(tmp_path / "tables" / "wide_runs.csv")
    decode = tmp_path / "decode.csv"
    decode.write_text(DECODE)
    found, _ = own_networks(runs, "wide", decode)
    by_words = {n.words: n for n in found}
    assert by_words[TRANSFORMER].throughput == 400
    assert by_words[f"{WIDE}, more tokens"].throughput == by_words[f"{WIDE}, self-guided"].throughput == 700
    other = next(n for n in found if n.label == "dense" and n.kind not in (TRANSFORMER, GROUPED))
    assert math.isnan(other.throughput)
    header, rows = wide_rows(found)
    speed = header.index("tokens/s")
    assert [row[speed] for row in rows if row[2] == other.words] == ["-"]
    assert all(len(row) == len(header) for row in rows)
    gap = header.index("over the transformer (%)")
    assert next(row[gap] for row in rows if row[2] == other.words).startswith("+2.")
    figure = wide_figure(found, "wide")
    assert any("700 tokens a second" in text for text in texts(figure))


def test_published_wide_rows_are_the_papers(made: dict[str, Product]) -> None:
    found = published_networks(PAPERS / "structuredffn_table2_wide_gqa.csv")
    assert [n.size for n in found] == ["m"] * 4 + ["l"] * 4
    assert [n.kind for n in found[:4]] == [TRANSFORMER, GROUPED, WIDE, WIDE]
    figure = wide_figure(found)
    points = {
        (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
        for line, _ in hovers(figure)
    }
    assert points == {(n.throughput, n.perplexity) for n in found}


def test_an_arm_that_lost_a_seed_says_so(tmp_path: Path) -> None:
    runs = wide_runs(tmp_path / "tables" / "wide_runs.csv", lost=True)
    tracked = Tracked(tmp_path)
    product = next(p for p in products(tracked) if p.name == "wide_networks")
    done = product.make()
    assert done.figure is not None and "(1 diverged)" in all_words(done.figure)
    text = done.texts["wide_networks.md"]
    assert "2 (+ 1 diverged)" in text and "not judged: 1 of 3 diverged" in text and runs.coverage() in text
    assert r"\begin" in done.texts["wide_networks.tex"]


def test_saved_bytes_repeat_and_tables_without_arms_yield_nothing(
    tmp_path: Path, made: dict[str, Product]
) -> None:
    for folder in ("a", "b"):
        figure = made["stability_learning_rates"].make().figure
        assert figure is not None
        (tmp_path / folder).mkdir()
        save(figure, tmp_path / folder / "x")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    table(tmp_path / "tables" / "one_runs.csv", rate_rows(0.012)[:1])
    assert [p.name for p in products(Tracked(tmp_path)) if p.sweep] == []


def test_one_finished_run_among_lost_ones_is_drawn() -> None:
    curve = Curve(
        size="s", structure="dense", treatment=PLAIN, tokens=1e6, shapes={0.01: Shape("", (3.0,))},
        diverged={0.02: 2, 0.04: 2}, reason="edge",
    )  # fmt: skip
    figure = learning_rates_figure([curve], "x")
    assert len([t for t in texts(figure) if "diverged" in t]) == 2
