"""The relay: carries a WebSocket for a client that can't go to its shard directly.

The client's own handshake goes to the shard, with a ticket in it, and the shard's answer comes back: what is accepted
or refused is decided there. From then on bytes pass as they are.

What it keeps true: bytes, close codes and refusals pass through as they are, both ways; in each direction there are
`client_connection.BUFFER_BYTES` at most, and one read, so a reader that is slow slows the writer behind it, and
nothing piles up here. A client that takes nothing for `listen.write_timeout_s` is cut: the shard would do that, but
its word can't get past a socket that nobody reads. Where the shard or this gateway goes without a word, the client is
told 1012, unless that would fall into the midst of a frame; one that speaks a dialect is told 1000, as `HeldClients`
says. Where both may be spoken, the client's first message is read on its way, as the shard reads it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Collection
from functools import partial
from typing import cast

import structlog

from solowire.auth.tokens import parse_bearer
from solowire.backplane.messages import ShardAddress
from solowire.errors import RequestError, RequestRejected
from solowire.gateway.admission.forwarded_headers import collect_forwarded
from solowire.gateway.front.client_connection import BUFFER_BYTES, ClientConnection
from solowire.gateway.front.first_message import FirstMessage
from solowire.gateway.front.frame_scanner import FrameScanner
from solowire.gateway.front.held_clients import HeldClients
from solowire.gateway.front.tls_transport import TlsClientTransport, UnknownCertificateError
from solowire.gateway.router_client import RouterClient
from solowire.model.dialect import DialectPath
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.dialect_requests import MARK, DialectRequests, is_hello
from solowire.protocol.opening_handshake import HEAD_BYTES, HEAD_END, Head, check_origin
from solowire.protocol.query_parameter import read_parameter

logger = structlog.get_logger("solowire.relay")

UNAVAILABLE_HINT = "connect again in a moment: a shard that is lost is started again, or its users go to the others"
RELAY_FAILED_HINT = "connect again in a moment; the gateway's log says why"
_UNREACHABLE = "if it goes on while the shard runs, check SOLOWIRE_SHARD__ADVERTISE_HOST and what is between the two"

PATHS = frozenset({"/ws"})
"""Where WebSockets are served here."""
OPEN_SECONDS = 5.0
RENEWAL_POLL_SECONDS = 0.05
_PASSED_ON = ("host", "connection", "upgrade", "content-length", "transfer-encoding")
"""Of a handshake's headers, beside those that begin with sec-websocket-: what a shard judges it by."""
_RESTARTING_FRAME = struct.pack("!BBH", 0x88, 2 + len(CloseCode.restarting.reason), CloseCode.restarting) + (
    CloseCode.restarting.reason.encode()
)


