"""Alerts of a running system: administrators hear of trouble and of its end, and the shard logs why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.system import Session, System, refusal, running

SETTINGS = {
    "ALERTS__RAISE_AFTER_S": 0.5,
    "ALERTS__CLEAR_AFTER_S": 1,
    "ALERTS__CONNECTION_LAG_S": 1,
    "ALERTS__REFUSED_PER_S": 5,
    "ALERTS__LOOP_LAG_S": 60,
    "ALERTS__LAG_S": 60,
    "LISTEN__SEND_BUFFER_BYTES": 4096,
}
BIG = {"type": "custom.big", "data": {"text": "x" * 30_000}}
SECONDS = 60.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("alerts") / "data", shards=2, settings=SETTINGS) as started:
        yield started


async def heard(admin: Session, metric: str, state: str, meanwhile: Callable[[], Any] | None = None) -> dict[str, Any]:
    """The next alert on `metric` that begins or is over; `meanwhile` is done again and again until it comes."""

    async def again() -> None:
        while meanwhile is not None:
            await meanwhile()

    doing = asyncio.create_task(again())
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                for event in (await admin.hear("events", SECONDS))["events"]:
                    data: dict[str, Any] = event["data"]
                    if (data["metric"], data["details"]["state"]) == (metric, state):
                        return data
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


def logged(system: System, event: str) -> list[dict[str, Any]]:
    lines = [line for line in system.said() if line.startswith("{")]
    return [found for line in lines if (found := json.loads(line))["event"] == event]


async def test_refused_connections_are_an_alert_with_an_end(system: System) -> None:
    """One alert when too many are refused, with the number; one when it is over; both in the log; none to others."""
    shard = f"ws://127.0.0.1:{system.port + 1}/ws?ticket=no.such.ticket"
    async with (
        system.session(system.token("root"), {"subscriptions": ["system_alert"]}) as admin,
        system.session(system.token("ann", "operator"), {"subscriptions": ["system_alert"]}) as other,
        system.http() as http,
    ):
        assert [d["type"] for d in other.welcome["denied"]] == ["system_alert"]

        async def knock() -> None:
            await asyncio.gather(refusal(shard), *(http.post("/v1/connect") for _ in range(20)))

        began = await heard(admin, "connections_rejected_per_second", "firing", knock)
        over = await heard(admin, "connections_rejected_per_second", "resolved")
    assert (began["severity"], over["severity"]) == ("warning", "info")
    assert began["value"] >= began["threshold"] == 5
    assert over["value"] < 4
    assert "connections per second are rejected" in began["message"]
    [line] = [x for x in logged(system, "alert_fired") if x["metric"] == "connections_rejected_per_second"]
    assert line["value"] == began["value"]
    [line] = [x for x in logged(system, "alert_resolved") if x["metric"] == "connections_rejected_per_second"]
    assert line["fired_for_s"] >= 1


async def test_a_connection_that_reads_nothing_is_an_alert_and_is_diagnosed(system: System) -> None:
    """The alert names the shard; the shard logs the feed, the connection and the publisher; reading on ends it."""
    user = system.user_on(1, "sleepy")
    async with (
        system.session(system.token("root"), {"subscriptions": ["system_alert"]}) as admin,
        system.session(system.token(user), {"subscriptions": ["custom.big"]}, max_queue=1) as sleepy,
    ):
        for _ in range(3):
            await system.publish(*[BIG] * 100, token=system.token("loud", "publisher"))
        began = await heard(admin, "connection_lag_seconds", "firing")
        async with asyncio.timeout(SECONDS):
            while not logged(system, "diagnosis"):
                await asyncio.sleep(0.05)
        reading = asyncio.create_task(sleepy.events(300, SECONDS))
        over = await heard(admin, "connection_lag_seconds", "resolved")
        assert len(await reading) == 300
    assert (began["component"], over["component"]) == ("shard 1", "shard 1")
    assert began["value"] >= began["threshold"] == 1
    [diagnosis] = logged(system, "diagnosis")
    assert (diagnosis["reason"], diagnosis["shard"]) == ("connection_lag_seconds", 1)
    assert [c["user"] for c in diagnosis["slowest_connections"]] == [user]
    # Of 300; where publishing takes long, not all have come when it is written.
    assert 0 < diagnosis["top_publishers"]["loud"] <= 300
    assert diagnosis["top_types"]["custom.big"] == diagnosis["top_publishers"]["loud"]
    assert diagnosis["largest_frames"][0]["types"] == ["custom.big"]
    assert diagnosis["largest_frames"][0]["bytes"] > 30_000
    assert [f["types"] for f in diagnosis["slowest_feeds"]] == [["custom.big"]]


QUERY = {"type": "dns_query_log", "data": {"client_ip": "192.0.2.1", "query_domain": "a.example", "query_type": "A"}}


async def test_every_process_is_watched_by_the_thresholds_of_the_settings(tmp_path: Path) -> None:
    """Each number that a real process says of itself is held against its setting; none has to be bad for long."""
    settings = {
        "ALERTS__RAISE_AFTER_S": 0,
        "ALERTS__CLEAR_AFTER_S": 0,
        "ALERTS__LAG_S": 0.4,
        "ALERTS__LOOP_LAG_S": 1e-6,
        "ALERTS__MEMORY_BYTES": 2**20,
        "ALERTS__LEASE_USE_PERCENT": 1,
        "LIMITS__MAX_CONNECTIONS": 10,
        "SHARD__AGGREGATION__EVENTS_PER_S": 1,
    }
    with running(tmp_path / "data", shards=1, settings=settings) as system:

        def alerts(event: str, metric: str) -> dict[str, Any]:
            """The alerts on this, by the kind of process."""
            found = [line for line in logged(system, event) if line["metric"] == metric]
            return {line["component"].split()[0]: line for line in found}

        def of_all(metric: str) -> bool:
            return set(alerts("alert_fired", metric)) == {"shard", "gateway", "router"}

        system.wait_until(lambda: of_all("memory_bytes") and of_all("event_loop_lag_seconds"), "each tells of itself")
        assert {line["threshold"] for line in alerts("alert_fired", "memory_bytes").values()} == {2**20}
        assert {line["threshold"] for line in alerts("alert_fired", "event_loop_lag_seconds").values()} == {1e-6}

        async with system.session(system.token("ann"), {"subscriptions": ["dns_query_log"]}):
            while not alerts("alert_fired", "aggregating_feeds"):
                await system.publish(*[QUERY] * 20)
            system.wait_until(lambda: bool(alerts("alert_fired", "lease_use_percent")), "its slot is one of ten")
        assert alerts("alert_fired", "aggregating_feeds")["shard"]["about"] == "dns_query_log"
        assert alerts("alert_fired", "lease_use_percent")["shard"]["threshold"] == 1

        # Stopped for too long it is dead, and lags no more: on a slow machine that may come first.
        for _ in range(10):
            if alerts("alert_fired", "shard_lag_seconds"):
                break
            system.wait_until(system._all_ready, "the shard is back")
            shard = system.pid_of("shard", "--index", "0")
            os.kill(shard, signal.SIGSTOP)
            try:
                await system.publish(QUERY)
                with suppress(AssertionError):
                    system.wait_until(
                        lambda: bool(alerts("alert_fired", "shard_lag_seconds")), "what is behind grows old", 5
                    )
            finally:
                os.kill(shard, signal.SIGCONT)
        assert alerts("alert_fired", "shard_lag_seconds")["shard"]["threshold"] == 0.4
        system.wait_until(lambda: bool(alerts("alert_resolved", "shard_lag_seconds")), "it is over")
        assert (
            alerts("alert_resolved", "shard_lag_seconds")["shard"]["fired_for_s"] < 10
        )  # as long as it takes by default
