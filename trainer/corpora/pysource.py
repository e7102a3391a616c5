"""The default corpus: the Python sources of installed, pinned packages; real text on every machine, offline.

The fingerprint comes from the packages' RECORD files alone (name, version, path and SHA-256 of every file),
so it reads no sources.  While preparing, every file is held against its RECORD hash.
"""

from __future__ import annotations

import base64
import csv
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from trainer.corpora.files import Shard, digest_of, reading, skipping
from trainer.corpora.spec import PySourceSpec
from trainer.errors import CorpusError

_BUILD_FILES = frozenset(
    {
        "version.py",
        "_version.py",
        "__version__.py",
        "__config__.py",
        "_version_meson.py",
        "_distributor_init.py",
    }
)
"""Written or patched when a wheel is built, so not the same in every build of one version."""


@lru_cache(maxsize=16)
def _records(packages: tuple[str, ...]) -> tuple[tuple[str, str, str, str, int], ...]:
    """(package, version, path, SHA-256 in RECORD's base64, size) of every source file, sorted."""
    from importlib import metadata

    rows = []
    for package in packages:
        try:
            distribution = metadata.distribution(package)
        except (metadata.PackageNotFoundError, ValueError):
            raise CorpusError(
                f"corpus pysource: package '{package}' is not installed; run: pip install -c "
                f"constraints.txt {package}"
            ) from None
        record = distribution.read_text("RECORD")
        version = distribution.version  # Parsed anew at each access.
        mend = f"pip install --force-reinstall --no-deps {package}=={version}"
        if record is None:
            raise CorpusError(f"corpus pysource: package '{package}' has no RECORD of its files; run: {mend}")
        lines = (line for line in record.splitlines() if ".py" in line and ".pyc" not in line)
        for path, digest, size in csv.reader(lines):
            foreign = path.startswith(("..", "/"))
            if foreign or not path.endswith(".py") or path.rpartition("/")[2] in _BUILD_FILES:
                continue
            if not digest.startswith("sha256="):
                raise CorpusError(
                    f"corpus pysource: RECORD of '{package}' has no hash of {path}; run: {mend}"
                )
            rows.append((package, version, path, digest[7:], int(size or 0)))
    if not rows:
        raise CorpusError(f"corpus pysource: no Python files in {', '.join(packages)}; name other packages")
    return tuple(sorted(rows))


def content_fingerprint(spec: PySourceSpec) -> str:
    """SHA-256 over names, versions, paths and RECORD hashes: under 100 ms, no source file is read."""
    return digest_of("pysource", [row[:4] for row in _records(tuple(sorted(set(spec.packages))))])


def shards(spec: PySourceSpec) -> list[Shard]:
    """One shard a file, exact duplicates dropped."""
    from importlib import metadata

    packages = tuple(sorted(set(spec.packages)))
    homes = {package: metadata.distribution(package) for package in packages}
    seen: set[str] = set()
    out = []
    for package, version, path, digest, size in _records(packages):
        if digest in seen or size == 0:
            continue
        seen.add(digest)
        place = Path(str(homes[package].locate_file(path)))
        mend = f"pip install --force-reinstall --no-deps {package}=={version}"
        out.append(Shard(f"{package}: {path}", size, digest, skipping(_Reader(place, digest, mend))))
    return out


class _Reader:
    """Reads one source file and refuses one that is not what the package installed."""

    def __init__(self, path: Path, digest: str, mend: str) -> None:
        self.path, self.digest, self.mend = path, digest, mend

    def __call__(self) -> Iterator[str]:
        try:
            with reading(self.path):
                content = self.path.read_bytes()
        except CorpusError as error:
            raise CorpusError(f"{error}; or restore it: {self.mend}") from None
        actual = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if actual != self.digest:
            raise CorpusError(
                f"{self.path}: was edited after installation, so the corpus would differ from machine to "
                f"machine; "
                f"run: {self.mend}"
            )
        yield content.decode("utf-8", errors="replace")
