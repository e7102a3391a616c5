"""Reads and checks the bench of sequence lengths: time per token of recurrent and dense networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.latency import read_timings

FLAT, COST = 0.1, 1.5
"""Goals: how far the time per token may be from that at the shortest length, as a share of it, and the most
that time over dense may be of FLOPs over dense."""
RECURRENT = "recurrent"
WRITER = "python -m trainer bench length"

Spread = tuple[float, float, float]
"""Median, least and largest round; nan where it is not known."""

_RANGE = ("min", "max")
_NUMBERS: dict[str, tuple[str, ...]] = {
    "us_per_token": _RANGE,
    "us_over_shortest": _RANGE,
    "us_over_dense": _RANGE,
    "flops_over_dense": (),
    "cost_over_flops": _RANGE,
    "cost_over_causal_flops": _RANGE,
}
_OF_RECURRENT = ("us_over_dense", "flops_over_dense", "cost_over_flops", "cost_over_causal_flops")


@dataclass(frozen=True)
class LengthTiming:
    """One network at one length in one direction.

    network: its kind and shape, as labels of curves have it. shape: what both networks have in common, step:
    and what the steps of all lengths have. shortest: tokens of the length that over_shortest is held against.
    us: microseconds per token. over_dense, flops_over_dense, cost and causal_cost (with half the attention
    squares, as causal kernels compute them): of the recurrent network only, else nan.
    """

    device: str
    setting: str
    torch: str
    shape: str
    step: str
    network: str
    direction: str
    seq_len: int
    sequences: int
    shortest: int
    repeats: int
    us: Spread
    over_shortest: Spread
    over_dense: Spread
    flops_over_dense: float
    cost: Spread
    causal_cost: Spread

    @property
    def recurrent(self) -> bool:
        """Whether it is held against the dense network."""
        return self.network.startswith(RECURRENT)

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Machine, setting, shape and step: rows that share them can stand side by side."""
        return self.device, self.setting, self.shape, self.step


def read_lengths(path: Path) -> list[LengthTiming]:
    """Rows of results/tables/bench/length.csv, from short to long; those that report an error are left out.

    Raises:
        AnalysisError: a missing column, or a cell that is no positive number.
    """
    rows = []
    for timing in read_timings(path, _NUMBERS, WRITER, _OF_RECURRENT):
        labels, values = timing.labels, timing.values
        if labels.get("error"):
            continue
        try:
            row = LengthTiming(
                device=timing.device,
                setting=timing.setting,
                torch=labels.get("torch", ""),
                shape=f"d_model {_whole(labels, 'd_model')}, {_counted(labels, 'n_heads', 'head')}",
                step=_step(labels["step"]),
                network=_network(labels),
                direction=labels["direction"],
                seq_len=_whole(labels, "seq_len"),
                sequences=_whole(labels, "sequences"),
                shortest=_whole(labels, "shortest"),
                repeats=_whole(labels, "repeats"),
                us=values["us_per_token"],
                over_shortest=values["us_over_shortest"],
                over_dense=values["us_over_dense"],
                flops_over_dense=values["flops_over_dense"][0],
                cost=values["cost_over_flops"],
                causal_cost=values["cost_over_causal_flops"],
            )
        except KeyError as error:
            raise AnalysisError(f"{path}: no column {error}; write it with '{WRITER}'") from None
        except ValueError as error:
            raise AnalysisError(f"{path}: cannot be read ({error}); write it again with '{WRITER}'") from None
        rows.append(row)
    if not rows:
        raise AnalysisError(f"{path}: holds no measurement; write it again with '{WRITER}'")
    return sorted(rows, key=lambda row: (row.place, row.network, row.direction, row.seq_len))


def _whole(labels: Mapping[str, str], name: str) -> int:
    text = labels[name]
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} = {text!r} is no whole number above 0")
    return int(text)


def _counted(labels: Mapping[str, str], name: str, what: str) -> str:
    count = _whole(labels, name)
    return f"{count} {what}{'' if count == 1 else 's'}"


def _step(text: str) -> str:
    """`16384 tokens` as `16,384 tokens a step`."""
    number, _, what = text.partition(" ")
    if not number.isdecimal() or not what:
        raise ValueError(f"step = {text!r} is not as '16384 tokens'")
    return f"{int(number):,} {what} a step"


def _network(labels: Mapping[str, str]) -> str:
    kind, layers = labels["kind"], f"n_layers={_whole(labels, 'n_layers')}"
    if kind != RECURRENT:
        return f"{kind}, {layers}"
    mix = labels["mix"]
    return f"{kind}, block={_whole(labels, 'block')}, {f'mix={mix}, ' if mix != 'forget' else ''}{layers}"


def known(spread: Spread) -> bool:
    """Whether the range of the rounds is known."""
    return math.isfinite(sum(spread))
