"""Which flows an event belongs to: found by its type and the value of one condition, as feeds are.

What it keeps true: a feed is in one flow for each telemetry type that it wants, together with all feeds that have the
same conditions on it; a flow without feeds is forgotten. Of an event only those attributes are looked at that somebody
filters its type by: the names above a name are made only where one of them may be found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Generic

from solowire.aggregation import F, Flow, Rates
from solowire.catalog import CATALOG, Catalog
from solowire.conditions import Conditions, conditions_of, meets
from solowire.domain_names import names_above
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


class Asked:
    """The attributes by whose values something stands in an index: no others of an event need a look."""

    def __init__(self) -> None:
        self._slots: dict[str, Counter[str]] = {}  # by event type and attribute: how many

    def add(self, slot: Slot) -> None:
        name, attribute, _ = slot
        if attribute:
            self._slots.setdefault(name, Counter())[attribute] += 1

    def discard(self, slot: Slot) -> None:
        name, attribute, _ = slot
        if attribute:
            slots = self._slots[name]
            slots[attribute] -= 1
            if not slots[attribute]:
                del slots[attribute]
            if not slots:
                del self._slots[name]

    def terms(self, name: str, entry: Entry) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Of an event that is looked for as `name`: each attribute that is asked for, and the values that match it.

        Of a hierarchical one these are the name and all names above it.
        """
        values, hierarchical = entry.event.attributes, entry.type.hierarchical
        for attribute in self._slots.get(name, ()):
            value = values.get(attribute)
            if value is not None:
                yield attribute, names_above(value) if attribute in hierarchical else (value,)


class Flows(Generic[F]):
    """All flows of a shard."""

    def __init__(self, rates: Rates, catalog: Catalog = CATALOG) -> None:
        self._rates = rates
        self._catalog = catalog
        self._flows: dict[tuple[str, Filter], Flow[F]] = {}
        self._index: dict[Slot, dict[Flow[F], Conditions]] = {}
        self._asked = Asked()

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
                    self._asked.add(slot)
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
                    self._asked.discard(slot)
                    del self._index[slot][flow]
                    if not self._index[slot]:
                        del self._index[slot]

    def matching(self, entry: Entry) -> Iterable[Flow[F]]:
        """The flows of an event, whose type is no custom one."""
        name = entry.event.type
        found = dict.fromkeys(self._index.get((name, "", ""), ()))
        for attribute, values in self._asked.terms(name, entry):
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
