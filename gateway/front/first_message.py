"""The first message of a client whose bytes are passed on as they are: what it says decides what it speaks.

What it keeps true: no more is held than one message of MAX_MESSAGE_BYTES, and what was read at a time; the shard, which
gets the same bytes, judges them.
"""

from __future__ import annotations

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from solowire.protocol.messages import MAX_MESSAGE_BYTES


class FirstMessage:
    """Finds a client's first message in what it sends."""

    __slots__ = ("_parser", "_payload")

    def __init__(self) -> None:
        self._parser: Protocol | None = None  # most old clients never say anything
        self._payload = bytearray()

    def advance(self, data: bytes) -> bytes | None:
        """So much has come; the message when it is whole, None until then. Of what is no message: empty."""
        if self._parser is None:
            self._parser = Protocol(Side.SERVER, max_size=MAX_MESSAGE_BYTES)
        self._parser.receive_data(data)
        self._parser.data_to_send()  # its answers to pings and faults: the shard gives those
        for frame in self._parser.events_received():
            if isinstance(frame, Frame) and frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._payload += frame.data
                if frame.fin:
                    return bytes(self._payload)
        return b"" if self._parser.parser_exc is not None or self._parser.close_expected() else None
