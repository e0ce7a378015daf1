"""The agent against a real `named`, asked with `dig`."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from solowire.sdk.publisher import PublisherStats
from solowire.sources.bind9.queries.query_log import Query, parse_query
from solowire.sources.files.file_follower import FileFollower
from tests.support.named import KEY_NAME, READY, ZONES, Named
from tests.support.query_log_agent import run_bind9
from tests.support.query_logs import copytruncate, until
from tests.support.system import has_ipv6

MOST_WAITING = 64


class Seen:
    """The lines and queries that a follower of named's log has read."""

    def __init__(self, follower: FileFollower) -> None:
        self.follower = follower
        self.lines: list[str] = []

    def queries(self) -> list[Query]:
        """All but those by which `Named` asked whether the server is ready."""
        found = [query for query in (parse_query(line, None) for line in self.lines) if query is not None]
        return [query for query in found if query.query_domain != READY]

    def names(self) -> list[str]:
        return [query.query_domain for query in self.queries()]

    def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.lines
            if lines := self.follower.read():
                self.lines += lines
            else:
                time.sleep(0.02)


@contextmanager
def following(named: Named) -> Iterator[Seen]:
    follower = FileFollower(named.log, from_start=True)
    try:
        yield Seen(follower)
    finally:
        follower.close()


ASKED = ["a.z.example", "MiXed.z.example", r"a\.b\032c\(d\)\"\;\@\$\200.z.example", "."]


@pytest.mark.parametrize("print_time", ["yes", "iso8601", "iso8601-utc", "no"])
@pytest.mark.parametrize(("prefix", "view"), [(False, None), (True, "inner view")])
def test_every_line_of_a_real_query_log_is_a_query(
    tmp_path: Path, print_time: str, prefix: bool, view: str | None
) -> None:
    """Whatever the channel prints, every line is understood: names, key, view, TCP, EDNS options, time."""
    with Named(tmp_path, print_time=print_time, prefix=prefix, view=view) as named, following(named) as seen:
        for name in ASKED:
            named.dig(name)
        named.dig("tcp.z.example", "HTTPS", "+tcp")
        named.dig("ecs.z.example", "ANY", "+notcp", "+subnet=192.0.2.0/24", "+dnssec", "+cd")
        named.dig("plain.z.example", "TYPE65400", "+noedns", "+norecurse")
        named.dig_signed("signed.z.example", "TXT")
        seen.until(lambda: len(seen.names()) >= len(ASKED) + 4)
    queries = {query.query_domain: query for query in seen.queries()}
    assert all(parse_query(line, None) is not None for line in seen.lines)
    assert list(queries) == [*ASKED, "tcp.z.example", "ecs.z.example", "plain.z.example", "signed.z.example"]
    assert queries["tcp.z.example"].query_type == "HTTPS"
    assert "T" in queries["tcp.z.example"].flags
    assert {"D", "C"} <= set(queries["ecs.z.example"].flags)
    assert (queries["plain.z.example"].flags, queries["plain.z.example"].query_type) == ("-", "TYPE65400")
    assert queries["signed.z.example"].key == KEY_NAME
    for query in queries.values():
        assert (query.client_ip, query.server_ip, query.view) == ("127.0.0.1", "127.0.0.1", view)
        if print_time == "no":
            assert query.timestamp is None
        else:
            assert query.timestamp is not None
            age = datetime.now(UTC) - datetime.fromisoformat(query.timestamp)
            assert timedelta(seconds=-1) < age < timedelta(minutes=1)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_ipv6(tmp_path: Path) -> None:
    """A query over IPv6 is understood."""
    with Named(tmp_path, ipv6=True) as named, following(named) as seen:
        named.dig("six.z.example", "AAAA", address="::1")
        seen.until(lambda: seen.names() == ["six.z.example"])
    assert (seen.queries()[0].client_ip, seen.queries()[0].server_ip) == ("::1", "::1")


