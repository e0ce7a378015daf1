"""The subprotocols with `+deflate`, through all processes and real sockets, read by the SDK and by zlib alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

from solowire.sdk.client import Client
from tests.e2e.test_slow_readers import BUFFER_BYTES, everything, query, reader
from tests.support.system import System, open_session, refusal, running

CUSTOM = {"subscriptions": ["custom.*"]}
Name = Literal["json", "msgpack"]
codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


def plain(codec: str) -> list[Any]:
    return [f"solowire.v1.{codec}"]


def packed(codec: str) -> list[Any]:
    return [f"solowire.v1.{codec}+deflate"]


def several(name: str, count: int, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    data = [{"n": n, "zone": "é.example", "x": "x" * 100} for n in range(first, first + count)]
    return [{"type": f"custom.{name}", "data": d, **more} for d in data]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with small buffers, so that who doesn't read is soon behind."""
    settings = {"LISTEN__SEND_BUFFER_BYTES": BUFFER_BYTES, "SESSION__HEARTBEAT_INTERVAL_S": 60}
    with running(tmp_path_factory.mktemp("small") / "data", shards=1, settings=settings) as started:
        yield started


@codecs
async def test_plain_and_compressed_see_the_same(system: System, codec: Name) -> None:
    """Of two on one topic, who asked for compression has the same events at the same offsets, in compressed frames."""
    hello = {"subscriptions": [f"custom.same{codec}"]}  # not what the test before has sent, and a shard gets late
    async with (
        system.session(system.token(f"plain-{codec}"), hello, subprotocols=plain(codec)) as one,
        system.session(system.token(f"packed-{codec}"), hello, subprotocols=packed(codec)) as other,
    ):
        assert other.socket.subprotocol == packed(codec)[0]
        for part in range(5):
            await system.publish(*several(f"same{codec}", 20, part * 20))
        seen = await one.events(100)
        assert await other.events(100) == seen
        assert [e["data"]["n"] for e in seen] == list(range(100))
        assert one.compressed == 0
        assert other.compressed > 0
        await other.say(type="ping", id=1)
        assert (await other.hear("pong"))["id"] == 1


@codecs
async def test_who_comes_back_gets_what_it_missed(system: System, codec: Name) -> None:
    """A cursor of a compressed connection is resumed, its user's own events too, in order and once."""
    user = f"deflated-{codec}"
    async with system.session(system.token(user), CUSTOM, subprotocols=packed(codec)) as session:
        await system.publish(*several("seen", 5))
        cursor = -1
        seen: list[Any] = []
        while len(seen) < 5:
            frame = await session.hear("events")
            seen += frame["events"]
            cursor = frame["cursor"]
    await system.publish(*several("missed", 20), *several("missed", 1, 20, user=user), *several("missed", 20, 21))
    hello = {**CUSTOM, "resume": {"epoch": session.welcome["epoch"], "cursor": cursor}}
    async with (
        system.session(system.token(user), hello, subprotocols=packed(codec)) as session,
        system.session(system.token(f"{user}-2"), hello, subprotocols=plain(codec)) as other,
    ):
        assert session.welcome["resumed"]
        missed = await session.events(41)
        assert [e["data"]["n"] for e in missed] == list(range(41))
        # The other user has all but the event that was for the first alone.
        assert await other.events(40) == [e for e in missed if e["data"]["n"] != 20]
        await system.publish(*several("live", 20))
        assert [e["data"]["n"] for e in await session.events(20)] == list(range(20))
        assert session.compressed > 0


@codecs
async def test_a_slow_reader_is_compacted_as_others_are(small: System, codec: Name) -> None:
    """Compacted frames come compressed; every durable event is in them, and what was left out is counted."""

    def incompressible(n: int) -> str:
        return "".join(chr(0x100 + (n * 7919 + k * k * 31 + k * 4099) % 0xC000) for k in range(1500))

    wanted = {"subscriptions": ["custom.*", "dns_query_log"]}
    async with reader(small, f"slow-{codec}", subprotocols=packed(codec), **wanted) as session:
        for part in range(30):
            await small.publish(
                *(query(n, filler=incompressible(part * 10 + n)) for n in range(10)),
                *({"type": "custom.slow", "data": {"n": part * 2 + n, "x": incompressible(n)}} for n in (0, 1)),
            )
        await small.publish({"type": "custom.slow", "data": {"n": 60}, "id": f"the last of {codec}"})
        events, notices, left_out = await everything(session, f"the last of {codec}")
        assert [(n["code"], n["active"]) for n in notices] == [("slow_consumer", True)]
        assert [e["data"]["n"] for e in events if e["type"] == "custom.slow"] == list(range(61))
        sent = [e for e in events if e["type"] == "dns_query_log"]
        assert len(sent) + left_out["dns_query_log"] == 300
        assert left_out["dns_query_log"] > 0
        assert session.compressed > 0


@codecs
async def test_the_sdk_sees_what_others_see(system: System, codec: Name) -> None:
    """`Client(compress=True)` has the events of a plain session, before a lost connection and after it."""
    wanted: dict[str, Any] = {"subscriptions": ["custom.*"], "codec": codec, "compress": True}
    async with (
        system.session(system.token(f"beside-{codec}"), CUSTOM) as beside,
        Client(system.url, system.token(f"sdk-{codec}"), **wanted) as client,
    ):
        assert client._socket is not None
        assert client._socket.subprotocol == packed(codec)[0]
        await system.publish(*several("sdk", 100))
        seen = [await anext(client) for _ in range(50)]
        client._socket.transport.abort()
        await system.publish(*several("sdk", 100, 100))
        seen += [await anext(client) for _ in range(150)]
        assert (client.connections, client.gaps, client.undecodable) == (2, 0, 0)
        others = await beside.events(200)
    assert [(e.offset, e.id, e.data) for e in seen] == [(e["offset"], e["id"], e["data"]) for e in others]


async def test_the_relay_carries_it(system: System) -> None:
    """A compressed frame passes the gateway as it is."""
    url = f"ws://127.0.0.1:{system.port}/ws?token={system.token('carried')}"
    async with open_session(url, subprotocols=packed("msgpack")) as session:
        await session.ask("welcome", type="hello", **CUSTOM)
        await system.publish(*several("carried", 30))
        assert [e["data"]["n"] for e in await session.events(30)] == list(range(30))
        assert session.compressed > 0


@pytest.mark.parametrize(
    "name", ["solowire.v1.json+gzip", "solowire.v1.json+deflate+deflate", "solowire.v1.cbor+deflate"]
)
async def test_an_unknown_suffix_is_refused(system: System, name: str) -> None:
    """What is not spoken here is refused before the upgrade, and the answer names all that is."""
    url = (await system.negotiate(system.token("suffix")))["url"]
    status, problem = await refusal(url, subprotocols=[name])
    assert (status, problem["code"]) == (400, "unsupported_subprotocol")
    for codec in ("json", "msgpack"):
        assert f"solowire.v1.{codec}+deflate" in problem["hint"]
