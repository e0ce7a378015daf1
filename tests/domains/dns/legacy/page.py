"""The deployed page of the old frontend, as far as a server sees it: what it reads of a frame, and what crashes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FIELDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("zone_created", "zone_updated", "zone_deleted"), ("name", "zone_name", "zone_id", "record_count", "serial")
    ),
    **dict.fromkeys(
        ("record_created", "record_updated", "record_deleted"),
        ("name", "type", "value", "record_name", "record_type", "record_value", "zone_name"),
    ),
    "config_change": ("entity_type", "entity_name", "action", "status", "component"),
    "bind_reload": ("success", "message"),
    "health_update": (
        "total_forwarders",
        "active_forwarders",
        "healthy_forwarders",
        "unhealthy_forwarders",
        "degraded_forwarders",
        "unknown_forwarders",
        "health_check_enabled",
        "last_updated",
        "forwarder_details",
    ),
    "health_alert": (
        "id",
        "level",
        "type",
        "message",
        "forwarder_id",
        "forwarder_name",
        "details",
        "created_at",
        "acknowledged",
    ),
    "forwarder_status_change": ("forwarder_id", "old_status", "new_status"),
    "security_alert": ("message", "severity", "threat_type", "details"),
    "threat_detected": ("message", "severity", "threat_type", "details"),
}
"""What it reads of `data`, by type."""
STATUS_FIELDS: Mapping[object, tuple[str, ...]] = {
    None: ("cpu_usage", "memory_usage", "disk_usage", "bind9_running", "active_connections", "uptime"),
    "query_update": ("timestamp", "client_ip", "query_domain", "query_type", "blocked"),
    "system_metrics": ("cpu_usage", "memory_usage", "disk_usage"),
}
"""Of `system_status`, by the `type` in its `data`."""
FORWARDER_FIELDS = ("id", "name", "type", "status", "healthy_servers", "total_servers", "last_checked")
_NUMBERS = ("cpu_usage", "memory_usage", "disk_usage")


class PageCrash(Exception):
    """The real page would be blank now."""


def read_frame(text: str | bytes) -> dict[str, Any]:
    """A frame as the page takes it. Raises PageCrash where the real one crashes."""
    if isinstance(text, bytes):
        raise PageCrash("a binary frame")
    try:
        frame = json.loads(text)
    except ValueError as error:
        raise PageCrash(f"no JSON: {text[:200]}") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise PageCrash(f"no object with a type: {text[:200]}")
    data = frame.get("data")
    if not isinstance(data, dict):
        raise PageCrash(f"no object as data: {text[:200]}")
    if not str(frame.get("timestamp", "")).endswith("Z"):
        raise PageCrash(f"no timestamp in UTC: {text[:200]}")
    if frame["type"] in ("ping", "events", "welcome"):
        raise PageCrash(f"it was sent what it lists as an event: {text[:200]}")
    _check_fields(frame["type"], data)
    if frame["type"] == "health_alert" and (data["level"] not in ("warning", "critical") or "severity" not in frame):
        raise PageCrash(f"an alert without a level: {text[:200]}")
    for name in _NUMBERS:
        if name in data and (isinstance(data[name], bool) or not isinstance(data[name], (int, float))):
            raise PageCrash(f"{name} is no number: {text[:200]}")
    if frame["type"] == "health_update":
        for row in data["forwarder_details"]:
            if not isinstance(row.get("status"), str) or not set(FORWARDER_FIELDS) <= row.keys():
                raise PageCrash(f"a forwarder without a status: {text[:200]}")
    if frame["type"] == "bind_reload" and not isinstance(data["success"], bool):
        raise PageCrash(f"success is no boolean: {text[:200]}")
    return frame


def _check_fields(name: str, data: Mapping[str, Any]) -> None:
    fields = STATUS_FIELDS.get(data.get("type")) if name == "system_status" else FIELDS.get(name, ())
    missing = set(fields or ()) - data.keys()
    if fields is None or missing:
        raise PageCrash(f"{name} lacks {sorted(missing)} ({data.get('type')})")
