"""A seeded source of unlimited tokens with exactly known entropy rate: an irreducible loss to judge fits by.

An order-k Markov source.  Every context has its own permutation of ONE distribution, p(rank) proportional to
(rank + 1)^-s, so whatever context comes, the next token costs H(p) nats: the entropy rate is H(p), exactly,
whatever the stationary law.  A permutation moves ranks only within geometric blocks (with block_ratio 4: 0-3,
4-15, 16-63, ...), so token and context frequencies stay Zipf-like and contexts are learned one after another,
the frequent ones first.  A sequence starts from the context of all zeros, so its first tokens obey the law as
well.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from trainer.corpora.files import digest_of
from trainer.corpora.spec import SyntheticSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK_ENTRIES = 2**21
TRAIN, HELDOUT = 0, 1


def content_fingerprint(spec: SyntheticSpec) -> str:
    """SHA-256 over the fields; the leading number is raised when they come to mean other tokens."""
    return digest_of("synthetic", 1, spec.model_dump(mode="json"))


def probabilities(spec: SyntheticSpec) -> list[float]:
    """Probability p of the ranks 0 .. vocab_size - 1."""
    weights = [(rank + 1.0) ** -spec.zipf_exponent for rank in range(spec.vocab_size)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy_rate(spec: SyntheticSpec) -> float:
    """H(p) in nats per token: the least loss that any model can have on average."""
    return -math.fsum(p * math.log(p) for p in probabilities(spec) if p > 0)


@lru_cache(maxsize=8)
def heldout_entropy(spec: SyntheticSpec, n: int, seq_len: int) -> float:
    """Mean -log p of the source on its first n held-out sequences, nats per target: a perfect model's loss.

    It differs from `entropy_rate` as the mean of a sample does, by about a standard error of a held-out loss.
    """
    import numpy as np

    ranks = source(spec).ranks(HELDOUT, np.arange(n, dtype=np.int64), seq_len + 1)
    return float(-np.log(np.array(probabilities(spec)))[ranks[:, 1:]].mean())


def block_numbers(spec: SyntheticSpec) -> list[int]:
    """The block of each rank: block b holds ranks in [ratio^b, ratio^(b+1)), the first also those below."""
    out, block, end = [], 0, spec.block_ratio
    for rank in range(spec.vocab_size):
        if rank >= end:
            block, end = block + 1, end * spec.block_ratio
        out.append(block)
    return out


@lru_cache(maxsize=4)
def source(spec: SyntheticSpec) -> MarkovSource:
    """The source of `spec`, its table shared by all who read it in this process."""
    return MarkovSource(spec)


class MarkovSource:
    """Draws sequences; its table (vocab_size^order, vocab_size) is built at the first draw."""

    def __init__(self, spec: SyntheticSpec) -> None:
        self.spec = spec

    @cached_property
    def table(self) -> NDArray[np.uint16]:
        """Token of (context, rank); a context is a number to the base vocab_size, latest digit last."""
        import numpy as np

        from trainer.rng import raw_words

        spec, v = self.spec, self.spec.vocab_size
        contexts = v**spec.order
        blocks = np.array(block_numbers(spec), dtype=np.uint64)
        table = np.empty((contexts, v), dtype=np.uint16)
        rows = max(1, _CHUNK_ENTRIES // v)
        for start in range(0, contexts, rows):
            n = min(rows, contexts - start)
            words = raw_words(spec.seed, "synthetic table", start, n=n * v).reshape(n, v)
            # The block in the top bits keeps the sort from crossing blocks; 17 bits hold any block number.
            keys = (words >> np.uint64(17)) | (blocks << np.uint64(47))
            table[start : start + n] = np.argsort(keys, axis=1, kind="stable")
        return table

    @cached_property
    def _cumulative(self) -> NDArray[np.uint64]:
        """Upper ends of the ranks' intervals in [0, 2^53), integers so that no rounding mode matters."""
        import numpy as np

        ends, total = [], 0.0
        for p in probabilities(self.spec):
            total += p
            ends.append(round(total * 2**53))
        return np.array(ends[:-1], dtype=np.uint64)

    def ranks(self, split: int, indices: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """The ranks that sequences `indices` draw, int64 (n, length)."""
        import numpy as np

        from trainer.rng import raw_words

        words = np.empty((len(indices), length), dtype=np.uint64)
        for row, index in enumerate(indices):
            words[row] = raw_words(self.spec.seed, "synthetic draws", split, int(index), n=length)
        return np.searchsorted(self._cumulative, words >> np.uint64(11), side="right")

    def sequences(self, split: int, indices: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Sequences `indices` of TRAIN or HELDOUT, int64 (n, length); each a pure function of its index.

        A shorter sequence is the beginning of the longer one of the same index.
        """
        import numpy as np

        v, n = self.spec.vocab_size, len(indices)
        ranks = self.ranks(split, indices, length)
        # Time first, so that each step reads and writes contiguous memory.
        ranks = np.ascontiguousarray(ranks.T)
        flat, contexts = self.table.reshape(-1), v**self.spec.order
        out = np.empty((length, n), dtype=np.int64)
        context = np.zeros(n, dtype=np.int64)
        for t in range(length):
            token = flat[context * v + ranks[t]].astype(np.int64)
            out[t] = token
            context = (context * v + token) % contexts
        return np.ascontiguousarray(out.T)
