"""Floods of telemetry: summed up instead of sent one by one, while they last.

    below the rate    every event goes to its feeds, as any other
    above it          its *flow* collects the events, and each flush of a feed sends what has come since its last one as
                      a summary (`dns_query_log` turns into one `dns_query_stats`), an even sample, and how many were
                      left out

A flow is what feeds with the same conditions on a telemetry type have in common: its events are counted, collected and
summed up once, whatever number of feeds it has.

What it keeps true: each event of a flow is sent or counted for each of its feeds, exactly once. A flow collects at most
MAX_COLLECTED events before its feeds are flushed, and a table of names has at most as many rows, so that counts are
exact. Types without a summary (`rpz_hit`) are sampled and counted. It begins with the first event over the rate, and is
over when the rate has not been reached for CALM_INTERVALS.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import islice
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

import msgspec

from solowire.catalog import CATALOG
from solowire.events import Event, Priority
from solowire.log import Entry

SAMPLE_EVENTS = 20
"""How many events stand for those that are left out, of each type and frame, at most."""

MAX_COLLECTED = 20_000
CALM_INTERVALS = 3

SUMMARY_BYTES = 12 * 1024
"""What a summary may take in a frame. Its tables are cut to less than that."""

TOP_ROWS = 10
KIND_ROWS = 20
_MAX_NAME_BYTES = 400  # as JSON; a DNS name in presentation form can be longer, but that is one nobody looks for

_QUERIES, _STATS = "dns_query_log", "dns_query_stats"
_offset = attrgetter("offset")


class Rates(msgspec.Struct, frozen=True):
    """Above how many events per second, of one type and for one feed, telemetry is summed up. interval: seconds."""

    rate: float = float("inf")
    rates: dict[str, float] = {}
    interval: float = 1.0

    def of(self, name: str) -> float:
        return self.rates.get(name, self.rate)


class Waiting(Protocol):
    """What a flow needs of a feed."""

    def waits_for(self, offset: int, until: float) -> bool:
        """An event at `offset` will be sent at `until`, or with what is sent sooner; whether the feed is due sooner."""


F = TypeVar("F", bound=Waiting)


class Digest(msgspec.Struct, frozen=True):
    """What is sent for a run of events: some of them, and a summary, if their type has one. total: of the run."""

    total: int
    sample: Sequence[Entry]
    summary: Entry | None


class Flow(Generic[F]):
    """The events of one telemetry type that meet the same conditions. active: they are being summed up."""

    def __init__(self, name: str, rates: Rates) -> None:
        self.name = name
        self.feeds: set[F] = set()
        self.active = False
        self.entries: list[Entry] = []  # collected, and not yet sent by all feeds
        self.ends = float("-inf")  # of the interval
        self._interval = rates.interval
        self._limit = rates.of(name) * rates.interval
        self._count = 0
        self._calm = 0
        self._level: set[F] = set()  # feeds that have sent all that was collected
        self._digests: dict[tuple[int, int], Digest] = {}

    def add(self, feed: F) -> None:
        """A feed that has nothing to send of what was collected."""
        self.feeds.add(feed)
        self._level.add(feed)

    def discard(self, feed: F) -> None:
        self.feeds.discard(feed)
        self._level.discard(feed)
        self._forget_what_all_have()

    def count(self, now: float) -> bool:
        """Notes that one more event has come; whether it is to be collected. Time in seconds, monotonic."""
        if now >= self.ends:
            self.roll(now)
        self._count += 1
        if self._count > self._limit and not self.active:
            self.active = True
            self._calm = 0
            if not self.entries:  # else it had just been over, and some have still to send what it collected
                self._level = set(self.feeds)
        return self.active

    def roll(self, now: float) -> None:
        """Begins another interval, if this one has ended."""
        if now < self.ends:
            return
        if self.active:
            # Intervals in which nothing came at all are calm ones, too.
            calm = 0 if self._count > self._limit else self._calm + 1
            self._calm = calm + int((now - self.ends) / self._interval)
            self.active = self._calm < CALM_INTERVALS
        self._count = 0
        self.ends = now + self._interval

    def collect(self, entry: Entry, now: float) -> list[F]:
        """Takes an event; returns the feeds that are due sooner than they were."""
        self.entries.append(entry)
        if len(self.entries) >= MAX_COLLECTED:
            self._level.clear()
            return [feed for feed in self.feeds if feed.waits_for(entry.offset, now)]
        if not self._level:
            return []
        waiting, self._level = self._level, set()
        return [feed for feed in waiting if feed.waits_for(entry.offset, self.ends)]

    def between(self, after: int, upto: int, window: float | None = None) -> Digest | None:
        """What is to be sent of the events behind one offset and up to another; None if there are none."""
        first = bisect_right(self.entries, after, key=_offset)
        last = bisect_right(self.entries, upto, key=_offset)
        if first == last:
            return None
        digest = self._digests.get((first, last))
        if digest is None:
            digest = self._digests[first, last] = digest_of(self.name, self.entries[first:last], window)
        return digest

    def is_level(self, feed: F) -> None:
        """The feed has sent everything that was collected; one that has gone has no say in it."""
        if feed in self.feeds:
            self._level.add(feed)
            self._forget_what_all_have()

    def _forget_what_all_have(self) -> None:
        if self.entries and self._level == self.feeds:
            self.entries = []
            self._digests = {}


def digest_of(name: str, entries: Sequence[Entry], window: float | None = None) -> Digest:
    """entries: of one type, in the order of offsets, at least one. window: seconds in which they came, if known."""
    if len(entries) <= SAMPLE_EVENTS:
        return Digest(len(entries), entries, None)
    stride = -(-len(entries) // SAMPLE_EVENTS)
    summary = query_stats(entries, window) if name == _QUERIES else None
    return Digest(len(entries), entries[stride - 1 :: stride], summary)


def query_stats(entries: Sequence[Entry], window: float | None = None) -> Entry:
    """A `dns_query_stats` of these queries, at the offset of the last; its data is the same for all who may see it."""
    attributes = [entry.event.attributes for entry in entries]
    last = entries[-1]
    if window is None:
        window = last.event.taken - entries[0].event.taken
    seconds = round(max(window, 0.001), 3) if window > 0 else 1.0
    data = {
        "queries_per_second": round(len(entries) / seconds, 1),
        "window_s": seconds,
        "total_queries": len(entries),
        "blocked_queries": sum(1 for a in attributes if a.get("blocked") == "true"),
        "query_types": _table([a.get("query_type") for a in attributes], KIND_ROWS),
        "rcodes": _table([a.get("rcode") for a in attributes], KIND_ROWS),
        "top_names": _table([a.get("query_domain") for a in attributes], TOP_ROWS),
        "top_clients": _table([a.get("client_ip") for a in attributes], TOP_ROWS),
    }
    event_type = CATALOG[_STATS]
    event = Event(
        id=f"aggregate-{entries[0].offset}-{last.offset}",
        type=_STATS,
        data=msgspec.json.encode(data),
        priority=Priority.normal,
        delivery=event_type.delivery,
        timestamp=last.event.timestamp,
        key="aggregate",
        source="solowire",
    )
    return Entry(last.offset, event, event_type)


def summary_hides(hidden: frozenset[str]) -> frozenset[str]:
    """The fields of a summary that are not for a view from which `hidden` is hidden of the events."""
    return frozenset({"top_clients"}) if "client_ip" in hidden else frozenset()


def _table(values: Sequence[Hashable], rows: int) -> dict[str, int]:
    """The commonest values, commonest first."""
    counts = Counter(values)
    counts.pop(None, None)
    common = ((str(value), n) for value, n in counts.most_common(2 * rows))
    return dict(islice(((v, n) for v, n in common if len(msgspec.json.encode(v)) <= _MAX_NAME_BYTES), rows))
