"""Throwing users out of a real system: disconnecting them, and making their tokens void, everywhere and for good."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.system import ANSWER_SECONDS, Session, System, alive, open_session, ready, refusal, run, running

CUSTOM = {"subscriptions": ["custom.*"]}
IN_FORCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system of its own: its journal has revocations in it."""
    settings = {"AUTH__BAD_TOKEN_BURST": 10_000, "LIMITS__MAX_CONNECTIONS_PER_USER": 4}
    with running(tmp_path_factory.mktemp("strict") / "data", shards=2, settings=settings) as started:
        yield started


@pytest.fixture(autouse=True)
async def lifted(strict: System) -> AsyncIterator[None]:
    """No test leaves a revocation behind."""
    yield
    async with strict.http(strict.token("lifter", iat=time.time())) as http:
        for revocation in (await http.get("/v1/revocations")).json():
            assert (await http.delete(f"/v1/revocations/{revocation['id']}")).status_code == 204


async def revoke(system: System, **body: Any) -> dict[str, Any]:
    async with system.http(system.token("administrator")) as http:
        answer = await http.post("/v1/revocations", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def closed_in_time(*sessions: Session) -> set[tuple[int | None, str | None]]:
    """With what they are closed, all within a second from now."""
    return set(await asyncio.gather(*(session.closed(IN_FORCE_SECONDS) for session in sessions)))


def audited(system: System, process: str, event: str, **fields: Any) -> list[dict[str, Any]]:
    """The lines of a process's audit log about this, once there are any."""
    path = system.data_dir / "audit" / f"{process}.jsonl"

    def found() -> list[dict[str, Any]]:
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    system.wait_until(lambda: bool(found()), f"{process} has audited {event}")
    return found()


async def test_a_dismissed_administrator_stops_receiving_at_once(strict: System) -> None:
    """Revoked by name: connections end with 4401 in a second, direct and relayed; nothing of its tokens is taken."""
    token = strict.token("dismissed")
    negotiated = await strict.negotiate(token)  # a ticket that was given before
    async with (
        strict.session(token, CUSTOM) as direct,
        open_session(f"ws://127.0.0.1:{strict.port}/ws?token={token}") as relayed,
        strict.session(strict.token("remaining"), CUSTOM) as other,
    ):
        await relayed.ask("welcome", type="hello")
        made = await revoke(strict, user="dismissed", reason="has left")
        assert {code for code, _ in await closed_in_time(direct, relayed)} == {4401}
        await strict.publish({"type": "custom.news", "data": {}})
        assert [event["type"] for event in await other.events(1)] == ["custom.news"]
    assert (await refusal(negotiated["url"]))[1]["code"] == "token_revoked"
    for another in (token, strict.token("dismissed", "publisher", iat=int(time.time()) + 1)):
        async with strict.http(another) as http:
            for method, path in (("POST", "/v1/connect"), ("GET", "/v1/route"), ("GET", "/v1/stats")):
                answer = await http.request(method, path)
                assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked"), path
            answer = await http.post("/v1/events", json={"type": "custom.late", "data": {}})
            assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")
        assert (await refusal(f"ws://127.0.0.1:{strict.port}/ws?token={another}"))[1]["code"] == "token_revoked"
    async with strict.api(0, token) as shard:
        assert (await shard.get("/stats")).json()["code"] == "token_revoked"
    [line] = audited(strict, "router", "revoked", revocation=made["id"])
    assert (line["user"], line["about"]) == ("administrator", {"user": "dismissed"})


async def test_one_token_of_a_user_is_revoked_by_its_id(strict: System) -> None:
    """The connection that it opened ends, and no other of the same user; a refresh with it is refused."""
    lost, kept = strict.token("both", jti="lost"), strict.token("both", jti="kept")
    async with strict.session(lost, CUSTOM) as one, strict.session(kept, CUSTOM) as two:
        await revoke(strict, jti="lost")
        assert {code for code, _ in await closed_in_time(one)} == {4401}
        answer = await two.ask("error", type="refresh", id="r", token=lost)
        assert (answer["id"], answer["code"]) == ("r", "token_revoked")
        assert (await two.ask("pong", type="ping", id="p"))["id"] == "p"


async def test_tokens_issued_before_a_time(strict: System) -> None:
    """Older ones are void, and those that don't say how old they are; of one user, or of all."""
    now = time.time()
    old, new, ageless = (strict.token("aging", iat=now - 100), strict.token("aging", iat=now), strict.token("aging"))
    other = strict.token("other", iat=now - 100)
    async with (
        strict.session(old, CUSTOM) as first,
        strict.session(ageless, CUSTOM) as second,
        strict.session(new, CUSTOM) as third,
        strict.session(other, CUSTOM) as fourth,
    ):
        await revoke(strict, user="aging", issued_before=now - 50)
        assert {code for code, _ in await closed_in_time(first, second)} == {4401}
        assert (await fourth.ask("pong", type="ping", id=1))["id"] == 1
        async with strict.http(strict.token("administrator", iat=now)) as http:
            assert (await http.post("/v1/revocations", json={"issued_before": now - 50})).status_code == 201
            assert {code for code, _ in await closed_in_time(fourth)} == {4401}
            assert (await third.ask("pong", type="ping", id=2))["id"] == 2
            for revocation in (await http.get("/v1/revocations")).json():
                assert (await http.delete(f"/v1/revocations/{revocation['id']}")).status_code == 204


async def test_a_revocation_is_listed_and_ended(strict: System) -> None:
    """It says whom, by whom, why and until when; made again it is the same; ended, the token is good."""
    token = strict.token("forgiven")
    made = await revoke(strict, user="forgiven", reason="by mistake")
    again = await revoke(strict, user="forgiven", reason="again")
    assert again["id"] == made["id"]
    async with strict.http(strict.token("administrator")) as http:
        [listed] = (await http.get("/v1/revocations")).json()
        assert listed == again
        assert (listed["user"], listed["by"], listed["reason"]) == ("forgiven", "administrator", "again")
        assert listed["until"] > time.time() + 365 * 86400
        assert (await http.delete(f"/v1/revocations/{made['id']}")).status_code == 204
        gone = await http.delete(f"/v1/revocations/{made['id']}")
        assert (gone.status_code, gone.json()["code"]) == (404, "no_such_revocation")
    await strict.negotiate(token)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"users": "ann"}',
        b'{"user": ""}',
        b'{"user": ["ann"]}',
        b'{"user": "ann", "jti": "x"}',
        b'{"issued_before": "yesterday"}',
        b'{"issued_before": 9000000000}',
        b'{"issued_before": -1}',
        b'{"user": "ann", "until": 1}',
        b'{"user": "ann", "until": 9000000000}',
        b'{"user": "ann", "reason": 7}',
    ],
)
async def test_a_revocation_that_is_none(strict: System, body: bytes) -> None:
    """Whatever would make another revocation than was meant is refused, and nothing is revoked."""
    async with strict.http(strict.token("administrator")) as http:
        answer = await http.post("/v1/revocations", content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_revocation")
        assert answer.json()["hint"]
        assert (await http.get("/v1/revocations")).json() == []


async def test_only_administrators_throw_out(strict: System) -> None:
    """Others are refused, before what they ask for is looked at."""
    async with strict.http(strict.token("viewer", "viewer")) as http:
        for method, path in (
            ("POST", "/v1/revocations"),
            ("GET", "/v1/revocations"),
            ("DELETE", "/v1/revocations/x"),
            ("POST", "/v1/users/ann/disconnect"),
            ("GET", "/v1/users/ann"),
        ):
            answer = await http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path


async def test_a_user_is_disconnected_everywhere(strict: System) -> None:
    """All its connections end with 4410 at once, and nobody else's; it may come back, and it is audited."""
    token = strict.token("guest")
    async with (
        strict.session(token, CUSTOM) as direct,
        open_session(f"ws://127.0.0.1:{strict.port}/ws?token={token}") as relayed,
        strict.session(strict.token("guest2"), CUSTOM) as other,
    ):
        await relayed.ask("welcome", type="hello")
        async with strict.http(strict.token("administrator")) as http:
            answer = await http.post("/v1/users/guest/disconnect")
            assert (answer.status_code, answer.json()) == (
                200,
                {"user": "guest", "connections": 2, "silent_shards": 0},
            )
            assert await closed_in_time(direct, relayed) == {(4410, "disconnected by an administrator")}
            assert (await http.post("/v1/users/guest/disconnect")).json()["connections"] == 0
        assert (await other.ask("pong", type="ping", id=1))["id"] == 1
        async with strict.session(token, CUSTOM):
            pass
    shard = "shard-0" if strict.user_on(0, "guest") == "guest" else None
    audited(strict, "gateway", "administered", action="disconnect", about="guest", user="administrator")
    audited(strict, "router", "disconnecting", about="guest", user="administrator")
    owner = (await strict.negotiate(token))["shard"]
    assert shard is None or owner == 0
    [*_, line] = audited(strict, f"shard-{owner}", "disconnected", user="guest", code=4410)
    assert line["reason"] == "disconnected"


NAMES = [
    "u1/",
    "u1",
    "DNS/ns1.example.com@REALM",
    "a b",
    "a%2Fb",
    "100%",
    "..",
    ".",
    "/",
    "?q#f",
    "disconnect",
    "x/disconnect",
    "müller",
    "mu\u0308ller",
    "\U0001f600",
    "\u202eabc",
    "tab\tnul\0",
    "a+b",
    ";,:@&=$",
    "u" * 256,
]


def encoded(user: str) -> str:
    """Every byte percent-encoded: a name whole, whatever a client library leaves alone or takes for its own."""
    return "".join(f"%{byte:02X}" for byte in user.encode())


async def test_whatever_a_user_is_called_it_is_found(strict: System) -> None:
    """Percent-encoded whole, a name is looked up, disconnected and audited as that, and as no other's."""
    async with strict.http(strict.token("administrator")) as http:
        for user in NAMES:
            others = [name for name in NAMES if name != user]
            async with strict.session(strict.token(user), CUSTOM) as session:
                found = (await http.get(f"/v1/users/{encoded(user)}")).json()
                assert (found["user"], len(found["connections"])) == (user, 1), user
                for other in others:
                    answer = await http.get(f"/v1/users/{encoded(other)}")
                    assert (answer.status_code, answer.json()["code"]) == (404, "not_connected"), (user, other)
                done = await http.post(f"/v1/users/{encoded(user)}/disconnect")
                assert (done.json()["user"], done.json()["connections"]) == (user, 1)
                assert (await session.closed())[0] == 4410
    for user in NAMES:
        audited(strict, "gateway", "administered", action="stats_user", about=user)
        audited(strict, "gateway", "administered", action="disconnect", about=user)


@pytest.mark.parametrize("path", ["%FF", "%", "u1%2", "%zz", "%C3", "%ED%A0%80"])
async def test_a_name_that_no_token_can_have(strict: System, path: str) -> None:
    """What is no UTF-8, or not percent-encoding at all, is refused as that and looked up as nobody."""
    reader, writer = await asyncio.open_connection("127.0.0.1", strict.port)
    writer.write(
        f"GET /v1/users/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {strict.token('administrator')}\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 400 ")
    assert '"code":"invalid_user_name"' in answer


@pytest.mark.parametrize("way", ["/v1/%75sers/ann", "/v1//users/ann", "//v1/users/ann"])
@pytest.mark.parametrize(("method", "end"), [("GET", ""), ("POST", "/disconnect")])
async def test_users_have_one_path(strict: System, way: str, method: str, end: str) -> None:
    """Spelt in another way it names nobody, whoever asks, and is no fault of the gateway."""
    for token in ("", strict.token("administrator")):
        raw = f"{method} {way}{end} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", strict.port)
        writer.write(raw.encode())
        answer = (await reader.read()).decode()
        writer.close()
        assert answer.startswith("HTTP/1.1 404 "), answer
        assert json.loads(answer.partition("\r\n\r\n")[2])["code"] == "not_found"
    assert "unexpected_error" not in strict.output.read_text()


