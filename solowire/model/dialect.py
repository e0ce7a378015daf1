"""Dialects: other protocols than `solowire.v1`, for clients of an application that can't be changed at once.

    path of the request ─► DialectPath ─► DialectSession   what one client says, and is answered
                                          └─► Translator   what events are written as

A domain gives the core one dialect, or none. The core knows no message of it: it opens sessions, hands over what
clients say, does what an `Outcome` asks for, and has events written by the session's translator.

What it keeps true: a dialect reads no clock and knows no socket. Times are RFC 3339 texts in UTC, given with each call.
Frames are whole JSON texts without line breaks, each one WebSocket message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from solowire.model.events import Event

GUIDE_PATH = "/docs/migration"
"""Where a gateway serves the dialect's guide, if settings name no other place."""


def make_relative(path: str, seen_from: str) -> str:
    """A path of this server as a reference from another one, which holds behind a proxy that cuts a prefix off both."""
    return "../" * (seen_from.count("/") - 1) + path.removeprefix("/")


class DialectPath(msgspec.Struct, frozen=True):
    """What a request's path says. kind: which of the dialect's connections. pattern: as it is counted.

    is_certain: False where `solowire.v1` is spoken at the path, too, and the client's first message decides.
    """

    kind: str
    pattern: str
    is_certain: bool = True


class Question(msgspec.Struct, frozen=True):
    """What only the core can tell. about: `stats`, `recent_events`, `start_replay`, `stop_replay`, `replay_status`.

    form: the client's word for it, which the answer repeats. details: of `recent_events` and a `start_replay` also
    `names`, of the events that it is of, as the client calls them, and `types`, as we do.
    """

    about: str
    form: str
    details: Mapping[str, Any] = {}


class Outcome(msgspec.Struct, frozen=True):
    """What a client's message leads to. label: its type as it is counted, of a set that the dialect bounds.

    frames: sent at once. is_change: `patterns` have changed, and `confirm` writes the answer. is_fault: the message was
    none that the dialect knows.
    """

    label: str
    frames: Sequence[str] = ()
    is_change: bool = False
    question: Question | None = None
    is_fault: bool = False


class Translator(Protocol):
    """Writes events for all connections that may see and want the same. key: equal for those."""

    @property
    def key(self) -> Hashable: ...

    def translate_event(self, event: Event, data: dict[str, Any], offset: int) -> bytes | None:
        """An event as its fragment, out of which `join_fragments` makes frames; None if nothing of it is sent.

        data: the payload through the reader's view. offset: older events may come again behind newer ones.
        """

    def join_fragments(self, fragments: Sequence[bytes]) -> bytes:
        """The frames of these events, one a line."""

    def read_timestamp(self, fragment: bytes) -> str:
        """When the event happened, as its frame says it."""


class DialectSession(Protocol):
    """One client's connection."""

    @property
    def kind(self) -> str: ...

    @property
    def patterns(self) -> Sequence[str]:
        """The event types that it wants now."""

    @property
    def wish(self) -> Hashable:
        """What it wants, as part of the key of what it shares with others."""

    def make_translator(self, view: Hashable) -> Translator:
        """What writes events for this wish from now on, the same for all sessions with an equal one.

        view: equal for all that may see the same; what is known of earlier events, they may share.
        """

    def make_past_translator(self, names: Sequence[str], tags: Sequence[str] = ()) -> Translator:
        """What writes events of these names once more, and knows nothing of the present. tags: of each frame."""

    def open(self, granted: Sequence[str], now: str) -> list[str]:
        """Its first frames. granted: the event types that its view allows of `patterns`."""

    def receive(self, raw: str | bytes, now: str) -> Outcome: ...

    def confirm(self, granted: Sequence[str], now: str) -> list[str]:
        """The answer to a change, which is in force now. granted: as for `open`; what was not is no longer wanted."""

    def answer(self, question: Question, found: Mapping[str, Any], now: str) -> list[str]:
        """The answer to a question that `receive` has returned."""

    def reject(self, code: str, message: str, hint: str, now: str) -> list[str]:
        """Says that a message was refused by the core, such as one too many; a change in it is not in force."""


class Dialect(Protocol):
    """A protocol of old clients, as a domain gives it.

    name: in statistics. guide: the address of what to use instead.
    """

    @property
    def name(self) -> str: ...

    def make_headers(self, path: str) -> Sequence[tuple[str, str]]:
        """Of the answer that accepts a client at a path, and of the refusal where the dialect is off."""

    @property
    def guide(self) -> str: ...

    @property
    def guide_file(self) -> Path:
        """The guide itself, in Markdown."""

    def find_path(self, path: str) -> DialectPath | None:
        """What the path (without its query) asks for; None if it is none of the dialect's."""

    def open_session(self, path: DialectPath, *, is_admin: bool) -> DialectSession: ...

    def convert_close_code(self, code: int, reason: str) -> int:
        """What clients are closed with in place of one of our codes. reason: why one was sent away, if it was."""

    @property
    def reports(self) -> Mapping[str, Callable[[Mapping[str, Any], str], dict[str, Any]]]:
        """By path what administrators' old tools ask the gateway for: of the system's totals, and of the time."""
