"""The real `named`, telling of real queries: what becomes of them is what its query log says of the same queries."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from solowire.runtime.settings.source_settings import ForwardersSettings
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.traffic_figures import TrafficObserver
from solowire.sources.bind9.dnstap import dnstap_part
from solowire.sources.bind9.dnstap.dnstap_part import DnstapPart
from solowire.sources.bind9.queries.query_log import make_payload, parse_query
from solowire.sources.forwarders.forwarders_part import ForwardersPart
from tests.support.named import READY, Named
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet


@contextlib.asynccontextmanager
async def listening(
    path: Path, outlet: RecordedOutlet, traffic_observers: Sequence[TrafficObserver] = ()
) -> AsyncIterator[PartStatus]:
    """A part at work; at its end it publishes what still waits."""
    status, stop = PartStatus("dnstap"), asyncio.Event()
    part = DnstapPart(path, outlet, zones=["z.example"], stats_interval_s=0, traffic_observers=traffic_observers)
    task = asyncio.create_task(part.run(status, stop))
    await until(path.exists)
    try:
        yield status
    finally:
        stop.set()
        await task


def queries_of(outlet: RecordedOutlet) -> list[dict[str, Any]]:
    """In the order of their coming, but for those by which `Named` waits until it answers."""
    found = [event for event in outlet.events if event["type"] == "dns_query_log"]
    return [event for event in found if event["data"]["query_domain"] != READY]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dnstap.sock"


async def test_events_say_what_the_query_log_says_and_what_became_of_the_query(tmp_path: Path, path: Path) -> None:
    outlet = RecordedOutlet()
    asked = [
        ("mail.z.example", "MX", "+dnssec", "+cdflag"),
        ("WWW.Z.Example", "TXT", "+tcp"),
        ("elsewhere.test", "A", "+norecurse", "+noedns"),
        (r"a\.b\032c\$\@\;\"\(.z.example", "TYPE65280", "+nocookie"),
        (".", "NS"),
        ("z.example", "ANY", "+subnet=192.0.2.0/24", "+noall"),
        ("version.bind", "TXT", "+class=CH"),
    ]
    async with listening(path, outlet) as status:
        with Named(tmp_path, dnstap=path, ipv6=True) as named:
            await until(lambda: status.status == "running")
            for name, type, *options in asked:
                await asyncio.to_thread(named.dig, name, type, *options)
            await asyncio.to_thread(named.dig, "six.z.example", "AAAA", address="::1")
            await until(lambda: len(queries_of(outlet)) == len(asked) + 1)
            log = named.log.read_text()
    told = [query for line in log.splitlines() if (query := parse_query(line, None)) is not None]
    expected = [query for query in told if query.query_domain != READY]
    events = queries_of(outlet)
    assert len(events) == len(expected)
    for event, query in zip(events, expected, strict=True):
        data = event["data"]
        said = make_payload(query, frozenset({"z.example"}))
        assert {name: data.get(name) for name in said} == said
        assert data["client_port"] == query.client_port
        assert data["protocol"] == ("TCP" if "T" in query.flags else "UDP")
        assert data["duration_ms"] >= 0
        assert query.timestamp is not None
        assert abs(read_seconds(event["timestamp"]) - read_seconds(query.timestamp)) < 1
    rcodes = {event["data"]["query_domain"]: event["data"]["rcode"] for event in events}
    assert (rcodes["mail.z.example"], rcodes["WWW.Z.Example"], rcodes["elsewhere.test"]) == (
        *("NXDOMAIN", "NOERROR", "REFUSED"),
    )


async def test_a_socket_that_is_removed_is_made_anew_while_named_goes_on_with_what_it_has(
    tmp_path: Path, path: Path
) -> None:
    outlet = RecordedOutlet()
    async with listening(path, outlet) as status:
        with Named(tmp_path, dnstap=path) as named:
            await until(lambda: status.status == "running")
            os.unlink(path)
            await asyncio.to_thread(named.dig, "one.z.example")
            await until(lambda: len(queries_of(outlet)) == 1)
            await until(path.exists)


async def test_named_comes_back_to_an_agent_that_begins_again(tmp_path: Path, path: Path) -> None:
    """It notices that the other end is gone by what it can't write, and tries again then."""
    outlet = RecordedOutlet()
    with Named(tmp_path, dnstap=path) as named:
        for number in range(2):
            async with listening(path, outlet):
                seen = len(queries_of(outlet))
                deadline = time.monotonic() + 30
                while len(queries_of(outlet)) == seen:
                    assert time.monotonic() < deadline, f"named did not come to agent {number}"
                    await asyncio.to_thread(named.dig, f"again{number}.z.example")


async def test_round_trips_to_a_forwarder_are_measured_by_real_queries(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnstap_part, "FORWARDERS_S", 0.5)
    outlet = RecordedOutlet()
    (tmp_path / "forwarder").mkdir()
    with Named(tmp_path / "forwarder") as forwarder:
        async with listening(path, outlet) as status:
            with Named(tmp_path, dnstap=path, forward_to=forwarder.port) as named:
                await until(lambda: status.status == "running")
                await asyncio.to_thread(named.dig, "nowhere.test")
                await until(lambda: bool(outlet.of_type("forwarder_health")))
                [query] = [event["data"] for event in queries_of(outlet)]
    health = outlet.of_type("forwarder_health")[0]
    assert (health["forwarder_id"], health["type"]) == (f"127.0.0.1#{forwarder.port}", "passive")
    assert health["rtt_ms"] >= 0
    assert (query["query_domain"], query["rcode"]) == ("nowhere.test", "SERVFAIL"), "the forwarder refuses it"


async def test_figures_of_a_forwarder_that_is_probed_are_told_by_who_probes_it(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event of the forwarder has the probes' figures and those of the real queries of a real named."""
    monkeypatch.setattr(dnstap_part, "FORWARDERS_S", 0.5)
    outlet = RecordedOutlet()
    (tmp_path / "forwarder").mkdir()
    status, stop = PartStatus("forwarders"), asyncio.Event()
    with Named(tmp_path / "forwarder") as forwarder:
        address = f"127.0.0.1#{forwarder.port}"
        settings = ForwardersSettings(addresses=[address], name="z.example", interval_s=1.0, probe_interval_s=0.2)
        probing = ForwardersPart(settings, outlet)
        task = asyncio.create_task(probing.run(status, stop))
        async with listening(path, outlet, [probing.note_traffic]) as tapping:
            with Named(tmp_path, dnstap=path, forward_to=forwarder.port) as named:
                await until(lambda: tapping.status == "running" and status.published_count > 0)
                await asyncio.to_thread(named.dig, "nowhere.test")
                await until(lambda: any("passive" in told for told in outlet.of_type("forwarder_health")))
        stop.set()
        await task
    assert {told["forwarder_id"] for told in outlet.of_type("forwarder_health")} == {address}
    assert {event["key"] for event in outlet.events if event["type"] == "forwarder_health"} == {f"ns1 {address}"}
    health = outlet.of_type("forwarder_health")[-1]
    assert (health["passive"]["queries"], health["passive"]["loss"]) == (1, 0.0)
    assert health["probes"] > 1


def read_seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
