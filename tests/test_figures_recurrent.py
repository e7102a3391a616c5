"""The figure of recurrent transformers: formulas give printed costs, drawn results are the printed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.errors import AnalysisError
from analysis.figures.recurrent import (
    block_counted,
    block_flops,
    read_architectures,
    read_experiments,
    recurrent_figure,
    recurrent_flops,
    regular_counted,
    regular_flops,
)
from analysis.figures.style import hovers
from analysis.products.recurrent import products
from analysis.products.tracked import Tracked

PAPERS = Path(__file__).parents[1] / "results" / "published"
EXPERIMENTS, COMPLEXITY = PAPERS / "kausik_experiments.csv", PAPERS / "kausik_complexity.csv"


def one(n: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([n])


def test_the_formulas_give_the_printed_flops() -> None:
    printed = [e.flops for e in read_experiments(EXPERIMENTS)]
    counted = [
        regular_flops(one(256), 384), regular_flops(one(256), 384, 6), recurrent_flops(one(256), 384),
        recurrent_flops(one(256), 384), regular_flops(one(1024), 32, 4), block_flops(one(1024), 32, 32),
        block_flops(one(4128), 96, 32), block_flops(one(4128), 96, 32),
    ]  # fmt: skip
    assert [float(value[0]) for value in counted] == pytest.approx(printed, rel=0.005)


def test_a_block_of_the_whole_sequence_is_one_layer_twice() -> None:
    # N = K: y_1 = T(x_1) and y_N = T(h_N), two passes of an ordinary layer.
    assert block_counted(one(512), 64, 512) == pytest.approx(2 * regular_counted(one(512), 64))
    windows = 2 * 4**2 + 3 * 8**2
    assert block_counted(one(16), 8, 4) == pytest.approx([2 * (12 * 2 * 16 * 64) + 4 * 8 * windows])


def test_what_is_drawn_is_what_is_printed() -> None:
    experiments = read_experiments(EXPERIMENTS)
    figure = recurrent_figure(read_architectures(COMPLEXITY), experiments)
    losses = {float(np.asarray(line.get_xdata())[0]) for line, h in hovers(figure) if ", loss " in h.texts[0]}
    assert losses == {e.loss for e in experiments} == {
        1.5697, 1.4815, 1.4738, 1.4699, 1.615, 1.631, 0.006, 0.022,
    }  # fmt: skip
    accuracies = [h.texts[0] for _, h in hovers(figure) if "accuracy" in h.texts[0]]
    assert len(accuracies) == 4 and sum("standard error" in text for text in accuracies) == 2
    curves = [line for line, h in hovers(figure) if len(h.texts) > 1]
    assert len(curves) == 6 and all(
        np.asarray(line.get_xdata())[[0, -1]].tolist() == [128, 16384] for line in curves
    )


def test_the_product_needs_both_files_and_a_broken_one_is_a_line(tmp_path: Path) -> None:
    assert [p.name for p in products(Tracked(tmp_path))] == ["published_recurrent"]
    assert list(products(Tracked(tmp_path, published=None))) == []
    bad = tmp_path / "x.csv"
    bad.write_text("task,model,params\nCopy,x,12\n")
    with pytest.raises(AnalysisError, match="check the file out again"):
        read_experiments(bad)
