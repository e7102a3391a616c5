"""Which form of a structured map is cheaper for how many tokens: measured once a machine, kept in a file.

    RESULTS/cache/crossover.json   {"format": 1, "times": {KEY: {"tokens": [1, 2, 4, ...],
                                                                 "factors": [s, ...], "merged": [s, ...]}}}

A KEY names everything that the times depend on: device, threads, dtype, torch version, the structure and its
size, and whether weights come from memory or from the processor's cache.  The file can be deleted.
"""

from __future__ import annotations

import json
import math
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from trainer.bench.timing import once, wait_for
from trainer.bench.weights import fill
from trainer.device import device_name
from trainer.errors import RunDirError, TrainerError
from trainer.models.premerge import MapShape, Prefers, merged_like
from trainer.models.transformer import StructuredLinear
from trainer.rundir import write_atomic

FILE = Path("cache", "crossover.json")
FORMAT = 1
MOST_TOKENS = 4096
"""Largest count that is measured; above it the choice of this count holds."""
WORTH = 0.98
"""Share of the factors' time below which merged weights are worth their memory."""
FORMS = ("factors", "merged")
_SLOT_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.05, 3, 40
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE = 32 * 2**20


def _quiet(what: str) -> None:
    """Tell nobody."""


def token_counts(most: int) -> list[int]:
    """1, 2, 4 ... up to the first power of two not below `most`, at most MOST_TOKENS."""
    top = min(MOST_TOKENS, 1 << max(0, most - 1).bit_length())
    return [1 << i for i in range(top.bit_length())]


@dataclass(frozen=True)
class Crossover:
    """Seconds of a call of both forms, by number of tokens."""

    tokens: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    merged: list[float] = field(default_factory=list)

    def prefers_merged(self, tokens: int) -> bool:
        """Whether merged was clearly faster at the measured count that is nearest on a logarithmic scale."""
        near = bisect_left(self.tokens, tokens)
        if near == len(self.tokens) or (
            near > 0 and tokens * tokens < self.tokens[near] * self.tokens[near - 1]
        ):
            near -= 1
        return self.merged[near] < WORTH * self.factors[near]

    def extended(self, other: Crossover) -> Crossover:
        """Both tables in one, in the order of the counts; `other` wins."""
        rows = {t: (f, m) for t, f, m in zip(self.tokens, self.factors, self.merged, strict=True)}
        rows |= {t: (f, m) for t, f, m in zip(other.tokens, other.factors, other.merged, strict=True)}
        counts = sorted(rows)
        return Crossover(counts, [rows[t][0] for t in counts], [rows[t][1] for t in counts])

    @classmethod
    def from_json(cls, value: Any) -> Crossover:
        """Read what the file holds; ValueError where it is no such table."""
        if not isinstance(value, dict) or set(value) != {"tokens", *FORMS}:
            raise ValueError("not a table of times")
        columns = [value["tokens"], *(value[form] for form in FORMS)]
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise ValueError("columns of different lengths")
        tokens, factors, merged = columns
        if not tokens or any(type(t) is not int or t < 1 for t in tokens) or sorted(set(tokens)) != tokens:
            raise ValueError("counts that do not rise from 1 on")
        if not all(isinstance(s, float) and math.isfinite(s) and s > 0 for s in (*factors, *merged)):
            raise ValueError("times that are not above zero")
        return cls(tokens, factors, merged)


@dataclass(frozen=True)
class Setting:
    """Where the maps run."""

    device: torch.device
    dtype: torch.dtype
    network_bytes: int
    """Of all weights: beyond the last cache of the processor, each map finds its weights in memory."""

    @property
    def cold(self) -> bool:
        """Whether a map finds its weights in memory, not in the processor's cache."""
        return self.network_bytes > last_cache_bytes(self.device)

    def key(self, shape: MapShape) -> str:
        """Everything that a table of times depends on, in one line."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else 0
        parts = {
            "device": device_name(self.device), "threads": threads,
            "dtype": str(self.dtype).removeprefix("torch."), "torch": torch.__version__,
            "structure": shape.structure.model_dump(mode="json"), "d_in": shape.d_in, "d_out": shape.d_out,
            "weights": "memory" if self.cold else "cache",
        }  # fmt: skip
        return json.dumps(parts, sort_keys=True)


def last_cache_bytes(device: torch.device) -> int:
    """Bytes of the last cache before memory, a usual value where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        sizes = [int(path.read_text().strip().removesuffix("K")) for path in _CACHES.glob("index*/size")]
    except (OSError, ValueError):
        sizes = []
    return max(sizes) * 1024 if sizes else _DEFAULT_CACHE


