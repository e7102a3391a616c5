"""A law on a table: the command, its JSON, optimal allocation, profile and cluster intervals, multipliers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_analysis_diagnose import LAW, command, frame, grid
from test_analysis_diagnose import budgets as isoflop_budgets

from analysis.allocation import allocation, cost_of
from analysis.arrays import Array
from analysis.compare.multipliers import multipliers
from analysis.fit import Fit, Settings, fit_law
from analysis.laws import IRREDUCIBLE, POWER
from analysis.uncertainty import bootstrap_tail, resampling_weights

ROOT = Path(__file__).parent.parent


def fitted(table: pd.DataFrame, **settings: object) -> Fit:
    data = {name: table[name].to_numpy(float) for name in ("params", "tokens")}
    clusters = [str(run) for run in table["run"]] if "run" in table else None
    found = fit_law(
        "chinchilla",
        data,
        table["val_loss"].to_numpy(float),
        settings=Settings(**settings),
        clusters=clusters,
    )  # type: ignore[arg-type]
    assert isinstance(found, Fit)
    return found


def stranger(folder: Path, two: bool = False) -> Path:
    """A table with somebody else's columns; the second structure needs a third more tokens."""
    table = grid(seed=1)
    tables = [table.assign(arch="dense")]
    if two:
        other = grid(seed=2, law={**LAW, "B": LAW["B"] * 1.33 ** LAW["beta"]})
        tables.append(other.assign(arch="mine"))
    whole = pd.concat(tables).rename(columns={"params": "Nparam", "tokens": "seen", "val_loss": "nats"})
    path = folder / "stranger.csv"
    whole[["arch", "Nparam", "seen", "nats"]].to_csv(path, index=False)
    return path


MAP = ("--map", "Nparam=params,tokens=seen,val_loss=nats,structure=arch")


def test_a_strangers_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = stranger(tmp_path), tmp_path / "fit.json"
    assert command(monkeypatch, "fit", str(path), *MAP, "--law", "chinchilla", "--json", str(out)) == 0
    text = capsys.readouterr().out
    assert "| alpha " in text and "N* ~ C^a with a = 0.4" in text
    body = json.loads(out.read_text())
    keys = {
        "law", "group", "n", "params", "intervals", "interval_method", "objective", "huber_delta",
        "certificate", "diagnostics",
    }  # fmt: skip
    assert keys <= set(body)
    assert set(body["params"]) == set(body["intervals"]) == {"E", "A", "B", "alpha", "beta"}
    assert body["law"] == "chinchilla" and body["n"] == 30 and body["diagnostics"] == []
    assert body["intervals"]["alpha"][0] < body["params"]["alpha"] < body["intervals"]["alpha"][1]
    assert body["params"]["alpha"] == fitted(grid(seed=1)).params["alpha"]


