"""Numbers of shards as they are told to people: percentiles instead of buckets, and the sum of several shards.

Groups may be as many as there are tenants: where that would be too much to tell, the largest are told
(`top_n_with_other`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from solowire.algorithms.histogram import merge_counts, quantile
from solowire.backplane.messages import ShardStats

SUM_FIELDS = (
    "connections", "feeds", "lagging", "log_events", "log_bytes", "deliveries", "frames", "sent_bytes",
    "connections_opened", "connections_rejected", "deliveries_per_s", "frames_per_s", "sent_bytes_per_s",
    "connections_rejected_per_s", "memory_bytes", "lease_used", "lease_granted", "users",
)  # fmt: skip
MAX_FIELDS = ("max_connection_lag_s", "event_loop_lag_s", "events_per_s")
"""Of all shards the largest: each gets nearly all events, so that their sum would say nothing."""
COUNTER_FIELDS = ("groups", "codecs", "transports", "aggregating", "legacy")

MOST_VALUES = 30
"""So many names of a tally, or values of a label, are told; those with the smallest numbers are summed as `other`."""


N = TypeVar("N", int, float)


def stats_to_dict(stats: ShardStats) -> dict[str, Any]:
    """One shard's numbers, with `latency_s` in place of the histogram."""
    fields = msgspec.structs.asdict(stats)
    counts: Sequence[int] = fields.pop("latency")
    return {**fields, "latency_s": percentiles(counts)}


def percentiles(counts: Sequence[int]) -> dict[str, float | None]:
    """p50, p95 and p99 in seconds; None where nothing was sent."""
    found = {name: quantile(counts, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {name: round(value, 5) if value is not None else None for name, value in found.items()}


def aggregate(several: Iterable[ShardStats]) -> dict[str, Any]:
    """The numbers of several shards as one's: sums, the worst of what can't be summed, one latency."""
    stats = list(several)
    whole: dict[str, Any] = {name: sum(getattr(s, name) for s in stats) for name in SUM_FIELDS}
    whole |= {name: round(value, 1) for name, value in whole.items() if isinstance(value, float)}
    whole |= {name: max((getattr(s, name) for s in stats), default=0.0) for name in MAX_FIELDS}
    whole |= {name: _sum_counters(getattr(s, name) for s in stats) for name in COUNTER_FIELDS}
    return {**whole, "latency_s": percentiles(merge_counts(s.latency for s in stats))}


def top_n_with_other(values: Mapping[str, N]) -> dict[str, N]:
    """The largest, and what is left as `other`."""
    if len(values) <= MOST_VALUES:
        return dict(values)
    ranked = sorted(values.items(), key=lambda item: -item[1])
    kept = dict(ranked[: MOST_VALUES - 1])
    for _, value in ranked[MOST_VALUES - 1 :]:
        kept["other"] = kept.get("other", 0) + value
    return kept


def _sum_counters(tallies: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    return dict(total)