class Relay:
    """All that a gateway carries.

    allowed_origins: as `check_origin` says. send_buffer: SO_SNDBUF of what it carries, bytes; None: as it is.
    opened_count: carried since the start.
    """

    def __init__(
        self,
        gateway: RouterClient,
        *,
        allowed_origins: Collection[str] = (),
        send_buffer: int | None = None,
        dialects: DialectRequests | None = None,
    ) -> None:
        self._gateway = gateway
        self._dialects = dialects or DialectRequests()
        self.held = HeldClients()
        self._allowed_origins = allowed_origins
        self.send_buffer = send_buffer
        self._opening: set[asyncio.Task[None]] = set()
        self._carried: set[RelayedConnection] = set()
        self._loop = asyncio.get_running_loop()
        self.opened_count = 0

    @property
    def open_count(self) -> int:
        """How many it carries now."""
        return len(self._carried)

    def can_handle(self, head: Head) -> bool:
        """Whether a request is for it."""
        return head.is_websocket_request and self.is_path(head.path)

    def is_path(self, path: str) -> bool:
        """Whether there are WebSockets at the path."""
        return path in PATHS or self._dialects.is_path(path)

    def accept_client(self, client: ClientConnection, head: Head, rest: bytes) -> None:
        """Carries a client whose request it `can_handle`, or refuses it.

        rest: what it sent together with its request.
        """
        task = self._loop.create_task(self._connect(client, head, rest))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def close(self) -> None:
        """Ends all that it carries with 1012, before the process ends: the clients come back to another gateway."""
        for task in self._opening:
            task.cancel()
        for relayed in list(self._carried):
            relayed.close()
        self.held.close_all()

    async def drain_dialects(self, per_second: float, within: float) -> None:
        """Ends the connections that speak a dialect one after the other, `within` seconds: they come back at once."""
        leaving = [relayed for relayed in self._carried if relayed.is_dialect]
        for index, relayed in enumerate(leaving):
            if relayed in self._carried:
                relayed.close()
                if index < len(leaving) - 1:
                    await asyncio.sleep(min(1 / per_second, within / len(leaving)))

    def add_connection(self, relayed: RelayedConnection) -> None:
        """A shard has accepted."""
        self._carried.add(relayed)
        self.opened_count += 1

    def remove_connection(self, relayed: RelayedConnection) -> None:
        """It has ended."""
        self._carried.discard(relayed)

    async def _connect(self, client: ClientConnection, head: Head, rest: bytes) -> None:
        try:
            addresses, forwarded = self._gateway.addresses, collect_forwarded(head.headers.raw_items())
            # Only here is it known what host a trusted proxy was asked for: the shard is not told of the origin.
            check_origin(head, self._allowed_origins, addresses.resolve_origin(client.peer[0], forwarded)[1])
            address = addresses.resolve_client(client.peer[0], forwarded)
            path = self._dialects.find_path(head)
            if path is not None and path.is_certain:
                assigned = await self._gateway.assign_old_client(_read_token(head), address, "relay")
            else:
                assigned = await self._gateway.assign_shard(_read_token(head), address, "relay")
            shard, ticket, user = assigned
            if path is None:
                relayed = RelayedConnection(self, client, shard)
            else:
                find_delay = partial(self._gateway.find_return_delay, user, shard)
                relayed = DialectRelay(self, client, shard, find_delay, is_certain=path.is_certain)
            await self._open(relayed, shard)
        except RequestError as error:
            client.refuse(error)
        except asyncio.CancelledError:
            client.refuse(
                RequestRejected(503, "restarting", "the gateway is restarting", "connect again in a moment", 1.0)
            )
            raise
        except Exception:
            logger.exception("relay_failed")
            client.refuse(
                RequestRejected(503, "overloaded", "the gateway can't carry this connection", RELAY_FAILED_HINT, 1.0)
            )
        else:
            relayed.send_handshake(_make_handshake(head, ticket, path), rest)

    async def _open(self, relayed: RelayedConnection, shard: ShardAddress) -> None:
        """Connects to the user's shard. Raises RequestRejected."""
        silence = f"no answer within {OPEN_SECONDS:g} s"
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                if not shard.certificate:
                    await self._loop.create_connection(lambda: relayed, shard.host, shard.port)
                    return
                while not await self._open_tls(relayed, shard):
                    # It has a new one, and the router is about to say so.
                    silence = "its certificate is not the one that the router has told of"
                    while (renewed := self._gateway.shards.get(shard.index, shard)).certificate == shard.certificate:
                        await asyncio.sleep(RENEWAL_POLL_SECONDS)
                    shard = renewed
        except OSError as error:  # a TimeoutError is one
            logger.warning("shard_unreachable", shard=shard.index, error=str(error) or silence, hint=_UNREACHABLE)
            raise RequestRejected(
                503,
                "shard_unavailable",
                f"shard {shard.index} can't be reached from the gateway",
                UNAVAILABLE_HINT,
                retry_after=1,
            ) from None

    async def _open_tls(self, relayed: RelayedConnection, shard: ShardAddress) -> bool:
        """Whether the shard has shown the certificate that it is known by. Raises OSError."""
        tls = TlsClientTransport(relayed, shard.certificate, relayed.buffer)
        transport, _ = await self._loop.create_connection(lambda: tls, shard.host, shard.port)
        try:
            await tls.opened
        except UnknownCertificateError:
            return False
        except BaseException:
            transport.abort()
            raise
        return True


