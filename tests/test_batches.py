"""The batch of a step is a pure function of (corpus fingerprint, seed, step)."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.batches import Batches, sequence_indices
from trainer.corpora import Corpus
from trainer.errors import CorpusError

Indices = NDArray[np.int64]


class CountingCorpus(Corpus):
    """Ids 0, 1, 2, ...: a window tells where it was taken from."""

    def __init__(self, n_tokens: int | None) -> None:
        self.fingerprint, self.label, self.vocab_size = "f" * 64, "counting", 2**31
        self.n_train_tokens = self.n_heldout_tokens = n_tokens
        self.entropy_rate = None

    def train_sequences(self, indices: Indices, seq_len: int) -> Indices:
        return indices[:, None] * seq_len + np.arange(seq_len + 1)

    def heldout_sequences(self, start: int, stop: int, seq_len: int) -> Indices:
        return self.train_sequences(np.arange(start, stop), seq_len)

    def verify(self) -> None:
        return None

    @property
    def token_bytes(self) -> None:
        return None


def test_targets_are_the_inputs_moved_by_one() -> None:
    inputs, targets = Batches(CountingCorpus(1001), 0, 10, 4).batch(3)
    assert inputs.shape == targets.shape == (4, 10)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)


@given(n=st.integers(1, 400), batch=st.integers(1, 64), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_sequence_comes_once_per_epoch(n: int, batch: int, seed: int) -> None:
    steps = -(-2 * n // batch)
    order = np.concatenate([sequence_indices("a", seed, i, batch, n) for i in range(steps)])
    for epoch in (order[:n], order[n : 2 * n]):
        assert np.array_equal(np.sort(epoch), np.arange(n))
    if n > 50:
        assert not np.array_equal(order[:n], order[n : 2 * n])


def test_the_order_depends_on_seed_and_corpus_and_nothing_else() -> None:
    base = sequence_indices("a", 1, 5, 32, 10_000)
    assert np.array_equal(base, sequence_indices("a", 1, 5, 32, 10_000))
    assert not np.array_equal(base, sequence_indices("b", 1, 5, 32, 10_000))
    assert not np.array_equal(base, sequence_indices("a", 2, 5, 32, 10_000))


def test_the_data_at_a_sequence_number_do_not_depend_on_the_batch_size() -> None:
    small = np.concatenate([sequence_indices("a", 1, i, 8, 999) for i in range(8)])
    assert np.array_equal(small, sequence_indices("a", 1, 0, 64, 999))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_the_same_global_batch(world_size: int) -> None:
    batches = Batches(CountingCorpus(10_001), 7, 16, 12)
    whole = batches.batch(4)
    parts = [batches.batch(4, rank, world_size) for rank in range(world_size)]
    for side in (0, 1):
        assert np.array_equal(np.concatenate([part[side] for part in parts]), whole[side])


def test_seeds_read_disjoint_stretches_of_an_unlimited_corpus() -> None:
    one, two = (sequence_indices("a", seed, 0, 1000, None) for seed in (1, 2))
    assert not np.intersect1d(one, two).size
    assert np.array_equal(sequence_indices("a", 1, 1, 500, None), one[500:])


def test_the_order_is_frozen() -> None:
    """Changing this hash changes the data of every run ever made: raise SCHEMA_VERSION with it."""
    order = np.concatenate([sequence_indices("0" * 64, 1, step, 16, 100) for step in range(10)])
    assert (
        hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
        == "ba2bc9b5b62e95065c806e01c48cb4575017f27470fdfc93a0cea554ec13ef1f"
    )


def test_a_budget_beyond_the_corpus_says_what_is_there_and_how_to_mend_it() -> None:
    batches = Batches(CountingCorpus(1001), 0, 10, 5)
    batches.check(20)
    with pytest.raises(CorpusError, match=r"wants 1,050 .*gives 1,000.*data.max_epochs = 2$"):
        batches.check(21)
    Batches(CountingCorpus(1001), 0, 10, 5, max_epochs=1.05).check(21)
    Batches(CountingCorpus(None), 0, 10, 5).check(10**9)


@pytest.mark.parametrize("length", [4, 10, 33])
def test_another_length_has_a_draw_of_its_own(length: int) -> None:
    """A curriculum's batch is that of a run of this length: a function of seed, step and length."""
    batches = Batches(CountingCorpus(1001), 3, 10, 6)
    inputs, targets = batches.batch(7, seq_len=length)
    assert inputs.shape == (6, length) and np.array_equal(targets, inputs + 1)
    own = Batches(CountingCorpus(1001), 3, length, 6).batch(7)
    assert np.array_equal(inputs, own[0]) and np.array_equal(targets, own[1])
    assert np.array_equal(batches.batch(7, seq_len=10)[0], batches.batch(7)[0])
    parts = [batches.batch(7, rank, 3, length)[0] for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), inputs)
    with pytest.raises(CorpusError, match=r"less than one sequence of model\.seq_len = 2000"):
        batches.batch(0, seq_len=2000)


def test_an_uneven_division_and_a_tiny_corpus_are_refused() -> None:
    with pytest.raises(CorpusError, match="evenly by 3 processes"):
        Batches(CountingCorpus(1001), 0, 10, 4).batch(0, 0, 3)
    with pytest.raises(CorpusError, match="less than one sequence"):
        Batches(CountingCorpus(10), 0, 10, 4)
