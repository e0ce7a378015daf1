"""What the SDK makes of what is not success: pure, and the same as the documentation says."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.backoff import MAX_RETRY_AFTER_S
from solowire.errors import InvalidEvent, InvalidEvents, InvalidToken, RequestError, RequestRejected
from solowire.protocol.problem_details import to_http_response
from solowire.sdk.network_errors import read_network_error, read_token_error
from solowire.sdk.retry_policy import (
    FIRST_TOKEN_S,
    FOREIGN_RETRY_AFTER_S,
    POLICY,
    TOKEN_PACE_S,
    Fault,
    FaultKind,
    RetryDecision,
    close_code_of,
    decide_retry,
    read_answer,
    read_close,
    wait_at_least,
)

DOCS = Path(__file__).resolve().parents[2] / "docs/sdk-retries.md"
NOW = 1_800_000_000.0


def own(error: RequestError) -> Fault:
    """What the SDK reads out of an answer that the gateway gives to `error`."""
    status, headers, body = to_http_response(error)
    return read_answer(status, {n.decode(): v.decode() for n, v in headers}, body, NOW)


def test_the_documentation_shows_the_policy() -> None:
    """Each row of the table in docs/sdk-retries.md is a kind with its two actions, and none is missing."""
    rows = [f"| {kind.value} | {before.value} | {after.value} |" for kind, (before, after) in POLICY.items()]
    text = DOCS.read_text()
    assert [row for row in rows if row not in text] == []
    assert set(POLICY) == set(FaultKind)
    assert len([line for line in text.splitlines() if line.startswith("| ")]) >= len(rows)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidToken("old", "token_expired"), FaultKind.token),
        (InvalidToken("wrong"), FaultKind.token),
        (InvalidToken("none", "missing_token"), FaultKind.token),
        (RequestRejected(401, "token_revoked", "out"), FaultKind.token),
        (RequestRejected(403, "forbidden", "no"), FaultKind.final),
        (RequestRejected(409, "duplicate_connection", "no"), FaultKind.taken),
        (RequestRejected(415, "unsupported_media_type", "no"), FaultKind.final),
        (RequestRejected(413, "too_many_events", "no"), FaultKind.too_large),
        (RequestRejected(429, "publish_rate_limited", "no", retry_after=3), FaultKind.passing),
        (RequestRejected(503, "overloaded", "no", retry_after=1), FaultKind.passing),
        (RequestRejected(408, "too_slow", "no"), FaultKind.passing),
        (RequestRejected(404, "not_found", "no"), FaultKind.unknown),
        (RequestRejected(400, "bad_request", "no"), FaultKind.unknown),
        (InvalidEvents([InvalidEvent(0, "$", "no")]), FaultKind.bad_events),
        (RequestError("invalid_body", "no"), FaultKind.bad_events),
    ],
)
def test_what_the_gateway_says_is_known(error: RequestError, kind: FaultKind) -> None:
    """Its own answers, made by its own code, are what the policy calls them, with their words and hints."""
    fault = own(error)
    assert fault.kind is kind
    assert fault.status


@given(st.integers(300, 599), st.dictionaries(st.text(), st.text()), st.binary())
def test_any_answer_is_a_fault_with_bounds(status: int, headers: dict[str, str], body: bytes) -> None:
    """Whatever answers, there is a kind and a bounded reason; and only the gateway itself says that it is final."""
    fault = read_answer(status, headers, body, NOW)
    assert 0 <= fault.after <= FOREIGN_RETRY_AFTER_S
    assert len(fault.text) < 1000
    action = decide_retry(fault, succeeded=True, renewable=False)
    assert action is RetryDecision.retry
    assert decide_retry(fault, succeeded=True, renewable=False, others_pass=True) in (
        RetryDecision.retry,
        RetryDecision.retry_apart,
    )


@given(
    st.integers(300, 499), st.fixed_dictionaries({}, optional={n: st.none() | st.text() | st.integers() for n in
    ("status", "code", "title", "detail", "hint")}), st.sampled_from(["application/problem+json", "application/json"])
)  # fmt: skip
def test_any_problem_is_read(status: int, problem: dict[str, object], content_type: str) -> None:
    """Whatever types its members have, nothing is raised."""
    fault = read_answer(status, {"content-type": content_type}, msgspec.json.encode(problem), NOW)
    assert fault.reason.startswith(f"answered {status}")


def test_a_problem_of_another_server_is_not_the_gateways() -> None:
    """`application/problem+json` alone is not enough: it must have a code like ours and its own status."""
    headers = {"content-type": "application/problem+json"}
    for problem in ({}, {"status": 403}, {"status": 500, "code": "forbidden"}, {"status": 403, "code": "RBAC: denied"}):
        assert read_answer(403, headers, msgspec.json.encode(problem), NOW).kind is FaultKind.foreign
    ours = msgspec.json.encode({"status": 403, "code": "forbidden"})
    assert read_answer(403, {"content-type": "application/json"}, ours, NOW).kind is FaultKind.foreign
    assert (
        read_answer(403, {"content-type": "Application/Problem+JSON; charset=utf-8"}, ours, NOW).kind is FaultKind.final
    )


def test_a_token_is_renewed_where_there_is_a_function() -> None:
    """Without one the gateway's 401 is final; with one it is asked on, before the first success for a bounded time."""
    fault = own(InvalidToken("old", "token_expired"))
    assert decide_retry(fault, succeeded=True, renewable=False) is RetryDecision.stop
    assert decide_retry(fault, succeeded=True, renewable=True, trying_s=1e9) is RetryDecision.renew
    assert decide_retry(fault, succeeded=False, renewable=True, trying_s=0) is RetryDecision.renew
    assert decide_retry(fault, succeeded=False, renewable=True, trying_s=FIRST_TOKEN_S) is RetryDecision.stop
    assert wait_at_least(fault) == TOKEN_PACE_S


