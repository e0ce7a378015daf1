"""Requests whose body the application has not read: their answer says that it is the connection's last.

Granian closes a connection behind an answer if it can't get rid of what nobody has read, which it finds out when the
answer is out. A next request that is on its way by then is lost, and behind a proxy that keeps connections it is
another user's: who sends bodies where none belong would have others refused.

What it keeps true: a connection goes on only if the body of the request before was read to its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

_CLOSE = (b"connection", b"close")


def with_ends(app: App) -> App:
    """`app`, whose answers end the connection where it has not read the request's body."""

    def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        if not _has_body(scope):
            return app(scope, receive, send)
        is_read = False

        async def note_end() -> Any:
            nonlocal is_read
            message = await receive()
            is_read = not message.get("more_body", False)
            return message

        def answer(message: MutableMapping[str, Any]) -> Any:
            if message["type"] == "http.response.start" and not is_read:
                headers = [header for header in message.get("headers", ()) if header != _CLOSE]
                message = {**message, "headers": [*headers, _CLOSE]}
            return send(message)

        return app(scope, note_end, answer)

    return wrapped


def _has_body(scope: MutableMapping[str, Any]) -> bool:
    for name, value in scope["headers"]:
        if (name == b"content-length" and value != b"0") or name == b"transfer-encoding":
            return True
    return False
