"""The relay: carries a WebSocket for a client that can't go to its shard directly.

What it keeps true: frames, close codes and refusals pass through as they are, both ways (what ended without a code that
can be said is cut); one frame at a time is held
in each direction, so a reader that is slow slows the writer behind it, and nothing piles up here. A client that takes
nothing for `stalled_s` is cut: the shard would do that, but its word can't get past a socket that nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, ProtocolError, WebSocketException
from websockets.frames import Close
from websockets.typing import Subprotocol

from gateway.gateway import Gateway
from solowire.client_protocol import SUBPROTOCOLS
from solowire.codes import CloseCode
from solowire.errors import Refused, RequestError
from solowire.problems import response_of
from solowire.tokens import bearer

log = structlog.get_logger("solowire.relay")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Any]

_HELD_FRAMES = 1
_OPEN_SECONDS = 5.0
_MAX_MESSAGE_BYTES = 16 * 2**20
_CLOSE_SECONDS = 1.0
_NO_STATUS = 1005
"""What Granian, whose the gateway's sockets are, calls the end of a client that was cut or broke the protocol: bytes
that are no frames, a text that is not UTF-8. One that said good-bye without a code ends so, too, and hears nothing of
our answer."""
_CUT = 1006


class Relay:
    """The ASGI application for the gateway's WebSockets. open: how many it carries now."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        stalled_s: float,
    ) -> None:
        self._gateway = gateway
        self._stalled_s = stalled_s
        self._carried: set[asyncio.Task[Any]] = set()
        self._closing = asyncio.Event()
        self.carried_total = 0

    @property
    def open(self) -> int:
        return len(self._carried)

    async def close(self) -> None:
        """Ends all that it carries with 1012, before the server stops: the clients come back to another gateway."""
        self._closing.set()
        if self._carried:
            await asyncio.wait(self._carried, timeout=_CLOSE_SECONDS * 2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            shard = await self._connect(scope)
        except RequestError as error:
            await _refuse(send, *response_of(error))
            return
        except InvalidStatus as refusal:
            headers = [
                (name.lower().encode(), value.encode())
                for name, value in refusal.response.headers.raw_items()
                if name.lower() in ("content-type", "retry-after", "www-authenticate")
            ]
            await _refuse(send, refusal.response.status_code, headers, bytes(refusal.response.body or b""))
            return
        task = asyncio.current_task()
        if task is not None:
            self._carried.add(task)
        self.carried_total += 1
        try:
            await send({"type": "websocket.accept", "subprotocol": shard.subprotocol, "headers": []})
            await self._carry(shard, receive, send)
        finally:
            if task is not None:
                self._carried.discard(task)
            shard.transport.abort()

    async def _connect(self, scope: Scope) -> ClientConnection:
        if scope["path"] != "/ws":
            raise Refused(404, "not_found", "there is no WebSocket here", "connect to /ws")
        address, ticket = await self._gateway.place(_token(scope), self._gateway.addresses.of(scope), "relay")
        offered = [Subprotocol(name) for name in scope["subprotocols"]]
        try:
            return await connect(
                f"ws://{address.authority}/ws",
                additional_headers={"x-solowire-ticket": ticket, "x-solowire-relayed": "1"},
                subprotocols=[s for s in offered if s in SUBPROTOCOLS] or offered or None,
                compression=None,
                ping_interval=None,
                open_timeout=_OPEN_SECONDS,
                close_timeout=_CLOSE_SECONDS,
                max_size=_MAX_MESSAGE_BYTES,
                max_queue=_HELD_FRAMES,
                user_agent_header=None,
                proxy=None,
            )
        except InvalidStatus:
            raise
        except (OSError, TimeoutError, WebSocketException) as error:
            log.warning("shard_unreachable", shard=address.index, error=str(error))
            raise Refused(503, "shard_away", f"shard {address.index} can't be reached", "", retry_after=1) from None

    async def _carry(self, shard: ClientConnection, receive: Receive, send: Send) -> None:
        upwards = asyncio.ensure_future(_up(receive, shard))
        downwards = asyncio.ensure_future(_down(shard, send, self._stalled_s))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((upwards, downwards, closing), return_when=asyncio.FIRST_COMPLETED)
            if downwards.done() or closing.done():
                restarting = (int(CloseCode.restarting), CloseCode.restarting.reason)
                code, reason = downwards.result() if downwards.done() else restarting
                # Granian writes a close frame when nobody receives any more.
                upwards.cancel()
                await asyncio.wait((upwards,))
                await _within(send({"type": "websocket.close", "code": code, "reason": reason}), _CLOSE_SECONDS)
            else:
                # The client has gone: the shard hears so, if it listens.
                code, reason = upwards.result()
                if code == _NO_STATUS:
                    broken = {"code": int(CloseCode.bad_protocol), "reason": CloseCode.bad_protocol.reason}
                    await _within(send({"type": "websocket.close", **broken}), _CLOSE_SECONDS)
                if _can_be_said(code):
                    await _within(shard.close(code, reason), _CLOSE_SECONDS)
                else:
                    shard.transport.abort()
        finally:
            for task in (upwards, downwards, closing):
                task.cancel()
            await asyncio.gather(upwards, downwards, closing, return_exceptions=True)


async def _up(receive: Receive, shard: ClientConnection) -> tuple[int, str]:
    """From the client to the shard, until either has gone; returns the code and reason with which the client went."""
    with contextlib.suppress(ConnectionClosed):
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            await shard.send(message["bytes"] if text is None else text)
        return message.get("code") or _CUT, message.get("reason") or ""
    await asyncio.Event().wait()  # the shard has closed: `_down` knows with what code
    raise AssertionError


async def _down(shard: ClientConnection, send: Send, stalled_s: float) -> tuple[int, str]:
    """From the shard to the client; returns the close code and reason for the client."""
    while True:
        try:
            frame = await shard.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                return CloseCode.restarting, "the shard has gone"
            return closed.rcvd.code, closed.rcvd.reason
        message = {"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame}
        if not await _within(send(message), stalled_s):
            return CloseCode.too_slow, CloseCode.too_slow.reason


def _can_be_said(code: int) -> bool:
    """Whether a close frame may carry `code` (RFC 6455, section 7.4)."""
    try:
        Close(code, "").check()
    except ProtocolError:
        return False
    return True


async def _within(sending: Any, seconds: float) -> bool:
    """Whether an awaitable was done in time; it is cancelled otherwise, so that the descriptor can go."""

    async def whole() -> None:
        await sending

    try:
        await asyncio.wait_for(whole(), seconds)
    except TimeoutError:
        cancel = getattr(sending, "cancel", None)
        if cancel is not None:
            cancel()
        return False
    return True


def _token(scope: Scope) -> str:
    for key, value in scope["headers"]:
        if key == b"authorization" and (token := bearer(value.decode("latin-1"))):
            return token
    query: str = scope["query_string"].decode("latin-1")
    return parse_qs(query).get("token", [""])[0]


async def _refuse(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
