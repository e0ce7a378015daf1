"""HTTP as the load generators speak it in asyncio: a POST that costs little, and what a refusal says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from bench.machine import HOST


class Later(Exception):
    """Refused for now: come again after `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what)
        self.seconds = seconds


class _Problem(msgspec.Struct):
    code: str = ""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def retry_after(self) -> float:
        """Seconds; 0.0 if there is none."""
        try:
            return float(self.headers.get("retry-after", "0"))
        except ValueError:
            return 0.0

    @property
    def code(self) -> str:
        """Of the problem that the body describes; "" if it is none."""
        try:
            return msgspec.json.decode(self.body, type=_Problem).code
        except msgspec.DecodeError:
            return ""


def head_of(head: bytes) -> tuple[int, dict[str, str]]:
    """An answer's status and its headers, in lower case."""
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}


class Line:
    """A connection to one port of this machine, opened when it is needed. keep: for more than one request."""

    def __init__(self, port: int, *, keep: bool = True) -> None:
        self._port = port
        self._keep = keep
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, token: str, body: bytes = b"", timeout_s: float = 15.0) -> Reply:
        """Raises OSError (TimeoutError included) if there is no answer; the connection is opened again then."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(method, path, token, body)
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionError("the server ended a connection in use") from error
        except OSError:
            self.close()
            raise

    async def _ask(self, method: str, path: str, token: str, body: bytes) -> Reply:
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{self._port}\r\nAuthorization: Bearer {token}\r\n"
            f"Connection: {'keep-alive' if self._keep else 'close'}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        status, headers = head_of(await reader.readuntil(b"\r\n\r\n"))
        answer = await reader.readexactly(int(headers.get("content-length", "0")))
        if not self._keep or headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status, headers, answer)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
