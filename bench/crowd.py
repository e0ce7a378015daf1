"""More clients than there is room for, and what each of them saw.

A *reader* reads all it gets; a *sleeper* reads nothing after its welcome, until the server must have cut it; a *dozer*
stops reading for a few seconds now and then. All come back whatever happens, and wait as long as they are told.

What it keeps true: each connection is a `Visit` with the times at which it certainly was there, and with every durable
event that it got; a reader shows its cursor when it comes back. So `bench.judge` needs nothing but these.
"""

from __future__ import annotations

import asyncio
import random
import socket
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from bench.light import EVENTS_PREFIX, PONG, LightSocket, Said, decode_said
from bench.machine import HOST
from bench.posts import Line, Reply
from bench.receiver import client_frame
from bench.solowire_system import Ticket

RECEIVE_BUFFER = 4096
"""SO_RCVBUF of those who sleep: what the kernel holds for them is to be little."""
OPEN_TIMEOUT_S = 15.0
BACKOFF_S = 0.5
LEAVE_S = 2.0
"""One that has been told to come back elsewhere waits for its close frame no longer."""
KNOWN_FRAMES = 200


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
    """A frame of events. durable: the offsets that are looked at. alerts: ids of urgent ones among them."""

    cursor: int
    durable: array[int]
    alerts: tuple[str, ...]
    kinds: frozenset[str]
    compacted: bool


class Frames:
    """Decodes frames. Many clients get the same bytes: those are compared, not decoded again."""

    def __init__(self, durable: frozenset[str], alert: str) -> None:
        self._durable = durable
        self._alert = alert
        self._decode = msgspec.json.Decoder(_Events).decode
        self._known: dict[bytes, Frame] = {}

    def read(self, payload: bytes) -> Frame:
        known = self._known.get(payload)
        if known is None:
            if len(self._known) >= KNOWN_FRAMES:
                self._known.clear()
            found = self._decode(payload)
            offsets = [e.offset for e in found.events if e.type in self._durable]
            if found.compacted is not None:
                offsets.sort()  # within a compacted frame what is urgent may come first (design, section 5)
            known = self._known[payload] = Frame(
                found.cursor,
                array("Q", offsets),
                tuple(e.id for e in found.events if e.type == self._alert),
                frozenset(e.type for e in found.events),
                found.compacted is not None,
            )
        return known


@dataclass
class Visit:
    """One connection that got its welcome. Times: seconds of the run. began: when the server accepted it.

    start: durable events behind it had to come. settled: whether it is known: one that doesn't resume begins with the
    present states, and where it stands then, its first frame says.
    code: of the close frame, None if there was none. told: that a part was left out or lost, in the server's words.
    """

    began: float
    heard: float
    start: int
    settled: bool
    refusal: str | None
    cursor: int
    durable: array[int] = field(default_factory=lambda: array("Q"))
    ended: float | None = None
    code: int | None = None
    told: list[str] = field(default_factory=list)
    compacted: int = 0
    cut: bool | None = None  # of a sleeper: whether it was gone when it looked at last


@dataclass
class Journal:
    """What all clients saw together. alerts: id → the times at which readers got it. kinds: event types that came."""

    clock: Callable[[], float]
    frames: Frames
    refusals: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    faults: list[str] = field(default_factory=list)
    alerts: dict[str, list[float]] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    def fault(self, words: str) -> None:
        if len(self.faults) < 20:
            self.faults.append(words)


class _Connection(LightSocket):
    def __init__(self, client: Client, url: str) -> None:
        super().__init__(url)
        self._client = client
        loop = asyncio.get_running_loop()
        self.visit: Visit | None = None
        self.away = 0.0
        self._accepted = 0.0
        self.welcomed: asyncio.Future[bool] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    def opened(self) -> None:
        self._accepted = self._client.journal.clock()
        self.write(client_frame(self._client.hello()))

    def refused(self, reply: Reply) -> None:
        self.away = self._client.refused(reply, "shard")

    def message(self, payload: bytes) -> None:
        if payload.startswith(EVENTS_PREFIX):
            if self.visit is not None:
                self._client.take(self.visit, payload)
            return
        said = decode_said(payload)
        match said.type:
            case "welcome" if said.id is None:
                self.away = BACKOFF_S  # the hello came too late: this session does not go on from the cursor
                self._client.journal.refusals["hello came too late"] += 1
                self.abort()
            case "welcome":
                self.visit = self._client.welcome(said, self._accepted)
                self.welcomed.set_result(True)
            case "ping":
                self.write(PONG)
            case "reconnect":
                self.away = said.after_ms / 1000
                asyncio.get_running_loop().call_later(LEAVE_S, self.abort)
            case "notice" if self.visit is not None:
                self.visit.told.append(said.code)
        if self.visit is not None:
            self.visit.heard = self._client.journal.clock()

    def closed(self, code: int, reason: str) -> None:
        if self.visit is not None:
            self.visit.code = code

    def lost(self) -> None:
        if self.visit is not None:
            self.visit.ended = self._client.journal.clock()
        if not self.welcomed.done():
            self.welcomed.set_result(False)
        if not self.gone.done():
            self.gone.set_result(None)


