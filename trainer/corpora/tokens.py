"""Token ids made elsewhere: raw .bin (nanoGPT), .bin with a header (llm.c), .bin beside .idx (Megatron)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.corpora.files import Shard, content_hashes, digest_of, reading
from trainer.corpora.spec import TokensSpec
from trainer.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_TOKENS = 8192
"""Tokens whose hash decides together whether they are held out."""

_LLMC_MAGIC = {20240520: "uint16", 20240801: "uint32"}
_LLMC_HEADER_BYTES = 256 * 4
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16", 9: "uint32"}
_ITEM_BYTES = {"uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8}


@dataclass(frozen=True)
class TokenFile:
    """Where the ids lie in a file.

    Attributes:
        path: the .bin file.
        format: raw, llmc or megatron.
        dtype: little-endian integer type of an id.
        offset: bytes before the first id.
        n_tokens: ids in the file.
    """

    path: Path
    format: str
    dtype: str
    offset: int
    n_tokens: int


def inspect(path: Path, spec: TokensSpec) -> TokenFile:
    """Find out how a file stores its ids; CorpusError where that does not fit with what it holds."""
    with reading(path):
        size = path.stat().st_size
        if path.is_dir():
            raise CorpusError(f"{path}: is a folder; data.corpus.paths of kind tokens names .bin files")
        with open(path, "rb") as file:
            head = file.read(12)
    magic, version, count = struct.unpack("<iii", head) if len(head) == 12 else (0, 0, 0)
    index = path.with_suffix(".idx")
    form = spec.format
    if form == "auto":
        form = "megatron" if index.is_file() else "llmc" if magic in _LLMC_MAGIC else "raw"
    if form == "megatron":
        return _megatron(path, index, size)
    if form == "llmc":
        if magic not in _LLMC_MAGIC:
            raise CorpusError(f"{path}: no llm.c header (magic {magic}); set data.corpus.format = 'raw'")
        dtype, offset = _LLMC_MAGIC[magic], _LLMC_HEADER_BYTES
        there = (size - offset) // _ITEM_BYTES[dtype]
        if count != there or version < 1:
            raise CorpusError(
                f"{path}: its header promises {count:,} ids but {there:,} are there; fetch it again"
            )
        return TokenFile(path, form, dtype, offset, count)
    dtype = spec.dtype if spec.dtype != "auto" else "uint16" if spec.vocab_size <= 2**16 else "uint32"
    if size % _ITEM_BYTES[dtype]:
        raise CorpusError(f"{path}: {size} bytes are no whole number of {dtype} ids; set data.corpus.dtype")
    return TokenFile(path, form, dtype, 0, size // _ITEM_BYTES[dtype])


def _megatron(path: Path, index: Path, size: int) -> TokenFile:
    with reading(index), open(index, "rb") as file:
        head = file.read(34)
        if len(head) < 34 or head[:9] != _MEGATRON_MAGIC:
            raise CorpusError(
                f"{index}: not a Megatron index; set data.corpus.format = 'raw' if it is not meant"
            )
        _version, code, n_sequences, _n_documents = struct.unpack("<QBQQ", head[9:])
        if code not in _MEGATRON_DTYPES:
            raise CorpusError(f"{index}: ids of type code {code} are no integers; build the dataset again")
        import numpy as np

        lengths = np.frombuffer(file.read(4 * n_sequences), dtype="<i4")
    dtype = _MEGATRON_DTYPES[code]
    count = int(lengths.sum(dtype=np.int64))
    if len(lengths) != n_sequences or count * _ITEM_BYTES[dtype] != size:
        there = size // _ITEM_BYTES[dtype]
        raise CorpusError(
            f"{index}: promises {count:,} ids but {path.name} holds {there:,}; fetch both again"
        )
    return TokenFile(path, "megatron", dtype, 0, count)


def content_fingerprint(spec: TokensSpec) -> str:
    """SHA-256 over the files' contents and how they are read; a sample of the ids is checked on the way."""
    sides = []
    for paths in (spec.paths, spec.validation):
        files = [inspect(Path(path).expanduser(), spec) for path in paths]
        for file in files:
            _check_sample(file, spec)
        hashes = content_hashes([file.path for file in files])
        sides.append([(f.format, f.dtype, digest) for f, digest in zip(files, hashes, strict=True)])
    return digest_of("tokens", spec.vocab_size, spec.eos, BLOCK_TOKENS, sides)


def _ids(file: TokenFile) -> NDArray[np.generic]:
    import numpy as np

    dtype = np.dtype(file.dtype).newbyteorder("<")
    if file.n_tokens == 0:
        return np.empty(0, dtype=dtype)
    with reading(file.path):
        return np.memmap(file.path, dtype=dtype, mode="r", offset=file.offset, shape=(file.n_tokens,))


def _check_sample(file: TokenFile, spec: TokensSpec) -> None:
    import numpy as np

    ids = _ids(file)
    for start in {0, file.n_tokens // 2 // 2 * 2, max(0, file.n_tokens - BLOCK_TOKENS) // 2 * 2}:
        block = np.asarray(ids[start : start + BLOCK_TOKENS])
        _check_ids(block, start, file, spec)
        if file.format == "raw" and spec.dtype == "auto" and len(block) > 64 and not block[1::2].any():
            if file.dtype == "uint16" and block.any():
                raise CorpusError(
                    f"{file.path}: every second uint16 id is 0, as if they were uint32; set data.corpus.dtype"
                )


def _check_ids(block: NDArray[np.generic], start: int, file: TokenFile, spec: TokensSpec) -> None:
    wrong = (block < 0) | (block >= spec.vocab_size)  # type: ignore[operator]
    if wrong.any():
        at = int(wrong.argmax())
        raise CorpusError(
            f"{file.path}: id {int(block[at])} at position {start + at} is not below vocab_size = "
            f"{spec.vocab_size} "
            f"(read as {file.format} {file.dtype}); correct data.corpus.vocab_size, dtype or format"
        )


def shards(spec: TokensSpec) -> list[Shard]:
    """One shard a file; its documents are blocks of ids, every one of which is checked."""
    out = []
    for paths, heldout in ((spec.paths, False if spec.validation else None), (spec.validation, True)):
        for written in paths:
            file = inspect(Path(written).expanduser(), spec)
            size = file.n_tokens * _ITEM_BYTES[file.dtype]
            out.append(Shard(str(file.path), size, "", _Blocks(file, spec), heldout))
    return out


class _Blocks:
    """The ids of one file in blocks of BLOCK_TOKENS, from any block on."""

    def __init__(self, file: TokenFile, spec: TokensSpec) -> None:
        self.file, self.spec = file, spec

    def __call__(self, skip: int) -> Iterator[NDArray[np.generic]]:
        import numpy as np

        ids = _ids(self.file)
        for start in range(skip * BLOCK_TOKENS, self.file.n_tokens, BLOCK_TOKENS):
            block = np.array(ids[start : start + BLOCK_TOKENS])
            _check_ids(block, start, self.file, self.spec)
            yield block
