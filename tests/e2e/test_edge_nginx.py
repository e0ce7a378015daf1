"""The chart's edge: Debian's nginx with the configuration that the chart renders, before two shards and a gateway.

These, too, run as the chart has them run: its arguments, variables, settings, ports and keys.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from solowire.algorithms.hash_ring import Ring
from solowire.domains.dns.legacy import client_paths
from solowire.domains.dns.legacy.client_paths import find_client_path
from solowire.domains.dns.legacy.event_names import DEFAULTS
from tests.support.chart import CHART
from tests.support.edge_system import (
    GATEWAY_PORT,
    HEALTH_PORT,
    HTTP_PORT,
    HTTPS_PORT,
    WS_PORT,
    EdgeSystem,
    FrontedSystem,
    start_nginx,
)
from tests.support.requirements import needs
from tests.support.system import ANSWER_SECONDS, end, free_ports, open_session, published, refusal

SOCKETS = 1000
AT_A_TIME = 50
HEARTBEAT_S = 2.0
IDLE_S = 5
"""proxy_read_timeout."""
VALUES: dict[str, Any] = {
    "settings": {
        "session": {"heartbeat_interval_s": HEARTBEAT_S},
        "limits": {"connect": {"rate_per_user": 0.01, "burst_per_user": 30}},
        "auth": {"bad_token_burst": 10_000},
        "legacy": "on",
    },
    "edge": {"drainSeconds": 60, "idleSeconds": IDLE_S},
}
OLD_PATHS = [
    "/api/unified/ws",
    "/api/websocket/ws",
    *(f"/api/websocket/ws/{kind}" for kind in DEFAULTS),
    *(f"/ws/{kind}" for kind in DEFAULTS),
    *(f"/ws/{kind}/17" for kind in DEFAULTS),
]
RING = Ring(range(2))

pytestmark = needs("nginx")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeSystem]:
    system = EdgeSystem(tmp_path_factory.mktemp("edge"), VALUES)
    try:
        system.start()
        yield system
    finally:
        system.stop()


@asynccontextmanager
async def edge_client(edge: FrontedSystem, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(
        base_url=edge.edge_url, headers=headers, trust_env=False, verify=False, timeout=ANSWER_SECONDS
    ) as http:
        yield http


async def negotiate(http: httpx.AsyncClient, token: str) -> dict[str, Any]:
    """What /v1/connect answers through the edge."""
    answer = await http.post("/v1/connect", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    grant: dict[str, Any] = answer.json()
    return grant


def owner_of(session: ClientConnection) -> int:
    """The shard that accepted a WebSocket, as it says itself."""
    assert session.response is not None
    return int(session.response.headers["X-Solowire-Shard"])


async def count_relayed(edge: FrontedSystem) -> int:
    """WebSockets that the gateway has ever relayed."""
    async with edge.http() as http:
        metrics = (await http.get("/metrics")).text
    [line] = [
        line for line in metrics.splitlines() if line.startswith("solowire_gateway_relayed_connections_opened_total ")
    ]
    return int(float(line.split()[1]))


class Crowd:
    """Many users' WebSockets, each of which answers pings, and counts the events that it gets."""

    def __init__(self, edge: FrontedSystem) -> None:
        self._edge = edge
        self.sockets: dict[str, ClientConnection] = {}
        self.got: dict[str, list[int]] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def join(self, stack: AsyncExitStack, users: list[str]) -> None:
        turns = asyncio.Semaphore(AT_A_TIME)

        async def one(user: str) -> None:
            async with turns:
                grant = await negotiate(http, self._edge.token(user))
                assert grant["shard"] == RING.owner(user)
                socket = await stack.enter_async_context(
                    connect(grant["url"], compression=None, ping_interval=None, proxy=None, close_timeout=1)
                )
                self.sockets[user], self.got[user] = socket, []
                await socket.send('{"type":"hello","subscriptions":["custom.*"]}')
                assert msgspec.json.decode(await socket.recv())["type"] == "welcome"
                self._readers.append(asyncio.create_task(self._read(user, socket)))

        async with edge_client(self._edge) as http:
            await asyncio.gather(*map(one, users))

    async def wait_for(self, number: int) -> None:
        """Until everybody has got the event of that number."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while any(number not in got for got in self.got.values()):
                assert not any(reader.done() for reader in self._readers), "a connection was lost"
                await asyncio.sleep(0.05)

    async def leave(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, user: str, socket: ClientConnection) -> None:
        while True:
            message = msgspec.json.decode(await socket.recv())
            if message["type"] == "ping":
                await socket.send('{"type":"pong"}')
            elif message["type"] == "events":
                self.got[user] += [event["data"]["n"] for event in message["events"]]


async def publish(edge: FrontedSystem, number: int) -> None:
    async with edge_client(edge, edge.token("publisher", "publisher")) as http:
        await published(http, {"type": "custom.n", "data": {"n": number}})


async def test_a_thousand_sockets_go_to_their_owners(edge: EdgeSystem) -> None:
    """Each comes to its shard and none by the gateway; a reload of nginx ends none, and neither does silence."""
    crowd = Crowd(edge)
    async with AsyncExitStack() as stack:
        await crowd.join(stack, [f"user{number}" for number in range(SOCKETS)])
        url = f"ws://{edge.edge_host}:{HTTP_PORT}/ws/health?token={edge.token('silent')}"
        silent = await stack.enter_async_context(open_session(url))
        joined_at = time.monotonic()
        assert all(owner_of(socket) == RING.owner(user) for user, socket in crowd.sockets.items())
        assert len({owner_of(socket) for socket in crowd.sockets.values()}) == 2
        assert await count_relayed(edge) == 0
        await publish(edge, 1)
        await crowd.wait_for(1)

        workers = workers_of(edge)
        edge.started["edge-0"].send_signal(signal.SIGHUP)  # what `nginx -s reload` does
        async with asyncio.timeout(ANSWER_SECONDS):
            while workers_of(edge) <= workers:
                await asyncio.sleep(0.02)
        await crowd.join(stack, ["late"])
        await publish(edge, 2)
        await crowd.wait_for(2)

        while time.monotonic() < joined_at + 2 * IDLE_S + 1:
            await asyncio.sleep(0.1)
        await publish(edge, 3)
        await crowd.wait_for(3)
        await silent.ask("pong", type="ping")
        assert await count_relayed(edge) == 0
        await crowd.leave()


def workers_of(edge: EdgeSystem) -> set[int]:
    pid = edge.started["edge-0"].pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


async def run_check(edge: EdgeSystem, url: str, **more: str) -> str:
    """What `helm test` says of an edge; it has to succeed."""
    variables = {
        "EDGE": url,
        "HOST": url.partition("://")[2],
        "SECRET": edge.secret,
        "SIGNS": "true",
        "SAYS_PROXY": "false",
    }
    check = await asyncio.create_subprocess_exec(
        sys.executable,
        CHART / "files/check.py",
        env={**os.environ, **variables, **more},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(ANSWER_SECONDS):
        said, _ = await check.communicate()
    assert check.returncode == 0, said.decode()
    return said.decode()


async def test_helm_test_succeeds(edge: EdgeSystem) -> None:
    """What `helm test` runs connects, publishes and gets the event, through this very edge."""
    assert "got the event that was published" in await run_check(edge, edge.edge_url)


async def test_helm_test_succeeds_behind_a_load_balancer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also where the edge does TLS itself, hears the PROXY protocol, and tokens are an identity provider's alone."""
    values = {
        "tls": {"enabled": True, "secretName": "live-tls"},
        "expose": {"type": "loadBalancer", "loadBalancer": {"proxyProtocol": True}},
    }
    exposed = EdgeSystem(tmp_path_factory.mktemp("exposed"), values)
    try:
        await asyncio.to_thread(exposed.start)
        url = f"https://{exposed.edge_host}:{HTTPS_PORT}"
        assert "got the event that was published" in await run_check(exposed, url, SAYS_PROXY="true")
        stranger = {"SIGNS": "false", "SECRET": "of somebody else, long enough to sign with"}
        assert "refuse a token that is not" in await run_check(exposed, url, SAYS_PROXY="true", **stranger)
    finally:
        await asyncio.to_thread(exposed.stop)


