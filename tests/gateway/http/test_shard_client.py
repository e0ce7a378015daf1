"""Asking shards over their own HTTP: what they say, and every way in which they don't."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from solowire.backplane.messages import ShardAddress
from solowire.errors import RequestRejected
from solowire.gateway.http import shard_client as shards
from solowire.gateway.http.shard_client import ShardClient
from solowire.runtime.api_client import api_address


@asynccontextmanager
async def shard(
    status: int, body: Any, index: int = 0, asked: list[bytes] | None = None
) -> AsyncIterator[ShardAddress]:
    """A server that answers every request alike; with status 0 it takes connections and says nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(head)
        if not status:
            await reader.read()
        else:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            writer.write(b"HTTP/1.1 %d x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, len(raw)) + raw)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        api = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield ShardAddress(index, "192.0.2.1", 9, "boot", api)  # its client port is none of the gateway's business


@pytest.fixture
async def asking() -> AsyncIterator[ShardClient]:
    asking = ShardClient()
    yield asking
    await asking.close()


async def test_the_administrators_token_is_passed_on(asking: ShardClient) -> None:
    """The shard judges for itself who asks, and what for."""
    heads: list[bytes] = []
    async with shard(200, {"slowest": [{"user": "ann"}]}, asked=heads) as one:
        assert await asking.fetch_slowest(one, "a.b.c") == [{"user": "ann"}]
    assert b"Authorization: Bearer a.b.c" in heads[0] or b"authorization: Bearer a.b.c" in heads[0]
    assert heads[0].startswith(b"GET /stats ")


async def test_a_shard_is_asked_over_its_unix_socket(asking: ShardClient, tmp_path: Path) -> None:
    """Where it listens unless an operator says otherwise; and each is asked by connections of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 x\r\nconnection: close\r\ncontent-length: 24\r\n\r\n{"slowest": ["by unix"]}')
        await writer.drain()
        writer.close()

    path = tmp_path / "s0"
    async with await asyncio.start_unix_server(answer, path), shard(200, {"slowest": ["by tcp"]}, 1) as other:
        local = ShardAddress(0, "192.0.2.1", 9, "boot", api_address(path))
        assert await asking.fetch_slowest(local, "t") == ["by unix"]
        assert await asking.fetch_slowest(other, "t") == ["by tcp"]
        assert await asking.fetch_slowest(local, "t") == ["by unix"]


async def test_a_shard_that_cannot_answer_now_is_heard(asking: ShardClient) -> None:
    """Its own word goes to who asks, with when to come again; what is no word of its is told in the gateway's."""
    problem = {"code": "keys_unavailable", "detail": "the key is not known", "hint": "try again", "status": 503}
    async with shard(503, problem) as one, shard(503, b"<html>", 1) as other:
        for place, code in ((one, "keys_unavailable"), (other, "shard_unavailable")):
            with pytest.raises(RequestRejected) as refused:
                await asking.fetch_slowest(place, "t")
            assert (refused.value.status, refused.value.code, refused.value.retry_after) == (503, code, 1)


async def test_a_user_is_asked_for_at_its_shard_first_and_then_elsewhere(asking: ShardClient) -> None:
    """Others are only asked if the owner has no connection of the user, which may be about to move."""
    heads: list[bytes] = []
    none, here = {"code": "not_connected"}, {"connections": [{"session": "s"}]}
    async with shard(404, none) as owner, shard(404, none, 1) as second, shard(200, here, 2, heads) as third:
        assert await asking.fetch_user("a/b c", owner, [second, third], "t") == [{"session": "s"}]
        assert await asking.fetch_user("a/b c", third, [], "t") == [{"session": "s"}]
        with pytest.raises(RequestRejected) as refused:
            await asking.fetch_user("a/b c", owner, [second], "t")
    assert refused.value.status == 404
    assert heads[0].startswith(b"GET /stats/users/a%2Fb%20c ")


async def test_a_shard_that_might_have_the_user_is_not_taken_for_one_that_has_not(asking: ShardClient) -> None:
    """If nobody has the user and one couldn't be asked, the answer is that, and not "not connected"."""
    async with shard(404, {}) as owner, shard(500, b"oops", 1) as broken:
        with pytest.raises(RequestRejected) as refused:
            await asking.fetch_user("ann", owner, [broken], "t")
    assert (refused.value.status, refused.value.code) == (502, "shard_bad_response")


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff"])
async def test_what_is_no_answer_is_502(asking: ShardClient, body: bytes) -> None:
    """Another program in the shard's place is told as that."""
    async with shard(200, body) as one:
        with pytest.raises(RequestRejected) as refused:
            await asking.fetch_slowest(one, "t")
    assert (refused.value.status, refused.value.code) == (502, "shard_bad_response")


async def test_a_shard_that_is_away_is_503_and_one_that_is_stuck_504(
    asking: ShardClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a shard longer than set."""
    async with shard(200, {}) as one:
        gone = one
    with pytest.raises(RequestRejected) as refused:
        await asking.fetch_slowest(gone, "t")
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (503, "shard_unavailable", 1)
    monkeypatch.setattr(shards, "TIMEOUT_SECONDS", 0.1)
    impatient = ShardClient()
    async with shard(0, b"") as stuck:
        with pytest.raises(RequestRejected) as refused:
            await impatient.fetch_slowest(stuck, "t")
        await impatient.close()
    assert (refused.value.status, refused.value.code) == (504, "shard_timeout")
