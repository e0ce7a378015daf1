"""Requests for a WebSocket of clients that speak a dialect: which they are, and what else they say.

What it keeps true: where `solowire.v1` and the dialect share a path, only a browser that shows its token in the query
and offers no subprotocol can be an old client; and what it says first decides (`DialectPath.is_certain`).
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from solowire.errors import RequestRejected
from solowire.model.dialect import Dialect, DialectPath
from solowire.protocol.opening_handshake import Head

MARK = "X-Solowire-Dialect"
"""What a relay says to the shard of a request at a shared path, of which it passes on neither token nor origin."""
_MARK = MARK.lower()

_FAMILIES = (
    ("edg", "edge"),
    ("opr/", "opera"),
    ("firefox", "firefox"),
    ("chrome", "chrome"),
    ("safari", "safari"),
    ("python", "python"),
    ("node", "node"),
    ("go-http", "go"),
    ("curl", "curl"),
)
"""What is in a user agent, and what its family is called; the first counts, since browsers name each other."""


class DialectRequests:
    """Finds the requests of a dialect's clients. dialect: None if there is none. is_on: whether it is served."""

    def __init__(self, dialect: Dialect | None = None, *, is_on: bool = True) -> None:
        self.dialect = dialect
        self._is_on = is_on

    def is_old_client(self, path: str) -> bool:
        """Whether a request for this path, which a proxy asks about, is of an old client that is served."""
        return self._is_on and self.is_path(path)

    def is_path(self, path: str) -> bool:
        """Whether a path is the dialect's, on or off, and not one of `solowire.v1`, too."""
        found = self.dialect.find_path(path) if self.dialect is not None else None
        return found is not None and found.is_certain

    def find_shared_path(self, target: str, names: Container[str]) -> DialectPath | None:
        """What an old client asks for at a path of both protocols; None if it is none, or is not served.

        target: with its query. names: of the request's headers, found in lower case.
        """
        path, _, query = target.partition("?")
        found = self.dialect.find_path(path) if self.dialect is not None and self._is_on else None
        return found if found is not None and not found.is_certain and is_old_browser(query, names) else None

    def find_path(self, head: Head) -> DialectPath | None:
        """What a request for a WebSocket asks for; None if it is none of the dialect's. Raises RequestRejected."""
        dialect = self.dialect
        found = dialect.find_path(head.path) if dialect is not None else None
        if dialect is None or found is None:
            return None
        if not found.is_certain and not (self._is_on and is_old_browser(head.query, head.headers)):
            return None
        self.need_on(head.path)
        return found

    def need_on(self, path: str) -> None:
        """Raises RequestRejected where the dialect is off: 410, and what to use instead. path: of the request."""
        dialect = self.dialect
        if dialect is None or self._is_on:
            return
        error = RequestRejected(
            410,
            "legacy_off",
            "this WebSocket protocol is no longer served",
            f"use the unified connection: {dialect.guide} says how",
        )
        error.headers = tuple((name.lower(), value) for name, value in dialect.make_headers(path))
        raise error


def is_old_browser(query: str, headers: Container[str]) -> bool:
    """Whether a request at a shared path looks like that of an old page. headers: names, found in lower case."""
    if _MARK in headers:
        return True
    # Most come with a ticket, and nothing else is looked at.
    return "token=" in query and "origin" in headers and "sec-websocket-protocol" not in headers


class _TypeOnly(msgspec.Struct):
    type: str = ""


def is_hello(raw: str | bytes) -> bool:
    """Whether a first message is that of a client that speaks `solowire.v1`."""
    try:
        return msgspec.json.decode(raw, type=_TypeOnly).type == "hello"
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError):
        return False


def find_agent_family(head: Head) -> str:
    """The family of the client's user agent, of a short list."""
    shown = " ".join(head.headers.get_all("User-Agent")).lower()
    if not shown:
        return "none"
    return next((family for part, family in _FAMILIES if part in shown), "other")
