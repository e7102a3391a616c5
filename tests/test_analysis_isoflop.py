"""Approach 2 on planted optima: exact recovery, coverage, bias, refusals, labels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.arrays import Array
from analysis.errors import AnalysisError
from analysis.isoflop.frontier import frontier, paule_mandel, suspicion
from analysis.isoflop.optima import (
    Exponent,
    IsoFlop,
    NoExponent,
    agreement,
    group_budgets,
    isoflop,
    rounded_budgets,
    six_nd_gap,
)
from analysis.isoflop.parabola import fit_quadratic

PUBLISHED = Path(__file__).parent.parent / "results" / "published"
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)
"""E, A, B, alpha, beta as printed in arXiv 2203.15556, whose optima are N* ~ C^.4516."""
EPOCH = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""The same of arXiv 2404.10102: here the loss rises more steeply on the side of few tokens."""
Columns = tuple[Array, Array, Array, Array]


def parabolas(
    rng: np.random.Generator, a: float = 0.52, budgets: int = 5, sizes: int = 7, width: float = 6.0,
    noise: float = 0.0, jitter: float = 0.0, kappa_slope: float = 0.0, curvature: float = 0.02,
    scatter: float = 0.0,
) -> Columns:  # fmt: skip
    """Exactly parabolic log loss about N* = 3e8 (C / 1e19)^a, sampled around centres that miss it by 30 %."""
    centres = np.linspace(math.log(1e18), math.log(1e20), budgets)
    c = np.repeat(centres, sizes) + jitter * rng.uniform(-1, 1, budgets * sizes)

    def vertex(log_c: Array) -> Array:
        return math.log(3e8) + a * (log_c - math.log(1e19))

    middle = vertex(centres) + rng.uniform(-0.3, 0.3, budgets)
    n = np.repeat(middle, sizes) + np.tile(np.linspace(-1, 1, sizes) * math.log(width), budgets)
    place = vertex(c) + np.repeat(scatter * rng.standard_normal(budgets), sizes)
    y = math.log(2.5) - 0.06 * (c - math.log(1e19)) + curvature * (n - place) ** 2
    y += noise * rng.standard_normal(n.size)
    kappa = math.log(6) + kappa_slope * (n - math.log(3e8))
    return np.exp(n), np.exp(c - kappa - n), np.exp(c), np.exp(y)


def optimum(law: tuple[float, ...], flops: Array) -> Array:
    """N* of L = E + A N^-alpha + B D^-beta at C = 6 N D: arXiv 2203.15556, eq. 4."""
    _, a, b, alpha, beta = law
    best = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
    return np.asarray(best)


def surface(
    law: tuple[float, ...], width: float, lopsided: float = 1.0, sizes: int = 11, noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Columns:  # fmt: skip
    """Five budgets of a law's IsoFLOP curves, sizes from 1/width to width about lopsided x N*."""
    floor, a, b, alpha, beta = law
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), sizes)
    n = optimum(law, flops) * lopsided * np.tile(np.geomspace(1 / width, width, sizes), 5)
    d = flops / 6 / n
    loss = floor + a * n**-alpha + b * d**-beta
    if rng is not None:
        loss = loss * np.exp(noise * rng.standard_normal(loss.size))
    return n, d, flops, loss


def known(found: Exponent | NoExponent) -> Exponent:
    assert isinstance(found, Exponent), found
    return found


def shifts(found: IsoFlop, law: tuple[float, ...], which: str = "optimum") -> Array:
    """log of the vertices (or of Akima's minima) over the true N*."""
    pairs = [
        (getattr(budget.params, which), optimum(law, np.array(budget.flops))) for budget in found.budgets
    ]
    return np.array([math.log(place / truth) for place, truth in pairs if place is not None])


def curve(x: Array, y: Array, flops: float = 1e18) -> Columns:
    n = np.exp(x)
    return n, flops / 6 / n, np.full(n.size, flops), np.exp(y)


def joined(*columns: Columns) -> Columns:
    one, two, three, four = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return one, two, three, four


# Approach 2, without noise


