"""`solowire history` against a gateway whose every word a test chooses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from solowire import Client
from solowire.cli.tail import EventPrinter, ReportedLimits, make_consoles, print_history

GONE = {
    "type": "about:blank",
    "title": "Gone",
    "status": 410,
    "code": "history_gone",
    "detail": "older than the log keeps",
    "oldest": {"position": "e:5", "timestamp": "t"},
}


async def show(answers: list[httpx.Response], **more: Any) -> list[dict[str, str]]:
    """The questions that `solowire history --since 30d` asks; each answer is given once, in order."""
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        return answers.pop(0)

    client = Client("http://gateway.test", "token")
    client._open_http = lambda: httpx.AsyncClient(transport=httpx.MockTransport(answer))  # type: ignore[method-assign]
    notes, out = make_consoles()
    printer = EventPrinter(out, as_json=False, count=None)
    types, filter = more.pop("types", None), more.pop("filter", {})
    await print_history(
        client, "http://gateway.test", printer, notes, "30d", types, filter, limits=ReportedLimits(notes), **more
    )
    return asked


def gone() -> httpx.Response:
    return httpx.Response(410, json=GONE, headers={"content-type": "application/problem+json"})


def page(*offsets: int, next: str, complete: bool, **more: Any) -> httpx.Response:
    events = [
        {"offset": n, "id": f"e{n}", "type": "custom.a", "priority": "normal", "timestamp": "t", "data": {}}
        for n in offsets
    ]
    return httpx.Response(200, json={"events": events, "next": next, "complete": complete} | more)


async def test_of_a_full_log_it_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The oldest event that a refusal names may be gone by the next question: that one asks for whatever is kept."""
    asked = await show([gone(), page(7, 8, next="e:8", complete=True)])
    assert [question.get("since") for question in asked] == ["30d", None]
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["7", "8"]
    assert "begins with the oldest that there is" in shown.err


async def test_newest_first_it_ends_where_the_log_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """What was trimmed while it was shown is said to be gone, and nothing is shown twice."""
    asked = await show([page(9, 8, next="e:8", complete=False), gone()], order="desc")
    assert len(asked) == 2
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["9", "8"]
    assert "doesn't keep what is older" in shown.err


async def test_what_is_not_shown_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A type that is not granted, and a filter that narrows nothing, as `solowire tail` says them."""
    denied = [{"type": "audit_event", "reason": "forbidden", "hint": "needs audit.read"}]
    answers = [page(7, next="e:7", complete=False, denied=denied), page(8, next="e:8", complete=True, denied=denied)]
    await show(answers, types=["system_status", "audit_event"], filter={"zone": ["a"]})
    said = capsys.readouterr().err
    assert said.count("not granted: audit_event (forbidden: needs audit.read)") == 1
    assert said.count("--filter zone=… narrows nothing") == 1
