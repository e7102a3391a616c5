"""The recurrent figure: a recurrent transformer's cost over sequence length, and its published results."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.arrays import Array
from analysis.digits import quantity
from analysis.errors import AnalysisError
from analysis.figures.style import GREY, TWO_COLUMNS, Line, house_style, hover, looks, title

SOURCE = '"Recurrent Transformers", July 2025 (arXiv 2402.14746)'
WIDTH, BLOCK, LAYERS = 32, 32, 4
"""Of its image task: d_model, tokens a block, layers of the regular transformer; others have one."""
LENGTHS = (128, 16384)
REGULAR, RECURRENT, FORGET = "Regular transformer", "Recurrent, forget, K=1", "Block recurrent, forget"
TASKS = (
    ("Shakespeare", "Characters of Shakespeare"),
    ("LRA image", "Image, grey CIFAR-10 by pixels"),
    ("Copy", "Copy 16 of 4,096 tokens"),
    ("Selective copy", "Selective copy"),
)
LOOKS = looks(["dense", "recurrent", "block recurrent"])
OURS: Line = (0, (3, 1.5))


@dataclass(frozen=True)
class Experiment:
    """One published experiment.

    params, flops: of the network, and per sample in the paper's units. loss: best validation loss, with its
    standard error. accuracy: percent, None where there is none; accuracy_se as printed, its unit not said.
    """

    task: str
    model: str
    params: float
    flops: float
    loss: float
    loss_se: float
    accuracy: float | None = None
    accuracy_se: float | None = None

    @property
    def regular(self) -> bool:
        """Whether it is the transformer that the others are held against."""
        return self.model.startswith("Regular")


def regular_flops(n: Array, d: float, layers: int = 1) -> Array:
    """FLOPs per sample of a transformer in the paper's units: L (N^2 D + N D^2)."""
    return np.asarray(layers * (n * n * d + n * d * d))


def recurrent_flops(n: Array, d: float, layers: int = 1) -> Array:
    """FLOPs per sample of the recurrent one, token by token, in the paper's units: L N (4D + 2D^2)."""
    return np.asarray(layers * n * (4 * d + 2 * d * d))


def block_flops(n: Array, d: float, k: float, layers: int = 1) -> Array:
    """FLOPs per sample of the block-recurrent one, in the paper's units: L (N/K) (4 D K^2 + 2 K D^2)."""
    return np.asarray(layers * (n / k) * (4 * d * k * k + 2 * k * d * d))


def regular_counted(n: Array, d: float, layers: int = 1) -> Array:
    """Forward FLOPs per sample, a multiply-add as 2: 12 D^2 weights a layer, full attention, no head."""
    return np.asarray(layers * (24 * n * d * d + 4 * n * n * d))


def block_counted(n: Array, d: float, k: float, layers: int = 1) -> Array:
    """Forward FLOPs per sample of the block-recurrent one, a multiply-add as 2; K = 1: token by token.

    Its equations y_1 = T(x_1), (y_i, h_(i+1)) = T(h_i, x_(i+1)), y_N = T(h_N) pass every token twice: N/K - 1
    windows of 2K tokens and two of K, with full attention within a window and 12 D^2 weights a layer.
    """
    windows = (n / k - 1) * (2 * k) ** 2 + 2 * k * k
    return np.asarray(layers * (48 * n * d * d + 4 * d * windows))


COSTS: tuple[tuple[str, str, str, Callable[[Array], Array], Callable[[Array], Array]], ...] = (
    (
        REGULAR, f"regular, {LAYERS} layers", "dense",
        lambda n: regular_flops(n, WIDTH, LAYERS), lambda n: regular_counted(n, WIDTH, LAYERS),
    ),
    (
        RECURRENT, "recurrent, K = 1, 1 layer", "recurrent",
        lambda n: recurrent_flops(n, WIDTH), lambda n: block_counted(n, WIDTH, 1),
    ),
    (
        FORGET, f"block recurrent, K = {BLOCK}, 1 layer", "block recurrent",
        lambda n: block_flops(n, WIDTH, BLOCK), lambda n: block_counted(n, WIDTH, BLOCK),
    ),
)  # fmt: skip


