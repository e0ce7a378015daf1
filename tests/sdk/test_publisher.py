"""The publisher, over real sockets, against a small gateway whose every answer a test chooses."""

from __future__ import annotations

import asyncio
from collections import ChainMap, UserDict, deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.errors import BufferFull, PublishRefused
from solowire.model.events import Priority
from solowire.sdk.arguments import check_json
from solowire.sdk.foreign_refusals import FIRST_TRIES, MOST_IN_A_ROW
from solowire.sdk.publisher import Accepted, Publisher
from tests.support.publish_gateway import Gateway, Reply, page, problem

DEADLINE_S = 30.0


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with asyncio.timeout(DEADLINE_S), Gateway().running() as gateway:
        yield gateway


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def publish(publisher: Publisher, *numbers: int) -> list[str]:
    return [await publisher.publish("custom.n", {"n": n}) for n in numbers]


# ---------------------------------------------------------------------------------------------- the way it should go


async def test_publishes_in_order_and_in_batches(gateway: Gateway) -> None:
    """Events arrive in the order in which they were published, in requests of at most `batch`."""
    async with Publisher(gateway.url, "tok", batch=10) as publisher:
        await publish(publisher, *range(35))
        await publisher.drain()
        assert gateway.values == list(range(35))
        assert [len(ids) for ids in gateway.requests] == [10, 10, 10, 5]
        assert (publisher.stats.accepted, publisher.unsent) == (35, [])
    assert set(gateway.tokens) == {"tok"}


async def test_sends_what_was_given_and_no_more(gateway: Gateway) -> None:
    """All fields of an event arrive, absent ones are left out, and id and timestamp are made where there are none."""
    given = {"id": "i", "priority": Priority.high, "key": "k", "user": "u", "source": "s", "correlation_id": "c"}
    async with Publisher(gateway.url, "tok") as publisher:
        data = {"n": 1}
        await publisher.publish("custom.a", data, timestamp="2026-01-01T00:00:00Z", **given)
        data["n"] = 2  # comes too late
        made = await publisher.publish("custom.b", {})
    full, bare = gateway.log
    assert full == {**given, "type": "custom.a", "data": {"n": 1}, "timestamp": "2026-01-01T00:00:00Z"}
    assert bare.keys() == {"type", "id", "data", "timestamp"}
    assert bare["id"] == made


async def test_waits_for_company(gateway: Gateway) -> None:
    """Events published within `linger` share a request; a full batch and a drain wait for nobody."""
    async with Publisher(gateway.url, "tok", batch=3, linger=DEADLINE_S) as publisher:
        await publish(publisher, 0)
        await asyncio.sleep(0)
        await publish(publisher, 1, 2)
        await until(lambda: len(gateway.requests) == 1)
        await publish(publisher, 3)
        await publisher.drain()
    assert [len(ids) for ids in gateway.requests] == [3, 1]


async def test_leaving_sends_the_rest(gateway: Gateway) -> None:
    """Leaving the context waits until what is buffered is accepted."""
    async with Publisher(gateway.url, "tok", linger=DEADLINE_S) as publisher:
        await publish(publisher, 1, 2)
    assert gateway.values == [1, 2]


async def test_full_buffer_is_told_at_once(gateway: Gateway) -> None:
    """At the bound, in flight included, publish raises and holds nothing; after a drain there is room again."""
    gateway.open.clear()
    async with Publisher(gateway.url, "tok", batch=2, buffer_events=4) as publisher:
        await publish(publisher, 0, 1)
        await until(lambda: len(gateway.requests) == 1)
        await publish(publisher, 2, 3)
        with pytest.raises(BufferFull, match="4 events"):
            await publish(publisher, 4)
        gateway.open.set()
        await publisher.drain()
        await publish(publisher, 5)
    assert gateway.values == [0, 1, 2, 3, 5]


# ---------------------------------------------------------------------------------------------- trouble that passes


