"""The gateway's HTTP routes: publishing, the catalogue, routing for edge proxies, numbers and documentation."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin

import httpx
import msgspec
import pytest

from solowire.observability.metrics import CONTENT_TYPE
from tests.support.system import ANSWER_SECONDS, Session, System, open_session, refusal, running

JSON = "application/json"
NDJSON = "application/x-ndjson"
MSGPACK = "application/msgpack"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with narrow limits on what may be published, behind an edge proxy."""
    settings = {
        "PUBLISH__MAX_REQUEST_BYTES": 20_000,
        "PUBLISH__MAX_REQUEST_EVENTS": 5,
        "PUBLISH__MAX_EVENT_BYTES": 1000,
        "GATEWAY__SHARD_URL": "wss://edge.example/s/{shard}/ws",
    }
    with running(tmp_path_factory.mktemp("small") / "data", shards=1, settings=settings) as started:
        yield started


async def post(system: System, body: bytes, content_type: str | None = JSON, **headers: str) -> httpx.Response:
    if content_type is not None:
        headers["content-type"] = content_type
    async with system.http(system.token("publisher", "publisher")) as http:
        return await http.post("/v1/events", content=body, headers=headers)


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem body, which must be one."""
    assert answer.headers["content-type"] == PROBLEM
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    return body


async def nothing_arrives(session: Session, system: System) -> None:
    """What was published before this left no trace: a marker is the next that arrives."""
    await system.publish({"type": "custom.marker", "data": {}})
    assert [e["type"] for e in await session.events(1)] == ["custom.marker"]


# ----------------------------------------------------------------------------------------------------- publishing


def event(n: int) -> dict[str, Any]:
    return {"type": "custom.form", "data": {"n": n}}


FORMS = {
    "object": (msgspec.json.encode(event(0)), JSON, 1),
    "object without a content type": (msgspec.json.encode(event(0)), None, 1),
    "object with a charset": (msgspec.json.encode(event(0)), f"{JSON}; charset=utf-8", 1),
    "array": (msgspec.json.encode([event(n) for n in range(3)]), JSON, 3),
    "NDJSON": (b"\n".join(msgspec.json.encode(event(n)) for n in range(3)), NDJSON, 3),
    "NDJSON with empty lines": (b"\r\n" + b"\r\n\r\n".join(msgspec.json.encode(event(n)) for n in range(3)), NDJSON, 3),
    "MessagePack object": (msgspec.msgpack.encode(event(0)), MSGPACK, 1),
    "MessagePack array": (msgspec.msgpack.encode([event(n) for n in range(3)]), MSGPACK, 3),
}


@pytest.mark.parametrize("form", FORMS)
async def test_events_may_come_in_several_forms(system: System, form: str) -> None:
    """One event, an array or lines, in JSON or MessagePack: all are accepted, and arrive in their order."""
    body, content_type, count = FORMS[form]
    async with system.session(system.token("forms"), {"subscriptions": ["custom.form"]}) as session:
        answer = await post(system, body, content_type)
        assert answer.status_code == 200, answer.text
        accepted = answer.json()
        found = await session.events(count)
    assert [e["data"]["n"] for e in found] == list(range(count))
    assert accepted == {
        "epoch": session.welcome["epoch"],
        "first_offset": found[0]["offset"],
        "last_offset": found[-1]["offset"],
        "accepted": count,
        "duplicates": 0,
    }
    assert accepted["last_offset"] - accepted["first_offset"] == count - 1


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events/"])
async def test_events_may_come_in_chunks_and_by_another_spelling_of_the_path(small: System, path: str) -> None:
    """A body without a length is read to its end, and both ways to publishing answer alike, refusals too."""

    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    whole = msgspec.json.encode([event(n) for n in range(3)])
    bodies = ((whole[:10], whole[10:40], whole[40:]), (whole, b","), (whole, *[b" " * 8_000] * 4))
    async with small.http(small.token("publisher", "publisher")) as http:
        taken, broken, large = [await http.post(path, content=pieces(*parts)) for parts in bodies]
    assert (taken.status_code, taken.json().get("accepted")) == (200, 3), taken.text
    problem_of(broken, 400, "invalid_body")
    problem_of(large, 413, "too_large")
    async with small.http(small.token("viewer", "viewer")) as http:
        problem_of(await http.post(path, content=pieces(whole)), 403, "forbidden")


async def test_the_envelope_arrives_as_it_was_published(system: System) -> None:
    """Id, priority, key, user, time, source and correlation id pass through; the time comes in UTC."""
    whole = {
        "id": "envelope-1",
        "type": "custom.envelope",
        "data": {"ü": ["€", None, 1.5]},
        "priority": "high",
        "key": "k1",
        "user": "envelope",
        "timestamp": "2026-05-04T12:00:00.250+02:00",
        "source": "ns1",
        "correlation_id": "c1",
    }
    async with system.session(system.token("envelope"), {"subscriptions": ["custom.*", "zone_created"]}) as session:
        await system.publish(whole)
        [found] = await session.events(1)
        assert found.pop("offset") > 0
        assert found == whole | {"timestamp": "2026-05-04T10:00:00.250Z"}
        before = datetime.now(UTC)
        await system.publish({"type": "zone_created", "data": {"zone": "example.com"}})
        [plain] = await session.events(1)
    assert plain.keys() == {"offset", "id", "type", "priority", "timestamp", "data"}
    assert plain["priority"] == "normal"
    assert len(plain["id"]) >= 16
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(plain["timestamp"]) <= datetime.now(UTC)


BAD_EVENTS: dict[str, tuple[str, str]] = {
    "not an object": ("7", "$"),
    "null": ("null", "$"),
    "no type": ('{"data":{}}', "$"),
    "no data": ('{"type":"custom.x"}', "$"),
    "type is a number": ('{"type":1,"data":{}}', "$.type"),
    "unknown type": ('{"type":"zone_exploded","data":{}}', "$.type"),
    "the family itself": ('{"type":"custom.*","data":{}}', "$.type"),
    "custom of a strange name": ('{"type":"custom.Über","data":{}}', "$.type"),
    "unknown field": ('{"type":"custom.x","data":{},"colour":"red"}', "$"),
    "data is a list": ('{"type":"custom.x","data":[]}', "$.data"),
    "data is null": ('{"type":"custom.x","data":null}', "$.data"),
    "payload lacks a field": ('{"type":"zone_created","data":{}}', "$.data"),
    "payload of a wrong type": ('{"type":"zone_created","data":{"zone":5}}', "$.data.zone"),
    "payload wrong deep within": (
        '{"type":"record_updated","data":{"zone":"z","name":"n","type":"A","before":{"ttl":"x"}}}',
        "$.data.before.ttl",
    ),
    "number below range": ('{"type":"system_metrics","data":{"cpu_usage":-1}}', "$.data.cpu_usage"),
    "number above range": ('{"type":"system_metrics","data":{"cpu_usage":1e300}}', "$.data.cpu_usage"),
    "integer above range": (
        '{"type":"zone_created","data":{"zone":"z","record_count":%d}}' % 2**70,
        "$.data.record_count",
    ),
    "unknown priority": ('{"type":"custom.x","data":{},"priority":"urgent"}', "$.priority"),
    "time without a zone": ('{"type":"custom.x","data":{},"timestamp":"2026-05-04T12:00:00"}', "$.timestamp"),
    "time that is none": ('{"type":"custom.x","data":{},"timestamp":"yesterday"}', "$.timestamp"),
    "time beyond all calendars": (
        '{"type":"custom.x","data":{},"timestamp":"0001-01-01T00:00:00+23:59"}',
        "$.timestamp",
    ),
    "empty id": ('{"type":"custom.x","data":{},"id":""}', "$.id"),
    "long id": (json.dumps({"type": "custom.x", "data": {}, "id": "x" * 129}), "$.id"),
    "user is a list": ('{"type":"custom.x","data":{},"user":["a"]}', "$.user"),
    "data too large": (json.dumps({"type": "custom.x", "data": {"x": "x" * 40_000}}), "$.data"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
async def test_one_bad_event_of_many_is_named_and_none_is_accepted(system: System, name: str) -> None:
    """A batch with one bad event is refused whole: its index, the path of the fault and the reason are told."""
    bad, path = BAD_EVENTS[name]
    good = '{"type":"custom.good","data":{}}'
    async with system.session(system.token("batch"), {"subscriptions": ["custom.*"]}) as session:
        for body, content_type in (
            (f"[{good},{good},{bad},{good}]", JSON),
            ("\n".join((good, good, bad, good)), NDJSON),
        ):
            body_of_problem = problem_of(await post(system, body.encode(), content_type), 400, "invalid_events")
            [fault] = body_of_problem["errors"]
            assert (fault["index"], fault["path"]) == (2, path)
            assert fault["message"]
            assert len(fault["message"]) < 500
        await nothing_arrives(session, system)


async def test_every_bad_event_of_a_batch_is_named(system: System) -> None:
    """Who sends several bad events learns of all of them at once, each with its code, and how to do better."""
    events = [{"type": "nope", "data": {}}, {"type": "custom.x", "data": {}}, {"type": "zone_created", "data": {}}]
    body = problem_of(await post(system, msgspec.json.encode(events)), 400, "invalid_events")
    assert [(f["index"], f["code"]) for f in body["errors"]] == [(0, "unknown_type"), (2, "invalid_event")]
    assert "custom." in body["errors"][0]["hint"]


BAD_BODIES: dict[str, tuple[bytes, str, int, str]] = {
    "nothing": (b"", JSON, 400, "invalid_body"),
    "an empty array": (b"[]", JSON, 400, "empty_request"),
    "no lines": (b"\n\n", NDJSON, 400, "empty_request"),
    "no JSON": (b"hello", JSON, 400, "invalid_body"),
    "half an event": (b'{"type":"custom.x"', JSON, 400, "invalid_body"),
    "not UTF-8": (b'{"type":"custom.x","data":{"x":"\xff"}}', JSON, 400, "invalid_body"),
    "NaN": (b'{"type":"custom.x","data":{"x":NaN}}', JSON, 400, "invalid_body"),
    "deep": (b"[" * 100_000, JSON, 400, "invalid_body"),
    "deep within an event": (b'{"type":"custom.x","data":{"x":' + b"[" * 100_000, JSON, 400, "invalid_body"),
    "lone surrogate": (b'{"type":"custom.x","data":{"x":"\\ud800"}}', JSON, 400, "invalid_body"),
    "no MessagePack": (b"\xc1", MSGPACK, 400, "invalid_body"),
    "deep MessagePack": (b"\x91" * 100_000, MSGPACK, 400, "invalid_body"),
    "MessagePack that promises too much": (b"\xdd\xff\xff\xff\xff", MSGPACK, 413, "too_many_events"),
    "form": (b"type=custom.x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    "nonsense type": (b"{}", "nonsense", 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_is_no_events_is_refused_as_a_whole(system: System, name: str) -> None:
    """A body that can't be read gets the status and code for that, and publishing works right after it."""
    body, content_type, status, code = BAD_BODIES[name]
    problem_of(await post(system, body, content_type), status, code)
    assert (await system.publish({"type": "custom.x", "data": {}}))["accepted"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
async def test_numbers_that_json_does_not_have_are_refused_in_messagepack(system: System, value: float) -> None:
    """NaN and infinity would become null on the way to a client: they are refused with their path."""
    for type, data in (("system_metrics", {"cpu_usage": value}), ("custom.x", {"a": [{"b": value}]})):
        body = msgspec.msgpack.encode([{"type": type, "data": data}])
        [fault] = problem_of(await post(system, body, MSGPACK), 400, "invalid_events")["errors"]
        assert fault["index"] == 0
        assert fault["path"].startswith("$.data")


async def test_data_of_any_depth_is_delivered_or_refused(system: System) -> None:
    """Nested data is refused above 64 levels; what is accepted arrives, in both encodings, and no shard falls over."""
    hello = {"subscriptions": ["custom.deep", "custom.marker"]}
    user = system.user_on(0, "deep")
    pack = system.user_on(0, "packed-deep")
    async with (
        system.session(system.token(user), hello) as text,
        system.session(system.token(pack), hello, subprotocols=["solowire.v1.msgpack"]) as packed,
    ):
        expected = 0
        for depth in (1, 50, 63, 64, 100, *range(200, 1100, 25)):
            raw = b'{"type":"custom.deep","data":{"x":' + b"[" * depth + b'"bottom"' + b"]" * depth + b"}}"
            answer = await post(system, raw)
            assert answer.status_code in (200, 400), answer.text
            expected += answer.status_code == 200
        await system.publish({"type": "custom.marker", "data": {}})
        assert await count_raw(text) == await count_raw(packed) == expected == 3


async def count_raw(session: Session) -> int:
    """How many custom.deep arrive before the marker, without decoding what is too deep for a Python client."""
    count = 0
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            raw = await session.socket.recv()
            whole = raw.encode() if isinstance(raw, str) else raw
            count += whole.count(b"custom.deep")
            if b"custom.marker" in whole:
                return count


async def test_an_id_that_was_seen_is_not_published_again(system: System) -> None:
    """A publisher that retries with the same ids is told of duplicates, and subscribers get each event once."""
    first = [{"type": "custom.once", "id": f"once-{n}", "data": {"n": n}} for n in range(3)]
    async with system.session(system.token("once"), {"subscriptions": ["custom.*"]}) as session:
        accepted = await system.publish(*first)
        again = await system.publish(*first)
        assert again == accepted | {"accepted": 0, "duplicates": 3}
        more = {"type": "custom.once", "id": "once-3", "data": {"n": 3}}
        mixed = await system.publish(first[0], more, more)
        assert (mixed["accepted"], mixed["duplicates"]) == (1, 2)
        assert mixed["first_offset"] == accepted["first_offset"]
        assert mixed["last_offset"] == accepted["last_offset"] + 1
        await system.publish({"type": "custom.end", "data": {}})
        found = await session.events(5)
    assert [e["data"].get("n") for e in found] == [0, 1, 2, 3, None]


async def test_a_request_that_is_too_large_is_refused(small: System) -> None:
    """Too many events, too many bytes and too large an event are refused, with what is allowed; the next is taken."""
    one = {"type": "custom.x", "data": {}}
    too_many = problem_of(await post(small, msgspec.json.encode([one] * 6)), 413, "too_many_events")
    assert "5" in too_many["hint"]
    problem_of(await post(small, msgspec.json.encode(one) + b" " * 20_000), 413, "too_large")
    body = problem_of(
        await post(small, msgspec.json.encode({"type": "custom.x", "data": {"x": "x" * 1000}})), 400, "invalid_events"
    )
    assert (body["errors"][0]["code"], body["errors"][0]["path"]) == ("event_too_big", "$.data")

    assert (await small.publish(*[one] * 5))["accepted"] == 5


@pytest.mark.parametrize("chunked", [False, True])
async def test_whoever_sends_far_too_much_gets_an_answer_and_no_reset(small: System, chunked: bool) -> None:
    """The refusal reaches a client that is still writing: 413, or 401 and 403, whatever the size."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b" " * 64 * 1024

    for token, status, code in (
        (small.token("p", "publisher"), 413, "too_large"),
        (small.token("v", "viewer"), 403, "forbidden"),
        (small.token("p", "publisher", ttl=-1), 401, "token_expired"),
    ):
        async with small.http(token) as http:
            content = pieces() if chunked else b" " * 80 * 64 * 1024
            answer = await http.post("/v1/events", content=content, headers={"content-type": JSON})
        problem_of(answer, status, code)


async def test_who_may_not_publish_learns_that_first(system: System) -> None:
    """Garbage from someone without the right to publish is answered with 403, not with what is wrong with it."""
    async with system.http(system.token("viewer", "viewer")) as http:
        answer = await http.post("/v1/events", content=b"garbage")
    problem_of(answer, 403, "forbidden")


# ------------------------------------------------------------------------------------------------ connect, route


async def test_connect_says_where_and_with_what(system: System) -> None:
    """The answer is all that a client needs to open its connection, on the host that it used itself."""
    negotiated = await system.negotiate(system.token("where"))
    shard = negotiated["shard"]
    assert negotiated == {
        "url": f"ws://127.0.0.1:{system.port + 1 + shard}/ws?ticket={negotiated['ticket']}",
        "ticket": negotiated["ticket"],
        "shard": shard,
        "epoch": negotiated["epoch"],
        "expires_in": 30,
        "subprotocols": [
            "solowire.v1.json",
            "solowire.v1.msgpack",
            "solowire.v1.json+deflate",
            "solowire.v1.msgpack+deflate",
        ],
    }
    assert negotiated["epoch"]
    async with system.http(system.token("where")) as http:
        for headers, start in (
            ({"host": "dns.example:8000"}, f"ws://dns.example:{system.port + 1 + shard}/ws?"),
            # Nobody has said that this is a proxy.
            ({"host": "dns.example", "x-forwarded-proto": "https"}, f"ws://dns.example:{system.port + 1 + shard}/ws?"),
            ({"host": "[::1]:8000"}, f"ws://[::1]:{system.port + 1 + shard}/ws?"),
            ({"host": "[fe80::1%25eth0]:8000"}, f"ws://[fe80::1%25eth0]:{system.port + 1 + shard}/ws?"),
        ):
            assert (await http.post("/v1/connect", headers=headers)).json()["url"].startswith(start)


async def test_a_host_that_is_none_is_no_localhost(system: System) -> None:
    """Who asks for a host that nobody can be sent to is told so, and not sent to itself."""
    async with system.http(system.token("nowhere")) as http:
        for host in ("a b", "[::1", "::1", "x:y", "[fe80::1%]", "h/../x", "[1.2.3.4]"):
            problem_of(await http.post("/v1/connect", headers={"host": host}), 400, "bad_host")


async def test_a_trusted_proxys_word_counts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Scheme and host are those that its client used, whatever the headers are called and however they are written."""
    settings = {"LISTEN__TRUSTED_PROXIES": "127.0.0.0/8", "GATEWAY__SHARD_URL": "{scheme}://{host}/s/{shard}"}
    with running(tmp_path_factory.mktemp("proxied") / "data", shards=1, settings=settings) as proxied:
        async with proxied.http(proxied.token("proxied")) as http:
            for headers, start in (
                ({"x-forwarded-proto": "https"}, "wss://edge.example/"),
                ({"x-forwarded-proto": "HTTPS"}, "wss://edge.example/"),
                ({"x-forwarded-proto": "https, http"}, "wss://edge.example/"),
                ({"x-forwarded-proto": "https,http", "x-forwarded-for": "192.0.2.1, 127.0.0.9"}, "wss://edge.example/"),
                ({"x-forwarded-proto": "http"}, "ws://edge.example/"),
                ({"x-forwarded-proto": "gopher"}, "ws://edge.example/"),
                ({"x-forwarded-proto": "wss", "x-forwarded-host": "a.example:8443"}, "wss://a.example/"),
                ({"forwarded": "for=192.0.2.1;proto=https;host=b.example"}, "wss://b.example/"),
                ({"forwarded": 'For="[2001:db8::1]:99" ; Proto="HTTPS";by=x, for=127.0.0.3'}, "wss://edge.example/"),
                ({"forwarded": "proto=http", "x-forwarded-proto": "https"}, "wss://edge.example/"),
            ):
                answer = await http.post("/v1/connect", headers={"host": "edge.example", **headers})
                assert answer.json()["url"].startswith(start), headers
        url, origin = f"ws://127.0.0.1:{proxied.port}/ws?token={proxied.token('page')}", "https://edge.example"
        for name, value in (("X-Forwarded-Host", "edge.example"), ("Forwarded", "host=edge.example")):
            async with open_session(url, origin=origin, additional_headers={name: value}) as session:
                await session.ask("welcome", type="hello")
        assert (await refusal(url, origin=origin))[1]["code"] == "origin_not_allowed"


async def test_a_clients_own_word_of_its_host_does_not_count(system: System) -> None:
    """A page of another site is refused, whatever is said of a host that nobody trusted has seen; it is logged."""
    url = f"ws://127.0.0.1:{system.port}/ws?token={system.token('page')}"
    for name, value in (("X-Forwarded-Host", "edge.example"), ("Forwarded", "host=edge.example")):
        refused = await refusal(url, origin="https://edge.example", additional_headers={name: value})
        assert refused[1]["code"] == "origin_not_allowed"
    system.wait_until(lambda: "forwarded_header_ignored" in system.output.read_text(), "it is told of")


async def test_connect_follows_the_template_of_the_settings(small: System) -> None:
    """Behind an edge proxy, clients are sent where the operator says."""
    negotiated = await small.negotiate(small.token("edge"))
    assert negotiated["url"] == f"wss://edge.example/s/0/ws?ticket={negotiated['ticket']}"


async def test_route_tells_an_edge_proxy_which_upstream_owns_the_user(system: System) -> None:
    """204 and headers that open a connection; the token may stand in the header, the query or the original URI."""
    user = system.user_on(1, "routed")
    token = system.token(user)
    async with system.http() as http:
        answers = [
            await http.get("/v1/route", headers={"authorization": f"Bearer {token}"}),
            await http.get("/v1/route", params={"token": token}),
            await http.get("/v1/route", headers={"x-original-uri": f"/ws?token={token}"}),
            await http.get("/v1/route", headers={"x-original-uri": f"/ws?a=b&token={token}&c=d"}),
            await http.get("/v1/route", headers={"x-forwarded-uri": f"/ws?token={token}"}),
        ]
        problem_of(await http.get("/v1/route", headers={"x-original-uri": "/ws?other=1"}), 401, "missing_token")
        problem_of(await http.get("/v1/route", headers={"x-original-uri": "/ws?token=bad"}), 401, "invalid_token")
    for answer in answers:
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["x-solowire-upstream"] == f"127.0.0.1:{system.port + 2}"
        assert answer.headers["x-solowire-shard"] == "1"
        upstream = f"ws://{answer.headers['x-solowire-upstream']}/ws"
        ticket = {"x-solowire-ticket": answer.headers["x-solowire-ticket"]}
        async with open_session(upstream, additional_headers=ticket) as session:
            assert (await session.ask("welcome", type="hello"))["user"] == user


# ---------------------------------------------------------------------------------------------------- catalogue


async def test_the_catalogue_says_all_about_each_event_type(system: System) -> None:
    """Each type has a summary, schema, permission and delivery, without a token; `custom.*` is among them."""
    async with system.http() as http:
        answer = await http.get("/v1/catalog")
    assert answer.status_code == 200
    catalog = answer.json()
    by_name = {t["name"]: t for t in catalog["types"]}
    assert len(by_name) >= 40
    assert {"record_updated", "dns_query_log", "bulk_progress", "audit_log", "custom.*"} <= by_name.keys()
    assert set(catalog["categories"]) == {"health", "dns", "security", "user", "system", "bulk", "audit", "custom"}
    assert {name for names in catalog["categories"].values() for name in names} == by_name.keys()
    for described in by_name.values():
        assert described["summary"]
        assert described["permission"]
        assert described["delivery"] in ("durable", "state", "telemetry")
        assert described["priority"] in ("critical", "high", "normal", "low")
        schema = described["schema"]
        assert schema["type"] == "object" if "$ref" not in schema else schema["$ref"].split("/")[-1] in schema["$defs"]
    assert by_name["dns_query_log"]["sensitive"]["client_ip"] == "sensitive.client_ip"
    assert by_name["dns_query_log"]["delivery"] == "telemetry"
    assert by_name["system_metrics"]["key_fields"] == ["host"]


# --------------------------------------------------------------------------------------------------------- stats


async def test_numbers_are_for_administrators(system: System) -> None:
    """Totals and shards are shown to admins; to others 403, and without a token 401."""
    paths = ("/v1/stats", "/v1/stats/shards", "/v1/stats/shards/0")
    for role in ("operator", "viewer", "publisher"):
        async with system.http(system.token("curious", role)) as http:
            for path in paths:
                problem_of(await http.get(path), 403, "forbidden")
        async with system.api(0, system.token("curious", role)) as api:
            problem_of(await api.get("/stats"), 403, "forbidden")
    async with system.http() as http:
        for path in paths:
            problem_of(await http.get(path), 401, "missing_token")
    async with system.api(0) as api:
        problem_of(await api.get("/stats"), 401, "missing_token")


async def test_numbers_follow_what_happens(system: System) -> None:
    """Connections and events show up in totals and in their shard, soon after they happened."""
    users = [system.user_on(0, "counted"), system.user_on(1, "counted")]
    async with system.http(system.token("admin")) as http:
        async with (
            system.session(system.token(users[0]), {"subscriptions": ["custom.*"]}) as one,
            system.session(system.token(users[1]), {"subscriptions": ["custom.*"]}),
        ):
            before = (await http.get("/v1/stats")).json()
            event = {"type": "custom.counted", "id": "counted", "data": {}}
            accepted = await system.publish(event)
            await one.events(1)
            assert (await system.publish(event))["duplicates"] == 1
            async with asyncio.timeout(ANSWER_SECONDS):
                while True:
                    totals = (await http.get("/v1/stats")).json()
                    shards = (await http.get("/v1/stats/shards")).json()
                    up_to_date = all(s["log_end_offset"] >= accepted["last_offset"] for s in shards)
                    if up_to_date and [s["connections"] for s in shards] == [1, 1]:
                        break
                    await asyncio.sleep(0.05)
        assert totals["epoch"] == accepted["epoch"]
        assert totals["last_offset"] >= accepted["last_offset"]
        assert (totals["shards"], totals["gateways"]) == (2, 1)
        assert (totals["events"], totals["duplicates"]) == (before["events"] + 1, before["duplicates"] + 1)
        assert [s["shard"] for s in shards] == [0, 1]
        assert shards[1]["address"] == f"127.0.0.1:{system.port + 2}"
        alone = (await http.get("/v1/stats/shards/1")).json()
        assert alone.keys() == shards[1].keys() | {"slowest"}
        problem_of(await http.get("/v1/stats/shards/7"), 404, "no_such_shard")
        async with asyncio.timeout(ANSWER_SECONDS):
            while (await http.get("/v1/stats")).json()["connections"]:
                await asyncio.sleep(0.05)


# ------------------------------------------------------------------------------------------ operations, documents


async def test_health_readiness_and_metrics(system: System) -> None:
    """Every process answers /healthz, /readyz and /metrics without a token, a shard only inside the system."""
    async with system.http() as gateway, system.api(0) as shard:
        for http, metric in ((gateway, "relayed_connections"), (shard, "connections")):
            assert (await http.get("/healthz")).json()["status"] == "ok"
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "ready")
            metrics = await http.get("/metrics")
            assert metrics.status_code == 200
            assert metrics.headers["content-type"] == CONTENT_TYPE
            assert re.search(rf"^solowire_\w*{metric}(\{{.*\}})? \d", metrics.text, re.MULTILINE), metrics.text


