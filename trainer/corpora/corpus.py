"""A corpus that can be read: prepared token files, mapped into memory, or a synthetic source."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.corpora import synthetic
from trainer.corpora.files import sha256_file
from trainer.corpora.fingerprints import FORMAT, fingerprint
from trainer.corpora.spec import DataConfig, SyntheticSpec
from trainer.corpora.taskspec import ImagesSpec, TaskSpec
from trainer.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

META, TRAIN, HELDOUT, TOKEN_BYTES, TOKENIZER = (
    "meta.json",
    "train.bin",
    "heldout.bin",
    "token_bytes.npy",
    "tokenizer.json",
)


IGNORE = -100
"""Target of a position that is not scored; what torch's cross-entropy leaves out by default."""

Examples = tuple["NDArray[np.int64]", "NDArray[np.int64]"]
"""Inputs and targets, each int64 (n, seq_len), contiguous; targets that are not scored are IGNORE."""


class Corpus(ABC):
    """What training and evaluation read.

    Attributes:
        fingerprint: see `trainer.corpora.fingerprint`.
        label: the corpus in a few words.
        vocab_size: ids are below this.
        n_train_tokens: ids of the training part; None if unlimited.
        n_heldout_tokens: ids of the held-out part; None if unlimited.
        entropy_rate: least possible mean loss, nats per token; None where it is not known.
        scored: targets of each sequence that count, of a task; None for text, where every target counts.
    """

    fingerprint: str
    label: str
    vocab_size: int
    n_train_tokens: int | None
    n_heldout_tokens: int | None
    entropy_rate: float | None
    scored: int | None = None

    def n_train_sequences(self, seq_len: int) -> int | None:
        """Training windows of `seq_len` targets each; None if unlimited."""
        return None if self.n_train_tokens is None else max(0, (self.n_train_tokens - 1) // seq_len)

    def n_heldout_sequences(self, seq_len: int) -> int | None:
        """Held-out windows of `seq_len` targets each; None if unlimited."""
        return None if self.n_heldout_tokens is None else max(0, (self.n_heldout_tokens - 1) // seq_len)

    @abstractmethod
    def train_sequences(self, indices: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
        """Training windows `indices`, int64 (n, seq_len + 1).

        Window w of a file covers the ids w * seq_len up to and including (w + 1) * seq_len: inputs are all
        but the last, targets all but the first, so that every id is a target once.
        """

    @abstractmethod
    def heldout_sequences(self, start: int, stop: int, seq_len: int) -> NDArray[np.int64]:
        """Windows `start` to `stop` of the fixed held-out order, int64 (stop - start, seq_len + 1)."""

    def heldout_entropy(self, n: int, seq_len: int) -> float | None:
        """Loss of a perfect model on the first n held-out sequences, nats per target; None if not known."""
        return self.entropy_rate

    def train_examples(self, indices: NDArray[np.int64], seq_len: int) -> Examples:
        """Inputs and targets of the training sequences `indices`, each int64 (n, seq_len)."""
        return _shifted(self.train_sequences(indices, seq_len))

    def heldout_examples(self, start: int, stop: int, seq_len: int) -> Examples:
        """Inputs and targets of the held-out sequences `start` to `stop`, each int64 (n, seq_len)."""
        return _shifted(self.heldout_sequences(start, stop, seq_len))

    def check_length(self, seq_len: int) -> None:  # noqa: B027
        """Raise CorpusError where there are no sequences of `seq_len`; text can be cut to any length."""

    def check_heldout(self, n: int, seq_len: int) -> None:
        """Raise CorpusError where the held-out part has fewer than `n` windows."""
        there = self.n_heldout_sequences(seq_len)
        if there is not None and n > there:
            raise CorpusError(
                f"{self.label}: {n} held-out sequences of {seq_len} tokens wanted, {there} are there "
                f"({self.n_heldout_tokens:,} tokens); lower eval.tokens to {there * seq_len} or raise "
                f"data.heldout_fraction"
            )

    @abstractmethod
    def verify(self) -> None:
        """Read everything again and raise CorpusError where it is not what was prepared."""

    @property
    @abstractmethod
    def token_bytes(self) -> NDArray[np.int32] | None:
        """Bytes of text of each id, (vocab_size,), for bits per byte; None where ids stand for no text."""


def _shifted(windows: NDArray[np.int64]) -> Examples:
    import numpy as np

    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


class SyntheticCorpus(Corpus):
    """Unlimited sequences of a source with known entropy."""

    def __init__(self, data: DataConfig) -> None:
        assert isinstance(data.corpus, SyntheticSpec)
        self._spec = data.corpus
        self.fingerprint = fingerprint(data)
        self.label = data.label
        self.vocab_size = data.corpus.vocab_size
        self.n_train_tokens = self.n_heldout_tokens = None
        self.entropy_rate = synthetic.entropy_rate(data.corpus)

    def train_sequences(self, indices: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
        """Training sequences `indices`, each drawn from the start context."""
        return synthetic.source(self._spec).sequences(synthetic.TRAIN, indices, seq_len + 1)

    def heldout_sequences(self, start: int, stop: int, seq_len: int) -> NDArray[np.int64]:
        """Held-out sequences of a domain that training never draws from."""
        import numpy as np

        indices = np.arange(start, stop, dtype=np.int64)
        return synthetic.source(self._spec).sequences(synthetic.HELDOUT, indices, seq_len + 1)

    def heldout_entropy(self, n: int, seq_len: int) -> float:
        """See Corpus.heldout_entropy: the sample's own, not the source's."""
        return synthetic.heldout_entropy(self._spec, n, seq_len)

    def verify(self) -> None:
        """A source that is computed cannot be damaged."""

    @property
    def token_bytes(self) -> None:
        """Synthetic ids stand for no text."""
        return None


class TokenCorpus(Corpus):
    """Prepared token files, read through memory maps: memory does not depend on their size."""

    def __init__(self, data: DataConfig, folder: Path, remedy: str) -> None:
        meta = read_meta(folder, remedy)
        self.folder, self.meta = folder, meta
        self.fingerprint = meta["fingerprint"]
        self.label = data.label
        self.vocab_size = meta["vocab_size"]
        self.n_train_tokens: int = meta["train_tokens"]
        self.n_heldout_tokens: int = meta["heldout_tokens"]
        self.entropy_rate = None
        self._remedy = remedy

    def train_sequences(self, indices: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
        """Windows `indices` of the training part."""
        return _windows(self.train_ids, indices, seq_len)

    def heldout_sequences(self, start: int, stop: int, seq_len: int) -> NDArray[np.int64]:
        """Windows of a fixed permutation: the file begins with what was read first."""
        import numpy as np

        from trainer.rng import Permutation

        self.check_heldout(stop, seq_len)
        order = Permutation((self.n_heldout_tokens - 1) // seq_len, 0, f"heldout {self.fingerprint}")
        return _windows(self.heldout_ids, order(np.arange(start, stop, dtype=np.int64)), seq_len)

    @cached_property
    def _token_bytes(self) -> NDArray[np.int32] | None:
        import numpy as np

        path = self.folder / TOKEN_BYTES
        if not self.meta["has_token_bytes"]:
            return None
        try:
            out: NDArray[np.int32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CorpusError(f"{path}: cannot be read ({error}); {self._remedy}") from None
        if out.shape != (self.vocab_size,):
            raise CorpusError(f"{path}: has shape {out.shape}, not ({self.vocab_size},); {self._remedy}")
        return out

    @property
    def token_bytes(self) -> NDArray[np.int32] | None:
        """Bytes of text of each id; None for ids made elsewhere."""
        return self._token_bytes

    def verify(self) -> None:
        """Read both token files and raise CorpusError where one is not what was prepared."""
        for name in (TRAIN, HELDOUT):
            if sha256_file(self.folder / name) != self.meta["sha256"][name]:
                raise CorpusError(
                    f"{self.folder / name}: corrupted (checksum does not match); delete {self.folder} and "
                    f"run: "
                    f"{self._remedy.removeprefix('run: ')}"
                )

    def _map(self, name: str, count: int) -> NDArray[np.unsignedinteger[Any]]:
        import numpy as np

        return np.memmap(self.folder / name, dtype=self.meta["dtype"], mode="r", shape=(count,))

    @cached_property
    def train_ids(self) -> NDArray[np.unsignedinteger[Any]]:
        """Ids of the training part, mapped from the file."""
        return self._map(TRAIN, self.n_train_tokens)

    @cached_property
    def heldout_ids(self) -> NDArray[np.unsignedinteger[Any]]:
        """Ids of the held-out part, mapped from the file."""
        return self._map(HELDOUT, self.n_heldout_tokens)


def _windows(
    ids: NDArray[np.unsignedinteger[Any]], indices: NDArray[np.int64], seq_len: int
) -> NDArray[np.int64]:
    import numpy as np

    out = np.empty((len(indices), seq_len + 1), dtype=np.int64)
    for row, start in enumerate((np.asarray(indices, dtype=np.int64) * seq_len).tolist()):
        out[row] = ids[start : start + seq_len + 1]
    return out


def corpus_folder(results: Path, fingerprint: str) -> Path:
    """Where the corpus of `fingerprint` is prepared."""
    return results / "corpora" / fingerprint[:16]


def read_meta(folder: Path, remedy: str) -> dict[str, Any]:
    """The meta.json of a prepared corpus; CorpusError with `remedy` where it or a token file is not whole."""
    path = folder / META
    try:
        meta = json.loads(path.read_bytes())
        counts = {TRAIN: meta["train_tokens"], HELDOUT: meta["heldout_tokens"]}
        item = {"uint16": 2, "uint32": 4}[meta["dtype"]]
        known = meta["format"] == FORMAT and {
            "fingerprint",
            "vocab_size",
            "sha256",
            "has_token_bytes",
        } <= set(meta)
    except FileNotFoundError:
        raise CorpusError(f"{folder}: the corpus is not prepared; {remedy}") from None
    except PermissionError:
        raise CorpusError(f"{path}: cannot be read; give yourself permission (chmod +r)") from None
    except (ValueError, KeyError, TypeError):
        raise CorpusError(f"{path}: corrupted; {remedy}") from None
    if not known:
        raise CorpusError(f"{path}: written by another version; {remedy}")
    for name, count in counts.items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there != count * item:
            raise CorpusError(f"{folder / name}: has {there:,} bytes instead of {count * item:,}; {remedy}")
    return meta  # type: ignore[no-any-return]


def open_corpus(data: DataConfig, results: Path) -> Corpus:
    """Open a corpus that was prepared below `results`; a computed one needs no preparation.

    Raises:
        CorpusError: it is not prepared, or damaged; says the command that mends it.
    """
    if isinstance(data.corpus, SyntheticSpec):
        return SyntheticCorpus(data)
    if isinstance(data.corpus, TaskSpec):
        from trainer.corpora.tasks import open_task

        return open_task(data, results)
    folder = corpus_folder(results, fingerprint(data))
    return TokenCorpus(data, folder, f"run: {data.command(results)}")


def capacity(data: DataConfig, results: Path) -> int | None:
    """Training tokens of one epoch of a prepared corpus, read from its meta.json alone; None if unlimited.

    Raises CorpusError where the corpus is not prepared.
    """
    if data.computed:
        return None
    folder = corpus_folder(results, fingerprint(data))
    stored = int(read_meta(folder, f"run: {data.command(results)}")["train_tokens"])
    if isinstance(data.corpus, ImagesSpec):
        # Each image is stored with its class behind it.
        return stored // (data.corpus.side**2 + 1) * data.corpus.side**2
    return stored