@pytest.mark.parametrize("trouble", [problem(429), problem(503), problem(500), problem(408), page(502), None])
async def test_repeats_the_same_batch(gateway: Gateway, trouble: Reply | None) -> None:
    """What may succeed later is sent again with the same ids, before anything else: nothing is in the log twice."""
    gateway.script += [trouble, trouble]
    async with Publisher(gateway.url, "tok", batch=2) as publisher:
        await publish(publisher, 0, 1, 2)
        await publisher.drain()
        assert publisher.stats.retries == 2
        assert publisher.stats.accepted + publisher.stats.duplicates == 3
    assert gateway.values == [0, 1, 2]
    first, second, third, fourth = gateway.requests
    assert first == second == third != fourth


async def test_lost_answers_become_duplicates(gateway: Gateway) -> None:
    """Events whose answer was lost are counted as the duplicates that they then are."""
    gateway.script.append(None)
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, 0, 1)
        await publisher.drain()
        assert (publisher.stats.accepted, publisher.stats.duplicates) == (0, 2)


@pytest.mark.parametrize("status", [429, 503])
async def test_waits_as_long_as_asked(gateway: Gateway, status: int) -> None:
    """The next attempt is not sooner than Retry-After, be it the publisher's rate or the system's state."""
    gateway.script.append(problem(status, retry_after="1"))
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, 0)
        await publisher.drain()
    assert gateway.times[1] - gateway.times[0] >= 1
    assert gateway.requests[0] == gateway.requests[1]


async def test_slow_answer_is_not_waited_for(gateway: Gateway) -> None:
    """A request that takes longer than `timeout` is given up and made again."""
    gateway.open.clear()
    async with Publisher(gateway.url, "tok", timeout=0.3) as publisher:
        await publish(publisher, 0)
        await until(lambda: len(gateway.requests) >= 2)
        gateway.open.set()
        await publisher.drain()
    assert gateway.values == [0]


async def test_gives_up_when_told_to(gateway: Gateway) -> None:
    """After `retry_for` the publisher stops, says why with what the gateway said last, and still has the events."""
    gateway.judge = lambda events: problem(503, "the router is away")
    publisher = await Publisher(gateway.url, "tok", retry_for=0.0).__aenter__()
    await publish(publisher, 0, 1)
    for use in (publisher.drain, lambda: publish(publisher, 2), lambda: publisher.__aexit__(None, None, None)):
        with pytest.raises(PublishRefused, match="503: the router is away"):
            await use()
    assert [event["data"] for event in publisher.unsent] == [{"n": 0}, {"n": 1}]


async def test_leaving_without_a_gateway_is_not_silent(gateway: Gateway) -> None:
    """Leaving gives up after `timeout`, tells how many events are left over, and keeps them."""
    gateway.open.clear()
    with pytest.raises(PublishRefused, match=r"2 events were not accepted within 0\.1 s"):
        async with Publisher(gateway.url, "tok", timeout=0.1) as publisher:
            await publish(publisher, 0, 1)
    assert len(publisher.unsent) == 2


async def test_leaving_with_a_fault_keeps_the_fault(gateway: Gateway) -> None:
    """An exception of the body is not hidden by events that are left over."""
    gateway.open.clear()

    async def fail() -> None:
        async with Publisher(gateway.url, "tok", timeout=0.1) as publisher:
            await publish(publisher, 0)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()


# ---------------------------------------------------------------------------------------------- trouble that stays


def even_only(events: list[dict[str, Any]]) -> Reply | None:
    faults = [
        {"index": i, "path": "$.data.n", "message": "odd", "code": "invalid_event"}
        for i, event in enumerate(events)
        if event["data"]["n"] % 2
    ]
    return problem(400, errors=faults) if faults else None


