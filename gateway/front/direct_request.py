"""One request that is answered in the gateway's own loop, by an ASGI application that asks for its body as it needs it.

What is asked for all the time (publishing, and where to connect) is not passed on to Granian: there and back costs more
than all of the answer. It is what an ASGI server is, and no more than that: HTTP/1.1, a body with a length. Whatever
else a request may be (chunked, `Expect`, HTTP/1.0), Granian has it.

What it keeps true: of a body BUFFER_BYTES wait at most until the application asks for them. An answer is written whole,
once. A client that is gone ends the request's body and not the application: what it has begun it brings to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

import structlog

from solowire.errors import RequestError, RequestRejected

logger = structlog.get_logger("solowire.gateway")

BUFFER_BYTES = 64 * 1024
_GONE = {"type": "http.disconnect"}
_FAULT = RequestRejected(
    500, "internal_error", "this is a fault of the gateway, and in its log", "an operator finds it there and reports it"
)

App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], None]], Awaitable[None]]
"""Answers by calling `send`, which need not be awaited, with the start of the answer and with all of its body."""


class DirectClient(Protocol):
    """The connection that the request has come by."""

    def write_answer(self, data: bytes, *, keeps_alive: bool) -> None: ...

    def refuse(self, error: RequestError) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class DirectRequest:
    """A request that is answered in front of Granian, as an ASGI application sees it.

    head: whole, of HTTP/1.1, with one Host at most. peer: address and port of who has sent it. Raises
    RequestRejected.
    """

    def __init__(
        self,
        client: DirectClient,
        app: App,
        head: bytes,
        peer: tuple[str, int],
        *,
        has_body: bool,
        scheme: str = "http",
    ) -> None:
        self._client = client
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_whole = not has_body
        self._is_over = False  # it has been answered, or nobody waits for the answer any more
        self._arrival: asyncio.Future[None] | None = None
        self._start: Any = None
        scope = read_scope(head, peer, scheme)
        self._wants_close = any(name == b"connection" and is_close(value) for name, value in scope["headers"])
        self._task = asyncio.get_running_loop().create_task(self._run(app, scope))

    def write(self, data: bytes) -> None:
        """A piece of the body has come."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= BUFFER_BYTES:
            self._client.pause_reading()
        self._wake()

    def end_body(self) -> None:
        """All of the body has come."""
        self._is_whole = True
        self._wake()

    def pause_reading(self) -> None:
        """The client doesn't take what it is sent: an answer is small, and waits for it whole."""

    def resume_reading(self) -> None:
        """The client takes what it is sent again."""

    def abort(self) -> None:
        """Nobody waits for the answer any more."""
        self._is_over = True
        self._pieces.clear()
        self._wake()

    async def _run(self, app: App, scope: MutableMapping[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            logger.exception("request_failed", path=scope["path"], hint="a fault of the gateway: report it")
        if not self._is_over:  # there is no answer
            self._is_over = True
            self._client.refuse(_FAULT)

    async def _receive(self) -> dict[str, Any]:
        while not (self._pieces or self._is_whole or self._is_over):
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        if self._is_over:
            return _GONE
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._size >= BUFFER_BYTES:
            self._client.resume_reading()
        self._size = 0
        return {"type": "http.request", "body": body, "more_body": not self._is_whole}

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif not self._is_over:
            self._is_over = True
            headers = self._start["headers"]
            if self._wants_close:
                headers = [*(header for header in headers if header[0] != b"connection"), (b"connection", b"close")]
            data, keeps_alive = render_answer(self._start["status"], headers, message["body"])
            self._client.write_answer(data, keeps_alive=keeps_alive)


def read_scope(head: bytes, peer: tuple[str, int], scheme: str = "http") -> MutableMapping[str, Any]:
    """The ASGI scope of a request. Raises RequestRejected for one with several Hosts."""
    line, _, block = head.partition(b"\r\n")
    method, target, _ = line.split(b" ")
    path, _, query = target.partition(b"?")
    headers = []
    for header in block.split(b"\r\n"):  # and no pattern, which could take long for one with many blanks
        name, colon, value = header.partition(b":")
        if colon:
            headers.append((name.lower(), value.strip(b" \t")))
    if sum(name == b"host" for name, _ in headers) > 1:
        raise RequestRejected(400, "bad_host", "there is more than one Host", "send one (RFC 9112, section 3.2)")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("ascii"),
        "scheme": scheme,
        "path": path.decode("ascii"),
        "query_string": query,
        "headers": headers,
        "client": (peer[0], str(peer[1])),
    }


def is_close(value: bytes) -> bool:
    """Whether a `Connection` header with this value says that no other request comes (RFC 9112, section 9.6)."""
    return b"close" in map(bytes.strip, value.lower().split(b","))


def render_answer(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> tuple[bytes, bool]:
    """A whole answer, and whether the connection may have another request."""
    lines = [b"HTTP/1.1 %d %s\r\ndate: %s" % (status, _phrase(status), formatdate(usegmt=True).encode())]
    keeps_alive = True
    for name, value in headers:
        lines.append(b"%s: %s" % (name, value))
        if name == b"connection":
            keeps_alive = value != b"close"
    if status != HTTPStatus.NO_CONTENT:
        lines.append(b"content-length: %d" % len(body))
    return b"%s\r\n\r\n%s" % (b"\r\n".join(lines), body), keeps_alive


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()
