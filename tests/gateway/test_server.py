"""The gateway's process with a router of the test's own: what the router says is what people are told.

Everything but the router is real: Granian, HTTP, WebSockets, and the backplane's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from solowire.auth.tokens import Tokens
from solowire.backplane import messages as backplane
from solowire.backplane.messages import (
    AdmissionState,
    Heartbeat,
    HeartbeatResponse,
    Join,
    PublishAck,
    PublishRequest,
    RingState,
    ShardAddress,
)
from solowire.backplane.zmq_transport import RouterSocket
from solowire.domains.dns.dns_domain import DNS
from solowire.model.access import ROLES
from tests.support.system import ANSWER_SECONDS, READY_SECONDS, end, environment, free_ports, refusal, sign, whole_lines

SECRET = "a secret of a test, long enough to sign"
FULL = AdmissionState(["viewer"], False, 2.0)


class Gate:
    """A gateway and the router that it hears. doors: what the router says with each beat."""

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.doors: AdmissionState | None = None
        self.publishing = asyncio.Semaphore(0)  # released for each request that it is sent, and leaves unanswered
        self.takes = False  # requests to publish
        self.process: subprocess.Popen[str] | None = None
        (folder / "run").mkdir()
        self.output = folder / "gateway.log"
        self.hub = RouterSocket(f"ipc://{folder}/run/router", self._take)

    def start(self, settings: Mapping[str, object]) -> subprocess.Popen[str]:
        own = {"DATA_DIR": self.output.parent, "PORT": self.port, "SHARDS": 1, "SECRET": SECRET}
        with self.output.open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "solowire", "gateway"],
                env=environment(own | dict(settings)),
                cwd=self.output.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def _take(self, peer: bytes, raw: bytes) -> None:
        match backplane.decode_from_peer(raw):
            case Join():
                shards = [ShardAddress(0, "127.0.0.1", 1, "boot")]
                self.hub.send(peer, backplane.encode(RingState("epoch", 1, 0, shards)))
            case Heartbeat():
                self.hub.send(peer, backplane.encode(HeartbeatResponse("epoch", 1, admission_state=self.doors)))
            case PublishRequest(request, events) if self.takes:
                self.hub.send(peer, backplane.encode(PublishAck(request, "epoch", list(range(1, 1 + len(events))), [])))
            case PublishRequest():
                self.publishing.release()

    def say(self, doors: AdmissionState) -> None:
        """With each beat from now on."""
        self.doors = doors

    def token(self, user: str, role: str = "viewer") -> str:
        return sign(SECRET, user, role)

    async def ask(self, path: str, token: str, **headers: str) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            headers["authorization"] = f"Bearer {token}"
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=ANSWER_SECONDS, verify=False) as http:
            return await http.request("POST" if path.startswith("/v1/connect") else "GET", path, headers=headers)

    async def until(self, condition: Callable[[httpx.Response], bool], token: str) -> httpx.Response:
        """What /v1/connect answers as soon as that is so."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while not condition(answer := await self.ask("/v1/connect", token)):
                await asyncio.sleep(0.02)
        return answer

    def refusals(self) -> list[dict[str, Any]]:
        """The lines of its log about them."""
        lines = [msgspec.json.decode(line) for line in whole_lines(self.output) if line.startswith("{")]
        return [line for line in lines if line["event"] == "connection_rejected"]

    async def metrics(self) -> str:
        return (await self.ask("/metrics", "")).text


@contextlib.asynccontextmanager
async def gate(folder: Path, **settings: object) -> AsyncIterator[Gate]:
    made = Gate(folder)
    process = made.process = made.start({name.upper(): value for name, value in settings.items()})
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not await _ready(made):
                assert process.poll() is None, made.output.read_text()
                await asyncio.sleep(0.05)
        yield made
    finally:
        await asyncio.to_thread(end, process)
        made.hub.close()


async def _ready(made: Gate) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await made.ask("/readyz", "")).status_code == 200
    return False


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("g")  # short: it becomes a unix socket's address


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which says when to come again."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    return answer.status_code, problem["code"]


