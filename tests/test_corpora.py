"""Data configurations, fingerprints, and preparation: split by content, resumable, once for two processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.corpora import Corpus, DataConfig, capacity, fingerprint, open_corpus, parse_data, prepare
from trainer.corpora.corpus import TokenCorpus, corpus_folder
from trainer.corpora.spec import BpeTokenizer
from trainer.corpora.tokenizer import BpeEncoder, BytesEncoder, JsonEncoder, train_bpe
from trainer.errors import CorpusError

REPO = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_documents(folder: Path, n: int = 60) -> Path:
    """Jsonl files of `n` different documents."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        f"document {i}\n" + f"the {i * 7919 % 1000} words of number {i}\n" * (i % 9 + 1) for i in range(n)
    ]
    for part in range(3):
        lines = [json.dumps({"text": text}) for text in texts[part::3]]
        (folder / f"part{part}.jsonl").write_text("\n".join(lines))
    return folder


def text_data(folder: Path, **changes: object) -> DataConfig:
    fields = {"corpus": f"text:{folder}", "tokenizer": "bytes", "heldout_fraction": 0.2}
    return DataConfig.model_validate({**fields, **changes})


def prepared(data: DataConfig, results: Path) -> TokenCorpus:
    corpus = prepare(data, results, progress=False)
    assert isinstance(corpus, TokenCorpus)
    return corpus


def all_ids(corpus: TokenCorpus, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.fromfile(corpus.folder / name, dtype=corpus.meta["dtype"]).astype(np.int64)


def documents(corpus: TokenCorpus, name: str) -> set[bytes]:
    """Documents of a side of a corpus of bytes."""
    ids = all_ids(corpus, name)
    return {bytes(part[part != 256].tolist()) for part in np.split(ids, np.flatnonzero(ids == 256) + 1)} - {
        b""
    }


def one_line(action: Callable[[], object]) -> str:
    """The CorpusError of `action`, which must be one line."""
    with pytest.raises(CorpusError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shorthands_and_defaults() -> None:
    assert DataConfig() == DataConfig(corpus="pysource", tokenizer="bpe-512")
    assert DataConfig().vocab_size == 512 and DataConfig().label == "pysource, bpe-512"
    assert DataConfig(corpus="pysource", tokenizer="bytes").vocab_size == 257
    assert DataConfig(corpus="synthetic").tokenizer is None
    assert DataConfig(corpus="synthetic").vocab_size == 256
    assert hash(DataConfig()) == hash(DataConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "pysorce"}, "did you mean 'pysource'"),
        ({"corpus": {"kind": "synthetc"}}, "did you mean 'synthetic'"),
        ({"corpus": "tokens"}, "needs paths and vocab_size"),
        ({"corpus": "text"}, "text:PATH"),
        ({"tokenizer": "byte"}, "did you mean 'bytes'"),
        ({"tokenizer": "bpe-100"}, "greater than or equal to 257"),
        ({"tokenizer": None}, "give a tokenizer"),
        ({"corpus": "synthetic", "tokenizer": "bytes"}, "leave tokenizer out"),
        ({"heldout_fraction": 0}, "greater than 0"),
        ({"corpus": {"kind": "pysource", "packges": ["x"]}}, "not permitted"),
        ({"corpus": {"kind": "tokens", "paths": "a.bin", "vocab_size": 5, "eos": 5}}, "not below vocab_size"),
    ],
)
def test_mistakes_are_refused_while_validating(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tokenizer": "bytes"},
        {"corpus": "text:/some where/it's"},
        {"corpus": {"kind": "tokens", "paths": ["a.bin"], "vocab_size": 100}, "heldout_fraction": 0.1},
        {
            "corpus": {"kind": "hf", "name": "a/b", "split": "x"},
            "tokenizer": {"kind": "bpe", "sample_bytes": 5},
        },
    ],
)
def test_the_command_of_a_corpus_reads_back_as_the_corpus(fields: dict[str, object]) -> None:
    data = DataConfig.model_validate(fields)
    words = shlex.split(data.command(Path("else where")))
    assert words[:4] == ["python", "-m", "trainer", "data"] and words[5:] == ["--results", "else where"]
    assert parse_data(words[4]) == data
    assert "not JSON" in one_line(lambda: parse_data("{corpus"))


