"""The gateway's process: Granian, the HTTP routes, the relay, and the link to the router."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import structlog

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.auth.failed_auth_limiter import REMEMBERED_ADDRESSES
from solowire.auth.leniency import Leniency
from solowire.auth.tokens import Tokens
from solowire.backplane.messages import ShardStats
from solowire.gateway.admission.client_address import ClientAddressResolver
from solowire.gateway.admission.connect_limiter import ConnectLimiter
from solowire.gateway.audit_events import GatewayAudit
from solowire.gateway.front.client_connection import ClientConnection, FrontContext
from solowire.gateway.front.connection_registry import FILES_OF_HTTP, ConnectionRegistry
from solowire.gateway.front.http_front import HttpFront
from solowire.gateway.front.relay import Relay
from solowire.gateway.front.unread_bodies import with_ends
from solowire.gateway.http.api import create_app
from solowire.gateway.http.assets import HEADS, Assets
from solowire.gateway.http.connect_endpoint import ConnectEndpoint
from solowire.gateway.http.cross_origin import CrossOriginRules
from solowire.gateway.http.events_endpoint import EventsEndpoint
from solowire.gateway.http.history_endpoint import HistoryEndpoint
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
from solowire.observability.process_samples import read_process_samples
from solowire.observability.process_tracer import open_tracer
from solowire.observability.tls_samples import read_tls_samples
from solowire.protocol.opening_handshake import MORE_HEADERS, Head, make_upgrade_required
from solowire.protocol.problem_details import to_http_response
from solowire.runtime import process
from solowire.runtime.backplane_keys import load_member_keys
from solowire.runtime.data_directory import make_directories
from solowire.runtime.domain_loader import list_own_types, load_domain
from solowire.runtime.http_server import WebServer, listen, listen_unix, remove_dead_sockets
from solowire.runtime.identity import make_key_source, make_tokens, reload_identity
from solowire.runtime.old_frontends import make_dialect_requests
from solowire.runtime.roles import load_roles, warn_of_ungranted
from solowire.runtime.server_certificate import ServerCertificate, open_certificate
from solowire.runtime.settings import Settings
from solowire.runtime.tls_port import TlsPort

logger = structlog.get_logger("solowire.gateway")

OTHER_FILES = 100
"""Open files of a gateway that are no connections of clients."""
UPSTREAM_SECONDS = 3600.0
"""How long Granian waits for a head: the port in front of it has its own, shorter times."""
CLOSING_SECONDS = 1.0


def serve(settings: Settings) -> None:
    """Runs the gateway until it is told to stop. Raises ConfigError if it can't start."""
    load_member_keys(settings)  # what is wrong with them is one line, before anything is made
    domain = load_domain(settings)
    roles = load_roles(settings, domain.catalog)
    warn_of_ungranted(roles, list_own_types(domain))
    tokens = make_tokens(settings, roles, domain, create=True)
    process.on_reload(lambda fresh: reload_identity(fresh, tokens, roles))
    certificate = open_certificate(settings, time.time())
    if certificate is not None:
        process.on_reload(lambda _: _reload_certificate(certificate), is_last=True)
    process.run(lambda stop: _main(settings, tokens, roles, certificate, stop))


def _reload_certificate(certificate: ServerCertificate) -> None:
    certificate.reload_if_changed(time.time())


