"""Text files as a corpus: .txt .md .jsonl .parquet, each optionally .gz or .zst, single or in folders."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from trainer.corpora.files import Shard, content_hashes, digest_of, reading, skipping
from trainer.corpora.spec import TextSpec
from trainer.errors import CorpusError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
PIECE_BYTES = 16 * 1024
"""A longer .txt or .md file is cut at line ends into documents of about this size, so that one book can be
split into a training and a held-out part, and a file of any length needs little memory."""

_PACKED_BYTES = 16 * 1024
"""Compressed bytes unpacked at once: a well-packed file can hold a thousand times more."""


def listed(spec: TextSpec) -> list[tuple[str, Path]]:
    """(relative path, file) of every text file of the corpus, sorted within each given path."""
    out: list[tuple[str, Path]] = []
    for written in spec.paths:
        root = Path(written).expanduser()
        with reading(root):
            root.stat()
        if root.is_file():
            if _suffix(root) is None:
                raise CorpusError(
                    f"{root}: unknown kind of file; valid: {' '.join(SUFFIXES)}, each also with "
                    f"{' '.join(COMPRESSIONS)}"
                )
            out.append((root.name, root))
            continue
        with reading(root):
            found = [path for path in root.rglob("*") if _suffix(path) is not None and path.is_file()]
        if not found:
            raise CorpusError(f"{root}: holds no {' '.join(SUFFIXES)} files; correct data.corpus.paths")
        out += sorted((path.relative_to(root).as_posix(), path) for path in found)
    return out


def content_fingerprint(spec: TextSpec) -> str:
    """SHA-256 over sorted (relative path, content hash) and the text field; independent of where they lie."""
    files = listed(spec)
    hashes = content_hashes([path for _, path in files])
    return digest_of(
        "text", spec.text_field, sorted((name, h) for (name, _), h in zip(files, hashes, strict=True))
    )


def shards(spec: TextSpec) -> list[Shard]:
    """One shard a file, in the order of (relative path, content), which is that of the fingerprint."""
    files = listed(spec)
    hashes = content_hashes([path for _, path in files])
    rows = sorted(
        ((name, digest, path) for (name, path), digest in zip(files, hashes, strict=True)),
        key=lambda row: row[:2],
    )
    return [
        Shard(str(path), path.stat().st_size, digest, skipping(_Reader(path, spec.text_field)))
        for _, digest, path in rows
    ]


def _suffix(path: Path) -> str | None:
    """The kind of file below its compression, or None."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file; a damaged archive is a CorpusError."""
    import zstandard

    try:
        with reading(path), open(path, "rb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(fileobj=raw) as file:
                    yield cast(IO[bytes], file)
            elif path.suffix.lower() == ".zst":
                with io.BufferedReader(_Zstd(raw)) as reader:
                    yield cast(IO[bytes], reader)
            else:
                yield raw
    except (zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(f"{path}: damaged archive ({error}); fetch it again") from None


class _Zstd(io.RawIOBase):
    """All frames of a .zst file; unlike zstandard's own reader it does not take a cut file for its end."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._begin = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._begin()
        self._inside = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._raw.read(_PACKED_BYTES)
            if not packed:
                if self._inside:
                    raise EOFError
                return 0
            self._ready = memoryview(self._unpack(packed))
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def _unpack(self, packed: bytes) -> bytes:
        out = []
        while packed:
            out.append(self._frame.decompress(packed))
            self._inside = not self._frame.eof
            packed = b"" if self._inside else self._frame.unused_data
            if not self._inside:
                self._frame = self._begin()
        return b"".join(out)


class _Reader:
    """The documents of one file, from the first on."""

    def __init__(self, path: Path, text_field: str) -> None:
        self.path, self.text_field = path, text_field

    def __call__(self) -> Iterator[str]:
        suffix = _suffix(self.path)
        if suffix == ".jsonl":
            return self._jsonl()
        return self._parquet() if suffix == ".parquet" else self._plain()

    def _plain(self) -> Iterator[str]:
        with opened(self.path) as file:
            rest = b""
            while block := file.read(PIECE_BYTES):
                rest += block
                while len(rest) >= 2 * PIECE_BYTES:
                    cut = _cut(rest)
                    yield rest[:cut].decode("utf-8", errors="replace")
                    rest = rest[cut:]
            if rest:
                yield rest.decode("utf-8", errors="replace")

    def _jsonl(self) -> Iterator[str]:
        with opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{self.path}:{number}"
                try:
                    record = json.loads(line.decode("utf-8", errors="replace"))
                except ValueError as error:
                    raise CorpusError(f"{place}: not JSON ({error}); mend or remove the line") from None
                yield from self._text(record, place)

    def _text(self, record: Any, place: str) -> Iterator[str]:
        if not isinstance(record, dict) or self.text_field not in record:
            fields = (
                f"it has {', '.join(map(str, record))}" if isinstance(record, dict) else "it is no object"
            )
            raise CorpusError(f"{place}: no field '{self.text_field}' ({fields}); set data.corpus.text_field")
        value = record[self.text_field]
        if value is None:
            return
        if not isinstance(value, str):
            raise CorpusError(
                f"{place}: field '{self.text_field}' is no text but {type(value).__name__}; set "
                f"data.corpus.text_field"
            )
        yield value

    def _parquet(self) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with opened(self.path) as file, tempfile.TemporaryFile() as spool:
            source: IO[bytes] = file
            if self.path.suffix.lower() in COMPRESSIONS:
                # Parquet is read from its end, which a compressed stream cannot offer.
                shutil.copyfileobj(file, spool)
                source = spool
            try:
                table = pq.ParquetFile(source)
                if self.text_field not in table.schema_arrow.names:
                    names = ", ".join(table.schema_arrow.names)
                    raise CorpusError(
                        f"{self.path}: no column '{self.text_field}' (it has {names}); set "
                        f"data.corpus.text_field"
                    )
                for batch in table.iter_batches(batch_size=256, columns=[self.text_field]):
                    for row, value in enumerate(batch.column(0).to_pylist()):
                        yield from self._text({self.text_field: value}, f"{self.path} row {row}")
            except pa.ArrowException as error:
                text = " ".join(str(error).split())
                raise CorpusError(f"{self.path}: damaged parquet file ({text}); fetch it again") from None


def _cut(data: bytes) -> int:
    """Where to cut a document of about PIECE_BYTES: after a line, else between two characters."""
    at = data.rfind(b"\n", 0, PIECE_BYTES) + 1
    if at == 0:
        at = PIECE_BYTES
        while at > PIECE_BYTES - 4 and data[at] & 0xC0 == 0x80:
            at -= 1
    return at