def test_groups_and_joint_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stranger(tmp_path, two=True)
    words = ("fit", str(path), *MAP, "--law", "chinchilla")
    assert command(monkeypatch, *words, "--group", "structure", "--json", "-") == 0
    each = json.loads(capsys.readouterr().out)
    assert [fit["group"] for fit in each] == ["dense", "mine"] and "allocation" in each[0]
    assert command(monkeypatch, *words, "--share", "E,alpha,beta,A", "--json", "-") == 0
    joint = json.loads(capsys.readouterr().out)
    assert set(joint["params"]) == {"E", "A", "alpha", "beta", "B[dense]", "B[mine]"} and joint["n"] == 60
    ratio = (joint["params"]["B[mine]"] / joint["params"]["B[dense]"]) ** (1 / joint["params"]["beta"])
    assert ratio == pytest.approx(1.33, abs=0.06)
    assert command(monkeypatch, *words, "--json", "-") == 2
    assert "fit each with --group structure, jointly with --share E" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "cubic"], "law 'cubic' is not known; use one of power"),
        (["--law", "chinchilla", "--share", "gamma"], "--share gamma: chinchilla has no such parameter"),
        (["--law", "chinchilla", "--share", "A"], "alpha of each structure needs A of each structure"),
        (["--law", "chinchilla", "--huber-delta", "0"], "0 must be above zero"),
        (["--law", "chinchilla", "--huber-delta", "x"], "'x' is no number"),
        (["--law", "chinchilla", "--seed", "-1"], "-1 must lie from 0 to"),
        (["--cluster", "run"], "--cluster: needs a law to fit"),
        (["--law", "chinchilla", "--filter", "params <"], "--filter"),
        (["--law", "chinchilla", "--filter", "params > 3e9"], "needs at least"),
        (["--law", "average"], "no column params_avg"),
        (["--law", "chinchilla", "--irreducible", "1"], "fits its own constant"),
        (["--share", "E"], "needs a law to fit"),
        (["--law", "chinchilla", "--json", "out.csv"], "must be named .json"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(monkeypatch, "fit", str(stranger(tmp_path)), *MAP, *words) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert captured.out == "" and len(lines) == 1 and message in lines[0]


def test_the_literatures_objective(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = ROOT / "results" / "published" / "gemstones_points.csv"
    row = pd.read_csv(ROOT / "results" / "published" / "gemstones_fits.csv").iloc[0]
    words = [
        "--law",
        "chinchilla",
        "--filter",
        f"set == '{row['set']}'",
        "--interval",
        "delta",
        "--json",
        "-",
    ]
    delta = ["--huber-delta", str(row["huber_delta"]), "--objective-space", "log"]
    assert command(monkeypatch, "fit", str(points), *words, *delta) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["objective"] <= row["objective"] + 0.5e-10 and body["huber_delta"] == row["huber_delta"]


def test_optimal_allocation_is_where_the_loss_is_lowest() -> None:
    table = isoflop_budgets()
    found = fitted(table)
    cost = cost_of(*(table[name].to_numpy() for name in ("params", "tokens", "train_flops")))
    assert (cost.kappa, cost.u, cost.v) == pytest.approx((6, 1, 1))
    best = allocation(found, cost, [1e19], (1e18, 1e21))
    assert best is not None and best.a.low < LAW["beta"] / (LAW["alpha"] + LAW["beta"]) < best.a.high
    sizes = np.geomspace(1e7, 1e10, 20001)
    losses = found.predict({"params": sizes, "tokens": 1e19 / 6 / sizes})
    at = best.optima[0]
    assert at.params.value == pytest.approx(sizes[int(np.argmin(losses))], rel=1e-3)
    assert at.loss.value == pytest.approx(float(losses.min()), rel=1e-6) and not at.extrapolated
    assert at.params.value * at.tokens.value * 6 == pytest.approx(1e19)


def test_allocation_follows_the_flops_that_are_counted() -> None:
    """Attention and embeddings make C / (N D) fall with size: a is then beta / (alpha v + beta u)."""
    table = isoflop_budgets()
    n, d = table["params"].to_numpy(), table["tokens"].to_numpy()
    cost = cost_of(n, d, 300 * n**0.7 * d)
    assert (cost.kappa, cost.u, cost.v) == pytest.approx((300, 0.7, 1.0))
    best = allocation(fitted(table), cost, [3e19], (1e18, 1e21))
    assert best is not None and best.a.value == pytest.approx(0.28 / (0.34 + 0.7 * 0.28), abs=0.02)
    sizes = np.geomspace(1e6, 1e12, 40001)
    losses = fitted(table).predict({"params": sizes, "tokens": 3e19 / 300 / sizes**0.7})
    assert best.optima[0].params.value == pytest.approx(sizes[int(np.argmin(losses))], rel=2e-3)


def test_profile_intervals_agree_with_the_delta_method_where_the_law_is_nearly_linear() -> None:
    table = grid(8, 6, seed=3)
    delta, profile = fitted(table, interval="delta"), fitted(table, interval="profile")
    assert profile.intervals is not None and delta.intervals is not None
    for name in ("E", "alpha", "beta"):
        np.testing.assert_allclose(profile.intervals[name], delta.intervals[name], rtol=0.02)
    assert profile.interval_method is not None and profile.interval_method.startswith("profile likelihood")


def test_profile_intervals_bend_where_the_law_does() -> None:
    """Few points and much noise: E can be much lower, but hardly higher, than its estimate."""
    flops = np.geomspace(1e15, 1e18, 8)
    loss = (1.0 + 4e2 * flops**-0.15) * np.exp(0.01 * np.random.default_rng(4).standard_normal(8))
    found = fit_law("irreducible", {"train_flops": flops}, loss, settings=Settings(np.inf, "profile"))
    plain = fit_law("irreducible", {"train_flops": flops}, loss, settings=Settings(np.inf, "delta"))
    assert isinstance(found, Fit) and isinstance(plain, Fit) and found.intervals and plain.intervals
    (low, high), (left, right), middle = found.intervals["E"], plain.intervals["E"], found.value("E")
    assert right - middle == pytest.approx(middle - left) and 0 <= low < left < right
    assert middle - low > 1.3 * (high - middle)


def test_whole_runs_are_resampled() -> None:
    weights = resampling_weights(6, 50, 0, ["a", "a", "b", "b", "b", "c"])
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 4]).all()
    n = np.repeat(np.geomspace(1e7, 1e10, 12), 5)
    dice = np.random.default_rng(3)
    table = frame(n, n * np.tile([5.0, 10, 20, 40, 80], 12), noise=0.001)
    table["val_loss"] *= np.exp(np.repeat(0.004 * dice.standard_normal(12), 5))
    alone, together = fitted(table), fitted(table.assign(run=np.repeat(np.arange(12), 5)))
    assert alone.intervals and together.intervals
    assert together.interval_method == "jackknife over 12 runs, t"

    def width(found: Fit) -> float:
        assert found.intervals is not None
        return found.intervals["alpha"][1] - found.intervals["alpha"][0]

    assert width(together) > 1.3 * width(alone)
    profile = fitted(table.assign(run=np.repeat(np.arange(12), 5)), interval="profile")
    assert profile.intervals == together.intervals
    boot = fitted(table.assign(run=np.repeat(np.arange(12), 5)), interval="bootstrap")
    assert "bootstrap of 12 runs" in str(boot.interval_method) and width(boot) > 1.3 * width(alone)
    few = fitted(table.iloc[:25].assign(run=np.repeat(np.arange(5), 5)))
    assert few.intervals is None and "SL018" in {finding.code for finding in few.findings}


