"""Refusals as HTTP tells them: a status, a problem body with a code, and the headers that go with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from solowire.errors import InvalidToken, Refused, RequestError
from solowire.problems import problem_of, response_of


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (RequestError("bad", "it is bad", "be good"), 400, {}),
        (InvalidToken("no"), 401, {"www-authenticate": 'Bearer error="invalid_token"'}),
        (InvalidToken("none", "missing_token"), 401, {"www-authenticate": "Bearer"}),
        (Refused(503, "away", "gone", retry_after=0.2), 503, {"retry-after": "1"}),
        (Refused(429, "limit", "slower", retry_after=1.5), 429, {"retry-after": "2"}),
        (Refused(404, "not_found", "nothing"), 404, {}),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_a_refusal_is_a_problem(error: RequestError, status: int, headers: dict[str, str]) -> None:
    """Status, code and words of an error reach the client, alike for a framework and for bare ASGI."""
    found, body, extra = problem_of(error)
    assert (found, extra) == (status, headers)
    assert (body["status"], body["code"], body["detail"]) == (status, error.code, error.message)
    assert ("hint" in body) == bool(error.hint)
    raw_status, raw_headers, raw = response_of(error)
    decoded: dict[str, Any] = msgspec.json.decode(raw)
    assert (raw_status, decoded) == (status, body)
    named = {name.decode(): value.decode() for name, value in raw_headers}
    assert named == {"content-type": "application/problem+json", **headers}


def test_a_ticket_for_another_shard_is_forbidden_there() -> None:
    """A ticket that proves something, but not here, is a 403: another token would not help."""
    assert problem_of(InvalidToken("not here", "wrong_shard"))[0] == 403
