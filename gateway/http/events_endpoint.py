"""Publishing over HTTP: `POST /v1/events`.

It is answered here, in front of Litestar, because publishers ask it for each event: Litestar's way to a handler and
back takes a millisecond, and all of this a fifth of that. Litestar serves the same method for whoever comes by another
spelling of the path, and documents it.

What it keeps true: a request is taken as a whole or not at all, and answered only when the log has it. Who may not
publish, or not now, is told so at once, without a look at the body, and its connection ends: nobody's bytes are read
who has no place for them. What is refused in its midst is read all the same, and forgotten, up to DISCARDED_BYTES.

A body comes at a pace (`solowire.gateway.publish.body_deadline`), or is ended with 408. One that is large is parsed in
turns (`solowire.gateway.publish.parsing_turns`), so that nobody else waits for more than a part of it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from solowire.auth.tokens import bearer
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import Refused, RequestError
from solowire.gateway.audit_events import Trail, types_of
from solowire.gateway.http.responses import JSON_HEADERS, Scope, answer, failure
from solowire.gateway.publish.body_deadline import BodyDeadline, BodyPace
from solowire.gateway.publish.content_encoding import STEP_BYTES, decode_steps, join_encodings
from solowire.gateway.publish.event_parser import Parser
from solowire.gateway.publish.parsing_turns import ParsingTurns
from solowire.gateway.publish.publish_limiter import Room
from solowire.gateway.router_client import Gateway
from solowire.model.access import Identity
from solowire.runtime.settings import Settings

log = structlog.get_logger("solowire.gateway")

DISCARDED_BYTES = 64 * 2**20
SMALL_BYTES = 16 * 1024
"""A body that is no larger is parsed at once, whatever others send: it takes a millisecond or two."""
REFUSED_BYTES = 256
"""For what can't be read, or holds what is no event, a publisher pays as for an event of each so many bytes."""
BODY_SECONDS = 60.0
"""However fast a request comes, it holds room for no longer."""

Receive = Callable[[], Awaitable[Any]]

_encode = msgspec.json.Encoder().encode


class Accepted(msgspec.Struct):
    """Events that are in the log. accepted: without the duplicates, which keep the offset that they had."""

    epoch: str
    first_offset: int
    last_offset: int
    accepted: int
    duplicates: int


