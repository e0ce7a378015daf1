"""The gateway's HTTP routes (design, section 7), on Litestar.

Refusals are raised anywhere below as `RequestError` and become problem bodies in one place, `answers.failure`: here by
`_problem`, and in front of Litestar (`connect_endpoint`, `events_endpoint`), where what is asked for all the time is
answered.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import structlog
from litestar import Litestar, MediaType, Request, Response, delete, get, post
from litestar.exceptions import HTTPException
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Message, Scope

from solowire.algorithms.rfc3339 import format_rfc3339
from solowire.auth.tokens import parse_bearer
from solowire.backplane.messages import ShardReport, StatsResponse
from solowire.errors import RequestError, RequestRejected
from solowire.gateway.audit_events import GatewayAudit
from solowire.gateway.http.connect_endpoint import ConnectEndpoint, ConnectGrant
from solowire.gateway.http.events_endpoint import EventsAccepted, EventsEndpoint
from solowire.gateway.http.history_endpoint import HistoryEndpoint
from solowire.gateway.http.old_reports import make_old_reports
from solowire.gateway.http.openapi import (
    DOCS,
    PAGE_POLICY,
    HistoryOperation,
    PublishOperation,
    ReadyOperation,
    RevokeOperation,
    document_problems,
    make_openapi_config,
    make_operation,
)
from solowire.gateway.http.responses import NO_SNIFFING, NO_STORE, exception_to_response
from solowire.gateway.http.revocation_requests import describe_revocation, parse_revocation
from solowire.gateway.http.shard_client import ShardClient
from solowire.gateway.http.user_paths import USER
from solowire.gateway.publish.content_encoding import need_plain
from solowire.gateway.router_client import RouterClient
from solowire.model.access import Identity
from solowire.model.catalog import Catalog
from solowire.observability.metrics import CONTENT_TYPE
from solowire.observability.stats_summary import aggregate, stats_to_dict
from solowire.protocol.dialect_requests import DialectRequests
from solowire.protocol.problem_details import PROBLEM_TYPE, make_problem
from solowire.runtime import process
from solowire.runtime.settings import Settings

logger = structlog.get_logger("solowire.gateway")

Req = Request[Any, Any, Any]


class Totals(msgspec.Struct):
    """The whole system. Totals since each process's start; …_per_s: of the last second; latency_s: p50, p95, p99.

    max_connection_lag_s, event_loop_lag_s, events_per_s, lag_offsets: the largest of all shards'. lag_offsets: what a
    shard has not acknowledged. connections_rejected, …_per_s: by shards and gateways. memory_bytes: of the shards.
    legacy: what was served to old frontends, by `path …`, `message …` and `agent …`, and what is open now, by `open …`.
    """

    epoch: str
    last_offset: int
    events: int
    duplicates: int
    gateways: int
    shards: int
    connections: int
    deliveries: int
    frames: int
    sent_bytes: int
    lag_offsets: int
    feeds: int
    lagging: int
    log_events: int
    log_bytes: int
    connections_opened: int
    connections_rejected: int
    groups: dict[str, int]
    codecs: dict[str, int]
    transports: dict[str, int]
    aggregating: dict[str, int]
    events_per_s: float
    deliveries_per_s: float
    frames_per_s: float
    sent_bytes_per_s: float
    connections_rejected_per_s: float
    latency_s: dict[str, float | None]
    max_connection_lag_s: float
    event_loop_lag_s: float
    memory_bytes: int
    lease_used: int
    lease_granted: int
    users: int
    legacy: dict[str, int]


def create_app(
    gateway: RouterClient,
    connect_endpoint: ConnectEndpoint,
    events_endpoint: EventsEndpoint,
    settings: Settings,
    metrics: Any,
    shard_client: ShardClient | None = None,
    audit: GatewayAudit | None = None,
    dialects: DialectRequests | None = None,
    history_endpoint: HistoryEndpoint | None = None,
) -> Litestar:
    """The ASGI application for everything on the gateway that is not a WebSocket.

    shard_client: for what only shards know. audit: the gateway's audit records.
    """
    shard_client, audit = shard_client or ShardClient(), audit or GatewayAudit()
    asked = history_endpoint or HistoryEndpoint(gateway, shard_client, settings.history)

    @post("/v1/connect", status_code=200, summary="Where to connect", tags=["clients"])
    async def connect(request: Req) -> ConnectGrant:
        """Takes a Bearer token, answers with the URL of the user's shard and a ticket for it."""
        return await connect_endpoint.make_grant(request.scope)

    @get("/v1/route", status_code=204, summary="Which upstream owns the user", tags=["edge proxies"])
    async def route(request: Req) -> Response[None]:
        """For nginx `auth_request` and Envoy `ext_authz`: the answer is in the headers."""
        return Response(None, status_code=204, headers=await connect_endpoint.make_route(request.scope))

    @post(
        "/v1/events",
        status_code=200,
        summary="Publish events",
        tags=["publishers"],
        operation_class=PublishOperation,
        request_max_body_size=None,  # the endpoint checks it
    )
    async def publish(request: Req) -> EventsAccepted:
        """Takes one event, an array of them or NDJSON, in JSON or MessagePack; all are accepted, or none.

        Answers when the log has them. An event whose `id` you have used before is a duplicate: not published again.
        """
        return await events_endpoint.publish_events(request.scope, request.receive)

    @get(
        "/v1/events",
        summary="What was sent before",
        tags=["clients"],
        operation_class=HistoryOperation,
        media_type=MediaType.JSON,
    )
    async def history() -> ASGIApp:
        """Events that are in the log still, exactly those that a connection with this token would have been sent.

        A page of them as JSON, or with `Accept: application/x-ndjson` all of them, one a line.
        """
        return asked

    @get("/v1/catalog", summary="The event types", security=[{}], tags=["publishers"])
    async def catalog() -> Response[bytes]:
        """Event types with schemas, permissions and delivery."""
        return Response(_describe_catalog(gateway.tokens.domain.catalog), media_type=MediaType.JSON)

    @get("/v1/stats", summary="Totals", tags=["administrators"])
    async def stats(request: Req) -> Totals:
        await _administrator(request, "stats")
        return _sum_totals(await gateway.fetch_stats())

    @get("/v1/stats/shards", summary="All shards", tags=["administrators"])
    async def shards(request: Req) -> list[dict[str, Any]]:
        await _administrator(request, "stats_shards")
        answer = await gateway.fetch_stats()
        return [_shard_to_dict(report) for report in answer.shards]

    @get("/v1/stats/shards/{index:int}", summary="One shard", tags=["administrators"])
    async def shard(request: Req, index: int) -> dict[str, Any]:
        """Its numbers and, from the shard itself, its slowest connections.

        A shard that doesn't answer has `slowest` null and the reason as `shard_error`: what the router knows of it is
        worth the more then.
        """
        await _administrator(request, "stats_shard", shard=index)
        answer = await gateway.fetch_stats()
        for report in answer.shards:
            if report.address.index == index:
                try:
                    slowest = await shard_client.fetch_slowest(report.address, _token(request))
                    return {**_shard_to_dict(report), "slowest": slowest}
                except RequestRejected as error:
                    return {**_shard_to_dict(report), "slowest": None, "shard_error": error.code}
        raise RequestRejected(404, "no_such_shard", f"there is no shard {index}", "GET /v1/stats/shards lists them")

    @get(
        "/v1/users/{user:str}",
        summary="One user's connections",
        tags=["administrators"],
        operation_class=make_operation(502, 504),
    )
    async def user(request: Req, user: str) -> dict[str, Any]:
        """Asks the shard that owns the user, and if it has no connection there, the others.

        The name is percent-encoded whole: `a/b` is `a%2Fb`.
        """
        user = _named(request)
        await _administrator(request, "stats_user", about=user)
        owner, token = gateway.owner(user), _token(request)
        others = [shard for index, shard in gateway.shards.items() if index != owner]
        first = gateway.shards.get(owner) if owner is not None else None
        try:
            found = await shard_client.fetch_user(user, first, others, token)
        except RequestRejected as error:
            if error.code != "not_connected":
                raise
            # A shard that is being drained is in no ring, and still has those whose turn to move hasn't come.
            drained = [report.address for report in (await gateway.fetch_stats()).shards if report.is_draining]
            found = await shard_client.fetch_user(user, None, drained, token)
        return {"user": user, "connections": found}

    @post(
        "/v1/shards/{index:int}/drain",
        status_code=202,
        summary="Empty a shard",
        tags=["administrators"],
        operation_class=make_operation(409),
    )
    async def drain(request: Req, index: int, force: bool = False) -> dict[str, int]:
        """The shard takes no new users, sends its own to the others at the set pace, and ends.

        The last one that takes users is drained with `force=true` only: without it nobody could connect. A drain holds
        until the shard has ended or is undrained, also if its process is killed and started again meanwhile.
        """
        identity = await _administrator(request, "drain", shard=index)
        return {"shard": index, "users": await gateway.drain_shard(identity, index, is_forced=force)}

    @post(
        "/v1/shards/{index:int}/undrain",
        status_code=202,
        summary="Keep a shard after all",
        tags=["administrators"],
        operation_class=make_operation(409),
    )
    async def undrain(request: Req, index: int) -> dict[str, int]:
        """Ends a drain that is under way: the shard takes users again."""
        identity = await _administrator(request, "undrain", shard=index)
        return {"shard": index, "users": await gateway.undrain_shard(identity, index)}

    @post("/v1/users/{user:str}/disconnect", status_code=200, summary="Disconnect a user", tags=["administrators"])
    async def disconnect(request: Req, user: str) -> dict[str, Any]:
        """Closes all connections of the user, wherever they are, with 4410. It doesn't keep the user from coming back.

        `silent_shards` is how many shards did not answer within a second. The name is percent-encoded whole.
        """
        user = _named(request)
        identity = await _administrator(request, "disconnect", about=user)
        closed = await gateway.disconnect_user(identity, user)
        return {"user": user, "connections": closed.connections, "silent_shards": closed.silent_shards}

    @post(
        "/v1/revocations",
        status_code=201,
        summary="Revoke tokens",
        tags=["administrators"],
        operation_class=RevokeOperation,
    )
    async def revoke(request: Req) -> dict[str, Any]:
        """Tokens of a user, one by its `jti`, or all issued before a time are void within a second, everywhere.

        Connections that they have opened are closed with 4401. It holds until the tokens have expired, or `until`.
        """
        identity = await _administrator(request, "revoke")
        need_plain(request.scope["headers"])
        now, body = time.time(), await request.body()
        asked = parse_revocation(
            body, id=process.new_id(), by=identity.user, now=now, longest=settings.auth.max_token_life_s
        )
        return describe_revocation(await gateway.revoke(asked))

    @get("/v1/revocations", summary="Revocations in force", tags=["administrators"])
    async def revocations(request: Req) -> list[dict[str, Any]]:
        """The oldest first."""
        await _administrator(request, "revocations")
        return [describe_revocation(r) for r in sorted(gateway.tokens.revocations, key=lambda r: r.made_at)]

    @delete("/v1/revocations/{revocation:str}", summary="End a revocation", tags=["administrators"])
    async def unrevoke(request: Req, revocation: str) -> None:
        """The tokens are good again, as far as no other covers them."""
        identity = await _administrator(request, "unrevoke", about=revocation)
        await gateway.unrevoke(identity, revocation)

    @get("/healthz", summary="Alive", security=[{}], tags=["operations"])
    async def healthz() -> dict[str, str]:
        """Whether this process answers at all, and what time it is here."""
        return {"status": "ok", "time": format_rfc3339(datetime.now(UTC))}

    @get("/readyz", summary="Ready", security=[{}], tags=["operations"], operation_class=ReadyOperation)
    async def readyz() -> Response[dict[str, str]]:
        """Whether it can admit users: 503 until then.

        `router` says whether it can publish, too: `alive`, `away`, or `journal_unavailable`. That is no 503: users
        are served all the same, and no other gateway could publish either.
        """
        if gateway.is_ready:
            journal = "journal_unavailable" if gateway.is_journal_gone else "alive"
            return Response({"status": "ready", "router": journal if gateway.is_router_alive else "away"})
        return Response({"status": "starting"}, status_code=503, headers={"retry-after": "1"})

    @get("/metrics", summary="Metrics", security=[{}], media_type=MediaType.TEXT, tags=["operations"])
    async def scrape() -> Response[bytes]:
        """Prometheus metrics of this process."""
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def _administrator(request: Req, action: str, **about: Any) -> Identity:
        """Who asks. Raises InvalidToken, RequestRejected."""
        identity = None
        try:
            identity = await _identity(request)
            gateway.need_administrator(identity)
        except RequestError as error:
            audit.record_rejection(action, error, gateway.addresses.resolve_scope(request.scope), identity, **about)
            raise
        audit.record_administration(identity, action, gateway.addresses.resolve_scope(request.scope), **about)
        return identity

    async def _identity(request: Req) -> Identity:
        return await gateway.identify(_token(request), gateway.addresses.resolve_scope(request.scope))

    app = Litestar(
        [
            connect,
            route,
            publish,
            history,
            catalog,
            stats,
            shards,
            shard,
            user,
            drain,
            undrain,
            disconnect,
            revoke,
            revocations,
            unrevoke,
            healthz,
            readyz,
            scrape,
            *make_old_reports(dialects or DialectRequests(), gateway, _administrator),
        ],
        exception_handlers={Exception: _problem},
        before_send=[_add_headers],
        request_max_body_size=settings.publish.max_request_bytes,
        openapi_config=make_openapi_config(),
        logging_config=None,
    )
    document_problems(app)
    return app


