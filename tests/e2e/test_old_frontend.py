"""The old frontend against a real gateway with two shards: its paths, its tokens, and what it is refused with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from websockets.asyncio.client import connect

from tests.domains.dns.legacy.page import read_frame
from tests.e2e.old_page import OldPage, TokenStore, until
from tests.support.system import Session, System, open_session, refusal, running

RECORD = {"zone": "example.com", "name": "www.example.com", "type": "A", "value": "192.0.2.7"}
PATHS = [
    ("/api/websocket/ws/admin", "admin"),
    ("/api/websocket/ws/health", "health"),
    ("/api/websocket/ws", "admin"),
    ("/api/unified/ws", "admin"),
    ("/ws/dns_management", "dns_management"),
    ("/ws/security/17", "security"),
]


def old_token(system: System, user: str, *, ttl: float = 600, **claims: Any) -> str:
    """As the old application signs it: no role, no `iat`, no `jti`, no `aud`."""
    said = {"sub": user, "user_id": 17, "exp": time.time() + ttl, **claims}
    return jwt.encode(said, system.secret, "HS256")


def url_of(system: System, path: str, token: str) -> str:
    return f"ws://127.0.0.1:{system.port}{path}?token={token}"


async def hear(session: Session) -> dict[str, Any]:
    raw = await session.socket.recv()
    return read_frame(raw)


async def hear_type(session: Session, name: str) -> dict[str, Any]:
    while (frame := await hear(session))["type"] != name:
        pass
    return frame


@pytest.mark.parametrize(("path", "kind"), PATHS)
async def test_each_path_is_served(system: System, path: str, kind: str) -> None:
    """Relayed by the gateway; the upgrade says that it is deprecated, and so does the first frame."""
    token = old_token(system, system.user_on(1, "paths"), is_admin=True)
    async with open_session(url_of(system, path, token)) as session:
        first = await hear(session)
        assert (first["type"], first["data"]["connection_type"]) == ("connection_established", kind)
        assert first["data"]["deprecation"]["migration_guide"] == "/docs/migration"
        response = session.socket.response
        assert response is not None
        assert response.headers["Deprecation"].startswith("@")
        assert response.headers["Sunset"].endswith("GMT")
        assert 'rel="deprecation"' in response.headers["Link"]
        await session.say(type="ping")
        await hear_type(session, "pong")


@pytest.mark.parametrize(("path", "kind"), PATHS)
async def test_each_path_is_served_behind_an_edge_proxy(system: System, path: str, kind: str) -> None:
    """The proxy asks `/v1/route` with the request's own path, and goes to the shard with the ticket that it gets."""
    token = old_token(system, system.user_on(0, "routed"), is_admin=True)
    target = f"{path}?token={token}"
    async with system.http() as http:
        routed = await http.get("/v1/route", headers={"X-Original-URI": target})
    assert routed.status_code == 204, routed.text
    headers = {"X-Solowire-Ticket": routed.headers["x-solowire-ticket"]}
    async with open_session(
        f"ws://{routed.headers['x-solowire-upstream']}{target}", additional_headers=headers
    ) as session:
        first = await hear(session)
        assert (first["type"], first["data"]["connection_type"]) == ("connection_established", kind)
        await system.publish({"type": "system_status", "data": {"bind9_running": True}})
        await system.publish({"type": "record_created", "data": RECORD})
        await hear_type(session, "record_created" if kind in ("admin", "dns_management") else "system_status")


async def test_a_browser_at_the_path_of_both_protocols(system: System) -> None:
    """A page that says something of the old protocol gets that; one that says hello speaks solowire.v1."""
    url = url_of(system, "/ws", old_token(system, system.user_on(0, "both"), is_admin=True))
    origin: Any = f"http://127.0.0.1:{system.port}"
    async with open_session(url, origin=origin) as old:
        await old.say(type="ping")
        assert (await hear(old))["type"] == "connection_established"
    async with open_session(url, origin=origin) as new:
        await new.say(type="hello", subscriptions=[])
        assert (await new.hear())["type"] == "welcome"


async def test_a_query_of_another_browser_tab_is_not_asked(system: System) -> None:
    """Without a WebSocket's upgrade the paths say so; the old reports are for administrators alone."""
    async with system.http() as http:
        assert (await http.get("/api/websocket/ws/admin")).status_code == 426
        assert (await http.get("/api/websocket/ws/stats")).status_code == 401
    async with system.http(system.token("ann", "viewer")) as http:
        assert (await http.get("/api/websocket/health")).status_code == 403
    async with system.http(system.token("root")) as http:
        stats = await http.get("/api/websocket/ws/stats")
        assert stats.headers["deprecation"].startswith("@")
        wanted = {
            "total_users", "total_connections", "total_messages_sent", "broadcasting", "connection_types",
            "queue_size", "active_tasks", "supported_events", "supported_connection_types",
        }  # fmt: skip
        assert wanted <= stats.json().keys()
        health = (await http.get("/api/websocket/health")).json()
        assert (health["status"], health["broadcasting"]) == ("healthy", True)
        guide = await http.get("/docs/migration")
        assert guide.text.startswith("# From five sockets to one")


