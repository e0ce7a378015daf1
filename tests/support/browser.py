"""A real browser: Debian's Chromium without a window, spoken to by its DevTools protocol, ended with its block."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.support.requirements import need_program

START_S = 60.0
ANSWER_S = 60.0
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


class Browser:
    """`async with Browser(dir) as browser:`. dir: for its profile, and for what it says."""

    def __init__(self, dir: Path) -> None:
        self._profile = dir / "profile"
        self._output = dir / "chromium.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._tabs: list[Tab] = []
        self._url = ""

    async def __aenter__(self) -> Browser:
        process = self._process = self._start()
        place = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while not (place.exists() and place.read_text().strip()):
            assert process.poll() is None, self._output.read_text()
            assert time.monotonic() < deadline, self._output.read_text()
            await asyncio.sleep(0.05)
        self._url = f"http://127.0.0.1:{place.read_text().split()[0]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tab in self._tabs:
            await tab.close()
        assert self._process is not None
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)

    def _start(self) -> subprocess.Popen[bytes]:
        options = [f"--user-data-dir={self._profile}", "--remote-debugging-port=0", "--no-proxy-server"]
        with self._output.open("wb") as output:
            command = [need_program("chromium"), *_FLAGS, *options, "about:blank"]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    async def open_tab(self, url: str) -> Tab:
        """A new tab with a page, which may not be loaded yet."""
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as http:
            made = (await http.put(f"{self._url}/json/new?{url}")).json()
        socket = await connect(made["webSocketDebuggerUrl"], proxy=None, max_size=None, compression=None)
        self._tabs.append(Tab(socket))
        return self._tabs[-1]


class Tab:
    """One page."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def evaluate(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page. Raises AssertionError for what the page throws."""
        number = next(self._numbers)
        parameters = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        message = {"id": number, "method": "Runtime.evaluate", "params": parameters}
        await self._socket.send(json.dumps(message))
        async with asyncio.timeout(ANSWER_S):
            while (answer := json.loads(await self._socket.recv())).get("id") != number:
                pass
        result = answer["result"]
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def wait_until(self, condition: str, seconds: float = ANSWER_S) -> None:
        """Waits until an expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not await self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"{condition}: {await self.evaluate('JSON.stringify(window.life)')}"
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends what is said to it; the page goes with its browser."""
        await self._socket.close()
