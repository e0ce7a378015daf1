"""Tables from our events to the `data` of the old frontend's frames: pure functions, one for each shape.

What it keeps true: whatever of an event is missing, because its publisher left it out or the reader may not see it, the
page finds every field that it reads, of the kind that it expects: what it takes for a number is one, and what it takes
for a boolean is one. Fields that it doesn't read go along as they are. A list of forwarders takes no more than
MAX_DETAILS_BYTES, whatever is published: those beyond are counted, and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from solowire.algorithms.rfc3339 import format_rfc3339
from solowire.model.events import Event

Data = dict[str, Any]

USAGE = ("cpu_usage", "memory_usage", "disk_usage")
HOST_FIELDS = (*USAGE, "bind9_running", "active_connections")
"""What frames about a host say also where an event doesn't: what it has said before."""
MAX_TEXT = 128
"""Characters of a text in the list of forwarders, or in the name of what is remembered; and of one in a frame that is
too large."""
MAX_FRAME_BYTES = 64 * 1024
MAX_DETAILS_BYTES = 60 * 1024
"""Of a list of forwarders, so that its frame is within that."""
MAX_LISTED = 1_000
"""Rows of a published list that are looked at."""
_MAX_INNER_BYTES = 1024
_LEVELS = {"info": "warning", "warning": "warning", "critical": "critical"}
_DOWN = frozenset({"stopped", "down", "failed", "error", "offline"})
_UNKNOWN = "unknown"
_encode = msgspec.json.Encoder().encode


class ForwarderRow(NamedTuple):
    """One forwarder in the list of a `health_update`, as it is sent."""

    status: str
    json: bytes


def _text(value: object, default: str = "") -> str:
    return value if isinstance(value, str) else default if value is None else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _number(value: object, default: float = 0) -> float:
    return value if _is_number(value) else default  # type: ignore[return-value]


def drop_unreadable(data: Data) -> Data:
    """`data` without what would crash the page in an event of any type."""
    if all(_is_number(data[name]) for name in USAGE if name in data):
        return data
    return {name: value for name, value in data.items() if name not in USAGE or _is_number(value)}


def make_zone(event: Event, data: Data) -> Data:
    """zone_created, zone_updated, zone_deleted."""
    zone = _text(data.get("zone"))
    return {
        **data,
        "name": zone,
        "zone_name": zone,
        "zone_id": data.get("zone_id"),
        "record_count": data.get("record_count"),
        "serial": data.get("serial"),
    }


def make_record(event: Event, data: Data) -> Data:
    """record_created, record_updated, record_deleted."""
    name, kind, value = _text(data.get("name")), _text(data.get("type")), _text(_find_value(data))
    return {
        **data,
        "name": name,
        "type": kind,
        "value": value,
        "record_name": name,
        "record_type": kind,
        "record_value": value,
        "zone_name": _text(data.get("zone")),
    }


def _find_value(data: Data) -> object:
    for found in (data, data.get("after"), data.get("before")):
        if isinstance(found, dict) and found.get("value") is not None:
            return found["value"]
    return None


def make_config_change(event: Event, data: Data) -> Data:
    fields = ("entity_type", "entity_name", "action", "status", "component")
    return {**data, **{name: _text(data.get(name)) for name in fields}}


def make_bind_reload(event: Event, data: Data) -> Data:
    success = data.get("success") is True
    text = data.get("message") or data.get("error")
    return {**data, "success": success, "message": _text(text, "BIND reloaded" if success else "BIND did not reload")}


def make_forwarder(data: Mapping[str, Any], *, id: object, seen: str) -> Data:
    """One forwarder in the list of a `health_update`, its texts cut. seen: when, if it doesn't say so itself."""
    return {
        "id": id if id is None or isinstance(id, (int, float)) else _text(id)[:MAX_TEXT],
        "name": _text(data.get("name") or data.get("forwarder_name"), _text(id))[:MAX_TEXT],
        "type": _text(data.get("type"), _UNKNOWN)[:MAX_TEXT],
        "status": _text(data.get("status"), _UNKNOWN)[:MAX_TEXT],
        "healthy_servers": _number(data.get("healthy_servers")),
        "total_servers": _number(data.get("total_servers")),
        "last_checked": _text(data.get("last_checked"), seen)[:MAX_TEXT],
    }


def encode_forwarder(row: Data) -> ForwarderRow:
    """A row as `make_forwarder` makes it."""
    return ForwarderRow(row["status"], _encode(row))


def make_health_update(event: Event, data: Data) -> Data:
    found = data.get("forwarder_details")
    listed = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    details = [
        encode_forwarder(make_forwarder(row, id=row.get("id"), seen=event.timestamp)) for row in listed[:MAX_LISTED]
    ]
    made = summarize_forwarders(details, event.timestamp, unseen=len(listed) - len(details))
    for name in made:
        if name.endswith("_forwarders") and data.get(name) is not None:
            made[name] = _number(data[name])
    enabled = data.get("health_check_enabled")
    made["health_check_enabled"] = True if enabled is None else bool(enabled)
    made["last_updated"] = _text(data.get("last_updated"), event.timestamp)
    return {**data, **made}