@pytest.mark.parametrize("jitter", [0.0, 0.03])
@pytest.mark.parametrize("kappa_slope", [0.0, -0.1])
def test_exact_parabolas_are_recovered(jitter: float, kappa_slope: float) -> None:
    """Also where runs miss their budget by up to 3 %, and where C / (N D) depends on the size."""
    n, d, c, y = parabolas(np.random.default_rng(3), jitter=jitter, kappa_slope=kappa_slope)
    found = isoflop(n, d, c, y)
    assert known(found.a).value == pytest.approx(0.52, abs=1e-9)
    assert known(found.b).value == pytest.approx(1 - 0.52 * (1 + kappa_slope), abs=1e-9)
    assert known(found.a).ols == pytest.approx(0.52, abs=1e-9)
    assert found.moved == (jitter > 0) and found.findings == ()
    for budget in found.budgets:
        truth = 3e8 * (budget.flops / 1e19) ** 0.52
        assert budget.params.optimum == pytest.approx(truth, rel=1e-9)
        assert budget.params.loss == pytest.approx(2.5 * (budget.flops / 1e19) ** -0.06, rel=1e-9)
        assert budget.params.curvature == pytest.approx(0.02, rel=1e-7)
        assert budget.kappa == pytest.approx(6 * (truth / 3e8) ** kappa_slope, rel=1e-9)
        assert budget.optimal_tokens == pytest.approx(budget.flops / budget.kappa / truth, rel=1e-9)
        assert budget.spread <= math.expm1(0.061)


def test_tokens_by_their_own_parabola() -> None:
    """With one kappa the curve in log D is the mirror of that in log N, and so are the exponents."""
    columns = parabolas(np.random.default_rng(3), noise=0.004, jitter=0.02)
    found = isoflop(*columns)
    assert known(found.b_direct).value == pytest.approx(known(found.b).value, abs=1e-9)
    assert known(found.a).value + known(found.b).value == pytest.approx(1, abs=1e-9)
    for budget in found.budgets:
        assert budget.tokens.optimum == pytest.approx(budget.optimal_tokens, rel=1e-9)


def test_moving_the_loss_alone_would_not_do() -> None:
    """Points taken at their label's place, 5 % off in FLOPs: the exponent is wrong unless they are moved."""
    rng = np.random.default_rng(5)
    n, d, c, y = parabolas(rng, jitter=0.045, curvature=0.05)
    assert known(isoflop(n, d, c, y).a).value == pytest.approx(0.52, abs=1e-9)
    labels = np.repeat(np.geomspace(1e18, 1e20, 5), 7)
    assert abs(known(isoflop(n, d, labels, y).a).value - 0.52) > 1e-4


@settings(max_examples=25, deadline=None)
@given(*[st.floats(-12, 12)] * 3, st.integers(0, 50))
def test_units_do_not_change_exponents(log_c: float, log_n: float, log_d: float, seed: int) -> None:
    n, d, c, y = parabolas(np.random.default_rng(seed), noise=0.003, jitter=0.02, kappa_slope=0.1)
    base = isoflop(n, d, c, y, resamples=50)
    scaled = isoflop(n * math.exp(log_n), d * math.exp(log_d), c * math.exp(log_c), y, resamples=50)
    for name in ("a", "b", "b_direct"):
        one, two = known(getattr(base, name)), known(getattr(scaled, name))
        for field in ("value", "low", "high", "ols", "tau", "bootstrap_low"):
            assert getattr(two, field) == pytest.approx(getattr(one, field), abs=1e-7), (name, field)


def test_budgets_are_grouped_by_distance() -> None:
    flops = np.array([1.02e18, 1e18, 0.98e18, 3e18, 3.1e18, 1e19])
    assert [sorted(part.tolist()) for part in group_budgets(flops)] == [[0, 1, 2], [3, 4], [5]]
    chain = np.exp(np.arange(20) * 0.04)
    groups = group_budgets(chain)
    assert len(groups) >= 4 and sum(part.size for part in groups) == 20
    for part in groups:
        logs = np.log(chain[part])
        assert np.max(np.abs(logs - logs.mean())) <= math.log1p(0.05) + 1e-12
    twins = np.array([1e18, np.nextafter(1e18, 2e18), 2e18])
    assert [part.size for part in group_budgets(twins, 0.0)] == [2, 1]


# Refusals


