"""Who is let in, and what the others are told: always before the upgrade, as an HTTP status and a problem body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import msgspec
import pytest

from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.model.access import ROLES, Identity
from solowire.runtime.settings import Settings
from tests.support.system import ANSWER_SECONDS, System, open_session, refusal, running, sign

BAD_TOKENS: dict[str, tuple[str, Callable[[System], str]]] = {
    "none": ("missing_token", lambda system: ""),
    "expired": ("token_expired", lambda system: system.token("t", ttl=-1)),
    "wrong secret": ("invalid_token", lambda system: sign("quite another secret, long enough", "t")),
    "alg none": ("invalid_token", lambda system: jwt.encode({"sub": "t", "exp": time.time() + 60}, "", "none")),
    "other algorithm": ("invalid_token", lambda system: jwt.encode(_claims(), system.secret * 2, "HS512")),
    "no expiry": ("invalid_token", lambda system: jwt.encode({"sub": "t"}, system.secret, "HS256")),
    "expiry in milliseconds": ("invalid_token", lambda system: system.token("t", exp=time.time() * 1000)),
    "no user": ("invalid_token", lambda system: system.token("")),
    "user is a number": ("invalid_token", lambda system: system.token("t", sub=7)),
    "unknown role": ("invalid_token", lambda system: system.token("t", "emperor")),
    "not yet valid": ("invalid_token", lambda system: system.token("t", nbf=time.time() + 600)),
    "tampered": ("invalid_token", lambda system: _tampered(system.token("t", "viewer"))),
    "garbage": ("invalid_token", lambda system: "garbage"),
    "three dots": ("invalid_token", lambda system: "a.b.c"),
    "not ASCII": ("invalid_token", lambda system: "%ff%fe"),
    "too long": ("invalid_token", lambda system: system.token("t", padding="x" * 9000)),
    "a ticket": ("invalid_token", lambda system: _ticket(system, "t")),
}


def _claims() -> dict[str, object]:
    return {"sub": "t", "role": "admin", "exp": time.time() + 60}


def _tampered(token: str) -> str:
    head, _, signature = token.split(".")
    _, body, _ = jwt.encode(_claims(), "x" * 32, "HS256").split(".")
    return f"{head}.{body}.{signature}"


def _ticket(system: System, user: str, shard: int = 0, age: float = 0.0) -> str:
    tokens = Tokens(system.secret, ROLES, domain=DNS)
    identity = Identity(user, "admin", ROLES["admin"].permissions)
    return tokens.issue_ticket(identity, shard, f"forged-{time.time()}", time.time() - age)


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_token_that_proves_nothing_opens_nothing(system: System, name: str) -> None:
    """Every way in refuses a bad token with 401, the same stable code, and a word on how to do better."""
    code, make = BAD_TOKENS[name]
    token = make(system)
    answers = []
    async with system.http(token or None) as http:
        answers.append(await http.post("/v1/connect"))
        answers.append(await http.get("/v1/route"))
        answers.append(await http.post("/v1/events", json={"type": "custom.x", "data": {}}))
        answers.append(await http.get("/v1/stats"))
    for answer in answers:
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["code"]) == (401, 401, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert problem["detail"]
        assert system.secret not in answer.text
    status, problem = await refusal(f"ws://127.0.0.1:{system.port}/ws?token={token}")
    assert (status, problem["code"]) == (401, code)


async def test_each_way_wants_a_token_at_all(system: System) -> None:
    """A request without any Authorization, or with another scheme, is told to send a Bearer token."""
    for headers in ({}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer"}, {"authorization": ""}):
        async with httpx.AsyncClient(
            base_url=system.url, trust_env=False, verify=False, headers=headers, timeout=ANSWER_SECONDS
        ) as http:
            answer = await http.post("/v1/connect")
        assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
        assert "Bearer" in answer.json()["hint"]


async def test_a_token_may_come_in_the_header_of_a_handshake(system: System) -> None:
    """An old client may send its token to the gateway's /ws as a header or in the query."""
    token = system.token("in-header", "viewer")
    url = f"ws://127.0.0.1:{system.port}/ws"
    async with open_session(url, additional_headers={"authorization": f"Bearer {token}"}) as session:
        assert (await session.ask("welcome", type="hello"))["user"] == "in-header"
    async with open_session(f"{url}?token={token}") as session:
        assert (await session.ask("welcome", type="hello"))["user"] == "in-header"


