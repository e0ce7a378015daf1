"""A shard's ASGI application: handshakes and HTTP. An accepted connection is handed to `workers.tcp_sockets`.

What it keeps true: the shard hears of the end of each whom it admitted, whatever ends it: by `abandon` before the
connection is open, by `gone` after that. Each refusal and each administrator's question is told to the audit log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import msgspec
import structlog

from solowire.audit import ASKED_BY
from solowire.client_protocol import choose
from solowire.errors import InvalidToken, Refused, RequestError
from solowire.metrics import CONTENT_TYPE
from solowire.numbers import told
from solowire.problems import response_of
from solowire.rates import Rate
from solowire.refusals import Refusals
from solowire.tokens import Ticket, Tokens, bearer
from solowire.wrong_tokens import WrongTokens
from workers.connection import Connection
from workers.reporting import SLOWEST, Reporting
from workers.shard import Shard
from workers.tcp_sockets import Handshake, TcpSockets

log = structlog.get_logger("solowire.shard")

DEFAULT_WRONG_TOKENS = Rate(1.0, 20.0)
_TICKET_ALONE = re.compile(rb"ticket=([A-Za-z0-9._=-]+)")
"""The whole query of a URL as gateways make them, in which nothing is to be decoded."""
_END = (b"connection", b"close")
"""With a refusal, so that its connection takes none of the places for handshakes (`serving.HANDSHAKES`) any more."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Any]


