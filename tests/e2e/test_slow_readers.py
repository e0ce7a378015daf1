"""Readers that stop reading, floods, and states that come too often, through all processes and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.test_processes import until
from tests.support.system import ANSWER_SECONDS, Session, System, open_session, running, sockets_with

STALLED_S = 8
BUFFER_BYTES = 16 * 1024


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with small buffers, low rates and short intervals."""
    settings = {
        "LISTEN__WRITE_TIMEOUT_S": STALLED_S,
        "LISTEN__SEND_BUFFER_BYTES": BUFFER_BYTES,
        "SHARD__AGGREGATION__EVENTS_PER_S": 100,
        "SHARD__AGGREGATION__INTERVAL_S": 0.2,
        "SHARD__CONFLATION__INTERVAL_S": 1,
        "SESSION__HEARTBEAT_INTERVAL_S": 60,
    }
    with running(tmp_path_factory.mktemp("small") / "data", shards=1, settings=settings) as started:
        yield started


@contextlib.asynccontextmanager
async def reader(
    system: System, user: str, subprotocols: list[Any] | None = None, **hello: Any
) -> AsyncIterator[Session]:
    """A welcomed session that takes little more from the network than it is asked for."""
    url = (await system.negotiate(system.token(user)))["url"]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    sock.connect((urlsplit(url).hostname, urlsplit(url).port))
    sock.setblocking(False)
    async with open_session(url, sock=sock, max_queue=1, subprotocols=subprotocols) as session:
        await session.ask("welcome", type="hello", **hello)
        yield session


def query(n: int, **data: Any) -> dict[str, Any]:
    data = {"client_ip": f"10.0.0.{n % 3}", "query_domain": f"n{n % 50}.example.com", "query_type": "A", **data}
    return {"type": "dns_query_log", "data": data}


async def everything(session: Session, last: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Counter[str]]:
    """Reads up to the event of the id `last`: its events, its notices, and what was left out."""
    events: list[dict[str, Any]] = []
    notices: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    cursor = -1
    while not any(e["id"] == last for e in events):
        message = await session.hear()
        if message["type"] == "notice":
            notices.append(message)
        elif message["type"] == "events":
            assert message["cursor"] >= cursor
            cursor = message["cursor"]
            events += message["events"]
            left_out.update(message.get("compacted", {}))
    return events, notices, left_out


async def far_behind(system: System, user: str, offsets: int) -> None:
    """Waits until the shard says so: one that reads before has nothing to be slow with."""
    headers = {"authorization": f"Bearer {system.token('root', 'admin')}"}
    async with httpx.AsyncClient(base_url=system.url, headers=headers) as http:
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
        while True:
            found = (await http.get(f"/v1/users/{user}")).json()
            if any(connection["lag_offsets"] >= offsets for connection in found.get("connections", ())):
                return
            assert asyncio.get_running_loop().time() < deadline, found
            await asyncio.sleep(0.05)


async def test_a_reader_that_stops_and_reads_on(small: System) -> None:
    """It is told that it is slow, gets all durable events and the rest compacted, and is told when that is over."""
    async with reader(small, "slow", subscriptions=["custom.*", "dns_query_log"]) as session:
        for part in range(4):  # all of it within `stalled_s`
            events = [query(n, filler="x" * 3_000) for n in range(50)]
            for n in range(10):
                slow = {"type": "custom.slow", "data": {"n": part * 10 + n, "x": "x" * 12_000}}
                events.insert(6 * n, slow)
            await small.publish(*events)
        await small.publish({"type": "custom.slow", "data": {"n": 40}, "id": "the last"})
        await far_behind(small, "slow", 60)
        events, notices, left_out = await everything(session, "the last")
        assert [(n["code"], n["active"]) for n in notices] == [("slow_consumer", True)]
        assert [e["data"]["n"] for e in events if e["type"] == "custom.slow"] == list(range(41))
        sent = [e for e in events if e["type"] == "dns_query_log"]
        assert len(sent) + left_out["dns_query_log"] == 200
        assert left_out["dns_query_log"] > 0
        over = await session.hear("notice")
        assert (over["code"], over["active"]) == ("slow_consumer", False)
        await small.publish({"type": "custom.slow", "data": {"n": 41}})
        assert [e["data"]["n"] for e in await session.events(1)] == [41]


async def test_a_reader_that_never_reads_leaves_nothing_behind(small: System) -> None:
    """One that takes nothing for `stalled_s` is closed, and its descriptor in the shard is gone."""
    shard = small.pid_of("shard", "--index", "0")
    async with reader(small, "stuck", subscriptions=["custom.*"]) as session:
        assert sockets_with(shard, session.port) == 1
        for _ in range(10):
            await small.publish(*({"type": "custom.stuck", "data": {"x": "x" * 30_000}} for _ in range(5)))
        await until(lambda: not sockets_with(shard, session.port), "the descriptor is gone", ANSWER_SECONDS)


async def test_a_flood_becomes_summaries_and_ends(small: System) -> None:
    """Query events above the rate come as `dns_query_stats` with a sample, all counted, and singly when it is over;
    critical ones and whatever else there is come in full meanwhile.
    """
    async with reader(small, "flooded", subscriptions=["dns_query_log", "custom.amid"]) as session:
        for part in range(3):
            flood = [query(n) for n in range(499)]
            flood.insert(250, {**query(0), "id": f"critical {part}", "priority": "critical"})
            for n in range(10):
                flood.insert(50 * n, {"type": "custom.amid", "data": {"n": 10 * part + n}})
            await small.publish(*flood)
            await asyncio.sleep(0.25)  # a flood of several intervals
        for n in range(8):  # intervals without a flood
            await asyncio.sleep(0.25)
            await small.publish({**query(0), "id": f"after {n}"})
        events, _, left_out = await everything(session, "after 7")
        summaries = [e for e in events if e["type"] == "dns_query_stats"]
        assert len(summaries) >= 2
        assert all(e["source"] == "solowire" for e in summaries)
        assert max(e["data"]["total_queries"] for e in summaries) >= 100
        for data in (e["data"] for e in summaries):
            assert data["queries_per_second"] == round(data["total_queries"] / data["window_s"], 1)
        assert {"top_names", "top_clients", "query_types"} <= summaries[0]["data"].keys()
        assert [e["data"]["n"] for e in events if e["type"] == "custom.amid"] == list(range(30))
        sent = [e for e in events if e["type"] == "dns_query_log"]
        assert {f"critical {part}" for part in range(3)} <= {e["id"] for e in sent}
        assert len(sent) + left_out["dns_query_log"] == 1508
        assert left_out["dns_query_log"] > 500
        await small.publish(query(1), query(2))
        frame = await session.hear("events")
        assert "compacted" not in frame
        assert [e["type"] for e in frame["events"]] == ["dns_query_log"] * 2


async def test_a_state_comes_once_per_interval(small: System) -> None:
    """The first value at once, then nothing for the interval, then the newest alone."""
    async with reader(small, "states", subscriptions=["system_metrics"]) as session:
        # In one request: they come within the interval, however slow this machine is.
        values = ({"host": "paced", "cpu_usage": value} for value in (1, 2, 3))
        await small.publish(*({"type": "system_metrics", "data": data} for data in values))
        first, then = await session.hear("events"), await session.hear("events")
        assert [e["data"]["cpu_usage"] for e in first["events"]] == [1]
        assert [e["data"]["cpu_usage"] for e in then["events"]] == [3]
        assert then["compacted"] == {"system_metrics": 1}
        assert then["cursor"] >= first["cursor"]
