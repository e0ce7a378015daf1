"""`Client.history()` against a gateway whose every word a test chooses."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from solowire import Client, ConnectionEnded, HistoryRefused, SubscriptionDenied
from solowire.runtime.settings.history_settings import HistorySettings
from solowire.sdk import history

PROBLEM = {"content-type": "application/problem+json"}


class Gateway:
    """Answers with what it is given, one after the other, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = deque(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, token: Any = "token", **more: Any) -> Client:
        client = Client("http://gateway.test", token, **more)
        client._open_http = lambda: httpx.AsyncClient(transport=httpx.MockTransport(self))  # type: ignore[method-assign]
        return client

    @property
    def parameters(self) -> list[dict[str, str]]:
        return [dict(request.url.params) for request in self.asked]


def page(*offsets: int, next: str | None, complete: bool = False, **more: Any) -> httpx.Response:
    events = [
        {"offset": n, "id": f"e{n}", "type": "custom.a", "priority": "normal", "timestamp": "t", "data": {}}
        for n in offsets
    ]
    return httpx.Response(200, json={"events": events, "next": next, "complete": complete} | more)


def problem(status: int, code: str, **more: Any) -> httpx.Response:
    headers = PROBLEM | {name.replace("_", "-"): value for name, value in more.pop("headers", {}).items()}
    body = {"type": "about:blank", "title": "x", "status": status, "code": code, "detail": "in words", **more}
    return httpx.Response(status, json=body, headers=headers)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "RETRY_MIN_S", 0.001)
    monkeypatch.setattr(history, "RETRY_MAX_S", 0.002)


async def test_pages_are_one_iteration() -> None:
    """Each page goes on behind the last, an empty one too; `position` follows what has been handed out."""
    gateway = Gateway(page(1, 2, next="e:2"), page(next="e:9"), page(12, next="e:20:20", complete=True))
    found = gateway.client().history("1h", types=["dns.*", "custom.a"], filter={"zone": ["a.test"]})
    before: Any = found.position
    assert before is None
    seen: list[Any] = [(event.offset, found.position) async for event in found]
    assert seen == [(1, ("e", 1)), (2, ("e", 2)), (12, ("e", 12))]
    end: Any = (found.position, found.next_page)
    assert end == (("e", 20), "e:20:20")
    first, second, third = gateway.parameters
    assert first == {
        "order": "asc",
        "since": "1h",
        "types": "dns.*,custom.a",
        "filter": '{"zone":["a.test"]}',
        "limit": "1000",
    }
    assert second == first | {"after": "e:2"}
    assert third == first | {"after": "e:9"}
    assert {request.headers["authorization"] for request in gateway.asked} == {"Bearer token"}


async def test_a_limit_is_of_events_in_all() -> None:
    """No more is asked for than is left, and the iteration ends with the last of them."""
    gateway = Gateway(page(9, 8, next="e:8:1"), page(7, next="e:7:1"))
    found = gateway.client().history(limit=3, order="desc")
    assert [event.offset async for event in found] == [9, 8, 7]
    assert [asked["limit"] for asked in gateway.parameters] == ["3", "1"]
    assert (found.position, found.next_page) == (None, "e:7:1")


def test_every_server_gives_as_much_as_is_asked_for() -> None:
    """However few events an operator wants in a page: a limit above the server's is a wrong one."""
    HistorySettings(page_events=history.PAGE_EVENTS)
    with pytest.raises(ValidationError):
        HistorySettings(page_events=history.PAGE_EVENTS - 1)


async def test_what_passes_is_waited_for() -> None:
    """A page that is refused for now, or lost on the way, is asked for again, and comes once."""
    gateway = Gateway(
        problem(503, "router_unavailable"),
        page(1, next="e:1"),
        httpx.ConnectError("reset"),
        problem(429, "history_rate_limited", headers={"retry_after": "0"}),
        page(2, next="e:2", complete=True),
    )
    assert [event.offset async for event in gateway.client().history()] == [1, 2]
    assert [asked.get("after") for asked in gateway.parameters] == [None, None, "e:1", "e:1", "e:1"]


@pytest.mark.parametrize(
    "passing",
    [
        httpx.Response(404, text="<html>"),
        httpx.Response(301, headers={"location": "/elsewhere"}),
        httpx.Response(403, text="no"),
        httpx.Response(401, text="no"),
        httpx.Response(200, json={"ok": True}),
        httpx.ConnectError("no such host"),
    ],
)
async def test_after_a_page_a_proxy_without_its_gateway_is_waited_out(passing: httpx.Response | Exception) -> None:
    """What may be a deployment's passing answer ends no question that has been answered before."""
    gateway = Gateway(page(1, next="e:1"), passing, passing, page(2, next="e:2", complete=True))
    assert [event.offset async for event in gateway.client().history()] == [1, 2]


DENIED = [
    {"type": "audit_event", "reason": "forbidden", "hint": "needs the permission audit.read"},
    {"type": "dns_query_log", "reason": "filter", "hint": "needs the permission dns.clients"},
]


