"""The processes of a system: started in any order, stopped, killed, stuck, and spoken to in gibberish."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
from websockets.exceptions import ConnectionClosed, InvalidStatus

from solowire.algorithms.hash_ring import Ring
from solowire.backplane import messages as backplane
from solowire.backplane.messages import VERSION, Heartbeat, Join, PublishedEvent, PublishRequest, RejoinRequired
from solowire.router.log.sqlite_journal import APPLICATION_ID
from tests.support.system import ANSWER_SECONDS, Session, System, end, open_session, ready, refusal, run, running

HELLO = {"subscriptions": ["custom.*"]}
QUIET = {
    "SESSION__HEARTBEAT_INTERVAL_S": 60,
    "PROCESS__WATCHDOG_TIMEOUT_S": 60,
}  # no pings: what a client hears is what happened


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    parts = Parts(tmp_path)
    yield parts
    parts.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """For tests that break something and wait until it is whole again."""
    with running(tmp_path_factory.mktemp("up") / "data", shards=2, settings=QUIET) as started:
        yield started


class Parts(System):
    """A system of single processes, as in containers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "data", shards=2, settings=QUIET)
        self.environment["SOLOWIRE_PORT"] = str(self.port)
        self.started: list[subprocess.Popen[str]] = []

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        self.started.append(self.spawn(*arguments))
        return self.started[-1]

    def url_of(self, index: int) -> str:
        return f"http://127.0.0.1:{self.port + 1 + index}"

    def is_ready(self, *urls: str) -> None:
        self.wait_until(lambda: all(map(ready, urls)), f"ready: {urls}")

    def close(self) -> None:
        for process in reversed(self.started):
            end(process)


async def until(condition: Callable[[], Any], what: str, seconds: float = ANSWER_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def processes_of(system: System) -> list[int]:
    """Every living process, here or orphaned, that was started for this system's data directory."""
    mark = str(system.data_dir).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr with which a command refused to start."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if '"secret_made"' not in line]  # as a first start says
    return line


def custom(name: str = "test", **fields: Any) -> dict[str, Any]:
    return {"type": f"custom.{name}", "data": {"n": 1}, **fields}


def users_on(shard: int, count: int) -> list[str]:
    ring = Ring([0, 1])
    return [user for n in range(1000) if ring.owner(user := f"u{n}") == shard][:count]


@asynccontextmanager
async def arriving(system: System, user: str, shard: int | None = None, **hello: Any) -> AsyncIterator[Session]:
    """A welcomed connection, to `shard` if given; tried again as a client would while things move."""
    async with AsyncExitStack() as stack, asyncio.timeout(ANSWER_SECONDS):
        while True:
            async with system.http(system.token(user)) as http:
                with suppress(httpx.TransportError):
                    answer = await http.post("/v1/connect")
                    if answer.status_code == 200 and shard in (None, answer.json()["shard"]):
                        with suppress(InvalidStatus, ConnectionClosed, OSError):
                            session = await stack.enter_async_context(open_session(answer.json()["url"]))
                            await session.say(type="hello", **HELLO, **hello)
                            session.welcome = await session.hear("welcome")
                            break
            await asyncio.sleep(0.05)
        held = stack.pop_all()
    async with held:
        yield session


async def published(system: System, event: dict[str, Any]) -> int:
    """Its offset. While the router is away it is published again."""
    return int((await system.publish(event))["last_offset"])


# ------------------------------------------------------------------------------------------- starting


async def test_single_processes_form_a_system_in_any_order(parts: Parts) -> None:
    """Shard and gateway started before the router refuse politely, and are ready when it comes; a shard may follow."""
    parts.begin("gateway")
    parts.begin("shard", "--index", "0")
    await until(lambda: _answers(parts.url) and _answers(parts.url_of(0)), "both answer")
    async with parts.http(parts.token("ann")) as http:
        waiting = [
            await http.get("/readyz"),
            await http.post("/v1/connect"),
            await http.post("/v1/events", json=custom()),
        ]
        assert [answer.status_code for answer in waiting] == [503, 503, 503]
        assert all(float(answer.headers["retry-after"]) > 0 for answer in waiting)
        assert [answer.json().get("code") for answer in waiting[1:]] == ["no_shard", "router_unavailable"]
        assert (await http.get(f"{parts.url_of(0)}/readyz")).status_code == 503

    parts.begin("router")
    parts.is_ready(parts.url, parts.url_of(0))
    parts.begin("shard", "--index", "1")
    parts.is_ready(parts.url_of(1))
    async with (
        arriving(parts, parts.user_on(0), shard=0) as first,
        arriving(parts, parts.user_on(1), shard=1) as second,
    ):
        offset = await published(parts, custom())
        assert [e["offset"] for e in await first.events(1) + await second.events(1)] == [offset, offset]
    assert [end(process) for process in parts.started] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("command", "taken"),
    [(["up", "--shards", "2"], 0), (["up", "--shards", "2"], 2), (["gateway"], 0), (["shard", "--index", "0"], 1)],
    ids=["up", "up-shard", "gateway", "shard"],
)
def test_a_port_in_use_is_one_line(parts: Parts, tmp_path: Path, command: list[str], taken: int) -> None:
    """A second server on one port is refused in one line that names the port, with exit status 2."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", parts.port + taken))
        other.listen()
        done = run(*command, "--data-dir", str(parts.data_dir), cwd=tmp_path, settings={"PORT": parts.port})
    assert re.search(rf":{parts.port + taken}: the port is in use", one_line(done))
    assert processes_of(parts) == []


@pytest.mark.parametrize("command", [["up"], ["router"], ["gateway"], ["shard", "--index", "0"]], ids=lambda c: c[0])
def test_a_data_directory_with_too_long_a_path_is_one_line(parts: Parts, tmp_path: Path, command: list[str]) -> None:
    """What a unix socket can't hold is told once, with the way out, by whatever is started."""
    long = tmp_path / ("x" * 120)
    done = run(*command, "--data-dir", str(long), cwd=tmp_path, settings={"PORT": parts.port, "SHARDS": 2})
    assert "too long for a unix socket" in one_line(done)