async def test_the_notes_command_makes_an_administrators_token(edge: EdgeSystem) -> None:
    """In a gateway's pod, as `kubectl exec` runs it; the edge lets its bearer ask for statistics, also of one shard."""
    command = (sys.executable, "-m", "solowire", "token", "--user", "admin", "--role", "admin")
    made = await asyncio.create_subprocess_exec(
        *command, env=edge.environments["gateway-0"], stdout=asyncio.subprocess.PIPE
    )
    token, _ = await made.communicate()
    async with edge_client(edge, token.decode().strip()) as http:
        assert (await http.get("/v1/stats/shards/1")).json()["slowest"] is not None


async def test_old_paths_go_to_their_owners(edge: EdgeSystem) -> None:
    """An old frontend's paths, its page at the path of both protocols, and who has a token alone: no relay either."""
    for path in OLD_PATHS:
        found = find_client_path(path)
        assert found is not None, path
        async with open_session(f"ws://{edge.edge_host}:{HTTP_PORT}{path}?token={edge.token('old')}") as session:
            assert owner_of(session.socket) == RING.owner("old")
            assert session.socket.response is not None
            assert "Sunset" in session.socket.response.headers
    url = f"ws://{edge.edge_host}:{HTTP_PORT}/ws?token={edge.token('old')}"
    async with open_session(url, origin=edge.edge_url) as session:
        assert session.socket.response is not None
        assert "Sunset" in session.socket.response.headers
    async with open_session(url, additional_headers={"X-Solowire-Dialect": "admin"}) as session:
        assert session.socket.response is not None
        assert "Sunset" not in session.socket.response.headers
        await session.say(type="hello", subscriptions=["custom.*"])
        assert (await session.hear("welcome"))["user"] == "old"
    async with edge_client(edge) as http:
        assert (await http.get("/api/websocket/ws/stats")).status_code != 404
    assert await count_relayed(edge) == 0


