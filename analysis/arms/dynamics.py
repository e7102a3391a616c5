"""Training dynamics over learning rates: where the training loss spikes, how often, and what it comes to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtr

from analysis.arrays import Array
from analysis.errors import AnalysisError
from analysis.runs.labels import base_and_variant, structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import PLAIN, TREATMENTS, guidance, structure_label
from trainer.rundir import read_metrics

CURVE_POINTS = 160
UNGUIDED = "unguided"


@dataclass(frozen=True)
class Rule:
    """What counts as a spike, all lengths in logged points.

    A spike begins where the mean of `window` points lies above the median of the `history` points before it
    (near the start, of those there are, `shortest` at least) by more than max(`least` nats, `deviations` x
    sd / sqrt(window)), sd being the noise of one point: 1.4826 x the median absolute deviation of
    successive differences over sqrt(2), to which neither the falling trend nor a few spikes add. It ends
    where that mean is back below half of this height over the same median, so a loss that never comes back
    is one spike, not recovered.

    On noise alone of 650 points, none of 400 Gaussian runs has a spike, and of those with Student's t on 5
    degrees of freedom about 1 in 100.
    """

    window: int = 3
    history: int = 40
    shortest: int = 5
    least: float = 0.1
    deviations: float = 7.0

    def words(self) -> str:
        """The rule as a report states it."""
        return (
            f"A spike: the mean of {self.window} logged points lies above the median of the up to "
            f"{self.history} before them by more than {self.least:g} nats and by more than "
            f"{self.deviations:g} standard errors of such a mean (noise by the median absolute "
            "deviation of successive differences); it ends when half of that height is gone."
        )


@dataclass(frozen=True)
class Spike:
    """One spike: the point at which it begins, its length in points, its height in nats, whether it ended."""

    start: int
    length: int
    height: float
    recovered: bool


@dataclass(frozen=True)
class Trace:
    """One run's dynamics; a row of the tracked table.

    threshold: height above which a rise is a spike, nats; nan where there are too few points to look.
    onsets: training steps at which spikes begin.
    """

    run_id: str
    size: str
    structure: str
    treatment: str
    peak_lr: float
    seed: int
    state: str
    val_loss: float
    points: int
    noise: float
    threshold: float
    spikes: int
    largest: float
    unrecovered: int
    onsets: tuple[int, ...]

    @property
    def unstable(self) -> bool:
        """Whether it spiked or diverged."""
        return self.spikes > 0 or self.state == "diverged"


Curve = Array
"""Shape (points, 3): step, mean training loss and highest training loss of a bin of logged points."""


@dataclass(frozen=True)
class Dynamics:
    """All runs of a sweep in order, and their thinned training-loss curves by run id."""

    name: str
    traces: tuple[Trace, ...]
    curves: dict[str, Curve]
    coverage: str

    @property
    def structures(self) -> list[str]:
        """Structure labels, without learning rate and guide."""
        return sorted({trace.structure for trace in self.traces}, key=structure_order)

    def arms(self, structure: str) -> list[str]:
        """Treatments of a structure, unguided first."""
        found = {trace.treatment for trace in self.traces if trace.structure == structure}
        return sorted(found, key=_treatment_order)

    def at(self, structure: str, treatment: str, peak_lr: float | None = None) -> list[Trace]:
        """Runs of an arm, at one learning rate or at all."""
        return [
            trace for trace in self.traces
            if (trace.structure, trace.treatment) == (structure, treatment)
            and peak_lr in (None, trace.peak_lr)
        ]  # fmt: skip

    def rates(self, structure: str) -> list[float]:
        """Learning rates of a structure's runs, small to large."""
        return sorted({trace.peak_lr for trace in self.traces if trace.structure == structure})