def head_of(path: str, token: str, length: int) -> bytes:
    """The head of a request to publish."""
    fields = (f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {token}", f"content-length: {length}")
    return "\r\n".join((*fields, "", "")).encode()


async def test_a_closed_door_is_closed_on_every_way(folder: Path) -> None:
    """Over its limit a group is refused with 503 by /v1/connect, /v1/route and the relay, and no other group is."""
    async with gate(folder) as made:
        assert (await made.ask("/v1/connect", made.token("ann"))).status_code == 200
        made.say(FULL)
        answer = await made.until(lambda answer: answer.status_code == 503, made.token("ann"))
        assert told(answer) == (503, "over_limit")
        assert 2 <= int(answer.headers["retry-after"]) <= 4
        assert told(await made.ask("/v1/route", made.token("ann"))) == (503, "over_limit")
        assert told(await made.ask("/v1/connect/", made.token("ann"))) == (503, "over_limit")
        status, problem = await refusal(f"ws://127.0.0.1:{made.port}/ws?token={made.token('ann')}")
        assert (status, problem["code"]) == (503, "over_limit")
        assert (await made.ask("/v1/connect", made.token("root", "admin"))).status_code == 200
        made.say(AdmissionState([], False, 2.0))
        await made.until(lambda answer: answer.status_code == 200, made.token("ann"))


async def test_an_address_that_is_full(folder: Path) -> None:
    """Behind a trusted proxy it is the client's address that is full, and not the proxy's."""
    async with gate(folder, listen__trusted_proxies="127.0.0.0/8") as made:
        made.say(AdmissionState([], False, 1.0, ["192.0.2.1"]))
        token = made.token("ann")
        async with asyncio.timeout(ANSWER_SECONDS):
            while (answer := await made.ask("/v1/route", token, x_forwarded_for="192.0.2.1")).status_code == 204:
                await asyncio.sleep(0.02)
        assert told(answer) == (429, "too_many_from_address")
        assert (await made.ask("/v1/route", token, x_forwarded_for="192.0.2.1, 192.0.2.2")).status_code == 204
        assert (await made.ask("/v1/route", token)).status_code == 204


async def test_the_ticket_says_whence_it_was_asked_for(folder: Path) -> None:
    """The shard counts by the address that the gateway saw, and a client can't choose it."""
    async with gate(folder, listen__trusted_proxies="127.0.0.1") as made:
        tokens = Tokens(SECRET, ROLES, domain=DNS)
        for forwarded, seen in (("192.0.2.1", "192.0.2.1"), ("1.1.1.1, 2001:db8::5", "2001:db8::/64")):
            connect = await made.ask("/v1/connect", made.token("ann"), x_forwarded_for=forwarded)
            route = await made.ask("/v1/route", made.token("ann"), x_forwarded_for=forwarded)
            for ticket in (connect.json()["ticket"], route.headers["x-solowire-ticket"]):
                assert tokens.redeem_ticket(ticket, 0, tokens.redeem_ticket(ticket, 0, 0).exp - 1).address == seen


async def test_an_address_that_connects_too_fast(folder: Path) -> None:
    """All ways of one address share one rate, 429 tells those that are too many, and another address goes on."""
    settings = {"limits__connect__rate_per_address": 0.01, "limits__connect__burst_per_address": 3}
    async with gate(folder, listen__trusted_proxies="127.0.0.1", **settings) as made:
        token = made.token("ann")
        assert (await made.ask("/v1/connect", token)).status_code == 200
        assert (await made.ask("/v1/route", token)).status_code == 204
        assert (await refusal(f"ws://127.0.0.1:{made.port}/ws?token={token}"))[1]["code"] == "shard_unavailable"
        assert told(await made.ask("/v1/connect", token)) == (429, "connect_rate_limited")
        assert told(await made.ask("/v1/route", token)) == (429, "connect_rate_limited")
        status, problem = await refusal(f"ws://127.0.0.1:{made.port}/ws?token={token}")
        assert (status, problem["code"]) == (429, "connect_rate_limited")
        assert (await made.ask("/v1/connect", token, x_forwarded_for="192.0.2.2")).status_code == 200


async def test_a_user_that_connects_too_fast(folder: Path) -> None:
    """All ways of one user share one rate, from whatever address; another user of the same address goes on."""
    settings = {
        "limits__connect__rate_per_user": 0.005,
        "limits__connect__burst_per_user": 1.5,
        "limits__max_connections_per_user": 2,
    }
    async with gate(folder, listen__trusted_proxies="127.0.0.1", **settings) as made:
        token = made.token("eve")
        assert (await made.ask("/v1/connect", token)).status_code == 200
        assert (await made.ask("/v1/route", token, x_forwarded_for="192.0.2.1")).status_code == 204
        assert (await refusal(f"ws://127.0.0.1:{made.port}/ws?token={token}"))[1]["code"] == "shard_unavailable"
        for _ in range(3):
            answer = await made.ask("/v1/connect", token, x_forwarded_for="192.0.2.2")
            assert told(answer) == (429, "connect_rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert told(await made.ask("/v1/connect/", token)) == (429, "connect_rate_limited")
        assert told(await made.ask("/v1/route", token)) == (429, "connect_rate_limited")
        status, problem = await refusal(f"ws://127.0.0.1:{made.port}/ws?token={token}")
        assert (status, problem["code"]) == (429, "connect_rate_limited")
        assert (await made.ask("/v1/connect", made.token("ann"))).status_code == 200
        assert (await made.ask("/v1/connect", made.token("root", "admin"))).status_code == 200


async def test_the_rate_of_the_system(folder: Path) -> None:
    """More connections in a second than the system takes are told 503 and a time; administrators get in."""
    async with gate(folder, limits__connect__rate=0.01, limits__connect__burst=2) as made:
        for _ in range(2):
            assert (await made.ask("/v1/connect", made.token("ann"))).status_code == 200
        assert told(await made.ask("/v1/connect", made.token("bob", "operator"))) == (503, "connect_rate_limited")
        assert (await made.ask("/v1/connect", made.token("root", "admin"))).status_code == 200


async def test_wrong_tokens_are_slowed_down_and_right_ones_are_not(folder: Path) -> None:
    """After a burst a wrong token is answered late, with 429, on every way; the user next door notices nothing."""
    async with gate(folder, auth__bad_token_rate=0.01, auth__bad_token_burst=2) as made:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            assert (await made.ask("/v1/connect", "wrong")).status_code == 401
        begin = loop.time()
        answers = await asyncio.gather(
            made.ask("/v1/connect", "wrong"),
            made.ask("/v1/route", sign("quite another secret, long enough", "ann")),
            made.ask("/v1/stats", "wrong"),
        )
        relayed = await refusal(f"ws://127.0.0.1:{made.port}/ws?token=wrong")
        took = loop.time() - begin
        assert {told(answer) for answer in answers} == {(429, "too_many_auth_failures")}
        assert (relayed[0], relayed[1]["code"]) == (429, "too_many_auth_failures")
        assert took > 1.9  # those at once, and then the relayed one: each is held for a second
        assert (await made.ask("/v1/connect", made.token("ann"))).status_code == 200
        assert (await made.ask("/v1/connect", "")).status_code == 401  # none at all is not a wrong one
        metrics = await made.metrics()
        assert "solowire_gateway_auth_failures_total 6.0" in metrics
        assert "solowire_gateway_auth_delayed_responses_total 4.0" in metrics


async def test_refusals_are_one_line_a_second(folder: Path) -> None:
    """A hundred refusals are counted, and logged as one line a second that says how many."""
    async with gate(folder) as made:
        made.say(FULL)
        await made.until(lambda answer: answer.status_code == 503, made.token("ann"))
        began = asyncio.get_running_loop().time()
        async with httpx.AsyncClient(base_url=made.url, trust_env=False, timeout=ANSWER_SECONDS, verify=False) as http:
            headers = {"authorization": f"Bearer {made.token('ann')}"}
            for _ in range(100):
                assert (await http.post("/v1/connect", headers=headers)).status_code == 503
        async with asyncio.timeout(ANSWER_SECONDS):
            while sum(line["count"] for line in made.refusals()) < 101:
                await asyncio.sleep(0.05)
        assert len(made.refusals()) <= 2 + asyncio.get_running_loop().time() - began
        assert {line["code"] for line in made.refusals()} == {"over_limit"}
        assert 'solowire_gateway_connections_rejected_total{reason="over_limit"} 101.0' in await made.metrics()


async def test_who_may_not_publish_is_told_before_its_body_comes(folder: Path) -> None:
    """A request with a wrong token, or of one who may not publish, is answered when its head has come, and its
    connection is closed; by whatever spelling of the path.
    """
    async with gate(folder) as made:
        for path in ("/v1/events", "/v1/events/"):
            for token, status in (("wrong", b"401"), (made.token("vic", "viewer"), b"403")):
                reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
                writer.write(head_of(path, token, 100_000))
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await reader.read()  # to the end of the connection
                assert answer.startswith(b"HTTP/1.1 " + status), answer
                assert b"connection: close" in answer
                writer.close()


async def test_slow_bodies_of_two_publishers_stop_nobody_else(folder: Path) -> None:
    """Two take as many places as they get, and send nothing more: the third publisher's requests go through."""
    async with gate(folder, publish__max_held_requests=20) as made:
        made.takes = True
        writers = []
        for n in range(60):
            token = made.token(("eve", "mal")[n % 2], "publisher")
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writers.append(writer)
            writer.write(head_of("/v1/events", token, 1000) + b"[")
        async with asyncio.timeout(ANSWER_SECONDS):
            while not re.search(r"solowire_gateway_publish_inflight_requests 1\d\.0", await made.metrics()):
                await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=made.url, trust_env=False, timeout=ANSWER_SECONDS, verify=False) as http:
            headers = {"authorization": f"Bearer {made.token('ann', 'publisher')}"}
            events = [{"type": "custom.x", "data": {}}]
            asking = [http.post("/v1/events", headers=headers, json=events) for _ in range(5)]
            assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 5
        for writer in writers:
            writer.close()


async def test_a_gateway_that_ends_tells_publishers_to_come_again(folder: Path) -> None:
    """Whoever waits for the log while the gateway is told to end gets 503 with a time, and never a fault."""
    async with gate(folder) as made:
        assert made.process is not None
        async with httpx.AsyncClient(base_url=made.url, trust_env=False, timeout=ANSWER_SECONDS, verify=False) as http:
            headers = {"authorization": f"Bearer {made.token('pub', 'publisher')}"}
            event = {"type": "custom.x", "data": {}}
            asking = [
                asyncio.ensure_future(http.post(path, headers=headers, json=event))
                for path in ("/v1/events", "/v1/events/")
            ]
            async with asyncio.timeout(ANSWER_SECONDS):
                for _ in asking:
                    await made.publishing.acquire()
            made.process.send_signal(signal.SIGTERM)
            assert [told(answer) for answer in await asyncio.gather(*asking)] == [(503, "router_unavailable")] * 2
        assert await asyncio.to_thread(made.process.wait, ANSWER_SECONDS) == 0
