"""The endpoint `POST /v1/events`: events are published over HTTP.

It is answered here, in front of Litestar, because publishers ask it for each event: Litestar's way to a handler and
back takes a millisecond, and all of this a fifth of that. Litestar serves the same method for whoever comes by another
spelling of the path, and documents it.

What it keeps true: a request is taken as a whole or not at all, and answered only when the log has it. Who may not
publish, or not now, is told so at once, without a look at the body, and its connection ends: nobody's bytes are read
who has no place for them. What is refused in its midst is read all the same, and forgotten, up to DISCARDED_BYTES.

A body comes at a pace (`solowire.gateway.publish.body_deadline`), or is ended with 408. One that is large is parsed in
turns (`solowire.gateway.publish.parser_turns`), so that nobody else waits for more than a part of it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from solowire.algorithms.log_sampler import LogSampler
from solowire.auth.tokens import parse_bearer
from solowire.errors import RequestError, RequestRejected
from solowire.gateway.audit_events import GatewayAudit, count_types
from solowire.gateway.http.responses import JSON_HEADERS, Receive, Scope, exception_to_response, send_response
from solowire.gateway.publish.body_deadline import BodyDeadline, BodyPace
from solowire.gateway.publish.content_encoding import STEP_BYTES, decode_steps, join_encodings
from solowire.gateway.publish.critical_limiter import CriticalLimiter
from solowire.gateway.publish.event_parser import EventParser
from solowire.gateway.publish.event_weight import weigh_event
from solowire.gateway.publish.parser_turns import ParserTurns
from solowire.gateway.publish.publish_limiter import Reservation
from solowire.gateway.publish.publish_trace import PublishTrace
from solowire.gateway.router_client import RouterClient
from solowire.model.access import Identity
from solowire.model.events import Event
from solowire.observability.tracer import Tracer
from solowire.runtime.settings import Settings
from solowire.runtime.settings.publish_settings import PublishSettings

logger = structlog.get_logger("solowire.gateway")

DISCARDED_BYTES = 64 * 2**20
SMALL_BYTES = 16 * 1024
"""A body that is no larger is parsed at once, whatever others send: it takes a millisecond or two."""
REFUSED_BYTES = 256
"""For what can't be read, or holds what is no event, a publisher pays as for an event of each so many bytes."""
BODY_SECONDS = 60.0
"""However fast a request comes, it holds room for no longer."""


_encode = msgspec.json.Encoder().encode


class EventsAccepted(msgspec.Struct, omit_defaults=True):
    """Events that are in the log. accepted: without the duplicates, which keep the offset that they had.

    demoted: of these so many were critical and are `high`, since one publisher may send only so many critical ones.
    """

    epoch: str
    first_offset: int
    last_offset: int
    accepted: int
    duplicates: int
    demoted: int = 0