def test_rename_and_reopen(tmp_path: Path) -> None:
    """Queries before a rename, between it and named's reopening, and after it come once and in order."""
    with Named(tmp_path) as named, following(named) as seen:
        named.dig("before.z.example")
        seen.until(lambda: seen.names() == ["before.z.example"])
        named.log.rename(tmp_path / "query.log.1")
        named.dig("between.z.example")
        named.reopen()
        named.dig("after.z.example")
        seen.until(lambda: len(seen.names()) == 3)
        assert "after" in named.log.read_text()
        assert "between" in (tmp_path / "query.log.1").read_text()
    assert seen.names() == ["before.z.example", "between.z.example", "after.z.example"]


def test_copytruncate(tmp_path: Path) -> None:
    """After the log is copied and truncated under a running named, reading goes on with its next query."""
    with Named(tmp_path) as named, following(named) as seen:
        for number in range(5):
            named.dig(f"before{number}.z.example")
        seen.until(lambda: len(seen.names()) == 5)
        shutil.copy(named.log, tmp_path / "query.log.1")
        os.truncate(named.log, 0)
        named.dig("after.z.example")
        seen.until(lambda: len(seen.names()) == 6)
    assert seen.names() == [f"before{number}.z.example" for number in range(5)] + ["after.z.example"]


def test_nameds_own_rotation(tmp_path: Path) -> None:
    """With `versions` and `size` named rotates by itself, several times, and no query is lost."""
    names = [f"q{number}.z.example" for number in range(40)]
    with Named(tmp_path, rotation="versions 20 size 1k") as named, following(named) as seen:
        for name in names:
            named.dig(name)
            seen.until(lambda asked=name: asked in seen.names())  # type: ignore[misc]
        assert len(list(tmp_path.glob("query.log.*"))) >= 2
    assert seen.names() == names


