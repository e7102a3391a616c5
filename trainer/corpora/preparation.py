"""Prepares a corpus once: streams its documents, splits them by hash, encodes them, writes token files.

    train.bin heldout.bin   ids, uint16 or uint32      tokenizer.json   what made them
    token_bytes.npy         bytes of each id           progress.json    how far it is, while it is under way
    meta.json               counts and checksums; written last, so that its presence means that all is there

A preparation killed at any moment goes on from the last recorded chunk and ends with the same bytes.  Memory
does not depend on the corpus' size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainer.corpora.corpus import (
    HELDOUT,
    META,
    TOKEN_BYTES,
    TOKENIZER,
    TRAIN,
    Corpus,
    corpus_folder,
    open_corpus,
)
from trainer.corpora.files import Shard, disk_errors, sha256_file
from trainer.corpora.fingerprints import FORMAT, fingerprint, shards_of
from trainer.corpora.report import Report
from trainer.corpora.spec import CharsTokenizer, DataConfig, LearnedTokenizer, TokensSpec
from trainer.corpora.tokenizer import Encoder, encoder_for, learn
from trainer.errors import CorpusError
from trainer.rundir import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROGRESS = "progress.json"

_BATCH_BYTES = 2**20
"""Text encoded at once: enough to keep all cores busy, and a few hundred MB of encodings at most."""

_COMMIT_BYTES = 16 * 2**20
"""Text between two records of the progress: what a kill can cost."""

_SAMPLE_SHARE_BYTES = 2**20
"""Most that one file gives to the sample from which a BPE learns."""


def prepare(data: DataConfig, results: Path, progress: bool = True) -> Corpus:
    """Prepare the corpus of `data` below `results` unless that is done, and open it.

    Two processes that start at once prepare once: the other one waits.  A damaged preparation is made anew.

    Args:
        data: the corpus, tokenizer and split.
        results: folder that holds corpora/.
        progress: show a bar on stderr when it takes longer than a moment.

    Raises:
        CorpusError: the corpus is missing, empty, unreadable or has changed, or the disk is full (what was
        done
            is kept, and the next call goes on from there).
    """
    if data.computed:
        return open_corpus(data, results)
    mark = fingerprint(data)
    folder = corpus_folder(results, mark)
    if (folder / META).exists() and (corpus := _opened(data, results)) is not None:
        return corpus
    from filelock import FileLock, Timeout

    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{data.label}: another process is preparing it; waiting", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        with disk_errors(folder):
            if (corpus := _opened(data, results)) is None:
                if (folder / META).exists() and progress:
                    print(
                        f"{data.label}: {folder} is damaged; preparing it anew", file=sys.stderr, flush=True
                    )
                folder.mkdir(parents=True, exist_ok=True)
                (folder / META).unlink(missing_ok=True)
                with Report(data.label, progress) as report:
                    _Preparation(data, folder, mark, report).run()
                corpus = open_corpus(data, results)
        return corpus
    finally:
        lock.release()


def _opened(data: DataConfig, results: Path) -> Corpus | None:
    try:
        return open_corpus(data, results)
    except CorpusError:
        return None


@dataclass
class _Position:
    """How far a preparation is: the next document, and what lies before it."""

    fingerprint: str
    shard: int = 0
    document: int = 0
    n_documents: int = 0
    n_bytes: int = 0
    train_tokens: int = 0
    heldout_tokens: int = 0
    heldout_bytes: int = 0


class _Preparation:
    def __init__(self, data: DataConfig, folder: Path, mark: str, report: Report) -> None:
        self.data, self.folder, self.mark, self.report = data, folder, mark, report
        self.dtype = "uint16" if data.vocab_size <= 2**16 else "uint32"
        self.threshold = int(data.heldout_fraction * 2**64)
        self.shards = shards_of(data)

    def run(self) -> None:
        """Prepare from wherever an earlier attempt came to."""
        encoder = self._encoder()
        self._stream(encoder)
        position = self._position()
        self._check_sides(position)
        if fingerprint(self.data) != self.mark:
            shutil.rmtree(self.folder)
            raise CorpusError(f"{self.data.label}: its files changed while they were being read; run again")
        if encoder is not None:
            import numpy as np

            buffer = io.BytesIO()
            np.save(buffer, self._token_bytes(encoder, position))
            write_atomic(self.folder / TOKEN_BYTES, buffer.getvalue())
        write_atomic(self.folder / META, json.dumps(self._meta(position, encoder), indent=1) + "\n")
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _token_bytes(self, encoder: Encoder, position: _Position) -> NDArray[np.int32]:
        """Bytes of each id, those of characters without an id of their own as the held-out part has them."""
        import numpy as np

        if not isinstance(self.data.tokenizer, CharsTokenizer):
            return encoder.token_bytes()
        from trainer.corpora.chars import with_other_bytes

        ids = np.memmap(self.folder / HELDOUT, dtype=self.dtype, mode="r")
        return with_other_bytes(encoder.token_bytes(), ids, position.heldout_bytes)

    def _meta(self, position: _Position, encoder: Encoder | None) -> dict[str, Any]:
        from importlib.metadata import version

        counts = asdict(position)
        eos = encoder.eos if encoder is not None else getattr(self.data.corpus, "eos", None)
        return {
            "format": FORMAT,
            "fingerprint": self.mark,
            "label": self.data.label,
            "vocab_size": self.data.vocab_size,
            "dtype": self.dtype,
            "eos": eos,
            "has_token_bytes": encoder is not None,
            **{key: counts[key] for key in ("train_tokens", "heldout_tokens", "n_documents")},
            "train_bytes": position.n_bytes - position.heldout_bytes,
            "heldout_bytes": position.heldout_bytes,
            "sha256": {name: sha256_file(self.folder / name) for name in (TRAIN, HELDOUT)},
            "tokenizers": version("tokenizers"),
        }

    def _check_sides(self, position: _Position) -> None:
        """Refuse a corpus of which one side is empty, and leave nothing of it behind."""
        label, n = self.data.label, position.n_documents
        if n and position.train_tokens and position.heldout_tokens:
            return
        shutil.rmtree(self.folder)
        if n == 0:
            raise CorpusError(f"{label}: the corpus is empty; correct data.corpus")
        if isinstance(self.data.corpus, TokensSpec) and self.data.corpus.validation:
            raise CorpusError(f"{label}: one of paths and validation is empty; correct data.corpus")
        side, way = ("held-out", "raise") if position.train_tokens else ("training", "lower")
        raise CorpusError(
            f"{label}: with data.heldout_fraction = {self.data.heldout_fraction:g} none of its {n} "
            f"documents falls "
            f"into the {side} part; {way} data.heldout_fraction or add text"
        )

    def _encoder(self) -> Encoder | None:
        spec = self.data.tokenizer
        if spec is None:
            return None
        path = self.folder / TOKENIZER
        if isinstance(spec, LearnedTokenizer):
            if not path.exists():
                self.report.note("learning the tokenizer")
                write_atomic(path, learn(spec, self._sample(spec.sample_bytes)))
            return encoder_for(spec, path.read_text("utf-8"))
        encoder = encoder_for(spec)
        write_atomic(path, encoder.json())
        return encoder

    def _sample(self, limit: int) -> Iterator[str]:
        """Training documents, about `limit` bytes of them, from files in the order of their hashes."""
        left = limit
        share = max(_SAMPLE_SHARE_BYTES, limit // max(1, len(self.shards)))
        for shard in sorted(self.shards, key=lambda shard: shard.order):
            of_this = 0
            for text, heldout, n_bytes in self._sided(shard, 0):
                if left <= 0:
                    return
                if of_this >= share and len(self.shards) > 1:
                    break
                if not heldout and isinstance(text, str) and text:
                    left -= n_bytes
                    of_this += n_bytes
                    yield text

    def _sided(self, shard: Shard, skip: int) -> Iterator[tuple[str | NDArray[np.generic], bool, int]]:
        """(document, held out?, bytes) of a shard; the side follows from the document's content alone."""
        for document in shard.read(skip):
            if isinstance(document, str):
                # A lone surrogate, as JSON can escape it, has no UTF-8.
                content = document.encode("utf-8", errors="replace")
                document = content.decode()
            else:
                content = document[: len(document) - shard.answers].tobytes()
            side = shard.heldout
            if side is None:
                side = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < self.threshold
            yield document, side, len(content)

    def _position(self) -> _Position:
        """The last recorded position that the token files bear out, else the beginning."""
        item = 2 if self.dtype == "uint16" else 4
        try:
            position = _Position(**json.loads((self.folder / PROGRESS).read_bytes()))
            sizes = [(self.folder / name).stat().st_size for name in (TRAIN, HELDOUT)]
        except (FileNotFoundError, ValueError, TypeError):
            return _Position(self.mark)
        whole = sizes[0] >= position.train_tokens * item and sizes[1] >= position.heldout_tokens * item
        return position if whole and position.fingerprint == self.mark else _Position(self.mark)

    def _stream(self, encoder: Encoder | None) -> None:
        import numpy as np

        position = self._position()
        item = np.dtype(self.dtype).itemsize
        self.report.start(sum(shard.size for shard in self.shards), position.n_bytes)
        with ExitStack() as stack:
            files = []
            for name, count in ((TRAIN, position.train_tokens), (HELDOUT, position.heldout_tokens)):
                # "ab" creates the file without emptying what an earlier attempt wrote.
                file = stack.enter_context(open(self.folder / name, "ab"))
                file.truncate(count * item)
                files.append(file)
            committed = position.n_bytes
            for batch in self._batches(position):
                self._write(batch, encoder, position, files)
                self.report.advance(position.n_bytes)
                if position.n_bytes - committed >= _COMMIT_BYTES:
                    self._commit(position, files)
                    committed = position.n_bytes
            self._commit(position, files)

    def _batches(
        self, start: _Position
    ) -> Iterator[list[tuple[int, int, str | NDArray[np.generic], bool, int]]]:
        """(shard, number in it, document, held out?, bytes) of the remaining documents, 1 MiB at a time."""
        batch: list[tuple[int, int, str | NDArray[np.generic], bool, int]] = []
        size, first, skip = 0, start.shard, start.document
        for index in range(first, len(self.shards)):
            begin = skip if index == first else 0
            for number, (document, side, n_bytes) in enumerate(self._sided(self.shards[index], begin), begin):
                batch.append((index, number, document, side, n_bytes))
                size += n_bytes
                if size >= _BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def _write(
        self,
        batch: list[tuple[int, int, str | NDArray[np.generic], bool, int]],
        encoder: Encoder | None,
        position: _Position,
        files: Sequence[IO[bytes]],
    ) -> None:
        import numpy as np

        documents = [row for row in batch if len(row[2])]
        texts = [row[2] for row in documents if isinstance(row[2], str)]
        encoded = encoder.encode(texts) if encoder is not None else [row[2] for row in documents]
        for (_, _, _, heldout, n_bytes), found in zip(documents, encoded, strict=True):
            assert not isinstance(found, str)
            ids = found.astype(self.dtype)
            if encoder is not None:
                ids = np.append(ids, np.array([encoder.eos], dtype=self.dtype))
            files[heldout].write(ids.tobytes())
            position.n_documents += 1
            position.n_bytes += n_bytes
            if heldout:
                position.heldout_tokens += len(ids)
                position.heldout_bytes += n_bytes
            else:
                position.train_tokens += len(ids)
        position.shard, position.document = batch[-1][0], batch[-1][1] + 1

    def _commit(self, position: _Position, files: Sequence[IO[bytes]]) -> None:
        """Record the position once what lies before it is safely on the disk."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        write_atomic(self.folder / PROGRESS, json.dumps(asdict(position)))
