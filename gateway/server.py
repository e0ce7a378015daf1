"""The gateway's process: Granian, the HTTP routes, the relay, and the link to the router."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import structlog

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.auth.tokens import Tokens
from solowire.backplane.messages import ShardStats
from solowire.gateway.admission.client_address import ClientAddressResolver
from solowire.gateway.admission.connect_limiter import ConnectLimiter
from solowire.gateway.audit_events import GatewayAudit
from solowire.gateway.front.client_connection import ClientConnection, FrontContext
from solowire.gateway.front.connection_registry import FILES_OF_HTTP, ConnectionRegistry
from solowire.gateway.front.http_front import HttpFront
from solowire.gateway.front.relay import PATHS, Relay
from solowire.gateway.front.unread_bodies import with_ends
from solowire.gateway.http.api import create_app
from solowire.gateway.http.assets import HEADS, Assets
from solowire.gateway.http.connect_endpoint import ConnectEndpoint
from solowire.gateway.http.events_endpoint import EventsEndpoint
from solowire.gateway.http.openapi import find_swagger_ui
from solowire.gateway.http.responses import send_response
from solowire.gateway.http.shard_client import ShardClient
from solowire.gateway.http.user_paths import with_user_paths
from solowire.gateway.publish.publish_limiter import PublishLimiter
from solowire.gateway.router_client import RouterClient
from solowire.model.access import Role
from solowire.observability.audit import open_audit
from solowire.observability.loop_monitor import LoopMonitor, memory_bytes
from solowire.observability.metrics import LabelledSample, Metrics, Sample
from solowire.protocol.opening_handshake import MORE_HEADERS, Head, make_upgrade_required
from solowire.protocol.problem_details import to_http_response
from solowire.runtime import process
from solowire.runtime.data_directory import make_directories
from solowire.runtime.domain_loader import load_domain
from solowire.runtime.http_server import WebServer, listen, listen_unix, remove_dead_sockets
from solowire.runtime.identity import make_key_source, make_tokens, reload_identity
from solowire.runtime.roles import load_roles
from solowire.runtime.settings import Settings

logger = structlog.get_logger("solowire.gateway")

OTHER_FILES = 100
"""Open files of a gateway that are no connections of clients."""
UPSTREAM_SECONDS = 3600.0
"""How long Granian waits for a head: the port in front of it has its own, shorter times."""
CLOSING_SECONDS = 1.0


def serve(settings: Settings) -> None:
    """Runs the gateway until it is told to stop. Raises ConfigError if it can't start."""
    domain = load_domain(settings)
    roles = load_roles(settings, domain.catalog)
    tokens = make_tokens(settings, roles, domain, create=True)
    process.on_reload(lambda fresh: reload_identity(fresh, tokens, roles))
    process.run(lambda stop: _main(settings, tokens, roles, stop))


