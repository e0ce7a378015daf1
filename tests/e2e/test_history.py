"""History through real processes: what is asked for is exactly what would have been sent live."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from solowire import Client, HistoryRefused
from tests.chaos.clients import population
from tests.chaos.load import Maker
from tests.chaos.oracle import Made, due
from tests.e2e.test_cli import ask, one_line, place, printed, tail, until
from tests.e2e.test_replays import fill
from tests.support.system import ANSWER_SECONDS, System, published, running

__all__ = ["place"]
LINES = {"accept": "application/x-ndjson"}


def change(zone: str, name: str = "www", **more: Any) -> dict[str, Any]:
    return {"type": "record_updated", "data": {"zone": zone, "name": name, "type": "A"}, **more}


def query(**parameters: Any) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}


async def page(http: httpx.AsyncClient, **parameters: Any) -> dict[str, Any]:
    answer = await http.get("/v1/events", params=query(**parameters))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def pages(http: httpx.AsyncClient, **parameters: Any) -> AsyncIterator[dict[str, Any]]:
    """All pages, one after the other."""
    while True:
        found = await page(http, **parameters)
        yield found
        if found["complete"]:
            return
        parameters["after"] = found["next"]


async def all_of(http: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    return [event async for found in pages(http, **parameters) for event in found["events"]]


async def lines(http: httpx.AsyncClient, **parameters: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a stream, and its last line."""
    answer = await http.get("/v1/events", params=query(**parameters), headers=LINES)
    assert (answer.status_code, answer.headers["content-type"]) == (200, LINES["accept"]), answer.text
    *events, end = [json.loads(line) for line in answer.text.splitlines()]
    return events, end


def offsets(events: list[dict[str, Any]]) -> list[int]:
    return [event["offset"] for event in events]


@pytest.fixture
async def admin(system: System) -> AsyncIterator[httpx.AsyncClient]:
    async with system.http(system.token("history-admin")) as http:
        yield http


# ------------------------------------------------------------------------------------------ what a page holds


async def test_a_page_holds_what_was_published(system: System) -> None:
    """What a user may see of what was published comes as a page of JSON, as it came live."""
    accepted = await system.publish(change("history.example", id="history-1"), change("other.example"))
    async with system.http(system.token("reader", "viewer")) as http:
        found = await page(http, since="1h", types="record_updated", filter={"zone": ["history.example"]})
    assert found["complete"] is True
    assert found["next"] == f"{accepted['epoch']}:{accepted['last_offset']}"
    [event] = found["events"]
    assert event["data"] == {"zone": "history.example", "name": "www", "type": "A"}
    assert (event["offset"], event["id"]) == (accepted["first_offset"], "history-1")


async def test_pages_follow_each_other_without_gap_or_overlap_while_the_log_is_written(
    system: System, admin: httpx.AsyncClient
) -> None:
    """Both ways, page by page, while others publish: each event once, in order; and none that came too late."""
    accepted = await system.publish(*(change("paged.example", f"n{n}") for n in range(50)))
    before = list(range(accepted["first_offset"], accepted["last_offset"] + 1))
    asked = {"types": "record_updated", "filter": {"zone": ["paged.example"]}, "limit": "7", "since": "1h"}
    backwards = []
    async for found in pages(admin, **asked, order="desc"):
        backwards.extend(offsets(found["events"]))
        await system.publish(change("paged.example", "late"))
    assert backwards == before[::-1]
    forwards: list[int] = []
    async for found in pages(admin, **asked):
        forwards += offsets(found["events"])
        if len(forwards) < 60:
            await system.publish(change("paged.example", "later"))
    assert forwards == sorted(set(forwards))
    assert forwards[:50] == before
    assert forwards == offsets(await all_of(admin, **{**asked, "limit": "5000"}))


async def test_a_question_ends_where_it_ended_when_it_was_asked(system: System, admin: httpx.AsyncClient) -> None:
    """`until` and `since` that count from now mean the moment of the first page on all the others."""
    accepted = await system.publish(*(change("ends.example", f"n{n}") for n in range(5)))
    position = f"{accepted['epoch']}:{accepted['first_offset'] + 2}"
    asked = {"types": "record_updated", "filter": {"zone": ["ends.example"]}}
    upto = await all_of(admin, **asked, until=position, limit="2")
    behind = await all_of(admin, **asked, since=position, limit="2")
    assert offsets(upto) + offsets(behind) == list(range(accepted["first_offset"], accepted["last_offset"] + 1))
    assert offsets(await all_of(admin, **asked, since=position, order="desc", limit="1")) == offsets(behind)[::-1]
    assert await all_of(admin, **asked, until="1h") == []
    found = await page(admin, **asked, since=position, after=position, limit="1")
    assert offsets(found["events"]) == [accepted["first_offset"] + 3]


