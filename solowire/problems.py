"""Refusals as HTTP tells them: `application/problem+json` (RFC 9457) with a stable `code`."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec

from solowire.errors import InvalidToken, Refused, RequestError

PROBLEM_TYPE = "application/problem+json"


def problem_of(error: RequestError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for a refused request."""
    headers: dict[str, str] = {}
    status = 400
    if isinstance(error, InvalidToken):
        status = 403 if error.code == "wrong_shard" else 401
        headers["www-authenticate"] = "Bearer" if error.code == "missing_token" else 'Bearer error="invalid_token"'
    elif isinstance(error, Refused):
        status = error.status
        if error.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return status, problem(status, error.code, error.message, error.hint), headers


def response_of(error: RequestError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body for a refused request, as ASGI takes them."""
    status, body, headers = problem_of(error)
    pairs = [(b"content-type", PROBLEM_TYPE.encode())]
    pairs += [(name.encode(), value.encode()) for name, value in headers.items()]
    return status, pairs, msgspec.json.encode(body)


def problem(status: int, code: str, detail: str, hint: str = "", **more: Any) -> dict[str, Any]:
    """A problem body. more: members of its own, such as `errors`."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if hint:
        body["hint"] = hint
    return body | more
