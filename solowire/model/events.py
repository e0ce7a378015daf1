"""The event: one thing that happened, as every process of Solowire holds it.

An event is validated once, at the gateway, and from then on is carried as bytes: the router reads nothing of it but
`PublishedEvent`'s envelope, and a shard decodes it once for all its connections. `data` stays the JSON text that was
validated, so that the commonest view (nothing redacted, JSON) is sent without ever being decoded again.
"""

from __future__ import annotations

from enum import Enum

import msgspec

MAX_DEPTH = 64
"""Levels of objects and arrays in one event's data. Decoders of clients and our own have bounds too, each another."""


STATES, STATES_BYTES = 10_000, 8_000_000
"""Present states that are remembered at most, and what they take as they are sent, nearly. Each counts as an equal part
of the bytes at the least, so that there are never more than so many."""


class Priority(str, Enum):
    """Decides when a feed is flushed, never the order of offsets."""

    critical = "critical"
    high = "high"
    normal = "normal"
    low = "low"


class Delivery(str, Enum):
    """What an event type promises when a connection falls behind (design, section 5)."""

    durable = "durable"
    state = "state"
    telemetry = "telemetry"


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One validated event.

    id: the publisher's, or made at the gateway; unique. data: JSON text of the payload, UTF-8. key: names the thing a
    `state` event is the newest word about. user: only this user may get it. attributes: the values that filters and
    scopes look at, by attribute name, as declared in the catalogue. timestamp: RFC 3339, UTC, with `Z`. taken: when the
    gateway took it, unix seconds; 0 if nobody has said. publisher: who published it; no client is told. traceparent: of
    the gateway's span, if it is of a trace that is recorded (`solowire.model.trace_context`); no client is told either.
    """

    id: str
    type: str
    data: bytes
    priority: Priority
    delivery: Delivery
    timestamp: str
    key: str | None = None
    user: str | None = None
    attributes: dict[str, str] = {}
    source: str | None = None
    correlation_id: str | None = None
    taken: float = 0.0
    publisher: str | None = None
    traceparent: str | None = None


encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def is_same_event(
    one: Event, other: Event, observed: frozenset[str] = frozenset(), authored: frozenset[str] = frozenset()
) -> bool:
    """Whether two publishers' events of one id tell the same.

    observed: fields of the data that say who saw it, and how: they may differ. authored: fields that only one of the
    two may have. Other fields are compared as they were written; what is in them is not looked at.
    """
    if (one.type, one.user, one.key, one.priority) != (other.type, other.user, other.key, other.priority):
        return False
    if one.data == other.data:
        return True
    if not observed and not authored:
        return False
    try:
        first, second = _decode_fields(one.data), _decode_fields(other.data)
    except (msgspec.MsgspecError, RecursionError):
        return False
    for name in first.keys() | second.keys():
        if name in observed or (name in authored and not (name in first and name in second)):
            continue
        if name not in first or name not in second or bytes(first[name]) != bytes(second[name]):
            return False
    return True


def name_state(type: str, key: str | None, user: str | None) -> str:
    """What a state is called in the journal, which keeps the newest event of each name; no two have the same.

    Type, key and user stand between NULs, of which none is left in the key; in a type there are none.
    """
    key = (key or "").replace("\1", "\1\1").replace("\0", "\1\2")
    return f"{type}\0{key}\0{user or ''}"
