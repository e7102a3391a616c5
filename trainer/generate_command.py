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
from trainer.execution import Execution
from trainer.messages import validation_line
from trainer.options import DeviceOption, JsonOption, ResultsOption, execution_from

if TYPE_CHECKING:
    from trainer.generate import Generation, Run

DEFAULT_TOKENS, DEFAULT_ROWS = 100, 3


@dataclass(frozen=True)
class _Given:
    """What the command line says of the text that is wanted."""

    texts: list[str]
    files: list[Path]
    tokens: int | None
    through_end: bool
    batch: int
    premerge: Any
    """A PremergeMode."""
    precision: str | None


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
        typer.Option(min=1, help=f"New tokens; default what fits the positions, at most {DEFAULT_TOKENS}."),
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

    A prompt and its new tokens together may be as long as the sequences that the run was trained on; of any
    length for a recurrent network without positions.
    """
    _one_of("--premerge", premerge, ("auto", "always", "never"))
    if precision is not None:
        _one_of("--precision", precision, ("fp32", "bf16"))
    given = _Given(prompt or [], prompt_file or [], tokens, through_end, batch, premerge, precision)
    draws = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    execution = execution_from(device=device, threads=threads)
    facts = _generate(run, results, given, draws, execution)
    if as_json:
        print(json.dumps(facts))
    else:
        _show(facts)


def _generate(
    name: str, results: Path, given: _Given, draws: dict[str, Any], execution: Execution
) -> dict[str, Any]:
    """Generate, with progress on stderr; returns what is to be told."""
    from trainer.bench.progress import BenchProgress
    from trainer.device import device_name
    from trainer.generate import Generator, check_length, checkpoint_note, find_run, load_network, place
    from trainer.models.config import longest
    from trainer.sampling import Sampling

    try:
        sampling = Sampling.model_validate(draws)
    except ValidationError as error:
        raise ConfigError(validation_line(error, Sampling, "command line")) from None
    run = find_run(name, results)
    network, step = load_network(run)
    prompts = _prompts(run, given.texts, given.files)
    prompt, most = max(map(len, prompts)), longest(run.config.model)
    tokens = given.tokens or max(1, min(DEFAULT_TOKENS, (most or DEFAULT_TOKENS + prompt) - prompt))
    check_length(prompts, tokens, most)
    device = place(execution)
    precision = given.precision or run.config.precision
    stop = None if run.encoder is None or given.through_end else run.encoder.eos
    with BenchProgress() as progress:
        at_once = min(given.batch, len(prompts)) * prompt
        ready = Generator(network, device, precision, given.premerge, run.results, at_once, progress.phase)
        progress.phase(f"{len(prompts)} rows of {tokens} tokens")
        made = ready(prompts, tokens, sampling, given.batch, stop, progress.call)
    return {
        "run": str(run.folder),
        "step": step,
        "note": checkpoint_note(run, step),
        "rows": _rows(run, prompts, made),
        "tokens_per_second": made.tokens_per_second,
        "seconds": made.seconds,
        "prompt_seconds": made.prompt_seconds,
        "precision": precision,
        "premerge": given.premerge,
        "device": device_name(device),
        "bytes": made.memory._asdict(),
    }


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


def _rows(run: Run, prompts: list[list[int]], made: Generation) -> list[dict[str, Any]]:
    return [
        {
            "prompt": run.decode(prompt),
            "text": run.continuation(prompt, new),
            "prompt_ids": prompt,
            "ids": new,
        }
        for prompt, new in zip(prompts, made.rows, strict=True)
    ]


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if facts["note"]:
        print(f"note: {facts['note']}", file=sys.stderr)
    for number, row in enumerate(facts["rows"], 1):
        console.print(Text(f"--- {number}", style="cyan"))
        console.print(Text(_visible(row["prompt"]), style="dim") + Text(_visible(row["text"])))
    held = facts["bytes"]
    n_new = sum(len(row["ids"]) for row in facts["rows"])
    print(
        f"{n_new:,} tokens in {facts['seconds']:.2f} s: {facts['tokens_per_second']:,.0f} tokens/s "
        f"(prompts {facts['prompt_seconds']:.2f} s); weights {held['weights']:,} bytes, "
        f"merged {held['merged']:,} bytes, cache {held['cache']:,} bytes",
        file=sys.stderr,
    )


def _visible(text: str) -> str:
    """The text with control characters written out: what a network makes up must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
