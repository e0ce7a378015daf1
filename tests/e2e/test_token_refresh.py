"""Tokens that are refreshed, with the SDK and a real system: no storm, and no connection that ends of it.

The lives are those that users have, so this takes a minute; all cases run at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from solowire.errors import ConnectionEnded
from solowire.protocol.messages import Notice
from solowire.sdk.client import Client
from tests.support.system import ANSWER_SECONDS, System

WATCHED_S = 63.0


@dataclass
class Watched:
    """A client, and what happened to it. asked: how often its token function was. codes: of its notices."""

    client: Client
    asked: int = 0
    codes: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def watched(system: System, token: Callable[[], str]) -> AsyncIterator[Watched]:
    def give() -> str:
        one.asked += 1
        return token()

    def note(notice: Notice) -> None:
        one.codes[notice.code] += 1

    one = Watched(Client(system.url, give, subscriptions=["custom.nothing"], on_notice=note))
    async with one.client:
        yield one


def cached(system: System, user: str, life: float, until: float) -> Callable[[], str]:
    """A token function as identity providers' libraries have it: it keeps its token until `until` s before its end."""
    kept: tuple[str, float] | None = None

    def token() -> str:
        nonlocal kept
        if kept is None or kept[1] - time.time() < until:
            kept = system.token(user, ttl=life), time.time() + life
        return kept[0]

    return token


async def test_refreshes_are_few_and_end_nothing(system: System) -> None:
    """Thirty idle clients with tokens of 30 s, one with a cache, one of 59 s, and others that can't be prolonged."""
    session_ends = time.time() + 40  # of a login that nothing prolongs
    async with AsyncExitStack() as stack:

        async def enter(token: Callable[[], str]) -> Watched:
            return await stack.enter_async_context(watched(system, token))

        idle = [await enter(lambda n=n: system.token(f"idle{n}", ttl=30)) for n in range(30)]  # type: ignore[misc]
        keeping = await enter(cached(system, "keeping", 60, until=10))
        minute = await enter(lambda: system.token("minute", ttl=59))
        brief = await enter(lambda: system.token("brief", ttl=4))
        bounded = await enter(
            lambda: system.token("bounded", exp=max(session_ends, time.time() + 1), jti=str(time.time()))
        )
        await asyncio.sleep(WATCHED_S)  # the time is the point

        # A token of 30 s is followed by another some 24 s later: three in a minute, and the first.
        assert sum(one.asked for one in idle) <= 30 * 4
        assert all(one.client.connections == 1 for one in idle)
        assert {one.codes["token_expiring"] for one in idle} <= {2, 3}
        assert (keeping.client.connections, minute.client.connections) == (1, 1)
        assert 2 <= keeping.asked <= 10
        assert 2 <= minute.asked <= 3
        assert minute.codes["token_expiring"] == 1
        assert brief.asked <= WATCHED_S
        assert brief.client.connections == 1
        assert bounded.asked <= WATCHED_S


async def drain(client: Client) -> None:
    """Reads to the end: the system's own events may come before it."""
    async for _ in client:
        pass


async def test_of_two_clients_of_one_user_the_newer_stays(system: System) -> None:
    """They don't take each other's place in turn: the older one ends, and says why."""
    token = system.token("twice")
    async with Client(system.url, token) as older, Client(system.url, token) as newer:
        async with asyncio.timeout(ANSWER_SECONDS):
            with pytest.raises(ConnectionEnded, match="one client for each user") as ended:
                await drain(older)
        assert ended.value.close_code == 4409
        assert (await newer.stats())["session"] == newer.session
        assert (older.connections, newer.connections) == (1, 1)


async def test_a_stranger_that_refreshes_at_each_notice_is_told_once(system: System) -> None:
    """A client of anybody's that answers a notice with the same token hears of it once, whatever it repeats."""
    token = system.token("naive", ttl=10)
    async with system.session(token, {"subscriptions": ["custom.nothing"]}) as session:
        notice = await session.hear("notice")
        assert notice["code"] == "token_expiring"
        assert 0 < notice["after_ms"] <= 2000
        for number in range(10):
            await session.ask("reply", type="refresh", id=number, token=token)
        await session.say(type="ping", id="end")
        seen = []
        while (message := await session.hear())["type"] != "pong":
            seen.append(message["type"])
        assert "notice" not in seen
