"""Events that somebody on the way cuts off, each time: others go on, and they are kept and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from solowire.errors import PublishRefused
from solowire.sdk import held_events
from solowire.sdk.held_events import FIRST_PAUSE_S, LONGEST_PAUSE_S, HeldEvent, HeldEvents
from solowire.sdk.publish_buffer import PublishBuffer
from solowire.sdk.publisher import Publisher
from tests.support.publish_gateway import Gateway, Reply, page, problem

DEADLINE_S = 30.0


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    monkeypatch.setattr("solowire.sdk.publisher.RETRY_MIN_S", 0.001)
    monkeypatch.setattr("solowire.sdk.publisher.RETRY_MAX_S", 0.001)
    async with asyncio.timeout(DEADLINE_S), Gateway().running() as gateway:
        yield gateway


async def publish(publisher: Publisher, *numbers: int) -> None:
    for n in numbers:
        await publisher.publish("custom.n", {"n": n})


def cut_off_odd(gateway: Gateway, answer: Reply | None) -> None:
    """A firewall: a request with an odd number gets this answer; None: its connection is reset."""

    def judge(events: list[dict[str, Any]]) -> Reply | None:
        if not any(event["data"].get("n", 0) % 2 for event in events):
            return None
        if answer is None:
            raise ConnectionError("reset")
        return answer

    gateway.judge = judge


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("answer", [None, page(502), page(500), page(503)], ids=["reset", "502", "500", "503"])
async def test_an_event_that_is_cut_off_each_time_does_not_stop_the_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Reply | None
) -> None:
    """They are accepted in order; it is kept, said, tried again, and accepted when it may pass. None is given up."""
    monkeypatch.setattr(held_events, "FIRST_PAUSE_S", 0.05)
    cut_off_odd(gateway, answer)
    refused: list[object] = []
    note = lambda event, problem: refused.append(problem)  # noqa: E731
    async with Publisher(gateway.url, "tok", on_refused=note) as publisher:
        await publish(publisher, 0, 2, 1, 4, 6, 3, 8)
        await publisher.drain()
        assert gateway.values == [0, 2, 4, 6, 8]
        assert [event["data"]["n"] for event in publisher.unsent] == [1, 3]
        await publish(publisher, 10, 12)
        await publisher.drain()
        kept = [record.getMessage() for record in caplog.records if "is kept" in record.getMessage()]
        assert len(kept) == 2
        tried = len(gateway.requests)
        await until(lambda: len(gateway.requests) >= tried + 2)
        gateway.judge = lambda events: None
        await until(lambda: not publisher.unsent)
    assert sorted(gateway.values) == [0, 1, 2, 3, 4, 6, 8, 10, 12]
    assert refused == []


async def test_a_publisher_that_ends_tells_what_it_has_kept(gateway: Gateway) -> None:
    """Nothing is lost in silence: it is tried once more, and then told."""
    cut_off_odd(gateway, None)
    with pytest.raises(PublishRefused, match="requests with 1 of the events don't get through"):
        async with Publisher(gateway.url, "tok") as publisher:
            await publish(publisher, 0, 1, 2)
    assert gateway.values == [0, 2]
    assert [event["data"]["n"] for event in publisher.unsent] == [1]


async def test_a_kept_event_is_tried_with_a_new_token_where_the_last_has_ended(gateway: Gateway) -> None:
    """At the end there is one try: that its token had ended is no reason to leave it."""
    cut_off_odd(gateway, None)
    tokens = iter(f"tok-{number}" for number in range(1000))
    publisher = Publisher(gateway.url, lambda: next(tokens))
    async with publisher:
        await publish(publisher, 0, 1, 2)
        await publisher.drain()
        gateway.judge = lambda events: None
        gateway.script.append(problem(401))
    assert sorted(gateway.values) == [0, 1, 2]
    assert publisher.unsent == []


@pytest.mark.parametrize("answer", [page(502), problem(503), None], ids=["502", "503 of its own", "hangs up"])
async def test_while_nothing_gets_through_none_is_passed_over(gateway: Gateway, answer: Reply | None) -> None:
    """A gateway that is away, or has no room, is waited for, in order."""

    def judge(events: list[dict[str, Any]]) -> Reply | None:
        if answer is None:
            raise ConnectionError("reset")
        return answer

    gateway.judge = judge
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, 0, 1, 2)
        await until(lambda: len(gateway.requests) > 30)
        assert len(publisher.unsent) == 3
        gateway.judge = lambda events: None
        await publisher.drain()
    assert gateway.values == [0, 1, 2]


async def test_where_all_events_are_cut_off_some_are_kept_and_the_rest_waits(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the events then: no more than MOST_HELD are passed over, whatever number there is."""
    monkeypatch.setattr(held_events, "MOST_HELD", 2)
    gateway.judge = lambda events: page(502) if events else None
    async with Publisher(gateway.url, "tok", batch=4) as publisher:
        await publish(publisher, *range(6))
        await until(lambda: len(publisher._buffer.held) == 2)
        tried = len(gateway.requests)
        await until(lambda: len(gateway.requests) > tried + 20)
        assert len(publisher._buffer.held) == 2
        assert len(publisher.unsent) == 6
        gateway.judge = lambda events: None
        await publisher.drain()
    assert sorted(gateway.values) == list(range(6))


def test_pauses_grow() -> None:
    """From half a minute to ten, and no shorter than somebody asks to be left alone."""
    held = HeldEvent(b"x", 0, 0.0)
    pauses = []
    now = held.due_at
    for _ in range(7):
        held.put_off(now)
        pauses.append(held.due_at - now)
        now = held.due_at
    assert pauses == [60.0, 120.0, 240.0, 480.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    held.put_off(now, at_least=2 * LONGEST_PAUSE_S)
    assert held.due_at - now == 2 * LONGEST_PAUSE_S


def test_what_is_behind_a_kept_event_is_not_settled() -> None:
    """Whoever asks how far all is done hears of what is before the first of them."""
    events = HeldEvents()
    assert (events.settled_count, events.due_at, events.find_due(1e9)) == (None, None, None)
    events.add(b"a", 7, 0.0)
    events.add(b"b", 9, 1.0)
    assert (events.settled_count, events.due_at) == (7, FIRST_PAUSE_S)
    found = events.find_due(FIRST_PAUSE_S)
    assert found is not None
    events.remove(found)
    assert (events.settled_count, len(events)) == (9, 1)


async def test_what_is_before_a_kept_event_is_settled_once_those_kept_before_it_are() -> None:
    """Of five events the second and the fourth are kept; when the second has gone, only the fourth is in the way."""
    buffer = PublishBuffer(10, 5)
    for number in range(5):
        buffer.append(b"%d" % number)
    batch = await buffer.take_batch(0.0)
    for number, item in enumerate(batch):
        buffer.keep_sending(batch[number:])
        if item in (b"1", b"3"):
            buffer.hold_first(0.0)
    buffer.keep_sending([])
    assert [buffer.is_settled(number) for number in range(1, 6)] == [True, False, False, False, False]
    buffer.settle_held(buffer.held.events[0])
    assert [buffer.is_settled(number) for number in range(1, 6)] == [True, True, True, False, False]
    buffer.settle_held(buffer.held.events[0])
    assert all(buffer.is_settled(number) for number in range(1, 6))
