"""The statistics channel: figures of the time between two answers, and what is no answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError, StatisticsError
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9 import statistics_channel
from solowire.sources.bind9.server.bind_state import BindState
from solowire.sources.bind9.server.server_statistics import (
    is_restarted,
    make_measured,
    make_query_figures,
    parse_memory,
    parse_server,
)
from solowire.sources.bind9.server.statistics_part import StatisticsPart
from solowire.sources.bind9.statistics_channel import StatisticsChannel
from tests.support.guarded_named import GuardedNamed
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet

ANSWER: dict[str, Any] = {
    "boot-time": "2026-12-01T11:00:00.000Z",
    "config-time": "2026-12-01T11:30:00.000Z",
    "current-time": "2026-12-01T12:00:00.000Z",
    "version": "9.18.49",
    "opcodes": {"QUERY": 100, "UPDATE": 3},
    "rcodes": {"NOERROR": 80, "NXDOMAIN": 20, "SERVFAIL": 0},
    "qtypes": {"A": 90, "AXFR": 2},
    "nsstats": {"QryDropped": 1, "RPZRewrites": 2},
    "dnstapstats": {"DNSTAPsuccess": 5, "DNSTAPdropped": 7},
    "views": {
        "_default": {"resolver": {"cachestats": {"QueryHits": 10, "QueryMisses": 10, "CacheNodes": 4}}},
        "inner": {"resolver": {"cachestats": {"QueryHits": 10, "QueryMisses": 10, "CacheNodes": 3}}},
        "_bind": {"resolver": {"cachestats": {"QueryHits": 1000, "QueryMisses": 0, "CacheNodes": 9}}},
    },
}


def answer(**changed: Any) -> bytes:
    return json.dumps(ANSWER | {name.replace("_", "-"): value for name, value in changed.items()}).encode()


def test_the_figures_between_two_answers() -> None:
    """Rates and counts are of the time between; what did not happen is left out."""
    before = parse_server(answer())
    views = {
        "x": {"resolver": {"cachestats": {"QueryHits": 50, "QueryMisses": 30, "TreeMemInUse": 5, "HeapMemInUse": 6}}}
    }
    after = parse_server(
        answer(
            opcodes={"QUERY": 150},
            rcodes={"NOERROR": 110, "NXDOMAIN": 20, "REFUSED": 4},
            qtypes={"A": 130, "AXFR": 2, "TXT": 10},
            nsstats={"QryDropped": 2, "RPZRewrites": 7, "RecursClients": 3},
            views=views,
        )
    )
    figures = make_query_figures(before, after, 10.0)
    CATALOG.validate_data(CATALOG["dns_query_stats"], figures)
    assert figures == {
        "queries_per_second": 5.0,
        "window_s": 10.0,
        "total_queries": 50,
        "query_types": {"A": 40, "TXT": 10},
        "rcodes": {"NOERROR": 30, "REFUSED": 4},
        "dropped": 1,
        "blocked_queries": 5,
        "recursive_clients": 3,
    }
    measured = make_measured(before, after, 77)
    CATALOG.validate_data(CATALOG["bind_status"], {"status": "running"} | measured)
    assert measured == {
        "boot_time": "2026-12-01T11:00:00.000Z",
        "config_time": "2026-12-01T11:30:00.000Z",
        "uptime_s": 3600.0,
        "memory_bytes": 77,
        "hit_ratio": 75.0,
        "cache_entries": 0,
        "cache_bytes": 11,
    }
    assert make_measured(None, before, None)["cache_entries"] == 7


def test_a_restart_is_known() -> None:
    """By its start, and by counters that go back."""
    before = parse_server(answer())
    assert not is_restarted(before, parse_server(answer(opcodes={"QUERY": 100})))
    assert is_restarted(before, parse_server(answer(opcodes={"QUERY": 99})))
    assert is_restarted(before, parse_server(answer(boot_time="2026-12-01T11:00:01.000Z")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*ANSWER, "x"]), inner, max_size=6),
    max_leaves=20,
)


@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())), st.booleans())
def test_any_answer_is_figures_or_an_error(body: bytes, is_first: bool) -> None:
    """The documented error, and figures that the catalogue accepts."""
    with suppress(StatisticsError):
        parse_memory(body)
    try:
        found = parse_server(body)
    except StatisticsError:
        return
    known = parse_server(answer())
    pair = (found, known) if is_first else (known, found)
    if not is_restarted(*pair):
        CATALOG.validate_data(CATALOG["dns_query_stats"], make_query_figures(*pair, 10.0))
    measured = make_measured(None if is_first else known, found, None)
    CATALOG.validate_data(CATALOG["bind_status"], {"status": "running"} | measured)
    msgspec.json.encode(measured)


@asynccontextmanager
async def asking(url: str, **given: Any) -> AsyncIterator[tuple[RecordedOutlet, PartStatus]]:
    outlet, status, stop = RecordedOutlet(), PartStatus("statistics"), asyncio.Event()
    options = {"interval_s": 0.2, "zones_interval_s": 0.2, "counts_queries": True} | given
    part = StatisticsPart(StatisticsChannel(url), outlet, BindState("ns1"), **options)
    task = asyncio.create_task(part.run(status, stop))
    try:
        yield outlet, status
    finally:
        stop.set()
        await task


async def test_a_real_server(tmp_path: Path) -> None:
    """Its queries, memory, zones and serials; its stop at once, and its start again."""
    with GuardedNamed(tmp_path) as named, capture_logs() as logs:
        async with asking(named.statistics_url) as (outlet, status):
            await until(lambda: len(outlet.of_type("dns_query_stats")) >= 1)
            for _ in range(5):
                await asyncio.to_thread(named.dig, "www.z.example")
            await asyncio.to_thread(named.update, "update add new.z.example 60 A 192.0.2.3")
            await until(lambda: outlet.of_type("bind_status")[-1].get("serials", {}).get("z.example") == 2)
            await asyncio.to_thread(named.stop)
            await until(lambda: outlet.of_type("bind_status")[-1]["status"] == "stopped")
            await until(lambda: status.status == "waiting")
            named.start()
            await until(lambda: outlet.of_type("bind_status")[-1]["status"] == "running")
            await until(lambda: status.status == "running")
    states = outlet.of_type("bind_status")
    assert states[0]["version"].startswith("9.")
    assert states[0]["zones"] == 2
    assert states[0]["memory_bytes"] > 1_000_000
    assert "memory_bytes" not in next(state for state in states if state["status"] == "stopped")
    counted = [figures["query_types"].get("A", 0) for figures in outlet.of_type("dns_query_stats")]
    assert sum(counted) >= 5
    assert min(figures["queries_per_second"] for figures in outlet.of_type("dns_query_stats")) >= 0
    warned = [entry for entry in logs if entry["event"] == "statistics_unavailable"]
    assert len(warned) == 1
    assert "statistics-channels" in warned[0]["hint"]


async def test_what_has_no_room_counts_as_dropped(tmp_path: Path) -> None:
    """And not as published, which it is not: of figures of queries, too."""
    with GuardedNamed(tmp_path) as named:
        async with asking(named.statistics_url) as (outlet, status):
            outlet.room = 0
            await until(lambda: status.dropped_count >= 5)
            assert status.dropped_count > status.read_count
            assert status.published_count == 0


async def test_a_list_of_zones_that_cannot_be_had_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], set[str]]
) -> None:
    """The other figures are told without it."""

    async def fail(*_: object) -> None:
        raise StatisticsError("too long")

    monkeypatch.setattr(StatisticsChannel, "list_zones", fail)
    with GuardedNamed(tmp_path) as named:
        async with asking(named.statistics_url) as (outlet, status):
            await until(lambda: len(outlet.of_type("bind_status")) >= 1)
            assert status.status == "running"
    assert "statistics_zones_unavailable" in logged()


async def test_one_list_of_zones_is_enough_for_all_who_want_one(tmp_path: Path) -> None:
    """Who takes one that somebody else has asked for does not ask again; a new one is asked for by who wants that."""
    with GuardedNamed(tmp_path) as named:
        channel = StatisticsChannel(named.statistics_url)
        first = await channel.list_zones()
        assert {zone.zone for zone in first} == {"z.example", "rpz.malware"}
        assert await channel.list_zones(max_age_s=60.0) is first
        assert await channel.list_zones() is not first


@pytest.mark.parametrize("url", ["foo", "http://[::1", "ftp://127.0.0.1", "http://", "127.0.0.1:8053"])
def test_an_address_that_is_none(url: str) -> None:
    """Is refused at once, by the setting's name."""
    with pytest.raises(ConfigError, match=r"source\.statistics\.url"):
        StatisticsChannel(url)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n<xml/>", "can't be read"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "no figures"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 3000, "more than 2000 bytes"),
        (b"nonsense\r\n\r\n", "statistics channel"),
        (b"", "statistics channel"),
    ],
)
async def test_what_is_no_statistics_channel(body: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is said, with a bound on what is read of it, and the server's state is unknown."""
    monkeypatch.setattr(statistics_channel, "ANSWER_BYTES", 2000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, asking(f"http://127.0.0.1:{port}/json/v1/") as (outlet, status):
        await until(lambda: status.status == "waiting" and bool(outlet.events))
        assert status.reason is not None
        assert reason in status.reason
    [state] = outlet.of_type("bind_status")
    assert state["status"] == "unknown"
