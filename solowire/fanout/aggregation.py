"""Floods of telemetry: summed up instead of sent one by one, while they last.

    below the rate    every event goes to its feeds, as any other
    above it          its *flow* collects the events: of each interval an even sample is sent, the others are counted,
                      and when it ends one summary of all of them goes out, if their type has a *rollup*

A flow is what feeds with the same conditions on a telemetry type have in common: its events are counted, collected,
sampled and summed up once, whatever number of feeds it has. What else goes out on a feed in the middle of an interval
takes along the counts and what there is of the sample up to its cursor, and nothing more: however often that happens,
an interval costs SAMPLE_EVENTS events and a summary.

What it keeps true: each event of a flow is sent or counted for each of its feeds, exactly once, and before their cursor
is beyond it. Critical ones are never collected. A summary has at most MAX_COLLECTED events, of MAX_COLLECTED_BYTES, and
a table of names has at most as many rows, so that counts are exact; with more, another begins. Types without a rollup
are sampled and counted. A flood begins with the first event over the rate, and is over when the rate has
not been reached for CALM_INTERVALS.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Generic, Protocol, TypeVar

import msgspec

from solowire.fanout.recent_log import Entry
from solowire.model.catalog import Rollup
from solowire.model.events import Event, Priority
from solowire.runtime.settings.shard_settings import AggregationSettings

SAMPLE_EVENTS = 20
"""How many events stand for those that are left out, at most: of each flow and interval, and, for a slow reader, of
each type and frame."""

MAX_COLLECTED = 20_000
MAX_COLLECTED_BYTES = 32 * 2**20
"""Of one flow and interval. Usual queries reach the number first."""

SAMPLE_KEPT_BYTES = 2 * 2**20
"""Of one flow: beyond it the oldest of its samples are forgotten, and only count for those who are behind."""

KEPT_INTERVALS = 30
"""Of so many the sample and the summaries are known, for those who are behind."""

CALM_INTERVALS = 3

SUMMARY_BYTES = 12 * 1024
"""What a summary may take in a frame. Its tables are cut to less than that."""


class Deferrable(Protocol):
    """What a flow needs of a feed."""

    def defer_until(self, offset: int, until: float) -> bool:
        """An event at `offset` will be sent at `until`, or with what is sent sooner; whether the feed is due sooner."""


F = TypeVar("F", bound=Deferrable)


class Digest(msgspec.Struct, frozen=True):
    """What is sent for a run of events: some of them, and summaries, if their type has them. total: of the run."""

    total: int
    sample: Sequence[Entry]
    summaries: Sequence[Entry]


class AggregationStream(Generic[F]):
    """The events of one telemetry type that meet the same conditions.

    is_active: they are being summed up. began_offset: behind which. summary_count: how many summaries there
    have been.
    """

    def __init__(self, name: str, settings: AggregationSettings) -> None:
        self.name = name
        self.feeds: set[F] = set()
        self.is_active = False
        self.began_offset = 0
        self.summary_count = 0
        self.ends_at = float("-inf")  # of the interval
        self._interval = settings.interval_s
        self._limit = settings.rate_for(name) * settings.interval_s
        self._count = 0
        self._calm = 0
        self._caught_up: set[F] = set()  # feeds that have sent all that was collected
        self._offsets: list[int] = []  # of what was collected, and has not yet been sent by all feeds
        self._unsummed: list[Entry] = []
        self._unsummed_bytes = 0
        self._since = 0.0  # when the first of these may have come
        self._sample: deque[Entry] = deque()
        self._sample_bytes = 0
        self._sampled = 0  # in this interval
        self._stride = 1
        self._next_sampled = 0  # this one of the interval's is part of the sample
        self._summaries: deque[Entry] = deque(maxlen=KEPT_INTERVALS)

    def add_feed(self, feed: F) -> None:
        """A feed that has nothing to send of what was collected."""
        self.feeds.add(feed)
        self._caught_up.add(feed)

    def discard_feed(self, feed: F) -> None:
        self.feeds.discard(feed)
        self._caught_up.discard(feed)
        self._drop_sent()

    def count_event(self, entry: Entry, now: float) -> bool:
        """Notes that one more event has come; whether it is to be collected. Time in seconds, monotonic."""
        if now >= self.ends_at:
            self.rotate(now)
        self._count += 1
        if self._count > self._limit and not self.is_active:
            self.is_active = True
            self.began_offset = entry.offset - 1
            self._calm = 0
            self._since = now
            self._stride = max(1, -(-int(self._limit) // SAMPLE_EVENTS))
            self._next_sampled = self._count
            if not self._offsets:  # else it had just been over, and some have still to send what it collected
                self._caught_up = set(self.feeds)
        return self.is_active

    def rotate(self, now: float) -> None:
        """Begins another interval, if this one has ended."""
        if now < self.ends_at:
            return
        self._summarise(self.ends_at)
        if self.is_active:
            # Intervals in which nothing came at all are calm ones, too.
            calm = 0 if self._count > self._limit else self._calm + 1
            self._calm = calm + int((now - self.ends_at) / self._interval)
            self.is_active = self._calm < CALM_INTERVALS
        # So that the sample is even, if as many come as before.
        self._stride = max(1, -(-self._count // SAMPLE_EVENTS))
        self._next_sampled = 1
        self._sampled = self._count = 0
        self._since = now
        self.ends_at = now + self._interval

    def collect_event(self, entry: Entry, now: float) -> list[F]:
        """Takes an event that was counted; returns the feeds that are due sooner than they were."""
        self._offsets.append(entry.offset)
        self._unsummed.append(entry)
        self._unsummed_bytes += entry.size
        if self._count >= self._next_sampled and self._sampled < SAMPLE_EVENTS:
            self._next_sampled = self._count + self._stride
            self._sampled += 1
            self._keep_sampled(entry)
        if len(self._unsummed) >= MAX_COLLECTED or self._unsummed_bytes >= MAX_COLLECTED_BYTES:
            self._summarise(now)
            self._caught_up.clear()
            return [feed for feed in self.feeds if feed.defer_until(entry.offset, now)]
        if not self._caught_up:
            return []
        caught_up, self._caught_up = self._caught_up, set()
        return [feed for feed in caught_up if feed.defer_until(entry.offset, self.ends_at)]

    def _keep_sampled(self, entry: Entry) -> None:
        self._sample.append(entry)
        self._sample_bytes += entry.size
        while len(self._sample) > KEPT_INTERVALS * SAMPLE_EVENTS or self._sample_bytes > SAMPLE_KEPT_BYTES:
            self._sample_bytes -= self._sample.popleft().size

    def _summarise(self, now: float) -> None:
        rollup = self._unsummed[0].type.rollup if self._unsummed else None
        if rollup is not None:
            self._summaries.append(roll_up(rollup, self._unsummed, now - self._since))
            self.summary_count += 1
        self._unsummed = []
        self._unsummed_bytes = 0
        self._since = now

    def has_pending(self, summed: int) -> bool:
        """Whether a feed that has sent so many of the summaries has something to send, now or when it ends."""
        return self.is_active or bool(self._offsets) or summed < self.summary_count

    def digest_between(self, after: int, upto: int, summed: int) -> Digest | None:
        """What is to be sent of what was collected behind one offset and up to another; None if there is nothing.

        summed: so many summaries that end there have been sent.
        """
        first = bisect_right(self._offsets, after)
        total = bisect_right(self._offsets, upto) - first
        new = min(self.summary_count - summed, len(self._summaries))
        summaries = [s for s in islice(self._summaries, len(self._summaries) - new, None) if s.offset <= upto]
        if not total and not summaries:
            return None
        return Digest(total, self.sample_between(after, upto) if total else (), summaries)

    def count_summaries_until(self, offset: int) -> int:
        """How many of the summaries end there."""
        return self.summary_count - sum(1 for _ in takewhile(lambda s: s.offset > offset, reversed(self._summaries)))

    def sample_between(self, after: int, upto: int) -> Sequence[Entry]:
        """What it sends of what lies behind one offset and up to another, as far as it knows."""
        return _between(self._sample, after, upto)

    def summaries_between(self, after: int, upto: int) -> Sequence[Entry]:
        """The summaries whose last event lies there, as `sample_between`."""
        return _between(self._summaries, after, upto)

    def mark_sent(self, feed: F) -> None:
        """The feed has sent everything that was collected; one that has gone has no say in it."""
        if feed in self.feeds:
            self._caught_up.add(feed)
            self._drop_sent()

    def _drop_sent(self) -> None:
        if self._offsets and self._caught_up == self.feeds:
            self._offsets = []


def _between(entries: Sequence[Entry], after: int, upto: int) -> Sequence[Entry]:
    found = []
    for entry in reversed(entries):  # nearly always the newest are wanted
        if entry.offset <= after:
            break
        if entry.offset <= upto:
            found.append(entry)
    found.reverse()
    return found


def build_digest(entries: Sequence[Entry], seconds: float) -> Digest:
    """Of a slow reader's events of one type, in the order of offsets, at least one, that came within `seconds`."""
    if len(entries) <= SAMPLE_EVENTS:
        return Digest(len(entries), entries, ())
    stride = -(-len(entries) // SAMPLE_EVENTS)
    rollup = entries[0].type.rollup
    summaries = [roll_up(rollup, entries, seconds)] if rollup is not None else []
    return Digest(len(entries), entries[stride - 1 :: stride], summaries)


def roll_up(rollup: Rollup, entries: Sequence[Entry], seconds: float) -> Entry:
    """The summary of these events, which came within `seconds`, at the offset of the last.

    Its data is the same for all who may see it.
    """
    last = entries[-1]
    data = rollup.make_data([entry.event.attributes for entry in entries], seconds)
    event = Event(
        id=f"aggregate-{entries[0].offset}-{last.offset}",
        type=rollup.into.name,
        data=msgspec.json.encode(data),
        priority=Priority.normal,
        delivery=rollup.into.delivery,
        timestamp=last.event.timestamp,
        key="aggregate",
        source="solowire",
    )
    return Entry(last.offset, event, rollup.into)