async def test_times_part_the_log(system: System, admin: httpx.AsyncClient) -> None:
    """What is before a time and what is from it on are all there is; a duration is a time."""
    accepted = await system.publish(change("times.example", "first"))
    await asyncio.sleep(0.1)  # the router reckons time in milliseconds
    moment = datetime.now(UTC).isoformat()
    await asyncio.sleep(0.1)
    await system.publish(change("times.example", "second"))
    asked = {"types": "record_updated", "filter": {"zone": ["times.example"]}}
    events = await all_of(admin, **asked)
    assert [event["data"]["name"] for event in events] == ["first", "second"]
    assert [e["data"]["name"] for e in await all_of(admin, **asked, since="1h", until=moment)] == ["first"]
    assert [e["data"]["name"] for e in await all_of(admin, **asked, since=moment)] == ["second"]
    assert [e["data"]["name"] for e in await all_of(admin, **asked, until="0.001s")] == ["first", "second"]
    assert accepted["first_offset"] == events[0]["offset"]


async def test_a_stream_has_all_pages_a_line_for_each_event(system: System, admin: httpx.AsyncClient) -> None:
    """NDJSON comes without asking for pages, and its last line says where it ended."""
    accepted = await system.publish(*(change("lines.example", f"n{n}") for n in range(2500)))
    asked = {"types": "record_updated", "filter": {"zone": ["lines.example"]}}
    events, end = await lines(admin, **asked)
    assert offsets(events) == list(range(accepted["first_offset"], accepted["last_offset"] + 1))
    assert end == {"next": f"{accepted['epoch']}:{accepted['last_offset']}", "complete": True}
    events, end = await lines(admin, **asked, limit="1200", order="desc")
    assert offsets(events) == list(range(accepted["last_offset"], accepted["last_offset"] - 1200, -1))
    assert end["complete"] is False
    rest, end = await lines(admin, **asked, order="desc", after=end["next"])
    assert (len(rest), rest[0]["offset"], end) == (1300, events[-1]["offset"] - 1, {"next": None, "complete": True})


async def test_an_event_with_line_breaks_in_its_data_is_one_line(system: System, admin: httpx.AsyncClient) -> None:
    """What a publisher wrote over several lines is put into one."""
    body = b'{"type": "custom.broken", "data": {\n  "text": "a\\nb",\r\n  "list": [\n1,\n2]\n}}'
    headers = {"authorization": f"Bearer {system.token('p', 'publisher')}", "content-type": "application/json"}
    async with system.http() as http:
        assert (await http.post("/v1/events", content=body, headers=headers)).status_code == 200
    events, _ = await lines(admin, types="custom.broken")
    assert [event["data"] for event in events] == [{"text": "a\nb", "list": [1, 2]}]


# ------------------------------------------------------------------------------------------ whose rights


async def test_history_is_what_each_client_got_live(tmp_path: Path) -> None:
    """For every kind of rights and wishes of the chaos suite: history, what came live, and the oracle agree."""
    settings = {
        "SHARD__AGGREGATION__EVENTS_PER_S": 100_000,
        "SHARD__CONFLATION__INTERVAL_S": 0,
        "HISTORY__BURST": 10_000,
        "LIMITS__CONNECT__RATE": 10_000,
    }
    with running(tmp_path / "data", shards=2, settings=settings) as system:
        people = population(22)
        maker = Maker(7, "property", [who.user for who in people])
        made: dict[str, Made] = {}
        async with asyncio.TaskGroup() as group, system.http(system.token("publisher", "publisher")) as http:
            live: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
            ready = asyncio.Barrier(len(people) + 1)
            tokens = {who.user: token_of(system, who) for who in people}

            async def follow(who: Any) -> None:
                got = live[who.user] = []
                async with Client(
                    system.url, tokens[who.user], subscriptions=who.subscriptions, filter=who.filter or None
                ) as client:
                    await ready.wait()
                    async for event in client:
                        got += [(event.offset, event.id, event.data)]

            followers = [group.create_task(follow(who)) for who in people]
            await ready.wait()
            for _ in range(12):
                batch = [maker.next() for _ in range(25)]
                made |= {one.id: one for one in batch}
                await published(http, *({"id": o.id, "type": o.type, "data": o.data, "user": o.user} for o in batch))
            expected = {
                who.user: [(one.id, data) for one in made.values() if (data := due(who, one)) is not None]
                for who in people
            }
            async with asyncio.timeout(ANSWER_SECONDS):
                while any(len(live[user]) < len(expected[user]) for user in live):
                    await asyncio.sleep(0.05)
            for follower in followers:
                follower.cancel()
        for who in people:
            assert [(id, data) for _, id, data in live[who.user]] == expected[who.user], who
            client = Client(system.url, tokens[who.user])
            past = [
                (event.offset, event.id, event.data)
                async for event in client.history(types=who.subscriptions, filter=who.filter or None)
                if event.source != "solowire"
            ]
            assert past == live[who.user], who
            back = [
                (event.offset, event.id, event.data)
                async for event in client.history(
                    types=who.subscriptions, filter=who.filter or None, order="desc", limit=100_000
                )
                if event.source != "solowire"
            ]
            assert back == past[::-1], who


