"""Speed of whole training steps, measured through the same code as the loop, structures interleaved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.bench.progress import BenchProgress
from trainer.bench.table import machine
from trainer.bench.timing import Timing, allow_many_compilations, interleaved, out_of_memory, quotients
from trainer.config import RunConfig
from trainer.device import peak_flops, prepare_device, select_device
from trainer.distributed import World
from trainer.execution import Execution
from trainer.flops import describe, flops_per_step
from trainer.presets import run_labels
from trainer.rng import philox
from trainer.step import TrainStep

KEY = (
    "size", "structure", "params_total", "seq_len", "batch_tokens", "precision", "compiled", "device",
    "threads",
)  # fmt: skip
"""Columns that tell one row of the table from another."""


class _Contestant:
    """One configuration under measurement."""

    def __init__(self, config: RunConfig, execution: Execution, device: torch.device) -> None:
        self.config, self.compiled, self.device = config, execution.compile, device
        self.step = TrainStep(config, execution, device, World())
        shape = (config.batch_sequences, config.model.seq_len + 1)
        tokens: NDArray[np.int64] = philox(0, "bench").integers(config.model.vocab_size, size=shape)
        self.inputs, self.targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        self.done = 0

    @property
    def is_dense(self) -> bool:
        """Whether others are held against it."""
        return self.config.model.structure.kind == "dense"

    @property
    def twins(self) -> tuple[str, bool]:
        """What it shares with those that differ from it in their structure only."""
        return self.config.precision, self.compiled

    def run(self, steps: int) -> None:
        """Do `steps` updates."""
        for _ in range(steps):
            self.step(self.done, self.inputs, self.targets)
            self.done += 1


def bench_train(
    configs: list[RunConfig],
    executions: list[Execution],
    warmup: int,
    steps: int,
    repeats: int,
    progress: BenchProgress,
) -> list[dict[str, Any]]:
    """Time every configuration under every execution, in turn, `repeats` times `steps` steps.

    Returns a row each: median, fastest and slowest tokens per second over the repeats, milliseconds a step,
    speed-up over the dense network of the same precision and execution (None where there is none), achieved
    FLOP/s and, where the peak is known, utilisation.  A configuration that does not fit the memory gives a
    row with `error` set; all of them are held side by side, and where they do not fit so, one row says it.
    """
    device = select_device(executions[0])
    prepare_device(executions[0], device)
    if any(execution.compile for execution in executions):
        allow_many_compilations()
    rows: list[dict[str, Any]] = []
    running: dict[str, _Contestant] = {}
    for config in configs:
        for execution in executions:
            progress.phase(f"{run_labels(config)['structure']} {config.precision} warming up")
            try:
                made = _Contestant(config, execution, device)
                made.run(max(1, warmup))
                running[str(len(running))] = made
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                rows.append({**_labels(config, execution.compile), "error": "out of memory"})
            progress.call()
    progress.phase(f"{len(running)} configurations in turn, {repeats} rounds of {steps} steps")
    actions = {name: _steps(made, steps) for name, made in running.items()}
    try:
        timings = interleaved(actions, device, repeats, warmup=0, on_call=progress.call)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return [
            {"structure": "all", "error": "out of memory with all configurations side by side"},
            *rows,
        ]
    dense = {made.twins: timings[name] for name, made in running.items() if made.is_dense}
    measured = [_row(made, timings[name], dense.get(made.twins), steps) for name, made in running.items()]
    return [*measured, *rows]


def _steps(made: _Contestant, steps: int) -> Any:
    return lambda: made.run(steps)


def _labels(config: RunConfig, compiled: bool) -> dict[str, Any]:
    return {
        **run_labels(config),
        "params_total": describe(config)["params_total"],
        "seq_len": config.model.seq_len,
        "batch_tokens": config.optim.batch_tokens,
        "precision": config.precision,
        "compiled": compiled,
    }


def _row(made: _Contestant, timing: Timing, dense: Timing | None, steps: int) -> dict[str, Any]:
    config = made.config
    tokens = config.optim.batch_tokens * steps
    peak = peak_flops(made.device, config.precision)
    achieved = steps * flops_per_step(config.model, config.optim.batch_tokens) / timing.median
    return {
        **_labels(config, made.compiled),
        "tokens_per_second": tokens / timing.median,
        "tokens_per_second_min": tokens / timing.slowest,
        "tokens_per_second_max": tokens / timing.fastest,
        "step_ms": 1000 * timing.median / steps,
        **quotients("speedup", dense.seconds if dense else (), timing.seconds),
        "flops_per_second": achieved,
        "utilisation": achieved / peak if peak else None,
        **machine(made.device),
    }
