"""Messages of old clients, in all the spellings that documents and older code use, as one command each.

What it keeps true: whatever comes, it is read or refused with a `ClientFault`; what is refused is never an exception of
another kind, and never larger than it came.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from solowire.domains.dns.legacy.event_names import MAX_NAMES

QUESTIONS = ("get_stats", "get_connection_stats", "get_subscription_info", "get_recent_events")
REPLAYS = ("start_replay", "stop_replay", "get_replay_status")
CHANGES = ("subscribe", "unsubscribe", "subscribe_events", "unsubscribe_events", "subscribe_category")
MESSAGE_TYPES = frozenset(("ping", *CHANGES, *QUESTIONS, *REPLAYS))
"""All that is understood: also the bound of what is counted by type."""

_WORDS = ("event_types", "eventTypes", "events")
_MAX_RECENT = 500
_SAID = 60
_decode = msgspec.json.Decoder().decode


class Change(msgspec.Struct, frozen=True):
    """A change of what is subscribed. names: of events, or of categories."""

    adds: bool
    by_category: bool
    names: tuple[str, ...]


class Command(msgspec.Struct, frozen=True):
    """One message. change: of a subscription. details: what else it says that anybody reads."""

    type: str
    change: Change | None = None
    details: dict[str, Any] = {}


class ClientFault(Exception):
    """A message that is not understood. code, message: what its sender is told. type: as it is counted."""

    def __init__(self, code: str, message: str, type: str = "other") -> None:
        self.code = code
        self.message = message
        self.type = type
        super().__init__(message)


class _Replay(msgspec.Struct):
    start_time: str
    end_time: str | None = None
    name: str = ""
    filter_config: dict[str, str | list[str] | None] | None = None
    replay_speed: float = 1.0


_TYPE_WORDS = (*_WORDS, "types")
_ATTRIBUTES = {"zone_name": "zone", "zones": "zone", "zone_names": "zone"}
"""What old code calls attributes; others are called as they are."""


def read_command(raw: str | bytes) -> Command:
    """Reads one message. Raises ClientFault."""
    if isinstance(raw, bytes):
        raise ClientFault("invalid_message", "a message is a JSON text, and this one is binary")
    try:
        message = _decode(raw)
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        raise ClientFault("invalid_json", "the message is not valid JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ClientFault("invalid_message", "a message is a JSON object with a text 'type'")
    name: str = message["type"]
    if name not in MESSAGE_TYPES:
        shown = name[:_SAID].encode("ascii", "backslashreplace").decode()
        raise ClientFault("unknown_message_type", f"there is no message of type {shown!r}")
    data = message.get("data")
    data = data if isinstance(data, dict) else {}
    if name in CHANGES:
        return Command(name, change=_read_change(name, message, data))
    if name == "get_recent_events":
        return Command(name, details={"limit": _read_limit(data.get("limit", 50))})
    if name in REPLAYS:
        return Command(name, details=_read_replay(name, data))
    return Command(name)


def _read_change(name: str, message: dict[str, Any], data: dict[str, Any]) -> Change:
    by_category = name == "subscribe_category"
    words = ("categories", "category") if by_category else _WORDS
    found = next((place[word] for place in (message, data) for word in words if place.get(word) is not None), None)
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise ClientFault("invalid_message", f"{name} needs a list of texts in {words[0]!r}", name)
    if len(names) > MAX_NAMES:
        raise ClientFault("too_many", f"one message may name {MAX_NAMES} at most", name)
    return Change(not name.startswith("un"), by_category, tuple(dict.fromkeys(names)))


def _read_limit(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ClientFault("invalid_message", "get_recent_events needs a whole number in 'limit'", "get_recent_events")
    return max(1, min(value, _MAX_RECENT))


def _read_replay(name: Literal["start_replay"] | str, data: dict[str, Any]) -> dict[str, Any]:
    if name != "start_replay":
        id = data.get("replay_id")
        return {"replay_id": id} if isinstance(id, str) else {}
    try:
        asked = msgspec.convert(data, _Replay)
    except msgspec.ValidationError as error:
        raise ClientFault("invalid_message", f"start_replay: {str(error)[:200]}", name) from None
    if not 0.1 <= asked.replay_speed <= 100:
        raise ClientFault("invalid_message", "start_replay: 'replay_speed' is from 0.1 to 100", name)
    filters = {key: _list(value) for key, value in (asked.filter_config or {}).items() if value}
    types = [kind for word in _TYPE_WORDS for kind in filters.pop(word, [])]
    if len(types) > MAX_NAMES:
        raise ClientFault("too_many", f"one message may name {MAX_NAMES} at most", name)
    return {
        "name": asked.name,
        "since": asked.start_time,
        "until": asked.end_time,
        "speed": asked.replay_speed,
        "types": types,
        "filter": {_ATTRIBUTES.get(key, key): values for key, values in filters.items()},
    }


def _list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