def test_up_refuses_wrong_roles_in_one_line(parts: Parts, tmp_path: Path) -> None:
    """What every process would refuse, `up` refuses before it starts them."""
    (tmp_path / "roles.toml").write_text("[roles.x]\npermission = ['*']\n")
    settings = {"PORT": parts.port, "SHARDS": 2, "ROLES_FILE": "roles.toml"}
    done = run("up", "--data-dir", str(parts.data_dir), cwd=tmp_path, settings=settings)
    assert "roles.toml" in one_line(done)


async def test_two_routers_on_one_data_directory(up: System, tmp_path: Path) -> None:
    """The second refuses to start in one line; the first goes on as if nothing had been."""
    async with arriving(up, "ann") as session:
        done = run("router", "--data-dir", str(up.data_dir), cwd=tmp_path)
        line = one_line(done)
        assert str(up.data_dir) in line
        assert str(up.pid_of("router")) in line
        assert mode(up.data_dir / "run") == 0o700
        offset = await published(up, custom())
        assert [event["offset"] for event in await session.events(1)] == [offset]


async def test_a_journal_of_a_newer_version_stops_the_start(tmp_path: Path) -> None:
    """A router that can't read its log says so in one line, touches nothing, and doesn't run."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    journal = data / "journal.sqlite3"
    with closing(sqlite3.connect(journal)) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1000")
        db.execute("CREATE TABLE of_the_future (x)")
        db.commit()
    before = journal.read_bytes()
    line = one_line(run("router", "--data-dir", str(data), cwd=tmp_path))
    assert "newer" in line
    assert str(journal) in line
    assert journal.read_bytes() == before


async def test_a_disk_that_takes_nothing_refuses_publishers_and_nothing_else(up: System) -> None:
    """503 with Retry-After while the journal can't be written; connections live on; then it works again by itself."""
    router = up.pid_of("router")
    async with arriving(up, "ann") as session, up.http(up.token("api")) as http:
        first = await published(up, custom())
        assert [event["offset"] for event in await session.events(1)] == [first]
        resource.prlimit(router, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        try:
            refused = await http.post("/v1/events", json={**custom(), "id": "kept later"})
            assert (refused.status_code, refused.json()["code"]) == (503, "journal_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await session.ask("pong", type="ping", id=1))["id"] == 1
        finally:
            resource.prlimit(router, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        second = await published(up, {**custom(), "id": "kept later"})
        assert second == first + 1
        assert [event["offset"] for event in await session.events(1)] == [second]
    assert up.pid_of("router") == router


# ------------------------------------------------------------------------------------------- up and down


async def test_up_makes_a_secret_once_and_ends_in_order(tmp_path: Path) -> None:
    """A first start with nothing; a SIGTERM, of which clients hear 1012; a second start with the same secret."""
    system = System(tmp_path / "data", shards=2)
    system.start()
    try:
        assert mode(system.data_dir / "secret") == 0o600
        assert mode(system.data_dir / "run") == 0o700
        secret = system.secret
        await until(lambda: "Solowire is ready" in system.output.read_text(), "up says where")
        said = system.output.read_text()
        assert "a secret was made" in said
        assert secret not in said
        assert system.url in said
        assert mode(system.data_dir) == 0o700
        assert (await system.negotiate(system.printed_token))["shard"] in (0, 1)

        started = processes_of(system)
        assert len(started) == 1 + 1 + 2 + 1
        async with (
            system.session(system.token(system.user_on(0)), HELLO) as first,
            system.session(system.token(system.user_on(1)), HELLO) as second,
            open_session(f"{system.url.replace('http', 'ws')}/ws?token={system.token('relayed')}") as relayed,
        ):
            stopping = asyncio.create_task(asyncio.to_thread(system.stop))
            closes = [await session.closed() for session in (first, second, relayed)]
            assert [code for code, _ in closes] == [1012, 1012, 1012]
            assert await stopping == 0
        assert processes_of(system) == []
        said = system.output.read_text()
        assert "Traceback" not in said
        assert "error" not in said

        system.output.write_text("")
        system.start()
        await until(lambda: "Solowire is ready" in system.output.read_text(), "up says where")
        assert "a secret was made" not in system.output.read_text()
        assert system.secret == secret
    finally:
        assert system.stop() == 0
    assert processes_of(system) == []


async def test_a_killed_up_leaves_no_orphan(tmp_path: Path) -> None:
    """SIGKILL of `up` ends router, shards and gateway too, so that the next start finds its ports free."""
    system = System(tmp_path / "data", shards=2)
    system.start()
    assert len(processes_of(system)) == 5
    assert system.process is not None
    end(system.process, signal.SIGKILL)
    await until(lambda: not processes_of(system), "all processes have ended")


async def test_up_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    """A Ctrl-C before everything is ready ends what has been started, with nothing left."""
    system = System(tmp_path / "data", shards=2)
    process = system.spawn("up", "--port", str(system.port), "--shards", "2")
    try:
        await until(lambda: len(processes_of(system)) >= 3, "some of it has been started")
    finally:
        status = end(process, signal.SIGINT)
    assert status == 0
    assert processes_of(system) == []
    assert "Traceback" not in system.output.read_text()


# ------------------------------------------------------------------------------------------- killed and stuck


async def test_a_killed_shard_comes_back(up: System) -> None:
    """`up` starts a killed shard again; its users come back to it and miss nothing, the others notice nothing."""
    user, other = up.user_on(1, "killed"), up.user_on(0, "other")
    async with arriving(up, other, shard=0) as bystander:
        async with arriving(up, user, shard=1) as session:
            seen = await published(up, custom())
            await session.events(1)
            old = up.pid_of("shard", "--index", "1")
            os.kill(old, signal.SIGKILL)
            assert (await session.closed())[0] == 1006
        missed = await published(up, custom("missed", user=user))
        resume = {"epoch": session.welcome["epoch"], "cursor": seen}
        async with arriving(up, user, shard=1, resume=resume) as session:
            assert session.welcome["resumed"] is True
            assert [event["offset"] for event in await session.events(1)] == [missed]
        assert up.pid_of("shard", "--index", "1") != old
        last = await published(up, custom("last"))
        assert [event["offset"] for event in await bystander.events(2)] == [seen, last]
    up.wait_until(up._all_ready, "it is whole again")


async def test_a_used_ticket_is_used_after_its_shard_was_killed(up: System) -> None:
    """It is in a URL, and so in the log of each proxy on the way: whoever reads it there doesn't get in with it."""
    user = up.user_on(1, "used")
    used = (await up.negotiate(up.token(user)))["url"]
    async with open_session(used) as session:
        await session.ask("welcome", type="hello")
        os.kill(up.pid_of("shard", "--index", "1"), signal.SIGKILL)
        await session.closed()
    shard = f"http://127.0.0.1:{up.port + 2}"
    up.wait_until(lambda: ready(shard), "the shard is ready")
    status, problem = await refusal(used)
    assert (status, problem["code"]) == (503, "wrong_shard")
    async with arriving(up, user, shard=1):
        pass
    up.wait_until(up._all_ready, "it is whole again")


async def test_a_killed_router_comes_back_and_nobody_notices(up: System) -> None:
    """Same epoch, same ring, the next offset, ids still known: connections live on and miss nothing."""
    async with arriving(up, "ann") as session, arriving(up, "bob") as other:
        before = await published(up, {**custom(), "id": "the same one"})
        old = up.pid_of("router")
        os.kill(old, signal.SIGKILL)
        up.wait_until(lambda: _replaced(up, old, "router"), "a new router runs")
        async with up.http(up.token("api")) as http:
            answer: dict[str, Any] = {}

            async def accepted() -> bool:
                reply = await http.post("/v1/events", json={**custom(), "id": "the same one"})
                assert reply.status_code == 200 or (reply.status_code == 503 and reply.headers["retry-after"])
                answer.update(reply.json())
                return reply.status_code == 200

            await until_true(accepted, "publishing works again")
        assert (answer["duplicates"], answer["last_offset"], answer["epoch"]) == (1, before, session.welcome["epoch"])
        after = await published(up, custom("after"))
        assert after == before + 1
        for each in (session, other):
            assert [event["offset"] for event in await each.events(2)] == [before, after]


async def test_a_missing_journal_is_a_new_epoch(up: System) -> None:
    """A lost log is told: clients get `gap` and 4413, their old cursors are refused, and then everything goes on."""
    async with arriving(up, "ann") as session:
        await published(up, custom())
        [event] = await session.events(1)
        epoch = session.welcome["epoch"]
        for file in up.data_dir.glob("journal.sqlite3*"):
            file.unlink()
        os.kill(up.pid_of("router"), signal.SIGKILL)
        assert (await session.hear("notice"))["code"] == "gap"
        assert (await session.closed())[0] == 4413
    resume = {"epoch": epoch, "cursor": event["offset"]}
    async with arriving(up, "ann", resume=resume) as session:
        assert session.welcome["epoch"] != epoch
        assert (session.welcome["resumed"], session.welcome["reason"]) == (False, "epoch")
        offset = await published(up, custom("after"))
        [event] = await session.events(1)
        assert (event["type"], event["offset"]) == ("custom.after", offset)
    up.wait_until(up._all_ready, "it is whole again")


def _replaced(up: System, old: int, *command: str) -> bool:
    with suppress(ValueError, OSError):
        return up.pid_of(*command) != old
    return False


async def until_true(condition: Callable[[], Any], what: str, seconds: float = ANSWER_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)


async def test_a_stuck_shard_leaves_the_ring_and_returns(up: System) -> None:
    """A shard that hangs for a few seconds loses its users, and gets them back when it goes on."""
    user = up.user_on(1, "stuck")
    pid = up.pid_of("shard", "--index", "1")
    async with arriving(up, user, shard=1) as waiting:
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            async with arriving(up, user, shard=0) as session:
                assert time.monotonic() - stopped > 2.0
                meanwhile = await published(up, custom("meanwhile", user=user))
                assert [event["offset"] for event in await session.events(1)] == [meanwhile]
                os.kill(pid, signal.SIGCONT)
                assert (await session.hear("reconnect"))["reason"] == "ring_changed"
        finally:
            os.kill(pid, signal.SIGCONT)
        # The connection that stood still with its shard has lost nothing either.
        assert [event["offset"] for event in await waiting.events(1)] == [meanwhile]
    async with arriving(up, user, shard=1) as session:
        offset = await published(up, custom(user=user))
        assert [event["offset"] for event in await session.events(1)] == [offset]


# ------------------------------------------------------------------------------------------- the ring changes


async def test_a_shard_that_joins_moves_only_users_that_must_move(parts: Parts) -> None:
    """Users of the new shard are asked to reconnect and find all their events there; the others notice nothing."""
    parts.begin("router")
    parts.begin("shard", "--index", "0")
    parts.begin("gateway")
    parts.is_ready(parts.url, parts.url_of(0))
    staying, moving = users_on(0, 3), users_on(1, 3)
    async with AsyncExitStack() as stack:
        sessions = {u: await stack.enter_async_context(arriving(parts, u, shard=0)) for u in staying + moving}
        before = await published(parts, custom("before"))
        for session in sessions.values():
            assert [event["offset"] for event in await session.events(1)] == [before]

        parts.begin("shard", "--index", "1")
        for user in moving:
            away = await sessions[user].hear()
            assert (away["type"], away["reason"]) == ("reconnect", "ring_changed")
            assert away["after_ms"] >= 0
        between = {user: await published(parts, custom("between", user=user)) for user in staying + moving}

        code, _ = await sessions[moving[0]].closed()
        assert code == 4421
        resume = {"epoch": sessions[moving[0]].welcome["epoch"], "cursor": before}
        for user in moving:
            sessions[user] = await stack.enter_async_context(arriving(parts, user, shard=1, resume=resume))
            assert sessions[user].welcome["resumed"] is True

        after = {user: await published(parts, custom("after", user=user)) for user in staying + moving}
        everyone = await published(parts, custom("everyone"))
        for user, session in sessions.items():
            found: list[int] = []
            while everyone not in found:
                message = await session.hear()
                assert message["type"] == "events", (user, message)
                found += [event["offset"] for event in message["events"]]
            assert found == [between[user], after[user], everyone]


async def test_a_shard_that_leaves_gives_its_users_to_the_others(parts: Parts) -> None:
    """A shard that is stopped tells its users 1012, and they find their events on the shard that is left."""
    parts.begin("router")
    parts.begin("shard", "--index", "0")
    leaving = parts.begin("shard", "--index", "1")
    parts.begin("gateway")
    parts.is_ready(parts.url, parts.url_of(0), parts.url_of(1))
    user, other = parts.user_on(1), parts.user_on(0)
    async with arriving(parts, other, shard=0) as bystander:
        async with arriving(parts, user, shard=1) as session:
            stopping = asyncio.create_task(asyncio.to_thread(end, leaving))
            assert (await session.closed())[0] == 1012
            assert await stopping == 0
        async with arriving(parts, user, shard=0) as session:
            personal = await published(parts, custom(user=user))
            everyone = await published(parts, custom("everyone"))
            assert [event["offset"] for event in await session.events(2)] == [personal, everyone]
        assert [event["offset"] for event in await bystander.events(1)] == [everyone]


# ------------------------------------------------------------------------------------------- gibberish


async def test_malformed_messages_are_dropped_and_logged_with_their_sender(up: System) -> None:
    """Whatever a stranger sends over the backplane is counted, logged with its name and dropped; nothing stops."""
    whole = backplane.encode(PublishRequest(1, [PublishedEvent("id", None, b"body")]))
    garbage: list[list[bytes]] = [
        [b""],
        [b"\xc1"],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [os.urandom(100_000)],
        [b"\x91" * 10_000],
        [whole[: len(whole) // 2]],
        [whole + b"\x00"],
        [backplane.encode(RejoinRequired())],
        [whole.replace(b"publish", b"perish!")],
        [b"in", b"three", b"parts"],
    ]
    with Stranger(up) as stranger:
        async with arriving(up, "ann") as session:
            for parts in garbage:
                stranger.socket.send_multipart(parts)
            stranger.say(Heartbeat("nobody"))
            assert backplane.decode_from_router(stranger.socket.recv()) == RejoinRequired()
            lines: list[dict[str, Any]] = []

            def all_are_counted() -> bool:
                lines[:] = [json.loads(line) for line in up.said() if "backplane_message_dropped" in line]
                return bool(sum(line["count"] for line in lines) == len(garbage))

            await until(all_are_counted, "each is counted in the log")
            assert all(line["sender"] == stranger.name for line in lines)
            offset = await published(up, custom())
            assert [event["offset"] for event in await session.events(1)] == [offset]


async def test_an_event_that_no_shard_can_read_is_passed_over(up: System) -> None:
    """Bytes in the log that are no event cost nobody a connection, and what comes after them arrives."""
    with Stranger(up) as stranger:
        async with arriving(up, up.user_on(0)) as first, arriving(up, up.user_on(1)) as second:
            stranger.say(Join(VERSION + 1, "from the future"))
            stranger.say(
                PublishRequest(1, [PublishedEvent("junk-1", None, b"junk"), PublishedEvent("junk-2", "ann", b"")])
            )
            assert isinstance(backplane.decode_from_router(stranger.socket.recv()), backplane.PublishAck)
            offset = await published(up, custom())
            for session in (first, second):
                assert [event["offset"] for event in await session.events(1)] == [offset]
    assert "event_decode_failed" in up.output.read_text()


class Stranger:
    """A process that found the router's socket."""

    def __init__(self, system: System) -> None:
        self.name = f"stranger-{os.getpid()}"
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.IDENTITY, self.name.encode())
        self.socket.set(zmq.RCVTIMEO, int(1000 * ANSWER_SECONDS))
        self.socket.connect(f"ipc://{system.data_dir}/run/router")

    def say(self, message: backplane.PeerMessage) -> None:
        self.socket.send(backplane.encode(message))

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(0)
        self._context.term()


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=2, trust_env=False, verify=False).status_code == 200
    return False
