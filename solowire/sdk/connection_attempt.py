"""One attempt at a connection: a ticket from the gateway, and the WebSocket that it opens. And how one is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isfinite
from ssl import SSLContext

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from solowire.algorithms.backoff import MAX_RETRY_AFTER_S
from solowire.sdk.network_errors import read_network_error
from solowire.sdk.retry_policy import Fault, FaultKind, read_answer, read_close, read_undecodable

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""What the server beneath a shard sends at most. Frames are 64 KB unless a single event is larger."""

CLOSE_TIMEOUT_S = 1.0
"""How long a polite close waits for the other side."""

ABNORMAL = 1006
"""RFC 6455, section 7.4.1: the connection ended without a close code, or never began."""


class ConnectResponse(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/connect`. url: carries the ticket, so it is not for logs."""

    url: str
    shard: int | None = None


class ConnectionLost(Exception):
    """A connection, or the attempt at one, is over.

    code: with which the server closed, None for an attempt that failed. url: what failed, "" for the gateway. asked:
    the server asked for it. error: what to raise if there is no way on.
    """

    def __init__(
        self,
        fault: Fault,
        *,
        code: int | None = None,
        url: str = "",
        asked: bool = False,
        error: Exception | None = None,
    ) -> None:
        super().__init__(fault)
        self.fault = fault
        self.code = code
        self.url = url
        self.is_requested = asked
        self.error = error

    @property
    def has_failed(self) -> bool:
        return self.code is None


def make_lost(code: int, reason: str, *, after: float = 0.0, asked: bool = False) -> ConnectionLost:
    """A connection has ended. after: seconds to stay away."""
    fault = msgspec.structs.replace(read_close(code, reason), after=bound_seconds(after))
    return ConnectionLost(fault, code=int(code), asked=asked)


def make_failed(reason: str, *, after: float = 0.0) -> ConnectionLost:
    """An attempt has failed on the way, in a way that may pass."""
    return ConnectionLost(Fault(FaultKind.unreachable, reason, after=bound_seconds(after)))


def bound_seconds(seconds: float) -> float:
    """What a server asks for, within reason."""
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if isfinite(seconds) else 0.0


async def request_ticket(http: httpx.AsyncClient, url: str, token: str) -> ConnectResponse:
    """Asks the gateway at `url` where to connect. Raises ConnectionLost."""
    try:
        response = await http.post(url, headers={"Authorization": f"Bearer {token}"})
    except (OSError, httpx.RequestError) as error:
        raise ConnectionLost(read_network_error(error)) from error
    if not response.is_success:
        raise ConnectionLost(read_answer(response.status_code, response.headers, response.content, time.time()))
    try:
        return msgspec.json.decode(response.content, type=ConnectResponse)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConnectionLost(read_undecodable(error)) from error


async def open_socket(ticket_url: str, subprotocols: Sequence[Subprotocol], ssl: SSLContext | None) -> ClientConnection:
    """Opens the WebSocket at a URL with a ticket. Raises ConnectionLost."""
    url = ticket_url.partition("?")[0]  # without the ticket
    try:
        return await _Connect(
            ticket_url,
            subprotocols=subprotocols,
            proxy=None,
            compression=None,
            open_timeout=None,  # the whole attempt has one
            ping_interval=None,  # heartbeats are messages
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=MAX_FRAME_BYTES,
            ssl=ssl if ticket_url.startswith("wss://") else None,
        )
    except InvalidStatus as error:
        answer = error.response
        headers = {name.lower(): value for name, value in answer.headers.raw_items()}
        fault = read_answer(answer.status_code, headers, bytes(answer.body or b""), time.time(), of_shard=True)
        raise ConnectionLost(fault, url=url) from None
    except (InvalidURI, ValueError) as error:  # ValueError: what `urllib` or IDNA make of a host
        raise ConnectionLost(read_undecodable(error)) from error
    except (OSError, InvalidHandshake) as error:
        raise ConnectionLost(read_network_error(error), url=url) from error


class _Connect(connect):
    """Follows no redirects, as `/v1/connect` follows none: ten requests for each attempt, to wherever it is told."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc
