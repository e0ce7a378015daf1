"""The body of an HTTP/1.1 request, by its framing (RFC 9112, section 6): where it ends. No socket, no clock.

What it keeps true: a body is measured in one way only, or its request is refused: both a length and chunks, two
lengths, another coding than chunked, a chunk size that is no plain hexadecimal number are each an error.
"""

from __future__ import annotations

import re

from solowire.errors import RequestRejected
from solowire.protocol.opening_handshake import Framing

_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\x20-\x7e\x80-\xff\t]*)?")
LINE_BYTES = 4096
"""What a chunk's size line, or a trailer's, may have."""
TRAILER_LINES = 32
FREE_CHUNKS, CHUNK_BYTES = 256, 32
"""A body may have so many chunks of any size, and one more for so many bytes: to take a chunk apart costs as much as to
take in a KB, so a body of single bytes would cost hundreds of times what it costs to send.
"""


class Body:
    """The body of one request, passed on as it comes. left: bytes that are to come, None if only the end tells."""

    def __init__(self, length: int | None) -> None:
        self.left = length
        self.is_done = length == 0
        self._chunk_count = 0
        self._chunk_bytes = 0
        self._chunk = 0  # bytes to come of the chunk that has begun, its line end included
        self._in_trailer = False
        self._line = b""  # the begin of a line that is not whole
        self._trailer_lines = 0

    def measure(self, data: bytes) -> int:
        """How many of these bytes belong to the body; `is_done` says whether that is all of it.

        Raises RequestRejected.
        """
        if self.left is not None:
            size = min(self.left, len(data))
            self.left -= size
            self.is_done = not self.left
            return size
        at = 0
        while at < len(data) and not self.is_done:
            if self._chunk:
                size = min(self._chunk, len(data) - at)
                if self._chunk - size < 2:  # the line end behind the chunk's data, or a part of it
                    self._check_line_end(data[at : at + size], self._chunk)
                self._chunk -= size
                at += size
            else:
                at += self._take_line(data, at)
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        part = data[at:] if end < 0 else data[at : end + 1]
        self._line += part
        if len(self._line) > LINE_BYTES:
            raise _make_bad_request("a line of the chunked body is too long")
        if end >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise _make_bad_request("a line of the chunked body ends without a carriage return")
            self._read_line(line[:-2])
        return len(part)

    def _read_line(self, line: bytes) -> None:
        if self._in_trailer:
            self._trailer_lines += 1
            if self._trailer_lines > TRAILER_LINES:
                raise _make_bad_request("the chunked body has too many trailers")
            self.is_done = not line
            return
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise _make_bad_request("the size of a chunk is no hexadecimal number")
        number = int(size[1], 16)
        self._in_trailer = not number
        self._chunk_count += 1
        self._chunk_bytes += number
        if self._chunk_count > FREE_CHUNKS + self._chunk_bytes // CHUNK_BYTES:
            raise RequestRejected(
                400, "chunks_too_small", "the body comes in chunks of a few bytes", "send it in larger ones, or whole"
            )
        self._chunk = number + 2 if number else 0

    def _check_line_end(self, part: bytes, left: int) -> None:
        """Checks the line end of a chunk.

        part: the last bytes of a chunk of which `left` were to come, its line end included.
        """
        expected = b"\r\n"[max(0, 2 - left) :][: len(part) - max(0, left - 2)]
        if not part.endswith(expected):
            raise _make_bad_request("a chunk is longer than its size")


def make_body(head: Framing) -> Body:
    """The body that a request's head announces. Raises RequestRejected."""
    lengths, codings = head.lengths, head.codings
    if codings:
        if lengths:
            raise _make_bad_request("there is both a Content-Length and a Transfer-Encoding")
        if head.version < (1, 1) or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise RequestRejected(
                501,
                "transfer_encoding_not_supported",
                "the only Transfer-Encoding that is understood is chunked, alone",
                "send the body as it is, or chunked",
            )
        return Body(None)
    if len(lengths) > 1 or (lengths and not _DIGITS.fullmatch(lengths[0])):
        raise _make_bad_request("the Content-Length is no number, or there are several")
    return Body(int(lengths[0]) if lengths else 0)


def _make_bad_request(message: str) -> RequestRejected:
    return RequestRejected(
        400, "bad_request", message, "see RFC 9112: a client or proxy on the way writes HTTP wrongly"
    )
