"""Commands that follow something outlive a gateway that is away, or what stands in its place meanwhile, and say so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.system import READY_SECONDS, environment, running


class Door:
    """A port in front of a gateway's. While it `is_shut`, it answers as an ingress without a server does."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.is_shut = False
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()

    def shut(self) -> None:
        self.is_shut = True
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.is_shut:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>")
                await writer.drain()
                return
            back, forth = await asyncio.open_connection("127.0.0.1", self._port)
            self._open |= {writer, forth}
            await asyncio.gather(_pass_on(reader, forth), _pass_on(back, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Door]:
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            self.shut()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


class Command:
    """A running `solowire …`. out, err: what it has said until now."""

    def __init__(self, place: Path, name: str) -> None:
        self._files = place / f"{name}.out", place / f"{name}.err"
        self.process: asyncio.subprocess.Process

    async def start(self, *arguments: str) -> Command:
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "solowire", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=environment({}) | {"PYTHONUNBUFFERED": "1"},
            )
        return self

    async def feed(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"type": "custom.patience", "data": {"n": number}}).encode() + b"\n")
        await self.process.stdin.drain()

    @property
    def out(self) -> list[str]:
        return self._files[0].read_text().splitlines()

    @property
    def err(self) -> str:
        return self._files[1].read_text()


async def until(condition: Callable[[], object], what: str, *commands: Command) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not condition():
                assert all(command.process.returncode is None for command in commands), [c.err for c in commands]
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not in time: {what}: {[(c.out[-3:], c.err) for c in commands]}") from None


async def test_what_follows_something_waits_for_its_gateway(tmp_path: Path) -> None:
    """`tail`, `stats --watch`, `publish -` and `drain` go on after 404s of an ingress, lose nothing and say both."""
    with running(tmp_path / "data", shards=2, settings={"SHARD__REBALANCE_USERS_PER_S": 0.001}) as system:
        async with Door(system.port).opened() as door:
            where = ["--data-dir", str(system.data_dir), "--url", door.url]
            admin = [*where, "--token", system.token(system.user_on(0))]
            tail = await Command(tmp_path, "tail").start("tail", "custom.patience", "--json", *admin)
            stats = await Command(tmp_path, "stats").start("stats", "--watch", "--json", *where)
            feeder = await Command(tmp_path, "feeder").start("publish", "-", *where)
            started = [tail, stats, feeder]
            try:
                await until(lambda: "connected as" in tail.err and stats.out, "they are connected", *started)
                await feeder.feed(1)
                await until(lambda: len(tail.out) == 1, "the first event comes", *started)
                async with system.session(system.token(system.user_on(1)), {"subscriptions": []}):
                    drain = await Command(tmp_path, "drain").start("drain", "1", *where)
                    started.append(drain)
                    await until(lambda: "users to go" in "".join(drain.out), "it is drained", *started)
                    door.shut()
                    os.kill(system.pid_of("shard", "--index", "0"), signal.SIGKILL)
                    await feeder.feed(2)
                    await until(lambda: f"not connected to {door.url} (" in tail.err, "tail says so", *started)
                    await until(lambda: "404" in stats.err and "trying on" in stats.err, "stats says so", *started)
                    await until(lambda: "not published yet" in feeder.err, "the feeder says so", *started)
                    await until(lambda: "trying on" in drain.err, "drain says so", *started)
                    lines = len(stats.out)
                    door.is_shut = False
                    going = [tail, stats, feeder]  # drain may be done as soon as it is answered
                    await until(lambda: len(tail.out) == 2 and "connected again" in tail.err, "tail goes on", *going)
                    await until(lambda: len(stats.out) > lines and "answers again" in stats.err, "stats do", *going)
                assert feeder.process.stdin is not None
                feeder.process.stdin.close()
                assert await asyncio.wait_for(feeder.process.wait(), READY_SECONDS) == 0
                assert feeder.out == ["2 published, 0 duplicates, 0 refused"]
                assert await asyncio.wait_for(drain.process.wait(), READY_SECONDS) == 0
                assert drain.out[-1] == "shard 1 is gone"
            finally:
                for command in started:
                    if command.process.returncode is None:
                        command.process.kill()
                        await command.process.wait()


async def test_a_token_file_is_read_again_when_another_token_is_needed(tmp_path: Path) -> None:
    """The feeder outlives its token: it says what it waits for until another one stands in the file, and loses nothing.

    So does one whose file is gone meanwhile.
    """
    with running(tmp_path / "data", shards=1) as system:
        place = tmp_path / "token"
        place.write_text(system.token("ns1", "publisher", jti="first"))
        where = ["--url", system.url, "--token-file", str(place)]
        feeder = await Command(tmp_path, "feeder").start("publish", "-", *where)
        admin = ["--url", system.url, "--token", system.token("root")]
        tail = await Command(tmp_path, "tail").start("tail", "custom.patience", "--json", *admin)
        try:
            await until(lambda: "connected as" in tail.err, "it is connected", tail)
            await feeder.feed(1)
            await until(lambda: len(tail.out) == 1, "the first event comes", tail, feeder)
            revoke = await Command(tmp_path, "revoke").start("revoke", "--jti", "first", *admin)
            assert await asyncio.wait_for(revoke.process.wait(), READY_SECONDS) == 0, revoke.err
            await feeder.feed(2)
            await until(lambda: "has been revoked" in feeder.err, "it says so", feeder)
            place.unlink()
            await until(lambda: "No such file" in feeder.err, "it says that, too", feeder)
            place.write_text(system.token("ns1", "publisher"))
            await until(lambda: len(tail.out) == 2 and "answers again" in feeder.err, "it goes on", tail, feeder)
            assert feeder.process.stdin is not None
            feeder.process.stdin.close()
            assert await asyncio.wait_for(feeder.process.wait(), READY_SECONDS) == 0
            assert feeder.out == ["2 published, 0 duplicates, 0 refused"]
        finally:
            for command in (feeder, tail):
                if command.process.returncode is None:
                    command.process.kill()
                    await command.process.wait()
