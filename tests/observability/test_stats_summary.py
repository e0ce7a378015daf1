"""Numbers of shards, for people: percentiles, and sums that mean something."""

from __future__ import annotations

from typing import Any

from solowire.algorithms.histogram import Histogram
from solowire.backplane.messages import ShardStats
from solowire.observability.stats_summary import aggregate, percentiles, stats_to_dict


def latency(*milliseconds: float) -> list[int]:
    histogram = Histogram()
    for ms in milliseconds:
        histogram.add(ms / 1000)
    return histogram.counts


def test_a_shard_is_told_with_percentiles_and_all_its_numbers() -> None:
    """The histogram becomes p50, p95 and p99; nothing else is lost."""
    stats = ShardStats(connections=3, groups={"viewer": 3}, latency=latency(1, 1, 1, 1000))
    found = stats_to_dict(stats)
    assert set(found) == (set(ShardStats.__struct_fields__) - {"latency"}) | {"latency_s"}
    assert found["latency_s"]["p50"] < 0.002 < 0.5 < found["latency_s"]["p99"]


def test_what_was_never_sent_has_no_latency() -> None:
    """A quiet shard, and one of an older version, say null and not 0."""
    assert percentiles([]) == percentiles([0] * 36) == {"p50": None, "p95": None, "p99": None}


def test_shards_together_are_sums_and_the_worst() -> None:
    """Counts are summed, ages are those of the worst shard, and latency is that of all frames."""
    one = ShardStats(
        connections=1,
        groups={"viewer": 1},
        memory_bytes=10,
        event_loop_lag_s=0.1,
        frames_per_s=1.5,
        latency=latency(1, 1, 1),
    )
    two = ShardStats(
        connections=2, groups={"viewer": 1, "admin": 1}, memory_bytes=20, event_loop_lag_s=0.3, frames_per_s=2.5,
        latency=latency(1000),
    )  # fmt: skip
    whole = aggregate([one, two])
    assert (whole["connections"], whole["memory_bytes"], whole["frames_per_s"]) == (3, 30, 4.0)
    assert whole["groups"] == {"viewer": 2, "admin": 1}
    assert whole["event_loop_lag_s"] == 0.3
    assert whole["latency_s"]["p50"] < 0.002
    assert whole["latency_s"]["p99"] > 0.5


def test_every_number_of_the_shards_is_in_the_totals() -> None:
    """What a shard reports is summed, or the worst of all; only its places in the log are nobody else's."""
    worst = {"max_connection_lag_s", "event_loop_lag_s", "events_per_s"}
    alone = {"events", "log_end_offset", "log_start_offset"}
    tallies = {"groups", "codecs", "transports", "aggregating", "legacy"}
    numbers = [name for name in ShardStats.__struct_fields__ if name not in tallies | {"latency"}]
    values: dict[str, Any] = {name: 2 + n for n, name in enumerate(numbers)}
    one = ShardStats(**values | {name: {"a": 1, "b": 2} for name in tallies})
    values = dict.fromkeys(numbers, 1)
    two = ShardStats(**values | {name: {"b": 3} for name in tallies})
    whole = aggregate([one, two])
    assert whole.pop("latency_s") == percentiles([])
    assert {name: whole.pop(name) for name in tallies} == {name: {"a": 1, "b": 5} for name in tallies}
    assert whole == {name: 2 + n if name in worst else 3 + n for n, name in enumerate(numbers) if name not in alone}


def test_percentiles_are_those_that_they_are_called() -> None:
    """Of a hundred times fifty are below p50, ninety-five below p95 and ninety-nine below p99."""
    found = percentiles(latency(*[1] * 50, *[10] * 45, *[100] * 4, 10_000))
    p50, p95, p99 = found["p50"], found["p95"], found["p99"]
    assert p50 is not None
    assert p95 is not None
    assert p99 is not None
    assert p50 < 0.002 < p95 < 0.02 < p99 < 0.2


def test_no_shard_at_all_has_numbers_too() -> None:
    """While no shard is there the totals are zeros."""
    whole = aggregate([])
    assert (whole["connections"], whole["max_connection_lag_s"], whole["groups"]) == (0, 0.0, {})
