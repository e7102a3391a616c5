"""The synthetic source obeys exactly the law whose entropy it claims."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from trainer.corpora import DataConfig, fingerprint, open_corpus
from trainer.corpora.spec import SyntheticSpec
from trainer.corpora.synthetic import (
    HELDOUT,
    TRAIN,
    MarkovSource,
    block_numbers,
    entropy_rate,
    heldout_entropy,
    probabilities,
)

SPEC = SyntheticSpec(vocab_size=20, order=1, zipf_exponent=1.2, block_ratio=4, seed=3)


def test_the_entropy_rate_is_that_of_the_zipf_law() -> None:
    p = np.arange(1, 21) ** -1.2
    p /= p.sum()
    assert entropy_rate(SPEC) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
    uniform = SyntheticSpec(vocab_size=64, order=1, zipf_exponent=0)
    assert entropy_rate(uniform) == pytest.approx(math.log(64), rel=1e-12)


def test_a_context_permutes_within_blocks_only() -> None:
    spec = SyntheticSpec(vocab_size=20, order=2, block_ratio=4)
    table = MarkovSource(spec).table
    assert table.shape == (400, 20)
    blocks = np.array(block_numbers(spec))
    assert blocks.tolist() == [0] * 4 + [1] * 12 + [2] * 4
    assert np.array_equal(np.sort(table, axis=1), np.tile(np.arange(20), (400, 1)))
    assert np.array_equal(blocks[table], np.tile(blocks, (400, 1)))
    assert len(np.unique(table, axis=0)) > 395


@pytest.mark.parametrize("order", [1, 2])
def test_next_tokens_follow_the_permuted_law_in_every_context(order: int) -> None:
    spec = SyntheticSpec(vocab_size=12, order=order, zipf_exponent=1.0, block_ratio=4, seed=1)
    source = MarkovSource(spec)
    sequences = source.sequences(TRAIN, np.arange(400), 250)
    padded = np.concatenate([np.zeros((400, order), dtype=np.int64), sequences], axis=1)
    context = np.zeros_like(sequences)
    for k in range(order):
        context = context * 12 + padded[:, k : k + 250]
    counts = np.zeros((12**order, 12))
    np.add.at(counts, (context.ravel(), sequences.ravel()), 1)
    expected = np.zeros_like(counts)
    np.put_along_axis(expected, source.table.astype(np.int64), np.array(probabilities(spec))[None], axis=1)
    expected *= counts.sum(axis=1, keepdims=True)
    often = expected.sum(axis=1) > 200
    assert often.sum() >= 12
    chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = 11 * often.sum()
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


def test_the_first_tokens_obey_the_law_of_the_context_of_zeros() -> None:
    source = MarkovSource(SPEC)
    first = source.sequences(HELDOUT, np.arange(3000), 1)[:, 0]
    counts = np.bincount(first, minlength=20)[source.table[0]]
    expected = 3000 * np.array(probabilities(SPEC))
    assert ((counts - expected) ** 2 / expected).sum() < 19 + 6 * math.sqrt(38)


def test_a_sequence_is_a_pure_function_of_its_index_and_length_only_cuts() -> None:
    source = MarkovSource(SPEC)
    long = source.sequences(TRAIN, np.array([7, 2**62 + 1]), 50)
    assert np.array_equal(
        MarkovSource(SPEC).sequences(TRAIN, np.array([2**62 + 1, 7]), 30)[::-1], long[:, :30]
    )
    assert not np.array_equal(long[0], long[1])


def test_training_and_held_out_sequences_differ() -> None:
    corpus = open_corpus(DataConfig(corpus=SPEC), None)  # type: ignore[arg-type]
    train, heldout = corpus.train_sequences(np.arange(64), 40), corpus.heldout_sequences(0, 64, 40)
    assert train.shape == heldout.shape == (64, 41)
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in heldout}
    assert corpus.n_train_tokens is None and corpus.n_train_sequences(40) is None
    assert corpus.token_bytes is None and corpus.entropy_rate == entropy_rate(SPEC)


def test_the_source_is_frozen() -> None:
    """Changing these ids gives old results other data: raise the number in content_fingerprint with it."""
    ids = MarkovSource(SyntheticSpec()).sequences(TRAIN, np.array([5]), 8)[0].tolist()
    assert ids == [2, 37, 2, 4, 4, 7, 52, 1]


def test_every_field_is_in_the_fingerprint() -> None:
    marks = {
        fingerprint(DataConfig(corpus={"kind": "synthetic", **change}))
        for change in (
            {},
            {"seed": 1},
            {"order": 1},
            {"vocab_size": 128},
            {"zipf_exponent": 1.0},
            {"block_ratio": 4},
        )
    }
    assert len(marks) == 6
    assert fingerprint(DataConfig(corpus="synthetic", max_epochs=3, heldout_fraction=0.2)) in marks


def test_a_table_too_large_is_refused_with_the_largest_that_fits() -> None:
    with pytest.raises(ValidationError, match="with order = 3 take vocab_size <= 90"):
        SyntheticSpec(vocab_size=512, order=3)
    SyntheticSpec(vocab_size=90, order=3)


def test_the_held_out_text_has_an_entropy_of_its_own() -> None:
    """The loss of the source itself on that text, read off the table, nearing the rate on more of it."""
    source, n, length = MarkovSource(SPEC), 50, 40
    ids = source.sequences(HELDOUT, np.arange(n), length + 1)
    p, loss = np.array(probabilities(SPEC)), 0.0
    for row in ids:
        context = 0
        for t, token in enumerate(row):
            if t > 0:
                rank = int(np.flatnonzero(source.table[context] == token)[0])
                loss -= math.log(p[rank]) / (n * length)
            context = (context * SPEC.vocab_size + int(token)) % SPEC.vocab_size**SPEC.order
    corpus = open_corpus(DataConfig(corpus=SPEC), None)  # type: ignore[arg-type]
    assert corpus.heldout_entropy(n, length) == pytest.approx(loss, rel=1e-12)
    assert abs(loss - entropy_rate(SPEC)) > 1e-3
    assert heldout_entropy(SPEC, 4000, 100) == pytest.approx(entropy_rate(SPEC), abs=0.01)
