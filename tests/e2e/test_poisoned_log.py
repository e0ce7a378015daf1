"""A log that was accepted once always starts: an older gateway's events and damaged rows are passed over."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solowire.backplane.messages import PublishedEvent
from solowire.router.log.sqlite_journal import SqliteJournal
from tests.support.poison import MANY_LABELS, ODD, POISON, body
from tests.support.system import Session, System, running

SOUND = 5
ROWS = {
    "a body that is text": "body = 'text'",
    "a body that is a number": "body = 7",
    "a body of 300 MB": "body = zeroblob(300 * 1024 * 1024)",
    "a user that is no text": "user = x'ff00'",
    "a user that is no UTF-8": "user = CAST(x'ff' AS TEXT)",
    "a user that is a number": "user = 7",
    "a state that is no UTF-8": "state = CAST(x'fe' AS TEXT)",
}


def poison(path: Path) -> None:
    """Makes a journal as an older version may have left it."""
    bodies = [*POISON.values(), *ODD.values()]
    # What killed a shard, and the same as a state: one request of 16 events.
    zone = body(data=msgspec.json.encode({"zone": MANY_LABELS}), attributes={"zone": MANY_LABELS})
    bodies += [zone] * 16
    with closing(
        SqliteJournal(path, new_epoch="old", max_age=1e9, max_events=10**6, max_bytes=2**40, window=60, now=1e9)
    ) as journal:
        events = [PublishedEvent(f"poison-{n}", None, body, f"state-{n}") for n, body in enumerate(bodies)]
        rows = [PublishedEvent(f"row-{n}", None, body("custom.row"), None) for n in range(len(ROWS))]
        sound = [PublishedEvent(f"sound-{n}", None, body("custom.sound", id=f"sound-{n}")) for n in range(SOUND)]
        journal.append([*events, *rows, *sound], 1e9)
        journal.commit(1e9)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for n, change in enumerate(ROWS.values()):
            db.execute(f"UPDATE events SET {change} WHERE id = 'row-{n}'")


@pytest.fixture
def poisoned(tmp_path: Path) -> Iterator[System]:
    data = tmp_path / "data"
    data.mkdir()
    poison(data / "journal.sqlite3")
    with running(data, shards=2, settings={"JOURNAL__MAX_AGE_S": 1e9}) as system:
        yield system


async def test_a_poisoned_log_starts_and_goes_on(poisoned: System) -> None:
    """The system starts with it; who comes back gets what is sound, all get what is new, and it can start again."""
    for round in range(2):
        accepted = await poisoned.publish({"type": "custom.new", "data": {"round": round}})
        assert accepted["epoch"] == "old"
        for shard in (0, 1):
            token = poisoned.token(poisoned.user_on(shard))
            hello = {"subscriptions": ["custom.*"], "resume": {"epoch": "old", "cursor": 0}}
            async with poisoned.session(token, hello) as session:
                assert session.welcome["resumed"], session.welcome
                found = await events_upto(session, accepted["last_offset"])
                sound = [e["id"] for e in found if e["type"] == "custom.sound"]
                assert sound == [f"sound-{n}" for n in range(SOUND)]
                assert [e["data"] for e in found if e["type"] == "custom.new"] == [
                    {"round": n} for n in range(round + 1)
                ]
                fresh = await poisoned.publish({"type": "custom.fresh", "data": {}})
                assert [e["offset"] for e in await session.events(1)] == [fresh["first_offset"]]
            async with poisoned.session(token, {"subscriptions": ["*"]}) as session:
                assert not session.welcome["resumed"]
                fresh = await poisoned.publish({"type": "custom.fresh", "data": {}})
                assert (await events_upto(session, fresh["first_offset"]))[-1]["type"] == "custom.fresh"
        if round == 0:
            assert poisoned.stop() == 0
            poisoned.start()
    said = poisoned.output.read_text()
    assert "Traceback" not in said
    assert "labels at most, this one has 14000" in said
    for index in range(2):
        async with poisoned.api(index) as http:
            metrics = (await http.get("/metrics")).text
        [skipped] = [
            line for line in metrics.splitlines() if line.startswith("solowire_shard_event_decode_errors_total{")
        ]
        assert float(skipped.split()[-1]) >= len(POISON) - 3


async def events_upto(session: Session, offset: int) -> list[dict[str, Any]]:
    """All events that come up to one, with it; before it there may be any, states for instance."""
    found = await session.events(1)
    while found[-1]["offset"] < offset:
        found += await session.events(1)
    return found


async def test_the_request_that_killed_shards_is_refused(system: System) -> None:
    """16 events of a zone with 14,000 labels each are refused by their paths; the system does not even notice."""
    zone = MANY_LABELS
    events = [{"type": "custom.x", "data": {"zone": zone}} for _ in range(16)]
    async with system.session(system.token(system.user_on(0)), {"subscriptions": ["custom.*"]}) as session:
        async with system.http(system.token("publisher", "publisher")) as http:
            answer = await http.post("/v1/events", json=events)
        problem = answer.json()
        assert (answer.status_code, problem["code"], len(problem["errors"])) == (400, "invalid_events", 16)
        assert {(e["path"], e["message"]) for e in problem["errors"]} == {
            ("$.data.zone", "a name has 127 labels at most, this one has 14000")
        }
        offset = (await system.publish({"type": "custom.y", "data": {"zone": "a.b"}}))["first_offset"]
        assert [e["offset"] for e in await session.events(1)] == [offset]
