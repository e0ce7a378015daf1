"""More clients than there is room for, and what each of them saw.

A *reader* reads all it gets; a *sleeper* reads nothing after its welcome, until the server must have cut it; a *dozer*
stops reading for a few seconds now and then. All come back whatever happens, and wait as long as they are told.

What it keeps true: each connection is a `Visit` with the times at which it certainly was there, and with every durable
event that it got; a reader shows its cursor when it comes back. So `bench.verdicts` needs nothing but these.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.http_client import Reply
from bench.ws_client import OPEN_TIMEOUT_S, FrameReader, Message, Session, User

RECEIVE_BUFFER = 4096
"""SO_RCVBUF of those who sleep: what the kernel holds for them is to be little."""


@dataclass
class Visit:
    """One connection that got its welcome. Times: seconds of the run. began_at: when the server accepted it.

    start: durable events behind it had to come. is_settled: whether it is known: one that doesn't resume begins with
    the present states, and where it stands then, its first frame says.
    code: of the close frame, None if there was none. told: that a part was left out or lost, in the server's words.
    was_cut: of a sleeper: whether it was gone when it looked at last.
    """

    began_at: float
    heard_at: float
    start: int
    is_settled: bool
    cursor: int
    durable: array[int] = field(default_factory=lambda: array("Q"))
    ended_at: float | None = None
    code: int | None = None
    told: list[str] = field(default_factory=list)
    compacted: int = 0
    was_cut: bool | None = None


@dataclass
class Journal:
    """What all clients saw together. alerts: id → the times at which readers got it. types: event types that came."""

    clock: Callable[[], float]
    frames: FrameReader
    refusals: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    faults: list[str] = field(default_factory=list)
    alerts: dict[str, list[float]] = field(default_factory=dict)
    types: set[str] = field(default_factory=set)

    def add_fault(self, words: str) -> None:
        if len(self.faults) < 20:
            self.faults.append(words)


class Client(User):
    """One user. group: what shares its slots. sleep_s: seconds without reading; pause_s: of reading between."""

    backoff_s = (0.5, 0.5)
    leave_s = 2.0

    def __init__(
        self,
        port: int,
        token: str,
        group: str,
        subscriptions: Sequence[str],
        journal: Journal,
        *,
        sleep_s: float = 0.0,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(port, "", token, journal.frames)
        self.group = group
        self.subscriptions = subscriptions
        self.journal = journal
        self.visits: list[Visit] = []
        self.sleep_s = sleep_s
        self.pause_s = pause_s
        self.receive_buffer = RECEIVE_BUFFER if sleep_s else 0
        self._visit: tuple[Session, Visit] | None = None

    @property
    def is_reader(self) -> bool:
        return not self.sleep_s

    @property
    def is_present(self) -> bool:
        return bool(self.visits) and self.visits[-1].ended_at is None

    async def connect(self) -> Session:
        self.journal.attempts += 1
        late = self.late_hellos
        try:
            return await super().connect()
        finally:
            if self.late_hellos > late:
                self.journal.refusals["hello came too late"] += 1

    async def stay(self, session: Session) -> None:
        transport, visit = session.transport, self.visits[-1]
        assert transport is not None
        while self.sleep_s and not session.ended.done():
            transport.pause_reading()
            await asyncio.sleep(self.sleep_s)
            if session.ended.done() or transport.is_closing():
                break
            transport.resume_reading()
            done, _ = await asyncio.wait({session.ended}, timeout=self.pause_s or OPEN_TIMEOUT_S)
            if not self.pause_s:  # what the kernel holds is read to its end: then the end must be there, too
                visit.was_cut = bool(done)
                return
        await session.ended

    def hello(self) -> bytes:
        if not self.is_reader:
            self.epoch = ""
        return super().hello()

    def on_welcome(self, session: Session, message: Message) -> None:
        now, cursor = self.journal.clock(), message.cursor or 0
        if not message.resumed:
            self.cursor = cursor
        self.epoch = message.epoch
        opened_at = now - (asyncio.get_running_loop().time() - session.opened_at)
        visit = Visit(opened_at, now, self.cursor, message.resumed, self.cursor)
        self.visits.append(visit)
        self._visit = session, visit

    def on_events(self, session: Session, payload: bytes) -> None:
        if (visit := self._visit_of(session)) is None:
            return
        frame, now = self.frames.read(payload), self.journal.clock()
        self.cursor = visit.cursor = frame.cursor
        visit.heard_at = now
        visit.compacted += frame.compacted
        if visit.is_settled:
            visit.durable.extend(frame.offsets)
        else:
            visit.start, visit.is_settled = frame.cursor, True
        self.journal.types |= frame.types
        if self.is_reader:
            for id in frame.urgent:
                self.journal.alerts.setdefault(id, []).append(now)

    def on_message(self, session: Session, message: Message) -> None:
        if (visit := self._visit_of(session)) is not None:
            visit.heard_at = self.journal.clock()
            if message.type == "notice":
                visit.told.append(message.code)

    def on_end(self, session: Session) -> None:
        if (visit := self._visit_of(session)) is not None:
            visit.ended_at, visit.code = self.journal.clock(), session.code

    def on_refusal(self, reply: Reply, by: str) -> float:
        self.journal.refusals[f"{by}: {reply.status} {reply.code}"] += 1
        if not reply.code:
            self.journal.add_fault(f"the {by} answered without a code: {reply}")
        if reply.status in (429, 503) and not reply.retry_after:
            self.journal.add_fault(f"the {by} answered without Retry-After: {reply}")
        return reply.retry_after

    def on_no_answer(self, error: OSError) -> None:
        self.journal.refusals[f"no answer ({type(error).__name__})"] += 1

    def _visit_of(self, session: Session) -> Visit | None:
        return self._visit[1] if self._visit and self._visit[0] is session else None