def test_fingerprints_load_no_heavy_library() -> None:
    code = (
        "import sys; from trainer.corpora import DataConfig, fingerprint;"
        "fingerprint(DataConfig(corpus='synthetic'));"
        "fingerprint(DataConfig(corpus={'kind': 'pysource', 'packages': ['idna']}));"
        "heavy = 'numpy', 'torch', 'pandas', 'datasets', 'tokenizers', 'rich';"
        "print([m for m in heavy if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert run.stdout.strip() == "[]"


def test_a_fingerprint_follows_the_content_and_not_place_or_time(tmp_path: Path) -> None:
    first = write_documents(tmp_path / "a")
    mark = fingerprint(text_data(first))
    moved = tmp_path / "elsewhere" / "b"
    moved.parent.mkdir()
    first.rename(moved)
    os.utime(moved / "part0.jsonl", (1, 1))
    assert fingerprint(text_data(moved)) == mark
    assert fingerprint(text_data(moved, max_epochs=5)) == mark
    assert text_data(moved).identity() == text_data(first).identity()
    assert fingerprint(text_data(moved, heldout_fraction=0.3)) != mark
    assert fingerprint(text_data(moved, tokenizer="bpe-300")) != mark
    times = (moved / "part0.jsonl").stat()
    content = (moved / "part0.jsonl").read_text()
    (moved / "part0.jsonl").write_text(content.replace("document 0", "document X"))
    os.utime(moved / "part0.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(text_data(moved)) != mark


def test_the_side_of_a_document_follows_from_its_content_alone(tmp_path: Path) -> None:
    few = prepared(text_data(write_documents(tmp_path / "few", 60)), tmp_path)
    many = prepared(text_data(write_documents(tmp_path / "many", 120)), tmp_path)
    assert documents(few, "heldout.bin") and documents(few, "train.bin")
    assert documents(few, "heldout.bin") < documents(many, "heldout.bin")
    assert documents(few, "train.bin") < documents(many, "train.bin")
    assert not documents(many, "train.bin") & documents(many, "heldout.bin")
    assert len(documents(many, "train.bin") | documents(many, "heldout.bin")) == 120


def test_windows_cover_the_training_part_once(tmp_path: Path) -> None:
    corpus = prepared(text_data(write_documents(tmp_path / "a")), tmp_path)
    ids = all_ids(corpus, "train.bin")
    n = corpus.n_train_sequences(16)
    assert n == (len(ids) - 1) // 16 and corpus.n_train_tokens == len(ids) == capacity(
        text_data(tmp_path / "a"), tmp_path
    )
    windows = corpus.train_sequences(np.arange(n), 16)
    assert np.array_equal(windows[:, 1:].ravel(), ids[1 : n * 16 + 1])
    assert np.array_equal(windows[:, 0], ids[: n * 16 : 16])


def test_held_out_windows_are_fixed_nested_and_counted(tmp_path: Path) -> None:
    corpus = prepared(text_data(write_documents(tmp_path / "a")), tmp_path)
    there = (corpus.n_heldout_tokens - 1) // 16
    every = corpus.heldout_sequences(0, there, 16)
    assert np.array_equal(corpus.heldout_sequences(2, 5, 16), every[2:5])
    assert len({row.tobytes() for row in every}) > there * 0.9
    assert f"lower eval.tokens to {there * 16}" in one_line(lambda: corpus.check_heldout(there + 1, 16))


def test_bpe_round_trip_and_bytes_per_token(tmp_path: Path) -> None:
    data = text_data(write_documents(tmp_path / "a"), tokenizer="bpe-300")
    corpus = prepared(data, tmp_path / "one")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    ids = all_ids(corpus, "train.bin")
    texts = [tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == 0) + 1)[:-1]]
    plain = documents(prepared(text_data(tmp_path / "a"), tmp_path), "train.bin")
    assert {text.encode() for text in texts} == plain
    assert corpus.token_bytes is not None and corpus.token_bytes.shape == (300,)
    assert corpus.token_bytes[ids].sum() == corpus.meta["train_bytes"] == sum(map(len, plain))
    assert ids.max() < 300 and (ids == 0).sum() == len(texts)
    again = prepared(data, tmp_path / "two")
    for name in ("train.bin", "heldout.bin", "tokenizer.json", "token_bytes.npy", "meta.json"):
        assert (again.folder / name).read_bytes() == (corpus.folder / name).read_bytes()
    corpus.verify()


