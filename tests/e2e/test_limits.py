"""Limits on connections in a running system: who is refused, who gives way, and what becomes of a shard that lies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from solowire.algorithms.hash_ring import Ring
from solowire.auth.tokens import Tokens
from solowire.backplane import messages as backplane
from solowire.backplane.messages import (
    VERSION,
    Fenced,
    Heartbeat,
    HeartbeatResponse,
    Join,
    Lease,
    LeaseUsage,
    PeerMessage,
    RingState,
    RouterMessage,
    ShardAddress,
)
from solowire.backplane.zmq_transport import PeerSocket, RouterSocket
from solowire.domains.dns.dns_domain import DNS
from solowire.model.access import ROLES, Identity
from tests.support.system import Session, System, end, open_session, ready, running

SECONDS = 60.0
_tickets = count()


class Refused(Exception):
    """A shard's answer to a handshake. status: HTTP. after: its Retry-After, seconds."""

    def __init__(self, status: int, code: str, after: float) -> None:
        super().__init__(status, code, after)
        self.status, self.code, self.after = status, code, after


class Users:
    """Clients that come with tickets of their own making, so that no gateway stands between them and the shard."""

    def __init__(self, system: System, stack: AsyncExitStack, shards: int) -> None:
        self.system = system
        self.sessions: dict[str, Session] = {}
        self._stack = stack
        self._ring = Ring(range(shards))
        self._tokens = Tokens(system.secret, ROLES, domain=DNS)

    def shard_of(self, user: str) -> int:
        shard = self._ring.owner(user)
        assert shard is not None
        return shard

    async def try_once(self, user: str, role: str = "viewer") -> Session:
        """Raises RequestRejected."""
        identity = Identity(user, role, ROLES[role].permissions)
        shard = self.shard_of(user)
        ticket = self._tokens.issue_ticket(identity, shard, f"test-{next(_tickets)}", time.time())
        url = f"ws://127.0.0.1:{self.system.port + 1 + shard}/ws?ticket={ticket}"
        try:
            session = await self._stack.enter_async_context(open_session(url))
        except InvalidStatus as refused:
            response = refused.response
            problem = msgspec.json.decode(response.body)
            raise Refused(response.status_code, problem["code"], float(response.headers["retry-after"])) from None
        await session.say(type="hello", subscriptions=[])
        session.welcome = await session.hear("welcome")
        self.sessions[user] = session
        return session

    async def enter(self, user: str, role: str = "viewer") -> Session:
        """Comes back when it is told to, until it is in."""
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    return await self.try_once(user, role)
                except Refused as refused:
                    await asyncio.sleep(refused.after)

    async def fill(self, number: int, prefix: str, role: str = "viewer", on: int | None = None) -> list[Session]:
        """So many users, one after the other; of shard `on`, if it is given."""
        names = (name for n in count() if on in (None, self.shard_of(name := f"{prefix}-{n}")))
        return [await self.enter(next(names), role) for _ in range(number)]


@asynccontextmanager
async def users_of(system: System, shards: int = 2) -> AsyncIterator[Users]:
    async with AsyncExitStack() as stack:
        yield Users(system, stack, shards)


