"""Counter-based randomness: purposes and counters are independent, permutations are bijections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rng import Permutation, integer, philox, raw_words


def test_a_draw_is_a_pure_function_of_seed_purpose_and_counters() -> None:
    first = philox(1, "init", 3).standard_normal(8)
    assert np.array_equal(first, philox(1, "init", 3).standard_normal(8))
    others = [philox(2, "init", 3), philox(1, "dropout", 3), philox(1, "init", 4), philox(1, "init", 3, 1)]
    for other in others:
        assert not np.intersect1d(first, other.standard_normal(8)).size


def test_streams_of_neighbouring_counters_do_not_overlap() -> None:
    words = np.concatenate([raw_words(5, "x", counter, n=1000) for counter in range(20)])
    assert len(np.unique(words)) == len(words)


def test_raw_words_are_frozen() -> None:
    assert [int(word) for word in raw_words(1, "golden", 2, 3, n=2)] == [
        10388726867162410052,
        2865817258187963656,
    ]


def test_seed_and_purpose_cannot_be_confused() -> None:
    assert integer(1, "1 x") != integer(11, " x")
    assert integer(1, "2\nx") != integer(12, "x")


@given(st.integers(0, 2**40), st.integers(1, 2**64))
@settings(max_examples=50)
def test_integers_stay_below_their_bound(seed: int, below: int) -> None:
    assert 0 <= integer(seed, "bound", below=below) < below


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_permutation_is_a_bijection(n: int, seed: int) -> None:
    values = Permutation(n, seed, "p")(np.arange(n))
    assert np.array_equal(np.sort(values), np.arange(n))


@given(n=st.integers(1, 2**62), at=st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_a_permutation_of_any_size_stays_inside_and_is_pointwise(n: int, at: int) -> None:
    permutation = Permutation(n, 0, "p")
    index = at % n
    several = permutation(np.array([index, 0, n - 1]))
    assert several.min() >= 0 and several.max() < n
    assert permutation(np.array([index]))[0] == several[0]


def test_a_permutation_leaves_no_pattern() -> None:
    n = 10_000
    values = Permutation(n, 3, "p")(np.arange(n))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.04
    assert abs(np.corrcoef(np.arange(n), values)[0, 1]) < 0.04
    other = Permutation(n, 4, "p")(np.arange(n))
    assert np.mean(values == other) < 0.002


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 counters"):
        philox(0, "x", 1, 2, 3, 4)
    with pytest.raises(ValueError, match="counters must lie"):
        philox(0, "x", -1)
    with pytest.raises(ValueError, match="indices must lie"):
        Permutation(5, 0, "x")(np.array([5]))
    with pytest.raises(ValueError, match="needs 0 < n"):
        Permutation(0, 0, "x")
    with pytest.raises(ValueError, match="below must lie"):
        integer(0, "x", below=0)
