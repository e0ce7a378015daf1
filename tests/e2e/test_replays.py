"""A few who have much of the log read for them, again and again: nobody else may feel it, or be refused for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from solowire.backplane.messages import PublishedEvent
from solowire.model.events import encode_event
from solowire.router.log.sqlite_journal import SqliteJournal
from tests.support.factories import event
from tests.support.system import ANSWER_SECONDS, Session, System, open_session, running

EVENTS, BATCH, ZONES = 220_000, 5_000, 50
"""What the journal has when the system starts, so that more than half of it is in no shard's recent log."""
SIX = [f"viewer{n}" for n in range(6)]
LOOP_SECONDS = 15.0
LAG_SETTINGS = {"PUBLISH__LAG_SOFT_S": 0.5, "PUBLISH__LAG_HARD_S": 2.0}


def fill(data_dir: Path, events: int) -> None:
    """Writes a journal of so many events of ZONES zones in turn, as a router would have."""
    data_dir.mkdir()
    journal = SqliteJournal(
        data_dir / "journal.sqlite3",
        new_epoch="epoch-1",
        max_age=1e9,
        max_events=10**7,
        max_bytes=2**32,
        window=0,
        now=time.time(),
    )
    for first in range(1, events + 1, BATCH):
        made = (
            event("record_created", {"zone": f"z{n % ZONES}.example.com", "name": f"n{n}", "type": "A"}, id=f"id-{n}")
            for n in range(first, first + BATCH)
        )
        journal.append([PublishedEvent(one.id, None, encode_event(one)) for one in made], time.time())
        journal.commit(time.time())
    journal.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with a long journal, and little patience with shards that lag."""
    data_dir = tmp_path_factory.mktemp("replays") / "data"
    fill(data_dir, EVENTS)
    settings = {"LIMITS__CONNECT__RATE": 100_000, "PROCESS__WATCHDOG_TIMEOUT_S": 60, **LAG_SETTINGS}
    with running(data_dir, shards=1, settings=settings) as started:
        yield started


def hello(cursor: int, zone: str, **more: Any) -> dict[str, Any]:
    resume = {"epoch": "epoch-1", "cursor": cursor}
    return {"type": "hello", "subscriptions": ["record_created"], "filter": {"zone": [zone]}, "resume": resume, **more}


async def come_and_go(system: System, user: str, until: asyncio.Event) -> int:
    """One user, in a loop: connects, asks for all of the log with a filter that matches nothing, leaves; how often."""
    times = 0
    async with system.http(system.token(user, "viewer")) as http:
        while not until.is_set():
            granted = await http.post("/v1/connect")
            if granted.status_code != 200:
                await asyncio.sleep(0.05)
                continue
            async with open_session(granted.json()["url"]) as session:
                await session.say(**hello(1, "nothing.example"))
                session.socket.transport.abort()
            times += 1
    return times


async def come_back(system: System, user: str, zone: int) -> int:
    """A user who missed all of the log: how many events it gets, in order, behind a welcome that says so."""
    wanted = len(range(zone or ZONES, EVENTS + 1, ZONES))
    granted = await system.negotiate(system.token(user, "viewer"))
    async with open_session(granted["url"]) as session:
        await session.say(**hello(0, f"z{zone}.example.com"))
        welcome = await session.hear("welcome", 2 * ANSWER_SECONDS)
        assert (welcome["resumed"], welcome.get("reason")) == (True, None)
        events = await session.events(wanted, 2 * ANSWER_SECONDS)
    offsets = [one["offset"] for one in events]
    assert offsets == sorted(set(offsets))
    return len(offsets)


async def hear_all(session: Session, heard: set[int]) -> None:
    while True:
        for one in await session.events(1, 10 * ANSWER_SECONDS):
            heard.add(one["data"]["n"])


async def test_six_who_ask_for_the_whole_log_and_leave_stop_nobody(full: System) -> None:
    """While six viewers do so in a loop no publisher is refused, live events arrive, and another gets all it missed."""
    over = asyncio.Event()
    answers: Counter[int] = Counter()
    heard: set[int] = set()
    live = {"subscriptions": ["custom.live"]}
    async with (
        full.session(full.token("live", "viewer"), live) as session,
        full.http(full.token("publisher", "publisher")) as http,
        asyncio.TaskGroup() as tasks,
    ):
        hearing = tasks.create_task(hear_all(session, heard))
        loops = [tasks.create_task(come_and_go(full, user, over)) for user in SIX]
        honest = tasks.create_task(come_back(full, "honest", 7))
        end = time.monotonic() + LOOP_SECONDS
        n = 0
        while time.monotonic() < end or not honest.done():
            n += 1
            answer = await http.post("/v1/events", json={"type": "custom.live", "data": {"n": n}})
            answers[answer.status_code] += 1
            await asyncio.sleep(0.1)
        over.set()
        assert dict(answers) == {200: n}
        assert honest.result() == len(range(7, EVENTS + 1, ZONES))
        assert all([await loop for loop in loops])
        async with asyncio.timeout(ANSWER_SECONDS):
            while len(heard) < n:
                await asyncio.sleep(0.02)
        hearing.cancel()


async def test_who_has_too_much_read_is_told_when_to_come_again(tmp_path: Path) -> None:
    """Over its budget a user gets an error with the time to wait, keeps its cursor, and then gets all; others do."""
    fill(tmp_path / "data", BATCH)
    settings = {"SHARD__RECENT_LOG__MAX_EVENTS": 1000, "REPLAY__RATE": 1000, "REPLAY__BURST": 5000}
    with running(tmp_path / "data", shards=1, settings=settings) as system:
        for user, refused in (("ann", False), ("ann", True), ("bob", False)):
            granted = await system.negotiate(system.token(user, "viewer"))
            async with open_session(granted["url"]) as session:
                await session.say(**hello(0, "z3.example.com", id=1))
                while (answer := await session.hear())["type"] not in ("welcome", "error"):
                    pass
                if refused:
                    assert (answer["code"], answer["id"]) == ("replay_limited", 1)
                    assert 0 < answer["retry_after"] <= 4
                    await asyncio.sleep(answer["retry_after"] + 0.1)
                    await session.say(**hello(0, "z3.example.com", id=2))
                    answer = await session.hear("welcome")
                    assert answer["id"] == 2
                assert answer["resumed"]
                assert len(await session.events(BATCH // ZONES)) == BATCH // ZONES
                with pytest.raises((TimeoutError, ConnectionClosed)):
                    await session.hear("events", 0.1)