def find_spikes(losses: Array, rule: Rule | None = None) -> tuple[list[Spike], float, float]:
    """Return the spikes of a training loss, the noise of one point and the height that counts, in nats.

    Args:
        losses: training loss at each logged point, shape (n,), finite.
        rule: what counts.

    With fewer than history + window points nothing is said: no spikes, and nan for both numbers.
    """
    rule = rule or Rule()
    n = losses.size
    if n < rule.history + rule.window:
        return [], math.nan, math.nan
    steps = np.diff(losses)
    noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
    threshold = max(rule.least, rule.deviations * noise / math.sqrt(rule.window))
    means = np.convolve(losses, np.full(rule.window, 1 / rule.window), "valid")
    found: list[Spike] = []
    t = rule.shortest
    while t < means.size:
        base = float(np.median(losses[max(0, t - rule.history) : t]))
        if means[t] - base <= threshold:
            t += 1
            continue
        below = np.flatnonzero(means[t:] - base < threshold / 2)
        end = t + int(below[0]) if below.size else means.size
        height = float(means[t:end].max()) - base
        found.append(Spike(t, end - t, height, bool(below.size)))
        t = end
    return found, noise, threshold


def dynamics(runs: Runs, results: Path, name: str, watch: Callable[[int], None] | None = None) -> Dynamics:
    """Read the metrics of a sweep's runs, finished or diverged, and look for spikes.

    Args:
        runs: the sweep's table.
        results: the folder with runs/<run_id>/metrics.jsonl.
        name: what the report calls it.
        watch: told the number of runs read so far.

    Raises:
        AnalysisError: no run of the table has metrics here, or the table has no peak_lr.
    """
    records = [{str(key): value for key, value in row.items()} for row in runs.table.to_dict("records")]
    records += [dict(row) for row in runs.lost]
    if any(not record.get("peak_lr") for record in records):
        raise AnalysisError(
            f"{name}: the table has no column peak_lr for every run; name a sweep of this system"
        )
    traces, curves = [], {}
    for count, record in enumerate(records, 1):
        run_id = str(record.get("run_id") or "")
        metrics = read_metrics(results / "runs" / run_id) if run_id else []
        points = [(float(m["step"]), float(m.get("train_loss") or math.nan)) for m in metrics]
        logged = np.array([point for point in points if math.isfinite(point[1])]).reshape(-1, 2)
        if logged.size:
            traces.append(_trace(record, logged))
            curves[run_id] = thinned(logged)
        if watch is not None:
            watch(count)
    if not traces:
        raise AnalysisError(
            f"{name}: none of its runs has a metrics.jsonl in {results / 'runs'}; run the sweep, or draw "
            f"its tracked tables with 'python -m analysis figures'"
        )
    if len({trace.size for trace in traces}) > 1:
        traces = [replace(t, structure=f"{t.structure}, size={t.size}") for t in traces]
    return Dynamics(name, tuple(sorted(traces, key=_order)), curves, runs.coverage())


def _trace(record: Mapping[str, Any], logged: Array) -> Trace:
    found, noise, threshold = find_spikes(logged[:, 1])
    diverged = record.get("state") == "diverged"
    return Trace(
        run_id=str(record["run_id"]),
        size=str(record.get("size") or ""),
        structure=_label(str(record["structure"])),
        treatment=guidance(record) or UNGUIDED,
        peak_lr=float(record["peak_lr"]),
        seed=int(record["seed"]),
        state="diverged" if diverged else "done",
        val_loss=math.nan if diverged else float(record["val_loss"]),
        points=len(logged),
        noise=noise,
        threshold=threshold,
        spikes=len(found),
        largest=max((spike.height for spike in found), default=math.nan),
        unrecovered=sum(not spike.recovered for spike in found),
        onsets=tuple(int(logged[spike.start, 0]) for spike in found),
    )


def _label(label: str) -> str:
    base, variant = base_and_variant(structure_label(label))
    kept = [
        part for part in variant.split(", ") if part and not part.startswith(("peak_lr=", "optim.peak_lr="))
    ]
    return ", ".join([base, *kept])


def _treatment_order(treatment: str) -> tuple[int, str]:
    plain = PLAIN if treatment == UNGUIDED else treatment
    return (TREATMENTS.index(plain) if plain in TREATMENTS else len(TREATMENTS)), treatment


def _order(trace: Trace) -> tuple[Any, ...]:
    arm = (structure_order(trace.structure), trace.size, trace.peak_lr, _treatment_order(trace.treatment))
    return *arm, trace.seed, trace.run_id


