"""Command line of the trainer: describe, train, evaluate, data, generate, bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.bench.commands import bench_app
from trainer.commandline import HELP, run_app
from trainer.errors import TrainerError
from trainer.evaluate_command import evaluate
from trainer.generate_command import generate
from trainer.options import (
    ConfigOption,
    JsonOption,
    PresetOption,
    ResultsOption,
    SetOption,
    StructureOption,
    execution_from,
    partial_config,
)
from trainer.presets import resolve

app = typer.Typer(
    help="One training run: describe, train and evaluate it, generate from it, prepare its corpus, time it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.add_typer(bench_app, name="bench")
app.command()(evaluate)
app.command()(generate)


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

    run = resolve(partial_config(config, preset, structure, set_), str(config or preset or "command line"))
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

    run = resolve(partial_config(config, preset, structure, set_), str(config or preset or "command line"))
    execution = execution_from(
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
            help="pysource, text:PATH, hf:NAME, images, or a data table as JSON; default that of --preset."
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
        wanted = resolve(partial_config(config, preset, None, set_), source).data
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


@app.command()
def coordcheck(
    structures: Annotated[
        str | None, typer.Option(help="Comma-separated; default every family, at 32 % of dense.")
    ] = None,
    widths: Annotated[str, typer.Option(help="d_model of each network, comma-separated.")] = "64,128,256,512",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each network.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 5,
    peak_lr: Annotated[float, typer.Option(min=0, help="Learning rate at the first width.")] = 5e-3,
    parametrizations: Annotated[str, typer.Option(help="Comma-separated: paper,mup.")] = "paper,mup",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.")] = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Coordinate check: activation sizes against width after a few steps; flat where a rate transfers."""
    from trainer.coordcheck_report import check_from, report, run_check

    check = check_from(structures, parametrizations, widths, seeds, steps, peak_lr)
    path, found = run_check(check, threads, results)
    rows = [vars(slope) | {"flat": slope.flat, "by_design": slope.by_design} for slope in found]
    print(json.dumps(rows) if as_json else report(found))
    print(path, file=sys.stderr)


def main() -> None:
    """Run the command line; a user mistake becomes one red line and exit code 2."""
    run_app(app, "trainer", (TrainerError,))


if __name__ == "__main__":
    main()
