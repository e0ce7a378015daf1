"""From the body of a publish request to events: all of them, or every fault there is.

What it keeps true: an event that leaves here fits its type's schema, can be written in JSON and in MessagePack, and is
not larger than allowed; so nothing behind the gateway has to refuse one. What a body costs is bounded by what its
events may be, and not by what it holds: it is cut into its items first, and an item is decoded only if it may be an
event, one in each step, so that whoever runs the steps can do something else between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Annotated, Any

import msgspec

from solowire.algorithms.json_faults import describe_json_fault
from solowire.algorithms.name_suggestion import find_match
from solowire.errors import InvalidEvent, InvalidEvents, RequestError, RequestRejected
from solowire.model.catalog import Catalog, EventType
from solowire.model.events import MAX_DEPTH, Delivery, Event, Priority, is_deeper

JSON_TYPES = ("application/json", "")
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")

MAX_FAULTS = 100
MAX_SPELLING, MAX_ENVELOPE = 4, 8 * 1024
"""An item may have so many times the bytes that an event's data may have as plain JSON, blanks and escapes included,
and so many more for all that is beside the data."""

LARGE_BYTES = 128 * 1024
"""Above it items are counted while a body is cut: 4 MB may hold two million, which take a tenth of a second. To count
costs 0.05 ms, too much for a small body."""
MAX_COUNTED = 50_000
"""With more events in a request than that, as an operator may allow, they are counted when they are cut."""

_LINE = re.compile(rb"\S[^\n]*")

_LEAP_SECOND = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):60(?:\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

_TOO_DEEP = f"it is nested too deeply: data may have {MAX_DEPTH} levels"

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TOLD = 300
"""Characters of a fault that are told."""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class IncomingEvent(msgspec.Struct, forbid_unknown_fields=True):
    """An event as it is published (design, section 7). timestamp: RFC 3339 with an offset."""

    type: str
    data: dict[str, Any]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    priority: Priority | None = None
    key: _Text | None = None
    user: _Text | None = None
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    source: _Text | None = None
    correlation_id: _Text | None = None


_NO_ITEM = msgspec.Raw()


@cache
def _make_array_decoder(most: int) -> Callable[[bytes], msgspec.Struct]:
    """Decodes a JSON array of `most` items at most, as one object of so many fields; _NO_ITEM where there is none.

    It stops at the first item too many, where a list is made whole before its length is looked at. Raises what msgspec
    raises.
    """
    fields = [(f"item{index}", msgspec.Raw, _NO_ITEM) for index in range(most)]
    array = msgspec.defstruct("_Items", fields, array_like=True, forbid_unknown_fields=True)
    return msgspec.json.Decoder(array).decode


_encode_json = msgspec.json.Encoder().encode
_encode_pack = msgspec.msgpack.Encoder().encode
_raw_json = msgspec.json.Decoder()
_raw_pack = msgspec.msgpack.Decoder()
_PACKED_ARRAYS = (*range(0x90, 0xA0), 0xDC, 0xDD)


class EventParser:
    """Parses publish requests. max_events: in one request. max_bytes: of one event's data, as JSON."""

    def __init__(
        self, catalog: Catalog, new_id: Callable[[], str], *, max_events: int = 5000, max_bytes: int = 32 * 1024
    ) -> None:
        self._catalog = catalog
        self._new_id = new_id
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._max_item_bytes = MAX_SPELLING * max_bytes + MAX_ENVELOPE
        items = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=max_events)]
        self._cut_large_json = _make_array_decoder(max_events) if max_events <= MAX_COUNTED else None
        self._cut_json, self._cut_pack = msgspec.json.Decoder(items).decode, msgspec.msgpack.Decoder(items).decode

    def parse(self, body: bytes, content_type: str, now: datetime, publisher: str | None = None) -> list[Event]:
        """All that `iter_events` yields, at once."""
        return [event for event in self.iter_events(body, content_type, now, publisher) if event is not None]

    def iter_events(
        self, body: bytes, content_type: str, now: datetime, publisher: str | None = None
    ) -> Iterator[Event | None]:
        """The events of a request of `publisher`, one in each step; None for an item that is none, which is told last.

        now: for those without a timestamp, and when all of them were taken. Raises InvalidEvents, which names each bad
        item; RequestRejected (413, 415); RequestError if the body is not readable.
        """
        kind = content_type.partition(";")[0].strip().lower()
        packed = kind in MSGPACK_TYPES
        items = self._cut(body, kind)
        if not items:
            raise RequestError("empty_request", "the request holds no event", "send one object, an array or NDJSON")
        stamp, taken = format_rfc3339(now), now.timestamp()
        faults: list[InvalidEvent] = []
        for index, item in enumerate(items):
            event = None
            try:
                decoded = self._decode(index, item, kind)
                event = self._make_event(index, decoded, stamp, taken, packed, publisher)
            except InvalidEvent as fault:
                faults.append(fault)
                if len(faults) == MAX_FAULTS:
                    break
            yield event
        if faults:
            raise InvalidEvents(faults)

    def _cut(self, body: bytes, kind: str) -> Sequence[bytes | msgspec.Raw]:
        """The items as they stand in the body. Raises RequestRejected, RequestError."""
        if kind in NDJSON_TYPES:
            lines = [found[0] for found in islice(_LINE.finditer(body), self._max_events + 1)]
            if len(lines) > self._max_events:
                raise self._make_too_many()
            return lines
        if kind not in (*JSON_TYPES, *MSGPACK_TYPES):
            raise RequestRejected(
                415,
                "unsupported_media_type",
                f"{kind!r} is not understood",
                "send application/json, application/x-ndjson or application/msgpack",
            )
        packed = kind in MSGPACK_TYPES
        if not (body[:1] and body[0] in _PACKED_ARRAYS if packed else body.lstrip()[:1] == b"["):
            return [body]
        try:
            if packed:
                return self._cut_pack(body)
            if len(body) > LARGE_BYTES and self._cut_large_json is not None:
                return [item for item in msgspec.structs.astuple(self._cut_large_json(body)) if item is not _NO_ITEM]
            return self._cut_json(body)
        except msgspec.ValidationError:
            raise self._make_too_many() from None
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise _unreadable(error, kind, body) from None

    def _decode(self, index: int, item: bytes | msgspec.Raw, kind: str) -> Any:
        """Raises InvalidEvent; RequestError where a fault is the whole body's."""
        raw = memoryview(item)
        if len(raw) > self._max_item_bytes:
            raise InvalidEvent(
                index,
                "$",
                f"{len(raw)} bytes are more than the {self._max_item_bytes} that an event may have, all included",
                "event_too_big",
                "send what is large elsewhere, and its address here; "
                "an operator raises SOLOWIRE_PUBLISH__MAX_EVENT_BYTES",
            )
        try:
            return _raw_pack.decode(raw) if kind in MSGPACK_TYPES else _raw_json.decode(raw)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            if kind not in NDJSON_TYPES:
                raise _unreadable(error, kind, bytes(raw)) from None
            reason = _TOO_DEEP if isinstance(error, RecursionError) else describe_json_fault(error, bytes(raw))
            raise InvalidEvent(index, "$", f"the line is not valid JSON: {reason}", "invalid_body") from None

    def _make_too_many(self) -> RequestRejected:
        most = self._max_events
        hint = f"send {most} at most in each; an operator raises SOLOWIRE_PUBLISH__MAX_REQUEST_EVENTS"
        return RequestRejected(413, "too_many_events", f"a request may have {most} events", hint)

    def _make_event(
        self, index: int, item: Any, stamp: str, taken: float, packed: bool, publisher: str | None
    ) -> Event:
        try:
            try:
                incoming = msgspec.convert(item, IncomingEvent)
            except msgspec.ValidationError:
                incoming = msgspec.convert(_before_leap_second(item), IncomingEvent)
        except (msgspec.ValidationError, RecursionError) as error:
            raise _fault(index, error, "$", IncomingEvent) from None
        event_type = self._catalog.get(incoming.type)
        if event_type is None:
            raise InvalidEvent(
                index,
                "$.type",
                f"unknown event type {incoming.type[:128]!r}",
                "unknown_type",
                _type_hint(incoming.type, self._catalog.names),
            )
        if is_deeper(incoming.data, MAX_DEPTH):
            raise InvalidEvent(index, "$.data", _TOO_DEEP)
        try:
            attributes = self._catalog.validate_data(event_type, incoming.data)
            data = _encode_json(incoming.data)
            _encode_pack(incoming.data)  # a client that reads MessagePack must be able to get it, too
            if packed and _raw_json.decode(data) != incoming.data:
                # NaN would become null, bytes Base64, numbers as keys text: no client would get what was published.
                raise ValueError("it holds what JSON can't say, such as NaN, bytes, or keys that are no text")
        except (msgspec.ValidationError, RecursionError) as error:
            raise _fault(index, error, "$.data", event_type.payload.struct) from None
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidEvent(index, "$.data", f"it can't be sent on: {error}", "out_of_range") from None
        if len(data) > self._max_bytes:
            raise InvalidEvent(
                index,
                "$.data",
                f"{len(data)} bytes of data are more than the {self._max_bytes} that one event may have",
                "event_too_big",
                "an operator raises SOLOWIRE_PUBLISH__MAX_EVENT_BYTES",
            )
        try:
            timestamp = stamp if incoming.timestamp is None else format_rfc3339(incoming.timestamp)
        except OverflowError:
            raise InvalidEvent(index, "$.timestamp", "it is no year in UTC", "out_of_range") from None
        return Event(
            id=incoming.id or self._new_id(),
            type=incoming.type,
            data=data,
            priority=incoming.priority or event_type.priority,
            delivery=event_type.delivery,
            timestamp=timestamp,
            key=incoming.key or _default_key(event_type, incoming.data),
            user=incoming.user,
            attributes=attributes,
            source=incoming.source,
            correlation_id=incoming.correlation_id,
            taken=taken,
            publisher=publisher,
        )


