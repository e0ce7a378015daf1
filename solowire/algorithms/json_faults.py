"""Faults of JSON, told where the decoder's own words mislead."""

from __future__ import annotations

import re
from math import isinf

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rb"\\[^u]|" + _HIGH + _LOW + rb"|(" + _HIGH + rb"|" + _LOW + rb")")
"""An escape that says half a character, in its group; whole pairs and other escapes are stepped over."""


_NUMBER = re.compile(rb'"(?:[^"\\\\]|\\\\.)*+"|(-?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?)', re.DOTALL)
"""A text, which is stepped over, or a number, in its group."""
_SHOWN = 40

MOST_BYTES, SEARCHED_BYTES = 2**20, 64 * 1024
"""Half a character is looked for in so many bytes: of the first of these that may be one, in so many from there."""


def describe_json_fault(error: Exception, raw: bytes) -> str:
    """The error in words. raw: what was to be decoded.

    msgspec calls half a character (a lone surrogate, RFC 8259, section 8.2) at the end of a text "truncated".
    """
    text = str(error)
    if text.startswith("Number out of range"):
        for number in _NUMBER.finditer(raw, 0, MOST_BYTES):
            if number[1] and isinf(float(number[1])):
                shown = number[1][:_SHOWN].decode("ascii")
                return f"the number {shown} is out of range (byte {number.start()})"
    if "truncated" in text or "surrogate" in text:
        begins = [place for place in (raw.find(b"\\ud", 0, MOST_BYTES), raw.find(b"\\uD", 0, MOST_BYTES)) if place >= 0]
        begin = min(begins, default=len(raw))
        while raw[begin - 1 : begin] == b"\\":  # of which one may make the next a plain letter
            begin -= 1
        for found in _ESCAPE.finditer(raw, begin, begin + SEARCHED_BYTES):
            if found[1] is not None:
                half = found[1].decode("ascii")
                return f"it holds half a character ({half}), which UTF-8 can't say (byte {found.start()})"
    return text
