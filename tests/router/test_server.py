"""What the router's process makes of its settings."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from solowire.router.leases.config import GroupQuota, LeaseConfig
from structlog.testing import capture_logs

from solowire.backplane import messages as backplane
from solowire.backplane.messages import VERSION, Join, ShardAddress
from solowire.backplane.zmq_transport import PeerSocket
from solowire.router import server
from solowire.router.log.journal import MemoryJournal
from solowire.router.router import Router
from solowire.router.server import make_lease_config
from solowire.runtime.data_directory import make_directories
from solowire.runtime.settings import Settings
from tests.e2e.system import ANSWER_SECONDS


def test_all_that_is_set_reaches_the_coordinator() -> None:
    """Each limit of the coordinator is what its setting says, also each of a group's: none keeps its default."""
    settings = Settings.model_validate(
        {
            "max_connections": 1000,
            "max_connections_per_shard": 300,
            "max_connections_per_address": 20,
            "groups": {"big": {"weight": 2.5, "reserved": 30, "limit": 400}, "admin": {"reserved": 7}},
            "lease_s": 50,
        }
    )
    limits = make_lease_config(settings)
    groups = {"big": GroupQuota(2.5, 30, 400), "admin": GroupQuota(1.0, 7, None)}
    assert limits == LeaseConfig(connections=1000, per_shard=300, per_address=20, groups=groups, lease_s=50)
    default = structs.asdict(LeaseConfig())
    assert [name for name, value in structs.asdict(limits).items() if value == default[name]] == []


def test_administrators_have_slots_of_their_own_by_default() -> None:
    """The coordinator is told of the reserve that the settings give to administrators when nobody says anything."""
    assert make_lease_config(Settings()).groups["admin"].reserved == 16


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(data_dir=tmp_path, journal="memory", port=0, audit="off")
    make_directories(made)
    return made


async def test_what_one_peer_says_in_a_flood_is_a_line_a_second_of_each_kind(settings: Settings) -> None:
    """Garbage, another version's hellos, a shard that others take the place of: each is counted, none fills the log."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    heard: list[bytes] = []
    with capture_logs() as lines:
        running = asyncio.ensure_future(server._main(settings, stop))
        spoke = PeerSocket(settings.backplane_address, b"stranger", heard.append)
        began = loop.time()

        def said(event: str) -> list[MutableMapping[str, Any]]:
            return [line for line in lines if line["event"] == event]

        async def say(*messages: bytes) -> None:
            for message in messages:
                while not spoke.send(message):
                    await asyncio.sleep(0.005)

        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await say(*[b"\xc1"] * 500)
                await say(*[backplane.encode(Join(VERSION + 1, f"boot-{n}")) for n in range(500)])
                for n in range(100):
                    boot = f"boot-{n}"
                    await say(backplane.encode(Join(VERSION, boot, ShardAddress(n % 2, "127.0.0.1", 1, boot))))
                for event, count in (("backplane_message_dropped", 500), ("version_mismatch", 500)):
                    while sum(line["count"] for line in said(event)) < count:
                        await asyncio.sleep(0.01)
                while sum(line["count"] for line in said("ring_changed")) < 2:
                    await asyncio.sleep(0.01)
        finally:
            spoke.close()
            stop.set()
            await running
    for event in ("backplane_message_dropped", "version_mismatch", "shard_superseded", "ring_changed"):
        assert len(said(event)) <= 2 + loop.time() - began, event


async def test_a_tick_that_fails_is_logged_and_not_the_last(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in what is done twice a second is an error in the log; the process goes on, and ends in order."""
    monkeypatch.setattr(server, "TICK_SECONDS", 0.01)
    stop, ticks = asyncio.Event(), 0

    def tick(router: Router, now: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            stop.set()
        raise ValueError("this tick is no good")

    monkeypatch.setattr(Router, "tick", tick)
    with capture_logs() as lines:
        async with asyncio.timeout(30):
            await server._main(settings, stop)
    failed = [(line["log_level"], line["exc_info"]) for line in lines if line["event"] == "tick_failed"]
    assert failed == [("error", True)] * ticks
    assert ticks == 4  # the last one when it closes


async def test_an_address_that_is_none_keeps_no_other_from_being_asked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shard has said of where it is may be nonsense: of another that is absent it is found out that it ended."""
    made = router_of(settings)
    ended: list[str] = []
    monkeypatch.setattr(made._router, "confirm_dead", ended.append)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    try:
        nonsense = [ShardAddress(0, "127.0.0.1", 2**40, "boot-0"), ShardAddress(1, "x" * 70, 80, "boot-1")]
        await made._probe_absent([*nonsense, ShardAddress(2, "127.0.0.1", port, "boot-2")])
    finally:
        made.close()
    assert ended == ["boot-2"]


async def test_answers_are_released_after_a_time_that_failed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while answers that were held back go out is not the end of that: the next dispatch goes on with it."""
    made = router_of(settings)
    releases, failed = 0, asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, __: failed.set())

    def release(now: float) -> bool:
        nonlocal releases
        releases += 1
        if releases == 2:
            raise ValueError("this time is no good")
        return releases == 1

    monkeypatch.setattr(made._router, "release_answers", release)
    try:
        made._dispatch()
        async with asyncio.timeout(30):
            await failed.wait()
        made._dispatch()
        assert releases == 3
    finally:
        made.close()


def router_of(settings: Settings) -> server._RouterServer:
    journal = MemoryJournal("epoch-1", max_events=10, max_bytes=10**6, window=60.0)
    return server._RouterServer(asyncio.get_running_loop(), journal, settings)
