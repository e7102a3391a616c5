"""What a corpus is, as one hash: content, tokenizer and split, wherever its files lie."""

from __future__ import annotations

from trainer.corpora import hf, images, pysource, recall, synthetic, text, tokens
from trainer.corpora.files import Shard, digest_of
from trainer.corpora.spec import DataConfig, HfSpec, PySourceSpec, SyntheticSpec, TextSpec, TokensSpec
from trainer.corpora.taskspec import CopySpec, ImagesSpec, SelectiveCopySpec
from trainer.corpora.tokenizer import tokenizer_fingerprint

FORMAT = 1
"""Raised when the same documents come to be split, encoded or laid out differently."""


def fingerprint(data: DataConfig) -> str:
    """SHA-256 (64 hex digits) of what a run on `data` reads: the corpus' content, tokenizer and split.

    Two configurations with equal fingerprints yield identical ids.  max_epochs is not part of it.  Costs
    under 100 ms for pysource and synthetic; files are hashed once and then only looked at (size and times).

    Raises:
        CorpusError: a package, file or folder is missing or unreadable.
    """
    content = _content(data)
    if data.computed:
        return digest_of(FORMAT, content)
    tokenizer = tokenizer_fingerprint(data.tokenizer) if data.tokenizer is not None else None
    given = (isinstance(data.corpus, TokensSpec) and bool(data.corpus.validation)) or (
        isinstance(data.corpus, ImagesSpec) and data.corpus.heldout is not None
    )
    return digest_of(FORMAT, content, tokenizer, None if given else data.heldout_fraction)


def _content(data: DataConfig) -> str:
    match data.corpus:
        case PySourceSpec() as spec:
            return pysource.content_fingerprint(spec)
        case SyntheticSpec() as spec:
            return synthetic.content_fingerprint(spec)
        case (CopySpec() | SelectiveCopySpec()) as spec:
            return recall.content_fingerprint(spec)
        case ImagesSpec() as spec:
            return images.content_fingerprint(spec)
        case TextSpec() as spec:
            return text.content_fingerprint(spec)
        case TokensSpec() as spec:
            return tokens.content_fingerprint(spec)
        case HfSpec() as spec:
            return hf.content_fingerprint(spec)


def shards_of(data: DataConfig) -> list[Shard]:
    """The parts of the corpus in their order, the same on every machine."""
    match data.corpus:
        case PySourceSpec() as spec:
            return pysource.shards(spec)
        case TextSpec() as spec:
            return text.shards(spec)
        case TokensSpec() as spec:
            return tokens.shards(spec)
        case HfSpec() as spec:
            return hf.shards(spec)
        case ImagesSpec(drawn=False) as spec:
            return images.shards(spec)
        case _:
            raise ValueError("a computed source is drawn, not read")
