"""A bitmap index of filters over the values of their conditions: it says which filters an event meets.

    slot      attribute, value ─► the filters with a condition that lists it
    type      event type ─► its filters, and of each attribute those that don't look at it
    match     for each attribute: of the filters left, those in the slots of the event's values, and those without it

Each filter is a number and a set of filters an integer with the bits of their numbers (P. O'Neil, D. Quass: Improved
query performance with variant indexes, 1997), so that and and or take some 64 filters a machine word.

What it keeps true: the answer is exact, and what it costs depends on how many attributes are filtered by and on what
matches, not on which filters there are: whatever values many filters have in common, those that another condition
keeps apart are never looked at one by one. A filter is held once for all event types that have it, and takes memory in
proportion to its values; a value that only a few filters list has no bitmap. Numbers are used again, the lowest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

from solowire.model.domain_names import count_labels
from solowire.model.subscriptions import Filter

V = TypeVar("V")


class TermLookup(Protocol):
    """What an event's attributes match."""

    def get(self, attribute: str, deepest: int) -> Iterable[str]:
        """The values of a condition on `attribute` that the event meets, as far as they have no more labels."""


FEW = 8
"""Up to so many filters are listed one by one: bitmaps would be larger, or slower to go through."""

_Slot = tuple[int, ...] | int
"""The numbers of a few filters, or the bitmap of many."""


class _NumberedFilter:
    """A filter that is in the index. types: in how many event types."""

    __slots__ = ("number", "types")

    def __init__(self, number: int) -> None:
        self.number = number
        self.types = 0


class _TypeFilters(Generic[V]):
    """The filters of one event type.

    all: what is held under no conditions. ignoring: the filters without a condition on an attribute, for each that
    another filter has one on.
    """

    __slots__ = ("all", "filters", "held", "ignoring")

    def __init__(self) -> None:
        self.all: V | None = None
        self.filters = 0
        self.held: dict[int, V] = {}
        self.ignoring: dict[str, int] = {}

    def __bool__(self) -> bool:
        return self.all is not None or bool(self.held)

    def add(self, number: int, conditions: Filter, value: V) -> None:
        bit = 1 << number
        own = dict(conditions)
        for attribute in self.ignoring.keys() - own.keys():
            self.ignoring[attribute] |= bit
        for attribute in own:
            self.ignoring.setdefault(attribute, self.filters)
        self.filters |= bit
        self.held[number] = value

    def discard(self, number: int) -> None:
        bit = 1 << number
        del self.held[number]
        self.filters ^= bit
        for attribute, ignoring in list(self.ignoring.items()):
            left = self.ignoring[attribute] = ignoring & ~bit
            if left == self.filters:
                del self.ignoring[attribute]  # nobody looks at it any more