async def test_bad_events_leave_the_others_alone(gateway: Gateway) -> None:
    """Events that a 400 names are handed back with their fault; the rest is accepted at once, in order."""
    refused: list[tuple[int, object]] = []
    gateway.judge = even_only
    async with Publisher(
        gateway.url, "tok", on_refused=lambda event, fault: refused.append((event["data"]["n"], fault["message"]))
    ) as publisher:
        await publish(publisher, *range(7))
        await publisher.drain()
        assert (publisher.stats.refused, publisher.stats.accepted, publisher.stats.retries) == (3, 4, 0)
    assert gateway.values == [0, 2, 4, 6]
    assert refused == [(1, "odd"), (3, "odd"), (5, "odd")]


async def test_faulty_callback_stops_nothing(gateway: Gateway) -> None:
    """A callback that raises is logged, and the other events are still sent; without one the refusal is logged."""
    gateway.judge = even_only

    def fault(event: object, problem: object) -> None:
        raise ValueError

    for callback in (fault, None):
        async with Publisher(gateway.url, "tok", on_refused=callback) as publisher:
            await publish(publisher, 1, 2)
    assert gateway.values == [2, 2]


@pytest.mark.parametrize("errors", [None, [], "x", [{"index": 99}], [{"index": "0"}]])
async def test_unnamed_fault_is_found_by_halving(gateway: Gateway, errors: object) -> None:
    """A 400 that names no event of the request costs only the event that is alone with it."""
    gateway.judge = lambda events: problem(400, errors=errors) if any(e["data"]["n"] == 3 for e in events) else None
    refused: list[int] = []
    async with Publisher(gateway.url, "tok", on_refused=lambda e, _: refused.append(e["data"]["n"])) as publisher:
        await publish(publisher, *range(8))
    assert gateway.values == [0, 1, 2, 4, 5, 6, 7]
    assert refused == [3]


async def test_large_batches_are_split(gateway: Gateway) -> None:
    """A 413 halves the batch, in order; an event that is too large by itself is handed back."""
    gateway.judge = lambda events: problem(413) if sum(e["data"]["n"] for e in events) > 5 else None
    refused: list[int] = []
    async with Publisher(gateway.url, "tok", on_refused=lambda e, _: refused.append(e["data"]["n"])) as publisher:
        await publish(publisher, 1, 2, 3, 9, 1, 4)
    assert gateway.values == [1, 2, 3, 1, 4]
    assert refused == [9]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_stops_when_nothing_can_succeed(gateway: Gateway, status: int) -> None:
    """Without the right to publish, or at a wrong address, it stops; the next call says so and nothing is lost."""
    gateway.judge = lambda events: problem(status, "no right")
    publisher = await Publisher(gateway.url, "tok").__aenter__()
    await publish(publisher, 0)
    for use in (publisher.drain, lambda: publish(publisher, 1), lambda: publisher.__aexit__(None, None, None)):
        with pytest.raises(PublishRefused, match=f"{status}: no right") as refused:
            await use()
        assert refused.value.status == status
    assert len(publisher.unsent) == len(gateway.requests) == 1


async def test_token_function_is_asked_again(gateway: Gateway) -> None:
    """A token function is asked once, and again when its token is not taken any more: at once, then paced."""
    tokens = iter(["t1", "t2", "t3", "t4"])

    async def token() -> str:
        return next(tokens)

    publisher = await Publisher(gateway.url, token).__aenter__()
    for n, refusals in enumerate((0, 1)):
        gateway.script += [problem(401)] * refusals
        await publish(publisher, n)
        await publisher.drain()
    gateway.script += [problem(401)] * 2
    await publish(publisher, 2)
    await publisher.drain()
    await publisher.close()
    assert gateway.tokens == ["t1", "t1", "t2", "t2", "t3", "t4"]
    assert gateway.times[-1] - gateway.times[-2] >= 1
    assert gateway.values == [0, 1, 2]


async def test_a_token_function_whose_own_wait_is_cancelled_is_asked_again(gateway: Gateway) -> None:
    """A CancelledError of the token function's own is a fault that passes, and nobody waits in vain."""
    attempts = iter([True, False])

    async def token() -> str:
        if next(attempts):
            raise asyncio.CancelledError
        return "t"

    async with Publisher(gateway.url, token) as publisher:
        await publish(publisher, 1)
        await publisher.drain()
    assert gateway.values == [1]


