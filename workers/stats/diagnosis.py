"""A diagnosis of a slow shard: for the log, when an alert asks.

It looks at everything once, which takes some milliseconds, and only then: nothing of this is counted before.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from solowire.fanout.feed import Feed
from solowire.workers.connections.connection import Connection
from solowire.workers.shard import Shard
from solowire.workers.stats.cursor_age import CursorAges
from solowire.workers.stats.report import ShardReporter

MOST = 5
NEWEST_ENTRIES = 10_000
TYPES_NAMED = 8


def diagnose(shard: Shard, reporter: ShardReporter, now: float) -> dict[str, Any]:
    """The slowest feeds, the largest frames, the top publishers and types, and the connections that lag."""
    feeds = list(shard.feeds)
    slowest = sorted((f for f in feeds if f.behind), key=_oldest)
    largest = sorted((f for f in feeds if f.largest_bytes), key=lambda feed: -feed.largest_bytes)
    newest = shard.log.newest_entries(NEWEST_ENTRIES)
    return {
        "connections": len(shard.connections),
        "feeds": len(feeds),
        "slowest_feeds": [_slow(feed, shard, now) for feed in slowest[:MOST]],
        "largest_frames": [{"bytes": feed.largest_bytes, **_about(feed)} for feed in largest[:MOST]],
        "top_publishers": _top(Counter(entry.event.publisher or "unknown" for entry in newest)),
        "top_types": _top(Counter(entry.event.type for entry in newest)),
        "of_events": len(newest),
        "lagging": len(shard.dispatcher.find_lagging()),
        "slowest_connections": [
            {name: about[name] for name in ("user", "session", "address", "lag_offsets", "lag_s", "blocked_s")}
            for about in reporter.list_slowest(now, MOST)
        ],
    }


def _oldest(feed: Feed[Connection]) -> int:
    return min(reader.offset for reader in feed.behind.values())


def _slow(feed: Feed[Connection], shard: Shard, now: float) -> dict[str, Any]:
    return {
        **_about(feed),
        "lagging": len(feed.behind),
        "lag_offsets": shard.log.position - _oldest(feed),
        "lag_s": round(CursorAges(shard, now).measure_oldest(feed.behind), 3),
    }


def _about(feed: Feed[Connection]) -> dict[str, Any]:
    """What it selects, in short: types without their filters' values."""
    names = [name for name, _ in feed.key.selection]
    return {
        "connections": len(feed),
        "codec": feed.key.codec.label,
        "types": names[:TYPES_NAMED],
        "types_more": max(0, len(names) - TYPES_NAMED),
        "filtered": sum(bool(conditions) for _, conditions in feed.key.selection),
    }


def _top(counted: Counter[str]) -> dict[str, int]:
    return dict(counted.most_common(MOST))
