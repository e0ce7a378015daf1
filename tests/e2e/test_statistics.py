"""Statistics of a running system: the API, the event, and the table."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from solowire.algorithms.hash_ring import Ring
from tests.support.system import ANSWER_SECONDS, READY_SECONDS, System, end, open_session, ready, refusal, run, running

BIG = {"type": "custom.big", "data": {"text": "x" * 30_000}}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"ROUTER__STATS_INTERVAL_S": 0.5, "LISTEN__SEND_BUFFER_BYTES": 4096}
    with running(tmp_path_factory.mktemp("statistics") / "data", shards=2, settings=settings) as started:
        yield started


async def until(http: Any, path: str, condition: Any, seconds: float = ANSWER_SECONDS) -> Any:
    """What `path` answers when that satisfies `condition`."""
    body = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                answer = await http.get(path)
                body = answer.json()
                if answer.status_code == 200 and condition(body):
                    return body
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {path} answers {json.dumps(body)[:2000]}") from None


@asynccontextmanager
async def one_that_reads_nothing(system: System, user: str) -> AsyncIterator[None]:
    """A connection with more under way to it than the kernel holds."""
    async with system.session(system.token(user), {"subscriptions": ["custom.big"]}, max_queue=1):
        for _ in range(3):
            await system.publish(*[BIG] * 100)
        yield


async def test_what_the_gateways_refuse_is_in_the_totals(system: System) -> None:
    """Whom the gateway rejects is one more in `connections_rejected`, and in the last second's rate."""
    async with system.http(system.token("root")) as http, system.http(system.token("pub", "publisher")) as outside:
        before = (await http.get("/v1/stats")).json()["connections_rejected"]
        refused = 0
        async with asyncio.timeout(ANSWER_SECONDS):
            while refused < 10 or (await http.get("/v1/stats")).json()["connections_rejected_per_s"] < 1:
                assert (await outside.post("/v1/connect")).status_code == 403
                refused += 1
        await until(http, "/v1/stats", lambda s: s["connections_rejected"] == before + refused)


async def test_what_a_shard_refuses_is_in_its_numbers(system: System) -> None:
    """Whom a shard itself rejects is one more in its `connections_rejected`, and in the last second's rate."""

    def of_the_first(shards: Any) -> Any:
        return next(shard for shard in shards if shard["shard"] == 0)

    async with system.http(system.token("root")) as http:
        before = of_the_first((await http.get("/v1/stats/shards")).json())["connections_rejected"]
        refused = 0
        async with asyncio.timeout(ANSWER_SECONDS):
            while (
                not refused
                or not of_the_first((await http.get("/v1/stats/shards")).json())["connections_rejected_per_s"]
            ):
                await refusal(f"ws://127.0.0.1:{system.port + 1}/ws?ticket=no.such.ticket")
                refused += 1
        await until(
            http, "/v1/stats/shards", lambda shards: of_the_first(shards)["connections_rejected"] == before + refused
        )


async def test_totals_and_shards_tell_what_they_do(system: System) -> None:
    """Connections by group, codec and kind, rates, latency, memory and loop lag, in sum and for each shard."""
    users = [system.user_on(0, "told"), system.user_on(1, "told")]
    hello = {"subscriptions": ["custom.told"]}
    url = f"ws://127.0.0.1:{system.port}/ws?token={system.token(users[1], 'viewer')}"
    async with (
        system.http(system.token("root")) as http,
        system.session(system.token(users[0]), hello, subprotocols=["solowire.v1.msgpack"]) as one,
        open_session(url, subprotocols=["solowire.v1.json+deflate"]) as two,
    ):
        await two.say(type="hello", **hello)
        await two.hear("welcome")
        stop = asyncio.Event()

        async def publish() -> None:
            while not stop.is_set():
                await system.publish(*[{"type": "custom.told", "data": {}}] * 5)

        publishing = asyncio.create_task(publish())
        reading = [asyncio.create_task(s.events(10**6, 60)) for s in (one, two)]
        whole = await until(
            http,
            "/v1/stats",
            lambda s: s["deliveries_per_s"] > 0 and s["latency_s"]["p99"] and s["connections"] == 2,
        )
        shards = await until(
            http,
            "/v1/stats/shards",
            lambda all: all[1]["transports"] == {"relayed": 1} and None not in [s["latency_s"]["p99"] for s in all],
        )
        stop.set()
        for task in (publishing, *reading):
            task.cancel()
        await asyncio.gather(publishing, *reading, return_exceptions=True)
    assert whole["groups"] == {"admin": 1, "viewer": 1}
    assert whole["codecs"] == {"json+deflate": 1, "msgpack": 1}
    assert whole["transports"] == {"direct": 1, "relayed": 1}
    assert shards[0]["groups"] == {"admin": 1}
    assert shards[0]["transports"] == {"direct": 1}
    for numbers in (whole, *shards):
        assert (
            0
            < numbers["latency_s"]["p50"]
            <= numbers["latency_s"]["p95"]
            <= numbers["latency_s"]["p99"]
            < READY_SECONDS
        )
        assert min(numbers[name] for name in ("events_per_s", "deliveries_per_s", "frames_per_s")) > 0
        assert numbers["sent_bytes_per_s"] > numbers["deliveries_per_s"]
        assert numbers["memory_bytes"] > 10 * 2**20
        assert 0 <= numbers["event_loop_lag_s"] < READY_SECONDS
        assert numbers["log_bytes"] > 0
    assert whole["memory_bytes"] > shards[0]["memory_bytes"]


