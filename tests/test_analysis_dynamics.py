"""Training dynamics: planted spikes are found, noise gives none, and the words follow from the counts."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from test_analysis_table import drawn, make_sweep, result

from analysis.__main__ import main
from analysis.arms.dynamics import (
    UNGUIDED,
    Dynamics,
    Rule,
    conclusions,
    dynamics,
    find_spikes,
    learning_rates_differ,
    thinned,
)
from analysis.arms.dynamics_tables import markdown, read_dynamics
from analysis.arrays import Array
from analysis.errors import AnalysisError
from analysis.figures.dynamics import dynamics_figure
from analysis.figures.style import hovers
from analysis.runs.export import find_dynamics
from analysis.runs.table import runs_table
from analysis.runs.treatments import FIXED_STEPS

pytestmark = pytest.mark.usefixtures("few_figures")

STEPS, NOISE = 650, 0.09
RATES = (0.01, 0.02, 0.04)


def falling(noise: Array) -> Array:
    """A loss as small runs have it: from ln 512 down a power law, with the noise of single batches."""
    steps = np.arange(noise.size)
    return np.asarray(3.6 + 2.6 * (1 + steps / 12) ** -0.6 + noise)


def gaussian(seed: int, n: int = STEPS) -> Array:
    return np.random.default_rng(seed).normal(scale=NOISE, size=n)


@pytest.mark.parametrize(("tails", "most"), [("gaussian", 0), ("growing", 2), ("heavy", 4)])
def test_noise_alone_has_hardly_a_spike(tails: str, most: int) -> None:
    """Of 200 runs of 650 steps; heavy tails are Student's t on 5 degrees of freedom."""
    rng = np.random.default_rng(0)
    runs = 0
    for _ in range(200):
        noise = NOISE * (rng.standard_t(5, STEPS) if tails == "heavy" else rng.normal(size=STEPS))
        noise = noise * np.linspace(0.5, 1.5, STEPS) if tails == "growing" else noise
        runs += bool(find_spikes(falling(noise))[0])
    assert runs <= most


def test_planted_spikes_are_found_with_place_and_height() -> None:
    losses = falling(gaussian(1))
    planted = {100: 0.8, 300: 1.5, 500: 0.6}
    for at, height in planted.items():
        losses[at : at + 8] += height
    found, noise, threshold = find_spikes(losses)
    assert [abs(spike.start - at) <= 2 for spike, at in zip(found, planted, strict=True)] == [True] * 3
    assert [spike.height for spike in found] == pytest.approx(list(planted.values()), abs=0.25)
    assert all(spike.recovered and 6 <= spike.length <= 12 for spike in found)
    assert noise == pytest.approx(NOISE, rel=0.15) and threshold == pytest.approx(7 * noise / 3**0.5)


def test_a_loss_that_never_comes_back_is_one_spike_not_recovered() -> None:
    losses = falling(gaussian(2))
    losses[400:] += 1.0
    (spike,), _, _ = find_spikes(losses)
    assert abs(spike.start - 400) <= 2 and not spike.recovered and spike.length > 240


def test_quiet_losses_need_a_tenth_of_a_nat() -> None:
    losses = falling(np.zeros(200))
    losses[150:160] += 0.09
    assert find_spikes(losses)[0] == []
    losses[150:160] += 0.06
    assert len(find_spikes(losses)[0]) == 1


def test_an_early_overshoot_counts_and_too_few_points_say_nothing() -> None:
    losses = falling(gaussian(3))
    losses[8:14] += 2.5
    assert find_spikes(losses)[0][0].start <= 10
    found, noise, threshold = find_spikes(losses[: Rule().history])
    assert found == [] and np.isnan(noise) and np.isnan(threshold)


def test_thinned_curves_keep_means_and_peaks() -> None:
    logged = np.column_stack([np.arange(1, 651), gaussian(4)])
    curve = thinned(logged)
    assert curve.shape == (160, 3) and curve[-1, 0] == 650
    assert curve[:, 2].max() == pytest.approx(logged[:, 1].max(), rel=1e-4)
    assert np.all(np.diff(curve[:, 0]) > 0) and len(thinned(logged[:7])) == 7