def test_the_configuration_knows_all_old_paths() -> None:
    """A path that is added to the old frontend's is tried here, and has to be added to the chart's configuration."""
    assert client_paths._ROOTS.keys() | {"/ws/"} | {"/api/websocket/ws/"} == {
        "/api/websocket/ws",
        "/api/unified/ws",
        "/ws",
        *client_paths._TYPED,
    }


async def test_long_tokens_pass(edge: EdgeSystem) -> None:
    """A token nearly as long as one may be, and its ticket, which is longer, fit through every buffer."""
    token = edge.token(
        "long", "viewer", scopes={"zones": [f"zone-{number:03}.customers.example" for number in range(200)]}
    )
    assert 7500 < len(token) < 8192
    async with edge_client(edge) as http:
        grant = await negotiate(http, token)
    for url in (grant["url"], f"ws://{edge.edge_host}:{HTTP_PORT}/ws?token={token}"):
        async with open_session(url) as session:
            await session.say(type="hello", subscriptions=[])
            assert (await session.hear("welcome"))["user"] == "long"


async def test_publishing_passes_as_it_is(edge: EdgeSystem) -> None:
    """A large request is taken, compressed or in pieces; of one that is too large the gateway's own words arrive."""
    events = [{"type": "custom.large", "data": {"text": "x" * 30_000}} for _ in range(100)]
    body = msgspec.json.encode(events)

    async def pieces(whole: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 65536):
            yield whole[start : start + 65536]

    async with edge_client(edge, edge.token("publisher", "publisher")) as http:
        json_type = {"content-type": "application/json"}
        assert (await http.post("/v1/events", content=body, headers=json_type)).json()["accepted"] == 100
        compressed = {**json_type, "content-encoding": "gzip"}
        assert (await http.post("/v1/events", content=gzip.compress(body), headers=compressed)).status_code == 200
        assert (await http.post("/v1/events", content=pieces(body), headers=json_type)).status_code == 200
        for content in (b"[" + b" " * 6_000_000 + b"]", pieces(b"[" + b" " * 6_000_000 + b"]")):
            answer = await http.post("/v1/events", content=content, headers=json_type)
            assert (answer.status_code, answer.json()["status"]) == (413, 413)


