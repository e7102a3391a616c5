"""The copy tasks and drawn images: what is asked for is what was shown, whatever batch it is drawn in."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.batches import Batches, check_corpus
from trainer.corpora import Corpus, DataConfig, capacity, fingerprint, open_corpus, parse_data, prepare
from trainer.corpora.corpus import IGNORE
from trainer.corpora.shapes import TRAIN, draw
from trainer.corpora.taskspec import SHAPES, ImagesSpec
from trainer.errors import ConfigError, CorpusError
from trainer.presets import resolve

NOWHERE = Path("/nowhere")
RECALL = ("copy", "selective-copy")


def task(kind: str, **fields: Any) -> Corpus:
    return open_corpus(DataConfig(corpus={"kind": kind, **fields}), NOWHERE)


@given(
    kind=st.sampled_from(RECALL),
    n_tokens=st.integers(1, 9),
    alphabet=st.integers(2, 30),
    noise=st.integers(0, 60),
    first=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_the_scored_targets_are_the_content_in_order(
    kind: str, n_tokens: int, alphabet: int, noise: int, first: int
) -> None:
    corpus = task(kind, n_tokens=n_tokens, alphabet=alphabet)
    length = 2 * n_tokens + noise
    inputs, targets = corpus.train_examples(np.arange(first, first + 5), length)
    assert inputs.shape == targets.shape == (5, length) and inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        shown = [token for token in row if token < alphabet]
        assert len(shown) == n_tokens == corpus.scored
        assert wanted == [IGNORE] * (length - n_tokens) + shown
        assert row[-n_tokens:] == [alphabet + 1] * n_tokens
        assert row.count(alphabet) == noise and corpus.vocab_size == alphabet + 2
        if kind == "copy":
            assert row[:n_tokens] == shown


@pytest.mark.parametrize("kind", RECALL)
def test_content_is_drawn_evenly_and_anew_for_each_index_length_split_and_seed(kind: str) -> None:
    corpus = task(kind)
    _, targets = corpus.train_examples(np.arange(2000), 40)
    counts = np.bincount(targets[targets >= 0], minlength=16)
    assert len(counts) == 16 and np.abs(counts / 2000 - 1).max() < 0.15
    answers = {row.tobytes() for row in targets}
    assert len(answers) == 2000
    for other in (
        corpus.heldout_examples(0, 2000, 40)[1],
        corpus.train_examples(np.arange(2000, 4000), 40)[1],
        corpus.train_examples(np.arange(2000), 41)[1][:, 1:],
        task(kind, seed=1).train_examples(np.arange(2000), 40)[1],
    ):
        assert not answers & {row.tobytes() for row in other}


def test_selective_copy_scatters_over_all_places_alike() -> None:
    inputs, _ = task("selective-copy", n_tokens=4).train_examples(np.arange(4000), 24)
    shares = (inputs[:, :20] < 16).mean(axis=0)
    assert np.abs(shares - 4 / 20).max() < 5 * np.sqrt(0.2 * 0.8 / 4000)
    pairs = {tuple(np.flatnonzero(row < 16)) for row in inputs[:, :20]}
    assert len(pairs) > 2200  # Of 4845 choices of 4 places of 20, 4000 draws hit some 2720.


@pytest.mark.parametrize("kind", [*RECALL, "images"])
def test_a_sequence_does_not_depend_on_what_it_is_drawn_with(kind: str) -> None:
    corpus, length = task(kind), 1024
    inputs, targets = corpus.train_examples(np.arange(50, 60), length)
    for number in (50, 55, 59):
        alone = corpus.train_examples(np.array([number]), length)
        assert np.array_equal(alone[0][0], inputs[number - 50])
        assert np.array_equal(alone[1][0], targets[number - 50])
    backwards = corpus.train_examples(np.arange(59, 49, -1), length)
    assert np.array_equal(backwards[0][::-1], inputs)
    part = corpus.heldout_examples(3, 5, length)
    whole = corpus.heldout_examples(0, 8, length)
    assert all(np.array_equal(a, b[3:5]) for a, b in zip(part, whole, strict=True))
    assert not np.array_equal(whole[0], corpus.train_examples(np.arange(8), length)[0])
    windows = corpus.heldout_sequences(0, 8, length)
    assert np.array_equal(windows[:, :-1], whole[0]) and np.array_equal(windows[:, -1], whole[1][:, -1])


def test_the_tasks_are_frozen() -> None:
    """Changing one of these changes the data of every run on it: raise the number in its fingerprint."""
    digests = []
    for kind in (*RECALL, "images"):
        ids = task(kind).train_examples(np.array([0, 7, 2**61]), 1024)
        digests.append(hashlib.sha256(b"".join(a.astype("<i8").tobytes() for a in ids)).hexdigest()[:16])
    assert digests == FROZEN


FROZEN = ["2462e2fa24f3c584", "dcc3ec33de79e64b", "15d5ad43097bd53a"]


@pytest.mark.parametrize("kind", RECALL)
@pytest.mark.parametrize("length", [0, 1, 16, 31, 2**24, -5])
def test_lengths_without_room_are_refused_in_one_line(kind: str, length: int) -> None:
    corpus = task(kind)
    with pytest.raises(CorpusError, match=r"no room for 16 tokens.*take 32 plus the noise") as caught:
        corpus.check_length(length)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError, match="no room"):
        corpus.train_examples(np.arange(1), length)
    corpus.check_length(32)


def test_a_run_is_checked_before_its_first_step() -> None:
    def config(length: int, corpus: Any) -> Any:
        return resolve(
            {
                "model": {"d_model": 4, "n_layers": 1, "n_heads": 1, "seq_len": length},
                "data": {"corpus": corpus},
                "optim": {"peak_lr": 1, "batch_tokens": 2 * length},
                "tokens": 10 * length,
            },
            "t",
        )

    for length, kind, remedy in ((30, "copy", "take 32 plus"), (256, "images", "take 1024")):
        with pytest.raises(ConfigError, match=f"model.seq_len: {length} on the corpus {kind}: .*{remedy}"):
            config(length, kind)
    run = config(48, "selective-copy")
    assert run.model.vocab_size == 18
    batches = check_corpus(run, prepare(run.data, NOWHERE))
    inputs, targets = batches.batch(1)
    assert inputs.shape == (2, 48) and (targets >= 0).sum() == 32


def test_a_curriculum_draws_as_many_sequences_of_another_length() -> None:
    batches = Batches(task("copy"), 3, 64, 6)
    short = batches.batch(5, seq_len=40)
    assert short[0].shape == (6, 40)
    assert np.array_equal(short[1], Batches(batches.corpus, 3, 40, 6).batch(5)[1])
    halves = [batches.batch(5, rank, 2, seq_len=40)[0] for rank in range(2)]
    assert np.array_equal(np.concatenate(halves), short[0])
    assert np.array_equal(batches.batch(5, seq_len=64)[0], batches.batch(5)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "selectiv-copy"}, "did you mean 'selective-copy'"),
        ({"corpus": {"kind": "cpoy"}}, "did you mean 'copy'"),
        ({"corpus": "image"}, "did you mean 'images'"),
        ({"corpus": "images:/here"}, "write the corpus as a table"),
        ({"corpus": "copy", "tokenizer": "bytes"}, "leave tokenizer out"),
        ({"corpus": {"kind": "copy", "n_tokens": 0}}, "greater than or equal to 1"),
        ({"corpus": {"kind": "copy", "alphabet": 1}}, "greater than or equal to 2"),
        ({"corpus": {"kind": "images", "source": "/here"}}, "need classes"),
        ({"corpus": {"kind": "images", "classes": 9}}, "only 8 shapes"),
        ({"corpus": {"kind": "images", "side": 12}}, "take 16 or more"),
        ({"corpus": {"kind": "images", "heldout": "/here"}}, "leave it out"),
        ({"corpus": {"kind": "images", "source": "a", "classes": 2, "seed": 1}}, "leave it out"),
    ],
)
def test_mistakes_are_refused_while_validating(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(fields)


@pytest.mark.parametrize("kind", [*RECALL, "images"])
def test_tasks_are_named_prepared_and_told_apart(kind: str) -> None:
    data = DataConfig(corpus=kind)
    assert data.tokenizer is None and kind in data.label and capacity(data, NOWHERE) is None
    assert parse_data(shlex.split(data.command())[4]) == data
    assert data.identity()["corpus"]["kind"] == kind
    corpus = prepare(data, NOWHERE)
    corpus.verify()
    assert corpus.vocab_size == data.vocab_size and corpus.token_bytes is None
    assert corpus.n_train_sequences(1024) is None and corpus.fingerprint == fingerprint(data)
    marks = {
        fingerprint(DataConfig(corpus={"kind": kind, **change}))
        for change in ({}, {"seed": 1}, {"levels": 8} if kind == "images" else {"alphabet": 8})
    }
    assert len(marks) == 3 and fingerprint(DataConfig(corpus=kind, heldout_fraction=0.5)) in marks
    assert len({fingerprint(DataConfig(corpus=other)) for other in (*RECALL, "images", "synthetic")}) == 4


def test_drawn_images_show_their_class() -> None:
    spec = ImagesSpec(side=32)
    greys, classes = draw(spec, TRAIN, np.arange(800))
    assert np.abs(np.bincount(classes, minlength=8) / 100 - 1).max() < 0.4
    # The outline, cut out by the mean grey and scaled to its box, is that of its class: nearest mean wins.
    masks = []
    for grey in greys.astype(float):
        ground = np.median(grey)
        found = np.abs(grey - ground) > 32
        rows, columns = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
        assert len(rows) and len(columns)
        ys = np.linspace(rows[0], rows[-1], 16).round().astype(int)
        xs = np.linspace(columns[0], columns[-1], 16).round().astype(int)
        shape = found[np.ix_(ys, xs)].astype(float).ravel()
        masks.append(np.append(shape, 16 * len(columns) / len(rows)))
    known = np.array(
        [np.mean([m for m, c in zip(masks, classes, strict=True) if c == k], 0) for k in range(8)]
    )
    nearest = ((np.array(masks)[:, None] - known) ** 2).sum(-1).argmin(1)
    assert (nearest == classes).mean() > 0.9
    assert len({g.tobytes() for g in greys}) == 800 and len(SHAPES) == 8


def test_images_are_greys_and_then_the_question() -> None:
    corpus = task("images", side=16, levels=4, classes=3)
    inputs, targets = corpus.heldout_examples(0, 60, 256)
    assert corpus.vocab_size == 7 and set(np.unique(inputs)) == {0, 1, 2, 3}
    assert (targets[:, :-1] == IGNORE).all() and set(targets[:, -1]) == {4, 5, 6}
    fine = task("images", side=16, classes=3).heldout_examples(0, 60, 256)
    assert np.array_equal(fine[0] // 64, inputs) and np.array_equal(fine[1][:, -1] - 252, targets[:, -1])
