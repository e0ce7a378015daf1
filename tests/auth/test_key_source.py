"""Reading a provider's keys: bounded in time, size and number, and what was read stays good while nothing comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.auth import key_source
from solowire.auth.key_source import KeySource
from solowire.auth.keys import PublicKeys
from tests.support.jwks_server import JwksServer, SigningKey

FIRST, SECOND = SigningKey("ES256", "first"), SigningKey("ES256", "second")
DEADLINE = 20.0


@pytest.fixture
def server() -> Iterator[JwksServer]:
    with JwksServer(FIRST) as made:
        yield made


class Reader:
    """A source, and what it has given."""

    def __init__(self, place: str, refresh_s: float = 3600.0, stale_s: float = 3600.0) -> None:
        self.given: list[PublicKeys | None] = []
        self.source = KeySource(place, self.given.append, refresh_s=refresh_s, stale_s=stale_s)

    async def __aenter__(self) -> Reader:
        self.source.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.source.close()

    @property
    def ids(self) -> list[list[str] | None]:
        return [None if keys is None else keys.ids for keys in self.given]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_keys_are_read_and_read_again(server: JwksServer) -> None:
    """What has not changed is not given again; what has is."""
    async with Reader(server.url, refresh_s=0.1) as reader:
        await until(lambda: len(server.fetches) >= 3)
        assert reader.ids == [["first"]]
        server.document = {"keys": [SECOND.jwk()]}
        await until(lambda: len(reader.given) == 2)
        assert reader.ids == [["first"], ["second"]]
        assert reader.source.key_count == 1


@pytest.mark.parametrize("fault", ["status", "redirect", "html", "empty", "large", "gzip", "gone"])
async def test_what_is_no_set_leaves_the_keys_in_use(server: JwksServer, fault: str) -> None:
    """Whatever else comes, or nothing: the keys of before stay, it is tried again, and found again."""
    async with Reader(server.url, refresh_s=0.05) as reader:
        await until(lambda: reader.given)
        if fault == "status":
            server.status = 500
        elif fault == "redirect":
            server.status, server.headers = 302, {"location": "http://127.0.0.1:1/"}
        elif fault == "html":
            server.body = b"<html>"
        elif fault == "empty":
            server.document = {"keys": []}
        elif fault == "large":
            server.body = b" " * key_source.MAX_BYTES + json.dumps(server.document).encode()
        elif fault == "gzip":
            server.headers, server.body = {"content-encoding": "gzip"}, b"\x1f\x8b" + b"x" * 100
        else:
            server.delay_s, key_source_seconds = 0.3, 0.1
            reader.source._fetch_seconds = key_source_seconds
        await until(lambda: reader.source.failed_count >= 2)
        assert reader.source.is_failing
        assert reader.ids == [["first"]]
        server.status, server.body, server.headers, server.delay_s = 200, None, {}, 0.0
        server.document = {"keys": [SECOND.jwk()]}
        await until(lambda: len(reader.given) == 2)
        assert reader.ids == [["first"], ["second"]]
        assert not reader.source.is_failing


async def test_keys_that_are_too_old_are_none(server: JwksServer) -> None:
    """For a while they are used without being read; then nobody is believed, until they are read again."""
    async with Reader(server.url, refresh_s=0.05, stale_s=0.5) as reader:
        await until(lambda: reader.given)
        server.status = 503
        await until(lambda: reader.ids == [["first"], None])
        server.status = 200
        await until(lambda: reader.ids == [["first"], None, ["first"]])


async def test_a_key_that_is_not_known_is_worth_one_fetch(server: JwksServer) -> None:
    """All who show one wait for the same, and those of the next seconds for none."""
    async with Reader(server.url) as reader:
        await until(lambda: reader.given)
        server.document = {"keys": [SECOND.jwk()]}
        assert await asyncio.gather(*(reader.source.wait_for_refresh() for _ in range(100))) == [None] * 100
        assert reader.ids == [["first"], ["second"]]
        assert len(server.fetches) == 2
        waits = await asyncio.gather(*(reader.source.wait_for_refresh() for _ in range(100)))
        assert all(wait is not None and 1 <= wait <= key_source.UNKNOWN_KEY_SECONDS for wait in waits)
        assert len(server.fetches) == 2


async def test_a_set_that_was_asked_for_before_a_token_came_says_nothing_of_its_key(server: JwksServer) -> None:
    """The provider may have changed it since: who comes while it is on its way is told to come again."""
    async with Reader(server.url) as reader:
        await until(lambda: reader.given)
        server.delay_s = 0.3
        first = asyncio.create_task(reader.source.wait_for_refresh())
        await until(lambda: len(server.fetches) == 2)
        late = asyncio.create_task(reader.source.wait_for_refresh())
        assert await first is None
        assert await late is not None


async def test_a_key_that_is_not_known_while_the_provider_is_away(server: JwksServer) -> None:
    """Nobody can know whether it is a new one: they are told when to come again, and then it is known."""
    async with Reader(server.url) as reader:
        await until(lambda: reader.given)
        server.status = 503
        wait = await reader.source.wait_for_refresh()
        assert wait is not None
        assert wait >= 1
        server.status = 200
        await until(lambda: not reader.source.is_failing)
        assert reader.ids == [["first"]]


async def test_an_outage_is_told_once_a_minute_and_with_each_new_reason(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks at the log an hour later sees what is wrong now."""
    async with Reader(server.url, refresh_s=0.01) as reader:
        await until(lambda: reader.given)
        monkeypatch.setattr(reader.source, "_warnings", WarningPace(0.5))
        with structlog.testing.capture_logs() as lines:
            server.status = 503
            await until(lambda: len([line for line in lines if "503" in line["reason"]]) >= 2)
            server.status, server.body = 200, b"<html>"
            await until(lambda: any("not JSON" in line["reason"] for line in lines))
            assert {line["event"] for line in lines} == {"keys_unavailable"}


