"""What is said of JSON that can't be read."""

from __future__ import annotations

import msgspec
import pytest

from solowire.algorithms.json_faults import describe_json_fault


def fault(raw: bytes) -> str:
    with pytest.raises((msgspec.DecodeError, UnicodeError)) as caught:
        msgspec.json.decode(raw)
    return describe_json_fault(caught.value, raw)


@pytest.mark.parametrize(
    "raw",
    [rb'"\ud800"', rb'"a\uDBFFb"', rb'"\udc00"', rb'"\ud800\u0041"', rb'["\\ud800", "\ud83d\ude00", "\udfff"]'],
)
def test_half_a_character(raw: bytes) -> None:
    """It is named, where the decoder speaks of truncated data; pairs and escaped backslashes before it are not."""
    assert "half a character" in fault(raw)


@pytest.mark.parametrize(
    ("raw", "number", "place"),
    [
        (b'{"a": "1e999", "n": [0, 1e400]}', "1e400", 24),
        (b"-12e9999", "-12e9999", 0),
        (rb'["\"1e999", 2e999]', "2e999", 12),
    ],
)
def test_a_number_that_is_too_large(raw: bytes, number: str, place: int) -> None:
    """It is named, with its place: of a path the decoder knows but that it is in an array."""
    assert fault(raw) == f"the number {number} is out of range (byte {place})"


@pytest.mark.parametrize("raw", [b'{"a": 1', b'"abc', rb'"\u12"', rb'["\\ud800', b"[1,]", b"nan"])
def test_other_faults_are_told_as_they_are(raw: bytes) -> None:
    """What really ends too early does so."""
    assert "half a character" not in fault(raw)
