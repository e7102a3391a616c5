"""Sources of text and token ids: every format reads back, every hostile file is answered in one line."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from trainer.corpora import DataConfig, fingerprint, prepare
from trainer.corpora.corpus import TokenCorpus
from trainer.corpora.fingerprints import shards_of
from trainer.corpora.spec import PySourceSpec
from trainer.corpora.text import PIECE_BYTES
from trainer.errors import CorpusError

TEXTS = ["a first text\nwith two lines\n", "ein zweiter Text: äöü 中文\n", "a third"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def data_of(corpus: dict[str, Any] | str, heldout: float = 0.2) -> DataConfig:
    fields: dict[str, Any] = {"corpus": corpus, "heldout_fraction": heldout}
    if isinstance(corpus, str) or corpus["kind"] != "tokens":
        fields["tokenizer"] = "bytes"
    return DataConfig.model_validate(fields)


def read(corpus: dict[str, Any] | str) -> list[Any]:
    return [document for shard in shards_of(data_of(corpus)) for document in shard.read(0)]


def prepared(data: DataConfig, results: Path) -> TokenCorpus:
    corpus = prepare(data, results, progress=False)
    assert isinstance(corpus, TokenCorpus)
    corpus.verify()
    return corpus


def one_line(action: Callable[[], object]) -> str:
    with pytest.raises(CorpusError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet(folder: Path, texts: list[Any], column: str = "text") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({column: texts, "other": [1] * len(texts)}), folder / "made")
    content = (folder / "made").read_bytes()
    (folder / "made").unlink()
    return content


def jsonl(texts: list[Any], field: str = "text") -> bytes:
    return b"\n".join(json.dumps({field: text, "other": 1}).encode() for text in texts) + b"\n\n"


@pytest.mark.parametrize("packing", PACKERS)
def test_every_format_reads_back(tmp_path: Path, packing: str) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    pack = PACKERS[packing]
    (folder / f"1.txt{packing}").write_bytes(pack(TEXTS[0].encode()))
    (folder / "deep" / f"2.md{packing}").write_bytes(pack(TEXTS[1].encode()))
    (folder / f"3.jsonl{packing}").write_bytes(pack(jsonl([*TEXTS, None])))
    (folder / f"4.parquet{packing}").write_bytes(pack(parquet(tmp_path, [*TEXTS, None])))
    (folder / "ignored.csv").write_text("x")
    assert sorted(read(f"text:{folder}")) == sorted([*TEXTS, *TEXTS, *TEXTS[:2]])
    assert read(f"text:{folder / f'1.txt{packing}'}") == TEXTS[:1]
    for shard in shards_of(data_of(f"text:{folder}")):
        assert list(shard.read(1)) == list(shard.read(0))[1:]


def test_several_zstd_frames_and_a_named_field(tmp_path: Path) -> None:
    frames = [zstandard.ZstdCompressor().compress(jsonl([text], "body")) for text in TEXTS]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert read({"kind": "text", "paths": str(tmp_path / "a.jsonl.zst"), "text_field": "body"}) == TEXTS


def test_a_long_file_is_cut_at_line_ends_and_between_characters(tmp_path: Path) -> None:
    lines = "".join(f"line {i} äöü\n" for i in range(6000))
    (tmp_path / "a.txt").write_text(lines)
    pieces = read(f"text:{tmp_path}")
    assert "".join(pieces) == lines and len(pieces) > 4
    assert all(piece.endswith("\n") and len(piece.encode()) < 2 * PIECE_BYTES for piece in pieces)
    (tmp_path / "a.txt").write_text("a" + "中" * 30_000)
    pieces = read(f"text:{tmp_path}")
    assert "".join(pieces) == "a" + "中" * 30_000 and len(pieces) > 4


def test_undecodable_bytes_and_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xffcd")
    assert read(f"text:{tmp_path}") == ["ab\ufffdcd"]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"text": "x\\ud800y{i}"}}' for i in range(50)))
    corpus = prepared(data_of(f"text:{tmp_path}"), tmp_path)
    assert corpus.meta["train_bytes"] + corpus.meta["heldout_bytes"] == sum(len(f"x?y{i}") for i in range(50))


def test_hostile_text_files_are_answered_in_one_line(tmp_path: Path) -> None:
    def told(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return one_line(lambda: read(f"text:{path}"))

    assert "a.jsonl:2: not JSON" in told("a.jsonl", b'{"text": "x"}\n{"text": \n')
    assert "no field 'text' (it has body, other)" in told("a.jsonl", jsonl(["x"], "body"))
    assert "it is no object" in told("a.jsonl", b"[1]\n")
    assert "is no text but int" in told("a.jsonl", jsonl([3]))
    assert "no column 'text' (it has body, other)" in told("a.parquet", parquet(tmp_path, ["x"], "body"))
    assert "is no text but int" in told("a.parquet", parquet(tmp_path, [3]))
    assert "damaged parquet" in told("a.parquet", b"PAR1 nothing PAR1")
    assert "cannot be read" in told("a.txt.gz", b"no gzip at all")
    assert "ends too early" in told("a.txt.gz", gzip.compress(b"abc" * 1000)[:-9])
    assert "damaged archive" in told("a.txt.zst", b"no zstd at all")
    whole = zstandard.ZstdCompressor().compress(np.random.default_rng(0).bytes(9999))
    assert "ends too early" in told("a.txt.zst", whole[:-2000])
    assert "unknown kind of file; valid: .txt" in told("a.csv", b"x")
    assert "no such file" in one_line(lambda: fingerprint(data_of(f"text:{tmp_path / 'nothing'}")))
    (tmp_path / "empty").mkdir()
    assert "holds no .txt" in one_line(lambda: fingerprint(data_of(f"text:{tmp_path / 'empty'}")))


def tokens(paths: Any, **changes: Any) -> dict[str, Any]:
    return {"kind": "tokens", "paths": paths, "vocab_size": 50_000, **changes}


IDS = np.random.default_rng(0).integers(0, 50_000, 100_000)


def llmc(path: Path, ids: Any, magic: int = 20240520, count: int | None = None) -> str:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, 1, len(ids) if count is None else count
    dtype = "<u2" if magic == 20240520 else "<u4"
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    return str(path)


def megatron(path: Path, ids: Any, code: int = 8, missing: int = 0) -> str:
    path.write_bytes(ids.astype({8: "<u2", 4: "<i4"}[code]).tobytes())
    lengths = np.array([1000] * (len(ids) // 1000 - missing), dtype="<i4")
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    pointers = np.arange(len(lengths), dtype="<i8").tobytes()
    path.with_suffix(".idx").write_bytes(index + lengths.tobytes() + pointers)
    return str(path)


def raw(path: Path, ids: Any, dtype: str = "<u2") -> str:
    path.write_bytes(ids.astype(dtype).tobytes())
    return str(path)


def test_every_token_format_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    cases: list[tuple[str, dict[str, Any]]] = [
        (raw(path, IDS), {}),
        (raw(tmp_path / "b.bin", IDS, "<u4"), {"dtype": "uint32"}),
        (raw(tmp_path / "c.bin", IDS, "<u4"), {"vocab_size": 70_000}),
        (llmc(tmp_path / "d.bin", IDS), {}),
        (llmc(tmp_path / "e.bin", IDS, 20240801), {}),
        (megatron(tmp_path / "f.bin", IDS), {}),
        (megatron(tmp_path / "g.bin", IDS, 4), {}),
    ]
    for name, changes in cases:
        assert np.array_equal(np.concatenate(read(tokens(name, **changes))), IDS), name
    blocks = read(tokens(str(path)))
    for shard in shards_of(data_of(tokens(str(path)))):
        assert np.array_equal(next(iter(shard.read(3))), blocks[3])


def test_blocks_are_held_out_by_hash_or_a_file_is(tmp_path: Path) -> None:
    path = raw(tmp_path / "train.bin", IDS)
    by_hash = prepared(data_of(tokens(path), 0.3), tmp_path)
    assert by_hash.n_train_tokens + by_hash.n_heldout_tokens == len(IDS)
    assert by_hash.n_heldout_tokens and by_hash.token_bytes is None and by_hash.vocab_size == 50_000
    val = raw(tmp_path / "val.bin", IDS[::-1][:5000])
    given = prepared(data_of(tokens(path, validation=val)), tmp_path)
    assert np.array_equal(np.fromfile(given.folder / "train.bin", "<u2"), IDS)
    assert np.array_equal(np.fromfile(given.folder / "heldout.bin", "<u2"), IDS[::-1][:5000])
    assert fingerprint(data_of(tokens(path, validation=val), 0.1)) == given.fingerprint
    moved = tmp_path / "moved.bin"
    Path(path).rename(moved)
    assert fingerprint(data_of(tokens(str(moved), validation=val))) == given.fingerprint


def test_hostile_token_files_are_answered_in_one_line(tmp_path: Path) -> None:
    def told(name: str, **changes: Any) -> str:
        return one_line(lambda: fingerprint(data_of(tokens(name, **changes))))

    path = tmp_path / "a.bin"
    assert "no such file" in told(str(path))
    assert "is a folder" in told(str(tmp_path))
    assert "is not below vocab_size = 100" in told(raw(path, IDS), vocab_size=100)
    assert "as if they were uint32" in told(raw(path, IDS, "<u4"))
    path.write_bytes(b"abc")
    assert "no whole number of uint16" in told(str(path))
    assert "promises 99 ids but 100,000 are there" in told(llmc(path, IDS, count=99))
    assert "no llm.c header" in told(raw(path, IDS), format="llmc")
    assert "promises 99,000 ids but m.bin holds 100,000" in told(megatron(tmp_path / "m.bin", IDS, missing=1))
    (tmp_path / "m.idx").write_bytes(b"nothing")
    assert "not a Megatron index" in told(str(tmp_path / "m.bin"))
    hidden = IDS.copy()
    hidden[40_001] = 60_000
    data = data_of(tokens(raw(path, hidden)))
    assert "id 60000 at position 40001" in one_line(lambda: prepare(data, tmp_path, False))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_folder_streams_offline(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = [f"text number {i} " * (i % 5 + 1) for i in range(60)]
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / f"train.{kind}").write_bytes(jsonl(texts) if kind == "jsonl" else parquet(tmp_path, texts))
    corpus = {"kind": "hf", "name": str(folder)}
    assert read(corpus) == texts
    (shard,) = shards_of(data_of(corpus))
    assert list(shard.read(20)) == texts[20:]
    assert read({**corpus, "max_documents": 7}) == texts[:7]
    limited = {**corpus, "max_bytes": 100}
    assert sum(map(len, read(limited))) >= 100 > sum(map(len, read(limited)[:-1]))
    (shard,) = shards_of(data_of(limited))
    assert list(shard.read(2)) == read(limited)[2:]
    data = data_of(corpus)
    made = prepared(data, tmp_path)
    assert made.meta["n_documents"] == 60
    folder.rename(tmp_path / "moved")
    moved = data_of({"kind": "hf", "name": str(tmp_path / "moved")})
    assert (
        fingerprint(moved) == made.fingerprint
        and moved.identity() == data_of(moved.corpus.model_dump()).identity()
    )
    assert "no such folder" in one_line(lambda: fingerprint(data))
    assert "no text in column 'nope'" in one_line(
        lambda: read({**moved.corpus.model_dump(), "text_field": "nope"})
    )
    assert "check name, config, split" in one_line(
        lambda: read({**moved.corpus.model_dump(), "split": "nope"})
    )


def test_a_dataset_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub\n(long story)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    line = one_line(lambda: read("hf:a/b"))
    assert "Couldn't reach" in line and "check the network" in line
    assert fingerprint(data_of("hf:a/b")) != fingerprint(
        data_of({"kind": "hf", "name": "a/b", "revision": "1"})
    )


def test_pysource_reads_packages_and_refuses_an_edited_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    make_package(
        site, {"pack/__init__.py": b"x = 1\n", "pack/a.py": b"y = 2\n" * 9, "pack/b.py": b"y = 2\n" * 9}
    )
    monkeypatch.syspath_prepend(str(site))
    data = DataConfig.model_validate(
        {"corpus": {"kind": "pysource", "packages": ["pack"]}, "tokenizer": "bytes", "heldout_fraction": 0.5}
    )
    from trainer.corpora import pysource

    pysource._records.cache_clear()
    mark = fingerprint(data)
    assert isinstance(data.corpus, PySourceSpec)
    shards = pysource.shards(data.corpus)
    assert [shard.name for shard in shards] == ["pack: pack/__init__.py", "pack: pack/a.py"]
    assert [list(shard.read(0)) for shard in shards] == [["x = 1\n"], ["y = 2\n" * 9]]
    (site / "pack/a.py").write_text("z = 3\n")
    pysource._records.cache_clear()
    assert fingerprint(data) == mark
    assert "pip install --force-reinstall --no-deps pack==1.0" in one_line(
        lambda: prepare(data, tmp_path, False)
    )
    make_package(site, {"pack/__init__.py": b"x = 2\n", "pack/a.py": b"", "pack/version.py": b"v = 1\n"})
    pysource._records.cache_clear()
    assert fingerprint(data) != mark
    assert [shard.name for shard in pysource.shards(data.corpus)] == ["pack: pack/__init__.py"]
    missing = DataConfig.model_validate({"corpus": {"kind": "pysource", "packages": ["no-such-package"]}})
    assert "pip install -c constraints.txt no-such-package" in one_line(lambda: fingerprint(missing))


def make_package(site: Path, files: dict[str, bytes]) -> None:
    """An installed distribution 'pack' with a RECORD."""
    import base64
    import hashlib

    record = ["../../bin/pack.py,sha256=abc,1", "pack-1.0.dist-info/RECORD,,"]
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    info = site / "pack-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join(record))


def test_the_default_packages_are_installed_and_large() -> None:
    from trainer.corpora import pysource

    shards = pysource.shards(PySourceSpec())
    assert 80e6 < sum(shard.size for shard in shards) < 200e6
    assert not any(shard.name.endswith(("/__config__.py", "/version.py")) for shard in shards)