class Memory:
    """A publisher that keeps what is published."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.ids: list[str | None] = []
        self.stats = PublisherStats()

    async def publish(
        self,
        type: str,
        data: dict[str, Any],
        *,
        id: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
    ) -> None:
        self.stats.accepted += 1
        self.ids.append(id)
        self.events.append({"type": type, "data": data, "timestamp": timestamp, "source": source})

    async def drain(self) -> None:
        return

    def names(self) -> list[str]:
        return [event["data"]["query_domain"] for event in self.events]


async def test_the_agent_publishes_what_named_is_asked(tmp_path: Path) -> None:
    """From dig to event: the agent, at the end of a live log, publishes the next query with its zone."""
    publisher, stop = Memory(), asyncio.Event()
    with Named(tmp_path) as named:
        agent = asyncio.create_task(
            run_bind9(named.log, publisher, server="ns1", from_start=False, zones=ZONES, stop=stop)
        )
        await asyncio.sleep(0)  # the agent takes its place at the log's end in its first step
        await asyncio.to_thread(named.dig, "www.sub.z.example", "AAAA")
        deadline = time.monotonic() + 10
        while not publisher.events:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        stop.set()
        await agent
    (event,) = publisher.events
    assert (event["type"], event["source"]) == ("dns_query_log", "ns1")
    assert event["timestamp"].endswith("Z")
    assert event["data"] == {
        "client_ip": "127.0.0.1",
        "query_domain": "www.sub.z.example",
        "query_type": "AAAA",
        "query_class": "IN",
        "flags": event["data"]["flags"],
        "client_port": event["data"]["client_port"],
        "protocol": "UDP",
        "server": "ns1",
        "server_ip": "127.0.0.1",
        "zone": "sub.z.example",
    }


async def test_no_query_is_lost_by_fast_rotation(tmp_path: Path) -> None:
    """A named that rotates at 50 KB, a dozen times a second, and keeps three files: every query that it wrote is
    published once and in order, and nothing is said to be lost.
    """
    names = [f"q{number}.z.example" for number in range(15_000)]
    publisher, stop = Memory(), asyncio.Event()
    options = {"server": "ns1", "from_start": True, "zones": ZONES, "state_dir": tmp_path / "state"}
    with Named(tmp_path, rotation="versions 3 size 50k", whole=True) as named, capture_logs() as logs:
        agent = asyncio.create_task(run_bind9(named.log, publisher, stop=stop, **options))  # type: ignore[arg-type]
        await asyncio.to_thread(bombard, named.port, names, 6_000)
        await asyncio.to_thread(named.dig, "last.z.example")
        await until(lambda: publisher.names()[-1:] == ["last.z.example"])
        stop.set()
        await agent
        written = read_queries(named.whole)
    assert set(names) <= set(written)
    assert publisher.names() == written
    assert len(set(publisher.ids)) == len(written)
    assert [entry for entry in logs if entry["log_level"] != "info"] == []
    assert logs[-1]["passed_over"] == 0


async def test_no_query_is_lost_by_kills_of_the_agent_and_fast_rotation(tmp_path: Path) -> None:
    """The same, while the agent's task is ended amid its work and begun anew again and again: by their ids all events
    are there once.
    """
    names = [f"q{number}.z.example" for number in range(6_000)]
    publisher, stop = Memory(), asyncio.Event()
    options = {"server": "ns1", "from_start": True, "zones": ZONES, "state_dir": tmp_path / "state"}
    with Named(tmp_path, rotation="versions 20 size 50k", whole=True) as named, capture_logs() as logs:
        asking = asyncio.create_task(asyncio.to_thread(bombard, named.port, names, 3_000))
        while not asking.done():
            agent = asyncio.create_task(run_bind9(named.log, publisher, stop=stop, **options))  # type: ignore[arg-type]
            await asyncio.wait({asking}, timeout=0.2)
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)
        await asyncio.to_thread(named.dig, "last.z.example")
        agent = asyncio.create_task(run_bind9(named.log, publisher, stop=stop, **options))  # type: ignore[arg-type]
        await until(lambda: publisher.names()[-1:] == ["last.z.example"])
        stop.set()
        await agent
        written = read_queries(named.whole)
    once = dict(zip(publisher.ids, publisher.names(), strict=True))
    assert list(once.values()) == written
    assert [entry for entry in logs if entry["log_level"] != "info"] == []


async def test_what_a_copy_holds_is_not_lost_by_its_truncation(tmp_path: Path) -> None:
    """A named under load whose log is copied and truncated: what any of the copies holds is published, once and in
    order; what was written between copy and truncation is, if it was read in time.
    """
    names = [f"q{number}.z.example" for number in range(12_000)]
    publisher, stop = Memory(), asyncio.Event()
    options = {"server": "ns1", "from_start": True, "zones": ZONES, "state_dir": tmp_path / "state"}
    with Named(tmp_path, whole=True) as named:
        agent = asyncio.create_task(run_bind9(named.log, publisher, stop=stop, **options))  # type: ignore[arg-type]
        asking = asyncio.create_task(asyncio.to_thread(bombard, named.port, names, 4_000))
        for number in range(9, 0, -1):
            await asyncio.sleep(0.25)
            await asyncio.to_thread(copytruncate, named.log, str(number))
        await asking
        await asyncio.to_thread(named.dig, "last.z.example")
        await until(lambda: publisher.names()[-1:] == ["last.z.example"])
        stop.set()
        await agent
        copies = [tmp_path / f"query.log.{number}" for number in range(9, 0, -1)]
        copied = [query for copy in (*copies, named.log) for query in read_queries(copy)]
        written = read_queries(named.whole)
    assert len(set(publisher.ids)) == len(publisher.ids)
    assert set(copied) <= set(publisher.names())
    places = {name: place for place, name in enumerate(written)}
    order = [places[name] for name in publisher.names() if name != READY]
    assert order == sorted(order)


def read_queries(log: Path) -> list[str]:
    return [query.query_domain for line in log.read_text().splitlines() if (query := parse_query(line, None))]


def bombard(port: int, names: list[str], per_s: float) -> None:
    """Asks for each name once, over UDP, at a bounded rate. So few questions wait for their answers at a time that none
    is dropped on the way, however slow the machine is.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", port))
        udp.settimeout(60)
        waiting, began = 0, time.monotonic()
        for asked, name in enumerate(names, start=1):
            labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
            udp.send(struct.pack(">6H", asked % 65536, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1")
            waiting += 1
            while waiting and (waiting >= MOST_WAITING or select.select([udp], [], [], 0)[0]):
                udp.recv(4096)
                waiting -= 1
            if (ahead := began + asked / per_s - time.monotonic()) > 0.002:
                time.sleep(ahead)
        for _ in range(waiting):
            udp.recv(4096)