async def test_a_publisher_may_not_connect(system: System) -> None:
    """A publisher's token opens no connection, on any way; it gets 403, since its token is good."""
    token = system.token("pub", "publisher")
    async with system.http(token) as http:
        answers = [await http.post("/v1/connect"), await http.get("/v1/route")]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    status, problem = await refusal(f"ws://127.0.0.1:{system.port}/ws?token={token}")
    assert (status, problem["code"]) == (403, "forbidden")


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_who_only_looks_may_not_publish(system: System, role: str) -> None:
    """A viewer or operator that publishes is told 403 and which permission it would need."""
    async with system.http(system.token("looker", role)) as http:
        answer = await http.post("/v1/events", json={"type": "custom.x", "data": {}})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "events.publish" in answer.json()["detail"]


async def test_a_token_may_narrow_its_role_but_not_widen_it(system: System) -> None:
    """Permissions claimed in a token count only as far as its role has them."""
    wide = system.token("wide", "viewer", permissions=["*", "events.publish", "audit.read", "dns.read"])
    async with system.http(wide) as http:
        answer = await http.post("/v1/events", json={"type": "custom.x", "data": {}})
        assert answer.status_code == 403
    async with system.session(wide, {"subscriptions": ["dns.*", "audit_log", "security_alert"]}) as session:
        assert "zone_created" in session.welcome["subscriptions"]
        assert {d["type"] for d in session.welcome["denied"]} == {"audit_log", "security_alert"}


# -------------------------------------------------------------------------------------------------------- tickets


def _shard_url(system: System, shard: int, ticket: str | None) -> str:
    query = f"?ticket={ticket}" if ticket is not None else ""
    return f"ws://127.0.0.1:{system.port + 1 + shard}/ws{query}"


async def test_a_ticket_is_good_once(system: System) -> None:
    """A ticket that was used opens nothing any more, and its first connection is not disturbed by the attempt."""
    negotiated = await system.negotiate(system.token("once"))
    assert negotiated["ticket"] in negotiated["url"]
    async with open_session(negotiated["url"]) as session:
        await session.ask("welcome", type="hello")
        status, problem = await refusal(negotiated["url"])
        assert (status, problem["code"]) == (401, "ticket_used")
        assert "/v1/connect" in problem["hint"]
        assert await session.ask("pong", type="ping")
    status, problem = await refusal(negotiated["url"])
    assert (status, problem["code"]) == (401, "ticket_used")


async def test_a_ticket_is_good_for_its_shard_alone(system: System) -> None:
    """A ticket shown to another shard is refused with 403, and still opens its own."""
    user = system.user_on(0, "astray")
    negotiated = await system.negotiate(system.token(user))
    assert negotiated["shard"] == 0
    status, problem = await refusal(_shard_url(system, 1, negotiated["ticket"]))
    assert (status, problem["code"]) == (403, "wrong_shard")
    async with open_session(negotiated["url"]) as session:
        assert (await session.ask("welcome", type="hello"))["user"] == user


async def test_a_ticket_for_a_shard_that_does_not_own_the_user_opens_nothing(system: System) -> None:
    """A rightly signed ticket for the wrong shard (the ring has changed) sends the client back to /v1/connect."""
    user = system.user_on(1, "moved")
    status, problem = await refusal(_shard_url(system, 0, _ticket(system, user, shard=0)))
    assert (status, problem["code"]) == (503, "wrong_shard")
    assert "/v1/connect" in problem["hint"]


async def test_tickets_that_prove_nothing(system: System) -> None:
    """Missing, expired, foreign and garbage tickets, and a token in place of a ticket, get 401 before the upgrade."""
    user = system.user_on(0, "ticket")
    foreign = Tokens("quite another secret, long enough", ROLES, domain=DNS).issue_ticket(
        Identity(user, "admin", ("*",)), 0, "x", time.time()
    )
    for ticket, code in (
        (None, "missing_ticket"),
        ("", "missing_ticket"),
        (_ticket(system, user, age=31), "ticket_expired"),
        (foreign, "invalid_token"),
        (system.token(user), "invalid_token"),
        ("garbage", "invalid_token"),
        ("%ff%00", "invalid_token"),
        ("x" * 9000, "invalid_token"),
    ):
        status, problem = await refusal(_shard_url(system, 0, ticket))
        assert (status, problem["code"]) == (401, code), ticket
        assert problem["detail"]
    async with open_session(_shard_url(system, 0, _ticket(system, user, age=20))) as session:
        assert (await session.ask("welcome", type="hello"))["user"] == user


async def test_a_refused_handshake_ends_its_connection(system: System) -> None:
    """The shard closes it behind its answer, whatever the client does: who was refused takes nobody's place."""
    host, port = "127.0.0.1", system.port + 1
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with asyncio.timeout(ANSWER_SECONDS):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 401 ")
    [how] = [line for line in head.lower().splitlines() if line.startswith(b"connection:")]
    assert how.endswith(b"close")  # else it was cut for sending nothing more
    assert msgspec.json.decode(body)["code"] == "missing_ticket"


