"""Where a client is told to connect."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from solowire.auth.tokens import Tokens
from solowire.backplane.messages import RingState, ShardAddress
from solowire.domains.dns.dns_domain import DNS
from solowire.gateway.http.connect_endpoint import ConnectEndpoint
from solowire.gateway.publish.publish_limiter import PublishLimiter
from solowire.gateway.router_client import RouterClient
from solowire.model.access import ROLES
from solowire.runtime.settings.publish_settings import PublishSettings


@pytest.mark.parametrize(
    ("host", "upstream"),
    [("10.0.0.7", "10.0.0.7:9001"), ("shard-0.example", "shard-0.example:9001"), ("2001:db8::7", "[2001:db8::7]:9001")],
)
async def test_an_edge_proxy_is_told_an_upstream_that_it_can_read(tmp_path: Path, host: str, upstream: str) -> None:
    """A name, an IPv4 address and an IPv6 address are each told as RFC 3986 writes host and port."""
    tokens = Tokens("s" * 32, ROLES, domain=DNS)
    intake = PublishLimiter(PublishSettings(max_held_requests=8, timeout_s=2.0, rate=1e6, burst=1e6))
    gateway = RouterClient(f"ipc://{tmp_path}/r", tokens, ROLES, intake, timeout=1.0)
    try:
        gateway._on_message(RingState("e", 1, 0, [ShardAddress(0, host, 9001, "boot")]))
        token = tokens.sign_token("ann", "viewer", now=time.time(), ttl=60)
        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {"headers": headers, "query_string": b"", "client": ("192.0.2.1", 1), "scheme": "http"}
        routed = await ConnectEndpoint(gateway, "").make_route(scope)
        assert routed["x-solowire-upstream"] == upstream
    finally:
        gateway.close()