def test_refused_budgets_are_named() -> None:
    x = np.linspace(math.log(1e7), math.log(1e9), 7)
    wave = 1e-4 * np.array([1, -1, 1, -1, 1, -1, 1.0])
    middle = x.mean()
    found = isoflop(
        *joined(
            curve(x, 1 + 0.02 * (x - middle) ** 2 + wave, 1e17),
            curve(x, 1 - 0.02 * (x - middle) ** 2 + wave, 1e18),
            curve(x, 1 + 0.02 * (x - x[-1] - 1) ** 2 + wave, 1e19),
            curve(x, 1 + 3e-6 * (x - middle) ** 2 + wave, 1e20),
            curve(x[:3], 1 + 0.02 * (x[:3] - x[1]) ** 2, 1e21),
        )
    )
    curves = [budget.params for budget in found.budgets]
    assert [c.verdict for c in curves] == ["usable", "inverted", "edge", "flat", "few"]
    assert [c.code for c in curves] == ["", "SL014", "SL015", "SL016", "SL016"]
    for c in curves[1:]:
        assert (c.optimum, c.low, c.high, c.loss, c.log_se) == (None,) * 5
        assert c.reason.startswith("too few" if c.verdict == "few" else c.verdict)
    assert "N* lies above" in curves[2].reason and "larger" in curves[2].reason
    assert "D* lies below" in found.budgets[2].tokens.reason and "larger" in found.budgets[2].tokens.reason
    assert [f.code for f in found.findings] == ["SL014", "SL015", "SL016", "SL016"]
    assert "budget 1e+18 FLOPs" in found.findings[0].sentence
    assert isinstance(found.a, NoExponent) and "1 of 5 budgets usable" in found.a.reason
    assert found.a.code in ("SL014", "SL015", "SL016") and found.a_akima is None
    assert (
        json.loads(json.dumps(found.to_dict(), allow_nan=False))["budgets"][3]["params"]["verdict"] == "flat"
    )


def test_two_budgets_give_no_exponent() -> None:
    n, d, c, y = parabolas(np.random.default_rng(0), budgets=2)
    found = isoflop(n, d, c, y)
    assert isinstance(found.a, NoExponent) and found.a.code == ""
    assert "2 of 2 budgets usable; a line with an error needs 3" in found.a.reason


def test_wrong_columns_are_refused() -> None:
    n, d, c, y = parabolas(np.random.default_rng(0))
    for bad in ((n[:-1], d, c, y), (n, -d, c, y), (n, d, c * np.nan, y)):
        with pytest.raises(AnalysisError, match=r"params|tokens|train_flops"):
            isoflop(*bad)
    with pytest.raises(AnalysisError, match="run together"):
        isoflop(n, d, c, y, tolerance=0.9)
    with pytest.raises(AnalysisError, match="above zero"):
        isoflop(n, d, c, y, rise=0.0)


# Intervals


def test_fieller_is_the_inverted_test_and_unbounded_where_flat() -> None:
    """Ends of the interval are where the slope of the parabola is t standard errors from zero."""
    rng = np.random.default_rng(8)
    x = np.linspace(-2, 2, 9)
    fit = fit_quadratic(x, 0.02 * (x - 0.4) ** 2 + 0.004 * rng.standard_normal(9))
    sigma = math.sqrt(fit.rss / fit.dof)
    low, high = fit.interval(sigma, fit.dof)
    assert low < fit.vertex < high and high - low > 2 * fit.vertex_se(sigma)
    for end in (low, high):
        u = (end - fit.centre) / fit.scale
        row = np.array([0, 1, 2 * u])
        t = abs(row @ fit.coefficients) / (sigma * math.sqrt(row @ fit.inverse @ row))
        assert t == pytest.approx(2.446911848791681, rel=1e-9)
    assert fit.interval(50 * sigma, fit.dof) == (-math.inf, math.inf)


def test_lack_of_fit_counts() -> None:
    """Where optima scatter beyond their errors, tau says by how much, and precise vertices do not rule."""
    x = np.arange(40.0)
    rng = np.random.default_rng(0)
    se = np.where(x % 2 == 0, 0.01, 0.1)
    y = 0.5 * x + 0.2 * rng.standard_normal(40) + se * rng.standard_normal(40)
    assert math.sqrt(paule_mandel(x - x.mean(), y, se)) == pytest.approx(0.2, rel=0.3)
    assert paule_mandel(x - x.mean(), 0.5 * x, se) == 0.0
    fit = frontier(x, y, se)
    assert fit.low < 0.5 < fit.high and fit.se == pytest.approx(fit.design_se, rel=1e-6)
    assert fit.se > 3 * 0.02 / math.sqrt(float(np.sum((x - x.mean()) ** 2)))