async def test_who_may_not_come_is_refused_before_anything_is_accepted(system: System) -> None:
    """Bad signatures, refresh tokens, temporary ones and expired ones: 401, which the page waits 5 s after."""
    path, user = "/api/websocket/ws/admin", "refused"
    wrong = jwt.encode(
        {"sub": user, "is_admin": True, "exp": time.time() + 60}, "another secret, long enough!!!!!", "HS256"
    )
    unsigned = jwt.encode({"sub": user, "is_admin": True, "exp": time.time() + 60}, "", "none")
    bad = [
        wrong, unsigned, "", "nonsense", old_token(system, user, type="refresh"), old_token(system, user, temp=True),
        old_token(system, user, ttl=-1),
    ]  # fmt: skip
    for token in bad:
        status, _ = await refusal(url_of(system, path, token))
        assert status == 401, token
    status, problem = await refusal(url_of(system, "/api/websocket/ws/nothing", old_token(system, user)))
    assert (status, problem["code"]) in ((404, "not_found"), (426, "upgrade_required"))


async def test_a_token_without_is_admin_is_no_administrator_s(system: System) -> None:
    """As refreshed ones are: the page opens `admin`, and gets what a viewer may see."""
    async with open_session(url_of(system, "/api/websocket/ws/admin", old_token(system, "refreshed"))) as session:
        first = await hear(session)
        assert "user_login" not in first["data"]["subscribed_events"]
        assert "record_created" in first["data"]["subscribed_events"]
        await session.say(type="get_stats")
        assert (await hear_type(session, "error"))["data"]["error_code"] == "forbidden"


async def test_the_newest_tab_beyond_the_limit_is_refused(system: System) -> None:
    """With 429; those that are open stay."""
    url = url_of(system, "/api/websocket/ws/admin", old_token(system, "tabs"))
    sockets = [await connect(url, proxy=None, ping_interval=None) for _ in range(10)]
    status, problem = await refusal(url)
    assert (status, problem["code"]) == (429, "too_many_connections")
    await system.publish({"type": "record_created", "data": RECORD})
    for socket in sockets:
        while read_frame(await socket.recv())["type"] != "record_created":
            pass
        await socket.close()


async def test_a_replay_sends_what_was_through_the_user_s_view(system: System) -> None:
    """At a multiple of its pace, marked as a replay, and then it says that it is done."""
    user = system.user_on(0, "replayer")
    began = datetime.now(UTC)
    names = [f"replayed-{uuid4().hex[:6]}-{n}.example.com" for n in range(3)]
    await system.publish(*({"type": "record_created", "data": {**RECORD, "name": name}} for name in names))
    await system.publish({"type": "user_login", "data": {"user": "somebody"}})
    async with open_session(url_of(system, "/api/websocket/ws/admin", old_token(system, user))) as session:
        details = {
            "name": "morning",
            "start_time": (began - timedelta(seconds=5)).isoformat(),
            "end_time": (datetime.now(UTC) + timedelta(seconds=1)).isoformat(),
            "filter_config": {"event_types": ["record_created"], "zone_name": "example.com"},
            "replay_speed": 20,
        }
        await session.say(type="start_replay", data=details)
        started = await hear_type(session, "replay_started")
        replay_id = started["data"]["replay_id"]
        assert (started["data"]["name"], started["data"]["status"]) == ("morning", "running")
        await session.say(type="start_replay", data=details)
        assert (await hear_type(session, "error"))["data"]["error_code"] == "replay_running"
        found: list[str] = []
        while names[-1] not in found:
            frame = await hear_type(session, "record_created")
            assert frame["tags"] == ["replay", replay_id]
            found.append(frame["data"]["name"])
        assert [name for name in found if name in names] == names
        status: dict[str, Any] = {}
        deadline = time.monotonic() + 30
        while status.get("status") != "completed":
            assert time.monotonic() < deadline, status
            await asyncio.sleep(0.1)
            await session.say(type="get_replay_status", data={"replay_id": replay_id})
            status = (await hear_type(session, "replay_status"))["data"]
        assert (status["progress"], status["processed_events"]) == (100.0, len(found))
        await session.say(type="stop_replay", data={"replay_id": replay_id})
        assert (await hear_type(session, "replay_stopped"))["data"] == {"success": False, "replay_id": replay_id}


async def test_a_replay_of_what_is_not_allowed_is_refused(system: System) -> None:
    """A user who may see nothing of it gets none of it, and is told why."""
    async with open_session(url_of(system, "/ws/health", old_token(system, "nosy"))) as session:
        since = (datetime.now(UTC) - timedelta(seconds=60)).isoformat()
        details = {"start_time": since, "filter_config": {"event_types": ["user_login"]}}
        await session.say(type="start_replay", data=details)
        assert (await hear_type(session, "error"))["data"]["error_code"] == "forbidden"


