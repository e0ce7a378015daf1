"""The probing of forwarders: real name servers that answer, stop, come back, refuse and resolve nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.runtime.settings.source_settings import ForwardersSettings
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.traffic_figures import TrafficFigures
from solowire.sources.forwarders import forwarders_part
from solowire.sources.forwarders.forwarders_part import ForwardersPart
from solowire.sources.forwarders.named_forwarders import NamedForwarders
from tests.support.forwarders import ProbedNamed
from tests.support.named_process import free_port
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet

QUICK: dict[str, Any] = {"interval_s": 1.0, "probe_interval_s": 0.1, "timeout_s": 1.0}


@asynccontextmanager
async def probing(
    outlet: RecordedOutlet, *addresses: str, **given: Any
) -> AsyncIterator[tuple[ForwardersPart, PartStatus]]:
    """The part at work; what it published is judged at the end as the gateway does."""
    part = ForwardersPart(ForwardersSettings(addresses=list(addresses), **{**QUICK, **given}), outlet)
    status, stop = PartStatus("forwarders"), asyncio.Event()
    running = asyncio.create_task(part.run(status, stop))
    try:
        yield part, status
    finally:
        stop.set()
        await asyncio.wait_for(running, 30)
    for event in outlet.events:
        CATALOG.validate_data(CATALOG[event["type"]], event["data"])


def newest(outlet: RecordedOutlet, address: str) -> dict[str, Any]:
    """The last forwarder_health of one forwarder."""
    found = [data for data in outlet.of_type("forwarder_health") if data["forwarder_id"] == address]
    return found[-1] if found else {"status": None}


def changes(outlet: RecordedOutlet) -> list[tuple[str, str]]:
    return [(data["old_status"], data["new_status"]) for data in outlet.of_type("forwarder_status_change")]


async def test_a_server_that_stops_and_comes_back(tmp_path: Path, logged: Callable[[], set[str]]) -> None:
    """It is healthy with round trips, unhealthy soon after it stops, and healthy again by itself."""
    outlet = RecordedOutlet()
    with ProbedNamed(tmp_path / "a") as named:
        async with probing(outlet, named.address) as (_, status):
            await until(lambda: newest(outlet, named.address).get("probes", 0) >= 10)
            health = newest(outlet, named.address)
            assert (health["status"], health["loss"], health["servfail_ratio"]) == ("healthy", 0.0, 0.0)
            assert 0 < health["rtt_p50_ms"] <= health["rtt_p95_ms"]
            assert (status.status, changes(outlet)) == ("running", [])
            named.pause()
            await until(lambda: changes(outlet) == [("healthy", "unhealthy")])
            assert newest(outlet, named.address)["status"] == "unhealthy"
            assert newest(outlet, named.address)["error"] == "no answer within 1 s"
            named.go_on()
            await until(lambda: changes(outlet) == [("healthy", "unhealthy"), ("unhealthy", "healthy")])
            assert "last_changed" in newest(outlet, named.address)
    assert "forwarder_status_changed" in logged()
    lanes = {event["type"]: event["lane"] for event in outlet.events}
    assert lanes["forwarder_status_change"] == "changes"
    assert lanes["forwarder_health"] == lanes["health_update"] == "telemetry"
    assert {event["key"] for event in outlet.events if event["type"] == "forwarder_health"} == {f"ns1 {named.address}"}


async def test_several_servers_side_by_side(tmp_path: Path) -> None:
    """One answers, one is not there, one refuses and one gets SERVFAIL: each is told as it is, and so is the sum."""
    outlet = RecordedOutlet()
    gone = f"127.0.0.1#{free_port()}"
    with (
        ProbedNamed(tmp_path / "good") as good,
        ProbedNamed(tmp_path / "refuses", "refuses") as refuses,
        ProbedNamed(tmp_path / "servfail", "servfail") as servfail,
    ):
        addresses = [good.address, gone, refuses.address, servfail.address]
        async with probing(outlet, *addresses, timeout_s=5.0):
            wanted = ["healthy", "unhealthy", "unhealthy", "unhealthy"]
            await until(lambda: [newest(outlet, each)["status"] for each in addresses] == wanted)
            await until(lambda: outlet.of_type("health_update")[-1]["unhealthy_forwarders"] == 3)
    assert newest(outlet, refuses.address)["error"] == "it answers REFUSED"
    assert newest(outlet, servfail.address)["error"] == "it answers SERVFAIL"
    assert newest(outlet, servfail.address)["servfail_ratio"] == 100.0
    summary = outlet.of_type("health_update")[-1]
    assert (summary["total_forwarders"], summary["healthy_forwarders"]) == (4, 1)
    assert [detail["status"] for detail in summary["forwarder_details"]] == ["unhealthy"] * 3 + ["healthy"]
    assert sorted(data["new_status"] for data in outlet.of_type("forwarder_status_change")) == ["unhealthy"] * 3


async def test_forwarders_of_a_configuration_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read anew: one that is added is probed, one that is removed is not; a fault in it changes nothing."""
    monkeypatch.setattr(forwarders_part, "REREAD_S", 0.2)
    outlet = RecordedOutlet()
    conf = tmp_path / "named.conf"
    with ProbedNamed(tmp_path / "a") as first, ProbedNamed(tmp_path / "b") as second, capture_logs() as logs:
        async with probing(outlet, named_conf=conf) as (_, status):
            await until(lambda: status.status == "waiting")
            assert str(conf) in str(status.reason)
            conf.write_text(f"options {{ forwarders port {first.port} {{ 127.0.0.1; }}; }};")
            await until(lambda: newest(outlet, first.address)["status"] == "healthy")
            assert status.status == "running"
            await until(lambda: status.read_count > 0 and status.published_count >= 2)
            conf.write_text("options { forwarders { ")
            await until(lambda: status.status == "waiting")
            probes = len(outlet.of_type("forwarder_health"))
            await until(lambda: len(outlet.of_type("forwarder_health")) > probes)
            zone = f'zone "corp.example" {{ type forward; forwarders port {second.port} {{ 127.0.0.1; }}; }};'
            conf.write_text(f'view "inside" {{ {zone} }};')
            await until(lambda: newest(outlet, second.address)["status"] == "healthy")
            await until(lambda: outlet.of_type("health_update")[-1]["total_forwarders"] == 1)
    assert (newest(outlet, second.address)["views"], newest(outlet, second.address)["zones"]) == (
        ["inside"],
        ["corp.example"],
    )
    assert {"forwarder_list_unavailable", "forwarder_removed"} <= {entry["event"] for entry in logs}


