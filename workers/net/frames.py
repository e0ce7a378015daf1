"""WebSocket frames (RFC 6455, section 5): ours as bytes, and a client's bytes as messages. No socket, no clock.

What it keeps true: no more is held of what a client sends than one message of MAX_MESSAGE_BYTES, a control frame and
what was read at a time, in however many frames it comes. Whatever breaks the protocol ends it with the code that RFC
6455 gives: 1002 for frames, 1007 for text that is not UTF-8, 1009 for a message that is too big, each as soon as it can
be known.
"""

from __future__ import annotations

import codecs
import struct
import sys

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the extension
    from websockets.utils import apply_mask

from solowire.protocol.close_codes import CloseCode
from solowire.protocol.dialect_codec import TextBatch
from solowire.protocol.messages import MAX_MESSAGE_BYTES

FIN_TEXT, FIN_BINARY, FIN_CLOSE, FIN_PING, FIN_PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
MASKED = 0x80
HEAD = 6
"""Bytes of a short client frame's head: two, and the mask."""
CONTROL_BYTES = 125
"""What a ping, a pong or a close may carry, also in the midst of a message."""
SHORT = 126
"""Lengths from here on have a longer head."""

Received = tuple[Opcode | CloseCode, str | bytes]
"""TEXT, BINARY, PING, PONG or CLOSE with what it carried (of a close its code alone: two bytes or none); or why the
connection has to be closed."""

PING_FRAME = bytes((FIN_PING, 0))
"""Every WebSocket library, browsers' included, answers it by itself: so whoever does speaks the protocol."""

_utf8 = codecs.getincrementaldecoder("utf-8")


def encode_message(payload: str | bytes) -> bytes:
    """Encodes a message of ours as one frame; str: text, bytes: binary; of a batch of texts a frame each.

    It is built once for all who get it.
    """
    if isinstance(payload, str):
        return _encode_frame(FIN_TEXT, payload.encode())
    if isinstance(payload, TextBatch):
        return b"".join(_encode_frame(FIN_TEXT, text) for text in payload.split(b"\n") if text)
    return _encode_frame(FIN_BINARY, payload)


def encode_close(code: int, reason: str) -> bytes:
    return _encode_frame(FIN_CLOSE, struct.pack("!H", code) + reason.encode())


def encode_close_reply(payload: str | bytes) -> bytes:
    """To a client's close, with its own code."""
    return _encode_frame(FIN_CLOSE, payload if isinstance(payload, bytes) else b"")


def encode_pong(payload: str | bytes) -> bytes:
    return _encode_frame(FIN_PONG, payload if isinstance(payload, bytes) else b"")