def thinned(logged: Array, points: int = CURVE_POINTS) -> Curve:
    """Bins of a curve of (step, loss): last step, mean and highest loss of each, at most `points` of them."""
    bins = np.array_split(logged, min(points, len(logged)))
    # Rounded as the tracked table holds them, so that a figure drawn from it is the same to the byte.
    return np.array([[part[-1, 0], _rounded(part[:, 1].mean()), _rounded(part[:, 1].max())] for part in bins])


def _rounded(loss: float) -> float:
    return float(f"{loss:.5g}")


def learning_rates_differ(runs: Runs) -> bool:
    """Whether a table is a sweep over learning rates: one structure at one size and treatment has several."""
    rates: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    rows: list[dict[Any, Any]] = [*runs.table.to_dict("records"), *map(dict, runs.lost)]
    for row in rows:
        record = {str(key): value for key, value in row.items()}
        if record.get("peak_lr"):
            key = (str(record.get("size")), _label(str(record["structure"])), guidance(record))
            rates[key].add(str(record["peak_lr"]))
    return any(len(values) > 1 for values in rates.values())


def conclusions(result: Dynamics) -> list[str]:
    """Say of each structure at which learning rates unguided runs are unstable and self-guided ones not."""
    sentences = []
    for structure in result.structures:
        arms = result.arms(structure)
        if UNGUIDED not in arms or len(arms) < 2:
            counts = "; ".join(f"{arm}: {_share(result.at(structure, arm))}" for arm in arms)
            sentences.append(f"{structure}: nothing to compare; spiked or diverged: {counts}.")
            continue
        sentences += [_conclusion(result, structure, arm) for arm in arms if arm != UNGUIDED]
    return sentences


def _conclusion(result: Dynamics, structure: str, arm: str) -> str:
    only_unguided, only_guided = [], []
    for rate in result.rates(structure):
        bare, guided = result.at(structure, UNGUIDED, rate), result.at(structure, arm, rate)
        if bare and guided:
            only_unguided += [rate] if _mostly(bare) and not _any(guided) else []
            only_guided += [rate] if _mostly(guided) and not _any(bare) else []
    tried = len(result.rates(structure))
    if only_unguided:
        bare = [t for rate in only_unguided for t in result.at(structure, UNGUIDED, rate)]
        guided = [t for rate in only_unguided for t in result.at(structure, arm, rate)]
        text = (
            f"{structure}: at peak learning rate {_listed(only_unguided)} ({len(only_unguided)} of {tried} "
            f"tried) unguided runs spike or diverge ({_share(bare)}) and {arm} ones do not ({_share(guided)})"
        )
    else:
        text = (
            f"{structure}: there is no learning rate, of {tried} tried, at which at least half of the "
            f"unguided runs spike or diverge and no {arm} run does; in all, "
            f"{_share(result.at(structure, UNGUIDED))} "
            f"unguided and {_share(result.at(structure, arm))} {arm}"
        )
    if only_guided:
        text += f"; the other way about at {_listed(only_guided)}"
    return f"{text}. {_sign_test(result, structure, arm)}"


def _sign_test(result: Dynamics, structure: str, arm: str) -> str:
    """Exact sign test over pairs of one learning rate and seed in which just one of the two is unstable."""
    guided = {(t.size, t.peak_lr, t.seed): t.unstable for t in result.at(structure, arm)}
    pairs = [
        (t.unstable, guided[t.size, t.peak_lr, t.seed])
        for t in result.at(structure, UNGUIDED)
        if (t.size, t.peak_lr, t.seed) in guided
    ]
    first = sum(bare and not other for bare, other in pairs)
    second = sum(other and not bare for bare, other in pairs)
    if not first + second:
        return f"In none of {len(pairs)} pairs of one learning rate and seed do the two differ."
    p = min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))
    return (
        f"Of {len(pairs)} pairs of one learning rate and seed, only the unguided run is unstable in {first} "
        f"and only the guided one in {second} (exact sign test, p = {p:.2g})."
    )


def _mostly(traces: Sequence[Trace]) -> bool:
    return 2 * sum(trace.unstable for trace in traces) >= len(traces)


def _any(traces: Sequence[Trace]) -> bool:
    return any(trace.unstable for trace in traces)


def _share(traces: Sequence[Trace]) -> str:
    return f"{sum(trace.unstable for trace in traces)} of {len(traces)} runs"


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
