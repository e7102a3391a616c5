"""The character tokenizer: its choice, its ids against its tokenizer.json, its bytes, and in a corpus."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from trainer.corpora import DataConfig, fingerprint, prepare
from trainer.corpora.chars import END, OTHER, OTHER_CHARACTER, CharsEncoder, train_chars, with_other_bytes
from trainer.corpora.corpus import TokenCorpus
from trainer.corpora.spec import CharsTokenizer
from trainer.corpora.tokenizer import EOS, JsonEncoder, encoder_for

TEXTS = ["abracadabra\n", "ein Bär, zwei Bären; ▁## <|endoftext|>\t\x00", "中文中 🙂\ufffd\u2028"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def encoder(vocab_size: int, sample: list[str]) -> CharsEncoder:
    spec = CharsTokenizer(vocab_size=vocab_size)
    found = encoder_for(spec, train_chars(spec, iter(sample)))
    assert isinstance(found, CharsEncoder)
    return found


@given(sample=st.lists(ANY_TEXT, max_size=5), vocab_size=st.integers(3, 40))
@settings(max_examples=60, deadline=None)
def test_the_most_frequent_characters_have_ids_ties_by_code_point(sample: list[str], vocab_size: int) -> None:
    counts = Counter("".join(sample).replace(OTHER_CHARACTER, ""))
    wanted = sorted(counts, key=lambda c: (-counts[c], ord(c)))[: vocab_size - 2]
    vocab = json.loads(train_chars(CharsTokenizer(vocab_size=vocab_size), iter(sample)))["model"]["vocab"]
    assert vocab == {EOS: END, OTHER_CHARACTER: OTHER} | {c: i for i, c in enumerate(wanted, 2)}


@given(texts=st.lists(ANY_TEXT | st.sampled_from(TEXTS), max_size=3), vocab_size=st.integers(3, 60))
@settings(max_examples=60, deadline=None)
def test_ids_are_those_of_the_tokenizer_json_and_lead_back(texts: list[str], vocab_size: int) -> None:
    made = encoder(vocab_size, TEXTS)
    known = set(json.loads(made.json())["model"]["vocab"])
    tokenizer = Tokenizer.from_str(made.json())
    found = made.encode(texts)
    for text, ids, other in zip(texts, found, JsonEncoder.encode(made, texts), strict=True):
        assert np.array_equal(ids, other) and len(ids) == len(text)
        assert not (ids == END).any() and (ids < vocab_size).all()
        shown = "".join(c if c in known else OTHER_CHARACTER for c in text)
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == shown
        if not (ids == OTHER).any():
            assert made.token_bytes()[ids].sum() == len(text.encode())


def test_a_rich_enough_vocabulary_loses_nothing() -> None:
    made = encoder(200, TEXTS)
    for text, ids in zip(TEXTS[:2], made.encode(TEXTS[:2]), strict=True):
        assert Tokenizer.from_str(made.json()).decode(ids.tolist()) == text
        assert not (ids == OTHER).any()
    assert made.vocab_size == 200 and made.eos == END


def test_the_other_characters_count_with_their_mean_bytes() -> None:
    made = encoder(4, ["aaab" * 3])
    text = "aab" + "é中🙂é"  # 2 + 3 + 4 + 2 bytes: 2.75 each.
    table = with_other_bytes(made.token_bytes(), made.encode([text])[0], len(text.encode()))
    assert table.tolist() == [0, 3, 1, 1]
    plain = with_other_bytes(made.token_bytes(), made.encode(["ab"])[0], 2)
    assert plain.tolist() == [0, 0, 1, 1]


def corpus_of(folder: Path, results: Path, tokenizer: str) -> tuple[DataConfig, TokenCorpus]:
    data = DataConfig.model_validate(
        {"corpus": f"text:{folder}", "tokenizer": tokenizer, "heldout_fraction": 0.3}
    )
    corpus = prepare(data, results, progress=False)
    assert isinstance(corpus, TokenCorpus)
    return data, corpus


def test_a_corpus_of_characters(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    documents = [f"document {i}: {'x' * (i % 7)} é {'ÿ' if i == 3 else ''}\n" for i in range(80)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / "a.jsonl").write_text(lines)
    data, corpus = corpus_of(folder, tmp_path / "one", "chars")
    assert data.vocab_size == corpus.vocab_size == 128 and data.label == "text texts, chars-128"
    tokenizer = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    found = []
    for ids in (np.asarray(corpus.train_ids), np.asarray(corpus.heldout_ids)):
        parts = np.split(ids, np.flatnonzero(ids == END) + 1)[:-1]
        found += [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts]
    sample_has_it = "ÿ" in json.loads((corpus.folder / "tokenizer.json").read_text())["model"]["vocab"]
    wanted = documents if sample_has_it else [text.replace("ÿ", OTHER_CHARACTER) for text in documents]
    assert sorted(found) == sorted(wanted)
    assert corpus.token_bytes is not None
    assert corpus.token_bytes[corpus.heldout_ids].sum() == corpus.meta["heldout_bytes"]
    _, again = corpus_of(folder, tmp_path / "two", "chars-128")
    for name in ("train.bin", "heldout.bin", "tokenizer.json", "token_bytes.npy", "meta.json"):
        assert (again.folder / name).read_bytes() == (corpus.folder / name).read_bytes()
    _, small = corpus_of(folder, tmp_path / "one", "chars-8")
    assert small.fingerprint != corpus.fingerprint and small.vocab_size == 8
    assert small.n_train_tokens == corpus.n_train_tokens and int(np.asarray(small.train_ids).max()) == 7
    assert small.token_bytes is not None
    # The others are mostly one byte long, so that whole bytes on average are close, if not exact.
    assert abs(small.token_bytes[small.heldout_ids].sum() / small.meta["heldout_bytes"] - 1) < 0.05
    assert fingerprint(data) == corpus.fingerprint


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("chars-2", "greater than or equal to 3"),
        ("char", "did you mean 'chars'"),
        ("chars-", "did you mean 'chars'"),
        ({"kind": "chrs"}, "chars"),
    ],
)
def test_mistakes_are_refused(tokenizer: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"tokenizer": tokenizer})


def test_known_fingerprints_stay() -> None:
    """Runs are found by these: a new tokenizer or corpus must not change those of the others."""
    specs = (
        {"corpus": "synthetic"},
        {"corpus": {"kind": "synthetic", "vocab_size": 32, "order": 1}},
    )
    assert [fingerprint(DataConfig.model_validate(spec))[:16] for spec in specs] == KNOWN


KNOWN = ["d717c0e59e47a63f", "3ae4d0b7baee957d"]
