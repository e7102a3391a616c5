"""Predicted seconds of a run: from finished runs on the same machine, else a cautious guess."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sweeps.speeds import Measured, Shape, Speeds, measured
from trainer.config import RunConfig
from trainer.flops import flops_per_token, guide_params, model_counts, spent_flops, train_flops

STARTUP_SECONDS = 2.0
"""Building the network, the first steps and writing the result, for a run in a warm worker."""

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
    room: int | None = None
    """CPU threads that may work at a time before runs slow each other down; None: not known, or a GPU."""


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
        here = [result for result in results if result.get("device") == setting.device]
        # Those with other threads are no measure, but were beside the others.
        runs: dict[str, list[Measured]] = defaultdict(list)
        for threads, precision, run in measured(here, setting.room):
            if setting.gpu or threads == setting.threads:
                runs[precision].append(run)
        guess = partial(_guess, setting=setting)
        self._speeds = {precision: Speeds(found, guess) for precision, found in runs.items()}
        self._cache: dict[tuple[int, str, int], tuple[float, bool]] = {}

    def price(self, config: RunConfig, steps_done: int = 0) -> Price:
        """The price of what is left of a run."""
        key = (id(config.model), config.precision, config.optim.batch_tokens)
        if key not in self._cache:
            self._cache[key] = self._speed(config)
        rate, measured = self._cache[key]
        left = train_flops(config) - spent_flops(config, steps_done)
        work = left + config.eval.tokens * model_counts(config.model).forward
        return Price(work / rate + STARTUP_SECONDS, measured)

    def _speed(self, config: RunConfig) -> tuple[float, bool]:
        """FLOP/s of a run, and whether it was measured."""
        model, counts = config.model, model_counts(config.model)
        per_token = flops_per_token(model)
        speeds = self._speeds.get(config.precision)
        if speeds is None:
            return _guess(per_token, self.setting), False
        batch, vocabulary = config.optim.batch_tokens, counts.params_embedding / model.d_model
        return speeds.at(
            Shape(model.structure.kind, per_token, batch, counts.params_total, model.n_layers, vocabulary)
        )


def _guess(per_token: float, setting: Setting) -> float:
    """FLOP/s without a measurement, on the slow side: small models spend their time on launching operations.

    The rates of large models are about half of what this trainer reaches on one AVX-512 core in fp32, and a
    tenth of a data-centre GPU's datasheet; half of it remains at `half` FLOPs per token.
    """
    top, half = (6e13 / setting.per_device, 1e9) if setting.gpu else (3e10 * setting.threads**0.8, 5e5)
    return top * per_token / (per_token + half)
