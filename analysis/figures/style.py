"""One look for all figures: colours and markers by structure, ticks, and files that repeat byte for byte."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.output import write_if_changed
from analysis.table import family_and_budget, structure_order

# Okabe and Ito's eight colours, told apart with every common colour blindness.  A family keeps one hue:
# the larger budget darker, the smaller lighter.
FAMILY_COLOURS = {
    "dense": ("#000000", "#000000"),
    "lowrank": ("#0072B2", "#56B4E9"),
    "blockdense": ("#D55E00", "#E69F00"),
    "blockshuffle": ("#009E73", "#CC79A7"),
}
OTHER_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#56B4E9")
FAMILY_MARKERS = {"dense": "o", "lowrank": "s", "blockdense": "D", "blockshuffle": "^"}
OTHER_MARKERS = ("v", "P", "X", "<", ">", "h")
SMALL_BUDGET = 50
TWO_COLUMNS, ONE_COLUMN = 7.0, 3.5
WITHOUT_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Look:
    """How one structure is drawn, everywhere; `filled` is False for small budgets."""

    colour: str
    marker: str
    filled: bool


def looks(structures: Sequence[str]) -> dict[str, Look]:
    """Give every structure its look: fixed for the papers' families, in order of appearance for others."""
    chosen: dict[str, Look] = {}
    others: list[str] = []
    for label in sorted(set(structures), key=structure_order):
        family, budget = family_and_budget(label)
        small = budget < SMALL_BUDGET
        if family in FAMILY_COLOURS:
            chosen[label] = Look(FAMILY_COLOURS[family][small], FAMILY_MARKERS[family], not small)
            continue
        i = len(others)
        others.append(label)
        chosen[label] = Look(OTHER_COLOURS[i % 6], OTHER_MARKERS[(i + i // 6) % 6], i < 6)
    return chosen


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context(fname=Path(__file__).with_name("paper.mplstyle")):
        yield


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values between `low` and `high`, about `wanted` of them, evenly spaced in the value itself."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_loss_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic loss axis from `low` to `high` with plain round numbers, however narrow the range."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if high / low < 12:
        axes.yaxis.set_major_locator(FixedLocator(nice_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _power_of_ten(value: float, _: int | None = None) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    lead = value / 10.0**exponent
    ten = f"10^{{{exponent}}}"
    return f"${ten}$" if abs(lead - 1) < 1e-6 else rf"${lead:g}{{\times}}{ten}$"


def log_flops_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of FLOPs: decades, or 1-2-5 steps where fewer than two decades are seen."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1
    if decades >= 2:
        stride = -(-decades // 6)
        first = math.ceil(math.log10(low))
        axes.xaxis.set_major_locator(FixedLocator([10.0 ** (first + i) for i in range(0, decades, stride)]))
        axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)) if stride == 1 else NullLocator())
    else:
        subs = (1.0, 2.0, 5.0) if high / low > 4 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as SVG, PDF and PNG beside each other; files with the same bytes are left alone.

    Nothing in the files depends on the time, the machine or the process.
    """
    FigureCanvasAgg(figure)
    paths = []
    for kind, metadata in WITHOUT_DATES.items():
        buffer = io.BytesIO()
        # Resolution, font embedding and the salt of SVG ids are read when the file is written.
        with house_style():
            figure.savefig(buffer, format=kind, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{kind}")
        write_if_changed(path, buffer.getvalue())
        paths.append(path)
    return paths
