"""The commonest of very many values, in bounded memory: the Space-Saving algorithm.

A. Metwally, D. Agrawal, A. El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005. It
counts `capacity` values. A new one takes the place of the one with the lowest count, and inherits that count: so a
count is too high by the lowest one at most, and whatever is more than one in `capacity` of all is among them. Values of
one count stand together in a bucket, so that adding costs the same however many there are.
"""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class HeavyHitters(Generic[V]):
    """Counts values, which must be hashable. capacity: how many are counted at a time."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[V, int] = {}
        self._inherited: dict[V, int] = {}
        self._buckets: dict[int, dict[V, None]] = {}  # by count; the values of one in the order of their coming
        self._lowest = 0

    def add(self, value: V) -> None:
        """Counts a value once more."""
        count = self._counts.get(value)
        if count is None:
            count = self._make_room(value) if len(self._counts) >= self._capacity else 0
            self._lowest = self._lowest if count else 1
        else:
            self._leave_bucket(value, count)
        count += 1
        self._counts[value] = count
        bucket = self._buckets.get(count)
        if bucket is None:
            self._buckets[count] = {value: None}
        else:
            bucket[value] = None

    def _make_room(self, value: V) -> int:
        """Forgets a value with the lowest count, and returns what `value` inherits."""
        lowest = self._lowest
        evicted = next(reversed(self._buckets[lowest]))
        self._leave_bucket(evicted, lowest)
        del self._counts[evicted]
        self._inherited.pop(evicted, None)
        self._inherited[value] = lowest
        return lowest

    def _leave_bucket(self, value: V, count: int) -> None:
        bucket = self._buckets[count]
        del bucket[value]
        if not bucket:
            del self._buckets[count]
            if count == self._lowest:
                self._lowest = count + 1  # where the value goes, or the one that takes its place

    def top(self, rows: int) -> list[tuple[V, int]]:
        """The commonest values with their counts, commonest first. A count is what is certain at least."""
        certain = ((value, count - self._inherited.get(value, 0)) for value, count in self._counts.items())
        return sorted(certain, key=lambda item: -item[1])[:rows]