def token_of(system: System, who: Any) -> str:
    scopes: dict[str, Any] = {"scopes": {"zones": list(who.zones)}} if who.zones else {}
    return system.token(who.user, who.role, **scopes)


async def test_two_users_get_what_each_may_see(system: System) -> None:
    """Scopes, hidden fields, permissions and events for one alone hold for what is past as for what is live."""
    data = {"query_domain": "www.rights.example", "query_type": "A", "client_ip": "192.0.2.1", "zone": "rights.example"}
    await system.publish(
        {"type": "dns_query_log", "data": data},
        {"type": "dns_query_log", "data": {**data, "zone": "other.rights.test", "query_domain": "other.rights.test"}},
        change("rights.example", "for-ann", user="ann"),
        {"type": "audit_event", "data": {"action": "x", "message": "y", "zone": "rights.example"}},
    )
    asked = {"types": "dns_query_log,record_updated", "filter": {"zone": ["rights.example", "rights.test"]}}
    async with system.http(system.token("ann", "operator")) as ann:
        whole = await all_of(ann, **asked)
    async with system.http(system.token("bob", "viewer", scopes={"zones": ["rights.example"]})) as bob:
        narrow = await all_of(bob, **asked)
        denied = await page(bob, types="audit_event,record_updated")
        refused = await bob.get("/v1/events", params={"types": "audit_event"})
        by_hidden = await bob.get(
            "/v1/events", params=query(types="dns_query_log", filter={"client_ip": ["192.0.2.1"]})
        )
    assert [(e["type"], e["data"].get("client_ip"), e["data"].get("name")) for e in whole] == [
        ("dns_query_log", "192.0.2.1", None),
        ("dns_query_log", "192.0.2.1", None),
        ("record_updated", None, "for-ann"),
    ]
    assert [(e["type"], e["data"].get("client_ip"), e["data"]["zone"]) for e in narrow] == [
        ("dns_query_log", None, "rights.example")
    ]
    assert [(d["type"], d["reason"]) for d in denied["denied"]] == [("audit_event", "forbidden")]
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (by_hidden.status_code, by_hidden.json()["code"]) == (403, "forbidden")


