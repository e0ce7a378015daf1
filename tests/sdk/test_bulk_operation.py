"""Bulk operations of an application, by a real publisher, against a small gateway whose every answer a test chooses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import PublishRefused
from solowire.sdk import bulk_operation
from solowire.sdk.publisher import Publisher
from tests.support.publish_gateway import Gateway, problem

DEADLINE_S = 30.0


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with asyncio.timeout(DEADLINE_S), Gateway().running() as gateway:
        yield gateway
    for event in gateway.log:
        if event["type"] in CATALOG.names:
            CATALOG.validate_data(CATALOG[event["type"]], event["data"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told as often as there is some."""
    monkeypatch.setattr(bulk_operation, "PROGRESS_S", 0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


def types(gateway: Gateway, operation_id: str | None = None) -> list[str]:
    return [e["type"] for e in gateway.log if operation_id in (None, e["data"].get("operation_id"))]


def last(gateway: Gateway, type: str) -> dict[str, Any]:
    found = [event["data"] for event in gateway.log if event["type"] == type]
    return dict(found[-1]) if found else {"processed": None}


async def test_begins_and_completes(gateway: Gateway) -> None:
    """A short operation is told as begun and completed, with what it was given, and needs no progress."""
    given: dict[str, Any] = {"total": 3, "operation_id": "op", "zone": "example.com.", "actor": "ann"}
    async with Publisher(gateway.url, "tok") as publisher, publisher.bulk("import", **given) as operation:
        operation.add_succeeded(2)
        operation.add_failed("line 3: no such type")
    named = {"operation": "import", "operation_id": "op", "zone": "example.com.", "actor": "ann", "total": 3}
    assert types(gateway) == ["bulk_started", "bulk_completed"]
    assert gateway.log[0]["data"] == named
    done = gateway.log[1]["data"]
    assert done.pop("duration_ms") >= 0
    assert done == {**named, "processed": 3, "succeeded": 2, "failed": 1, "errors": ["line 3: no such type"]}


async def test_progress_is_paced(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it counts, an operation tells of it once in an interval, the newest counts then, and at its end."""
    monkeypatch.setattr(bulk_operation, "PROGRESS_S", 0.05)
    clock = asyncio.get_running_loop().time
    async with Publisher(gateway.url, "tok", linger=0) as publisher:
        began = clock()
        async with publisher.bulk("import", total=1_000_000) as operation:
            while types(gateway).count("bulk_progress") < 4:
                operation.add_succeeded()
                await asyncio.sleep(0)
            most = (clock() - began) / 0.05
    told = [event["data"] for event in gateway.log if event["type"] == "bulk_progress"]
    assert 4 <= len(told) <= most + 1  # and the one at its end
    counts = [data["processed"] for data in told]
    assert counts == sorted(counts)
    assert [data["status"] for data in told] == ["running"] * (len(told) - 1) + ["completed"]
    assert told[-1]["processed"] == last(gateway, "bulk_completed")["processed"]
    assert types(gateway)[-2:] == ["bulk_progress", "bulk_completed"]


@pytest.mark.usefixtures("quick")
async def test_the_last_count_before_a_pause_is_told(gateway: Gateway) -> None:
    """What was counted in the middle of an interval is told at its end, with nothing counted after it."""
    async with Publisher(gateway.url, "tok") as publisher, publisher.bulk("import", total=10) as operation:
        operation.add_succeeded(4)
        await until(lambda: "bulk_progress" in types(gateway))
        operation.add_succeeded(3)
        await until(lambda: last(gateway, "bulk_progress")["processed"] == 7)
        assert last(gateway, "bulk_progress")["percent"] == 70.0


async def test_a_failure_is_told_and_raised(gateway: Gateway) -> None:
    """What leaves the block is the operation's error, and goes on to whoever waits for the job."""

    async def work(publisher: Publisher) -> None:
        async with publisher.bulk("import", total=5) as operation:
            operation.add_succeeded(2)
            raise KeyError("zone")

    async with Publisher(gateway.url, "tok") as publisher:
        with pytest.raises(KeyError, match="zone"):
            await work(publisher)
    failed = last(gateway, "bulk_failed")
    assert types(gateway) == ["bulk_started", "bulk_failed"]
    assert (failed["error"], failed["processed"], failed["total"]) == ("KeyError: 'zone'", 2, 5)


async def test_a_cancelled_job_has_failed(gateway: Gateway) -> None:
    """A job whose task is cancelled is told as failed, and stays cancelled."""
    began = asyncio.Event()

    async def work(publisher: Publisher) -> None:
        async with publisher.bulk("import"):
            began.set()
            await asyncio.Event().wait()

    async with Publisher(gateway.url, "tok") as publisher:
        job = asyncio.create_task(work(publisher))
        await began.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    assert last(gateway, "bulk_failed")["error"] == "CancelledError"


@pytest.mark.usefixtures("quick")
async def test_a_full_buffer_never_stops_the_job(gateway: Gateway) -> None:
    """Progress gives way where there is no room; the end waits for room, and comes after what was before it."""
    gateway.open.clear()
    async with Publisher(gateway.url, "tok", batch=1, buffer_events=3) as publisher:
        operation = publisher.bulk("import", total=100)
        await operation.__aenter__()
        for n in range(2):
            await publisher.publish("custom.n", {"n": n})
        for _ in range(100):
            operation.add_succeeded()
            await asyncio.sleep(0.001)
        leaving = asyncio.create_task(operation.__aexit__(None, None, None))
        await asyncio.sleep(0.05)
        assert not leaving.done()
        assert len(publisher.unsent) == 3
        gateway.open.set()
        await leaving
    assert types(gateway) == ["bulk_started", "custom.n", "custom.n", "bulk_completed"]
    assert last(gateway, "bulk_completed")["processed"] == 100


@pytest.mark.usefixtures("quick")
async def test_one_progress_waits_at_a_time(gateway: Gateway) -> None:
    """While the gateway does not answer, an operation adds one event to the buffer, and tells the newest later."""
    async with Publisher(gateway.url, "tok") as publisher, publisher.bulk("import") as operation:
        await publisher.drain()
        gateway.open.clear()
        for _ in range(50):
            operation.add_succeeded()
            await asyncio.sleep(0.002)
        assert len(publisher.unsent) == 1
        gateway.open.set()
        await until(lambda: last(gateway, "bulk_progress")["processed"] == 50)


@pytest.mark.usefixtures("quick")
async def test_operations_side_by_side_and_within_each_other(gateway: Gateway) -> None:
    """Each operation has an id, counts and an end of its own."""
    ids = []

    async def work(publisher: Publisher, count: int) -> None:
        async with publisher.bulk("outer", total=count) as outer:
            ids.append(outer.operation_id)
            for _ in range(count):
                async with publisher.bulk("inner", total=1) as inner:
                    inner.add_succeeded()
                outer.add_succeeded()
                await asyncio.sleep(0.003)

    async with Publisher(gateway.url, "tok") as publisher:
        await asyncio.gather(*(work(publisher, 5 + n) for n in range(4)))
    for n, id in enumerate(ids):
        assert [types(gateway, id)[0], types(gateway, id)[-1]] == ["bulk_started", "bulk_completed"]
        [end] = [e["data"] for e in gateway.log if e["type"] == "bulk_completed" and e["data"]["operation_id"] == id]
        assert (end["total"], end["processed"]) == (5 + n, 5 + n)
    inner = Counter(e["type"] for e in gateway.log if e["data"]["operation"] == "inner")
    assert (inner["bulk_started"], inner["bulk_completed"]) == (26, 26)


async def test_other_threads_count(gateway: Gateway) -> None:
    """A job that runs in threads counts there."""
    async with Publisher(gateway.url, "tok") as publisher, publisher.bulk("import", total=4000) as operation:

        def work() -> None:
            for _ in range(1000):
                operation.add_succeeded()

        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert last(gateway, "bulk_completed")["processed"] == 4000


@pytest.mark.usefixtures("quick")
async def test_a_publisher_that_has_stopped(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """Counting goes on when the publisher has stopped; the end raises why, but not in place of the job's own fault."""
    publisher = Publisher(gateway.url, "tok")
    await publisher.__aenter__()
    fine, bad = publisher.bulk("fine"), publisher.bulk("bad")
    await fine.__aenter__()
    await bad.__aenter__()
    await publisher.drain()
    gateway.script.append(problem(403, code="forbidden"))
    fine.add_succeeded()
    await until(lambda: "the publisher stopped" in caplog.text)
    for _ in range(20):
        fine.add_succeeded()
        bad.add_succeeded()
        await asyncio.sleep(0.001)
    with pytest.raises(PublishRefused):
        await fine.__aexit__(None, None, None)
    error = ValueError("mine")
    await bad.__aexit__(ValueError, error, None)
    assert "bulk_failed of the operation" in caplog.text
    with pytest.raises(PublishRefused):
        await publisher.bulk("later").__aenter__()
    await publisher.close()


async def test_is_counted_within_its_block(gateway: Gateway) -> None:
    """Counting before or after the block is refused, and so is entering it twice."""
    async with Publisher(gateway.url, "tok") as publisher:
        operation = publisher.bulk("import")
        with pytest.raises(RuntimeError, match="within"):
            operation.add_succeeded()
        async with operation:
            pass
        with pytest.raises(RuntimeError, match="within"):
            operation.add_failed("late")
        with pytest.raises(RuntimeError, match="once"):
            await operation.__aenter__()


@pytest.mark.parametrize(
    "wrong",
    [
        {"operation": None},
        {"operation": ""},
        {"operation": 1},
        {"total": -1},
        {"total": "9"},
        {"operation_id": ""},
        {"zone": b"a"},
        {"actor": 1},
    ],
)
async def test_refuses_what_is_no_operation(gateway: Gateway, wrong: dict[str, Any]) -> None:
    """What can't be an argument is refused by its name, before anything is published."""
    async with Publisher(gateway.url, "tok") as publisher:
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            publisher.bulk(**{"operation": "import", **wrong})
    assert gateway.log == []
