"""Refusals as HTTP tells them: a status, a problem body with a code, and the headers that go with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from solowire.errors import InvalidEvent, InvalidEvents, InvalidToken, RequestError, RequestRejected
from solowire.protocol.problem_details import to_http_response


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (RequestError("bad", "it is bad", "be good"), 400, {}),
        (InvalidToken("no"), 401, {"www-authenticate": 'Bearer error="invalid_token"'}),
        (InvalidToken("none", "missing_token"), 401, {"www-authenticate": "Bearer"}),
        (RequestRejected(503, "away", "gone", retry_after=0.2), 503, {"retry-after": "1"}),
        (RequestRejected(429, "limit", "slower", retry_after=1.5), 429, {"retry-after": "2"}),
        (RequestRejected(404, "not_found", "nothing"), 404, {}),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_a_refusal_is_a_problem(error: RequestError, status: int, headers: dict[str, str]) -> None:
    """Status, code and words of an error reach the client."""
    found, pairs, raw = to_http_response(error)
    body: dict[str, Any] = msgspec.json.decode(raw)
    assert (found, body["status"], body["code"], body["detail"]) == (status, status, error.code, error.message)
    assert ("hint" in body) == bool(error.hint)
    named = {name.decode(): value.decode() for name, value in pairs}
    assert named == {"content-type": "application/problem+json", **headers}


def test_faults_of_events_are_all_told() -> None:
    """Each event that is not as it should be is named, with where, and that nothing was published."""
    faults = [InvalidEvent(0, "$.type", "no such type", "unknown_type", "see the catalog"), InvalidEvent(3, "$", "odd")]
    status, _, raw = to_http_response(InvalidEvents(faults))
    body = msgspec.json.decode(raw)
    assert (status, body["code"]) == (400, "invalid_events")
    assert [(f["index"], f["path"], f["code"]) for f in body["errors"]] == [
        (0, "$.type", "unknown_type"),
        (3, "$", faults[1].code),
    ]


def test_a_ticket_for_another_shard_is_forbidden_there() -> None:
    """A ticket that proves something, but not here, is a 403: another token would not help."""
    assert to_http_response(InvalidToken("not here", "wrong_shard"))[0] == 403
