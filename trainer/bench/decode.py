"""Speed of generation, a token at a time: dense, structured, and structured with merged weights, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.bench.ffn import product_rate
from trainer.bench.progress import BenchProgress
from trainer.bench.table import machine
from trainer.bench.timing import (
    Seconds,
    divided,
    median_interval,
    once,
    out_of_memory,
    quotients,
    wait_for,
)
from trainer.bench.weights import fill
from trainer.config import RunConfig
from trainer.crossover import Crossover, Setting, crossovers, prefers
from trainer.flops import describe
from trainer.generate import DTYPES
from trainer.models.build import build_network
from trainer.models.decode import Cache, advance, cast_weights, make_cache
from trainer.models.premerge import (
    MapShape,
    Memory,
    Prefers,
    PremergedLinear,
    decoding_memory,
    map_shapes,
    prepare_for_decoding,
)
from trainer.models.transformer import StructuredLinear, Transformer
from trainer.presets import run_labels

KEY = (
    "size", "structure", "params_total", "n_kv_heads", "precision", "compiled", "length", "batch", "device",
    "threads",
)  # fmt: skip
"""Columns that tell one row of the table from another."""

STEPS = 8
"""Tokens that a turn measures, behind one that warms up."""

Mode = Literal["never", "always", "auto"]


@dataclass
class _Network:
    """A network with random weights, and the rules by which its maps choose their form."""

    config: RunConfig
    network: Transformer
    shapes: list[MapShape]
    tables: dict[MapShape, Crossover] = field(default_factory=dict)

    def rule(self, layer: PremergedLinear, mode: Mode, most: int) -> Prefers | None:
        """How a map chooses in a mode; None where it never uses the merged weight."""
        if mode == "auto":
            return prefers(self.tables[MapShape(layer.structure, layer.d_in, layer.d_out)], most)
        return (lambda tokens: True) if mode == "always" else None

    def set(self, mode: Mode | None, most: int) -> None:
        """Make all maps choose as the mode says."""
        if mode is not None:
            for layer in self.layers():
                layer.choose_by(self.rule(layer, mode, most) or (lambda tokens: False))

    def layers(self) -> list[PremergedLinear]:
        """The structured maps."""
        return [module for module in self.network.modules() if isinstance(module, PremergedLinear)]

    def memory(self, mode: Mode | None, most: int, cache: Cache) -> Memory:
        """Bytes that generation in this mode would hold."""
        held = decoding_memory(self.network, cache)
        merged = 0
        if mode is not None:
            used = [layer for layer in self.layers() if self.rule(layer, mode, most) is not None]
            merged = sum(layer.merged.nbytes for layer in used if layer.merged is not None)
        return held._replace(merged=merged)


@dataclass
class _Contestant:
    """One network in one mode."""

    made: _Network
    mode: Mode | None
    """None for a network without structured maps."""
    rounds: list[Seconds] = field(default_factory=list)
    """Seconds a token, one value a round."""

    @property
    def wall(self) -> list[float]:
        """Seconds a token by the clock on the wall."""
        return [taken.wall for taken in self.rounds]

    @property
    def processor(self) -> list[float]:
        """Seconds a token that processors worked."""
        return [taken.processor for taken in self.rounds]

    @property
    def label(self) -> str:
        """As curves are labelled: the structure, and the mode as its variant."""
        structure = run_labels(self.made.config)["structure"]
        return structure if self.mode is None else f"{structure}, premerge={self.mode}"

    @torch.inference_mode()
    def turn(self, cache: Cache, position: int, tokens: Tensor) -> Seconds:
        """Seconds a token over STEPS tokens from `position` on, each the most likely after the one before."""
        network, device, times = self.made.network, tokens.device, list[Seconds]()
        cache.go_to(position)
        for step in range(1 + STEPS):
            # A GPU works behind the calls; waiting for each token would slow it.
            if device.type == "cpu" or step == 1:
                wait_for(device)
            times.append(Seconds.now())
            tokens = advance(network, cache, tokens).argmax(dim=-1, keepdim=True)
        wait_for(device)
        times.append(Seconds.now())
        if device.type != "cpu":
            return Seconds(*(whole / STEPS for whole in times[-1].since(times[1])))
        steps = [after.since(before) for before, after in pairwise(times[1:])]
        return Seconds(*(statistics.median(clock) for clock in zip(*steps, strict=True)))


def build(config: RunConfig, device: torch.device) -> _Network:
    """A prepared network with random weights, merged ones beside all factors."""
    network = build_network(config.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    draws = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, StructuredLinear):
            fill(module, draws)
    cast_weights(network.to(device), DTYPES[config.precision])
    shapes = map_shapes(network)
    prepare_for_decoding(network, "always", lambda shape: None)
    return _Network(config, network, shapes)


def predicted_seconds(
    configs: Sequence[RunConfig], turns: int, batches: Sequence[int], device: torch.device
) -> float:
    """Seconds that `turns` turns of each network take: reading weights once a token, or arithmetic."""
    numbers = torch.ones(2**24, device=device)
    once(numbers.sum, device)
    read = numbers.nbytes / min(once(numbers.sum, device) for _ in range(3))
    seconds = 0.0
    for config in configs:
        rate = product_rate(device, config.precision)
        params = describe(config)["params_total"]
        nbytes = params * DTYPES[config.precision].itemsize
        for batch in batches:
            # Products of few rows reach about half the speed of square ones.
            step = max(nbytes / read, 4 * params * batch / rate) + 5e-4
            seconds += turns * (1 + STEPS) * step
    return seconds


def bench_decode(
    configs: Sequence[RunConfig],
    modes: Sequence[Mode],
    batches: Sequence[int],
    length: int,
    repeats: int,
    max_seconds: float,
    device: torch.device,
    results: Path,
    progress: BenchProgress,
    on_rows: Callable[[list[dict[str, Any]]], object],
) -> None:
    """Measure every network in every mode at every batch size, and hand over the rows of each batch size.

    Args:
        configs: networks of one size and precision; a dense one among them is what others are held against.
        modes: how structured maps use merged weights.
        batches: rows at once.
        length: tokens that a row generates, at most seq_len; rounds are spread over its positions.
        repeats: rounds, each network in turn.
        max_seconds: fewer rounds are made where these would take longer, at least one.
        device: where.
        results: holds the file of crossovers.
        progress: told of each turn.
        on_rows: called after each batch size.
    """
    progress.phase("building the networks")
    networks = [build(config, device) for config in configs]
    most = max(batches)
    for made in networks:
        if "auto" in modes and made.shapes:
            setting = Setting(device, DTYPES[made.config.precision], decoding_memory(made.network).weights)
            made.tables = crossovers(made.shapes, setting, most, results, progress.phase)
    work = [max(8.0, batch) for batch in batches]
    for batch, share in zip(batches, work, strict=True):
        contestants = [
            _Contestant(made, mode) for made in networks for mode in (modes if made.shapes else (None,))
        ]
        progress.phase(f"batch {batch}: {len(contestants)} in turn, {repeats} rounds")
        seconds = max_seconds * share / sum(work)
        try:
            rows = list(_measure(contestants, batch, most, length, repeats, seconds, device, progress))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            rows = [{"structure": "all", "batch": batch, "error": "out of memory"}]
        on_rows(rows)


def decode_seconds(
    configs: Sequence[RunConfig], batch: int, length: int, repeats: int, device: torch.device
) -> list[list[float]]:
    """Seconds a token by the wall clock of each network in each round, factors as they were trained.

    Args:
        configs: networks, measured in turn.
        batch: rows at once.
        length: tokens that a row generates; rounds are spread over its positions.
        repeats: rounds, behind one that warms up.
        device: where.
    """
    contestants = []
    for config in configs:
        made = build(config, device)
        contestants.append(_Contestant(made, "never" if made.shapes else None))
    caches = [
        make_cache(c.made.network, batch, length, DTYPES[c.made.config.precision], device)
        for c in contestants
    ]
    tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    for number in range(1 + repeats):
        place = ((number * 0.6180339887498949) % 1) * (length - STEPS - 1)
        for contestant, cache in zip(contestants, caches, strict=True):
            contestant.made.set(contestant.mode, batch)
            taken = contestant.turn(cache, int(place), tokens)
            if number:
                contestant.rounds.append(taken)
    return [contestant.wall for contestant in contestants]


def _measure(
    contestants: list[_Contestant],
    batch: int,
    most: int,
    length: int,
    repeats: int,
    seconds: float,
    device: torch.device,
    progress: BenchProgress,
) -> Iterator[dict[str, Any]]:
    config = contestants[0].made.config
    cache = make_cache(contestants[0].made.network, batch, length, DTYPES[config.precision], device)
    tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    deadline = time.perf_counter() + seconds
    for number in range(1 + repeats):
        if number > 1 and time.perf_counter() > deadline:
            break
        # Multiples of the golden ratio are spread evenly over the length wherever the rounds end.
        place = ((number * 0.6180339887498949) % 1) * (length - STEPS - 1)
        for contestant in contestants:
            contestant.made.set(contestant.mode, most)
            taken = contestant.turn(cache, int(place), tokens)
            if number:  # The first round warms up.
                contestant.rounds.append(taken)
            progress.call()
    dense = next((c for c in contestants if c.mode is None), None)
    for contestant in contestants:
        yield _row(
            contestant, dense, batch, length, contestant.made.memory(contestant.mode, most, cache), device
        )


def _row(
    contestant: _Contestant,
    dense: _Contestant | None,
    batch: int,
    length: int,
    memory: Memory,
    device: torch.device,
) -> dict[str, Any]:
    config, rounds = contestant.made.config, contestant.wall
    median, ordered = statistics.median(rounds), sorted(rounds)
    # On a GPU, the processor's time is that of calling it.
    processor = contestant.processor if device.type == "cpu" else []
    dense_processor = dense.processor if dense and processor else []
    low, high = median_interval(divided(processor, dense_processor))
    return {
        **run_labels(config),
        "structure": contestant.label,
        "premerge": contestant.mode or "",
        "params_total": describe(config)["params_total"],
        "n_kv_heads": config.model.n_kv_heads,
        "precision": config.precision,
        "compiled": False,
        "length": length,
        "batch": batch,
        "ms": 1e3 * median,
        "ms_min": 1e3 * ordered[0],
        "ms_max": 1e3 * ordered[-1],
        "repeats": len(rounds),
        "tokens_per_second": batch / median,
        "tokens_per_second_min": batch / ordered[-1],
        "tokens_per_second_max": batch / ordered[0],
        **quotients("ms_over_dense", rounds, dense.wall if dense else ()),
        "cpu_ms": 1e3 * statistics.median(processor) if processor else None,
        **quotients("cpu_ms_over_dense", processor, dense_processor),
        "cpu_ms_over_dense_low": low,
        "cpu_ms_over_dense_high": high,
        "weight_bytes": memory.weights,
        "merged_bytes": memory.merged,
        "cache_bytes": memory.cache,
        **machine(device),
    }
