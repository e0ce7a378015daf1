"""How a request is answered in front of Litestar, where each answer is asked for thousands of times a second.

What it keeps true: whatever goes wrong becomes a problem body, and only what nobody meant is logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from solowire.errors import RequestError
from solowire.problems import PROBLEM_TYPE, problem, response_of

log = structlog.get_logger("solowire.gateway")

Scope = Mapping[str, Any]
Headers = Iterable[tuple[bytes, bytes]]

JSON_HEADERS = ((b"content-type", b"application/json"),)
_PROBLEM_HEADERS = ((b"content-type", PROBLEM_TYPE.encode()),)


def failure(error: Exception, path: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body for any exception; one that nobody meant is logged, and told without its details."""
    if isinstance(error, RequestError):
        return response_of(error)
    log.error("unexpected_error", path=path, exc_info=error, hint="a fault of the gateway: report it with this trace")
    body = problem(
        500,
        "internal_error",
        "this is a fault of the gateway, and in its log",
        "an operator finds it there and reports it",
    )
    return 500, _PROBLEM_HEADERS, msgspec.json.encode(body)


def answer(send: Any, status: int, headers: Headers, body: bytes) -> None:
    """Sends a whole response. A send of Granian's starts by itself, and is not awaited."""
    send({"type": "http.response.start", "status": status, "headers": headers})
    send({"type": "http.response.body", "body": body})