class Client:
    """One user. group: what shares its slots. sleeps: seconds without reading; pause: seconds of reading between."""

    def __init__(
        self,
        port: int,
        token: str,
        group: str,
        subscriptions: list[str],
        journal: Journal,
        *,
        sleeps: float = 0.0,
        pause: float = 0.0,
    ) -> None:
        self.group = group
        self.journal = journal
        self.visits: list[Visit] = []
        self.sleeps = sleeps
        self.pause = pause
        self._port = port
        self._token = token
        self._subscriptions = subscriptions
        self._epoch = ""

    @property
    def reads(self) -> bool:
        return not self.sleeps

    @property
    def present(self) -> bool:
        return bool(self.visits) and self.visits[-1].ended is None

    async def run(self) -> None:
        """Until it is cancelled; the last connection is cut then."""
        while True:
            away = await self._visit()
            await asyncio.sleep(away + random.uniform(0, BACKOFF_S))

    async def _visit(self) -> float:
        """One attempt; returns the seconds to stay away."""
        self.journal.attempts += 1
        connection = None
        try:
            reply = await Line(self._port, keep=False).ask("POST", "/v1/connect", self._token)
            if reply.status != 200:
                return self.refused(reply, "gateway")
            connection = _Connection(self, msgspec.json.decode(reply.body, type=Ticket).url)
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._open(connection)
                welcomed = await connection.welcomed
            if welcomed:
                await self._stay(connection)
            return connection.away
        except OSError as error:
            self.journal.refusals[f"no answer ({type(error).__name__})"] += 1
            return BACKOFF_S
        finally:
            if connection is not None:
                connection.abort()

    async def _open(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        if self.sleeps:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            await loop.sock_connect(sock, (HOST, connection.url.port or 80))
        except BaseException:
            sock.close()
            raise
        await loop.create_connection(lambda: connection, sock=sock)

    async def _stay(self, connection: _Connection) -> None:
        transport, visit = connection.transport, connection.visit
        assert transport is not None
        assert visit is not None
        while self.sleeps and not connection.gone.done():
            transport.pause_reading()
            await asyncio.sleep(self.sleeps)
            if connection.gone.done() or transport.is_closing():
                break
            transport.resume_reading()
            if not self.pause:  # what the kernel holds is read to its end: then the end must be there, too
                done, _ = await asyncio.wait({connection.gone}, timeout=OPEN_TIMEOUT_S)
                visit.cut = bool(done)
                return
            await asyncio.wait({connection.gone}, timeout=self.pause)
        await connection.gone

    # ------------------------------------------------------------------------------------------ what it hears

    def hello(self) -> bytes:
        message: dict[str, object] = {"type": "hello", "id": 1, "subscriptions": self._subscriptions}
        if self.reads and self._epoch:
            message["resume"] = {"epoch": self._epoch, "cursor": self.visits[-1].cursor}
        return msgspec.json.encode(message)

    def welcome(self, said: Said, accepted: float) -> Visit:
        now, cursor = self.journal.clock(), said.cursor or 0
        start = self.visits[-1].cursor if said.resumed and self.visits else cursor
        self._epoch = said.epoch
        self.visits.append(Visit(accepted, now, start, said.resumed, said.reason, start))
        return self.visits[-1]

    def take(self, visit: Visit, payload: bytes) -> None:
        frame, now = self.journal.frames.read(payload), self.journal.clock()
        visit.cursor, visit.heard = frame.cursor, now
        visit.compacted += frame.compacted
        if visit.settled:
            visit.durable.extend(frame.durable)
        else:
            visit.start, visit.settled = frame.cursor, True
        self.journal.kinds |= frame.kinds
        if self.reads:
            for id in frame.alerts:
                self.journal.alerts.setdefault(id, []).append(now)

    def refused(self, reply: Reply, by: str) -> float:
        """Writes it down; returns the seconds to stay away."""
        code = reply.code
        self.journal.refusals[f"{by}: {reply.status} {code}"] += 1
        if not code:
            self.journal.fault(f"{by} answered {reply.status} without a code: {reply.body[:100]!r}")
        if reply.status in (429, 503) and not reply.retry_after:
            self.journal.fault(f"{by} answered {reply.status} {code} without Retry-After")
        return reply.retry_after
