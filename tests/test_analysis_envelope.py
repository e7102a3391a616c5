"""Approach 1 on planted laws: exponents, edges, interpolation, intervals over runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from test_analysis_isoflop import EPOCH, HOFFMANN, joined, optimum

from analysis.arrays import Array
from analysis.errors import AnalysisError
from analysis.isoflop.optima import NoExponent, envelope


def checkpoints(law: tuple[float, ...], sizes: Array, points: int = 60) -> tuple[Array, Array, Array, Array]:
    """Curves of runs of every size, from 1 to 1,000 tokens per parameter."""
    floor, a, b, alpha, beta = law
    n = np.repeat(sizes, points)
    d = n * np.tile(np.geomspace(1, 1000, points), sizes.size)
    return n, d, 6 * n * d, floor + a * n**-alpha + b * d**-beta


@pytest.mark.parametrize("law", [HOFFMANN, EPOCH])
def test_envelope_recovers_the_planted_exponent(law: tuple[float, ...]) -> None:
    n, d, c, y = checkpoints(law, np.geomspace(1e7, 1e10, 31))
    found = envelope(n, d, c, y, resamples=200)
    truth = law[4] / (law[3] + law[4])
    assert not isinstance(found.a, NoExponent) and not isinstance(found.b, NoExponent)
    assert found.a.value == pytest.approx(truth, abs=0.01)
    assert found.a.value + found.b.value == pytest.approx(1, abs=1e-6)
    assert found.a.low is not None and found.a.high is not None
    assert found.a.low < truth < found.a.high and found.a.high - found.a.low < 0.1
    assert found.runs == found.sizes == 31
    inside = found.flops[~found.edge]
    assert np.max(np.abs(np.log(found.params[~found.edge] / optimum(law, inside)))) < 0.25


def test_envelope_leaves_its_edges_out() -> None:
    sizes = np.geomspace(1e8, 1e9, 5)
    n, d, c, y = checkpoints(HOFFMANN, sizes)
    found, kept = envelope(n, d, c, y, resamples=0), envelope(n, d, c, y, resamples=0, keep_edges=True)
    assert 0 < found.used < kept.used == found.edge.size
    assert np.all(found.edge[found.params < sizes[0] * 1.01]) and not np.all(found.edge)
    assert not isinstance(found.a, NoExponent) and not isinstance(kept.a, NoExponent)
    assert abs(found.a.value - 0.4516) < abs(kept.a.value - 0.4516)
    few = envelope(*checkpoints(HOFFMANN, sizes[:3]), resamples=0)
    assert isinstance(few.a, NoExponent) and few.a.code == "SL015"
    json.dumps(found.to_dict(), allow_nan=False)


def test_envelope_interpolates_and_never_extrapolates() -> None:
    """A short run that would win beyond its end does not."""
    x = np.linspace(0, 10, 11)
    good = (np.full(4, 2.0), np.exp(x[:4]), np.exp(x[:4]), np.exp(1 - 0.3 * x[:4]))
    rest = [(np.full(11, s), np.exp(x), np.exp(x), np.exp(2 - 0.1 * x + s / 100)) for s in (1.0, 3.0)]
    found = envelope(*joined(good, *rest), resamples=0, bins=101)
    end = math.exp(3)
    assert set(found.run) == {"1", "2"}
    assert all(
        (run == "2") == (flops <= end * 1.0001) for run, flops in zip(found.run, found.flops, strict=True)
    )
    assert found.loss[0] == pytest.approx(math.e) and np.all(found.edge == (np.array(found.run) == "1"))


def test_intervals_of_the_envelope_are_of_runs() -> None:
    """More checkpoints of the same runs are no more evidence."""
    rng = np.random.default_rng(0)
    law, sizes = HOFFMANN, np.geomspace(1e7, 1e10, 16)
    offsets = np.exp(0.004 * rng.standard_normal(16))
    widths = []
    for points in (20, 200):
        n, d, c, y = checkpoints(law, sizes, points)
        a = envelope(n, d, c, y * np.repeat(offsets, points), resamples=300).a
        assert not isinstance(a, NoExponent) and a.low is not None and a.high is not None
        widths.append(a.high - a.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.25) and widths[0] > 0.02


def test_envelope_refuses_what_has_none() -> None:
    n, d, c, y = checkpoints(HOFFMANN, np.geomspace(1e7, 1e9, 4))
    with pytest.raises(AnalysisError, match="differ in params"):
        envelope(n, d, c, y, runs=["one"] * n.size)
    with pytest.raises(AnalysisError, match="no two curves"):
        envelope(n[:60], d[:60], c[:60], y[:60])
    with pytest.raises(AnalysisError, match="3 labels"):
        envelope(n, d, c, y, runs=["a", "b", "c"])
