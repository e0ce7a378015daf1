"""All feeds of a shard, found by their key or by what matches an entry.

What it keeps true: the feeds that an event matches are found without looking at those it doesn't (`FilterIndex`). Feeds
whose selections are equal hold the same one. A feed that has been dropped is found nowhere, has nothing due, and has no
say in its flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic

from solowire.fanout.aggregation_index import AggregationIndex
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed import C, Feed
from solowire.fanout.filter_index import FilterIndex
from solowire.fanout.frame_builder import FeedKey
from solowire.fanout.reader import Reader, Signal
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.fanout.trimmed_entries import TrimmedEntries
from solowire.model.events import Delivery, Priority
from solowire.model.subscriptions import CUSTOM, Filter, Selection
from solowire.runtime.settings.shard_settings import AggregationSettings


class FeedIndex(Generic[C]):
    """All feeds of one shard.

    aggregating: of each telemetry type that is being summed up, for how many feeds.
    """

    def __init__(
        self, log: RecentLog, conflator: Conflator | None = None, aggregation: AggregationSettings | None = None
    ) -> None:
        self._log = log
        self._conflator = Conflator() if conflator is None else conflator
        self._streams: AggregationIndex[Feed[C]] = AggregationIndex(aggregation or AggregationSettings())
        self._feeds: dict[FeedKey, Feed[C]] = {}
        self._index: FilterIndex[set[Feed[C]]] = FilterIndex()  # of what is no telemetry: flows have one of their own
        self._shadowing: set[Feed[C]] = set()  # feeds with custom types of which `custom.*` beside them says nothing

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed[C]]:
        return iter(self._feeds.values())

    def get(self, key: FeedKey) -> Feed[C]:
        """The feed of this key; made if there is none."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(key, self._log, self._conflator)
            telemetry, others = self._wanted_by(key)
            feed.join_streams(self._streams.add_feed(feed, telemetry))
            for name, conditions in others:
                self._index.get(name, conditions, set).add(feed)
            if _shadows(key):
                self._shadowing.add(feed)
        return feed

    def drop(self, feed: Feed[C]) -> None:
        """Forgets a feed that has no connections left."""
        if self._feeds.pop(feed.key, None) is None:
            return
        telemetry, others = self._wanted_by(feed.key)
        self._streams.discard_feed(feed, telemetry)
        feed.join_streams({})
        feed.forget_states()
        feed.flush_at = None  # who holds on to it, as a heap of feeds may, finds nothing to do
        for name, conditions in others:
            sharing = self._index.find(name, conditions)
            if sharing is not None:
                sharing.discard(feed)
                if not sharing:
                    self._index.discard(name, conditions)
        self._shadowing.discard(feed)

    def matching(self, entry: Entry) -> set[Feed[C]]:
        """The feeds that accept `entry`. Costs what it finds, and nothing for feeds of other types or values."""
        found: set[Feed[C]] = set()
        if entry.type.delivery is Delivery.telemetry:
            return found.union(*(flow.feeds for flow in self._streams.matching(entry)))
        own = entry.event.type
        for name in entry.match_names:
            for feeds in self._index.matching(name, entry.match_terms):
                if name == own or not self._shadowing:
                    found |= feeds
                else:
                    found.update(feed for feed in feeds if feed not in self._shadowing or not feed.filter.has_type(own))
        return found

    def collect_trimmed(self, lagging: set[Feed[C]], after: int, upto: int) -> TrimmedEntries:
        """What these feeds want of the entries behind one offset and up to another, of which the log forgets all."""
        found = TrimmedEntries()
        for entry in self._log.entries_after(after):
            if entry.offset > upto:
                break
            if entry.is_deferred:
                continue
            if entry.event.user is not None:
                found.own.setdefault(entry.event.user, []).append(entry)
            elif entry.event.delivery is Delivery.telemetry:
                for flow in self._streams.matching(entry):
                    found.telemetry.setdefault(flow, []).append(entry.offset)
            else:
                for feed in self.matching(entry) & lagging:
                    found.others.setdefault(feed, []).append(entry)
        return found

    def mark_lost(self, gone: list[Entry], lagging: Mapping[Feed[C], Iterable[tuple[Reader, str]]]) -> None:
        """Marks as lost those of the connections, each with its user, who lack one of these durable events."""
        newest: dict[Feed[C], int] = {}
        own: dict[str, list[Entry]] = {}
        for entry in gone:
            if entry.event.user is not None:
                own.setdefault(entry.event.user, []).append(entry)
                continue
            for feed in self.matching(entry) & lagging.keys():
                if feed.filter.is_visible(entry):
                    newest[feed] = entry.offset
        for feed, readers in lagging.items():
            for reader, user in readers:
                mine = (e.offset for e in own.get(user, ()) if feed.filter.accepts(e) and feed.filter.is_visible(e))
                if max(newest.get(feed, -1), *mine, -1) > reader.offset:
                    reader.handle(Signal.lost)

    def _wanted_by(self, key: FeedKey) -> tuple[Selection, Selection]:
        """What of a selection are telemetry types, and what are others."""
        telemetry: list[tuple[str, Filter]] = []
        others: list[tuple[str, Filter]] = []
        for name, conditions in key.selection:
            event_type = self._log.catalog.get_declared(name)
            collected = event_type is not None and event_type.delivery is Delivery.telemetry and name != CUSTOM
            (telemetry if collected else others).append((name, conditions))
        return tuple(telemetry), tuple(others)

    @property
    def aggregating(self) -> dict[str, int]:
        """Of each telemetry type that is summed up at present: for how many feeds."""
        return self._streams.count_active()

    def add_telemetry(self, entry: Entry, delay: float, now: float) -> tuple[list[Feed[C]], bool]:
        """Takes a telemetry event that is for all; the feeds that are due sooner by it, and whether it is summed up."""
        sooner: list[Feed[C]] = []
        summed = False
        critical = entry.event.priority is Priority.critical
        for flow in self._streams.matching(entry):
            if flow.count_event(entry, now) and not critical:
                summed = True
                sooner += flow.collect_event(entry, now)
            else:
                sooner += [feed for feed in flow.feeds if feed.add(entry, delay, now)]
        return sooner, summed


def _shadows(key: FeedKey) -> bool:
    """Whether `custom.*` says nothing about a custom type that is named beside it."""
    names = [name for name, _ in key.selection if name.startswith("custom.")]
    return CUSTOM in names and len(names) > 1