class EventsEndpoint:
    """Serves `POST /v1/events`. audit: to the audit log. tracer: where spans go, if they go anywhere."""

    def __init__(
        self, gateway: RouterClient, settings: Settings, audit: GatewayAudit, tracer: Tracer | None = None
    ) -> None:
        self._gateway = gateway
        self._audit = audit
        self._tracer = tracer
        self._max_bytes = settings.publish.max_request_bytes
        self._pace = make_body_pace(settings.publish)
        self._turns = ParserTurns(time.monotonic)
        loop = asyncio.get_running_loop()
        self._sampler = LogSampler(logger, loop.time, loop.call_later)
        self.criticals = CriticalLimiter(settings.publish)
        self._parser = EventParser(
            gateway.tokens.domain.catalog,
            _event_id,
            max_events=settings.publish.max_request_events,
            max_bytes=settings.publish.max_event_bytes,
            is_traced=tracer is not None,
        )

    @staticmethod
    def can_handle(scope: Scope) -> bool:
        """Whether this HTTP request is one."""
        return bool(scope["path"] == "/v1/events" and scope["method"] == "POST")

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        """Answers a request that it `can_handle`."""
        try:
            accepted = await self.publish_events(scope, receive)
        except Exception as error:
            send_response(send, *exception_to_response(error, scope["path"]))
        else:
            send_response(send, 200, JSON_HEADERS, _encode(accepted))

    async def publish_events(self, scope: Scope, receive: Receive) -> EventsAccepted:
        """Reads a request and publishes its events. Raises RequestError."""
        gateway, address = self._gateway, self._gateway.addresses.resolve_scope(scope)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if b"content-encoding" in headers:
            headers[b"content-encoding"] = join_encodings(scope["headers"])
        identity, room, trace = None, None, None
        try:
            identity = await gateway.identify(parse_bearer(_text(headers, b"authorization")), address)
            gateway.need_publisher(identity)
            if self._tracer is not None:  # not before: nobody else makes us record anything
                is_sent = b"traceparent" in headers
                trace = PublishTrace(self._tracer, _find_traceparent(scope) if is_sent else "")
            room = gateway.reserve_publish(identity)
            number, types, demoted = await self._forward_events(headers, receive, identity, room, trace)
            done = await gateway.wait_for_ack(number)
        except RequestError as error:
            self._audit.record_rejection("publish", error, address, identity)
            error.is_unread = error.is_unread or room is None
            if trace is not None:
                trace.fail(error.code)
            raise
        finally:
            if room is not None:
                gateway.publish_limiter.release(room)
        if trace is not None:
            trace.end(done)
        logger.debug("events_published", user=identity.user, events=len(done.offsets), last=done.offsets[-1])
        self._audit.record_publish(identity, types, done, address)
        return EventsAccepted(
            done.epoch,
            min(done.offsets),
            max(done.offsets),
            len(done.offsets) - len(done.duplicates),
            len(done.duplicates),
            demoted,
        )

    async def _forward_events(
        self,
        headers: dict[bytes, bytes],
        receive: Receive,
        identity: Identity,
        room: Reservation,
        trace: PublishTrace | None,
    ) -> tuple[int, dict[str, int], int]:
        """Reads the request and sends it on; its number, how many of which types, and how many are critical no more.

        The events are not kept.
        """
        body = await self._read_body(headers, receive, room)
        if b"content-encoding" in headers:
            body = await self._decode(body, _text(headers, b"content-encoding"), identity, room)
        parsing = self._parser.iter_events(body, _text(headers, b"content-type"), datetime.now(UTC), identity.user)
        weight = 0

        def weigh() -> Iterator[Event | None]:
            nonlocal weight
            for event in parsing:
                if event is not None:
                    weight += weigh_event(event)
                    if trace is not None:
                        event = trace.mark_event(event)
                yield event

        try:
            if len(body) <= SMALL_BYTES:
                events = [event for event in weigh() if event is not None]
            else:
                events = await self._turns.run(identity.user, weigh())
        except RequestError:
            self._gateway.charge_refused(identity, len(body) // REFUSED_BYTES)
            raise
        if room.is_evicted:
            raise self._gateway.publish_limiter.reject_slow(room)
        demoted = self.criticals.demote_excess(identity.user, events, asyncio.get_running_loop().time())
        if demoted:
            hint = "they are taken as high: an operator raises SOLOWIRE_PUBLISH__CRITICAL_RATE"
            self._sampler.write("warning", "critical_events_demoted", user=identity.user, events=demoted, hint=hint)
        traces = trace.list_traces() if trace is not None else []
        return self._gateway.send_events(identity, events, weight, room, traces), count_types(events), demoted

    async def _decode(self, body: bytes, encoding: str, identity: Identity, room: Reservation) -> bytes:
        """The body without its encoding, kept in `room`. In turns, since a few bytes may stand for many.

        Raises RequestError; its publisher pays for it, as for what was made of it until then.
        """
        made, worked = 0, STEP_BYTES

        def keep() -> Iterator[bytes | None]:
            nonlocal made, worked
            for piece in decode_steps(body, encoding, self._max_bytes):
                worked += STEP_BYTES if piece is None else len(piece)
                if piece is not None:
                    self._gateway.publish_limiter.grow(room, max(0, made + len(piece) - max(made, len(body))))
                    made += len(piece)
                yield piece

        try:
            return b"".join(await self._turns.run(identity.user, keep()))
        except RequestError:
            self._gateway.charge_refused(identity, max(worked, len(body)) // REFUSED_BYTES)
            raise

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive, room: Reservation) -> bytes:
        """The request's body, kept in `room`.

        Raises RequestRejected: when the body has been read, 413 or 503 for one that may not be kept; before that, 408
        for one that comes too slowly, and 413 for one that is too large to be even read and forgotten. Raises
        RequestError if the client is gone before the end.
        """
        loop, publish_limiter = asyncio.get_running_loop(), self._gateway.publish_limiter
        kept: list[bytes] = []
        size = 0
        refused: RequestRejected | None = None
        more = True
        deadline = BodyDeadline(self._pace, loop.time())
        try:
            _check_length(headers)
            async with asyncio.timeout_at(deadline.due) as reading:
                room.on_evicted = lambda: None if reading.expired() else reading.reschedule(loop.time())
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError("client_disconnected", "the client left before its request was whole")
                    if room.is_evicted:
                        raise publish_limiter.reject_slow(room)
                    more = message.get("more_body", False)
                    piece: bytes = message.get("body", b"")
                    size += len(piece)
                    if more:
                        reading.reschedule(deadline.extend(len(piece), loop.time()))
                    if refused is not None:
                        if size > DISCARDED_BYTES:
                            raise _make_too_large()
                        continue
                    try:
                        self._reserve_piece(room, len(piece), size)
                    except RequestRejected as error:
                        refused = error
                        kept.clear()
                        publish_limiter.discard_body(room)
                    else:
                        kept.append(piece)
        except TimeoutError:
            slow = publish_limiter.reject_slow(room)
            slow.is_unread = True
            raise slow from None
        except RequestError as error:
            error.is_unread = True
            raise
        finally:
            room.on_evicted = _nothing
        if refused is not None:
            raise refused
        return b"".join(kept)

    def _reserve_piece(self, room: Reservation, piece: int, size: int) -> None:
        """A piece of so many bytes has come, and is kept; with it there are `size`. Raises RequestRejected."""
        if size > self._max_bytes:
            hint = "send fewer events in each; an operator raises SOLOWIRE_PUBLISH__MAX_REQUEST_BYTES"
            raise RequestRejected(413, "too_large", f"a request may have {self._max_bytes} bytes", hint)
        self._gateway.publish_limiter.grow(room, piece)


def make_body_pace(settings: PublishSettings) -> BodyPace:
    """How fast a body has to come."""
    return BodyPace(settings.min_body_bytes_per_s, settings.body_grace_s, BODY_SECONDS)


def _nothing() -> None:
    """Nobody reads the request any more."""


def _check_length(headers: dict[bytes, bytes]) -> None:
    """Raises RequestRejected for a request that says that it is too large to be even read and forgotten."""
    length = headers.get(b"content-length", b"0")
    if len(length) > 18 or (length.isdigit() and int(length) > DISCARDED_BYTES):
        raise _make_too_large()


def _make_too_large() -> RequestRejected:
    return RequestRejected(
        413,
        "too_large",
        f"a request of more than {DISCARDED_BYTES} bytes is not even read",
        "send fewer events in each",
    )


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def _find_traceparent(scope: Scope) -> str:
    """What the request says of its trace; "" if it says so twice, which is nothing (W3C Trace Context, 3.2)."""
    sent = [value for name, value in scope["headers"] if name == b"traceparent"]
    return sent[0].decode("latin-1") if len(sent) == 1 else ""


def _event_id() -> str:
    # Unique across all gateways and the whole window, and short, since it goes out to everybody: 96 bits in 16 letters.
    return secrets.token_urlsafe(12)