async def test_who_is_refused_reads_why(edge: EdgeSystem) -> None:
    """401, 429 and what else the gateway says come with its code, and with the time of the next try."""
    url = f"ws://{edge.edge_host}:{HTTP_PORT}"
    status, problem = await refusal(f"{url}/ws?token=none")
    assert (status, problem["code"]) == (401, "invalid_token")
    status, problem = await refusal(f"{url}/s/0/ws?ticket=none")
    assert (status, problem["code"]) == (401, "invalid_token")
    status, problem = await refusal(f"{url}/s/0/ws")
    assert (status, problem["code"]) == (401, "missing_token")
    async with edge_client(edge) as http:
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        for _ in range(100):
            answer = await http.get("/ws", params={"token": edge.token("eager")}, headers=upgrade)
            if answer.status_code != 101:
                break
        assert answer.status_code == 429
        assert answer.json()["code"] == "connect_rate_limited"
        assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/ws?token=none", headers=upgrade)).headers["www-authenticate"].startswith("Bearer")


async def test_what_only_we_say_counts_for_nothing_from_outside(edge: EdgeSystem) -> None:
    """Forged headers lead nowhere else, and what is for edges and scrapers is not to be had."""
    reached = asyncio.Event()
    elsewhere = f"{edge.network}.99"
    stranger = await asyncio.start_server(lambda *_: reached.set(), elsewhere, WS_PORT)
    forged = {
        "X-Solowire-Upstream": f"{elsewhere}:{WS_PORT}",
        "X-Solowire-Shard": "1",
        "X-Solowire-Ticket": "forged",
        "X-Solowire-Relayed": "1",
        "X-Original-URI": f"/ws?token={edge.token('somebody')}",
        "X-Forwarded-URI": f"/ws?token={edge.token('somebody')}",
    }
    async with stranger:
        url = f"ws://{edge.edge_host}:{HTTP_PORT}"
        async with open_session(f"{url}/ws?token={edge.token('ann')}", additional_headers=forged) as session:
            await session.say(type="hello", subscriptions=[])
            assert (await session.hear("welcome"))["user"] == "ann"
            assert owner_of(session.socket) == RING.owner("ann")
            metrics = [(await api_metrics(edge, shard)) for shard in range(2)]
            assert 'transport="relayed"' not in "".join(metrics)
        status, _ = await refusal(f"{url}/ws", additional_headers=forged)
        assert status == 401
        async with edge_client(edge, edge.token("ann")) as http:
            for path in ("/v1/route", "/v1/route/", "/metrics", "/_route"):
                assert (await http.get(path, headers=forged)).status_code == 404, path
        assert not reached.is_set()


async def api_metrics(edge: FrontedSystem, shard: int) -> str:
    async with edge.api(shard) as http:
        return (await http.get("/metrics")).text


