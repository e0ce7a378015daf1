"""Numbers of shards, for people: percentiles, and sums that mean something."""

from __future__ import annotations

from solowire.backplane import ShardStats
from solowire.histogram import Histogram
from solowire.numbers import percentiles, together, told


def latency(*milliseconds: float) -> list[int]:
    histogram = Histogram()
    for ms in milliseconds:
        histogram.add(ms / 1000)
    return histogram.counts


def test_a_shard_is_told_with_percentiles_and_all_its_numbers() -> None:
    """The histogram becomes p50, p95 and p99; nothing else is lost."""
    stats = ShardStats(connections=3, groups={"viewer": 3}, latency=latency(1, 1, 1, 1000))
    found = told(stats)
    assert set(found) == (set(ShardStats.__struct_fields__) - {"latency"}) | {"latency_s"}
    assert found["latency_s"]["p50"] < 0.002 < 0.5 < found["latency_s"]["p99"]


def test_what_was_never_sent_has_no_latency() -> None:
    """A quiet shard, and one of an older version, say null and not 0."""
    assert percentiles([]) == percentiles([0] * 36) == {"p50": None, "p95": None, "p99": None}


def test_shards_together_are_sums_and_the_worst() -> None:
    """Counts are summed, ages are those of the worst shard, and latency is that of all frames."""
    one = ShardStats(
        connections=1, groups={"viewer": 1}, memory_bytes=10, loop_lag_s=0.1, frames_per_s=1.5, latency=latency(1, 1, 1)
    )
    two = ShardStats(
        connections=2, groups={"viewer": 1, "admin": 1}, memory_bytes=20, loop_lag_s=0.3, frames_per_s=2.5,
        latency=latency(1000),
    )  # fmt: skip
    whole = together([one, two])
    assert (whole["connections"], whole["memory_bytes"], whole["frames_per_s"]) == (3, 30, 4.0)
    assert whole["groups"] == {"viewer": 2, "admin": 1}
    assert whole["loop_lag_s"] == 0.3
    assert whole["latency_s"]["p50"] < 0.002
    assert whole["latency_s"]["p99"] > 0.5


def test_no_shard_at_all_has_numbers_too() -> None:
    """While no shard is there the totals are zeros."""
    whole = together([])
    assert (whole["connections"], whole["oldest_cursor_s"], whole["groups"]) == (0, 0.0, {})
