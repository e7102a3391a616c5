"""Laws and fits: planted parameters, derivatives, intervals that cover, and numbers that are refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.arrays import Array
from analysis.digits import number, probability, with_error
from analysis.errors import AnalysisError
from analysis.fit import LEAST_SQUARES, Fit, Refusal, fit_law

FLOPS = np.geomspace(1e11, 3e13, 6)
C0 = 2e12


def planted(
    floor: float, k: float, alpha: float, flops: Array = FLOPS, noise: float = 0.0, seed: int = 0
) -> Array:
    loss = floor + k * (flops / C0) ** -alpha
    return np.asarray(loss * np.exp(noise * np.random.default_rng(seed).standard_normal(flops.size)))


def fit(law: str, flops: Array, loss: Array) -> Fit | Refusal:
    return fit_law(law, {"train_flops": flops}, loss, "g", settings=LEAST_SQUARES)


def codes(found: Fit) -> list[str]:
    return [finding.code for finding in found.findings]


def fitted(law: str, flops: Array, loss: Array) -> Fit:
    found = fit(law, flops, loss)
    assert isinstance(found, Fit), found
    return found


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 2.0), st.floats(0.3, 3.0), st.floats(0.03, 0.5))
def test_planted_law_with_irreducible_loss_is_recovered(floor: float, k: float, alpha: float) -> None:
    fit = fitted("irreducible", FLOPS, planted(floor, k, alpha))
    assert fit.params == pytest.approx({"E": floor, "k": k * C0**alpha, "alpha": alpha}, rel=1e-8)
    assert fit.identified and not fit.findings and fit.certificate.converged
    assert fit.certificate.minima == 1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 6.0), st.floats(0.01, 0.8))
def test_planted_power_law_is_recovered(k: float, alpha: float) -> None:
    fit = fitted("power", FLOPS, planted(0, k, alpha))
    assert fit.params == pytest.approx({"k": k * C0**alpha, "alpha": alpha}, rel=1e-8)
    assert fit.residual_sd is not None and fit.residual_sd < 1e-12


@pytest.mark.parametrize(
    ("law", "floor"), [("power", 0.0), pytest.param("irreducible", 1.2, marks=pytest.mark.slow)]
)
def test_intervals_cover_the_truth(law: str, floor: float) -> None:
    flops, truth, hits, tries = np.geomspace(1e10, 1e14, 8), 0.15, 0, 100
    for seed in range(tries):
        fit = fitted(law, flops, planted(floor, 1.5, truth, flops, 0.004, seed))
        assert fit.intervals is not None
        hits += fit.intervals["alpha"][0] <= truth <= fit.intervals["alpha"][1]
    # 95 expected; outside [88, 99] lies under 1 % of the binomial distribution.
    assert 88 <= hits <= 99


def test_standard_errors_are_those_of_ordinary_regression() -> None:
    loss = planted(0, 2.8, 0.06, noise=0.01)
    fit = fitted("power", FLOPS, loss)
    x, y = np.log(FLOPS), np.log(loss)
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    assert fit.standard_errors is not None and fit.r_squared is not None
    assert fit.value("alpha") == pytest.approx(-coefficients[0], rel=1e-10)
    assert fit.standard_errors["alpha"] == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-8)
    assert fit.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-9)
    low, high = fit.band({"train_flops": FLOPS}) or (FLOPS, FLOPS)
    middle = fit.predict({"train_flops": FLOPS})
    assert np.all(low < middle) and np.all(middle < high)


@pytest.mark.parametrize("seed", range(6))
def test_no_start_of_a_stranger_beats_the_reported_optimum(seed: int) -> None:
    from scipy.optimize import minimize

    loss = planted(1.0, 1.7, 0.12, noise=0.02, seed=seed)
    fit = fitted("irreducible", FLOPS, loss)
    rng, x = np.random.default_rng(seed), np.log(FLOPS / C0)

    def cost(p: Array) -> float:
        inside = 0 <= p[0] <= loss.min() and 0 < p[2] < 20
        return float(((np.log(p[0] + np.exp(p[1] - p[2] * x)) - np.log(loss)) ** 2).sum()) if inside else 1e9

    for _ in range(10):
        start = [rng.uniform(0, loss.min()), rng.normal(0, 1), rng.uniform(0.01, 0.6)]
        other = minimize(cost, start, method="Nelder-Mead", options={"maxiter": 3000, "fatol": 1e-15})
        assert 2 * fit.objective <= other.fun * (1 + 1e-6)


def test_straight_and_steepening_curves_do_not_identify_a_floor() -> None:
    straight = fitted("irreducible", FLOPS, planted(0, 2.7, 0.06))
    steepening = fitted("irreducible", FLOPS, planted(-0.5, 3.2, 0.06))
    for fit in (straight, steepening):
        assert not fit.identified and fit.params["E"] == 0 and fit.certificate.at_bound == ("E",)
        assert "SL007" in codes(fit) and fit.standard_errors is None and fit.intervals is None


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_noise_that_leaves_the_floor_open_is_flagged_and_still_printed(floor: float) -> None:
    flops = FLOPS[:5]
    identified = 0
    for seed in range(12):
        fit = fitted("irreducible", flops, planted(floor, 1.7, 0.1, flops, 0.02, seed))
        identified += fit.identified
        assert fit.identified or {"SL007", "SL004", "SL006"} & set(codes(fit))
        assert math.isfinite(fit.value("E"))
    # By chance one in twenty; Wald's test would let half of them pass.
    assert identified <= 2


def test_a_curve_that_has_flattened_has_a_floor_and_no_exponent() -> None:
    fit = fitted("irreducible", FLOPS, np.array([3.2, 2.0001, 2.0, 2.0, 2.0, 2.0]))
    assert fit.params["E"] == pytest.approx(2.0, abs=1e-3)
    step = fitted("irreducible", FLOPS, np.array([3.2, 2.0, 2.0, 2.0, 2.0, 2.0]))
    assert not step.identified


def test_three_points_get_no_standard_error_of_three_parameters() -> None:
    flops = FLOPS[::2]
    fit = fitted("irreducible", flops, planted(1.0, 1.7, 0.1, flops))
    assert fit.standard_errors is None and not fit.identified and fit.residual_sd is None
    assert "no standard error: 3 points, 3 parameters" in str(fit.findings[-1])
    assert fit.band({"train_flops": flops}) is None
    assert fitted("power", flops, planted(0, 2, 0.1, flops, 0.01)).standard_errors is not None


@pytest.mark.parametrize(
    ("flops", "loss", "reason"),
    [
        ([1e12, 2e12], [3.0, 2.9], "2 points: a law needs at least 3"),
        ([1e12, 1e12, 2e12, 2e12], [3.0, 3.1, 2.9, 2.8], "2 distinct values of train_flops"),
        ([1e12, 1e12 * (1 + 1e-9), 2e12], [3.0, 3.1, 2.9], "2 distinct values of train_flops"),
    ],
)
def test_designs_that_are_refused(flops: list[float], loss: list[float], reason: str) -> None:
    outcome = fit("power", np.array(flops), np.array(loss))
    assert isinstance(outcome, Refusal) and reason in outcome.reason
    assert outcome.to_dict()["refused"] == outcome.reason
    assert isinstance(fit("irreducible", np.array(flops), np.array(loss)), Refusal)


def test_rising_loss_has_a_line_with_a_warning_and_no_floor() -> None:
    loss = planted(0, 2.0, -0.05)
    assert codes(fitted("power", FLOPS, loss)) == ["SL022"]
    assert isinstance(fit("irreducible", FLOPS, loss), Refusal)
    constant = fit("power", FLOPS, np.full(6, 2.5))
    assert isinstance(constant, Refusal) and constant.reason == "the loss does not vary"


@pytest.mark.filterwarnings("error")
def test_a_coefficient_beyond_all_numbers_is_infinite_and_no_warning() -> None:
    # So steep a curve over so short a range far from 1 FLOP has its k at 1e1270.
    flops = np.geomspace(1e21, 1.05e21, 6)
    found = fitted("power", flops, 3 * (flops / 1e21) ** -60 * (1 + 0.01 * (-1.0) ** np.arange(6)))
    assert found.value("alpha") == pytest.approx(60, abs=1) and found.value("k") == math.inf
    assert found.standard_errors is not None and found.standard_errors["alpha"] == pytest.approx(
        0.29, abs=0.01
    )
    assert isinstance(fit("irreducible", flops, 3 * (flops / 1e21) ** -60), Fit)


def test_bad_arrays_are_user_mistakes() -> None:
    for flops, loss in (([1.0, 2.0], [1.0]), ([1.0, 2, 3], [1.0, -2, 3]), ([1.0, 2, np.nan], [1.0, 2, 3])):
        with pytest.raises(AnalysisError):
            fit("power", np.array(flops), np.array(loss))
    with pytest.raises(AnalysisError, match="use one of power, irreducible, chinchilla"):
        fit("cubic", FLOPS, FLOPS)


def test_json_form_holds_float64_at_full_precision() -> None:
    fit = fitted("irreducible", FLOPS, planted(1.2, 1.5, 0.2, noise=0.001))
    body = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert body["params"] == fit.params and body["certificate"]["converged"]
    wanted = {"law", "group", "n", "params", "intervals", "interval_method", "objective", "huber_delta"}
    assert wanted | {"certificate", "diagnostics"} <= set(body)


def test_digits_follow_the_standard_error() -> None:
    assert with_error(0.053533, 0.001125) == "0.0535 ± 0.0011"
    assert with_error(1.23456, 0.0996) == "1.23 ± 0.10"
    assert with_error(1234.5, 250.0) == "1230 ± 250" and with_error(1.2345e7, 9e4) == "1.2345e+07 ± 9.0e+04"
    assert with_error(1.5, None) == "1.5" and number(math.nan) == "-"
    assert probability(0.0001) == "< 0.001" and probability(0.473) == "= 0.47"
