"""The client's end of a WebSocket, as light as asyncio has it: for load generators with hundreds of them."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import cast
from urllib.parse import urlsplit

from bench.posts import Reply, head_of
from bench.receivers import CLOSE, PING, TEXT, client_frame

PONG = client_frame(b'{"type":"pong"}')


class LightSocket(asyncio.Protocol):
    """One WebSocket to `url`, without compression, in JSON. A subclass says what is to happen, in the methods below."""

    def __init__(self, url: str) -> None:
        self.url = urlsplit(url)
        self.transport: asyncio.Transport | None = None
        self._tail = b""
        self._upgraded = False
        self._ignore = False

    # ------------------------------------------------------------------------------------------ for subclasses

    def opened(self) -> None:
        """The server has accepted."""

    def refused(self, reply: Reply) -> None:
        """The server has answered with another status than 101."""

    def message(self, payload: bytes) -> None:
        """One text message."""

    def closed(self, code: int, reason: str) -> None:
        """A close frame has come; nothing more is read."""

    def lost(self) -> None:
        """The TCP connection has ended, however it did. Always called, and last."""

    # ------------------------------------------------------------------------------------------ what it does

    def write(self, frame: bytes) -> None:
        if self.transport is not None:
            self.transport.write(frame)

    def abort(self) -> None:
        self._ignore = True
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        key = base64.b64encode(os.urandom(16)).decode()
        self.write(
            f"GET {self.url.path}?{self.url.query} HTTP/1.1\r\nHost: {self.url.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: solowire.v1.json\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost()

    def data_received(self, data: bytes) -> None:
        if self._ignore:
            return
        data = self._tail + data if self._tail else data
        position = 0 if self._upgraded else self._upgrade(data)
        end = len(data)
        while self._upgraded and not self._ignore and end - position >= 2:
            length, start = data[position + 1], position + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[position + 2 : start])
            if start + length > end:
                break
            self._frame(data[position], data[start : start + length])
            position = start + length
        self._tail = data[position:]

    def _upgrade(self, data: bytes) -> int:
        """Where the frames begin; 0 if the answer is not whole, or is none that opens."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return 0
        status, headers = head_of(data[:end])
        if status == 101:
            self._upgraded = True
            self.opened()
            return end
        if len(data) - end >= int(headers.get("content-length", "0")):
            self.refused(Reply(status, headers, data[end:]))
            self.abort()
        return 0

    def _frame(self, head: int, payload: bytes) -> None:
        opcode = head & 0x0F
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
            self.closed(code, payload[2:].decode(errors="replace"))
            self.abort()
        elif opcode == PING:
            self.write(client_frame(payload, 0xA))
        elif head == 0x80 | TEXT:
            self.message(payload)
        else:
            self.closed(1003, "a fragmented or binary frame, which this client does not read")
            self.abort()