class RelayedConnection(asyncio.BufferedProtocol):
    """One client's, with its shard's side as the protocol that this is. last_frame: says that it should come again."""

    is_dialect = False
    last_frame = _RESTARTING_FRAME

    def __init__(self, relay: Relay, client: ClientConnection, shard: ShardAddress) -> None:
        self._relay = relay
        self._client = client
        self._shard = shard
        self._transport: asyncio.Transport
        self.buffer = client.shared_buffer
        self._answer: bytes | None = b""  # the shard's, until it is whole
        self._frames: FrameScanner | None = None  # since the shard has accepted
        self._is_over = False
        self._timer: asyncio.TimerHandle

    def send_handshake(self, handshake: bytes, rest: bytes) -> None:
        """Sends the client's handshake to the shard, unless that has refused the connection by itself meanwhile.

        rest: what the client sent together with it.
        """
        if not self._is_over:
            self._transport.write(handshake)
            if rest:
                self.receive(rest)
            self._client.start_tunnel(self)

    def close(self) -> None:
        """The gateway goes."""
        self._finish(self.last_frame)

    # ------------------------------------------------------------------------------------------ the shard's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._timer = asyncio.get_running_loop().call_later(OPEN_SECONDS, self._give_up)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self.buffer[:nbytes])
        if self._is_over:
            return
        if self._answer is None:
            if self._frames is not None:
                self._frames.advance(data)
        else:
            data = self._read_answer(data)
        if data:
            self._client.transport.write(data)

    def _read_answer(self, data: bytes) -> bytes:
        """The shard's answer to the handshake, and what comes behind it, if it is whole; else nothing yet."""
        whole = (self._answer or b"") + data
        end = whole.find(HEAD_END)
        if end < 0:
            self._answer = whole
            if len(whole) > HEAD_BYTES:
                self._give_up()
            return b""
        self._answer = None
        self._timer.cancel()
        if whole.startswith(b"HTTP/1.1 101 "):
            self._frames = FrameScanner()
            self._frames.advance(whole[end + len(HEAD_END) :])
            self._client.release_slot()
            if self._relay.send_buffer is not None:
                self._client.set_send_buffer(self._relay.send_buffer)
            self._relay.add_connection(self)
        return whole

    def eof_received(self) -> bool:
        self._finish_lost()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish_lost()

    def pause_writing(self) -> None:
        self._client.pause_reading()

    def resume_writing(self) -> None:
        self._client.resume_reading()

    # ----------------------------------------------------------------------------------------- the client's side

    def receive(self, data: bytes) -> None:
        if not self._is_over:
            self._transport.write(data)

    def end(self) -> None:
        """The client has gone, or says no more."""
        if self._is_over:
            return
        self._is_over = True
        self._timer.cancel()
        self._relay.remove_connection(self)
        # The shard hears what was said before, and then of the end.
        self._transport.close()
        self._client.close_with(b"")

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # -------------------------------------------------------------------------------------------------- the ends

    def _finish_lost(self) -> None:
        """The shard has gone."""
        self._finish(self.last_frame)

    def _finish(self, last: bytes) -> None:
        """The shard's side is over. last: told to a client that was accepted and has heard no good-bye."""
        if self._is_over:
            return
        self._is_over = True
        self._timer.cancel()
        self._relay.remove_connection(self)
        if self._answer is not None:
            logger.warning(
                "shard_unreachable", shard=self._shard.index, error="it closed without an answer", hint=_UNREACHABLE
            )
            self._client.refuse(
                RequestRejected(
                    503,
                    "shard_unavailable",
                    f"shard {self._shard.index} closed without an answer",
                    UNAVAILABLE_HINT,
                    retry_after=1,
                )
            )
        elif self._frames is not None and not self._frames.has_closed and self._frames.is_at_boundary:
            self._client.close_with(last)
        else:
            self._client.close_with(b"")
        self._transport.close()

    def _give_up(self) -> None:
        self._finish(b"")


class DialectRelay(RelayedConnection):
    """Of a client that speaks a dialect: it is held where others would be told to come again.

    find_delay: as `HeldClients` asks. is_certain: False where it is like any other once its first message is a hello.
    """

    is_dialect = True
    last_frame = struct.pack("!BBH", 0x88, 2, 1000)

    def __init__(
        self,
        relay: Relay,
        client: ClientConnection,
        shard: ShardAddress,
        find_delay: Callable[[float], float | None],
        *,
        is_certain: bool = True,
    ) -> None:
        super().__init__(relay, client, shard)
        self._find_delay = find_delay
        self._is_held = False
        self._first_message = None if is_certain else FirstMessage()

    def receive(self, data: bytes) -> None:
        if self._first_message is not None:
            self._read_first_message(self._first_message, data)
        super().receive(data)

    def _read_first_message(self, first: FirstMessage, data: bytes) -> None:
        message = first.advance(data)
        if message is None:
            return
        self._first_message = None
        if is_hello(message):
            self.is_dialect, self.last_frame = False, _RESTARTING_FRAME
            if self._is_held:
                self._relay.held.discard(self)
                self._release()

    def _finish_lost(self) -> None:
        frames = self._frames
        if not self.is_dialect or self._is_over or frames is None or frames.has_closed or not frames.is_at_boundary:
            super()._finish_lost()
            return
        self._is_over = self._is_held = True
        self._relay.remove_connection(self)
        self._transport.close()
        self._relay.held.add(self, self._find_delay, self._release)

    def _release(self) -> None:
        self._is_held = False
        self._client.close_with(self.last_frame)

    def end(self) -> None:
        if self._is_held:
            self._is_held = False
            self._relay.held.discard(self)
            self._client.close_with(b"")
        super().end()


def _make_handshake(head: Head, ticket: str, path: DialectPath | None) -> bytes:
    """The client's handshake as the shard gets it: what it is judged by, whatever it is, and the ticket.

    path: of a client that speaks, or may speak, a dialect.
    """
    passed_on: tuple[str, ...] = _PASSED_ON
    lines = [f"{head.method} {'/ws' if path is None else head.path} HTTP/{head.version[0]}.{head.version[1]}"]
    if path is not None:
        passed_on = (*_PASSED_ON, "user-agent")
        lines.append(f"{MARK}: {path.kind}")
    for name, value in head.headers.raw_items():
        if name.lower() in passed_on or name.lower().startswith("sec-websocket-"):
            lines.append(f"{name}: {value}")
    lines += [f"X-Solowire-Ticket: {ticket}", "X-Solowire-Relayed: 1", "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _read_token(head: Head) -> str:
    for value in head.headers.get_all("Authorization"):
        if token := parse_bearer(value):
            return token
    return read_parameter(head.query, "token")
