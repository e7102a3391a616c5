"""Products of measurements: layer latency, generation, sequence lengths, coordinate check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis import bench_tables
from analysis.bench_tables import TITLES
from analysis.figures.coordcheck import coordcheck_figure
from analysis.figures.decode import decode_figure
from analysis.figures.latency import tokens_figure, width_figure
from analysis.figures.lengths import length_figure
from analysis.latency import (
    TOKENS,
    WIDTHS,
    Layer,
    read_coordcheck,
    read_decode,
    read_layers,
    read_published_tokens,
    read_published_widths,
)
from analysis.lengths import read_lengths
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked

Draw = Callable[[Sequence[Layer], Sequence[Layer]], Figure | None]
Read = Callable[[Path], list[Layer]]

BENCHES = ("ffn", "decode", "train", "length")
COORDCHECK = "coordcheck.csv"
FFN, DECODE, LENGTH = "bench/ffn.csv", "bench/decode.csv", "bench/length.csv"


def products(tracked: Tracked) -> Iterator[Product]:
    """A figure, and Markdown and LaTeX, for every table of measurements that is there."""
    for kind in BENCHES:
        if (path := tracked.table(f"bench/{kind}.csv")) is not None:
            yield Product(
                f"bench_{kind}",
                f"{TITLES[kind]}, as tables",
                (path,),
                lambda kind=kind, path=path: _tables(kind, path),  # type: ignore[misc]
            )
    if (ffn := tracked.table(FFN)) is not None:
        yield from _latency(tracked, ffn)
    if (decode := tracked.table(DECODE)) is not None:
        yield Product(
            "decode",
            "Time a step and throughput of generation over the number of sequences, a column a machine and "
            "model.",
            (decode,),
            lambda: Made(decode_figure(read_decode(decode))),
        )
    if (length := tracked.table(LENGTH)) is not None:
        yield Product(
            "length",
            "Time per token over sequence length, forward and with backward, of recurrent and dense "
            "networks, a column a machine and setting; beneath, the recurrent network's time over that at "
            "its shortest length, and its time over dense as a multiple of its FLOPs over dense.",
            (length,),
            lambda: Made(length_figure(read_lengths(length))),
        )
    if (coordcheck := tracked.table(COORDCHECK)) is not None:
        yield Product(
            "coordcheck",
            "Root mean square of activations over width at successive steps, by parametrization and "
            "structure; in each panel the slope at the first and the last step.",
            (coordcheck,),
            lambda: Made(coordcheck_figure(read_coordcheck(coordcheck))),
        )


def _tables(kind: str, path: Path) -> Made:
    tables = bench_tables.bench_tables(kind, path)
    texts = {"md": bench_tables.markdown(kind, tables), "tex": bench_tables.latex(kind, tables)}
    return Made(texts={f"bench/{kind}.{ending}": text for ending, text in texts.items()})


def _latency(tracked: Tracked, ffn: Path) -> Iterator[Product]:
    for name, over, file, read, draw in (
        ("ffn_latency_width", "width", WIDTHS, read_published_widths, width_figure),
        ("ffn_latency_tokens", "the number of tokens", TOKENS, read_published_tokens, tokens_figure),
    ):
        path = tracked.published(file)

        # Without a figure where all were measured at one width, or one number of tokens.
        def make(draw: Draw = draw, read: Read = read, path: Path | None = path) -> Made:
            return Made(draw(read_layers(ffn), read(path) if path is not None else []))

        yield Product(
            name,
            f"Time of one FFN over {over}, structured and dense, and the speed-up over dense: this project's "
            "machines and the published A100.",
            (ffn, *([path] if path is not None else [])),
            make,
        )
