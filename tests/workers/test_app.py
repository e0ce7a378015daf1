"""A shard's HTTP API as an ASGI application: its answers, whom it refuses, and what it writes down of that."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from solowire.algorithms.token_bucket import Rate
from solowire.auth.failed_auth_limiter import FailedAuthLimiter
from solowire.observability.metrics import CONTENT_TYPE
from solowire.workers.app import HttpApi
from solowire.workers.shard import Shard
from tests.support.shard_harness import TOKENS, ShardHarness, connect_stuck

PEER = "198.51.100.9"


class Answer:
    """What it sent. code: of a refusal, else ""."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        start, body = sent
        self.status: int = start["status"]
        self.headers: dict[bytes, bytes] = dict(start["headers"])
        self.body: bytes = body["body"]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def told(self) -> tuple[int, str]:
        return self.status, self.json.get("code", "")


class Site:
    """The API of a shard that nobody else reaches. lines: of the audit log."""

    def __init__(self, wrong_tokens: FailedAuthLimiter | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.bench = ShardHarness()
        self.bench.now = asyncio.get_running_loop().time()  # a shard's clock is the loop's
        self.app = HttpApi(
            self.bench.shard,
            TOKENS,
            lambda form: b"one 1\n",
            wrong_tokens=wrong_tokens or FailedAuthLimiter(Rate(1000.0, 1000.0)),
            audit=lambda event, **fields: self.lines.append({"event": event, **fields}),
        )

    async def get(self, path: str, token: str | None = None, *headers: tuple[bytes, bytes]) -> Answer:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            raise AssertionError("nothing of a body is read")

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        shown = [(b"authorization", f"Bearer {token}".encode())] if token is not None else []
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "client": (PEER, 1),
        }
        await self.app({**scope, "headers": [*shown, *headers]}, receive, send)
        return Answer(sent)

    def admin(self) -> str:
        return self.bench.sign_token("root", "admin")


async def test_who_asks_is_written_down_whoever_passes_it_on() -> None:
    """Each question is a line with user and role; that a gateway asks is told beside it, since anybody may say so."""
    site = Site()
    asked_by_gateway = (b"x-solowire-asked-by", b"gateway")
    assert (await site.get("/stats", site.admin())).told == (200, "")
    assert (await site.get("/stats", site.admin(), asked_by_gateway)).told == (200, "")
    line = {"event": "administered", "user": "root", "role": "admin", "action": "stats"}
    line |= {"path": "/stats", "address": PEER}
    assert site.lines == [line, {**line, "via": "gateway"}]


async def test_a_question_that_is_refused_is_written_down_with_who_asked() -> None:
    """Who is known and may not is named; of a token that proves nothing the address is what is known."""
    site = Site()
    assert (await site.get("/stats", site.bench.sign_token("ann", "viewer"))).told == (403, "forbidden")
    assert (await site.get("/stats/users/ann", "garbage")).told == (401, "invalid_token")
    assert (await site.get("/stats")).told == (401, "missing_token")
    line = {"event": "refused", "action": "administer", "address": PEER}
    assert site.lines == [
        {**line, "code": "forbidden", "path": "/stats", "user": "ann", "role": "viewer"},
        {**line, "code": "invalid_token", "path": "/stats/users/ann", "about": "ann"},
        {**line, "code": "missing_token", "path": "/stats"},
    ]


async def test_wrong_tokens_of_one_address_are_refused_after_some() -> None:
    """Tickets that were shown at the client port count as well; right tokens go on working."""
    wrong_tokens = FailedAuthLimiter(Rate(0.01, 2))
    site = Site(wrong_tokens)
    assert wrong_tokens.record_failure(PEER, asyncio.get_running_loop().time()) is None
    assert (await site.get("/stats", "wrong")).told == (401, "invalid_token")
    assert (await site.get("/stats", "wrong")).told == (429, "too_many_auth_failures")
    assert (await site.get("/stats/users/ann", "")).told == (401, "missing_token")
    assert (await site.get("/stats", site.admin())).told == (200, "")
    codes = [line["code"] for line in site.lines if line["event"] == "refused"]
    assert codes == ["invalid_token", "too_many_auth_failures", "missing_token"]


async def test_statistics_are_for_administrators_and_tell_of_the_slowest() -> None:
    """As many as are asked for, ten if nothing is said; what is no number is no question."""
    site = Site()
    for n in range(12):
        connect_stuck(site.bench, user=f"user-{n}", subscriptions=["custom.a"])
    site.bench.publish("custom.a")
    site.bench.wait(1.0)
    found = (await site.get("/stats", site.admin())).json
    assert (found["shard"], found["ready"], found["connections"]) == (0, True, 12)
    assert len(found["slowest"]) == 10
    for asked, count in (("3", 3), ("0", 0), ("99999999999", 12), ("-1", 10), ("x", 10), ("", 10)):
        assert len((await site.get(f"/stats?slowest={asked}", site.admin())).json["slowest"]) == count


async def test_a_users_connections_are_told() -> None:
    """By its name as it is, with slashes and all; of one that is not here it is 404."""
    site = Site()
    site.bench.connect("a/b c", subscriptions=["custom.a"])
    found = await site.get("/stats/users/a/b c", site.admin())
    assert (found.status, found.json["user"], len(found.json["connections"])) == (200, "a/b c", 1)
    assert (await site.get("/stats/users/nobody", site.admin())).told == (404, "not_connected")


async def test_probes_and_metrics_need_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reaches this port at all may ask, and nothing is noted of it."""
    site = Site()
    assert ((await site.get("/healthz")).json, (await site.get("/readyz")).json) == (
        {"status": "ok"},
        {"status": "ready"},
    )
    metrics = await site.get("/metrics")
    assert (metrics.status, metrics.body) == (200, b"one 1\n")
    assert metrics.headers[b"content-type"] == CONTENT_TYPE.encode()
    monkeypatch.setattr(Shard, "is_ready", False)
    starting = await site.get("/readyz")
    assert (starting.status, starting.json) == (503, {"status": "starting"})
    assert (await site.get("/healthz")).status == 200
    assert site.lines == []


@pytest.mark.parametrize("path", ["/", "/ws", "/stats/", "/statsx", "/stats/users", "/metrics/", "/docs"])
async def test_there_is_nothing_else(path: str) -> None:
    """No WebSocket either: clients have a port of their own."""
    site = Site()
    answer = await site.get(path, site.admin())
    assert answer.told == (404, "not_found")
    for there in ("/stats", "/history", "/metrics", "/healthz", "/readyz"):
        assert there in answer.json["hint"]
    assert site.lines == []