def read_experiments(path: Path) -> list[Experiment]:
    """The rows of `kausik_experiments.csv`.

    Raises:
        AnalysisError: the file is not what the repository tracks.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [_experiment(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); check the file out again") from None


def read_architectures(path: Path) -> list[str]:
    """The architectures of `kausik_complexity.csv` whose formulas are those drawn here.

    Raises:
        AnalysisError: the file is not what the repository tracks.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found = [row["architecture"] for row in csv.DictReader(file)]
    except (OSError, KeyError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); check the file out again") from None
    return [name for name, *_ in COSTS if name in found]


def _experiment(row: dict[str, str]) -> Experiment:
    units = {"K": 1e3, "M": 1e6}
    accuracy = re.match(r"([\d.]+)%(?: \(se ([\d.E+-]+)\))?", row["val_acc"])
    return Experiment(
        task=max((name for name, _ in TASKS if row["task"].startswith(name)), key=len),
        model=row["model"],
        params=float(row["params"][:-1]) * units[row["params"][-1]],
        flops=float(row["flops_per_sample"]),
        # Behind the best loss some cells have a second one, at which training costs are compared.
        loss=float(row["best_val_loss"].split()[0]),
        loss_se=float(row["std_err"]),
        accuracy=float(accuracy[1]) if accuracy else None,
        accuracy_se=float(accuracy[2]) if accuracy and accuracy[2] else None,
    )


def recurrent_figure(architectures: Sequence[str], experiments: Sequence[Experiment]) -> Figure:
    """Draw cost over sequence length, by the paper's formulas and by a count, and its results below.

    Args:
        architectures: of `COSTS`, those to be drawn.
        experiments: published ones, a row each.
    """
    with house_style():
        heights = 2.9, 0.2 * (len(experiments) + len(TASKS)) + 0.9
        figure = Figure(figsize=(TWO_COLUMNS, sum(heights)))
        upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
        sides = upper.subplots(1, 2, sharey=True)
        for axes, counted in zip(sides, (False, True), strict=True):
            _costs(axes, architectures, experiments, counted)
        shape = f"d_model {WIDTH}, as in its image task"
        units = "one operation a weight of D x D: no factor 2, nor 12 such weights a layer; points: printed"
        title(sides[0], "The paper's units", f"{SOURCE}; {shape}; {units}", TWO_COLUMNS / 2)
        ours = (
            "our count, not the paper's: a multiply-add is 2, 12 D² weights a layer, full attention, no head"
        )
        title(sides[1], "Counted from its equations", f"{shape}; {ours}", TWO_COLUMNS / 2)
        sides[0].set_ylabel("Forward FLOPs per sample")
        handles = [
            Line2D([], [], color=LOOKS[like].colour, linewidth=1.2, label=label)
            for name, label, like, _, _ in COSTS
            if name in architectures
        ]
        upper.legend(handles=handles, loc="outside lower center", ncols=3)
        left, right = lower.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        _results(left, right, experiments)
        figure.draw_without_rendering()
    return figure


