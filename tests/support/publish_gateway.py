"""A small gateway for tests of publishers, over real sockets, whose every answer a test chooses."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from ssl import SSLContext
from typing import Any

import msgspec

Reply = tuple[int, dict[str, str], Any]
Judge = Callable[[list[dict[str, Any]]], Reply | None]


CODES = {400: "invalid_events", 401: "invalid_token", 403: "forbidden", 404: "not_found", 413: "too_large"}


def problem(status: int, detail: str = "no", *, retry_after: str | None = None, **more: Any) -> Reply:
    """An answer of the gateway's own."""
    headers = {"content-type": "application/problem+json"}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    return status, headers, {"status": status, "code": CODES.get(status, "no"), "detail": detail, **more}


def page(status: int, **headers: str) -> Reply:
    """An answer of whatever stands in the gateway's place."""
    return status, {"content-type": "text/html", **headers}, b"<html>"


class Gateway:
    """Accepts what it gets, but answers `script` first, in turn (None: hangs up without an answer), then asks `judge`.

    log: the events that it accepted, each id once. requests: the ids of each request that had any. open:
    cleared, it doesn't answer.
    """

    def __init__(self) -> None:
        self.url = ""
        self.log: list[dict[str, Any]] = []
        self.requests: list[list[str]] = []
        self.tokens: list[str] = []
        self.times: list[float] = []
        self.script: deque[Reply | None] = deque()
        self.judge: Judge = lambda events: None
        self._serving: set[asyncio.Task[None]] = set()
        self.open = asyncio.Event()
        self.open.set()

    def accept(self, events: list[dict[str, Any]]) -> Reply:
        if not events:
            return problem(400, "there is no event in it", code="empty_request")
        known = {event["id"] for event in self.log}
        fresh = [event for event in events if event["id"] not in known]
        self.log += fresh
        answer = {"epoch": "e1", "first_offset": len(self.log) - len(fresh) + 1, "last_offset": len(self.log)}
        return 200, {}, answer | {"accepted": len(fresh), "duplicates": len(events) - len(fresh)}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                assert head.startswith(b"POST /v1/events ")
                lines = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                assert lines["content-type"] == "application/json"
                events = msgspec.json.decode(await reader.readexactly(int(lines["content-length"])))
                if events:
                    self.tokens.append(lines["authorization"].removeprefix("bearer "))
                    self.requests.append([event["id"] for event in events])
                    self.times.append(asyncio.get_running_loop().time())
                await self.open.wait()
                reply = self.script.popleft() if self.script else self.judge(events) or self.accept(events)
                if reply is None:
                    self.accept(events)  # the worst case: it was accepted, and nobody learns of it
                    break
                status, headers, content = reply
                body = content if isinstance(content, bytes) else msgspec.json.encode(content)
                headers = {"content-length": str(len(body)), **headers}
                writer.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode())
                writer.write("".join(f"{n}: {v}\r\n" for n, v in headers.items()).encode() + b"\r\n" + body)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # cancelled: by the end of the test
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    @property
    def values(self) -> list[int]:
        return [event["data"]["n"] for event in self.log]

    @asynccontextmanager
    async def running(self, tls: SSLContext | None = None) -> AsyncIterator[Gateway]:
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=2**24, ssl=tls) as server:
            scheme = "http" if tls is None else "https"
            self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            self.open.set()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def set_open(self) -> None:
        """Sets `open`, from another thread."""
        self._loop.call_soon_threadsafe(self.open.set)

    @contextmanager
    def running_in_thread(self) -> Iterator[Gateway]:
        """The same, for tests without an event loop; `script` and `judge` are set beforehand."""
        began, ended = threading.Event(), asyncio.Event()

        async def run() -> None:
            async with self.running():
                self._loop = asyncio.get_running_loop()
                began.set()
                await ended.wait()

        thread = threading.Thread(target=lambda: asyncio.run(run()), name="gateway")
        thread.start()
        try:
            assert began.wait(30)
            yield self
        finally:
            self._loop.call_soon_threadsafe(ended.set)
            thread.join()
