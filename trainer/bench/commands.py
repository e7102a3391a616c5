"""Command line `python -m trainer bench ...`: what each measurement takes, prints and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.bench.length_command import bench_length
from trainer.bench.options import RepeatsOption, ThreadsOption, counts, factor, say
from trainer.commandline import duration
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.flops import ffn_structures
from trainer.models.structures import structure_from
from trainer.options import DeviceOption, JsonOption, ResultsOption, execution_from, names_in
from trainer.presets import PRESETS, Partial, resolve

bench_app = typer.Typer(
    help="Measure speed on this machine; tables go to RESULTS/tables/bench.", no_args_is_help=True
)
bench_app.command("length")(bench_length)

StructuresOption = Annotated[str, typer.Option("--structures", help="Comma-separated.")]
PrecisionsOption = Annotated[str, typer.Option("--precisions", help="Comma-separated: fp32,bf16.")]
CompileOption = Annotated[bool, typer.Option("--compile", help="Measure compiled beside eager.")]
FFN_STRUCTURES = "dense,lowrank-63,lowrank-32,blockdense-63,blockdense-32,blockshuffle-63,blockshuffle-32"


@bench_app.command("train")
def bench_train(
    preset: Annotated[
        str | None, typer.Option(help=f"Named size instead of a shape: {', '.join(PRESETS)}.")
    ] = None,
    d_model: Annotated[int, typer.Option(help="Width.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Heads.")] = 4,
    seq_len: Annotated[int | None, typer.Option(help="Sequence length; default 256 or the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step; default 16 or the preset's.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Vocabulary; default 512 or the preset's.")] = None,
    structures: StructuresOption = "dense",
    precisions: PrecisionsOption = "fp32,bf16",
    compile_: CompileOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences in one forward pass.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps a repeat.")] = 10,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before the first repeat.")] = 8,
    repeats: RepeatsOption = 5,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Whole training steps on random tokens beside the dense network's: medians over interleaved repeats."""
    shape: Partial = {"seq_len": seq_len, "vocab_size": vocab}
    if preset is None:
        defaults = {"seq_len": 256, "vocab_size": 512, "bias": False}
        dimensions = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        shape = {**defaults, **{k: v for k, v in shape.items() if v is not None}, **dimensions}
        base: Partial = {"model": shape, "optim": {"peak_lr": 1e-3}}
        batch = batch or 16
    else:
        base = {"preset": preset, "model": {k: v for k, v in shape.items() if v is not None}}
    configs = []
    for structure in dict.fromkeys(("dense", *names_in(structures))):
        for precision in dict.fromkeys(names_in(precisions)):
            given = {**base, "structure": structure, "precision": precision}
            run = resolve(_with_batch(given, batch), "bench")
            length = run.optim.batch_tokens * (warmup + steps * repeats)
            configs.append(run.model_copy(update={"tokens": length}))
    modes = (False, True) if compile_ else (False,)
    executions = [
        execution_from(device=device, threads=threads, compile=mode, micro_batch=micro_batch)
        for mode in modes
    ]
    from trainer.bench.progress import BenchProgress
    from trainer.bench.table import bench_table, merge_rows
    from trainer.bench.train import KEY
    from trainer.bench.train import bench_train as measure

    say(f"{len(configs) * len(modes)} configurations, {warmup} + {repeats} x {steps} steps each")
    with BenchProgress() as progress:
        rows = measure(configs, executions, warmup, steps, repeats, progress)
    merge_rows(bench_table(results, "train"), [row for row in rows if "error" not in row], KEY)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(_train_line(row))


def _with_batch(given: Partial, batch: int | None) -> Partial:
    """The partial configuration with `batch` sequences a step."""
    if batch is None:
        return given
    seq_len = given["model"].get("seq_len") or PRESETS[given["preset"]]["model"]["seq_len"]
    return {**given, "optim": {**given.get("optim", {}), "batch_tokens": batch * seq_len}}


def _train_line(row: dict[str, Any]) -> str:
    if row["structure"] == "all":
        return f"all: {row['error']}"
    mode = "compiled" if row["compiled"] else "eager"
    head = f"{row['structure']:16} {row['precision']} {mode:8}"
    if "error" in row:
        return f"{head} {row['error']}"
    used = f"  {row['utilisation']:.1%} of peak" if row["utilisation"] else ""
    return (
        f"{head} {row['tokens_per_second']:>10,.0f} tokens/s "
        f"({row['tokens_per_second_min']:,.0f}-{row['tokens_per_second_max']:,.0f})  "
        f"{row['step_ms']:.1f} ms/step  over dense {factor(row, 'speedup')}  "
        f"{row['flops_per_second'] / 1e9:.1f} GFLOP/s{used}"
    )


