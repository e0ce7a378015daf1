"""The client's end of a WebSocket, as light as asyncio has it, and a user of Solowire who comes back on it.

One reader of frames for all load generators with hundreds of clients; those with thousands are `receiver.c`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

import msgspec

from bench.http_client import HttpClient, Rejected, Reply, parse_reply
from bench.machine import HOST

TEXT, BINARY = 0x1, 0x2
JSON = "solowire.v1.json"
EVENTS_PREFIX = b'{"type":"events"'
UNREADABLE = 1003
OPEN_TIMEOUT_S = 15.0
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A client's frame (RFC 6455, 5.2) under the mask 0, which masks by changing nothing."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + b"\0\0\0\0" + payload


def format_upgrade(port: int, target: str, subprotocol: str = "") -> bytes:
    """The request that opens a WebSocket."""
    offer = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    return (
        f"GET {target} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    ).encode()


class Ticket(msgspec.Struct):
    """What `/v1/connect` answers, as far as a client of ours cares."""

    url: str
    shard: int = 0
    subprotocols: list[str] = []


class WsClient(asyncio.Protocol):
    """One WebSocket to `url`, without compression, in JSON. A subclass says what is to happen, in its on_… methods."""

    def __init__(self, url: str) -> None:
        self.url = urlsplit(url)
        self.transport: asyncio.Transport | None = None
        self._tail = b""
        self._upgraded = False
        self._ignore = False

    def on_open(self) -> None:
        """The server has accepted."""

    def on_refusal(self, reply: Reply) -> None:
        """The server has answered with another status than 101."""

    def on_message(self, payload: bytes) -> None:
        """One text message."""

    def on_close(self, code: int, reason: str) -> None:
        """A close frame has come, or one that this client does not read (UNREADABLE); nothing more is read."""

    def on_end(self) -> None:
        """The TCP connection has ended, however it did. Always called, and last."""

    def write(self, frame: bytes) -> None:
        if self.transport is not None:
            self.transport.write(frame)

    def abort(self) -> None:
        self._ignore = True
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.write(format_upgrade(self.url.port or 80, f"{self.url.path}?{self.url.query}", JSON))

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_end()

    def data_received(self, data: bytes) -> None:
        if self._ignore:
            return
        data = self._tail + data if self._tail else data
        if not self._upgraded:
            data = self._take_upgrade(data)
        position, end = 0, len(data)
        while self._upgraded and not self._ignore and end - position >= 2:
            length, start = data[position + 1], position + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[position + 2 : start])
            if start + length > end:
                break
            self._take_frame(data[position], data[start : start + length])
            position = start + length
        self._tail = data[position:]

    def _take_upgrade(self, data: bytes) -> bytes:
        """What is left of `data`: the frames behind an answer that opens."""
        found = parse_reply(data)
        if found is None:
            return data
        if found[0].status == 101:
            self._upgraded = True
            self.on_open()
        else:
            self.on_refusal(found[0])
            self.abort()
        return found[1]

    def _take_frame(self, head: int, payload: bytes) -> None:
        opcode = head & 0x0F
        if head == 0x80 | TEXT:
            self.on_message(payload)
        elif opcode == _PING:
            self.write(client_frame(payload, _PONG))
        else:
            code, reason = UNREADABLE, "a fragmented or binary frame, which this client does not read"
            if opcode == _CLOSE:
                code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
                reason = payload[2:].decode(errors="replace")
            self.on_close(code, reason)
            self.abort()


# ---------------------------------------------------------------- frames of events


class _Event(msgspec.Struct):
    offset: int
    type: str
    id: str = ""


class _Events(msgspec.Struct):
    cursor: int
    events: list[_Event]
    compacted: dict[str, int] | None = None


@dataclass(frozen=True)
class Frame:
    """A frame of events. offsets: of those that are looked at. urgent: ids of urgent ones."""

    cursor: int
    offsets: tuple[int, ...]
    urgent: tuple[str, ...]
    types: frozenset[str]
    compacted: bool


class FrameReader:
    """Decodes frames. Most clients get the same bytes: those are compared, not decoded again.

    durable: the types that are looked at; none: all. urgent: a type whose ids are wanted.
    """

    KNOWN = 200

    def __init__(self, durable: frozenset[str] = frozenset(), urgent: str = "") -> None:
        self._durable = durable
        self._urgent = urgent
        self._decode = msgspec.json.Decoder(_Events).decode
        self._known: dict[tuple[int, bytes], tuple[bytes, Frame]] = {}

    def read(self, payload: bytes) -> Frame:
        key = len(payload), payload[:96]
        known = self._known.get(key)
        if known is None or known[0] != payload:
            if len(self._known) >= self.KNOWN:
                self._known.clear()
            known = self._known[key] = payload, self._read(payload)
        return known[1]

    def _read(self, payload: bytes) -> Frame:
        found = self._decode(payload)
        offsets = [e.offset for e in found.events if not self._durable or e.type in self._durable]
        if found.compacted is not None:
            offsets.sort()  # within a compacted frame what is urgent may come first (design, section 5)
        return Frame(
            found.cursor,
            tuple(offsets),
            tuple(e.id for e in found.events if e.type == self._urgent),
            frozenset(e.type for e in found.events),
            found.compacted is not None,
        )


# ---------------------------------------------------------------- a user


class Message(msgspec.Struct):
    """Any message of the server but events, as far as these clients care."""

    type: str
    id: int | str | None = None
    epoch: str = ""
    cursor: int | None = None
    resumed: bool = False
    reason: str | None = None
    after_ms: int = 0
    code: str = ""


_decode_message = msgspec.json.Decoder(Message).decode
_decode_ticket = msgspec.json.Decoder(Ticket).decode
_PONG_MESSAGE = client_frame(b'{"type":"pong"}')


class Session(WsClient):
    """One connection of a user. welcomed: whether it was. away_s: for how long the user is to stay away after it."""

    def __init__(self, user: User, url: str) -> None:
        super().__init__(url)
        loop = asyncio.get_running_loop()
        self.user = user
        self.away_s = 0.0
        self.code: int | None = None
        self.opened_at = 0.0
        self.welcomed: asyncio.Future[bool] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def on_open(self) -> None:
        self.opened_at = asyncio.get_running_loop().time()
        self.write(client_frame(self.user.hello()))

    def on_refusal(self, reply: Reply) -> None:
        self.away_s = self.user.on_refusal(reply, "shard")

    def on_message(self, payload: bytes) -> None:
        if payload.startswith(EVENTS_PREFIX):
            self.user.on_events(self, payload)
            return
        message = _decode_message(payload)
        match message.type:
            case "welcome" if message.id is None:  # the hello came too late: this one does not go on from the cursor
                self.user.late_hellos += 1
                self.abort()
            case "welcome":
                self.user.on_welcome(self, message)
                self.welcomed.set_result(True)
            case "ping":
                self.write(_PONG_MESSAGE)
            case "reconnect":
                self.away_s = message.after_ms / 1000
                asyncio.get_running_loop().call_later(self.user.leave_s, self.abort)
        self.user.on_message(self, message)

    def on_close(self, code: int, reason: str) -> None:
        self.code = code

    def on_end(self) -> None:
        self.user.on_end(self)
        if not self.welcomed.done():
            self.welcomed.set_result(False)
        if not self.ended.done():  # one that was waited for may be cancelled
            self.ended.set_result(None)


class User:
    """Who comes back whatever happens, with full jitter and its cursor, and obeys Retry-After.

    backoff_s: the least and the most. leave_s: how long one that is told to come back elsewhere waits for its close
    frame. receive_buffer: SO_RCVBUF, 0 for the usual one.
    """

    subscriptions: Sequence[str] = ("custom.*",)
    backoff_s: ClassVar[tuple[float, float]] = (0.1, 1.0)
    leave_s: ClassVar[float] = 0.0
    receive_buffer = 0

    def __init__(self, port: int, name: str, token: str, frames: FrameReader) -> None:
        self.port = port
        self.name = name
        self.token = token
        self.frames = frames
        self.epoch = ""
        self.cursor = 0
        self.shard = -1
        self.late_hellos = 0
        self.session: Session | None = None

    def hello(self) -> bytes:
        message: dict[str, object] = {"type": "hello", "id": 1, "subscriptions": self.subscriptions}
        if self.epoch:
            message["resume"] = {"epoch": self.epoch, "cursor": self.cursor}
        return msgspec.json.encode(message)

    def on_welcome(self, session: Session, message: Message) -> None:
        """It is connected."""

    def on_events(self, session: Session, payload: bytes) -> None:
        """A frame of events has come."""

    def on_message(self, session: Session, message: Message) -> None:
        """Any other message has come, and was obeyed."""

    def on_refusal(self, reply: Reply, by: str) -> float:
        """The gateway or the shard did not let it in. Returns the seconds to stay away."""
        return reply.retry_after

    def on_no_answer(self, error: OSError) -> None:
        """It was not answered."""

    def on_end(self, session: Session) -> None:
        """A connection has ended."""

    async def run(self) -> None:
        """Until it is cancelled; the last connection is cut then."""
        attempt = 0
        while True:
            away_s = 0.0
            try:
                session = await self.connect()
                attempt = 0
                await self.stay(session)
                away_s = session.away_s
            except Rejected as rejected:
                away_s = rejected.seconds
            except OSError as error:
                self.on_no_answer(error)
            finally:
                self.cut()
            low, high = self.backoff_s
            await asyncio.sleep(away_s + random.uniform(0, min(high, low * 2**attempt)))
            attempt += 1

    async def connect(self) -> Session:
        """From asking for a ticket to the welcome. Raises Rejected, OSError."""
        reply = await HttpClient(self.port, keep=False).ask("POST", "/v1/connect", self.token)
        if reply.status != 200:
            raise Rejected(f"/v1/connect answered {reply}", self.on_refusal(reply, "gateway"))
        return await self.open(_decode_ticket(reply.body))

    async def open(self, ticket: Ticket) -> Session:
        """Returns when it has been welcomed. Raises Rejected, OSError."""
        loop = asyncio.get_running_loop()
        session = self.session = Session(self, ticket.url)
        self.shard = ticket.shard
        sock = socket.socket()
        sock.setblocking(False)
        try:
            if self.receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await loop.sock_connect(sock, (HOST, session.url.port or 80))
                await loop.create_connection(lambda: session, sock=sock)
                welcomed = await session.welcomed
        except BaseException:
            if session.transport is None:
                sock.close()
            raise
        if not welcomed:
            raise Rejected("the connection ended before its welcome", session.away_s)
        return session

    async def stay(self, session: Session) -> None:
        """Until the connection ends."""
        await session.ended

    def cut(self) -> None:
        if self.session is not None:
            self.session.abort()


@contextlib.asynccontextmanager
async def run_beside(*coroutines: Coroutine[Any, Any, object]) -> AsyncIterator[list[asyncio.Task[object]]]:
    """Runs them beside the block, and cancels them at its end; one that failed before raises then."""
    tasks: list[asyncio.Task[object]] = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        failed = [task for task in tasks if task.done() and not task.cancelled() and task.exception()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()
