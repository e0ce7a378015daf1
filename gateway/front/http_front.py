"""The gateway's public port: takes WebSockets itself, and passes all other requests on to Granian.

Granian holds as much of an unfinished WebSocket message as comes, which can't be set; so no client's socket is given to
it. Each client's connection has one of its own to Granian, over a Unix socket, and its requests go there one after the
other, as they came, with one header more that says who the peer is. The header's name is a secret of this process, so
nobody else can say so. The few kinds of requests that are asked for all the time are answered here instead
(`solowire.gateway.front.direct_request`): Granian's way there and back would cost more than the answer.

Here clients are listened for; who gets room is decided in `connection_registry`, and what happens on a connection in
`client_connection`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog

from solowire.gateway.asker import ASKER
from solowire.gateway.front.client_connection import ClientConnection, FrontContext
from solowire.gateway.front.tls_transport import TlsServerTransport
from solowire.runtime.http_server import BACKLOG

logger = structlog.get_logger("solowire.gateway")

ACCEPTS = 16
"""Connections accepted in one turn of the loop. uvloop accepts one of a listening socket: with only one of those, turns
that a flood makes long would let newcomers in one by one, and whoever comes behind a queue of theirs would wait for it.
"""
SEND_BUFFER_BYTES = 32 * 1024
"""SO_SNDBUF of a connection, of which the kernel makes twice as much: with a shard's for each, 5,000 that read next to
nothing of a large answer hold 2 GB of the machine's memory for TCP, and all its connections suffer.
"""
SWEEP_SECONDS = 0.5
CLOSING_POLL_SECONDS = 0.02


class HttpFront:
    """Listens for clients. context: what their connections share."""

    def __init__(self, context: FrontContext) -> None:
        self.context = context
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, listening_socket: socket.socket) -> None:
        loop = self.context.loop
        listening_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listeners = [listening_socket, *(listening_socket.dup() for _ in range(ACCEPTS - 1))]
        for listener in listeners:
            server = await loop.create_server(self._make_protocol, sock=listener, backlog=BACKLOG)
            self._servers.append(server)
        self._sweep()

    def _make_protocol(self) -> asyncio.BufferedProtocol:
        client, context = ClientConnection(self.context), self.context
        if context.tls is None:
            return client
        return TlsServerTransport(client, context.tls, context.buffer, context.count_as)

    def stop_listening(self) -> None:
        """Accepts no more."""
        for server in self._servers:
            server.close()

    def finish(self) -> None:
        """Accepts no more, and closes what is open when its answer is out, or at once where there is none."""
        self.context.is_finishing = True
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for client in list(self.context.registry.clients):
            client.finish()

    async def wait_for_ends(self, seconds: float) -> None:
        """Waits until all connections have ended, and cuts those that have not by then."""
        deadline = self.context.loop.time() + seconds
        while self.context.registry.clients and self.context.loop.time() < deadline:
            await asyncio.sleep(CLOSING_POLL_SECONDS)
        for client in list(self.context.registry.clients):
            client.transport.abort()
        if self.context.tls is not None:
            self.context.tls.finish()

    def wrap(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """An ASGI application for Granian that tells `app` of the peer, and refuses what has not come through here."""

        async def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            headers = scope["headers"]
            for index, (name, value) in enumerate(headers):  # it is the first, but for a Host that Granian makes up
                if name == self.context.peer_header:
                    del headers[index]
                    host, port, asker_name = value.decode().rsplit(" ", 2)
                    scope["client"] = (host, port)
                    scope["scheme"] = self.context.scheme
                    ASKER.set(self.context.askers.get(asker_name))
                    await app(scope, receive, send)
                    return
            await _refuse_stranger(send)

        return wrapped

    def _sweep(self) -> None:
        """Closes whoever has taken too long."""
        now = self.context.loop.time()
        for client in list(self.context.registry.clients):
            client.check_time(now)
        self._sweeping = self.context.loop.call_later(SWEEP_SECONDS, self._sweep)


async def _refuse_stranger(send: Any) -> None:
    logger.error(
        "unexpected_upstream_connection", hint="something else than the gateway's own port has connected to its socket"
    )
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": "http.response.body", "body": b""})
