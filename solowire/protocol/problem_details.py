"""Refusals as HTTP tells them: `application/problem+json` (RFC 9457) with a stable `code`."""

from __future__ import annotations

import math
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec

from solowire.errors import InvalidEvents, InvalidHistoryQuery, InvalidToken, RequestError, RequestRejected

PROBLEM_TYPE = "application/problem+json"
_CONTENT_TYPE = (b"content-type", PROBLEM_TYPE.encode())


def to_http_response(error: RequestError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body for a refused request, as ASGI takes them."""
    if isinstance(error, InvalidEvents):
        return 400, [_CONTENT_TYPE], _faults(error)
    if isinstance(error, InvalidHistoryQuery):
        faults = [{"parameter": name, "message": fault} for name, fault in error.faults.items()]
        return (
            400,
            [_CONTENT_TYPE],
            msgspec.json.encode(make_problem(400, error.code, error.message, error.hint, errors=faults)),
        )
    if isinstance(error, RequestRejected):
        seconds = None if error.retry_after is None else max(1, math.ceil(error.retry_after))
        if error.members:
            problem = make_problem(error.status, error.code, error.message, error.hint, **error.members)
            return error.status, [_CONTENT_TYPE], msgspec.json.encode(problem)
        status, headers, body = _response(
            error.status, error.code, error.message, error.hint, seconds, scope=error.scope
        )
        if error.headers:
            headers = [*headers, *((name.encode(), value.encode("latin-1")) for name, value in error.headers)]
        return status, headers, body
    if isinstance(error, InvalidToken):
        status = 403 if error.code == "wrong_shard" else 401
        shown = "Bearer" if error.code == "missing_token" else 'Bearer error="invalid_token"'
        return _response(status, error.code, error.message, error.hint, None, shown)
    return _response(400, error.code, error.message, error.hint)


@lru_cache(maxsize=256)
def _response(
    status: int,
    code: str,
    detail: str,
    hint: str,
    retry_after: int | None = None,
    authenticate: str = "",
    scope: str = "",
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Kept, since under an attack most refusals say the same. retry_after: whole seconds."""
    headers = [_CONTENT_TYPE]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    if authenticate:
        headers.append((b"www-authenticate", authenticate.encode()))
    return (
        status,
        headers,
        msgspec.json.encode(make_problem(status, code, detail, hint, **({"scope": scope} if scope else {}))),
    )


def _faults(error: InvalidEvents) -> bytes:
    faults = [
        {"index": f.index, "path": f.path, "message": f.message, "code": f.code, "hint": f.hint} for f in error.faults
    ]
    nothing = "nothing of this request was published"
    hint = f"{error.hint}; {nothing}" if error.hint else nothing
    body = make_problem(400, error.code, error.message, hint, errors=faults)
    return msgspec.json.encode(body)


def make_problem(status: int, code: str, detail: str, hint: str = "", **more: Any) -> dict[str, Any]:
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
