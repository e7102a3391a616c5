"""`python -m trainer generate`: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from trainer.errors import ConfigError
from trainer.messages import validation_line
from trainer.options import DeviceOption, JsonOption, ResultsOption, execution_from

if TYPE_CHECKING:
    from trainer.generate import Generation, Run

DEFAULT_TOKENS, DEFAULT_ROWS = 100, 3


@dataclass(frozen=True)
class _Wanted:
    """What one command has found out before it generates."""

    run: Run
    step: int
    note: str
    prompts: list[list[int]]
    precision: str
    premerge: str


def generate(
    run: Annotated[str, typer.Argument(help="Run folder, or the id of a run below RESULTS/runs.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to go on from (ids where the corpus is ids); '' begins a document; repeatable."
        ),
    ] = None,
    prompt_file: Annotated[
        list[Path] | None, typer.Option(help="A file whose whole text is one prompt; repeatable.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help=f"New tokens; default what fits seq_len, at most {DEFAULT_TOKENS}."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the most likely ones that reach p.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws; a prompt's text does not depend on --batch.")] = 1,
    through_end: Annotated[
        bool, typer.Option("--through-end", help="Go on behind the end of a document.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 16,
    premerge: Annotated[
        str, typer.Option(help="Merged weights beside the factors: auto (measured once), always or never.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16, weights too; default the run's.")
    ] = None,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Generate from a run's newest checkpoint; without a prompt, from the beginnings of held-out text.

    A prompt and its new tokens together may be as long as the sequences that the run was trained on.
    """
    _one_of("--premerge", premerge, ("auto", "always", "never"))
    if precision is not None:
        _one_of("--precision", precision, ("fp32", "bf16"))
    execution = execution_from(device=device, threads=threads)
    from trainer.bench.progress import BenchProgress
    from trainer.device import device_name
    from trainer.generate import (
        Generator,
        check_length,
        checkpoint_note,
        find_run,
        load_network,
        place,
    )
    from trainer.sampling import Sampling

    try:
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    except ValidationError as error:
        raise ConfigError(validation_line(error, Sampling, "command line")) from None
    found = find_run(run, results)
    network, step = load_network(found)
    prompts = _prompts(found, prompt or [], prompt_file or [])
    longest, seq_len = max(map(len, prompts)), found.config.model.seq_len
    if tokens is None:
        tokens = max(1, min(DEFAULT_TOKENS, seq_len - longest))
    check_length(prompts, tokens, seq_len)
    where = place(execution)
    chosen = precision or found.config.precision
    wanted = _Wanted(found, step, checkpoint_note(found, step), prompts, chosen, premerge)
    stop = None if found.encoder is None or through_end else found.encoder.eos
    with BenchProgress() as progress:
        most = min(batch, len(prompts)) * longest
        ready = Generator(network, where, chosen, premerge, found.results, most, progress.phase)  # type: ignore[arg-type]
        progress.phase(f"{len(prompts)} rows of {tokens} tokens")
        made = ready(prompts, tokens, sampling, batch, stop, progress.call)
    if as_json:
        print(json.dumps(_facts(wanted, made, device_name(where))))
    else:
        _show(wanted, made)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} {value}: known are {', '.join(known)}")


def _prompts(run: Run, texts: list[str], files: list[Path]) -> list[list[int]]:
    prompts = [run.encode(text, f"--prompt {number}") for number, text in enumerate(texts, 1)]
    for path in files:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"--prompt-file {path}: not UTF-8 (byte {error.start}); convert it") from None
        except OSError as error:
            raise ConfigError(f"--prompt-file {path}: {error.strerror}") from None
        prompts.append(run.encode(text, f"--prompt-file {path}"))
    return prompts or run.heldout_prompts(DEFAULT_ROWS)


def _facts(wanted: _Wanted, made: Generation, device: str) -> dict[str, Any]:
    run = wanted.run
    rows = [
        {
            "prompt": run.decode(prompt),
            "text": run.continuation(prompt, new),
            "prompt_ids": prompt,
            "ids": new,
        }
        for prompt, new in zip(wanted.prompts, made.rows, strict=True)
    ]
    return {
        "run": str(run.folder),
        "step": wanted.step,
        "note": wanted.note,
        "rows": rows,
        "tokens_per_second": made.tokens_per_second,
        "seconds": made.seconds,
        "prompt_seconds": made.prompt_seconds,
        "precision": wanted.precision,
        "premerge": wanted.premerge,
        "device": device,
        "bytes": made.memory._asdict(),
    }


def _show(wanted: _Wanted, made: Generation) -> None:
    from rich.console import Console
    from rich.text import Text

    console, run = Console(highlight=False, soft_wrap=True), wanted.run
    if wanted.note:
        print(f"note: {wanted.note}", file=sys.stderr)
    space = " " if run.encoder is None else ""
    for number, (prompt, new) in enumerate(zip(wanted.prompts, made.rows, strict=True), 1):
        console.print(Text(f"--- {number}", style="cyan"))
        console.print(
            Text(_visible(run.decode(prompt)) + space, style="dim")
            + Text(_visible(run.continuation(prompt, new)))
        )
    memory = made.memory
    n_new = sum(map(len, made.rows))
    print(
        f"{n_new:,} tokens in {made.seconds:.2f} s: {made.tokens_per_second:,.0f} tokens/s "
        f"(prompts {made.prompt_seconds:.2f} s); weights {memory.weights:,} bytes, "
        f"merged {memory.merged:,} bytes, cache {memory.cache:,} bytes",
        file=sys.stderr,
    )


def _visible(text: str) -> str:
    """The text with control characters written out: what a network makes up must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