async def test_too_many_do_not_wait(server: JwksServer) -> None:
    """More than so many are told at once to come again."""
    async with Reader(server.url) as reader:
        await until(lambda: reader.given)
        server.delay_s = 0.5
        waits = await asyncio.gather(*(reader.source.wait_for_refresh() for _ in range(key_source.MAX_WAITING + 5)))
        assert waits.count(None) == key_source.MAX_WAITING


async def test_the_loop_waits_for_nothing(server: JwksServer) -> None:
    """While an answer is slow to come and large to take apart everything else goes on."""
    server.delay_s = 0.5
    keys = [SigningKey("ES256", f"k{n}").jwk() for n in range(90)]
    server.document = {"keys": keys}
    loop = asyncio.get_running_loop()
    async with Reader(server.url) as reader:
        ticks = 0
        while not reader.given:
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 100
        assert loop.time() > 0
        assert len(reader.given[0] or ()) == 90


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not there, a folder, or what is too large are faults as any; what comes later is taken."""
    monkeypatch.setattr(key_source, "FILE_SECONDS", 0.05)
    place = tmp_path / "keys.json"
    async with Reader(str(place)) as reader:
        await until(lambda: reader.source.failed_count)
        place.write_text(json.dumps({"keys": [FIRST.jwk()]}))
        await until(lambda: reader.given)
        failed = reader.source.failed_count
        place.write_bytes(b"x" * (key_source.MAX_BYTES + 1))
        await until(lambda: reader.source.failed_count > failed)
        place.unlink()
        place.mkdir()
        failed = reader.source.failed_count
        await until(lambda: reader.source.failed_count > failed)
        assert reader.ids == [["first"]]


async def test_it_closes_in_the_midst_of_a_fetch(server: JwksServer) -> None:
    """Nobody waits for a provider that takes its time when a process ends."""
    server.delay_s = 3.0
    began = time.monotonic()
    async with Reader(server.url):
        await until(lambda: server.fetches)
    assert time.monotonic() - began < 2.5
