"""What the router's process makes of its settings."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from solowire.backplane import messages as backplane
from solowire.backplane.curve_keys import MemberKeys, make_pair
from solowire.backplane.messages import VERSION, Join, ShardAddress
from solowire.backplane.zmq_transport import PeerSocket
from solowire.errors import ConfigError
from solowire.router import server
from solowire.router.log.journal import MemoryJournal
from solowire.router.router import Router
from solowire.runtime.data_directory import make_directories
from solowire.runtime.machine import identify_machine
from solowire.runtime.settings import Settings
from solowire.runtime.settings.curve_settings import CurveSettings
from solowire.runtime.settings.limits_settings import GroupQuota, LimitsSettings
from solowire.runtime.settings.process_settings import AuditSettings
from solowire.runtime.settings.router_settings import JournalSettings
from tests.support.system import ANSWER_SECONDS, free_ports


async def test_what_is_set_reaches_the_coordinator(tmp_path: Path) -> None:
    """It has the limits of the settings, with the reserve that these give to administrators when nobody says anything,
    and others when they are changed.
    """
    limits = LimitsSettings(max_connections=1000, groups={"big": GroupQuota(limit=400)}, lease_s=50)
    made = Settings(
        data_dir=tmp_path,
        port=0,
        limits=limits,
        journal=JournalSettings(storage="memory"),
        audit=AuditSettings(output="off"),
    )
    make_directories(made)
    router = router_of(made)
    try:
        coordinator = router._router.coordinator
        assert coordinator.limits == limits.with_administrators()
        assert coordinator.limits.groups["admin"].reserved == 16
        router.change_limits(LimitsSettings(max_connections=50))
        assert (coordinator.limits.max_connections, coordinator.limits.groups["admin"].reserved) == (50, 5)
    finally:
        router.close()


async def test_members_are_read_again(tmp_path: Path) -> None:
    """A key that was added to the file gets in after a reload; a file that is wrong changes nothing."""
    router, member = make_pair(), make_pair()
    file = tmp_path / "members"
    file.write_text(make_pair()[0])
    address = f"tcp://127.0.0.1:{free_ports(1)}"
    curve = CurveSettings(secret_key=SecretStr(router[1]), member_keys_file=file)
    made = Settings(
        data_dir=tmp_path / "data",
        backplane=address,
        curve=curve,
        journal=JournalSettings(storage="memory"),
        audit=AuditSettings(output="off"),
    )
    make_directories(made)
    running = router_of(made)
    peer = PeerSocket(address, b"gateway-x", lambda raw: None, MemberKeys(member[1], (router[0],)))
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not peer.failure:
                await asyncio.sleep(0.01)
            file.write_text(f"{member[0]}\nx\n")
            with pytest.raises(ConfigError, match="number 2"):
                running.change_members(made)
            assert not peer.send(b"still refused")
            file.write_text(f"{member[0]}\n")
            running.change_members(made)
            while not peer.send(b"let in"):
                await asyncio.sleep(0.01)
    finally:
        peer.close()
        running.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(
        data_dir=tmp_path, port=0, journal=JournalSettings(storage="memory"), audit=AuditSettings(output="off")
    )
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


async def test_a_closed_port_of_another_machine_proves_something_only_by_its_address(settings: Settings) -> None:
    """A name, and this machine's own loopback, may mean another process than the one that is absent."""
    made = router_of(settings)
    try:
        places = [("10.0.0.5", "there"), ("shard-0.example", "there"), ("127.0.0.1", "there"), ("::1", "there")]
        places += [("shard-0.example", identify_machine()), ("127.0.0.1", identify_machine())]
        addresses = [ShardAddress(0, host, 1, "boot", machine=machine) for host, machine in places]
        assert [made._is_sure_of(address) for address in addresses] == [True, False, False, False, True, True]
    finally:
        made.close()


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


async def test_a_journal_that_takes_long_to_open_is_said_and_stops_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process shows that it lives, or `up` would kill it, again and again; and the log says what it is at."""
    monkeypatch.setattr(server, "OPENING_SECONDS", 0.05)
    may_go_on = threading.Event()

    def open_slowly(settings: Settings, report: Callable[[str], object]) -> MemoryJournal:
        report("looking for damage")
        may_go_on.wait(ANSWER_SECONDS)
        return MemoryJournal("epoch", max_events=1, max_bytes=1, window=1.0)

    monkeypatch.setattr(server, "open_journal", open_slowly)
    with capture_logs() as lines:
        opening = asyncio.ensure_future(server._open_beside(settings, asyncio.Event()))
        async with asyncio.timeout(ANSWER_SECONDS):
            while len(lines) < 2:
                await asyncio.sleep(0.01)
        may_go_on.set()
        journal = await opening
        assert journal is not None
        journal.close()
    assert {(line["event"], line["step"]) for line in lines} == {("journal_opening", "looking for damage")}


async def test_a_router_that_is_told_to_stop_does_not_wait_for_its_journal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look through a large file for damage may take minutes, and who starts it gives it some seconds to end."""
    may_go_on, is_under_way = threading.Event(), threading.Event()

    def open_slowly(settings: Settings, report: Callable[[str], object]) -> MemoryJournal:
        is_under_way.set()
        may_go_on.wait(ANSWER_SECONDS)
        return MemoryJournal("epoch", max_events=1, max_bytes=1, window=1.0)

    monkeypatch.setattr(server, "open_journal", open_slowly)
    stop = asyncio.Event()
    running = asyncio.ensure_future(server._main(settings, stop))
    try:
        assert await asyncio.to_thread(is_under_way.wait, ANSWER_SECONDS)
        stop.set()
        async with asyncio.timeout(ANSWER_SECONDS / 2):
            await running
    finally:
        may_go_on.set()
