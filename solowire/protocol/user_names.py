"""User names in URLs: percent-encoded whole (RFC 3986), and compared exactly as they stand in a token's `sub`.

What it keeps true: each name has a path of its own, whatever is in it, and each path at most one name. Servers give
applications a path that is decoded already, where `u1%2F` has become `u1/`: so names are read from the raw one.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from solowire.errors import RequestRejected

_MALFORMED = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def encode_user_name(user: str) -> str:
    """As one segment of a path. Dots, too: clients take `.` and `..` out of paths by themselves. Raises ValueError."""
    return quote(user, safe="").replace(".", "%2E")


def decode_user_name(raw: bytes) -> str:
    """The name that a part of a raw path stands for. Raises RequestRejected."""
    try:
        if _MALFORMED.search(raw):
            raise ValueError("a % is not followed by two hexadecimal digits")
        return unquote_to_bytes(raw).decode("utf-8")
    except ValueError as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        hint = "percent-encode the whole name, in UTF-8: / is %2F, % is %25"
        raise RequestRejected(
            400, "invalid_user_name", f"the user's name in the path can't be read: {reason}", hint
        ) from None


def one_line(text: str) -> str:
    """The text with all that a terminal would obey, such as line ends, as escapes: anybody may be called anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
