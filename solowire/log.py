"""The recent log: what a shard remembers of the router's log, and the entries in it.

What it keeps true: entries stand in the order of their offsets; everything after `floor` and up to `position` that is
this shard's business is in it, so a cursor at or above `floor` can be read on from without a hole. It is bounded in
events and bytes, and trimmed from its old end in chunks. Of what is trimmed the durable events stay for longer, within
a bound of their own, so that no flood of others takes them from a slow reader (`older`). `latest` holds the newest
entry of each state key, also after it has left the log, for the clients that start without a cursor; it is bounded too,
and forgets the key that has been quiet longest.

An entry encodes itself at most once for each codec and set of hidden fields, whatever number of feeds it matches.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import msgspec

from solowire.access import redact
from solowire.catalog import CATALOG, Catalog, EventType
from solowire.client_protocol import Codec
from solowire.events import Delivery, Event, decode_event

OLDER = 4
"""Durable events that have left the log may take this part of what the log may: so much on top."""

_NOTHING: frozenset[str] = frozenset()
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_encode_pack = msgspec.msgpack.Encoder().encode


class _Written(msgspec.Struct, omit_defaults=True, gc=False):
    """`client_protocol.ReceivedEvent` as it is written: its data is encoded already, or a redacted dict."""

    offset: int
    id: str
    type: str
    priority: str
    timestamp: str
    data: Any
    key: str | None = None
    user: str | None = None
    source: str | None = None
    correlation_id: str | None = None


class Entry:
    """An event at its offset, with what feeds match it by.

    names: the names that a selection may hold for it (`custom.x` is also `custom.*`). terms: attribute → the values
    that match it: for a hierarchical one, the name and all names above it. held: it is a state that has to wait, or
    that a newer one has overtaken while it waited (see `pacing`): readers pass over it.
    """

    __slots__ = ("_fragments", "event", "held", "names", "offset", "size", "terms", "type")

    def __init__(self, offset: int, event: Event, event_type: EventType) -> None:
        self.offset = offset
        self.event = event
        self.type = event_type
        self.held = False
        self.names = (event.type, "custom.*") if event_type.category == "custom" else (event.type,)
        self.terms = {name: _terms(value, event_type, name) for name, value in event.attributes.items()}
        # What it takes to hold and, nearly, to send: 200 bytes go to the envelope.
        self.size = len(event.data) + 200
        self._fragments: dict[tuple[Codec, frozenset[str]], bytes | None] = {}

    @property
    def state(self) -> tuple[str, str, str | None]:
        """What it is the state of, if its delivery is `state`."""
        return (self.event.type, self.event.key or "", self.event.user)

    def fragment(self, codec: Codec, hidden: frozenset[str]) -> bytes | None:
        """This event as an element of an `events` frame; None if `hidden` leaves nothing of it."""
        key = (codec, hidden)
        try:
            return self._fragments[key]
        except KeyError:
            fragment = self._fragments[key] = self._encode(codec, hidden)
            return fragment

    def _encode(self, codec: Codec, hidden: frozenset[str]) -> bytes | None:
        event = self.event
        if hidden or not codec.is_json:
            try:
                return self._write(codec, hidden, _decode_json(event.data))
            except OverflowError:  # MessagePack's integers end at 64 bits, JSON's don't
                return self._write(codec, hidden, json.loads(event.data, parse_int=_int_or_float))
        return self._write(codec, hidden, msgspec.Raw(event.data))

    def _write(self, codec: Codec, hidden: frozenset[str], data: Any) -> bytes | None:
        event = self.event
        if hidden:
            data = redact(data, self.type, hidden)
            if data is None:
                return None
        written = _Written(
            self.offset,
            event.id,
            event.type,
            event.priority.value,
            event.timestamp,
            data,
            event.key,
            event.user,
            event.source,
            event.correlation_id,
        )
        return _encode_json(written) if codec.is_json else _encode_pack(written)


def _offset_of(entry: Entry) -> int:
    return entry.offset


def _int_or_float(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


def _terms(value: str, event_type: EventType, name: str) -> tuple[str, ...]:
    attribute = event_type.attribute(name)
    if attribute is None or not attribute.hierarchical:
        return (value,)
    labels = value.split(".")
    return (*(".".join(labels[i:]) for i in range(len(labels))), ".") if value != "." else (".",)


class Log:
    """The recent log of one shard.

    max_events, max_bytes: what it holds at most; of `older` durable events it holds a quarter of that on top. max_keys:
    how many state keys it remembers, in as many bytes at most.
    """

    def __init__(
        self,
        *,
        max_events: int = 100_000,
        max_bytes: int = 64 * 2**20,
        max_keys: int = 10_000,
        catalog: Catalog = CATALOG,
    ) -> None:
        self.position = 0
        self.floor = 0
        self.bytes = 0
        self.catalog = catalog
        self.states_version = 0  # grows whenever what `latest` says changes
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.max_keys = max_keys
        self._entries: list[Entry] = []
        self._offsets: list[int] = []
        self._lasting: list[Entry] = []  # those of them that are no telemetry, for readers who want none
        self._lasting_offsets: list[int] = []
        self._older: list[Entry] = []  # durable ones that are no longer among the entries
        self._older_bytes = 0
        self._latest: dict[tuple[str, str, str | None], Entry] = {}
        self._latest_bytes = 0
        self._newest_for_user: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def reset(self, position: int) -> None:
        """Forgets everything: the log goes on behind `position`."""
        self.position = self.floor = position
        self.bytes = 0
        for kept in (self._entries, self._offsets, self._lasting, self._lasting_offsets, self._older):
            kept.clear()
        self._older_bytes = 0
        self._latest.clear()
        self._latest_bytes = 0
        self.states_version += 1
        self._newest_for_user.clear()

    def append(self, offset: int, body: bytes) -> Entry | None:
        """Takes one event; None if its type is not known here (a newer gateway's), which skips it.

        Raises msgspec.DecodeError if `body` is no event: the caller counts and drops it.
        """
        entry = self.entry(offset, body)
        if entry is None:
            return None
        self._entries.append(entry)
        self._offsets.append(offset)
        if entry.event.delivery is not Delivery.telemetry:
            self._lasting.append(entry)
            self._lasting_offsets.append(offset)
        self.bytes += entry.size
        self.position = offset
        if entry.event.user is not None:
            self._newest_for_user[entry.event.user] = offset
        self._note_state(entry)
        return entry

    def entry(self, offset: int, body: bytes) -> Entry | None:
        """An event as an entry that is not in the log; otherwise as `append`."""
        event = decode_event(body)
        event_type = self.catalog.get(event.type)
        return Entry(offset, event, event_type) if event_type is not None else None

    def insert(self, entry: Entry) -> None:
        """Puts an entry where it belongs among those that are here: a user has come whose own events went elsewhere."""
        at = bisect_right(self._offsets, entry.offset)
        if entry.offset <= self.floor or (at and self._offsets[at - 1] == entry.offset):
            return
        self._entries.insert(at, entry)
        self._offsets.insert(at, entry.offset)
        if entry.event.delivery is not Delivery.telemetry:
            at = bisect_right(self._lasting_offsets, entry.offset)
            self._lasting.insert(at, entry)
            self._lasting_offsets.insert(at, entry.offset)
        self.bytes += entry.size
        user = entry.event.user
        if user is not None:
            self._newest_for_user[user] = max(entry.offset, self._newest_for_user.get(user, 0))
        if entry.event.delivery is Delivery.state:
            known = self._latest.get(entry.state)
            if known is None or known.offset < entry.offset:
                self._note_state(entry)

    def remember(self, entry: Entry) -> None:
        """Notes the present value of a state that is older than the log."""
        self._note_state(entry)

    def _note_state(self, entry: Entry) -> None:
        if entry.event.delivery is not Delivery.state:
            return
        older = self._latest.pop(entry.state, None)  # so that the dict stays in the order of freshness
        if older is not None:
            self._latest_bytes -= older.size
        self._latest[entry.state] = entry
        self._latest_bytes += entry.size
        self.states_version += 1
        while len(self._latest) > self.max_keys or self._latest_bytes > self._max_bytes:
            self._latest_bytes -= self._latest.pop(next(iter(self._latest))).size

    def trim(self) -> list[Entry]:
        """Drops from the old end what is over the bounds, and a tenth more, so that it is rarely done.

        Returns the durable events that are gone for good.
        """
        drop = self._over()
        if not drop:
            return []
        self.floor = self._offsets[drop - 1]
        for entry in self._entries[:drop]:
            self.bytes -= entry.size
            user = entry.event.user
            if user is not None and self._newest_for_user.get(user) == entry.offset:
                del self._newest_for_user[user]
            if entry.event.delivery is Delivery.durable:
                self._older.append(entry)
                self._older_bytes += entry.size
        del self._entries[:drop]
        del self._offsets[:drop]
        lasting = bisect_right(self._lasting_offsets, self.floor)
        del self._lasting[:lasting]
        del self._lasting_offsets[:lasting]
        return self._trim_older()

    def _trim_older(self) -> list[Entry]:
        at, most_events, most_bytes = 0, self._max_events // OLDER, self._max_bytes // OLDER
        while len(self._older) - at > most_events or self._older_bytes > most_bytes:
            self._older_bytes -= self._older[at].size
            at += 1
        gone = self._older[:at]
        del self._older[:at]
        return gone

    def floor_when_trimmed(self) -> int | None:
        """What `trim` would make the floor; None if it has nothing to do."""
        drop = self._over()
        return self._offsets[drop - 1] if drop else None

    def _over(self) -> int:
        """How many entries `trim` drops."""
        if len(self._entries) <= self._max_events and self.bytes <= self._max_bytes:
            return 0
        drop, size = 0, self.bytes
        keep_bytes = self._max_bytes * 9 // 10
        keep_events = self._max_events * 9 // 10
        while drop < len(self._entries) and (len(self._entries) - drop > keep_events or size > keep_bytes):
            size -= self._entries[drop].size
            drop += 1
        return drop

    def after(self, cursor: int, *, telemetry: bool = True) -> Iterator[Entry]:
        """The entries behind `cursor`, oldest first; without telemetry, of which a flood may be thousands a second."""
        entries, offsets = (self._entries, self._offsets) if telemetry else (self._lasting, self._lasting_offsets)
        for at in range(bisect_right(offsets, cursor), len(entries)):
            yield entries[at]

    def older(self, cursor: int, upto: int) -> list[Entry]:
        """The durable entries behind `cursor` and up to `upto` that have left the log, oldest first."""
        first, last = (bisect_right(self._older, offset, key=_offset_of) for offset in (cursor, upto))
        return self._older[first:last]

    def first_after(self, cursor: int) -> Entry | None:
        """The entry that a reader at `cursor` gets next, if there is one."""
        at = bisect_right(self._offsets, cursor)
        return self._entries[at] if at < len(self._entries) else None

    def taken_before(self, cursor: int) -> float:
        """When the last entry up to `cursor` was taken (unix); 0 if that is not known any more."""
        at = bisect_right(self._offsets, cursor)
        return self._entries[at - 1].event.taken if at else 0.0

    def newest(self, count: int) -> list[Entry]:
        """The last `count` entries, oldest first."""
        return self._entries[-count:]

    def latest(self) -> list[Entry]:
        """The newest entry of each state key, in the order of offsets."""
        return list(self._latest.values())

    @property
    def state_count(self) -> int:
        """How many entries `latest` gives."""
        return len(self._latest)

    def count_after(self, cursor: int) -> int:
        """How many entries stand behind `cursor`."""
        return len(self._offsets) - bisect_right(self._offsets, cursor)

    def is_old(self, cursor: int) -> bool:
        """Whether more stands behind `cursor` than half of what the log may hold: it may be dropped soon."""
        at = bisect_right(self._offsets, cursor)
        behind = len(self._offsets) - at
        return behind > self._max_events // 2 or behind * self.bytes > len(self._offsets) * (self._max_bytes // 2)

    def has_for(self, user: str, cursor: int) -> bool:
        """Whether an event for this user alone stands behind `cursor`."""
        return self._newest_for_user.get(user, -1) > cursor