def test_optima_too_close_to_their_line_are_suspicious() -> None:
    x = np.arange(5.0)
    exact = frontier(x, 0.5 * x + 1e-6 * np.array([1, -1, 0, 1, -1]), np.full(5, 0.1))
    assert exact.se < exact.design_se / 1000 and exact.tau == 0
    told = suspicion(exact)
    assert told is not None and told.code == "SL013" and "vertices imply (0.032)" in told.sentence


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scatter", [0.0, 0.1])
def test_intervals_cover(scatter: float) -> None:
    """5 budgets x 7 sizes, 0.4 % noise, exactly parabolic truth, 600 simulations of each kind.

    Measured: the t-interval covers 95.3 %, unweighted 96.0 %, bootstrap-t 96.5 %, the vertices' Fieller
    intervals 95.0 %.  With optima that scatter by 10 % about their line, 94.8, 95.8 and 96.3 %; percentiles
    of the bootstrapped slope, which bootstrap-t replaced, covered 82 % then, and the vertices' own intervals,
    which know nothing of such scatter, 70 %.
    """
    rng = np.random.default_rng(11)
    hits = {"t": 0, "ols": 0, "bootstrap": 0}
    vertex = total = 0
    count = 600
    for _ in range(count):
        found = isoflop(*parabolas(rng, noise=0.004, scatter=scatter), resamples=300)
        a = known(found.a)
        assert a.bootstrap_low is not None and a.bootstrap_high is not None
        hits["t"] += a.low <= 0.52 <= a.high
        hits["ols"] += a.ols_low <= 0.52 <= a.ols_high
        hits["bootstrap"] += a.bootstrap_low <= 0.52 <= a.bootstrap_high
        for budget in found.budgets:
            truth, curve = 3e8 * (budget.flops / 1e19) ** 0.52, budget.params
            if curve.low is not None and curve.high is not None:
                vertex, total = vertex + (curve.low <= truth <= curve.high), total + 1
    assert 0.93 <= hits["t"] / count <= 0.97 and 0.93 <= hits["ols"] / count <= 0.97
    assert 0.915 <= hits["bootstrap"] / count <= 0.975
    if not scatter:
        assert total > 0.99 * 5 * count and 0.93 <= vertex / total <= 0.97


# Bias


def test_bias_of_the_parabola_is_as_measured() -> None:
    """A parabola in log N on L = E + A N^-alpha + B D^-beta, 11 sizes, no noise: N* off at all five budgets.

    Hoffmann's constants (alpha > beta): sizes from 1/32 to 32 N*, all points: +8.1 to +8.3 %, D* as much too
    low, a +.0005.  Points within 5 % of the lowest loss (the default): +1.6 %.  Akima: -0.9 %.
    Epoch's constants (alpha < beta): -2.3 % and -0.5 %: the other way.
    Sizes centred at four times N* (1/8 to 8): -5.5 to -2.7 %, and a is off by +.006.
    """
    wide = isoflop(*surface(HOFFMANN, 32), rise=math.inf, resamples=0)
    assert np.all((shifts(wide, HOFFMANN) > 0.07) & (shifts(wide, HOFFMANN) < 0.09))
    assert known(wide.a).value == pytest.approx(0.28 / 0.62, abs=0.001)
    near = isoflop(*surface(HOFFMANN, 32), resamples=0)
    assert np.all((shifts(near, HOFFMANN) > 0.01) & (shifts(near, HOFFMANN) < 0.02))
    smooth = shifts(near, HOFFMANN, "akima")
    assert np.all(np.abs(smooth) < 0.012) and smooth.size == 5
    other = isoflop(*surface(EPOCH, 32), rise=math.inf, resamples=0)
    assert np.all((shifts(other, EPOCH) < -0.015) & (shifts(other, EPOCH) > -0.03))
    aside = isoflop(*surface(HOFFMANN, 8, lopsided=4), rise=math.inf, resamples=0)
    assert known(aside.a).value - 0.28 / 0.62 == pytest.approx(0.0063, abs=0.002)
    assert shifts(aside, HOFFMANN)[0] < -0.05


