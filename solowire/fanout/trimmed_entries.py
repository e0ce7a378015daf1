"""Entries that the log is about to drop, for the feeds that have readers that have not read them.

What it keeps true: it is looked through once for all of them, and of each feed each reader gets its own count. Durable
events are not counted: the log keeps them for longer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import Any

from solowire.fanout.aggregation import AggregationStream
from solowire.fanout.feed import Feed
from solowire.fanout.reader import Counts, Reader, make_counts, subtract_counts
from solowire.fanout.recent_log import Entry
from solowire.model.events import Delivery


class TrimmedEntries:
    """Entries that the log is about to drop.

    telemetry: offsets, by flow. others: what is for all who want it, by feed. own: what is for one user, by user.
    """

    def __init__(self) -> None:
        self.telemetry: dict[AggregationStream[Any], list[int]] = {}
        self.others: dict[Feed[Any], list[Entry]] = {}
        self.own: dict[str, list[Entry]] = {}

    def count_for(self, feed: Feed[Any], readers: Iterable[tuple[Reader, str]], upto: int) -> None:
        """Before the log drops what lies up to `upto`: counts it for these readers of a feed, each with its user."""
        last, by_type = self._list_for(feed)
        missed: dict[int, Counter[str]] = {}  # by cursor
        made: dict[tuple[int, Counts], Counts] = {}
        for reader, user in readers:
            cursor = reader.offset
            if cursor >= upto:
                continue
            mine = [e for e in self.own.get(user, ()) if e.offset > cursor and feed.filter.accepts(e)]
            if reader.is_in_full and (last > cursor or mine):
                reader.full_until = 0  # it can't have all in full any more: the rest is counted, as for others
            reader.trimmed_until = upto
            counts = missed.get(cursor)
            if counts is None:
                found = ((name, len(offsets) - bisect_right(offsets, cursor)) for name, offsets in by_type.items())
                counts = missed[cursor] = Counter({name: events for name, events in found if events})
            counted = [e.event.type for e in mine if e.event.delivery is not Delivery.durable]
            if counted:
                omitted = make_counts(counts + Counter(counted))
                reader.reported_omitted = subtract_counts(reader.reported_omitted, omitted)
            elif counts:
                place = (cursor, reader.reported_omitted)
                if place not in made:
                    made[place] = subtract_counts(reader.reported_omitted, make_counts(counts))
                reader.reported_omitted = made[place]

    def _list_for(self, feed: Feed[Any]) -> tuple[int, dict[str, list[int]]]:
        """The offset of the last of these that the feed gets, -1 if none, and those that are counted, by type."""
        last = -1
        by_type: dict[str, list[int]] = {}
        for entry in self.others.get(feed, ()):
            if feed.filter.is_visible(entry):
                last = entry.offset
                if entry.event.delivery is not Delivery.durable:
                    by_type.setdefault(entry.event.type, []).append(entry.offset)
        for name, flow in feed.streams.items():
            offsets = self.telemetry.get(flow)
            if offsets:
                last = max(last, offsets[-1])
                by_type[name] = offsets
        return last, by_type
