"""Command `python -m trainer bench length`: time per token of a recurrent and a dense network over length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from trainer.bench.options import RepeatsOption, ThreadsOption, counts, factor, say
from trainer.commandline import duration
from trainer.errors import ConfigError
from trainer.messages import validation_line
from trainer.models.config import ModelConfig
from trainer.options import DeviceOption, JsonOption, ResultsOption, execution_from

if TYPE_CHECKING:
    from trainer.bench.length import Ladder

STEP_TOKENS = 16_384
FLAT, COST = 1.1, 1.5
"""Goals: time per token over that at the shortest length, and time over dense over FLOPs over dense."""


def bench_length(
    lengths: Annotated[
        str, typer.Option(help="Tokens in a sequence, comma-separated.")
    ] = "256,512,1024,2048,4096,8192,16384",
    block: Annotated[int, typer.Option(help="Tokens of a block of the recurrent network.")] = 32,
    mix: Annotated[str, typer.Option(help="Its mixing: forget, accumulate or learned.")] = "forget",
    d_model: Annotated[int, typer.Option(help="Width of both networks.")] = 96,
    n_heads: Annotated[int, typer.Option("--n-heads", "--heads", help="Heads of both.")] = 6,
    n_layers: Annotated[
        int, typer.Option("--n-layers", "--layers", help="Layers of the recurrent network.")
    ] = 1,
    dense_layers: Annotated[int, typer.Option(help="Layers of the dense network.")] = 1,
    vocab: Annotated[int, typer.Option(help="Vocabulary; a small one, so that the head costs little.")] = 32,
    tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Of a step at every length; default {STEP_TOKENS}.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="Of a step at every length, in place of --tokens.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    repeats: RepeatsOption = 5,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Measure no longer than about this; fewer rounds where it is short.")
    ] = 600.0,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Time per token of a recurrent network over sequence length, beside a dense one's."""
    shape = {"d_model": d_model, "n_heads": n_heads, "vocab_size": vocab, "bias": False}
    recurrence = {"block": block, "mix": mix}
    recurrent = {**shape, "kind": "recurrent", "n_layers": n_layers, "recurrence": recurrence}
    models = {"recurrent": _model(recurrent), "dense": _model({**shape, "n_layers": dense_layers})}
    wanted = tuple(sorted(set(counts(lengths, "--lengths"))))
    step = _step_tokens(wanted, tokens, sequences)
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: known are fp32 and bf16")
    execution = execution_from(device=device, threads=threads)

    from trainer.bench.ffn import product_rate
    from trainer.bench.length import KEY, Ladder, predicted_seconds
    from trainer.bench.length import bench_length as measure
    from trainer.bench.progress import BenchProgress
    from trainer.bench.table import bench_table, merge_rows
    from trainer.device import prepare_device, select_device

    place = select_device(execution)
    prepare_device(execution, place)
    ladder = Ladder(models, wanted, step, sequences, precision)
    with BenchProgress() as progress:
        total = predicted_seconds(ladder, place, repeats, product_rate(place, precision))
        say(_announcement(ladder, repeats, total, max_seconds, str(place)))
        rows = measure(ladder, place, repeats, max_seconds, progress)
    merge_rows(bench_table(results, "length"), [row for row in rows if "error" not in row], KEY)
    if as_json:
        print(json.dumps(rows))
        return
    for line in (*map(_line, rows), *_verdicts(rows)):
        print(line)


def _model(fields: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(validation_line(error, ModelConfig, "bench length")) from None


def _step_tokens(lengths: Sequence[int], tokens: int | None, sequences: int | None) -> int | None:
    """Tokens of a step; None where its sequences are given."""
    if sequences is not None:
        if tokens is not None:
            raise ConfigError("--tokens and --sequences: give one; the other follows from the length")
        return None
    step = tokens or STEP_TOKENS
    if odd := [length for length in lengths if step % length]:
        raise ConfigError(
            f"--tokens {step} is no multiple of length {odd[0]}, so steps could not be equal; take lengths "
            "that divide it, or --sequences"
        )
    return step


def _announcement(ladder: Ladder, repeats: int, total: float, max_seconds: float, place: str) -> str:
    names = ", ".join(f"{length}" for length in ladder.lengths)
    return (
        f"{len(ladder.models)} networks at {names} tokens, {ladder.step} a step, forward and with backward, "
        f"{repeats} rounds: about {duration(min(total, max_seconds))} on {place}"
        + ", fewer rounds to keep to --max-seconds"
        * (total > max_seconds)
    )


def _line(row: dict[str, Any]) -> str:
    if row["kind"] == "all":
        return f"all: {row['error']}"
    head = f"{row['kind']:10} {row['seq_len']:>7,} tokens x {row['sequences']:<4}"
    if "error" in row:
        return f"{head} {row['error']}"
    text = (
        f"{head} {row['direction']:17} {row['us_per_token']:9.3f} us a token "
        f"({row['us_per_token_min']:.3f}-{row['us_per_token_max']:.3f})  "
        f"over {row['shortest']} tokens {factor(row, 'us_over_shortest'):18} "
    )
    if row["us_over_dense"] is None:
        return text.rstrip()
    dense = factor(row, "us_over_dense", 3)
    return (
        f"{text} over dense {dense:22} (FLOPs x{row['flops_over_dense']:.3f}), cost over FLOPs "
        f"{factor(row, 'cost_over_flops')}, over causal ones x{row['cost_over_causal_flops']:.2f}"
    )


def _verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How the recurrent network stands to its goals, a line a direction."""
    lines = []
    mine = [row for row in rows if row["kind"] == "recurrent" and "error" not in row]
    for direction in dict.fromkeys(row["direction"] for row in mine):
        found = [row for row in mine if row["direction"] == direction]
        over = max(row["us_over_shortest"] for row in found)
        text = (
            f"recurrent, {direction}: at most x{over:.2f} of its time a token at {found[0]['shortest']} "
            f"tokens (goal {FLAT})"
        )
        costs = [row["cost_over_flops"] for row in found if row["cost_over_flops"] is not None]
        if costs:
            halves = max(row["cost_over_causal_flops"] or 0.0 for row in found)
            text += f"; cost over FLOPs at most {max(costs):.2f} (goal {COST}), over causal ones {halves:.2f}"
        lines.append(text)
    return lines
