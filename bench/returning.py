"""Users who come back: light clients that keep a cursor, and what each of them must have got in the end.

Each client is checked against what the publisher was told: none may have lost an event, got one twice or out of order.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from urllib.parse import urlsplit

import msgspec

from bench.light import EVENTS_PREFIX, PONG, LightSocket, Said, decode_said
from bench.load import ANSWER_TIMEOUT_S
from bench.machine import HOST, BenchError
from bench.posts import Later, Line, Reply
from bench.receiver import client_frame
from bench.report import Measure, Row
from bench.solowire_system import Ticket

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.1, 1.0

UNITS = {"seconds": "s", "welcomed": "s", "shard CPU": "s", "load CPU": "s", "50 %": "s", "99 %": "s", "all": "s"}


# ---------------------------------------------------------------- a client


class _Numbered(msgspec.Struct):
    offset: int


class _Events(msgspec.Struct):
    cursor: int
    events: list[_Numbered]


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

    def welcomed(self, said: Said) -> bool:
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


class _Connection(LightSocket):
    """One WebSocket. welcome: its result is whether the session counts. ended: seconds to stay away."""

    def __init__(self, user: User, url: str) -> None:
        super().__init__(url)
        loop = asyncio.get_running_loop()
        self._user = user
        self._away = 0.0
        self.welcome: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[float] = loop.create_future()

    def opened(self) -> None:
        self.write(client_frame(self._user.hello()))

    def refused(self, reply: Reply) -> None:
        self.welcome.set_exception(Later(f"the upgrade was answered {reply.status}", reply.retry_after))

    def strange(self, why: str) -> None:
        for future in (self.welcome, self.ended):
            if not future.done():
                future.set_exception(BenchError(why))

    def lost(self) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(Later("the connection ended before its welcome", self._away))
        if not self.ended.done():
            self.ended.set_result(self._away)

    def message(self, payload: bytes) -> None:
        if payload.startswith(EVENTS_PREFIX):
            self._user.take(payload)
            return
        said = decode_said(payload)
        match said.type:
            case "welcome" if self._user.welcomed(said):
                self.welcome.set_result(None)
            case "welcome":
                self.abort()
            case "ping":
                if said.cursor is not None:
                    self._user.cursor = said.cursor
                self.write(PONG)
            case "reconnect":
                self._away = said.after_ms / 1000
                self.abort()


async def ask(port: int, path: str, token: str, body: bytes = b"") -> bytes:
    """A POST on a connection of its own, as users who don't know of each other make it. Raises Later, OSError."""
    reply = await Line(port, keep=False).ask("POST", path, token, body, ANSWER_TIMEOUT_S)
    if reply.status in (429, 503):
        raise Later(f"{path} answered {reply.status}", reply.retry_after)
    if reply.status >= 300:
        raise BenchError(f"{path} answered {reply.status}: {reply.body[:300]!r}")
    return reply.body


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
