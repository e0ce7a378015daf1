"""An event's way into JSON: checked, so that the gateway can take it, and encoded at once.

What happens later to the `data` that was given is no concern of the event.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from solowire.algorithms.rfc3339 import format_rfc3339
from solowire.sdk.arguments import check_json, check_optional_text
from solowire.sdk.current_trace import check_traceparent, read_current_traceparent

_TEXTS = ("type", "id", "priority", "key", "user", "timestamp", "source", "correlation_id", "traceparent")


def encode_event(
    type: str,
    data: Mapping[str, Any],
    *,
    id: str | None = None,
    priority: str | None = None,
    key: str | None = None,
    user: str | None = None,
    timestamp: str | None = None,
    source: str | None = None,
    correlation_id: str | None = None,
    traceparent: str | None = None,
) -> tuple[str, bytes]:
    """The event's id, made here if there is none, and its JSON. timestamp: now, if there is none.

    traceparent: that of the current OpenTelemetry span, if there is none.

    Raises TypeError or ValueError, with the path, for what the gateway could not take.
    """
    given = {
        "priority": priority,
        "key": key,
        "user": user,
        "timestamp": format_rfc3339(datetime.now(UTC)) if timestamp is None else timestamp,
        "source": source,
        "correlation_id": correlation_id,
        "traceparent": read_current_traceparent() if traceparent is None else traceparent,
    }
    if id is None:
        id = str(uuid.uuid4())
    event = {"type": type, "id": id, "data": data} | {name: v for name, v in given.items() if v is not None}
    check_event(event, "$")
    event["data"] = dict(data)
    return id, _ENCODER.encode(event)


def encode_whole_event(event: object, path: str) -> bytes:
    """The JSON of an event that is a dict already, with an id where it has none. Raises as `encode_event` does."""
    if not isinstance(event, Mapping):
        raise TypeError(f"{path} must be a dict, not a {type(event).__name__}")
    whole = dict(event)
    if whole.get("id") is None:
        whole["id"] = str(uuid.uuid4())
    if whole.get("traceparent") is None and (traceparent := read_current_traceparent()) is not None:
        whole["traceparent"] = traceparent
    check_event(whole, path)
    return _ENCODER.encode(whole)


def check_event(event: Mapping[str, Any], path: str) -> None:
    """Raises TypeError or ValueError for what the gateway could not take, or would take for something else."""
    if event.get("type") == "":
        raise ValueError(f"{path}.type must not be empty: GET /v1/catalog lists the types")
    for name in _TEXTS:
        value = event.get(name)
        if value is not None and not (type(value) is str and value):
            check_optional_text(f"{path}.{name}", value)
    if event.get("traceparent") is not None:
        check_traceparent(f"{path}.traceparent", event["traceparent"])
    data = event.get("data")
    if not isinstance(data, Mapping):
        raise TypeError(f"{path}.data must be a dict, not {'None' if data is None else 'a ' + type(data).__name__}")
    if not isinstance(event.get("type"), str):
        raise TypeError(f"{path}.type must be a str, the event's type")
    check_json(event, path)


def _plainly(value: object) -> str | int | float | dict[str, Any]:
    """A text, number or mapping of a class of its own, such as a framework's safe text, as what it is a kind of."""
    if isinstance(value, str):
        return str.__str__(value)  # whatever its own says
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")  # check_json has let nothing else through


_ENCODER = msgspec.json.Encoder(enc_hook=_plainly)