SAMPLE = [
    "def f(x):\n    return x  # it's 12 <|endoftext|>\n\n",
    "naïve ½ ٣ 中文\n\n  x\t\r\n" * 3,
    "  a  b\x1c\x85",
]


@given(
    st.lists(
        st.text(st.sampled_from("ab' st1½é中\n\t \r\x0b\x1c\x85\u2028\u00a0<|_٣x"), max_size=40), max_size=4
    )
)
@settings(max_examples=200, deadline=None)
def test_the_fast_bpe_gives_the_ids_of_its_tokenizer_json(texts: list[str]) -> None:
    text = train_bpe(BpeTokenizer(vocab_size=290), iter(SAMPLE * 3))
    fast, slow = BpeEncoder(text, 290, "<|endoftext|>", "x"), JsonEncoder(text, 290, "<|endoftext|>", "x")
    lengths = slow.token_bytes()
    for one, two, source in zip(fast.encode(texts), slow.encode(texts), texts, strict=True):
        assert one.tolist() == two.tolist()
        assert lengths[two.astype(np.int64)].sum() == len(source.encode())


def test_the_bytes_tokenizer_json_says_what_the_encoder_does() -> None:
    text = "naïve\n\t<|endoftext|> \x00é中"
    encoder = BytesEncoder()
    assert JsonEncoder(encoder.json(), 257, "<|endoftext|>", "x").encode([text])[0].tolist() == list(
        text.encode()
    )
    assert encoder.encode([text])[0].tolist() == list(text.encode())


def test_a_tokenizer_file_is_identified_by_content_and_must_have_an_end_token(tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "a")
    made = prepared(text_data(folder, tokenizer="bpe-300"), tmp_path).folder / "tokenizer.json"
    mark = fingerprint(text_data(folder, tokenizer=str(made)))
    copy = tmp_path / "copy.json"
    copy.write_bytes(made.read_bytes())
    data = text_data(folder, tokenizer=str(copy))
    assert fingerprint(data) == mark and data.vocab_size == 300
    same = prepared(text_data(folder, tokenizer="bpe-300"), tmp_path)
    assert all_ids(prepared(data, tmp_path), "train.bin").tolist() == all_ids(same, "train.bin").tolist()
    content = json.loads(copy.read_text())
    content["added_tokens"] = []
    copy.write_text(json.dumps(content))
    assert "set data.tokenizer.eos" in one_line(lambda: prepare(data, tmp_path, False))
    copy.write_text("{}")
    assert "not a tokenizer.json" in one_line(lambda: data.vocab_size)
    copy.unlink()
    assert "no such file" in one_line(lambda: fingerprint(data))


PREPARE = """
import os, signal, sys, time
from pathlib import Path
import trainer.corpora.preparation as p
from trainer.corpora import parse_data
p._BATCH_BYTES, p._COMMIT_BYTES = 500, 1500
die_at, pause = int(sys.argv[3]), float(sys.argv[4])
write, calls, runs = p._Preparation._write, [], []
def dying(self, batch, encoder, position, files):
    write(self, batch, encoder, position, files)
    time.sleep(pause)
    calls.append(1)
    if len(calls) == die_at:
        for file in files: file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
p._Preparation._write = dying
p.prepare(parse_data(sys.argv[1]), Path(sys.argv[2]), progress=False)
print(len(calls))
"""


