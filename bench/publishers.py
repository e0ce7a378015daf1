"""Publishers that offer more than there is room for, each with a bounded buffer of its own.

What it keeps true: a batch keeps its ids until it is acknowledged; at most HELD_BATCHES of one publisher wait, and what
falls due beyond them is never made, and counted (`unmade`): the clients' memory must not be what is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgspec
import uvloop

from bench.posts import Line

HELD_BATCHES = 5
DEFIANT_PAUSE_S = 0.02
"""Between two attempts of a publisher that doesn't care for Retry-After."""


class Accepted(msgspec.Struct):
    """What the gateway answers."""

    epoch: str
    first_offset: int
    last_offset: int
    accepted: int
    duplicates: int


@dataclass
class Tally:
    """Counts of all publishers together; events, but for `refused` and `lost`, which are requests."""

    offered: int = 0
    acked: int = 0
    duplicates: int = 0
    unmade: int = 0
    last: int = 0
    lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    def fault(self, words: str) -> None:
        if len(self.faults) < 10:
            self.faults.append(words)


class Publisher:
    """One of them. make(n): the body of its nth batch, of `batch` events, each with an id that only it has.

    rate: events per second; None: the next when the last is acknowledged. obeys: whether it keeps to Retry-After.
    """

    def __init__(
        self,
        port: int,
        token: str,
        make: Callable[[int], bytes],
        tally: Tally,
        *,
        batch: int,
        rate: float | None = None,
        obeys: bool = True,
    ) -> None:
        self._line = Line(port)
        self._token = token
        self._make = make
        self._tally = tally
        self._batch = batch
        self._rate = rate
        self._obeys = obeys
        self._waiting: deque[bytes] = deque()
        self._made = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is under way is waited for, and the rest is forgotten."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            while not stop.is_set():
                pause = self._fall_due(clock() - begun)
                if self._waiting:
                    pause = await self._send()
                if pause:
                    await _until(stop, pause)
        finally:
            self._line.close()

    def _fall_due(self, passed: float) -> float:
        """Makes what is due, and returns the seconds until there is more."""
        if self._rate is None:
            if not self._waiting:
                self._put()
            return 0.0
        while (due := self._made * self._batch / self._rate) <= passed:
            if len(self._waiting) < HELD_BATCHES:
                self._put()
            else:
                self._made += 1
                self._tally.offered += self._batch
                self._tally.unmade += self._batch
        return due - passed

    def _put(self) -> None:
        self._waiting.append(self._make(self._made))
        self._made += 1
        self._tally.offered += self._batch

    async def _send(self) -> float:
        """One request with the oldest batch; returns the seconds to stay away."""
        tally, clock = self._tally, asyncio.get_running_loop().time
        begun = clock()
        try:
            reply = await self._line.ask("POST", "/v1/events", self._token, self._waiting[0])
        except OSError:
            tally.lost += 1
            return DEFIANT_PAUSE_S
        if reply.status in (429, 503):
            tally.refused[reply.code] += 1
            if not (reply.code and reply.retry_after):
                tally.fault(f"{reply.status} without a code or Retry-After: {reply.body[:200]!r}")
            return reply.retry_after if self._obeys else DEFIANT_PAUSE_S
        self._waiting.popleft()
        if reply.status != 200:
            tally.fault(f"/v1/events answered {reply.status}: {reply.body[:200]!r}")
            return DEFIANT_PAUSE_S
        tally.took.append(clock() - begun)
        accepted = msgspec.json.decode(reply.body, type=Accepted)
        tally.acked += accepted.accepted
        tally.duplicates += accepted.duplicates
        tally.last = max(tally.last, accepted.last_offset)
        if accepted.accepted + accepted.duplicates != self._batch:
            tally.fault(f"{accepted.accepted} of {self._batch} events were accepted")
        return 0.0


async def offer(
    port: int,
    tokens: list[str],
    make: Callable[[str, int], bytes],
    tally: Tally,
    batch: int,
    seconds: float,
    rate: float | None,
) -> None:
    """One publisher for each token, for so long; every other obeys. make(name, n): the nth batch of that publisher.

    rate: events per second of all together; None: each waits for its acknowledgements.
    """
    stop = asyncio.Event()
    each = None if rate is None else rate / len(tokens)
    async with asyncio.TaskGroup() as group:
        for n, token in enumerate(tokens):
            publisher = Publisher(port, token, partial(make, str(n)), tally, batch=batch, rate=each, obeys=n % 2 == 0)
            group.create_task(publisher.run(stop))
        await asyncio.sleep(seconds)
        stop.set()


class Flood:
    """`offer` in a process of its own, so that it takes no turn of the loop that counts what arrives."""

    def __init__(self, *arguments: Any) -> None:
        """arguments: of `offer`, without the tally."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_flood, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def result(self) -> Tally:
        """Waits for its end. Raises EOFError if it failed."""
        tally = self._pipe.recv()
        self._process.join()
        assert isinstance(tally, Tally)
        return tally

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _flood(pipe: Pipe, port: int, tokens: list[str], make: Any, batch: int, seconds: float, rate: float | None) -> None:
    tally = Tally()
    uvloop.run(offer(port, tokens, make, tally, batch, seconds, rate))
    pipe.send(tally)


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
