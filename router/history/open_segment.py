"""The newest part of the index, in memory: what is not written yet because it isn't whole."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from sys import getsizeof

from solowire.router.history.index_terms import (
    OWNED,
    OWNERS,
    TYPES,
    Places,
    list_plain_rows,
    list_value_rows,
)
from solowire.router.history.indexed_event import decode_indexed, is_of_type

FEW_NAMES = 8
"""So many are compared with the end of each value; for more the names above each value are looked up."""

EVENT_BYTES, VALUE_BYTES, LIST_BYTES, PLACE_BYTES = 32, 70, 88, 10
"""What Python takes for the place of an event; for a value that is new, its text apart, or an attribute with its table;
for a second place of it, which makes it a list; and for each more."""


class OpenSegment:
    """The newest segment of the index, which still grows.

    start: behind which offset it begins; places are counted from there, from 0. unindexed: attributes left out.
    byte_count: what it takes, nearly.
    """

    def __init__(self, start: int, unindexed: frozenset[str] = frozenset()) -> None:
        self.start_offset = start
        self.byte_count = 0
        self._unindexed = unindexed
        self._types: Places = {}
        self._values: dict[str, Places] = {}
        self._owners: Places = {}

    @property
    def is_owned(self) -> bool:
        """Whether it has events for one user alone."""
        return bool(self._owners)

    def add_record(self, offset: int, owner: str | None, body: bytes) -> None:
        """Takes a record, if it is an event."""
        event = decode_indexed(body)
        if event is None:
            return
        place = offset - self.start_offset - 1
        size = EVENT_BYTES + _add(self._types, event.type, place)
        for name, value in event.attributes.items():
            if name in self._unindexed:
                continue
            values = self._values.get(name)
            if values is None:
                values = self._values[name] = {}
                size += VALUE_BYTES + getsizeof(name)
            # As `_add`, which would cost as much again: this is done for each value of each event.
            places = values.get(value)
            if places is None:
                values[value] = place
                size += VALUE_BYTES + getsizeof(value)
            elif isinstance(places, int):
                values[value] = [places, place]
                size += LIST_BYTES
            else:
                places.append(place)
                size += PLACE_BYTES
        if owner is not None:
            size += _add(self._owners, owner, place)
        self.byte_count += size

    def find_types(self, types: Sequence[str]) -> set[int]:
        wanted = frozenset(types)
        return _join(places for name, places in self._types.items() if is_of_type(name, wanted))

    def find_values(self, attribute: str, values: Sequence[str], *, are_names: bool) -> set[int]:
        known = self._values.get(attribute, {})
        if not are_names:
            return _join(known[value] for value in values if value in known)
        wanted = set(values)
        if "." in wanted:
            return _join(known.values())
        if len(wanted) <= FEW_NAMES:
            beneath = tuple(f".{value}" for value in wanted)
            return _join(places for v, places in known.items() if v in wanted or v.endswith(beneath))
        above = _sort_backwards(wanted)
        return _join(places for v, places in known.items() if _is_beneath(v, above))

    def find_others(self, user: str) -> set[int]:
        """Where events for others alone are."""
        return _join(places for owner, places in self._owners.items() if owner != user)

    def list_rows(self) -> Iterator[tuple[bytes, list[int]]]:
        """All of it as rows (`index_terms`)."""
        yield from list_plain_rows(TYPES, self._types)
        for name, values in self._values.items():
            yield from list_value_rows(name, values)
        if self._owners:
            yield OWNED, sorted(_join(self._owners.values()))
            yield from list_plain_rows(OWNERS, self._owners)


def _join(parts: Iterable[int | list[int]]) -> set[int]:
    joined: set[int] = set()
    for places in parts:
        if isinstance(places, int):
            joined.add(places)
        else:
            joined.update(places)
    return joined


def _add(known: Places, name: str, place: int) -> int:
    """Notes a place; what that takes, in bytes."""
    places = known.get(name)
    if places is None:
        known[name] = place
        return VALUE_BYTES + getsizeof(name)
    if isinstance(places, int):
        known[name] = [places, place]
        return LIST_BYTES
    places.append(place)
    return PLACE_BYTES


def _sort_backwards(names: Iterable[str]) -> list[str]:
    """The names backwards with a dot behind each, in order, without those that are beneath another."""
    keys: list[str] = []
    for key in sorted(f"{name[::-1]}." for name in names):
        if not keys or not key.startswith(keys[-1]):
            keys.append(key)
    return keys


def _is_beneath(name: str, keys: list[str]) -> bool:
    """Whether the name is one of those, or beneath one: its key begins with the last of theirs that isn't behind it."""
    key = f"{name[::-1]}."
    at = bisect_right(keys, key)
    return at > 0 and key.startswith(keys[at - 1])