async def test_a_publisher_whose_task_is_cancelled_says_so(gateway: Gateway) -> None:
    """Whoever waits in drain() gets PublishRefused, rather than waiting for ever."""
    gateway.open.clear()
    publisher = await Publisher(gateway.url, "t").__aenter__()
    await publish(publisher, 1)
    draining = asyncio.create_task(publisher.drain())
    await until(lambda: bool(gateway.requests))
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "solowire publisher")
    task.cancel()
    with pytest.raises(PublishRefused, match="cancelled"):
        await draining
    await publisher.close()
    assert len(publisher.unsent) == 1


async def test_token_function_that_fails_later_is_asked_again(gateway: Gateway) -> None:
    """Whatever it raises, or gives in place of a token, passes after the first success."""
    response = httpx.Response(503, request=httpx.Request("GET", "http://idp"))
    outcomes: deque[Any] = deque(
        ["t1", httpx.HTTPStatusError("503", request=response.request, response=response), KeyError("x"), None, "t2\n"]
    )

    async def token() -> str:
        outcome = outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    async with Publisher(gateway.url, token) as publisher:
        await publish(publisher, 0)
        await publisher.drain()
        gateway.script.append(problem(401))
        await publish(publisher, 1)
        await publisher.drain()
    assert (gateway.values, gateway.tokens) == ([0, 1], ["t1", "t1", "t2"])


ELSEWHERE = [
    *(page(status) for status in (404, 403, 401, 405, 421, 400, 410, 502, 503, 504, 200)),
    page(301, location="https://elsewhere.example/"),
    page(503, **{"retry-after": "-1"}),
    (404, {"content-type": "application/json"}, {"status": 404, "code": "not_found"}),
    (403, {"content-type": "application/problem+json"}, {"status": 403, "code": "RBAC: access denied"}),
    problem(404),
]