def summarize_forwarders(details: Collection[ForwarderRow], seen: str, unseen: int = 0) -> Data:
    """A whole `health_update` of these forwarders. seen: when. unseen: how many more there are.

    Where the list of them is too long, those that are not healthy come first, and `omitted_forwarders` says how many
    are missing at its end. The counts are of all.
    """
    counts = dict.fromkeys(("healthy", "unhealthy", "degraded", _UNKNOWN), 0)
    for row in details:
        counts[row.status if row.status in counts else _UNKNOWN] += 1
    counts[_UNKNOWN] += unseen
    listed = [row.json for row in details]
    if sum(map(len, listed)) + len(listed) > MAX_DETAILS_BYTES:
        listed = _take_fitting(sorted(details, key=_is_healthy))
    omitted = len(details) - len(listed) + unseen
    return {
        "total_forwarders": len(details) + unseen,
        "active_forwarders": counts["healthy"] + counts["degraded"],
        **{f"{status}_forwarders": count for status, count in counts.items()},
        "health_check_enabled": True,
        "last_updated": seen,
        "forwarder_details": msgspec.Raw(b"[" + b",".join(listed) + b"]"),
        **({"omitted_forwarders": omitted} if omitted else {}),
    }


def _is_healthy(row: ForwarderRow) -> bool:
    return row.status == "healthy"


def _take_fitting(rows: list[ForwarderRow]) -> list[bytes]:
    room, taken = MAX_DETAILS_BYTES, []
    for row in rows:
        room -= len(row.json) + 1
        if room < 0:
            break
        taken.append(row.json)
    return taken


def shorten_data(data: Data) -> Data:
    """`data` of a frame that has become too large: long texts are cut, and large objects and lists are empty."""
    return {name: _shorten(value) for name, value in data.items() if len(name) <= MAX_TEXT}


def _shorten(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
    if isinstance(value, (dict, list)) and len(_encode(value)) > _MAX_INNER_BYTES:
        return type(value)()
    return value


def make_health_alert(event: Event, data: Data) -> Data:
    details = data.get("details")
    return {
        **data,
        "id": event.id if data.get("id") is None else data["id"],
        "level": _LEVELS.get(_text(data.get("level")), "warning"),
        "type": _text(data.get("type"), "health"),
        "message": _text(data.get("message")),
        "forwarder_id": data.get("forwarder_id"),
        "forwarder_name": _text(data.get("forwarder_name")),
        "details": details if isinstance(details, dict) else {},
        "created_at": _text(data.get("created_at"), event.timestamp),
        "acknowledged": data.get("acknowledged") is True,
    }


def make_status_change(event: Event, data: Data) -> Data:
    return {
        **data,
        "forwarder_id": data.get("forwarder_id"),
        "old_status": _text(data.get("old_status"), _UNKNOWN),
        "new_status": _text(data.get("new_status"), _UNKNOWN),
    }


def make_query_row(event: Event, data: Data) -> Data:
    """dns_query_log, as a row of the page's list of queries."""
    return {
        "type": "query_update",
        "timestamp": event.timestamp,
        "client_ip": _text(data.get("client_ip")),
        "query_domain": _text(data.get("query_domain")),
        "query_type": _text(data.get("query_type")),
        "blocked": data.get("blocked") is True,
    }


def make_metrics(event: Event, data: Data, known: Data) -> Data:
    """system_metrics. known: what the host has said before, where this event says nothing."""
    return {"type": "system_metrics", **{name: _number(data.get(name), known.get(name, 0)) for name in USAGE}}


def make_system_status(event: Event, data: Data, known: Data) -> Data:
    """system_status. known: as in `make_metrics`."""
    usage = {name: _number(data.get(name), known.get(name, 0)) for name in USAGE}
    running = data.get("bind9_running")
    if not isinstance(running, bool):  # an event about another part of the host is no word that BIND has stopped
        is_named = data.get("component") in (None, "bind9", "named")
        running = not (is_named and _text(data.get("status")) in _DOWN) and known.get("bind9_running", True)
    return {
        **{name: value for name, value in data.items() if name != "type"},
        **usage,
        "bind9_running": running,
        "active_connections": _number(data.get("active_connections"), known.get("active_connections", 0)),
        "uptime": _text(data.get("uptime")) or _started_at(event.timestamp, data.get("uptime_s")),
    }


def _started_at(now: str, uptime_s: object) -> str:
    """When something began that has run for so long; now, if nobody says for how long."""
    try:
        began = datetime.fromisoformat(now) - timedelta(seconds=_number(uptime_s))
        return format_rfc3339(began, "seconds")
    except (ValueError, OverflowError):
        return now


def make_finding(event: Event, data: Data) -> Data:
    """security_alert, threat_detected."""
    details = data.get("details")
    return {
        **data,
        "message": _text(data.get("message")),
        "severity": _text(data.get("severity"), "warning"),
        "threat_type": _text(data.get("threat_type"), _UNKNOWN),
        "details": details if isinstance(details, dict) else {},
    }


SHAPES: Mapping[str, Callable[[Event, Data], Data]] = {
    **dict.fromkeys(("zone_created", "zone_updated", "zone_deleted"), make_zone),
    **dict.fromkeys(("record_created", "record_updated", "record_deleted"), make_record),
    "config_change": make_config_change,
    "bind_reload": make_bind_reload,
    "health_update": make_health_update,
    "health_alert": make_health_alert,
    "forwarder_status_change": make_status_change,
    "security_alert": make_finding,
    "threat_detected": make_finding,
}
"""By event type. A type that is not here goes to the page as it is: it lists what it doesn't know."""