async def test_after_a_sign_out_nothing_is_open(system: System) -> None:
    """The page comes back with the token that it has, as long as it is loaded, and is refused."""
    user = system.user_on(1, "leaver")
    page = OldPage(system.port, TokenStore(old_token(system, user)), speed=50.0)
    page.load()
    await until(lambda: page.is_open and page.stays[-1].frames, "the page is connected")
    async with system.http(system.token("root")) as http:
        assert (await http.post(f"/v1/users/{user}/disconnect")).json()["connections"] == 1
    await until(lambda: len(page.codes) > 3, "it has tried again")
    assert page.codes[:3] == [1008, 1006, 1006]
    assert set(page.refusals) == {401}
    assert not page.is_open
    await page.unload()


async def test_statistics_and_metrics_say_who_still_uses_it(system: System) -> None:
    """By path, message and user agent, of all shards together and of each."""
    user = system.user_on(0, "counted")
    page = OldPage(system.port, TokenStore(old_token(system, user)), path="/ws/health")
    page.load()
    await until(lambda: page.is_open and page.stays[-1].frames, "the page is connected")
    async with system.http(system.token("root")) as http:

        async def is_counted() -> bool:
            found = (await http.get("/v1/stats")).json()["legacy"]
            return (
                found.get("open health", 0) >= 1 and found.get("path /ws/{type}", 0) >= 1 and "agent firefox" in found
            )

        deadline = time.monotonic() + 30
        while not await is_counted():
            assert time.monotonic() < deadline
    async with system.api(0) as http:
        metrics = (await http.get("/metrics")).text
    assert "legacy_connections_total" in metrics
    assert 'path="/ws/{type}"' in metrics
    assert "legacy_user_agents_total" in metrics
    await page.unload()


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"LEGACY_EXPIRY_GRACE": 3600, "LEGACY_ADMIN_MEMORY_S": 86400}
    with running(tmp_path_factory.mktemp("lenient") / "data", shards=1, settings=settings) as started:
        yield started


async def test_a_grace_lets_expired_tokens_in_at_old_paths_alone(lenient: System) -> None:
    """Those that have expired within it; each use is counted."""
    late, later = old_token(lenient, "late", ttl=-60), old_token(lenient, "late", ttl=-7200)
    async with open_session(url_of(lenient, "/api/websocket/ws/admin", late)) as session:
        assert (await hear(session))["type"] == "connection_established"
    assert (await refusal(url_of(lenient, "/api/websocket/ws/admin", later)))[0] == 401
    origin: Any = f"http://127.0.0.1:{lenient.port}"
    assert (await refusal(url_of(lenient, "/ws", late), origin=origin))[0] == 401
    async with lenient.http() as http:
        target = f"/api/websocket/ws/admin?token={late}"
        routed = await http.get("/v1/route", headers={"X-Original-URI": target})
    headers = {"X-Solowire-Ticket": routed.headers["x-solowire-ticket"]}
    shard = f"ws://{routed.headers['x-solowire-upstream']}"
    assert (await refusal(f"{shard}/ws", additional_headers=headers))[1]["code"] == "wrong_path"
    async with open_session(f"{shard}{target}", additional_headers=headers) as session:
        assert (await hear(session))["type"] == "connection_established"
    async with lenient.http(late) as http:
        assert (await http.post("/v1/connect")).status_code == 401
        assert "legacy_expired_tokens_total 2.0" in (await http.get("/metrics")).text


async def test_an_administrator_is_remembered_where_the_operator_wants_it(lenient: System) -> None:
    """A refreshed token says nothing; one that says no ends it."""
    path = "/api/websocket/ws/admin"

    async def is_admin(**claims: Any) -> bool:
        async with open_session(url_of(lenient, path, old_token(lenient, "chief", **claims))) as session:
            return "user_login" in (await hear(session))["data"]["subscribed_events"]

    assert not await is_admin()
    assert await is_admin(is_admin=True)
    assert await is_admin()
    assert not await is_admin(is_admin=False)
    assert not await is_admin()


async def test_where_it_is_off_clients_are_told_what_to_use(tmp_path: Path) -> None:
    """410 with the guide's address, by the gateway and by a shard; the unified connection is as ever."""
    with running(
        tmp_path / "data", shards=1, settings={"LEGACY": "off", "LEGACY_GUIDE": "https://example.com/move"}
    ) as off:
        token = off.token("ann")
        for url in (url_of(off, "/api/websocket/ws/admin", token), f"ws://127.0.0.1:{off.port + 1}/ws/health?ticket=x"):
            status, problem = await refusal(url)
            assert (status, problem["code"]) == (410, "legacy_off")
            assert "https://example.com/move" in problem["hint"]
        async with off.http(token) as http:
            assert (await http.get("/api/websocket/ws/stats")).status_code == 410
        origin: Any = f"http://127.0.0.1:{off.port}"
        async with open_session(url_of(off, "/ws", token), origin=origin) as session:
            await session.ask("welcome", type="hello", subscriptions=[])
