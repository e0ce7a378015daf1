"""Users who come back, and what each of them must have got in the end.

Each is checked against what the publisher was told: none may have lost an event, got one twice or out of order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import chain

from bench.http_client import Reply
from bench.machine import BenchError
from bench.solowire_system import Solowire
from bench.ws_client import UNREADABLE, FrameReader, Message, Session, Ticket, User

AT_ONCE = 64
"""Handshakes under way while nothing is measured yet."""
TIMEOUT_S = 30.0


class ReturningUser(User):
    """What one user knows across its connections. got: the offsets of each frame, in order of arrival.

    target: the offset at which it is level; reached_at says when that was, and reached_on on which shard.
    """

    def __init__(self, port: int, name: str, token: str, frames: FrameReader, at_start: asyncio.Semaphore) -> None:
        super().__init__(port, name, token, frames)
        self._at_start = at_start
        self.first = 0
        self.last = 0
        self.session_count = 0
        self.got: list[tuple[int, ...]] = []
        self.refusals: list[str] = []
        self.errors: list[str] = []
        self.target: int | None = None
        self.reached_at: float | None = None
        self.reached_on = -1
        self.on_reached: Callable[[], None] = lambda: None

    async def connect(self) -> Session:
        if self.session_count:
            return await super().connect()
        async with self._at_start:
            return await super().connect()

    def on_welcome(self, session: Session, message: Message) -> None:
        if self.epoch and not message.resumed:
            self.refusals.append(message.reason or "without a reason")
        if not self.epoch:
            self.first = message.cursor or 0
        if not message.resumed:
            self.epoch, self.cursor = message.epoch, message.cursor or 0
        self.session_count += 1

    def on_message(self, session: Session, message: Message) -> None:
        if message.type == "ping" and message.cursor is not None:
            self.cursor = message.cursor

    def on_events(self, session: Session, payload: bytes) -> None:
        frame = self.frames.read(payload)
        self.cursor = frame.cursor
        self.got.append(frame.offsets)
        if frame.offsets:
            self.last = frame.offsets[-1]
        self.check_target()

    def on_refusal(self, reply: Reply, by: str) -> float:
        if reply.status not in (429, 503):
            self.errors.append(f"the {by} answered {reply}")
        return reply.retry_after

    def on_end(self, session: Session) -> None:
        if session.code == UNREADABLE:
            self.errors.append("a frame came that the client does not read")

    def check_target(self) -> None:
        if self.target is not None and self.reached_at is None and self.last >= self.target:
            self.reached_at, self.reached_on = time.perf_counter(), self.shard
            self.on_reached()

    def faults(self, published: Sequence[int]) -> tuple[int, int, bool]:
        """Events lost, events got twice, whether the order was wrong."""
        wanted = [offset for offset in published if offset > self.first]
        got = list(chain.from_iterable(self.got))
        if got == wanted:
            return 0, 0, False
        distinct = set(got)
        return len(set(wanted) - distinct), len(got) - len(distinct), got != sorted(got)


def make_users(system: Solowire, count: int) -> list[ReturningUser]:
    frames, at_start = FrameReader(), asyncio.Semaphore(AT_ONCE)
    return [ReturningUser(system.port, f"u{n}", system.sign(f"u{n}"), frames, at_start) for n in range(count)]


async def open_all(users: list[ReturningUser], tickets: list[Ticket], at_once: int) -> list[str]:
    """Opens all; one that fails is a fault, since its ticket is gone."""
    limit = asyncio.Semaphore(at_once)

    async def open_one(user: ReturningUser, ticket: Ticket) -> None:
        async with limit:
            await asyncio.wait_for(user.open(ticket), TIMEOUT_S)

    found = await asyncio.gather(*map(open_one, users, tickets), return_exceptions=True)
    failed = [result for result in found if result is not None]
    return [f"{len(failed)} clients did not get in: {failed[0]!r}"] if failed else []


async def cut_all(users: list[ReturningUser]) -> None:
    """Ends all their connections, without a word to the server."""
    sessions = [user.session for user in users if user.session is not None and user.session.transport is not None]
    for session in sessions:
        session.abort()
    await asyncio.gather(*(session.ended for session in sessions))


async def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def judge_users(users: list[ReturningUser], published: Sequence[int]) -> tuple[dict[str, float], list[str]]:
    """What was lost or came twice, over all users, and the faults. Raises BenchError if a user was turned away."""
    found = [user.faults(published) for user in users]
    lost, twice = sum(f[0] for f in found), sum(f[1] for f in found)
    refusals = [refusal for user in users for refusal in user.refusals]
    faults = []
    if lost or twice:
        faults.append(f"{lost:,} events were lost and {twice:,} came twice, over all users")
    if disordered := sum(f[2] for f in found):
        faults.append(f"{disordered} users got events out of order")
    if refusals:
        faults.append(f"{len(refusals)} users were not resumed: {', '.join(sorted(set(refusals)))}")
    if errors := [error for user in users for error in user.errors]:
        raise BenchError(errors[0])
    late = sum(user.late_hellos for user in users)
    return {"resumed: false": len(refusals), "lost": lost, "twice": twice, "hello late": late}, faults