async def test_what_is_not_granted_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody takes a history of one type for one of all that he asked for."""
    gateway = Gateway(
        page(1, next="e:1", denied=DENIED[:1]),
        page(2, next="e:2", denied=DENIED),
        page(3, next="e:3", complete=True, denied=DENIED),
    )
    found = gateway.client().history(types=["custom.a", "audit_event", "dns_query_log"])
    with caplog.at_level("WARNING", "solowire.client"):
        assert [event.offset async for event in found] == [1, 2, 3]
    first, second = [record.getMessage() for record in caplog.records]
    assert "audit_event (forbidden: needs the permission audit.read)" in first
    assert "dns_query_log" in second
    assert [denied.type for denied in found.denied] == ["audit_event", "dns_query_log"]


async def test_strictly_what_is_not_granted_is_an_error() -> None:
    """Before anything is handed out; what a later token no longer has is a warning, as it is live."""
    gateway = Gateway(page(1, next="e:1", denied=DENIED, complete=True))
    with pytest.raises(SubscriptionDenied, match="audit_event") as denied:
        await anext(gateway.client(strict=True).history(types=["custom.a", "audit_event"]))
    assert denied.value.denied == {"audit_event": "forbidden", "dns_query_log": "filter"}
    gateway = Gateway(page(1, next="e:1"), page(2, next="e:2", denied=DENIED, complete=True))
    assert [event.offset async for event in gateway.client(strict=True).history(types=["custom.a"])] == [1, 2]


async def test_a_filter_that_narrows_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """As it is to a live client."""
    gateway = Gateway(page(1, next="e:1", complete=True))
    with caplog.at_level("WARNING", "solowire.client"):
        assert [_ async for _ in gateway.client().history(types=["system_status"], filter={"zone": ["a.test"]})]
    assert ["'zone' narrows nothing" in record.getMessage() for record in caplog.records] == [True]


async def test_who_waits_for_history_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A gateway that does not answer is a warning at once, one for each reason, and `last_reason` while it lasts."""
    gateway = Gateway(*[httpx.ConnectError("refused")] * 3, page(1, next="e:1", complete=True))
    found = gateway.client().history()
    with caplog.at_level("WARNING", "solowire.client"):
        reasons = [found.last_reason async for _ in found]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("no history yet: http://gateway.test/v1/events")
    assert reasons == [None]


async def test_the_first_answer_is_waited_for_as_long_as_is_said() -> None:
    """With `retry_for` a gateway that isn't there ends the question with an error that names it."""
    gateway = Gateway(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(ConnectionEnded, match=r"gateway\.test"):
        [event async for event in gateway.client().history(retry_for=0.0)]
    assert len(gateway.asked) == 1
    with pytest.raises(ValueError, match="retry_for"):
        gateway.client().history(retry_for=-1)


async def test_what_does_not_pass_is_raised() -> None:
    """A refusal with its code and the way out; an answer that is no gateway's as such."""
    gone = problem(410, "history_gone", oldest={"position": "e:5", "timestamp": "t"})
    for answer, code, oldest in (
        (gone, "history_gone", "e:5"),
        (problem(400, "invalid_query"), "invalid_query", None),
        (problem(403, "forbidden"), "forbidden", None),
        (problem(401, "token_expired"), "token_expired", None),
    ):
        with pytest.raises(HistoryRefused) as refused:
            [event async for event in Gateway(page(1, next="e:1"), answer).client().history()]
        assert (refused.value.code, refused.value.oldest) == (code, oldest)
        assert "in words" in str(refused.value)
    for strange in (httpx.Response(404, text="<html>"), httpx.Response(200, text="<html>")):
        with pytest.raises(ConnectionEnded):
            [event async for event in Gateway(strange).client().history()]


async def test_a_token_that_has_expired_is_renewed() -> None:
    """A token function is asked again, and the page with its next one."""
    tokens = iter(["old", "new"])
    gateway = Gateway(problem(401, "token_expired"), page(1, next="e:1", complete=True))
    assert [event.offset async for event in gateway.client(lambda: next(tokens)).history()] == [1]
    assert [request.headers["authorization"] for request in gateway.asked] == ["Bearer old", "Bearer new"]


async def test_moments_are_written_as_the_server_reads_them() -> None:
    """Times, durations and positions of Python's own kinds."""
    gateway = Gateway(page(next="e:0", complete=True))
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    found = gateway.client().history(timedelta(minutes=90), moment, after=("e", 4))
    assert [event async for event in found] == []
    [asked] = gateway.parameters
    assert (asked["since"], asked["until"], asked["after"]) == ("5400.000s", "2026-01-01T12:00:00+00:00", "e:4")


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": datetime(2026, 1, 1)},  # noqa: DTZ001 -- that it has no zone is what is wrong
        {"since": timedelta(seconds=-1)},
        {"since": 3600},
        {"since": ""},
        {"until": ("e", "4")},
        {"types": "dns.*"},
        {"filter": ["zone"]},
        {"limit": 0},
        {"order": "up"},
    ],
)
def test_wrong_arguments_are_raised_at_once(wrong: dict[str, Any]) -> None:
    """Before anything is asked."""
    with pytest.raises((TypeError, ValueError)):
        Client("http://gateway.test", "token").history(**wrong)
