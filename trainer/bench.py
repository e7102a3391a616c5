"""Speed of whole training steps, measured through the same code as the loop, structures interleaved."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.device import device_name, peak_flops, prepare_device, select_device
from trainer.distributed import World
from trainer.execution import Execution
from trainer.flops import describe, flops_per_token
from trainer.presets import run_labels
from trainer.rng import philox
from trainer.step import TrainStep


class _Contestant:
    """One configuration under measurement."""

    def __init__(self, config: RunConfig, execution: Execution, device: torch.device) -> None:
        self.config, self.compiled, self.device = config, execution.compile, device
        self.step = TrainStep(config, execution, device, World())
        shape = (config.batch_sequences, config.model.seq_len + 1)
        tokens: NDArray[np.int64] = philox(0, "bench").integers(config.model.vocab_size, size=shape)
        self.inputs, self.targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        self.done = 0
        self.seconds: list[float] = []

    def run(self, steps: int) -> float:
        """Do `steps` updates; returns seconds a step."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(self.done, self.inputs, self.targets)
            self.done += 1
        self._wait()
        return (time.perf_counter() - start) / steps

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def bench_train(
    configs: list[RunConfig], executions: list[Execution], warmup: int, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """Time every configuration under every execution, in turn, `repeats` times `steps` steps.

    Returns a row each: median, fastest and slowest tokens per second over the repeats, milliseconds a step,
    achieved FLOP/s and, where the peak is known, utilisation.
    """
    device = select_device(executions[0])
    prepare_device(executions[0], device)
    contestants = [_Contestant(config, execution, device) for config in configs for execution in executions]
    for contestant in contestants:
        contestant.run(warmup)
    for _ in range(repeats):
        for contestant in contestants:
            contestant.seconds.append(contestant.run(steps))
    return [_row(contestant) for contestant in contestants]


def _row(contestant: _Contestant) -> dict[str, Any]:
    config = contestant.config
    speeds = [config.optim.batch_tokens / seconds for seconds in contestant.seconds]
    speed = statistics.median(speeds)
    peak = peak_flops(contestant.device, config.precision)
    achieved = speed * flops_per_token(config.model)
    return {
        **run_labels(config),
        "precision": config.precision,
        "compiled": contestant.compiled,
        "tokens_per_second": speed,
        "tokens_per_second_min": min(speeds),
        "tokens_per_second_max": max(speeds),
        "step_ms": 1000 * statistics.median(contestant.seconds),
        "flops_per_second": achieved,
        "utilisation": achieved / peak if peak else None,
        "params_total": describe(config)["params_total"],
        "device": device_name(contestant.device),
        "threads": torch.get_num_threads(),
    }