def crossovers(
    shapes: list[MapShape],
    setting: Setting,
    most_tokens: int,
    results: Path,
    on_count: Callable[[str], object] = _quiet,
) -> dict[MapShape, Crossover]:
    """The tables of the maps up to `most_tokens` tokens; what the file does not hold is measured and put in.

    A second process that needs the same waits.  A damaged file is told on stderr and measured anew; one that
    cannot be written is told too: what was measured then serves this process alone.
    """
    path, counts = results / FILE, token_counts(most_tokens)
    known = read_crossovers(path, warn=False)
    if missing := [s for s in shapes if not _covers(known.get(setting.key(s)), counts)]:
        with _locked(path) as writable:
            known = read_crossovers(path, warn=writable)
            for shape in missing:
                key = setting.key(shape)
                table = known.get(key, Crossover())
                if not _covers(table, counts):
                    new = measure(shape, setting, [c for c in counts if c not in table.tokens], on_count)
                    known[key] = table.extended(new)
                    writable = writable and _write(path, known)
    return {shape: known[setting.key(shape)] for shape in shapes}


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the file's lock; gives whether the file can be written at all."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _warn(f"{path}: {error.strerror}; the crossovers are not kept")
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _covers(table: Crossover | None, counts: list[int]) -> bool:
    return table is not None and set(counts) <= set(table.tokens)


def prefers(table: Crossover, most_tokens: int) -> Prefers | None:
    """The choice of a map by number of tokens; None where the factors win for all up to `most_tokens`."""
    if any(table.prefers_merged(count) for count in token_counts(most_tokens)):
        return table.prefers_merged
    return None


def read_crossovers(path: Path, warn: bool = True) -> dict[str, Crossover]:
    """All tables of the file by key; none where there is no file, or a damaged one, which is told."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("of another format")
        return {key: Crossover.from_json(value) for key, value in content["times"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if warn:
            text = " ".join(str(error).split())
            _warn(f"{path}: damaged ({text}); measuring anew")
        return {}


def _write(path: Path, tables: dict[str, Crossover]) -> bool:
    times = {key: vars(tables[key]) for key in sorted(tables)}
    try:
        write_atomic(path, json.dumps({"format": FORMAT, "times": times}, indent=1) + "\n")
    except RunDirError as error:
        # The remedies in the error's own text are for a run folder.
        _warn(f"{path}: {getattr(error.__cause__, 'strerror', None) or error}; the crossovers are not kept")
        return False
    return True


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


@torch.inference_mode()
def measure(
    shape: MapShape,
    setting: Setting,
    counts: list[int],
    on_count: Callable[[str], object] = _quiet,
) -> Crossover:
    """Time both forms of a map on random numbers, in turn, for each number of tokens.

    Where the network's weights do not fit the processor's cache, the cache is filled with other numbers
    before each call: a map that is called again at once would find its weights where generation does not.
    """
    device, dtype = setting.device, setting.dtype
    layer = StructuredLinear(shape.structure, shape.d_in, shape.d_out, bias=False)
    fill(layer, torch.Generator().manual_seed(0))
    layer.to(device, dtype)
    weights, merged = dict(layer.weights), merged_like(layer)
    other = torch.zeros(2 * last_cache_bytes(device) // 4 if setting.cold else 0, device=device)
    columns: dict[str, list[float]] = {form: [] for form in FORMS}
    for tokens in counts:
        on_count(f"measuring {shape.structure.kind} {shape.d_in} -> {shape.d_out} at {tokens} tokens")
        x = torch.zeros(tokens, shape.d_in, device=device, dtype=dtype) + 0.5
        actions = {
            "factors": partial(shape.structure.forward, x, weights, None),
            "merged": partial(torch.nn.functional.linear, x, merged),
        }
        for form, seconds in _in_turn(actions, other, device).items():
            columns[form].append(seconds)
    if not all(math.isfinite(s) and s > 0 for column in columns.values() for s in column):
        raise TrainerError("the clock of this machine does not advance; use --premerge always or never")
    return Crossover(counts, columns["factors"], columns["merged"])


def _in_turn(
    actions: Mapping[str, Callable[[], object]], other: torch.Tensor, device: torch.device
) -> dict[str, float]:
    """Fewest seconds of a call of each, the calls of a round one after another.

    The fewest, since other work on the machine can only add to them.
    """
    cold = other.numel() > 0
    shortest = min(once(action, device) for action in actions.values())
    # A short call is repeated, or the clock would be a good part of what is measured.
    repeats = 1 if cold else max(1, min(100, round(2e-4 / max(1e-6, shortest))))
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    start = time.perf_counter()
    for done in range(1 + _MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() - start > _SLOT_SECONDS * len(actions):
            break
        for name, action in actions.items():
            if cold:
                other.sum()
            wait_for(device)
            begin = time.perf_counter()
            for _ in range(repeats):
                action()
            wait_for(device)
            if done:  # The first round warms up.
                seconds[name].append((time.perf_counter() - begin) / repeats)
    return {name: min(values) for name, values in seconds.items()}
