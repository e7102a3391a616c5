"""One look for all figures: colours and markers by structure, ticks, and files that repeat byte for byte."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.output import write_if_changed
from analysis.runs.labels import base_and_variant, family_and_budget, structure_order

Line = Literal["-", "none"] | tuple[float, Sequence[float]]
Fill = Literal["full", "left", "right", "top", "bottom", "none"]

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
# Variants of one structure (`dense, peak_lr=0.008`) share its hue and marker; from first to last they grow
# lighter, up to this share of white, and their lines and the filled halves of their markers alternate.
LIGHTEST = 0.6
VARIANT_LINES: tuple[Line, ...] = ("-", (0, (1, 1.2)), (0, (6, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)))
VARIANT_FILLS: tuple[Fill, ...] = ("full", "left", "top", "right")
TWO_COLUMNS, ONE_COLUMN = 7.0, 3.5
GREY = "#555555"
HOVER = "hover"
STYLE = "paper.mplstyle"
PLACES = 6
"""Decimals of the places of axes, in shares of the figure."""
WITHOUT_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Hover:
    """What a report says of the points of a line: a text each, and run ids (empty where not one run)."""

    texts: tuple[str, ...]
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """How one curve is drawn, everywhere; `filled` is False for small budgets."""

    colour: str
    marker: str
    filled: bool
    line: Line = "-"
    fill: Fill = "full"

    def marker_style(self) -> dict[str, Any]:
        """Colours of the marker, as matplotlib's keyword arguments."""
        inside, other = (self.colour, "white") if self.filled else ("white", self.colour)
        return {
            "marker": self.marker,
            "fillstyle": self.fill,
            "markerfacecolor": inside,
            "markerfacecoloralt": other,
        }


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Give every curve its look: that of its structure, and within it one for each variant."""
    ordered = sorted(set(labels), key=structure_order)
    bases = _structure_looks(list(dict.fromkeys(base_and_variant(label)[0] for label in ordered)))
    chosen = {}
    for base, look in bases.items():
        alike = [label for label in ordered if base_and_variant(label)[0] == base]
        for i, label in enumerate(alike):
            chosen[label] = replace(
                look,
                colour=_lighter(look.colour, LIGHTEST * i / max(1, len(alike) - 1)),
                line=VARIANT_LINES[i % len(VARIANT_LINES)],
                fill=VARIANT_FILLS[i % len(VARIANT_FILLS)],
            )
    return chosen


def _lighter(colour: str, share: float) -> str:
    """Mix a colour with a share of white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in parts)


def _structure_looks(structures: Sequence[str]) -> dict[str, Look]:
    """Fixed looks for the papers' families, in order of appearance for others."""
    chosen: dict[str, Look] = {}
    others: list[str] = []
    for label in structures:
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
    with matplotlib.rc_context(fname=Path(__file__).with_name(STYLE)):
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


def save(figure: Figure, stem: Path, known: Mapping[str, str] | None = None) -> list[Path]:
    """Write a figure as SVG, PDF and PNG beside each other; files with the same bytes are left alone.

    Nothing in the files depends on the time, the machine or the process.

    Args:
        figure: drawn and laid out.
        stem: path of the files without their endings.
        known: ending -> SHA-256 of the files that one drawing in this style, by these libraries, gave. Where
            the SVG comes out as it was, PDF and PNG that are as they were are not made again: that would take
            most of the time.
    """
    settle(figure)
    paths = []
    for kind, metadata in WITHOUT_DATES.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        paths.append(path)
        if (
            known
            and kind != "svg"
            and all(_is(stem.with_name(f"{stem.name}.{k}"), known.get(k)) for k in ("svg", kind))
        ):
            continue
        buffer = io.BytesIO()
        # Resolution, font embedding and the salt of SVG ids are read when the file is written.
        with house_style():
            figure.savefig(buffer, format=kind, metadata=metadata)
        write_if_changed(path, buffer.getvalue())
    return paths


def settle(figure: Figure) -> None:
    """Keep the layout that a figure got when it was made, its places rounded.

    To lay it out again for each format would take most of the time; and the solver's last digits differ from
    process to process, as would the names of clip paths, which are made of them.
    """
    FigureCanvasAgg(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        x, y, width, height = (round(value, PLACES) for value in axes.get_position(original=True).bounds)
        axes.set_position((x, y, width, height))


def _is(path: Path, digest: str | None) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def style_sha256() -> str:
    """Hash of what the bytes of every figure depend on besides its own drawing: this module and its style."""
    here = Path(__file__)
    files = (here, here.with_name(STYLE))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def title(axes: Axes, words: str, note: str, width: float) -> None:
    """A panel's title in bold, and under it in grey a note, wrapped to the panel's width in inches."""
    letters = int(width * 17)
    lines: list[str] = [""]
    for word in note.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= letters else [*lines, word]
    text = "\n".join(lines)
    axes.set_title(words, fontweight="bold", pad=4 + (8.5 * len(lines) if text else 0))
    if text:
        axes.annotate(
            text, (0, 1), xytext=(0, 4), xycoords="axes fraction", textcoords="offset points",
            fontsize=6.5, color=GREY, va="bottom", linespacing=1.15,
        )  # fmt: skip


def hover(line: Line2D, texts: Sequence[str], runs: Sequence[str] = ()) -> None:
    """Give the points of a line the texts that a report shows under the pointer, and the run of each.

    Args:
        line: its markers are the points, in this order.
        texts: one a point, such as `dense, cpu-m, seed 1: 2.696 ± 0.022 nats at 9.73e12 FLOPs`.
        runs: run id of each point where it is one run, else empty strings; may be left out.
    """
    assert len(texts) == np.size(line.get_xdata()) and len(runs) in (0, len(texts))
    setattr(line, HOVER, Hover(tuple(texts), tuple(runs)))


def hovers(figure: Figure) -> list[tuple[Line2D, Hover]]:
    """The lines of a figure whose points have texts, in the order in which they are drawn."""
    return [(line, getattr(line, HOVER)) for line in figure.findobj(Line2D) if hasattr(line, HOVER)]
