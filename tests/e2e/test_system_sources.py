"""The sources beside BIND 9, as processes with a real system: forwarders, and the host."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from solowire.sdk.client import Client
from tests.support.forwarders import ProbedNamed
from tests.support.system import READY_SECONDS, System, end, run


async def find(client: Client, type: str, **wanted: Any) -> dict[str, Any]:
    """The data of the next event of a type that has these fields."""
    async for event in client:
        if event.type == type and wanted.items() <= event.data.items():
            return event.data
    raise AssertionError(type)


async def test_forwarders_are_told_as_they_are(system: System, tmp_path: Path) -> None:
    """A forwarder that stops is told within seconds, from the command line to a client."""
    with ProbedNamed(tmp_path / "named") as named:
        arguments = ("--forwarder", named.address, "--server", "ns7", "--url", system.url)
        source = system.spawn("source", "forwarders", *arguments)
        try:
            token = system.token("ann", "admin")
            async with (
                asyncio.timeout(READY_SECONDS),
                Client(system.url, token, subscriptions=["health.*"], filter={"server": ["ns7"]}) as client,
            ):
                healthy = await find(client, "forwarder_health", status="healthy")
                assert (healthy["forwarder_id"], healthy["server"]) == (named.address, "ns7")
                named.pause()
                change = await find(client, "forwarder_status_change", new_status="unhealthy")
                assert change["old_status"] == "healthy"
                assert "no answer" in change["reason"]
        finally:
            assert end(source, signal.SIGTERM) == 0


async def test_the_host_is_measured(system: System) -> None:
    """Its load arrives, under its name."""
    source = system.spawn("source", "host", "--interval-s", "1", "--server", "ns8", "--url", system.url)
    try:
        token = system.token("bob", "admin")
        async with (
            asyncio.timeout(READY_SECONDS),
            Client(system.url, token, subscriptions=["system_metrics"], filter={"host": ["ns8"]}) as client,
        ):
            metrics = await find(client, "system_metrics", host="ns8")
            assert 0 <= metrics["cpu_usage"] <= 100
    finally:
        assert end(source, signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("forwarders",), "--forwarder 192.0.2.1"),
        (("forwarders", "--forwarder", "dns.example"), "'dns.example' is no address"),
        (("forwarders", "--forwarder", "::1", "--type", "NOPE"), "NOPE"),
        (("forwarders", "--forwarder", ""), "must not be empty"),
        (("host", "--interval-s", "0"), "--interval-s: "),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], fault: str, system: System, tmp_path: Path) -> None:
    """With exit status 2, and the way out."""
    ended = run("source", *arguments, "--data-dir", str(system.data_dir), "--url", system.url, cwd=tmp_path)
    assert ended.returncode == 2
    assert fault in ended.stderr
    assert "Traceback" not in ended.stderr
