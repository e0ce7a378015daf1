"""A gateway's public port with its relay in the test's own process, so that a test sees both sides of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, cast

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.backplane.messages import ShardAddress
from solowire.gateway.admission.client_address import ClientAddressResolver
from solowire.gateway.front.client_connection import FrontContext
from solowire.gateway.front.connection_registry import ConnectionRegistry
from solowire.gateway.front.http_front import HttpFront
from solowire.gateway.front.relay import Relay
from solowire.gateway.router_client import RouterClient
from solowire.protocol.dialect_requests import DialectRequests
from solowire.runtime.http_server import listen

SECONDS = 30.0


class OneShardGateway:
    """As far as a relay asks a gateway: everybody's shard is the same. address: may be set."""

    def __init__(self, address: ShardAddress) -> None:
        self.addresses = ClientAddressResolver()
        self.address = address
        self.return_delay: float | None = None  # of a user whose shard has gone

    @property
    def shards(self) -> dict[int, ShardAddress]:
        return {self.address.index: self.address}

    async def assign_shard(self, token: str, address: str, action: str) -> tuple[ShardAddress, str, str]:
        return self.address, "ticket", "ann"

    async def assign_old_client(self, token: str, address: str, action: str) -> tuple[ShardAddress, str, str]:
        return self.address, "ticket", "ann"

    def find_return_delay(self, user: str, lost: ShardAddress, lost_for: float) -> float | None:
        return self.return_delay


@contextlib.asynccontextmanager
async def relay_front(
    gateway: OneShardGateway,
    folder: Path,
    *,
    origins: Collection[str] = (),
    send_buffer: int | None = None,
    fronts: list[HttpFront] | None = None,
    relays: list[Relay] | None = None,
    dialects: DialectRequests | None = None,
    **limits: Any,
) -> AsyncIterator[int]:
    """The port of a front that relays to the gateway's shard. fronts, relays: get them, if given.

    limits: of `FrontContext`.
    """
    relay = Relay(cast(RouterClient, gateway), allowed_origins=origins, send_buffer=send_buffer, dialects=dialects)
    if relays is not None:
        relays.append(relay)
    settings: dict[str, Any] = {"head_s": SECONDS, "keepalive_s": SECONDS, "stalled_s": SECONDS}
    context = FrontContext(
        str(folder / "g"),
        registry=ConnectionRegistry(AcceptLimiter(1000, 1000)),
        can_tunnel=relay.can_handle,
        open_tunnel=relay.accept_client,
        is_trusted=lambda address: False,
        **{**settings, **limits},
    )
    front = HttpFront(context)
    if fronts is not None:
        fronts.append(front)
    listening = listen("127.0.0.1", 0)
    await front.start(listening)
    try:
        yield listening.getsockname()[1]
    finally:
        relay.close()
        front.finish()
        await front.wait_for_ends(0.5)
