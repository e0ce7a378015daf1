"""All feeds of a shard, found by their key or by what matches an entry.

What it keeps true: the feeds that an event matches are found without looking at those it doesn't, by type and by the
value of one condition. That index may name a feed in vain, so `Feed.accepts` has the last word. A feed that has been
dropped is found nowhere, has nothing due, and has no say in its flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic

from solowire.aggregation import Rates
from solowire.compaction import Dropped, Lag
from solowire.events import Delivery, Priority
from solowire.feed import C, Feed
from solowire.flows import Asked, Flows, Slot, slots_of
from solowire.log import Entry, Log
from solowire.pacing import Pacing
from solowire.parts import FeedKey
from solowire.subscriptions import CUSTOM, Filter


class Feeds(Generic[C]):
    """All feeds of one shard.

    aggregating: of each telemetry type that is being summed up, for how many feeds.
    """

    def __init__(self, log: Log, pacing: Pacing | None = None, rates: Rates | None = None) -> None:
        self._log = log
        self._pacing = Pacing() if pacing is None else pacing
        self._flows: Flows[Feed[C]] = Flows(Rates() if rates is None else rates, log.catalog)
        self._feeds: dict[FeedKey, Feed[C]] = {}
        self._index: dict[Slot, set[Feed[C]]] = {}  # feeds that accept whatever is found there
        self._candidates: dict[Slot, set[Feed[C]]] = {}  # feeds that have further conditions
        self._asked = Asked()

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed[C]]:
        return iter(self._feeds.values())

    def get(self, key: FeedKey) -> Feed[C]:
        """The feed of this key; made if there is none."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(key, self._log, self._pacing)
            feed.flows = self._flows.of(feed, self._telemetry(key))
            feed.summed = {name: flow.summed for name, flow in feed.flows.items()}
            for slot, sure in _slots(key):
                (self._index if sure else self._candidates).setdefault(slot, set()).add(feed)
                self._asked.add(slot)
        return feed

    def drop(self, feed: Feed[C]) -> None:
        """Forgets a feed that has no connections left."""
        if self._feeds.pop(feed.key, None) is None:
            return
        self._flows.drop(feed, self._telemetry(feed.key))
        feed.flows = {}
        feed.due = None  # who holds on to it, as a heap of feeds may, finds nothing to do
        for slot, sure in _slots(feed.key):
            self._asked.discard(slot)
            index = self._index if sure else self._candidates
            index[slot].discard(feed)
            if not index[slot]:
                del index[slot]

    def matching(self, entry: Entry) -> set[Feed[C]]:
        """The feeds that accept `entry`. Costs what it finds, and nothing for feeds of other types or values."""
        found: set[Feed[C]] = set()
        index, candidates = self._index, self._candidates
        for name in entry.names:
            everything = (name, "", "")
            found.update(index.get(everything, ()))
            for feed in candidates.get(everything, ()):
                if feed.accepts(entry):
                    found.add(feed)
            for attribute, values in self._asked.terms(name, entry):
                for value in values:
                    slot = (name, attribute, value)
                    found.update(index.get(slot, ()))
                    for feed in candidates.get(slot, ()):
                        if feed.accepts(entry):
                            found.add(feed)
        return found

    def dropped(self, lagging: set[Feed[C]], after: int, upto: int) -> Dropped:
        """What these feeds want of the entries behind one offset and up to another, of which the log forgets all."""
        found = Dropped()
        for entry in self._log.after(after):
            if entry.offset > upto:
                break
            if entry.held:
                continue
            if entry.event.user is not None:
                found.own.setdefault(entry.event.user, []).append(entry)
            elif entry.event.delivery is Delivery.telemetry:
                for flow in self._flows.matching(entry):
                    found.telemetry.setdefault(flow, []).append(entry.offset)
            else:
                for feed in self.matching(entry) & lagging:
                    found.others.setdefault(feed, []).append(entry)
        return found

    def lose(self, gone: list[Entry], lagging: Mapping[Feed[C], Iterable[tuple[Lag, str]]]) -> None:
        """Marks as lost those of the connections, each with its user, who lack one of these durable events."""
        newest: dict[Feed[C], int] = {}
        own: dict[str, list[Entry]] = {}
        for entry in gone:
            if entry.event.user is not None:
                own.setdefault(entry.event.user, []).append(entry)
                continue
            for feed in self.matching(entry) & lagging.keys():
                if feed.shows(entry):
                    newest[feed] = entry.offset
        for feed, lags in lagging.items():
            for lag, user in lags:
                mine = (e.offset for e in own.get(user, ()) if feed.accepts(e) and feed.shows(e))
                lag.lost = lag.lost or max(newest.get(feed, -1), *mine, -1) > lag.cursor

    def _telemetry(self, key: FeedKey) -> list[tuple[str, Filter]]:
        """What of a selection are telemetry types."""
        found = []
        for name, conditions in key.selection:
            event_type = self._log.catalog.get(name)
            if event_type is not None and event_type.delivery is Delivery.telemetry and name != CUSTOM:
                found.append((name, conditions))
        return found

    @property
    def aggregating(self) -> dict[str, int]:
        """Of each telemetry type that is summed up at present: for how many feeds."""
        return self._flows.active()

    def add_telemetry(self, entry: Entry, delay: float, now: float) -> tuple[list[Feed[C]], bool]:
        """Takes a telemetry event that is for all; the feeds that are due sooner by it, and whether it is summed up."""
        sooner: list[Feed[C]] = []
        summed = False
        critical = entry.event.priority is Priority.critical
        for flow in self._flows.matching(entry):
            if flow.count(entry, now) and not critical:
                summed = True
                sooner += flow.collect(entry, now)
            else:
                sooner += [feed for feed in flow.feeds if feed.add(entry, delay, now)]
        return sooner, summed


def _slots(key: FeedKey) -> Iterator[tuple[Slot, bool]]:
    """Where the feed stands in the index, and whether what is found there needs no second look."""
    # `custom.*` says nothing about a custom type that is named beside it.
    shadowed = any(name.startswith("custom.") and name != CUSTOM for name, _ in key.selection)
    for name, conditions in key.selection:
        sure = not (shadowed and name == CUSTOM)
        for slot in slots_of(name, conditions):
            yield slot, sure and len(conditions) <= 1