async def until_closed(sessions: list[Session]) -> list[Session]:
    """The sessions that are closed, as soon as there is one."""
    waiting = {asyncio.ensure_future(session.socket.wait_closed()): session for session in sessions}
    done, pending = await asyncio.wait(waiting, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [waiting[task] for task in done]


async def test_a_full_system_refuses_but_lets_administrators_in(tmp_path: Path) -> None:
    """When viewers have all slots but the reserved ones, the next is refused before the upgrade; an admin gets in."""
    with running(tmp_path / "data", settings={"LIMITS__MAX_CONNECTIONS": 10}) as system:
        async with users_of(system) as users:
            await users.fill(9, "viewer")
            for n in range(10):
                with pytest.raises(Refused) as refused:
                    await users.try_once(f"another-{n}")
                assert (refused.value.status, refused.value.code) == (503, "over_limit")
                assert refused.value.after >= 1
            await users.enter("chief", "admin")
            assert all(session.socket.close_code is None for session in users.sessions.values())


async def test_who_is_in_a_full_system_can_replace_its_connection(tmp_path: Path) -> None:
    """A user whose group is closed comes again by /v1/connect, as a browser that lost its network does, and gets in."""
    with running(tmp_path / "data", settings={"LIMITS__MAX_CONNECTIONS": 10}) as system:
        async with AsyncExitStack() as stack:

            async def enter(user: str) -> Session:
                """Raises InvalidStatus, or AssertionError where the gateway refuses."""
                url = (await system.negotiate(system.token(user, "viewer")))["url"]
                session = await stack.enter_async_context(open_session(url))
                await session.ask("welcome", type="hello", subscriptions=[])
                return session

            async def get_in(user: str) -> tuple[Session, int]:
                """And how often it was refused."""
                async with asyncio.timeout(SECONDS):
                    for refused in count():
                        try:
                            return await enter(user), refused
                        except (InvalidStatus, AssertionError):
                            await asyncio.sleep(1)  # what the shard's Retry-After says
                raise AssertionError("unreachable")

            sessions = [(await get_in(f"viewer-{n}"))[0] for n in range(9)]
            async with asyncio.timeout(SECONDS), system.http() as http:
                refused = 0
                for n in count():  # the gateway itself refuses all but a few
                    headers = {"authorization": f"Bearer {system.token(f'other-{n}', 'viewer')}"}
                    answer = await http.post("/v1/connect", headers=headers)
                    refused += answer.status_code == 503
                    if refused == 5:
                        break
            _, often = await get_in("viewer-0")
            assert often <= 3
            assert await sessions[0].closed() == (4409, "replaced by a newer connection")
            assert all(session.socket.close_code is None for session in sessions[1:])


async def test_a_group_above_its_share_gives_way(tmp_path: Path) -> None:
    """An operator comes to a system full of viewers: the one that is idle longest is told, and closed with 1013."""
    with running(tmp_path / "data", shards=1, settings={"LIMITS__MAX_CONNECTIONS": 6}) as system:
        async with users_of(system, shards=1) as users:
            idle, *others = await users.fill(5, "viewer")
            for session in others:
                await session.ask("pong", type="ping")
            with pytest.raises(Refused):
                await users.try_once("operator", "operator")
            told = await idle.hear("reconnect")
            assert (told["reason"], told["after_ms"] > 0) == ("over_limit", True)
            assert await idle.closed() == (1013, "connection limit reached, try again later")
            await users.enter("operator", "operator")
            assert all(session.socket.close_code is None for session in others)


async def test_the_slots_of_a_killed_shard_come_back(tmp_path: Path) -> None:
    """When a shard is killed and started again, its users' slots are free for all, and the limit holds as before."""
    with running(tmp_path / "data", settings={"LIMITS__MAX_CONNECTIONS": 10}) as system:
        async with users_of(system) as users:
            await users.fill(9, "before", on=1)
            os.kill(system.pid_of("shard", "--index", "1"), signal.SIGKILL)
            await until_closed(list(users.sessions.values()))
            users.sessions.clear()
            shards = [f"http://127.0.0.1:{system.port + n}" for n in (1, 2)]
            system.wait_until(lambda: all(map(ready, shards)), "both shards are ready")
            await users.fill(9, "after", on=0)
            for shard in (0, 1):
                with pytest.raises(Refused):
                    await users.try_once(next(u for u in (f"late-{n}" for n in count()) if users.shard_of(u) == shard))


async def test_a_system_that_was_killed_serves_at_once_with_other_shards_on_other_ports(tmp_path: Path) -> None:
    """Processes of before that will never come back hold no slots for as long as their leases would have held."""
    before = System(tmp_path / "data", shards=2)
    before.start()
    assert before.process is not None
    before.process.kill()
    before.process.wait()
    with running(tmp_path / "data", shards=1) as system:
        assert system.port != before.port or system.shards != before.shards
        async with users_of(system, shards=1) as users:
            await users.enter("ann")


async def test_of_a_users_connections_the_newest_stay(tmp_path: Path) -> None:
    """With a limit of two a user's third connection ends the first; events for the user reach both that are left."""
    with running(tmp_path / "data", settings={"LIMITS__MAX_CONNECTIONS_PER_USER": 2}) as system:
        async with users_of(system) as users:
            first, second, third = [await users.enter("ann") for _ in range(3)]
            assert await first.closed() == (4409, "replaced by a newer connection")
            for session in (second, third):
                await session.ask("subscriptions", type="subscribe", event_types=["custom.test"])
            await system.publish({"type": "custom.test", "data": {"n": 1}, "user": "ann"})
            assert [len(await session.events(1)) for session in (second, third)] == [1, 1]


@pytest.mark.parametrize("limit", [1, 2])
async def test_of_a_users_connections_on_two_shards_the_newest_stay(tmp_path: Path, limit: int) -> None:
    """While a user waits for its turn to move, each connection that it opens on its new shard ends the oldest on the
    old one; another user who waits is left alone.
    """
    settings = {"LIMITS__MAX_CONNECTIONS_PER_USER": limit, "SHARD__REBALANCE_USERS_PER_S": 0.001}
    with running(tmp_path / "data", shards=1, settings=settings) as system:
        names = [user for user in (f"mover-{n}" for n in range(100)) if Ring([0, 1]).owner(user) == 1][:3]
        hello = {"subscriptions": ["custom.test"]}
        async with AsyncExitStack() as stack:

            async def enter(user: str) -> Session:
                return await stack.enter_async_context(system.session(system.token(user), hello))

            sessions = {user: [await enter(user) for _ in range(limit)] for user in names}
            second = system.spawn("shard", "--index", "1", "--port", str(system.port + 2))
            stack.callback(end, second)
            # The first turn is at once, the next after minutes.
            moved = await first_told(sessions)
            user, other = (name for name in names if name != moved)
            async with asyncio.timeout(SECONDS):
                while (await system.negotiate(system.token(user)))["shard"] != 1:
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(
                system.wait_until,
                lambda: system.output.read_text().count("shard_ready") == 2,
                "the second shard is ready",
            )
            older, newer = sessions[user], []
            while older:
                newer.append(await enter(user))
                assert await older.pop(0).closed() == (4409, "replaced by a newer connection")
                for session in (*older, *newer, *sessions[other]):
                    await session.ask("pong", type="ping")
            accepted = await system.publish({"type": "custom.test", "data": {}, "user": user})
            assert [(await s.events(1))[0]["offset"] for s in newer] == [accepted["last_offset"]] * limit


async def first_told(sessions: dict[str, list[Session]]) -> str:
    """The user of whom a connection is the first to be told to come back."""
    hearing = {asyncio.ensure_future(s.hear("reconnect", SECONDS)): user for user in sessions for s in sessions[user]}
    done, pending = await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    [told] = done
    assert told.result()["reason"] == "ring_changed"
    return hearing[told]


async def test_an_address_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """The third connection from one address is refused with 429, whoever it is for, until one of the others ends."""
    with running(tmp_path / "data", shards=1, settings={"LIMITS__MAX_CONNECTIONS_PER_ADDRESS": 2}) as system:
        tokens = Tokens(system.secret, ROLES, domain=DNS)

        def url(user: str) -> str:
            identity = Identity(user, "viewer", ROLES["viewer"].permissions)
            ticket = tokens.issue_ticket(identity, 0, f"test-{next(_tickets)}", time.time(), "192.0.2.7")
            return f"ws://127.0.0.1:{system.port + 1}/ws?ticket={ticket}"

        async with open_session(url("ann")):
            async with open_session(url("bob")):
                with pytest.raises(InvalidStatus) as refused:
                    await AsyncExitStack().enter_async_context(open_session(url("cid")))
                assert refused.value.response.status_code == 429
                assert b"too_many_from_address" in refused.value.response.body
                assert float(refused.value.response.headers["retry-after"]) >= 1
            deadline = time.monotonic() + SECONDS
            while True:
                try:
                    async with open_session(url("cid")):
                        break
                except InvalidStatus:
                    assert time.monotonic() < deadline


async def test_changing_subscriptions_too_fast_is_refused(tmp_path: Path) -> None:
    """A user who changes subscriptions too fast hears `rate_limited` and how long to wait, on whatever connection."""
    settings = {
        "SESSION__SUBSCRIPTION_RATE": 0.1,
        "SESSION__SUBSCRIPTION_BURST": 3,
        "LIMITS__MAX_CONNECTIONS_PER_USER": 2,
    }
    with running(tmp_path / "data", shards=1, settings=settings) as system:
        async with users_of(system, shards=1) as users:
            first, second = await users.enter("ann"), await users.enter("ann")
            await first.ask("subscriptions", type="subscribe", event_types=["custom.a"], id=1)
            error = await second.ask("error", type="subscribe", event_types=["custom.a"], id=7)
            assert (error["code"], error["id"]) == ("rate_limited", 7)
            assert 0 < error["retry_after"] <= 10
            assert (await second.ask("pong", type="ping"))["type"] == "pong"


async def test_a_shard_that_lies_is_fenced_off(tmp_path: Path) -> None:
    """A process that says it uses more than it was granted is no shard any more, and does not become one again."""
    with running(tmp_path / "data", settings={"LIMITS__MAX_CONNECTIONS": 100}) as system:
        heard: list[RouterMessage] = []
        address = f"ipc://{(system.data_dir / 'run' / 'router').absolute()}"
        spoke = PeerSocket(address, b"shard-7-liar", lambda raw: heard.append(backplane.decode_from_router(raw)))
        try:
            hello = Join(VERSION, "liar", ShardAddress(7, "127.0.0.1", 1, "liar"))
            honest = Heartbeat("liar", None, LeaseUsage(1, 0, {}))
            lie = Heartbeat("liar", None, LeaseUsage(2, 0, {"viewer": 100}))
            # Again and again, as a shard beats: who is silent for some seconds is forgotten.
            await until(lambda: say(spoke, hello, honest) and any(getattr(m, "lease", None) for m in heard), "a lease")
            await until(lambda: say(spoke, hello, lie) and fenced(heard), "it is fenced off")
            heard.clear()
            await until(lambda: say(spoke, hello) and fenced(heard), "it stays fenced off")
            async with system.http(system.token("chief")) as http:
                shards = (await http.get("/v1/stats/shards")).json()
            assert "liar" not in str(shards)
        finally:
            spoke.close()
        assert system.output.read_text().count("shard_fenced") >= 1


async def test_a_shard_that_is_fenced_off_ends(tmp_path: Path) -> None:
    """A real shard that hears that it is fenced off says why in one line, and ends with status 1."""
    system = System(tmp_path / "data", shards=1)
    (system.data_dir / "run").mkdir(parents=True, mode=0o700)
    heard: list[tuple[bytes, PeerMessage]] = []
    hub = RouterSocket(
        f"ipc://{(system.data_dir / 'run' / 'router').absolute()}",
        lambda peer, raw: heard.append((peer, backplane.decode_from_peer(raw))),
    )
    process = system.spawn("shard", "--index", "0", "--port", str(system.port + 1))
    try:
        await until(lambda: any(isinstance(message, Join) for _, message in heard), "the shard says hello")
        hub.send(heard[0][0], backplane.encode(Fenced("it lies")))
        await until(lambda: process.poll() is not None, "it ends")
        assert process.returncode == 1
        output = system.output.read_text()
        assert output.count("shard_fenced") == 1
        assert "Traceback" not in output
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        hub.close()


async def test_a_shard_confirms_at_once_what_it_was_not_asked_for(tmp_path: Path) -> None:
    """A lease that a real shard did not ask for is confirmed between two heartbeats: others may wait for it."""
    system = System(tmp_path / "data", shards=1)
    (system.data_dir / "run").mkdir(parents=True, mode=0o700)
    confirmed: list[int] = []

    def hear(peer: bytes, raw: bytes) -> None:
        match backplane.decode_from_peer(raw):
            case Join(shard=ShardAddress() as shard):
                hub.send(peer, backplane.encode(RingState("epoch", 1, 0, [shard])))
            case Heartbeat():
                hub.send(peer, backplane.encode(HeartbeatResponse("epoch", 1)))
                hub.send(peer, backplane.encode(Lease(1, 0, 60.0, {}, 5)))
            case LeaseUsage(fence=fence):
                confirmed.append(fence)

    hub = RouterSocket(f"ipc://{(system.data_dir / 'run' / 'router').absolute()}", hear)
    process = system.spawn("shard", "--index", "0", "--port", str(system.port + 1))
    try:
        await until(lambda: 1 in confirmed, "the shard confirms")
    finally:
        end(process)
        hub.close()


def say(spoke: PeerSocket, *messages: PeerMessage) -> bool:
    """Whether the router is connected."""
    return all(spoke.send(backplane.encode(message)) for message in messages)


def fenced(heard: list[RouterMessage]) -> bool:
    return any(isinstance(message, Fenced) for message in heard)


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        await asyncio.sleep(0.02)
