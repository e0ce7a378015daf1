"""The audit log of a running system: who did what is in it, and no token, ticket or payload is."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.system import ANSWER_SECONDS, System, open_session, refusal, running, whole_lines

PAYLOAD = "what-the-event-says-is-nobodys-business"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"AUTH__BAD_TOKEN_BURST": 10_000}  # many wrong tokens come from one address here
    with running(tmp_path_factory.mktemp("audit") / "data", shards=2, settings=settings) as started:
        yield started


def files(system: System) -> list[Path]:
    return sorted((system.data_dir / "audit").iterdir())


def lines(system: System, event: str, **fields: Any) -> list[dict[str, Any]]:
    """The lines of all processes that tell of `event` with these fields."""
    found = [json.loads(line) for path in files(system) for line in whole_lines(path)]
    return [line for line in found if line["event"] == event and line.items() >= fields.items()]


async def told(system: System, event: str, **fields: Any) -> dict[str, Any]:
    """The one line about it; what a process is told by another takes a moment."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while not (found := lines(system, event, **fields)):
            await asyncio.sleep(0.02)
    assert len(found) == 1, found
    return found[0]


async def test_what_people_do_is_in_it_and_what_is_secret_is_not(system: System) -> None:
    """Connecting, subscribing, being refused, publishing, administering and leaving: a line each, and no secrets."""
    user, publisher = system.user_on(1, "ann"), "pub"
    secrets = [system.token(user, "viewer"), system.token(publisher, "publisher"), system.token("root")]
    secrets.append(system.secret)
    negotiated = await system.negotiate(secrets[0])
    secrets.append(negotiated["ticket"])
    async with open_session(negotiated["url"]) as session:
        await session.say(type="hello", subscriptions=["custom.*", "user.*"])
        session_id = (await session.hear("welcome"))["session"]
        await session.ask("subscriptions", type="subscribe", event_types=["security_alert"])
        event = {"type": "custom.x", "id": "an-id", "data": {"text": PAYLOAD}}
        published = await system.publish(event, {**event, "id": "another"}, token=secrets[1])
        assert (await system.publish(event, token=secrets[1]))["duplicates"] == 1
        await session.events(2)
    who = {"user": user, "role": "viewer", "session": session_id, "shard": 1}
    connected = await told(system, "connected", **who)
    assert (connected["codec"], connected["transport"]) == ("json", "direct")
    await told(system, "disconnected", **who)
    first, then = lines(system, "subscribed", **who)
    assert first["subscriptions"] == ["custom.*", "user.*"]
    assert first["denied"]
    assert then["subscriptions"][-1] == "security_alert"
    one = await told(system, "published", user=publisher, duplicates=0)
    assert (one["events"], one["types"], one["first"]) == (2, {"custom.x": 2}, published["first_offset"])
    assert one["last"] == published["last_offset"]
    assert one["address"] == "127.0.0.1"
    await told(system, "published", user=publisher, duplicates=1, events=1)

    status, problem = await refusal(negotiated["url"])
    assert (status, problem["code"]) == (401, "ticket_used")
    await told(system, "refused", code="ticket_used", action="connect", address="127.0.0.1", shard=1, user=user)
    async with system.http(secrets[1]) as http:
        assert (await http.post("/v1/connect")).status_code == 403
        assert (await http.get("/v1/stats")).status_code == 403
    await told(system, "refused", user=publisher, code="forbidden", action="connect")
    await told(system, "refused", user=publisher, code="forbidden", action="stats")
    async with system.http(secrets[0]) as http:
        assert (await http.post("/v1/events", json=event)).status_code == 403
    async with system.api(1, secrets[0]) as api:
        assert (await api.get("/stats")).status_code == 403
    await told(system, "refused", user=user, code="forbidden", action="publish")
    await told(system, "refused", user=user, code="forbidden", action="administer", path="/stats", shard=1)
    async with system.http(secrets[2]) as http:
        assert (await http.get(f"/v1/users/{user}")).status_code == 404
        assert (await http.get("/v1/stats/shards/0")).status_code == 200
        assert (await http.post("/v1/shards/9/drain")).status_code == 404
    await told(system, "administered", user="root", action="stats_user", about=user)
    await told(system, "administered", user="root", action="stats_shard", shard=0, role="admin")
    await told(system, "administered", user="root", action="drain", shard=9)
    await told(system, "draining", user="root", shard=9, users=None)  # the router: it is the one that does it
    # The shards say what the gateway asks them: both about the user, whom none has any more, and one about itself.
    for shard in (0, 1):
        await told(system, "administered", user="root", path=f"/stats/users/{user}", shard=shard, via="gateway")
    await told(system, "administered", user="root", path="/stats", shard=0, via="gateway")
    async with system.api(1, secrets[2]) as api:
        assert (await api.get("/stats")).status_code == 200
    await told(system, "administered", user="root", role="admin", action="stats", path="/stats", shard=1)
    # Of what a person asks there is one line that says where, and not who passed it on.
    assert sum("via" not in line for line in lines(system, "administered", user="root")) == 4
    await refusal(f"ws://127.0.0.1:{system.port}/ws?token={secrets[0]}x")
    await told(system, "refused", action="relay", code="invalid_token")

    assert [path.name for path in files(system)] == [
        "gateway.jsonl",
        "router.jsonl",
        "shard-0.jsonl",
        "shard-1.jsonl",
    ]
    for path in files(system):
        assert path.stat().st_mode & 0o777 == 0o600
        text = path.read_text()
        for secret in (*secrets, *(part for s in secrets for part in s.split(".")[1:]), PAYLOAD, "an-id"):
            assert secret not in text


