"""WebSocket frames (RFC 6455, section 5): ours as bytes, and a client's bytes as messages. No socket, no clock.

What it keeps true: no more is held of what a client sends than one message of MAX_MESSAGE_BYTES, one frame of that size
and what was read at a time, in however many frames it comes. A client's frames are parsed by `websockets`, but for the
one form that nearly all of them have.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the extension
    from websockets.utils import apply_mask

from solowire.client_protocol import MAX_MESSAGE_BYTES
from solowire.codes import CloseCode

FIN_TEXT, FIN_BINARY, FIN_CLOSE, FIN_PONG = 0x81, 0x82, 0x88, 0x8A
MASKED = 0x80
HEAD = 6
"""Bytes of a short client frame's head: two, and the mask."""
CONTROL_BYTES = 125
"""What a ping, a pong or a close may carry, also in the midst of a message."""
SHORT = 126
"""Lengths from here on have a longer head."""

Received = tuple[Opcode | CloseCode, str | bytes]
"""TEXT, BINARY, PING or CLOSE with what it carried (of a close its code alone: two bytes or none); or why the
connection has to be closed."""


def frame_of(payload: str | bytes) -> bytes:
    """A message of ours as one frame; str: text, bytes: binary. Built once for all who get it."""
    if isinstance(payload, str):
        return _frame(FIN_TEXT, payload.encode())
    return _frame(FIN_BINARY, payload)


def close_frame(code: int, reason: str) -> bytes:
    return _frame(FIN_CLOSE, struct.pack("!H", code) + reason.encode())


def close_answer(payload: str | bytes) -> bytes:
    """To a client's close, with its own code."""
    return _frame(FIN_CLOSE, payload if isinstance(payload, bytes) else b"")


def pong_frame(payload: str | bytes) -> bytes:
    return _frame(FIN_PONG, payload if isinstance(payload, bytes) else b"")


def _frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < SHORT:
        return bytes((head, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", head, 126, size) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


def whole_message(data: bytes) -> str | bytes | None:
    """The message, if `data` is exactly one short one in one frame; None if it is anything else.

    So nothing has to be kept, or made, for a connection that only ever says such things: a pong, a subscription.
    """
    size = len(data) - HEAD
    if not 0 <= size < SHORT or data[1] != MASKED | size:
        return None
    if data[0] == FIN_BINARY:
        return apply_mask(data[HEAD:], data[2:HEAD])
    if data[0] == FIN_TEXT:
        try:
            return apply_mask(data[HEAD:], data[2:HEAD]).decode()
        except UnicodeDecodeError:
            pass  # `Inbound` says what becomes of that
    return None


class Inbound:
    """The client's half of one connection, once it has sent anything but short messages, each in a read of its own.

    idle: how many frames have come that completed no message, since that was last set to 0.
    """

    __slots__ = ("_found", "_parser", "_reader", "idle")

    def __init__(self) -> None:
        self.idle = 0
        self._reader = StreamReader()
        self._found: list[Received] = []
        self._parser = self._parse()

    def feed(self, data: bytes) -> list[Received]:
        """What is complete now, in its order. Behind a close, or a fault, there is nothing more to be had."""
        self._reader.feed_data(data)
        try:
            next(self._parser, None)
        except PayloadTooBig:
            self._found.append((CloseCode.too_big, b""))
        except (ProtocolError, UnicodeDecodeError):
            self._found.append((CloseCode.bad_protocol, b""))
        found, self._found = self._found, []
        return found

    def _parse(self) -> Generator[None, None, None]:
        kind: Opcode | None = None  # of the message whose fragments are being gathered
        whole = bytearray()
        while True:
            left = MAX_MESSAGE_BYTES - len(whole)
            frame = yield from Frame.parse(self._reader.read_exact, mask=True, max_size=max(left, CONTROL_BYTES))
            data = bytes(frame.data)
            if frame.opcode is Opcode.CLOSE:
                Close.parse(data)
                self._found.append((Opcode.CLOSE, data[:2]))
                return
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                self.idle += 1
                if frame.opcode is Opcode.PING:  # a pong is asked of nobody
                    self._found.append((Opcode.PING, data))
                continue
            if (kind is None) == (frame.opcode is Opcode.CONT):
                raise ProtocolError("a continuation of nothing, or a message within another")
            if len(data) > left:
                raise PayloadTooBig(len(data), left)
            kind = kind or frame.opcode
            whole += data
            if frame.fin:
                self._found.append((kind, whole.decode() if kind is Opcode.TEXT else bytes(whole)))
                kind, whole = None, bytearray()
            else:
                self.idle += 1
