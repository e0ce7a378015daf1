"""A histogram of times: enough to say p50, p95 and p99 of a million values in 36 numbers.

What it keeps true: buckets are the same in every process, so that counts of several can be summed. Bounds grow by a
factor of √2, so a quantile, found by interpolation within its bucket, is off by less than a fifth of itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BOUNDS: tuple[float, ...] = tuple(round(0.0005 * 2 ** (step / 2), 6) for step in range(35))
"""Upper bounds in seconds, inclusive: 0.5 ms to 65 s. What is longer is counted in one bucket more."""

BUCKETS = len(BOUNDS) + 1


class Exemplar(NamedTuple):
    """One of the values of a bucket that was of a trace, by which its like can be looked up. at: when, unix seconds."""

    seconds: float
    traceparent: str
    at: float


class Histogram:
    """A histogram of times in buckets of fixed bounds.

    Times in seconds. counts: one for each bucket. sum: of all values that were added, weighted. exemplars: of buckets,
    the newest value that was of a trace.
    """

    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self, counts: Iterable[int] = (), sum: float = 0.0) -> None:
        """Raises ValueError for counts of other buckets than these."""
        self.counts = list(counts) or [0] * BUCKETS
        self.sum = sum
        self.exemplars: dict[int, Exemplar] = {}
        if len(self.counts) != BUCKETS:
            raise ValueError(f"a histogram has {BUCKETS} buckets, not {len(self.counts)}")

    def add(self, seconds: float, weight: int = 1) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += weight
        self.sum += seconds * weight

    def note_trace(self, seconds: float, traceparent: str, at: float) -> None:
        """The value that is added is of a trace; at: unix seconds."""
        self.exemplars[bisect_left(BOUNDS, seconds)] = Exemplar(seconds, traceparent, at)


def merge_counts(several: Iterable[Sequence[int]]) -> list[int]:
    """The counts of several histograms as one's; such as are none of these buckets are left out."""
    fitting = [counts for counts in several if len(counts) == BUCKETS]
    return [sum(column) for column in zip(*fitting, strict=True)] or [0] * BUCKETS


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Below which time, in seconds, `share` (0 to 1) of the values lie; None if there are none.

    Of what lies beyond the last bound no more is known than that bound.
    """
    total = sum(counts)
    if not total:
        return None
    wanted = share * total
    below = 0
    for bucket, count in enumerate(counts):
        if count and below + count >= wanted:
            if bucket == len(BOUNDS):
                break
            low = BOUNDS[bucket - 1] if bucket else 0.0
            return low + (BOUNDS[bucket] - low) * (wanted - below) / count
        below += count
    return BOUNDS[-1]