def _before_leap_second(item: Any) -> Any:
    """`item` with a timestamp within a leap second, which no datetime has, put at that minute's last millisecond.

    There are leap seconds at the end of a day in UTC alone (RFC 3339, appendix D); what else says 60 is left as it is.
    """
    stamp = item.get("timestamp") if isinstance(item, dict) else None
    found = _LEAP_SECOND.fullmatch(stamp) if isinstance(stamp, str) else None
    if found is None:
        return item
    text = f"{found[1]}:59.999{found[2]}"
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return item
    return item | {"timestamp": text} if (moment.hour, moment.minute) == (23, 59) else item


def format_rfc3339(moment: datetime) -> str:
    """`moment` in UTC, with `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _default_key(event_type: EventType, data: dict[str, Any]) -> str | None:
    if event_type.delivery is not Delivery.state:
        return None
    return "/".join(str(data[field]) for field in event_type.key_fields if data.get(field) is not None) or None


def _unreadable(error: Exception, kind: str, raw: bytes) -> RequestError:
    reason = _TOO_DEEP if isinstance(error, RecursionError) else describe_json_fault(error, raw)
    name = "MessagePack" if kind in MSGPACK_TYPES else "JSON"
    hint = f"the Content-Type says {kind or JSON_TYPES[0]}: send that, or say what it is"
    return RequestError("invalid_body", f"the body is not valid {name}: {reason}", hint)


def _fault(index: int, error: Exception, base: str, kind: type[msgspec.Struct] | None) -> InvalidEvent:
    """Makes an InvalidEvent of an error of msgspec's, which ends with "… - at `$.x`". kind: what did not fit."""
    if isinstance(error, RecursionError):
        return InvalidEvent(index, base, _TOO_DEEP)
    message, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("$")
    hint = _hint_for(message, path, kind)
    if len(message) > _TOLD:  # an unknown name is in it, whole
        message = message[:_TOLD] + "…"
    return InvalidEvent(index, base + path, message, hint=hint)


