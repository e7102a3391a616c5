"""Copy and selective copy: sequences whose last positions ask for tokens that came long before.

    copy             content, noise, markers: the content at the markers, in order
    selective copy   content scattered in order among noise, markers: the same

Arjovsky et al. 2016 (arXiv 1511.06464, section 5.1) for the copy task, Gu and Dao 2023 (arXiv 2312.00752,
section 4.1.1) for the selective one, both at the lengths of Kausik (arXiv 2402.14746).  Everything that is
asked for is there, so the least loss is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.corpora.files import digest_of
from trainer.corpora.taskspec import CopySpec, SelectiveCopySpec
from trainer.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRAIN, HELDOUT = 0, 1
_PLACE_BITS = 24
"""Positions below 2^24 fit beside a 40-bit random number in one word."""


def content_fingerprint(spec: CopySpec | SelectiveCopySpec) -> str:
    """SHA-256 over the fields; the leading number is raised when they come to mean other sequences."""
    return digest_of("recall", 1, spec.model_dump(mode="json"))


def check_length(spec: CopySpec | SelectiveCopySpec, seq_len: int) -> None:
    """Raise CorpusError where a sequence has no room for the content and as many answers."""
    if problem := spec.length_problem(seq_len):
        raise CorpusError(f"{spec.kind}: seq_len = {seq_len}: {problem}")


def examples(
    spec: CopySpec | SelectiveCopySpec, split: int, indices: NDArray[np.int64], seq_len: int, ignore: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets of sequences of TRAIN or HELDOUT, each int64 (n, seq_len).

    Each is a pure function of (spec, split, its index, seq_len).  Only the targets at the last n_tokens
    positions are not `ignore`.
    """
    import numpy as np

    from trainer.rng import raw_words

    check_length(spec, seq_len)
    n, asked = len(indices), spec.n_tokens
    open_places = seq_len - asked
    scattered = isinstance(spec, SelectiveCopySpec)
    count = asked + (open_places if scattered else 0)
    words = np.empty((n, count), dtype=np.uint64)
    for row, index in enumerate(indices.tolist()):
        words[row] = raw_words(spec.seed, spec.kind, split, index, seq_len, n=count)
    # The remainder's bias is below alphabet / 2^64.
    content = (words[:, :asked] % np.uint64(spec.alphabet)).astype(np.int64)
    inputs = np.full((n, seq_len), spec.alphabet, dtype=np.int64)
    if scattered:
        # The places of the least random numbers are a uniform choice; the place in the low bits makes all
        # numbers different, so that the choice depends on no sorting algorithm.
        low = np.uint64(2**_PLACE_BITS - 1)
        keys = (words[:, asked:] & ~low) | np.arange(open_places, dtype=np.uint64)
        least = np.partition(keys, asked - 1, axis=1)[:, :asked]
        np.put_along_axis(inputs, np.sort(least & low, axis=1).astype(np.int64), content, axis=1)
    else:
        inputs[:, :asked] = content
    inputs[:, open_places:] = spec.alphabet + 1
    targets = np.full((n, seq_len), ignore, dtype=np.int64)
    targets[:, open_places:] = content
    return inputs, targets
