"""Counter-based randomness: the only source of random numbers in training.

A draw is a pure function of (seed, purpose, counters): nothing is advanced, so nothing has to be saved in a
checkpoint, and two purposes never share a stream.  Only the raw bits of numpy's bit generators are frozen
between numpy versions, so what must never change (data order, synthetic text) uses `raw_words` and
`Permutation`.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_FEISTEL_ROUNDS = 8
_WORD = 2**64


def key_words(seed: int, purpose: str, n: int = 2) -> Words:
    """The first `n` (at most 4) 64-bit words of SHA-256 over (seed, purpose)."""
    digest = hashlib.sha256(f"{seed}\n{purpose}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8", count=n).astype(np.uint64)


def _bit_generator(seed: int, purpose: str, counters: tuple[int, ...]) -> np.random.Philox:
    if len(counters) > 3:
        raise ValueError(f"at most 3 counters, got {len(counters)}")
    if any(not 0 <= c < _WORD for c in counters):
        raise ValueError(f"counters must lie in [0, 2**64), got {counters}")
    # The lowest of the four counter words is the one that Philox counts up while drawing.
    start = np.array([0, *counters, *(0,) * (3 - len(counters))], dtype=np.uint64)
    return np.random.Philox(key=key_words(seed, purpose), counter=start)


def philox(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh numpy Generator for (seed, purpose, counters).

    Args:
        seed: the run's seed.
        purpose: what the numbers are for ("init", "dropout", ...); streams of two purposes are independent.
        counters: up to three numbers below 2**64 (a step, a layer, a rank).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10).
    """
    return np.random.Generator(_bit_generator(seed, purpose, counters))


def raw_words(seed: int, purpose: str, *counters: int, n: int) -> Words:
    """`n` raw 64-bit words of the stream of (seed, purpose, counters); frozen for all numpy versions."""
    words: Words = _bit_generator(seed, purpose, counters).random_raw(n)
    return words


def integer(seed: int, purpose: str, *counters: int, below: int = 2**63) -> int:
    """One integer in [0, below), below <= 2**64: a seed for another library, an offset."""
    if not 0 < below <= _WORD:
        raise ValueError(f"below must lie in (0, 2**64], got {below}")
    high, low = (int(word) for word in raw_words(seed, purpose, *counters, n=2))
    # 128 bits reduced to 64 at most: the bias is below 2**-64.
    return ((high << 64) | low) % below


def _mix(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection; every bit reaches every bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Permutation:
    """A keyed permutation of 0 .. n-1 that needs no memory: its value at any index is computed alone.

    A Feistel network on pairs (left, right), left < a and right < b, where a is near the root of n and ab the
    least such product not below n; walked along its cycles until the value falls below n (Black and Rogaway,
    2002, "Ciphers with arbitrary finite domains", their generalised Feistel cipher).  At most about sqrt(n)
    pairs lie outside, so walks are rare.
    """

    def __init__(self, n: int, seed: int, purpose: str) -> None:
        if not 0 < n <= 2**62:
            raise ValueError(f"a permutation needs 0 < n <= 2**62, got {n}")
        self.n = n
        a = math.isqrt(n - 1) + 1
        self._a, self._b = np.uint64(a), np.uint64(-(-n // a))
        self._keys = raw_words(seed, purpose, n=_FEISTEL_ROUNDS)

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map indices in [0, n), of any shape, to their places in the permutation (int64, same shape)."""
        flat = np.asarray(indices, dtype=np.int64).ravel()
        if flat.size and not (0 <= int(flat.min()) and int(flat.max()) < self.n):
            raise ValueError(f"indices must lie in [0, {self.n})")
        out = self._feistel(flat.astype(np.uint64))
        limit = np.uint64(self.n)
        outside = np.flatnonzero(out >= limit)
        while outside.size:
            out[outside] = self._feistel(out[outside])
            outside = outside[out[outside] >= limit]
        return out.astype(np.int64).reshape(np.shape(indices))

    def _feistel(self, words: Words) -> Words:
        right, left = np.divmod(words, self._a)
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            left = (left + _mix(right ^ even) % self._a) % self._a
            right = (right + _mix(left ^ odd) % self._b) % self._b
        result: Words = right * self._a + left
        return result