def fill(
    results: Path, spiking: dict[tuple[str, float], int], diverging: tuple[str, float] | None = None
) -> None:
    """A sweep `stability`: (mode, rate) -> spikes of each of its three seeds' runs."""
    runs: dict[str, dict[str, object] | None] = {}
    curves = {}
    grid = itertools.product(("none", "fixed_steps"), RATES, (1, 2, 3))
    for i, (mode, rate, seed) in enumerate(grid):
        run_id = f"r{i:03}"
        lost = (mode, rate) == diverging and seed == 1
        runs[run_id] = result(
            run_id, structure="lowrank-32", size="cpu-xs", seed=seed, peak_lr=rate, guide_mode=mode,
            flops=None, tokens=1_331_200, train_flops=6e11, val_loss=None if lost else 3.7 + rate,
            state="diverged" if lost else "done",
        )  # fmt: skip
        losses = falling(gaussian(i))
        for at in range(1, spiking.get((mode, rate), 0) + 1):
            losses[100 * at : 100 * at + 6] += 1.2
        curves[run_id] = losses[:200] if lost else losses
    make_sweep(results, "stability", runs)
    for run_id, losses in curves.items():
        folder = results / "runs" / run_id
        lines = [{"step": s, "tokens": 2048 * s, "train_loss": y} for s, y in enumerate(losses.tolist(), 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
        body = runs[run_id]
        assert body is not None
        config = {
            "tokens": 1_331_200, "seed": body["seed"], "optim": {"peak_lr": body["peak_lr"]},
            "guide": {"mode": body["guide_mode"], "stochastic": True, "fraction": None, "steps": 325},
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))


def read(results: Path) -> Dynamics:
    return dynamics(runs_table(results, "stability"), results, "stability")


def test_the_range_in_which_only_unguided_training_spikes_is_said(tmp_path: Path) -> None:
    fill(tmp_path, {("none", 0.02): 2, ("none", 0.04): 3, ("fixed_steps", 0.04): 1})
    found = read(tmp_path)
    assert found.structures == ["lowrank-32"] and found.arms("lowrank-32") == [UNGUIDED, FIXED_STEPS]
    assert [t.spikes for t in found.at("lowrank-32", UNGUIDED)] == [0] * 3 + [2] * 3 + [3] * 3
    assert found.at("lowrank-32", UNGUIDED, 0.02)[0].onsets == pytest.approx((100, 200), abs=3)
    (words,) = conclusions(found)
    assert "at peak learning rate 0.02 (1 of 3 tried) unguided runs spike or diverge (3 of 3 runs)" in words
    assert f"{FIXED_STEPS} ones do not (0 of 3 runs)" in words
    assert "only the unguided run is unstable in 3 and only the guided one in 0" in words
    assert "p = 0.25" in words


def test_that_there_is_no_such_range_is_said_too(tmp_path: Path) -> None:
    fill(tmp_path, {("none", 0.04): 1, ("fixed_steps", 0.04): 1, ("fixed_steps", 0.02): 1})
    (words,) = conclusions(read(tmp_path))
    assert "there is no learning rate, of 3 tried" in words and "the other way about at 0.02" in words
    assert "3 of 9 runs unguided and 6 of 9 runs" in words


def test_diverged_runs_are_unstable_and_shown(tmp_path: Path) -> None:
    fill(tmp_path, {}, diverging=("none", 0.04))
    found = read(tmp_path)
    (lost,) = [t for t in found.traces if t.state == "diverged"]
    assert lost.unstable and lost.points == 200 and lost.treatment == UNGUIDED and np.isnan(lost.val_loss)
    row = next(line for line in markdown(found).splitlines() if "unguided " in line and "0.04" in line)
    assert [cell.strip() for cell in row.split("|")][4:6] == ["3", "1"]


def test_hover_texts_name_the_run_of_their_point(tmp_path: Path) -> None:
    fill(tmp_path, {("none", 0.02): 2}, diverging=("none", 0.04))
    found = read(tmp_path)
    traces = {trace.run_id: trace for trace in found.traces}
    points = [
        (text, traces[run], float(x), float(y))
        for line, told in hovers(dynamics_figure(found, "lowrank-32"))
        for text, run, (x, y) in zip(told.texts, told.runs, np.asarray(line.get_xydata()), strict=True)
    ]
    for text, trace, _, _ in points:
        who = (
            f"lowrank-32: {trace.treatment}, cpu-xs, seed {trace.seed}, peak learning rate {trace.peak_lr:g}"
        )
        assert text.startswith(f"{who}: ")
    losses = [(text, trace, y) for text, trace, _, y in points if "held-out loss" in text]
    assert len(losses) == 17 and {y for _, _, y in losses} == {3.71, 3.72, 3.74}
    assert all(trace.val_loss == y and text.endswith(f"{y:g} nats") for text, trace, y in losses)
    begins = [(text, trace, x) for text, trace, x, _ in points if " begins at step " in text]
    assert len(begins) == 6 and all(x in trace.onsets for _, trace, x in begins)
    assert all(f"begins at step {x:.0f}, highest {t.largest:.2f} nats" in text for text, t, x in begins)
    counts = [
        (text, trace, y) for text, trace, _, y in points if text.split(": ")[2][1:].startswith(" spike")
    ]
    assert len(counts) == 18 and all(trace.spikes == y for _, trace, y in counts)
    (lost,) = (trace for trace in found.traces if trace.state == "diverged")
    (cross,) = (point for point in points if "diverged after step 200" in point[0])
    assert cross[1] is lost and cross[2:] == tuple(found.curves[lost.run_id][-1, :2])
    assert [trace for text, trace, _ in counts if text.endswith(", diverged")] == [lost]


def test_tracked_tables_redraw_the_same_bytes_without_run_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, {("none", 0.04): 2}, diverging=("none", 0.04))
    first = {path: path.read_bytes() for path in drawn("stability", tmp_path, tmp_path, None, False)}
    names = {path.name for path in first}
    assert {"stability_dynamics.svg", "stability_curves.csv", "stability_dynamics.md"} <= names
    assert not {name for name in names if "scaling" in name or "gaps" in name}
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "sweeps" / "stability.json").unlink()
    for command in (["figures"], ["figures", "stability"], ["dynamics", "stability"]):
        mine = {
            path: data for path, data in first.items() if command[0] == "figures" or "_dynamics" in path.name
        }
        for path in mine:
            if path.parent.name == "figures":
                path.unlink()
        monkeypatch.setattr(sys, "argv", ["analysis", *command, "--results", str(tmp_path)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0
        assert {path: path.read_bytes() for path in mine} == mine
    assert "learning rate" in capsys.readouterr().out


def test_tables_with_more_runs_are_not_replaced_by_fewer(tmp_path: Path) -> None:
    fill(tmp_path, {("none", 0.04): 2})
    drawn("stability", tmp_path, tmp_path, None, False)
    for run_id in ("r000", "r001"):
        (tmp_path / "runs" / run_id / "metrics.jsonl").unlink()
    runs = runs_table(tmp_path, "stability")
    found = find_dynamics(runs, "stability", tmp_path, tmp_path / "tables")
    assert found is not None and len(found.traces) == 18
    assert len(read(tmp_path).traces) == 16


def test_mistakes_are_told(tmp_path: Path) -> None:
    fill(tmp_path, {})
    runs = runs_table(tmp_path, "stability")
    assert learning_rates_differ(runs)
    with pytest.raises(AnalysisError, match=r"none of its runs has a metrics\.jsonl"):
        dynamics(runs, tmp_path / "elsewhere", "stability")
    traces, curves = tmp_path / "a.csv", tmp_path / "b.csv"
    traces.write_text("run_id,size\nr1,s\n")
    curves.write_text("run_id,step\n")
    with pytest.raises(AnalysisError, match=r"a\.csv, .*b\.csv: cannot be read"):
        read_dynamics(traces, curves, "x")