async def test_what_a_publisher_sends_in_vain_is_in_it(system: System) -> None:
    """A request that is refused once it was read, for its events or its size, is told as one refused before."""
    token = system.token("vain", "publisher")
    async with system.http(token) as http:
        assert (await http.post("/v1/events", json={"type": "no.such.type", "data": {}})).status_code == 400
        assert (await http.post("/v1/events", content=b"[" + b" " * 2**24 + b"]")).status_code == 413
        assert (await http.post("/v1/events", content=b"{")).status_code == 400
    who = {"user": "vain", "role": "publisher", "action": "publish", "address": "127.0.0.1"}
    await told(system, "refused", code="too_large", **who)
    async with asyncio.timeout(ANSWER_SECONDS):
        while len(lines(system, "refused", **who)) < 3:
            await asyncio.sleep(0.02)
    assert len(lines(system, "refused", **who)) == 3


async def test_a_flood_of_refusals_is_no_flood_of_lines(system: System) -> None:
    """A few hundred refusals are a few lines a second, and all of them are counted."""
    flood = 400
    limits = httpx.Limits(max_connections=20)
    async with httpx.AsyncClient(
        base_url=system.url, limits=limits, timeout=ANSWER_SECONDS, trust_env=False, verify=False
    ) as http:
        headers = {"authorization": "Bearer x.y.z"}
        before = len(lines(system, "refused", code="invalid_token"))
        answers = await asyncio.gather(*(http.get("/v1/stats", headers=headers) for _ in range(flood)))
        assert {a.status_code for a in answers} == {401}
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            found = lines(system, "refused", code="invalid_token")[before:]
            if sum(line.get("count", 1) for line in found) >= flood:
                break
            await asyncio.sleep(0.05)
    assert sum(line.get("count", 1) for line in found) == flood
    assert len(found) < flood / 4


async def test_a_directory_that_takes_nothing_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    """Where the audit log can't be written the system starts and serves, and counts what it lost."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "audit").write_text("in the way")
    with running(data, shards=1) as system:
        async with system.session(system.token("ann"), {"subscriptions": ["custom.*"]}) as session:
            await system.publish({"type": "custom.x", "data": {}})
            await session.events(1)
        async with system.http() as gateway, system.api(0) as shard, asyncio.timeout(ANSWER_SECONDS):
            for http in (gateway, shard):
                while not await lost(http):
                    await asyncio.sleep(0.02)
        system.wait_until(lambda: "audit_record_dropped" in system.output.read_text(), "it is told")


async def lost(http: httpx.AsyncClient) -> float:
    """How many lines a process could not write, by its metrics."""
    text = (await http.get("/metrics")).text
    [line] = [x for x in text.splitlines() if re.match(r"solowire_\w+_audit_records_dropped_total\b", x)]
    return float(line.split()[-1])
