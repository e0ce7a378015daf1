"""Request bodies that come compressed: `Content-Encoding` (RFC 9110, section 8.4).

What it keeps true: whatever a body claims to become, no more is made of it than it may have and a few KiB, so that a
small one that stands for gigabytes costs no more than a large one; and what it costs is done in small steps. One
encoding is undone; several are refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import zstandard

from solowire.errors import RequestError, RequestRejected

ENCODINGS = ("gzip", "deflate", "zstd")
_ALIASES = {"x-gzip": "gzip"}  # RFC 9110, section 8.4.1.3
_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15  # of zlib's wbits: which format it reads
_WINDOW_BYTES = 8 * 2**20
"""More a frame of zstd may not ask for: it is memory that its header alone makes a decoder take (RFC 9659)."""
STEP_BYTES = 64 * 1024
"""Decoded in a step."""
_FED_BYTES = 16 * 1024
"""Given to a decoder at a time. It copies what follows the end of a part, so one with many parts must not be whole."""
MAX_PARTS = 1000
"""Members of gzip, or frames of zstd: each takes time, and empty ones take nothing else."""


def join_encodings(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What all `Content-Encoding` headers say together, as one."""
    return b", ".join(value for name, value in headers if name == b"content-encoding")


def decode_steps(body: bytes, content_encoding: str, max_bytes: int) -> Iterator[bytes | None]:
    """The body as it was before it was encoded, in pieces; None after a step that made none of it.

    A step takes a fraction of a millisecond, so that whoever runs them can do something else between them.
    content_encoding: the header's value. Raises RequestRejected: 413 if it has more than `max_bytes`, 415 for an
    encoding that is not one of ENCODINGS. Raises RequestError if it is not what it says.
    """
    names = [part.strip().lower() for part in content_encoding.split(",")]
    encodings = [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    if not encodings:
        yield body
        return
    if len(encodings) > 1 or encodings[0] not in ENCODINGS:
        raise refuse_encoding(content_encoding, ENCODINGS)
    try:
        if encodings[0] == "zstd":
            yield from _decode_zstd(body, max_bytes)
        else:
            yield from _inflate(body, _GZIP_BITS if encodings[0] == "gzip" else _bits_of_deflate(body), max_bytes)
    except (zlib.error, zstandard.ZstdError) as error:
        raise _invalid(encodings[0], str(error)) from None
    except EOFError:
        raise _invalid(encodings[0], "it ends in its midst") from None


def need_plain(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises RequestRejected if the body of a request that may not be encoded is."""
    content_encoding = join_encodings(headers).decode("latin-1")
    if any(name.strip().lower() not in ("", "identity") for name in content_encoding.split(",")):
        raise refuse_encoding(content_encoding, ())


def refuse_encoding(content_encoding: str, encodings: Iterable[str]) -> RequestRejected:
    """The 415 for a body in an encoding that is not one of `encodings`; it tells them as a header, too."""
    known = [*encodings, "identity"]
    several = "," in content_encoding
    refused = RequestRejected(
        415,
        "unsupported_encoding",
        f"the Content-Encoding {content_encoding[:64]!r} is not understood here",
        f"send one of {', '.join(known)}{', not several on top of each other' if several else ''}",
    )
    refused.headers = (("accept-encoding", ", ".join(known)),)
    return refused


def _inflate(body: bytes, bits: int, max_bytes: int) -> Iterator[bytes | None]:
    """Inflates a body in pieces; gzip may have several members, one after the other (RFC 1952, section 2.2)."""
    size = position = members = 0
    while position < len(body) or not members:
        decoder = zlib.decompressobj(bits)
        members += 1
        if members > (MAX_PARTS if bits == _GZIP_BITS else 1):
            raise zlib.error(f"more follows its end at byte {position}")
        while not decoder.eof:
            fed = body[position : position + _FED_BYTES]
            piece = decoder.decompress(fed, STEP_BYTES)
            if not (fed or piece or decoder.eof):
                raise EOFError
            size += len(piece)
            if size > max_bytes:
                raise _too_large(max_bytes)
            left = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            position += len(fed) - len(left)
            yield piece or None


def _bits_of_deflate(body: bytes) -> int:
    """`deflate` means the format of zlib, and some send what is within it alone."""
    is_zlib = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _ZLIB_BITS if is_zlib else _RAW_BITS


def _decode_zstd(body: bytes, max_bytes: int) -> Iterator[bytes | None]:
    """It may have several frames, one after the other (RFC 8878, section 3)."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    # Its decoders say either how much they make, or that the end is missing: so it is measured first.
    reader = decompressor.stream_reader(body, read_across_frames=True)
    size = 0
    while piece := reader.read(STEP_BYTES):
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield None
    position = frames = 0
    while position < len(body) or not frames:
        decoder = decompressor.decompressobj()
        frames += 1
        if frames > MAX_PARTS:
            raise zstandard.ZstdError(f"it has more than {MAX_PARTS} frames")
        while not decoder.eof:
            fed = body[position : position + _FED_BYTES]
            if not fed:
                raise EOFError
            yield decoder.decompress(fed) or None
            position += len(fed) - len(decoder.unused_data)


def _too_large(max_bytes: int) -> RequestRejected:
    return RequestRejected(
        413,
        "too_large",
        f"the body has more than the {max_bytes} bytes that a request may have, once it is decompressed",
        "send fewer events in each; an operator raises SOLOWIRE_PUBLISH__MAX_REQUEST_BYTES",
    )


def _invalid(encoding: str, reason: str) -> RequestError:
    return RequestError(
        "invalid_body",
        f"the body is not valid {encoding}: {reason}",
        "compress it as a whole, or leave the Content-Encoding header out where it is not compressed",
    )
