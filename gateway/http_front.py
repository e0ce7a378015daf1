"""The gateway's public port: takes WebSockets itself, and passes all other requests on to Granian.

Granian holds as much of an unfinished WebSocket message as comes, which can't be set; so no client's socket is given to
it. Each client's connection has one of its own to Granian, over a Unix socket, and its requests go there one after the
other, as they came, with one header more that says who the peer is. The header's name is a secret of this process, so
nobody else can say so.

What it keeps true:

* Of what a client sends and nobody has taken yet there are BUFFER_BYTES at most, and so of what it doesn't read.
* A request is passed on when its head is whole and the answer before it has been passed back; so an upgrade, too, has
  its turn, on a connection that was kept alive as on a new one. A head that two readers could read in two ways is
  refused.
* Connections have a limit, in all and of one address, and a time for their head. Where there is no room, one that is
  only kept for a next request makes it; else the newest is refused.
* An answer reaches its client: behind the last one the connection is closed by the client, or LINGER_SECONDS later.

The file is long because a client's connection and the one to Granian pause, resume and end each other: apart, each
would have to know the other's states.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, cast

import httptools
import structlog

from gateway.body_framing import Body, body_of
from solowire.accept_limits import AcceptLimiter, counted_address
from solowire.errors import Refused, RequestError
from solowire.handshake import (
    HEAD_BYTES,
    HEAD_END,
    Head,
    check_beginning,
    full_response,
    parse_head,
    read_framing,
    refusal_response,
)
from solowire.serving import BACKLOG

logger = structlog.get_logger("solowire.gateway")

BUFFER_BYTES = 64 * 1024
LINGER_SECONDS = 2.0
SWEEP_SECONDS = 0.5
CLOSING_LOOK_SECONDS = 0.02
FILES_OF_HTTP, FILES_OF_TUNNEL = 3, 2
"""Open files of a connection: the client's, and both ends of the one to Granian, or ours of the one to the shard."""
DRAINED_BYTES = 64 * 1024
"""So much of a body that nobody wanted is read and forgotten to keep a connection; with more to come it is closed."""

_FULL = {
    "total": ("this gateway has as many HTTP connections as it may have", "SOLOWIRE_MAX_HTTP_CONNECTIONS"),
    "address": (
        "as many HTTP connections are open from your address as one address may have",
        "SOLOWIRE_MAX_HTTP_CONNECTIONS_PER_ADDRESS, or names the proxy in SOLOWIRE_TRUSTED_PROXIES",
    ),
    "files": ("this gateway has as many open files as its process may have", "that limit (ulimit -n)"),
}
FULL_RESPONSES = {limit: full_response(*said) for limit, said in _FULL.items()}
"""By the limit that is reached."""

NO_ANSWER = Refused(
    503, "overloaded", "the request was ended before its answer was read", "send it again, with the same ids", 1.0
)


class Stage(Enum):
    """What a connection waits for. One that is passing on a body waits for the answer as well."""

    head = "head"
    body = "body"
    answer = "answer"
    drain = "drain"  # of a body that nobody wanted
    linger = "linger"  # until the client closes
    relay = "relay"


