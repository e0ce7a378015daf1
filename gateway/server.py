"""The gateway's process: Granian, the HTTP routes, the relay, and the link to the router."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from gateway.api import create_app
from gateway.gateway import Gateway
from gateway.relay import Relay
from gateway.shards import Shards
from gateway.trail import Trail
from solowire import process
from solowire.access import Role
from solowire.audit import open_audit
from solowire.backplane import ShardStats
from solowire.metrics import Labelled, Metrics, Sample
from solowire.roles import roles_of
from solowire.serving import WebServer, listen
from solowire.settings import Settings, secret_of
from solowire.tokens import Tokens
from solowire.vitals import Vitals, memory_bytes

log = structlog.get_logger("solowire.gateway")


def serve(settings: Settings) -> None:
    """Runs the gateway until it is told to stop. Raises ConfigError if it can't start."""
    secret, _ = secret_of(settings, create=True)
    roles = roles_of(settings)
    process.run(lambda stop: _main(settings, Tokens(secret, roles), roles, stop))


async def _main(settings: Settings, tokens: Tokens, roles: Mapping[str, Role], stop: asyncio.Event) -> None:
    sock = listen(settings.host, settings.port, send_buffer=settings.send_buffer_bytes, stalled_s=settings.stalled_s)
    audit = open_audit(settings, "gateway")
    trail = Trail(audit)
    refused, refused_per_s = 0, 0.0

    def each_second() -> None:
        nonlocal refused, refused_per_s
        audit.second()
        total = gateway.refused.total()
        refused_per_s, refused = float(total - refused), total

    def stats() -> ShardStats:
        return ShardStats(
            refused=refused,
            refused_per_s=refused_per_s,
            memory_bytes=memory_bytes(),
            loop_lag_s=round(vitals.loop_lag_s, 4),
        )

    vitals = Vitals(each_second)
    gateway = Gateway(
        settings.backplane_address,
        tokens,
        roles,
        timeout=settings.publish_timeout_s,
        pace=settings.moves_per_s,
        stats=stats,
    )
    relay = Relay(gateway, stalled_s=settings.stalled_s, trail=trail)
    shards = Shards()

    def samples() -> Iterator[Sample]:
        yield "relayed_connections", "WebSockets that this gateway carries.", relay.open
        yield "relayed_connections_total", "WebSockets that it has carried.", relay.carried_total
        yield "backplane_dropped_total", "Messages of the router that could not be decoded.", gateway.dropped
        yield Labelled("refusals_total", "Connections refused, by the problem's code.", "code", gateway.refused)
        yield "loop_lag_seconds", "Lateness of a timer, at most, in the last second.", vitals.loop_lag_s
        yield "audit_lines_lost_total", "Lines of the audit log that could not be written.", audit.lost

    http = create_app(gateway, settings, Metrics(samples), shards, trail)

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await relay(scope, receive, send)
        else:
            await http(scope, receive, send)  # type: ignore[arg-type]

    server = WebServer(app, sock)
    server.start()
    log.info("gateway_listening", host=settings.host, port=sock.getsockname()[1])
    process.calm_collector()
    try:
        await stop.wait()
    finally:
        await relay.close()
        gateway.close()
        await server.finish()
        await shards.close()
        vitals.close()
        audit.close()