async def test_a_shard_serves_its_socket_at_one_path(system: System) -> None:
    """A ticket opens /ws and nothing else, on shard and gateway alike."""
    negotiated = await system.negotiate(system.token("paths"))
    for url in (negotiated["url"].replace("/ws?", "/other?"), f"ws://127.0.0.1:{system.port}/other?token=x"):
        status, problem = await refusal(url)
        assert (status, problem["code"]) == (404, "not_found")


# ----------------------------------------------------------------------------------------------- before accepting


DEFAULT_HANDSHAKE_SECONDS: float = Settings().listen.request_head_timeout_s


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with little patience for handshakes and wrong tokens, behind a proxy that is trusted."""
    settings = {
        "LISTEN__REQUEST_HEAD_TIMEOUT_S": 2,
        "AUTH__BAD_TOKEN_RATE": 0.01,
        "AUTH__BAD_TOKEN_BURST": 2,
        "LIMITS__CONNECT__RATE_PER_ADDRESS": 0.01,
        "LIMITS__CONNECT__BURST_PER_ADDRESS": 2,
        "LISTEN__TRUSTED_PROXIES": "127.0.0.1",
    }
    with running(tmp_path_factory.mktemp("strict") / "data", shards=1, settings=settings) as started:
        yield started


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: webs"], ids=["nothing", "half a head"])
@pytest.mark.parametrize("process", [0, 1], ids=["gateway", "shard"])
async def test_a_handshake_that_does_not_finish_is_cut(strict: System, process: int, sent: bytes) -> None:
    """A socket that sends nothing, or half a request, is closed after `request_head_timeout_s` by gateway and shard."""
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", strict.port + process)
    writer.write(sent)
    async with asyncio.timeout(DEFAULT_HANDSHAKE_SECONDS - 1):
        assert await reader.read() == b""
    assert time.monotonic() - begin > 1.9
    writer.close()


async def test_each_client_of_a_proxy_has_its_own_rate(strict: System) -> None:
    """Two connections for each address, the third is told 429 and when to come again, be it relayed or not."""

    async def status(address: str) -> tuple[int, str]:
        async with strict.http(strict.token("rated")) as http:
            answer = await http.post("/v1/connect", headers={"x-forwarded-for": f"spoofed, {address}"})
        if answer.status_code == 200:
            return 200, ""
        assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code, answer.json()["code"]

    assert await status("192.0.2.1") == (200, "")
    url = f"ws://127.0.0.1:{strict.port}/ws?token={strict.token('rated')}"
    headers = {"x-forwarded-for": "192.0.2.1"}
    async with open_session(url, additional_headers=headers) as session:
        assert (await session.ask("welcome", type="hello"))["user"] == "rated"
    assert await status("192.0.2.1") == (429, "connect_rate_limited")
    code, problem = await refusal(url, additional_headers=headers)
    assert (code, problem["code"]) == (429, "connect_rate_limited")
    assert await status("192.0.2.2") == (200, "")


async def test_guessing_tokens_is_slow(strict: System) -> None:
    """Two wrong tokens are told so, further ones late and with 429, on all ways; a right one works beside them."""

    async def answer(path: str, token: str) -> tuple[int, str]:
        async with strict.http(token) as http:
            got = await http.request("POST" if path == "/v1/events" else "GET", path)
        return got.status_code, got.json().get("code", "")

    assert await answer("/v1/stats", "wrong") == (401, "invalid_token")
    assert await answer("/v1/events", "wrong") == (401, "invalid_token")
    begin = time.monotonic()
    found = await asyncio.gather(*(answer(path, "wrong") for path in ("/v1/stats", "/v1/events", "/v1/route")))
    assert found == [(429, "too_many_auth_failures")] * 3
    assert time.monotonic() - begin > 0.9
    assert (await answer("/v1/stats", strict.token("right")))[0] == 200


async def test_a_shard_sums_its_refusals_up(strict: System) -> None:
    """Two hundred bad tickets are a few lines in the log, which say how many they were."""

    def lines() -> list[dict[str, Any]]:
        found = [msgspec.json.decode(line) for line in strict.said() if line.startswith("{")]
        return [line for line in found if line["event"] == "connection_rejected" and line.get("role") == "shard"]

    before = len(lines())
    statuses = [(await refusal(_shard_url(strict, 0, "garbage")))[0] for _ in range(200)]
    assert set(statuses[2:]) == {429}  # beyond SOLOWIRE_AUTH__BAD_TOKEN_BURST
    strict.wait_until(lambda: sum(line["count"] for line in lines()[before:]) == 200, "all are told")
    assert len(lines()) - before < 30
    assert ("too_many_auth_failures", "too many wrong tokens came from your address") in {
        (line["code"], line["reason"]) for line in lines()[before:]
    }
