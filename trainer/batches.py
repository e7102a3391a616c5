"""Which sequences make up the batch of a step: a pure function of (corpus fingerprint, seed, step).

Neither the model, nor the micro-batch, nor the number of devices enters, so runs that differ only in those
see the same data in the same order, and a resumed run needs no saved position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.corpora.corpus import Corpus
from trainer.errors import ConfigError, CorpusError
from trainer.rng import Permutation, integer

Indices = NDArray[np.int64]


def sequence_indices(
    corpus_fingerprint: str, seed: int, step: int, batch_sequences: int, n_sequences: int | None
) -> Indices:
    """The corpus sequences of the global batch at `step`, int64 (batch_sequences,).

    Sequence j of step i has the global number g = i * batch_sequences + j.  It belongs to epoch g // n, and
    each epoch walks its own keyed permutation of the n sequences, so every sequence comes once per epoch.

    Args:
        corpus_fingerprint: of the prepared corpus.
        seed: of the run.
        step: optimizer step, from 0.
        batch_sequences: sequences in the global batch.
        n_sequences: sequences in the corpus; None for an unlimited one, of which each seed reads its own
        stretch.
    """
    numbers = np.arange(step * batch_sequences, (step + 1) * batch_sequences, dtype=np.int64)
    if n_sequences is None:
        return numbers + integer(seed, f"stretch {corpus_fingerprint}", below=2**62)
    epochs = numbers // n_sequences
    out = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        permutation = Permutation(n_sequences, seed, f"order {corpus_fingerprint} {int(epoch)}")
        out[chosen] = permutation(numbers[chosen] % n_sequences)
    return out


def heldout_windows(config: RunConfig, seq_len: int | None = None, tokens: int | None = None) -> int:
    """Held-out sequences that a run is measured on; by default of its own length, eval.tokens of them."""
    return max(2, (tokens or config.eval.tokens) // (seq_len or config.model.seq_len))


def check_corpus(config: RunConfig, corpus: Corpus) -> Batches:
    """The batches of a run, once everything that it will ask of its corpus is known to be there.

    Raises CorpusError for too few training or held-out tokens and for a length that a task does not have,
    ConfigError for too small a vocabulary; before the first step rather than after the last.
    """
    if corpus.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size} is less than the {corpus.vocab_size} ids of "
            f"{corpus.label}; leave it out to have it fit"
        )
    length = config.model.seq_len
    plan = config.curriculum
    for each in plan.lengths if plan else (length,):
        corpus.check_length(each)
        corpus.check_heldout(plan.sequences if plan else 0, each)
    batches = Batches(corpus, config.seed, length, config.batch_sequences, config.data.max_epochs)
    batches.check(config.base_steps)
    corpus.check_heldout(heldout_windows(config), length)
    return batches


class Batches:
    """The training batches of one run on one corpus.

    Args:
        corpus: a prepared corpus.
        seed: of the run.
        seq_len: tokens in a sequence.
        batch_sequences: sequences in the global batch.
        max_epochs: how often the corpus may be repeated (data.max_epochs).
    """

    def __init__(
        self, corpus: Corpus, seed: int, seq_len: int, batch_sequences: int, max_epochs: float = 1
    ) -> None:
        self.corpus = corpus
        self.seed = seed
        self.seq_len = seq_len
        self.batch_sequences = batch_sequences
        self.max_epochs = max_epochs
        self.n_sequences = _n_sequences(corpus, seq_len)

    def check(self, total_steps: int) -> None:
        """Raise CorpusError where `total_steps` need more than max_epochs of the corpus."""
        if self.n_sequences is None:
            return
        wanted = total_steps * self.batch_sequences
        there = int(self.max_epochs * self.n_sequences)
        if wanted <= there:
            return
        epochs = wanted / self.n_sequences
        raise CorpusError(
            f"{self.corpus.label}: the run wants {wanted * self.seq_len:,} training tokens ({epochs:.2f} "
            f"epochs) "
            f"but data.max_epochs = {self.max_epochs:g} of the corpus gives {there * self.seq_len:,}; "
            f"lower tokens, take a larger corpus, or set data.max_epochs = {-(-wanted // self.n_sequences)}"
        )

    def batch(
        self, step: int, rank: int = 0, world_size: int = 1, seq_len: int | None = None
    ) -> tuple[Indices, Indices]:
        """Inputs and targets of `rank` at `step`, each int64 (batch_sequences / world_size, seq_len).

        The ranks' parts, in order of rank, are the batch of a single process.  With another `seq_len` than
        the run's (a curriculum) the batch has as many sequences, drawn from those of that length.

        Raises:
            CorpusError: the batch cannot be shared evenly, or there are no sequences of that length.
        """
        if self.batch_sequences % world_size:
            raise CorpusError(
                f"a batch of {self.batch_sequences} sequences cannot be shared evenly by {world_size} "
                f"processes; "
                f"choose a number of devices that divides it, or another optim.batch_tokens"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} outside world of {world_size}")
        length = self.seq_len if seq_len is None else seq_len
        n_sequences = self.n_sequences if length == self.seq_len else _n_sequences(self.corpus, length)
        share = self.batch_sequences // world_size
        indices = sequence_indices(
            self.corpus.fingerprint, self.seed, step, self.batch_sequences, n_sequences
        )
        return self.corpus.train_examples(indices[rank * share : (rank + 1) * share], length)


def _n_sequences(corpus: Corpus, seq_len: int) -> int | None:
    """Training sequences of a length; CorpusError where there is none."""
    there = corpus.n_train_sequences(seq_len)
    if there == 0:
        raise CorpusError(
            f"{corpus.label}: {corpus.n_train_tokens} training tokens are less than one sequence of "
            f"model.seq_len = {seq_len}; take a larger corpus or a shorter seq_len"
        )
    return there