async def _main(
    settings: Settings,
    tokens: Tokens,
    roles: Mapping[str, Role],
    certificate: ServerCertificate | None,
    stop: asyncio.Event,
) -> None:
    sock = listen(settings.host, settings.port, stalled_s=settings.listen.write_timeout_s)
    audit = open_audit(settings, "gateway")
    gateway_audit = GatewayAudit(audit)
    rejected, rejected_per_s = 0, 0.0

    def each_second() -> None:
        nonlocal rejected, rejected_per_s
        audit.flush_suppressed()
        if certificate is not None:
            certificate.check(time.time())
        tokens.revocations.expire(time.time())
        total = gateway.rejections.total()
        rejected_per_s, rejected = float(total - rejected), total

    def stats() -> ShardStats:
        return ShardStats(
            connections_rejected=rejected,
            connections_rejected_per_s=rejected_per_s,
            memory_bytes=memory_bytes(),
            event_loop_lag_s=round(loop_monitor.event_loop_lag_s, 4),
        )

    loop_monitor = LoopMonitor(each_second)
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
        audit=gateway_audit,
        refresh_keys=None if key_source is None else key_source.wait_for_refresh,
        leniency=Leniency(settings.legacy_expiry_grace, settings.legacy_admin_memory_s),
        keys=load_member_keys(settings),
    )
    dialects = make_dialect_requests(settings, tokens.domain)
    connect_endpoint = ConnectEndpoint(gateway, settings.shard_url, dialects)
    tracer = open_tracer(os.environ, "gateway", gateway.name)
    events_endpoint = EventsEndpoint(gateway, settings, gateway_audit, tracer)
    relay = Relay(
        gateway,
        allowed_origins=settings.listen.allowed_origins,
        send_buffer=settings.listen.send_buffer_bytes,
        dialects=dialects,
    )
    assets = Assets(find_swagger_ui())

    cross_origin = CrossOriginRules(settings.listen.allowed_origins)

    def can_tunnel(head: Head) -> bool:
        return relay.can_handle(head) or assets.can_handle(head)

    def open_tunnel(client: ClientConnection, head: Head, rest: bytes) -> None:
        (relay.accept_client if relay.can_handle(head) else assets.serve_file)(client, head, rest)

    room = AcceptLimiter(settings.gateway.max_http_connections, settings.gateway.max_http_connections_per_address)
    # A name of its own: several gateways of one data directory may have the same port, each at its address.
    upstream = settings.run_dir.absolute() / f"g{settings.port}-{process.new_id()[:8]}"
    tls = None if certificate is None else TlsPort(certificate)
    context = FrontContext(
        str(upstream),
        registry=ConnectionRegistry(
            room,
            max(FILES_OF_HTTP, process.raise_file_limit() - OTHER_FILES),
        ),
        can_tunnel=can_tunnel,
        plain_heads=HEADS,
        open_tunnel=open_tunnel,
        is_trusted=gateway.addresses.is_trusted,
        head_s=settings.listen.request_head_timeout_s,
        keepalive_s=settings.listen.keepalive_timeout_s,
        stalled_s=settings.listen.write_timeout_s,
        arrivals=BucketTable(
            Rate(settings.gateway.connection_rate_per_address, settings.gateway.connection_burst_per_address),
            REMEMBERED_ADDRESSES,
        ),
        tls=tls,
        direct={
            (b"POST", b"/v1/events"): events_endpoint,
            (b"POST", b"/v1/connect"): cross_origin.wrap(connect_endpoint),
            (b"GET", b"/v1/route"): connect_endpoint,
        },
    )
    front = HttpFront(context)
    shards = ShardClient()
    history = HistoryEndpoint(gateway, shards, settings.history)

    def samples() -> Iterator[Sample]:
        yield "http_connections", "Open HTTP connections.", len(room)
        yield (
            "http_connections_rejected_total",
            "HTTP connections closed on accept because too many were open.",
            room.rejected_count,
        )
        yield from read_tls_samples(tls)
        yield "relayed_connections", "Open WebSockets relayed to a shard.", relay.open_count
        yield "relayed_connections_opened_total", "WebSockets relayed to a shard.", relay.opened_count
        yield "history_requests_total", "History requests.", history.request_count
        yield "history_answers", "Answers about history under way or unread.", history.answer_count
        yield LabelledSample(
            "connections_rejected_total",
            "Connect, route and relay requests rejected, by error code.",
            "reason",
            gateway.rejections,
        )
        limiter = gateway.publish_limiter
        yield (
            "publish_inflight_requests",
            "Publish requests being read or waiting for the router.",
            limiter.requests,
        )
        yield "publish_inflight_bytes", "Bytes of the publish requests in flight.", limiter.bytes
        yield LabelledSample(
            "publish_rejected_total",
            "Publish requests rejected by this gateway, by error code.",
            "reason",
            {
                "overloaded": limiter.overload_count,
                "publish_rate_limited": limiter.rate_limited_count,
                "too_slow": limiter.slow_count,
            },
        )
        yield (
            "publish_demoted_events_total",
            "Critical events taken as high because of their publisher's rate.",
            events_endpoint.criticals.demoted_count,
        )
        yield "publish_available", "Whether events can be published now, 1 or 0.", float(gateway.can_publish)
        yield "auth_failures_total", "Tokens that failed verification.", gateway.auth_failures
        yield "auth_delayed_responses", "Responses to failed tokens being delayed.", gateway.delayed_responses
        yield (
            "auth_delayed_responses_total",
            "Responses to failed tokens that were delayed.",
            gateway.delayed_responses_total,
        )
        yield "revocations", "Token revocations in force.", len(tokens.revocations)
        keys, age_s, failed = (
            (key_source.key_count, key_source.age_s, key_source.failed_count) if key_source else (0, 0.0, 0)
        )
        yield "jwks_keys", "Public keys of the token issuer in use.", keys
        yield "jwks_age_seconds", "Time since the keys were last read; infinite if never.", age_s
        yield "jwks_refresh_failures_total", "Failed attempts to read the keys.", failed
        yield (
            "legacy_expired_tokens_total",
            "Tokens of old frontends that were accepted after their end.",
            gateway.leniency.late_count,
        )
        yield "held_legacy_connections", "Old frontends' WebSockets that wait for another shard.", len(relay.held)
        yield "backplane_decode_errors_total", "Messages of the router that failed to decode.", gateway.dropped_count
        yield from read_process_samples(loop_monitor, audit, tracer)

    metrics = Metrics("gateway", samples)
    pages = create_app(
        gateway, connect_endpoint, events_endpoint, settings, metrics, shards, gateway_audit, dialects, history
    )
    http = with_user_paths(pages)  # type: ignore[arg-type]

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if relay.is_path(scope["path"]):  # without an upgrade, which the front takes itself
            status, headers, body = to_http_response(make_upgrade_required())
            send_response(send, status, [*headers, *MORE_HEADERS[status]], body)
        elif connect_endpoint.can_handle(scope):
            await connect_endpoint(scope, receive, send)
        elif events_endpoint.can_handle(scope):
            await events_endpoint(scope, receive, send)
        elif scope["method"] == "HEAD":  # as GET (RFC 9110, section 9.3.2); Granian leaves the body out
            await http({**scope, "method": "GET"}, receive, send)
        else:
            await http(scope, receive, send)

    make_directories(settings)
    remove_dead_sockets(settings.run_dir, "g", socket.SOCK_STREAM)
    server = WebServer(
        front.wrap(with_ends(cross_origin.wrap(app))),
        listen_unix(upstream),
        handshake_s=UPSTREAM_SECONDS,
        path=upstream,
    )
    if key_source is not None:
        key_source.start()
    server.start()
    await front.start(sock)
    logger.info("gateway_listening", host=settings.host, port=sock.getsockname()[1], tls=tls is not None)
    process.tune_gc()
    try:
        await stop.wait()
    finally:
        front.stop_listening()  # before: who comes back at once is to come to another gateway
        await relay.drain_dialects(settings.shard.rebalance_users_per_s, settings.process.shutdown_timeout_s / 4)
        relay.close()
        front.finish()
        await gateway.finish()
        await server.finish()
        upstream.unlink(missing_ok=True)
        await front.wait_for_ends(CLOSING_SECONDS)
        await shards.close()
        if key_source is not None:
            await key_source.close()
        loop_monitor.close()
        audit.close()
        if tracer is not None:
            tracer.close()
