"""Command line of the trainer: describe, train, data, bench."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from trainer.commandline import HELP, run_app
from trainer.errors import ConfigError, TrainerError
from trainer.execution import Execution
from trainer.messages import validation_line
from trainer.presets import PRESETS, Partial, load_toml, merge, resolve

app = typer.Typer(
    help="One training run: describe it, train it, prepare its corpus, measure its speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
bench_app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

PresetOption = Annotated[str | None, typer.Option("--preset", help=f"Named size: {', '.join(PRESETS)}.")]
StructureOption = Annotated[
    str | None, typer.Option("--structure", help="dense, lowrank-50, blockdense-63, blockshuffle-32 ...")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with RunConfig keys.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key, as optim.peak_lr=1e-3; repeatable.")
]
ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="SCALING_RESULTS", help="Folder of runs and corpora.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _partial(
    config: Path | None, preset: str | None, structure: str | None, sets: list[str] | None
) -> Partial:
    given: Partial = load_toml(config) if config else {}
    for assignment in sets or []:
        key, sign, value = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--set {assignment}: write it as key=value, for example optim.peak_lr=1e-3")
        try:
            parsed: Any = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        given = merge(given, parsed)
    if preset is not None:
        given["preset"] = preset
    if structure is not None:
        given["structure"] = structure
    if not given:
        raise ConfigError("nothing to run: give --preset, for example --preset cpu-s, or --config FILE")
    return given


def _execution(**given: Any) -> Execution:
    try:
        return Execution.model_validate(given)
    except ValidationError as error:
        raise ConfigError(validation_line(error, Execution, "command line")) from None


@app.command()
def describe(
    preset: PresetOption = None,
    structure: StructureOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, tokens and FLOPs of a run, from its configuration alone."""
    from trainer.flops import describe as counts

    run = resolve(_partial(config, preset, structure, set_), str(config or preset or "command line"))
    if as_json:
        print(json.dumps(counts(run)))
        return
    for key, value in counts(run).items():
        print(f"{key:26} {value:>28,}")
    print(json.dumps(run.model_dump(mode="json"), indent=1))


@app.command()
def train(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder, default RESULTS/runs/RUN_ID; an unfinished one is resumed."),
    ] = None,
    preset: PresetOption = None,
    structure: StructureOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    results: ResultsOption = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences in one forward pass.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Least time between checkpoints.")] = 60.0,
) -> None:
    """Train one run into a folder; Ctrl-C checkpoints, the same command resumes."""
    from trainer.corpora import fingerprint, prepare
    from trainer.terminal import Terminal, stop_on_signals

    run = resolve(_partial(config, preset, structure, set_), str(config or preset or "command line"))
    execution = _execution(
        device=device,
        threads=threads,
        micro_batch=micro_batch,
        compile=compile_,
        checkpoint_seconds=checkpoint_seconds,
    )
    corpus = prepare(run.data, results)
    run_id = run.run_id(fingerprint(run.data))
    folder = out if out is not None else results / "runs" / run_id
    from trainer.loop import train as train_run

    with Terminal() as terminal:
        state = train_run(
            run,
            corpus,
            folder,
            run_id,
            execution,
            should_stop=stop_on_signals(),
            on_progress=terminal.show,
        )
    terminal.summary(state, folder)
    sys.exit({"done": 0, "preempted": 130}.get(state, 1))


@app.command()
def data(
    spec: Annotated[
        str | None,
        typer.Argument(
            help="pysource, text:PATH, hf:NAME, or a data table as JSON; default that of --preset."
        ),
    ] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    results: ResultsOption = Path("results"),
    verify: Annotated[bool, typer.Option("--verify", help="Also read every token file again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare a corpus (tokenizer, splits, token files); resumes where it was stopped."""
    from trainer.corpora import parse_data, prepare

    if spec is not None:
        wanted = parse_data(spec)
    else:
        source = str(config or preset or "command line")
        wanted = resolve(_partial(config, preset, None, set_), source).data
    corpus = prepare(wanted, results, progress=not as_json)
    if verify:
        corpus.verify()
    facts = {
        "corpus": corpus.label,
        "fingerprint": corpus.fingerprint,
        "vocab_size": corpus.vocab_size,
        "train_tokens": corpus.n_train_tokens,
        "heldout_tokens": corpus.n_heldout_tokens,
        "entropy_rate": corpus.entropy_rate,
    }
    if as_json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        print(f"{key:16} {value:,}" if isinstance(value, int) else f"{key:16} {value}")


@bench_app.command("train")
def bench_train(
    d_model: Annotated[int, typer.Option(help="Width.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Heads.")] = 4,
    seq_len: Annotated[int, typer.Option(help="Sequence length.")] = 256,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 16,
    vocab: Annotated[int, typer.Option(help="Vocabulary.")] = 512,
    structures: Annotated[str, typer.Option(help="Comma-separated.")] = "dense",
    precisions: Annotated[str, typer.Option(help="Comma-separated: fp32,bf16.")] = "fp32,bf16",
    compile_: Annotated[bool, typer.Option("--compile", help="Measure compiled beside eager.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps a repeat.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before the first repeat.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats, interleaved.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Whole training steps on random tokens: medians over interleaved repeats."""
    from trainer.bench import bench_train as measure

    model = {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "seq_len": seq_len,
        "vocab_size": vocab,
        "bias": False,
    }
    configs = [
        resolve(
            {
                "model": model,
                "structure": structure,
                "optim": {"peak_lr": 1e-3, "batch_tokens": batch * seq_len},
                "tokens": batch * seq_len * (warmup + steps * repeats),
                "precision": precision,
            },
            "bench",
        )
        for structure in structures.split(",")
        for precision in precisions.split(",")
    ]
    modes = (False, True) if compile_ else (False,)
    executions = [_execution(device=device, threads=threads, compile=mode) for mode in modes]
    rows = measure(configs, executions, warmup, steps, repeats)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        mode = "compiled" if row["compiled"] else "eager"
        print(
            f"{row['structure']:16} {row['precision']} {mode:8} {row['tokens_per_second']:>10,.0f} tokens/s "
            f"({row['tokens_per_second_min']:,.0f}-{row['tokens_per_second_max']:,.0f})  "
            f"{row['step_ms']:.1f} ms/step  {row['flops_per_second'] / 1e9:.1f} GFLOP/s"
        )


def main() -> None:
    """Run the command line; a user mistake becomes one red line and exit code 2."""
    run_app(app, "trainer", (TrainerError,))


if __name__ == "__main__":
    main()
