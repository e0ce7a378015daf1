"""An hour of the old frontend's life: sign-in, all types, tabs, a token's end, restarts, drain, sign-out.

The page is played with its own timings; the hour is shortened by leaving out what is the same for long. What a page
must have seen is what was published while its socket was open, but for what the old protocol itself loses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.domains.dns.legacy.page import read_frame
from tests.e2e.old_page import OldPage, Stay, TokenStore, until
from tests.support.system import System, alive, open_session, ready, running

KINDS = ("admin", "health", "dns_management", "security", "system")
UNDER_WAY_SECONDS = 1.0
"""What was acknowledged so shortly before a connection ended may have been under way still: the old protocol has no
cursor, so nobody sends it again. An event waits 0.1 s for others, and longer on a machine that is busy."""
HELD_SECONDS = 30.0
"""Within which a shard that was killed is back, or its users are another's. Until then its gateway holds their sockets,
and they hear nothing: for the same reason what was published meanwhile is lost to them."""
WAR_ATTEMPTS = 12
"""So many attempts of one page within a second would be a war: it makes 700 in 12 s in one."""


class Feed:
    """Publishes a record every few milliseconds, for all, and notes when each was under way."""

    def __init__(self, system: System) -> None:
        self.sent: list[tuple[str, float, float]] = []  # id, begun, acknowledged
        self.kills: list[tuple[float, str]] = []  # when a shard was killed, and of whom it was
        self._system = system
        self._task = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        number = 0
        async with self._system.http(self._system.token("publisher", "publisher")) as http:
            while True:
                number += 1
                data = {"zone": "example.com", "name": f"host-{number}", "type": "A", "value": "192.0.2.7"}
                id = uuid4().hex
                event = {"id": id, "type": "record_created", "data": data}
                began = time.monotonic()
                accepted = False
                while not accepted:  # as publishers do: the same id again
                    with contextlib.suppress(httpx.HTTPError):
                        accepted = (await http.post("/v1/events", json=event)).status_code == 200
                    if not accepted:
                        await asyncio.sleep(0.05)
                self.sent.append((id, began, time.monotonic()))
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def must_have_seen(self, user: str, stay: Stay) -> list[str]:
        """What was published while this connection of a user was open, in the order of its publishing."""
        ended = stay.ended_at
        for killed, whose in self.kills:
            if whose == user and stay.began_at < killed < ended < killed + HELD_SECONDS:
                ended = killed
        return [id for id, began, acked in self.sent if stay.began_at < began and acked < ended - UNDER_WAY_SECONDS]


def old_token(system: System, user: str, ttl: float, **claims: object) -> str:
    return jwt.encode({"sub": user, "user_id": 1, "exp": time.time() + ttl, **claims}, system.secret, "HS256")


def busiest_second(attempts: list[float]) -> int:
    """The most attempts within a second."""
    return max((sum(1 for other in attempts if at <= other < at + 1) for at in attempts), default=0)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    # A page whose connection breaks comes back with the token that it first had, which has ended for one of them.
    with running(tmp_path / "data", shards=2, settings={"LEGACY_EXPIRY_GRACE": 3600}) as started:
        yield started


async def restart(system: System, *command: str, number: int, port: int) -> None:
    """Ends one process, and waits until another has its place."""
    before = system.pid_of(*command)
    os.kill(before, number)
    await until(lambda: not alive(before), f"{command} has ended")

    def is_back() -> bool:
        with contextlib.suppress(ValueError, OSError):
            return system.pid_of(*command) != before and ready(f"http://127.0.0.1:{port}")
        return False

    await asyncio.to_thread(lambda: asyncio.run(until(is_back, f"{command} is back")))


async def all_open(pages: list[OldPage]) -> None:
    """Each page is connected, and hears what is published."""
    await until(lambda: all(page.is_open and page.stays[-1].frames for page in pages), "all pages are connected")
    seen = [len(page.stays[-1].frames) for page in pages]
    stays = [page.stays[-1] for page in pages]
    await until(
        lambda: all(
            page.stays[-1] is not stay or len(stay.frames) > count
            for page, stay, count in zip(pages, stays, seen, strict=True)
        ),
        "all pages hear events",
    )


async def test_an_hour_of_the_old_frontend(system: System) -> None:
    """No crash, no war of reconnects, nothing left open, and every event that it should have seen."""
    movers = [system.user_on(0, "ann"), system.user_on(1, "bob")]
    stores = {user: TokenStore(old_token(system, user, 600, is_admin=True)) for user in movers}
    feed = Feed(system)

    # Sign-in, and two tabs of one user.
    whose = [*movers, movers[0]]
    pages = [OldPage(system.port, stores[user]) for user in whose]
    for page in pages:
        page.load()
    await all_open(pages)
    await asyncio.sleep(2.5)  # a stretch of quiet life, in which all must be seen

    # The test page: a socket of each type, closed with 1000 at once.
    for kind in KINDS:
        url = f"ws://127.0.0.1:{system.port}/api/websocket/ws/{kind}?token={stores[movers[0]].newest}"
        async with open_session(url) as session:
            assert read_frame(await session.socket.recv())["data"]["connection_type"] == kind

    # A token's end: the application has renewed it, without is_admin, and the page comes back with the new one.
    brief = TokenStore(old_token(system, movers[1], 4, is_admin=True))
    renewing = OldPage(system.port, brief)
    renewing.load()
    await until(lambda: renewing.is_open, "it is connected with its first token")
    brief.newest = old_token(system, movers[1], 600)
    await until(lambda: len(renewing.stays) == 2 and renewing.is_open, "it is back with its newest token")
    assert renewing.codes == [1000]
    pages.append(renewing)
    whose.append(movers[1])
    await all_open(pages)

    # A restart of each process, by the operator and by accident.
    ports = {"shard": system.port + 2, "gateway": system.port, "router": system.port}
    for command in (("shard", "--index", "1"), ("router",), ("gateway",)):
        for number in (signal.SIGTERM, signal.SIGKILL):
            if command[0] == "shard" and number == signal.SIGKILL:
                feed.kills.append((time.monotonic(), movers[1]))
            await restart(system, *command, number=number, port=ports[command[0]])
            await all_open(pages)
            await asyncio.sleep(2.2)  # long enough for events that must be seen

    # A drain: the pages of the shard go to the other one, at once.
    async with system.http(system.token("root")) as http:
        before = len(pages[0].stays)
        assert (await http.post("/v1/shards/0/drain")).status_code == 202
        await until(lambda: len(pages[0].stays) > before, "the drained shard's page has moved")
        assert pages[0].codes[-1] == 1000
    await all_open(pages)

    # Sign-out: the application tells the gateway. The pages stay loaded, and go on trying.
    await feed.stop()
    async with system.http(system.token("root")) as http:
        for user in movers:
            assert (await http.post(f"/v1/users/{user}/disconnect")).status_code == 200
        attempts = [len(page.attempts) for page in pages]
        await until(
            lambda: all(len(page.attempts) > tried + 1 for page, tried in zip(pages, attempts, strict=True)),
            "the pages have tried again",
        )
        assert not any(page.is_open for page in pages)

        async def is_empty() -> bool:
            return bool((await http.get("/v1/stats")).json()["connections"] == 0)

        deadline = time.monotonic() + 30
        while not await is_empty():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    for page in pages:
        await page.unload()

    due_count = 0
    for user, page in zip(whose, pages, strict=True):
        assert page.crash is None, page.crash
        assert busiest_second(page.attempts) < WAR_ATTEMPTS
        for stay in page.stays:
            ids = [id for frame, id in ((f, f.get("id")) for f in stay.frames) if frame["type"] == "record_created"]
            assert len(ids) == len(set(ids)), "an event came twice"
            due = feed.must_have_seen(user, stay)
            due_count += len(due)
            assert [id for id in ids if id in set(due)] == due
    assert due_count > 500
