"""The way of events that are JSON already: in order, as far as there is room, and none in silence."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from solowire.sources.agent import event_outlet
from solowire.sources.agent.event_outlet import EventOutlet
from tests.support.publish_gateway import Gateway, problem


def make_events(first: int, count: int) -> list[bytes]:
    return [
        msgspec.json.encode({"type": "dns_query_log", "id": f"q{number}", "data": {"server": "ns1"}})
        for number in range(first, first + count)
    ]


async def test_what_has_room_is_published_in_order_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_outlet, "TELEMETRY_BUFFER_EVENTS", 5)
    async with Gateway().running() as gateway, EventOutlet(gateway.url, "token", server="ns1") as outlet:
        gateway.open.clear()
        assert outlet.offer_many(make_events(0, 3)) == 3
        assert outlet.offer_many(make_events(3, 4)) == 2
        assert outlet.offer_many(make_events(7, 2)) == 0
        assert outlet.dropped_count == 4
        gateway.open.set()
        await outlet.drain()
        assert [event["id"] for event in gateway.log] == [f"q{number}" for number in range(5)]
        assert outlet.offer_many(make_events(9, 1)) == 1
        await outlet.drain()
    assert [event["id"] for event in gateway.log] == ["q0", "q1", "q2", "q3", "q4", "q9"]


async def test_one_that_the_gateway_does_not_take_is_said_and_keeps_no_other() -> None:
    with capture_logs() as logs:
        async with Gateway().running() as gateway, EventOutlet(gateway.url, "token", server="ns1") as outlet:
            gateway.script.append(problem(400, errors=[{"index": 1, "path": "$.data", "message": "no"}]))
            outlet.offer_many(make_events(0, 3))
            await asyncio.wait_for(outlet.drain(), 30)
    assert [event["id"] for event in gateway.log] == ["q0", "q2"]
    assert [entry["id"] for entry in logs if entry["event"] == "event_rejected"] == ["q1"]