class FilterIndex(Generic[V]):
    """Holds one value for each event type and filter that somebody wants."""

    def __init__(self) -> None:
        self._types: dict[str, _TypeFilters[V]] = {}
        self._filters: dict[Filter, _NumberedFilter] = {}
        self._slots: dict[str, dict[str, _Slot]] = {}
        self._deepest: dict[str, int] = {}  # labels of the longest name in the slots of an attribute, or more
        self._free: list[int] = []  # a heap
        self._next = 0

    def __len__(self) -> int:
        """How many filters with conditions there are."""
        return len(self._filters)

    def __bool__(self) -> bool:
        return bool(self._types)

    def __iter__(self) -> Iterator[V]:
        """All that is held."""
        for table in self._types.values():
            if table.all is not None:
                yield table.all
            yield from table.held.values()

    def get(self, name: str, conditions: Filter, make: Callable[[], V]) -> V:
        """What is held for the type `name` under these conditions; made if there is nothing yet."""
        table = self._types.get(name)
        if table is None:
            table = self._types[name] = _TypeFilters()
        if not conditions:
            if table.all is None:
                table.all = make()
            return table.all
        numbered = self._filters.get(conditions)
        if numbered is None:
            numbered = self._filters[conditions] = _NumberedFilter(self._take_number())
            self._fill_slots(numbered.number, conditions)
        found = table.held.get(numbered.number)
        if found is None:
            found = make()
            table.add(numbered.number, conditions, found)
            numbered.types += 1
        return found

    def find(self, name: str, conditions: Filter) -> V | None:
        """What is held for the type `name` under exactly these conditions."""
        table = self._types.get(name)
        if table is None or not conditions:
            return table.all if table is not None else None
        numbered = self._filters.get(conditions)
        return table.held.get(numbered.number) if numbered is not None else None

    def discard(self, name: str, conditions: Filter) -> None:
        """Forgets what is held there, which is something."""
        table = self._types[name]
        if not conditions:
            table.all = None
        else:
            numbered = self._filters[conditions]
            table.discard(numbered.number)
            numbered.types -= 1
            if not numbered.types:
                del self._filters[conditions]
                self._empty_slots(numbered.number, conditions)
                heappush(self._free, numbered.number)
                if not self._filters:
                    self._free.clear()
                    self._next = 0
        if not table:
            del self._types[name]

    def matching(self, name: str, terms: TermLookup) -> list[V]:
        """What is held for the type `name` under conditions that these values meet. terms: as an entry's."""
        table = self._types.get(name)
        if table is None:
            return []
        found = [table.all] if table.all is not None else []
        left = table.filters
        for attribute, ignoring in table.ignoring.items():
            met = ignoring
            slots = self._slots.get(attribute)
            if slots is not None:
                for value in terms.get(attribute, self._deepest[attribute]):
                    slot = slots.get(value)
                    if slot is not None:
                        met |= slot if isinstance(slot, int) else _bitmap_of(slot)
            left &= met
            if not left:
                return found
        if left:
            held = table.held
            found += [held[number] for number in _numbers_in(left)]
        return found

    def _take_number(self) -> int:
        if self._free:
            return heappop(self._free)
        self._next += 1
        return self._next - 1

    def _fill_slots(self, number: int, conditions: Filter) -> None:
        for attribute, values in conditions:
            slots = self._slots.setdefault(attribute, {})
            deepest = max((count_labels(value) for value in values), default=0)
            self._deepest[attribute] = max(deepest, self._deepest.get(attribute, 0))
            for value in values:
                slot = slots.get(value)
                if slot is None:
                    slots[value] = (number,)
                elif isinstance(slot, int):
                    slots[value] = slot | 1 << number
                else:
                    slots[value] = (*slot, number) if len(slot) < FEW else _bitmap_of(slot) | 1 << number

    def _empty_slots(self, number: int, conditions: Filter) -> None:
        for attribute, values in conditions:
            slots = self._slots.get(attribute, {})
            for value in values:
                slot = slots[value]
                if isinstance(slot, int):
                    slot ^= 1 << number
                    slots[value] = tuple(_numbers_in(slot)) if slot.bit_count() <= FEW // 2 else slot
                elif len(slot) > 1:
                    at = slot.index(number)
                    slots[value] = slot[:at] + slot[at + 1 :]
                else:
                    del slots[value]
            if not slots:
                self._slots.pop(attribute, None)
                self._deepest.pop(attribute, None)


def _bitmap_of(numbers: Iterable[int]) -> int:
    bitmap = 0
    for number in numbers:
        bitmap |= 1 << number
    return bitmap


def _numbers_in(bitmap: int) -> list[int]:
    """The numbers of the bits that are set, in time that a long bitmap doesn't multiply by how many they are."""
    numbers = []
    if bitmap.bit_count() <= FEW:
        while bitmap:
            lowest = bitmap & -bitmap
            numbers.append(lowest.bit_length() - 1)
            bitmap ^= lowest
        return numbers
    digits = bin(bitmap)[:1:-1]  # the lowest first
    at = digits.find("1")
    while at >= 0:
        numbers.append(at)
        at = digits.find("1", at + 1)
    return numbers
