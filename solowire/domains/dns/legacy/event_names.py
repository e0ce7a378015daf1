"""The old frontend's names: connection types, what each is subscribed to, and which of our event types that means.

What it keeps true: every name that the old frontend knows is one of ours, or stands for some of ours. A client may also
ask for one of our types by its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from solowire.domains.dns.event_types import CATALOG
from solowire.model.catalog import Catalog

_ZONES = ("zone_created", "zone_updated", "zone_deleted")
_RECORDS = ("record_created", "record_updated", "record_deleted")
_HEALTH = ("health_update", "health_alert", "forwarder_status_change", "system_status")
_DNS = (*_ZONES, *_RECORDS, "bind_reload", "config_change")
_SECURITY = ("security_alert", "rpz_update", "threat_detected", "system_status")
_SYSTEM = ("system_status", "bind_reload", "config_change", "user_login", "user_logout")

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "health": _HEALTH,
    "dns_management": _DNS,
    "security": _SECURITY,
    "system": _SYSTEM,
    "admin": tuple(dict.fromkeys((*_HEALTH, *_DNS, *_SECURITY, *_SYSTEM, "session_expired"))),
}
"""By connection type: what a client gets that asks for nothing."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    **DEFAULTS,
    "dns": _DNS,
    "zones": _ZONES,
    "records": _RECORDS,
    "users": ("user_login", "user_logout", "session_expired"),
}
"""What `subscribe_category` knows, beside the categories of our catalogue."""

MEANINGS: Mapping[str, tuple[str, ...]] = {
    "system_status": ("system_status", "system_metrics", "dns_query_log"),
    "health_update": ("health_update", "forwarder_health"),
    "forwarder_status_change": ("forwarder_status_change", "forwarder_health"),
}
"""Names that stand for more than the type of the same name."""

MAX_NAMES = 200
"""So many may one message name."""


class EventNames:
    """The names that clients may use. catalog: with the deployment's own types, which they may ask for, too."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.supported = sorted(name for name in catalog.names if not name.endswith("*"))

    def find_types(self, name: str) -> tuple[str, ...]:
        """Our event types that a name stands for; empty if it is no name of an event."""
        if name in MEANINGS:
            return MEANINGS[name]
        return (name,) if not name.endswith("*") and self._catalog.get(name) is not None else ()

    def find_category(self, name: str) -> tuple[str, ...]:
        """The names in a category, the deployment's own with them; empty if there is none of this name."""
        listed = [found for found in self._catalog.categories.get(name, ()) if not found.endswith("*")]
        if name not in CATEGORIES:
            return tuple(listed)
        return (*CATEGORIES[name], *(found for found in listed if CATALOG.get_declared(found) is None))

    def list_patterns(self, names: Iterable[str]) -> list[str]:
        """Our event types that these names stand for, each once."""
        return list(dict.fromkeys(found for name in names for found in self.find_types(name)))

    def find_event_category(self, name: str) -> str:
        """The category of one of our event types."""
        found = self._catalog.get_declared(name)
        return found.category if found is not None else "custom"