def start(data: DataConfig, results: Path, die_at: int, pause: float = 0.0) -> "subprocess.Popen[str]":
    words = [data.model_dump_json(), str(results), str(die_at), str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, *words],
        cwd=REPO,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_preparation_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = text_data(write_documents(tmp_path / "a", 150), tokenizer="bpe-300")
    whole = prepared(data, tmp_path / "whole")
    for die_at in (5, 8):
        process = start(data, tmp_path / "killed", die_at)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    progress = json.loads(
        (corpus_folder(tmp_path / "killed", whole.fingerprint) / "progress.json").read_text()
    )
    assert 0 < progress["n_documents"] < 150
    process = start(data, tmp_path / "killed", 0)
    rest = int(process.communicate(timeout=60)[0])
    killed = open_corpus(data, tmp_path / "killed")
    assert isinstance(killed, TokenCorpus) and 0 < rest < whole.meta["train_bytes"] / 500
    for name in ("train.bin", "heldout.bin", "tokenizer.json", "token_bytes.npy", "meta.json"):
        assert (killed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_two_processes_at_once_prepare_once(tmp_path: Path) -> None:
    data = text_data(write_documents(tmp_path / "a"))
    processes = [start(data, tmp_path / "r", 0, pause=0.15) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert sorted(int(out) > 0 for out, _ in answers) == [False, True]
    assert "another process is preparing it" in answers[0][1] + answers[1][1]


def test_damage_is_told_with_the_command_that_mends_it(tmp_path: Path) -> None:
    data = text_data(write_documents(tmp_path / "a"))
    assert "not prepared; run: python -m trainer data" in one_line(lambda: open_corpus(data, tmp_path))
    assert "not prepared" in one_line(lambda: capacity(data, tmp_path))
    corpus = prepared(data, tmp_path)
    good = (corpus.folder / "train.bin").read_bytes()

    def damaged(name: str, content: bytes) -> str:
        (corpus.folder / name).write_bytes(content)
        line = one_line(lambda: open_corpus(data, tmp_path))
        prepared(data, tmp_path)
        assert (corpus.folder / "train.bin").read_bytes() == good
        return line

    assert "meta.json: corrupted; run: python -m trainer data" in damaged("meta.json", b'{"train_tokens": ')
    assert "meta.json: corrupted" in damaged("meta.json", b"[]")
    assert "train.bin: has 10 bytes instead of" in damaged("train.bin", b"0123456789")
    (corpus.folder / "train.bin").write_bytes(bytes(len(good)))
    reopened = open_corpus(data, tmp_path)
    assert isinstance(reopened, TokenCorpus)
    assert "checksum does not match" in one_line(reopened.verify)
    (corpus.folder / "token_bytes.npy").write_bytes(b"junk")
    assert "token_bytes.npy: cannot be read" in one_line(lambda: reopened.token_bytes)


def test_an_empty_side_says_which_way_to_turn_the_fraction(tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "a", 6)
    low = text_data(folder, heldout_fraction=1e-9)
    assert "raise data.heldout_fraction" in one_line(lambda: prepare(low, tmp_path, False))
    high = text_data(folder, heldout_fraction=1 - 1e-9, tokenizer="bpe-300")
    assert "lower data.heldout_fraction" in one_line(lambda: prepare(high, tmp_path, False))
    for name in folder.iterdir():
        name.write_text("")
    assert "the corpus is empty" in one_line(lambda: prepare(low, tmp_path, False))
    assert not list((tmp_path / "corpora").glob("*/meta.json"))


def test_a_full_disk_is_told_and_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from trainer.corpora import preparation

    data = text_data(write_documents(tmp_path / "a"))
    whole = prepared(data, tmp_path / "whole")
    monkeypatch.setattr(preparation, "_BATCH_BYTES", 500)
    monkeypatch.setattr(preparation, "_COMMIT_BYTES", 500)
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(1)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert "free some space and run again" in one_line(lambda: prepare(data, tmp_path / "full", False))
    monkeypatch.setattr(os, "fsync", real)
    folder = corpus_folder(tmp_path / "full", whole.fingerprint)
    assert json.loads((folder / "progress.json").read_text())["n_documents"] > 0
    assert prepared(data, tmp_path / "full").meta == whole.meta


def test_files_that_change_while_being_read_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.corpora import preparation

    folder = write_documents(tmp_path / "a")
    data = text_data(folder)
    stream = preparation._Preparation._stream

    def changing(self: object, encoder: object) -> None:
        stream(self, encoder)  # type: ignore[arg-type]
        (folder / "part0.jsonl").write_text('{"text": "other"}')

    monkeypatch.setattr(preparation._Preparation, "_stream", changing)
    assert "changed while they were being read" in one_line(lambda: prepare(data, tmp_path, False))


def test_a_corpus_shows_the_interface(tmp_path: Path) -> None:
    corpus: Corpus = prepared(text_data(write_documents(tmp_path / "a")), tmp_path)
    assert corpus.entropy_rate is None and corpus.vocab_size == 257
    assert corpus.label == "text a, bytes" and len(corpus.fingerprint) == 64