async def test_the_commands_throw_out(strict: System) -> None:
    """`disconnect`, `revoke`, `revocations` and `unrevoke` do what the API does, and say what came of it."""

    async def command(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(
            run, *arguments, "--url", strict.url, "--data-dir", str(strict.data_dir), cwd=strict.data_dir
        )
        return done.returncode, done.stdout.strip() + done.stderr.strip()

    async with strict.session(strict.token("c/d"), CUSTOM) as session:
        assert await command("disconnect", "c/d") == (0, "c/d: 1 connection closed")
        assert (await session.closed())[0] == 4410
    status, line = await command("revoke", "--user", "c/d", "--issued-before", "now", "--reason", "test")
    assert status == 0
    assert "user c/d, issued before 20" in line
    assert (await command("revocations")) == (0, line)
    id = line.split()[0]
    assert await command("unrevoke", id) == (0, "")
    assert await command("revocations") == (0, "")
    status, said = await command("unrevoke", id)
    assert status == 1
    assert "there is no revocation" in said
    status, said = await command("revoke")
    assert status == 2
    assert "--user" in said
    status, said = await command("revoke", "--issued-before", "yesterday")
    assert status == 2
    assert "--issued-before yesterday" in said


@pytest.mark.parametrize("killed", [("router",), ("gateway",), ("shard", "--index", "0"), ("shard", "--index", "1")])
async def test_a_revocation_outlives_every_process(strict: System, killed: tuple[str, ...]) -> None:
    """After kill -9 of each process it is in force again as soon as that is back."""
    shard = int(killed[-1]) if killed[0] == "shard" else 0
    user = strict.user_on(shard, "outlived")
    token = strict.token(user)
    ticket = await strict.negotiate(token)
    made = await revoke(strict, user=user)
    pid = strict.pid_of(*killed)
    os.kill(pid, signal.SIGKILL)
    strict.wait_until(lambda: not alive(pid), "it is dead")
    strict.wait_until(lambda: strict._all_ready(), "all are back")
    await until_router_answers(strict)
    async with strict.http(token) as http:
        answer = await http.post("/v1/connect")
        assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")
    # A router that was killed may not have told the shards any more: they hear of it with the new one's first beat.
    async with strict.api(shard, token) as api, asyncio.timeout(ANSWER_SECONDS):
        while (await api.get("/stats")).status_code != 401:
            await asyncio.sleep(0.02)
    status, problem = await refusal(ticket["url"])
    assert (status, problem["code"]) == (401, "token_revoked")
    async with strict.http(strict.token("administrator")) as http:
        assert [r["id"] for r in (await http.get("/v1/revocations")).json()] == [made["id"]]


async def until_router_answers(system: System) -> None:
    async with system.http(system.token("administrator")) as http:
        async with asyncio.timeout(30):
            while (await http.get("/v1/stats")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_a_router_that_has_lost_its_journal_learns_what_others_know(strict: System) -> None:
    """Without its log it would let in everybody; those who are still there tell it whom not."""
    made = await revoke(strict, user="unforgotten")
    pid = strict.pid_of("router")
    os.kill(pid, signal.SIGSTOP)
    for path in strict.data_dir.glob("journal.sqlite3*"):
        path.unlink()
    os.kill(pid, signal.SIGKILL)
    strict.wait_until(lambda: not alive(pid), "it is dead")
    strict.wait_until(lambda: ready(strict.url), "it is back")
    await until_router_answers(strict)
    router = strict.pid_of("router")
    gateway = strict.pid_of("gateway")
    async with strict.http(strict.token("administrator")) as http:
        async with asyncio.timeout(10):
            while not await in_journal(http, made["id"]):
                await asyncio.sleep(0.05)
    os.kill(gateway, signal.SIGKILL)
    strict.wait_until(lambda: not alive(gateway), "the gateway is dead")
    strict.wait_until(lambda: ready(strict.url), "it is back")
    assert alive(router)
    async with strict.http(strict.token("unforgotten")) as http:
        answer = await http.post("/v1/connect")
        assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")


async def in_journal(http: httpx.AsyncClient, id: str) -> bool:
    """Whether the router has it: a revocation that says the same gets its id."""
    answer = await http.post("/v1/revocations", json={"user": "unforgotten"})
    return bool(answer.status_code == 201 and answer.json()["id"] == id)
