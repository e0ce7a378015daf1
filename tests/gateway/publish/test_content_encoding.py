"""Compressed request bodies: what each encoding gives, and that a small body never becomes more than it may."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from solowire.errors import RequestError, RequestRejected
from solowire.gateway.publish.content_encoding import ENCODINGS, MAX_PARTS, decode_steps, join_encodings
from solowire.protocol.problem_details import to_http_response

BODY = b'{"type":"custom.x","data":{"text":"' + bytes(range(32, 34)) * 500 + b'"}}'
MAX = 100_000


def decode_content(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """All that `decode_steps` yields, at once."""
    return b"".join(piece for piece in decode_steps(body, encoding, max_bytes) if piece is not None)


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


def zstd_without_size(data: bytes) -> bytes:
    """As a program writes it that does not know how much there will be."""
    coder = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return coder.compress(data) + coder.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    " gzip ": gzip.compress,
    "identity, gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "zstd": zstandard.compress,
    "ZSTD": zstd_without_size,
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_what_was_encoded_is_decoded(encoding: str) -> None:
    """Each encoding, whatever its case, and none."""
    for data in (BODY, b"", b"x" * MAX):
        assert decode_content(ENCODERS[encoding](data), encoding, MAX) == data


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_parts_one_after_the_other_are_one_body(encoding: str) -> None:
    """A shipper that appends gzip members, or zstd frames, sends all of them."""
    encode = ENCODERS[encoding]
    whole = encode(b"one,") + encode(b"") + encode(b"two")
    assert decode_content(whole, encoding, MAX) == b"one,two"


def test_a_skippable_frame_of_zstd_is_skipped() -> None:
    """RFC 8878, section 3.1.2: what stands in it is not data."""
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert decode_content(zstandard.compress(b"one") + skippable, "zstd", MAX) == b"one"


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "zstd,gzip", "gzip;q=1", "aes128gcm", "x" * 500])
def test_another_encoding_is_refused_with_those_that_there_are(encoding: str) -> None:
    """415, and `Accept-Encoding` as RFC 9110, section 15.5.16 has it."""
    with pytest.raises(RequestRejected) as raised:
        decode_content(BODY, encoding, MAX)
    status, headers, body = to_http_response(raised.value)
    assert (status, raised.value.code) == (415, "unsupported_encoding")
    assert dict(headers)[b"accept-encoding"] == b"gzip, deflate, zstd, identity"
    assert b"gzip, deflate, zstd, identity" in body
    assert len(body) < 500


def test_several_headers_are_one_list() -> None:
    """Two lines of `Content-Encoding` mean two encodings, not the last of them."""
    headers = [(b"content-encoding", b"gzip"), (b"host", b"h"), (b"content-encoding", b"zstd")]
    assert join_encodings(headers) == b"gzip, zstd"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_not_what_it_says_is_told(encoding: str) -> None:
    """Plain JSON under the header, a cut body, one with a changed byte, and one with more behind it: 400, and why."""
    encoded = ENCODERS[encoding](BODY * 3)
    broken = [BODY, b"", encoded[: len(encoded) // 2], encoded[:-1], encoded + b"junk"]
    if encoding != "zstd":  # whose checksum is an option
        broken.append(encoded[:-1] + bytes([encoded[-1] ^ 1]))
    for body in broken:
        with pytest.raises(RequestError) as raised:
            decode_content(body, encoding, MAX)
        assert not isinstance(raised.value, RequestRejected), body
        assert raised.value.code == "invalid_body"
        assert f"not valid {encoding}" in raised.value.message
        assert "Content-Encoding" in raised.value.hint


def bombs() -> dict[str, bytes]:
    """Some 60 KB at most that stand for 64 MiB, and for more still."""
    zeros = bytes(64 * 2**20)
    return {
        "gzip": gzip.compress(zeros),
        "deflate": zlib.compress(zeros, 9),
        "zstd": zstandard.compress(zeros),
        "zstd without its size": zstd_without_size(zeros),
        "members": gzip.compress(bytes(MAX)) * 400,
        "frames": zstandard.compress(bytes(MAX)) * 2000,
    }


def test_a_small_body_never_becomes_a_large_one() -> None:
    """Each is refused with 413 when it has made a little more than it may, not when it has made all."""
    for name, bomb in bombs().items():
        encoding = {"members": "gzip", "frames": "zstd"}.get(name, name.split()[0])
        tracemalloc.start()
        try:
            with pytest.raises(RequestRejected) as raised:
                decode_content(bomb, encoding, MAX)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (raised.value.status, raised.value.code) == (413, "too_large"), name
        assert f"{MAX} bytes" in raised.value.message
        assert "SOLOWIRE_PUBLISH__MAX_REQUEST_BYTES" in raised.value.hint
        assert peak < 20 * MAX, name


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_of_countless_empty_parts_is_refused(encoding: str) -> None:
    """Hundreds of thousands of parts with nothing in them would take the gateway's time, not its memory."""
    assert decode_content(ENCODERS[encoding](b"x") * MAX_PARTS, encoding, MAX) == b"x" * MAX_PARTS
    with pytest.raises(RequestError) as raised:
        decode_content(ENCODERS[encoding](b"") * 200_000, encoding, MAX)
    assert raised.value.code == "invalid_body"