class Tunnel(Protocol):
    """Whoever has taken a client's connection over: it gets what the client sends, and hears of its end."""

    def receive(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class HttpFront:
    """takes(head): whether a request is a WebSocket of ours; open_tunnel(client, head, rest): takes such a one over.

    trusted(address): whether it is a proxy's, whose connections are not counted by address. max_files: open files of
    all connections together, tunnels included. plain: how heads begin that `takes` is asked about although they ask for
    no upgrade.
    """

    def __init__(
        self,
        upstream: Path,
        *,
        takes: Callable[[Head], bool],
        open_tunnel: Callable[[ClientConnection, Head, bytes], None],
        limiter: AcceptLimiter,
        trusted: Callable[[str], bool],
        head_s: float,
        keepalive_s: float,
        stalled_s: float,
        max_files: int = sys.maxsize,
        plain: tuple[bytes, ...] = (),
    ) -> None:
        self.upstream = str(upstream)
        self.takes = takes
        self.open_tunnel = open_tunnel
        self.limiter = limiter
        self.trusted = trusted
        self.head_s = head_s
        self.keepalive_s = keepalive_s
        self.stalled_s = stalled_s
        self._max_files = max_files
        self.plain = plain
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(BUFFER_BYTES))  # of whoever reads at the moment: it is taken out at once
        self.clients: set[ClientConnection] = set()
        self.idle: dict[str, dict[ClientConnection, None]] = {}  # kept for a next request, by address, oldest first
        self.peer_header = f"x-peer-{secrets.token_hex(8)}".encode()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, listening: socket.socket) -> None:
        self._server = await self.loop.create_server(lambda: ClientConnection(self), sock=listening, backlog=BACKLOG)
        self._sweep()

    def finish(self) -> None:
        """Accepts no more, and closes what is open when its answer is out, or at once where there is none."""
        if self._server is not None:
            self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for client in list(self.clients):
            client.finish()

    async def wait_for_ends(self, seconds: float) -> None:
        """Waits until all connections have ended, and cuts those that have not by then."""
        deadline = self.loop.time() + seconds
        while self.clients and self.loop.time() < deadline:
            await asyncio.sleep(CLOSING_LOOK_SECONDS)
        for client in list(self.clients):
            client.transport.abort()

    def wrap(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """An ASGI application for Granian that tells `app` of the peer, and refuses what has not come through here."""

        def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
            headers = scope["headers"]
            for index, (name, value) in enumerate(headers):  # it is the first, but for a Host that Granian makes up
                if name == self.peer_header:
                    del headers[index]
                    host, _, port = value.decode().rpartition(" ")
                    scope["client"] = (host, port)
                    return app(scope, receive, send)
            return _refuse_stranger(send)

        return wrapped

    def admit(self, address: str) -> str | None:
        """Counts a connection of this address, and closes an idle one if there is no room else.

        None, or, where there is no room, which limit is reached: `files`, `address` or `total`.

        An idle one of the address itself, if that is what is full, else of whichever address has been idle first.
        """
        http = len(self.limiter)
        if FILES_OF_HTTP * http + FILES_OF_TUNNEL * (len(self.clients) - http) >= self._max_files:
            self.limiter.refused += 1
            return "files"
        if not self.limiter.has_room(address):
            own = self.idle.get(address) if self.limiter.is_full(address) else next(iter(self.idle.values()), None)
            if own:
                next(iter(own)).close_idle()
        if self.limiter.acquire(address):
            return None
        return "address" if self.limiter.is_full(address) else "total"

    def note_idle(self, address: str, client: ClientConnection) -> None:
        """It waits for a next request."""
        self.idle.setdefault(address, {})[client] = None

    def forget_idle(self, address: str, client: ClientConnection) -> None:
        """It waits no more."""
        clients = self.idle.get(address)
        if clients is not None:
            clients.pop(client, None)
            if not clients:
                del self.idle[address]

    def _sweep(self) -> None:
        """Closes whoever has taken too long."""
        now = self.loop.time()
        for client in list(self.clients):
            client.check_time(now)
        self._sweeping = self.loop.call_later(SWEEP_SECONDS, self._sweep)


class ClientConnection(asyncio.BufferedProtocol):
    """One client's connection, and its requests, one after the other."""

    def __init__(self, front: HttpFront) -> None:
        self._front = front
        self.transport: asyncio.Transport
        self.peer = ("", 0)
        self._address: str | None = None  # as it was counted, None if it is not any more
        self._stage = Stage.head
        self._ends_at: float | None = None  # when the stage has taken too long
        self._pending = b""  # what has come and could not be passed on yet
        self._body = Body(0)
        self._upstream: _Upstream | None = None
        self._tunnel: Tunnel | None = None
        self._is_paused = False  # reading
        self._unread_since: float | None = None  # since when the client has taken nothing of what waits for it
        self._unread_bytes = 0
        self._has_left = False  # the client has closed its half

    # ------------------------------------------------------------------------------------------- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        front = self._front
        peer = transport.get_extra_info("peername") or ("", 0)
        self.peer = (str(peer[0]), int(peer[1]))
        address = "" if front.trusted(self.peer[0]) else counted_address(self.peer[0])
        full = front.admit(address)
        if full is not None:
            self.transport.write(FULL_RESPONSES[full])
            self.transport.close()
            return
        self._address = address
        front.clients.add(self)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._ends_at = front.loop.time() + front.head_s

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._front.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._front.buffer[:nbytes])
        if self._tunnel is not None:
            self._tunnel.receive(data)
        elif self._stage is not Stage.linger and self._address is not None:
            self._pending += data
            self._advance()

    def eof_received(self) -> bool:
        self._has_left = True
        if self._tunnel is not None:
            self._tunnel.end()
            return True
        # One that has only closed its half waits for its answer.
        return self._stage is Stage.answer

    def connection_lost(self, exc: Exception | None) -> None:
        self.uncount()
        self._front.clients.discard(self)
        self._drop_upstream()
        if self._tunnel is not None:
            self._tunnel.end()

    def pause_writing(self) -> None:
        self._unread_since = self._front.loop.time()
        self._unread_bytes = self.transport.get_write_buffer_size()
        if self._tunnel is not None:
            self._tunnel.pause()
        elif self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        self._unread_since = None
        if self._tunnel is not None:
            self._tunnel.resume()
        elif self._upstream is not None:
            self._upstream.resume_reading()

    # ------------------------------------------------------------------------------------------------- one request

    def _advance(self) -> None:
        """Passes on what may be passed on of what has come."""
        try:
            while self._pending:
                if self._stage is Stage.head:
                    if not self._take_head():
                        break
                elif self._stage is Stage.body:
                    self._pass_body()
                elif self._stage is Stage.drain:
                    self._drain_body()
                else:
                    break
        except RequestError as error:
            self.refuse(error)
            return
        self._pause_if_full()

    def _take_head(self) -> bool:
        """Whether a head was there, and has been dealt with. Raises Refused."""
        if self._pending.startswith(b"\r\n"):
            self._pending = self._pending.lstrip(b"\r\n")  # RFC 9112, section 2.2
        end = self._pending.find(HEAD_END)
        if end > HEAD_BYTES or (end < 0 and len(self._pending) > HEAD_BYTES):
            raise Refused(
                431, "head_too_large", f"a request head may have {HEAD_BYTES} bytes", "send fewer or shorter headers"
            )
        if self._pending:
            check_beginning(self._pending)
        if end < 0:
            if self._pending and self._ends_at is None:
                self._ends_at = self._front.loop.time() + self._front.head_s
            return False
        raw, self._pending = self._pending[: end + len(HEAD_END)], self._pending[end + len(HEAD_END) :]
        self._forget_idle()
        framing = read_framing(raw)
        self._ends_at = None
        may_take = framing.upgrades or raw.startswith(self._front.plain)
        if may_take and self._front.takes(head := parse_head(raw)):
            rest, self._pending = self._pending, b""
            self._stage = Stage.relay
            self._front.open_tunnel(self, head, rest)
            return False
        self._body = body_of(framing)
        line = raw.index(b"\r\n") + 2
        peer = b"%s: %s %d\r\n" % (self._front.peer_header, self.peer[0].encode(), self.peer[1])
        self._stage = Stage.answer if self._body.is_done else Stage.body
        self._to_upstream(framing.method == "HEAD", raw[:line] + peer + raw[line:])
        return True

    def _pass_body(self) -> None:
        size = self._body.measure(self._pending)
        piece, self._pending = self._pending[:size], self._pending[size:]
        if self._body.is_done:
            self._stage = Stage.answer
        if self._upstream is not None:
            self._upstream.write(piece)

    def _drain_body(self) -> None:
        size = self._body.measure(self._pending)
        self._pending = self._pending[size:]
        if self._body.is_done:
            self._wait_for_head()

    def _to_upstream(self, is_head_request: bool, data: bytes) -> None:
        if self._upstream is None:
            self._upstream = _Upstream(self, self._front)
        self._upstream.begin_request(is_head_request)
        self._upstream.write(data)

    def answered(self, *, keeps_alive: bool) -> None:
        """The answer has been passed back whole."""
        if self._stage is Stage.body:
            self._drop_upstream()  # which may still wait for the rest
            left = self._body.left
            if left is None or left > DRAINED_BYTES:
                keeps_alive = False
            else:
                self._stage = Stage.drain
        if not keeps_alive or self._has_left:
            self._linger()
        elif self._stage is not Stage.drain:
            self._wait_for_head()
        else:
            self._ends_at = self._front.loop.time() + self._front.head_s
        self._advance()

    def upstream_lost(self, *, was_answered: bool, has_begun: bool) -> None:
        """Granian has closed its side. was_answered: in the midst of no request. has_begun: of an answer."""
        self._upstream = None
        if was_answered or self._stage not in (Stage.body, Stage.answer):
            return
        if has_begun:
            self._linger()  # what has come of the answer is all
        else:  # one that Granian gave while the body still came can be lost with its socket
            self.refuse(NO_ANSWER)

    def _wait_for_head(self) -> None:
        self._stage = Stage.head
        self._ends_at = self._front.loop.time() + self._front.keepalive_s
        if self._pending:
            self._ends_at = self._front.loop.time() + self._front.head_s
        elif self._address is not None:
            self._front.note_idle(self._address, self)
        self._resume()

    # -------------------------------------------------------------------------------------------------- the ends

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._front.loop

    @property
    def shared_buffer(self) -> memoryview:
        """Where all connections of this front read into: what is read is taken out at once."""
        return self._front.buffer

    def refuse(self, error: RequestError) -> None:
        """Answers with a refusal, and closes."""
        self.close_with(refusal_response(error))

    def close_with(self, last: bytes) -> None:
        """Says the last there is to say, and closes."""
        if not self.transport.is_closing():
            self.transport.write(last)
            self._linger()

    def _linger(self) -> None:
        """Closed with unread bytes the connection would be reset, and the last answer might be lost."""
        self._drop_upstream()
        self._tunnel = None
        self._pending = b""
        self._stage = Stage.linger
        self._ends_at = self._front.loop.time() + LINGER_SECONDS
        if self.transport.is_closing():
            return
        if self._has_left:
            self.transport.close()
        else:
            self._resume()
            self.transport.write_eof()

    def finish(self) -> None:
        """The process is about to end."""
        if self._stage in (Stage.body, Stage.answer):
            return  # the server gives it its answer, or closes
        self.transport.close()

    def close_idle(self) -> None:
        """Makes room for somebody else."""
        self.uncount()
        self._linger()

    def check_time(self, now: float) -> None:
        """Cuts the connection if it has taken too long."""
        if self._unread_since is not None:
            size = self.transport.get_write_buffer_size()
            if size < self._unread_bytes:
                self._unread_since, self._unread_bytes = now, size
            elif now - self._unread_since > self._front.stalled_s:
                self.transport.abort()
                return
        if self._ends_at is not None and now >= self._ends_at:
            if self._stage is Stage.linger:
                self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()
            else:
                self.transport.close()

    def _forget_idle(self) -> None:
        if self._address is not None:
            self._front.forget_idle(self._address, self)

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None

    def uncount(self) -> None:
        """It counts among the HTTP connections no more: it has ended, or another limit is in force for it."""
        if self._address is not None:
            self._forget_idle()
            self._front.limiter.release(self._address)
            self._address = None

    # --------------------------------------------------------------------------------------------------- its flow

    def start_tunnel(self, tunnel: Tunnel) -> None:
        """From now on `tunnel` gets what the client sends."""
        self._tunnel = tunnel
        if self._has_left or self.transport.is_closing():
            tunnel.end()
        else:
            self._resume()

    def pause_reading(self) -> None:
        """Nobody can take more of what the client sends."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._resume()
        self._pause_if_full()

    def _resume(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def _pause_if_full(self) -> None:
        waits = self._stage is Stage.relay and self._tunnel is None
        if len(self._pending) >= BUFFER_BYTES or waits:
            self.pause_reading()


class _Upstream(asyncio.BufferedProtocol):
    """The connection to Granian that one client's requests go by."""

    def __init__(self, client: ClientConnection, front: HttpFront) -> None:
        self._client = client
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []  # until it is connected
        self._is_dropped = False
        self._is_lost = False  # by Granian, with what it has answered still to be read
        self._is_head_request = False
        self._is_answered = True
        self._has_begun = False  # the answer
        self._keeps_alive = True
        self._parser = httptools.HttpResponseParser(self)
        self._opening = front.loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            await self._front.loop.create_unix_connection(lambda: self, self._front.upstream)
        except OSError as error:
            if not self._is_dropped:
                logger.error(
                    "upstream_unavailable", reason=str(error), hint="requests are refused until it is there again"
                )
                self._client.refuse(
                    Refused(
                        503,
                        "overloaded",
                        "the gateway can't take requests",
                        "try again in a moment; its log says why",
                        1.0,
                    )
                )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_dropped:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._client.resume_reading()

    def begin_request(self, is_head_request: bool) -> None:
        self._is_head_request = is_head_request
        self._is_answered = self._has_begun = False

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
        else:
            self._unsent.append(data)
            self._client.pause_reading()

    def pause_writing(self) -> None:
        self._client.pause_reading()

    def resume_writing(self) -> None:
        self._client.resume_reading()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._front.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_dropped:
            return
        data = bytes(self._front.buffer[:nbytes])
        self._has_begun = True
        self._client.transport.write(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:  # Granian's fault, and not the client's
            logger.error("upstream_unclear", reason=str(error), hint="a fault of the gateway: report it with this line")
            self._client.answered(keeps_alive=False)
            return
        if self._is_answered:
            if self._is_head_request:
                self._parser = httptools.HttpResponseParser(self)  # this one waits for a body that doesn't come
            self._client.answered(keeps_alive=self._keeps_alive and not self._is_lost)

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._is_head_request:
            self.on_message_complete()

    def on_message_complete(self) -> None:
        """Called by the parser, for answers such as 100 Continue as well."""
        if self._parser.get_status_code() >= 200:
            self._is_answered = True
            self._keeps_alive = self._parser.should_keep_alive()  # which is known here only

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._is_answered and self._transport is not None:
            self._read_the_rest(self._transport.get_extra_info("socket").fileno())
        if not self._is_dropped:
            self._is_dropped = True
            self._client.upstream_lost(was_answered=self._is_answered, has_begun=self._has_begun)

    def _read_the_rest(self, descriptor: int) -> None:
        """An answer that came before the body was whole: writing failed first, so it is in the socket still."""
        self._is_lost = True
        with contextlib.suppress(OSError):
            while not self._is_dropped and (count := os.readv(descriptor, [self._front.buffer])):
                self.buffer_updated(count)

    def abort(self) -> None:
        self._is_dropped = True
        self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()


async def _refuse_stranger(send: Any) -> None:
    logger.error("request_without_peer", hint="something else than the gateway's own port has connected to its socket")
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": "http.response.body", "body": b""})