async def _add_headers(message: Message, scope: Scope) -> None:
    """What goes along with every answer that Litestar makes, also with those that are none of our routes'."""
    if message["type"] == "http.response.start":
        path: str = scope["path"]
        added = [NO_SNIFFING]
        if ConnectEndpoint.is_endpoint_path(path):
            added.append(NO_STORE)
        elif path.startswith(DOCS):
            added.append(PAGE_POLICY)
        present = {name.lower() for name, _ in message["headers"]}
        headers = [*message["headers"], *(header for header in added if header[0] not in present)]
        message["headers"] = [
            (name, _all_methods(value.decode(), scope).encode() if name.lower() == b"allow" else value)
            for name, value in headers
        ]


def _all_methods(allowed: str, scope: Scope) -> str:
    """An `Allow` with all methods of the path: Litestar leaves out handlers that were added later, and HEAD.

    HEAD is answered as GET, where requests come in.
    """
    methods = set(allowed.replace(" ", "").split(","))
    for route in scope["litestar_app"].routes:
        if isinstance(route, HTTPRoute) and route.path == scope.get("path_template"):
            methods |= route.methods
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _token(request: Req) -> str:
    return parse_bearer(request.headers.get("authorization", ""))


def _named(request: Req) -> str:
    """The user whom the path names. Raises RequestRejected: spelt in another way it has come past `with_user_paths`."""
    named: str | None = request.scope.get(USER)  # type: ignore[assignment]
    if named is None:
        raise RequestRejected(404, "not_found", "a user has one path", "/v1/users/{user}, spelt so up to the name")
    return named


