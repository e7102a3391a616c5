"""What the sources share about files: cached content hashes, one-line disk errors, shards of documents."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import CorpusError, RunDirError
from trainer.rundir import io_errors, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Document = str | NDArray[np.generic]

_READ_BYTES = 2**20


@dataclass(frozen=True)
class Shard:
    """A part of a source that can be read from its own beginning: usually one file.

    Attributes:
        name: for messages.
        size: bytes on disk, 0 where unknown; only for showing progress.
        order: a content hash by which a sample of the corpus is drawn, the same on every machine.
        read: the documents from the given number on; text, or token ids where the source holds those.
        heldout: the side of all its documents, or None where each document's hash decides.
        answers: ids at the end of each document that have no part in that hash (the class of an image).
    """

    name: str
    size: int
    order: str
    read: Callable[[int], Iterator[Document]]
    heldout: bool | None = None
    answers: int = 0


def skipping(documents: Callable[[], Iterable[Document]]) -> Callable[[int], Iterator[Document]]:
    """Make `Shard.read` of a reader that can only start at the beginning."""
    return lambda skip: islice(documents(), skip, None)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and unreadable files into a one-line CorpusError."""
    try:
        with io_errors(path):
            yield
    except RunDirError as error:
        raise CorpusError(str(error)) from error


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what can go wrong while reading a file of the user into a one-line CorpusError."""
    try:
        yield
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file or folder; correct the path in data.corpus") from None
    except PermissionError:
        raise CorpusError(f"{path}: cannot be read; give yourself permission (chmod +r)") from None
    except EOFError:
        raise CorpusError(f"{path}: ends too early (a download cut short?); fetch it again") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CorpusError(f"{path}: cannot be read ({error}); check the file and fetch it again") from error


def cache_folder() -> Path:
    """Where content hashes of large files are remembered: below XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scaling-sweeps"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def content_hashes(paths: list[Path]) -> list[str]:
    """SHA-256 of each file; one whose size and times are as they were last time is not read again."""
    store = cache_folder() / "file-hashes.json"
    known = _load_cache(store)
    fresh: dict[str, str] = {}
    out = []
    for path in paths:
        with reading(path):
            stat = path.stat()
        # The change time cannot be set back, so a same-sized file put in the old one's place is noticed.
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        digest = known.get(key) or fresh.get(key) or sha256_file(path)
        if key not in known:
            fresh[key] = digest
        out.append(digest)
    if fresh:
        _save_cache(store, {**_load_cache(store), **fresh})
    return out


def _load_cache(store: Path) -> dict[str, str]:
    try:
        value = json.loads(store.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _save_cache(store: Path, hashes: dict[str, str]) -> None:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(store, json.dumps(hashes))
    except (OSError, RunDirError):
        # Without a cache (home folder read-only or full) the next call reads the files again: slower, not
        # wrong.
        return


def digest_of(*parts: object) -> str:
    """SHA-256 over the canonical JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
