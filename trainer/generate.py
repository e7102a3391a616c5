"""Text from a trained run: its weights and tokenizer, batches of prompts, what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from trainer.bench.timing import wait_for
from trainer.checkpoint import load_weights
from trainer.config import RunConfig
from trainer.corpora import Corpus, fingerprint, open_corpus
from trainer.corpora.corpus import TOKENIZER, corpus_folder
from trainer.corpora.spec import LearnedTokenizer
from trainer.corpora.tokenizer import Encoder, encoder_for
from trainer.crossover import Setting, crossovers, prefers
from trainer.device import prepare_device, select_device
from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.messages import nearest, validation_line
from trainer.models.build import build_network
from trainer.models.config import longest
from trainer.models.decode import advance, cast_weights, make_cache
from trainer.models.premerge import (
    Memory,
    PremergeMode,
    decoding_memory,
    map_shapes,
    prepare_for_decoding,
)
from trainer.models.transformer import Transformer
from trainer.rundir import CONFIG, read_json, read_status
from trainer.sampling import Sampling, choose, draws

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ASK_EVERY = 8
"""Tokens between two looks at whether all rows have ended; each look waits for the device."""


@dataclass(frozen=True)
class Run:
    """A run folder and what is needed to read and write its ids."""

    folder: Path
    results: Path
    config: RunConfig

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus; CorpusError with the command that prepares it where it is not there."""
        return open_corpus(self.config.data, self.results)

    @cached_property
    def encoder(self) -> Encoder | None:
        """The tokenizer; None where the corpus is ids without text."""
        spec = self.config.data.tokenizer
        if spec is None:
            return None
        if not isinstance(spec, LearnedTokenizer):
            return encoder_for(spec)
        # Opening the corpus tells whether it is whole.
        assert self.corpus
        path = corpus_folder(self.results, fingerprint(self.config.data)) / TOKENIZER
        return encoder_for(spec, path.read_text("utf-8"))

    def encode(self, text: str, where: str) -> list[int]:
        """Ids of a prompt; an empty one begins a new document.

        Raises:
            ConfigError: the text cannot be encoded, with `where` it was given.
        """
        if self.encoder is None:
            return self._read_ids(text, where)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{where}: not UTF-8; give it in a file with --prompt-file") from None
        ids = [int(i) for i in self.encoder.encode([text])[0]] if text else [self.encoder.eos]
        if not ids:
            raise ConfigError(f"{where}: the run's tokenizer has no token for any of it; give another prompt")
        return ids

    def _read_ids(self, text: str, where: str) -> list[int]:
        vocab_size = self.config.model.vocab_size
        try:
            ids = [int(word) for word in text.replace(",", " ").split()]
        except ValueError:
            ids = []
        if not ids or not all(0 <= i < vocab_size for i in ids):
            raise ConfigError(
                f"{where}: this run's corpus is ids without text; give ids from 0 to {vocab_size - 1}, "
                f"as '3 17 5'"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; the ids themselves where they stand for no text."""
        if self.encoder is None:
            return " ".join(map(str, ids))
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """Text that the new ids add to the prompt's; decoded together, as some tokenizers need it."""
        if self.encoder is None:
            return " " + self.decode(new)
        before, whole = self.decode(prompt), self.decode([*prompt, *new])
        return whole.removeprefix(before) if whole.startswith(before) else self.decode(new)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        assert self.encoder is not None
        return Tokenizer.from_str(self.encoder.json())

    def heldout_prompts(self, n: int) -> list[list[int]]:
        """The beginnings of the first `n` held-out windows, or of all where there are fewer.

        Each is half of seq_len, at most 32 tokens.  Raises ConfigError where there is no window.
        """
        length = self.config.model.seq_len
        there = self.corpus.n_heldout_sequences(length)
        n = n if there is None else min(n, there)
        if n < 1:
            raise ConfigError(
                f"{self.corpus.label}: no held-out window of {length} tokens to begin from; give --prompt"
            )
        windows = self.corpus.heldout_sequences(0, n, length)
        return [[int(i) for i in row[: max(1, min(32, length // 2))]] for row in windows]


def find_run(run: str, results: Path) -> Run:
    """The run in a folder, or of an id (or its unique beginning) below `results`/runs.

    Raises:
        ConfigError: there is none, or its config.json cannot be read.
    """
    folder = Path(run)
    if not run.strip():
        raise ConfigError("the run is empty; give a run folder or the id of a run")
    if (folder / CONFIG).is_file():
        results = folder.resolve().parents[1] if folder.resolve().parent.name == "runs" else results
    elif folder.is_dir():
        raise ConfigError(f"{run}: no {CONFIG} in this folder, so it holds no run; give a run folder")
    else:
        ids = sorted(path.parent.name for path in (results / "runs").glob(f"*/{CONFIG}"))
        found = [i for i in ids if i.startswith(run)]
        if len(found) > 1 and run not in found:
            raise ConfigError(
                f"run '{run}': {len(found)} ids begin so; give more of it: {', '.join(found[:4])}"
            )
        if not found:
            hint = nearest(run, ids) if len(ids) <= 8 else ""
            raise ConfigError(f"run '{run}': no such folder, and no such id in {results / 'runs'}{hint}")
        folder = results / "runs" / (run if run in found else found[0])
    content = read_json(folder / CONFIG)
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(validation_line(error, RunConfig, str(folder / CONFIG))) from None
    return Run(folder, results, config)


def checkpoint_note(run: Run, step: int) -> str:
    """What to know of weights that are not those of a finished run; empty for such a one."""
    state = read_status(run.folder).get("state", "new")
    if state == "done" and step == run.config.steps:
        return ""
    return f"the run is {state}; these are its weights after step {step:,} of {run.config.steps:,}"


@dataclass
class Generation:
    """What was generated, and at what cost."""

    rows: list[list[int]]
    """New ids of each prompt; an id that ends the document is the last of its row."""
    seconds: float
    """Of all passes, prompts included, choosing included."""
    prompt_seconds: float
    """Of those through the prompts."""
    memory: Memory
    """Bytes, of the cache those of the largest batch."""

    @property
    def tokens_per_second(self) -> float:
        """New tokens over seconds."""
        return sum(map(len, self.rows)) / self.seconds


class Generator:
    """A network that was prepared for generation on a device."""

    def __init__(
        self,
        network: Transformer,
        device: torch.device,
        precision: str,
        mode: PremergeMode,
        results: Path,
        most_tokens: int,
        on_note: Callable[[str], object] = lambda what: None,
    ) -> None:
        self.device, self.dtype = device, DTYPES[precision]
        cast_weights(network.to(device), self.dtype)
        shapes = map_shapes(network)
        tables = {}
        if mode == "auto" and shapes:
            setting = Setting(device, self.dtype, decoding_memory(network).weights)
            tables = crossovers(shapes, setting, most_tokens, results, on_note)
        self.network = prepare_for_decoding(network, mode, lambda s: prefers(tables[s], most_tokens))

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        batch: int,
        stop: int | None = None,
        on_token: Callable[[], object] = lambda: None,
    ) -> Generation:
        """Generate up to `tokens` ids after each prompt, `batch` prompts at a time.

        A row ends early behind the id `stop`.  What a row gets depends on its number among the prompts and
        on the seed, not on the other rows, but for rounding.

        Raises:
            ConfigError: prompt and new tokens together are more than seq_len; the weights are not finite.
        """
        check_length(prompts, tokens, longest(self.network.model))
        total = Generation([], 0.0, 0.0, decoding_memory(self.network))
        for first in range(0, len(prompts), batch):
            part = prompts[first : first + batch]
            self._generate(first, part, tokens, sampling, stop, on_token, total)
        return total

    @torch.inference_mode()
    def _generate(
        self,
        first: int,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: int | None,
        on_token: Callable[[], object],
        total: Generation,
    ) -> None:
        network, device = self.network, self.device
        counts = [len(prompt) for prompt in prompts]
        cache = make_cache(network, len(prompts), max(counts) + tokens, self.dtype, device)
        total.memory = max(total.memory, decoding_memory(network, cache))
        padded = torch.zeros(len(prompts), max(counts), dtype=torch.int64)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        uniform = torch.from_numpy(draws(sampling.seed, range(first, first + len(prompts)), tokens)).to(
            device
        )
        ids = torch.zeros(len(prompts), tokens, dtype=torch.int64, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        start = time.perf_counter()
        logits = advance(network, cache, padded.to(device), counts)
        if not bool(torch.isfinite(logits).all()):
            raise ConfigError("the run's weights give logits that are not finite; take another run")
        total.prompt_seconds += time.perf_counter() - start
        done = 0
        while True:
            ids[:, done] = choose(logits, sampling, uniform[:, done])
            done += 1
            on_token()
            if stop is not None:
                ended |= ids[:, done - 1] == stop
            if done == tokens or (stop is not None and done % _ASK_EVERY == 0 and bool(ended.all())):
                break
            logits = advance(network, cache, ids[:, done - 1 : done])
        wait_for(device)
        total.seconds += time.perf_counter() - start
        total.rows += [_until(row, stop) for row in ids[:, :done].tolist()]


def _until(ids: list[int], stop: int | None) -> list[int]:
    return ids[: ids.index(stop) + 1] if stop is not None and stop in ids else ids


def check_length(prompts: Sequence[Sequence[int]], tokens: int, seq_len: int | None) -> None:
    """Raise ConfigError, with the limit, where the longest prompt leaves no room for so many new tokens."""
    prompt = max(map(len, prompts))
    if seq_len is None or prompt + tokens <= seq_len:
        return
    room = seq_len - prompt
    remedy = (
        f"ask for at most --tokens {room}" if room > 0 else f"give at most {seq_len - 1} tokens of prompt"
    )
    raise ConfigError(
        f"a prompt of {prompt} tokens and {tokens} new ones are more than the network was trained on "
        f"(seq_len = {seq_len}); {remedy}"
    )


def load_network(run: Run) -> tuple[Transformer, int]:
    """The network of a run with the weights of its newest good checkpoint, and the step of these.

    Raises:
        CheckpointError: the run has no good checkpoint.
    """
    network = build_network(run.config.model)
    return network, load_weights(run.folder, network)


def place(execution: Execution) -> torch.device:
    """The device of an execution, prepared for generation: threads as asked, fastest kernels."""
    device = select_device(execution)
    prepare_device(execution, device)
    # What makes training resume bit for bit slows the cache's writes, and forbids running sums on a GPU.
    torch.use_deterministic_algorithms(False)
    return device