def test_bootstrap_agrees_with_the_delta_method() -> None:
    table = grid(10, 8, seed=9)
    boot, delta = fitted(table, interval="bootstrap", resamples=2000), fitted(table, interval="delta")
    assert boot.intervals and delta.intervals
    for name in ("alpha", "beta", "E"):
        ratio = np.ptp(boot.intervals[name]) / np.ptp(delta.intervals[name])
        assert 0.75 < ratio < 1.3
    again = fitted(table, interval="bootstrap", resamples=2000)
    assert again.intervals == boot.intervals
    assert 0.01 < bootstrap_tail(25, 5) < 0.025 and bootstrap_tail(10**6, 5) == pytest.approx(0.025, abs=1e-4)


def curves(noise: float = 0.001) -> dict[str, tuple[Array, Array]]:
    dice = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e15, 1e18, 6), 2)
    # The second needs 20 % less compute for every loss.
    return {
        name: (flops, (1.5 + 400 * (flops * m) ** -0.16) * np.exp(noise * dice.standard_normal(flops.size)))
        for name, m in (("dense", 1.0), ("mine", 1.25))
    }


def test_multipliers_and_gaps_are_recovered_inside_what_both_reach() -> None:
    found = multipliers(curves(), IRREDUCIBLE, "train_flops", "dense")
    assert found.note is None and len(found.ratios) == len(found.gaps) == 5
    assert all(ratio.low < ratio.value < ratio.high for ratio in found.ratios)
    assert [ratio.value for ratio in found.ratios] == pytest.approx([1.25] * 5, rel=0.05)
    assert all(gap.low < gap.value < gap.high and gap.value < 0 for gap in found.gaps)
    apart = {"dense": (np.geomspace(1e15, 1e16, 4), np.array([5.0, 4.8, 4.6, 4.5])), "mine": curves()["mine"]}
    apart["mine"] = (apart["mine"][0], apart["mine"][1] / 2)
    assert "reaches no loss" in str(multipliers(apart, POWER, "train_flops", "dense").note)