@pytest.mark.parametrize("path", ["/metrics", "/stats", "/stats/users/ann", "/", "/v1/connect"])
async def test_a_shards_client_port_tells_nothing_of_others(system: System, path: str) -> None:
    """Metrics name tenants, and statistics users: what clients reach serves WebSockets, and says whether it lives."""
    shard = f"http://127.0.0.1:{system.port + 1}"
    async with system.http(system.token("root")) as http:
        problem_of(await http.get(f"{shard}{path}"), 404, "not_found")
        assert (await http.get(f"{shard}/healthz")).json() == {"status": "ok"}
        assert (await http.get(f"{shard}/readyz")).json() == {"status": "ready"}
        assert (await http.head(f"{shard}/readyz")).status_code == 200
        problem_of(await http.get(f"{shard}/ws"), 426, "upgrade_required")


@pytest.mark.parametrize("place", ["/docs", "/docs/"])
async def test_the_documentation_needs_no_other_host(place: str, system: System) -> None:
    """/docs loads everything it shows from the gateway: an administrator's network may have no way out.

    All of it stands beside the page, so that a proxy may serve the gateway beneath a path of its own.
    """
    shown = f"https://dns.example/gateways/live{place}"  # the proxy cuts /gateways/live off

    async def load(url: str, seen_from: str) -> str:
        whole = urljoin(seen_from, url)
        assert whole.startswith("https://dns.example/gateways/live/"), url
        answer = await http.get(whole.removeprefix("https://dns.example/gateways/live"))
        assert answer.status_code == 200, url
        assert answer.content
        return whole

    async with system.http() as http:
        page = await http.get(place)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        loaded = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page.text)
        assert loaded
        whole = [await load(url, shown) for url in loaded]
        [script] = [url for url in whole if url.endswith("/page.js")]
        [document] = re.findall(
            r'new URL\("([^"]+)", document.currentScript.src\)', (await http.get("/docs/page.js")).text
        )
        described = await load(document, script)
        [server] = (await http.get("/docs/openapi.json")).json()["servers"]
        assert urljoin(described, server["url"]) == "https://dns.example/gateways/live/"
        assert re.findall(r"https?://[^\s\"'<>]+", page.text) == []


