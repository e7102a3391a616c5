"""A Hugging Face dataset as a corpus, streamed through `datasets`; also from a local folder, offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.corpora.files import Shard, content_hashes, digest_of
from trainer.corpora.spec import HfSpec
from trainer.errors import CorpusError


def _local(spec: HfSpec) -> Path | None:
    folder = Path(spec.name).expanduser()
    return folder if folder.is_dir() else None


def content_fingerprint(spec: HfSpec) -> str:
    """SHA-256 over the fields; of a local folder over its files' relative paths and contents, not its place.

    A dataset on the hub is what (name, config, split, revision) says: without a revision it can change
    unnoticed.
    """
    fields = spec.model_dump(mode="json")
    folder = _local(spec)
    if folder is None:
        if Path(spec.name).is_absolute() or spec.name.startswith((".", "~")):
            raise CorpusError(f"{spec.name}: no such folder; correct data.corpus.name")
        return digest_of("hf", fields)
    fields.pop("name")
    files = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise CorpusError(f"{folder}: holds no data files; correct data.corpus.name")
    hashes = content_hashes([path for _, path in files])
    return digest_of("hf", fields, [(name, digest) for (name, _), digest in zip(files, hashes, strict=True)])


def shards(spec: HfSpec) -> list[Shard]:
    """The stream is one shard."""
    return [Shard(f"hf {spec.name}", spec.max_bytes or 0, "", _Stream(spec))]


@contextmanager
def _one_line(spec: HfSpec) -> Iterator[None]:
    """`datasets` passes on errors of many libraries (http, arrow, json ...); each of them ends the stream."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:
        lines = str(error).splitlines()
        text = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        remedy = "check name, config, split and files"
        if _local(spec) is None:
            remedy = (
                "check the network (HF_ENDPOINT, HF_TOKEN), name, config, split and revision, "
                "or give a local folder"
            )
        raise CorpusError(f"hf dataset '{spec.name}': {text}; {remedy}") from error


class _Stream:
    """The documents of the dataset, from any one on."""

    def __init__(self, spec: HfSpec) -> None:
        self.spec = spec

    def __call__(self, skip: int) -> Iterator[str]:
        spec = self.spec
        # How far max_bytes reaches depends on the documents before, so those are read again after a kill.
        start = 0 if spec.max_bytes else skip
        n_documents, n_bytes = start, 0
        for row in self._rows(start):
            if n_documents == spec.max_documents or (spec.max_bytes and n_bytes >= spec.max_bytes):
                return
            text = self._text(row)
            n_documents += 1
            n_bytes += len(text.encode("utf-8", errors="replace"))
            if n_documents > skip:
                yield text

    def _rows(self, start: int) -> Iterator[Any]:
        spec = self.spec
        with _one_line(spec):
            import datasets

            folder = _local(spec)
            stream = datasets.load_dataset(
                str(folder) if folder else spec.name,
                spec.config,
                split=spec.split,
                revision=None if folder else spec.revision,
                streaming=True,
            )
            yield from stream.skip(start) if start else stream

    def _text(self, row: Any) -> str:
        value = row.get(self.spec.text_field)
        if isinstance(value, str):
            return value
        if value is None and self.spec.text_field in row:
            return ""
        raise CorpusError(
            f"hf dataset '{self.spec.name}': no text in column '{self.spec.text_field}' (columns: "
            f"{', '.join(row)}); "
            f"set data.corpus.text_field"
        )
