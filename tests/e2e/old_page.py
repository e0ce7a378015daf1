"""The deployed page of the old frontend, played: its timings, its parsing, its way of coming back, and its faults.

It opens one socket, says nothing, and reads. After 1000 it comes back in 0.06 s with its newest token and one set of
handlers; after anything else in 5 s with the token that it first had, and one set of handlers more. `speed` is by how
much its clock runs faster than ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.domains.dns.legacy.page import PageCrash, read_frame

AT_ONCE_SECONDS = 0.06
LATER_SECONDS = 5.0
REFUSED = 1006


class TokenStore:
    """What the tabs of one browser share: the newest token."""

    def __init__(self, token: str) -> None:
        self.newest = token


class Stay:
    """One connection of a page. Times are `time.monotonic`. code: what ended it, None while it lasts."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.ended_at = float("inf")
        self.code: int | None = None
        self.frames: list[dict[str, Any]] = []

    def ids(self) -> list[str]:
        """The events that came, in their order."""
        return [frame["id"] for frame in self.frames if "id" in frame]


class OldPage:
    """One tab. path: with the type. origin: of the page, as browsers send it."""

    def __init__(
        self, port: int, tokens: TokenStore, *, path: str = "/api/websocket/ws/admin", speed: float = 1.0
    ) -> None:
        self.handlers = 1
        self.stays: list[Stay] = []
        self.attempts: list[float] = []
        self.codes: list[int] = []
        self.refusals: list[int] = []
        self.crash: PageCrash | None = None
        self._first = tokens.newest
        self._tokens = tokens
        self._port = port
        self._path = path
        self._speed = speed
        self._socket: Any = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return bool(self.stays) and self.stays[-1].code is None

    def load(self) -> None:
        """The page is opened."""
        self._task = asyncio.create_task(self._run())

    async def unload(self) -> None:
        """The tab is closed: browsers close its sockets, and nothing comes back."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        token = self._first
        while self.crash is None:
            code = await self._connect(token)
            self.codes.append(code)
            if code == 1000:
                self.handlers, token = 1, self._tokens.newest
                await asyncio.sleep(AT_ONCE_SECONDS / self._speed)
            else:
                self.handlers, token = self.handlers + 1, self._first
                await asyncio.sleep(LATER_SECONDS / self._speed)

    async def _connect(self, token: str) -> int:
        """One attempt and what comes of it; the close code."""
        self.attempts.append(time.monotonic())
        url = f"ws://127.0.0.1:{self._port}{self._path}?token={token}"
        agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
        try:
            socket = await connect(
                url,
                origin=f"http://127.0.0.1:{self._port}",  # type: ignore[arg-type]
                user_agent_header=agent,
                compression=None,
                ping_interval=None,
                proxy=None,
                close_timeout=1,
                open_timeout=30,
            )
        except InvalidHandshake as refused:
            response = getattr(refused, "response", None)
            self.refusals.append(response.status_code if response is not None else 0)
            return REFUSED
        except (OSError, TimeoutError, EOFError):
            self.refusals.append(0)
            return REFUSED
        stay = Stay()
        self.stays.append(stay)
        try:
            async with socket:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        stay.frames.append(read_frame(await socket.recv()))
        except PageCrash as crash:
            self.crash = crash
        finally:
            stay.ended_at = time.monotonic()
            stay.code = socket.close_code or REFUSED
        return stay.code


async def until(condition: Any, what: str, seconds: float = 60.0) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
