"""The socket: who may come, what happens when it or the other side goes away, and what is said of it."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bench.dnstap_frames import CONTENT_TYPE, READY, DnstapSender, make_control, make_frame, make_query, make_response
from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import ConfigError, PublishRefused
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.dnstap import dnstap_part, dnstap_reader
from solowire.sources.bind9.dnstap.dnstap_part import DnstapPart
from solowire.sources.bind9.dnstap.dnstap_socket import DnstapSocket
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet

QUERY = make_query("www.z.example")
PAIR = [
    make_frame("CLIENT_QUERY", QUERY, at=1_700_000_000.0),
    make_frame("CLIENT_RESPONSE", make_response(QUERY), answered_at=1_700_000_000.0),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnstap_part, "TICK_S", 0.01)
    monkeypatch.setattr(dnstap_part, "LOOK_S", 0.02)


def has_file(path: Path) -> bool:
    return os.path.lexists(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dnstap.sock"


class Running:
    """A part at work."""

    def __init__(self, outlet: RecordedOutlet, status: PartStatus, task: asyncio.Task[None]) -> None:
        self.outlet = outlet
        self.status = status
        self.task = task

    @property
    def queries(self) -> int:
        return len(self.outlet.of_type("dns_query_log"))

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(lambda: condition() or self.task.done())


@asynccontextmanager
async def running(path: Path, outlet: RecordedOutlet | None = None, stats_s: float = 0.0) -> AsyncIterator[Running]:
    outlet = outlet or RecordedOutlet()
    status, stop = PartStatus("dnstap"), asyncio.Event()
    part = DnstapPart(path, outlet, stats_interval_s=stats_s)
    task = asyncio.create_task(part.run(status, stop))
    try:
        yield Running(outlet, status, task)
    finally:
        stop.set()
        await task


Connect = Callable[[Path], Awaitable[DnstapSender]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects as a server does."""
    senders: list[DnstapSender] = []

    async def connect(path: Path) -> DnstapSender:
        await until(path.exists)
        senders.append(await asyncio.to_thread(DnstapSender, path))
        return senders[-1]

    yield connect
    for sender in senders:
        sender.close()


async def test_a_server_s_queries_are_published_and_its_end_is_answered(
    path: Path, connect: Connect, logged: Callable[[], set[str]]
) -> None:
    async with running(path) as part:
        await until(lambda: part.status.status == "waiting")
        assert str(path) in (part.status.reason or "")
        sender = await connect(path)
        sender.send(PAIR)
        await part.until(lambda: part.queries == 1)
        assert part.status.status == "running"
        assert (part.status.read_count, part.status.published_count) == (1, 1)
        await asyncio.to_thread(sender.finish)
        await part.until(lambda: part.status.status == "waiting")
    assert not has_file(path), "nothing is left behind"
    assert {"dnstap_connected", "dnstap_disconnected"} <= logged()


async def test_several_servers_connect_and_one_that_sends_rubbish_ends_alone(path: Path, connect: Connect) -> None:
    async with running(path) as part:
        good = await connect(path)
        with capture_logs() as logs, socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(path))
            bad.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert await asyncio.to_thread(bad.recv, 100) == b""
        assert [log["event"] for log in logs] == ["dnstap_connection_refused"]
        again = await connect(path)
        for sender in (good, again):
            sender.send(PAIR)
        await part.until(lambda: part.queries == 2)


async def test_a_connection_that_never_begins_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnstap_reader, "HANDSHAKE_S", 0.05)
    async with running(path):
        await until(path.exists)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            silent.sendall(make_control(READY, CONTENT_TYPE))
            while await asyncio.to_thread(silent.recv, 100):
                pass


async def test_there_is_a_most_of_connections(path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnstap_reader, "MAX_CONNECTIONS", 1)
    async with running(path) as part:
        first = await connect(path)
        with pytest.raises((AssertionError, OSError)):
            await connect(path)
        first.send(PAIR)
        await part.until(lambda: part.queries == 1)


async def test_a_socket_that_is_removed_is_made_anew(
    path: Path, connect: Connect, logged: Callable[[], set[str]]
) -> None:
    async with running(path) as part:
        first = await connect(path)
        os.unlink(path)
        second = await connect(path)
        for sender in (first, second):
            sender.send(PAIR)
        await part.until(lambda: part.queries == 2)
    assert "dnstap_socket_lost" in logged()


async def test_a_socket_that_a_killed_agent_left_is_taken_over(path: Path, connect: Connect) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with running(path) as part:
        await until(lambda: part.status.status == "waiting")
        sender = await connect(path)
        sender.send(PAIR)
        await part.until(lambda: part.queries == 1)


