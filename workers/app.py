"""A shard's HTTP API, on Granian: `/stats`, `/history`, `/healthz`, `/readyz`, `/metrics`.

It listens where only the system's own processes reach it, unless an operator says otherwise: metrics name tenants. Each
administrator's question, granted or not, is told to the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

from solowire.auth.failed_auth_limiter import FailedAuthLimiter
from solowire.auth.key_source import judge_by_fresh_keys
from solowire.auth.tokens import Tokens, parse_bearer
from solowire.errors import RequestError, RequestRejected
from solowire.model.access import Identity
from solowire.observability.audit import ASKED_BY
from solowire.observability.metrics import choose_content_type
from solowire.observability.stats_summary import stats_to_dict
from solowire.protocol.problem_details import to_http_response
from solowire.protocol.user_names import decode_user_name
from solowire.workers.history.history_api import HistoryApi
from solowire.workers.shard import Shard
from solowire.workers.stats.report import SLOWEST, ShardReporter

_USERS = b"/stats/users/"
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Any]


class HttpApi:
    """The ASGI application of one shard.

    metrics: renders them in a form, by its content type. wrong_tokens: how many, of one address, are told what is wrong
    with them.
    """

    def __init__(
        self,
        shard: Shard,
        tokens: Tokens,
        metrics: Callable[[str], bytes],
        *,
        wrong_tokens: FailedAuthLimiter,
        reporter: ShardReporter | None = None,
        audit: Callable[..., None] = lambda event, **fields: None,
        refresh_keys: Callable[[], Awaitable[float | None]] | None = None,
        history: HistoryApi | None = None,
    ) -> None:
        self._history = history
        self._shard = shard
        self._reporter = reporter or ShardReporter(shard)
        self._audit = audit
        self._wrong_tokens = wrong_tokens
        self._tokens = tokens
        self._metrics = metrics
        self._refresh_keys = refresh_keys
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/healthz":
                await _send_json(send, 200, {"status": "ok"})
            case "/readyz":
                ready = self._shard.is_ready
                await _send_json(send, 200 if ready else 503, {"status": "ready" if ready else "starting"})
            case "/metrics":
                form = choose_content_type(_header(scope, b"accept"))
                await _send_bytes(send, 200, self._metrics(form), form.encode())
            case path if path == "/stats" or _raw_path(scope).startswith(_USERS):
                try:
                    body = await self._answer_stats(scope)
                except RequestError as error:
                    await _send_problem(send, error)
                    return
                await _send_json(send, 200, body)
            case "/history" if self._history is not None:
                try:
                    page = await self._answer_history(self._history, scope, receive)
                except RequestError as error:
                    await _send_problem(send, error)
                    return
                if page is not None:
                    await _send_bytes(send, 200, page, b"application/json")
            case _:
                await _send_problem(
                    send,
                    RequestRejected(
                        404,
                        "not_found",
                        "there is nothing at this path",
                        "there are /stats, /history, /metrics, /healthz, /readyz",
                    ),
                )

    async def _answer_history(self, history: HistoryApi, scope: Scope, receive: Receive) -> bytes | None:
        """A page of what its token's user would have been sent. None if nobody waits for it any more.

        Raises InvalidToken, InvalidHistoryQuery, RequestRejected.
        """
        try:
            identity = await self._identify(parse_bearer(_header(scope, b"authorization")))
        except RequestError as error:
            refusal = self._wrong_tokens.limit_error(error, _peer(scope), self._loop.time())
            try:
                raise refusal from None
            finally:
                del refusal  # as below
        return await history.fetch_page(identity, scope["query_string"].decode("latin-1"), receive)

    async def _answer_stats(self, scope: Scope) -> dict[str, Any]:
        """`/stats` (`?slowest=N` for more or fewer than ten connections) and `/stats/users/{user}`, for administrators.

        Raises InvalidToken, RequestRejected.
        """
        shard = self._shard
        raw = _raw_path(scope)
        user = decode_user_name(raw.removeprefix(_USERS)) if raw.startswith(_USERS) else None
        await self._require_admin(scope, {} if user is None else {"about": user})
        now = self._loop.time()
        if user is not None:
            found = self._reporter.list_user(user, now)
            if not found:
                raise RequestRejected(
                    404,
                    "not_connected",
                    f"the user has no connection on shard {shard.index}",
                    "ask the gateway, which asks all",
                )
            return {"user": user, "connections": found}
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("slowest", [""])[0]
        slowest = self._reporter.list_slowest(now, int(asked[:4]) if asked.isdecimal() else SLOWEST)
        return {
            "shard": shard.index,
            "ready": shard.is_ready,
            **stats_to_dict(self._reporter.build_report(now)),
            "slowest": slowest,
        }

    async def _require_admin(self, scope: Scope, about: dict[str, str]) -> None:
        """Checks that an administrator asks. Raises InvalidToken, RequestRejected."""
        about |= {"path": scope["path"], "address": _peer(scope)}
        if _header(scope, ASKED_BY.encode()):
            about["via"] = "gateway"  # as the peer says
        try:
            identity = await self._identify(parse_bearer(_header(scope, b"authorization")))
            about |= {"user": identity.user, "role": identity.role}
            if not identity.has_permission("admin"):
                raise RequestRejected(
                    403, "forbidden", "statistics are for administrators", "use a token of a role that grants 'admin'"
                )
        except RequestError as error:
            refusal = self._wrong_tokens.limit_error(error, _peer(scope), self._loop.time())
            self._audit("refused", action="administer", code=refusal.code, **about)
            try:
                raise refusal from None
            finally:
                del refusal  # else it would hold this frame, which holds it, until the collector comes
        self._audit("administered", action="stats", **about)

    async def _identify(self, token: str) -> Identity:
        """Verifies the token of a request. Raises InvalidToken, RequestRejected."""

        def identify() -> Identity:
            return self._tokens.identify(token, self._shard.clock.to_unix(self._loop.time()))

        return await judge_by_fresh_keys(identify, self._refresh_keys)


def _raw_path(scope: Scope) -> bytes:
    """As it was sent, without the query: a path that is decoded no longer says where a name ends."""
    raw: bytes = scope["raw_path"]
    return raw.partition(b"?")[0]


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


async def _send_problem(send: Send, error: RequestError) -> None:
    status, headers, body = to_http_response(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_json(send: Send, status: int, body: dict[str, Any]) -> None:
    await _send_bytes(send, status, msgspec.json.encode(body), b"application/json")


async def _send_bytes(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
