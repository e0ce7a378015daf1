"""Where a client is told to connect, and an edge proxy to pass it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from solowire.auth.tokens import Tokens
from solowire.backplane.messages import RingState, ShardAddress
from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.errors import InvalidToken, RequestRejected
from solowire.gateway.http.connect_endpoint import ConnectEndpoint
from solowire.gateway.publish.publish_limiter import PublishLimiter
from solowire.gateway.router_client import RouterClient
from solowire.model.access import ROLES
from solowire.protocol.dialect_requests import DialectRequests
from solowire.runtime.settings.publish_settings import PublishSettings

TOKENS = Tokens("s" * 32, ROLES, domain=DNS)
OLD = DialectRequests(LegacyDialect(DNS.catalog, datetime(2027, 12, 31, tzinfo=UTC), "/guide"))


class Asked(dict[str, Any]):
    """The scope of an edge proxy's question about a request for `target`, with that request's headers."""

    def __init__(self, target: str = "/ws", **headers: str) -> None:
        shown = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        super().__init__(
            headers=[(b"x-original-uri", target.encode()), *shown],
            query_string=b"",
            client=("192.0.2.1", 1),
            scheme="http",
            method="GET",
            path="/v1/route",
        )


def token(user: str) -> str:
    return TOKENS.sign_token(user, "viewer", now=time.time(), ttl=60)


@pytest.fixture
async def gateway(tmp_path: Path) -> Iterator[RouterClient]:  # type: ignore[misc]
    intake = PublishLimiter(PublishSettings(max_held_requests=8, timeout_s=2.0, rate=1e6, burst=1e6))
    made = RouterClient(f"ipc://{tmp_path}/r", TOKENS, ROLES, intake, timeout=1.0)
    try:
        yield made
    finally:
        made.close()


def know_shards(gateway: RouterClient, *shards: ShardAddress, version: int = 1) -> None:
    gateway._on_message(RingState("e", version, 0, list(shards)))


@pytest.mark.parametrize(
    ("host", "upstream"),
    [("10.0.0.7", "10.0.0.7:9001"), ("shard-0.example", "shard-0.example:9001"), ("2001:db8::7", "[2001:db8::7]:9001")],
)
async def test_an_edge_proxy_is_told_an_upstream_that_it_can_read(
    gateway: RouterClient, host: str, upstream: str
) -> None:
    """A name, an IPv4 address and an IPv6 address are each told as RFC 3986 writes host and port."""
    know_shards(gateway, ShardAddress(0, host, 9001, "boot"))
    routed = await ConnectEndpoint(gateway, "").make_route(Asked(authorization=f"Bearer {token('ann')}"))
    assert routed["x-solowire-upstream"] == upstream


async def test_a_ticket_leads_to_its_shard_wherever_that_is(gateway: RouterClient) -> None:
    """A URL of /v1/connect is passed to the shard that it names, also after that has moved, with the same ticket."""
    know_shards(gateway, ShardAddress(0, "10.0.0.1", 8001, "a"), ShardAddress(1, "10.0.0.2", 8001, "b"))
    endpoint = ConnectEndpoint(gateway, "wss://live.example/s/{shard}/ws")
    grant = await endpoint.make_grant(Asked(authorization=f"Bearer {token('ann')}"))
    asked = Asked(grant.url.removeprefix("wss://live.example"))
    routed = await endpoint.make_route(asked)
    assert routed == {
        "x-solowire-upstream": f"10.0.0.{grant.shard + 1}:8001",
        "x-solowire-shard": str(grant.shard),
        "x-solowire-ticket": grant.ticket,
    }
    know_shards(gateway, ShardAddress(grant.shard, "10.0.0.9", 8001, "c"), version=2)
    assert (await endpoint.make_route(asked))["x-solowire-upstream"] == "10.0.0.9:8001"
    know_shards(gateway, ShardAddress(1 - grant.shard, "10.0.0.8", 8001, "d"), version=3)
    with pytest.raises(RequestRejected) as refused:
        await endpoint.make_route(asked)
    assert (refused.value.status, refused.value.code) == (503, "shard_unavailable")
    assert refused.value.retry_after == 1


async def test_a_ticket_of_nobody_leads_nowhere(gateway: RouterClient) -> None:
    """A ticket that others have signed, or that has been altered, is refused before any shard hears of it."""
    know_shards(gateway, ShardAddress(0, "10.0.0.1", 8001, "a"))
    endpoint = ConnectEndpoint(gateway, "ws://live.example/s/{shard}/ws")
    grant = await endpoint.make_grant(Asked(authorization=f"Bearer {token('ann')}"))
    for ticket in ("x", grant.ticket[:-1] + ("A" if grant.ticket[-1] != "A" else "B"), "a.b"):
        with pytest.raises(InvalidToken):
            await endpoint.make_route(Asked(f"/s/0/ws?ticket={ticket}"))


@pytest.mark.parametrize(
    ("target", "headers", "kind"),
    [
        ("/ws?token=", {"origin": "https://a.example"}, "admin"),
        ("/ws?token=", {"origin": "https://a.example", "sec_websocket_protocol": "solowire.v1.json"}, None),
        ("/ws?token=", {}, None),
        ("/ws/health?token=", {"origin": "https://a.example"}, None),  # its path says it
    ],
)
async def test_an_old_page_is_marked(
    gateway: RouterClient, target: str, headers: dict[str, str], kind: str | None
) -> None:
    """At the path of both protocols the edge is told who looks like an old page, since it passes no token on."""
    know_shards(gateway, ShardAddress(0, "10.0.0.1", 8001, "a"))
    endpoint = ConnectEndpoint(gateway, "", OLD)
    routed = await endpoint.make_route(Asked(target + token("ann"), **headers))
    assert routed.get("x-solowire-dialect") == kind


async def test_a_refusal_has_its_code_in_a_header(gateway: RouterClient) -> None:
    """A proxy that can't pass the body of a refusal on reads its code, and when to come again, from the headers."""
    sent: list[dict[str, Any]] = []
    await ConnectEndpoint(gateway, "")(Asked(authorization=f"Bearer {token('ann')}"), None, sent.append)  # type: ignore[arg-type]
    assert sent[0]["status"] == 503
    headers = dict(sent[0]["headers"])
    assert headers[b"x-solowire-code"] == b"no_shard"
    assert headers[b"retry-after"] == b"1"
