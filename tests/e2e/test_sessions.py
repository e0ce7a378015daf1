"""A session on the connection: what a client says, what it is answered, and what it then gets, and what not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.system import ANSWER_SECONDS, Session, System, open_session, refusal, running

MSGPACK = "solowire.v1.msgpack"
CUSTOM = {"subscriptions": ["custom.*"]}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that warns early, refuses duplicates, and whose events of low priority wait for a minute."""
    settings = {
        "SESSION__EXPIRY_NOTICE_S": 4,
        "SHARD__FLUSH__LOW_MS": 60_000,
        "SHARD__FLUSH__PER_CONNECTION_MS": 60_000,
        "SESSION__ON_DUPLICATE": "reject",
    }
    with running(tmp_path_factory.mktemp("quick") / "data", shards=1, settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that waits neither for a hello nor, for long, for pongs."""
    settings = {"SESSION__HELLO_TIMEOUT_S": 0.3, "SESSION__HEARTBEAT_INTERVAL_S": 2}
    with running(tmp_path_factory.mktemp("impatient") / "data", shards=1, settings=settings) as started:
        yield started


def custom(name: str, **data: Any) -> dict[str, Any]:
    return {"type": f"custom.{name}", "data": data}


def record(zone: str, **data: Any) -> dict[str, Any]:
    return {"type": "record_created", "data": {"zone": zone, "name": f"www.{zone}", "type": "A", **data}}


QUERY = {
    "type": "dns_query_log",
    "data": {"client_ip": "192.0.2.7", "query_domain": "www.example.com", "query_type": "A", "tsig_key": "k", "x": 1},
}
SYSTEM_ALERT = {"type": "system_alert", "data": {"severity": "high", "message": "disk"}}


async def until(session: Session, type: str) -> list[dict[str, Any]]:
    """All events up to and with the first of `type`: what comes before a marker that was published last."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != type:
        found += (await session.hear("events"))["events"]
    return found


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# ------------------------------------------------------------------------------------------------- hello, welcome


async def test_welcome_says_all_that_a_client_needs(system: System) -> None:
    """Who opens a connection is told who they are, where they stand, what they get, and how to behave."""
    token = system.token("welcome", "operator", ttl=600)
    negotiated = await system.negotiate(token)
    async with open_session(negotiated["url"]) as session:
        welcome = await session.ask("welcome", type="hello", id="h1", subscriptions=["custom.*", "zone_created"])
    expires = welcome.pop("token_expires_at")
    assert welcome.pop("session")
    assert welcome.pop("cursor") >= 0
    assert welcome == {
        "type": "welcome",
        "id": "h1",
        "user": "welcome",
        "role": "operator",
        "epoch": negotiated["epoch"],
        "resumed": False,
        "reason": None,
        "subscriptions": ["custom.*", "zone_created"],
        "denied": [],
        "heartbeat_s": 25,
        "reconnect": {"min_ms": 500, "max_ms": 20_000},
    }
    assert expires.endswith("Z")
    in_seconds = time.mktime(time.strptime(expires, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time()
    assert 500 < in_seconds <= 600


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_without_a_hello_the_defaults_of_the_role_apply(impatient: System, role: str) -> None:
    """A client that says nothing gets what its role usually wants, and what it may not see is not in it."""
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        catalog = (await http.get(f"{impatient.url}/v1/catalog")).json()["types"]
    everything = {t["name"] for t in catalog}
    secret = {t["name"] for t in catalog if t["permission"] in ("admin.read", "audit.read", "users.read")}
    assert {"system_alert", "audit_log", "user_login"} <= secret
    async with impatient.session(impatient.token(f"silent-{role}", role)) as session:
        welcome = await session.hear("welcome")
        assert set(welcome["subscriptions"]) == (everything if role == "admin" else everything - secret)
        assert welcome["denied"] == []
        error = await session.ask("error", type="hello", id=1)
        assert (error["code"], error["id"]) == ("duplicate_hello", 1)


async def test_a_second_hello_is_an_error_and_the_connection_goes_on(system: System) -> None:
    """Who says hello twice is told so, and gets its events all the same."""
    async with system.session(system.token("twice"), CUSTOM) as session:
        error = await session.ask("error", type="hello", id=7, subscriptions=["dns.*"])
        assert (error["code"], error["id"]) == ("duplicate_hello", 7)
        assert error["message"]
        assert "subscribe" in error["hint"]
        await system.publish(custom("twice", n=1))
        [event] = await session.events(1)
        assert event["data"] == {"n": 1}


async def test_nothing_but_ping_is_answered_before_hello(system: System) -> None:
    """A client that subscribes before it says hello is told to say hello first, and then may."""
    async with system.session(system.token("early")) as session:
        error = await session.ask("error", type="subscribe", id="s", event_types=["custom.*"])
        assert (error["code"], error["id"]) == ("hello_required", "s")
        assert (await session.ask("pong", type="ping", id="p"))["id"] == "p"
        assert (await session.ask("welcome", type="hello", subscriptions=[]))["subscriptions"] == []


# ---------------------------------------------------------------------------------------------------- subscriptions


async def test_subscribe_and_unsubscribe_are_confirmed(system: System) -> None:
    """Each change of subscriptions is answered with what is now in force, and with the id that was asked with."""
    async with system.session(system.token("confirm"), {"subscriptions": []}) as session:
        answer = await session.ask(
            "subscriptions", type="subscribe", id="a", event_types=["custom.one", "zone_created"]
        )
        assert answer == {
            "type": "subscriptions",
            "id": "a",
            "subscriptions": ["custom.one", "zone_created"],
            "denied": [],
        }
        await system.publish(custom("one", n=1), custom("two", n=2), custom("one", n=3))
        assert [e["data"]["n"] for e in await session.events(2)] == [1, 3]
        answer = await session.ask("subscriptions", type="unsubscribe", id=5, event_types=["custom.one"])
        assert (answer["id"], answer["subscriptions"]) == (5, ["zone_created"])
        await session.ask("subscriptions", type="subscribe", event_types=["custom.end"])
        await system.publish(custom("one", n=4), custom("end"))
        assert types(await until(session, "custom.end")) == ["custom.end"]


async def test_what_is_denied_is_named_with_its_reason(system: System) -> None:
    """Who asks for what it may not have, or what there isn't, is told which and why; the rest is granted."""
    async with system.session(system.token("denied", "viewer"), {"subscriptions": []}) as session:
        answer = await session.ask(
            "subscriptions",
            type="subscribe",
            id="d",
            event_types=["no_such_type", "system_alert", "audit.*", "zone_created", "security.*"],
        )
        assert {d["type"]: d["reason"] for d in answer["denied"]} == {
            "no_such_type": "unknown_type",
            "system_alert": "forbidden",
            "audit.*": "forbidden",
        }
        assert {"zone_created", "security_alert", "rpz_hit"} <= set(answer["subscriptions"])
        answer = await session.ask(
            "subscriptions", type="subscribe", event_types=["dns_query_log"], filter={"client_ip": ["192.0.2.7"]}
        )
        assert {d["type"]: d["reason"] for d in answer["denied"]}["dns_query_log"] == "filter"
        assert "dns_query_log" not in answer["subscriptions"]
        error = await session.ask("error", type="subscribe", id=1, event_types=["dns.*"], filter={"colour": ["red"]})
        assert (error["code"], error["id"]) == ("invalid_filter", 1)


async def test_a_filter_by_zone_takes_the_zone_and_what_lies_beneath(system: System) -> None:
    """A filter by zone lets through the zone and its children, not its namesakes, whatever the case."""
    hello = {"subscriptions": ["record_created", "custom.end"], "filter": {"zone": ["Example.COM."]}}
    async with system.session(system.token("filter"), hello) as session:
        await system.publish(
            record("example.com"),
            record("notexample.com"),
            record("SUB.example.com."),
            record("example.org"),
            custom("end"),
            custom("end", zone="deep.down.example.com"),
        )
        found = await until(session, "custom.end")
    assert [e["data"]["zone"] for e in found] == ["example.com", "SUB.example.com.", "deep.down.example.com"]


async def test_a_hello_may_have_a_filter_for_each_type(system: System) -> None:
    """A hundred types with one filter each fit one hello; the common one is for the others; wrong ones are told."""
    own = {f"custom.own{n}": {"topic": [str(n)]} for n in range(100)}
    hello = {"subscriptions": ["custom.shared", *own], "filter": {"topic": ["shared"]}, "filters": own}
    async with system.session(system.token("many-filters"), hello) as session:
        assert session.welcome["subscriptions"] == sorted(hello["subscriptions"])
        names = ["custom.own7", "custom.own99", "custom.shared"]
        topics = ("7", "99", "shared")
        await system.publish(*({"type": name, "data": {"topic": topic}} for name in names for topic in topics))
        received = [(e["type"], e["data"]["topic"]) for e in await session.events(3)]
        assert received == list(zip(names, topics, strict=True))
    async with open_session((await system.negotiate(system.token("wrong-filters")))["url"]) as session:
        await session.say(type="hello", id=1, subscriptions=["custom.a"], filters={"custom.b": {}})
        error = await session.hear("error")
        assert (error["id"], error["code"]) == (1, "invalid_filter")
        assert "custom.b" in error["message"]
        assert (await session.ask("welcome", type="hello", subscriptions=["custom.a"]))["denied"] == []


async def test_the_scopes_of_a_token_narrow_what_is_seen(system: System) -> None:
    """A token for one zone shows that zone alone, and no filter widens it."""
    token = system.token("scoped", "viewer", scopes={"zones": ["mine.example"]})
    async with system.session(token, {"subscriptions": ["record_created", "custom.*"]}) as session:
        await system.publish(
            record("mine.example"), record("yours.example"), custom("no-zone"), custom("end", zone="a.mine.example")
        )
        assert types(await until(session, "custom.end")) == ["record_created", "custom.end"]
        wider = {"zone": ["yours.example", "mine.example"]}
        await session.ask("subscriptions", type="subscribe", event_types=["record_created"], filter=wider)
        await system.publish(record("yours.example"), record("b.mine.example"), custom("end", zone="mine.example"))
        found = await until(session, "custom.end")
        assert [e["data"]["zone"] for e in found] == ["b.mine.example", "mine.example"]


async def test_each_role_sees_what_is_its_own(system: System) -> None:
    """A viewer sees no client address and no administrators' event; an operator sees the one, an admin both."""
    hello = {"subscriptions": ["dns_query_log", "system_alert", "custom.end"]}
    async with (
        system.session(system.token("as-viewer", "viewer"), hello) as viewer,
        system.session(system.token("as-operator", "operator"), hello) as operator,
        system.session(system.token("as-admin", "admin"), hello) as admin,
    ):
        await system.publish(QUERY, SYSTEM_ALERT, custom("end"))
        [seen, _] = await until(viewer, "custom.end")
        [whole, _] = await until(operator, "custom.end")
        assert types(await until(admin, "custom.end")) == ["dns_query_log", "system_alert", "custom.end"]
        for session in (viewer, operator):
            assert [d["type"] for d in session.welcome["denied"]] == ["system_alert"]
    assert seen["data"] == {"query_domain": "www.example.com", "query_type": "A"}
    assert whole["data"] == QUERY["data"]
    assert seen["offset"] == whole["offset"]


async def test_an_event_for_one_user_reaches_that_user_alone(system: System) -> None:
    """A personal event arrives at its user, not at a neighbour on the shard, and never comes to the other shard."""
    neighbours = [u for u in (f"personal{i}" for i in range(100)) if u in _owned_by(system, 0)][:2]
    me, neighbour, stranger = *neighbours, system.user_on(1, "stranger")
    async with (
        system.session(system.token(me), CUSTOM) as mine,
        system.session(system.token(neighbour), CUSTOM) as theirs,
        system.session(system.token(stranger), CUSTOM) as far,
    ):
        await system.publish(custom("begin"))  # behind all that was published before
        for session in (mine, theirs, far):
            await until(session, "custom.begin")
        before = [await _shard_stats(system, shard) for shard in (0, 1)]
        await system.publish({**custom("personal", n=1), "user": me}, custom("end"))
        [personal, _] = await until(mine, "custom.end")
        assert (personal["type"], personal["user"], personal["data"]) == ("custom.personal", me, {"n": 1})
        assert types(await until(theirs, "custom.end")) == ["custom.end"]
        assert types(await until(far, "custom.end")) == ["custom.end"]
        after = [await _shard_stats(system, shard) for shard in (0, 1)]
    assert [a["events"] - b["events"] for a, b in zip(after, before, strict=True)] == [2, 1]


def _owned_by(system: System, shard: int) -> set[str]:
    from solowire.algorithms.hash_ring import Ring

    ring = Ring(range(system.shards))
    return {u for u in (f"personal{i}" for i in range(100)) if ring.owner(u) == shard}


async def _shard_stats(system: System, shard: int) -> dict[str, Any]:
    return await system.shard_stats(shard)


# --------------------------------------------------------------------------------------------------------- codecs


async def test_messagepack_and_json_carry_the_same(system: System) -> None:
    """The same events arrive in JSON and in MessagePack, redacted or whole, with the same everything."""
    hello = {"subscriptions": ["dns_query_log", "custom.*"]}
    deep = {"list": [1, -2, 2**63, 0.5, None, True, "ü\u0000€😀"], "map": {"": {}, "a": [[]]}}
    for role in ("viewer", "admin"):
        async with (
            system.session(system.token(f"text-{role}", role), hello) as text,
            system.session(system.token(f"pack-{role}", role), hello, subprotocols=[MSGPACK]) as pack,
        ):
            assert text.socket.subprotocol is None
            assert pack.socket.subprotocol == MSGPACK
            assert text.welcome.keys() == pack.welcome.keys()
            await system.publish(
                QUERY, {**custom("deep", **deep), "key": "k", "source": "s", "correlation_id": "c"}, custom("end")
            )
            one, two = await until(text, "custom.end"), await until(pack, "custom.end")
            assert one == two
            assert one[1]["data"] == deep
            assert (await pack.ask("pong", type="ping", id=3))["id"] == 3


async def test_the_first_subprotocol_that_both_speak_is_taken(system: System) -> None:
    """A client may offer what we don't speak beside what we do; without any of ours it is refused with 400."""
    token = system.token("offers")
    async with system.session(token, CUSTOM, subprotocols=["graphql-ws", "solowire.v1.json", MSGPACK]) as session:
        assert session.socket.subprotocol == "solowire.v1.json"
    url = (await system.negotiate(token))["url"]
    status, problem = await refusal(url, subprotocols=["graphql-ws"])
    assert (status, problem["code"]) == (400, "unsupported_subprotocol")
    assert MSGPACK in problem["hint"]
    async with open_session(url) as session:  # the refusal did not use the ticket up
        assert await session.ask("welcome", type="hello")


# ---------------------------------------------------------------------------------------- one connection per user


async def test_a_newer_connection_replaces_the_older(system: System) -> None:
    """Opening a second tab ends the first with 4409, whichever way each of them came."""
    token = system.token("tabs")
    relayed = f"ws://127.0.0.1:{system.port}/ws?token={token}"
    async with system.session(token, CUSTOM) as first, system.session(token, CUSTOM) as second:
        assert await first.closed() == (4409, "replaced by a newer connection")
        async with open_session(relayed) as third:
            await third.ask("welcome", type="hello", **CUSTOM)
            assert await second.closed() == (4409, "replaced by a newer connection")
            async with system.session(token, CUSTOM) as fourth:
                assert await third.closed() == (4409, "replaced by a newer connection")
                await system.publish(custom("tabs"))
                assert types(await fourth.events(1)) == ["custom.tabs"]


async def test_a_newer_connection_is_refused_where_that_is_set(quick: System) -> None:
    """Where it is set to reject, the first tab stays, the second gets 409, a third may come when the first is gone."""
    token = quick.token("rejected")
    relayed = f"ws://127.0.0.1:{quick.port}/ws?token={token}"
    async with quick.session(token, CUSTOM) as first:
        for url in ((await quick.negotiate(token))["url"], relayed):
            status, problem = await refusal(url)
            assert (status, problem["code"]) == (409, "duplicate_connection")
        assert await first.ask("pong", type="ping")
    # The shard learns of a close a moment after the client, and refuses until then.
    async with asyncio.timeout(ANSWER_SECONDS):
        while not await _may_come(quick, token):
            await asyncio.sleep(0.02)


async def _may_come(system: System, token: str) -> bool:
    try:
        async with system.session(token, CUSTOM):
            return True
    except InvalidStatus:
        return False


async def test_of_many_that_come_at_once_one_stays_where_duplicates_are_refused(quick: System) -> None:
    """Ten tabs that open in the same moment under `on_duplicate` = reject leave one open and none replaced."""
    token = quick.token("crowd")
    urls = [(await quick.negotiate(token))["url"] for _ in range(10)]

    async def attempt(url: str) -> str:
        try:
            async with open_session(url) as session:
                await session.ask("welcome", type="hello")
                async with asyncio.timeout(ANSWER_SECONDS):
                    await all_done.wait()
                await session.ask("pong", type="ping")
                return "stays"
        except InvalidStatus as refused:
            return str(refused.response.status_code)
        except ConnectionClosed as closed:
            return f"closed {closed}"
        finally:
            ended.append(url)
            if len(ended) == len(urls) - 1:
                all_done.set()

    ended: list[str] = []
    all_done = asyncio.Event()
    outcomes = await asyncio.gather(*map(attempt, urls))
    assert sorted(outcomes) == ["409"] * 9 + ["stays"]


# ------------------------------------------------------------------------------------------------------ priorities


async def test_critical_events_wait_for_nothing(quick: System) -> None:
    """A critical event arrives at once and takes along what of low priority was waiting, in the order of offsets."""
    async with quick.session(quick.token("urgent"), {"subscriptions": ["custom.*"]}) as session:
        await quick.publish({**custom("first", n=0), "priority": "low"})
        [first] = await session.events(1)  # the first after a silence has nothing to wait for
        accepted = await quick.publish(*({**custom("low", n=n), "priority": "low"} for n in range(3)))
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                about = (await session.ask("reply", type="stats"))["data"]
                if about["position"] >= accepted["last_offset"]:
                    break
                await asyncio.sleep(0.05)  # more often would be too many messages
        assert first["offset"] <= about["cursor"] < accepted["first_offset"]  # the shard has them, and lets them wait
        await quick.publish({**custom("critical", n=3), "priority": "critical"})
        frame = await session.hear("events")
    assert [e["data"]["n"] for e in frame["events"]] == [0, 1, 2, 3]
    assert [e["priority"] for e in frame["events"]] == ["low", "low", "low", "critical"]
    assert frame["cursor"] >= frame["events"][-1]["offset"] == accepted["last_offset"] + 1


# --------------------------------------------------------------------------------------------------------- tokens


async def test_a_refreshed_token_grants_more(system: System) -> None:
    """After a refresh with more rights, what was denied before arrives, with all its fields."""
    hello = {"subscriptions": ["system_alert", "dns_query_log", "custom.*"]}
    async with system.session(system.token("promoted", "viewer"), hello) as session:
        assert [d["type"] for d in session.welcome["denied"]] == ["system_alert"]
        reply = await session.ask("reply", type="refresh", id="r", token=system.token("promoted", "admin", ttl=900))
        assert reply["id"] == "r"
        assert reply["data"]["token_expires_at"].endswith("Z")
        now_in_force = await session.hear("subscriptions")
        assert "system_alert" in now_in_force["subscriptions"]
        assert now_in_force["denied"] == []
        await system.publish(SYSTEM_ALERT, QUERY)
        found = await until(session, "dns_query_log")
    assert types(found) == ["system_alert", "dns_query_log"]
    assert found[1]["data"] == QUERY["data"]


async def test_a_refreshed_token_grants_less_at_once(system: System) -> None:
    """After a refresh with fewer rights, what may not be seen any more stops, at once and without reconnecting."""
    hello = {"subscriptions": ["system_alert", "dns_query_log", "custom.*"]}
    async with system.session(system.token("demoted", "admin"), hello) as session:
        await system.publish(SYSTEM_ALERT)
        assert types(await session.events(1)) == ["system_alert"]
        less = system.token("demoted", "viewer", scopes={"zones": ["example.com"]})
        await session.ask("reply", type="refresh", token=less)
        now_in_force = await session.hear("subscriptions")
        assert now_in_force["subscriptions"] == ["custom.*", "dns_query_log"]
        assert [(d["type"], d["reason"]) for d in now_in_force["denied"]] == [("system_alert", "forbidden")]
        await system.publish(SYSTEM_ALERT, custom("elsewhere", zone="x.org"), QUERY, custom("end", zone="example.com"))
        found = await until(session, "custom.end")
    assert types(found) == ["dns_query_log", "custom.end"]
    assert "client_ip" not in found[0]["data"]


async def test_a_refresh_that_proves_nothing_changes_nothing(system: System) -> None:
    """Another user's token, an expired one and garbage are errors with the id, and the connection goes on as it was."""
    async with system.session(system.token("steady", "viewer"), CUSTOM) as session:
        for token, code in (
            (system.token("someone-else", "admin"), "wrong_user"),
            (system.token("steady", "admin", ttl=-1), "token_expired"),
            (system.token("steady", "admin")[:-4] + "AAAA", "invalid_token"),
            ("garbage", "invalid_token"),
            ("", "missing_token"),
        ):
            error = await session.ask("error", type="refresh", id=code, token=token)
            assert (error["code"], error["id"]) == (code, code)
        answer = await session.ask("subscriptions", type="subscribe", event_types=["system_alert"])
        assert [d["reason"] for d in answer["denied"]] == ["forbidden"]
        assert answer["subscriptions"] == ["custom.*"]


async def test_an_expiring_token_is_announced_and_then_ends_the_connection(quick: System) -> None:
    """A client is told before its token expires, and closed with 4401 if it doesn't refresh."""
    async with quick.session(quick.token("expiring", ttl=5), CUSTOM) as session:
        notice = await session.hear("notice")
        assert notice["code"] == "token_expiring"
        assert "refresh" in notice["message"]
        assert (await session.closed())[0] == 4401


async def test_a_refresh_keeps_the_connection_past_the_first_expiry(quick: System) -> None:
    """A client that refreshes when told lives on after its first token's expiry, and is not warned again."""
    expiry = time.time() + 5
    async with quick.session(quick.token("kept", exp=expiry), CUSTOM) as session:
        await session.hear("notice")
        await session.say(type="refresh", token=quick.token("kept", ttl=600))
        await asyncio.sleep(expiry + 0.3 - time.time())  # the time is the point
        await session.say(type="ping")
        seen = []
        while (message := await session.hear())["type"] != "pong":
            seen.append(message["type"])
        assert "notice" not in seen


# --------------------------------------------------------------------------------------------- heartbeat, ping, stats


async def test_a_client_that_answers_no_ping_is_closed(impatient: System) -> None:
    """The server pings; who answers stays, and who doesn't is closed with 4408."""
    async with (
        impatient.session(impatient.token("alive")) as alive,
        impatient.session(impatient.token("silent")) as silent,
    ):
        ping = await alive.hear("ping")
        assert ping["time"] == pytest.approx(time.time(), abs=ANSWER_SECONDS)
        await alive.say(type="pong", time=ping["time"])
        closed = asyncio.ensure_future(silent.closed())
        while not closed.done():
            await alive.hear("ping")
            await alive.say(type="pong")
        assert await closed == (4408, "no answer to heartbeats")
        assert await alive.ask("pong", type="ping")


async def test_ping_and_stats_are_answered_with_their_id(system: System) -> None:
    """A client can ask whether the line lives, and where it stands."""
    async with system.session(system.token("asks"), CUSTOM) as session:
        pong = await session.ask("pong", type="ping", id="p-1")
        assert pong["id"] == "p-1"
        assert pong["time"] == pytest.approx(time.time(), abs=ANSWER_SECONDS)
        await system.publish(custom("asks"))
        [event] = await session.events(1)
        reply = await session.ask("reply", type="stats", id=99)
        assert reply["id"] == 99
        about = reply["data"]
        assert about["session"] == session.welcome["session"]
        assert about["subscriptions"] == ["custom.*"]
        assert about["position"] >= about["cursor"] >= event["offset"]


# --------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("subprotocols", [None, [MSGPACK]])
async def test_who_comes_back_gets_exactly_what_it_missed(system: System, subprotocols: list[Any] | None) -> None:
    """A client that shows its cursor gets all that it missed, its personal events too, in order and once."""
    user = f"back-{'pack' if subprotocols else 'text'}"
    token = system.token(user)
    async with system.session(token, CUSTOM, subprotocols=subprotocols) as session:
        await system.publish(custom("seen", n=0))
        frame = await session.hear("events")
    epoch, cursor = session.welcome["epoch"], frame["cursor"]
    await system.publish(
        custom("missed", n=1),
        {**custom("missed", n=2), "user": user},
        {**custom("missed", n=-1), "user": "another"},
        record("example.com"),
        custom("missed", n=3),
    )
    hello = {**CUSTOM, "resume": {"epoch": epoch, "cursor": cursor}}
    async with system.session(token, hello, subprotocols=subprotocols) as session:
        assert (session.welcome["resumed"], session.welcome["cursor"]) == (True, cursor)
        missed = await session.events(3)
        assert [e["data"]["n"] for e in missed] == [1, 2, 3]
        await system.publish(custom("live", n=4))
        assert [e["data"]["n"] for e in await session.events(1)] == [4]


async def test_resuming_from_the_same_cursor_twice_gives_the_same(system: System) -> None:
    """A cursor is a place, not a queue: who shows it again gets the same again."""
    token = system.token("again")
    async with system.session(token, CUSTOM) as session:
        resume = {"epoch": session.welcome["epoch"], "cursor": session.welcome["cursor"]}
        await system.publish(custom("again", n=1), custom("again", n=2))
        first = await session.events(2)
    async with system.session(token, {**CUSTOM, "resume": resume}) as session:
        assert await session.events(2) == first


async def test_a_cursor_that_means_nothing_is_answered_plainly(system: System) -> None:
    """A cursor of the future or of another epoch is not resumed, says why, and live events come all the same."""
    token = system.token("lost")
    async with system.session(token, CUSTOM) as session:
        epoch, cursor = session.welcome["epoch"], session.welcome["cursor"]
    for resume, reason in (
        ({"epoch": epoch, "cursor": cursor + 10_000_000}, "future"),
        ({"epoch": epoch, "cursor": 2**63 - 1}, "future"),
        ({"epoch": "another", "cursor": cursor}, "epoch"),
        ({"epoch": "", "cursor": 0}, "epoch"),
    ):
        async with system.session(token, {**CUSTOM, "resume": resume}) as session:
            assert (session.welcome["resumed"], session.welcome["reason"]) == (False, reason)
            assert session.welcome["cursor"] >= cursor
            await system.publish(custom("lost", n=1))
            assert types(await session.events(1)) == ["custom.lost"]


@pytest.mark.parametrize("cursor", [-1, 2**63, 2**200, 1.5, "12", None, [], True])
async def test_a_cursor_that_is_none_is_an_error(system: System, cursor: object) -> None:
    """A cursor that is no offset is refused with the id of the hello, and a right hello is taken after it."""
    async with system.session(system.token("nonsense")) as session:
        error = await session.ask("error", type="hello", id="h", resume={"epoch": "e", "cursor": cursor})
        assert error["code"] == "invalid_message"
        assert await session.ask("welcome", type="hello")


# ---------------------------------------------------------------------------------------------------- state types


async def test_a_new_client_gets_the_current_value_of_each_state(system: System) -> None:
    """Who connects sees the newest value of each thing at once, none of the older, and nothing of other users."""

    def metrics(host: str, cpu: float, **more: Any) -> dict[str, Any]:
        return {"type": "system_metrics", "data": {"host": host, "cpu_usage": cpu}, **more}

    token = system.token("newcomer")
    async with system.session(token, {"subscriptions": ["system_metrics"], "filter": {"host": ["state-z"]}}) as before:
        await system.publish(
            metrics("state-a", 1),
            metrics("state-b", 2),
            metrics("state-a", 3),
            metrics("state-a", 4, user="another"),
            metrics("state-c", 5, user="newcomer"),
            metrics("state-z", 6),
        )
        await before.events(1)  # so the shard has all of them
    hello = {
        "subscriptions": ["system_metrics", "custom.*"],
        "filter": {"host": ["state-a", "state-b", "state-c"]},
    }
    async with system.session(token, hello) as session:
        assert session.welcome["resumed"] is False
        frame = await session.hear("events")
        assert [(e["data"]["host"], e["data"]["cpu_usage"]) for e in frame["events"]] == [
            ("state-b", 2),
            ("state-a", 3),
            ("state-c", 5),
        ]
        assert frame["cursor"] >= session.welcome["cursor"]
        await system.publish(metrics("state-b", 7))
        assert [e["data"]["cpu_usage"] for e in await session.events(1)] == [7]
