"""From the body of a publish request to events: all of them, or every fault there is.

What it keeps true: an event that leaves here fits its type's schema, can be written in JSON and in MessagePack, and is
not larger than allowed; so nothing behind the gateway has to refuse one. What a body costs is bounded by what its
events may be, and not by what it holds: it is cut into its items first, and an item is decoded only if it may be an
event, one in each step, so that whoever runs the steps can do something else between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any

import msgspec

from solowire.algorithms.json_faults import describe_json_fault
from solowire.algorithms.json_structure import is_deeper
from solowire.algorithms.name_suggestion import find_match
from solowire.algorithms.rfc3339 import format_rfc3339
from solowire.errors import InvalidEvent, InvalidEvents, RequestError
from solowire.gateway.publish.body_cutter import (
    MSGPACK_TYPES,
    NDJSON_TYPES,
    TOO_DEEP,
    BodyCutter,
    Item,
    make_unreadable,
)
from solowire.model.catalog import FAMILY, Catalog, EventType
from solowire.model.events import MAX_DEPTH, Delivery, Event, Priority
from solowire.model.trace_context import parse_traceparent

MAX_FAULTS = 100
MAX_SPELLING, MAX_PACKED_SPELLING, MAX_ENVELOPE = 4, 3, 8 * 1024
"""An item may have so many times the bytes that an event's data may have as plain JSON, blanks and escapes included
(in MessagePack a number of 3 bytes of JSON may take 9), and so many more for all that is beside the data."""
_STRUCTURE = b'[]{},:"'

_LEAP_SECOND = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):60(?:\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TOLD = 300
"""Characters of a fault that are told."""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class IncomingEvent(msgspec.Struct, forbid_unknown_fields=True):
    """An event as it is published (design, section 7). timestamp: RFC 3339 with an offset.

    traceparent: whatever it may be, since what is no trace context is ignored.
    """

    type: str
    data: dict[str, Any]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    priority: Priority | None = None
    key: _Text | None = None
    user: _Text | None = None
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    source: _Text | None = None
    correlation_id: _Text | None = None
    traceparent: Any = None


_encode_json = msgspec.json.Encoder().encode
_encode_pack = msgspec.msgpack.Encoder().encode
_raw_json = msgspec.json.Decoder()
_raw_pack = msgspec.msgpack.Decoder()
_pass_json, _pass_packed = msgspec.json.Decoder(msgspec.Raw).decode, msgspec.msgpack.Decoder(msgspec.Raw).decode


class EventParser:
    """Parses publish requests.

    max_events: in one request. max_bytes: of one event's data, as JSON. is_traced: an event keeps its `traceparent`.
    """

    def __init__(
        self,
        catalog: Catalog,
        new_id: Callable[[], str],
        *,
        max_events: int = 5000,
        max_bytes: int = 32 * 1024,
        is_traced: bool = False,
    ) -> None:
        self._catalog = catalog
        self._new_id = new_id
        self._is_traced = is_traced
        self._max_bytes = max_bytes
        self._plain_bytes = max_bytes + MAX_ENVELOPE
        self._max_item_bytes = MAX_SPELLING * max_bytes + MAX_ENVELOPE
        self._max_packed_bytes = MAX_PACKED_SPELLING * max_bytes + MAX_ENVELOPE
        self._cutter = BodyCutter(max_events, self._max_item_bytes)

    def iter_events(
        self, body: bytes, content_type: str, now: datetime, publisher: str | None = None
    ) -> Iterator[Event | None]:
        """The events of a request of `publisher`, one in each step at most; None where a step has made none.

        What an item is that is no event is told last.

        now: for those without a timestamp, and when all of them were taken. Raises InvalidEvents, which names each bad
        item; RequestRejected (413, 415); RequestError if the body is not readable.
        """
        kind = content_type.partition(";")[0].strip().lower()
        packed = kind in MSGPACK_TYPES
        items = yield from self._cutter.cut(body, kind)
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

    def _decode(self, index: int, item: Item, kind: str) -> Any:
        """Raises InvalidEvent; RequestError where a fault is the whole body's."""
        raw = memoryview(item)
        is_packed = kind in MSGPACK_TYPES
        if len(raw) > self._max_item_bytes:
            raise self._make_too_big(index)
        try:
            if len(raw) > self._plain_bytes and not self._may_fit(raw, is_packed=is_packed):
                (_pass_packed if is_packed else _pass_json)(raw)  # what is no JSON at all is told so
                raise self._make_too_big(index)
            return _raw_pack.decode(raw) if is_packed else _raw_json.decode(raw)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            if kind not in NDJSON_TYPES:
                raise make_unreadable(error, kind, bytes(raw)) from None
            reason = TOO_DEEP if isinstance(error, RecursionError) else describe_json_fault(error, bytes(raw))
            raise InvalidEvent(index, "$", f"the line is not valid JSON: {reason}", "invalid_body") from None

    def _may_fit(self, raw: memoryview, *, is_packed: bool) -> bool:
        """Whether it may be an event of a permitted size in a long spelling: to decode one that isn't takes long."""
        if is_packed:
            return len(raw) <= self._max_packed_bytes
        # Each of these is at least itself in any spelling; what it stands between may become shorter.
        return len(raw) - len(bytes(raw).translate(None, _STRUCTURE)) <= self._plain_bytes

    def _make_too_big(self, index: int) -> InvalidEvent:
        return InvalidEvent(
            index,
            "$",
            f"it is larger than an event may be: {self._max_bytes} bytes of data as plain JSON, and "
            f"{self._max_item_bytes} all included",
            "event_too_big",
            "send what is large elsewhere, and its address here; an operator raises SOLOWIRE_PUBLISH__MAX_EVENT_BYTES",
        )

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
        if incoming.type == FAMILY:
            many = f"`{FAMILY}` stands for many types"
            raise InvalidEvent(index, "$.type", many, "unknown_type", _type_hint(incoming.type, ()))
        if event_type is None:
            raise InvalidEvent(
                index,
                "$.type",
                f"unknown event type {incoming.type[:128]!r}",
                "unknown_type",
                _type_hint(incoming.type, self._catalog.names),
            )
        try:
            data = _encode_json(incoming.data)
            # Before all that takes long for what is large.
            if len(data) > self._max_bytes:
                raise InvalidEvent(
                    index,
                    "$.data",
                    f"{len(data)} bytes of data are more than the {self._max_bytes} that one event may have",
                    "event_too_big",
                    "an operator raises SOLOWIRE_PUBLISH__MAX_EVENT_BYTES",
                )
            if is_deeper(data, MAX_DEPTH):
                raise InvalidEvent(index, "$.data", TOO_DEEP)
            attributes = self._catalog.validate_data(event_type, incoming.data)
            _encode_pack(incoming.data)  # a client that reads MessagePack must be able to get it, too
            if packed and _raw_json.decode(data) != incoming.data:
                # NaN would become null, bytes Base64, numbers as keys text: no client would get what was published.
                raise ValueError("it holds what JSON can't say, such as NaN, bytes, or keys that are no text")
        except (msgspec.ValidationError, RecursionError) as error:
            raise _fault(index, error, "$.data", event_type.payload.struct) from None
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidEvent(index, "$.data", f"it can't be sent on: {error}", "out_of_range") from None
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
            traceparent=None if incoming.traceparent is None else self._keep_trace(incoming.traceparent),
        )

    def _keep_trace(self, traceparent: object) -> str | None:
        """What an event keeps of what was sent as its trace context; who records it judges it."""
        context = parse_traceparent(traceparent) if self._is_traced else None
        return None if context is None else context.traceparent


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


def _default_key(event_type: EventType, data: dict[str, Any]) -> str | None:
    if event_type.delivery is not Delivery.state:
        return None
    return "/".join(str(data[field]) for field in event_type.key_fields if data.get(field) is not None) or None


def _fault(index: int, error: Exception, base: str, kind: type[msgspec.Struct] | None) -> InvalidEvent:
    """Makes an InvalidEvent of an error of msgspec's, which ends with "… - at `$.x`". kind: what did not fit."""
    if isinstance(error, RecursionError):
        return InvalidEvent(index, base, TOO_DEEP)
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