def test_bias_remains_under_noise() -> None:
    """Hoffmann's constants, 7 sizes from 1/16 to 16 N*, 0.4 % noise, measured over 300 simulations.

    Over all points N* is 5.5 % high on average and its intervals hold the truth in 36 %; through the points
    within 5 % of the lowest loss (the default) 2.6 % and 91 %.  The bias is much the same at every budget, so
    that the exponent is right within .0003 and its intervals hold it in 93 and 97 %.
    """
    rng = np.random.default_rng(4)
    draws = [surface(HOFFMANN, 16, sizes=7, noise=0.004, rng=rng) for _ in range(60)]
    full = np.concatenate([shifts(isoflop(*c, rise=math.inf, resamples=0), HOFFMANN) for c in draws])
    near = np.concatenate([shifts(isoflop(*c, resamples=0), HOFFMANN) for c in draws])
    assert 0.045 < full.mean() < 0.08
    assert abs(near.mean()) < 0.6 * full.mean()


# Labels and conventions


def test_rounded_labels_change_the_exponent_and_are_flagged() -> None:
    """2e18 printed for 2.15e18 (arXiv 2203.15556 and its followers): .54 becomes .550."""
    realised, printed = np.array([1e17, 3e17, 6e17, 1e18, 2.15e18]), np.array([1e17, 3e17, 6e17, 1e18, 2e18])
    x = np.linspace(-1.5, 1.5, 7)
    parts = []
    for flops in realised:
        place = math.log(3e8) + 0.54 * math.log(flops / 1e18)
        n = np.exp(place + x)
        loss = np.exp(1 - 0.06 * math.log(flops / 1e18) + 0.02 * x**2)
        parts.append((n, flops / 6 / n, np.full(7, flops), loss))
    n, d, c, y = joined(*parts)
    labels = np.repeat(printed, 7)
    true, false = isoflop(n, d, c, y), isoflop(n, d, labels, y)
    assert known(true.a).value == pytest.approx(0.54, abs=1e-9)
    assert known(false.a).ols == pytest.approx(0.550, abs=5e-4)
    assert [f.code for f in false.findings][:1] == ["SL011"] and true.findings == ()
    assert rounded_budgets(c, n, d) is None
    found = rounded_budgets(labels, n, d, realised=c)
    assert found is not None and "7.5 %" in found.sentence and "realised" in found.sentence


def test_round_numbers_that_are_spent_are_no_labels() -> None:
    n = np.tile(np.geomspace(1e7, 1e9, 6), 3)
    c = np.repeat([1e18, 2e18, 4e18], 6)
    for slope in (0.0, -0.1):
        kappa = 6 * (n / 1e8) ** slope
        assert rounded_budgets(c, n, c / kappa / n) is None
    assert rounded_budgets(np.array([1e18]), np.array([1e8]), np.array([2e9])) is None


def test_six_nd_against_a_count() -> None:
    n, d = np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e10, 5)
    assert six_nd_gap(n, d, 6.2 * n * d) is None
    found = six_nd_gap(n, d, 6 * n * d * np.linspace(1.4, 1.0, 5))
    assert found is not None and found.code == "SL012" and "+0 to +40 %" in found.sentence


def test_agreement_with_approach_three() -> None:
    a = known(isoflop(*parabolas(np.random.default_rng(1), noise=0.004)).a)
    same, other = agreement(a, a.value + a.se, a.se), agreement(a, a.value + 8 * a.se, 0.1 * a.se)
    assert not same.disagrees and same.finding is None and "do not differ" in same.sentence
    assert other.disagrees and other.finding is not None and other.finding.code == "SL017"
    # Welch and Satterthwaite: between the dof of the one and the sum of both.
    assert same.dof == pytest.approx(4 * a.dof) and a.dof <= other.dof < 1.05 * a.dof
    assert other.low < other.difference < other.high < 0 and other.p < 0.05
    assert agreement(a, a.value, 0.01, other_dof=10).p == 1.0
