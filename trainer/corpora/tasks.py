"""Corpora whose sequences pose a task: only a few of their targets are scored."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.corpora import images, recall, shapes
from trainer.corpora.corpus import IGNORE, Corpus, Examples, TokenCorpus, corpus_folder
from trainer.corpora.fingerprints import fingerprint
from trainer.corpora.spec import DataConfig
from trainer.corpora.taskspec import CopySpec, ImagesSpec, SelectiveCopySpec
from trainer.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TaskCorpus(Corpus):
    """Inputs and targets are made together; a sequence is the inputs and, behind them, the last target."""

    scored: int

    @abstractmethod
    def train_examples(self, indices: NDArray[np.int64], seq_len: int) -> Examples:
        """Inputs and targets of the training sequences `indices`."""

    @abstractmethod
    def heldout_examples(self, start: int, stop: int, seq_len: int) -> Examples:
        """Inputs and targets of the held-out sequences `start` to `stop`."""

    def train_sequences(self, indices: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
        """Training sequences, int64 (n, seq_len + 1): the inputs, then the last answer."""
        return _joined(self.train_examples(indices, seq_len))

    def heldout_sequences(self, start: int, stop: int, seq_len: int) -> NDArray[np.int64]:
        """Held-out sequences, int64 (n, seq_len + 1): the inputs, then the last answer."""
        return _joined(self.heldout_examples(start, stop, seq_len))

    @property
    def token_bytes(self) -> None:
        """The ids of a task stand for no text."""
        return None


class RecallCorpus(TaskCorpus):
    """Unlimited sequences of the copy or the selective copy task."""

    def __init__(self, data: DataConfig) -> None:
        assert isinstance(data.corpus, CopySpec | SelectiveCopySpec)
        self._spec = data.corpus
        self.fingerprint, self.label = fingerprint(data), data.label
        self.vocab_size, self.scored = data.corpus.vocab_size, data.corpus.n_tokens
        self.n_train_tokens = self.n_heldout_tokens = None
        self.entropy_rate = 0.0

    def check_length(self, seq_len: int) -> None:
        """Raise CorpusError where content and answers do not fit."""
        recall.check_length(self._spec, seq_len)

    def train_examples(self, indices: NDArray[np.int64], seq_len: int) -> Examples:
        """Training sequences `indices`."""
        return recall.examples(self._spec, recall.TRAIN, indices, seq_len, IGNORE)

    def heldout_examples(self, start: int, stop: int, seq_len: int) -> Examples:
        """Held-out sequences, of a domain that training never draws from."""
        import numpy as np

        indices = np.arange(start, stop, dtype=np.int64)
        return recall.examples(self._spec, recall.HELDOUT, indices, seq_len, IGNORE)

    def verify(self) -> None:
        """A task that is computed cannot be damaged."""


class ImageCorpus(TaskCorpus):
    """Images as sequences of greys; the only scored target, behind the last pixel, is the class."""

    scored = 1

    def __init__(self, data: DataConfig) -> None:
        assert isinstance(data.corpus, ImagesSpec)
        self._spec = data.corpus
        self.label, self.vocab_size = data.label, data.corpus.vocab_size
        self.entropy_rate = None

    def check_length(self, seq_len: int) -> None:
        """Raise CorpusError for any length but that of an image."""
        if problem := self._spec.length_problem(seq_len):
            raise CorpusError(f"{self.label}: seq_len = {seq_len}: {problem}")


class ShapesCorpus(ImageCorpus):
    """Unlimited drawn images.  Noise may hide a shape, so the least loss is above 0 by an unknown amount."""

    def __init__(self, data: DataConfig) -> None:
        super().__init__(data)
        self.fingerprint = fingerprint(data)
        self.n_train_tokens = self.n_heldout_tokens = None

    def train_examples(self, indices: NDArray[np.int64], seq_len: int) -> Examples:
        """Training images `indices`."""
        self.check_length(seq_len)
        return self._drawn(shapes.TRAIN, indices)

    def heldout_examples(self, start: int, stop: int, seq_len: int) -> Examples:
        """Held-out images, of a domain that training never draws from."""
        import numpy as np

        self.check_length(seq_len)
        return self._drawn(shapes.HELDOUT, np.arange(start, stop, dtype=np.int64))

    def _drawn(self, split: int, indices: NDArray[np.int64]) -> Examples:
        greys, classes = shapes.draw(self._spec, split, indices)
        ids = images.to_levels(greys, self._spec.levels).reshape(len(indices), -1)
        return _asked_last(ids, self._spec.levels + classes)

    def verify(self) -> None:
        """Images that are drawn cannot be damaged."""


class ImageFiles(ImageCorpus):
    """Images that were read from files, mapped into memory: each its pixels, then its class."""

    def __init__(self, data: DataConfig, files: TokenCorpus) -> None:
        super().__init__(data)
        self._files, self.fingerprint = files, files.fingerprint
        pixels = self._spec.side**2
        self._n_train = files.n_train_tokens // (pixels + 1)
        self._n_heldout = files.n_heldout_tokens // (pixels + 1)
        self.n_train_tokens, self.n_heldout_tokens = self._n_train * pixels, self._n_heldout * pixels

    def n_train_sequences(self, seq_len: int) -> int:
        """Training images."""
        return self._n_train

    def n_heldout_sequences(self, seq_len: int) -> int:
        """Held-out images."""
        return self._n_heldout

    def train_examples(self, indices: NDArray[np.int64], seq_len: int) -> Examples:
        """Training images `indices`."""
        self.check_length(seq_len)
        return self._read(self._files.train_ids, indices)

    def heldout_examples(self, start: int, stop: int, seq_len: int) -> Examples:
        """Images of a fixed permutation: the file holds one class after the other."""
        import numpy as np

        from trainer.rng import Permutation

        self.check_length(seq_len)
        self.check_heldout(stop, seq_len)
        order = Permutation(self._n_heldout, 0, f"heldout {self.fingerprint}")
        return self._read(self._files.heldout_ids, order(np.arange(start, stop, dtype=np.int64)))

    def _read(self, ids: NDArray[np.unsignedinteger[Any]], indices: NDArray[np.int64]) -> Examples:
        import numpy as np

        rows = ids.reshape(-1, self._spec.side**2 + 1)[indices].astype(np.int64)
        return _asked_last(rows[:, :-1], rows[:, -1])

    def verify(self) -> None:
        """Read both files and raise CorpusError where one is not what was prepared."""
        self._files.verify()


def _asked_last(ids: NDArray[np.int64], answers: NDArray[np.int64]) -> Examples:
    import numpy as np

    targets = np.full(ids.shape, IGNORE, dtype=np.int64)
    targets[:, -1] = answers
    return np.ascontiguousarray(ids), targets


def open_task(data: DataConfig, results: Path) -> Corpus:
    """The corpus of a task; images that are read must have been prepared below `results` (CorpusError)."""
    if not isinstance(data.corpus, ImagesSpec):
        return RecallCorpus(data)
    if data.corpus.drawn:
        return ShapesCorpus(data)
    folder = corpus_folder(results, fingerprint(data))
    return ImageFiles(data, TokenCorpus(data, folder, f"run: {data.command(results)}"))


def _joined(examples: Examples) -> NDArray[np.int64]:
    import numpy as np

    inputs, targets = examples
    return np.concatenate((inputs, targets[:, -1:]), axis=1)
