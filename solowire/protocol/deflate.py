"""Compressed messages, which the subprotocols with the suffix `+deflate` have beside plain ones (see docs/protocol.md).

    0xC1 · one whole raw deflate stream (RFC 1951) of the message as it would be otherwise

What it keeps true: each message is read by itself, whatever came before it, so one frame does for connections that have
joined a feed at different times. Neither UTF-8 nor MessagePack knows the byte 0xC1, so no plain message begins with it.
What is received is never inflated beyond a bound.
"""

from __future__ import annotations

import zlib

from solowire.errors import InvalidMessage

SUFFIX = "+deflate"
MARK = b"\xc1"
WORTH_BYTES = 512
"""Smaller messages stay plain: one event alone fits a packet anyway, and saves a quarter."""

MAX_INFLATED_BYTES = 16 * 1024 * 1024
"""As much as a plain message may have (`solowire.sdk.connection_attempt.MAX_FRAME_BYTES`)."""

_HINT = "see docs/protocol.md, Compressed messages"

_LEVEL = 1
"""Level 6 saves 1 to 3 % of a frame's bytes more, for two to four times as long: see `python -m bench compression`."""

_RAW = -zlib.MAX_WBITS


def deflate_message(message: bytes) -> bytes | None:
    """`message` compressed; None if that would not make it smaller by anything worth while."""
    if len(message) < WORTH_BYTES:
        return None
    packed = MARK + zlib.compress(message, _LEVEL, wbits=_RAW)
    return packed if len(packed) < len(message) else None


def inflate_message(message: str | bytes) -> str | bytes:
    """What a compressed message holds; a plain one as it is. Raises InvalidMessage: damaged, cut off, too large."""
    if isinstance(message, str) or message[:1] != MARK:
        return message
    stream = zlib.decompressobj(_RAW)
    try:
        found = stream.decompress(memoryview(message)[1:], MAX_INFLATED_BYTES + 1)
    except zlib.error as error:
        raise InvalidMessage("invalid_message", f"it is not valid deflate: {error}", _HINT) from None
    if len(found) > MAX_INFLATED_BYTES:
        raise InvalidMessage("invalid_message", f"it is more than {MAX_INFLATED_BYTES} bytes when inflated", _HINT)
    if not stream.eof:
        raise InvalidMessage("invalid_message", "its deflate stream is cut off", _HINT)
    if stream.unused_data:
        raise InvalidMessage("invalid_message", "something follows its deflate stream", _HINT)
    return found