async def test_a_socket_on_which_another_listens_is_left_alone_until_it_is_free(path: Path, connect: Connect) -> None:
    async with running(path) as first:
        sender = await connect(path)
        async with running(path) as second:
            await until(lambda: "another process listens" in (second.status.reason or ""))
            sender.send(PAIR)
            await first.until(lambda: first.queries == 1)
        assert has_file(path)


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Until the end nobody may write there: root is somebody else meanwhile."""
    folder.chmod(0o500)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


async def test_a_directory_without_rights_is_said_with_its_path_and_used_when_it_may_be(
    path: Path, connect: Connect
) -> None:
    with capture_logs() as logs, without_rights(path.parent):
        async with running(path) as part:
            await until(lambda: "Permission denied" in (part.status.reason or ""))
            assert str(path) in (part.status.reason or "")
            assert logs[0]["event"] == "dnstap_waiting"
            assert str(path.parent) in logs[0]["hint"]
    async with running(path) as part:
        await connect(path)


async def test_a_directory_that_is_missing_is_said_at_once_and_then_once_a_minute(
    path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnstap_reader, "WarningPace", partial(WarningPace, 0.2))
    beneath = path.parent / "run" / "dnstap.sock"
    with capture_logs() as logs:
        async with running(beneath) as part:
            await until(lambda: "No such file or directory" in (part.status.reason or ""))
            await until(lambda: sum(log["event"] == "dnstap_waiting" for log in logs) == 2)
            beneath.parent.mkdir()
            await connect(beneath)
            await until(lambda: part.status.status == "running")
    waiting = next(log for log in logs if log["event"] == "dnstap_waiting")
    assert str(beneath) in waiting["reason"]
    assert str(beneath.parent) in waiting["hint"]


@pytest.mark.parametrize("is_named", [False, True])
def test_its_group_may_connect_and_nobody_else(path: Path, is_named: bool) -> None:
    """That of its directory, or the one that is named: another than a new file gets by itself."""
    may_give = [each for each in grp.getgrall() if os.geteuid() == 0 or each.gr_gid in os.getgroups()]
    group = next((each for each in may_give if each.gr_gid != os.getegid()), None)
    if group is None:
        pytest.skip("this user is in one group alone")
    if not is_named:
        os.chown(path.parent, -1, group.gr_gid)
    listening = DnstapSocket(path, group=group.gr_name if is_named else None).open()
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
    listening.close()


def test_what_can_t_be_set_up_is_refused_with_the_way_out(path: Path) -> None:
    with pytest.raises(ConfigError, match="no group 'no-such-group'"):
        DnstapSocket(path, group="no-such-group")
    with pytest.raises(ConfigError, match="too long a path"):
        DnstapSocket(path / ("x" * 100))
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        DnstapSocket(path).open()
    assert path.read_text() == "precious"


async def test_what_has_no_room_is_counted_and_said(
    path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnstap_reader, "REPORT_S", 0.05)
    with capture_logs() as logs:
        async with running(path, RecordedOutlet(room=2)) as part:
            sender = await connect(path)
            sender.send(PAIR * 5)
            await part.until(lambda: part.status.dropped_count == 3)
            await until(lambda: any(log["event"] == "dnstap_progress" and log["dropped"] == 3 for log in logs))
    losses = [log["log_level"] for log in logs if log["event"] == "dnstap_progress" and log["dropped"] == 3]
    assert losses[0] == "warning"
    assert set(losses[1:]) <= {"info"}, "each loss is a warning once"


async def test_what_the_server_dropped_is_lost_and_told(path: Path, connect: Connect) -> None:
    outlet, status, stop = RecordedOutlet(), PartStatus("dnstap"), asyncio.Event()
    part = DnstapPart(path, outlet, stats_interval_s=0.05)
    part.note_drops(5)  # before it runs: of a time that it knows nothing of
    task = asyncio.create_task(part.run(status, stop))
    await connect(path)
    await until(lambda: status.status == "running")
    part.note_drops(3)
    await until(lambda: status.lost_count == 3 and sum(f["dropped"] for f in outlet.of_type("dns_query_stats")) == 3)
    stop.set()
    await task


async def test_figures_are_published_while_a_server_is_there(path: Path, connect: Connect) -> None:
    async with running(path, stats_s=0.05) as part:
        sender = await connect(path)
        sender.send(PAIR * 3)
        await until(lambda: sum(f["total_queries"] for f in part.outlet.of_type("dns_query_stats")) == 3)
        await part.until(lambda: part.status.published_count == len(part.outlet.events))


class RefusingOutlet(RecordedOutlet):
    def offer_many(self, events: object) -> int:
        raise PublishRefused(403, {"detail": "no right"}, url="http://127.0.0.1:9")


async def test_a_gateway_that_refuses_for_good_ends_the_part(path: Path, connect: Connect) -> None:
    part = DnstapPart(path, RefusingOutlet())
    task = asyncio.create_task(part.run(PartStatus("dnstap"), asyncio.Event()))
    sender = await connect(path)
    sender.send(PAIR)
    with pytest.raises(PublishRefused):
        await task