def test_retry_after_is_bounded() -> None:
    """Ours is believed up to ten minutes, another's up to one; a date counts by the answer's own clock."""
    assert own(RequestRejected(503, "overloaded", "no", retry_after=10**9)).after == MAX_RETRY_AFTER_S
    for value in ("86400", "1e12", "Fri, 31 Dec 9999 23:59:59 GMT"):
        assert read_answer(503, {"retry-after": value}, b"", NOW).after == FOREIGN_RETRY_AFTER_S
    for value in ("-1", "nan", "soon", "", "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert read_answer(503, {"retry-after": value}, b"", NOW).after == 0
    said_at, until = (format_datetime(moment(seconds), usegmt=True) for seconds in (0, 20))
    for skew in (-7200, 0, 7200):  # seconds that our clock is wrong by
        assert read_answer(503, {"retry-after": until, "date": said_at}, b"", NOW + skew).after == 20


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(111, "refused"), FaultKind.unreachable),
        (TimeoutError(), FaultKind.unreachable),
        (httpx.ReadError("cut"), FaultKind.unreachable),
        (caused(httpx.ConnectError("x"), socket.gaierror(socket.EAI_NONAME, "unknown")), FaultKind.no_host),
        (caused(httpx.ConnectError("x"), socket.gaierror(socket.EAI_AGAIN, "later")), FaultKind.unreachable),
        (caused(httpx.ConnectError("x"), ssl.SSLCertVerificationError("self-signed")), FaultKind.no_tls),
        (
            caused(OSError("all"), ExceptionGroup("", [OSError("a"), socket.gaierror(socket.EAI_NONAME, "b")])),
            FaultKind.no_host,
        ),
    ],
)
def test_errors_of_the_network(error: Exception, kind: FaultKind) -> None:
    """What lies beneath the libraries' errors decides, and is what is told."""
    fault = read_network_error(error)
    assert fault.kind is kind
    assert fault.reason
    assert decide_retry(fault, succeeded=True, renewable=False) is RetryDecision.retry


def test_a_circle_of_causes_ends() -> None:
    """An error that is its own cause is read all the same."""
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__cause__ = second, first
    assert read_network_error(first).kind is FaultKind.unreachable


class AiohttpLike(Exception):
    status = 503


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("down"), FaultKind.no_token),
        (TimeoutError(), FaultKind.no_token),
        (httpx.ConnectError("down"), FaultKind.no_token),
        (AiohttpLike(), FaultKind.no_token),
        (
            httpx.HTTPStatusError("503", request=httpx.Request("GET", "http://x"), response=httpx.Response(503)),
            FaultKind.no_token,
        ),
        (
            httpx.HTTPStatusError("400", request=httpx.Request("GET", "http://x"), response=httpx.Response(400)),
            FaultKind.token_fault,
        ),
        (KeyError("bug"), FaultKind.token_fault),
    ],
)
def test_errors_of_the_token_function(error: Exception, kind: FaultKind) -> None:
    """An identity provider that is away passes; a fault in the function is told at first, and passes later."""
    assert read_token_error(error).kind is kind


def test_close_codes() -> None:
    """4401 is about the token; other terminal codes are final, and the rest passes."""
    assert read_close(4401, "x").kind is FaultKind.token
    assert {read_close(code, "x").kind for code in (4400, 4403, 4409, 4410)} == {FaultKind.closed_for_good}
    assert {read_close(code, "x").kind for code in (1000, 1001, 1006, 1009, 1013, 4408, 4413, 4421)} == {
        FaultKind.closed
    }
    assert [close_code_of(Fault(FaultKind.final, "", status=s)) for s in (401, 403, 409, 404)] == [
        4401,
        4403,
        4409,
        4400,
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "gave no answer in time"),
        (httpx.ConnectTimeout(""), "gave no answer in time"),
        (httpx.ReadTimeout(""), "gave no answer in time"),
        (ConnectionResetError(), "the connection failed (ConnectionResetError)"),
        (httpx.ReadError(""), "the connection failed (ReadError)"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
    ],
    ids=repr,
)
def test_an_error_without_words_is_told_in_ours(error: Exception, words: str) -> None:
    """The bare name of a library's exception tells nobody what to do."""
    fault = read_network_error(error)
    assert words in fault.reason
    assert fault.kind is FaultKind.unreachable
