"""HTTP as the load generators speak it: one reader of answers for all, and a light client in asyncio."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from bench.machine import HOST


class _Problem(msgspec.Struct):
    code: str = ""


@dataclass(frozen=True)
class Reply:
    """An answer. head: its status line and headers, in lower case."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        """'' if it is not there."""
        _, found, rest = self.head.partition(f"\r\n{name}:".encode())
        return rest.split(b"\r\n", 1)[0].strip().decode() if found else ""

    @property
    def retry_after(self) -> float:
        """Seconds; 0.0 if there is none."""
        try:
            return float(self.header("retry-after") or 0)
        except ValueError:
            return 0.0

    @property
    def code(self) -> str:
        """Of the problem that the body describes; "" if it is none."""
        try:
            return msgspec.json.decode(self.body, type=_Problem).code
        except msgspec.DecodeError:
            return ""

    def __str__(self) -> str:
        return f"{self.status}: {self.body[:300]!r}"


def parse_reply(received: bytes) -> tuple[Reply, bytes] | None:
    """The first answer and what stands behind it; None if it is not whole."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return None
    lowered = head.lower()
    length, at = 0, lowered.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(lowered[at + 17 :].split(b"\r\n", 1)[0])
    elif b"\r\ntransfer-encoding: chunked" in lowered:
        length = rest.find(b"0\r\n\r\n") + 5
        if length < 5:
            return None
    if len(rest) < length:
        return None
    return Reply(int(head.split(b" ", 2)[1]), lowered, rest[:length]), rest[length:]


def format_request(method: str, path: str, port: int, headers: str = "", body: bytes = b"") -> bytes:
    """headers: lines, each with its line end."""
    length = len(body)
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{headers}Content-Length: {length}\r\n\r\n".encode() + body
    )


def bearer(token: str) -> str:
    """The header that shows a token."""
    return f"Authorization: Bearer {token}\r\n"


class Rejected(Exception):
    """Not now: come again after `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what)
        self.seconds = seconds


class HttpClient:
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
        except OSError:
            self.close()
            raise

    async def _ask(self, method: str, path: str, token: str, body: bytes) -> Reply:
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        headers = f"{bearer(token)}Connection: {'keep-alive' if self._keep else 'close'}\r\n"
        writer.write(format_request(method, path, self._port, f"{headers}Content-Type: application/json\r\n", body))
        received = b""
        while (found := parse_reply(received)) is None:
            piece = await reader.read(65536)
            if not piece:
                raise ConnectionError("the server ended a connection in use")
            received += piece
        if not self._keep or found[0].header("connection") == "close":
            self.close()
        return found[0]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