async def test_a_connection_that_reads_nothing_is_named(system: System) -> None:
    """It lags in the totals, grows old, and stands with its user among the slowest of its shard."""
    user = system.user_on(1, "sleepy")
    async with system.http(system.token("root")) as http, one_that_reads_nothing(system, user):
        whole = await until(http, "/v1/stats", lambda s: s["lagging"] == 1 and s["max_connection_lag_s"] > 0.5)
        one = await until(http, "/v1/stats/shards/1", lambda s: s["slowest"])
        own = await system.shard_stats(1)
        found = (await http.get(f"/v1/users/{user}")).json()
    assert whole["max_connection_lag_s"] < 60
    [slow] = one["slowest"]
    assert (slow["user"], slow["shard"], slow["transport"], slow["codec"]) == (user, 1, "direct", "json")
    assert slow["lag_offsets"] > 0
    assert slow["lag_s"] > 0.5
    assert slow["blocked_s"] > 0
    assert [s["session"] for s in own["slowest"]] == [slow["session"]]
    assert own.keys() >= {"ready", "latency_s", "groups", "events_per_s"}
    [connection] = found["connections"]
    assert (connection["session"], connection["subscriptions"]) == (slow["session"], ["custom.big"])


async def test_a_user_is_found_wherever_it_is(system: System) -> None:
    """One user's connection, or 404; a name with odd characters is the same user."""
    user = "ünï c?de %2F#"
    async with system.http(system.token("root")) as http, system.session(system.token(user), {"subscriptions": []}):
        path = "/v1/users/%C3%BCn%C3%AF%20c%3Fde%20%252F%23"
        found = (await http.get(path)).json()
        assert [c["user"] for c in found["connections"]] == [user]
        missing = await http.get("/v1/users/nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_connected")


