"""Reads and checks tables of measurements: layer latency, ours and published, decoding, coordinate checks."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from analysis.errors import AnalysisError

WIDTHS = "fig4_fig6_latency_vs_width_readoff.csv"
TOKENS = "fig5_fig7_latency_vs_tokens_digitised.csv"
PUBLISHED_DEVICE = "A100 (arXiv 2406.16450)"
PUBLISHED_TOKENS = 30_000
FORWARD = "forward"

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """The measured time of one FFN on one machine, ms; `speedup` over the dense FFN of the same shape.

    low, high: the slowest and fastest speed-up of single rounds; nan where they are not known.
    """

    device: str
    setting: str
    structure: str
    width: int
    tokens: int
    ms: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Decode:
    """Generation by one network at one batch size: ms a step of the whole batch, new tokens a second in all.

    model: size and cache length, in words; networks of one model stand in one panel.
    low, high: tokens a second in the slowest and fastest round, nan where they are not known.
    """

    device: str
    setting: str
    model: str
    network: str
    batch: int
    ms: float
    tokens_per_second: float
    low: float
    high: float


@dataclass(frozen=True)
class Coordinate:
    """The root mean square of one tensor at one training step of one network."""

    width: int
    structure: str
    parametrization: str
    seed: int
    step: int
    tensor: str
    rms: float


def read_layers(path: Path, direction: str = FORWARD) -> list[Layer]:
    """Rows of results/tables/bench/ffn.csv in one direction; rows that report an error are left out.

    Raises:
        AnalysisError: a missing column, or a cell that is no positive number.
    """

    def parse(row: Mapping[str, str]) -> Layer | None:
        if row.get("error") or row["direction"] != direction:
            return None
        low, high = (_optional(row.get(f"speedup_{end}")) for end in ("min", "max"))
        return Layer(
            device=_device(row),
            setting=setting(row),
            structure=row["structure"],
            width=int(row["width"]),
            tokens=int(row["tokens"]),
            ms=_positive(row["ms"]),
            speedup=_optional(row.get("speedup")),
            low=low,
            high=high,
        )

    return _parsed(path, parse, "'python -m trainer bench ffn'")


def setting(row: Mapping[str, str]) -> str:
    """Precision and whether compiled, in words."""
    mode = "compiled" if row["compiled"].lower() == "true" else "eager"
    return f"{row['precision']} {mode}"


def _device(row: Mapping[str, str]) -> str:
    threads = row.get("threads") or ""
    return f"{row['device']}, {threads} thread{'s' if threads != '1' else ''}" if threads else row["device"]


def read_published_widths(path: Path) -> list[Layer]:
    """The published latency of FFNs over width (read off a figure, ±0.3 ms)."""
    return _published(path, "latency_ms_30k_tokens", None)


def read_published_tokens(path: Path) -> list[Layer]:
    """The published latency of FFNs over the number of tokens (digitised)."""
    return _published(path, "latency_ms", "tokens_T")


def _published(path: Path, column: str, tokens: str | None) -> list[Layer]:
    def parse(row: Mapping[str, str]) -> Layer:
        structure, budget = row["structure"].lower(), row["budget"].rstrip("%")
        return Layer(
            device=PUBLISHED_DEVICE,
            setting="",
            structure=structure if budget == "100" else f"{structure}-{budget}",
            width=int(row["ffn_width"]),
            tokens=int(row[tokens]) if tokens else PUBLISHED_TOKENS,
            ms=_positive(row[column]),
            speedup=math.nan,
            low=math.nan,
            high=math.nan,
        )

    return _with_speedups(_parsed(path, parse, "a clean checkout"))


def _with_speedups(layers: Sequence[Layer]) -> list[Layer]:
    """Speed-ups from the latencies themselves, where there is a dense one of the same shape."""
    dense = {(a.width, a.tokens): a.ms for a in layers if a.structure == "dense"}
    return [Layer(**{**vars(a), "speedup": dense.get((a.width, a.tokens), math.nan) / a.ms}) for a in layers]


def fastest_settings(layers: Sequence[Layer]) -> list[Layer]:
    """Of each machine the rows of the setting at which its dense FFN is fastest, over shared shapes."""
    by_device: dict[str, dict[str, dict[tuple[int, int], float]]] = defaultdict(lambda: defaultdict(dict))
    for layer in layers:
        if layer.structure == "dense":
            by_device[layer.device][layer.setting][layer.width, layer.tokens] = layer.ms
    chosen = {}
    for device, settings in by_device.items():
        most = max(len(times) for times in settings.values())
        full = {name: times for name, times in settings.items() if 2 * len(times) >= most}
        shared = set.intersection(*(set(times) for times in full.values()))
        chosen[device] = min(
            full, key=lambda name: (sum(math.log(full[name][shape]) for shape in sorted(shared)), name)
        )
    return [layer for layer in layers if chosen.get(layer.device) == layer.setting]


def read_decode(path: Path) -> list[Decode]:
    """Rows of results/tables/bench/decode.csv; rows that report an error are left out.

    Raises:
        AnalysisError: a missing column, or a cell that is no positive number.
    """

    def parse(row: Mapping[str, str]) -> tuple[Decode, str] | None:
        if row.get("error"):
            return None
        low, high = (_optional(row.get(f"tokens_per_second_{end}")) for end in ("min", "max"))
        made = Decode(
            device=_device(row),
            setting=setting(row),
            model=f"{row['size']}, {int(row['length']):,} tokens",
            network=row["structure"],
            batch=int(row["batch"]),
            ms=_positive(row["ms"]),
            tokens_per_second=_positive(row["tokens_per_second"]),
            low=low,
            high=high,
        )
        return made, row["n_kv_heads"]

    rows = _parsed(path, parse, "'python -m trainer bench decode'")
    # Grouped-query forms of one structure are curves of their own; where there are none, nothing is named.
    heads = {(a.device, a.setting, a.model, a.network): set[str]() for a, _ in rows}
    for a, count in rows:
        heads[a.device, a.setting, a.model, a.network].add(count)
    return [
        replace(a, network=f"{a.network}, n_kv_heads={count}")
        if len(heads[a.device, a.setting, a.model, a.network]) > 1
        else a
        for a, count in rows
    ]


def read_coordcheck(path: Path) -> list[Coordinate]:
    """Rows of results/tables/coordcheck.csv.

    Raises:
        AnalysisError: a missing column, or a cell that is no number.
    """

    def parse(row: Mapping[str, str]) -> Coordinate:
        rms = float(row["rms"])
        if math.isnan(rms) or rms < 0:
            raise ValueError(f"rms = {row['rms']}")
        return Coordinate(
            int(row["width"]), row["structure"], row["parametrization"], int(row["seed"]), int(row["step"]),
            row["tensor"], rms,
        )  # fmt: skip

    return _parsed(path, parse, "the coordinate check of 'python -m trainer'")


@dataclass(frozen=True)
class Timing:
    """One row of a bench as it stands there: its labels, and its measured values with their ranges.

    values: by column, (median, lowest, highest round), nan where the row has none.
    """

    device: str
    setting: str
    labels: Mapping[str, str]
    values: Mapping[str, tuple[float, float, float]]


def read_timings(
    path: Path, values: Mapping[str, tuple[str, ...]], writer: str, optional: Sequence[str] = ()
) -> list[Timing]:
    """All rows of a bench, those that report an error without values.

    Args:
        path: the table.
        values: columns to read as numbers -> endings of the columns with the ends of their ranges, if any.
        writer: the command that writes the table, for messages.
        optional: those of the values that may be empty, or missing altogether.

    Raises:
        AnalysisError: a missing column, or a cell that is no positive number.
    """

    def parse(row: Mapping[str, str]) -> Timing:
        found = {}
        for name, ends in values.items():
            cell = row.get(name, "") if name in optional or row.get("error") else row[name]
            middle = _optional(cell) if name in optional or row.get("error") else _positive(cell)
            low, high = (
                (_optional(row.get(f"{name}_{end}")) for end in ends) if ends else (math.nan, math.nan)
            )
            found[name] = (middle, low, high)
        return Timing(_device(row), setting(row), row, found)

    return _parsed(path, parse, f"'{writer}'")


def _parsed(path: Path, parse: Callable[[Mapping[str, str]], T | None], writer: str) -> list[T]:
    rows: list[T] = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    value = parse({key: cell or "" for key, cell in row.items() if key is not None})
                except KeyError as error:
                    raise AnalysisError(f"{path}: no column {error}; write it with {writer}") from None
                except ValueError as error:
                    raise AnalysisError(
                        f"{path}: row {number} cannot be read ({error}); write it again with {writer}"
                    ) from None
                if value is not None:
                    rows.append(value)
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); write it again with {writer}") from None
    if not rows:
        raise AnalysisError(f"{path}: holds no measurement to draw; write it again with {writer}")
    return rows


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} is not above zero")
    return value


def _optional(text: str | None) -> float:
    return _positive(text) if text else math.nan