@bench_app.command("ffn")
def bench_ffn(
    widths: Annotated[str, typer.Option(help="d_model, comma-separated.")] = "256,512,1024,2048",
    tokens: Annotated[str, typer.Option(help="Tokens in a pass, comma-separated.")] = "4096",
    structures: StructuresOption = FFN_STRUCTURES,
    precisions: PrecisionsOption = "fp32",
    compile_: CompileOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    repeats: RepeatsOption = 5,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Measure no longer than about this; fewer rounds where it is short.")
    ] = 240.0,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Whole FFNs, forward and with backward, each beside the dense one of its width."""
    names, precise = names_in(structures), names_in(precisions)
    if wrong := [name for name in precise if name not in ("fp32", "bf16")]:
        raise ConfigError(f"--precisions {wrong[0]}: known are fp32 and bf16")
    sizes = [(d, t) for d in counts(widths, "--widths") for t in counts(tokens, "--tokens")]
    shares = {d: [_share(name, d) for name in dict.fromkeys(("dense", *names))] for d, _ in sizes}

    from trainer.bench.ffn import KEY, Group, predicted_seconds, product_rate
    from trainer.bench.ffn import bench_ffn as measure
    from trainer.bench.progress import BenchProgress
    from trainer.bench.table import bench_table, merge_rows
    from trainer.device import prepare_device, select_device

    execution = execution_from(device=device, threads=threads)
    place = select_device(execution)
    prepare_device(execution, place)
    rate = {precision: product_rate(place, precision) for precision in precise}
    modes = (False, True) if compile_ else (False,)
    groups = [Group(d, t, p, mode) for d, t in sizes for p in precise for mode in modes]
    wanted = [predicted_seconds(g, shares[g.width], repeats, rate[g.precision]) + 1 for g in groups]
    total = sum(wanted)
    # The short groups get more than their due: they are the ones that a disturbed moment spoils.
    parts = [0.7 * seconds / total + 0.3 / len(groups) for seconds in wanted]
    budgets = [(group, max_seconds * part) for group, part in zip(groups, parts, strict=True)]
    say(
        f"{len(groups)} groups of {len(shares[sizes[0][0]])} FFNs, {repeats} rounds: about "
        f"{duration(min(total, max_seconds))} on {place}"
        + ", fewer rounds to keep to --max-seconds" * (total > max_seconds)
        + ", and the compiler's time" * compile_
    )
    path, all_rows = bench_table(results, "ffn"), list[dict[str, Any]]()

    def show(rows: list[dict[str, Any]]) -> None:
        all_rows.extend(rows)
        merge_rows(path, [row for row in rows if "error" not in row], KEY)
        if not as_json:
            _print_group(rows)

    with BenchProgress() as progress:
        measure(budgets, names, place, repeats, progress, show)
    if as_json:
        print(json.dumps(all_rows))


@bench_app.command("decode")
def bench_decode(
    preset: Annotated[
        str | None, typer.Option(help=f"Named size instead of a shape: {', '.join(PRESETS)}.")
    ] = None,
    d_model: Annotated[int, typer.Option(help="Width.")] = 512,
    n_layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Query heads.")] = 8,
    n_kv_heads: Annotated[int | None, typer.Option(help="Key and value heads; default --n-heads.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Vocabulary; default 512 or the preset's.")] = None,
    structures: StructuresOption = "lowrank-32,blockdense-32,blockshuffle-32",
    premerge: Annotated[str, typer.Option(help="Comma-separated: never,always,auto.")] = "never,always,auto",
    batches: Annotated[str, typer.Option(help="Rows at once, comma-separated.")] = "1,2,4,8,16,32,64",
    length: Annotated[int, typer.Option(min=16, help="Tokens that a row generates.")] = 256,
    precisions: PrecisionsOption = "fp32",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, networks in turn.")] = 15,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Measure no longer than about this; fewer rounds where it is short.")
    ] = 300.0,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Generation a token at a time, beside the dense network of the same size: latency and throughput."""
    modes = names_in(premerge)
    if wrong := [name for name in modes if name not in ("never", "always", "auto")]:
        raise ConfigError(f"--premerge {wrong[0]}: known are never, always and auto")
    shape = {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads or n_heads,
    }
    fields = {"seq_len": length, "vocab_size": vocab}
    base: Partial = {"preset": preset, "model": {k: v for k, v in fields.items() if v is not None}}
    if preset is None:
        base = {"model": {"vocab_size": 512, "bias": False, **base["model"], **shape}}
    optim = {"peak_lr": 1e-3, "batch_tokens": length}
    names = list(dict.fromkeys(("dense", *names_in(structures))))
    groups = [
        [
            resolve({**base, "optim": optim, "structure": n, "precision": p, "tokens": length}, "bench")
            for n in names
        ]
        for p in names_in(precisions)
    ]
    _decode(
        groups, modes, counts(batches, "--batches"), repeats, max_seconds, device, threads, results, as_json
    )


