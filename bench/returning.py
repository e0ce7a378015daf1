"""Users who come back: light clients that keep a cursor, and what each of them must have got in the end.

Each client is checked against what the publisher was told: none may have lost an event, got one twice or out of order.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import cast
from urllib.parse import urlsplit

import msgspec

from bench.machine import HOST, BenchError
from bench.receiver import TEXT, client_frame
from bench.report import Measure, Row
from bench.solowire_system import Ticket

CLOSE, PING, PONG = 0x8, 0x9, 0xA
EVENTS_PREFIX = b'{"type":"events"'
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.1, 1.0

UNITS = {"seconds": "s", "welcomed": "s", "shard CPU": "s", "load CPU": "s", "50 %": "s", "99 %": "s", "all": "s"}


class Later(Exception):
    """Refused for now: come again after `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what)
        self.seconds = seconds


# ---------------------------------------------------------------- a client


class _Said(msgspec.Struct):
    """Any message of the server but events, as far as these clients care."""

    type: str
    id: int | str | None = None
    epoch: str = ""
    cursor: int | None = None
    resumed: bool = False
    reason: str | None = None
    after_ms: int = 0


class _Numbered(msgspec.Struct):
    offset: int


class _Events(msgspec.Struct):
    cursor: int
    events: list[_Numbered]


_decode_said = msgspec.json.Decoder(_Said).decode
_decode_events = msgspec.json.Decoder(_Events).decode
decode_ticket = msgspec.json.Decoder(Ticket).decode


class Frames:
    """Offsets in a frame of events. Most clients get the same bytes: those are compared, not decoded again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], tuple[bytes, int, tuple[int, ...]]] = {}

    def read(self, payload: bytes) -> tuple[int, tuple[int, ...]]:
        """The cursor and the offsets."""
        key = (len(payload), payload[:96])
        known = self._known.get(key)
        if known is None or known[0] != payload:
            if len(self._known) >= 200:
                self._known.clear()
            found = _decode_events(payload)
            known = payload, found.cursor, tuple(event.offset for event in found.events)
            self._known[key] = known
        return known[1], known[2]


@dataclass(eq=False)
class User:
    """What one user knows across its connections. got: the offsets of each frame, in order of arrival."""

    name: str
    frames: Frames
    token: str = ""
    epoch: str = ""
    cursor: int = 0
    first: int = 0
    last: int = 0
    shard: int = -1
    sessions: int = 0
    late: int = 0
    refusals: list[str] = field(default_factory=list)
    got: list[tuple[int, ...]] = field(default_factory=list)
    target: int | None = None
    reached: float | None = None
    reached_on: int = -1
    connection: _Connection | None = None
    on_reached: Callable[[], None] = lambda: None

    def hello(self) -> bytes:
        message: dict[str, object] = {"type": "hello", "id": self.sessions + 1, "subscriptions": ["custom.*"]}
        if self.epoch:
            message["resume"] = {"epoch": self.epoch, "cursor": self.cursor}
        return msgspec.json.encode(message)

    def welcomed(self, said: _Said) -> bool:
        """False: the hello came too late, and the session is not one to go on with."""
        if said.id != self.sessions + 1:
            self.late += 1
            return False
        if self.epoch and not said.resumed:
            self.refusals.append(said.reason or "without a reason")
        if not self.epoch:
            self.first = said.cursor or 0
        if not said.resumed:
            self.epoch, self.cursor = said.epoch, said.cursor or 0
        self.sessions += 1
        return True

    def take(self, payload: bytes) -> None:
        self.cursor, offsets = self.frames.read(payload)
        self.got.append(offsets)
        if offsets:
            self.last = offsets[-1]
        self.check()

    def check(self) -> None:
        if self.target is not None and self.reached is None and self.last >= self.target:
            self.reached, self.reached_on = time.perf_counter(), self.shard
            self.on_reached()

    def faults(self, published: list[int]) -> tuple[int, int, bool]:
        """Events lost, events got twice, whether the order was wrong."""
        wanted = [offset for offset in published if offset > self.first]
        got = list(chain.from_iterable(self.got))
        if got == wanted:
            return 0, 0, False
        distinct = set(got)
        return len(set(wanted) - distinct), len(got) - len(distinct), got != sorted(got)


class _Connection(asyncio.Protocol):
    """One WebSocket. welcome: its result is whether the session counts. ended: seconds to stay away."""

    def __init__(self, user: User, url: str) -> None:
        loop = asyncio.get_running_loop()
        self._user = user
        self._url = urlsplit(url)
        self._tail = b""
        self._upgraded = False
        self._ignore = False
        self._away = 0.0
        self._transport: asyncio.Transport | None = None
        self.welcome: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[float] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self._url.path}?{self._url.query} HTTP/1.1\r\nHost: {self._url.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: solowire.v1.json\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(Later("the connection ended before its welcome", self._away))
        if not self.ended.done():
            self.ended.set_result(self._away)

    def abort(self) -> None:
        self._ignore = True
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        for future in (self.welcome, self.ended):
            if not future.done():
                future.set_exception(error)
        self.abort()

    def data_received(self, data: bytes) -> None:
        if self._ignore:
            return
        data = self._tail + data if self._tail else data
        position = 0
        if not self._upgraded:
            position = data.find(b"\r\n\r\n") + 4
            if position < 4:
                self._tail = data
                return
            if not self._upgrade(data[:position]):
                return
        end = len(data)
        while end - position >= 2 and not self._ignore:
            length, start = data[position + 1], position + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[position + 2 : start])
            if start + length > end:
                break
            self._frame(data[position], data[start : start + length])
            position = start + length
        self._tail = data[position:]

    def _upgrade(self, head: bytes) -> bool:
        status, headers = _head(head)
        if status != 101:
            self.welcome.set_exception(Later(f"the upgrade was answered {status}", _retry_after(headers)))
            self.abort()
            return False
        self._upgraded = True
        self._write(client_frame(self._user.hello()))
        return True

    def _write(self, frame: bytes) -> None:
        assert self._transport is not None
        self._transport.write(frame)

    def _frame(self, head: int, payload: bytes) -> None:
        opcode = head & 0x0F
        if opcode == CLOSE:
            self.abort()
        elif opcode == PING:
            self._write(client_frame(payload, PONG))
        elif head != 0x80 | TEXT:
            self._fail(BenchError("a fragmented or binary frame, which this client does not read"))
        elif payload.startswith(EVENTS_PREFIX):
            self._user.take(payload)
        else:
            self._other(_decode_said(payload))

    def _other(self, said: _Said) -> None:
        match said.type:
            case "welcome" if self._user.welcomed(said):
                self.welcome.set_result(None)
            case "welcome":
                self.abort()
            case "ping":
                if said.cursor is not None:
                    self._user.cursor = said.cursor
                self._write(client_frame(b'{"type":"pong"}'))
            case "reconnect":
                self._away = said.after_ms / 1000
                self.abort()


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}


def _retry_after(headers: dict[str, str]) -> float:
    try:
        return float(headers.get("retry-after", "0"))
    except ValueError:
        return 0.0


async def ask(port: int, path: str, token: str, body: bytes = b"") -> bytes:
    """A POST on a connection of its own, as users who don't know of each other make it. Raises Later, OSError."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
        answer = await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the gateway ended a connection in use") from error
    finally:
        writer.close()
    if status in (429, 503):
        raise Later(f"{path} answered {status}", _retry_after(headers))
    if status >= 300:
        raise BenchError(f"{path} answered {status}: {answer[:300]!r}")
    return answer


async def open_user(user: User, ticket: Ticket) -> None:
    """Returns when the user has been welcomed. Raises Later, OSError."""
    url = urlsplit(ticket.url)
    loop = asyncio.get_running_loop()
    connection = _Connection(user, ticket.url)
    user.connection, user.shard = connection, ticket.shard
    await loop.create_connection(lambda: connection, url.hostname or HOST, url.port or 80)
    await connection.welcome


async def stay(user: User, port: int, at_start: asyncio.Semaphore) -> None:
    """A user who comes back whatever happens, with full jitter, and obeys Retry-After. Ends when cancelled."""
    attempt = 0
    while True:
        away = 0.0
        try:
            async with contextlib.AsyncExitStack() as stack:
                if not user.sessions:
                    await stack.enter_async_context(at_start)
                await open_user(user, decode_ticket(await ask(port, "/v1/connect", user.token)))
            attempt = 0
            assert user.connection is not None
            away = await user.connection.ended
        except Later as later:
            away = later.seconds
        except OSError:
            pass
        await asyncio.sleep(away + random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**attempt)))
        attempt += 1


# ---------------------------------------------------------------- what cases share


@contextlib.asynccontextmanager
async def tasks(group: Iterable[asyncio.Task[None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Cancels them in the end; one that failed before raises here."""
    started = list(group)
    try:
        yield started
    finally:
        failed = [t for t in started if t.done() and not t.cancelled() and t.exception()]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
    for task in failed:
        task.result()


async def until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def verdict(users: list[User], published: list[int]) -> tuple[dict[str, float], list[str]]:
    found = [user.faults(published) for user in users]
    lost, twice = sum(f[0] for f in found), sum(f[1] for f in found)
    refusals = list(chain.from_iterable(user.refusals for user in users))
    values: dict[str, float] = {"resumed: false": len(refusals), "lost": lost, "twice": twice}
    faults = []
    if lost or twice:
        faults.append(f"{lost:,} events were lost and {twice:,} came twice, over all users")
    if disordered := sum(f[2] for f in found):
        faults.append(f"{disordered} users got events out of order")
    if refusals:
        faults.append(f"{len(refusals)} users were not resumed: {', '.join(sorted(set(refusals)))}")
    return values, faults


def row(name: str, rounds: list[tuple[dict[str, float], list[str]]]) -> Row:
    measures = {c: Measure.over((values[c] for values, _ in rounds), UNITS.get(c, "")) for c in rounds[0][0]}
    return Row(name, measures, list(dict.fromkeys(fault for _, faults in rounds for fault in faults)))