async def test_the_documentation_runs_nothing_but_the_gateways_own_files(system: System) -> None:
    """The page's policy allows scripts and styles of the gateway alone, and none stands in the page itself."""
    async with system.http() as http:
        for path in ("/docs", "/docs/", "/docs/openapi.json", "/docs-assets/oauth2-redirect.html", "/docs/nothing"):
            policy = (await http.get(path)).headers["content-security-policy"]
            rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
            assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
            assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        page = (await http.get("/docs")).text
        assert re.findall(r"<script(?![^>]* src=)[^>]*>|<style|\son\w+=|\sstyle=|javascript:", page) == []
        script = await http.get("/docs/page.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert "SwaggerUIBundle" in script.text


async def test_nothing_that_is_answered_is_taken_for_a_page_or_a_script(system: System) -> None:
    """Whatever the gateway answers, and to whom, says that its type is what it says that it is."""
    viewer = {"authorization": f"Bearer {system.token('vic', 'viewer')}"}
    asked = [
        ("GET", path) for path in ("/healthz", "/readyz", "/metrics", "/v1/catalog", "/docs", "/docs/openapi.json")
    ]
    asked += [
        ("GET", path) for path in ("/docs-assets/swagger-ui.css", "/nowhere", "/v1/stats", "/v1/users/ann", "/ws")
    ]
    asked += [("POST", path) for path in ("/v1/connect", "/v1/connect/", "/v1/events", "/v1/events/", "/healthz")]
    asked += [("GET", "/v1/events"), ("GET", "/v1/events/"), ("GET", "/docs/migration")]
    asked += [("GET", "/v1/route"), ("GET", "/v1/route/"), ("GET", "/v1/connect"), ("HEAD", "/healthz")]
    async with system.http() as http:
        for method, path in asked:
            for headers in ({}, viewer):
                answer = await http.request(method, path, headers=headers)
                assert answer.headers.get_list("x-content-type-options") == ["nosniff"], (method, path, answer)
                assert answer.headers.get("content-type", "").count("charset") <= 1


async def test_allow_names_all_methods_of_a_path(system: System) -> None:
    """OPTIONS and 405 name each method that is answered, HEAD included, and none that is not."""
    expected = {
        "/v1/revocations": {"GET", "HEAD", "OPTIONS", "POST"},
        "/v1/revocations/x": {"DELETE", "OPTIONS"},
        "/v1/events": {"GET", "HEAD", "OPTIONS", "POST"},
        "/v1/users/ann": {"GET", "HEAD", "OPTIONS"},
        "/v1/shards/0/drain": {"OPTIONS", "POST"},
        "/healthz": {"GET", "HEAD", "OPTIONS"},
        "/docs": {"GET", "HEAD", "OPTIONS"},
    }
    async with system.http(system.token("root")) as http:
        for path, methods in expected.items():
            for asked, status in (("OPTIONS", 204), ("PATCH", 405)):
                answer = await http.request(asked, path)
                assert answer.status_code == status
                assert set(answer.headers["allow"].split(", ")) == methods, (asked, path)
            if "HEAD" in methods and path != "/v1/users/ann":
                assert (await http.head(path)).status_code == 200


async def test_no_cache_keeps_a_ticket(system: System) -> None:
    """Tickets, and what is said of the tokens that were shown for them, are not stored on the way, by any spelling."""
    shown = {
        "": 401,
        "Bearer wrong": 401,
        f"Bearer {system.token('pub', 'publisher')}": 403,
        f"Bearer {system.token('ann', 'viewer')}": 200,
    }
    async with system.http() as http:
        for method, path in (("POST", "/v1/connect"), ("GET", "/v1/route")):
            for token, status in shown.items():
                for spelling in (path, f"{path}/"):
                    answer = await http.request(method, spelling, headers={"authorization": token} if token else {})
                    assert answer.status_code in (status, 204 if status == 200 else status)
                    assert answer.headers.get_list("cache-control") == ["no-store"], (spelling, answer)
        for spelling in ("/v1/connect", "/v1/connect/"):
            assert (await http.get(spelling)).headers["cache-control"] == "no-store"


async def test_the_openapi_document_describes_the_routes(system: System) -> None:
    """A machine may read which routes there are, with their methods."""
    async with system.http() as http:
        document = (await http.get("/docs/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    wanted = {
        "/v1/connect": "post",
        "/v1/route": "get",
        "/v1/events": "post",
        "/v1/catalog": "get",
        "/v1/stats": "get",
        "/v1/stats/shards": "get",
        "/v1/users/{user}": "get",
        "/v1/shards/{index}/drain": "post",
        "/healthz": "get",
        "/readyz": "get",
        "/metrics": "get",
    }
    for path, method in wanted.items():
        assert method in document["paths"][path], path


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/v1", "/v1/nope", "/v1/stats/shards/x", "/docs-assets/../secret", "/%ff"]
)
async def test_what_is_not_there_is_a_problem_body(system: System, path: str) -> None:
    """An unknown path is answered with 404 as a problem body, on the gateway and on a shard."""
    async with system.http() as http:
        assert "/docs" in problem_of(await http.get(path), 404, "not_found")["hint"]
        problem_of(await http.get(f"http://127.0.0.1:{system.port + 1}{path}"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/connect"), ("DELETE", "/v1/events"), ("POST", "/v1/catalog"), ("PUT", "/healthz")]
)
async def test_a_wrong_method_is_a_problem_body(system: System, method: str, path: str) -> None:
    """A known path with the wrong method is answered with 405, and which methods there are."""
    async with system.http() as http:
        answer = await http.request(method, path)
    assert answer.headers["allow"] in problem_of(answer, 405, "method_not_allowed")["hint"]


async def test_a_plain_request_for_the_socket_is_told_what_it_is(system: System) -> None:
    """GET /ws without an upgrade gets a client error as a problem body, not a hang or a 500."""
    async with system.http(system.token("plain")) as http:
        for port in (system.port, system.port + 1):
            answer = await http.get(f"http://127.0.0.1:{port}/ws")
            assert 400 <= answer.status_code < 500
            assert answer.headers["content-type"] == PROBLEM
