"""The endpoints `/v1/connect` and `/v1/route`, the two ways to a ticket beside the relay.

They are answered here, in front of Litestar, because they are what everybody asks at once when the system is full, and
a refusal should cost next to nothing: Litestar's way to a handler and back costs twice what all of this does. It serves
the same two methods for whoever comes by another spelling of the path, and documents them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from solowire.auth.tokens import TICKET_SECONDS, parse_bearer
from solowire.backplane.messages import ShardAddress
from solowire.errors import RequestError, RequestRejected
from solowire.gateway.admission.client_address import read_forwarded
from solowire.gateway.admission.forwarded_headers import FORWARDED_HEADERS, SECURE, parse_host
from solowire.gateway.http.responses import (
    JSON_HEADERS,
    NO_STORE,
    Receive,
    Scope,
    exception_to_response,
    send_response,
)
from solowire.gateway.router_client import RouterClient
from solowire.protocol.dialect_requests import MARK, DialectRequests
from solowire.protocol.messages import SUBPROTOCOLS
from solowire.protocol.query_parameter import read_parameter

logger = structlog.get_logger("solowire.gateway")

_FORWARDING = frozenset(name.encode() for name in FORWARDED_HEADERS)
_TOKEN = re.compile(r"[?&]token=([^&#]+)")
_METHODS = {"/v1/connect": "POST", "/v1/route": "GET"}
_FOUND_HEADERS = (*JSON_HEADERS, NO_STORE)
_encode = msgspec.json.Encoder().encode


class ConnectGrant(msgspec.Struct):
    """Where to connect. url: ready to be opened. ticket: also in the url; good for `expires_in` seconds, once."""

    url: str
    ticket: str
    shard: int
    epoch: str
    expires_in: int
    subprotocols: list[str]


class ConnectEndpoint:
    """Serves `/v1/connect` and `/v1/route`. shard_url: the template of what clients are told, as in the settings."""

    def __init__(self, gateway: RouterClient, shard_url: str, dialects: DialectRequests | None = None) -> None:
        self._gateway = gateway
        self._dialects = dialects or DialectRequests()
        self._shard_url = shard_url
        self._has_warned = False
        self._has_warned_of_shard = False

    @staticmethod
    def is_endpoint_path(path: str) -> bool:
        """Whether a request for this path is one of the two, however its end is spelt."""
        return path.rstrip("/") in _METHODS

    @staticmethod
    def can_handle(scope: Scope) -> bool:
        """Whether this HTTP request is one of the two."""
        method: str = scope["method"]
        return _METHODS.get(scope["path"]) == method

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        """Answers a request that it `can_handle`."""
        try:
            if scope["method"] == "POST":
                send_response(send, 200, _FOUND_HEADERS, _encode(await self.make_grant(scope)))
            else:
                routed = await self.make_route(scope)
                headers = [(name.encode(), value.encode()) for name, value in routed.items()]
                send_response(send, 204, [*headers, NO_STORE], b"")
        except Exception as error:
            status, problem_headers, body = exception_to_response(error, scope["path"])
            code = [(b"x-solowire-code", error.code.encode())] if isinstance(error, RequestError) else []
            send_response(send, status, [*problem_headers, *code, NO_STORE], body)

    async def make_grant(self, scope: Scope) -> ConnectGrant:
        """Answers `/v1/connect`. Raises InvalidToken, RequestRejected."""
        headers = dict(scope["headers"])
        address = self._gateway.addresses.resolve_scope(scope)
        shard, ticket, _ = await self._gateway.assign_shard(_bearer(headers), address)
        scheme, host = self._origin(scope, headers)
        if shard.certificate:
            scheme = "wss"
        elif scope["scheme"] == "https" and "{port}" in self._shard_url:
            self._warn_of_plain_shard(shard.index)
        url = format_shard_url(self._shard_url, shard, scheme, host)
        joined = f"{url}{'&' if '?' in url else '?'}ticket={ticket}"
        return ConnectGrant(joined, ticket, shard.index, self._gateway.epoch, int(TICKET_SECONDS), list(SUBPROTOCOLS))

    def _origin(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[str, str]:
        """The scheme and the host of what the client is told: those by which it has come itself.

        Raises RequestRejected.
        """
        scheme = host = None
        client = scope.get("client")
        if client and not _FORWARDING.isdisjoint(headers):
            forwarded = read_forwarded(scope)
            scheme, host = self._gateway.addresses.resolve_origin(client[0], forwarded)
            if (forwarded.x_proto or forwarded.forwarded) and not self._gateway.addresses.is_trusted(client[0]):
                self._warn_of_stranger(client[0])
        shown = headers.get(b"host", b"").decode("latin-1")
        host = host or parse_host(shown)
        if host is None and "{host}" in self._shard_url:
            fault = f"the Host {shown[:200]!a} is none" if shown else "there is no Host"
            raise RequestRejected(
                400, "bad_host", fault, "send the name or address that you use to come here (RFC 9110)"
            )
        return "wss" if (scheme or scope["scheme"]) in SECURE else "ws", host or ""

    def _warn_of_plain_shard(self, index: int) -> None:
        """Once: clients of a gateway that speaks TLS are sent to where none is spoken."""
        if not self._has_warned_of_shard:
            self._has_warned_of_shard = True
            hint = (
                "give shards the same SOLOWIRE_LISTEN__TLS_… settings, or name a proxy by SOLOWIRE_GATEWAY__SHARD_URL"
            )
            logger.warning("shard_without_tls", shard=index, hint=hint)

    def _warn_of_stranger(self, peer: str) -> None:
        """Once: behind a proxy that nobody has said to trust all clients are sent to the wrong scheme."""
        if not self._has_warned:
            self._has_warned = True
            hint = "if it is a proxy of yours, name it in SOLOWIRE_LISTEN__TRUSTED_PROXIES"
            logger.warning("forwarded_header_ignored", peer=peer, hint=hint)

    async def make_route(self, scope: Scope) -> dict[str, str]:
        """The answer's headers. The token may be in the query of the request that an edge proxy asks about.

        A request with a ticket of `/v1/connect` in its query is for the ticket's shard, wherever that is now. What
        looks like an old page's, at a path of both protocols, is marked so for the shard.

        Raises InvalidToken, RequestRejected.
        """
        headers = dict(scope["headers"])
        target = _original_target(headers)
        path, _, query = target.partition("?")
        address = self._gateway.addresses.resolve_scope(scope)
        if ticket := read_parameter(query, "ticket"):
            shard = self._gateway.find_ticket_shard(ticket, address)
        elif self._dialects.is_old_client(path):
            shard, ticket, _ = await self._gateway.assign_old_client(_route_token(scope, headers), address, "connect")
        else:
            shard, ticket, _ = await self._gateway.assign_shard(_route_token(scope, headers), address)
        answer = {
            "x-solowire-upstream": shard.authority,
            "x-solowire-shard": str(shard.index),
            "x-solowire-ticket": ticket,
        }
        if old := self._dialects.find_shared_path(target, {name.decode("latin-1") for name in headers}):
            answer[MARK.lower()] = old.kind
        return answer


def format_shard_url(template: str, shard: ShardAddress, scheme: str, host: str) -> str:
    return template.format(
        scheme=scheme, host=host, port=shard.port, shard=shard.index, shard_host=shard.bracketed_host
    )


def _bearer(headers: Mapping[bytes, bytes]) -> str:
    shown = headers.get(b"authorization")
    return parse_bearer(shown.decode("latin-1")) if shown else ""


def _route_token(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    if shown := _bearer(headers):
        return shown
    own: bytes = scope["query_string"]
    if own and (token := read_parameter(own.decode("latin-1"), "token")):
        return token
    found = _TOKEN.search(_original_target(headers))
    return found[1] if found else ""


def _original_target(headers: Mapping[bytes, bytes]) -> str:
    """What the request asks for that an edge proxy asks about."""
    return (headers.get(b"x-original-uri") or headers.get(b"x-forwarded-uri") or b"").decode("latin-1")
