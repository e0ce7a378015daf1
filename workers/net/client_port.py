"""The WebSocket handshakes at a shard's client port: who is let in, and what a refusal says.

What it keeps true: a connection is accepted after its ticket is found good and its slot is taken, in one go, so nothing
can come between; from then on its socket is `sockets`' own. Each refusal is told to the audit log.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection

import structlog

from solowire.auth.failed_auth_limiter import FailedAuthLimiter
from solowire.errors import InvalidToken, RequestError, RequestRejected, TlsError
from solowire.model.access import ADMINISTER, Identity
from solowire.model.dialect import DialectPath
from solowire.observability.rejection_log import RejectionLog
from solowire.protocol.dialect_requests import DialectRequests, find_agent_family
from solowire.protocol.messages import choose_codec
from solowire.protocol.opening_handshake import (
    Head,
    check_origin,
    make_upgrade_required,
    parse_head,
    parse_subprotocols,
    render_accept,
    render_rejection,
)
from solowire.protocol.query_parameter import read_parameter
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.net.client_listener import AcceptedSocket
from solowire.workers.net.tcp_sockets import TcpSockets
from solowire.workers.shard import Shard

logger = structlog.get_logger("solowire.shard")

PROBES = ("/healthz", "/readyz")
"""Answered here too, for load balancers that see this port alone: they tell nothing of anybody."""
_TICKET_ALONE = re.compile(r"ticket=([A-Za-z0-9._=-]+)")
"""The whole query of a URL as gateways make them, in which nothing is to be decoded."""


class ClientPort:
    """Answers WebSocket handshakes at the shard's client port.

    changed() is called after anything that may have moved `Shard.next_due`.

    wrong_tokens: how many, of one address, are told what is wrong with them. allowed_origins: as `check_origin` says.
    """

    def __init__(
        self,
        shard: Shard,
        sockets: TcpSockets,
        changed: Callable[[], None],
        *,
        wrong_tokens: FailedAuthLimiter,
        allowed_origins: Collection[str] = (),
        dialects: DialectRequests | None = None,
        audit: Callable[..., None] = lambda event, **fields: None,
    ) -> None:
        sockets.on_message, sockets.on_protocol_error, sockets.on_probe_answered = (
            self._on_message,
            shard.on_protocol_error,
            self._on_probe_answered,
        )
        sockets.on_batch_done, sockets.on_writable, sockets.on_closed = changed, self._on_writable, self._on_closed
        self._shard = shard
        self._sockets = sockets
        self._changed = changed
        self._wrong_tokens = wrong_tokens
        self._allowed_origins = allowed_origins
        self._dialects = dialects or DialectRequests()
        self._audit = audit
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._rejection_log = RejectionLog(logger, loop.call_later)

    @property
    def rejections(self) -> Counter[str]:
        """How many handshakes were rejected, by error code."""
        return self._rejection_log.totals

    def handle(self, accepted: AcceptedSocket) -> bytes | None:
        """Takes the connection over, or returns the HTTP answer that refuses it."""
        shard, now = self._shard, self._now()
        try:
            head = parse_head(accepted.head)
            if head.path in PROBES and not head.is_websocket_request:
                return self._answer_probe(head)
            path = self._dialects.find_path(head) if head.is_websocket_request else None
            if head.path != "/ws" and not self._dialects.is_path(head.path):
                raise RequestRejected(
                    404, "not_found", "a shard serves its WebSocket at /ws, and nothing else here", "ask the gateway"
                )
            if not head.is_websocket_request:
                raise make_upgrade_required()
            check_origin(head, self._allowed_origins)
            codec, subprotocol = choose_codec(parse_subprotocols(head) if path is None else [])
            dialect = self._dialects.dialect
            more = dialect.make_headers(head.path) if path is not None and dialect is not None else ()
            answer = render_accept(head, subprotocol, [("X-Solowire-Shard", str(shard.index)), *more])
            takes_old = path is not None and path.is_certain
            admitted = shard.admit(_find_ticket(head), now, is_dialect=path is not None, takes_old=takes_old)
        except RequestError as error:
            shard.totals["connections_rejected"] += 1
            if (
                shard.wants_lease_report
            ):  # Whoever has to end for it says so itself, when it has gone: nothing else is due by it.
                self._changed()
            return self._refuse(accepted.peer, error, now)
        sock = None
        try:
            accepted.send(answer)
            sock = self._sockets.adopt(accepted)
            sock.connection = shard.open_connection(
                admitted.identity,
                codec,
                sock,
                now,
                address=admitted.address,
                kind="relayed" if "X-Solowire-Relayed" in head.headers else "direct",
                dialect=self._open_dialect(head, path, admitted.identity),
            )
        except BaseException as error:
            shard.cancel_admission(admitted.identity, admitted.address)
            if sock is not None:
                self._sockets.discard(sock)
            if sock is None and isinstance(error, (OSError, TlsError)):  # the client has gone
                accepted.socket.close()
                return None
            raise
        if accepted.rest:
            self._sockets.feed(sock, accepted.rest)
        self._changed()
        return None

    def _open_dialect(self, head: Head, path: DialectPath | None, identity: Identity) -> DialectClient | None:
        dialect = self._dialects.dialect
        if dialect is None or path is None:
            return None
        session = dialect.open_session(path, is_admin=identity.has_permission(ADMINISTER))
        return DialectClient(dialect.name, path, session, find_agent_family(head))

    def _answer_probe(self, head: Head) -> bytes:
        is_fine = head.path == "/healthz" or self._shard.is_ready
        body = b'{"status":"%s"}' % (b"starting" if not is_fine else b"ok" if head.path == "/healthz" else b"ready")
        status = b"200 OK" if is_fine else b"503 Service Unavailable"
        lines = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        return lines % (status, len(body)) + (b"" if head.method == "HEAD" else body)

    def _on_message(self, connection: Connection, message: str | bytes) -> None:
        self._shard.receive(connection, message, self._now())

    def _on_probe_answered(self, connection: Connection) -> None:
        self._shard.show_alive(connection, self._now())

    def _on_writable(self, connection: Connection) -> None:
        self._shard.dispatcher.on_writable(connection, self._now())

    def _on_closed(self, connection: Connection) -> None:
        self._shard.on_closed(connection)
        self._changed()

    def _refuse(self, peer: str, error: RequestError, now: float) -> bytes:
        error = self._wrong_tokens.limit_error(error, peer, now)
        # The peer of one that comes through a relay or a proxy is that one's: the ticket knows better.
        who = error.who or {"address": peer}
        self._audit("refused", action="connect", code=error.code, **who)
        self._rejection_log.record(error)
        return render_rejection(error)


def _find_ticket(head: Head) -> str:
    shown = head.headers.get_all("X-Solowire-Ticket")
    if len(shown) > 1:
        raise RequestRejected(400, "bad_handshake", "there is more than one ticket", "send X-Solowire-Ticket once")
    ticket: str = shown[0] if shown else ""
    if not ticket:
        # The URL of /v1/connect carries the ticket; one who appends it again, with whatever sign, means the same.
        if alone := _TICKET_ALONE.fullmatch(head.query):
            return alone[1]
        ticket = read_parameter(head.query.replace("?", "&"), "ticket")
    if not ticket:
        raise InvalidToken("there is no ticket", code="missing_ticket", hint="ask /v1/connect for one")
    return ticket
