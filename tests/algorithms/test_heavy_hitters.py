"""The commonest values are found in bounded memory, and no count is too high."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.heavy_hitters import HeavyHitters


@given(st.lists(st.integers(0, 12), max_size=200), st.integers(1, 20))
def test_counts_are_certain_and_what_is_common_is_among_them(values: list[int], capacity: int) -> None:
    hitters: HeavyHitters[int] = HeavyHitters(capacity)
    for value in values:
        hitters.add(value)
    top = hitters.top(capacity)
    exact = Counter(values)
    assert len(top) <= capacity
    assert all(count <= exact[value] for value, count in top)
    assert {value for value, count in exact.items() if count > len(values) / capacity} <= {value for value, _ in top}
    if len(exact) <= capacity:
        assert dict(top) == dict(exact)


def test_the_commonest_come_first() -> None:
    hitters: HeavyHitters[str] = HeavyHitters(10)
    for value in "abacab":
        hitters.add(value)
    assert hitters.top(2) == [("a", 3), ("b", 2)]
