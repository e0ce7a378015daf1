"""Two hundred users of the release, and what each of them has lived through.

A publisher numbers its events; each user is to get all of them, in order, each once. Users are clients of our SDK, and
resume. What is written down of each: when events came, why connections ended, and which shards it was on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise

from solowire.protocol.messages import Welcome
from solowire.sdk.client import Client
from solowire.sdk.connection_attempt import ABNORMAL, ConnectionLost
from solowire.sdk.publisher import Publisher
from tests.support.system import sign

EVENT_TYPE = "custom.tick"
EVENTS_PER_SECOND = 10
ENTER_SECONDS = 60.0
SETTLE_SECONDS = 60.0
TOKEN_SECONDS = 30 * 86_400


class User:
    """One client. arrivals: the numbers of the events that came, and when."""

    def __init__(self, name: str, url: str, token: str) -> None:
        self.name = name
        self.arrivals: list[tuple[int, float]] = []
        self.shards: list[int | None] = []
        self.gaps: list[str] = []
        self.ends: list[str] = []
        self.failures: list[str] = []
        self.entered = asyncio.Event()
        self._client = _Observed(self, url, token, subscriptions=[EVENT_TYPE], on_gap=self.gaps.append)

    async def run(self) -> None:
        async with self._client as client:
            async for event in client:
                self.arrivals.append((event.data["number"], time.monotonic()))

    @property
    def last_number(self) -> int:
        return self.arrivals[-1][0] if self.arrivals else 0


class _Observed(Client):
    """Tells of every welcome and every end; the SDK itself shows only the last."""

    def __init__(self, user: User, url: str, token: str, **options: object) -> None:
        super().__init__(url, token, **options)  # type: ignore[arg-type]
        self._user = user

    def _start_connection(self, socket: object, welcome: Welcome) -> None:
        self._user.shards.append(self.shard)
        self._user.entered.set()
        super()._start_connection(socket, welcome)  # type: ignore[arg-type]

    def _report_failure(self, left: ConnectionLost, wait: float, now: float) -> None:
        if left.has_failed:
            self._user.failures.append(left.fault.text.partition(";")[0])
        elif left.is_requested:
            self._user.ends.append(f"reconnect {left.fault.reason}")
        else:
            self._user.ends.append("abrupt" if left.code == ABNORMAL else f"{left.code} {left.fault.reason}")
        super()._report_failure(left, wait, now)


class Report:
    """What a disturbance did. gaps: seconds, of each user the longest between two events."""

    def __init__(self, what: str, seconds: float, published: int) -> None:
        self.what, self.seconds, self.published = what, seconds, published
        self.lost = self.doubled = self.told_gaps = self.moved = 0
        self.gaps: list[float] = []
        self.ends: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    @property
    def abrupt(self) -> int:
        return self.ends["abrupt"]

    def __str__(self) -> str:
        gaps = sorted(self.gaps)
        shares = {name: gaps[min(len(gaps) - 1, int(len(gaps) * share))] for name, share in _SHARES.items()}
        figures = ", ".join(f"{name} {value:.2f}" for name, value in shares.items())
        return (
            f"{self.what}: {self.seconds:.0f} s, {self.published} events to {len(gaps)} users; lost {self.lost}, "
            f"doubled {self.doubled}, gaps told {self.told_gaps}; longest silence {figures} s; moved {self.moved}; "
            f"ends {dict(self.ends)}; failed attempts {dict(self.failures)}"
        )


_SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


class Crowd:
    """As an async context manager: within it all are connected."""

    def __init__(self, url: str, secret: str, count: int) -> None:
        self._url, self._secret = url, secret
        self.users = [User(f"user-{i}", url, sign(secret, f"user-{i}", "viewer", TOKEN_SECONDS)) for i in range(count)]
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0

    async def __aenter__(self) -> Crowd:
        self._tasks = [asyncio.create_task(user.run()) for user in self.users]
        async with asyncio.timeout(ENTER_SECONDS):
            await asyncio.gather(*(user.entered.wait() for user in self.users))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def leave(self, count: int) -> None:
        """So many go, the last ones."""
        for task in self._tasks[-count:]:
            task.cancel()
        await asyncio.gather(*self._tasks[-count:], return_exceptions=True)
        del self._tasks[-count:], self.users[-count:]

    def shard_of(self) -> dict[str, int | None]:
        return {user.name: user.shards[-1] for user in self.users}

    @contextlib.asynccontextmanager
    async def disturbed(self, what: str) -> AsyncIterator[list[Report]]:
        """Publishes while the block runs; behind it all have got everything, or it says who has not. One report."""
        reports: list[Report] = []
        first, begun_at, homes = self._number + 1, time.monotonic(), self.shard_of()
        for user in self.users:
            user.arrivals, user.ends, user.failures, user.gaps = [], [], [], []
            user._client.gaps = 0
        publisher = Publisher(self._url, sign(self._secret, "publisher", "publisher", TOKEN_SECONDS))
        async with publisher:
            publishing = asyncio.create_task(self._publish(publisher))
            try:
                yield reports
                await asyncio.sleep(1.0)
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
            await publisher.drain()
        deadline = time.monotonic() + SETTLE_SECONDS
        while any(user.last_number < self._number for user in self.users) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        report = Report(what, time.monotonic() - begun_at, self._number - first + 1)
        for user in self.users:
            numbers = [number for number, _ in user.arrivals]
            report.lost += len(set(range(first, self._number + 1)) - set(numbers))
            report.doubled += len(numbers) - len(set(numbers))
            report.told_gaps += len(user.gaps)
            report.gaps.append(max((later - at for (_, at), (_, later) in pairwise(user.arrivals)), default=0.0))
            report.ends.update(user.ends)
            report.failures.update(user.failures)
            report.moved += homes[user.name] != user.shards[-1]
        print(f"\n{report}", flush=True)
        reports.append(report)

    async def _publish(self, publisher: Publisher) -> None:
        while True:
            self._number += 1
            await publisher.publish(EVENT_TYPE, {"number": self._number})
            await asyncio.sleep(1 / EVENTS_PER_SECOND)
