"""The reports of a shard: once a second, its slowest connections, one user's connections.

What it keeps true: reading numbers costs the data path nothing. Totals are what the shard counts anyway; rates are the
difference between two reports; connections by group, codec and transport are counted here, once a second, since
counting as they come and go would have to know of every change of a role. A connection lags that is behind its feed:
its socket is busy, or it is slow and waits for its turn.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from solowire.backplane.messages import ShardStats
from solowire.observability.stats_summary import top_n_with_other
from solowire.workers.connections.connection import Connection
from solowire.workers.shard import Shard
from solowire.workers.stats.cursor_age import CursorAges

LATENCY_SECONDS = 10
"""For how long a latency counts in what is reported: a second of a quiet shard would say little."""

SLOWEST = 10


class _Mark(NamedTuple):
    """The totals at a time."""

    at: float
    events: int
    deliveries: int
    frames: int
    sent_bytes: int
    connections_rejected: int
    latency: list[int]


_ConnectionLabels = tuple[str, str, str]
"""Group, codec and transport."""


class ShardReporter:
    """Reports the numbers of a shard. Times: seconds, monotonic. memory: bytes. loop_lag: seconds."""

    def __init__(
        self,
        shard: Shard,
        *,
        memory: Callable[[], int] = lambda: 0,
        loop_lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._shard = shard
        self._memory = memory
        self._loop_lag = loop_lag
        self._marks: deque[_Mark] = deque(maxlen=LATENCY_SECONDS + 1)
        self._rates: dict[str, float] = {}
        self._counted: dict[str, Any] = {}
        self._next: ShardStats | None = None
        self._connection_counts: Counter[_ConnectionLabels] = Counter()
        self._counted_version = (0, 0, 0)  # of the connections when `_connection_counts` was made

    def update(self, now: float) -> None:
        """Makes the next report. To be called once a second."""
        mark = self._mark(now)
        if self._marks:
            last = self._marks[-1]
            self._rates = {
                f"{name}_per_s": round(max(0, getattr(mark, name) - getattr(last, name)) / (now - last.at), 1)
                for name in ("events", "deliveries", "frames", "sent_bytes", "connections_rejected")
            }
        self._marks.append(mark)
        self._counted = self._count(now)
        self._next = self.build_report(now)

    def take_report(self) -> ShardStats | None:
        """The newest report, for the next heartbeat; None if one has had it."""
        taken, self._next = self._next, None
        return taken

    def build_report(self, now: float) -> ShardStats:
        """The totals of now, and what the last second has counted: however often somebody asks, it is counted once."""
        if not self._counted:
            self._counted = self._count(now)
        return msgspec.structs.replace(self._shard.stats(), **self._counted)

    def _count(self, now: float) -> dict[str, Any]:
        """What takes a look at every connection, and what it is compared with."""
        shard = self._shard
        groups, codecs, transports = (_sum_by(place, self._count_by_labels()) for place in range(3))
        used, granted = shard.lease_usage
        before = self._marks[0].latency if self._marks else []
        latency = shard.dispatcher.latency.counts
        lagging = shard.dispatcher.find_lagging()
        return dict(
            lagging=len(lagging),
            groups=groups,
            codecs=codecs,
            transports=transports,
            latency=[new - old for new, old in zip(latency, before, strict=True)] if before else list(latency),
            max_connection_lag_s=round(CursorAges(shard, now).measure_oldest(lagging), 3),
            log_events=len(shard.log),
            memory_bytes=self._memory(),
            event_loop_lag_s=round(self._loop_lag(), 4),
            lease_used=used,
            lease_granted=granted,
            aggregating=shard.feeds.aggregating,
            legacy=shard.dialects.summarize() if shard.dialects is not None else {},
            **self._rates,
        )

    def count_connections(self) -> dict[tuple[str, ...], int]:
        """Open connections by group, codec and transport. Of many groups the largest are told, and `other`.

        Without connections it is a 0 without labels, which makes a sum of 0 rather than none.
        """
        counts = self._count_by_labels()
        if not counts:
            return {("", "", ""): 0}
        named = top_n_with_other(_sum_by(0, counts))
        bounded: Counter[tuple[str, ...]] = Counter()
        for (group, codec, transport), count in counts.items():
            bounded[group if group in named else "other", codec, transport] += count
        return dict(bounded)

    def _count_by_labels(self) -> Counter[_ConnectionLabels]:
        """Looks at ten thousand connections only if one has come, gone or changed its group."""
        connections, totals = self._shard.connections, self._shard.totals
        version = (totals["connections_opened"], totals["regrouped"], len(connections))
        if version != self._counted_version:
            self._counted_version = version
            self._connection_counts = Counter([(c.group, c.codec.label, c.transport) for c in connections])
        return self._connection_counts

    def list_slowest(self, now: float, count: int = SLOWEST) -> list[dict[str, Any]]:
        """Of the connections that lag those that are furthest behind, as `_describe`, the furthest first."""
        lagging = sorted(self._shard.dispatcher.find_lagging(), key=lambda c: _cursor(c, self._shard))
        ages = CursorAges(self._shard, now)
        return [self._describe(c, ages, now) for c in lagging[:count]]

    def list_user(self, user: str, now: float) -> list[dict[str, Any]]:
        """The user's connections here, as `_describe` and with their subscriptions."""
        ages = CursorAges(self._shard, now)
        return [
            {**self._describe(c, ages, now), "subscriptions": [name for name, _ in c.selection]}
            for c in self._shard.connections
            if c.identity.user == user
        ]

    def _describe(self, connection: Connection, ages: CursorAges, now: float) -> dict[str, Any]:
        """One connection. lag_s: age of the event that it gets next. blocked_s: how long its socket has been busy."""
        shard = self._shard
        cursor = _cursor(connection, shard)
        reader = connection.reader
        return {
            "user": connection.identity.user,
            "session": connection.session,
            "shard": shard.index,
            "role": connection.identity.role,
            "group": connection.group,
            "address": connection.address,
            "codec": connection.codec.label,
            "transport": connection.transport,
            "state": connection.state.value,
            "connected_s": round(now - connection.opened_at, 3),
            "cursor": cursor,
            "lag_offsets": shard.log.position - cursor,
            "lag_s": round(ages.measure(connection), 3),
            "blocked_s": round(now - reader.blocked_since, 3) if reader.is_blocked else 0.0,
        }

    def _mark(self, now: float) -> _Mark:
        t = self._shard.totals
        counts = list(self._shard.dispatcher.latency.counts)
        return _Mark(now, t["events"], t["deliveries"], t["frames"], t["sent_bytes"], t["connections_rejected"], counts)


def _cursor(connection: Connection, shard: Shard) -> int:
    return connection.feed.cursor_of(connection) if connection.feed is not None else shard.log.position


def _sum_by(place: int, counts: Mapping[_ConnectionLabels, int]) -> dict[str, int]:
    """Connections by one of their labels."""
    total: Counter[str] = Counter()
    for labels, count in counts.items():
        total[labels[place]] += count
    return dict(total)