def test_structures_are_compared_over_sizes_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stranger(tmp_path, two=True)
    assert command(monkeypatch, "compare", str(path), *MAP, "--permutations", "99") == 0
    text = capsys.readouterr().out
    assert "In N and D: With one E for all, equality of alpha and of beta is not rejected" in text
    tokens = next(line for line in text.splitlines() if line.startswith("| mine ") and "| tokens " in line)
    low, high = (float(edge) for edge in tokens.split("[")[1].split("]")[0].split(","))
    assert low < 1 / 1.33 < high and high - low < 0.3
    table = pd.read_csv(path)
    steeper = table["arch"] == "mine"
    n, d = table["Nparam"][steeper].to_numpy(), table["seen"][steeper].to_numpy()
    table.loc[steeper, "nats"] = frame(n, d, seed=5, law={**LAW, "alpha": 0.42, "A": 1700.0})[
        "val_loss"
    ].to_numpy()
    table.to_csv(path, index=False)
    assert command(monkeypatch, "compare", str(path), *MAP, "--permutations", "0") == 0
    assert "With one E for all, equality of alpha and of beta is rejected" in capsys.readouterr().out
    table["seen"] = 20 * table["Nparam"] * (1 + table.groupby("arch").cumcount() % 5 * 1e-3)
    table.to_csv(path, index=False)
    assert command(monkeypatch, "compare", str(path), *MAP, "--permutations", "0") == 0
    assert (
        "In N and D there is no comparison: dense: params and tokens vary together" in capsys.readouterr().out
    )


def test_compare_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    rows = [
        f"{name},{c:g},{float(y)!r}"
        for name, (cs, ys) in curves().items()
        for c, y in zip(cs[::2], ys[::2], strict=True)
    ]
    path.write_text("\n".join(["structure,C,loss", *rows]) + "\n")
    assert (
        command(monkeypatch, "compare", str(path), "--permutations", "99", "--json", str(tmp_path / "c.json"))
        == 0
    )
    text = capsys.readouterr().out
    assert (
        "**Verdict.**" in text
        and "## Compute multipliers" in text
        and "token multipliers" not in text.lower()
    )
    body = json.loads((tmp_path / "c.json").read_text())
    assert [test["hypothesis"] for test in body["tests"]] == ["none", "shared", "separate"]
    for words, message in (
        (
            ["--filter", "structure == 'mine'"],
            "1 structure with 3 different budgets (mine 6 runs): nothing to",
        ),
        (["--baseline", "moe"], "--baseline moe: use one of dense, mine"),
        (["--irreducible", "9"], "--irreducible 9: must lie from 0 to below the lowest loss"),
        (["--permutations", "-1"], "-1 must lie from 0 to 100000"),
    ):
        assert command(monkeypatch, "compare", str(path), *words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and message in lines[0]


def test_the_published_points_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "results" / "published" / "fig1_scaling_lowrank_digitised.csv"
    assert command(monkeypatch, "compare", str(path), "--irreducible", "1.69", "--permutations", "199") == 0
    text = capsys.readouterr().out
    assert "equality of slopes is not rejected (F(2, 6) = 0.85, p = 0.47" in text
    assert "(E = 1.69), equality of slopes is not rejected (F(2, 6) = 0.00, p = 1.00" in text
    assert "| none             | dense     | 0.0535" in text and "lowest AICc" in text