async def test_whatever_a_deployment_answers_passes(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one success nothing that is not the gateway's own stops the publisher or costs an event."""
    monkeypatch.setattr("solowire.sdk.publisher.RETRY_MAX_S", 0.1)
    refused: list[object] = []
    async with Publisher(gateway.url, "tok", batch=2, on_refused=lambda *what: refused.append(what)) as publisher:
        await publish(publisher, 0)
        await publisher.drain()
        gateway.script += ELSEWHERE
        await publish(publisher, 1, 2, 3)
        await publisher.drain()
    assert gateway.values == [0, 1, 2, 3]
    assert refused == []


async def test_a_proxy_that_takes_less_is_sent_less(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's 413 halves the batch, and an event alone is tried again rather than lost."""
    monkeypatch.setattr("solowire.sdk.publisher.RETRY_MAX_S", 0.1)
    gateway.judge = lambda events: page(413) if len(events) > 2 else None
    refused: list[object] = []
    async with Publisher(gateway.url, "tok", on_refused=lambda *what: refused.append(what)) as publisher:
        await publish(publisher, *range(7))
        await publisher.drain()
        gateway.script += [page(413)] * 3
        await publish(publisher, 7)
        await publisher.drain()
    assert gateway.values == list(range(8))
    assert refused == []


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between two attempts are short."""
    monkeypatch.setattr("solowire.sdk.publisher.RETRY_MIN_S", 0.001)
    monkeypatch.setattr("solowire.sdk.publisher.RETRY_MAX_S", 0.001)


def refuse_words(answer: Reply) -> Callable[[list[dict[str, Any]]], Reply | None]:
    """What a firewall for web applications does: it refuses each request that has an odd event."""
    return lambda events: answer if any(event["data"].get("n", 0) % 2 for event in events) else None


FIREWALLS = [page(403), page(406), page(302, location="/blocked"), page(200), page(413), problem(404, code="new")]


@pytest.mark.parametrize("answer", FIREWALLS)
@pytest.mark.parametrize("before", [[], [0, 2]], ids=["at first", "later"])
async def test_an_event_that_another_refuses_does_not_stop_the_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, answer: Reply, before: list[int]
) -> None:
    """While the gateway answers other requests, the refused events are found by halving, tried, and handed back."""
    hurry(monkeypatch)
    gateway.judge = refuse_words(answer)
    refused: list[tuple[int, dict[str, object]]] = []
    note = lambda event, problem: refused.append((event["data"]["n"], problem))  # noqa: E731
    async with Publisher(gateway.url, "tok", on_refused=note) as publisher:
        if before:
            await publish(publisher, *before)
            await publisher.drain()
        await publish(publisher, 4, 6, 1, 8, 3, 10, 12)
        await publisher.drain()
        assert (publisher.stats.refused, publisher.unsent) == (2, [])
    assert gateway.values == [*before, 4, 6, 8, 10, 12]
    assert [n for n, _ in refused] == [1, 3]
    for _, told in refused:
        assert told["status"] in (answer[0], 0)
        assert "answers other requests" in str(told["detail"])
    alone = [ids for ids in gateway.requests if len(ids) == 1]
    assert 3 <= max(alone.count(ids) for ids in alone) <= FIRST_TRIES + 1


async def test_an_event_alone_is_tried_for_long_enough(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes within FIRST_TRIES costs no event, though the gateway answers other requests meanwhile."""
    hurry(monkeypatch)
    answers = deque([page(403)] * (FIRST_TRIES - 1))
    gateway.judge = lambda events: answers.popleft() if events and answers else None
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, 0)
        await publisher.drain()
        assert publisher.stats.refused == 0
    assert gateway.values == [0]


async def test_where_all_events_are_refused_no_more_than_some_are_given_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the events then: after MOST_IN_A_ROW the next is tried on, until one is accepted again."""
    hurry(monkeypatch)
    gateway.judge = lambda events: page(403) if events else None
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, *range(MOST_IN_A_ROW + 5))
        await until(lambda: publisher.stats.refused == MOST_IN_A_ROW)
        tried = gateway.requests.count([gateway.requests[-1][0]])
        await until(lambda: gateway.requests.count(gateway.requests[-1]) >= tried + 2 * FIRST_TRIES)
        assert publisher.stats.refused == MOST_IN_A_ROW
        gateway.judge = lambda events: None
        await publisher.drain()
    assert gateway.values == list(range(MOST_IN_A_ROW, MOST_IN_A_ROW + 5))


async def test_publish_and_wait_raises_what_another_refuses(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nothing is halved: all of it is in the log, or none."""
    hurry(monkeypatch)
    gateway.judge = refuse_words(page(403))
    async with Publisher(gateway.url, "tok", retry_for=DEADLINE_S) as publisher:
        with pytest.raises(PublishRefused, match="403"):
            await publisher.publish_and_wait([{"type": "custom.n", "data": {"n": n}} for n in (0, 1, 2)])
    assert gateway.values == []


@pytest.mark.parametrize("answer", [page(404), page(301), page(400), page(200), problem(404)])
async def test_no_gateway_at_first_is_told(gateway: Gateway, answer: Reply) -> None:
    """What is no gateway stops it at the first attempt, and the error names the URL and a way out."""
    gateway.judge = lambda events: answer
    publisher = await Publisher(gateway.url, "tok").__aenter__()
    await publish(publisher, 0)
    with pytest.raises(PublishRefused, match=gateway.url):
        await publisher.drain()
    await publisher.close()
    assert len(publisher.unsent) == 1


async def test_no_such_host_is_told() -> None:
    """A first attempt at a name that does not exist stops it at once."""
    publisher = await Publisher("http://nosuch.invalid", "tok").__aenter__()
    await publish(publisher, 1)
    with pytest.raises(PublishRefused, match=r"http://nosuch\.invalid.* no such host"):
        await publisher.drain()
    await publisher.close()


async def test_trouble_is_warned_of_at_once_and_once(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each reason, with the URL and what was answered; it leaves no doubt what is waited for."""
    gateway.script += [problem(503, "the router is away")] * 4
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, 0)
        await publisher.drain()
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert f"{gateway.url}/v1/events answered 503 the router is away" in told[0]


async def test_leaving_says_what_was_in_the_way(gateway: Gateway) -> None:
    """Events that are left over are told with what the gateway answered last, and never as \"answered 0\"."""
    gateway.judge = lambda events: problem(503, "the router is away")
    with pytest.raises(PublishRefused, match=r"1 events were not accepted.* answered 503 the router is away") as left:
        async with Publisher(gateway.url, "tok", timeout=0.3) as publisher:
            await publish(publisher, 0)
    assert "answered 0" not in str(left.value)


async def test_errors_keep_the_servers_hint(gateway: Gateway) -> None:
    """A refusal is told with its hint and the URL."""
    gateway.script.append(problem(403, "publishing needs a permission", hint="use a publisher's token"))
    async with Publisher(gateway.url, "tok") as publisher:
        with pytest.raises(PublishRefused, match=rf"{gateway.url}/v1/events answered 403.*\(use a publisher's token\)"):
            await publisher.publish_and_wait({"type": "custom.n", "data": {}})


async def test_token_function_that_fails(gateway: Gateway) -> None:
    """A token that can't be fetched for want of a network is tried again; any other fault stops the publisher."""
    attempts = iter([OSError("down"), httpx.ConnectError("down"), KeyError("bug")])

    def token() -> str:
        raise next(attempts)

    with pytest.raises(PublishRefused, match="KeyError"):
        async with Publisher(gateway.url, token) as publisher:
            await publish(publisher, 0)


# ---------------------------------------------------------------------------------------------- past the buffer


async def test_publishes_now(gateway: Gateway) -> None:
    """`publish_and_wait` returns the gateway's answer, for one event or several, and adds the ids that are missing."""
    async with Publisher(gateway.url, "tok") as publisher:
        one = await publisher.publish_and_wait({"type": "custom.n", "data": {"n": 1}, "id": "mine"})
        two = await publisher.publish_and_wait({"type": "custom.n", "data": {"n": n}} for n in (2, 3))
        again = await publisher.publish_and_wait([{"type": "custom.n", "data": {"n": 1}, "id": "mine"}])
        assert (publisher.stats.accepted, publisher.stats.duplicates) == (3, 1)
    assert one == Accepted("e1", 1, 1, 1, 0)
    assert two == Accepted("e1", 2, 3, 2, 0)
    assert again.duplicates == 1
    assert len(gateway.log[1]["id"]) == 36


async def test_critical_events_that_are_taken_as_high_are_said(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever publishes counts on their being first: they are counted, and told of once a minute."""
    for status, headers, answer in [gateway.accept([{"id": str(n)}]) for n in range(2)]:
        gateway.script.append((status, headers, answer | {"demoted": 1}))
    async with Publisher(gateway.url, "tok") as publisher:
        answers = [await publisher.publish_and_wait({"type": "custom.n", "data": {"n": n}}) for n in range(3)]
    assert [answer.demoted for answer in answers] == [1, 1, 0]
    assert publisher.stats.demoted == 2
    [said] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "taken as high" in said
    assert "SOLOWIRE_PUBLISH__CRITICAL_RATE" in said


async def test_publish_and_wait_says_what_is_wrong(gateway: Gateway) -> None:
    """`publish_and_wait` raises the gateway's problem at once, and does not stop the publisher."""
    gateway.judge = even_only
    gateway.script += [problem(503), None]
    async with Publisher(gateway.url, "tok") as publisher:
        for status in (503, 0, 400):
            with pytest.raises(PublishRefused) as refused:
                await publisher.publish_and_wait({"type": "custom.n", "data": {"n": 1}})
            assert refused.value.status == status
        assert refused.value.problem["errors"]
        await publish(publisher, 2)


async def test_publish_and_wait_tries_again_if_told_to(gateway: Gateway) -> None:
    """With `retry_for`, what may succeed later is tried again with the same id."""
    gateway.script += [problem(503), None]
    async with Publisher(gateway.url, "tok", retry_for=DEADLINE_S) as publisher:
        done = await publisher.publish_and_wait({"type": "custom.n", "data": {"n": 1}})
    assert done.duplicates == 1
    assert len({tuple(ids) for ids in gateway.requests}) == 1


# ---------------------------------------------------------------------------------------------- misuse


async def test_is_used_within_its_context(gateway: Gateway) -> None:
    """Publishing before entering and after leaving, and entering twice, are refused as misuse."""
    publisher = Publisher(gateway.url, "tok")
    for use in (publish(publisher, 1), publisher.drain(), publisher.publish_and_wait([])):
        with pytest.raises(RuntimeError):
            await use
    async with publisher:
        with pytest.raises(RuntimeError):
            await publisher.__aenter__()
    with pytest.raises(RuntimeError):
        await publish(publisher, 1)


async def test_closing_within_its_context_is_the_end_of_it(gateway: Gateway) -> None:
    """Who closes the publisher leaves it without waiting and without an error; what was not sent is at hand."""
    gateway.script += [problem(503)] * 100
    async with Publisher(gateway.url, "tok") as publisher:
        await publish(publisher, 1)
        await publisher.close()
        with pytest.raises(RuntimeError):
            await publish(publisher, 2)
    assert [event["data"] for event in publisher.unsent] == [{"n": 1}]


LOOP: dict[str, Any] = {}
LOOP["a"] = LOOP


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"n": object()}, r"\$\.data\.n "),
        ({"x": float("nan")}, r"\$\.data\.x is nan"),
        ({"x": [1, float("-inf")]}, r"\$\.data\.x\[1\] is -inf"),
        ({"x": b"ab"}, r"\$\.data\.x is a bytes"),
        ({"x": bytearray(b"ab")}, r"\$\.data\.x"),
        ({"x": {"y": {1, 2}}}, r"\$\.data\.x\.y is a set"),
        ({"x": frozenset()}, r"\$\.data\.x"),
        ({"x": Decimal("1.5")}, r"\$\.data\.x is a Decimal"),
        ({"x": datetime.now(UTC)}, r"\$\.data\.x is a datetime.*isoformat"),
        ({"x": UUID(int=1)}, r"\$\.data\.x"),
        ({1: "a"}, r"\$\.data has the key 1"),
        ({"a": [{None: 1}]}, r"\$\.data\.a\[0\] has the key None"),
        ({"x": "\ud800"}, r"\$\.data\.x holds half"),
        ({"\ud800": 1}, r"\$\.data\[.* holds half"),
        ({"x": 2**64}, r"\$\.data\.x is a number of more than 64 bits"),
        ({"x": -(2**63) - 1}, r"\$\.data\.x"),
        (LOOP, "nested too deeply"),
        ([1], r"\$\.data must be a dict"),
        ("text", r"\$\.data must be a dict"),
        (None, r"\$\.data must be a dict"),
    ],
)
async def test_refuses_what_json_cannot_hold(gateway: Gateway, data: Any, path: str) -> None:
    """What JSON can't say is refused with its path where it is published, and the publisher goes on."""
    async with Publisher(gateway.url, "tok") as publisher:
        with pytest.raises((TypeError, ValueError), match=path):
            await publisher.publish("custom.n", data)
        with pytest.raises((TypeError, ValueError), match=path.replace(r"\$", r"\$\[1\]")):
            await publisher.publish_and_wait(
                [{"type": "custom.n", "data": {"n": 1}}, {"type": "custom.n", "data": data}]
            )
        await publish(publisher, 1)
    assert gateway.values == [1]


