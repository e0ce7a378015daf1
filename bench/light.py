"""The client's end of a WebSocket, as light as asyncio has it: for load generators with hundreds of them."""

from __future__ import annotations

import asyncio
from typing import cast
from urllib.parse import urlsplit

import msgspec

from bench.posts import Reply, head_of
from bench.receiver import TEXT, client_frame, upgrade
from bench.solowire_system import JSON

EVENTS_PREFIX = b'{"type":"events"'
PONG = client_frame(b'{"type":"pong"}')
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA


class Said(msgspec.Struct):
    """Any message of the server but events, as far as these clients care."""

    type: str
    id: int | str | None = None
    epoch: str = ""
    cursor: int | None = None
    resumed: bool = False
    reason: str | None = None
    after_ms: int = 0
    code: str = ""


decode_said = msgspec.json.Decoder(Said).decode


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

    def strange(self, why: str) -> None:
        """A frame that this client does not read; nothing more is read."""
        self.closed(1003, why)

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
        self.write(upgrade(self.url.port or 80, f"{self.url.path}?{self.url.query}", JSON))

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
        if opcode == _CLOSE:
            code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
            self.closed(code, payload[2:].decode(errors="replace"))
            self.abort()
        elif opcode == _PING:
            self.write(client_frame(payload, _PONG))
        elif head == 0x80 | TEXT:
            self.message(payload)
        else:
            self.strange("a fragmented or binary frame, which this client does not read")
            self.abort()