class App:
    """The ASGI application of one shard. changed() is called after anything that may have moved `Shard.next_due`.

    wrong_tokens: how many, of one address, are told what is wrong with them.
    """

    def __init__(
        self,
        shard: Shard,
        sockets: TcpSockets,
        tokens: Tokens,
        metrics: Callable[[], bytes],
        changed: Callable[[], None],
        *,
        reporting: Reporting | None = None,
        wrong_tokens: Rate = DEFAULT_WRONG_TOKENS,
        audit: Callable[..., None] = lambda event, **fields: None,
    ) -> None:
        self._shard = shard
        self._sockets = sockets
        sockets.received, sockets.broken = self._received, shard.broken
        sockets.heard, sockets.took = changed, self._took
        self._reporting = reporting or Reporting(shard)
        self._audit = audit
        self._wrong_tokens = WrongTokens(wrong_tokens)
        self._tokens = tokens
        self._metrics = metrics
        self._changed = changed
        self._handlers: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._refusals = Refusals(log, self._loop.call_later)

    async def finish(self, seconds: float) -> None:
        """Waits until all connections that are being closed have ended."""
        if self._handlers:
            await asyncio.wait(self._handlers, timeout=seconds)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own, which each connection would keep for as long as it lives.
        return self._websocket(scope, receive, send) if scope["type"] == "websocket" else self._http(scope, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        shard, now = self._shard, self._loop.time
        host, port = scope["client"][0], int(scope["client"][1])
        try:
            if scope["path"] != "/ws":
                raise Refused(404, "not_found", "a shard serves its WebSocket at /ws", "")
            codec, subprotocol = choose(scope["subprotocols"])
            try:
                await self._sockets.alone(host, port)
            except TimeoutError:
                raise _lost() from None
            admitted = shard.admit(_ticket(scope), now())
            handshake = self._reserve(admitted, host, port)
        except RequestError as error:
            shard.totals["refused"] += 1
            if shard.asks:  # Whoever has to end for it says so itself, when it has gone: nothing else is due by it.
                self._changed()
            self._refuse(scope, send, error, now())
            return
        headers = [(b"x-solowire-shard", str(shard.index).encode())]
        sock = None
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
            sock = self._sockets.take(handshake)
            if sock is not None:
                connection = sock.connection = shard.open(
                    admitted.identity,
                    codec,
                    sock,
                    now(),
                    address=admitted.address,
                    kind="relayed" if _header(scope, b"x-solowire-relayed") else "direct",
                )
        except BaseException:
            shard.abandon(admitted.identity, admitted.address)
            if sock is None:
                self._sockets.drop(handshake)
            else:
                self._sockets.release(sock)
            raise
        if sock is None:
            shard.abandon(admitted.identity, admitted.address)
            return  # the client has gone meanwhile
        handler = asyncio.current_task()
        if handler is not None:
            self._handlers.add(handler)
        try:
            self._changed()
            scope.clear()  # what the handshake said would be kept as long as the connection: some 3 KB
            del admitted, headers
            await sock.ended
        finally:
            self._sockets.release(sock)
            shard.gone(connection)
            if handler is not None:
                self._handlers.discard(handler)
            self._changed()

    def _reserve(self, admitted: Ticket, host: str, port: int) -> Handshake:
        """The connection of one who is admitted. Raises Refused, or OSError, and it is not admitted any more."""
        handshake = None
        try:
            handshake = self._sockets.reserve(host, port)
        finally:
            if handshake is None:
                self._shard.abandon(admitted.identity, admitted.address)
        if handshake is None:
            raise _lost()
        return handshake

    def _received(self, connection: Connection, message: str | bytes) -> None:
        self._shard.receive(connection, message, self._loop.time())

    def _took(self, connection: Connection) -> None:
        self._shard.delivery.took(connection, self._loop.time())

    def _refuse(self, scope: Scope, send: Send, error: RequestError, now: float) -> None:
        """Answers the handshake with an HTTP status: nothing was accepted. The two sends go out in their order."""
        error = self._told(error, scope, now)
        # The peer of one that comes through a relay or a proxy is that one's: the ticket knows better.
        who = error.who or {"address": _peer(scope)}
        self._audit("refused", action="connect", code=error.code, **who)
        self._refusals.count(error)
        status, headers, body = response_of(error)
        send({"type": "websocket.http.response.start", "status": status, "headers": [*headers, _END]})
        send({"type": "websocket.http.response.body", "body": body})

    def _told(self, error: RequestError, scope: Scope, now: float) -> RequestError:
        """What the peer hears: of too many tokens that prove nothing no more than that. No answer is held back here.

        Tickets that are too old, used or another shard's are ours, and nobody's guesses.
        """
        if error.code not in ("invalid_token", "token_expired"):
            return error
        return self._wrong_tokens.shown(_peer(scope), now) or error

    async def _http(self, scope: Scope, send: Send) -> None:
        match scope["path"]:
            case "/healthz":
                await _answer(send, 200, {"status": "ok"})
            case "/readyz":
                ready = self._shard.ready
                await _answer(send, 200 if ready else 503, {"status": "ready" if ready else "starting"})
            case "/metrics":
                await _answer_bytes(send, 200, self._metrics(), CONTENT_TYPE.encode())
            case path if path == "/stats" or path.startswith("/stats/users/"):
                try:
                    body = self._stats(scope)
                except RequestError as error:
                    await _problem(send, error)
                    return
                await _answer(send, 200, body)
            case _:
                await _problem(send, Refused(404, "not_found", "there is nothing here", ""))

    def _stats(self, scope: Scope) -> dict[str, Any]:
        """`/stats` (`?slowest=N` for more or fewer than ten connections) and `/stats/users/{user}`, for administrators.

        Raises InvalidToken, Refused.
        """
        shard, now = self._shard, self._loop.time()
        self._need_admin(scope, now)
        user = scope["path"].removeprefix("/stats").removeprefix("/users/")
        if user:
            found = self._reporting.user(user, now)
            if not found:
                raise Refused(404, "not_connected", f"the user has no connection on shard {shard.index}", "")
            return {"user": user, "connections": found}
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("slowest", [""])[0]
        slowest = self._reporting.slowest(now, int(asked[:4]) if asked.isdecimal() else SLOWEST)
        return {
            "shard": shard.index,
            "ready": shard.ready,
            **told(self._reporting.report(now)),
            "slowest": slowest,
        }

    def _need_admin(self, scope: Scope, now: float) -> None:
        about = {"path": scope["path"], "address": _peer(scope)}
        if _header(scope, ASKED_BY.encode()):
            about["via"] = "gateway"  # as the peer says
        try:
            identity = self._tokens.identify(bearer(_header(scope, b"authorization")), now + self._shard.wall_offset)
            about |= {"user": identity.user, "role": identity.role}
            if not identity.may("admin"):
                raise Refused(403, "forbidden", "statistics are for administrators", "")
        except RequestError as error:
            refusal = self._told(error, scope, now)
            self._audit("refused", action="administer", code=refusal.code, **about)
            try:
                raise refusal from None
            finally:
                del refusal  # else it would hold this frame, which holds it, until the collector comes
        self._audit("administered", action="stats", **about)


def _lost() -> Refused:
    return Refused(503, "connection_lost", "the connection has ended during its handshake", "connect again", 1.0)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _ticket(scope: Scope) -> str:
    ticket = _header(scope, b"x-solowire-ticket")
    if not ticket:
        # The URL of /v1/connect carries the ticket; one who appends it again, with whatever sign, means the same.
        query: bytes = scope["query_string"]
        if alone := _TICKET_ALONE.fullmatch(query):
            return alone[1].decode("ascii")
        ticket = parse_qs(query.decode("latin-1").replace("?", "&")).get("ticket", [""])[0]
    if not ticket:
        raise InvalidToken("there is no ticket", code="missing_ticket", hint="ask /v1/connect for one")
    return ticket


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


async def _problem(send: Send, error: RequestError) -> None:
    status, headers, body = response_of(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    await _answer_bytes(send, status, msgspec.json.encode(body), b"application/json")


async def _answer_bytes(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
