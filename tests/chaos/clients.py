"""The clients of a run: SDK clients of differing rights and wishes, and what each of them writes down."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection

from solowire.errors import ClientError
from solowire.protocol.messages import Welcome
from solowire.sdk.client import Client
from tests.chaos.checker import Arrival, Story
from tests.chaos.oracle import Made, Who

CONNECT_SECONDS = 4.0

current_user = contextvars.ContextVar("current_user", default="-")
"""Whose task is running: the SDK's log lines are told apart by it."""

Clock = Callable[[], float]

_PROFILES = (
    Who("", "admin", subscriptions=("*",)),
    Who("", "operator"),
    Who("", "viewer", subscriptions=("*",)),
    Who("", "viewer", zones=("a.example",)),
    Who("", "viewer", zones=("a.example", "b.example"), subscriptions=("dns.*",), codec="msgpack"),
    Who("", "operator", zones=("b.example",), subscriptions=("*",), filter={"record_type": ("A",)}),
    Who(
        "",
        "viewer",
        subscriptions=("custom.*", "security_alert"),
        filter={"zone": ("c.example", "sub.a.example")},
    ),
    Who("", "admin", subscriptions=("audit_event", "user_login", "custom.chaos"), codec="msgpack"),
    Who("", "viewer", subscriptions=("user_login", "audit_event", "record_updated")),
    Who("", "operator", subscriptions=("dns_query_log",), filter={"zone": ("a.example",)}),
    Who("", "viewer", filter={"topic": ("t1",), "severity": ("high", "critical")}, codec="msgpack"),
)


def population(count: int) -> list[Who]:
    """So many clients, each another user, of all profiles in turn: several share a feed, on both shards."""
    return [msgspec.structs.replace(_PROFILES[i % len(_PROFILES)], user=f"user-{i}") for i in range(count)]


class Visit(msgspec.Struct, frozen=True):
    """One connection: from its welcome on. at: seconds of the run."""

    at: float
    shard: int | None
    session: str
    cursor: int
    resumed: bool

    def __str__(self) -> str:
        how = "resumed" if self.resumed else "anew"
        return f"from {self.at:.2f} s on shard {self.shard}, {how} at {self.cursor}, session {self.session}"


class Reader:
    """One client and its story. clock: seconds of the run. made: what is published, to compare with."""

    def __init__(self, who: Who, url: str, token: str, clock: Clock, made: Mapping[str, Made]) -> None:
        self.who = who
        self.story = Story(who, "", 0)
        self.visits: list[Visit] = []
        self.farthest: tuple[str, int] = ("", 0)
        self._clock = clock
        self._made = made
        self._entered = asyncio.Event()
        self._client = _Watched(
            self._welcomed,
            url,
            token,
            subscriptions=who.subscriptions,
            filter=who.filter or None,
            codec="msgpack" if who.codec == "msgpack" else "json",
            connect_timeout=CONNECT_SECONDS,
            reconnect_min=0.05,
            reconnect_max=1.0,
            on_gap=self._gap,
        )

    async def run(self, after: float = 0.0) -> None:
        """Comes after so many seconds; reads until it is cancelled, or the client gives up, which is written down."""
        current_user.set(self.who.user)
        try:
            await asyncio.sleep(after)
            async with self._client as client:
                self._entered.set()
                async for event in client:
                    if event.source != "solowire":  # its alerts, and sums of what was left out, are no part of the load
                        self._write_down(event, client.epoch or "")
        except ClientError as error:
            self.story.ended = str(error)
        finally:
            self.story.left_out = dict(self._client.left_out)
            self._entered.set()

    async def entered(self) -> None:
        await self._entered.wait()

    @property
    def shard(self) -> int | None:
        return self.visits[-1].shard if self.visits else None

    def longest_silence(self, until: float) -> float:
        """Seconds without a delivery."""
        times = [self.visits[0].at if self.visits else 0.0, *(a.at for a in self.story.arrivals), until]
        return max(later - earlier for earlier, later in pairwise(times))

    def _welcomed(self, welcome: Welcome, shard: int | None) -> None:
        if not self.visits:
            self.story.epoch, self.story.cursor = welcome.epoch, welcome.cursor
            self.farthest = (welcome.epoch, welcome.cursor)
        self.visits.append(Visit(self._clock(), shard, welcome.session, welcome.cursor, welcome.resumed))
        if welcome.reason is not None:
            log.warning("not resumed: %s, at %d on shard %s", welcome.reason, welcome.cursor, shard)

    def _gap(self, reason: str) -> None:
        self.story.gaps.append((self._clock(), f"{reason}; welcomed by shard {self.shard}"))

    def _write_down(self, event: Any, epoch: str) -> None:
        data = event.data
        made = self._made.get(event.id)
        if made is not None:
            # The same object instead of an equal one: a long run holds half a million of them.
            data = made.data if data == made.data else made.public if data == made.public else data
        arrival = Arrival(event.offset, epoch, event.id, event.type, data, self._clock(), self.shard)
        self.story.arrivals.append(arrival)
        self.farthest = (epoch, event.offset)


class _Watched(Client):
    """Tells of every welcome; the SDK itself shows only the last."""

    def __init__(self, welcomed: Callable[[Welcome, int | None], None], url: str, token: str, **options: Any) -> None:
        super().__init__(url, token, **options)
        self._welcomed = welcomed

    def _start_connection(self, socket: ClientConnection, welcome: Welcome) -> None:
        self._welcomed(welcome, self.shard)
        super()._start_connection(socket, welcome)


log = logging.getLogger("tests.chaos.clients")