def test_the_limit_is_exact() -> None:
    """As many bytes as allowed are taken, one more is refused."""
    for encode, encoding in ((gzip.compress, "gzip"), (zlib.compress, "deflate"), (zstandard.compress, "zstd")):
        assert len(decode_content(encode(bytes(MAX)), encoding, MAX)) == MAX
        with pytest.raises(RequestRejected):
            decode_content(encode(bytes(MAX + 1)), encoding, MAX)


def test_a_frame_that_asks_for_much_memory_is_refused() -> None:
    """A window of 128 MiB is memory before the first byte is made: not more than RFC 9659 allows is given."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    coder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(RequestError, match="memory"):
        decode_content(coder.compress(b"x") + coder.flush(), "zstd", MAX)


@given(st.sampled_from(["gzip", "deflate", "zstd"]), st.binary(max_size=200), st.integers(0, 300), st.booleans())
def test_whatever_comes_is_data_or_a_told_fault(encoding: str, data: bytes, cut: int, encoded: bool) -> None:
    """No bytes lead to anything but a body within the limit or an error of ours."""
    body = ENCODERS[encoding](data)[:cut] if encoded else data
    code = ""
    try:
        found = decode_content(body, encoding, 100)
    except RequestError as error:
        found, code = b"", error.code
    assert len(found) <= 100
    assert code in ("", "invalid_body", "too_large")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "Deflate", "zstd"])
def test_what_a_few_bytes_stand_for_is_made_in_small_steps(encoding: str) -> None:
    """A few KB make 4 MiB: others have their turn in between."""
    data = bytes(4 * 2**20)
    body = ENCODERS[encoding](data)
    assert len(body) < 16 * 1024
    pieces = list(decode_steps(body, encoding, len(data)))
    made = [piece for piece in pieces if piece is not None]
    assert b"".join(made) == data
    assert len(pieces) > 60


@given(st.binary(max_size=400), st.integers(1, 2000), st.integers(0, 400))
def test_steps_make_what_zlib_makes_at_once(data: bytes, times: int, cut: int) -> None:
    """Wherever a step ends, within one member or several, and whatever is missing at the end."""
    whole = data * times
    body = gzip.compress(whole) + gzip.compress(data)
    assert decode_content(body, "gzip", len(whole) + len(data)) == gzip.decompress(body)
    cut_off = body[: len(gzip.compress(whole)) - 1 - cut]
    with pytest.raises(RequestError):
        decode_content(cut_off, "gzip", len(whole) + len(data))
