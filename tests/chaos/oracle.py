"""Who must get what, said a second time and in another way than Solowire says it: the chaos suite's own judgement.

It shares no code with `solowire.model.access`, `subscriptions` or `feed`. It knows only the event types that the load
makes, and of them what the catalogue and docs/protocol.md promise.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Made(msgspec.Struct, frozen=True):
    """An event that the load made. public: its data for those who may not see its sensitive fields.

    attributes: what filters and scopes look at. user: who alone may get it.
    """

    id: str
    type: str
    data: dict[str, Any]
    public: dict[str, Any]
    attributes: dict[str, str] = {}
    user: str | None = None


class Who(msgspec.Struct, frozen=True):
    """A client: who it is, and what it asks for. subscriptions: None means its role's defaults."""

    user: str
    role: str
    zones: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] | None = None
    filter: dict[str, tuple[str, ...]] = {}
    codec: str = "json"


class _Type(msgspec.Struct, frozen=True):
    category: str
    roles: frozenset[str]
    attributes: frozenset[str]


_EVERYBODY = frozenset({"admin", "operator", "viewer"})
_TYPES = {
    "custom.chaos": _Type("custom", _EVERYBODY, frozenset({"zone", "topic"})),
    "record_updated": _Type("dns", _EVERYBODY, frozenset({"zone", "name", "record_type"})),
    "dns_query_log": _Type("dns", _EVERYBODY, frozenset({"zone", "query_type"})),
    "security_alert": _Type("security", _EVERYBODY, frozenset({"zone", "severity"})),
    "user_login": _Type("user", frozenset({"admin", "operator"}), frozenset({"user"})),
    "audit_event": _Type("audit", frozenset({"admin"}), frozenset({"zone", "severity"})),
}
_DEFAULTS = {
    "admin": ("*",),
    "operator": ("dns.*", "security.*", "custom.*"),
    "viewer": ("dns.*", "security.*", "custom.*"),
}
_SEES_ALL_FIELDS = ("admin", "operator")
_NAMES = ("zone", "name")


def due(who: Who, made: Made) -> dict[str, Any] | None:
    """The data with which `who` must get this event; None if it must not."""
    kind = _TYPES[made.type]
    if made.user not in (None, who.user) or who.role not in kind.roles:
        return None
    asked = _DEFAULTS[who.role] if who.subscriptions is None else who.subscriptions
    if not {"*", made.type, f"{kind.category}.*"}.intersection(asked):
        return None
    conditions = [*who.filter.items(), *([("zone", who.zones)] if who.zones else [])]
    for name, wanted in conditions:
        if name in kind.attributes and not _matches(name, made.attributes.get(name), wanted):
            return None
    return made.data if who.role in _SEES_ALL_FIELDS else made.public


def _matches(name: str, value: str | None, wanted: tuple[str, ...]) -> bool:
    if value is None:
        return False
    return any(value == w or (name in _NAMES and value.endswith("." + w)) for w in wanted)