async def test_who_may_not_connect_has_no_history(system: System) -> None:
    """Nothing was ever sent to a role that only publishes; a token that proves nothing is told so."""
    async with system.http(system.token("p", "publisher")) as http:
        answer = await http.get("/v1/events")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    async with system.http() as http:
        assert (await http.get("/v1/events")).status_code == 401
        assert (await http.get("/v1/events", headers={"authorization": "Bearer x"})).status_code == 401


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("headers", [{}, LINES])
async def test_wrong_parameters_are_named_each(admin: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """One answer names all that is wrong, whichever form of answer was asked for."""
    wrong = {
        "since": "yesterday",
        "until": "2026-01-01T00:00:00",
        "types": "dns_query_lgo",
        "filter": '{"zoen": ["a"]}',
        "order": "up",
        "after": "x",
    }
    answer = await admin.get("/v1/events", params=wrong, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    assert {fault["parameter"] for fault in answer.json()["errors"]} == set(wrong)
    for one in ({"limit": "0"}, {"limit": "x"}, {"form": "1h"}, {"filter": "[1]"}, {"types": ""}, {"since": "1y"}):
        answer = await admin.get("/v1/events", params=one, headers=headers)
        assert answer.status_code == 400, one
        assert [fault["parameter"] for fault in answer.json()["errors"]] == list(one)
    answer = await admin.get("/v1/events?since=1h&since=2h", headers=headers)
    assert [fault["parameter"] for fault in answer.json()["errors"]] == ["since"]
    future = await admin.get("/v1/events", params={"since": await place_ahead(admin)}, headers=headers)
    assert [fault["parameter"] for fault in future.json()["errors"]] == ["since"]


async def place_ahead(http: httpx.AsyncClient) -> str:
    epoch, offset = (await page(http, limit="1", types="*"))["next"].split(":")[:2]
    return f"{epoch}:{int(offset) + 10**6}"


async def test_what_is_older_than_the_log_is_gone_and_says_what_is_left(tmp_path: Path) -> None:
    """Before the retention, and of a log that was lost: 410 with the oldest that can be asked for."""
    with running(tmp_path / "data", shards=1, settings={"JOURNAL__MAX_EVENTS": 500}) as system:
        async with system.http(system.token("admin")) as http:
            first = await system.publish(change("old.example", "first"))
            position = f"{first['epoch']}:{first['first_offset']}"
            assert len(await all_of(http, since="1h", types="record_updated")) == 1
            for n in range(4):
                await system.publish(*(change("old.example", f"n{n}") for _ in range(250)))
            for asked in ({"since": "1h"}, {"since": position}, {"after": position}, {"since": "1h", "order": "desc"}):
                answer = await http.get("/v1/events", params={**asked, "types": "record_updated"})
                assert (answer.status_code, answer.json()["code"]) == (410, "history_gone"), (asked, answer.text)
            oldest = answer.json()["oldest"]
            kept = await all_of(http, since=oldest["position"], types="record_updated")
            assert 250 <= len(kept) <= 500
            assert kept[0]["offset"] == int(oldest["position"].split(":")[1]) + 1
            assert offsets(await all_of(http, types="record_updated")) == offsets(kept)
            other = await http.get("/v1/events", params={"since": "0123:5"}, headers=LINES)
            assert (other.status_code, other.json()["oldest"]["position"]) == (410, oldest["position"])
            assert oldest["timestamp"].startswith("20")
        with pytest.raises(HistoryRefused) as refused:
            async for _ in Client(system.url, system.token("admin")).history("1h"):
                pass
        assert (refused.value.status, refused.value.oldest) == (410, oldest["position"])


async def test_pages_follow_each_other_while_the_log_is_trimmed(tmp_path: Path) -> None:
    """A reader that keeps up misses nothing; one that the trimming overtakes is told, and never skips in silence."""
    with running(
        tmp_path / "data", shards=1, settings={"JOURNAL__MAX_EVENTS": 2_000, "HISTORY__BURST": 10_000}
    ) as system:
        async with system.http(system.token("admin")) as http, system.http(system.token("p", "publisher")) as publisher:
            await published(publisher, *(change("trim.example", f"n{n}") for n in range(2_000)))
            seen: list[int] = []
            after = None
            for round in range(20):
                asked = {"types": "record_updated", "limit": "400", **({"after": after} if after else {})}
                found = await page(http, **asked)
                seen += offsets(found["events"])
                after = found["next"]
                await published(publisher, *(change("trim.example", f"m{round}") for _ in range(300)))
            assert seen == list(range(seen[0], seen[0] + len(seen)))
            assert len(seen) > 6_000
            await published(publisher, *(change("trim.example", "x") for _ in range(4_000)))
            answer = await http.get("/v1/events", params={"after": after, "types": "record_updated"})
            assert answer.status_code == 410


async def test_who_asks_too_much_waits(tmp_path: Path) -> None:
    """A user's questions have a rate, and a number at a time: 429 with Retry-After, and nobody else is refused."""
    settings = {"HISTORY__RATE": 0.5, "HISTORY__BURST": 3, "HISTORY__MAX_PER_USER": 1}
    with running(tmp_path / "data", shards=1, settings=settings) as system:
        async with system.http(system.token("ann")) as http:
            answers = [await http.get("/v1/events") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert answers[3].json()["code"] == "history_rate_limited"
            assert 1 <= int(answers[3].headers["retry-after"]) <= 2
        async with system.http(system.token("bob")) as http:
            assert (await http.get("/v1/events")).status_code == 200
            # As long as a stream is not read to its end it is under way.
            await system.publish(*({"type": "custom.big", "data": {"x": "y" * 30_000}} for _ in range(120)))
            await system.publish(*({"type": "custom.big", "data": {"x": "y" * 30_000}} for _ in range(120)))
        # As long as an answer is not read to its end it is under way, a page as well as a stream.
        for user, accept in (("eve", LINES["accept"]), ("pat", "application/json")):
            with slow_reader(system, system.token(user), "types=custom.big", accept):
                async with system.http(system.token(user)) as http:
                    until(lambda: answers_under_way(system) == 1, "the answer is under way")
                    for headers in (LINES, {}):
                        answer = await http.get("/v1/events", headers=headers)
                        assert (answer.status_code, int(answer.headers["retry-after"])) == (429, 1)
            until(lambda: answers_under_way(system) == 0, "the gateway knows that its reader has gone")


def slow_reader(system: System, token: str, query: str, accept: str = LINES["accept"]) -> socket.socket:
    """A client that asks for a stream or a page, and reads nothing of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", system.port))
    head = f"GET /v1/events?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nAccept: {accept}"
    sock.sendall(f"{head}\r\n\r\n".encode())
    return sock


def answers_under_way(system: System) -> float:
    for line in httpx.get(f"{system.url}/metrics").text.splitlines():
        if line.startswith("solowire_gateway_history_answers "):
            return float(line.split()[1])
    raise AssertionError("no such metric")


async def test_a_stream_that_nobody_reads_is_not_read_ahead(tmp_path: Path) -> None:
    """A stream goes as fast as it is taken: behind a reader that takes nothing no more than a few pages are made."""
    with running(tmp_path / "data", 1, {"PUBLISH__BYTES_PER_S": 10**9}) as system:
        for _ in range(20):
            await system.publish(*({"type": "custom.big", "data": {"x": "y" * 30_000}} for _ in range(100)))
        with slow_reader(system, system.token("eve"), "types=custom.big"):
            async with system.api(0) as http:
                made = await settled(http, "solowire_shard_history_events_total")
        assert 0 < made < 600  # of 2,000 of 30 KB each


async def settled(http: httpx.AsyncClient, name: str) -> float:
    """A counter, when it has stood still for a second."""
    last, since = -1.0, 0
    async with asyncio.timeout(ANSWER_SECONDS):
        while since < 10 or last <= 0:
            text = (await http.get("/metrics")).text
            now = next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
            since = since + 1 if now == last else 0
            last = now
            await asyncio.sleep(0.2)
    return last


# ------------------------------------------------------------------------------------------ other ways to ask


@pytest.mark.parametrize("subprotocol", ["solowire.v1.json", "solowire.v1.msgpack", "solowire.v1.json+deflate"])
async def test_a_socket_asks_too(system: System, subprotocol: str) -> None:
    """A client that has only its socket gets the same pages, each as a reply."""
    zone = f"{subprotocol.replace('+', '-').replace('.', '-')}.socket.example"
    accepted = await system.publish(*(change(zone, f"n{n}") for n in range(30)))
    asked = {"types": ["record_updated"], "filter": {"zone": [zone]}, "since": "1h", "limit": 12}
    async with system.session(
        system.token("socket", "viewer"), {"subscriptions": []}, subprotocols=[subprotocol]
    ) as session:
        found: list[dict[str, Any]] = []
        after: dict[str, Any] = {}
        for number, count in enumerate((12, 12, 6)):
            reply = await session.ask("reply", type="history", id=f"q{number}", **asked, **after)
            assert (reply["id"], len(reply["data"]["events"])) == (f"q{number}", count)
            found += reply["data"]["events"]
            after = {"after": reply["data"]["next"]}
        assert reply["data"]["complete"] is True
        error = await session.ask("error", type="history", id=9, since="yesterday", order="up")
    assert offsets(found) == list(range(accepted["first_offset"], accepted["last_offset"] + 1))
    assert found[0]["data"] == {"zone": zone, "name": "n0", "type": "A"}
    assert (error["id"], error["code"]) == (9, "invalid_query")
    assert "since:" in error["message"]
    assert "order:" in error["message"]


async def test_a_socket_s_page_fits_a_frame(system: System) -> None:
    """A page that would be larger than a frame ends sooner, and says where to go on."""
    await system.publish(*({"type": "custom.frame", "data": {"x": "y" * 20_000}} for _ in range(10)))
    async with system.session(system.token("socket"), {"subscriptions": []}) as session:
        count = 0
        after: dict[str, str] = {}
        while True:
            reply = await session.ask("reply", type="history", types=["custom.frame"], **after)
            assert len(json.dumps(reply)) < 100_000
            count += len(reply["data"]["events"])
            if reply["data"]["complete"]:
                break
            after = {"after": reply["data"]["next"]}
    assert count == 10


async def test_the_sdk_goes_on_live_where_history_ends(system: System) -> None:
    """What is published while history is read comes once: by history, or live, or by the resume between them."""
    token = system.token("sdk", "viewer")
    async with system.http(system.token("p", "publisher")) as http:
        await published(http, *(change("sdk.example", f"n{n}") for n in range(1500)))
        history = Client(system.url, token).history("1h", types=["record_updated"], filter={"zone": ["sdk.example"]})
        names = []
        async for event in history:
            names.append(event.data["name"])
            if len(names) % 500 == 0:
                await published(http, change("sdk.example", f"while-{len(names)}"))
        await published(http, change("sdk.example", "between"))
        async with Client(
            system.url,
            token,
            subscriptions=["record_updated"],
            filter={"zone": ["sdk.example"]},
            resume=history.position,
        ) as client:
            await published(http, change("sdk.example", "live"))
            async for event in client:
                names.append(event.data["name"])
                if event.data["name"] == "live":
                    break
    expected = [f"n{n}" for n in range(1500)] + ["while-500", "while-1000", "while-1500", "between", "live"]
    assert sorted(names) == sorted(expected)
    assert names[-2:] == ["between", "live"]


def test_the_commands_show_what_was_and_go_on(system: System, place: Path) -> None:
    """`history` prints what was sent, either way; `tail --since` prints that, and then what comes."""
    token = system.token("p", "publisher")

    def publish(*events: dict[str, Any]) -> None:
        answer = httpx.post(f"{system.url}/v1/events", json=list(events), headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200

    publish(*(change("cli.example", f"n{n}") for n in range(3)))
    where = ("record_updated", "--filter", "zone=cli.example", "--json")
    shown = [json.loads(line)["data"]["name"] for line in printed(ask(system, place, "history", *where)).splitlines()]
    assert shown == ["n0", "n1", "n2"]
    newest = printed(ask(system, place, "history", *where, "--newest-first", "--count", "2"))
    assert [json.loads(line)["data"]["name"] for line in newest.splitlines()] == ["n2", "n1"]
    assert "n1" in printed(ask(system, place, "history", *where[:3]))
    wrong = one_line(ask(system, place, "history", "--since", "yesterday"), status=1)
    assert "since" in wrong
    with tail(system, place, *where, "--since", "1h", "--count", "5") as tailing:
        publish(change("cli.example", "live-1"), change("cli.example", "live-2"))
        assert [json.loads(line)["data"]["name"] for line in tailing.lines()] == ["n0", "n1", "n2", "live-1", "live-2"]


# ------------------------------------------------------------------------------------------ a log of before


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system on a journal that was written without an index, as versions before this one did."""
    data_dir = tmp_path_factory.mktemp("history") / "data"
    fill(data_dir, 60_000)
    with running(data_dir, shards=1, settings={"HISTORY__BURST": 10_000}) as started:
        yield started


async def test_a_log_without_an_index_is_asked_at_once_and_gets_one(long_log: System) -> None:
    """Questions are answered before the index is there, and when it is, alike."""
    asked = {"types": "record_created", "filter": {"zone": ["z7.example.com"]}, "limit": "5000"}
    async with long_log.http(long_log.token("admin")) as http:
        before = offsets(await all_of(http, **asked))
        assert before == list(range(7, 60_001, 50))
        index = long_log.data_dir / "history-index.sqlite3"
        until(lambda: index.exists() and index.stat().st_mode & 0o077 == 0, "there is an index, for its owner alone")
        assert offsets(await all_of(http, **asked)) == before
        assert offsets(await all_of(http, **asked, order="desc")) == before[::-1]


async def test_history_outlives_the_router(long_log: System) -> None:
    """A router that was killed answers from where it was, with the index that it had."""
    asked = {"types": "record_created", "filter": {"zone": ["z8.example.com"]}, "limit": "5000"}
    async with long_log.http(long_log.token("admin")) as http:
        before = offsets(await all_of(http, **asked))
        os.kill(long_log.pid_of("router"), signal.SIGKILL)
        async with asyncio.timeout(ANSWER_SECONDS):
            while (answer := await http.get("/v1/events", params=query(**asked))).status_code != 200:
                assert answer.status_code in (429, 503), answer.text
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.2)
        assert offsets(await all_of(http, **asked)) == before