@pytest.mark.parametrize("change", ["drained", "added"])
async def test_a_user_is_found_before_its_turn_to_move_comes(tmp_path: Path, change: str) -> None:
    """Until then a user is where it was, though another shard owns it: in the ring still, or out of it already."""
    count, index = (2, 1) if change == "drained" else (1, 0)  # the shard that they have to leave
    with running(tmp_path / "data", shards=count, settings={"SHARD__REBALANCE_USERS_PER_S": 0.001}) as system:
        ring = Ring(range(2))
        users = [user for n in range(100) if ring.owner(user := f"mover{n}") == 1][:2]
        async with (
            system.http(system.token("root")) as http,
            system.session(system.token(users[0]), {"subscriptions": []}) as one,
            system.session(system.token(users[1]), {"subscriptions": []}) as two,
        ):
            added = None
            if change == "drained":
                assert (await http.post("/v1/shards/1/drain")).status_code == 202
            else:
                added = system.spawn("shard", "--index", "1", "--port", str(system.port + 2))
            hearing = [asyncio.create_task(session.hear("reconnect")) for session in (one, two)]
            told, _ = await asyncio.wait(hearing, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            [waiting] = [user for user, task in zip(users, hearing, strict=True) if task not in told]
            try:
                found = await until(http, f"/v1/users/{waiting}", lambda body: body["connections"])
            finally:
                for task in hearing:
                    task.cancel()
                await asyncio.gather(*hearing, return_exceptions=True)
                if added is not None:
                    end(added)
        assert [(c["user"], c["shard"]) for c in found["connections"]] == [(waiting, index)]


async def test_a_user_is_found_while_the_router_is_away(system: System) -> None:
    """Only shards know their users, and the gateway knows the shards: a router that says nothing is not needed."""
    user, router = system.user_on(1, "known"), system.pid_of("router")
    async with system.http(system.token("root")) as http, system.session(system.token(user), {"subscriptions": []}):
        os.kill(router, signal.SIGSTOP)
        try:
            found = await http.get(f"/v1/users/{user}")
        finally:
            os.kill(router, signal.SIGCONT)
    assert [c["shard"] for c in found.json()["connections"]] == [1]


async def test_all_of_it_is_for_administrators(system: System) -> None:
    """Another role gets 403 from the gateway and from the shard."""
    token = system.token("ann", "operator")
    async with system.http(token) as gateway, system.api(0, token) as shard:
        for http, paths in (
            (gateway, ("/v1/stats", "/v1/stats/shards/0", "/v1/users/ann")),
            (shard, ("/stats", "/stats/users/ann")),
        ):
            for path in paths:
                answer = await http.get(path)
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path


async def test_a_shard_that_does_not_answer_is_told_by_the_router(system: System) -> None:
    """While it is stopped, what the router knows of it is there; one user of it is a problem with a way out."""
    user = system.user_on(1, "stopped")
    pid = system.pid_of("shard", "--index", "1")
    async with system.http(system.token("root")) as http:
        await until(http, "/v1/stats/shards/1", lambda shard: shard["memory_bytes"] > 0)
        os.kill(pid, signal.SIGSTOP)
        try:
            await system.publish({"type": "custom.unheard", "data": {}})
            paths = ("/v1/stats/shards/1", f"/v1/users/{user}", "/v1/stats")
            one, found, whole = await asyncio.gather(*map(http.get, paths))
        finally:
            os.kill(pid, signal.SIGCONT)
    assert one.status_code == 200
    assert (one.json()["shard"], one.json()["slowest"], one.json()["shard_error"]) == (1, None, "shard_timeout")
    assert one.json()["memory_bytes"] > 0
    assert one.json()["lag_offsets"] >= 1
    assert one.json()["inflight_events"] >= 1
    assert whole.json()["lag_offsets"] >= 1
    assert (found.status_code, found.json()["code"]) == (504, "shard_timeout")
    assert found.headers["retry-after"] == "1"
    system.wait_until(lambda: ready(f"http://127.0.0.1:{system.port + 2}"), "the shard is back in the ring")


async def test_administrators_may_subscribe_to_the_numbers(system: System) -> None:
    """`gateway_stats` comes by itself, for each shard and for all; others are denied it."""
    hello = {"subscriptions": ["gateway_stats"]}
    nodes: dict[str, Any] = {}
    async with system.session(system.token("ann", "operator"), hello) as other, asyncio.timeout(ANSWER_SECONDS):
        assert [d["type"] for d in other.welcome["denied"]] == ["gateway_stats"]
        while nodes.get("all", {}).get("groups", {}).get("operator") != 1:
            async with system.session(system.token("root"), hello) as admin:
                nodes = {e["key"]: e["data"] for e in await admin.events(3)}
    assert set(nodes) == {"shard 0", "shard 1", "all"}
    assert nodes["all"]["shards"] == 2
    assert nodes["all"]["memory_bytes"] > 20 * 2**20
    assert nodes["all"]["connections"] >= 1


def test_the_numbers_are_a_table(system: System) -> None:
    """`solowire stats` has rates, latency, memory and loop lag, with units."""
    done = run("stats", "--data-dir", str(system.data_dir), "--url", system.url, cwd=system.data_dir.parent)
    assert done.returncode == 0, done.stderr
    for wanted in ("per s", "p50", "p95", "p99", "lag", "memory", "MiB", "loop", "lease", "behind", "all"):
        assert wanted in done.stdout
