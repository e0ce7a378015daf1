"""The receiving end of one Frame Streams connection, bidirectional, as `named` speaks it for dnstap.

Pure: bytes in, frames and what to answer out. A data frame is a length of four bytes, big-endian, and so much data. The
length 0 begins a control frame: a second length, a type of four bytes, and fields. A connection is

    sender     READY ──────▶         ──────▶ START  data frames …  STOP ──────▶
    receiver          ──────▶ ACCEPT                                    ──────▶ FINISH

What it keeps true: it holds one incomplete frame at most, MAX_FRAME_BYTES long; a longer one is an error at its first
four bytes. After an error the connection can't be used any more, as nobody knows where the next frame begins.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct

import msgspec

from solowire.errors import DnstapError

CONTENT_TYPE = b"protobuf:dnstap.Dnstap"

MAX_FRAME_BYTES = 256 * 1024
"""A dnstap message holds a query and an answer at most, of 64 KB each."""
MAX_CONTROL_BYTES = 512
"""The protocol's own bound."""

_ACCEPT, _START, _STOP, _READY, _FINISH = 1, 2, 3, 4, 5
_CONTENT_TYPE_FIELD = 1
_UINT = Struct("!I")
_TWO_UINTS = Struct("!II")


class StreamState(Enum):
    """Where the connection is."""

    awaiting_ready = "READY"
    awaiting_start = "START"
    streaming = "data or STOP"
    finished = "nothing"


_TRANSITIONS = {
    (StreamState.awaiting_ready, _READY): StreamState.awaiting_start,
    (StreamState.awaiting_start, _START): StreamState.streaming,
    (StreamState.streaming, _STOP): StreamState.finished,
}
"""By the control frames of the sender; any other is an error."""


class StreamStep(msgspec.Struct, frozen=True):
    """What some bytes brought. frames: the data frames, in order. reply: to be sent to the sender, if not empty."""

    frames: list[bytes]
    reply: bytes


class FrameStream:
    """Splits what one sender sends. state: where the connection is."""

    def __init__(self) -> None:
        self.state = StreamState.awaiting_ready
        self._buffer = bytearray()

    def feed(self, data: bytes) -> StreamStep:
        """Takes in what arrived. Raises DnstapError for what is no Frame Stream of dnstap."""
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        reply = b""
        end, position = len(buffer), 0
        while position + 4 <= end:
            (length,) = _UINT.unpack_from(buffer, position)
            start = position + 4
            if length:
                if length > MAX_FRAME_BYTES:
                    raise DnstapError(f"a frame of {length} bytes; {MAX_FRAME_BYTES} are the most")
                if self.state is not StreamState.streaming:
                    raise DnstapError(f"a data frame, where it should have sent {self.state.value}")
                if (position := start + length) > end:
                    position = start - 4
                    break
                frames.append(bytes(buffer[start:position]))
            else:
                if start + 4 > end:
                    break
                (length,) = _UINT.unpack_from(buffer, start)
                if not 4 <= length <= MAX_CONTROL_BYTES:
                    raise DnstapError(f"a control frame of {length} bytes; 4 to {MAX_CONTROL_BYTES} are possible")
                start += 4
                if start + length > end:
                    break
                position = start + length
                reply += self._take_control(bytes(buffer[start:position]))
        del buffer[:position]
        return StreamStep(frames, reply)

    def _take_control(self, control: bytes) -> bytes:
        """Follows a control frame, and returns the answer to it."""
        (kind,) = _UINT.unpack_from(control)
        following = _TRANSITIONS.get((self.state, kind))
        if following is None:
            raise DnstapError(f"a control frame of type {kind}, where it should have sent {self.state.value}")
        if kind == _STOP:
            self.state = following
            return _make_control(_FINISH)
        offered = _read_content_types(control)
        if offered and CONTENT_TYPE not in offered:
            names = ", ".join(repr(name[:64]) for name in offered[:4])
            raise DnstapError(f"frames of {names}; only {CONTENT_TYPE.decode()} is understood")
        self.state = following
        return _make_control(_ACCEPT, CONTENT_TYPE) if kind == _READY else b""


def _read_content_types(control: bytes) -> list[bytes]:
    found = []
    position = 4
    while position < len(control):
        if position + 8 > len(control):
            raise DnstapError("a control frame with half a field")
        field, length = _TWO_UINTS.unpack_from(control, position)
        position += 8
        if field != _CONTENT_TYPE_FIELD or position + length > len(control):
            raise DnstapError("a control frame with a field that does not exist")
        found.append(control[position : position + length])
        position += length
    return found


def _make_control(kind: int, content_type: bytes = b"") -> bytes:
    body = _UINT.pack(kind)
    if content_type:
        body += _TWO_UINTS.pack(_CONTENT_TYPE_FIELD, len(content_type)) + content_type
    return _TWO_UINTS.pack(0, len(body)) + body
