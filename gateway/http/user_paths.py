"""Paths with a user's name in them, read from the raw path before anybody else decodes it.

`/v1/users/{user}` and `/v1/users/{user}/disconnect`: the name is given to the route by the scope, and in its place in
the path stands its UTF-8 in hexadecimal, in which nothing can be taken for something else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from solowire.errors import RequestRejected
from solowire.gateway.http.responses import exception_to_response, send_response
from solowire.protocol.user_names import decode_user_name

USER = "solowire.user"
"""Where in the scope the name is."""
_PREFIX = b"/v1/users/"
_DISCONNECT = b"/disconnect"

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


def with_user_paths(app: App) -> App:
    """`app`, with routes for one segment in place of the name."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        raw: bytes = scope.get("raw_path", b"").partition(b"?")[0]
        if raw.startswith(_PREFIX):
            try:
                scope = {**scope, **_read(raw.removeprefix(_PREFIX), scope["method"])}
            except RequestRejected as error:
                send_response(send, *exception_to_response(error, scope["path"]))
                return
        await app(scope, receive, send)

    return wrapped


def _read(rest: bytes, method: str) -> dict[str, Any]:
    """Reads the user's name out of a path. Raises RequestRejected."""
    suffix = _DISCONNECT if method == "POST" and rest.endswith(_DISCONNECT) else b""
    user = decode_user_name(rest.removesuffix(suffix))
    if not user:
        raise RequestRejected(
            404, "not_found", "there is no user's name in the path", "/v1/users/{user}, percent-encoded"
        )
    path = f"{_PREFIX.decode()}{user.encode().hex()}{suffix.decode()}"
    return {"path": path, "raw_path": path.encode(), USER: user}