def _costs(
    axes: Axes, architectures: Sequence[str], experiments: Sequence[Experiment], counted: bool
) -> None:
    lengths = np.geomspace(*LENGTHS, LENGTHS[1].bit_length() - LENGTHS[0].bit_length() + 1)
    for name, label, like, paper, count in COSTS:
        if name not in architectures:
            continue
        colour = LOOKS[like].colour
        flops = (count if counted else paper)(lengths)
        line = axes.plot(
            lengths, flops, color=colour, linewidth=1.2, linestyle=OURS if counted else "-", marker="o",
            markersize=1.8, zorder=4,
        )  # fmt: skip
        how = "our count" if counted else "the paper's units"
        hover(
            line[0],
            [
                f"{label}: {quantity(f)} FLOPs at {n:,.0f} tokens ({how})"
                for n, f in zip(lengths, flops, strict=True)
            ],
        )
        for e in experiments if not counted else ():
            mine = (name == REGULAR) == e.regular and name != RECURRENT
            if e.task == "LRA image" and mine:
                dot = axes.plot([1024], [e.flops], "o", color=colour, markersize=5, zorder=5)
                hover(dot[0], [f"{e.model}: {quantity(e.flops)} FLOPs per sample as printed, 1,024 pixels"])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("Sequence length (tokens)")
    axes.xaxis.set_major_locator(FixedLocator([128, 512, 2048, 8192]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())


def _results(left: Axes, right: Axes, experiments: Sequence[Experiment]) -> None:
    """Rows by task: network and parameters in words, loss (left panel) and accuracy (right) as dots."""
    place, ticks, names = 0.0, [], []
    for task, words in TASKS:
        mine = [e for e in experiments if e.task == task]
        if not mine:
            continue
        ticks.append(place)
        names.append(words)
        for e in mine:
            place += 1
            ticks.append(place)
            names.append(f"{_short(e.model)}, {_count(e.params)}")
            _row(left, right, e, place)
        place += 1
    left.set_ylim(place - 0.4, -0.6)
    left.set_yticks(ticks, names)
    for label, name in zip(left.get_yticklabels(), names, strict=True):
        label.set_fontsize(6.5)
        label.set_fontweight("bold" if name in dict(TASKS).values() else "normal")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    right.tick_params(axis="y", labelleft=False)
    left.set_xlim(-0.08, 1.8)
    right.set_xlim(35, 119)
    right.xaxis.set_major_locator(FixedLocator([40, 60, 80, 100]))
    left.set_xlabel("Best validation loss (nats)")
    right.set_xlabel("Validation accuracy (%)")
    title(left, "Published loss", "as printed, parameters beside the names; bars: standard error", 2.4)
    words = "none of text; of images without an error, that of copying taken as a share"
    title(right, "Published accuracy", words, 2.0)


def _row(left: Axes, right: Axes, e: Experiment, place: float) -> None:
    like = "dense" if e.regular else "recurrent" if "K=1" in e.model else "block recurrent"
    look = LOOKS[like]
    style: dict[str, Any] = {
        "color": look.colour,
        "linestyle": "none",
        "markersize": 4,
        "elinewidth": 0.9,
        "zorder": 4,
    }
    style |= look.marker_style()
    words = f"{e.model}: {_count(e.params)} parameters, {quantity(e.flops)} FLOPs per sample (paper's units)"
    dot = left.errorbar([e.loss], [place], xerr=[e.loss_se], **style)
    hover(dot.lines[0], [f"{words}, loss {e.loss:g} ± {e.loss_se:.2g}"])
    _beside(left, e.loss, place, f"{e.loss:g} ± {e.loss_se:.2g}", e.loss < 1)
    if e.accuracy is None:
        return
    error = None if e.accuracy_se is None else [100 * e.accuracy_se]
    dot = right.errorbar([e.accuracy], [place], xerr=error, **style)
    told = "" if e.accuracy_se is None else f" (standard error {e.accuracy_se:g} as printed)"
    hover(dot.lines[0], [f"{words}, accuracy {e.accuracy:g} %{told}"])
    _beside(right, e.accuracy, place, f"{e.accuracy:g} %", e.accuracy < 70)


def _beside(axes: Axes, x: float, y: float, text: str, right: bool) -> None:
    axes.annotate(
        text, (x, y), xytext=(9 if right else -9, 0), textcoords="offset points", fontsize=6.5, color=GREY,
        ha="left" if right else "right", va="center",
    )  # fmt: skip


def _short(model: str) -> str:
    return model.replace("Block recurrent", "block recurrent").replace(
        "K~U[16,48] train, 32 val", "K 16 to 48"
    )


def _count(params: float) -> str:
    return f"{params / 1e6:.3g}M" if params >= 1e6 else f"{params / 1e3:.3g}k"
