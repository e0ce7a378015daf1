"""Real DNS queries, end to end: dig asks a real named, and the query is an event at a user of each shard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.system import ANSWER_SECONDS, Session, System, end
from tests.sources.named import Named, find

HELLO = {"subscriptions": ["dns_query_log"]}
ZONES = "z.example,sub.z.example"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    missing = [program for program in ("named", "dig") if find(program) is None]
    if missing and os.geteuid() != 0:
        pytest.skip(f"{missing} not installed: apt-get install bind9 bind9-dnsutils")
    assert not missing, "apt-get install bind9 bind9-dnsutils"
    with Named(tmp_path_factory.mktemp("named")) as named:
        yield named


@pytest.fixture(scope="module")
def agent(system: System, named: Named) -> Iterator[Path]:
    """`solowire source bind9`, following named's log; what it says on stderr is in the file."""
    output = system.output
    options = ["--query-log", str(named.log), "--server", "ns1", "--zones", ZONES, "--from-start", "--url", system.url]
    process = system.spawn("source", "bind9", *options)
    try:
        yield output
    finally:
        assert end(process) == 0


def until(condition: Callable[[], Any], what: str, seconds: float = ANSWER_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


async def queries(session: Session, *domains: str) -> list[dict[str, Any]]:
    """The events of these queries, in the order in which they arrive; others, such as named's first ones, pass by."""
    found: list[dict[str, Any]] = []
    while len(found) < len(domains):
        found += [e for e in (await session.hear("events"))["events"] if e["data"]["query_domain"] in domains]
    assert {event["type"] for event in found} == {"dns_query_log"}
    return found


async def test_queries_arrive_at_a_user_of_each_shard(system: System, named: Named, agent: Path) -> None:
    """What dig asks is seen by both users with client, domain and type, once, with the zone that it belongs to."""
    async with (
        system.session(system.token(system.user_on(0, "dns")), HELLO) as first,
        system.session(system.token(system.user_on(1, "dns")), HELLO) as second,
    ):
        asked = {f"q{n}.z.example": kind for n, kind in enumerate(["A", "AAAA", "MX", "TXT"])}
        for name, kind in asked.items():
            named.dig(name, kind)
        here, there = await queries(first, *asked), await queries(second, *asked)
    assert [event["offset"] for event in here] == [event["offset"] for event in there]
    assert {e["data"]["query_domain"]: e["data"]["query_type"] for e in here} == asked
    for event in here:
        assert event["data"]["client_ip"] == "127.0.0.1"
        assert event["data"]["zone"] == "z.example"
        assert event["source"] == "ns1"
        assert abs(time.time() - _unix(event["timestamp"])) < 60


async def test_a_filter_lets_through_one_zone(system: System, named: Named, agent: Path) -> None:
    """A user who filters for a zone gets the queries of that zone alone."""
    hello = HELLO | {"filter": {"zone": ["sub.z.example"]}}
    async with system.session(system.token("zones"), hello) as session:
        named.dig("other.z.example")
        named.dig("mine.sub.z.example")
        events = (await session.hear("events"))["events"]
    assert [event["data"]["query_domain"] for event in events] == ["mine.sub.z.example"]


async def test_queries_arrive_across_a_rotation(system: System, named: Named, agent: Path) -> None:
    """When logrotate renames the log and named opens a new one, what was asked before and after arrives, once each."""
    async with (
        system.session(system.token(system.user_on(0, "turn")), HELLO) as first,
        system.session(system.token(system.user_on(1, "turn")), HELLO) as second,
    ):
        named.dig("before.z.example")
        named.log.rename(named.log.with_suffix(".log.1"))
        named.dig("between.z.example")  # named still writes to the renamed file
        named.reopen()
        names = ["before.z.example", "between.z.example", "after.z.example", "last.z.example"]
        # A reload takes a moment: until the new file has its first query, dig asks again.
        until(lambda: named.dig("after.z.example") and "after.z.example" in named.log.read_text(), "it writes anew")
        named.dig("last.z.example")
        for session in (first, second):
            seen: list[str] = []
            while "last.z.example" not in seen:
                events = (await session.hear("events"))["events"]
                seen += [e["data"]["query_domain"] for e in events if e["data"]["query_domain"] in names]
            assert list(dict.fromkeys(seen)) == names
            assert [seen.count(name) for name in names if name != "after.z.example"] == [1, 1, 1]


async def test_an_agent_without_a_log_waits_for_it(system: System, tmp_path: Path) -> None:
    """The agent may be started before named has written anything."""
    log = tmp_path / "later.log"
    options = ["--query-log", str(log), "--server", "ns2", "--from-start", "--url", system.url]
    process = system.spawn("source", "bind9", *options)
    try:
        async with system.session(system.token("waiting"), HELLO) as session:
            client = "client @0x7f 192.0.2.9#4242 (late.example)"
            log.write_text(f"23-Nov-2026 11:00:00.123 {client}: query: late.example IN A + (127.0.0.1)\n")
            [event] = await queries(session, "late.example")
        assert (event["data"]["client_ip"], event["source"]) == ("192.0.2.9", "ns2")
    finally:
        assert end(process) == 0


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
