"""Publishers that repeat what was not acknowledged, each with a buffer of its own.

What it keeps true: a batch keeps its ids until it is acknowledged. Where the buffer is bounded, what falls due beyond
it is never made, and counted (`unmade`): the clients' memory must not be what is measured.
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

from bench.http_client import HttpClient

HELD_BATCHES = 5
DEFIANT_PAUSE_S = 0.02
"""Between two attempts of a publisher that doesn't care for Retry-After."""


class Accepted(msgspec.Struct):
    """What the gateway answers."""

    first_offset: int
    last_offset: int
    accepted: int
    duplicates: int


@dataclass
class Tally:
    """Counts of all publishers together; events, but for `refused` and `lost`, which are requests.

    offsets: of what each publisher's requests took in all, where there is one publisher and no other.
    """

    offered: int = 0
    acked: int = 0
    duplicates: int = 0
    unmade: int = 0
    last: int = 0
    lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)

    def add_fault(self, words: str) -> None:
        if len(self.faults) < 10:
            self.faults.append(words)

    @property
    def stored(self) -> int:
        """Events that are in the log."""
        return self.acked + self.duplicates

    @property
    def offsets(self) -> list[int]:
        """Of a publisher that was alone, and whose batches so have offsets that follow each other."""
        return [offset for first, last in self.answers for offset in range(first, last + 1)]


class RetryingPublisher:
    """One of them. make(n): the body of its nth batch, of `batch` events, each with an id that only it has.

    rate: events per second; None: the next when the last is acknowledged. held: the most batches that wait.
    obeys: whether it keeps to Retry-After. drains: whether it ends only when all that waits is acknowledged.
    """

    def __init__(
        self,
        port: int,
        token: str,
        make: Callable[[int], bytes],
        tally: Tally,
        *,
        batch: int = 1,
        rate: float | None = None,
        held: float = float("inf"),
        obeys: bool = True,
        drains: bool = False,
    ) -> None:
        self._client = HttpClient(port)
        self._token = token
        self._make = make
        self._tally = tally
        self._batch = batch
        self._rate = rate
        self._held = held
        self._obeys = obeys
        self._drains = drains
        self._waiting: deque[bytes] = deque()
        self._made = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is under way is waited for, and the rest is forgotten, unless it drains."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            while not stop.is_set() or (self._drains and self._waiting):
                pause = 0.0 if stop.is_set() else self._fall_due(clock() - begun)
                if self._waiting:
                    pause = await self._send()
                if pause:
                    await _wait(stop, pause)
        finally:
            self._client.close()

    def _fall_due(self, passed: float) -> float:
        """Makes what is due, and returns the seconds until there is more."""
        if self._rate is None:
            if not self._waiting:
                self._put()
            return 0.0
        while (due := self._made * self._batch / self._rate) <= passed:
            if len(self._waiting) < self._held:
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
            reply = await self._client.ask("POST", "/v1/events", self._token, self._waiting[0])
        except OSError:
            tally.lost += 1
            return DEFIANT_PAUSE_S
        if reply.status in (429, 503):
            tally.refused[reply.code] += 1
            if not (reply.code and reply.retry_after):
                tally.add_fault(f"an answer without a code or Retry-After: {reply}")
            return reply.retry_after if self._obeys else DEFIANT_PAUSE_S
        self._waiting.popleft()
        if reply.status != 200:
            tally.add_fault(f"/v1/events answered {reply}")
            return DEFIANT_PAUSE_S
        tally.took.append(clock() - begun)
        accepted = msgspec.json.decode(reply.body, type=Accepted)
        tally.acked += accepted.accepted
        tally.duplicates += accepted.duplicates
        tally.last = max(tally.last, accepted.last_offset)
        tally.answers.append((accepted.first_offset, accepted.last_offset))
        counts = accepted.accepted + accepted.duplicates, accepted.last_offset - accepted.first_offset + 1
        if counts != (self._batch, self._batch):  # one request is one piece of the log
            tally.add_fault(f"{counts[0]} of {self._batch} events were accepted, and have {counts[1]} offsets")
        return 0.0


async def publish_load(
    port: int, tokens: list[str], make: Callable[[str, int], bytes], batch: int, seconds: float, rate: float | None
) -> Tally:
    """One publisher for each token, for so long; every other obeys. make(name, n): the nth batch of that publisher.

    rate: events per second of all together; None: each waits for its acknowledgements.
    """
    tally, stop = Tally(), asyncio.Event()
    each = None if rate is None else rate / len(tokens)
    async with asyncio.TaskGroup() as group:
        for n, token in enumerate(tokens):
            body = partial(make, str(n))
            publisher = RetryingPublisher(
                port, token, body, tally, batch=batch, rate=each, held=HELD_BATCHES, obeys=n % 2 == 0
            )
            group.create_task(publisher.run(stop))
        await asyncio.sleep(seconds)
        stop.set()
    return tally


class LoadProcess:
    """`publish_load` in a process of its own, so that it takes no turn of the loop that counts what arrives."""

    def __init__(self, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run_load, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    async def result(self) -> Tally:
        """Waits for its end. Raises EOFError if it failed."""
        tally = await asyncio.to_thread(self._pipe.recv)
        self._process.join()
        assert isinstance(tally, Tally)
        return tally

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run_load(pipe: Pipe, *arguments: Any) -> None:
    pipe.send(uvloop.run(publish_load(*arguments)))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
