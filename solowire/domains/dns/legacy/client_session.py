"""One old client's connection: what it is subscribed to, what it says, and what it is answered.

What it keeps true: each message is answered, and none of them ends the connection; a client is told of every name that
it may not have, and gets only what its subscription names and its user may see.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import msgspec

from solowire.domains.dns.legacy.client_messages import Change, ClientFault, Command, read_command
from solowire.domains.dns.legacy.event_names import DEFAULTS, EventNames
from solowire.domains.dns.legacy.known_states import ViewStates
from solowire.domains.dns.legacy.translator import LegacyTranslator
from solowire.model.dialect import Outcome, Question

_ABOUT = {
    "get_stats": "stats",
    "get_connection_stats": "stats",
    "get_recent_events": "recent_events",
    "start_replay": "start_replay",
    "stop_replay": "stop_replay",
    "get_replay_status": "replay_status",
}
_FORMS = {
    "get_stats": "stats",
    "get_connection_stats": "connection_stats",
    "get_recent_events": "recent_events",
    "start_replay": "replay_started",
    "stop_replay": "replay_stopped",
    "get_replay_status": "replay_status",
}
"""Of a question the type of its answer."""
_INSTEAD = {
    "get_stats": "GET /v1/stats, with an administrator's token",
    "get_connection_stats": "GET /v1/stats, with an administrator's token",
    "start_replay": "GET /v1/events?since=…",
    "stop_replay": "GET /v1/events?since=…",
    "get_replay_status": "GET /v1/events?since=…",
    "get_recent_events": "GET /v1/events?since=…",
}
_SAID = 60

OWN_FRAMES = frozenset(
    (
        "connection_established",
        "subscription_updated",
        "category_subscription_updated",
        "subscription_info",
        "ping",
        "pong",
        "error",
        *_FORMS.values(),
    )
)
"""What the server says that is no event, and `ping`, which a client may answer: no event type may be called so."""


class LegacySession:
    """One client. deprecation: what the first frame says of this protocol's end. states: of the shard's views."""

    def __init__(
        self, kind: str, names: EventNames, *, is_admin: bool, deprecation: Mapping[str, str], states: ViewStates
    ) -> None:
        self.kind = kind
        self._states = states
        self._known = names
        self._is_admin = is_admin
        self._deprecation = dict(deprecation)
        self._names: dict[str, None] = dict.fromkeys(DEFAULTS[kind])
        self._wanted: dict[str, None] | None = None  # what a change under way asks for
        self._categories: list[str] = []
        self._faults: list[str] = []  # of the change that is under way
        self._form = ""

    @property
    def patterns(self) -> list[str]:
        """Our event types that it wants."""
        return self._known.list_patterns(self._names if self._wanted is None else self._wanted)

    @property
    def wish(self) -> Hashable:
        return frozenset(self._names)

    def make_translator(self, view: Hashable) -> LegacyTranslator:
        return LegacyTranslator(frozenset(self._names), self._known, known=self._states.find_states(view))

    def make_past_translator(self, names: Sequence[str], tags: Sequence[str] = ()) -> LegacyTranslator:
        known = self._states.make_states()
        return LegacyTranslator(frozenset(names), self._known, tags, is_replay=True, known=known)

    def open(self, granted: Sequence[str], now: str) -> list[str]:
        self._drop_denied(granted)
        data = {
            "connection_type": self.kind,
            "subscribed_events": list(self._names),
            "deprecation": self._deprecation,
        }
        return [_frame("connection_established", data, now)]

    def receive(self, raw: str | bytes, now: str) -> Outcome:
        try:
            command = read_command(raw)
        except ClientFault as fault:
            frames = [self._error(fault.code, fault.message, now)]
            return Outcome(fault.type, frames, is_fault=True)
        if command.change is not None:
            self._change_names(command, command.change)
            return Outcome(command.type, is_change=True)
        if command.type == "ping":
            return Outcome(command.type, [_frame("pong", {"timestamp": now}, now)])
        if command.type == "get_subscription_info":
            return Outcome(command.type, [_frame("subscription_info", self._describe(), now)])
        about = _ABOUT[command.type]
        if about == "stats" and not self._is_admin:
            frames = [self._error("forbidden", "statistics are for administrators", now, command.type)]
            return Outcome(command.type, frames)
        details = dict(command.details)
        if about == "recent_events":
            details["names"], details["types"] = list(self._names), self.patterns
        elif about == "start_replay":
            asked: list[str] = details["types"]
            unknown = next((name for name in asked if not self._known.find_types(name)), None)
            if unknown is not None:
                text = f"start_replay: there is no event type {unknown[:_SAID]!r}"
                return Outcome(command.type, [self._error("invalid_message", text, now, command.type)], is_fault=True)
            details["names"] = asked or list(self._names)
            details["types"] = self._known.list_patterns(details["names"])
        return Outcome(command.type, question=Question(about, command.type, details))

    def confirm(self, granted: Sequence[str], now: str) -> list[str]:
        if self._wanted is not None:
            self._names, self._wanted = self._wanted, None
        self._drop_denied(granted)
        names, faults = list(self._names), self._faults
        if self._form == "subscribe_category":
            data: dict[str, Any] = {"categories": self._categories, "subscribed_events": names, "errors": faults}
            return [_frame("category_subscription_updated", data, now)]
        data = {"subscribed_events": names, "subscriptions": names, "updated_at": now, "errors": faults}
        return [_frame("subscription_updated", data, now)]

    def answer(self, question: Question, found: Mapping[str, Any], now: str) -> list[str]:
        if "error" in found:
            return [self._error(str(found["error"]), str(found.get("message", "")), now, question.form)]
        data = dict(found)
        if question.about == "stats":
            data = describe_stats(found, self._known)
        return [_frame(_FORMS[question.form], data, now)]

    def reject(self, code: str, message: str, hint: str, now: str) -> list[str]:
        self._wanted = None
        return [self._error(code, f"{message}: {hint}" if hint else message, now)]

    def _change_names(self, command: Command, change: Change) -> None:
        self._form, self._faults, self._categories = command.type, [], []
        names: list[str] = []
        for name in change.names:
            if change.by_category:
                found: Collection[str] = self._known.find_category(name)
            else:
                found = (name,) if self._known.find_types(name) else ()
            if not found:
                what = "category" if change.by_category else "event type"
                self._faults.append(f"unknown {what}: {name[:_SAID]}")
            elif change.by_category:
                self._categories.append(name)
            names += found
        if change.adds:
            self._wanted = {**self._names, **dict.fromkeys(names)}
        else:
            self._wanted = {name: None for name in self._names if name not in names}

    def _drop_denied(self, granted: Sequence[str]) -> None:
        """Of a name that stands for several types one is enough."""
        seen = frozenset(granted)
        denied = [name for name in self._names if seen.isdisjoint(self._known.find_types(name))]
        for name in denied:
            del self._names[name]
            if self._form:
                self._faults.append(f"not allowed: {name}")

    def _describe(self) -> dict[str, Any]:
        names = list(self._names)
        return {
            "connection_type": self.kind,
            "subscribed_events": names,
            "subscriptions": names,
            "available_events": self._known.supported,
        }

    def _error(self, code: str, message: str, now: str, form: str = "") -> str:
        instead = _INSTEAD.get(form, "the unified connection: POST /v1/connect")
        data = {
            "message": message,
            "error_code": code,
            "recoverable": True,
            "migration": f"use {instead}; see {self._deprecation['migration_guide']}",
        }
        return _frame("error", data, now)


def describe_stats(found: Mapping[str, Any], names: EventNames) -> dict[str, Any]:
    """Totals in the old shape. found: `users`, `connections`, `frames`, `queued`, `dialect_kinds`."""
    return {
        "total_users": found.get("users", 0),
        "total_connections": found.get("connections", 0),
        "total_messages_sent": found.get("frames", 0),
        "broadcasting": True,
        "connection_types": {kind: found.get("dialect_kinds", {}).get(kind, 0) for kind in DEFAULTS},
        "queue_size": found.get("queued", 0),
        "active_tasks": 0,
        "supported_events": names.supported,
        "supported_connection_types": list(DEFAULTS),
    }


def _frame(name: str, data: Mapping[str, Any], now: str) -> str:
    return msgspec.json.encode({"type": name, "data": data, "timestamp": now}).decode()
