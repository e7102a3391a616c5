"""`python -m trainer evaluate`: the held-out loss of a run's newest checkpoint, at any length it can read."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.options import DeviceOption, JsonOption, ResultsOption, execution_from

if TYPE_CHECKING:
    import torch

    from trainer.evaluate import Evaluation
    from trainer.generate import Run
    from trainer.models.transformer import Transformer

_QUIET_SECONDS = 5.0


def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder, or the id of a run below RESULTS/runs.")],
    seq_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a sequence; default those of training.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Held-out tokens to read; default eval.tokens of the run.")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences in one forward pass.")] = None,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Held-out loss of a run's newest checkpoint; for tasks also accuracy and exact match.

    At another length than that of training where the network's positions and the corpus allow it.
    """
    facts = _facts(
        run,
        results,
        seq_len,
        tokens,
        execution_from(device=device, threads=threads, micro_batch=micro_batch),
    )
    if as_json:
        print(json.dumps(facts))
    else:
        _show(facts)


def _facts(
    name: str, results: Path, seq_len: int | None, tokens: int | None, execution: Execution
) -> dict[str, Any]:
    """Measure, with progress on stderr; returns what is to be told."""
    from trainer.batches import heldout_windows
    from trainer.device import device_name, prepare_device, select_device
    from trainer.generate import checkpoint_note, find_run

    run = find_run(name, results)
    length = seq_len or run.config.model.seq_len
    windows = heldout_windows(run.config, length, tokens)
    _check(run, length, windows)
    device = select_device(execution)
    prepare_device(execution, device)
    network, step = _network(run, length, execution, device)
    found = _measure(run, network, length, tokens, execution, device)
    if not math.isfinite(found.loss):
        raise ConfigError(f"the weights after step {step:,} give a loss that is not finite; take another run")
    notes = [checkpoint_note(run, step), _changed(run)]
    return {
        "run": str(run.folder),
        "step": step,
        "note": "; ".join(note for note in notes if note),
        "corpus": run.corpus.label,
        "seq_len": length,
        "trained_seq_len": run.config.model.seq_len,
        "sequences": windows,
        "scored": found.tokens,
        "loss": found.loss,
        "loss_se": found.loss_se,
        "bits_per_byte": found.bits_per_byte,
        "accuracy": found.accuracy,
        "exact_match": found.exact_match,
        "entropy": found.entropy,
        "entropy_rate": run.corpus.entropy_rate,
        "device": device_name(device),
    }


def _check(run: Run, length: int, windows: int) -> None:
    """Raise ConfigError or CorpusError where the network cannot read such sequences or there are too few."""
    from trainer.models.config import longest

    most = longest(run.config.model)
    if most is not None and length > most:
        raise ConfigError(
            f"--seq-len {length}: the network has positions for {most} tokens; ask for at most that"
        )
    run.corpus.check_length(length)
    there = run.corpus.n_heldout_sequences(length)
    if there is not None and there < 2:
        raise ConfigError(
            f"--seq-len {length}: {run.corpus.label} has {there} held-out sequences of that length, and two "
            f"are needed; ask for a shorter one"
        )
    if there is not None and windows > there:
        raise ConfigError(
            f"{run.corpus.label}: {windows:,} held-out sequences of {length} tokens wanted, {there:,} are "
            f"there; ask for at most --tokens {there * length}"
        )


def _network(run: Run, length: int, execution: Execution, device: torch.device) -> tuple[Transformer, int]:
    from trainer.checkpoint import load_weights
    from trainer.device import attention_kernel
    from trainer.models.build import build_network

    trained = run.config.model
    # The kernel of training, so that its held-out loss comes out again; its mask ends where training did.
    kernel = attention_kernel(run.config, execution, device) if length <= trained.seq_len else "sdpa"
    network = build_network(trained, kernel)
    step = load_weights(run.folder, network)
    return network.to(device), step


def _measure(
    run: Run,
    network: Transformer,
    length: int,
    tokens: int | None,
    execution: Execution,
    device: torch.device,
) -> Evaluation:
    from trainer.device import micro_batch
    from trainer.evaluate import evaluate as measure
    from trainer.loop import Progress
    from trainer.terminal import Terminal

    begun = time.monotonic()
    batch = micro_batch(run.config, execution, device, 1)
    with Terminal() as terminal:

        def tick(done: int, total: int) -> bool:
            if time.monotonic() - begun >= _QUIET_SECONDS:
                terminal.show(Progress("evaluate", done, total))
            return False

        return measure(
            network, run.corpus, run.config, batch, device, tick=tick, seq_len=length, tokens=tokens
        )


def _changed(run: Run) -> str:
    """What to know where the corpus is not the one that the run was trained on; else empty."""
    from trainer.rundir import read_result

    result = read_result(run.folder)
    same = result is None or result.get("run_id") in (None, run.config.run_id(run.corpus.fingerprint))
    return "" if same else "the corpus has changed since the run was trained"


def _show(facts: dict[str, Any]) -> None:
    if facts["note"]:
        print(f"note: {facts['note']}", file=sys.stderr)
    print(f"held-out loss {facts['loss']:.4f} ± {facts['loss_se']:.4f} nats per scored token")
    if facts["bits_per_byte"] is not None:
        print(f"bits per byte {facts['bits_per_byte']:.4f}")
    if facts["accuracy"] is not None:
        print(f"accuracy {facts['accuracy']:.2%}, whole sequences right {facts['exact_match']:.2%}")
    print(
        f"{facts['corpus']}: {facts['sequences']:,} sequences of {facts['seq_len']} tokens, "
        f"{facts['scored']:,} scored; step {facts['step']:,}",
        file=sys.stderr,
    )
