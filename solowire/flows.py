"""Which flows an event belongs to: found by its type and the value of one condition, as feeds are.

What it keeps true: a feed is in one flow for each telemetry type that it wants, together with all feeds that have the
same conditions on it; a flow without feeds is forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Generic

from solowire.aggregation import F, Flow, Rates
from solowire.catalog import CATALOG, Catalog
from solowire.conditions import Conditions, conditions_of, meets
from solowire.log import Entry
from solowire.subscriptions import Filter

Slot = tuple[str, str, str]
"""Event type, attribute, value; the latter two are empty where all events of the type are wanted."""


def slots_of(name: str, conditions: Filter) -> Iterator[Slot]:
    """Where something that wants these events stands in an index: one condition is enough, the narrowest."""
    if conditions:
        attribute, values = min(conditions, key=_width)
        for value in values:
            yield (name, attribute, value)
    else:
        yield (name, "", "")


def _width(condition: tuple[str, frozenset[str]]) -> int:
    return len(condition[1])


class Flows(Generic[F]):
    """All flows of a shard."""

    def __init__(self, rates: Rates, catalog: Catalog = CATALOG) -> None:
        self._rates = rates
        self._catalog = catalog
        self._flows: dict[tuple[str, Filter], Flow[F]] = {}
        self._index: dict[Slot, dict[Flow[F], Conditions]] = {}

    def of(self, feed: F, wanted: Iterable[tuple[str, Filter]]) -> dict[str, Flow[F]]:
        """Puts a feed that wants these into its flows; returns them by event type."""
        found = {}
        for name, conditions in wanted:
            flow = self._flows.get((name, conditions))
            if flow is None:
                flow = self._flows[name, conditions] = Flow(name, self._rates)
                ready = conditions_of(conditions, self._catalog)
                for slot in slots_of(name, conditions):
                    self._index.setdefault(slot, {})[flow] = ready
            flow.add(feed)
            found[name] = flow
        return found

    def drop(self, feed: F, wanted: Iterable[tuple[str, Filter]]) -> None:
        """Takes a feed out of the flows that it was put into."""
        for name, conditions in wanted:
            flow = self._flows[name, conditions]
            flow.discard(feed)
            if not flow.feeds:
                del self._flows[name, conditions]
                for slot in slots_of(name, conditions):
                    del self._index[slot][flow]
                    if not self._index[slot]:
                        del self._index[slot]

    def matching(self, entry: Entry) -> Iterable[Flow[F]]:
        """The flows of an event, whose type is no custom one."""
        name = entry.event.type
        found = dict.fromkeys(self._index.get((name, "", ""), ()))
        for attribute, values in entry.terms.items():
            for value in values:
                flows = self._index.get((name, attribute, value))
                if flows is not None:
                    for flow, conditions in flows.items():
                        if len(conditions) == 1 or meets(entry.event.attributes, conditions):
                            found[flow] = None
        return found

    def active(self) -> dict[str, int]:
        """Of each type that is being summed up, for how many feeds."""
        counts: Counter[str] = Counter()
        for flow in self._flows.values():
            if flow.active:
                counts[flow.name] += len(flow.feeds)
        return dict(counts)
