"""Tables of what was measured: FFN layers, generation and training steps beside the dense network's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from analysis.digits import estimate, number, significant
from analysis.latency import Timing, read_timings
from analysis.lengths import COST, FLAT, LengthTiming, read_lengths
from analysis.tables import Table, latex_file

RANGE = ("min", "max")
TITLES = {
    "ffn": "FFN layers: time and speed-up over dense",
    "decode": "Generation: time of a step and tokens a second",
    "train": "Training steps: tokens a second",
    "length": "Sequence length: time per token of recurrent and dense networks",
}
"""The benches, by the names of their tables in results/tables/bench."""
SPREAD = (
    "Medians over interleaved rounds, in brackets the lowest and highest single round; digits by that spread."
)
THOUSAND = 1000.0


def bench_tables(kind: str, path: Path) -> list[Table]:
    """The tables of one bench: one for each machine and setting, and of generation for each network size.

    Args:
        kind: one of `TITLES`.
        path: its table, such as results/tables/bench/ffn.csv.

    Raises:
        AnalysisError: it cannot be read, or a column is missing.
    """
    made: dict[str, Callable[[Path], list[Table]]] = {
        "ffn": _ffn, "decode": _decode, "train": _train, "length": _length,
    }  # fmt: skip
    return made[kind](path)


def markdown(kind: str, tables: Sequence[Table]) -> str:
    """All tables of one bench, each beneath its setting."""
    parts = [f"# {TITLES[kind]}"]
    for table in tables:
        parts += [table.caption, table.markdown()]
    return "\n\n".join(parts) + "\n"


def latex(kind: str, tables: Sequence[Table]) -> str:
    r"""All tables of one bench as one file to \input."""
    many = len(tables) > 1
    return latex_file(
        (f"tab:bench-{kind}{f'-{i}' if many else ''}", table) for i, table in enumerate(tables, 1)
    )


def _ffn(path: Path) -> list[Table]:
    rows = read_timings(
        path, {"ms": RANGE, "speedup": RANGE, "flops_limit": ()}, "python -m trainer bench ffn",
        ("speedup", "flops_limit"),
    )  # fmt: skip
    tables = []
    for place, found in _by_place(rows, ()).items():
        directions = sorted({row.labels["direction"] for row in found})
        header = ["width", "tokens", "structure"]
        for direction in directions:
            header += [f"{direction} (ms)", f"speed-up, {direction}"]
        shapes: dict[tuple[int, int, str], dict[str, Timing]] = defaultdict(dict)
        for row in found:
            key = int(row.labels["width"]), int(row.labels["tokens"]), row.labels["structure"]
            shapes[key][row.labels["direction"]] = row
        body = []
        for key in sorted(shapes, key=lambda k: (k[0], k[1], k[2] != "dense", k[2])):
            cells = [f"{key[0]}", f"{key[1]:,}", key[2]]
            for direction in directions:
                values = shapes[key][direction].values if direction in shapes[key] else {}
                cells += [_spread(values.get(name)) for name in ("ms", "speedup")]
            limits = [row.values["flops_limit"][0] for row in shapes[key].values()]
            body.append([*cells, "-" if math.isnan(limits[0]) else f"{limits[0]:.2f}"])
        caption = f"Time of a whole FFN and its speed-up over the dense one of the same rounds; {place}."
        notes = [_rounds(found), "FLOPs limit: FLOPs of the dense FFN over its own.", *_failed(found)]
        tables.append(Table((*header, "FLOPs limit"), _sparse(body, 2), caption, notes))
    return tables


def _decode(path: Path) -> list[Table]:
    ratio = {"ms_over_dense": RANGE, "cpu_ms_over_dense": ("low", "high")}
    rows = read_timings(
        path,
        {"ms": RANGE, "tokens_per_second": RANGE, **ratio},
        "python -m trainer bench decode",
        tuple(ratio),
    )
    tables = []
    for place, found in _by_place(rows, ("size", "length")).items():
        processor = any(math.isfinite(row.values["cpu_ms_over_dense"][0]) for row in found)
        names = _networks(found)
        order = sorted(
            range(len(found)),
            key=lambda i: (int(found[i].labels["batch"]), found[i].labels["structure"] != "dense", names[i]),
        )
        body = []
        for i in order:
            values = found[i].values
            cells = [found[i].labels["batch"], names[i], _spread(values["ms"])]
            cells += [_spread(values["tokens_per_second"]), _spread(_inverse(values["ms_over_dense"]))]
            body.append([*cells, _spread(values["cpu_ms_over_dense"])] if processor else cells)
        header = ["batch", "network", "step (ms)", "tokens/s", "speed-up over dense"]
        notes = [_rounds(found), "A step adds a token to each sequence of the batch.", *_failed(found)]
        if processor:
            header.append("processor time over dense")
            notes.insert(1, "Processor time: median of the quotients and its 95 % interval.")
        caption = f"Generation beside the dense network in the same rounds; {place}."
        tables.append(Table(header, _sparse(body, 1), caption, notes))
    return tables


def _train(path: Path) -> list[Table]:
    rows = read_timings(
        path, {"tokens_per_second": RANGE, "flops_per_second": (), "utilisation": ()},
        "python -m trainer bench train", ("utilisation", "flops_per_second"),
    )  # fmt: skip
    tables = []
    for place, found in _by_place(rows, ("seq_len",)).items():
        used = any(math.isfinite(row.values["utilisation"][0]) for row in found)
        dense = {
            (row.labels["size"], row.labels["batch_tokens"]): row.values["tokens_per_second"]
            for row in found
            if row.labels["structure"] == "dense"
        }
        body = []
        for row in sorted(found, key=lambda r: (*_size(r.labels), r.labels["structure"] != "dense")):
            size, batch = row.labels["size"], row.labels["batch_tokens"]
            speed = row.values["tokens_per_second"]
            spread, flops = _relative(speed), row.values["flops_per_second"][0] / 1e9
            cells = [size, f"{int(batch):,}", row.labels["structure"], f"{int(row.labels['params_total']):,}"]
            cells += [_spread(tuple(value / THOUSAND for value in speed)), number(flops, spread * flops)]
            cells.append(_quotient(speed, dense.get((size, batch))))
            share = row.values["utilisation"][0]
            body.append([*cells, "-" if math.isnan(share) else significant(100 * share)] if used else cells)
        header = ["network", "batch tokens", "structure", "parameters", "1000 tokens/s", "GFLOP/s"]
        header += ["speed-up over dense", *(["% of peak"] if used else [])]
        notes = [SPREAD, "Speed-up: quotient of the medians.", *_failed(found)]
        tables.append(Table(header, _sparse(body, 2), f"Whole training steps; {place}.", notes))
    return tables


def _length(path: Path) -> list[Table]:
    places: dict[str, list[LengthTiming]] = {}
    for row in read_lengths(path):
        torch = f", torch {row.torch}" if row.torch else ""
        places.setdefault(f"{', '.join(row.place)}{torch}", []).append(row)
    header = ["direction", "network", "tokens long", "sequences", "time per token (us)", "over shortest"]
    header += ["over dense", "FLOPs over dense", "cost over FLOPs", "cost over causal FLOPs"]
    tables = []
    for place, found in places.items():
        found = sorted(found, key=lambda row: (row.direction, not row.recurrent, row.network, row.seq_len))
        body = [
            [row.direction, row.network, f"{row.seq_len:,}", f"{row.sequences:,}"]
            + [_spread(value) for value in (row.us, row.over_shortest, row.over_dense)]
            + [number(row.flops_over_dense, plain=3), _spread(row.cost), _spread(row.causal_cost)]
            for row in found
        ]
        shortest = " or ".join(f"{n:,}" for n in sorted({row.shortest for row in found}))
        notes = [
            _words_of_rounds({row.repeats for row in found}),
            f"Over shortest: time per token over that of the same network at {shortest} tokens; of recurrent "
            f"networks {1 - FLAT:g} to {1 + FLAT:g} is the goal.",
            "Cost over FLOPs: time over dense, over FLOPs over dense (full attention squares); at most "
            f"{COST:g} is the goal. Causal FLOPs have half the squares, as causal kernels compute them.",
        ]
        caption = f"Time per token over sequence length; {place}."
        tables.append(Table(header, _sparse(body, 2), caption, notes))
    return tables


def _by_place(rows: Sequence[Timing], also: Sequence[str]) -> Mapping[str, list[Timing]]:
    """The rows of each machine and setting, and of each value of other labels, under these in words."""
    words: dict[str, Callable[[str], str]] = {
        "size": str,
        "length": lambda text: f"{int(text):,} tokens long",
        "seq_len": lambda text: f"sequences of {int(text):,} tokens",
    }
    found: dict[str, list[Timing]] = {}
    for row in rows:
        parts = [words[name](row.labels[name]) for name in also]
        parts += [row.device, row.setting]
        if row.labels.get("torch"):
            parts.append(f"torch {row.labels['torch']}")
        found.setdefault(", ".join(parts), []).append(row)
    return found


def _networks(found: Sequence[Timing]) -> list[str]:
    """Names of networks; heads of keys and values are named where a structure has several counts of them."""
    heads = defaultdict(set)
    for row in found:
        heads[row.labels["structure"]].add(row.labels.get("n_kv_heads"))
    return [
        f"{name}, n_kv_heads={row.labels.get('n_kv_heads')}" if len(heads[name]) > 1 else name
        for row in found
        for name in [row.labels["structure"]]
    ]


def _spread(value: Sequence[float] | None) -> str:
    """A median and the range of its rounds."""
    if value is None or math.isnan(value[0]):
        return "-"
    middle, low, high = value
    if not high > low:
        return number(middle)
    return " ".join(estimate(middle, low, high))


def _inverse(value: Sequence[float]) -> tuple[float, float, float]:
    middle, low, high = value
    return 1 / middle, 1 / high, 1 / low


def _relative(value: Sequence[float]) -> float:
    """A quarter of the range of the rounds, as a share of the median; 0 where it is not known."""
    middle, low, high = value
    return (high - low) / 4 / middle if high > low else 0.0


def _quotient(value: Sequence[float], dense: Sequence[float] | None) -> str:
    if dense is None or math.isnan(value[0]):
        return "-"
    ratio = value[0] / dense[0]
    return "1" if value is dense else number(ratio, ratio * math.hypot(_relative(value), _relative(dense)), 3)


def _size(labels: Mapping[str, str]) -> tuple[int, str, int]:
    """Networks from small to large."""
    digits = "".join(c for c in labels["size"].partition("-")[0] if c.isdigit())
    return int(digits or 0), labels["size"], int(labels["batch_tokens"])


def _sparse(rows: Sequence[Sequence[str]], leading: int) -> list[list[str]]:
    """Rows whose leading labels stand only where they change."""
    out: list[list[str]] = []
    for i, row in enumerate(rows):
        same = 0
        while i and same < leading and row[same] == rows[i - 1][same]:
            same += 1
        out.append([*[""] * same, *row[same:]])
    return out


def _rounds(found: Sequence[Timing]) -> str:
    return _words_of_rounds({int(row.labels["repeats"]) for row in found if row.labels.get("repeats")})


def _words_of_rounds(repeats: set[int]) -> str:
    counts = sorted(repeats)
    if not counts:
        return SPREAD
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return SPREAD.replace("Medians over", f"Medians over {many}")


def _failed(found: Sequence[Timing]) -> list[str]:
    """What could not be measured, in words."""
    failed = [row for row in found if row.labels.get("error")]
    return [f"Not measured: {row.labels.get('structure')}: {row.labels['error']}." for row in failed]
