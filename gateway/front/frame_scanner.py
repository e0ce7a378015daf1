"""A scanner of WebSocket frames: it finds their ends in a stream of bytes that is passed on as it is.

What it keeps true: `is_at_boundary` says whether a frame could be put in now; of what passes nothing is kept but a
frame's head that is not whole.
"""

from __future__ import annotations

CLOSE = 0x8


class FrameScanner:
    """Finds the ends of WebSocket frames in a stream of bytes.

    has_closed: whether a close frame has passed, behind which there must be nothing.
    """

    __slots__ = ("_head", "_left", "has_closed")

    def __init__(self) -> None:
        self.has_closed = False
        self._left = 0  # bytes of the frame that are to come
        self._head = b""

    @property
    def is_at_boundary(self) -> bool:
        return not self._left and not self._head

    def advance(self, data: bytes) -> None:
        """So many bytes have passed: whole frames, or parts of them."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            head = self._head + data[at : at + 10 - len(self._head)]
            size = 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0) if len(head) > 1 else 2
            if len(head) < size:
                self._head = head
                return
            at += size - len(self._head)
            self._head = b""
            length = head[1] & 0x7F
            self._left = length if size == 2 else int.from_bytes(head[2:size], "big")
            self.has_closed = self.has_closed or head[0] & 0x0F == CLOSE
