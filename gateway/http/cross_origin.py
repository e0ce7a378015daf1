"""Cross-origin requests of browsers (CORS, as the Fetch standard has it) for what a page needs beside the WebSocket.

What it keeps true: an origin that an operator has named reads the answers of PATHS, refusals as well, and no other
path's and no other method's. It is named as it was sent, and never as `*`; cookies are never asked for (no
`Access-Control-Allow-Credentials`): who asks is what the token says, and a page has to show it. Caches are told that
the answer depends on the origin (`Vary`).

Who is not named is answered as ever, without a word about origins: its browser keeps the answer from the page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from solowire.gateway.http.responses import send_response

PATHS: Mapping[str, tuple[str, ...]] = {
    "/v1/connect": ("POST",),
    "/v1/events": ("GET",),
    "/v1/catalog": ("GET",),
}
"""What a page asks for, and by which methods. Publishing is for servers."""

ANY = "*"
MAX_AGE_S = 600
_HEADERS = b"authorization, content-type, accept"
_SHOWN = b"retry-after, date"
"""What a page may read beside the body: when to come again."""
_VARY = (b"vary", b"origin")

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class CrossOriginRules:
    """Which origins may read answers. allowed: such as `https://app.example.com`; `*` for all."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = frozenset(allowed)

    def wrap(self, app: App) -> App:
        """`app`, whose answers pages of these origins may read."""
        if not self._allowed:
            return app

        async def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            methods = PATHS.get(scope["path"].rstrip("/"))
            if methods is None:
                return await app(scope, receive, send)
            headers = [_VARY]
            origin = self._find_origin(scope)
            wanted = _find_wanted_method(scope)
            if origin is not None and wanted in methods:
                headers.append((b"access-control-allow-origin", origin))
                if scope["method"] == "OPTIONS":
                    send_response(send, 204, [*headers, *_describe_methods(methods)], b"")
                    return None
                headers.append((b"access-control-expose-headers", _SHOWN))

            def answer(message: MutableMapping[str, Any]) -> Any:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message.get("headers", ()), *headers]}
                return send(message)

            return await app(scope, receive, answer)

        return wrapped

    def _find_origin(self, scope: Mapping[str, Any]) -> bytes | None:
        """The origin that asks, as it says it, if it is one of those."""
        origins: list[bytes] = [value for name, value in scope["headers"] if name == b"origin"]
        if len(origins) != 1:
            return None
        return origins[0] if ANY in self._allowed or origins[0].decode("latin-1").lower() in self._allowed else None


def _find_wanted_method(scope: Mapping[str, Any]) -> str:
    """The method that a preflight asks about; any other request's own."""
    method: str = scope["method"]
    if method != "OPTIONS":
        return method
    return next(
        (value.decode("latin-1") for name, value in scope["headers"] if name == b"access-control-request-method"), ""
    )


def _describe_methods(methods: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-allow-headers", _HEADERS),
        (b"access-control-max-age", str(MAX_AGE_S).encode()),
    ]
