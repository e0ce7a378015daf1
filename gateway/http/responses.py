"""HTTP responses in front of Litestar, where each is asked for thousands of times a second.

What it keeps true: whatever goes wrong becomes a problem body, and only what nobody meant is logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog

from solowire.algorithms.log_sampler import LogSampler
from solowire.errors import RequestError
from solowire.protocol.problem_details import PROBLEM_TYPE, make_problem, to_http_response

logger = structlog.get_logger("solowire.gateway")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Headers = Iterable[tuple[bytes, bytes]]

JSON_HEADERS = ((b"content-type", b"application/json"),)
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
"""With every answer: what a publisher or a name has put into one is never taken for a page or a script."""
NO_STORE = (b"cache-control", b"no-store")
"""With what was asked for with a token, and may hold a ticket: no cache on the way keeps it for another."""
_END = (b"connection", b"close")
"""With an answer to a request that was not read to its end: what is left of it must not be taken for the next one."""
_PROBLEM_HEADERS = ((b"content-type", PROBLEM_TYPE.encode()),)


def _call_later(seconds: float, do: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, do)


_sampler = LogSampler(logger, time.monotonic, _call_later)
"""A fault of ours that a request can bring about is one that it brings about as often as its sender likes."""


def exception_to_response(error: Exception, path: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body for any exception; one that nobody meant is logged, and told without its details."""
    if isinstance(error, RequestError):
        status, headers, text = to_http_response(error)
        return status, ([*headers, _END] if error.is_unread else headers), text
    hint = "a fault of the gateway: report it with this trace"
    _sampler.write("error", "unexpected_error", path=path, exc_info=error, hint=hint)
    body = make_problem(
        500,
        "internal_error",
        "this is a fault of the gateway, and in its log",
        "an operator finds it there and reports it",
    )
    return 500, _PROBLEM_HEADERS, msgspec.json.encode(body)


def send_response(send: Any, status: int, headers: Headers, body: bytes) -> None:
    """Sends a whole response. A send of Granian's starts by itself, and is not awaited."""
    send({"type": "http.response.start", "status": status, "headers": [*headers, NO_SNIFFING]})
    send({"type": "http.response.body", "body": body})
