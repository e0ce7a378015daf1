"""The recent log: what a shard remembers of the router's log, and the entries in it.

What it keeps true: entries stand in the order of their offsets; everything after `start_offset` and up to `position`
that is this shard's business is in it, so a cursor at or above `start_offset` can be read on from without a hole. It is
bounded in events and bytes, and trimmed from its old end in chunks. Of what is trimmed the durable events stay for
longer, within a bound of their own, so that no flood of others takes them from a slow reader (`older`). `latest_states`
holds the newest entry of each state key, also after it has left the log, for the clients that start without a cursor.
Their room is shared by publishers (`shared_room`), so that nobody's made-up keys push out what others say, and small
enough for each connection to begin with all of it.

Bytes are those that Python takes, nearly: `Entry.size` counts all that an entry holds but its fragments, and those have
a bound of their own (`fragment_cache`). An entry encodes itself once for each codec and set of hidden fields, whatever
number of feeds it matches, as long as that bound lets it keep the fragment.

What is no event, or one that nobody may have published, never becomes an entry: it is passed over (`skipped_events`).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping
from sys import getsizeof
from typing import Any

import msgspec

from solowire.algorithms.json_structure import is_deeper
from solowire.algorithms.shared_room import SharedRoom
from solowire.fanout.fragment_cache import FragmentCache, FragmentKey, Fragments
from solowire.fanout.skipped_events import FAILED, UNDECODABLE, UNKNOWN_TYPE, SkippedEvents, guess_type
from solowire.model.access import redact
from solowire.model.catalog import Catalog, EventType
from solowire.model.domain_names import MAX_LABELS, describe_name_fault, names_above
from solowire.model.events import MAX_DEPTH, STATES, STATES_BYTES, Delivery, Event, decode_event
from solowire.protocol.dialect_codec import AnyCodec, DialectCodec
from solowire.protocol.messages import Codec
from solowire.runtime.settings.shard_settings import RecentLogSettings

_DEFAULTS = RecentLogSettings()

OLDER = 4
"""Durable events that have left the log may take this part of what the log may: so much on top."""

FRAGMENTS = 4
"""The same of the fragments that are kept."""

ENTRY_BYTES = 800
"""What Python takes for an entry, its texts apart: the entry, the event, their dicts, and the places in the log."""

ATTRIBUTE_BYTES = 40
"""The same for each attribute."""

VALUE_BYTES = ATTRIBUTE_BYTES + 50
"""The same, with what a text takes beside its characters."""

SHORT_BYTES = 1000

ENVELOPE_BYTES = 200
"""What goes around an event's data in a frame, nearly."""

_LATEST_UNIX = 1e11
"""No event was taken later: numbers made of such a time would be none that anybody can be told."""

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_encode_pack = msgspec.msgpack.Encoder().encode


class _WrittenEvent(msgspec.Struct, omit_defaults=True, gc=False):
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


class MatchTerms:
    """Attribute → the values that match it: for a hierarchical one, the name and all names above it.

    These are made when they are asked for, since to hold them would take many times what the event does.
    """

    __slots__ = ("_attributes", "_hierarchical")

    def __init__(self, attributes: Mapping[str, str], hierarchical: Container[str]) -> None:
        self._attributes = attributes
        self._hierarchical = hierarchical

    def get(self, attribute: str, deepest: int = MAX_LABELS) -> tuple[str, ...]:
        """The values; none for an attribute that the event has not. deepest: names of more labels may be left out."""
        value = self._attributes.get(attribute)
        if value is None:
            return ()
        return names_above(value, deepest) if attribute in self._hierarchical else (value,)


class Entry:
    """An event at its offset, with what feeds match it by.

    match_names: the names that a selection may hold for it (`custom.x` is also `custom.*`). size: bytes that it takes,
    its fragments apart; measured, if it is not given. is_deferred: it is a state that has to wait, or that a newer one
    has overtaken while it waited (see `conflation`): readers pass over it.

    is_kept: the log has it; else it is only passed on, and keeps no fragment. log: of which it is. If of none, it keeps
    all its fragments, and raises what is wrong with its data.
    """

    __slots__ = ("_fragments", "_log", "event", "is_deferred", "is_kept", "match_names", "offset", "size", "type")

    def __init__(
        self, offset: int, event: Event, event_type: EventType, log: RecentLog | None = None, size: int | None = None
    ) -> None:
        self.offset = offset
        self.event = event
        self.type = event_type
        self.is_deferred = False
        self.match_names = (event.type, "custom.*") if event_type.category == "custom" else (event.type,)
        self.size = size if size is not None else _size_of(event)
        self.is_kept = False
        self._log = log
        self._fragments: Fragments = {}

    @property
    def match_terms(self) -> MatchTerms:
        """What the event's attributes match."""
        return MatchTerms(self.event.attributes, self.type.hierarchical)

    @property
    def state_key(self) -> tuple[str, str, str | None]:
        """What it is the state of, if its delivery is `state`."""
        return (self.event.type, self.event.key or "", self.event.user)

    def get_fragment(self, codec: AnyCodec, hidden: frozenset[str]) -> bytes | None:
        """This event as an element of an `events` frame; None if `hidden` leaves nothing of it, or it can't be one."""
        key = (codec, hidden)
        try:
            return self._fragments[key]
        except KeyError:
            return self._make_fragment(key)

    def _make_fragment(self, key: FragmentKey) -> bytes | None:
        if self._log is None:
            fragment = self._fragments[key] = self._encode(*key)
            return fragment
        try:
            fragment = self._encode(*key)
        except Exception as error:  # whatever is wrong with this one, the others of its frame go out
            self._log.skipped.skip(FAILED, self.offset, self.event.type, error)
            fragment = None
        if self.is_kept:
            self._log.fragments.add(self._fragments, key, fragment)
        return fragment

    def _encode(self, codec: AnyCodec, hidden: frozenset[str]) -> bytes | None:
        event = self.event
        if isinstance(codec, DialectCodec):
            data = _decode_json(event.data)
            shown = redact(data, self.type, hidden) if hidden else data
            return None if shown is None else codec.translate_event(event, shown, self.offset)
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
        written = _WrittenEvent(
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


def _size_of(event: Event) -> int:
    """Bytes that the event takes as an entry."""
    values = event.attributes.values()
    texts = (event.id, event.key, event.user, event.source, event.correlation_id, event.publisher)
    texts_size = sum(map(getsizeof, texts)) + sum(map(getsizeof, values))
    return ENTRY_BYTES + len(event.data) + len(values) * ATTRIBUTE_BYTES + texts_size


def check_event(event: Event, event_type: EventType) -> None:
    """Raises an exception for what no gateway accepts today: an older one, or a damaged disk, may have let it in.

    Data that a client can't read would keep from it all other events of the frame, and of each frame like it.
    """
    if not isinstance(_decode_json(event.data), dict):
        raise ValueError("its data is no object")
    if is_deeper(event.data, MAX_DEPTH):
        raise ValueError(f"its data has more than {MAX_DEPTH} levels")
    if not 0.0 <= event.taken < _LATEST_UNIX:
        raise ValueError(f"it was taken at {event.taken}")
    for name in event_type.hierarchical:
        fault = describe_name_fault(event.attributes.get(name, ""))
        if fault is not None:
            raise ValueError(f"{name}: {fault}")


class RecentLog:
    """The recent log of one shard.

    max_events, max_bytes: what it holds at most; of `older` durable events it holds a quarter of that on top, and of
    fragments a quarter of the bytes. max_keys: how many state keys it remembers, in STATES_BYTES at most.
    skipped: where what is no event is noted.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        max_events: int = _DEFAULTS.max_events,
        max_bytes: int = _DEFAULTS.max_bytes,
        max_keys: int = STATES,
        skipped: SkippedEvents | None = None,
    ) -> None:
        self.epoch = ""  # of the router's log that it is a part of; "" before there is one
        self.earlier_epochs: dict[str, int] = {}  # up to which offset that log is one of another epoch, by epoch
        self.position = 0
        self.start_offset = 0
        self.entry_bytes = 0
        self.written_bytes = 0  # of its entries as they are sent, nearly
        self.catalog = catalog
        self.skipped = skipped if skipped is not None else SkippedEvents()
        self.fragments = FragmentCache(max_bytes // FRAGMENTS)
        self.unsendable_until = 0  # a reader below is to begin anew
        self.states_version = 0  # grows whenever what `latest_states` says changes
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.max_keys = max_keys
        self._entries: list[Entry] = []
        self._offsets: list[int] = []
        self._lasting: list[Entry] = []  # those of them that are no telemetry, for readers who want none
        self._lasting_offsets: list[int] = []
        self._older: list[Entry] = []  # durable ones that are no longer among the entries
        self._older_bytes = 0
        room = min(STATES_BYTES, max_bytes)
        self._latest: SharedRoom[tuple[str, str, str | None], Entry] = SharedRoom(room, room // max_keys)
        self._latest_bytes = 0
        self.forgotten_types: set[str] = set()  # of states that found no room, here or where the log began
        self._newest_for_user: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """What it takes with all that it remembers beside its entries; a state among them counts twice."""
        return self.entry_bytes + self._older_bytes + self._latest_bytes + self.fragments.bytes

    def reset(self, position: int) -> None:
        """Forgets everything: the log goes on behind `position`."""
        self.position = self.start_offset = position
        self.unsendable_until = 0
        self.entry_bytes = self.written_bytes = 0
        for kept in (self._entries, self._offsets, self._lasting, self._lasting_offsets, self._older):
            kept.clear()
        self._older_bytes = 0
        self._latest.clear()
        self._latest_bytes = 0
        self.forgotten_types.clear()
        self.fragments.clear()
        self.skipped.forget()
        self.states_version += 1
        self._newest_for_user.clear()

    def append(self, offset: int, body: bytes) -> Entry | None:
        """Takes one event; None if it is passed over, for which `skipped` has the reason."""
        entry = self.decode_entry(offset, body)
        if entry is None:
            return None
        entry.is_kept = True
        self._entries.append(entry)
        self._offsets.append(offset)
        if entry.event.delivery is not Delivery.telemetry:
            self._lasting.append(entry)
            self._lasting_offsets.append(offset)
        self.entry_bytes += entry.size
        self.written_bytes += len(entry.event.data) + ENVELOPE_BYTES
        self.position = offset
        if entry.event.user is not None:
            self._newest_for_user[entry.event.user] = offset
        self._note_state(entry)
        return entry

    def decode_entry(self, offset: int, body: bytes) -> Entry | None:
        """An event as an entry that is not in the log; otherwise as `append`."""
        event = None
        try:
            event = decode_event(body)
            event_type = self.catalog.get(event.type)
            if event_type is not None:
                check_event(event, event_type)
                # What is short is measured as it came, which costs nothing: it may take four times that at the most.
                short = len(body) <= SHORT_BYTES
                size = ENTRY_BYTES + len(body) + len(event.attributes) * VALUE_BYTES if short else None
                return Entry(offset, event, event_type, self, size)
        except Exception as error:  # what is in the log may be anything, and the log has to go on
            self.skipped.skip(UNDECODABLE, offset, event.type if event is not None else guess_type(body), error)
            return None
        self.skipped.skip(UNKNOWN_TYPE, offset, event.type, "this version does not know the type")
        return None

    def insert_entry(self, entry: Entry) -> None:
        """Puts an entry where it belongs among those that are here: a user has come whose own events went elsewhere."""
        at = bisect_right(self._offsets, entry.offset)
        if entry.offset <= self.start_offset or (at and self._offsets[at - 1] == entry.offset):
            return
        entry.is_kept = True
        self._entries.insert(at, entry)
        self._offsets.insert(at, entry.offset)
        if entry.event.delivery is not Delivery.telemetry:
            at = bisect_right(self._lasting_offsets, entry.offset)
            self._lasting.insert(at, entry)
            self._lasting_offsets.insert(at, entry.offset)
        self.entry_bytes += entry.size
        self.written_bytes += len(entry.event.data) + ENVELOPE_BYTES
        user = entry.event.user
        if user is not None:
            self._newest_for_user[user] = max(entry.offset, self._newest_for_user.get(user, 0))
        if entry.event.delivery is Delivery.state:
            known = self._latest.get(entry.state_key)
            if known is None or known.offset < entry.offset:
                self._note_state(entry)

    def seed_state(self, entry: Entry) -> None:
        """Notes the present value of a state that is older than the log."""
        self._note_state(entry)

    def _note_state(self, entry: Entry) -> None:
        if entry.event.delivery is not Delivery.state:
            return
        entry.is_kept = True
        older = self._latest.get(entry.state_key)
        if older is not None:
            self._latest_bytes -= older.size
        self._latest_bytes += entry.size
        self.states_version += 1
        size = entry.size - ENTRY_BYTES + ENVELOPE_BYTES
        for name, gone in self._latest.put(entry.state_key, entry, entry.event.publisher or "", entry.event.type, size):
            self._latest_bytes -= gone.size
            self.forgotten_types.add(name)

    def trim(self) -> list[Entry]:
        """Drops from the old end what is over the bounds, and a tenth more, so that it is rarely done.

        Returns the durable events that are gone for good.
        """
        drop = self._count_excess()
        if not drop:
            return []
        self.start_offset = self._offsets[drop - 1]
        for entry in self._entries[:drop]:
            self.entry_bytes -= entry.size
            self.written_bytes -= len(entry.event.data) + ENVELOPE_BYTES
            user = entry.event.user
            if user is not None and self._newest_for_user.get(user) == entry.offset:
                del self._newest_for_user[user]
            if entry.event.delivery is Delivery.durable:
                self._older.append(entry)
                self._older_bytes += entry.size
        del self._entries[:drop]
        del self._offsets[:drop]
        lasting = bisect_right(self._lasting_offsets, self.start_offset)
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

    def start_offset_after_trim(self) -> int | None:
        """What `trim` would make the floor; None if it has nothing to do."""
        drop = self._count_excess()
        return self._offsets[drop - 1] if drop else None

    def _count_excess(self) -> int:
        """How many entries `trim` drops."""
        if len(self._entries) <= self._max_events and self.entry_bytes <= self._max_bytes:
            return 0
        drop, size = 0, self.entry_bytes
        keep_bytes = self._max_bytes * 9 // 10
        keep_events = self._max_events * 9 // 10
        while drop < len(self._entries) and (len(self._entries) - drop > keep_events or size > keep_bytes):
            size -= self._entries[drop].size
            drop += 1
        return drop

    def entries_after(self, cursor: int, *, telemetry: bool = True) -> Iterator[Entry]:
        """The entries behind `cursor`, oldest first; without telemetry, of which a flood may be thousands a second."""
        entries, offsets = (self._entries, self._offsets) if telemetry else (self._lasting, self._lasting_offsets)
        for at in range(bisect_right(offsets, cursor), len(entries)):
            yield entries[at]

    def durable_tail(self, cursor: int, upto: int) -> list[Entry]:
        """The durable entries behind `cursor` and up to `upto` that have left the log, oldest first."""
        first, last = (bisect_right(self._older, offset, key=_offset_of) for offset in (cursor, upto))
        return self._older[first:last]

    def next_entry(self, cursor: int) -> Entry | None:
        """The entry that a reader at `cursor` gets next, if there is one."""
        at = bisect_right(self._offsets, cursor)
        return self._entries[at] if at < len(self._entries) else None

    def ingest_time_before(self, cursor: int) -> float:
        """When the last entry up to `cursor` was taken (unix); 0 if that is not known any more."""
        at = bisect_right(self._offsets, cursor)
        return self._entries[at - 1].event.taken if at else 0.0

    def newest_entries(self, count: int) -> list[Entry]:
        """The last `count` entries, oldest first."""
        return self._entries[-count:]

    def latest_states(self) -> list[Entry]:
        """The newest entry of each state key, in the order of offsets."""
        return list(self._latest)

    @property
    def state_count(self) -> int:
        """How many entries `latest_states` gives."""
        return len(self._latest)

    def count_after(self, cursor: int) -> int:
        """How many entries stand behind `cursor`."""
        return len(self._offsets) - bisect_right(self._offsets, cursor)

    def is_near_start(self, cursor: int) -> bool:
        """Whether more stands behind `cursor` than half of what the log may hold: it may be dropped soon."""
        at = bisect_right(self._offsets, cursor)
        behind = len(self._offsets) - at
        return behind > self._max_events // 2 or behind * self.entry_bytes > len(self._offsets) * (self._max_bytes // 2)

    def has_personal_after(self, user: str, cursor: int) -> bool:
        """Whether an event for this user alone stands behind `cursor`."""
        return self._newest_for_user.get(user, -1) > cursor
