"""Traces of a real system, taken by a real collector on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from websockets.exceptions import WebSocketException

from solowire import Publisher
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.system import ANSWER_SECONDS, Session, System

CUSTOM = {"subscriptions": ["custom.*"]}
CHAIN = ["publish", "journal commit", "dispatch", "flush"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as started:
        yield started


def start(data_dir: Path, endpoint: str, shards: int = 1, **variables: str) -> System:
    system = System(data_dir, shards=shards)
    system.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50", **variables}
    system.start()
    return system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[System]:
    started = start(tmp_path_factory.mktemp("traces") / "data", receiver.url, shards=2)
    try:
        yield started
    finally:
        assert started.stop() == 0


def make_traceparent(*, is_sampled: bool = True) -> tuple[str, str, str]:
    """A publisher's trace context: its text, the trace's id, and the id of its span."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-0{int(is_sampled)}", trace_id, span_id


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(ANSWER_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def post(system: System, *events: Mapping[str, object], traceparent: str = "") -> dict[str, int]:
    """What the gateway answers to a publisher whose request has this `traceparent`."""
    async with system.http(system.token("publisher", "publisher")) as http:
        headers = {"traceparent": traceparent} if traceparent else {}
        answer = await http.post("/v1/events", json=list(events), headers=headers)
    assert answer.status_code == 200, answer.text
    accepted: dict[str, int] = answer.json()
    return accepted


async def come_back(system: System, stack: contextlib.AsyncExitStack, user: str, hello: Mapping[str, Any]) -> Session:
    """A session of a user whose shard has gone, as soon as there is another."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            try:
                return await stack.enter_async_context(system.session(system.token(user), dict(hello)))
            except (OSError, AssertionError, WebSocketException):  # no connection, no shard, or the one that is gone
                await asyncio.sleep(0.1)


def named(spans: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.name == name]


async def test_a_published_event_is_one_tree_of_spans(system: System, receiver: OtlpReceiver) -> None:
    """Gateway, journal, dispatch, flush, first and last write: each beneath the one before, and in order."""
    text, trace_id, span_id = make_traceparent()
    user, other = system.user_on(0), system.user_on(0, "other")
    async with (
        system.session(system.token(user), CUSTOM) as session,
        system.session(system.token(other), CUSTOM) as second,
    ):
        accepted = await post(system, {"type": "custom.x", "data": {}}, traceparent=text)
        [event] = await session.events(1)
        await second.events(1)
        await until(lambda: len(receiver.list_trace(trace_id)) == 8)
    assert "traceparent" not in event
    found = receiver.list_trace(trace_id)
    [publish] = named(found, "publish")
    [commit] = named(found, "journal commit")
    dispatches = {span.attributes["solowire.shard"]: span for span in named(found, "dispatch")}
    flushes = {span.resource["service.instance.id"]: span for span in named(found, "flush")}
    [first], [last] = named(found, "first write"), named(found, "last write")
    assert publish.parent == span_id
    assert commit.parent == publish.span_id
    assert {shard: span.parent for shard, span in dispatches.items()} == {0: commit.span_id, 1: commit.span_id}
    assert {name: span.parent for name, span in flushes.items()} == {
        "shard-0": dispatches[0].span_id,
        "shard-1": dispatches[1].span_id,
    }
    assert first.parent == last.parent == flushes["shard-0"].span_id
    chain = [publish, commit, dispatches[0], flushes["shard-0"], first, last]
    assert [span.began_at for span in chain] == sorted(span.began_at for span in chain)
    assert commit.ended_at <= dispatches[0].began_at <= dispatches[0].ended_at <= flushes["shard-0"].began_at
    assert flushes["shard-0"].ended_at <= first.ended_at <= last.ended_at
    assert commit.ended_at <= publish.ended_at
    assert [span.role for span in chain] == ["gateway", "router", "router", "shard", "shard", "shard"]
    assert {span.resource["service.name"] for span in found} == {"solowire"}
    assert publish.resource["service.instance.id"].startswith("gateway-")
    assert publish.attributes["http.response.status_code"] == 200
    assert (
        publish.attributes["solowire.first_offset"]
        == accepted["first_offset"]
        == commit.attributes["solowire.first_offset"]
    )
    assert flushes["shard-0"].attributes["solowire.connection_count"] == 2
    assert flushes["shard-1"].attributes["solowire.feed_count"] == 0


async def test_what_is_not_recorded_has_no_span(system: System, receiver: OtlpReceiver) -> None:
    """Not sampled, no trace context, or what is none: events arrive as ever, and no collector hears of them."""
    unsampled, trace_id, _ = make_traceparent(is_sampled=False)
    marked, marked_id, _ = make_traceparent()
    before = {span.trace_id for span in receiver.spans}
    odd = ["", "x" * 5000, "00-" + "0" * 32 + "-" + "1" * 16 + "-01", 7, None, [], {"a": 1}, "ff" + marked[2:], "é"]
    async with system.session(system.token("ann"), CUSTOM) as session:
        await post(system, {"type": "custom.x", "data": {}}, traceparent=unsampled)
        await post(system, {"type": "custom.x", "data": {}}, traceparent="00-what-is-none-01")
        await post(system, {"type": "custom.x", "data": {}})
        await post(system, *({"type": "custom.x", "data": {}, "traceparent": value} for value in odd))
        await session.events(3 + len(odd))
        await post(system, {"type": "custom.x", "data": {}}, traceparent=marked)
        await session.events(1)
        await until(lambda: len(named(receiver.list_trace(marked_id), "last write")) == 1)
    assert {span.trace_id for span in receiver.spans} - before == {marked_id}
    assert receiver.list_trace(trace_id) == []


async def test_who_may_not_publish_makes_no_span(system: System, receiver: OtlpReceiver) -> None:
    """Nor does a request with two trace contexts; one that is refused for what is in it has its span, with the code."""
    stranger, stranger_id, _ = make_traceparent()
    reader, reader_id, _ = make_traceparent()
    twice, twice_id, _ = make_traceparent()
    wrong, wrong_id, _ = make_traceparent()
    event = {"type": "custom.x", "data": {}}
    async with system.http() as http:
        assert (await http.post("/v1/events", json=event, headers={"traceparent": stranger})).status_code == 401
    async with system.http(system.token("reader", "viewer")) as http:
        assert (await http.post("/v1/events", json=event, headers={"traceparent": reader})).status_code == 403
    async with system.http(system.token("publisher", "publisher")) as http:
        both = [("traceparent", twice), ("traceparent", twice)]
        assert (await http.post("/v1/events", json=event, headers=both)).status_code == 200
        refused = await http.post("/v1/events", json={"type": "nothing"}, headers={"traceparent": wrong})
        assert refused.status_code == 400
    await until(lambda: bool(receiver.list_trace(wrong_id)))
    assert [(span.name, span.error) for span in receiver.list_trace(wrong_id)] == [("publish", "invalid_events")]
    assert [receiver.list_trace(one) for one in (stranger_id, reader_id, twice_id)] == [[], [], []]


async def test_events_of_one_request_have_traces_of_their_own(system: System, receiver: OtlpReceiver) -> None:
    """An event's own trace context counts before that of its request, also one that says: not sampled."""
    header, header_id, header_span = make_traceparent()
    own, own_id, own_span = make_traceparent()
    unsampled, unsampled_id, _ = make_traceparent(is_sampled=False)
    async with system.session(system.token("ann"), CUSTOM) as session:
        await post(
            system,
            {"type": "custom.x", "data": {"n": 0}},
            {"type": "custom.x", "data": {"n": 1}, "traceparent": own},
            {"type": "custom.x", "data": {"n": 2}, "traceparent": unsampled},
            {"type": "custom.x", "data": {"n": 3}, "traceparent": "no context"},
            traceparent=header,
        )
        await session.events(4)
        await until(lambda: all(len(receiver.list_trace(one)) == 8 for one in (header_id, own_id)))
    assert [span.parent for span in named(receiver.list_trace(header_id), "publish")] == [header_span]
    assert [span.parent for span in named(receiver.list_trace(own_id), "publish")] == [own_span]
    [commit] = named(receiver.list_trace(header_id), "journal commit")
    assert commit.attributes["solowire.event_count"] == 2
    assert receiver.list_trace(unsampled_id) == []


async def test_what_the_sdk_publishes_is_beneath_the_programs_span(system: System, receiver: OtlpReceiver) -> None:
    """Each event beneath the span in which it was published, though they leave in one request."""
    tracer = TracerProvider(sampler=ALWAYS_ON).get_tracer("program")
    contexts = []
    async with Publisher(system.url, system.token("publisher", "publisher")) as publisher:
        for _ in range(2):
            with tracer.start_as_current_span("work") as span:
                contexts.append(span.get_span_context())
                await publisher.publish("custom.x", {})
        await publisher.drain()
    for context in contexts:
        trace_id = format_trace_id(context.trace_id)
        await until(lambda trace_id=trace_id: bool(named(receiver.list_trace(trace_id), "publish")))  # type: ignore[misc]
        [found] = named(receiver.list_trace(trace_id), "publish")
        assert found.parent == format_span_id(context.span_id)


async def test_who_comes_back_makes_no_new_spans(system: System, receiver: OtlpReceiver) -> None:
    """An event that is read from the log again is no part of its trace: by a replay, a duplicate or a new shard."""
    text, trace_id, _ = make_traceparent()
    user = system.user_on(0)
    event = {"type": "custom.x", "data": {}, "id": secrets.token_hex(8)}
    async with system.session(system.token(user), CUSTOM) as session:
        welcome = session.welcome
        await post(system, event, traceparent=text)
        await session.events(1)
        await until(lambda: len(receiver.list_trace(trace_id)) == 8)
    os.kill(system.pid_of("shard", "--index", "0"), signal.SIGKILL)
    hello = CUSTOM | {"resume": {"epoch": welcome["epoch"], "cursor": welcome["cursor"]}}
    async with contextlib.AsyncExitStack() as stack:
        session = await come_back(system, stack, user, hello)
        assert [found["id"] for found in await session.events(1)] == [event["id"]]
        await post(system, event, traceparent=text)
        await post(system, {"type": "custom.x", "data": {}})
        await session.events(1)  # from here on it has what all have
        newer, newer_id, _ = make_traceparent()
        await post(system, {"type": "custom.x", "data": {}}, traceparent=newer)
        await session.events(1)
        await until(lambda: bool(named(receiver.list_trace(newer_id), "last write")))
        await until(lambda: len(receiver.list_trace(trace_id)) == 9)
    # One span more, for the duplicate, which goes no further.
    requests = named(receiver.list_trace(trace_id), "publish")
    assert [span.attributes["solowire.duplicate_count"] for span in requests] == [0, 1]


async def test_latency_has_an_exemplar_in_openmetrics_alone(system: System, receiver: OtlpReceiver) -> None:
    """A scraper that asks for OpenMetrics finds the trace of an event; any other gets the text that it always got."""
    text, trace_id, _ = make_traceparent()
    user = system.user_on(1)
    async with system.session(system.token(user), CUSTOM) as session:
        await post(system, {"type": "custom.x", "data": {}, "priority": "low"}, traceparent=text)
        await session.events(1)
    name = "solowire_shard_delivery_latency_seconds"
    async with system.api(1) as http:
        async with asyncio.timeout(ANSWER_SECONDS):  # a scrape may be a second old
            while trace_id not in (asked := await http.get("/metrics", headers=OPEN_METRICS)).text:
                await asyncio.sleep(0.1)
        plain = await http.get("/metrics")
    assert asked.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = text_string_to_metric_families(asked.text)  # type: ignore[no-untyped-call]
    [family] = [one for one in families if one.name == name]
    [sample] = [one for one in family.samples if one.exemplar and one.exemplar.labels == {"trace_id": trace_id}]
    assert 0.0 <= sample.exemplar.value <= float(sample.labels["le"])
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert " # {" not in plain.text
    assert f"{name}_bucket" in plain.text


OPEN_METRICS = {"accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"}


async def test_a_collector_that_is_away_harms_nothing(tmp_path: Path) -> None:
    """Events arrive, spans are counted as dropped, and the system ends as ever."""
    is_over = threading.Event()

    def hang() -> int:
        is_over.wait(60)
        return 503

    with OtlpReceiver(hang) as slow:
        system = start(tmp_path / "data", slow.url, OTEL_EXPORTER_OTLP_TIMEOUT="1")
        try:
            async with system.session(system.token("ann"), CUSTOM) as session:
                for n in range(20):
                    await post(system, {"type": "custom.x", "data": {"n": n}}, traceparent=make_traceparent()[0])
                    [event] = await session.events(1)
                    assert event["data"] == {"n": n}
                async with system.http() as http:
                    await until_metric(http, "solowire_gateway_trace_spans_dropped_total")
        finally:
            assert system.stop() == 0
            is_over.set()
    assert "trace_export_failed" in system.output.read_text()


async def until_metric(http: httpx.AsyncClient, name: str) -> None:
    """Returns when the metric is above 0."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            text = (await http.get("/metrics")).text
            found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
            if found is not None and float(found[1]) > 0:
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "parentbased_traceidratio"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-1"}, "OTEL_BSP_"),
    ],
)
def test_what_the_environment_says_wrongly_is_one_line(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    """A process that could not send its spans does not start, and names the variable."""
    assert said in fail_to_start(tmp_path, "router", **variables)


@pytest.mark.parametrize("command", ["up", "gateway", "shard --index 0"])
def test_each_process_says_so(tmp_path: Path, command: str) -> None:
    """And `up` once for all of its own."""
    last = fail_to_start(tmp_path, *command.split(), OTEL_EXPORTER_OTLP_ENDPOINT="nowhere")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in last


def fail_to_start(tmp_path: Path, *command: str, **variables: str) -> str:
    """The last line of a process that ends with status 2."""
    system = System(tmp_path / "data")
    system.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables}
    process = system.spawn(*command)
    try:
        assert process.wait(ANSWER_SECONDS) == 2
    finally:
        process.kill()
    output = system.output.read_text()
    assert output.count("solowire: ") == 1
    assert "Traceback" not in output
    return output.splitlines()[-1]