class Posting:
    """trail: to the audit log."""

    def __init__(self, gateway: Gateway, settings: Settings, trail: Trail) -> None:
        self._gateway = gateway
        self._trail = trail
        self._max_bytes = settings.publish_max_bytes
        self._pace = pace_of(settings)
        self._turns = ParsingTurns(time.monotonic)
        self._parser = Parser(
            CATALOG, _event_id, max_events=settings.publish_max_events, max_bytes=settings.event_max_bytes
        )

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether this HTTP request is one."""
        return bool(scope["path"] == "/v1/events" and scope["method"] == "POST")

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        """Answers a request that it `takes`."""
        try:
            accepted = await self.publish(scope, receive)
        except Exception as error:
            answer(send, *failure(error, scope["path"]))
        else:
            answer(send, 200, JSON_HEADERS, _encode(accepted))

    async def publish(self, scope: Scope, receive: Receive) -> Accepted:
        """Reads a request and publishes its events. Raises RequestError."""
        gateway, address = self._gateway, self._gateway.addresses.of(scope)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if b"content-encoding" in headers:
            headers[b"content-encoding"] = join_encodings(scope["headers"])
        identity, room = None, None
        try:
            identity = await gateway.identify(bearer(_text(headers, b"authorization")), address)
            gateway.need_publisher(identity)
            room = gateway.make_room(identity)
            number, types = await self._take(headers, receive, identity, room)
            done = await gateway.published(number)
        except RequestError as error:
            self._trail.refused("publish", error, address, identity)
            error.unread = error.unread or room is None
            raise
        finally:
            if room is not None:
                gateway.intake.close(room)
        log.debug("published", user=identity.user, events=len(done.offsets), last=done.offsets[-1])
        self._trail.published(identity, types, done, address)
        return Accepted(
            done.epoch,
            min(done.offsets),
            max(done.offsets),
            len(done.offsets) - len(done.duplicates),
            len(done.duplicates),
        )

    async def _take(
        self, headers: dict[bytes, bytes], receive: Receive, identity: Identity, room: Room
    ) -> tuple[int, dict[str, int]]:
        """Reads the request and sends it on; its number, and how many of which types. The events are not kept."""
        body = await self._read(headers, receive, room)
        if b"content-encoding" in headers:
            body = await self._decode(body, _text(headers, b"content-encoding"), identity, room)
        wanted = body, _text(headers, b"content-type"), datetime.now(UTC), identity.user
        try:
            if len(body) <= SMALL_BYTES:
                events = self._parser.parse(*wanted)
            else:
                events = await self._turns.run(identity.user, self._parser.steps(*wanted))
        except RequestError:
            self._gateway.charge_refused(identity, len(body) // REFUSED_BYTES)
            raise
        if room.ended:
            raise self._gateway.intake.slow(room)
        return self._gateway.send(identity, events, room), types_of(events)

    async def _decode(self, body: bytes, encoding: str, identity: Identity, room: Room) -> bytes:
        """The body without its encoding, kept in `room`. In turns, since a few bytes may stand for many.

        Raises RequestError; its publisher pays for it, as for what was made of it until then.
        """
        made, worked = 0, STEP_BYTES

        def keep() -> Iterator[bytes | None]:
            nonlocal made, worked
            for piece in decode_steps(body, encoding, self._max_bytes):
                worked += STEP_BYTES if piece is None else len(piece)
                if piece is not None:
                    self._gateway.intake.grow(room, max(0, made + len(piece) - max(made, len(body))))
                    made += len(piece)
                yield piece

        try:
            return b"".join(await self._turns.run(identity.user, keep()))
        except RequestError:
            self._gateway.charge_refused(identity, max(worked, len(body)) // REFUSED_BYTES)
            raise

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, room: Room) -> bytes:
        """The request's body, kept in `room`.

        Raises Refused: when the body has been read, 413 or 503 for one that may not be kept; before that, 408 for one
        that comes too slowly, and 413 for one that is too large to be even read and forgotten.
        Raises RequestError if the client is gone before the end.
        """
        loop, intake = asyncio.get_running_loop(), self._gateway.intake
        kept: list[bytes] = []
        size = 0
        refused: Refused | None = None
        more = True
        deadline = BodyDeadline(self._pace, loop.time())
        try:
            _check_length(headers)
            async with asyncio.timeout_at(deadline.due) as reading:
                room.end = lambda: None if reading.expired() else reading.reschedule(loop.time())
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError("client_gone", "the client left before its request was whole")
                    if room.ended:
                        raise intake.slow(room)
                    more = message.get("more_body", False)
                    piece: bytes = message.get("body", b"")
                    size += len(piece)
                    if more:
                        reading.reschedule(deadline.put_off(len(piece), loop.time()))
                    if refused is not None:
                        if size > DISCARDED_BYTES:
                            raise _too_large()
                        continue
                    try:
                        self._keep(room, len(piece), size)
                    except Refused as error:
                        refused = error
                        kept.clear()
                        intake.empty(room)
                    else:
                        kept.append(piece)
        except TimeoutError:
            slow = intake.slow(room)
            slow.unread = True
            raise slow from None
        except RequestError as error:
            error.unread = True
            raise
        finally:
            room.end = _nothing
        if refused is not None:
            raise refused
        return b"".join(kept)

    def _keep(self, room: Room, piece: int, size: int) -> None:
        """A piece of so many bytes has come, and is kept; with it there are `size`. Raises Refused."""
        if size > self._max_bytes:
            hint = "send fewer events in each; an operator raises SOLOWIRE_PUBLISH_MAX_BYTES"
            raise Refused(413, "too_large", f"a request may have {self._max_bytes} bytes", hint)
        self._gateway.intake.grow(room, piece)


def pace_of(settings: Settings) -> BodyPace:
    """How fast a body has to come."""
    return BodyPace(settings.publish_min_body_bytes_per_s, settings.publish_body_grace_s, BODY_SECONDS)


def _nothing() -> None:
    """Nobody reads the request any more."""


def _check_length(headers: dict[bytes, bytes]) -> None:
    """Raises Refused for a request that says that it is too large to be even read and forgotten."""
    said = headers.get(b"content-length", b"0")
    if len(said) > 18 or (said.isdigit() and int(said) > DISCARDED_BYTES):
        raise _too_large()


def _too_large() -> Refused:
    return Refused(
        413,
        "too_large",
        f"a request of more than {DISCARDED_BYTES} bytes is not even read",
        "send fewer events in each",
    )


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def _event_id() -> str:
    # Unique across all gateways and the whole window, and short, since it goes out to everybody: 96 bits in 16 letters.
    return secrets.token_urlsafe(12)