async def test_a_socket_is_passed_to_a_pod_alone(edge: EdgeSystem, tmp_path: Path) -> None:
    """Whatever a gateway says, nothing but the shards' port on a pod's address is connected to."""
    reached = asyncio.Event()
    said = ""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 204 No Content\r\nX-Solowire-Upstream: {said}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    pod, stranger = f"{edge.network}.90", f"{edge.network}.91"
    edge_port = free_ports(2)
    gateway = await asyncio.start_server(answer, pod, 0)
    gateway_port = gateway.sockets[0].getsockname()[1]
    servers = [
        await asyncio.start_server(lambda *_: reached.set(), host, port)
        for host, port in ((pod, 0), (stranger, WS_PORT))
    ]
    configuration = edge.render_configuration(tmp_path)
    for old, new in (
        (f"listen {edge.edge_host}:{HTTP_PORT}", f"listen {pod}:{edge_port}"),
        (f"listen {edge.edge_host}:{HEALTH_PORT}", f"listen {pod}:{edge_port + 1}"),
        (f"server {edge.find_address('gateway')}:{GATEWAY_PORT}", f"server {pod}:{gateway_port}"),
        (f"{edge.network}.0/24 1;", f"{pod}/32 1;"),
    ):
        assert old in configuration
        configuration = configuration.replace(old, new)
    nginx = start_nginx(tmp_path, configuration)
    try:
        async with gateway, servers[0], servers[1], asyncio.timeout(ANSWER_SECONDS):
            await connectable(pod, edge_port)
            for said in (
                f"{pod}:{servers[0].sockets[0].getsockname()[1]}",
                f"{stranger}:{WS_PORT}",
                f"example.com:{WS_PORT}",
                f"{pod}:{WS_PORT}/x",
                f"user@{pod}:{WS_PORT}",
                "",
            ):
                status, problem = await refusal(f"ws://{pod}:{edge_port}/ws?token=x")
                assert (status, problem["code"]) == (503, "upstream_refused"), said
            assert not reached.is_set()
            said = f"{pod}:{WS_PORT}"
            status, problem = await refusal(f"ws://{pod}:{edge_port}/ws?token=x")
            assert (status, problem["code"]) == (503, "upstream_unavailable")  # it may be passed there, and nobody is
    finally:
        end(nginx)


async def connectable(host: str, port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


async def test_a_killed_shard_is_said_so_until_another_has_its_users(edge: EdgeSystem) -> None:
    """503 with Retry-After, by every way in, and then the new owner."""
    user = edge.user_on(1, "lost")
    token = edge.token(user)
    async with edge_client(edge) as http:
        grant = await negotiate(http, token)
    async with open_session(f"ws://{edge.edge_host}:{HTTP_PORT}/ws?token={token}") as session:
        assert owner_of(session.socket) == 1
        edge.started["shard-1"].kill()
        edge.started["shard-1"].wait()
        await session.closed()
    seen = []
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            found = await try_to_connect(f"ws://{edge.edge_host}:{HTTP_PORT}/ws?token={token}")
            if isinstance(found, int):
                break
            seen.append(found)
            assert found.status_code == 503
            assert int(found.headers["retry-after"]) >= 1
            assert found.headers["content-type"] == "application/problem+json"
            await asyncio.sleep(0.1)
    assert found == 0
    assert seen, "the shard's port is closed at once, and the ring is not another at once"
    status, problem = await refusal(grant["url"])
    assert (status, problem["code"]) in ((503, "upstream_unavailable"), (503, "shard_unavailable"))


async def try_to_connect(url: str) -> int | httpx.Response:
    """The shard that accepts, or the answer that refuses."""
    try:
        async with open_session(url) as session:
            return owner_of(session.socket)
    except InvalidStatus as refused:
        return httpx.Response(refused.response.status_code, headers=list(refused.response.headers.raw_items()))


async def test_without_a_gateway_everybody_is_told_when_to_come_again(edge: EdgeSystem) -> None:
    """503 with Retry-After as a problem, for sockets and for all else; nginx itself stays healthy."""
    end(edge.started["gateway-0"], signal.SIGKILL)
    async with edge_client(edge) as http:
        answer = await http.post("/v1/connect")
        assert (answer.status_code, answer.json()["code"]) == (503, "upstream_unavailable")
        assert answer.headers["retry-after"] == "1"
    status, problem = await refusal(f"ws://{edge.edge_host}:{HTTP_PORT}/ws?token=x")
    assert (status, problem["code"]) == (503, "gateway_unavailable")
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        assert (await http.get(f"http://{edge.edge_host}:{HEALTH_PORT}/healthz")).status_code == 200