def _type_hint(name: str, known: Iterable[str]) -> str:
    if name.startswith("custom."):
        return "behind custom. come 1 to 100 lower-case letters, digits, _ . and -"
    meant = find_match(name, known)
    return f"did you mean {meant!r}?" if meant else "GET /v1/catalog lists the types; your own begin with custom."


def _hint_for(message: str, path: str, kind: type[msgspec.Struct] | None) -> str:
    """The way out, where one can be named: the names or values that there are."""
    if kind is None:
        return ""
    if found := _UNKNOWN_FIELD.fullmatch(message):
        names = kind.__struct_encode_fields__
        meant = find_match(found[1], names)
        return f"did you mean {meant!r}?" if meant else f"an event has {', '.join(names)}"
    if message.startswith("Invalid enum value"):
        values = _values_of(kind, path.removeprefix("."))
        return f"one of {', '.join(values)}" if values else ""
    if "RFC3339" in message:
        return "such as 2030-12-31T12:00:00Z"
    return ""


@cache
def _values_of(kind: type[msgspec.Struct], field: str) -> tuple[str, ...]:
    """The values that a field of the struct may have, if they can be listed."""
    for info in msgspec.structs.fields(kind):
        if info.encode_name == field:
            described = msgspec.inspect.type_info(info.type)
            types = described.types if isinstance(described, msgspec.inspect.UnionType) else (described,)
            for one in types:
                if isinstance(one, msgspec.inspect.LiteralType):
                    return tuple(map(str, one.values))
                if isinstance(one, msgspec.inspect.EnumType):
                    return tuple(str(member.value) for member in one.cls)
    return ()
