"""The light client of the load generators reads what a server may send, however TCP cuts it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench.http_client import Reply
from bench.ws_client import WsClient

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
REFUSED = b'HTTP/1.1 503 No\r\nRetry-After: 2\r\nContent-Length: 21\r\n\r\n{"code":"over_limit"}'
LONG = b"x" * 70_000


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


class Told(WsClient):
    def __init__(self) -> None:
        super().__init__("ws://127.0.0.1:1/ws?ticket=t")
        self.told: list[Any] = []
        self.end = Transport()
        self.connection_made(self.end)

    def on_open(self) -> None:
        self.told.append("opened")

    def on_refusal(self, reply: Reply) -> None:
        self.told.append(reply)

    def on_message(self, payload: bytes) -> None:
        self.told.append(payload)

    def on_close(self, code: int, reason: str) -> None:
        self.told.append((code, reason))


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """As a server sends it, unmasked."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8) + payload


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_frames_are_whole_however_they_come(piece: int) -> None:
    """Messages of all three lengths, a ping and a close frame are told once, in order, whatever each read brings."""
    stream = ACCEPTED + frame(b"short") + frame(b"y" * 200) + frame(b"?", 9) + frame(LONG)
    stream += frame((4413).to_bytes(2) + b"too slow", 8) + frame(b"after the end")
    client = Told()
    for at in range(0, len(stream), piece):
        client.data_received(stream[at : at + piece])
    assert client.told == ["opened", b"short", b"y" * 200, LONG, (4413, "too slow")]
    assert client.end.written[1:] == [b"\x8a\x81\0\0\0\0?"]  # the pong, after the request
    assert client.end.aborted


def test_a_refusal_is_told_with_its_code_and_when_to_come_back() -> None:
    """An answer other than 101 comes as one reply, when its body is whole; nothing is opened."""
    client = Told()
    for at in range(len(REFUSED)):
        assert client.told == []
        client.data_received(REFUSED[at : at + 1])
    [reply] = client.told
    assert (reply.status, reply.code, reply.retry_after) == (503, "over_limit", 2.0)
    assert client.end.aborted


def test_what_it_does_not_read_ends_the_connection() -> None:
    """A fragmented or binary frame is told as the end, rather than taken for a message."""
    client = Told()
    client.data_received(ACCEPTED + b"\x01\x01a" + frame(b"b"))
    assert client.told[0] == "opened"
    assert client.told[1][0] == 1003
    assert len(client.told) == 2