async def test_forwarders_that_cannot_be_probed_are_said(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], set[str]]
) -> None:
    """Those over TLS, of which this machine's named may know nothing: they are left out by name."""

    async def read(_: Path) -> NamedForwarders:
        return NamedForwarders([], ["192.0.2.9 tls private"])

    monkeypatch.setattr(forwarders_part, "read_named_conf", read)
    async with probing(RecordedOutlet(), named_conf=Path("named.conf")) as (_, status):
        await until(lambda: status.status == "waiting")
    assert "forwarders_left_out" in logged()


async def test_probes_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many forwarders there are, `concurrency` probes are under way at most."""
    under_way, most = 0, 0
    outlet = RecordedOutlet()
    addresses = [f"127.0.0.{n}#9" for n in range(1, 101)]
    part = ForwardersPart(ForwardersSettings(addresses=addresses, concurrency=7, **QUICK), outlet)
    ask = part._probe.ask

    async def counted(*given: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0.01)
            return await ask(*given)
        finally:
            under_way -= 1

    monkeypatch.setattr(part._probe, "ask", counted)
    monkeypatch.setattr(part._probe, "_timeout", 0.01)
    status, stop = PartStatus("forwarders"), asyncio.Event()
    running = asyncio.create_task(part.run(status, stop))
    await until(lambda: len({data["forwarder_id"] for data in outlet.of_type("forwarder_health")}) == 100)
    stop.set()
    await running
    assert most == 7


@pytest.mark.parametrize("wrong", [{"name": "a..b"}, {"type": "NOPE"}, {"addresses": ["dns.example"]}])
def test_what_can_not_be_asked_is_refused(wrong: dict[str, Any]) -> None:
    """With an error that names it, before anything is probed."""
    with pytest.raises(ConfigError, match=r"a\.\.b|NOPE|dns\.example"):
        ForwardersPart(ForwardersSettings(**wrong), RecordedOutlet())


async def test_figures_of_real_queries_stand_beside_those_of_the_probes(tmp_path: Path) -> None:
    """In the same event, of the forwarders that are probed; the status follows from the probes."""
    outlet = RecordedOutlet()
    figures = TrafficFigures(queries=50, loss=40.0, servfail_ratio=0.0, rtt_ms=12.345)
    with ProbedNamed(tmp_path / "a") as named:
        async with probing(outlet, named.address) as (part, status):
            await until(lambda: newest(outlet, named.address)["status"] == "healthy")
            assert not part.note_traffic(ServerAddress("192.0.2.1", 53), figures)
            assert part.note_traffic(ServerAddress("127.0.0.1", named.port), figures)
            await until(lambda: "passive" in newest(outlet, named.address))
            health = newest(outlet, named.address)
            assert health["passive"] == {"queries": 50, "loss": 40.0, "servfail_ratio": 0.0, "rtt_ms": 12.35}
            assert (health["status"], health["loss"]) == ("healthy", 0.0)
            assert status.published_count == len(outlet.events)


async def test_what_another_part_had_no_room_for_is_not_its_loss(tmp_path: Path) -> None:
    """Its own drops are counted, and nobody else's of the same outlet."""
    outlet = RecordedOutlet(room=0)
    await outlet.offer("system_metrics", {})
    with ProbedNamed(tmp_path / "a") as named:
        async with probing(outlet, named.address) as (_, status):
            await until(lambda: status.dropped_count >= 3)
            assert status.dropped_count == outlet.dropped_count - 1
