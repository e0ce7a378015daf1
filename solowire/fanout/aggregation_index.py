"""An index of aggregation streams by event type and attributes, as of feeds (`FilterIndex`).

What it keeps true: a feed is in one flow for each telemetry type that it wants, together with all feeds that have the
same conditions on it; a flow without feeds is forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Generic

from solowire.fanout.aggregation import AggregationStream, F
from solowire.fanout.filter_index import FilterIndex
from solowire.fanout.recent_log import Entry
from solowire.model.subscriptions import Filter
from solowire.runtime.settings.shard_settings import AggregationSettings


class AggregationIndex(Generic[F]):
    """All flows of a shard."""

    def __init__(self, settings: AggregationSettings) -> None:
        self._settings = settings
        self._index: FilterIndex[AggregationStream[F]] = FilterIndex()

    def add_feed(self, feed: F, wanted: Iterable[tuple[str, Filter]]) -> dict[str, AggregationStream[F]]:
        """Puts a feed that wants these into its flows; returns them by event type."""
        found = {}
        for name, conditions in wanted:
            flow = found[name] = self._index.get(name, conditions, partial(AggregationStream[F], name, self._settings))
            flow.add_feed(feed)
        return found

    def discard_feed(self, feed: F, wanted: Iterable[tuple[str, Filter]]) -> None:
        """Takes a feed out of the flows that it was put into."""
        for name, conditions in wanted:
            flow = self._index.find(name, conditions)
            if flow is not None:
                flow.discard_feed(feed)
                if not flow.feeds:
                    self._index.discard(name, conditions)

    def matching(self, entry: Entry) -> Iterable[AggregationStream[F]]:
        """The flows of an event, whose type is no custom one."""
        return self._index.matching(entry.event.type, entry.match_terms)

    def count_active(self) -> dict[str, int]:
        """Of each type that is being summed up, for how many feeds."""
        counts: Counter[str] = Counter()
        for flow in self._index:
            if flow.is_active:
                counts[flow.name] += len(flow.feeds)
        return dict(counts)