async def test_takes_what_only_is_a_kind_of_text_or_number(gateway: Gateway) -> None:
    """Web frameworks mark text as safe, and NumPy's numbers are Python's: they arrive as what they are kinds of."""

    class Text(str):
        pass

    class Float(float):
        pass

    class Whole(int):
        pass

    async with Publisher(gateway.url, "tok") as publisher:
        data = {"n": Whole(1), Text("t"): [Text("é"), {"f": Float(1.5)}]}
        await publisher.publish("custom.n", data, key=Text("k"))
        await publisher.publish_and_wait({"type": Text("custom.n"), "data": data | {"n": Whole(2)}})
    assert sorted(gateway.values) == [1, 2]


async def test_takes_what_only_is_a_kind_of_dict(gateway: Gateway) -> None:
    """Mappings that are no dict, such as a view of one, arrive as objects, however deep they stand."""
    async with Publisher(gateway.url, "tok") as publisher:
        for number, inner in enumerate((MappingProxyType({"x": 1}), ChainMap({"x": 1}), UserDict(x=1))):
            await publisher.publish("custom.n", {"n": number, "inner": [{"deep": inner}]})
            await publisher.publish_and_wait({"type": "custom.n", "data": UserDict(n=number, inner=inner)})
        with pytest.raises(TypeError, match=r"\$\.data\.inner has the key 1"):
            await publisher.publish("custom.n", {"inner": MappingProxyType({1: 1})})
    assert sorted(gateway.values) == [0, 0, 1, 1, 2, 2]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
        max_leaves=20,
    )
)  # fmt: skip
def test_takes_what_json_can_hold(value: Any) -> None:
    """Whatever passes arrives as it is: nothing that JSON can say is refused."""
    check_json({"x": value}, "$.data")
    assert msgspec.json.decode(msgspec.json.encode(value)) == value