def _decode(
    groups: list[list[RunConfig]],
    modes: list[Any],
    batches: list[int],
    repeats: int,
    max_seconds: float,
    device: str,
    threads: int | None,
    results: Path,
    as_json: bool,
) -> None:
    from trainer.bench.decode import KEY, predicted_seconds
    from trainer.bench.decode import bench_decode as measure
    from trainer.bench.progress import BenchProgress
    from trainer.bench.table import bench_table, merge_rows
    from trainer.generate import place

    where = place(execution_from(device=device, threads=threads))
    variants = [run for runs in groups for run in runs for _ in (modes if _structured(run) else modes[:1])]
    total = predicted_seconds(variants, repeats + 1, batches, where)
    say(
        f"{len(variants)} networks, batches {', '.join(map(str, batches))}, {repeats} rounds: about "
        f"{duration(min(total, max_seconds))} on {where}"
        + ", fewer rounds to keep to --max-seconds" * (total > max_seconds)
        + ", and at first the time to measure where merged weights win" * ("auto" in modes)
    )
    path, all_rows = bench_table(results, "decode"), list[dict[str, Any]]()

    def show(rows: list[dict[str, Any]]) -> None:
        all_rows.extend(rows)
        merge_rows(path, [row for row in rows if "error" not in row], KEY)
        if not as_json:
            _print_decode(rows)

    with BenchProgress() as progress:
        for runs in groups:
            share = max_seconds / len(groups)
            measure(
                runs, modes, batches, runs[0].model.seq_len, repeats, share, where, results, progress, show
            )
    if as_json:
        print(json.dumps(all_rows))
    else:
        _print_most(all_rows)


def _structured(run: RunConfig) -> bool:
    return any(structure.kind != "dense" for structure in ffn_structures(run.model))


def _print_decode(rows: list[dict[str, Any]]) -> None:
    """A batch size: ms a token, and that over the dense network's, by the clock and in processor time."""
    if "error" in rows[0]:
        print(f"batch {rows[0]['batch']}: {rows[0]['error']}", flush=True)
        return
    print(
        f"batch {rows[0]['batch']}, {rows[0]['precision']}: medians of {rows[0]['repeats']} rounds "
        "(least to most; processor time over dense: 95 % interval of the median)"
    )
    for row in rows:
        wall = factor(row, "ms_over_dense", 3)
        processor = factor(row, "cpu_ms_over_dense", 3, ("low", "high"))
        print(
            f"  {row['structure']:32} {row['ms']:9.3f} ms a token, over dense {wall:22} "
            f"processor {processor:22} {row['tokens_per_second']:>9,.0f} tokens/s",
            flush=True,
        )


def _print_most(rows: list[dict[str, Any]]) -> None:
    """The batch size at which each network generates most."""
    measured = [row for row in rows if "error" not in row]
    for name in dict.fromkeys((row["structure"], row["precision"]) for row in measured):
        mine = [row for row in measured if (row["structure"], row["precision"]) == name]
        best = max(mine, key=lambda row: float(row["tokens_per_second"]))
        speed = f"{best['tokens_per_second']:>9,.0f} tokens/s at batch {best['batch']}"
        print(f"most: {name[0]:32} {name[1]} {speed}")


def _share(name: str, width: int) -> float:
    """Share of the dense FLOPs for the predicted time; none where the width forbids the structure."""
    kind = name.partition("-")[0]
    try:
        structure = structure_from(name, width)
        flops = structure.flops_per_token(width, 4 * width) + structure.flops_per_token(4 * width, width)
    except ValueError as error:
        if kind == "dense" or "unknown structure" in str(error) or "budget" in str(error):
            raise ConfigError(f"--structures: {error}") from None
        return 0.0
    return flops / (16 * width**2)


def _print_group(rows: list[dict[str, Any]]) -> None:
    """Both directions of a structure in one line, under a line that names the group."""
    first = rows[0]
    mode = "compiled" if first["compiled"] else "eager"
    print(f"width {first['width']}, {first['tokens']:,} tokens, {first['precision']} {mode}")
    for name in dict.fromkeys(row["structure"] for row in rows):
        parts = []
        for row in (row for row in rows if row["structure"] == name):
            if "error" in row:
                parts = [str(row["error"])]
                break
            parts.append(f"{row['direction']} {row['ms']:9.2f} ms {factor(row, 'speedup'):19}")
        else:
            parts.append(f"FLOPs x{row['flops_limit']:.2f}")
        print(f"  {name:16} " + "  ".join(parts), flush=True)