def _encode_frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < SHORT:
        return bytes((head, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", head, 126, size) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


def decode_whole_message(data: bytes) -> str | bytes | None:
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
            pass  # `FrameParser` says what becomes of that
    return None


class FrameParser:
    """The client's half of one connection, once it has sent anything but short messages, each in a read of its own.

    Payloads are unmasked, and text is checked, as they come: a fault is found with the byte that makes it one (RFC
    6455, 7.1.7 and 8.1). idle_count: how many frames have come that completed no message, since that was last set to 0.
    idle_limit: so many may; with one more it ends with `bad_protocol`, and nothing of what came with it is looked at.
    """

    __slots__ = (
        "_check",
        "_control",
        "_ended",
        "_fin",
        "_head",
        "_kind",
        "_left",
        "_mask",
        "_message",
        "_opcode",
        "idle_count",
        "idle_limit",
    )

    def __init__(self) -> None:
        self.idle_count = 0
        self.idle_limit = sys.maxsize
        self._ended = False  # by a close, or a fault
        self._head = b""  # of a frame, while it is not whole
        self._left = -1  # bytes of the payload that are to come; -1 while a head is
        self._mask = b""  # turned, so that its first byte is for the next one
        self._opcode = Opcode.CONT  # of this frame
        self._fin = False
        self._kind: Opcode | None = None  # of the message whose fragments are being gathered
        self._message = bytearray()
        self._control = bytearray()
        self._check: codecs.IncrementalDecoder | None = None  # of a text that has not come whole at once

    def feed(self, data: bytes) -> list[Received]:
        """What is complete now, in its order. Behind a close, or a fault, there is nothing more to be had."""
        found: list[Received] = []
        if not self._ended:
            try:
                self._parse(self._head + data if self._head else data, found)
            except _TooManyIdleError:
                found.clear()
                self._fail(CloseCode.bad_protocol, found)
            except PayloadTooBig:
                self._fail(CloseCode.too_big, found)
            except ProtocolError:
                self._fail(CloseCode.protocol_error, found)
            except UnicodeDecodeError:
                self._fail(CloseCode.invalid_data, found)
        return found

    def _fail(self, code: CloseCode, found: list[Received]) -> None:
        self._ended = True
        self._message.clear()
        found.append((code, b""))

    def _parse(self, data: bytes, found: list[Received]) -> None:
        at, end = 0, len(data)
        while not self._ended:
            if self._left < 0:
                size = self._take_head(data, at)
                if not size:
                    self._head = data[at:]
                    return
                at += size
            part = data[at : at + self._left]
            at += len(part)
            self._left -= len(part)
            self._take_payload(part)
            if self._left:
                self._head = b""
                return
            self._left = -1
            self._complete_frame(found)
            if at == end:
                self._head = b""
                return

    def _take_head(self, data: bytes, at: int) -> int:
        """Reads a frame's head; returns its size, 0 if it is not whole. Raises ProtocolError, PayloadTooBig."""
        if len(data) - at < 2:
            return 0
        first, second = data[at], data[at + 1]
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise ProtocolError("an opcode that nobody has defined") from None
        fin, length = bool(first & 0x80), second & 0x7F
        if first & 0x70 or not second & MASKED:
            raise ProtocolError("a reserved bit, or a client's frame without a mask")
        control = opcode >= Opcode.CLOSE
        if control and (length > CONTROL_BYTES or not fin):
            raise ProtocolError("a control frame that is too long, or a part")
        if not control and (self._kind is None) == (opcode is Opcode.CONT):
            raise ProtocolError("a continuation of nothing, or a message within another")
        size = 2 + {126: 2, 127: 8}.get(length, 0)
        if length > CONTROL_BYTES:
            if len(data) - at < size:
                return 0
            length = int.from_bytes(data[at + 2 : at + size], "big")
            if length >> 63:
                raise ProtocolError("a length of more than 63 bits")
        room = MAX_MESSAGE_BYTES - len(self._message)
        if not control and length > room:
            raise PayloadTooBig(length, room)
        if len(data) - at < size + 4:
            return 0
        self._mask = data[at + size : at + size + 4]
        self._opcode, self._fin, self._left = opcode, fin, length
        if not control and opcode is not Opcode.CONT:
            self._kind = opcode
        return size + 4

    def _take_payload(self, part: bytes) -> None:
        """Keeps a part of a payload. Raises UnicodeDecodeError as soon as no further byte could make it valid."""
        data = apply_mask(part, self._mask) if part else b""
        if self._opcode >= Opcode.CLOSE:
            self._control += data
        else:
            last = self._fin and not self._left
            if self._kind is Opcode.TEXT and not (last and not self._message):  # else it is decoded as a whole below
                if self._check is None:
                    self._check = _utf8()
                self._check.decode(data, last)
                part_of_one, _ = self._check.getstate()
                if part_of_one[:1] == b"\xed" and part_of_one[1:] > b"\x9f":  # for which Python awaits a third byte
                    raise UnicodeDecodeError("utf-8", part_of_one, 0, 2, "half of a surrogate pair")
            self._message += data
        turn = len(part) % 4
        if turn:
            self._mask = self._mask[turn:] + self._mask[:turn]

    def _complete_frame(self, found: list[Received]) -> None:
        opcode = self._opcode
        if opcode >= Opcode.CLOSE:
            data = bytes(self._control)
            self._control.clear()
            if opcode is Opcode.CLOSE:
                Close.parse(data)
                self._ended = True
                found.append((Opcode.CLOSE, data[:2]))
            else:
                self._count_idle()
                found.append((opcode, data))
        elif self._fin and self._kind is not None:
            whole, kind = bytes(self._message), self._kind
            self._kind, self._message, self._check = None, bytearray(), None
            found.append((kind, whole.decode() if kind is Opcode.TEXT else whole))
        else:
            self._count_idle()

    def _count_idle(self) -> None:
        """Counts frames that carry nothing. Raises _TooManyIdleError."""
        self.idle_count += 1
        if self.idle_count > self.idle_limit:
            raise _TooManyIdleError


class _TooManyIdleError(Exception):
    """More frames that say nothing than the client may send now."""
