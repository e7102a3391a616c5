"""Predicted seconds of a run: from finished runs on the same machine, else a cautious guess."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from trainer.config import RunConfig
from trainer.flops import flops_per_token, guide_params, model_counts, spent_flops, train_flops

STARTUP_SECONDS = 2.0
"""Building the network, the first steps and writing the result, for a run in a warm worker."""

LEAST_SECONDS = 2.0
"""Shorter runs measure the first steps, not the speed."""
REACH = math.log(2)
"""How far, in log FLOPs per token, a measurement speaks for its neighbours."""


PROCESS_BYTES = {"cpu": 350_000_000, "cuda": 1_500_000_000}
"""A worker before it trains: Python and torch, on a GPU its context and kernels."""
GPU_MICRO_TOKENS = 32_768
"""Tokens in one pass on a GPU, unless micro_batch says otherwise (as trainer.device has it)."""


def run_bytes(config: RunConfig, gpu: bool, micro_batch: int | None = None) -> int:
    """Memory that a run is predicted to need, bytes.

    Weights, gradients and Adam's two moments in fp32, a guide's as well; and for each token of a pass what
    the backward pass keeps: 16 d + 3 d_ff numbers each time it passes a layer, and three rows of logits in
    fp32.  Within 20 % of what cpu-2xs to cpu-2xl took on a CPU (0.37 to 0.58 GB); not measured on a GPU.
    """
    model = config.model
    weights = model_counts(model).params_total + (guide_params(model) if config.guided_steps else 0)
    tokens = config.optim.batch_tokens
    if micro_batch is not None:
        tokens = min(tokens, micro_batch * model.seq_len)
    elif gpu:
        tokens = min(tokens, GPU_MICRO_TOKENS)
    each = 2 if gpu and config.precision == "bf16" else 4
    kept = sum(model.layer_passes) * (16 * model.d_model + 3 * model.d_ff) * each + 12 * model.vocab_size
    return PROCESS_BYTES["cuda" if gpu else "cpu"] + 16 * weights + tokens * kept


@dataclass(frozen=True)
class Setting:
    """Where runs are executed, as far as their speed depends on it."""

    device: str
    """Name of the processor or GPU, as results record it."""
    threads: int
    """CPU threads of one run."""
    gpu: bool = False
    """Whether the device is a GPU."""
    per_device: int = 1
    """Runs that share the GPU."""


@dataclass(frozen=True)
class Price:
    """What a run is expected to take."""

    seconds: float
    """From its first step to its result, on this setting."""
    measured: bool
    """From finished runs on the same device and threads; otherwise a guess."""


class Prices:
    """Speeds of one setting.

    Args:
        results: result.json of finished runs, of any device.
        setting: where the runs to be priced will be executed.
    """

    def __init__(self, results: Iterable[dict[str, Any]], setting: Setting) -> None:
        self.setting = setting
        samples: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for result in results:
            rate = _rate(result)
            if rate is None or result.get("device") != setting.device:
                continue
            if not setting.gpu and result.get("threads") != setting.threads:
                continue
            precision, kind = str(result.get("precision")), str(result.get("structure_kind"))
            for key in ((precision, kind), (precision, "")):
                per_token = float(result["flops_per_token"])
                samples[key][math.log(per_token)].append(math.log(rate / _guess(per_token, setting)))
        self._curves = {key: _Curve(points) for key, points in samples.items()}
        self._cache: dict[tuple[int, str], tuple[float, bool]] = {}

    def price(self, config: RunConfig, steps_done: int = 0) -> Price:
        """The price of what is left of a run."""
        key = (id(config.model), config.precision)
        if key not in self._cache:
            self._cache[key] = self._speed(config)
        rate, measured = self._cache[key]
        left = train_flops(config) - spent_flops(config, steps_done)
        work = left + config.eval.tokens * model_counts(config.model).forward
        return Price(work / rate + STARTUP_SECONDS, measured)

    def _speed(self, config: RunConfig) -> tuple[float, bool]:
        """FLOP/s of a run, and whether it was measured."""
        per_token = flops_per_token(config.model)
        for kind in (config.model.structure.kind, ""):
            curve = self._curves.get((config.precision, kind))
            if curve is not None:
                ratio, near = curve.at(math.log(per_token))
                return _guess(per_token, self.setting) * math.exp(ratio), near
        return _guess(per_token, self.setting), False


class _Curve:
    """Measured over guessed FLOP/s (logs) against log FLOPs per token.

    Medians joined by straight lines, level beyond the ends: there the shape is the guess's, which knows
    that small models are slow, and the level is the measurement's.
    """

    def __init__(self, points: dict[float, list[float]]) -> None:
        self.x = sorted(points)
        self.y = [median(points[x]) for x in self.x]

    def at(self, x: float) -> tuple[float, bool]:
        """The ratio at x, and whether x is near enough to a measurement to call the price measured."""
        near = self.x[0] - REACH <= x <= self.x[-1] + REACH
        right = bisect.bisect_left(self.x, x)
        if right == 0:
            return self.y[0], near
        if right == len(self.x):
            return self.y[-1], near
        share = (x - self.x[right - 1]) / (self.x[right] - self.x[right - 1])
        return self.y[right - 1] + share * (self.y[right] - self.y[right - 1]), near


def _rate(result: dict[str, Any]) -> float | None:
    try:
        if float(result["seconds"]) < LEAST_SECONDS:
            return None
        # A guided run does more for a token than its model alone.
        per_token = float(result["train_flops"]) / float(result["tokens"])
        rate = per_token * float(result["tokens_per_second"])
    except (KeyError, TypeError, ValueError):
        return None
    return rate if rate > 0 and math.isfinite(rate) else None


def _guess(per_token: float, setting: Setting) -> float:
    """FLOP/s without a measurement, on the slow side: small models spend their time on launching operations.

    The rates of large models are about half of what this trainer reaches on one AVX-512 core in fp32, and a
    tenth of a data-centre GPU's datasheet; half of it remains at `half` FLOPs per token.
    """
    top, half = (6e13 / setting.per_device, 1e9) if setting.gpu else (3e10 * setting.threads**0.8, 5e5)
    return top * per_token / (per_token + half)
