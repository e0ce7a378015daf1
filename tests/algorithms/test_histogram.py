"""The histogram: what it says of a distribution, held against the distribution itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.histogram import BOUNDS, BUCKETS, Histogram, merge_counts, quantile

TIMES = st.floats(min_value=0.0, max_value=BOUNDS[-1])


def test_an_empty_one_has_no_quantile() -> None:
    """Where nothing was measured nothing is said."""
    assert quantile(Histogram().counts, 0.5) is None
    assert quantile(merge_counts([]), 0.99) is None


@given(st.lists(TIMES, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_lies_within_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """No answer is further off than the bucket is wide."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    found = quantile(histogram.counts, share)
    assert found is not None
    bucket = next(i for i, bound in enumerate(BOUNDS) if true <= bound)
    assert (BOUNDS[bucket - 1] if bucket else 0.0) <= found <= BOUNDS[bucket]


@given(st.lists(st.tuples(TIMES, st.integers(0, 1000)), max_size=50))
def test_a_weight_counts_as_so_many_values(values: list[tuple[float, int]]) -> None:
    """One frame to a thousand connections is a thousand values."""
    weighted, single = Histogram(), Histogram()
    for value, weight in values:
        weighted.add(value, weight)
        for _ in range(weight):
            single.add(value)
    assert weighted.counts == single.counts
    assert weighted.sum == pytest.approx(single.sum)


@given(st.lists(TIMES, max_size=50), st.lists(TIMES, max_size=50))
def test_those_of_two_shards_are_summed(one: list[float], other: list[float]) -> None:
    """Merging loses nothing: it is as if one had measured everything."""
    a, b, both = Histogram(), Histogram(), Histogram()
    for value in one:
        a.add(value)
    for value in other:
        b.add(value)
    for value in one + other:
        both.add(value)
    assert merge_counts([a.counts, b.counts]) == both.counts


def test_what_is_beyond_the_last_bound_is_that_bound_at_least() -> None:
    """An hour is counted, and said to be as long as can be said."""
    histogram = Histogram()
    histogram.add(3600.0)
    assert quantile(histogram.counts, 0.5) == BOUNDS[-1]


def test_counts_of_other_buckets_are_refused_or_left_out() -> None:
    """A process of another version can't spoil the sum."""
    with pytest.raises(ValueError, match="buckets"):
        Histogram([1, 2, 3])
    assert merge_counts([[1, 2, 3], [1] * BUCKETS]) == [1] * BUCKETS
