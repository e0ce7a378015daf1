"""Events that no gateway accepts today, as an older one or a damaged disk may have left them in a log."""

from __future__ import annotations

from typing import Any

import msgspec

from solowire.model.events import Delivery, Priority, encode_event
from tests.support.factories import event

MANY_LABELS = ".".join("a" * 14_000)


def body(name: str = "custom.a", data: bytes = b"{}", **fields: Any) -> bytes:
    """An event as bytes; nothing of it is checked."""
    return encode_event(msgspec.structs.replace(event(), **{"type": name, "data": data, **fields}))


def nested(levels: int) -> bytes:
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


_QUERY = {"client_ip": "10.0.0.1", "query_type": "A"}

POISON: dict[str, bytes] = {
    "a zone of 14,000 labels": body(data=msgspec.json.encode({"zone": MANY_LABELS}), attributes={"zone": MANY_LABELS}),
    "a zone of 14,000 dots": body(attributes={"zone": "." * 14_000}),
    "a name of 300 octets": body("dns_query_log", attributes={"query_domain": "x" * 300}, delivery=Delivery.telemetry),
    "a query with a zone of many labels": body(
        "dns_query_log", attributes={**_QUERY, "zone": MANY_LABELS}, delivery=Delivery.telemetry
    ),
    "a state of a zone with many labels": body(
        "dns_query_stats", attributes={"zone": MANY_LABELS}, delivery=Delivery.state, key=MANY_LABELS
    ),
    "data that is nested deeply": body(data=nested(100_000)),
    "data that is nested": body(data=nested(100)),
    "data that is cut off": body(data=b'{"text": "x'),
    "data that is no object": body(data=b"[1]"),
    "data that is no UTF-8": body(data=b'{"text": "\xff"}'),
    "data that is empty": body(data=b""),
    "data with NaN": body(data=b'{"n": NaN}'),
    "a number beyond all": body(data=b'{"n": 1e999}'),
    "a time that is none": body(taken=float("nan")),
    "a time without end": body(taken=float("-inf")),
    "a time of long after": body(taken=1e300),
    "a type that nobody knows": body("from_the_future"),
    "a type that is the family": body("custom.A b"),
    "a critical one of a type that nobody knows": body("newer", priority=Priority.critical),
    "nothing": b"",
    "no event": b"junk",
    "half an event": encode_event(event())[:-9],
    "nested arrays": b"\x91" * 5_000,
    "a length without an end": b"\xdd\xff\xff\xff\xff",
    "a text of another length": b"\x9d\xdb\xff\xff\xff\xff",
}
"""Bodies of which no reader may get anything, and which may keep nothing else from any."""

ODD: dict[str, bytes] = {
    "a number beyond 64 bits": body(data=b'{"n": ' + b"9" * 4_000 + b"}"),
    "a topic of 30 KB": body(attributes={"topic": "x" * 30_000}),
    "a key of 30 KB": body("system_metrics", b'{"cpu_usage": 1}', key="k" * 30_000, delivery=Delivery.state),
    "an attribute that its type has not": body(attributes={"host": "x" * 1000}),
    "another delivery than its type's": body("dns_query_log", b'{"x": 1}', delivery=Delivery.durable),
    "telemetry of a durable type": body("zone_created", b'{"zone": "a"}', delivery=Delivery.telemetry),
    "a state of a durable type": body("zone_created", b'{"zone": "a"}', delivery=Delivery.state),
    "names that are empty": body(id="", attributes={"zone": ""}, key="", source="", correlation_id=""),
    "data without anything": body("zone_created", b"{}"),
}
"""Bodies that some reader may get or not, and which may keep nothing else from any."""