@cache
def _describe_catalog(catalog: Catalog) -> bytes:
    return msgspec.json.encode({"types": catalog.describe(), "categories": dict(catalog.categories)})


def _sum_totals(answer: StatsResponse) -> Totals:
    stats = [report.stats for report in answer.shards]
    whole = aggregate(stats)
    whole["connections_rejected"] += answer.connections_rejected
    per_s = whole["connections_rejected_per_s"] + answer.connections_rejected_per_s
    whole["connections_rejected_per_s"] = round(per_s, 1)
    return Totals(
        epoch=answer.epoch,
        last_offset=answer.last_offset,
        events=answer.events,
        duplicates=answer.duplicates,
        gateways=answer.gateways,
        shards=len(stats),
        lag_offsets=max((report.lag_offsets for report in answer.shards), default=0),
        **whole,
    )


def _shard_to_dict(report: ShardReport) -> dict[str, Any]:
    return {
        "shard": report.address.index,
        "address": report.address.authority,
        "inflight_events": report.inflight_events,
        "lag_offsets": report.lag_offsets,
        "draining": report.is_draining,
        **stats_to_dict(report.stats),
    }


def _explain(error: HTTPException, request: Req) -> tuple[str, str, str]:
    """Code, detail and hint for what Litestar refuses by itself."""
    match error.status_code:
        case 404:
            return "not_found", f"there is nothing at {request.url.path[:200]!r}", "/docs lists what there is"
        case 405:
            allowed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("allow", "")
            hint = f"use {_all_methods(allowed, request.scope)}" if allowed else "use another method"
            return "method_not_allowed", f"there is no {request.method} here", hint
        case 413:
            return (
                "too_large",
                error.detail,
                "send less at a time; an operator raises SOLOWIRE_PUBLISH__MAX_REQUEST_BYTES",
            )
        case _:
            return "bad_request", error.detail, "/docs says what each request is to have"


def _problem(request: Req, error: Exception) -> Response[bytes]:
    """Any exception as a problem body; one that nobody meant is logged, and told without its details."""
    if isinstance(error, HTTPException):
        code, detail, hint = _explain(error, request)
        body = msgspec.json.encode(make_problem(error.status_code, code, detail, hint))
        return Response(body, status_code=error.status_code, media_type=PROBLEM_TYPE, headers=error.headers)
    status, headers, body = exception_to_response(error, request.url.path)
    by_name = {name.decode(): value.decode() for name, value in headers}
    return Response(body, status_code=status, headers=by_name)