@pytest.mark.parametrize(
    "wrong", [{"key": 1}, {"user": b"a"}, {"timestamp": datetime.now(UTC)}, {"source": []}, {"id": 7}, {"priority": 1}]
)
async def test_refuses_what_is_no_text(gateway: Gateway, wrong: dict[str, Any]) -> None:
    """The other fields of an event are text, and an empty one is nobody's wish."""
    [name] = wrong
    async with Publisher(gateway.url, "tok") as publisher:
        with pytest.raises(TypeError, match=name):
            await publisher.publish("custom.n", {"n": 1}, **wrong)
        with pytest.raises(ValueError, match=name):
            await publisher.publish("custom.n", {"n": 1}, **{name: ""})
        with pytest.raises(TypeError, match="type"):
            await publisher.publish(None, {"n": 1})  # type: ignore[arg-type]
    assert gateway.values == []


@pytest.mark.parametrize("events", ["text", b"bytes", 7, None, [1], ["a"]])
async def test_publish_and_wait_refuses_what_are_no_events(gateway: Gateway, events: Any) -> None:
    """What is neither an event nor several is a TypeError."""
    async with Publisher(gateway.url, "tok") as publisher:
        with pytest.raises(TypeError, match="dict"):
            await publisher.publish_and_wait(events)
    assert gateway.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": None},
        {"token": 7},
        {"batch": "10"},
        {"buffer_events": 1.5},
        {"linger": None},
        {"timeout": "10"},
        {"retry_for": "for ever"},
        {"on_refused": "print"},
        {"on_refused": asyncio.sleep},
        {"ssl": True},
    ],
)
def test_arguments_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    """Each is a TypeError that names the argument."""
    [name] = wrong
    with pytest.raises(TypeError, match=name):
        Publisher(**{"url": "http://x", "token": "t", **wrong})


def test_refuses_settings_that_make_no_sense() -> None:
    """A URL that is not the gateway's and bounds below one are refused at once."""
    for wrong in ({"url": "ws://x"}, {"batch": 0}, {"buffer_events": 0}):
        with pytest.raises(ValueError, match=r"http|at least 1"):
            Publisher(**{"url": "http://x", "token": "t", **wrong})  # type: ignore[arg-type]