async def _main(settings: Settings, tokens: Tokens, roles: Mapping[str, Role], stop: asyncio.Event) -> None:
    sock = listen(settings.host, settings.port, stalled_s=settings.listen.write_timeout_s)
    audit = open_audit(settings, "gateway")
    trail = GatewayAudit(audit)
    refused, refused_per_s = 0, 0.0

    def each_second() -> None:
        nonlocal refused, refused_per_s
        audit.flush_suppressed()
        tokens.revocations.expire(time.time())
        total = gateway.rejections.total()
        refused_per_s, refused = float(total - refused), total

    def stats() -> ShardStats:
        return ShardStats(
            refused=refused,
            refused_per_s=refused_per_s,
            memory_bytes=memory_bytes(),
            loop_lag_s=round(vitals.loop_lag_s, 4),
        )

    vitals = LoopMonitor(each_second)
    key_source = make_key_source(settings, tokens)
    gateway = RouterClient(
        settings.backplane_address,
        tokens,
        roles,
        PublishLimiter(settings.publish),
        timeout=settings.publish.timeout_s,
        pace=settings.shard.rebalance_users_per_s,
        connect_limiter=ConnectLimiter(settings.limits, settings.auth),
        addresses=ClientAddressResolver(settings.listen.trusted_proxies, settings.listen.forwarded_headers),
        stats=stats,
        audit=trail,
        refresh_keys=None if key_source is None else key_source.wait_for_refresh,
    )
    negotiation = ConnectEndpoint(gateway, settings.gateway.shard_url)
    relay = Relay(
        gateway, allowed_origins=settings.listen.allowed_origins, send_buffer=settings.listen.send_buffer_bytes
    )
    assets = Assets(find_swagger_ui())

    def takes(head: Head) -> bool:
        return relay.can_handle(head) or assets.can_handle(head)

    def open_tunnel(client: ClientConnection, head: Head, rest: bytes) -> None:
        (relay.accept_client if relay.can_handle(head) else assets.serve_file)(client, head, rest)

    room = AcceptLimiter(settings.gateway.max_http_connections, settings.gateway.max_http_connections_per_address)
    # A name of its own: several gateways of one data directory may have the same port, each at its address.
    upstream = settings.run_dir.absolute() / f"g{settings.port}-{process.new_id()[:8]}"
    context = FrontContext(
        str(upstream),
        registry=ConnectionRegistry(
            room,
            max(FILES_OF_HTTP, process.raise_file_limit() - OTHER_FILES),
        ),
        can_tunnel=takes,
        plain_heads=HEADS,
        open_tunnel=open_tunnel,
        is_trusted=gateway.addresses.is_trusted,
        head_s=settings.listen.request_head_timeout_s,
        keepalive_s=settings.listen.keepalive_timeout_s,
        stalled_s=settings.listen.write_timeout_s,
        direct={
            (b"POST", b"/v1/events"): lambda *request: posting(*request),
            (b"POST", b"/v1/connect"): lambda scope, _, send: negotiation(scope, send),
            (b"GET", b"/v1/route"): lambda scope, _, send: negotiation(scope, send),
        },
    )
    front = HttpFront(context)
    shards = ShardClient()

    def samples() -> Iterator[Sample]:
        yield "relayed_connections", "WebSockets that this gateway carries.", relay.open_count
        yield "http_connections", "HTTP connections that are open.", len(room)
        yield (
            "accept_refusals_total",
            "Connections refused before anything was read.",
            room.rejected_count,
        )
        yield "relayed_connections_total", "WebSockets that it has carried.", relay.opened_count
        intake = gateway.publish_limiter
        yield "publish_held_requests", "Publish requests being read, or under way to the router.", intake.requests
        yield "publish_held_bytes", "Their size together.", intake.bytes
        yield "publish_overload_refusals_total", "Publish requests refused for want of room.", intake.overload_count
        yield "publish_slow_requests_total", "Publish requests ended while they were read.", intake.slow_count
        yield (
            "publish_rate_refusals_total",
            "Publish requests refused for their publisher's rate.",
            intake.rate_limited_count,
        )
        yield "backplane_dropped_total", "Messages of the router that could not be decoded.", gateway.dropped_count
        yield LabelledSample(
            "refusals_total", "Connections refused, by the problem's code.", "code", gateway.rejections
        )
        yield "loop_lag_seconds", "Lateness of a timer, at most, in the last second.", vitals.loop_lag_s
        yield "audit_lines_lost_total", "Lines of the audit log that could not be written.", audit.lost_count
        yield "revocations", "Revocations in force.", len(tokens.revocations)
        keys, age_s, failed = (
            (key_source.key_count, key_source.age_s, key_source.failed_count) if key_source else (0, 0.0, 0)
        )
        yield "provider_keys", "Public keys of the provider that are in use.", keys
        yield "provider_keys_age_seconds", "How long ago they were read; infinite if never.", age_s
        yield "provider_key_failures_total", "Attempts to read them that failed.", failed
        yield "wrong_tokens_total", "Tokens that proved nothing.", gateway.auth_failures
        yield "held_answers", "Answers to wrong tokens that are held back now.", gateway.delayed_responses
        yield "held_answers_total", "Answers to wrong tokens that were held back.", gateway.delayed_responses_total

    posting = EventsEndpoint(gateway, settings, trail)
    http = with_user_paths(create_app(gateway, negotiation, posting, settings, Metrics(samples), shards, trail))  # type: ignore[arg-type]

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] in PATHS:  # without an upgrade, which the front takes itself
            status, headers, body = to_http_response(make_upgrade_required())
            send_response(send, status, [*headers, *MORE_HEADERS[status]], body)
        elif negotiation.can_handle(scope):
            await negotiation(scope, send)
        elif posting.can_handle(scope):
            await posting(scope, receive, send)
        elif scope["method"] == "HEAD":  # as GET (RFC 9110, section 9.3.2); Granian leaves the body out
            await http({**scope, "method": "GET"}, receive, send)
        else:
            await http(scope, receive, send)

    make_directories(settings)
    remove_dead_sockets(settings.run_dir, "g", socket.SOCK_STREAM)
    server = WebServer(front.wrap(with_ends(app)), listen_unix(upstream), handshake_s=UPSTREAM_SECONDS)
    if key_source is not None:
        key_source.start()
    server.start()
    await front.start(sock)
    logger.info("gateway_listening", host=settings.host, port=sock.getsockname()[1])
    process.tune_gc()
    try:
        await stop.wait()
    finally:
        relay.close()
        front.finish()
        await gateway.finish()
        await server.finish()
        upstream.unlink(missing_ok=True)
        await front.wait_for_ends(CLOSING_SECONDS)
        await shards.close()
        if key_source is not None:
            await key_source.close()
        vitals.close()
        audit.close()
