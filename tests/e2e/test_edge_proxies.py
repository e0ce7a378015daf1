"""The example configurations for HAProxy, Caddy and Envoy, run by the real programs before two shards and a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from tests.e2e.test_edge_nginx import (
    OLD_PATHS,
    RING,
    Crowd,
    api_metrics,
    count_relayed,
    edge_client,
    negotiate,
    owner_of,
    publish,
    try_to_connect,
)
from tests.support.edge_system import FrontedSystem
from tests.support.requirements import need_program
from tests.support.system import ANSWER_SECONDS, end, free_ports, open_session, ready, refusal

EDGES = Path(__file__).parents[2] / "deploy/edge"
SOCKETS = 60
HEARTBEAT_S = 1.0
IDLE_S = 3
SETTINGS = {
    "SESSION__HEARTBEAT_INTERVAL_S": HEARTBEAT_S,
    "LIMITS__CONNECT__RATE_PER_USER": 0.01,
    "LIMITS__CONNECT__BURST_PER_USER": 30,
    "AUTH__BAD_TOKEN_BURST": 10_000,
    "LEGACY": "on",
}


class ProxiedSystem(FrontedSystem):
    """Two shards, a gateway and one of the proxies, with its example configuration."""

    def __init__(self, directory: Path, proxy: str) -> None:
        self.edge_port = free_ports(2)
        self.edge_url = f"http://127.0.0.1:{self.edge_port}"
        super().__init__(
            directory / "data",
            shards=2,
            settings={"GATEWAY__SHARD_URL": f"ws://127.0.0.1:{self.edge_port}/s/{{shard}}/ws", **SETTINGS},
        )
        self.environment |= {"SOLOWIRE_PORT": str(self.port), "SOLOWIRE_LISTEN__TRUSTED_PROXIES": "127.0.0.1"}
        self.proxy = proxy
        self.place = directory / proxy
        self.started: dict[str, subprocess.Popen[str]] = {}

    @property
    def shard_port(self) -> int:
        """Of the first."""
        return self.port + 1

    def start(self) -> None:
        """Returns when the proxy lets users in."""
        self.started["router"] = self.spawn("router")
        for index in range(self.shards):
            self.started[f"shard-{index}"] = self.spawn("shard", "--index", str(index))
        self.started["gateway"] = self.spawn("gateway")
        self.started["edge"] = self.start_proxy()
        urls = [self.edge_url, *(f"http://127.0.0.1:{self.shard_port + index}" for index in range(self.shards))]
        self.wait_until(lambda: all(map(ready, urls)), "the proxy and the shards are ready")

    def stop(self) -> int:
        return max(end(process) for process in reversed(self.started.values()))

    def start_proxy(self) -> subprocess.Popen[str]:
        shutil.copytree(EDGES / self.proxy, self.place)
        program = need_program(self.proxy)
        commands = {
            "haproxy": (program, "-f", "haproxy.cfg"),
            "caddy": (program, "run", "--config", "Caddyfile"),
            "envoy": (program, "-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"),
        }
        environment = {
            **os.environ,
            "EDGE_ADDRESS": f"http://127.0.0.1:{self.edge_port}" if self.proxy == "caddy" else f":{self.edge_port}",
            "GATEWAY_ADDRESS": f"127.0.0.1:{self.port}",
            "CADDY_ADMIN": f"unix/{self.place}/admin",
            "XDG_DATA_HOME": str(self.place),
        }
        # The two times of a socket that is silent, made short: old frontends' remains what it is.
        for path, old, new in (
            ("haproxy.cfg", "timeout tunnel 75s", f"timeout tunnel {IDLE_S}s"),
            ("envoy.yaml", "idle_timeout: 75s", f"idle_timeout: {IDLE_S}s"),
            ("envoy.yaml", "port_value: 8000", f"port_value: {self.port}"),
            ("envoy.yaml", "port_value: 8080", f"port_value: {self.edge_port}"),
            ("envoy.yaml", "port_value: 9901", f"port_value: {self.edge_port + 1}"),
        ):
            if (self.place / path).exists():
                text = (self.place / path).read_text()
                assert text.count(old) == 1, old
                (self.place / path).write_text(text.replace(old, new))
        with (self.place / "edge.log").open("w") as log:
            return subprocess.Popen(
                commands[self.proxy], cwd=self.place, env=environment, stdout=log, stderr=log, text=True
            )


@pytest.fixture(scope="module", params=["haproxy", "caddy", "envoy"])
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedSystem]:
    need_program(request.param)
    system = ProxiedSystem(tmp_path_factory.mktemp("edge"), request.param)
    try:
        system.start()
        yield system
    finally:
        system.stop()


async def test_sockets_go_to_their_owners_and_outlive_silence(edge: ProxiedSystem) -> None:
    """None comes by the gateway; heartbeats keep new ones, and nothing has to keep old ones."""
    crowd = Crowd(edge)
    async with AsyncExitStack() as stack:
        await crowd.join(stack, [f"user{number}" for number in range(SOCKETS)])
        url = f"ws://127.0.0.1:{edge.edge_port}/ws/health?token={edge.token('silent')}"
        silent = await stack.enter_async_context(open_session(url))
        joined_at = time.monotonic()
        assert all(owner_of(socket) == RING.owner(user) for user, socket in crowd.sockets.items())
        assert len({owner_of(socket) for socket in crowd.sockets.values()}) == 2
        await publish(edge, 1)
        await crowd.wait_for(1)
        while time.monotonic() < joined_at + IDLE_S + 2 * HEARTBEAT_S:
            await asyncio.sleep(0.1)
        await publish(edge, 2)
        await crowd.wait_for(2)
        await silent.ask("pong", type="ping")
        assert await count_relayed(edge) == 0
        await crowd.leave()
        for socket in crowd.sockets.values():  # else each would be closed in order, one after the other
            socket.transport.abort()


async def test_old_paths_go_to_their_owners(edge: ProxiedSystem) -> None:
    """A page at the path of both protocols, too."""
    for path in (*OLD_PATHS, "/ws"):
        url = f"ws://127.0.0.1:{edge.edge_port}{path}?token={edge.token('old')}"
        async with open_session(url, origin=edge.edge_url) as session:
            assert owner_of(session.socket) == RING.owner("old"), path
            assert session.socket.response is not None
            assert "Sunset" in session.socket.response.headers, path
            session.socket.transport.abort()  # Envoy would take a second for the end
    assert await count_relayed(edge) == 0


async def test_who_is_refused_reads_why(edge: ProxiedSystem) -> None:
    """401 and 429 come as the gateway says them."""
    url = f"ws://127.0.0.1:{edge.edge_port}"
    for path, code in (("/ws?token=none", "invalid_token"), ("/s/0/ws?ticket=none", "invalid_token")):
        assert (await refusal(url + path))[0] == 401
        assert (await refusal(url + path))[1]["code"] == code
    answer = await first_refusal(f"{url}/ws?token={edge.token('eager')}")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/problem+json"
    assert b"connect_rate_limited" in answer.body


async def first_refusal(url: str) -> Response:
    """Connects until it is refused."""
    for _ in range(40):
        try:
            async with open_session(url) as session:
                session.socket.transport.abort()  # Envoy would take a second for the end
        except InvalidStatus as refused:
            return refused.response
    raise AssertionError("there is no limit")


async def test_what_only_we_say_counts_for_nothing_from_outside(edge: ProxiedSystem) -> None:
    reached = asyncio.Event()
    stranger = await asyncio.start_server(lambda *_: reached.set(), "127.0.0.9", edge.shard_port)
    forged = {
        "X-Solowire-Upstream": f"127.0.0.9:{edge.shard_port}",
        "X-Envoy-Original-Dst-Host": f"127.0.0.9:{edge.shard_port}",
        "X-Solowire-Owner": "new",
        "X-Solowire-Shard": "1",
        "X-Solowire-Ticket": "forged",
        "X-Solowire-Dialect": "admin",
        "X-Solowire-Relayed": "1",
        "X-Original-URI": f"/ws?token={edge.token('somebody')}",
        "X-Forwarded-URI": f"/ws?token={edge.token('somebody')}",
    }
    async with stranger:
        url = f"ws://127.0.0.1:{edge.edge_port}"
        async with open_session(f"{url}/ws?token={edge.token('ann')}", additional_headers=forged) as session:
            await session.say(type="hello", subscriptions=[])
            assert (await session.hear("welcome"))["user"] == "ann"
            assert owner_of(session.socket) == RING.owner("ann")
            metrics = [(await api_metrics(edge, shard)) for shard in range(2)]
            assert 'transport="relayed"' not in "".join(metrics)
        assert (await refusal(f"{url}/ws", additional_headers=forged))[0] == 401
        async with edge_client(edge, edge.token("ann")) as http:
            for path in ("/v1/route", "/v1/route/", "/metrics"):
                assert (await http.get(path, headers=forged)).status_code == 404, path
            assert (await http.get("/v1/catalog", headers=forged)).status_code == 200
            assert (await http.get("/docs", headers=forged)).status_code == 200
        assert not reached.is_set()


async def test_a_killed_shard_is_said_so_until_another_has_its_users(edge: ProxiedSystem) -> None:
    """503 with Retry-After, by every way in, and then the new owner."""
    token = edge.token(edge.user_on(1, "lost"))
    async with edge_client(edge) as http:
        grant = await negotiate(http, token)
    async with open_session(f"ws://127.0.0.1:{edge.edge_port}/ws?token={token}") as session:
        assert owner_of(session.socket) == 1
        edge.started["shard-1"].kill()
        edge.started["shard-1"].wait()
        await session.closed()
    seen = []
    async with asyncio.timeout(ANSWER_SECONDS):
        while not isinstance(found := await try_to_connect(f"ws://127.0.0.1:{edge.edge_port}/ws?token={token}"), int):
            seen.append(found)
            assert found.status_code == 503
            assert int(found.headers["retry-after"]) >= 1
            assert found.headers["content-type"] == "application/problem+json"
            await asyncio.sleep(0.1)
    assert found == 0
    assert seen, "the shard's port is closed at once, and the ring is not another at once"
    assert (await refusal(grant["url"]))[0] == 503


async def test_without_a_gateway_everybody_is_told_when_to_come_again(edge: ProxiedSystem) -> None:
    with contextlib.suppress(ProcessLookupError):
        edge.started["gateway"].kill()
    edge.started["gateway"].wait()
    async with edge_client(edge) as http:
        answer = await http.post("/v1/connect")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/problem+json"
    status, _ = await refusal(f"ws://127.0.0.1:{edge.edge_port}/ws?token=x")
    assert status == 503
    assert end(edge.started["edge"]) is not None
